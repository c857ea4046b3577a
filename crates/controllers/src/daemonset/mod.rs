//! DaemonSets: one pod on each node that is meant for it. Source: `k8s.io/kubernetes/pkg/controller/daemon`.

mod apply;
mod backoff;
mod placement;
mod plan;
mod revisions;
mod rolling;
mod status;
mod types;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Key, ObjectMeta, OwnerReference};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use parking_lot::{Mutex, RwLock};
use reconcile::{
    Action, Change, EventRecorder, Expectations, Informer, Queue, Reconcile, Registration, kinds, run_workers,
};

use self::backoff::Failures;
use self::placement::Placement;
use self::types::Node;
use crate::context::{self, Ctx};
use crate::selector::Select;

pub use types::{DaemonSet, DaemonSetSpec, DaemonSetStatus, RollingUpdate, UpdateStrategy};

const NAME: &str = "daemonset-controller";
/// How many keys are worked on at once. Source: `--concurrent-daemonset-syncs`.
const WORKERS: usize = 2;

/// The DaemonSet controller.
pub struct DaemonSets {
    ctx: Ctx,
}

impl DaemonSets {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for DaemonSets {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker::new(&self.ctx));
        let _registrations = worker.listen();
        let synced = async {
            tokio::join!(
                worker.sets.synced(),
                worker.pods.synced(),
                worker.nodes.synced(),
                worker.revisions.synced()
            );
        };
        tokio::select! {
            () = ctx.cancelled() => return Ok(()),
            () = synced => {}
        }
        ctx.ready();
        run_workers(&ctx, NAME, &worker.queue, WORKERS, worker.clone()).await;
        Ok(())
    }
}

/// The state of a running controller.
struct Worker {
    ctx: Ctx,
    sets: Informer,
    pods: Informer,
    nodes: Informer,
    revisions: Informer,
    /// The nodes as far as daemons go: heartbeats change nothing of that, and a pass reads none of their objects.
    known: RwLock<BTreeMap<String, Arc<Node>>>,
    queue: Queue<Key>,
    expectations: Expectations,
    failures: Mutex<Failures>,
    events: EventRecorder,
}

impl Worker {
    fn new(ctx: &Ctx) -> Self {
        Self {
            ctx: ctx.clone(),
            sets: ctx.informers.get(kinds::DAEMON_SETS),
            pods: ctx.informers.get(kinds::PODS),
            nodes: ctx.informers.get(kinds::NODES),
            revisions: ctx.informers.get(kinds::CONTROLLER_REVISIONS),
            known: RwLock::default(),
            queue: ctx.queue("daemonset"),
            expectations: Expectations::new(ctx.clock.clone()),
            failures: Mutex::default(),
            events: EventRecorder::new(ctx.client.clone(), ctx.clock.clone(), NAME, ""),
        }
    }

    fn listen(self: &Arc<Self>) -> [Registration; 4] {
        let queue = self.queue.clone();
        let sets = self.sets.on_change(move |change| queue.add(change.key.clone()));
        let on = |informer: &Informer, tell: fn(&Self, &Change)| {
            let worker = Arc::downgrade(self);
            informer.on_change(move |change| {
                if let Some(worker) = worker.upgrade() {
                    tell(&worker, change);
                }
            })
        };
        [
            sets,
            on(&self.nodes, Self::node_changed),
            on(&self.pods, Self::pod_changed),
            on(&self.revisions, Self::revision_changed),
        ]
    }

    /// The DaemonSet that a controller reference means, if it is still the same object.
    fn resolve(&self, namespace: &str, owner: Option<&OwnerReference>) -> Option<Key> {
        let owner = owner.filter(|owner| owner.kind == kinds::DAEMON_SETS.kind)?;
        let key = Key::new(namespace, owner.name.as_str());
        self.sets.get(&key).filter(|held| held.meta().uid == owner.uid).map(|_| key)
    }

    /// Wakes the sets for which a node has become another one. Most sets run everywhere: all hear of nodes that come and go.
    fn node_changed(&self, change: &Change) {
        let name = &change.key.name;
        let new = change.new.as_ref().and_then(|node| Node::decode(node).ok()).map(Arc::new);
        let old = match &new {
            Some(new) => self.known.write().insert(name.clone(), new.clone()),
            None => self.known.write().remove(name),
        };
        if old == new {
            return;
        }
        for held in self.sets.list() {
            let differs = || -> Result<bool, BoxError> {
                let (Some(old), Some(new)) = (&old, &new) else { return Ok(true) };
                let placement = Placement::of(&context::decode(&held)?)?;
                Ok(placement.judge(old) != placement.judge(new))
            };
            // One that cannot be read is told so by its pass.
            if differs().unwrap_or(true) {
                self.queue.add(held.key());
            }
        }
    }

    fn pod_changed(&self, change: &Change) {
        let Some(pod) = change.latest().map(|pod| pod.meta()) else { return };
        let owner = self.resolve(&pod.namespace, pod.controller());
        self.wake_former(change);
        match owner {
            Some(key) => {
                // A pod that is being deleted counts for nobody any more, however long it takes to go.
                if change.new.is_none() || pod.is_terminating() {
                    self.expectations.deletion_observed(&key, &pod.uid);
                } else if change.old.is_none() {
                    self.expectations.creation_observed(&key);
                }
                self.queue.add(key);
            }
            None => self.orphan_changed(change),
        }
    }

    fn revision_changed(&self, change: &Change) {
        self.wake_former(change);
        let owner = |meta: &ObjectMeta| self.resolve(&meta.namespace, meta.controller());
        match (&change.old, &change.new) {
            // It is made anew if it is needed.
            (Some(old), None) => {
                if let Some(key) = owner(old.meta()) {
                    self.queue.add(key);
                }
            }
            _ => self.orphan_changed(change),
        }
    }

    /// Wakes the set that an object belonged to, if it belongs to another one now.
    fn wake_former(&self, change: &Change) {
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && old.meta().controller() != new.meta().controller()
            && let Some(former) = self.resolve(&old.meta().namespace, old.meta().controller())
        {
            self.queue.add(former);
        }
    }

    /// Wakes the sets that could adopt an object without a controller.
    fn orphan_changed(&self, change: &Change) {
        let Some(orphan) = change.new.as_ref().map(|object| object.meta()) else { return };
        let same = change
            .old
            .as_ref()
            .is_some_and(|old| old.meta().labels == orphan.labels && old.meta().controller().is_none());
        if orphan.controller().is_some() || orphan.is_terminating() || orphan.labels.is_empty() || same {
            return;
        }
        for held in self.sets.in_namespace(&orphan.namespace) {
            let Ok(set) = context::decode::<DaemonSet>(&held) else { continue };
            if !set.spec.selector.is_empty() && set.spec.selector.matches(&orphan.labels) {
                self.queue.add(held.key());
            }
        }
    }
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        self.sync(key).await
    }
}
