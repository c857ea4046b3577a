//! Which nodes a pod may go to by their names and labels, which agents read alike.
//! Source: `k8s.io/component-helpers/scheduling/corev1/nodeaffinity`.

use std::collections::BTreeMap;

use api::selectors::{Condition, MatchExpression, Requirement};
use serde::Deserialize;

/// The field of a node that terms can ask for.
pub const NAME_FIELD: &str = "metadata.name";

/// The parts of a pod's spec that name nodes or their labels.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeNeeds {
    /// Labels that the node must have.
    pub node_selector: BTreeMap<String, String>,
    /// More of what it must be.
    pub affinity: Option<Affinity>,
}

/// `core/v1.Affinity`, the part about nodes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Affinity {
    /// The part about nodes.
    pub node_affinity: Option<NodeAffinity>,
}

/// `core/v1.NodeAffinity`, the part that must hold.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NodeAffinity {
    /// One of these terms must hold.
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Option<NodeSelector>,
}

/// `core/v1.NodeSelector`: alternatives.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelector {
    /// The alternatives.
    pub node_selector_terms: Vec<NodeSelectorTerm>,
}

/// `core/v1.NodeSelectorTerm`: a conjunction, read once; an empty one matches nothing, and so does one that makes no sense.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(from = "TermSource")]
pub struct NodeSelectorTerm {
    labels: Vec<Requirement>,
    /// Over `metadata.name`.
    fields: Vec<Requirement>,
    /// What is wrong with it.
    pub problem: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TermSource {
    match_expressions: Vec<MatchExpression>,
    match_fields: Vec<MatchExpression>,
}

impl From<TermSource> for NodeSelectorTerm {
    fn from(source: TermSource) -> Self {
        let read = |expressions: &[MatchExpression]| -> Result<Vec<Requirement>, String> {
            expressions.iter().map(Requirement::from_expression).collect()
        };
        match (read(&source.match_expressions), read(&source.match_fields)) {
            (Ok(labels), Ok(fields)) => Self { labels, fields, problem: None },
            (Err(problem), _) | (_, Err(problem)) => Self { problem: Some(problem), ..Self::default() },
        }
    }
}

impl NodeNeeds {
    /// Whether a node is what is needed.
    pub fn allow(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.required().is_none_or(|required| required.matches(name, labels))
    }

    fn required(&self) -> Option<&NodeSelector> {
        self.affinity.as_ref()?.node_affinity.as_ref()?.required.as_ref()
    }

    /// The one node that is asked for by its name, as the pods of DaemonSets do. Source: `GetTargetNodeName`.
    pub fn named(&self) -> Option<&str> {
        let mut fields = self.required()?.node_selector_terms.iter().flat_map(NodeSelectorTerm::names);
        match fields.next()? {
            [name] => Some(name),
            _ => None,
        }
    }
}

impl NodeSelector {
    /// Whether a node satisfies one of the alternatives. Where nothing is known of its name, that is empty.
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.node_selector_terms.iter().any(|term| term.matches(name, labels))
    }
}

impl NodeSelectorTerm {
    /// Whether a node satisfies it.
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        !(self.labels.is_empty() && self.fields.is_empty())
            && self.labels.iter().all(|label| label.matches(labels))
            && self.fields.iter().all(|field| names(field, name))
    }

    /// The lists of names of which one has to be the node's.
    fn names(&self) -> impl Iterator<Item = &[String]> {
        self.fields.iter().filter(|field| field.key == NAME_FIELD).filter_map(|field| {
            match &field.condition {
                Condition::In(values) => Some(values.as_slice()),
                _ => None,
            }
        })
    }

    /// The nodes that its fields name; `None` if it names none and any may match.
    pub fn named(&self) -> Option<Vec<&str>> {
        let mut named: Option<Vec<&str>> = None;
        for values in self.names() {
            let both = |value: &&str| named.as_ref().is_none_or(|held| held.contains(value));
            named = Some(values.iter().map(String::as_str).filter(both).collect());
        }
        named
    }
}

/// Whether a node of this name has the field.
fn names(field: &Requirement, name: &str) -> bool {
    match &field.condition {
        Condition::In(values) if field.key == NAME_FIELD => values.iter().any(|value| value == name),
        Condition::NotIn(values) if field.key == NAME_FIELD => values.iter().all(|value| value != name),
        // The API server lets no other through.
        _ => field.matches(&BTreeMap::from([(NAME_FIELD.to_owned(), name.to_owned())])),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn needs(terms: Value) -> NodeNeeds {
        let required = json!({ "nodeSelectorTerms": terms });
        serde_json::from_value(json!({ "nodeSelector": { "disk": "ssd" },
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": required } } }))
        .unwrap()
    }

    #[test]
    fn nodes_need_all_labels_and_one_term() {
        let labels =
            BTreeMap::from([("disk".to_owned(), "ssd".to_owned()), ("cpus".to_owned(), "8".to_owned())]);
        let named = |operator: &str| {
            json!({ "matchFields": [
            { "key": "metadata.name", "operator": operator, "values": ["a"] }] })
        };
        let labelled = |operator: &str, value: &str| {
            json!({ "matchExpressions": [
            { "key": "cpus", "operator": operator, "values": [value] }] })
        };
        for (terms, a, b) in [
            (json!([named("In")]), true, false),
            (json!([named("NotIn")]), false, true),
            (json!([labelled("Gt", "4")]), true, true),
            (json!([labelled("Gt", "8"), named("In")]), true, false),
            (json!([labelled("Odd", "8")]), false, false),
            (json!([named("Exists")]), false, false),
            (json!([{}]), false, false),
            (json!([]), false, false),
        ] {
            let needs = needs(terms.clone());
            assert_eq!((needs.allow("a", &labels), needs.allow("b", &labels)), (a, b), "{terms}");
            assert!(!needs.allow("a", &BTreeMap::new()), "{terms}");
        }
        assert!(NodeNeeds::default().allow("a", &BTreeMap::new()));
    }

    #[test]
    fn one_node_is_asked_for_by_its_name() {
        let field = |values: Value| {
            json!([{ "matchFields": [
            { "key": "metadata.name", "operator": "In", "values": values }] }])
        };
        assert_eq!(needs(field(json!(["a"]))).named(), Some("a"));
        assert_eq!(needs(field(json!(["a", "b"]))).named(), None);
        assert_eq!(NodeNeeds::default().named(), None);
    }
}
