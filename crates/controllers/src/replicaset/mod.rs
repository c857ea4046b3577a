//! ReplicaSet and ReplicationController: so many pods of a template, no more and no fewer.
//! Source: `k8s.io/kubernetes/pkg/controller/replicaset`.

mod apply;
mod plan;
mod roster;
mod status;
mod types;

use std::sync::Arc;

use api::{Key, Object};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::queue::LOOKED_AT;
use reconcile::{
    Action, Change, EventRecorder, Expectations, Informer, Kind, Queue, Reconcile, Registration, kinds,
    run_workers,
};

use crate::claim::{adopters, former, resolve};
use crate::context::{Ctx, ready};
use roster::{Rosters, SetId};

pub(crate) use types::decode;
pub use types::{Set, SetCondition, SetSpec, SetStatus};

/// How many keys are worked on at once. Source: `--concurrent-replicaset-syncs`.
const WORKERS: usize = 5;

/// What differs between the two kinds.
#[derive(Debug)]
pub struct Flavor {
    name: &'static str,
    /// The name of its work queue. Source: `NewReplicaSetController`, `NewReplicationManager`.
    queue: &'static str,
    kind: Kind,
    /// Whether `spec.selector` is a plain map of labels.
    plain_selector: bool,
    /// Whether the status tells of pods that are being deleted. Source: `EnableStatusTerminatingReplicas`.
    counts_leaving: bool,
}

/// ReplicaSets.
pub const REPLICA_SET: Flavor = Flavor {
    name: "replicaset-controller",
    queue: "replicaset",
    kind: kinds::REPLICA_SETS,
    plain_selector: false,
    counts_leaving: true,
};
/// ReplicationControllers.
pub const REPLICATION_CONTROLLER: Flavor = Flavor {
    name: "replication-controller",
    queue: "replicationmanager",
    kind: kinds::REPLICATION_CONTROLLERS,
    plain_selector: true,
    counts_leaving: false,
};

/// The controller of one of the two kinds.
pub struct ReplicaSets {
    ctx: Ctx,
    flavor: &'static Flavor,
}

impl ReplicaSets {
    /// A controller for `flavor`.
    pub fn new(ctx: &Ctx, flavor: &'static Flavor) -> Self {
        Self { ctx: ctx.named(flavor.name), flavor }
    }
}

#[async_trait]
impl Component for ReplicaSets {
    fn name(&self) -> &'static str {
        self.flavor.name
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker::new(&self.ctx, self.flavor));
        let _registrations = worker.listen();
        if !ready(&ctx, &[&worker.sets, &worker.pods]).await {
            return Ok(());
        }
        run_workers(&ctx, self.flavor.name, &worker.queue, WORKERS, worker.clone()).await;
        Ok(())
    }
}

/// The state of a running controller.
struct Worker {
    ctx: Ctx,
    flavor: &'static Flavor,
    sets: Informer,
    pods: Informer,
    rosters: Rosters,
    queue: Queue<Key>,
    expectations: Expectations,
    events: EventRecorder,
}

impl Worker {
    fn new(ctx: &Ctx, flavor: &'static Flavor) -> Self {
        Self {
            ctx: ctx.clone(),
            flavor,
            sets: ctx.informers.get(flavor.kind),
            pods: ctx.informers.get(kinds::PODS),
            rosters: Rosters::default(),
            queue: ctx.queue(flavor.queue),
            expectations: Expectations::new(ctx.clock.clone()),
            events: EventRecorder::new(ctx.client.clone(), ctx.clock.clone(), flavor.name, ""),
        }
    }

    fn listen(self: &Arc<Self>) -> [Registration; 2] {
        let queue = self.queue.clone();
        let sets = self.sets.on_change(move |change| queue.add(change.key.clone()));
        let worker = Arc::downgrade(self);
        let pods = self.pods.on_change(move |change| {
            if let Some(worker) = worker.upgrade() {
                worker.pod_changed(change);
            }
        });
        [sets, pods]
    }

    /// Keeps the pods of sets of this kind, and nothing of others.
    fn keep(&self, change: &Change) {
        let set = |pod: &Arc<Object>| {
            let owner = pod.meta().controller().filter(|owner| owner.kind == self.flavor.kind.kind)?;
            Some(SetId { namespace: pod.meta().namespace.clone(), uid: owner.uid.clone() })
        };
        let (old, new) = (change.old.as_ref(), change.new.as_ref());
        let (was, is) = (old.and_then(set), new.and_then(set));
        let uid = |pod: Option<&Arc<Object>>| pod.map(|pod| pod.meta().uid.clone());
        // It has left its set, or is another pod of the same name where nobody told that the first was gone.
        if let (Some(set), Some(pod)) = (&was, uid(old))
            && (was != is || uid(new).as_ref() != Some(&pod))
        {
            self.rosters.remove(set, &pod);
        }
        if let (Some(set), Some(pod)) = (is, new) {
            self.rosters.put(set, pod);
        }
    }

    fn pod_changed(&self, change: &Change) {
        self.keep(change);
        let Some(pod) = change.latest().map(|pod| pod.meta()) else { return };
        let kind = &self.flavor.kind;
        former(&self.sets, kind, change).into_iter().for_each(|set| self.queue.add(set));
        let Some(set) = resolve(&self.sets, kind, &pod.namespace, pod.controller()) else {
            let selector = |set: &Object| Some(types::decode(self.flavor, set).ok()?.selector);
            let adopters = adopters(&self.sets, change, selector);
            return adopters.into_iter().for_each(|set| self.queue.add(set));
        };
        self.expectations.pod_changed(&set.key(), change);
        self.queue.add_gathered(set.key(), self.rosters.len(&set.meta().into()), LOOKED_AT);
    }
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        self.sync(key).await
    }
}
