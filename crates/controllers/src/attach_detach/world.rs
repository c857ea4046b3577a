//! What is to be attached and what is: each pod and attachment is read once, when it changes, and a pass over a volume
//! or a node meets its own and no others. Source: `attachdetach/cache`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use api::Key;
use jiff::Timestamp;
use serde_json::Value;

use super::source::Handle;
use super::types::{Failure, Traits};
use crate::figures::made::{Counts, count_one};

/// What is worked on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Item {
    /// Where a volume is to be attached.
    Volume(Handle),
    /// What is to be detached from a node, and what its status says.
    Node(String),
}

/// Where an attachment's driver finds the rest of what it has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A volume, by its name.
    Volume(String),
    /// A spec that a pod's volume stands for.
    Inline(Value),
}

/// A volume that a pod needs on its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Need {
    /// The name of its attachment.
    pub(super) id: String,
    pub(super) volume: Handle,
    pub(super) node: String,
    pub(super) source: Source,
    /// What users are told that it is called.
    pub(super) name: String,
    /// Whether other nodes may have it too.
    pub(super) shared: bool,
}

/// A pod, what it needs and what that depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PodNeeds {
    pub(super) uid: String,
    pub(super) node: String,
    /// By the name of its volume in the pod.
    pub(super) needs: BTreeMap<String, Arc<Need>>,
    pub(super) claims: BTreeSet<Key>,
}

/// What is to be attached, since pods need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) need: Arc<Need>,
    /// By key: the uid.
    pub(super) pods: BTreeMap<Key, String>,
    /// Since when somebody outside is asked to attach it.
    pub(super) asked: Option<Timestamp>,
    /// What users were told last: nothing is told twice.
    pub(super) told: Option<Told>,
}

/// What users were told of something that cannot be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// Another node has it.
    Elsewhere,
    /// The driver failed.
    Failed(Failure),
    /// Somebody else deletes the attachment of this uid.
    Ending(String),
}

/// An attachment as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) uid: String,
    pub(super) node: String,
    /// Which volume it is of, if that is known.
    pub(super) volume: Option<Handle>,
    pub(super) attached: bool,
    pub(super) terminating: bool,
    pub(super) failure: Option<Failure>,
    /// Since when nobody needs it.
    pub(super) idle_since: Option<Timestamp>,
    /// Whether this controller has had it deleted.
    pub(super) released: bool,
}

type Groups<K> = HashMap<K, BTreeSet<String>>;

fn add<K: std::hash::Hash + Eq + Clone>(groups: &mut Groups<K>, key: &K, id: &str) {
    groups.entry(key.clone()).or_default().insert(id.to_owned());
}

fn remove<K: std::hash::Hash + Eq>(groups: &mut Groups<K>, key: &K, id: &str) {
    if let Some(ids) = groups.get_mut(key) {
        ids.remove(id);
        if ids.is_empty() {
            groups.remove(key);
        }
    }
}

/// Everything that is wanted or there.
#[derive(Debug, Default)]
pub(super) struct World {
    pods: HashMap<Key, PodNeeds>,
    by_claim: HashMap<Key, BTreeSet<Key>>,
    wants: HashMap<String, Want>,
    held: HashMap<String, Held>,
    by_volume: Groups<Handle>,
    by_node: Groups<String>,
    /// Of the nodes that are there.
    nodes: HashMap<String, Traits>,
}

impl World {
    pub(super) fn pod(&self, key: &Key) -> Option<&PodNeeds> {
        self.pods.get(key)
    }

    pub(super) fn pods(&self) -> Vec<Key> {
        self.pods.keys().cloned().collect()
    }

    pub(super) fn pods_of_claim(&self, claim: &Key) -> Vec<Key> {
        self.by_claim.get(claim).into_iter().flatten().cloned().collect()
    }

    /// Volumes that are attached and that are to be, by plugin. Source: `getTotalVolumesCount`.
    pub(super) fn totals(&self) -> Counts {
        let mut counts = Counts::new();
        for want in self.wants.values() {
            count_one(&mut counts, [&want.need.volume.plugin(), "desired_state_of_world"]);
        }
        for held in self.held.values().filter(|held| held.attached) {
            let plugin = held.volume.as_ref().map_or_else(|| "N/A".to_owned(), Handle::plugin);
            count_one(&mut counts, [&plugin, "actual_state_of_world"]);
        }
        counts
    }

    /// Volumes that pods use, by node and plugin. Source: `getVolumeInUseCount`.
    pub(super) fn in_use(&self) -> Counts {
        let mut counts = Counts::new();
        for need in self.pods.values().flat_map(|pod| pod.needs.values()) {
            count_one(&mut counts, [&need.node, &need.volume.plugin()]);
        }
        counts
    }

    pub(super) fn want(&self, id: &str) -> Option<&Want> {
        self.wants.get(id)
    }

    pub(super) fn want_mut(&mut self, id: &str) -> Option<&mut Want> {
        self.wants.get_mut(id)
    }

    pub(super) fn held(&self, id: &str) -> Option<&Held> {
        self.held.get(id)
    }

    pub(super) fn held_mut(&mut self, id: &str) -> Option<&mut Held> {
        self.held.get_mut(id)
    }

