//! Pods leave devices with NoExecute taints that their claims do not tolerate, at once or when their toleration ends; and
//! the status of DeviceTaintRules tells how far that is. Source: `k8s.io/kubernetes/pkg/controller/devicetainteviction`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use jiff::Timestamp;
use parking_lot::Mutex;
use reconcile::{
    Action, Change, EventRecorder, EventType, Informer, Involved, Queue, Reconcile, kinds, run_workers,
};
use serde_json::json;

use super::links::Links;
use super::rules::{self, Counts};
use super::taints::{Eviction, Rule, Slice, Taints, read};
use super::{Claim, Device, Named, Pod, claim_key, has_claims, stranger};
use crate::claim::ignore_missing;
use crate::context::{Ctx, decode, ready};
use crate::taint_eviction::evict;

const NAME: &str = "device-taint-eviction-controller";
/// The reason of its events.
const REASON: &str = "DeviceTaintManagerEviction";
/// Source: `--concurrent-device-taint-eviction-syncs`.
const WORKERS: usize = 10;

/// The controller.
pub struct DeviceTaintEviction {
    ctx: Ctx,
}

impl DeviceTaintEviction {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Item {
    /// A pod that may have to leave.
    Pod(Key),
    /// A rule whose status may be another.
    Rule(Key),
}

#[async_trait]
impl Component for DeviceTaintEviction {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker {
            ctx: self.ctx.clone(),
            pods: self.ctx.informers.get(kinds::PODS),
            claims: self.ctx.informers.get(kinds::RESOURCE_CLAIMS),
            slices: self.ctx.informers.get(kinds::RESOURCE_SLICES),
            rules: self.ctx.informers.get(kinds::DEVICE_TAINT_RULES),
            events: EventRecorder::new(self.ctx.client.clone(), self.ctx.clock.clone(), NAME, ""),
            world: Mutex::default(),
            queue: self.ctx.queue(NAME),
        });
        let by = || worker.clone();
        let (slices, rules, claims, pods) = (by(), by(), by(), by());
        let _registrations = [
            worker.slices.on_change(move |change| slices.slice_changed(change)),
            worker.rules.on_change(move |change| rules.rule_changed(change)),
            worker.claims.on_change(move |change| claims.claim_changed(change)),
            worker.pods.on_change(move |change| pods.pod_changed(change)),
        ];
        let caches = [&worker.slices, &worker.rules, &worker.claims, &worker.pods];
        if !ready(&ctx, &caches).await {
            return Ok(());
        }
        run_workers(&ctx, NAME, &worker.queue, WORKERS, worker.clone()).await;
        Ok(())
    }
}

/// What is known besides the caches.
#[derive(Default)]
struct World {
    taints: Taints,
    /// Which claims have which devices.
    holders: Links<Key, Device>,
    /// Pods that have to leave, as long as they are there.
    leaving: HashMap<Key, Leaving>,
    /// How many pods left because of a rule, by its uid.
    evicted: BTreeMap<String, u64>,
}

/// A pod that has to leave.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Leaving {
    uid: String,
    /// Whether it was told to. Until then it is said if it need not any more.
    told: bool,
}

struct Worker {
    ctx: Ctx,
    pods: Informer,
    claims: Informer,
    slices: Informer,
    rules: Informer,
    events: EventRecorder,
    world: Mutex<World>,
    queue: Queue<Item>,
}

/// The pods for which a claim is reserved.
fn users(claim: &Key, held: &Claim) -> impl Iterator<Item = Item> {
    let pods = held.status.reserved_for.iter().filter(|user| user.is_pod());
    pods.map(|user| Item::Pod(Key::new(claim.namespace.as_str(), user.name.as_str())))
}

/// What changes.
impl Worker {
    fn claim(&self, key: &Key) -> Option<Claim> {
        read(self.claims.get(key).as_ref())
    }

