//! Projections of CronJobs.

use api::ObjectMeta;
use jiff::Timestamp;
use reconcile::kinds;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Annotation of a Job: for which moment it was made.
pub(super) const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// A projection of `batch/v1.CronJob`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CronJob {
    /// Metadata, with annotations.
    pub metadata: ObjectMeta,
    /// Desired state.
    pub spec: CronJobSpec,
    /// Observed state.
    pub status: CronJobStatus,
}

/// `batch/v1.CronJobSpec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CronJobSpec {
    /// When.
    pub schedule: String,
    /// By which clock.
    pub time_zone: Option<String>,
    /// How late a Job may be made; any time if absent.
    pub starting_deadline_seconds: Option<i64>,
    /// `Allow`, `Forbid` or `Replace`.
    pub concurrency_policy: String,
    /// Whether it waits.
    pub suspend: bool,
    /// The Jobs' template, kept whole.
    pub job_template: Value,
    /// How many that succeeded are kept; all if absent.
    pub successful_jobs_history_limit: Option<usize>,
    /// How many that failed are kept; all if absent.
    pub failed_jobs_history_limit: Option<usize>,
}

/// `batch/v1.CronJobStatus`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CronJobStatus {
    /// The Jobs that have not ended.
    pub active: Vec<ActiveJob>,
    /// The moment for which the last Job was made.
    pub last_schedule_time: Option<Timestamp>,
    /// When the last Job that succeeded did.
    pub last_successful_time: Option<Timestamp>,
}

/// `core/v1.ObjectReference` to a Job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ActiveJob {
    /// `batch/v1`.
    pub api_version: String,
    /// `Job`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// The version that was made.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Uid.
    pub uid: String,
}

impl ActiveJob {
    /// Refers to a Job.
    pub(super) fn of(job: &ObjectMeta) -> Self {
        Self {
            api_version: kinds::JOBS.api_version(),
            kind: kinds::JOBS.kind.to_owned(),
            name: job.name.clone(),
            namespace: job.namespace.clone(),
            resource_version: job.resource_version.clone(),
            uid: job.uid.clone(),
        }
    }
}

impl CronJobStatus {
    /// Whether a Job is among the active ones.
    pub(super) fn is_active(&self, uid: &str) -> bool {
        self.active.iter().any(|job| job.uid == uid)
    }

    /// A merge patch of the whole status, for this version of the object alone.
    pub(super) fn patch(&self, meta: &ObjectMeta) -> Value {
        let moment = |at: Option<Timestamp>| at.map_or(Value::Null, |at| reconcile::time::seconds(at).into());
        json!({
            "metadata": { "uid": meta.uid, "resourceVersion": meta.resource_version },
            "status": {
                "active": if self.active.is_empty() { Value::Null } else { json!(self.active) },
                "lastScheduleTime": moment(self.last_schedule_time),
                "lastSuccessfulTime": moment(self.last_successful_time),
            },
        })
    }
}
