//! What the scheduler keeps of a node, and what pods wish of nodes.

use std::collections::BTreeMap;

use api::Object;
use base::BoxError;
use reconcile::node_affinity::{NodeSelector, NodeSelectorTerm};
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
    /// What it can do that not every node can.
    pub features: Vec<String>,
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
    #[serde(rename = "declaredFeatures")]
    declared_features: Vec<String>,
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
            features: body.status.declared_features,
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

/// `core/v1.PreferredSchedulingTerm`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PreferredTerm {
    /// 1 to 100.
    pub weight: i64,
    /// The term.
    pub preference: NodeSelectorTerm,
}
