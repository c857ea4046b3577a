//! Deployments: replica sets per version of a template, and the way from one to the next.
//! Source: `k8s.io/kubernetes/pkg/controller/deployment`.

mod apply;
mod plan;
mod revision;
mod rollback;
mod rolling;
mod status;
mod template;
mod types;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use api::{Key, Object, ObjectMeta};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::{Action, Change, EventRecorder, Informer, Queue, Reconcile, Registration, kinds};

use crate::claim::{adopters, resolve};
use crate::context::{self, Ctx, work};

pub use types::{Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus};

const NAME: &str = "deployment-controller";
/// How many keys are worked on at once. Source: `--concurrent-deployment-syncs`.
const WORKERS: usize = 5;

/// The Deployment controller.
pub struct Deployments {
    ctx: Ctx,
}

impl Deployments {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for Deployments {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker::new(&self.ctx));
        let _registrations = worker.listen();
        work(&ctx, NAME, &[&worker.deployments, &worker.sets, &worker.pods], &worker.queue, WORKERS, &worker)
            .await
    }
}

/// The state of a running controller.
struct Worker {
    ctx: Ctx,
    deployments: Informer,
    sets: Informer,
    pods: Informer,
    queue: Queue<Key>,
    events: EventRecorder,
}

impl Worker {
    fn new(ctx: &Ctx) -> Self {
        Self {
            ctx: ctx.clone(),
            deployments: ctx.informers.get(kinds::DEPLOYMENTS),
            sets: ctx.informers.get(kinds::REPLICA_SETS),
            pods: ctx.informers.get(kinds::PODS),
            queue: ctx.queue("deployment"),
            events: EventRecorder::new(ctx.client.clone(), ctx.clock.clone(), NAME, ""),
        }
    }

    fn listen(self: &Arc<Self>) -> [Registration; 3] {
        let queue = self.queue.clone();
        let deployments = self.deployments.on_change(move |change| queue.add(change.key.clone()));
        let worker = Arc::downgrade(self);
        let sets = self.sets.on_change(move |change| {
            if let Some(worker) = worker.upgrade() {
                worker.set_changed(change);
            }
        });
        let worker = Arc::downgrade(self);
        let pods = self.pods.on_change(move |change| {
            if let Some(worker) = worker.upgrade().filter(|_| change.new.is_none()) {
                worker.pod_gone(change);
            }
        });
        [deployments, sets, pods]
    }

    /// The Deployment that a set belongs to.
    fn owner(&self, set: &ObjectMeta) -> Option<Key> {
        resolve(&self.deployments, &kinds::DEPLOYMENTS, &set.namespace, set.controller())
            .map(|held| held.key())
    }

    fn set_changed(&self, change: &Change) {
        for set in [&change.old, &change.new].into_iter().flatten() {
            if let Some(key) = self.owner(set.meta()) {
                self.queue.add(key);
            }
        }
        let selector = |held: &Object| Some(context::decode::<Deployment>(held).ok()?.spec.selector);
        adopters(&self.deployments, change, selector).into_iter().for_each(|held| self.queue.add(held));
    }

    /// With the strategy Recreate, the new pods wait until the last old one is gone.
    fn pod_gone(&self, change: &Change) {
        let Some(pod) = &change.old else { return };
        let Some(set) = pod.meta().controller().and_then(|owner| self.sets.by_uid(&owner.uid)) else {
            return;
        };
        if let Some(key) = self.owner(set.meta()) {
            self.queue.add(key);
        }
    }
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        self.sync(key).await
    }
}
