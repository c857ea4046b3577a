//! Label selectors as objects carry them. Source: `meta/v1.LabelSelector` and `labels.Requirement`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `meta/v1.LabelSelector`. An empty one selects everything, as upstream's does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// Labels that must be there with these values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements, all of which must hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// `meta/v1.LabelSelectorRequirement`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`; anything else matches nothing.
    pub operator: String,
    /// The values of the first two.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

impl LabelSelector {
    /// One that asks for exactly these labels.
    pub fn of_labels(labels: BTreeMap<String, String>) -> Self {
        Self { match_labels: labels, match_expressions: Vec::new() }
    }

    /// Whether it asks for nothing at all.
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// Whether labels satisfy it.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        is_subset(&self.match_labels, labels)
            && self.match_expressions.iter().all(|requirement| requirement.matches(labels))
    }
}

impl Requirement {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator.as_str() {
            "In" => value.is_some_and(|value| self.values.contains(value)),
            // An absent label is not in any set.
            "NotIn" => value.is_none_or(|value| !self.values.contains(value)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    }
}

/// Whether `labels` holds every entry of `wanted`.
pub fn is_subset(wanted: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_follow_upstream() {
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let requires = |key: &str, operator: &str, values: &[&str]| {
            let values = values.iter().map(|value| (*value).to_owned()).collect();
            let requirement = Requirement { key: key.into(), operator: operator.into(), values };
            LabelSelector { match_expressions: vec![requirement], ..LabelSelector::default() }
                .matches(&labels)
        };
        assert!(requires("app", "In", &["web", "db"]) && !requires("app", "In", &["db"]));
        assert!(requires("tier", "NotIn", &["x"]) && !requires("app", "NotIn", &["web"]));
        assert!(requires("app", "Exists", &[]) && requires("tier", "DoesNotExist", &[]));
        assert!(!requires("app", "Sometimes", &[]));
        assert!(LabelSelector::default().matches(&labels));
    }
}
