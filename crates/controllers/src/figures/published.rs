//! What the controllers count that publish the API server's authority. Source: `pkg/controller/certificates/rootcacertpublisher`
//! and `clustertrustbundlepublisher`, `metrics.go`.

use std::time::Duration;

use api::Status;
use base::BoxError;
use prometheus::{Error, HistogramVec, IntCounterVec, Registry, exponential_buckets};

use super::made::Maker;

/// How often it was published, and how long that took, by how it ended.
pub(crate) struct PublishFigures {
    syncs: IntCounterVec,
    seconds: HistogramVec,
}

impl PublishFigures {
    pub(super) fn new(registry: &Registry, subsystem: &'static str) -> Result<Self, Error> {
        let make = Maker { registry, subsystem };
        Ok(Self {
            syncs: make.counters(
                "sync_total",
                "[ALPHA] How often the authority was published.",
                &["code"],
            )?,
            seconds: make.histograms(
                "sync_duration_seconds",
                "[ALPHA] How long that took.",
                &["code"],
                exponential_buckets(0.001, 2.0, 15)?,
            )?,
        })
    }

    /// It was looked after for so long; what the server answered last is told, or 500 where it was not asked.
    pub(crate) fn synced<T>(&self, done: &Result<T, BoxError>, took: Duration) {
        let code = match done {
            Ok(_) => 200,
            Err(error) => error.downcast_ref::<Status>().map_or(500, |status| status.code),
        };
        let labels = [&*code.to_string()];
        self.syncs.with_label_values(&labels).inc();
        self.seconds.with_label_values(&labels).observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use api::Reason;

    use super::super::made::tests::shown;
    use super::*;

    #[test]
    fn publishing_is_counted_by_what_the_server_answered() {
        let registry = Registry::new();
        let figures = PublishFigures::new(&registry, "root_ca_cert_publisher").unwrap();
        let failed = |error: BoxError| -> Result<(), BoxError> { Err(error) };
        figures.synced(&Ok(()), Duration::from_millis(3));
        figures.synced(&failed(Status::new(Reason::Conflict, "no").into()), Duration::ZERO);
        figures.synced(&failed("what".into()), Duration::ZERO);
        let shown = shown(&registry);
        for line in [
            r#"sync_total{code="200"} 1"#,
            r#"sync_total{code="409"} 1"#,
            r#"sync_total{code="500"} 1"#,
            r#"sync_duration_seconds_bucket{code="200",le="0.004"} 1"#,
        ] {
            let line = format!("root_ca_cert_publisher_{line}");
            assert!(shown.contains(&line), "{line} is not in {shown:#?}");
        }
    }
}
