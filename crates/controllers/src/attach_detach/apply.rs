//! Carries out what the plans say.

use api::{DeleteOptions, Key, Object, PatchType, Reason, Status};
use base::BoxError;
use jiff::Timestamp;
use reconcile::{Action, EventType, Involved, kinds};
use serde_json::json;

use super::plan::{Detach, Part, Side, Step, elsewhere, plan_node, plan_volume, said_by, used_on};
use super::source::{Handle, handle_of, is_own_name};
use super::types::{Attachment, Node, Volume};
use super::world::{Held, Item, Need, Source, Told, Want, World};
use super::{Worker, decoded};
use crate::claim::ignore_missing;

const FAILED: &str = "FailedAttachVolume";
const SUCCEEDED: &str = "SuccessfulAttachVolume";

impl Worker {
    /// An attachment as it counts here; nothing for one that somebody else made.
    pub(super) fn held(&self, world: &World, object: &Object) -> Option<Held> {
        let attachment: Attachment = decoded(object)?;
        let meta = &attachment.metadata;
        let id = &meta.name;
        let node = &attachment.spec.node_name;
        let is_named = |handle: &Handle| handle.attachment_on(node) == *id;
        let volume = match world.want(id) {
            Some(want) => Some(want.need.volume.clone()),
            // The volume may be gone, or be another of the same name: then its node still knows of what it says that it
            // is attached.
            None => match self.handle(&attachment).filter(is_named).or_else(|| self.said(id, node)) {
                // It is known from before, or it is of a volume that nobody knows any more.
                None if !is_own_name(id) && world.held(id).is_none_or(|held| held.uid != meta.uid) => {
                    return None;
                }
                known => known,
            },
        };
        Some(Held {
            uid: meta.uid.clone(),
            volume,
            attached: attachment.status.attached,
            terminating: meta.is_terminating(),
            failure: attachment.status.attach_error,
            node: attachment.spec.node_name,
            ..Held::default()
        })
    }

    /// Of which volume an attachment is by what its node says. Source: `populateActualStateOfWorld`.
    fn said(&self, id: &str, node: &str) -> Option<Handle> {
        said_by(&self.node(node)?, node, id)
    }

    /// Which volume an attachment names. Source: `processVolumeAttachments`.
    fn handle(&self, attachment: &Attachment) -> Option<Handle> {
        let source = &attachment.spec.source;
        if let Some(spec) = &source.inline_volume_spec {
            let handle = spec.csi.as_ref().map(|csi| csi.volume_handle.clone())?;
            return Some(Handle { driver: attachment.spec.attacher.clone(), handle });
        }
        let volume = self.volumes.get(&Key::new("", source.persistent_volume_name.as_deref()?))?;
        handle_of(&decoded::<Volume>(&volume)?)
    }

    fn node(&self, name: &str) -> Option<Node> {
        decoded(&*self.nodes.get(&Key::new("", name))?)
    }

    /// One pass over a volume.
    pub(super) async fn sync_volume(&self, volume: &Handle) -> Result<Action, BoxError> {
        let now = self.ctx.clock.now();
        let plan = plan_volume(&self.sides(&self.world.lock(), volume), now);
        let mut result = Ok(());
        for (node, step) in plan.steps {
            let done = self.step(&volume.attachment_on(&node), step, now).await;
            // The other nodes are not to wait for one that fails.
            result = result.and(done);
        }
        result?;
        Ok(Action::after(plan.wait))
    }

