//! Taints of nodes and the tolerations of pods, which the scheduler and the eviction of pods read alike.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// `core/v1.Taint`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
    /// When it was set, for NoExecute.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "crate::time::serialize_seconds")]
    pub time_added: Option<Timestamp>,
}

/// `core/v1.Toleration`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    /// The taint's key; empty with `Exists`: every taint.
    pub key: String,
    /// `Exists` or `Equal` (also if empty).
    pub operator: String,
    /// The taint's value, with `Equal`.
    pub value: String,
    /// The taint's effect; empty: every effect.
    pub effect: String,
    /// For NoExecute: how long it is borne; for ever if absent.
    pub toleration_seconds: Option<i64>,
}

impl Toleration {
    /// Whether it covers a taint. Source: `Toleration.ToleratesTaint`.
    pub fn covers(&self, taint: &Taint) -> bool {
        (self.effect.is_empty() || self.effect == taint.effect)
            && (self.key.is_empty() || self.key == taint.key)
            && match self.operator.as_str() {
                "Exists" => true,
                "" | "Equal" => !self.key.is_empty() && self.value == taint.value,
                _ => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_toleration_covers_what_it_names() {
        let taint =
            Taint { key: "k".into(), value: "v".into(), effect: "NoExecute".into(), time_added: None };
        for (toleration, covers) in [
            (json!({ "operator": "Exists" }), true),
            (json!({ "key": "k", "operator": "Exists", "effect": "NoSchedule" }), false),
            (json!({ "key": "k", "value": "v" }), true),
            (json!({ "key": "k", "value": "w", "operator": "Equal" }), false),
            (json!({ "value": "v" }), false),
            (json!({ "key": "k", "operator": "Gt" }), false),
        ] {
            let read: Toleration = serde_json::from_value(toleration.clone()).unwrap();
            assert_eq!(read.covers(&taint), covers, "{toleration}");
        }
    }
}
