//! What the controllers of volumes count. Source: `pkg/controller/volume/attachdetach/metrics`, `persistentvolume/metrics`,
//! `ephemeral/metrics`, `pvcprotection/metrics`.

use std::collections::HashMap;
use std::time::Instant;

use parking_lot::Mutex;
use prometheus::{Error, HistogramVec, IntCounter, IntCounterVec, Registry};

use super::made::{Maker, Told};

/// Seconds that drivers take.
const SECONDS: [f64; 13] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];

/// What a driver is to do with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    /// Make it, for a claim.
    Provision,
    /// Delete it.
    Delete,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Provision => "provision",
            Self::Delete => "delete",
        }
    }
}

/// The figures of volumes.
pub(crate) struct VolumeFigures {
    seconds: HistogramVec,
    errors: IntCounterVec,
    /// Since when who does what, by claim or volume. Source: `OperationStartTimeCache`.
    begun: Mutex<HashMap<(Operation, String), (String, Instant)>>,
    forced: IntCounterVec,
    /// Volumes that are attached or are to be: `plugin_name`, `state`.
    pub(crate) attached: Told,
    /// Volumes that pods use: `node`, `volume_plugin`.
    pub(crate) in_use: Told,
    /// Volumes by class.
    pub(crate) bound: Told,
    pub(crate) unbound: Told,
    /// Volumes by plugin and mode.
    pub(crate) all: Told,
    /// Claims by namespace, class and class of attributes.
    pub(crate) bound_claims: Told,
    pub(crate) unbound_claims: Told,
    classified: [IntCounter; 2],
    ephemeral: [IntCounter; 2],
    unused: IntCounterVec,
}

impl VolumeFigures {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        let plain = Maker { registry, subsystem: "" };
        let binder = Maker { registry, subsystem: "pv_collector" };
        let attacher = Maker { registry, subsystem: "attach_detach_controller" };
        let ephemeral = Maker { registry, subsystem: "ephemeral_volume_controller" };
        let protection = Maker { registry, subsystem: "pvc_protection_controller" };
        let of_operation = ["plugin_name", "operation_name"];
        let of_claim = ["namespace", "storage_class", "volume_attributes_class"];
        Ok(Self {
            seconds: plain.histograms(
                "volume_operation_total_seconds",
                "[ALPHA] How long it took to make or delete a volume.",
                &of_operation,
                SECONDS.to_vec(),
            )?,
            errors: plain.counters(
                "volume_operation_total_errors",
                "[ALPHA] How often that failed.",
                &of_operation,
            )?,
            begun: Mutex::default(),
            forced: attacher.counters(
                "attachdetach_controller_forced_detaches",
                "[ALPHA] How often a volume was detached whatever its node said.",
                &["reason"],
            )?,
            attached: plain.told(
                "attachdetach_controller_total_volumes",
                "[ALPHA] Volumes that are attached, and that are to be.",
                &["plugin_name", "state"],
            )?,
            in_use: plain.told(
                "storage_count_attachable_volumes_in_use",
                "[ALPHA] Volumes that pods use.",
                &["node", "volume_plugin"],
            )?,
            bound: binder.told("bound_pv_count", "[ALPHA] Volumes that are bound.", &["storage_class"])?,
            unbound: binder.told(
                "unbound_pv_count",
                "[ALPHA] Volumes that are not bound.",
                &["storage_class"],
            )?,
            all: binder.told("total_pv_count", "[ALPHA] Volumes.", &["plugin_name", "volume_mode"])?,
            bound_claims: binder.told("bound_pvc_count", "[ALPHA] Claims that are bound.", &of_claim)?,
            unbound_claims: binder.told(
                "unbound_pvc_count",
                "[ALPHA] Claims that are not bound.",
                &of_claim,
            )?,
            classified: [
                plain.counter(
                    "retroactive_storageclass_total",
                    "[ALPHA] Claims that got a class afterwards.",
                )?,
                plain.counter(
                    "retroactive_storageclass_errors_total",
                    "[ALPHA] Claims that could not be given a class afterwards.",
                )?,
            ],
            ephemeral: [
                ephemeral.counter("create_total", "[ALPHA] How often the claim of a pod was to be made.")?,
                ephemeral.counter("create_failures_total", "[ALPHA] How often that failed.")?,
            ],
            unused: protection.counters(
                "unused_condition_syncs_total",
                "[ALPHA] How often it was to be said on claims whether pods use them.",
                &["result"],
            )?,
        })
    }

    /// A driver is asked for something, perhaps once more.
    pub(crate) fn begins(&self, operation: Operation, of: String, plugin: &str) {
        let now = || (plugin.to_owned(), Instant::now());
        self.begun.lock().entry((operation, of)).or_insert_with(now);
    }

    /// It could not be asked; it will be again.
    pub(crate) fn fails(&self, operation: Operation, of: String) {
        if let Some((plugin, _)) = self.begun.lock().get(&(operation, of)) {
            self.errors.with_label_values(&[plugin, operation.name()]).inc();
        }
    }

    /// It is done, if it was begun.
    pub(crate) fn ends(&self, operation: Operation, of: String) {
        if let Some((plugin, since)) = self.begun.lock().remove(&(operation, of)) {
            let seconds = self.seconds.with_label_values(&[&plugin, operation.name()]);
            seconds.observe(since.elapsed().as_secs_f64());
        }
    }

    /// Nobody wants it any more.
    pub(crate) fn forget(&self, operation: Operation, of: String) {
        self.begun.lock().remove(&(operation, of));
    }

    /// A volume was detached whatever its node said: because it is out of service, or has not answered for too long.
    pub(crate) fn forced(&self, out_of_service: bool) {
        let reason = if out_of_service { "out-of-service" } else { "timeout" };
        self.forced.with_label_values(&[reason]).inc();
    }

    /// A claim was to be given a class after it was made.
    pub(crate) fn classified(&self, fine: bool) {
        let [total, errors] = &self.classified;
        total.inc();
        errors.inc_by(u64::from(!fine));
    }

    /// It was to be said on a claim whether pods use it.
    pub(crate) fn told_unused(&self, fine: bool) {
        self.unused.with_label_values(&[if fine { "success" } else { "error" }]).inc();
    }

    /// The claim of a pod's volume was to be made.
    pub(crate) fn made_for_pod(&self, fine: bool) {
        let [total, failures] = &self.ephemeral;
        total.inc();
        failures.inc_by(u64::from(!fine));
    }
}

