//! Label selectors that are read once, and terms over pods that are made of them. Both are compared by what they say, so
//! that equal ones of many pods are counted once.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use api::selectors::{LabelSelector, LabelSelectorSpec, MatchExpression};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A label selector, read once. An absent one, and one that makes no sense, matches nothing. Copies share what was read.
#[derive(Debug, Clone, Default)]
pub struct Selector(Option<Arc<Held>>);

#[derive(Debug)]
struct Held {
    source: LabelSelectorSpec,
    read: Option<LabelSelector>,
}

impl Selector {
    /// Reads a selector as objects carry it. Source: `metav1.LabelSelectorAsSelector`.
    pub fn new(source: Option<LabelSelectorSpec>) -> Self {
        Self(source.map(|source| Arc::new(Held { read: LabelSelector::from_spec(&source).ok(), source })))
    }

    /// All of these labels.
    pub fn of_labels(labels: &Labels) -> Self {
        Self::new(Some(LabelSelectorSpec { match_labels: labels.clone(), ..LabelSelectorSpec::default() }))
    }

    fn source(&self) -> Option<&LabelSelectorSpec> {
        self.0.as_ref().map(|held| &held.source)
    }

    fn read(&self) -> Option<&LabelSelector> {
        self.0.as_ref()?.read.as_ref()
    }

    /// This selector and one more requirement, unless it asks for that already: the API server has written what a pod's
    /// own labels mean into its selectors. An absent selector stays one that matches nothing.
    #[must_use]
    pub fn and(self, key: &str, operator: &str, value: &str) -> Self {
        let asks = |held: &MatchExpression| held.key == key && held.operator == operator;
        match self.source() {
            None => Self::default(),
            Some(source) if source.match_expressions.iter().any(asks) => self,
            Some(source) => {
                let mut source = source.clone();
                source.match_expressions.push(MatchExpression {
                    key: key.to_owned(),
                    operator: operator.to_owned(),
                    values: vec![value.to_owned()],
                });
                Self::new(Some(source))
            }
        }
    }

    /// What both ask for; an absent one asks for nothing here.
    #[must_use]
    pub fn with(self, other: &Self) -> Self {
        let (Some(source), Some(more)) = (self.source(), other.source()) else {
            return if self.0.is_none() { other.clone() } else { self };
        };
        let mut source = source.clone();
        source.match_labels.extend(more.match_labels.clone());
        source.match_expressions.extend(more.match_expressions.iter().cloned());
        Self::new(Some(source))
    }

    /// Whether it asks for nothing at all: absent, or without any requirement.
    pub fn is_empty(&self) -> bool {
        self.read().is_none_or(LabelSelector::is_empty)
    }

    /// A label that labels have to have to satisfy it, if it asks for a certain one.
    pub fn label(&self) -> Option<(&str, &str)> {
        let source = self.source()?;
        let certain = |asked: &'_ MatchExpression| asked.operator == "In" && asked.values.len() == 1;
        let mut expressions = source.match_expressions.iter().filter(|asked| certain(asked));
        let first = || expressions.next().map(|asked| (asked.key.as_str(), asked.values[0].as_str()));
        let label = source.match_labels.first_key_value();
        label.map(|(key, value)| (key.as_str(), value.as_str())).or_else(first)
    }

    /// Whether labels satisfy it.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.read().is_some_and(|read| read.matches(labels))
    }
}

impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one.source == other.source,
            (one, other) => one.is_none() && other.is_none(),
        }
    }
}

impl Eq for Selector {}

impl Hash for Selector {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Some(source) = self.source() else { return };
        source.match_labels.hash(state);
        for expression in &source.match_expressions {
            (&expression.key, &expression.operator, &expression.values).hash(state);
        }
    }
}

/// Which pods: in which namespaces, with which labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Matcher {
    /// Namespaces by name, sorted.
    pub namespaces: Vec<String>,
    /// Namespaces by their labels, beside those.
    pub namespace_selector: Option<Selector>,
    /// The pods' labels.
    pub selector: Selector,
}

impl Matcher {
    /// The pods of one namespace.
    pub fn within(namespace: &str, selector: Selector) -> Self {
        Self { namespaces: vec![namespace.to_owned()], namespace_selector: None, selector }
    }

    /// Whether a pod with these labels is meant, in a namespace with those.
    pub fn matches(&self, namespace: &str, namespace_labels: Option<&Labels>, labels: &Labels) -> bool {
        self.reaches(namespace, namespace_labels) && self.selector.matches(labels)
    }

    fn reaches(&self, namespace: &str, labels: Option<&Labels>) -> bool {
        let none = Labels::new();
        self.namespaces.iter().any(|name| name == namespace)
            || self.namespace_selector.as_ref().is_some_and(|by| by.matches(labels.unwrap_or(&none)))
    }
}

/// `core/v1.PodAffinityTerm`: pods, and what a node has to share with theirs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Term {
    /// The pods.
    pub pods: Matcher,
    /// The label of nodes whose value they share.
    pub topology_key: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_absent_selector_matches_nothing_and_an_empty_one_everything() {
        let labels = Labels::from([("app".to_owned(), "web".to_owned())]);
        let read = |value: serde_json::Value| Selector::new(serde_json::from_value(value).unwrap());
        assert!(!read(json!(null)).matches(&labels));
        assert!(read(json!({})).matches(&labels) && read(json!({})).is_empty());
        assert!(!read(json!({ "matchExpressions": [{ "key": "a", "operator": "Like" }] })).matches(&labels));
        let app = read(json!({ "matchLabels": { "app": "web" } }));
        assert!(app.matches(&labels) && !app.is_empty());
        assert!(!app.clone().and("app", "NotIn", "web").matches(&labels));
        // What is asked for already is not asked for twice: two values for one key would mean nobody.
        let own = app.clone().and("hash", "In", "1");
        assert!(own.clone().and("hash", "In", "2") == own);
        assert!(app.clone().with(&read(json!(null))) == app);
        assert!(!app.with(&read(json!({ "matchLabels": { "tier": "x" } }))).matches(&labels));
        assert!(!Selector::default().and("app", "In", "web").matches(&labels));
    }

    #[test]
    fn namespaces_are_meant_by_name_or_by_their_labels() {
        let labels = Labels::new();
        let team = Labels::from([("team".to_owned(), "a".to_owned())]);
        let all = Selector::new(Some(LabelSelectorSpec::default()));
        let mut pods = Matcher::within("x", all.clone());
        assert!(pods.matches("x", None, &labels) && !pods.matches("y", Some(&team), &labels));
        pods.namespace_selector = Some(Selector::of_labels(&team));
        assert!(pods.matches("y", Some(&team), &labels) && !pods.matches("y", None, &labels));
        pods.namespace_selector = Some(all);
        assert!(pods.matches("z", None, &labels));
    }
}
