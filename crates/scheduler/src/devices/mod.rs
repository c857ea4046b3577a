//! Claims of devices as the scheduler sees them: what the API server has told, and over it what the scheduler itself has
//! decided and not read back yet. Source: `plugins/dynamicresources`.

pub mod allocate;
pub mod capacity;
pub mod extended;
pub mod of_pod;
pub mod outcome;
pub mod pools;
pub mod types;

mod constraint;
mod decode;

pub(crate) mod bind;
pub(crate) mod watch;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use api::Key;
use api::quantity::Quantity;
use jiff::Timestamp;

use crate::followers::Followers;
use crate::types::Pod;
use pools::Generation;
use types::{Allocation, Amounts, Claim, Class, DeviceId, Slice, TaintRule};

/// By this and its name every class stands for a resource. Source: `resource/v1.ResourceDeviceClassPrefix`.
pub const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";

/// When a class was made, and its name.
type Standing = (Reverse<Option<Timestamp>>, String);

/// What a claim is to get.
#[derive(Debug)]
struct Decided {
    /// The claim, as it was then.
    claim: Arc<Claim>,
    what: Arc<Allocation>,
    /// The pod for which it was decided.
    pod: Arc<str>,
    /// The version that says so; none while nothing is written.
    written: Option<i64>,
}

/// Who has a device.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// Claims that have it alone.
    whole: usize,
    /// Claims that have a share of it.
    shares: usize,
    /// What the shares take of its capacity.
    consumed: Amounts,
}

/// Claims, slices and classes.
#[derive(Debug, Default)]
pub struct Devices {
    claims: HashMap<Key, Arc<Claim>>,
    /// By claim.
    decided: HashMap<Key, Decided>,
    slices: BTreeMap<String, Arc<Slice>>,
    /// Names of slices, by the one node that they are of.
    on_node: HashMap<String, BTreeSet<String>>,
    /// Names of slices of more than one node.
    elsewhere: BTreeSet<String>,
    /// By driver and pool.
    pools: HashMap<(String, String), BTreeMap<i64, Generation>>,
    classes: HashMap<String, Arc<Class>>,
    /// Classes that stand for a resource by its name, the youngest first, of equally old ones by name.
    standing: HashMap<String, BTreeSet<Standing>>,
    /// Claims for the extended resources of a pod, by its uid.
    special: HashMap<String, BTreeSet<Key>>,
    rules: BTreeMap<String, TaintRule>,
    used: HashMap<DeviceId, Use>,
    /// Who waits for what becomes of a claim.
    waiting: Followers,
    /// When the decision is made that is being made.
    pub now: Timestamp,
}

impl Devices {
    /// A claim.
    pub fn claim(&self, key: &Key) -> Option<&Arc<Claim>> {
        self.claims.get(key)
    }

    /// A class.
    pub fn class(&self, name: &str) -> Option<&Arc<Class>> {
        self.classes.get(name)
    }

    /// Whether it is decided what a claim gets, and nothing is read back of it yet.
    pub fn is_decided(&self, key: &Key) -> bool {
        self.decided.contains_key(key)
    }

    /// Who has a device; `None`: nobody.
    fn use_of(&self, id: &DeviceId) -> Option<&Use> {
        self.used.get(id)
    }

    /// The taints that others than their driver say of devices.
    fn rules(&self) -> impl Iterator<Item = &TaintRule> {
        self.rules.values()
    }

    /// A claim is there, or gone; gives what was known of it.
    pub fn put_claim(&mut self, key: &Key, claim: Option<Arc<Claim>>) -> Option<Arc<Claim>> {
        let settled = |decided: &Decided| {
            claim.as_ref().is_none_or(|claim| {
                let told = decided.written.is_some_and(|at| at <= claim.version.revision);
                told || claim.allocation.is_some() || claim.version.uid != decided.claim.version.uid
            })
        };
        if self.decided.get(key).is_some_and(settled) {
            drop(self.forget(key));
        }
        if let Some(allocation) = claim.as_ref().and_then(|claim| claim.allocation.as_ref()) {
            count(&mut self.used, allocation, true);
        }
        let before = match claim {
            Some(claim) => self.claims.insert(key.clone(), claim),
            None => self.claims.remove(key),
        };
        if let Some(allocation) = before.as_ref().and_then(|before| before.allocation.as_ref()) {
            count(&mut self.used, allocation, false);
        }
        if let Some(before) = before.as_ref().filter(|before| before.special) {
            take(&mut self.special, &before.owner, key);
        }
        if let Some(claim) = self.claims.get(key).filter(|claim| claim.special) {
            self.special.entry(claim.owner.clone()).or_default().insert(key.clone());
        }
        self.waiting.wake(key);
        before
    }