#[cfg(test)]
mod tests {
    use super::super::made::tests::shown;
    use super::super::made::{Counts, count_one};
    use super::*;

    #[test]
    fn volumes_are_counted_under_upstreams_names() {
        let registry = Registry::new();
        let figures = VolumeFigures::new(&registry).unwrap();
        figures.forced(true);
        figures.forced(false);
        figures.classified(true);
        figures.classified(false);
        figures.made_for_pod(false);
        figures.told_unused(true);
        let claim = || "ns/claim".to_owned();
        figures.ends(Operation::Provision, claim());
        figures.begins(Operation::Provision, claim(), "d");
        figures.begins(Operation::Provision, claim(), "other");
        figures.fails(Operation::Provision, claim());
        figures.ends(Operation::Provision, claim());
        figures.begins(Operation::Provision, claim(), "d");
        figures.forget(Operation::Provision, claim());
        figures.ends(Operation::Provision, claim());
        figures.fails(Operation::Delete, "pv".to_owned());
        fn one<const N: usize>(labels: [&'static str; N]) -> impl Fn() -> Counts + Send + Sync {
            move || {
                let mut counts = Counts::new();
                count_one(&mut counts, labels);
                counts
            }
        }
        let _told = [
            figures.attached.by(one(["kubernetes.io/csi:d", "desired_state_of_world"])),
            figures.in_use.by(one(["n1", "kubernetes.io/csi:d"])),
            figures.bound.by(one(["fast"])),
            figures.unbound.by(one(["slow"])),
            figures.all.by(one(["kubernetes.io/nfs", "Filesystem"])),
            figures.bound_claims.by(one(["ns", "fast", ""])),
            figures.unbound_claims.by(one(["ns", "slow", "gold"])),
        ];
        let shown = shown(&registry);
        for line in [
            r#"attach_detach_controller_attachdetach_controller_forced_detaches{reason="out-of-service"} 1"#,
            r#"attach_detach_controller_attachdetach_controller_forced_detaches{reason="timeout"} 1"#,
            r#"attachdetach_controller_total_volumes{plugin_name="kubernetes.io/csi:d",state="desired_state_of_world"} 1"#,
            r#"storage_count_attachable_volumes_in_use{node="n1",volume_plugin="kubernetes.io/csi:d"} 1"#,
            r#"pv_collector_bound_pv_count{storage_class="fast"} 1"#,
            r#"pv_collector_unbound_pv_count{storage_class="slow"} 1"#,
            r#"pv_collector_total_pv_count{plugin_name="kubernetes.io/nfs",volume_mode="Filesystem"} 1"#,
            r#"pv_collector_bound_pvc_count{namespace="ns",storage_class="fast",volume_attributes_class=""} 1"#,
            r#"pv_collector_unbound_pvc_count{namespace="ns",storage_class="slow",volume_attributes_class="gold"} 1"#,
            r#"volume_operation_total_seconds_count{operation_name="provision",plugin_name="d"} 1"#,
            r#"volume_operation_total_seconds_bucket{operation_name="provision",plugin_name="d",le="600"} 1"#,
            r#"volume_operation_total_errors{operation_name="provision",plugin_name="d"} 1"#,
            "retroactive_storageclass_total 2",
            "retroactive_storageclass_errors_total 1",
            "ephemeral_volume_controller_create_total 1",
            "ephemeral_volume_controller_create_failures_total 1",
            r#"pvc_protection_controller_unused_condition_syncs_total{result="success"} 1"#,
        ] {
            assert!(shown.iter().any(|known| known == line), "{line} is not in {shown:#?}");
        }
    }
}
