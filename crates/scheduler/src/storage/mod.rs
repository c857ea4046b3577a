//! Claims and volumes as the scheduler sees them: what the API server has told, and over it what the scheduler itself has
//! decided and not yet read back. Source: `plugins/volumebinding`.

pub mod matching;
pub mod types;

pub(crate) mod bind;
pub(crate) mod watch;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use api::Key;

use crate::followers::Followers;
use crate::types::Pod;
use matching::Plan;
use types::{Capacity, Claim, Class, CsiNode, Driver, Holder, Volume};

/// What the scheduler has decided of a claim or a volume.
#[derive(Debug)]
struct Decided<T> {
    what: T,
    /// The pod for which it was decided.
    pod: Arc<str>,
    /// The version that says so; none while nothing is written.
    written: Option<i64>,
}

/// Claims, volumes, their classes, and what drivers say.
#[derive(Debug, Default)]
pub struct Storage {
    claims: HashMap<Key, Arc<Claim>>,
    volumes: HashMap<String, Arc<Volume>>,
    /// Names of volumes.
    by_class: HashMap<String, BTreeSet<String>>,
    classes: HashMap<String, Arc<Class>>,
    csi_nodes: HashMap<String, Arc<CsiNode>>,
    drivers: HashMap<String, Driver>,
    /// By class.
    capacities: HashMap<String, BTreeMap<Key, Arc<Capacity>>>,
    /// Volumes that are kept for claims.
    kept: HashMap<String, Decided<Holder>>,
    /// Nodes for which volumes of claims are to be made.
    chosen: HashMap<Key, Decided<String>>,
    /// How many pods on nodes name a claim.
    users: HashMap<Key, usize>,
    /// Volumes that are attached to a node, by its name and the attachment's.
    attached: HashMap<String, BTreeMap<String, String>>,
    /// Who waits for what becomes of a claim.
    waiting: Followers,
}

impl Storage {
    /// A claim.
    pub fn claim(&self, key: &Key) -> Option<&Arc<Claim>> {
        self.claims.get(key)
    }

    /// A volume.
    pub fn volume(&self, name: &str) -> Option<&Arc<Volume>> {
        self.volumes.get(name)
    }

    /// A class.
    pub fn class(&self, name: &str) -> Option<&Arc<Class>> {
        self.classes.get(name)
    }

    /// What the drivers of a node say.
    pub fn csi_node(&self, name: &str) -> Option<&Arc<CsiNode>> {
        self.csi_nodes.get(name)
    }

    /// Whether a driver tells how much it has left.
    fn tells_capacity(&self, driver: &str) -> bool {
        self.drivers.get(driver).is_some_and(|driver| driver.tells_capacity)
    }

    /// Whether pods with volumes of a driver go only where it is.
    pub fn needs_driver(&self, driver: &str) -> bool {
        self.drivers.get(driver).is_some_and(|driver| driver.needed)
    }

    /// What is left of a class, where.
    fn capacities(&self, class: &str) -> impl Iterator<Item = &Arc<Capacity>> {
        self.capacities.get(class).into_iter().flat_map(BTreeMap::values)
    }

    /// The volumes of a class, by name.
    fn of_class(&self, class: &str) -> impl Iterator<Item = &Arc<Volume>> {
        self.by_class.get(class).into_iter().flatten().filter_map(|name| self.volumes.get(name))
    }

    /// The claim that has a volume, or is to have it.
    fn holder<'a>(&'a self, volume: &'a Volume) -> Option<&'a Holder> {
        let decided = self.kept.get(&volume.version.key.name).map(|kept| &kept.what);
        decided.or(volume.claim.as_ref())
    }

    /// The node for which a claim's volume is made, or is to be made.
    fn node_of<'a>(&'a self, claim: &'a Claim) -> Option<&'a str> {
        let decided = self.chosen.get(&claim.version.key).map(|chosen| &chosen.what);
        decided.or(claim.node.as_ref()).map(String::as_str)
    }

