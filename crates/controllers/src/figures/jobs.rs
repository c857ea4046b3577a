//! What is counted of Jobs besides their passes and ends, and of claims to devices. Source: the `metrics` packages of
//! `pkg/controller/job`, `ttlafterfinished` and `resourceclaim`.

use std::time::Duration;

use prometheus::{Error, Histogram, IntCounterVec, Registry, exponential_buckets};

use super::made::{Maker, Told};

/// More figures of Jobs.
pub(crate) struct JobFigures {
    created: IntCounterVec,
    indexes: IntCounterVec,
    judged: IntCounterVec,
    tracked: IntCounterVec,
    elsewhere: IntCounterVec,
    late: Histogram,
}

impl JobFigures {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        let make = Maker { registry, subsystem: "job_controller" };
        let ttl = Maker { registry, subsystem: "ttl_after_finished_controller" };
        Ok(Self {
            created: make.counters(
                "job_pods_creation_total",
                "[ALPHA] Pods of Jobs that were to be made.",
                &["reason", "status"],
            )?,
            indexes: make.counters(
                "job_finished_indexes_total",
                "[ALPHA] Indexes that have come to their end.",
                &["status", "backoffLimit"],
            )?,
            judged: make.counters(
                "pod_failures_handled_by_failure_policy_total",
                "[BETA] Failed pods by what their Job's policy makes of them.",
                &["action"],
            )?,
            tracked: make.counters(
                "terminated_pods_tracking_finalizer_total",
                "[BETA] Pods that have ended and got, or lost, the finalizer of Jobs.",
                &["event"],
            )?,
            elsewhere: make.counters(
                "jobs_by_external_controller_total",
                "[ALPHA] Jobs that are somebody else's.",
                &["controller_name"],
            )?,
            late: ttl.histogram(
                "job_deletion_duration_seconds",
                "[ALPHA] How long after its time a Job was deleted.",
                exponential_buckets(0.1, 2.0, 14)?,
            )?,
        })
    }

    /// Pods were to be made: so many were, and so many were not.
    pub(crate) fn created(&self, reason: &str, made: u64, failed: u64) {
        for (status, pods) in [("succeeded", made), ("failed", failed)] {
            if pods > 0 {
                self.created.with_label_values(&[reason, status]).inc_by(pods);
            }
        }
    }

    /// So many indexes more have come to their end.
    pub(crate) fn indexes(&self, succeeded: bool, per_index: bool, indexes: i64) {
        if let Some(indexes) = u64::try_from(indexes).ok().filter(|indexes| *indexes > 0) {
            let limit = if per_index { "perIndex" } else { "global" };
            self.indexes.with_label_values(&[super::result(succeeded), limit]).inc_by(indexes);
        }
    }

    /// A rule of a Job's policy applies to a failed pod.
    pub(crate) fn judged(&self, action: &str) {
        self.judged.with_label_values(&[action]).inc();
    }

    /// A pod that has ended got the finalizer, or lost it.
    pub(crate) fn tracked(&self, gained: bool) {
        self.tracked.with_label_values(&[if gained { "add" } else { "delete" }]).inc();
    }

    /// A Job was made for another controller.
    pub(crate) fn elsewhere(&self, controller: &str) {
        self.elsewhere.with_label_values(&[controller]).inc();
    }

    /// A Job was deleted so long after its time.
    pub(crate) fn late(&self, late: Duration) {
        self.late.observe(late.as_secs_f64());
    }
}

/// The figures of claims to devices.
pub(crate) struct ClaimFigures {
    created: IntCounterVec,
    /// Claims by whether they are allocated, give access to administrators, and where they come from.
    pub(crate) all: Told,
}

impl ClaimFigures {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        let make = Maker { registry, subsystem: "resourceclaim_controller" };
        Ok(Self {
            created: make.counters(
                "creates_total",
                "[ALPHA] Claims that were to be made.",
                &["status", "admin_access"],
            )?,
            all: make.told("resource_claims", "[BETA] Claims.", &["allocated", "admin_access", "source"])?,
        })
    }

    /// A claim was to be made.
    pub(crate) fn created(&self, fine: bool, for_admins: bool) {
        let status = if fine { "success" } else { "failure" };
        self.created.with_label_values(&[status, &for_admins.to_string()]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::super::made::tests::shown;
    use super::super::made::{Counts, count_one};
    use super::*;

    #[test]
    fn jobs_and_claims_are_counted_under_upstreams_names() {
        let registry = Registry::new();
        let (jobs, claims) = (JobFigures::new(&registry).unwrap(), ClaimFigures::new(&registry).unwrap());
        jobs.created("new", 3, 0);
        jobs.created("recreate_failed", 0, 1);
        jobs.indexes(true, false, 2);
        jobs.indexes(false, true, 0);
        jobs.judged("Ignore");
        jobs.tracked(true);
        jobs.tracked(false);
        jobs.elsewhere("example.com/queue");
        jobs.late(Duration::from_secs(1));
        claims.created(true, false);
        claims.created(false, true);
        let _told = claims.all.by(|| {
            let mut counts = Counts::new();
            count_one(&mut counts, ["true", "false", "resource_claim_template"]);
            counts
        });
        let shown = shown(&registry);
        for line in [
            r#"job_controller_job_pods_creation_total{reason="new",status="succeeded"} 3"#,
            r#"job_controller_job_pods_creation_total{reason="recreate_failed",status="failed"} 1"#,
            r#"job_controller_job_finished_indexes_total{backoffLimit="global",status="succeeded"} 2"#,
            r#"job_controller_pod_failures_handled_by_failure_policy_total{action="Ignore"} 1"#,
            r#"job_controller_terminated_pods_tracking_finalizer_total{event="add"} 1"#,
            r#"job_controller_terminated_pods_tracking_finalizer_total{event="delete"} 1"#,
            r#"job_controller_jobs_by_external_controller_total{controller_name="example.com/queue"} 1"#,
            r#"ttl_after_finished_controller_job_deletion_duration_seconds_bucket{le="1.6"} 1"#,
            r#"resourceclaim_controller_creates_total{admin_access="false",status="success"} 1"#,
            r#"resourceclaim_controller_creates_total{admin_access="true",status="failure"} 1"#,
            r#"resourceclaim_controller_resource_claims{admin_access="false",allocated="true",source="resource_claim_template"} 1"#,
        ] {
            assert!(shown.iter().any(|known| known == line), "{line} is not in {shown:#?}");
        }
        assert!(!shown.iter().any(|line| line.contains("perIndex")));
    }
}
