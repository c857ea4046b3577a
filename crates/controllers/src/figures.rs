//! What controllers count, under upstream's names, for whoever shows it. Source: the `metrics` packages of
//! `pkg/controller/job`, `cronjob`, `nodelifecycle` and `statefulset`, and those that the modules below name.

pub(crate) mod autoscalers;
pub(crate) mod evictions;
pub(crate) mod jobs;
pub(crate) mod made;
pub(crate) mod mirroring;
pub(crate) mod published;
pub(crate) mod slices;
pub(crate) mod volumes;

use std::time::Duration;

use api::Key;
use prometheus::{
    Error, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
    exponential_buckets,
};

use autoscalers::AutoscalerFigures;
use evictions::EvictionFigures;
use jobs::{ClaimFigures, JobFigures};
use mirroring::MirrorFigures;
use published::PublishFigures;
use slices::SliceFigures;
use volumes::VolumeFigures;

/// `spec.podManagementPolicy` of StatefulSets.
const POLICIES: [&str; 2] = ["OrderedReady", "Parallel"];

/// The controllers' figures.
pub struct Figures {
    syncs: IntCounterVec,
    seconds: HistogramVec,
    finished: IntCounterVec,
    pods: IntCounterVec,
    skew: Histogram,
    evictions: IntCounterVec,
    /// Of StatefulSets that are rolled: how many pods may be missing, and how many are.
    bounds: [IntGaugeVec; 2],
    /// Of EndpointSlices.
    pub(crate) slices: SliceFigures,
    /// Of HorizontalPodAutoscalers.
    pub(crate) autoscalers: AutoscalerFigures,
    /// Of mirrored Endpoints.
    pub(crate) mirror: MirrorFigures,
    /// Of volumes.
    pub(crate) volumes: VolumeFigures,
    /// Of pods that have to go, and of nodes.
    pub(crate) leaving: EvictionFigures,
    /// More of Jobs.
    pub(crate) jobs: JobFigures,
    /// Of claims to devices.
    pub(crate) claims: ClaimFigures,
    /// Of the authority in each namespace.
    pub(crate) root_ca: PublishFigures,
    /// Of the authority that pods mount.
    pub(crate) trust_bundle: PublishFigures,
    /// How often garbage collection went on without resources that it could not list.
    pub(crate) unlisted: IntCounter,
}

