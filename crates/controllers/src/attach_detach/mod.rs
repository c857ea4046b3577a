//! Volumes of drivers are attached to the nodes whose pods need them, and detached when none does. Somebody outside (the
//! driver's external-attacher) is asked by VolumeAttachment objects and answers in their status.
//! Source: `k8s.io/kubernetes/pkg/controller/volume/attachdetach`, `pkg/volume/csi/csi_attacher.go`.
//!
//! Whatever is attached stands in attachments and in `status.volumesAttached` of nodes; nothing is kept beside them but
//! since when something is waited for. Upstream looks at everything ten times a second; here changes and deadlines bring
//! a look at one volume or one node.
//!
//! A node mounts what its status says is attached, and says in `status.volumesInUse` what it uses or is about to. So a
//! volume first goes from the one list, then the other is read, and only then it is detached.

mod apply;
mod desired;
mod plan;
mod source;
mod types;
mod world;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use api::{Key, Object};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use futures::future::join_all;
use parking_lot::Mutex;
use reconcile::{
    Action, Change, EventRecorder, Informer, Queue, Reconcile, Registration, kinds, run_workers,
};
use serde::de::DeserializeOwned;

use self::desired::may_attach;
use self::types::{Node, Volume};
use self::world::{Item, World};
use crate::context::{Ctx, decode, ready};
use crate::figures::made::{Counts, Teller};
use crate::figures::volumes::VolumeFigures;

const NAME: &str = "persistentvolume-attach-detach-controller";
/// The source of its events. Source: `NewAttachDetachController`.
const EVENTS: &str = "attachdetach-controller";
/// So many volumes and nodes are worked on at once. Upstream has no bound.
const WORKERS: usize = 10;

/// The controller.
pub struct AttachDetach {
    ctx: Ctx,
}

impl AttachDetach {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for AttachDetach {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker::new(&self.ctx));
        let caches = worker.caches();
        // With half of them, volumes in use would look as if nobody needed them.
        tokio::select! {
            () = ctx.cancelled() => return Ok(()),
            _ = join_all(caches.iter().map(|cache| cache.synced())) => {}
        }
        let _registrations = worker.listen();
        if !ready(&ctx, &caches).await {
            return Ok(());
        }
        let _told = self.ctx.figures.as_ref().map(|figures| worker.tell(&figures.volumes));
        run_workers(&ctx, NAME, &worker.queue, WORKERS, worker.clone()).await;
        Ok(())
    }
}

/// The state of a running controller.
struct Worker {
    ctx: Ctx,
    pods: Informer,
    claims: Informer,
    volumes: Informer,
    drivers: Informer,
    nodes: Informer,
    attachments: Informer,
    /// Locked before caches are read for it, so that whoever comes later has seen more.
    world: Mutex<World>,
    queue: Queue<Item>,
    events: EventRecorder,
}

/// A projection, if it can be read.
fn decoded<T: DeserializeOwned>(object: &Object) -> Option<T> {
    decode(object).inspect_err(|error| tracing::warn!(%error, "an object is passed over")).ok()
}

impl Worker {
    fn new(ctx: &Ctx) -> Self {
        Self {
            ctx: ctx.clone(),
            pods: ctx.informers.get(kinds::PODS),
            claims: ctx.informers.get(kinds::PERSISTENT_VOLUME_CLAIMS),
            volumes: ctx.informers.get(kinds::PERSISTENT_VOLUMES),
            drivers: ctx.informers.get(kinds::CSI_DRIVERS),
            nodes: ctx.informers.get(kinds::NODES),
            attachments: ctx.informers.get(kinds::VOLUME_ATTACHMENTS),
            world: Mutex::default(),
            queue: ctx.queue("pvcs"),
            events: EventRecorder::new(ctx.client.clone(), ctx.clock.clone(), EVENTS, ""),
        }
    }

    fn caches(&self) -> [&Informer; 6] {
        [&self.pods, &self.claims, &self.volumes, &self.drivers, &self.nodes, &self.attachments]
    }

