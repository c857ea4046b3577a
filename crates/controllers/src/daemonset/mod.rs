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

use api::{Key, Object, ObjectMeta};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use parking_lot::{Mutex, RwLock};
use reconcile::{
    Action, Change, EventRecorder, Expectations, Informer, Queue, Reconcile, Registration, kinds,
};

use self::backoff::Failures;
use self::placement::Placement;
use self::types::Node;
use reconcile::queue::DECODED;

use crate::claim::{adopters, former, resolve};
use crate::context::{self, Ctx, work};

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
        work(
            &ctx,
            NAME,
            &[&worker.sets, &worker.pods, &worker.nodes, &worker.revisions],
            &worker.queue,
            WORKERS,
            &worker,
        )
        .await
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

    /// The DaemonSet that an object belongs to.
    fn owner(&self, meta: &ObjectMeta) -> Option<Arc<Object>> {
        resolve(&self.sets, &kinds::DAEMON_SETS, &meta.namespace, meta.controller())
    }

    fn pod_changed(&self, change: &Change) {
        self.wake_others(change);
        if let Some(set) = change.latest().and_then(|pod| self.owner(pod.meta())) {
            self.expectations.pod_changed(&set.key(), change);
            self.queue.add_gathered(set.key(), self.pods.owned_count(&set.meta().uid), DECODED);
        }
    }

    fn revision_changed(&self, change: &Change) {
        self.wake_others(change);
        // One that is gone is made anew if it is needed.
        let gone = change.old.as_ref().filter(|_| change.new.is_none());
        if let Some(set) = gone.and_then(|old| self.owner(old.meta())) {
            self.queue.add(set.key());
        }
    }

    /// Wakes the set that an object belonged to before, and those that could adopt it.
    fn wake_others(&self, change: &Change) {
        let former = former(&self.sets, &kinds::DAEMON_SETS, change);
        let selector = |set: &Object| Some(context::decode::<DaemonSet>(set).ok()?.spec.selector);
        let adopters = adopters(&self.sets, change, selector);
        former.into_iter().chain(adopters).for_each(|set| self.queue.add(set));
    }
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        self.sync(key).await
    }
}
