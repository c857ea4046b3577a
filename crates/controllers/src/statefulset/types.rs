//! Projections of StatefulSets and of their pods.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::{Object, ObjectMeta};
use base::BoxError;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::identity;
use crate::amount::resolve;
use crate::context::decode;
use crate::pods;
use crate::selector::LabelSelector;

/// Of the pods that are missing, so many are made in one pass, as with other controllers. Source: `BurstReplicas`.
const MISSING_MAX: usize = 500;

/// The name of the revision of which a pod is.
pub(super) const REVISION_LABEL: &str = "controller-revision-hash";

/// A projection of `apps/v1.StatefulSet`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct StatefulSet {
    /// Metadata, with annotations.
    pub metadata: ObjectMeta,
    /// Desired state.
    pub spec: StatefulSetSpec,
    /// Observed state.
    pub status: StatefulSetStatus,
}

/// `apps/v1.StatefulSetSpec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatefulSetSpec {
    /// How many pods; 1 if absent.
    pub replicas: Option<i64>,
    /// Which pods.
    pub selector: LabelSelector,
    /// The pods' template, kept whole.
    pub template: Value,
    /// Claims that each pod has for itself, kept whole.
    pub volume_claim_templates: Vec<Value>,
    /// The Service that the pods' host names belong to.
    pub service_name: String,
    /// `OrderedReady` (also if empty) or `Parallel`.
    pub pod_management_policy: String,
    /// How to get from one template to the next.
    pub update_strategy: UpdateStrategy,
    /// How many revisions that nothing needs are kept; 10 if absent.
    pub revision_history_limit: Option<i64>,
    /// How long a pod has to be ready to count as available.
    pub min_ready_seconds: u32,
    /// What becomes of claims.
    pub persistent_volume_claim_retention_policy: RetentionPolicy,
    /// Where counting begins.
    pub ordinals: Ordinals,
}

/// `apps/v1.StatefulSetUpdateStrategy`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UpdateStrategy {
    /// `RollingUpdate` (also if empty) or `OnDelete`.
    pub r#type: String,
    /// The bounds of a rolling update.
    pub rolling_update: Option<RollingUpdate>,
}

/// `apps/v1.RollingUpdateStatefulSetStrategy`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollingUpdate {
    /// So many pods with the lowest ordinals keep their version.
    pub partition: i64,
    /// How many pods may be missing: a number or a percentage; 1 if absent.
    pub max_unavailable: Option<Value>,
}

/// `apps/v1.StatefulSetPersistentVolumeClaimRetentionPolicy`: `Retain` (also if empty) or `Delete`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetentionPolicy {
    /// When the StatefulSet is deleted.
    pub when_deleted: String,
    /// When it is made smaller.
    pub when_scaled: String,
}

/// `apps/v1.StatefulSetOrdinals`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Ordinals {
    /// The first ordinal.
    pub start: i64,
}

/// `apps/v1.StatefulSetStatus`. Conditions are left to others: upstream's controller sets none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatefulSetStatus {
    /// The generation that this status is about.
    pub observed_generation: i64,
    /// Pods.
    pub replicas: i64,
    /// Those that run and are ready.
    pub ready_replicas: i64,
    /// Those that are ready for `minReadySeconds`.
    pub available_replicas: i64,
    /// Those of the current revision.
    pub current_replicas: i64,
    /// Those of the update revision.
    pub updated_replicas: i64,
    /// The revision that a rolling update leaves.
    pub current_revision: String,
    /// The revision that it goes to.
    pub update_revision: String,
    /// How often a revision's name was taken by something else.
    pub collision_count: Option<i32>,
}

impl StatefulSet {
    /// How many pods are wanted.
    pub fn replicas(&self) -> i64 {
        self.spec.replicas.unwrap_or(1).max(0)
    }

    /// Whether pods come and go one by one.
    pub(super) fn is_ordered(&self) -> bool {
        self.spec.pod_management_policy != "Parallel"
    }

