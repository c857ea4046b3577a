//! What the scheduler keeps of a node, and the terms that select nodes.

use std::collections::BTreeMap;

use api::Object;
use api::selectors::{MatchExpression, Requirement};
use base::BoxError;
use reconcile::taints::Taint;
use serde::Deserialize;
use serde_json::Value;

use super::selector::Labels;
use crate::resources::Resources;

/// A node, as far as placing pods goes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// Taints.
    pub taints: Vec<Taint>,
    /// Whether it is cordoned.
    pub unschedulable: bool,
    /// What it offers.
    pub allocatable: Resources,
    /// How many pods it takes.
    pub pods_max: i128,
    /// The images that it has, each under all of its names, with their sizes in bytes.
    pub images: Vec<(String, i64)>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeBody {
    spec: NodeSpec,
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    taints: Vec<Taint>,
    unschedulable: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    allocatable: BTreeMap<String, Value>,
    images: Vec<Image>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Image {
    names: Vec<String>,
    size_bytes: i64,
}

impl Node {
    /// Decodes a node.
    pub fn decode(object: &Object) -> Result<Self, BoxError> {
        let body: NodeBody =
            object.decode().map_err(|error| format!("cannot read node {}: {error}", object.key()))?;
        let images = body.status.images.into_iter();
        let mut allocatable = body.status.allocatable;
        let pods = allocatable.remove("pods").map(|amount| BTreeMap::from([("pods".to_owned(), amount)]));
        Ok(Self {
            name: object.meta().name.clone(),
            labels: object.meta().labels.clone(),
            taints: body.spec.taints,
            unschedulable: body.spec.unschedulable,
            pods_max: pods.map(|pods| Resources::parse(&pods).get("pods")).unwrap_or_default(),
            allocatable: Resources::parse(&allocatable),
            images: images
                .flat_map(|image| image.names.into_iter().map(move |name| (name, image.size_bytes)))
                .collect(),
        })
    }
}

/// `core/v1.NodeAffinity`, the parts that count when scheduling.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeAffinity {
    /// One of these terms must hold.
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Option<NodeSelector>,
    /// These are better.
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution")]
    pub preferred: Vec<PreferredTerm>,
}

/// `core/v1.NodeSelector`: alternatives.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelector {
    /// The alternatives.
    pub node_selector_terms: Vec<NodeSelectorTerm>,
}

/// `core/v1.PreferredSchedulingTerm`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PreferredTerm {
    /// 1 to 100.
    pub weight: i64,
    /// The term.
    pub preference: NodeSelectorTerm,
}

/// `core/v1.NodeSelectorTerm`: a conjunction; an empty one matches nothing, and so does one that makes no sense.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(from = "TermSource")]
pub struct NodeSelectorTerm {
    /// Over labels.
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

impl NodeSelectorTerm {
    /// Whether a node satisfies it.
    pub fn matches(&self, node: &Node) -> bool {
        if self.labels.is_empty() && self.fields.is_empty() {
            return false;
        }
        let named = |field: &Requirement| {
            let fields = Labels::from([("metadata.name".to_owned(), node.name.clone())]);
            field.matches(&fields)
        };
        self.labels.iter().all(|label| label.matches(&node.labels)) && self.fields.iter().all(named)
    }

    /// The nodes that its fields name; `None` if it names none and any may match.
    pub fn named(&self) -> Option<Vec<&str>> {
        let mut named: Option<Vec<&str>> = None;
        for field in self.fields.iter().filter(|field| field.key == "metadata.name") {
            let api::selectors::Condition::In(values) = &field.condition else { continue };
            let both = |value: &&str| named.as_ref().is_none_or(|held| held.contains(value));
            named = Some(values.iter().map(String::as_str).filter(both).collect());
        }
        named
    }
}

impl NodeSelector {
    /// Whether a node satisfies one of the alternatives.
    pub fn matches(&self, node: &Node) -> bool {
        self.node_selector_terms.iter().any(|term| term.matches(node))
    }
}
