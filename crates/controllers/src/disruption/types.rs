//! What is used of a PodDisruptionBudget, and what its status becomes.

use std::collections::BTreeMap;

use api::ObjectMeta;
use jiff::Timestamp;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::selector::LabelSelector;

/// A projection of `policy/v1.PodDisruptionBudget`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Budget {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: BudgetSpec,
    /// What was seen.
    pub status: BudgetStatus,
}

/// `policy/v1.PodDisruptionBudgetSpec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BudgetSpec {
    /// A number, or a percentage of the expected pods.
    pub min_available: Option<Value>,
    /// A number, or a percentage of the expected pods.
    pub max_unavailable: Option<Value>,
    /// Which pods; without one none, while an empty one means all of the namespace.
    pub selector: Option<LabelSelector>,
}

/// `policy/v1.PodDisruptionBudgetStatus`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BudgetStatus {
    /// The generation that this status is about.
    #[serde(skip_serializing_if = "is_zero")]
    pub observed_generation: i64,
    /// Pods whose eviction was allowed, and when; they do not count as healthy although they still look so.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", serialize_with = "moments")]
    pub disrupted_pods: BTreeMap<String, Timestamp>,
    /// How many pods may be evicted now.
    pub disruptions_allowed: i32,
    /// Ready pods.
    pub current_healthy: i32,
    /// How many of them there must be.
    pub desired_healthy: i32,
    /// How many pods there should be.
    pub expected_pods: i32,
    /// `DisruptionAllowed`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// `meta/v1.Condition`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// Which.
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// The generation that it is about.
    #[serde(skip_serializing_if = "is_zero")]
    pub observed_generation: i64,
    /// When its status changed last.
    #[serde(serialize_with = "reconcile::time::serialize_seconds")]
    pub last_transition_time: Option<Timestamp>,
    /// Machine-readable.
    pub reason: String,
    /// For people.
    pub message: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands the field by reference")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

fn moments<S: Serializer>(pods: &BTreeMap<String, Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(pods.len()))?;
    for (pod, since) in pods {
        map.serialize_entry(pod, &reconcile::time::seconds(*since))?;
    }
    map.end()
}

impl BudgetSpec {
    /// Whether the number of expected pods is that of their controllers, and not that of the pods.
    pub(super) fn counts_controllers(&self) -> bool {
        self.max_unavailable.is_some() || self.min_available.as_ref().is_some_and(Value::is_string)
    }
}
