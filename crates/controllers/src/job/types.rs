//! Projections of Jobs, and what a Job looks at in its pods.

use std::collections::BTreeSet;

use api::ObjectMeta;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::pods::Pod;
use crate::selector::LabelSelector;

/// The finalizer of pods that are not counted yet.
pub(super) const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// Annotation and label of a pod: its index.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Annotation of a pod: how many of its index failed before it and were counted.
pub(super) const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Annotation of a pod: how many of its index failed before it and were ignored.
pub(super) const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
/// Who manages Jobs that do not say who does.
const MANAGER: &str = "kubernetes.io/job-controller";

/// A projection of `batch/v1.Job`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Job {
    /// Metadata, with annotations.
    pub metadata: ObjectMeta,
    /// Desired state.
    pub spec: JobSpec,
    /// Observed state.
    pub status: JobStatus,
}

/// `batch/v1.JobSpec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobSpec {
    /// How many pods at once; 1 if absent.
    pub parallelism: Option<i64>,
    /// How many successes; absent: one ends the work.
    pub completions: Option<i64>,
    /// How long it may take, from its start.
    pub active_deadline_seconds: Option<i64>,
    /// How many pods may fail; 6 if absent.
    pub backoff_limit: Option<i64>,
    /// How many pods of an index may fail.
    pub backoff_limit_per_index: Option<i64>,
    /// How many indexes may fail.
    pub max_failed_indexes: Option<i64>,
    /// Which pods.
    pub selector: LabelSelector,
    /// `NonIndexed` or `Indexed`.
    pub completion_mode: String,
    /// Whether it waits.
    pub suspend: bool,
    /// `TerminatingOrFailed`, or `Failed`: a pod is replaced when it has ended and not before.
    pub pod_replacement_policy: String,
    /// Which failures count.
    pub pod_failure_policy: Option<FailurePolicy>,
    /// Which successes suffice.
    pub success_policy: Option<SuccessPolicy>,
    /// Who manages it.
    pub managed_by: Option<String>,
    /// The pods' template, kept whole.
    pub template: Value,
    /// How long it stays when it has ended.
    pub ttl_seconds_after_finished: Option<i64>,
}

/// `batch/v1.PodFailurePolicy`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct FailurePolicy {
    /// The first that applies counts.
    pub rules: Vec<FailureRule>,
}

/// `batch/v1.PodFailurePolicyRule`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FailureRule {
    /// `FailJob`, `FailIndex`, `Ignore` or `Count`.
    pub action: String,
    /// Applies to how containers ended.
    pub on_exit_codes: Option<ExitCodes>,
    /// Applies to conditions of the pod.
    pub on_pod_conditions: Vec<ConditionPattern>,
}

/// `batch/v1.PodFailurePolicyOnExitCodesRequirement`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExitCodes {
    /// One container, or any.
    pub container_name: Option<String>,
    /// `In` or `NotIn`.
    pub operator: String,
    /// Exit codes.
    pub values: Vec<i64>,
}

/// `batch/v1.PodFailurePolicyOnPodConditionsPattern`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ConditionPattern {
    /// `DisruptionTarget`, ….
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
}

/// `batch/v1.SuccessPolicy`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct SuccessPolicy {
    /// The first that is met suffices.
    pub rules: Vec<SuccessRule>,
}

/// `batch/v1.SuccessPolicyRule`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SuccessRule {
    /// Which indexes.
    pub succeeded_indexes: Option<String>,
    /// How many of them.
    pub succeeded_count: Option<i64>,
}

/// `batch/v1.JobStatus`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobStatus {
    /// Conditions.
    pub conditions: Vec<JobCondition>,
    /// When it began, or was resumed.
    pub start_time: Option<Timestamp>,
    /// When it succeeded.
    pub completion_time: Option<Timestamp>,
    /// Pods that are neither finished nor being deleted.
    pub active: i64,
    /// Pods, or indexes, that succeeded.
    pub succeeded: i64,
    /// Pods that failed.
    pub failed: i64,
    /// Pods that are being deleted and have not ended.
    pub terminating: Option<i64>,
    /// Active pods that are ready.
    pub ready: Option<i64>,
    /// Indexes that succeeded.
    pub completed_indexes: String,
    /// Indexes that failed.
    pub failed_indexes: Option<String>,
    /// Pods that have ended, that `succeeded` and `failed` do not count yet.
    pub uncounted_terminated_pods: Option<Uncounted>,
}

/// `batch/v1.UncountedTerminatedPods`: uids.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Uncounted {
    /// They succeeded.
    pub succeeded: Vec<String>,
    /// They failed.
    pub failed: Vec<String>,
}

/// `batch/v1.JobCondition`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobCondition {
    /// `Complete`, `Failed`, `SuccessCriteriaMet`, `FailureTarget` or `Suspended`.
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// When it was written.
    #[serde(serialize_with = "reconcile::time::serialize_seconds")]
    pub last_probe_time: Option<Timestamp>,
    /// When it changed last.
    #[serde(serialize_with = "reconcile::time::serialize_seconds")]
    pub last_transition_time: Option<Timestamp>,
    /// Machine-readable.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl JobCondition {
    /// A condition that holds from now on.
    pub(super) fn new(r#type: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Self {
        Self {
            r#type: r#type.into(),
            status: status.into(),
            last_probe_time: Some(now),
            last_transition_time: Some(now),
            reason: reason.into(),
            message: message.into(),
        }
    }
}

