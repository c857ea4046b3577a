//! Disruption budgets, as far as choosing victims goes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::selectors::LabelSelectorSpec;
use api::{Key, Object};
use base::BoxError;
use serde::Deserialize;
use serde_json::Value;

use crate::types::{Pod, Selector};

/// A PodDisruptionBudget.
#[derive(Debug, Clone, Default)]
struct Budget {
    selector: Selector,
    allowed: i64,
    /// Pods whose eviction has been counted already.
    disrupted: Vec<String>,
}

/// All budgets, by namespace and name.
#[derive(Debug, Default)]
pub struct Budgets {
    held: HashMap<String, BTreeMap<String, Budget>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Body {
    spec: BodySpec,
    status: BodyStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BodySpec {
    selector: Option<LabelSelectorSpec>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct BodyStatus {
    disruptions_allowed: i64,
    disrupted_pods: BTreeMap<String, Value>,
}

impl Budgets {
    /// A budget is there, or is gone.
    pub fn put(&mut self, key: &Key, object: Option<&Object>) -> Result<(), BoxError> {
        let Some(object) = object else {
            if let Some(budgets) = self.held.get_mut(&key.namespace) {
                budgets.remove(&key.name);
                if budgets.is_empty() {
                    self.held.remove(&key.namespace);
                }
            }
            return Ok(());
        };
        let body: Body = object.decode()?;
        let budget = Budget {
            selector: Selector::new(body.spec.selector),
            allowed: body.status.disruptions_allowed,
            disrupted: body.status.disrupted_pods.into_keys().collect(),
        };
        self.held.entry(key.namespace.clone()).or_default().insert(key.name.clone(), budget);
        Ok(())
    }

    /// Which of these pods cannot go, one after the other, within their budgets; in the same order.
    /// Source: `filterPodsWithPDBViolation`.
    pub fn violated(&self, pods: &[Arc<Pod>]) -> Vec<bool> {
        let mut left: HashMap<(&str, &str), i64> = HashMap::new();
        let mut violates = |pod: &Arc<Pod>| {
            let mut violated = false;
            let budgets = self.held.get_key_value(&pod.key.namespace);
            for (namespace, name, budget) in budgets.iter().flat_map(|(namespace, budgets)| {
                budgets.iter().map(move |(name, budget)| (namespace.as_str(), name.as_str(), budget))
            }) {
                let selected = !pod.labels.is_empty()
                    && !budget.selector.is_empty()
                    && budget.selector.matches(&pod.labels)
                    && !budget.disrupted.contains(&pod.key.name);
                if selected {
                    let left = left.entry((namespace, name)).or_insert(budget.allowed);
                    *left -= 1;
                    violated |= *left < 0;
                }
            }
            violated
        };
        pods.iter().map(&mut violates).collect()
    }
}
