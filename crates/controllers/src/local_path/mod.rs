//! Volumes that are directories of the node where their pod runs, for claims of the class `local-path`, which is made once
//! and is the default where there is no other. The nodes make and remove the directories; what both sides say to each other
//! is in `reconcile::local_path`. Source: `sig-storage-lib-external-provisioner`, rancher's local-path-provisioner.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{DeleteOptions, Key, Object, ObjectMeta, PatchType, Reason};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::local_path::{ROOT, removal};
use reconcile::{
    Action, Change, EventRecorder, EventType, Informer, Involved, Queue, Reconcile, Registration, kinds,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::claim::{ignore_gone, ignore_missing};
use crate::context::{Ctx, decode, work};
use plan::{Claim, ClaimStep, Class, Volume, VolumeStep, plan_claim, plan_volume};

const NAME: &str = "local-path-provisioner";
const NAMESPACE: &str = "kube-system";
const WORKERS: usize = 4;

/// The controller.
pub struct LocalPaths {
    ctx: Ctx,
}

impl LocalPaths {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

/// What is worked on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Item {
    /// The class, which is made once.
    Class,
    Claim(Key),
    Volume(Key),
    /// What a Node's annotations say of volumes.
    Node(Key),
}

struct Worker {
    ctx: Ctx,
    namespaces: Informer,
    nodes: Informer,
    classes: Informer,
    claims: Informer,
    volumes: Informer,
    queue: Queue<Item>,
    events: EventRecorder,
}

/// An object's metadata with its annotations, which caches keep only within the object.
fn head(object: &Object) -> Option<ObjectMeta> {
    #[derive(Deserialize)]
    struct Head {
        metadata: ObjectMeta,
    }
    object.decode::<Head>().ok().map(|head| head.metadata)
}

#[async_trait]
impl Component for LocalPaths {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker {
            ctx: self.ctx.clone(),
            namespaces: self.ctx.informers.get(kinds::NAMESPACES),
            nodes: self.ctx.informers.get(kinds::NODES),
            classes: self.ctx.informers.get(kinds::STORAGE_CLASSES),
            claims: self.ctx.informers.get(kinds::PERSISTENT_VOLUME_CLAIMS),
            volumes: self.ctx.informers.get(kinds::PERSISTENT_VOLUMES),
            queue: self.ctx.queue("local_path"),
            events: EventRecorder::new(self.ctx.client.clone(), self.ctx.clock.clone(), NAME, ""),
        });
        let _registrations = worker.listen();
        let Worker { namespaces, nodes, classes, claims, volumes, queue, .. } = &*worker;
        work(&ctx, NAME, &[namespaces, nodes, classes, claims, volumes], queue, WORKERS, &worker).await
    }
}

impl Worker {
    fn listen(self: &Arc<Self>) -> [Registration; 5] {
        let handler = |handle: fn(&Self, &Change)| {
            let worker = Arc::downgrade(self);
            move |change: &Change| {
                if let Some(worker) = worker.upgrade() {
                    handle(&worker, change);
                }
            }
        };
        [
            self.namespaces.on_change(handler(|worker, change| {
                if change.key.name == NAMESPACE {
                    worker.queue.add(Item::Class);
                }
            })),
            self.nodes.on_change(handler(Self::node_changed)),
            self.classes.on_change(handler(|worker, _| {
                worker.claims.list().iter().for_each(|claim| worker.queue.add(Item::Claim(claim.key())));
            })),
            self.claims
                .on_change(handler(|worker, change| worker.queue.add(Item::Claim(change.key.clone())))),
            self.volumes.on_change(handler(Self::volume_changed)),
        ]
    }

