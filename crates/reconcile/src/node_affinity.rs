//! Which nodes a pod may go to by their names and labels, which agents read alike.
//! Source: `k8s.io/component-helpers/scheduling/corev1/nodeaffinity`.

use std::collections::BTreeMap;

use api::selectors::{MatchExpression, Requirement};
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

/// `core/v1.NodeSelectorTerm`: a conjunction.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelectorTerm {
    /// Over labels.
    pub match_expressions: Vec<MatchExpression>,
    /// Over `metadata.name`.
    pub match_fields: Vec<MatchExpression>,
}

impl NodeNeeds {
    /// Whether a node is what is needed.
    pub fn allow(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.required().is_none_or(|required| {
                required.node_selector_terms.iter().any(|term| term.matches(name, labels))
            })
    }

    fn required(&self) -> Option<&NodeSelector> {
        self.affinity.as_ref()?.node_affinity.as_ref()?.required.as_ref()
    }

    /// The one node that is asked for by its name, as the pods of DaemonSets do. Source: `GetTargetNodeName`.
    pub fn named(&self) -> Option<&str> {
        let mut fields = self.required()?.node_selector_terms.iter().flat_map(|term| &term.match_fields);
        match fields.find(|field| field.key == NAME_FIELD && field.operator == "In")?.values.as_slice() {
            [name] => Some(name),
            _ => None,
        }
    }
}

impl NodeSelectorTerm {
    /// Whether a node satisfies it. An empty one, or one that makes no sense, matches nothing.
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        let hold = |expressions: &[MatchExpression], labels: &BTreeMap<String, String>| {
            expressions.iter().all(|expression| {
                Requirement::from_expression(expression).is_ok_and(|requirement| requirement.matches(labels))
            })
        };
        let fields = || BTreeMap::from([(NAME_FIELD.to_owned(), name.to_owned())]);
        (!self.match_expressions.is_empty() || !self.match_fields.is_empty())
            && hold(&self.match_expressions, labels)
            && (self.match_fields.is_empty() || hold(&self.match_fields, &fields()))
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
