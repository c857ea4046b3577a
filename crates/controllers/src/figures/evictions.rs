//! What the controllers count that end pods and watch nodes. Source: the `metrics` packages of `pkg/controller/podgc`,
//! `tainteviction`, `devicetainteviction` and `nodelifecycle`.

use std::time::Duration;

use prometheus::{Error, Histogram, IntCounter, IntCounterVec, Registry, exponential_buckets};

use super::made::{Maker, Told};

/// From 5 ms to 4 minutes.
const LATENCIES: [f64; 12] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0, 120.0, 180.0, 240.0];

/// The figures of pods that have to go, and of the nodes that they are on.
pub(crate) struct EvictionFigures {
    ended: [IntCounterVec; 2],
    /// For taints of nodes.
    pub(crate) tainted: Evicted,
    /// For taints of devices.
    pub(crate) by_device: Evicted,
    /// Nodes by zone, …
    pub(crate) zone_size: Told,
    /// … how many of a hundred are ready, …
    pub(crate) zone_health: Told,
    /// … and how many are not.
    pub(crate) unhealthy: Told,
    node_seconds: Histogram,
}

/// Pods that a taint has made go.
pub(crate) struct Evicted {
    pods: IntCounter,
    seconds: Histogram,
}

impl Evicted {
    fn new(make: &Maker<'_>, whose: &str) -> Result<Self, Error> {
        Ok(Self {
            pods: make
                .counter("pod_deletions_total", &format!("[ALPHA] Pods deleted for taints of {whose}."))?,
            seconds: make.histogram(
                "pod_deletion_duration_seconds",
                &format!("[ALPHA] How long after a pod had to go for a taint of {whose} it was deleted."),
                LATENCIES.to_vec(),
            )?,
        })
    }

    /// A pod was deleted so long after it had to go.
    pub(crate) fn deleted(&self, late: Duration) {
        self.pods.inc();
        self.seconds.observe(late.as_secs_f64());
    }
}

impl EvictionFigures {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        let gc = Maker { registry, subsystem: "pod_gc_collector" };
        let zones = Maker { registry, subsystem: "node_collector" };
        let of_pod = ["namespace", "reason"];
        let taints = |subsystem, whose| Evicted::new(&Maker { registry, subsystem }, whose);
        Ok(Self {
            ended: [
                gc.counters(
                    "force_delete_pods_total",
                    "[ALPHA] Pods that were to be ended at once.",
                    &of_pod,
                )?,
                gc.counters(
                    "force_delete_pod_errors_total",
                    "[ALPHA] Pods that could not be ended.",
                    &of_pod,
                )?,
            ],
            tainted: taints("taint_eviction_controller", "nodes")?,
            by_device: taints("device_taint_eviction_controller", "devices")?,
            zone_size: zones.told("zone_size", "[ALPHA] Nodes by zone.", &["zone"])?,
            zone_health: zones.told(
                "zone_health",
                "[ALPHA] How many of a hundred nodes are ready.",
                &["zone"],
            )?,
            unhealthy: zones.told(
                "unhealthy_nodes_in_zone",
                "[ALPHA] Nodes that are not ready.",
                &["zone"],
            )?,
            node_seconds: zones.histogram(
                "update_node_health_duration_seconds",
                "[ALPHA] How long a look at a node took.",
                exponential_buckets(0.001, 4.0, 8)?,
            )?,
        })
    }

    /// A pod was to be ended at once; why, in upstream's words.
    pub(crate) fn ended(&self, namespace: &str, reason: &str, fine: bool) {
        let [total, errors] = &self.ended;
        total.with_label_values(&[namespace, reason]).inc();
        if !fine {
            errors.with_label_values(&[namespace, reason]).inc();
        }
    }

    /// A node was looked at for so long.
    pub(crate) fn looked_at_node(&self, took: Duration) {
        self.node_seconds.observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::super::made::Counts;
    use super::super::made::tests::shown;
    use super::*;

    #[test]
    fn pods_that_go_are_counted_under_upstreams_names() {
        let registry = Registry::new();
        let figures = EvictionFigures::new(&registry).unwrap();
        figures.ended("ns", "orphaned", true);
        figures.ended("ns", "orphaned", false);
        figures.tainted.deleted(Duration::from_millis(90));
        figures.by_device.deleted(Duration::from_secs(20));
        figures.looked_at_node(Duration::from_millis(2));
        let zone = |count: f64| move || Counts::from([(vec!["z".to_owned()], count)]);
        let _told = [
            figures.zone_size.by(zone(4.0)),
            figures.zone_health.by(zone(75.0)),
            figures.unhealthy.by(zone(1.0)),
        ];
        let shown = shown(&registry);
        for line in [
            r#"pod_gc_collector_force_delete_pods_total{namespace="ns",reason="orphaned"} 2"#,
            r#"pod_gc_collector_force_delete_pod_errors_total{namespace="ns",reason="orphaned"} 1"#,
            "taint_eviction_controller_pod_deletions_total 1",
            r#"taint_eviction_controller_pod_deletion_duration_seconds_bucket{le="0.1"} 1"#,
            "device_taint_eviction_controller_pod_deletions_total 1",
            r#"device_taint_eviction_controller_pod_deletion_duration_seconds_bucket{le="30"} 1"#,
            r#"node_collector_zone_size{zone="z"} 4"#,
            r#"node_collector_zone_health{zone="z"} 75"#,
            r#"node_collector_unhealthy_nodes_in_zone{zone="z"} 1"#,
            r#"node_collector_update_node_health_duration_seconds_bucket{le="0.004"} 1"#,
        ] {
            assert!(shown.iter().any(|known| known == line), "{line} is not in {shown:#?}");
        }
    }
}