impl Figures {
    /// All at zero, shown with those of a registry.
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone())).map(|()| counter)
        };
        let of_sync = ["action", "completion_mode", "result"];
        let seconds = HistogramOpts::new(
            "job_controller_job_sync_duration_seconds",
            "[STABLE] How long a look at a Job took.",
        );
        let seconds = HistogramVec::new(seconds.buckets(exponential_buckets(0.004, 2.0, 15)?), &of_sync)?;
        registry.register(Box::new(seconds.clone()))?;
        let skew = HistogramOpts::new(
            "cronjob_controller_job_creation_skew_duration_seconds",
            "[STABLE] How long after its moment the Job of a CronJob was made.",
        );
        let skew = Histogram::with_opts(skew.buckets(exponential_buckets(1.0, 2.0, 10)?))?;
        registry.register(Box::new(skew.clone()))?;
        let bound = |name: &str, help: &str| {
            let labels = ["statefulset_namespace", "statefulset_name", "pod_management_policy"];
            let gauge = IntGaugeVec::new(Opts::new(format!("statefulset_controller_{name}"), help), &labels)?;
            registry.register(Box::new(gauge.clone())).map(|()| gauge)
        };
        let unlisted = IntCounter::new(
            "garbagecollector_controller_resources_sync_error_total",
            "[ALPHA] How often garbage collection went on without resources that it could not list.",
        )?;
        registry.register(Box::new(unlisted.clone()))?;
        Ok(Self {
            unlisted,
            root_ca: PublishFigures::new(registry, "root_ca_cert_publisher")?,
            trust_bundle: PublishFigures::new(registry, "clustertrustbundle_publisher")?,
            syncs: counter(
                "job_controller_job_syncs_total",
                "[STABLE] How often Jobs were looked at.",
                &of_sync,
            )?,
            seconds,
            finished: counter(
                "job_controller_jobs_finished_total",
                "[STABLE] Jobs that came to their end.",
                &["completion_mode", "reason", "result"],
            )?,
            pods: counter(
                "job_controller_job_pods_finished_total",
                "[STABLE] Pods of Jobs that have ended and are counted.",
                &["completion_mode", "result"],
            )?,
            skew,
            evictions: counter(
                "node_collector_evictions_total",
                "[STABLE] How often pods were told to leave a node, by zone.",
                &["zone"],
            )?,
            bounds: [
                bound("statefulset_max_unavailable", "[BETA] Pods of a StatefulSet that may be missing.")?,
                bound("statefulset_unavailable_replicas", "[BETA] Pods of a StatefulSet that are missing.")?,
            ],
            slices: SliceFigures::new(registry)?,
            autoscalers: AutoscalerFigures::new(registry)?,
            mirror: MirrorFigures::new(registry)?,
            volumes: VolumeFigures::new(registry)?,
            leaving: EvictionFigures::new(registry)?,
            jobs: JobFigures::new(registry)?,
            claims: ClaimFigures::new(registry)?,
        })
    }

    /// So many pods of a StatefulSet may be missing while it is rolled, and so many are.
    pub(crate) fn bounded(&self, set: &Key, policy: &str, most: i64, missing: i64) {
        for (gauge, value) in self.bounds.iter().zip([most, missing]) {
            gauge.with_label_values(&[&set.namespace, &set.name, policy]).set(value);
        }
    }

    /// A StatefulSet is gone.
    pub(crate) fn unbound(&self, set: &Key) {
        for (gauge, policy) in self.bounds.iter().flat_map(|gauge| POLICIES.map(|policy| (gauge, policy))) {
            // One that was never rolled under this policy has no figure.
            let _ = gauge.remove_label_values(&[&set.namespace, &set.name, policy]);
        }
    }

    /// A Job was looked at; what for, in upstream's words.
    pub(crate) fn synced(&self, mode: &str, action: &str, fine: bool, took: Duration) {
        let labels = [action, mode, if fine { "success" } else { "error" }];
        self.syncs.with_label_values(&labels).inc();
        self.seconds.with_label_values(&labels).observe(took.as_secs_f64());
    }

    /// A Job came to its end.
    pub(crate) fn finished(&self, mode: &str, reason: &str, succeeded: bool) {
        self.finished.with_label_values(&[mode, reason, result(succeeded)]).inc();
    }

    /// So many pods more have ended and are counted.
    pub(crate) fn counted(&self, mode: &str, succeeded: bool, pods: i64) {
        if let Some(pods) = u64::try_from(pods).ok().filter(|pods| *pods > 0) {
            self.pods.with_label_values(&[mode, result(succeeded)]).inc_by(pods);
        }
    }

    /// The Job of a CronJob was made so long after its moment.
    pub(crate) fn late_by(&self, skew: Duration) {
        self.skew.observe(skew.as_secs_f64());
    }

    /// Pods were told to leave a node of a zone.
    pub(crate) fn evicted(&self, zone: &str) {
        self.evictions.with_label_values(&[zone]).inc();
    }
}

fn result(succeeded: bool) -> &'static str {
    if succeeded { "succeeded" } else { "failed" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_upstreams_names() {
        let registry = Registry::new();
        let figures = Figures::new(&registry).unwrap();
        figures.synced("Indexed", "tracking", true, Duration::from_millis(5));
        figures.finished("NonIndexed", "BackoffLimitExceeded", false);
        figures.counted("NonIndexed", true, 3);
        figures.counted("NonIndexed", false, 0);
        figures.late_by(Duration::from_secs(3));
        figures.evicted("r:\0:z");
        for (name, policy) in [("stays", "Parallel"), ("goes", "OrderedReady")] {
            figures.bounded(&Key::new("ns", name), policy, 2, 1);
        }
        figures.unbound(&Key::new("ns", "goes"));
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            r#"job_controller_job_syncs_total{action="tracking",completion_mode="Indexed",result="success"} 1"#,
            r#"job_controller_job_sync_duration_seconds_bucket{action="tracking",completion_mode="Indexed",result="success",le="0.008"} 1"#,
            r#"job_controller_jobs_finished_total{completion_mode="NonIndexed",reason="BackoffLimitExceeded",result="failed"} 1"#,
            r#"job_controller_job_pods_finished_total{completion_mode="NonIndexed",result="succeeded"} 3"#,
            r#"cronjob_controller_job_creation_skew_duration_seconds_bucket{le="4"} 1"#,
            "garbagecollector_controller_resources_sync_error_total 0",
            "node_collector_evictions_total{zone=\"r:\0:z\"} 1",
            r#"statefulset_controller_statefulset_max_unavailable{pod_management_policy="Parallel",statefulset_name="stays",statefulset_namespace="ns"} 2"#,
            r#"statefulset_controller_statefulset_unavailable_replicas{pod_management_policy="Parallel",statefulset_name="stays",statefulset_namespace="ns"} 1"#,
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in {text}");
        }
        assert!(!text.contains(r#"statefulset_name="goes""#));
        assert!(!text.contains(r#"job_pods_finished_total{completion_mode="NonIndexed",result="failed"}"#));
    }
}