    /// What pods depend on is told of first: while there are no pods it costs nothing.
    fn listen(self: &Arc<Self>) -> [Registration; 6] {
        let handler = |handle: fn(&Self, &Change)| {
            let worker = Arc::downgrade(self);
            move |change: &Change| {
                if let Some(worker) = worker.upgrade() {
                    handle(&worker, change);
                }
            }
        };
        [
            self.drivers.on_change(handler(|worker, _| worker.drivers_changed())),
            self.volumes.on_change(handler(Self::volume_changed)),
            self.claims.on_change(handler(|worker, change| worker.claim_changed(&change.key))),
            self.nodes.on_change(handler(Self::node_changed)),
            self.pods.on_change(handler(Self::pod_changed)),
            self.attachments.on_change(handler(|worker, change| worker.attachment_changed(&change.key))),
        ]
    }

    /// Tells of volumes as long as what it gives is held.
    fn tell(self: &Arc<Self>, figures: &VolumeFigures) -> [Arc<Teller>; 2] {
        let counted = |count: fn(&World) -> Counts| {
            let worker = Arc::downgrade(self);
            move || worker.upgrade().map(|worker| count(&worker.world.lock())).unwrap_or_default()
        };
        [figures.attached.by(counted(World::totals)), figures.in_use.by(counted(World::in_use))]
    }

    fn wake(&self, items: Vec<Item>) {
        items.into_iter().for_each(|item| self.queue.add(item));
    }

    fn pod_changed(&self, change: &Change) {
        let known = self.world.lock().pod(&change.key).is_some();
        // What a pod mounts never changes: it is looked for once, when the pod has its node.
        let placed = |pod: &Arc<Object>| pod.node_name().is_some();
        let fresh = || {
            !change.old.as_ref().is_some_and(placed)
                && change.new.as_ref().is_some_and(|pod| placed(pod) && may_attach(pod))
        };
        if known || fresh() {
            self.look_at_pod(&change.key);
        }
    }

    /// Finds out anew what a pod needs.
    fn look_at_pod(&self, key: &Key) {
        let touched = {
            let mut world = self.world.lock();
            let needs = self.pods.get(key).and_then(|pod| self.needs(&world, &pod));
            world.put_pod(key, needs)
        };
        self.wake(touched);
    }

    fn claim_changed(&self, claim: &Key) {
        let pods = self.world.lock().pods_of_claim(claim);
        pods.iter().for_each(|pod| self.look_at_pod(pod));
    }

    fn volume_changed(&self, change: &Change) {
        let read = |object: &Option<Arc<Object>>| decoded::<Volume>(object.as_ref()?)?.spec.claim_ref;
        for claim in [read(&change.old), read(&change.new)].into_iter().flatten() {
            self.claim_changed(&Key::new(claim.namespace, claim.name));
        }
    }

    fn drivers_changed(&self) {
        let pods = self.world.lock().pods();
        pods.iter().for_each(|pod| self.look_at_pod(pod));
    }

    fn attachment_changed(&self, key: &Key) {
        let touched = {
            let mut world = self.world.lock();
            let held = self.attachments.get(key).and_then(|object| self.held(&world, &object));
            world.put_attachment(&key.name, held)
        };
        self.wake(touched);
    }

    fn node_changed(&self, change: &Change) {
        let name = &change.key.name;
        let reports = |node: &Arc<Object>| {
            std::str::from_utf8(node.bytes()).is_ok_and(|text| text.contains("\"volumesAttached\""))
        };
        if self.world.lock().knows_node(name) || change.new.as_ref().is_some_and(reports) {
            self.queue.add(Item::Node(name.clone()));
        }
        let new = change.new.as_ref().and_then(|node| decoded::<Node>(node)).map(|node| node.traits());
        let (old, ids) = {
            let mut world = self.world.lock();
            let old = world.traits(name);
            world.put_node(name, new);
            (old, world.of_node(name))
        };
        let new = new.unwrap_or_default();
        if old.managed != new.managed {
            let world = self.world.lock();
            let volumes = ids.iter().filter_map(|id| world.want(id)).map(|want| want.need.volume.clone());
            volumes.for_each(|volume| self.queue.add(Item::Volume(volume)));
        }
        if old.keeps != new.keeps {
            let pods = self.pods.on_node(name).into_iter().map(|pod| pod.key());
            let known: Vec<Key> = pods.filter(|pod| self.world.lock().pod(pod).is_some()).collect();
            known.iter().for_each(|pod| self.look_at_pod(pod));
        }
    }
}

#[async_trait]
impl Reconcile<Item> for Worker {
    async fn reconcile(&self, item: &Item) -> Result<Action, BoxError> {
        match item {
            Item::Volume(volume) => self.sync_volume(volume).await,
            Item::Node(name) => self.sync_node(name).await,
        }
    }
}