    /// Whether pods are replaced without being deleted by somebody.
    pub(super) fn rolls(&self) -> bool {
        self.spec.update_strategy.r#type != "OnDelete"
    }

    /// The first ordinal.
    pub(super) fn start(&self) -> i64 {
        self.spec.ordinals.start.max(0)
    }

    /// Whether an ordinal is one of those that are wanted.
    pub(super) fn wants(&self, ordinal: i64) -> bool {
        ordinal >= self.start() && ordinal < self.start().saturating_add(self.replicas())
    }

    /// The ordinals of one pass: of those that are wanted, all that are held and the first that are missing. A pass is as
    /// long as there are pods, and not as a number that somebody wrote; the pods that it makes bring the next.
    pub(super) fn ordinals(&self, held: &BTreeSet<i64>) -> BTreeSet<i64> {
        let wanted = self.start()..self.start().saturating_add(self.replicas());
        let missing = wanted.clone().filter(|ordinal| !held.contains(ordinal)).take(MISSING_MAX);
        held.iter().copied().filter(|ordinal| wanted.contains(ordinal)).chain(missing).collect()
    }

    /// How many pods, from the first, a rolling update leaves as they are.
    pub(super) fn partition(&self) -> i64 {
        self.spec.update_strategy.rolling_update.as_ref().map_or(0, |rolling| rolling.partition.max(0))
    }

    /// How many pods may be missing during a rolling update: at least one. Source: `getStatefulSetMaxUnavailable`.
    pub(super) fn max_unavailable(&self) -> i64 {
        let rolling = self.spec.update_strategy.rolling_update.as_ref();
        let amount = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        amount.map_or(1, |amount| resolve(amount, self.replicas(), false)).max(1)
    }

    pub(super) fn min_ready(&self) -> Duration {
        Duration::from_secs(self.spec.min_ready_seconds.into())
    }
}

/// A pod of a set.
#[derive(Debug, Clone, Default)]
pub(super) struct Member {
    pub(super) ordinal: i64,
    pub(super) pod: pods::Pod,
    /// The claims that its volumes are, by the volumes' names.
    pub(super) claims: BTreeMap<String, String>,
}

impl Member {
    /// Decodes a pod whose name says that it is one of the set.
    pub(super) fn decode(set: &StatefulSet, object: &Object) -> Result<Option<Self>, BoxError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Body {
            spec: Spec,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Spec {
            volumes: Vec<Volume>,
        }
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct Volume {
            name: String,
            persistent_volume_claim: Option<Source>,
        }
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct Source {
            claim_name: String,
        }
        let name = &object.meta().name;
        let Some(ordinal) = identity::ordinal(&set.metadata.name, name) else { return Ok(None) };
        // Nobody asks for the volumes of pods that have no claims.
        let claimless = set.spec.volume_claim_templates.is_empty();
        let body = if claimless { Body::default() } else { decode(object)? };
        let claim =
            |volume: Volume| volume.persistent_volume_claim.map(|source| (volume.name, source.claim_name));
        let claims = body.spec.volumes.into_iter().filter_map(claim).collect();
        Ok(Some(Self { ordinal, pod: decode(object)?, claims }))
    }

    pub(super) fn revision(&self) -> &str {
        self.pod.metadata.labels.get(REVISION_LABEL).map_or("", String::as_str)
    }

    pub(super) fn is_terminating(&self) -> bool {
        self.pod.metadata.is_terminating()
    }

    pub(super) fn is_created(&self) -> bool {
        !self.pod.status.phase.is_empty()
    }

    pub(super) fn is_pending(&self) -> bool {
        self.pod.status.phase == "Pending"
    }

    pub(super) fn is_running_and_ready(&self) -> bool {
        self.pod.status.phase == "Running" && self.pod.is_ready()
    }

    pub(super) fn is_available(&self, min_ready: Duration, now: Timestamp) -> bool {
        self.pod.is_available(min_ready, now)
    }
}
