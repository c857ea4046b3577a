//! What the autoscaler counts. Source: `pkg/controller/podautoscaler/monitor`.

use std::cmp::Ordering;
use std::time::Duration;

use api::Key;
use prometheus::{Error, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Registry, exponential_buckets};

use super::made::Maker;

/// The figures of HorizontalPodAutoscalers.
pub(crate) struct ScaleFigures {
    passes: IntCounterVec,
    seconds: HistogramVec,
    metrics: IntCounterVec,
    metric_seconds: HistogramVec,
    /// How many there are.
    pub(crate) all: IntGauge,
    desired: IntGaugeVec,
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// Nothing.
    None,
    /// What was asked for makes no sense.
    Spec,
    /// Something else.
    Internal,
}

impl Blame {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Spec => "spec",
            Self::Internal => "internal",
        }
    }
}

fn action(change: Ordering) -> &'static str {
    match change {
        Ordering::Less => "scale_down",
        Ordering::Equal => "none",
        Ordering::Greater => "scale_up",
    }
}

impl ScaleFigures {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        let make = Maker { registry, subsystem: "horizontal_pod_autoscaler_controller" };
        let seconds = || exponential_buckets(0.001, 2.0, 15);
        let of_metric = ["action", "error", "metric_type"];
        Ok(Self {
            passes: make.counters(
                "reconciliations_total",
                "[ALPHA] How often autoscalers were looked at.",
                &of_metric[..2],
            )?,
            seconds: make.histograms(
                "reconciliation_duration_seconds",
                "[ALPHA] How long a look at an autoscaler took.",
                &of_metric[..2],
                seconds()?,
            )?,
            metrics: make.counters(
                "metric_computation_total",
                "[ALPHA] How often a metric was asked how many replicas it wants.",
                &of_metric,
            )?,
            metric_seconds: make.histograms(
                "metric_computation_duration_seconds",
                "[ALPHA] How long that took.",
                &of_metric,
                seconds()?,
            )?,
            all: make.gauge("num_horizontal_pod_autoscalers", "[ALPHA] Autoscalers.")?,
            desired: make.gauges(
                "desired_replicas",
                "[ALPHA] How many replicas an autoscaler wants.",
                &["namespace", "hpa_name"],
            )?,
        })
    }

    /// An autoscaler was looked at, and its target scaled up or down or not.
    pub(crate) fn passed(&self, change: Ordering, blame: Blame, took: Duration) {
        let labels = [action(change), blame.name()];
        self.passes.with_label_values(&labels).inc();
        self.seconds.with_label_values(&labels).observe(took.as_secs_f64());
    }

    /// A metric of this type was asked.
    pub(crate) fn asked(&self, change: Ordering, blame: Blame, metric: &str, took: Duration) {
        let labels = [action(change), blame.name(), metric];
        self.metrics.with_label_values(&labels).inc();
        self.metric_seconds.with_label_values(&labels).observe(took.as_secs_f64());
    }

    /// So many replicas are wanted; nothing if the autoscaler is gone.
    pub(crate) fn wants(&self, autoscaler: &Key, desired: Option<i32>) {
        let labels = [autoscaler.namespace.as_str(), autoscaler.name.as_str()];
        match desired {
            Some(desired) => self.desired.with_label_values(&labels).set(desired.into()),
            // One that was never looked at has no figure.
            None => drop(self.desired.remove_label_values(&labels)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::made::tests::shown;
    use super::*;

    #[test]
    fn passes_are_counted_under_upstreams_names() {
        let registry = Registry::new();
        let figures = ScaleFigures::new(&registry).unwrap();
        figures.passed(Ordering::Greater, Blame::None, Duration::from_millis(3));
        figures.passed(Ordering::Equal, Blame::Spec, Duration::from_millis(3));
        figures.asked(Ordering::Less, Blame::Internal, "Resource", Duration::from_millis(1));
        figures.all.set(2);
        figures.wants(&Key::new("ns", "web"), Some(5));
        figures.wants(&Key::new("ns", "gone"), Some(5));
        figures.wants(&Key::new("ns", "gone"), None);
        figures.wants(&Key::new("ns", "never"), None);
        let shown = shown(&registry);
        for line in [
            r#"reconciliations_total{action="scale_up",error="none"} 1"#,
            r#"reconciliation_duration_seconds_bucket{action="none",error="spec",le="0.004"} 1"#,
            r#"metric_computation_total{action="scale_down",error="internal",metric_type="Resource"} 1"#,
            r#"metric_computation_duration_seconds_bucket{action="scale_down",error="internal",metric_type="Resource",le="0.001"} 1"#,
            "num_horizontal_pod_autoscalers 2",
            r#"desired_replicas{hpa_name="web",namespace="ns"} 5"#,
        ] {
            let line = format!("horizontal_pod_autoscaler_controller_{line}");
            assert!(shown.contains(&line), "{line} is not in {shown:#?}");
        }
        assert!(!shown.iter().any(|line| line.contains("gone")), "{shown:#?}");
    }
}
