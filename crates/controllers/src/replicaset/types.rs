//! Projections of the two kinds onto one shape.

use std::time::Duration;

use api::{Object, ObjectMeta};
use base::BoxError;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Flavor;
use crate::selector::LabelSelector;

/// A projection of `apps/v1.ReplicaSet` or `core/v1.ReplicationController`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Set {
    /// Metadata, with annotations.
    pub metadata: ObjectMeta,
    /// Desired state.
    pub spec: SetSpec,
    /// Observed state.
    pub status: SetStatus,
    /// `spec.selector` in one form.
    #[serde(skip)]
    pub selector: LabelSelector,
}

/// The desired state of a set.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SetSpec {
    /// How many pods; 1 if absent.
    pub replicas: Option<i64>,
    /// How long a pod has to be ready to count as available.
    pub min_ready_seconds: u32,
    /// As it is stored; see [`Set::selector`].
    pub selector: Value,
    /// The pods' template, kept whole: its unknown fields go into the pods too.
    pub template: Value,
}

/// The observed state of a set. Shape: `apps/v1.ReplicaSetStatus`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SetStatus {
    /// Pods that are neither finished nor being deleted.
    pub replicas: i64,
    /// Those whose labels are the template's.
    pub fully_labeled_replicas: i64,
    /// Those that are ready.
    pub ready_replicas: i64,
    /// Those that are ready for `minReadySeconds`.
    pub available_replicas: i64,
    /// Those that are being deleted and have not ended yet; not told of ReplicationControllers. Source: KEP-3973.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminating_replicas: Option<i64>,
    /// The generation that this status is about.
    pub observed_generation: i64,
    /// Conditions.
    pub conditions: Vec<SetCondition>,
}

/// `apps/v1.ReplicaSetCondition`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SetCondition {
    /// `ReplicaFailure`.
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// When the status changed last.
    #[serde(serialize_with = "reconcile::time::serialize_seconds")]
    pub last_transition_time: Option<Timestamp>,
    /// Machine-readable.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Set {
    /// How many pods are wanted.
    pub fn replicas(&self) -> i64 {
        self.spec.replicas.unwrap_or(1)
    }

    pub(super) fn min_ready(&self) -> Duration {
        Duration::from_secs(self.spec.min_ready_seconds.into())
    }
}

/// Decodes a set of a flavor.
pub(crate) fn decode(flavor: &Flavor, object: &Object) -> Result<Set, BoxError> {
    let mut set: Set = crate::context::decode(object)?;
    set.selector = if flavor.plain_selector {
        LabelSelector {
            match_labels: serde_json::from_value(set.spec.selector.take()).unwrap_or_default(),
            ..LabelSelector::default()
        }
    } else {
        serde_json::from_value(set.spec.selector.take())
            .map_err(|error| format!("cannot read spec.selector of {}: {error}", object.key()))?
    };
    Ok(set)
}