    /// A slice is there, or gone.
    pub fn put_slice(&mut self, name: &str, slice: Option<Arc<Slice>>) -> Option<Arc<Slice>> {
        let before = self.slices.remove(name);
        if let Some(before) = &before {
            let names = self.place_of(before);
            names.remove(name);
            self.put_in_pool(before, None);
            if let types::Place::Node(node) = &before.place {
                take(&mut self.on_node, node, name);
            }
        }
        if let Some(slice) = slice {
            self.place_of(&slice).insert(name.to_owned());
            self.put_in_pool(&slice, Some(slice.clone()));
            self.slices.insert(name.to_owned(), slice);
        }
        before
    }

    fn place_of(&mut self, slice: &Slice) -> &mut BTreeSet<String> {
        match &slice.place {
            types::Place::Node(node) => self.on_node.entry(node.clone()).or_default(),
            _ => &mut self.elsewhere,
        }
    }

    /// The slices that may have devices of a node, by name within those of the node and the others.
    fn slices_for(&self, node: &str) -> impl Iterator<Item = &Arc<Slice>> {
        let own = self.on_node.get(node).into_iter().flatten();
        own.chain(&self.elsewhere).filter_map(|name| self.slices.get(name))
    }

    /// A slice is in its pool, or there no more.
    fn put_in_pool(&mut self, told: &Slice, slice: Option<Arc<Slice>>) {
        let key = (told.driver.clone(), told.pool.clone());
        let pool = self.pools.entry(key.clone()).or_default();
        let generation = pool.entry(told.generation).or_default();
        generation.put(&told.name, slice);
        if generation.is_empty() {
            pool.remove(&told.generation);
        }
        if pool.is_empty() {
            self.pools.remove(&key);
        }
    }

    /// What drivers told of a pool, by generation.
    fn generations(&self, driver: &str, pool: &str) -> Option<&BTreeMap<i64, Generation>> {
        self.pools.get(&(driver.to_owned(), pool.to_owned()))
    }

    /// A class is there, or gone; gives what was known of it.
    pub fn put_class(&mut self, name: &str, class: Option<Arc<Class>>) -> Option<Arc<Class>> {
        let stands =
            |class: &Class| Some((class.extended.clone()?, (Reverse(class.created), name.to_owned())));
        let new = class.as_deref().and_then(stands);
        let before = match class {
            Some(class) => self.classes.insert(name.to_owned(), class),
            None => self.classes.remove(name),
        };
        if let Some((resource, entry)) = before.as_deref().and_then(stands) {
            take(&mut self.standing, &resource, &entry);
        }
        if let Some((resource, entry)) = new {
            self.standing.entry(resource).or_default().insert(entry);
        }
        before
    }

    /// The class that stands for an extended resource. Source: `ExtendedResourceCache.GetDeviceClass`.
    pub fn class_for(&self, resource: &str) -> Option<&Arc<Class>> {
        if let Some(name) = resource.strip_prefix(IMPLICIT) {
            return self.class(name);
        }
        let (_, name) = self.standing.get(resource)?.first()?;
        self.class(name)
    }

    /// A claim that was made for the extended resources of a pod.
    fn special_of(&self, pod: &str) -> Option<&Arc<Claim>> {
        self.special.get(pod)?.iter().find_map(|key| self.claims.get(key))
    }

    /// A rule about taints is there, or gone; gives what was known of it.
    pub fn put_rule(&mut self, name: &str, rule: Option<TaintRule>) -> Option<TaintRule> {
        match rule {
            Some(rule) => self.rules.insert(name.to_owned(), rule),
            None => self.rules.remove(name),
        }
    }

    /// Takes devices for a claim: others see them as taken.
    pub fn decide(&mut self, claim: &Arc<Claim>, what: Arc<Allocation>, pod: &Arc<str>) {
        let key = if claim.is_unmade() { unmade(&claim.version.key, pod) } else { claim.version.key.clone() };
        self.forget(&key);
        count(&mut self.used, &what, true);
        self.decided.insert(key, Decided { claim: claim.clone(), what, pod: pod.clone(), written: None });
    }

