//! Nodes: a new one takes no pods until it is ready, and its pods know where in the world it stands.
//! Source: `plugin/pkg/admission/{nodetaint,podtopologylabels}`.

use api::Status;
use async_trait::async_trait;
use serde_json::{Value, json};

use super::lifecycle::{creates_pod, is, spec_text};
use super::{Link, Operation, Review, World, decoded};
use crate::tree;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// What a pod takes over from its node.
const TOPOLOGY: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

/// Taints new nodes; the node lifecycle controller takes the taint away.
#[derive(Debug, Default, Clone, Copy)]
pub struct TaintNodesByCondition;

#[async_trait]
impl Link for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn about(&self) -> &'static [(&'static str, &'static str)] {
        &[("", "nodes")]
    }

    async fn mutate(&self, review: &Review<'_>, node: &mut Value, _: &dyn World) -> Result<(), Status> {
        if review.operation == Operation::Create && is(review, "", "nodes", "") {
            taint(node);
        }
        Ok(())
    }
}

fn taint(node: &mut Value) {
    let known = |taint: &Value| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule";
    if tree::items(node, &["spec", "taints"]).iter().any(known) {
        return;
    }
    let taints = tree::object(node, "spec").entry("taints").or_insert_with(|| json!([]));
    if !taints.is_array() {
        *taints = json!([]);
    }
    if let Some(taints) = taints.as_array_mut() {
        taints.push(json!({ "key": NOT_READY, "effect": "NoSchedule" }));
    }
}

/// Gives pods the zone and region of the node that they are bound to; the labels of a binding become its pod's.
#[derive(Debug, Default, Clone, Copy)]
pub struct PodTopologyLabels;

#[async_trait]
impl Link for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    fn about(&self) -> &'static [(&'static str, &'static str)] {
        &[("", "pods")]
    }

    async fn mutate(&self, review: &Review<'_>, object: &mut Value, world: &dyn World) -> Result<(), Status> {
        let node = if creates_pod(review) {
            spec_text(object, "nodeName")
        } else if is(review, "", "pods", "binding") {
            tree::text(object, &["target", "name"])
        } else {
            ""
        };
        if node.is_empty() {
            return Ok(());
        }
        // A pod may be bound to a node that is yet to come.
        let Some(node) = world.find("", "nodes", "", node).await? else { return Ok(()) };
        locate(object, &decoded(&node)?);
        Ok(())
    }
}

fn locate(pod: &mut Value, node: &Value) {
    for key in TOPOLOGY {
        if let Some(place) = tree::at(node, &["metadata", "labels", key]).as_str() {
            tree::object(tree::member(pod, "metadata"), "labels").insert(key.into(), place.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_node_is_not_ready_once() {
        let mut node = json!({});
        taint(&mut node);
        taint(&mut node);
        assert_eq!(node["spec"]["taints"], json!([{ "key": NOT_READY, "effect": "NoSchedule" }]));
    }

    #[test]
    fn a_pod_is_where_its_node_is() {
        let node = json!({ "metadata": { "labels": { TOPOLOGY[0]: "z", "other": "x" } } });
        let mut pod = json!({ "metadata": { "labels": { TOPOLOGY[0]: "mine", "app": "a" } } });
        locate(&mut pod, &node);
        assert_eq!(pod["metadata"]["labels"], json!({ TOPOLOGY[0]: "z", "app": "a" }));
    }
}
