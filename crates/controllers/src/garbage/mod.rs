//! Garbage collection: objects go when all their owners are gone, before their owner (foreground) or stay without it
//! (orphan), as the owner's deletion asked. Source: `k8s.io/kubernetes/pkg/controller/garbagecollector`.
//!
//! The graph of owners is what the shared informers' indexes by uid and by owner say; there is no second copy of it. What
//! they do not hold is asked of the server before anything is deleted for its lack.

mod apply;
mod plan;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use api::{GroupVersionResource, Key, Object};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::kinds::Served;
use reconcile::{Action, Change, EventRecorder, Informer, Queue, Reconcile, kinds, run_workers};

use crate::context::Ctx;
use crate::followed::{Followed, One, on_served};
use plan::{FOREGROUND, ORPHAN};

const NAME: &str = "garbage-collector-controller";
/// Source: `--concurrent-gc-syncs`.
const WORKERS: usize = 20;
/// How long the start waits for resources that cannot be listed before it goes on without them.
const SYNC_MAX: Duration = Duration::from_secs(30);

/// The garbage collector.
pub struct GarbageCollector {
    ctx: Ctx,
}

impl GarbageCollector {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for GarbageCollector {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker {
            ctx: self.ctx.clone(),
            queue: self.ctx.queue("garbage_collector_attempt_to_delete"),
            monitors: Followed::default(),
            events: EventRecorder::new(self.ctx.client.clone(), self.ctx.clock.clone(), NAME, ""),
        });
        let mut catalog = self.ctx.catalog.watch();
        let served = catalog.borrow_and_update().clone();
        worker.monitor(&served);
        tokio::select! {
            () = ctx.cancelled() => return Ok(()),
            () = worker.synced() => {}
        }
        ctx.ready();
        let watched = worker.clone();
        on_served(&ctx, catalog, move |served| watched.monitor(served));
        run_workers(&ctx, NAME, &worker.queue, WORKERS, worker.clone()).await;
        Ok(())
    }
}

/// One object among all resources.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Node {
    resource: GroupVersionResource,
    key: Key,
    uid: String,
}

impl Node {
    fn of(resource: &GroupVersionResource, object: &Object) -> Self {
        Self { resource: resource.clone(), key: object.key(), uid: object.meta().uid.clone() }
    }
}

struct Worker {
    ctx: Ctx,
    queue: Queue<Node>,
    monitors: Followed,
    events: EventRecorder,
}

/// Whether objects of a namespace may have an owner in that one: it is their own, or the owner is in none.
fn reaches(dependent: &str, owner: &str) -> bool {
    owner.is_empty() || owner == dependent
}

impl Worker {
    /// Watches exactly these resources. Events are left out: they are many, own nothing and expire.
    fn monitor(self: &Arc<Self>, served: &[Served]) {
        let wanted = served.iter().filter(|row| row.resource.resource != kinds::EVENTS.resource);
        let weak = Arc::downgrade(self);
        self.monitors.set(&self.ctx.informers, wanted, move |resource, change| {
            if let Some(worker) = weak.upgrade() {
                worker.changed(resource, change);
            }
        });
    }

    /// Returns when every watched resource is known, or when waiting for the rest has lasted too long: one resource
    /// that cannot be listed must not stop the collection of all others.
    async fn synced(&self) {
        let informers: Vec<Informer> =
            self.monitors.read().values().map(|monitor| monitor.informer.clone()).collect();
        let all = async {
            for informer in &informers {
                informer.synced().await;
            }
        };
        let deadline = self.ctx.clock.now() + SYNC_MAX;
        tokio::select! {
            () = all => {}
            () = self.ctx.clock.sleep_until(deadline) => {
                let missing: Vec<String> = informers
                    .iter()
                    .filter(|informer| !informer.is_synced())
                    .map(|informer| informer.resource().to_string())
                    .collect();
                if let Some(figures) = &self.ctx.figures {
                    figures.unlisted.inc();
                }
                tracing::warn!(?missing, "garbage collection begins without resources that cannot be listed");
            }
        }
    }

    /// An object of any resource by its uid.
    fn find(&self, uid: &str) -> Option<(Node, Arc<Object>)> {
        self.monitors.read().iter().find_map(|(resource, monitor)| {
            let object = monitor.informer.by_uid(uid)?;
            Some((Node::of(resource, &object), object))
        })
    }

    /// The objects that name `uid` among their owners.
    fn dependents(&self, uid: &str) -> Vec<(Node, Arc<Object>)> {
        let monitors = self.monitors.read();
        let owned = |(resource, monitor): (&GroupVersionResource, &One)| {
            let owned = monitor.informer.owned_by(uid).into_iter();
            owned.map(|object| (Node::of(resource, &object), object)).collect::<Vec<_>>()
        };
        monitors.iter().flat_map(owned).collect()
    }

    /// Finds out whom a change concerns. Most changes concern nobody.
    fn changed(&self, resource: &GroupVersionResource, change: &Change) {
        let (old, new) = (change.old.as_deref(), change.new.as_deref());
        // An owner that waits for its dependents is looked at when one of them goes or lets go of it.
        for owner in old.iter().flat_map(|old| &old.meta().owner_references) {
            let still = new.is_some_and(|new| new.meta().owner_references.contains(owner));
            if !still
                && let Some((node, held)) = self.find(&owner.uid)
                && held.meta().is_terminating()
            {
                self.queue.add(node);
            }
        }
        let Some(new) = new else {
            if let Some(old) = old {
                for (node, _) in self.dependents(&old.meta().uid) {
                    self.queue.add(node);
                }
            }
            return;
        };
        let meta = new.meta();
        let has = |finalizer: &str| meta.finalizers.iter().any(|held| held == finalizer);
        if meta.is_terminating() && (has(ORPHAN) || has(FOREGROUND)) {
            self.queue.add(Node::of(resource, new));
            return;
        }
        let owners = &meta.owner_references;
        if owners.is_empty() || old.is_some_and(|old| old.meta().owner_references == *owners) {
            return;
        }
        // The usual owner is there and stays: nothing to do. One in another namespace is none.
        let stays = |(node, held): &(Node, Arc<Object>)| {
            !held.meta().is_terminating() && reaches(&meta.namespace, &node.key.namespace)
        };
        if !owners.iter().all(|owner| self.find(&owner.uid).is_some_and(|held| stays(&held))) {
            self.queue.add(Node::of(resource, new));
        }
    }
}

#[async_trait]
impl Reconcile<Node> for Worker {
    async fn reconcile(&self, node: &Node) -> Result<Action, BoxError> {
        self.sync(node).await
    }
}