    /// The claim that was still to be made for a pod is made, and says what it got from this version on.
    fn made(&mut self, claim: &Arc<Claim>, pod: &Arc<str>) {
        let key = &claim.version.key;
        let Some(decided) = self.decided.remove(&unmade(key, pod)) else { return };
        let revision = claim.version.revision;
        let decided = Decided { claim: claim.clone(), written: Some(revision), ..decided };
        self.decided.insert(key.clone(), decided);
        if self.claims.get(key).is_some_and(|held| held.version.revision >= revision) {
            self.forget(key);
        }
    }

    /// A claim that was made for a pod is deleted again. Of one that nobody has told of yet nobody may ever tell.
    fn deleted(&mut self, key: &Key) {
        if !self.claims.contains_key(key) {
            self.forget(key);
        }
    }

    /// Gives back what was taken for a pod and is not written. Gives the claims that are free again.
    pub fn give_back(&mut self, pod: &str) -> Vec<Arc<Claim>> {
        let of_pod = |decided: &Decided| &*decided.pod == pod && decided.written.is_none();
        let keys: Vec<Key> =
            self.decided.iter().filter(|(_, held)| of_pod(held)).map(|(key, _)| key.clone()).collect();
        let free = |key: &Key| {
            let claim = self.forget(key)?;
            if claim.is_unmade() { Some(claim) } else { self.claims.get(key).cloned() }
        };
        keys.iter().filter_map(free).collect()
    }

    fn forget(&mut self, key: &Key) -> Option<Arc<Claim>> {
        let decided = self.decided.remove(key)?;
        count(&mut self.used, &decided.what, false);
        Some(decided.claim)
    }

    /// A claim says what it got from this version on.
    fn written(&mut self, key: &Key, revision: i64) {
        let known = self.claims.get(key).is_none_or(|held| held.version.revision >= revision);
        if known {
            self.forget(key);
        } else if let Some(decided) = self.decided.get_mut(key) {
            decided.written = Some(revision);
        }
    }

    /// A pod left its node: whoever waits for its devices is told.
    pub fn pod_left(&mut self, pod: &Pod) {
        for name in pod.devices.iter().filter_map(|named| named.name()) {
            self.waiting.wake(&Key::new(pod.key.namespace.as_str(), name));
        }
        for key in self.special.get(&*pod.uid).cloned().unwrap_or_default() {
            self.waiting.wake(&key);
        }
    }
}

/// Counts what a claim got in or out. What an administrator looks at is not taken.
fn count(used: &mut HashMap<DeviceId, Use>, allocation: &Allocation, taken: bool) {
    for device in allocation.devices.iter().filter(|device| !device.admin_access) {
        let id = device.id();
        let held = used.entry(id.clone()).or_default();
        let number = if device.share.is_empty() { &mut held.whole } else { &mut held.shares };
        *number = if taken { *number + 1 } else { number.saturating_sub(1) };
        // A negative amount, whoever wrote it, makes no room for others.
        let counts = |(_, amount): &(&String, &Quantity)| !device.share.is_empty() && !amount.is_negative();
        for (name, amount) in device.consumed_capacity.iter().filter(counts) {
            let sum = held.consumed.entry(name.clone()).or_insert(Quantity::ZERO);
            *sum = if taken { sum.plus(*amount) } else { sum.minus(*amount) };
        }
        if held.whole == 0 && held.shares == 0 {
            used.remove(&id);
        }
    }
}

/// Where it is kept what a claim gets that is not made yet: under no name that a claim could have.
fn unmade(claim: &Key, pod: &str) -> Key {
    Key::new(claim.namespace.as_str(), format!("<{pod}>"))
}

/// Takes an entry out of one of several sets, and the set if nothing is left.
fn take<K, V, Q>(sets: &mut HashMap<K, BTreeSet<V>>, of: &K, entry: &Q)
where
    K: Eq + std::hash::Hash,
    V: Ord + std::borrow::Borrow<Q>,
    Q: Ord + ?Sized,
{
    let Some(set) = sets.get_mut(of) else { return };
    set.remove(entry);
    if set.is_empty() {
        sets.remove(of);
    }
}
