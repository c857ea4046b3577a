//! Projections of Deployments.

use api::ObjectMeta;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::amount::resolve;
use crate::selector::LabelSelector;

/// The revision of a Deployment, and that of each of its sets.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
/// The revisions that a set had before.
pub(super) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// How many pods the Deployment wanted when the set was sized.
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// How many pods, surge included, the Deployment could have when the set was sized.
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// The label that tells the pods of one template from those of another.
pub(super) const POD_TEMPLATE_HASH: &str = "pod-template-hash";
/// The revision that a rollback is asked for to; 0 means the one before. Source: `apps.DeprecatedRollbackTo`.
pub(super) const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";
/// What `kubectl apply` keeps; it belongs to the Deployment alone.
pub(super) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A projection of `apps/v1.Deployment`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Deployment {
    /// Metadata, with annotations.
    pub metadata: ObjectMeta,
    /// Desired state.
    pub spec: DeploymentSpec,
    /// Observed state.
    pub status: DeploymentStatus,
}

/// `apps/v1.DeploymentSpec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentSpec {
    /// How many pods; 1 if absent.
    pub replicas: Option<i64>,
    /// Which pods.
    pub selector: LabelSelector,
    /// The pods' template, kept whole.
    pub template: Value,
    /// How to get from one template to the next.
    pub strategy: Strategy,
    /// How long a pod has to be ready to count as available.
    pub min_ready_seconds: u32,
    /// How many old sets are kept; 10 if absent.
    pub revision_history_limit: Option<i64>,
    /// Whether changes of the template wait.
    pub paused: bool,
    /// After how many seconds without progress the rollout counts as stuck; for ever if absent.
    pub progress_deadline_seconds: Option<i64>,
}

/// `apps/v1.DeploymentStrategy`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Strategy {
    /// `RollingUpdate` (also if empty) or `Recreate`.
    pub r#type: String,
    /// The bounds of a rolling update.
    pub rolling_update: Option<RollingUpdate>,
}

/// `apps/v1.RollingUpdateDeployment`: numbers, or percentages such as `25%`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollingUpdate {
    /// How many pods may be missing.
    pub max_unavailable: Value,
    /// How many pods may be too many.
    pub max_surge: Value,
}

/// `apps/v1.DeploymentStatus`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentStatus {
    /// The generation that this status is about.
    pub observed_generation: i64,
    /// Pods of all sets.
    pub replicas: i64,
    /// Pods of the newest set.
    pub updated_replicas: i64,
    /// Ready pods.
    pub ready_replicas: i64,
    /// Available pods.
    pub available_replicas: i64,
    /// Pods that are wanted and not available.
    pub unavailable_replicas: i64,
    /// Pods that are being deleted and have not ended yet, where every set tells it. Source: KEP-3973.
    pub terminating_replicas: Option<i64>,
    /// How often a set's name was taken by something else.
    pub collision_count: Option<i32>,
    /// Conditions.
    pub conditions: Vec<DeploymentCondition>,
}

/// `apps/v1.DeploymentCondition`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentCondition {
    /// `Available`, `Progressing` or `ReplicaFailure`.
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// When it was written last.
    #[serde(serialize_with = "reconcile::time::serialize_seconds")]
    pub last_update_time: Option<Timestamp>,
    /// When the status changed last.
    #[serde(serialize_with = "reconcile::time::serialize_seconds")]
    pub last_transition_time: Option<Timestamp>,
    /// Machine-readable.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// A progress deadline of this many seconds means that there is none. Source: `HasProgressDeadline`.
const NO_DEADLINE_S: i64 = i32::MAX as i64;

impl Deployment {
    /// How many pods are wanted.
    pub fn replicas(&self) -> i64 {
        self.spec.replicas.unwrap_or(1)
    }

    pub(super) fn recreates(&self) -> bool {
        self.spec.strategy.r#type == "Recreate"
    }

    /// The progress deadline in seconds, if there is one.
    pub(super) fn deadline_s(&self) -> Option<i64> {
        self.spec.progress_deadline_seconds.filter(|seconds| *seconds != NO_DEADLINE_S)
    }

    /// `(maxSurge, maxUnavailable)` in pods. Both zero would stand still, so one may be missing then.
    /// Source: `ResolveFenceposts`.
    fn bounds(&self) -> (i64, i64) {
        if self.recreates() {
            return (0, 0);
        }
        let quarter = || Value::from("25%");
        let (surge, unavailable) = match &self.spec.strategy.rolling_update {
            Some(bounds) => (bounds.max_surge.clone(), bounds.max_unavailable.clone()),
            None => (quarter(), quarter()),
        };
        let surge = resolve(&surge, self.replicas(), true);
        let unavailable = resolve(&unavailable, self.replicas(), false);
        (surge, if surge == 0 && unavailable == 0 { 1 } else { unavailable })
    }

    /// How many pods may be too many during a rolling update.
    pub fn max_surge(&self) -> i64 {
        self.bounds().0
    }

    /// How many pods may be missing during a rolling update.
    pub fn max_unavailable(&self) -> i64 {
        if self.recreates() || self.replicas() == 0 { 0 } else { self.bounds().1.min(self.replicas()) }
    }

    pub(super) fn condition(&self, kind: &str) -> Option<&DeploymentCondition> {
        self.status.conditions.iter().find(|held| held.r#type == kind)
    }
}
