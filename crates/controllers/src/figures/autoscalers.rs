//! What the controller of HorizontalPodAutoscalers counts. Source: `pkg/controller/podautoscaler/monitor`.

use std::time::Duration;

use api::Key;
use prometheus::{
    Error, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    exponential_buckets,
};

use super::made::Maker;

/// Figures under upstream's names.
pub(crate) struct AutoscalerFigures {
    looks: IntCounterVec,
    looks_took: HistogramVec,
    metrics: IntCounterVec,
    metrics_took: HistogramVec,
    /// How many there are.
    pub(crate) all: IntGauge,
    desired: IntGaugeVec,
}

/// What came of a look, or of the computation of one metric, and what went wrong: `none`, `internal`, or `spec` where
/// nobody but the user can help.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    action: &'static str,
    error: &'static str,
}

impl Outcome {
    /// The number was changed, or ought to be, from one to another.
    pub(crate) fn of(from: i32, to: i32) -> Self {
        let action = match to.cmp(&from) {
            std::cmp::Ordering::Greater => "scale_up",
            std::cmp::Ordering::Less => "scale_down",
            std::cmp::Ordering::Equal => "none",
        };
        Self { action, error: "none" }
    }

    /// It failed; `spec` if nobody but the user can help.
    pub(crate) fn failed(self, spec: bool) -> Self {
        Self { error: if spec { "spec" } else { "internal" }, ..self }
    }
}

impl AutoscalerFigures {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        let named = |name: &str| format!("horizontal_pod_autoscaler_controller_{name}");
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(named(name), help), labels)?;
            registry.register(Box::new(counter.clone())).map(|()| counter)
        };
        let seconds = |name: &str, help: &str, labels: &[&str]| {
            let seconds = HistogramOpts::new(named(name), help).buckets(exponential_buckets(0.001, 2.0, 15)?);
            let seconds = HistogramVec::new(seconds, labels)?;
            registry.register(Box::new(seconds.clone())).map(|()| seconds)
        };
        let make = Maker { registry, subsystem: "horizontal_pod_autoscaler_controller" };
        let (of_look, of_metric) = (["action", "error"], ["action", "error", "metric_type"]);
        Ok(Self {
            looks: counter(
                "reconciliations_total",
                "[BETA] How often autoscalers were looked at.",
                &of_look,
            )?,
            looks_took: seconds(
                "reconciliation_duration_seconds",
                "[BETA] How long a look at an autoscaler took.",
                &of_look,
            )?,
            metrics: counter(
                "metric_computation_total",
                "[BETA] How often a metric was asked what it asks for.",
                &of_metric,
            )?,
            metrics_took: seconds(
                "metric_computation_duration_seconds",
                "[BETA] How long it took to find out what a metric asks for.",
                &of_metric,
            )?,
            all: make.gauge("num_horizontal_pod_autoscalers", "[ALPHA] Autoscalers.")?,
            desired: make.gauges(
                "desired_replicas",
                "[ALPHA] How many replicas an autoscaler wants.",
                &["namespace", "hpa_name"],
            )?,
        })
    }

    /// An autoscaler was looked at.
    pub(crate) fn looked(&self, outcome: Outcome, took: Duration) {
        let labels = [outcome.action, outcome.error];
        self.looks.with_label_values(&labels).inc();
        self.looks_took.with_label_values(&labels).observe(took.as_secs_f64());
    }

    /// A metric of this type was asked.
    pub(crate) fn computed(&self, metric: &str, outcome: Outcome, took: Duration) {
        let labels = [outcome.action, outcome.error, metric];
        self.metrics.with_label_values(&labels).inc();
        self.metrics_took.with_label_values(&labels).observe(took.as_secs_f64());
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
    use super::*;

    #[test]
    fn figures_have_upstreams_names() {
        let registry = Registry::new();
        let figures = AutoscalerFigures::new(&registry).unwrap();
        figures.looked(Outcome::of(3, 1), Duration::from_millis(3));
        figures.looked(Outcome::of(3, 3).failed(true), Duration::from_millis(3));
        figures.computed("External", Outcome::of(0, 2), Duration::from_millis(3));
        figures.computed("Resource", Outcome::of(2, 2).failed(false), Duration::from_millis(3));
        figures.all.set(2);
        figures.wants(&Key::new("ns", "web"), Some(5));
        figures.wants(&Key::new("ns", "gone"), Some(5));
        figures.wants(&Key::new("ns", "gone"), None);
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            r#"reconciliations_total{action="scale_down",error="none"} 1"#,
            r#"reconciliations_total{action="none",error="spec"} 1"#,
            r#"reconciliation_duration_seconds_bucket{action="scale_down",error="none",le="0.004"} 1"#,
            r#"metric_computation_total{action="scale_up",error="none",metric_type="External"} 1"#,
            r#"metric_computation_duration_seconds_bucket{action="none",error="internal",metric_type="Resource",le="0.004"} 1"#,
            "num_horizontal_pod_autoscalers 2",
            r#"desired_replicas{hpa_name="web",namespace="ns"} 5"#,
        ] {
            let line = format!("horizontal_pod_autoscaler_controller_{line}");
            assert!(text.lines().any(|known| known == line), "{line} is not in {text}");
        }
        assert!(!text.contains("gone"), "{text}");
    }
}