impl Job {
    /// Whether its pods have indexes.
    pub(super) fn is_indexed(&self) -> bool {
        self.spec.completion_mode == "Indexed"
    }

    /// Its mode, also where it names none.
    pub(super) fn completion_mode(&self) -> &'static str {
        if self.is_indexed() { "Indexed" } else { "NonIndexed" }
    }

    /// How many pods at once.
    pub(super) fn parallelism(&self) -> i64 {
        self.spec.parallelism.unwrap_or(1)
    }

    /// How many indexes there are.
    pub(super) fn index_bound(&self) -> i64 {
        self.spec.completions.unwrap_or(0)
    }

    /// How many pods may fail.
    pub(super) fn backoff_limit(&self) -> i64 {
        self.spec.backoff_limit.unwrap_or(6)
    }

    /// Whether a pod is replaced only when it has ended. Source: `onlyReplaceFailedPods`.
    pub(super) fn waits_for_the_end(&self) -> bool {
        self.spec.pod_replacement_policy == "Failed" || self.spec.pod_failure_policy.is_some()
    }

    /// Whether another controller manages it.
    pub(super) fn is_managed_elsewhere(&self) -> bool {
        self.manager_elsewhere().is_some()
    }

    /// The controller whose it is, if that is not this one. Source: `managedByExternalController`.
    pub(super) fn manager_elsewhere(&self) -> Option<String> {
        self.spec.managed_by.clone().filter(|manager| manager != MANAGER)
    }

    /// Whether a pod counts as failed. Unless replacements wait for the end, one that is being deleted does: it may never
    /// come to an end of its own. Source: `isPodFailed`.
    pub(super) fn is_failed(&self, pod: &Pod) -> bool {
        match pod.status.phase.as_str() {
            "Failed" => true,
            "Succeeded" => false,
            _ => pod.metadata.is_terminating() && !self.waits_for_the_end(),
        }
    }

    /// The index of a pod, if it is one of this Job.
    pub(super) fn index_of(&self, pod: &Pod) -> Option<i64> {
        index(pod).filter(|index| *index < self.index_bound())
    }
}

impl JobStatus {
    /// A condition that is true.
    pub(crate) fn holds(&self, condition: &str) -> Option<&JobCondition> {
        self.conditions.iter().find(|held| held.r#type == condition && held.status == "True")
    }

    /// The condition with which it ended.
    pub(crate) fn finished(&self) -> Option<&JobCondition> {
        let ends = |held: &&JobCondition| {
            matches!(held.r#type.as_str(), "Complete" | "Failed") && held.status == "True"
        };
        self.conditions.iter().find(ends)
    }

    /// Sets a condition; tells whether that changed something. A false one is not added where there was none.
    /// Source: `ensureJobConditionStatus`.
    pub(super) fn ensure(&mut self, wanted: JobCondition) -> bool {
        match self.conditions.iter_mut().find(|held| held.r#type == wanted.r#type) {
            Some(held) => {
                let same = held.status == wanted.status
                    && held.reason == wanted.reason
                    && held.message == wanted.message;
                if !same {
                    *held = wanted;
                }
                !same
            }
            None if wanted.status == "False" => false,
            None => {
                self.conditions.push(wanted);
                true
            }
        }
    }

    /// A merge patch of the whole status, for this version of the object alone: counts must not be added up on others.
    pub(super) fn patch(&self, meta: &ObjectMeta, resource_version: &str) -> Value {
        let count = |count: i64| if count == 0 { Value::Null } else { count.into() };
        let list = |list: &[String]| if list.is_empty() { Value::Null } else { json!(list) };
        let moment = |at: Option<Timestamp>| at.map_or(Value::Null, |at| reconcile::time::seconds(at).into());
        let text = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
        let uncounted = self.uncounted_terminated_pods.as_ref().map(
            |uncounted| json!({ "succeeded": list(&uncounted.succeeded), "failed": list(&uncounted.failed) }),
        );
        json!({
            "metadata": { "uid": meta.uid, "resourceVersion": resource_version },
            "status": {
                "conditions": if self.conditions.is_empty() { Value::Null } else { json!(self.conditions) },
                "startTime": moment(self.start_time),
                "completionTime": moment(self.completion_time),
                "active": count(self.active),
                "succeeded": count(self.succeeded),
                "failed": count(self.failed),
                "terminating": self.terminating,
                "ready": self.ready,
                "completedIndexes": text(&self.completed_indexes),
                "failedIndexes": self.failed_indexes,
                "uncountedTerminatedPods": uncounted,
            },
        })
    }
}

/// Whether a pod has ended and is not counted yet, or may still end.
pub(super) fn is_tracked(meta: &ObjectMeta) -> bool {
    meta.finalizers.iter().any(|finalizer| finalizer == TRACKING)
}

/// The index that a pod says that it has.
pub(super) fn index(pod: &Pod) -> Option<i64> {
    pod.metadata.annotations.get(INDEX)?.parse().ok().filter(|index| *index >= 0)
}

/// How many pods of its index failed before a pod: those that counted, and those that were ignored. What is no number,
/// or not a possible one, is none.
pub(super) fn failures_before(pod: &Pod) -> (i64, i64) {
    let count = |name: &str| {
        let text = pod.metadata.annotations.get(name);
        text.and_then(|text| text.parse::<i32>().ok()).filter(|count| *count >= 0).map_or(0, i64::from)
    };
    (count(FAILURES), count(IGNORED_FAILURES))
}

/// The indexes of pods.
pub(super) fn indexes<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> BTreeSet<i64> {
    pods.into_iter().filter_map(index).collect()
}