    /// Nodes change often; what counts is that one comes or goes, and what it says of directories: of one volume where
    /// that is all.
    fn node_changed(&self, change: &Change) {
        let said = |object: &Option<Arc<Object>>| {
            let annotations = object.as_deref().and_then(head)?.annotations.into_iter();
            Some(annotations.filter(|(key, _)| key.contains("local-path")).collect::<BTreeMap<_, _>>())
        };
        let (old, new) = (said(&change.old), said(&change.new));
        if old == new {
            return;
        }
        self.queue.add(Item::Node(change.key.clone()));
        let offers = |said: &Option<BTreeMap<_, _>>| said.as_ref().map(|said| said.get(ROOT).cloned());
        if offers(&old) != offers(&new) {
            return self.node_came_or_went(&change.key.name);
        }
        for volume in plan::changed_removals(&old.unwrap_or_default(), &new.unwrap_or_default()) {
            self.queue.add(Item::Volume(Key::new("", volume)));
        }
    }

    /// All that is to be on the node is looked at.
    fn node_came_or_went(&self, name: &str) {
        for claim in self.claims.list() {
            if claim.annotation(plan::SELECTED_NODE).as_deref() == Some(name) {
                self.queue.add(Item::Claim(claim.key()));
            }
        }
        for volume in self.volumes.list() {
            if volume.annotation(plan::NODE).as_deref() == Some(name) {
                self.queue.add(Item::Volume(volume.key()));
            }
        }
    }

    fn volume_changed(&self, change: &Change) {
        let node = change.latest().and_then(|volume| volume.annotation(plan::NODE));
        let Some(node) = node else { return };
        match &change.new {
            Some(volume) if volume.meta().is_terminating() => {
                self.queue.add(Item::Volume(change.key.clone()));
            }
            held => {
                held.iter().for_each(|volume| self.queue.add(Item::Volume(volume.key())));
                self.queue.add(Item::Node(Key::new("", node)));
            }
        }
    }

    /// Makes the class, and notes that it was made.
    async fn make_class(&self) -> Result<(), BoxError> {
        let Some(system) = self.namespaces.get(&Key::new("", NAMESPACE)) else { return Ok(()) };
        if system.annotation(plan::CLASS_MADE).is_some() {
            return Ok(());
        }
        let default = !self.classes.list().iter().any(|class| plan::is_default(class));
        match self.ctx.client.create(self.classes.resource(), "", &plan::class(default)).await {
            Ok(_) => {}
            Err(status) if status.reason == Reason::AlreadyExists => {}
            Err(status) => return Err(status.into()),
        }
        let made = json!({ "metadata": { "annotations": { plan::CLASS_MADE: "made" } } });
        self.annotate(&self.namespaces, &system.key(), &made).await
    }

    async fn annotate(&self, of: &Informer, key: &Key, patch: &Value) -> Result<(), BoxError> {
        ignore_missing(self.ctx.client.patch(of.resource(), key, "", PatchType::Merge, patch).await)?;
        Ok(())
    }

    async fn sync_claim(&self, key: &Key) -> Result<(), BoxError> {
        let Some(object) = self.claims.get(key) else { return Ok(()) };
        let claim: Claim = decode(&object)?;
        let class = self.classes.get(&Key::new("", claim.class()));
        let class = class.map(|class| decode::<Class>(&class)).transpose()?;
        let node = claim.node().and_then(|name| self.nodes.get(&Key::new("", name)));
        let node = node.as_deref().and_then(head);
        let say = |kind, reason: &str, message: String| {
            let involved = Involved::object(&kinds::PERSISTENT_VOLUME_CLAIMS, &object);
            self.events.event(involved, kind, reason, message);
        };
        match plan_claim(&claim, class.as_ref(), node.as_ref()) {
            ClaimStep::Leave => Ok(()),
            ClaimStep::Refuse(why) => {
                say(EventType::Warning, "ProvisioningFailed", why);
                Ok(())
            }
            ClaimStep::Reschedule(why) => {
                say(EventType::Warning, "ProvisioningReschedule", why);
                let patch = json!({ "metadata": { "uid": claim.metadata.uid,
                    "annotations": { plan::SELECTED_NODE: null } } });
                ignore_gone(
                    self.ctx.client.patch(self.claims.resource(), key, "", PatchType::Merge, &patch).await,
                )?;
                Ok(())
            }
            ClaimStep::Make(volume) => {
                let name = volume["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                match self.ctx.client.create(self.volumes.resource(), "", &volume).await {
                    Ok(_) => {
                        let message = format!("Successfully provisioned volume {name}");
                        say(EventType::Normal, "ProvisioningSucceeded", message);
                        Ok(())
                    }
                    Err(status) if status.reason == Reason::AlreadyExists => Ok(()),
                    Err(status) => {
                        say(
                            EventType::Warning,
                            "ProvisioningFailed",
                            format!("create volume {name}: {status}"),
                        );
                        Err(status.into())
                    }
                }
            }
        }
    }