    /// A claim is there, or gone; gives what was known of it.
    pub fn put_claim(&mut self, key: &Key, claim: Option<Arc<Claim>>) -> Option<Arc<Claim>> {
        let newest = claim.as_ref().map_or(i64::MAX, |claim| claim.version.revision);
        if self.chosen.get(key).is_some_and(|chosen| chosen.written.is_some_and(|at| at <= newest)) {
            self.chosen.remove(key);
        }
        let before = match claim {
            Some(claim) => self.claims.insert(key.clone(), claim),
            None => self.claims.remove(key),
        };
        self.waiting.wake(key);
        before
    }

    /// A volume is there, or gone; gives what was known of it.
    pub fn put_volume(&mut self, name: &str, volume: Option<Arc<Volume>>) -> Option<Arc<Volume>> {
        let newest = volume.as_ref().map_or(i64::MAX, |volume| volume.version.revision);
        if self.kept.get(name).is_some_and(|kept| kept.written.is_some_and(|at| at <= newest)) {
            self.kept.remove(name);
        }
        let holder = volume.as_ref().and_then(|volume| volume.claim.as_ref()).map(|held| held.key.clone());
        let class = volume.as_ref().map(|volume| volume.class.clone());
        let before = match volume {
            Some(volume) => self.volumes.insert(name.to_owned(), volume),
            None => self.volumes.remove(name),
        };
        let class_before = before.as_ref().map(|before| before.class.clone());
        if class_before != class {
            if let Some(class) = class_before {
                take(&mut self.by_class, &class, |names| names.remove(name));
            }
            if let Some(class) = class {
                self.by_class.entry(class).or_default().insert(name.to_owned());
            }
        }
        let holder_before = before.as_ref().and_then(|before| before.claim.as_ref()).map(|held| &held.key);
        for key in holder.iter().chain(holder_before) {
            self.waiting.wake(key);
        }
        before
    }

    /// A class is there, or gone; gives what was known of it.
    pub fn put_class(&mut self, name: &str, class: Option<Arc<Class>>) -> Option<Arc<Class>> {
        match class {
            Some(class) => self.classes.insert(name.to_owned(), class),
            None => self.classes.remove(name),
        }
    }

    /// The drivers of a node say something, or nothing more; gives what they said.
    pub fn put_csi_node(&mut self, name: &str, node: Option<Arc<CsiNode>>) -> Option<Arc<CsiNode>> {
        match node {
            Some(node) => self.csi_nodes.insert(name.to_owned(), node),
            None => self.csi_nodes.remove(name),
        }
    }

    /// A driver is there, or gone. Gives what it said.
    pub fn put_driver(&mut self, name: &str, driver: Option<Driver>) -> Option<Driver> {
        match driver {
            Some(driver) => self.drivers.insert(name.to_owned(), driver),
            None => self.drivers.remove(name),
        }
    }

    /// What is left somewhere, of a class that does not change. Gives what was known of it.
    pub fn put_capacity(&mut self, key: &Key, capacity: Arc<Capacity>) -> Option<Arc<Capacity>> {
        let of_class = self.capacities.entry(capacity.class.clone()).or_default();
        of_class.insert(key.clone(), capacity)
    }

    /// Nothing is known any more of what is left somewhere.
    pub fn remove_capacity(&mut self, key: &Key, class: &str) {
        take(&mut self.capacities, class, |held| held.remove(key));
    }

    /// Takes what a pod's plan needs: others see it as done.
    pub fn reserve(&mut self, plan: &Plan, pod: &Arc<str>) {
        for (volume, claim) in &plan.bindings {
            let (name, key) = (&volume.version.key.name, &claim.version.key);
            let held = self.volumes.get(name).and_then(|held| held.claim.as_ref());
            if held.is_none_or(|held| held.uid != claim.version.uid) {
                let what = Holder { key: key.clone(), uid: claim.version.uid.clone() };
                self.kept.entry(name.clone()).or_insert(Decided { what, pod: pod.clone(), written: None });
            }
        }
        for claim in &plan.provisions {
            if claim.node.as_deref() != Some(&plan.node) {
                let decided = Decided { what: plan.node.clone(), pod: pod.clone(), written: None };
                self.chosen.entry(claim.version.key.clone()).or_insert(decided);
            }
        }
    }

