//! StatefulSets: pods with names, numbers and claims of their own, that come and go in order.
//! Source: `k8s.io/kubernetes/pkg/controller/statefulset`.

mod apply;
mod claims;
mod identity;
mod plan;
mod rolling;
mod status;
mod types;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use api::{Key, Object};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::queue::DECODED;
use reconcile::{
    Action, Change, EventRecorder, Expectations, Informer, Queue, Reconcile, Registration, kinds,
};

use crate::claim::{adopters, resolve};
use crate::context::{self, Ctx, work};

pub use types::{
    Ordinals, RetentionPolicy, RollingUpdate, StatefulSet, StatefulSetSpec, StatefulSetStatus, UpdateStrategy,
};

const NAME: &str = "statefulset-controller";
/// How many keys are worked on at once. Source: `--concurrent-statefulset-syncs`.
const WORKERS: usize = 5;

/// The StatefulSet controller.
pub struct StatefulSets {
    ctx: Ctx,
}

impl StatefulSets {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for StatefulSets {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker::new(&self.ctx));
        let _registrations = worker.listen();
        work(
            &ctx,
            NAME,
            &[&worker.sets, &worker.pods, &worker.claims, &worker.revisions],
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
    claims: Informer,
    revisions: Informer,
    queue: Queue<Key>,
    /// Deletions that the cache does not show yet. What is made has a name of its own, which nothing is made under twice.
    expectations: Expectations,
    events: EventRecorder,
}

impl Worker {
    fn new(ctx: &Ctx) -> Self {
        Self {
            ctx: ctx.clone(),
            sets: ctx.informers.get(kinds::STATEFUL_SETS),
            pods: ctx.informers.get(kinds::PODS),
            claims: ctx.informers.get(kinds::PERSISTENT_VOLUME_CLAIMS),
            revisions: ctx.informers.get(kinds::CONTROLLER_REVISIONS),
            queue: ctx.queue("statefulset"),
            expectations: Expectations::new(ctx.clock.clone()),
            events: EventRecorder::new(ctx.client.clone(), ctx.clock.clone(), NAME, ""),
        }
    }

    fn listen(self: &Arc<Self>) -> [Registration; 3] {
        let queue = self.queue.clone();
        let sets = self.sets.on_change(move |change| queue.add(change.key.clone()));
        let worker = Arc::downgrade(self);
        let pods = self.pods.on_change(move |change| {
            if let Some(worker) = worker.upgrade() {
                worker.pod_changed(change);
            }
        });
        let worker = Arc::downgrade(self);
        let claims = self.claims.on_change(move |change| {
            if let Some(worker) = worker.upgrade().filter(|_| change.new.is_none()) {
                worker.claim_gone(&change.key);
            }
        });
        [sets, pods, claims]
    }

    fn pod_changed(&self, change: &Change) {
        for pod in [&change.old, &change.new].into_iter().flatten() {
            let meta = pod.meta();
            let owner = resolve(&self.sets, &kinds::STATEFUL_SETS, &meta.namespace, meta.controller());
            let Some(set) = owner else { continue };
            let key = set.key();
            if change.new.is_none() || meta.is_terminating() {
                self.expectations.deletion_observed(&key, &meta.uid);
            }
            self.queue.add_gathered(key, self.pods.owned_count(&set.meta().uid), DECODED);
        }
        let selector = |set: &Object| Some(context::decode::<StatefulSet>(set).ok()?.spec.selector);
        adopters(&self.sets, change, selector).into_iter().for_each(|set| self.queue.add(set));
    }

    /// Pods wait for claims of their names that are being deleted, and pending ones get those that they have lost.
    fn claim_gone(&self, claim: &Key) {
        for held in self.sets.in_namespace(&claim.namespace) {
            // Most sets' names do not occur in it: their objects need not be read.
            if !claim.name.contains(&held.meta().name) {
                continue;
            }
            let Ok(set) = context::decode::<StatefulSet>(&held) else { continue };
            if claims::is_of(&set, &claim.name) {
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
