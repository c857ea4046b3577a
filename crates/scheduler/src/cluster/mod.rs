//! The cluster as the scheduler sees it, kept up to date change by change: what each node offers and what is used of it,
//! and indexes over its pods, so that placing one looks at no other. A pod that was just placed is assumed to be there
//! until the API server says so.

pub mod groups;
pub mod nominated;
pub mod order;
pub mod selected;
pub mod terms;
pub mod topology;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use groups::{Counts, Groups, Slot};
use nominated::Nominated;
use order::Order;
use selected::Selected;
use terms::Terms;
use topology::{Column, Topology};

use crate::budgets::Budgets;
use crate::devices::Devices;
use crate::resources::Resources;
use crate::storage::Storage;
use crate::types::{HostPort, Matcher, Node, Pod};

/// A pod on a node.
#[derive(Debug, Clone)]
pub struct Placed {
    /// The pod.
    pub pod: Arc<Pod>,
    group: usize,
}

/// A node with the pods on it.
#[derive(Debug, Clone, Default)]
pub struct NodeState {
    /// Its place in the list of nodes.
    pub slot: Slot,
    name: String,
    node: Option<Arc<Node>>,
    /// What its pods ask for together.
    pub requested: Resources,
    /// The same for comparing nodes: thousandths of cores and bytes of memory, with a little for who asks nothing.
    pub compared: (i128, i128),
    /// The ports that its pods take.
    pub ports: Vec<HostPort>,
    /// Its pods.
    pub pods: Vec<Placed>,
}

impl NodeState {
    /// The node. States that are handed out belong to nodes that are there.
    pub fn node(&self) -> &Node {
        static NONE: std::sync::OnceLock<Node> = std::sync::OnceLock::new();
        self.node.as_deref().unwrap_or_else(|| NONE.get_or_init(Node::default))
    }

    /// Counts a pod in, for this state alone: no index sees it.
    pub fn add(&mut self, pod: &Arc<Pod>) {
        self.enter(Placed { pod: pod.clone(), group: usize::MAX });
    }

    fn enter(&mut self, placed: Placed) {
        let spec = &placed.pod.spec;
        self.requested.add(&spec.requests);
        self.compared.0 += spec.compared.0;
        self.compared.1 += spec.compared.1;
        self.ports.extend(spec.ports.iter().cloned());
        self.pods.push(placed);
    }

    /// Counts a pod out, for this state alone.
    pub fn remove(&mut self, uid: &str) -> Option<Placed> {
        let at = self.pods.iter().position(|placed| &*placed.pod.uid == uid)?;
        let placed = self.pods.swap_remove(at);
        let spec = &placed.pod.spec;
        self.requested.subtract(&spec.requests);
        self.compared.0 -= spec.compared.0;
        self.compared.1 -= spec.compared.1;
        for port in &spec.ports {
            if let Some(at) = self.ports.iter().position(|held| held == port) {
                self.ports.swap_remove(at);
            }
        }
        Some(placed)
    }
}

/// The cluster.
#[derive(Debug, Default)]
pub struct Cluster {
    states: Vec<NodeState>,
    free: Vec<Slot>,
    by_name: HashMap<String, Slot>,
    /// Where each pod is, by uid.
    places: HashMap<Arc<str>, Slot>,
    order: Order,
    /// On how many nodes each image is, and how large it is there.
    images: HashMap<String, HashMap<Slot, i64>>,
    /// Pods by their labels.
    pub groups: Groups,
    /// What pods on nodes say about others.
    pub terms: Terms,
    /// Places by their labels.
    topology: Topology,
    /// Pods for which room is being made.
    pub nominated: Nominated,
    /// Which objects select which pods.
    pub selected: Selected,
    /// Disruption budgets.
    pub budgets: Budgets,
    /// Claims and volumes.
    pub storage: Storage,
    /// Claims of devices, and what drivers offer.
    pub devices: Devices,
}

impl Cluster {
    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.order.slots().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The nodes that are there, those of different zones in turn.
    pub fn slots(&self) -> &[Slot] {
        self.order.slots()
    }

    /// A node by its place.
    pub fn state(&self, slot: Slot) -> &NodeState {
        &self.states[slot as usize]
    }

    /// The nodes that are there.
    pub fn states(&self) -> impl Iterator<Item = &NodeState> {
        self.slots().iter().map(|slot| self.state(*slot))
    }

    /// A node by name, if it is there.
    pub fn named(&self, name: &str) -> Option<&NodeState> {
        let state = self.state(*self.by_name.get(name)?);
        state.node.is_some().then_some(state)
    }

