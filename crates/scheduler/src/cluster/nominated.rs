//! Pods that wait for room that is being made on a node: others of no higher priority leave it to them.
//! Source: `backend/queue/nominator.go`.

use std::collections::HashMap;
use std::sync::Arc;

use crate::types::Pod;

/// The pods that wait for room, by node.
#[derive(Debug, Default)]
pub struct Nominated {
    by_node: HashMap<String, Vec<Arc<Pod>>>,
    nodes: HashMap<Arc<str>, String>,
}

impl Nominated {
    /// A pod waits for room on a node from now on; an empty name: on none.
    pub fn put(&mut self, pod: Arc<Pod>, node: &str) {
        self.remove(&pod.uid);
        if !node.is_empty() {
            self.nodes.insert(pod.uid.clone(), node.to_owned());
            self.by_node.entry(node.to_owned()).or_default().push(pod);
        }
    }

    /// A pod waits no more.
    pub fn remove(&mut self, uid: &str) {
        let Some(node) = self.nodes.remove(uid) else { return };
        if let Some(pods) = self.by_node.get_mut(&node) {
            pods.retain(|pod| &*pod.uid != uid);
            if pods.is_empty() {
                self.by_node.remove(&node);
            }
        }
    }

    /// The node on which a pod waits for room.
    pub fn node_of(&self, uid: &str) -> Option<&str> {
        self.nodes.get(uid).map(String::as_str)
    }

    /// The pods that wait for room on a node.
    pub fn on(&self, node: &str) -> &[Arc<Pod>] {
        self.by_node.get(node).map_or(&[], Vec::as_slice)
    }

    /// Whether any of them must not be with others.
    pub fn has_anti_affinity(&self) -> bool {
        self.by_node.values().flatten().any(|pod| !pod.spec.anti_affinity.is_empty())
    }

    /// The labels of nodes that they speak of so.
    pub(super) fn topology_keys(&self) -> impl Iterator<Item = &str> {
        let terms = self.by_node.values().flatten().flat_map(|pod| &pod.spec.anti_affinity);
        terms.map(|term| term.topology_key.as_str())
    }
}