    fn look_at_users<'k>(&self, claims: impl IntoIterator<Item = &'k Key>) {
        for key in claims {
            let claim = self.claim(key);
            claim.iter().flat_map(|claim| users(key, claim)).for_each(|item| self.queue.add(item));
        }
    }

    fn slice_changed(&self, change: &Change) {
        let (old, new): (Option<Slice>, Option<Slice>) =
            (read(change.old.as_ref()), read(change.new.as_ref()));
        let claims: BTreeSet<Key> = {
            let now = self.ctx.clock.now();
            let mut world = self.world.lock();
            let changed = world.taints.publish(&change.key.name, old.as_ref(), new.as_ref(), now);
            changed.iter().flat_map(|device| world.holders.of(device)).collect()
        };
        self.look_at_users(&claims);
    }

    fn rule_changed(&self, change: &Change) {
        let (old, new): (Option<Rule>, Option<Rule>) = (read(change.old.as_ref()), read(change.new.as_ref()));
        let same_uid = |old: &&Rule| new.as_ref().is_some_and(|new| new.metadata.uid == old.metadata.uid);
        let before = old.as_ref().filter(same_uid);
        let now = self.ctx.clock.now();
        let claims: BTreeSet<Key> = {
            let mut world = self.world.lock();
            if let Some(gone) = old.as_ref().filter(|old| !same_uid(old)) {
                world.evicted.remove(&gone.metadata.uid);
            }
            let differs = world.taints.rule(&change.key.name, new.as_ref(), now);
            let covered = |device: &Device| old.iter().chain(&new).any(|rule| rule.covers(device));
            let holders = world.holders.things().filter(|(device, _)| differs && covered(device));
            holders.flat_map(|(_, claims)| claims.iter().cloned()).collect()
        };
        // It is told at once what is to happen, and later what has.
        if new.as_ref().is_some_and(|new| before.is_none_or(|old| old.spec != new.spec)) {
            self.queue.add(Item::Rule(change.key.clone()));
        }
        self.look_at_users(&claims);
    }

    fn claim_changed(&self, change: &Change) {
        let (old, new): (Option<Claim>, Option<Claim>) =
            (read(change.old.as_ref()), read(change.new.as_ref()));
        let devices: BTreeSet<Device> =
            new.iter().flat_map(Claim::devices).map(|held| held.device.clone()).collect();
        let at_stake = {
            let mut world = self.world.lock();
            world.holders.set(&change.key, devices);
            !world.taints.is_empty() || !world.leaving.is_empty()
        };
        if at_stake {
            let claims = old.iter().chain(&new);
            claims.flat_map(|claim| users(&change.key, claim)).for_each(|item| self.queue.add(item));
        }
    }

    /// Pods change often: they are looked at where their node or their claims are others, and where somebody has to leave.
    fn pod_changed(&self, change: &Change) {
        let about = |object: Option<&Arc<Object>>| {
            let pod: Option<Pod> = read(object.filter(|pod| has_claims(pod)));
            pod.map(|pod| {
                let claims: Vec<String> = pod.claim_names().map(str::to_owned).collect();
                (pod.metadata.uid, pod.spec.node_name, claims)
            })
        };
        let (old, new) = (about(change.old.as_ref()), about(change.new.as_ref()));
        if old == new {
            return;
        }
        let at_stake = {
            let mut world = self.world.lock();
            let uid = new.as_ref().map(|(uid, ..)| uid);
            if world.leaving.get(&change.key).is_some_and(|known| Some(&known.uid) != uid) {
                world.leaving.remove(&change.key);
            }
            !world.taints.is_empty()
        };
        if new.is_some() && at_stake {
            self.queue.add(Item::Pod(change.key.clone()));
        }
    }
}