    /// One node, as it was last told.
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.state(*self.by_name.get(name)?).node.as_ref()
    }

    fn slot(&mut self, name: &str) -> Slot {
        if let Some(slot) = self.by_name.get(name) {
            return *slot;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.states.push(NodeState::default());
            Slot::try_from(self.states.len() - 1).unwrap_or(Slot::MAX)
        });
        self.states[slot as usize] = NodeState { slot, name: name.to_owned(), ..NodeState::default() };
        self.by_name.insert(name.to_owned(), slot);
        slot
    }

    /// Puts a node.
    pub fn put_node(&mut self, node: Arc<Node>) {
        let slot = self.slot(&node.name);
        let before = self.states[slot as usize].node.replace(node.clone());
        self.topology.put(slot, Some(&node));
        self.order.put(slot, &node);
        if before.as_ref().is_none_or(|before| before.images != node.images) {
            self.take_images(slot, before.as_deref());
            for (name, size) in &node.images {
                self.images.entry(name.clone()).or_default().insert(slot, *size);
            }
        }
    }

    fn take_images(&mut self, slot: Slot, node: Option<&Node>) {
        for (name, _) in node.iter().flat_map(|node| &node.images) {
            if let Some(nodes) = self.images.get_mut(name) {
                nodes.remove(&slot);
                if nodes.is_empty() {
                    self.images.remove(name);
                }
            }
        }
    }

    /// Takes a node out; its pods stay known until they go. Gives the node if it was there.
    pub fn remove_node(&mut self, name: &str) -> Option<Arc<Node>> {
        let slot = *self.by_name.get(name)?;
        let node = self.states[slot as usize].node.take();
        self.take_images(slot, node.as_deref());
        self.topology.put(slot, None);
        self.order.remove(slot);
        self.free_if_unused(slot);
        node
    }

    /// The nodes that have an image, with its size there.
    pub fn image(&self, name: &str) -> Option<&HashMap<Slot, i64>> {
        self.images.get(name)
    }

    /// Whether any node has told of images.
    #[cfg(test)]
    pub(crate) fn has_images(&self) -> bool {
        !self.images.is_empty()
    }

    /// Puts a pod that occupies its node, or assumes so: `pod.node` is where. Gives what was known of it before.
    pub fn put_pod(&mut self, pod: Arc<Pod>) -> Option<Arc<Pod>> {
        let before = self.remove_pod(&pod.uid);
        let slot = self.slot(&pod.node);
        self.places.insert(pod.uid.clone(), slot);
        let group = self.groups.enter(&pod.key.namespace, &pod.labels, slot, !pod.terminating);
        self.terms.change(&pod.spec, slot, 1);
        self.storage.pod_placed(&pod);
        self.nominated.remove(&pod.uid);
        self.states[slot as usize].enter(Placed { pod, group });
        before
    }

    /// Takes a pod out; gives it if it was there.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<Pod>> {
        let slot = self.places.remove(uid)?;
        let placed = self.states[slot as usize].remove(uid)?;
        self.groups.leave(placed.group, slot, !placed.pod.terminating);
        self.terms.change(&placed.pod.spec, slot, -1);
        self.storage.pod_left(&placed.pod);
        self.devices.pod_left(&placed.pod);
        self.free_if_unused(slot);
        Some(placed.pod)
    }

    /// A pod on a node, or assumed to be.
    pub fn pod(&self, uid: &str) -> Option<&Arc<Pod>> {
        let state = self.state(*self.places.get(uid)?);
        state.pods.iter().map(|placed| &placed.pod).find(|pod| &*pod.uid == uid)
    }

    /// How many pods are on nodes, or assumed to be.
    pub fn pods(&self) -> usize {
        self.places.len()
    }

    /// Whether a pod is on a node, or assumed to be.
    pub fn has_pod(&self, uid: &str) -> bool {
        self.places.contains_key(uid)
    }

    /// Another decision begins: what nobody asks for any more may be forgotten. Within one, nothing is that was asked for.
    pub fn begin(&mut self) {
        self.topology.forget_spare([&self.terms.spoken, &self.nominated.spoken]);
        self.groups.begin();
    }

    /// Makes sure that the pods which all of these mean are counted.
    pub fn count(&mut self, question: &[Matcher]) {
        self.groups.count(question, placed(&self.states));
    }

    /// How many pods are where which all of these mean. Those that were not asked for by [`Self::count`] are counted now,
    /// by looking at every pod.
    pub fn counts(&self, question: &[Matcher]) -> Cow<'_, Counts> {
        match self.groups.counts(question) {
            Some(counts) => Cow::Borrowed(counts),
            None => Cow::Owned(self.groups.count_once(question, placed(&self.states))),
        }
    }

    /// Makes sure that the values of node labels are known, and those that the terms of pods on nodes speak of.
    pub fn tell_places<'a>(&mut self, keys: impl Iterator<Item = &'a str>) {
        let states = &self.states;
        keys.for_each(|key| self.topology.add(key, there(states)));
        for spoken in [&mut self.terms.spoken, &mut self.nominated.spoken] {
            self.topology.add_news(spoken, || there(states));
        }
    }

    /// The values that nodes have for a label. Those that were not asked for by [`Self::tell_places`] are read now, off
    /// every node.
    pub fn column(&self, key: &str) -> Cow<'_, Column> {
        match self.topology.column(key) {
            Some(column) => Cow::Borrowed(column),
            None => Cow::Owned(Column::new(key, there(&self.states))),
        }
    }

    /// How many labels of nodes are kept as columns.
    #[cfg(test)]
    pub(crate) fn known_labels(&self) -> usize {
        self.topology.len()
    }

    fn free_if_unused(&mut self, slot: Slot) {
        let state = &mut self.states[slot as usize];
        if state.node.is_none() && state.pods.is_empty() {
            self.by_name.remove(&state.name);
            *state = NodeState { slot, ..NodeState::default() };
            self.free.push(slot);
        }
    }
}

/// The nodes that are there.
fn there(states: &[NodeState]) -> impl Iterator<Item = (Slot, &Node)> {
    states.iter().filter_map(|state| Some((state.slot, state.node.as_deref()?)))
}

/// The pods on nodes: group, node and whether they stay.
fn placed(states: &[NodeState]) -> impl Iterator<Item = (usize, Slot, bool)> {
    states
        .iter()
        .flat_map(|state| state.pods.iter().map(|placed| (placed.group, state.slot, !placed.pod.terminating)))
}