    /// The attachments of a volume, wanted or there, by name.
    pub(super) fn of_volume(&self, volume: &Handle) -> Vec<String> {
        self.by_volume.get(volume).into_iter().flatten().cloned().collect()
    }

    /// The attachments of a node, wanted or there, by name.
    pub(super) fn of_node(&self, node: &str) -> Vec<String> {
        self.by_node.get(node).into_iter().flatten().cloned().collect()
    }

    /// What a node says of itself; nothing of one that is not there.
    pub(super) fn traits(&self, node: &str) -> Traits {
        self.nodes.get(node).copied().unwrap_or_default()
    }

    /// Takes in what a node says of itself, or that it is gone.
    pub(super) fn put_node(&mut self, name: &str, new: Option<Traits>) {
        match new {
            Some(traits) => drop(self.nodes.insert(name.to_owned(), traits)),
            None => drop(self.nodes.remove(name)),
        }
    }

    pub(super) fn knows_node(&self, node: &str) -> bool {
        self.by_node.contains_key(node)
    }

    /// Takes in what a pod needs now, or that it is gone; gives what has to be looked at.
    pub(super) fn put_pod(&mut self, key: &Key, new: Option<PodNeeds>) -> Vec<Item> {
        let old = self.pods.remove(key).unwrap_or_default();
        for claim in &old.claims {
            if let Some(pods) = self.by_claim.get_mut(claim) {
                pods.remove(key);
                if pods.is_empty() {
                    self.by_claim.remove(claim);
                }
            }
        }
        let mut touched = Vec::new();
        let kept = new.as_ref().filter(|new| new.uid == old.uid);
        for need in old.needs.values() {
            if !kept.is_some_and(|new| new.needs.values().any(|held| held == need)) {
                self.unwant(need, key);
                touched.extend([Item::Volume(need.volume.clone()), Item::Node(need.node.clone())]);
            }
        }
        let Some(new) = new else { return touched };
        for claim in &new.claims {
            self.by_claim.entry(claim.clone()).or_default().insert(key.clone());
        }
        for need in new.needs.values() {
            if self.add_want(need, key, &new.uid) {
                touched.extend([Item::Volume(need.volume.clone()), Item::Node(need.node.clone())]);
            }
        }
        self.pods.insert(key.clone(), new);
        touched
    }

    /// Whether that is news.
    fn add_want(&mut self, need: &Arc<Need>, pod: &Key, uid: &str) -> bool {
        add(&mut self.by_volume, &need.volume, &need.id);
        add(&mut self.by_node, &need.node, &need.id);
        let fresh = || Want { need: need.clone(), pods: BTreeMap::new(), asked: None, told: None };
        let want = self.wants.entry(need.id.clone()).or_insert_with(fresh);
        // Another pod may know it better: how it may be used can change.
        want.need = need.clone();
        want.pods.insert(pod.clone(), uid.to_owned()).is_none_or(|held| held != uid)
    }

    fn unwant(&mut self, need: &Need, pod: &Key) {
        let Some(want) = self.wants.get_mut(&need.id) else { return };
        want.pods.remove(pod);
        if want.pods.is_empty() {
            self.wants.remove(&need.id);
            self.tidy(&need.id, Some(&need.volume), &need.node);
        }
    }

    /// Takes in an attachment as it is now, or that it is gone; gives what has to be looked at.
    pub(super) fn put_attachment(&mut self, id: &str, new: Option<Held>) -> Vec<Item> {
        let old = self.held.remove(id);
        let mut touched = Vec::new();
        if let Some(old) = &old {
            touched.extend(items(old));
            self.tidy(id, old.volume.as_ref(), &old.node);
        }
        if let Some(mut new) = new {
            if let Some(old) = old.filter(|old| old.uid == new.uid) {
                new.volume = new.volume.or(old.volume);
                new.idle_since = old.idle_since;
                new.released = old.released;
            }
            if let Some(volume) = &new.volume {
                add(&mut self.by_volume, volume, id);
            }
            self.by_node.entry(new.node.clone()).or_default().insert(id.to_owned());
            touched.extend(items(&new));
            self.held.insert(id.to_owned(), new);
        } else if let Some(want) = self.wants.get_mut(id).filter(|_| !touched.is_empty()) {
            // Who was asked is asked no more.
            want.asked = None;
        }
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    /// Takes a name out of the groups that nothing keeps it in any more.
    fn tidy(&mut self, id: &str, volume: Option<&Handle>, node: &String) {
        let want = self.wants.get(id).map(|want| &want.need);
        let held = self.held.get(id);
        let keeps_volume = |volume: &Handle| {
            want.is_some_and(|need| need.volume == *volume)
                || held.is_some_and(|held| held.volume.as_ref() == Some(volume))
        };
        let keeps_node =
            want.is_some_and(|need| need.node == *node) || held.is_some_and(|held| held.node == *node);
        if let Some(volume) = volume.filter(|volume| !keeps_volume(volume)) {
            remove(&mut self.by_volume, volume, id);
        }
        if !keeps_node {
            remove(&mut self.by_node, node, id);
        }
    }
}

fn items(held: &Held) -> impl Iterator<Item = Item> + use<> {
    let volume = held.volume.clone().map(Item::Volume);
    [Item::Node(held.node.clone())].into_iter().chain(volume)
}
