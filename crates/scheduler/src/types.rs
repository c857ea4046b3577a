//! What the scheduler keeps of pods and nodes.

use std::collections::BTreeMap;

use api::selectors::{MatchExpression, Requirement};
use api::{Key, Object, ObjectMeta};
use base::BoxError;
use jiff::Timestamp;
use reconcile::taints::{Taint, Toleration};
use serde::Deserialize;
use serde_json::Value;

use crate::resources::{ContainerNeeds, Needs, Resources, pod_requests};

/// The name under which pods ask for this scheduler.
pub const SCHEDULER_NAME: &str = "default-scheduler";

/// A pod, as far as placing it goes.
#[derive(Debug, Clone, Default)]
pub struct Pod {
    /// Namespace and name.
    pub key: Key,
    /// Uid.
    pub uid: String,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Ran to its end: it uses nothing any more.
    pub finished: bool,
    /// The node that it is on; empty while it is on none.
    pub node: String,
    /// Whether it asks for this scheduler.
    pub ours: bool,
    /// Whether scheduling gates hold it back.
    pub gated: bool,
    /// Higher goes first.
    pub priority: i64,
    /// Whether it takes no other pod's place (`preemptionPolicy: Never`).
    pub never_preempts: bool,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// The uid of its controller; empty if it has none.
    pub owner: String,
    /// What it asks for.
    pub requests: Resources,
    /// Host ports as (address, protocol, port).
    pub ports: Vec<(String, String, u16)>,
    /// Labels that the node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Where it must go, and where it would like to go.
    pub affinity: NodeAffinity,
    /// Taints that it bears.
    pub tolerations: Vec<Toleration>,
    /// The condition PodScheduled as it is stored: status, reason, message.
    pub scheduled: Option<(String, String, String)>,
}

/// `core/v1.NodeAffinity`, the parts that count when scheduling.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
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

/// `core/v1.NodeSelectorTerm`: a conjunction; an empty one matches nothing.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelectorTerm {
    /// Over labels.
    pub match_expressions: Vec<MatchExpression>,
    /// Over `metadata.name`.
    pub match_fields: Vec<MatchExpression>,
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

impl NodeSelectorTerm {
    /// Whether a node satisfies it.
    pub fn matches(&self, node: &Node) -> bool {
        let holds = |expression: &MatchExpression, labels: &BTreeMap<String, String>| {
            Requirement::from_expression(expression).is_ok_and(|requirement| requirement.matches(labels))
        };
        if self.match_expressions.is_empty() && self.match_fields.is_empty() {
            return false;
        }
        let fields = BTreeMap::from([("metadata.name".to_owned(), node.name.clone())]);
        self.match_expressions.iter().all(|expression| holds(expression, &node.labels))
            && self.match_fields.iter().all(|expression| holds(expression, &fields))
    }
}

/// A node, as far as placing pods goes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Taints.
    pub taints: Vec<Taint>,
    /// Whether it is cordoned.
    pub unschedulable: bool,
    /// What it offers.
    pub allocatable: Resources,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodBody {
    metadata: ObjectMeta,
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: String,
    scheduler_name: String,
    scheduling_gates: Vec<Value>,
    priority: i64,
    preemption_policy: String,
    containers: Vec<ContainerNeeds>,
    init_containers: Vec<ContainerNeeds>,
    resources: Option<Needs>,
    overhead: BTreeMap<String, Value>,
    node_selector: BTreeMap<String, String>,
    affinity: Option<Affinity>,
    tolerations: Vec<Toleration>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Affinity {
    node_affinity: Option<NodeAffinity>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    phase: String,
    conditions: Vec<Condition>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
    reason: String,
    message: String,
}

/// The condition PodScheduled: status, reason, message.
fn scheduled(conditions: Vec<Condition>) -> Option<(String, String, String)> {
    let held = conditions.into_iter().find(|held| held.r#type == "PodScheduled")?;
    Some((held.status, held.reason, held.message))
}

impl Pod {
    /// What can be said of a pod that cannot be decoded: who it is, and its condition PodScheduled if that can be read.
    pub fn unreadable(object: &Object) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct StatusOnly {
            status: PodStatus,
        }
        let conditions = object.decode::<StatusOnly>().unwrap_or_default().status.conditions;
        Self {
            key: object.key(),
            uid: object.meta().uid.clone(),
            scheduled: scheduled(conditions),
            ..Self::default()
        }
    }

    /// Decodes a pod.
    pub fn decode(object: &Object) -> Result<Self, BoxError> {
        let body: PodBody =
            object.decode().map_err(|error| format!("cannot read pod {}: {error}", object.key()))?;
        let spec = body.spec;
        let requests =
            pod_requests(&spec.containers, &spec.init_containers, spec.resources.as_ref(), &spec.overhead);
        let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        let ports = spec.containers.into_iter().flat_map(|container| container.ports);
        Ok(Self {
            key: object.key(),
            terminating: body.metadata.is_terminating(),
            finished: matches!(body.status.phase.as_str(), "Succeeded" | "Failed"),
            node: spec.node_name,
            ours: spec.scheduler_name.is_empty() || spec.scheduler_name == SCHEDULER_NAME,
            gated: !spec.scheduling_gates.is_empty(),
            priority: spec.priority,
            never_preempts: spec.preemption_policy == "Never",
            created: body.metadata.creation_timestamp,
            owner: body.metadata.controller().map(|owner| owner.uid.clone()).unwrap_or_default(),
            uid: body.metadata.uid,
            requests,
            ports: ports
                .filter_map(|port| Some((u16::try_from(port.host_port).ok().filter(|port| *port > 0)?, port)))
                .map(|(number, port)| (or(port.host_ip, "0.0.0.0"), or(port.protocol, "TCP"), number))
                .collect(),
            node_selector: spec.node_selector,
            affinity: spec.affinity.and_then(|affinity| affinity.node_affinity).unwrap_or_default(),
            tolerations: spec.tolerations,
            scheduled: scheduled(body.status.conditions),
        })
    }

    /// Whether it waits for a node from this scheduler.
    pub fn waits(&self) -> bool {
        self.ours && self.node.is_empty() && !self.terminating && !self.finished
    }

    /// Whether it uses up something of a node.
    pub fn occupies(&self) -> bool {
        !self.node.is_empty() && !self.finished
    }
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
}

impl Node {
    /// Decodes a node.
    pub fn decode(object: &Object) -> Result<Self, BoxError> {
        let body: NodeBody =
            object.decode().map_err(|error| format!("cannot read node {}: {error}", object.key()))?;
        Ok(Self {
            name: object.meta().name.clone(),
            labels: object.meta().labels.clone(),
            taints: body.spec.taints,
            unschedulable: body.spec.unschedulable,
            allocatable: Resources::parse(&body.status.allocatable),
        })
    }
}
