//! What the controller counts that mirrors Endpoints. Source: `pkg/controller/endpointslicemirroring/metrics`.

use std::collections::HashMap;
use std::time::Duration;

use api::Key;
use parking_lot::Mutex;
use prometheus::{Error, Histogram, IntCounterVec, IntGauge, Registry, exponential_buckets};

use super::made::Maker;

/// The figures of mirrored Endpoints.
pub(crate) struct MirrorFigures {
    added: Histogram,
    updated: Histogram,
    removed: Histogram,
    skipped: Histogram,
    seconds: Histogram,
    endpoints: IntGauge,
    slices: IntGauge,
    ideal: IntGauge,
    changes: IntCounterVec,
    /// What each Endpoints adds to the gauges: endpoints and slices.
    mirrored: Mutex<HashMap<Key, (usize, usize)>>,
}

/// What a look at Endpoints came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mirrored {
    pub(crate) added: usize,
    pub(crate) updated: usize,
    pub(crate) removed: usize,
    /// Addresses that are in no slice.
    pub(crate) skipped: usize,
    /// How many endpoints there are then, …
    pub(crate) endpoints: usize,
    /// … and slices: as few as would do, since each holds as much as fits.
    pub(crate) slices: usize,
}

impl MirrorFigures {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        let make = Maker { registry, subsystem: "endpoint_slice_mirroring_controller" };
        let per_sync =
            |name: &str, help: &str| make.histogram(name, help, exponential_buckets(2.0, 2.0, 15)?);
        Ok(Self {
            added: per_sync("endpoints_added_per_sync", "[ALPHA] Endpoints that a look at Endpoints added.")?,
            updated: per_sync(
                "endpoints_updated_per_sync",
                "[ALPHA] Endpoints that a look at Endpoints changed.",
            )?,
            removed: per_sync(
                "endpoints_removed_per_sync",
                "[ALPHA] Endpoints that a look at Endpoints removed.",
            )?,
            skipped: per_sync("addresses_skipped_per_sync", "[ALPHA] Addresses that are not mirrored.")?,
            seconds: make.histogram(
                "endpoints_sync_duration",
                "[ALPHA] How long a look at Endpoints took, in seconds.",
                exponential_buckets(0.001, 2.0, 15)?,
            )?,
            endpoints: make.gauge("endpoints_desired", "[ALPHA] Endpoints that are wanted.")?,
            slices: make.gauge("num_endpoint_slices", "[ALPHA] EndpointSlices.")?,
            ideal: make.gauge("desired_endpoint_slices", "[ALPHA] How few EndpointSlices would do.")?,
            changes: make.counters("changes", "[ALPHA] Changes of EndpointSlices.", &["operation"])?,
            mirrored: Mutex::default(),
        })
    }

    /// A slice was written: `create`, `update` or `delete`.
    pub(crate) fn changed(&self, operation: &str) {
        self.changes.with_label_values(&[operation]).inc();
    }

    /// Endpoints were looked at for so long.
    pub(crate) fn looked(&self, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
    }

    /// What a look at Endpoints came to; nothing if they are not mirrored any more.
    pub(crate) fn mirrored(&self, endpoints: &Key, mirrored: Option<&Mirrored>) {
        let mut all = self.mirrored.lock();
        let before = match mirrored {
            Some(now) => {
                self.added.observe(now.added as f64);
                self.updated.observe(now.updated as f64);
                self.removed.observe(now.removed as f64);
                self.skipped.observe(now.skipped as f64);
                self.weigh((now.endpoints, now.slices), 1);
                all.insert(endpoints.clone(), (now.endpoints, now.slices))
            }
            None => all.remove(endpoints),
        };
        before.into_iter().for_each(|before| self.weigh(before, -1));
    }

    fn weigh(&self, (endpoints, slices): (usize, usize), sign: i64) {
        let by = |count: usize| sign * i64::try_from(count).unwrap_or(i64::MAX);
        self.endpoints.add(by(endpoints));
        self.slices.add(by(slices));
        self.ideal.add(by(slices));
    }
}

#[cfg(test)]
mod tests {
    use super::super::made::tests::shown;
    use super::*;

    #[test]
    fn gauges_follow_what_is_mirrored() {
        let registry = Registry::new();
        let figures = MirrorFigures::new(&registry).unwrap();
        let (one, two) = (Key::new("ns", "one"), Key::new("ns", "two"));
        let look = |endpoints| Mirrored { added: 3, skipped: 1, endpoints, slices: 2, ..Mirrored::default() };
        figures.mirrored(&one, Some(&look(7)));
        figures.mirrored(&two, Some(&look(5)));
        figures.mirrored(&two, Some(&look(4)));
        figures.mirrored(&one, None);
        figures.mirrored(&Key::new("ns", "never"), None);
        figures.changed("update");
        figures.looked(Duration::from_millis(3));
        let shown = shown(&registry);
        for line in [
            "endpoints_desired 4",
            "num_endpoint_slices 2",
            "desired_endpoint_slices 2",
            r#"endpoints_added_per_sync_bucket{le="4"} 3"#,
            "endpoints_updated_per_sync_sum 0",
            "endpoints_removed_per_sync_count 3",
            "addresses_skipped_per_sync_sum 3",
            r#"endpoints_sync_duration_bucket{le="0.004"} 1"#,
            r#"changes{operation="update"} 1"#,
        ] {
            let line = format!("endpoint_slice_mirroring_controller_{line}");
            assert!(shown.contains(&line), "{line} is not in {shown:#?}");
        }
    }
}
