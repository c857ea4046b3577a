//! Volumes and claims: which belongs to which, and what becomes of a volume whose claim is gone. Volumes are made by
//! provisioners outside, which are told of by annotations. Source: `k8s.io/kubernetes/pkg/controller/volume/persistentvolume`.

mod apply;
mod figures;
mod index;
mod plan;
mod types;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use api::{Key, Object};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use parking_lot::RwLock;
use reconcile::{
    Action, Change, EventRecorder, Informer, Queue, Reconcile, Registration, kinds, run_workers,
};

use self::index::Index;
use self::types::{Claim, Volume};
use crate::context::{self, Ctx, ready};
use crate::figures::volumes::Operation;

const NAME: &str = "persistentvolume-binder-controller";
/// The source of its events. Source: `NewController`.
const EVENTS: &str = "persistentvolume-controller";

/// The controller.
pub struct PersistentVolumes {
    ctx: Ctx,
}

impl PersistentVolumes {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

/// What is worked on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Item {
    Claim(Key),
    Volume(Key),
}

#[async_trait]
impl Component for PersistentVolumes {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker::new(&self.ctx));
        let _registrations = worker.listen();
        let Worker { claims, volumes, classes, pods, .. } = &*worker;
        if !ready(&ctx, &[claims, volumes, classes, pods]).await {
            return Ok(());
        }
        let _told = self.ctx.figures.as_ref().map(|figures| figures::tell(&figures.volumes, &worker));
        let work = |queue| run_workers(&ctx, NAME, queue, 1, worker.clone());
        tokio::join!(work(&worker.queued_claims), work(&worker.queued_volumes));
        Ok(())
    }
}

/// The state of a running controller.
struct Worker {
    ctx: Ctx,
    claims: Informer,
    volumes: Informer,
    classes: Informer,
    pods: Informer,
    index: RwLock<Index>,
    queued_claims: Queue<Item>,
    queued_volumes: Queue<Item>,
    events: EventRecorder,
}

impl Worker {
    fn new(ctx: &Ctx) -> Self {
        Self {
            ctx: ctx.clone(),
            claims: ctx.informers.get(kinds::PERSISTENT_VOLUME_CLAIMS),
            volumes: ctx.informers.get(kinds::PERSISTENT_VOLUMES),
            classes: ctx.informers.get(kinds::STORAGE_CLASSES),
            pods: ctx.informers.get(kinds::PODS),
            index: RwLock::default(),
            queued_claims: ctx.queue("claims"),
            queued_volumes: ctx.queue("volumes"),
            events: EventRecorder::new(ctx.client.clone(), ctx.clock.clone(), EVENTS, ""),
        }
    }

    fn listen(self: &Arc<Self>) -> [Registration; 3] {
        let handler = |handle: fn(&Self, &Change)| {
            let worker = Arc::downgrade(self);
            move |change: &Change| {
                if let Some(worker) = worker.upgrade() {
                    handle(&worker, change);
                }
            }
        };
        [
            self.claims.on_change(handler(Self::claim_changed)),
            self.volumes.on_change(handler(Self::volume_changed)),
            self.classes.on_change(handler(|worker, _| worker.wake_unbound())),
        ]
    }

    /// A claim and a volume may be worked on at once: writes over old versions fail.
    fn wake(&self, item: Item) {
        match item {
            Item::Claim(_) => self.queued_claims.add(item),
            Item::Volume(_) => self.queued_volumes.add(item),
        }
    }

    fn claim_changed(&self, change: &Change) {
        let read = |claim: &Option<Arc<Object>>| context::decode::<Claim>(claim.as_ref()?).ok();
        let (old, new) = (read(&change.old), read(&change.new));
        self.index.write().put_claim(&change.key, new.as_ref());
        if new.is_none() {
            self.count(|figures| figures.forget(Operation::Provision, change.key.to_string()));
        }
        self.wake(Item::Claim(change.key.clone()));
        // A volume may name a claim that never got so far as to name it. When that goes, nobody else says so.
        let kept = if new.is_none() { self.index.read().kept_for(&change.key) } else { Vec::new() };
        kept.into_iter().for_each(|volume| self.wake(Item::Volume(volume)));
        // The volume of a claim that goes, or takes another one, has to be looked at as well.
        for claim in [old, new].into_iter().flatten() {
            if !claim.spec.volume_name.is_empty() {
                self.wake(Item::Volume(Key::new("", claim.spec.volume_name)));
            }
        }
    }

    fn volume_changed(&self, change: &Change) {
        let name = &change.key.name;
        if change.new.is_none() {
            self.count(|figures| figures.ends(Operation::Delete, name.clone()));
        }
        let new: Option<Volume> = change.new.as_ref().and_then(|volume| context::decode(volume).ok());
        let mut index = self.index.write();
        let old = index.volume(name);
        index.put_volume(name, new);
        let new = index.volume(name);
        let volumes = [old, new.clone()];
        let volumes = volumes.iter().flatten();
        let mut woken: Vec<Key> = volumes.clone().filter_map(|volume| index::claim_of(volume)).collect();
        // One that anybody may have is what others wait for; one that is gone, or taken, is missed by whoever names it.
        let is_free = new.as_ref().is_some_and(|volume| index::claim_of(volume).is_none());
        let classes = volumes.filter(|_| is_free).map(|volume| volume.class());
        woken.extend(index.seekers_of(name, &classes.collect::<Vec<_>>()));
        drop(index);
        self.wake(Item::Volume(change.key.clone()));
        woken.into_iter().for_each(|claim| self.wake(Item::Claim(claim)));
    }

    fn wake_unbound(&self) {
        self.index.read().seekers().for_each(|claim| self.wake(Item::Claim(claim.clone())));
    }
}

#[async_trait]
impl Reconcile<Item> for Worker {
    async fn reconcile(&self, item: &Item) -> Result<Action, BoxError> {
        match item {
            Item::Claim(key) => self.sync_claim(key).await,
            Item::Volume(key) => self.sync_volume(key).await,
        }
    }
}
