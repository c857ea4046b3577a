//! Which nodes a DaemonSet's pods go to and stay on, and what its pods carry for that. Pure.
//! Source: `NodeShouldRunDaemonPod`, `daemon/util/daemonset_util.go`.

use base::BoxError;
use reconcile::kinds;
use reconcile::node_affinity::{NAME_FIELD, NodeNeeds};
use reconcile::taints::Toleration;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::types::{DaemonSet, GENERATION_LABEL, HASH_LABEL, Node};
use crate::template;

/// Taints of nodes in trouble, which daemons bear: they may be what mends the node.
const BORNE: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// What daemons in the host's network bear too: they may be the network.
const BORNE_ON_HOST: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// What is known of a node with regard to a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    /// A pod is to run there, and is made if there is none.
    pub(super) runs: bool,
    /// One that is there may stay.
    pub(super) stays: bool,
}

/// What a template asks of nodes, with the tolerations that every daemon has.
#[derive(Debug, Clone, Default)]
pub(super) struct Placement {
    node_name: String,
    needs: NodeNeeds,
    tolerations: Vec<Toleration>,
}

impl Placement {
    /// Of a set's pods.
    pub(super) fn of(set: &DaemonSet) -> Result<Self, BoxError> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct Spec {
            node_name: String,
        }
        let unreadable = |error| format!("cannot read spec.template of {}: {error}", set.metadata.name);
        let spec = &set.spec.template["spec"];
        let tolerations = Value::Array(tolerations(spec));
        Ok(Self {
            node_name: Spec::deserialize(spec).map_err(unreadable)?.node_name,
            needs: NodeNeeds::deserialize(spec).map_err(unreadable)?,
            tolerations: Vec::deserialize(tolerations).map_err(unreadable)?,
        })
    }

    /// Whether a pod runs, or at least stays, on a node.
    pub(super) fn judge(&self, node: &Node) -> Verdict {
        let named = self.node_name.is_empty() || self.node_name == node.name;
        if !named || !self.needs.allow(&node.name, &node.labels) {
            return Verdict { runs: false, stays: false };
        }
        let bears = |effects: &[&str]| {
            node.taints
                .iter()
                .filter(|taint| effects.contains(&taint.effect.as_str()))
                .all(|taint| self.tolerations.iter().any(|toleration| toleration.covers(taint)))
        };
        Verdict { runs: bears(&["NoSchedule", "NoExecute"]), stays: bears(&["NoExecute"]) }
    }
}

/// The tolerations of a template's pods. Source: `AddOrUpdateDaemonPodTolerations`.
fn tolerations(spec: &Value) -> Vec<Value> {
    let mut all = spec["tolerations"].as_array().cloned().unwrap_or_default();
    let host = (spec["hostNetwork"] == true).then_some(BORNE_ON_HOST);
    for (key, effect) in BORNE.into_iter().chain(host) {
        let added = json!({ "key": key, "operator": "Exists", "effect": effect });
        let same = |held: &Value| {
            ["key", "operator", "effect"].iter().all(|field| held[field] == added[field])
                && held["value"].as_str().unwrap_or("").is_empty()
        };
        match all.iter_mut().find(|held| same(held)) {
            // One that ends after a time does not end any more.
            Some(held) => *held = added,
            None => all.push(added),
        }
    }
    all
}

/// The pod for a node. Source: `CreatePodTemplate`, `ReplaceDaemonSetPodNodeNameNodeAffinity`.
pub(super) fn pod(set: &DaemonSet, hash: &str, node: &str) -> Value {
    let mut pod = template::pod(&set.spec.template, &kinds::DAEMON_SETS, &set.metadata);
    let labels = &mut pod["metadata"]["labels"];
    if !labels.is_object() {
        *labels = Value::Object(Map::new());
    }
    labels[HASH_LABEL] = hash.into();
    if let Some(generation) = set.template_generation() {
        labels[GENERATION_LABEL] = generation.into();
    }
    pod["spec"]["tolerations"] = tolerations(&pod["spec"]).into();
    let affinity = &mut pod["spec"]["affinity"]["nodeAffinity"];
    let named = json!({ "key": NAME_FIELD, "operator": "In", "values": [node] });
    affinity["requiredDuringSchedulingIgnoredDuringExecution"] =
        json!({ "nodeSelectorTerms": [{ "matchFields": [named] }] });
    pod
}
