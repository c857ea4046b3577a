//! Pods that wait for room that is being made on a node: others of no higher priority leave it to them.
//! Source: `backend/queue/nominator.go`.

use std::collections::HashMap;
use std::sync::Arc;

use super::topology::Spoken;
use crate::types::Pod;

/// The pods that wait for room, by node.
#[derive(Debug, Default)]
pub struct Nominated {
    by_node: HashMap<String, Vec<Arc<Pod>>>,
    nodes: HashMap<Arc<str>, String>,
    /// The labels of nodes by which they must not be with others.
    pub(super) spoken: Spoken,
}

impl Nominated {
    /// A pod waits for room on a node from now on; an empty name: on none.
    pub fn put(&mut self, pod: Arc<Pod>, node: &str) {
        self.remove(&pod.uid);
        if !node.is_empty() {
            self.nodes.insert(pod.uid.clone(), node.to_owned());
            self.speak(&pod, 1);
            self.by_node.entry(node.to_owned()).or_default().push(pod);
        }
    }

    /// A pod waits no more.
    pub fn remove(&mut self, uid: &str) {
        let Some(node) = self.nodes.remove(uid) else { return };
        let Some(pods) = self.by_node.get_mut(&node) else { return };
        let gone = pods.iter().position(|pod| &*pod.uid == uid).map(|at| pods.remove(at));
        if pods.is_empty() {
            self.by_node.remove(&node);
        }
        if let Some(pod) = gone {
            self.speak(&pod, -1);
        }
    }

    fn speak(&mut self, pod: &Pod, by: i64) {
        for term in &pod.spec.anti_affinity {
            self.spoken.change(&term.topology_key, by);
        }
    }

    /// The node on which a pod waits for room.
    pub fn node_of(&self, uid: &str) -> Option<&str> {
        self.nodes.get(uid).map(String::as_str)
    }

    /// The pods that wait for room on a node.
    pub fn on(&self, node: &str) -> &[Arc<Pod>] {
        if self.by_node.is_empty() {
            return &[];
        }
        self.by_node.get(node).map_or(&[], Vec::as_slice)
    }

    /// Whether any of them must not be with others.
    pub fn has_anti_affinity(&self) -> bool {
        !self.spoken.is_empty()
    }
}
