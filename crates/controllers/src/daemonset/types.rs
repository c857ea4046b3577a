//! Projections of DaemonSets, of nodes and of the pods on them.

use std::collections::BTreeMap;
use std::time::Duration;

use api::{Object, ObjectMeta};
use base::BoxError;
use reconcile::node_affinity::NodeNeeds;
use reconcile::taints::Taint;
use serde::Deserialize;
use serde_json::Value;

use crate::amount::resolve;
use crate::context::decode;
use crate::pods;
use crate::selector::LabelSelector;

/// The hash of the revision of which a pod is; of a revision, its own.
pub(super) const HASH_LABEL: &str = "controller-revision-hash";
/// The generation of the template of which a pod is.
pub(super) const GENERATION_LABEL: &str = "pod-template-generation";
/// Where a DaemonSet keeps the generation of its template.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// A projection of `apps/v1.DaemonSet`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct DaemonSet {
    /// Metadata, with annotations.
    pub metadata: ObjectMeta,
    /// Desired state.
    pub spec: DaemonSetSpec,
    /// Observed state.
    pub status: DaemonSetStatus,
}

/// `apps/v1.DaemonSetSpec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonSetSpec {
    /// Which pods.
    pub selector: LabelSelector,
    /// The pods' template, kept whole.
    pub template: Value,
    /// How to get from one template to the next.
    pub update_strategy: UpdateStrategy,
    /// How long a pod has to be ready to count as available.
    pub min_ready_seconds: u32,
    /// How many old revisions are kept; 10 if absent.
    pub revision_history_limit: Option<i64>,
}

/// `apps/v1.DaemonSetUpdateStrategy`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UpdateStrategy {
    /// `RollingUpdate` (also if empty) or `OnDelete`.
    pub r#type: String,
    /// The bounds of a rolling update.
    pub rolling_update: RollingUpdate,
}

/// `apps/v1.RollingUpdateDaemonSet`: numbers, or percentages of the nodes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollingUpdate {
    /// On how many nodes the pod may be missing.
    pub max_unavailable: Value,
    /// On how many nodes an old pod may run beside a new one.
    pub max_surge: Value,
}

/// `apps/v1.DaemonSetStatus`. Conditions are left to others: upstream's controller sets none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonSetStatus {
    /// The generation that this status is about.
    pub observed_generation: i64,
    /// Nodes that are to have a pod and have one.
    pub current_number_scheduled: i64,
    /// Nodes that have a pod and are to have none.
    pub number_misscheduled: i64,
    /// Nodes that are to have a pod.
    pub desired_number_scheduled: i64,
    /// Of these, those whose pod is ready.
    pub number_ready: i64,
    /// Those whose pod is of the newest template.
    pub updated_number_scheduled: i64,
    /// Those whose pod is ready for `minReadySeconds`.
    pub number_available: i64,
    /// Those whose pod is not.
    pub number_unavailable: i64,
    /// How often a revision's name was taken by something else.
    pub collision_count: Option<i32>,
}

/// What pods may be missing, and what may be too many, during a rolling update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) unavailable: usize,
    pub(super) surge: usize,
}

impl DaemonSet {
    /// Whether pods are replaced without being deleted by somebody.
    pub(super) fn rolls(&self) -> bool {
        self.spec.update_strategy.r#type != "OnDelete"
    }

    /// The bounds for so many nodes; both zero would stand still, so one may be missing then.
    /// Source: `updatedDesiredNodeCounts`.
    pub(super) fn bounds(&self, nodes: usize) -> Bounds {
        let rolling = &self.spec.update_strategy.rolling_update;
        let total = i64::try_from(nodes).unwrap_or(i64::MAX);
        let of = |amount: &Value| {
            if self.rolls() { usize::try_from(resolve(amount, total, true)).unwrap_or(0) } else { 0 }
        };
        let (unavailable, surge) = (of(&rolling.max_unavailable), of(&rolling.max_surge));
        let neither = nodes > 0 && unavailable == 0 && surge == 0;
        Bounds { unavailable: if neither { 1 } else { unavailable }, surge }
    }

    /// Whether a new pod comes before the old one goes. Source: `AllowsSurge`.
    pub(super) fn surges(&self) -> bool {
        self.bounds(1).surge > 0
    }

    pub(super) fn min_ready(&self) -> Duration {
        Duration::from_secs(self.spec.min_ready_seconds.into())
    }

    /// The generation of the template, as pods carry it.
    pub(super) fn template_generation(&self) -> Option<&str> {
        let text = self.metadata.annotations.get(TEMPLATE_GENERATION)?;
        text.parse::<i64>().is_ok().then_some(text)
    }
}

/// A node, as far as daemons go.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) taints: Vec<Taint>,
}

impl Node {
    pub(super) fn decode(object: &Object) -> Result<Self, BoxError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Body {
            spec: Spec,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Spec {
            taints: Vec<Taint>,
        }
        let body: Body = decode(object)?;
        let meta = object.meta();
        Ok(Self { name: meta.name.clone(), labels: meta.labels.clone(), taints: body.spec.taints })
    }
}

/// A pod of a set, with the node that it is on or is meant for.
#[derive(Debug, Clone, Default)]
pub(super) struct Daemon {
    pub(super) pod: pods::Pod,
    /// Empty if nothing says it.
    pub(super) node: String,
}

impl Daemon {
    pub(super) fn decode(object: &Object) -> Result<Self, BoxError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Body {
            spec: NodeNeeds,
        }
        let pod: pods::Pod = decode(object)?;
        let node = if pod.spec.node_name.is_empty() {
            let body: Body = decode(object)?;
            body.spec.named().unwrap_or_default().to_owned()
        } else {
            pod.spec.node_name.clone()
        };
        Ok(Self { pod, node })
    }

    pub(super) fn is_terminating(&self) -> bool {
        self.pod.metadata.is_terminating()
    }

    /// The hash of its revision.
    pub(super) fn hash(&self) -> &str {
        self.pod.metadata.labels.get(HASH_LABEL).map_or("", String::as_str)
    }

    /// Whether it is of the newest template. Source: `IsPodUpdated`.
    pub(super) fn is_updated(&self, set: &DaemonSet, hash: &str) -> bool {
        let generation = self.pod.metadata.labels.get(GENERATION_LABEL);
        (!hash.is_empty() && self.hash() == hash)
            || (generation.is_some() && generation.map(String::as_str) == set.template_generation())
    }
}