    fn sides<'a>(&self, world: &'a World, volume: &Handle) -> Vec<Side<'a>> {
        let side = |id: &String| {
            let (want, held) = (world.want(id), world.held(id));
            let node = want.map(|want| &want.need.node).or(held.map(|held| &held.node))?;
            let managed = world.traits(node).managed;
            // Few are attached where nobody needs them.
            let keeps = |held: Node| !held.is_managed() || used_on(node, &held).contains(id);
            let kept = want.is_none() && self.node(node).is_some_and(keeps);
            Some(Side { node, want, held, managed, kept })
        };
        world.of_volume(volume).iter().filter_map(side).collect()
    }

    async fn step(&self, id: &str, step: Step, now: Timestamp) -> Result<(), BoxError> {
        let Some(want) = self.world.lock().want(id).cloned() else { return Ok(()) };
        let name = &want.need.name;
        match step {
            Step::Create => return self.create(&want, now).await,
            Step::Pending => self.note(id, |want| want.asked = Some(now)),
            Step::Attached => {
                self.note(id, |want| (want.asked, want.told) = (None, None));
                let message = format!("AttachVolume.Attach succeeded for volume {name:?} ");
                self.say(&want, EventType::Normal, SUCCEEDED, |_| message.clone());
            }
            Step::Elsewhere(pods) => {
                self.note(id, |want| want.told = Some(Told::Elsewhere));
                self.say(&want, EventType::Warning, FAILED, |pod| elsewhere(name, pod, &pods));
            }
            Step::Failed(told, why) => {
                self.note(id, |want| {
                    want.told = Some(told);
                    want.asked.get_or_insert(now);
                });
                self.say_failed(&want, &why);
            }
            Step::TimedOut => {
                self.note(id, |want| want.asked = Some(now));
                let Handle { driver, handle } = &want.need.volume;
                let why = format!(
                    "timed out waiting for external-attacher of {driver} CSI driver to attach volume {handle}"
                );
                self.say_failed(&want, &why);
            }
        }
        Ok(())
    }

    fn note(&self, id: &str, change: impl FnOnce(&mut Want)) {
        if let Some(want) = self.world.lock().want_mut(id) {
            change(want);
        }
    }

    /// Tells the users of every pod that needs a volume.
    fn say(&self, want: &Want, event_type: EventType, reason: &str, message: impl Fn(&Key) -> String) {
        for (pod, uid) in &want.pods {
            let involved = Involved::named(&kinds::PODS, pod, uid);
            self.events.event(involved, event_type, reason, message(pod));
        }
    }

    fn say_failed(&self, want: &Want, why: &str) {
        let message = format!("AttachVolume.Attach failed for volume {:?} : {why}", want.need.name);
        self.say(want, EventType::Warning, FAILED, |_| message.clone());
    }

    /// Asks whoever listens to attach a volume. Source: `csiAttacher.Attach`.
    async fn create(&self, want: &Want, now: Timestamp) -> Result<(), BoxError> {
        let body = attachment(&want.need);
        match self.ctx.client.create(&kinds::VOLUME_ATTACHMENTS.gvr(), "", &body).await {
            Ok(made) => {
                self.note(&want.need.id, |want| want.asked = Some(now));
                self.ctx.caught_up(&self.attachments, made.revision()).await;
                Ok(())
            }
            // It is there, and the cache will show it.
            Err(Status { reason: Reason::AlreadyExists, .. }) => {
                self.note(&want.need.id, |want| want.asked = Some(now));
                Ok(())
            }
            Err(status) => {
                self.say_failed(want, &status.message);
                Err(status.into())
            }
        }
    }

    /// One pass over a node.
    pub(super) async fn sync_node(&self, name: &str) -> Result<Action, BoxError> {
        let now = self.ctx.clock.now();
        let node = self.node(name);
        let plan = {
            let mut world = self.world.lock();
            let ids = world.of_node(name);
            let part = |id| Some(Part { id, held: world.held(id)?, wanted: world.want(id).is_some() });
            let parts: Vec<Part<'_>> = ids.iter().filter_map(|id| part(id.as_str())).collect();
            let plan = plan_node(name, node.as_ref(), &parts, now);
            for id in &ids {
                if let Some(held) = world.held_mut(id) {
                    let idle = plan.idle.contains(id);
                    held.idle_since = idle.then(|| held.idle_since.unwrap_or(now));
                }
            }
            plan
        };
        let mut live = None;
        if let Some(attached) = &plan.attached {
            let patch = json!({ "status": { "volumesAttached": attached } });
            let (nodes, key) = (kinds::NODES.gvr(), Key::new("", name));
            let written = self.ctx.client.patch(&nodes, &key, "status", PatchType::Merge, &patch).await;
            live = ignore_missing(written)?;
        }
        if !plan.detach.is_empty() {
            self.detach(name, node.is_some(), live.as_deref(), plan.detach).await?;
        }
        Ok(Action::after(plan.wait))
    }

    /// Detaches what a node does not use, now that its status tells it that it may not begin to. `live` is the node as it
    /// was after that, if it had to be written. Source: `verifyVolumeIsSafeToDetach`.
    async fn detach(
        &self,
        name: &str,
        exists: bool,
        live: Option<&Object>,
        detach: Vec<Detach>,
    ) -> Result<(), BoxError> {
        let asked = match live {
            None if exists && detach.iter().any(|gone| !gone.forced) => {
                match self.ctx.client.get(&kinds::NODES.gvr(), &Key::new("", name)).await {
                    Ok(node) => Some(node),
                    Err(Status { reason: Reason::NotFound, .. }) => None,
                    Err(status) => return Err(status.into()),
                }
            }
            _ => None,
        };
        let live: Option<Node> = live.or(asked.as_deref()).map(crate::context::decode).transpose()?;
        let used = live.map(|live| used_on(name, &live));
        let is_free = |id: &str| used.as_ref().is_some_and(|used| !used.contains(id));
        let mut result = Ok(());
        for gone in detach {
            // What it began to use in the meantime, its next status will say, and if it is gone by now that will be told:
            // either brings the next look.
            if gone.forced || is_free(&gone.id) {
                // The others are not to wait for one that fails.
                result = result.and(self.delete(name, gone).await);
            }
        }
        result
    }

    async fn delete(&self, node: &str, Detach { id, uid, forced, off }: Detach) -> Result<(), BoxError> {
        {
            let mut world = self.world.lock();
            if world.want(&id).is_some() {
                // Somebody needs it again: its node has to be told so.
                drop(world);
                self.queue.add(Item::Node(node.to_owned()));
                return Ok(());
            }
            if let Some(held) = world.held_mut(&id).filter(|held| held.uid == uid) {
                held.released = true;
            }
        }
        if let Some(figures) = self.ctx.figures.as_ref().filter(|_| forced) {
            figures.volumes.forced(off);
        }
        let options = DeleteOptions { precondition_uid: Some(uid), ..DeleteOptions::default() };
        let key = Key::new("", id.as_str());
        match self.ctx.client.delete(&kinds::VOLUME_ATTACHMENTS.gvr(), &key, options).await {
            Ok(()) | Err(Status { reason: Reason::Conflict | Reason::NotFound, .. }) => Ok(()),
            Err(status) => {
                if let Some(held) = self.world.lock().held_mut(&id) {
                    held.released = false;
                }
                Err(status.into())
            }
        }
    }
}

/// The object by which somebody is asked. Source: `newVolumeAttachment`.
fn attachment(need: &Need) -> serde_json::Value {
    let kind = kinds::VOLUME_ATTACHMENTS;
    let source = match &need.source {
        Source::Volume(name) => json!({ "persistentVolumeName": name }),
        Source::Inline(spec) => json!({ "inlineVolumeSpec": spec }),
    };
    json!({
        "apiVersion": kind.api_version(), "kind": kind.kind, "metadata": { "name": need.id },
        "spec": { "attacher": need.volume.driver, "nodeName": need.node, "source": source },
    })
}
