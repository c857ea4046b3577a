//! The cluster as the scheduler sees it: per node what it offers and what is used, kept up to date change by change.
//! A pod that was just placed is assumed to be there until the API server says so.

use std::collections::HashMap;
use std::sync::Arc;

use crate::resources::Resources;
use crate::types::{Node, Pod};

/// A node with the pods on it.
#[derive(Debug, Clone, Default)]
pub struct NodeState {
    /// The node; `None` while only pods of it are known.
    pub node: Option<Arc<Node>>,
    /// What its pods ask for together.
    pub requested: Resources,
    /// The same for comparing nodes: cpu in thousandths and memory in bytes, with defaults for pods that ask nothing.
    pub scored: (i128, i128),
    /// Its pods, by uid.
    pub pods: HashMap<String, Arc<Pod>>,
}

impl NodeState {
    fn add(&mut self, pod: Arc<Pod>) {
        self.requested.add(&pod.requests);
        let (cpu, memory) = pod.requests.for_scoring();
        self.scored.0 += cpu;
        self.scored.1 += memory;
        self.pods.insert(pod.uid.clone(), pod);
    }

    fn remove(&mut self, uid: &str) {
        if let Some(pod) = self.pods.remove(uid) {
            self.requested.subtract(&pod.requests);
            let (cpu, memory) = pod.requests.for_scoring();
            self.scored.0 -= cpu;
            self.scored.1 -= memory;
        }
    }
}

/// The cluster.
#[derive(Debug, Default)]
pub struct Cache {
    nodes: HashMap<String, NodeState>,
    /// Where each pod is, by uid.
    places: HashMap<String, String>,
}

impl Cache {
    /// The nodes that are there, with their names.
    pub fn nodes(&self) -> impl Iterator<Item = (&Arc<Node>, &NodeState)> {
        self.nodes.values().filter_map(|state| state.node.as_ref().map(|node| (node, state)))
    }

    /// One node, as it was last told.
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name).and_then(|state| state.node.as_ref())
    }

    /// Puts a node.
    pub fn put_node(&mut self, node: Node) {
        let name = node.name.clone();
        self.nodes.entry(name).or_default().node = Some(Arc::new(node));
    }

    /// Takes a node out; its pods stay known until they go.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(state) = self.nodes.get_mut(name) {
            state.node = None;
            self.drop_if_unused(name);
        }
    }

    /// Puts a pod that occupies its node, or assumes so: `pod.node` is where.
    pub fn put_pod(&mut self, pod: Arc<Pod>) {
        self.remove_pod(&pod.uid);
        self.places.insert(pod.uid.clone(), pod.node.clone());
        self.nodes.entry(pod.node.clone()).or_default().add(pod);
    }

    /// Takes a pod out; gives whether it was there.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(name) = self.places.remove(uid) else { return false };
        if let Some(state) = self.nodes.get_mut(&name) {
            state.remove(uid);
        }
        self.drop_if_unused(&name);
        true
    }

    /// Whether a pod is on a node, or assumed to be.
    pub fn has_pod(&self, uid: &str) -> bool {
        self.places.contains_key(uid)
    }

    fn drop_if_unused(&mut self, name: &str) {
        if self.nodes.get(name).is_some_and(|state| state.node.is_none() && state.pods.is_empty()) {
            self.nodes.remove(name);
        }
    }
}
