//! Label selectors as objects carry them, asked directly.

use std::collections::BTreeMap;

pub use api::selectors::LabelSelectorSpec as LabelSelector;
use api::selectors::Requirement;

/// Questions to an object's selector.
pub trait Select {
    /// Whether it asks for nothing at all, and so selects everything.
    fn is_empty(&self) -> bool;
    /// Whether labels satisfy it. An expression that makes no sense is satisfied by nothing.
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool;
}

impl Select for LabelSelector {
    fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        is_subset(&self.match_labels, labels)
            && self.match_expressions.iter().all(|expression| {
                Requirement::from_expression(expression).is_ok_and(|requirement| requirement.matches(labels))
            })
    }
}

/// Whether `labels` holds every entry of `wanted`.
pub fn is_subset(wanted: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
