//! Volumes and claims: which belongs to which, and what becomes of a volume whose claim is gone. Volumes are made by
//! provisioners outside, which are told of by annotations. Source: `k8s.io/kubernetes/pkg/controller/volume/persistentvolume`.

mod apply;
mod plan;
mod types;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use api::Key;
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::{
    Action, Change, EventRecorder, Informer, Queue, Reconcile, Registration, kinds, run_workers,
};
use serde_json::Value;

use crate::context::{self, Ctx};

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
        let synced = async {
            tokio::join!(claims.synced(), volumes.synced(), classes.synced(), pods.synced());
        };
        tokio::select! {
            () = ctx.cancelled() => return Ok(()),
            () = synced => {}
        }
        ctx.ready();
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
        self.wake(Item::Claim(change.key.clone()));
        // The volume of a claim that goes, or takes another one, has to be looked at as well.
        for claim in [&change.old, &change.new].into_iter().flatten() {
            if let Some(volume) = text(claim, &["spec", "volumeName"]) {
                self.wake(Item::Volume(Key::new("", volume)));
            }
        }
    }

    fn volume_changed(&self, change: &Change) {
        self.wake(Item::Volume(change.key.clone()));
        let mut kept = false;
        for volume in [&change.old, &change.new].into_iter().flatten() {
            let reference = |field: &str| text(volume, &["spec", "claimRef", field]);
            if let (Some(namespace), Some(name)) = (reference("namespace"), reference("name")) {
                self.wake(Item::Claim(Key::new(namespace, name)));
                kept = true;
            }
        }
        // One that anybody may have is what others wait for; one that is gone is missed by whoever names it.
        if !kept || change.new.is_none() {
            self.wake_unbound();
        }
    }

    fn wake_unbound(&self) {
        for claim in self.claims.list() {
            if text(&claim, &["status", "phase"]).as_deref() != Some("Bound") {
                self.wake(Item::Claim(claim.key()));
            }
        }
    }
}

/// A text in an object; `None` if it is empty.
fn text(object: &api::Object, path: &[&str]) -> Option<String> {
    let tree: Value = context::decode(object).ok()?;
    let found = path.iter().fold(&tree, |at, field| &at[*field]);
    found.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// Whether a pod mounts a claim, by name or as an ephemeral volume of its own.
fn uses(pod: &Value, claim: &str) -> bool {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let mut volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    volumes.any(|volume| {
        let own = || format!("{name}-{}", volume["name"].as_str().unwrap_or_default());
        volume["persistentVolumeClaim"]["claimName"] == claim
            || (volume["ephemeral"].is_object() && own() == claim)
    })
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