/// What follows.
impl Worker {
    /// When a pod has to leave as `of_claim` says of its claims. Source: `podEvictionTime`.
    fn pod_eviction(
        &self,
        pod: &Pod,
        of_claim: impl Fn(&Taints, &Claim) -> Option<Eviction>,
    ) -> Option<Eviction> {
        if pod.spec.node_name.is_empty() || pod.metadata.is_terminating() || pod.is_done() {
            return None;
        }
        let of_listed = |named: Named<'_>| {
            let claim = self.claim(&claim_key(&pod.metadata, named.claim()?))?;
            let foreign =
                matches!(named, Named::Own(_)) && stranger(&pod.metadata, &claim.metadata).is_some();
            if foreign || !claim.is_reserved_for(&pod.metadata) {
                return None;
            }
            of_claim(&self.world.lock().taints, &claim)
        };
        let claims = pod.spec.resource_claims.iter();
        claims.filter_map(|listed| of_listed(pod.named(listed))).reduce(Eviction::earlier)
    }

    async fn look_at_pod(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.pods.get(key) else { return Ok(Action::Done) };
        let pod: Pod = decode(&object)?;
        let now = self.ctx.clock.now();
        let uid = &pod.metadata.uid;
        let known = self.world.lock().leaving.get(key).filter(|known| known.uid == *uid).cloned();
        if known.as_ref().is_some_and(|known| known.told) || pod.metadata.is_terminating() {
            return Ok(Action::Done);
        }
        let Some(eviction) = self.pod_eviction(&pod, |taints, claim| taints.eviction(claim.devices(), now))
        else {
            if known.is_some() {
                self.world.lock().leaving.remove(key);
                self.say(&object, "Cancelling deletion");
            }
            return Ok(Action::Done);
        };
        if eviction.at > now {
            if known.is_none() {
                let leaving = Leaving { uid: uid.clone(), told: false };
                self.world.lock().leaving.insert(key.clone(), leaving);
                self.tell_rules(&eviction.rules);
            }
            let left = Duration::try_from(eviction.at.duration_since(now)).unwrap_or_default();
            return Ok(Action::After(left));
        }
        self.say(&object, "Marking for deletion");
        let message = "Device Taint manager: deleting due to NoExecute taint";
        evict(&self.ctx, key, uid, "DeletionByDeviceTaintManager", message).await?;
        if let Some(figures) = &self.ctx.figures {
            let late = self.ctx.clock.now().duration_since(eviction.at);
            figures.leaving.by_device.deleted(late.try_into().unwrap_or_default());
        }
        {
            let mut world = self.world.lock();
            // The cache may show it as it was for a while. One that is gone by now is not told of again.
            if self.pods.by_uid(uid).is_some() {
                world.leaving.insert(key.clone(), Leaving { uid: uid.clone(), told: true });
            } else {
                world.leaving.remove(key);
            }
            for uid in eviction.rules.iter().filter(|uid| self.rules.by_uid(uid).is_some()) {
                *world.evicted.entry(uid.clone()).or_default() += 1;
            }
        }
        self.tell_rules(&eviction.rules);
        Ok(Action::Done)
    }

    fn say(&self, pod: &Object, message: &str) {
        let involved = Involved::named(&kinds::PODS, &pod.key(), &pod.meta().uid);
        self.events.event(involved, EventType::Normal, REASON, message);
    }

    /// Rules tell of pods a while later: more may be on their way.
    fn tell_rules(&self, uids: &BTreeSet<String>) {
        for rule in uids.iter().filter_map(|uid| self.rules.by_uid(uid)) {
            self.queue.add_after(Item::Rule(rule.key()), rules::PERIOD);
        }
    }

    async fn look_at_rule(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.rules.get(key) else { return Ok(Action::Done) };
        let rule: Rule = decode(&object)?;
        let now = self.ctx.clock.now();
        if let Some(left) = rules::stands(&rule, now) {
            return Ok(Action::After(left));
        }
        let Some(condition) = rules::condition(&rule, self.counts(&rule, now), now) else {
            return Ok(Action::Done);
        };
        let body = json!({
            "apiVersion": kinds::DEVICE_TAINT_RULES.api_version(), "kind": kinds::DEVICE_TAINT_RULES.kind,
            "metadata": { "name": key.name, "uid": rule.metadata.uid }, "status": { "conditions": [condition] },
        });
        let resource = self.rules.resource();
        let written = self.ctx.client.patch(resource, key, "status", PatchType::Apply, &body).await;
        if let Some(written) = ignore_missing(written)? {
            self.ctx.caught_up(&self.rules, written.revision()).await;
        }
        Ok(Action::Done)
    }

    fn counts(&self, rule: &Rule, now: Timestamp) -> Counts {
        let evicted = self.world.lock().evicted.get(&rule.metadata.uid).copied().unwrap_or_default();
        if !rules::counts_pods(rule) {
            return Counts { evicted, ..Counts::default() };
        }
        let pods = self.pods_of(rule, now);
        let namespaces: BTreeSet<&str> = pods.iter().map(|pod| pod.namespace.as_str()).collect();
        let mut counts =
            Counts { pods: pods.len(), namespaces: namespaces.len(), evicted, ..Counts::default() };
        if rules::is_trial(rule) {
            let slices = self.slices.list();
            let published = slices.iter().filter_map(|slice| read::<Slice>(Some(slice)));
            counts.published =
                published.map(|slice| slice.devices().filter(|device| rule.covers(device)).count()).sum();
            let world = self.world.lock();
            let held = world.holders.things().filter(|(device, _)| rule.covers(device));
            counts.allocated = held.map(|(_, claims)| claims.len()).sum();
        }
        counts
    }

    /// The pods that have to leave because of a rule, or would have to if its effect was NoExecute.
    fn pods_of(&self, rule: &Rule, now: Timestamp) -> BTreeSet<Key> {
        let claims: BTreeSet<Key> = {
            let world = self.world.lock();
            let held = world.holders.things().filter(|(device, _)| rule.covers(device));
            held.flat_map(|(_, claims)| claims.iter().cloned()).collect()
        };
        let rule = rule.imagined();
        let leaves = |key: &Key| {
            let pod: Option<Pod> = read(self.pods.get(key).as_ref());
            let eviction = pod.and_then(|pod| {
                self.pod_eviction(&pod, |taints, claim| taints.eviction_by(claim.devices(), &[&rule], now))
            });
            eviction.is_some_and(|eviction| eviction.rules.contains(&rule.metadata.uid))
        };
        let pods = claims.iter().flat_map(|key| {
            let claim = self.claim(key);
            claim.iter().flat_map(|claim| users(key, claim)).collect::<Vec<_>>()
        });
        pods.filter_map(|item| match item {
            Item::Pod(key) => Some(key),
            Item::Rule(_) => None,
        })
        .filter(leaves)
        .collect()
    }
}

#[async_trait]
impl Reconcile<Item> for Worker {
    async fn reconcile(&self, item: &Item) -> Result<Action, BoxError> {
        match item {
            Item::Pod(key) => self.look_at_pod(key).await,
            Item::Rule(key) => self.look_at_rule(key).await,
        }
    }
}
