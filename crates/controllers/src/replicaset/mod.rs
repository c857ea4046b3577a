//! ReplicaSet and ReplicationController: so many pods of a template, no more and no fewer.
//! Source: `k8s.io/kubernetes/pkg/controller/replicaset`.

mod apply;
mod plan;
mod status;
mod types;

use std::sync::Arc;

use api::{Key, OwnerReference};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::{
    Action, Change, EventRecorder, Expectations, Informer, Kind, Queue, Reconcile, Registration, kinds,
    run_workers,
};

use crate::context::Ctx;
use crate::selector::Select;

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
}

/// ReplicaSets.
pub const REPLICA_SET: Flavor = Flavor {
    name: "replicaset-controller",
    queue: "replicaset",
    kind: kinds::REPLICA_SETS,
    plain_selector: false,
};
/// ReplicationControllers.
pub const REPLICATION_CONTROLLER: Flavor = Flavor {
    name: "replication-controller",
    queue: "replicationmanager",
    kind: kinds::REPLICATION_CONTROLLERS,
    plain_selector: true,
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
        tokio::select! {
            () = ctx.cancelled() => return Ok(()),
            () = async { tokio::join!(worker.sets.synced(), worker.pods.synced()); } => {}
        }
        ctx.ready();
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

    /// The set that a controller reference means, if it is one of ours and still the same object.
    fn resolve(&self, namespace: &str, owner: Option<&OwnerReference>) -> Option<Key> {
        let owner = owner.filter(|owner| owner.kind == self.flavor.kind.kind)?;
        let key = Key::new(namespace, owner.name.as_str());
        self.sets.get(&key).filter(|set| set.meta().uid == owner.uid).map(|_| key)
    }

    fn pod_changed(&self, change: &Change) {
        let Some(pod) = change.latest().map(|pod| pod.meta()) else { return };
        let owner = self.resolve(&pod.namespace, pod.controller());
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && old.meta().controller() != new.meta().controller()
            && let Some(former) = self.resolve(&pod.namespace, old.meta().controller())
        {
            self.queue.add(former);
        }
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
            None if pod.controller().is_none() && !pod.is_terminating() => self.orphan_changed(change),
            None => {}
        }
    }

    /// Wakes the sets that could adopt a pod without a controller.
    fn orphan_changed(&self, change: &Change) {
        let Some(pod) = change.new.as_ref().map(|pod| pod.meta()) else { return };
        let same = change
            .old
            .as_ref()
            .is_some_and(|old| old.meta().labels == pod.labels && old.meta().controller().is_none());
        if same || pod.labels.is_empty() {
            return;
        }
        for set in self.sets.in_namespace(&pod.namespace) {
            let Ok(decoded) = types::decode(self.flavor, &set) else { continue };
            if !decoded.selector.is_empty() && decoded.selector.matches(&pod.labels) {
                self.queue.add(set.key());
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