    async fn sync_volume(&self, key: &Key) -> Result<(), BoxError> {
        let Some(object) = self.volumes.get(key) else { return Ok(()) };
        let volume: Volume = decode(&object)?;
        let at = Key::new("", volume.node());
        let node = self.nodes.get(&at).as_deref().and_then(head);
        match plan_volume(&volume, node.as_ref()) {
            VolumeStep::Leave => Ok(()),
            VolumeStep::Delete => {
                // Of this very version: somebody may just have said that it is to be kept.
                let options = DeleteOptions {
                    precondition_uid: Some(volume.metadata.uid.clone()),
                    precondition_resource_version: Some(volume.metadata.resource_version.clone()),
                    ..DeleteOptions::default()
                };
                ignore_missing(self.ctx.client.delete(self.volumes.resource(), key, options).await)?;
                Ok(())
            }
            VolumeStep::Ask => self.annotate(&self.nodes, &at, &plan::asking(&key.name)).await,
            VolumeStep::LetGo => {
                // Of this very version: who holds it meanwhile goes on holding it.
                let meta = &volume.metadata;
                let patch = json!({ "metadata": { "uid": meta.uid, "resourceVersion": meta.resource_version,
                    "finalizers": null } });
                let gone =
                    self.ctx.client.patch(self.volumes.resource(), key, "", PatchType::Merge, &patch).await;
                ignore_missing(gone)?;
                Ok(())
            }
        }
    }

    /// Forgets removals of volumes that are gone.
    async fn sync_node(&self, key: &Key) -> Result<(), BoxError> {
        let Some(node) = self.nodes.get(key) else { return Ok(()) };
        let Some(meta) = head(&node) else { return Ok(()) };
        // Also what was asked for and is not true any more: a volume that somebody has brought back keeps its directory.
        let goes = |volume: &str| {
            self.volumes.get(&Key::new("", volume)).is_some_and(|held| held.meta().is_terminating())
        };
        let over = plan::removals(&meta).filter(|volume| !goes(volume));
        let annotations: serde_json::Map<String, Value> =
            over.map(|volume| (removal(volume), Value::Null)).collect();
        if annotations.is_empty() {
            return Ok(());
        }
        let was_full = plan::removals(&meta).count() >= plan::REMOVALS_MAX;
        self.annotate(&self.nodes, key, &json!({ "metadata": { "annotations": annotations } })).await?;
        if !was_full {
            return Ok(());
        }
        // There is room for others that wait.
        for volume in self.volumes.list() {
            if volume.meta().is_terminating() && volume.annotation(plan::NODE).as_ref() == Some(&key.name) {
                self.queue.add(Item::Volume(volume.key()));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Reconcile<Item> for Worker {
    async fn reconcile(&self, item: &Item) -> Result<Action, BoxError> {
        match item {
            Item::Class => self.make_class().await?,
            Item::Claim(key) => self.sync_claim(key).await?,
            Item::Volume(key) => self.sync_volume(key).await?,
            Item::Node(key) => self.sync_node(key).await?,
        }
        Ok(Action::Done)
    }
}