    /// Gives back what was taken for a pod and not written. Gives the volumes that others may have again.
    pub fn unreserve(&mut self, pod: &str) -> Vec<Arc<Volume>> {
        let mut free = Vec::new();
        self.kept.retain(|name, kept| {
            let stays = &*kept.pod != pod || kept.written.is_some();
            if !stays {
                free.extend(self.volumes.get(name).cloned());
            }
            stays
        });
        self.chosen.retain(|_, chosen| &*chosen.pod != pod || chosen.written.is_some());
        free
    }

    /// A volume is kept for its claim from this version on.
    fn volume_written(&mut self, name: &str, revision: i64) {
        let known = self.volumes.get(name).is_none_or(|held| held.version.revision >= revision);
        if known {
            self.kept.remove(name);
        } else if let Some(kept) = self.kept.get_mut(name) {
            kept.written = Some(revision);
        }
    }

    /// A claim says its node from this version on.
    fn claim_written(&mut self, key: &Key, revision: i64) {
        let known = self.claims.get(key).is_none_or(|held| held.version.revision >= revision);
        if known {
            self.chosen.remove(key);
        } else if let Some(chosen) = self.chosen.get_mut(key) {
            chosen.written = Some(revision);
        }
    }

    /// A node is gone or another: whoever waits for volumes on it has to look.
    pub fn wake_all(&self) {
        self.waiting.wake_all();
    }

    /// How many pods on nodes name a claim.
    pub fn users(&self, claim: &Key) -> usize {
        self.users.get(claim).copied().unwrap_or(0)
    }

    /// A pod came to a node.
    pub fn pod_placed(&mut self, pod: &Pod) {
        for used in pod.claims().filter(|used| !used.own) {
            *self.users.entry(Key::new(pod.key.namespace.as_str(), &*used.name)).or_default() += 1;
        }
    }

    /// A pod left its node: whoever sees to its volumes is told.
    pub fn pod_left(&mut self, pod: &Pod) {
        for used in pod.claims() {
            let key = Key::new(pod.key.namespace.as_str(), &*used.name);
            self.waiting.wake(&key);
            let left = self.users.get_mut(&key).filter(|_| !used.own).map(|users| {
                *users = users.saturating_sub(1);
                *users
            });
            if left == Some(0) {
                self.users.remove(&key);
            }
        }
    }

    /// The volumes that are attached to a node.
    pub fn attached(&self, node: &str) -> impl Iterator<Item = &str> {
        self.attached.get(node).into_iter().flat_map(BTreeMap::values).map(String::as_str)
    }

    /// A volume is attached to a node.
    pub fn attach(&mut self, attachment: &str, node: &str, volume: &str) {
        self.attached.entry(node.to_owned()).or_default().insert(attachment.to_owned(), volume.to_owned());
    }

    /// An attachment to a node is gone.
    pub fn detach(&mut self, attachment: &str, node: &str) {
        take(&mut self.attached, node, |held| held.remove(attachment));
    }
}

/// Takes something out of one of several sets, and the set if nothing is left.
fn take<S: IsEmpty, R>(sets: &mut HashMap<String, S>, name: &str, out: impl FnOnce(&mut S) -> R) {
    let Some(set) = sets.get_mut(name) else { return };
    out(set);
    if set.is_empty() {
        sets.remove(name);
    }
}

trait IsEmpty {
    fn is_empty(&self) -> bool;
}

impl<T> IsEmpty for BTreeSet<T> {
    fn is_empty(&self) -> bool {
        Self::is_empty(self)
    }
}

impl<K, V> IsEmpty for BTreeMap<K, V> {
    fn is_empty(&self) -> bool {
        Self::is_empty(self)
    }
}
