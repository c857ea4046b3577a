//! Carries out what the plan says. Every write is one over the version that was read: two bindings of one volume cannot
//! both succeed, however far the caches lag.

use api::names::DEFAULT_STORAGE_CLASS;
use api::{Key, Object, Reason, Status};
use base::BoxError;
use reconcile::{Action, EventType, Involved, Kind, kinds};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::plan::{Around, ClaimStep, Reclaim, Said, VolumeStep, is_own_binding, plan_claim, plan_volume};
use super::types::{BIND_COMPLETED, BOUND_BY_CONTROLLER, Claim, ClaimRef, Class, PROVISIONER, Volume};
use super::{Item, Worker};
use crate::context::{decode, key_of};
use crate::figures::volumes::{Operation, VolumeFigures};
use crate::pods::uses_claim;

const CLAIMS: Kind = kinds::PERSISTENT_VOLUME_CLAIMS;
const VOLUMES: Kind = kinds::PERSISTENT_VOLUMES;

/// An object that is changed: whole, as it is written back.
struct Draft {
    kind: Kind,
    key: Key,
    tree: Value,
}

impl Draft {
    fn of(kind: Kind, object: &Object) -> Result<Self, BoxError> {
        Ok(Self { kind, key: object.key(), tree: decode(object)? })
    }

    fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, BoxError> {
        T::deserialize(&self.tree).map_err(|error| format!("cannot read {}: {error}", self.key).into())
    }

    fn annotate(&mut self, name: &str, value: &str) {
        let held = &mut self.tree["metadata"]["annotations"];
        if !held.is_object() {
            *held = Value::Object(Map::new());
        }
        held[name] = value.into();
    }

    fn forget(&mut self, name: &str) {
        if let Some(held) = self.tree["metadata"]["annotations"].as_object_mut() {
            held.remove(name);
        }
    }

    fn involved(&self) -> Involved {
        let text = |field: &str| self.tree["metadata"][field].as_str().unwrap_or_default().to_owned();
        Involved {
            resource_version: text("resourceVersion"),
            ..Involved::named(&self.kind, &self.key, &text("uid"))
        }
    }
}

impl Worker {
    /// Writes a draft, and takes over what it became.
    async fn write(&self, draft: &mut Draft, subresource: &str) -> Result<(), BoxError> {
        let resource = draft.kind.gvr();
        let written = self.ctx.client.update(&resource, &draft.key, subresource, &draft.tree).await?;
        draft.tree = decode(&written)?;
        Ok(())
    }

    fn say(&self, draft: &Draft, (event_type, reason, message): Said) {
        self.events.event(draft.involved(), event_type, reason, message);
    }

    /// One pass over one claim.
    pub(super) async fn sync_claim(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.claims.get(key) else { return Ok(Action::Done) };
        let mut draft = Draft::of(CLAIMS, &object)?;
        let claim: Claim = draft.read()?;
        let named = &claim.spec.volume_name;
        // A claim that names its volume is decided by that one.
        let volumes = if named.is_empty() {
            self.index.read().candidates(&claim)
        } else {
            self.index.read().volume(named).into_iter().collect()
        };
        let waiting = if named.is_empty() { self.waiting_pods(key)? } else { Vec::new() };
        let classes: Vec<Class> =
            self.classes.list().iter().map(|class| decode(class)).collect::<Result<_, _>>()?;
        let around = Around {
            volumes: &volumes,
            class: classes.iter().find(|class| class.metadata.name == claim.class()),
            default_class: default_class(&classes),
            waiting: &waiting,
        };
        match plan_claim(&claim, &around) {
            ClaimStep::Wait(said) => {
                if let Some(said) = said {
                    self.say(&draft, said);
                }
                self.claim_phase(&mut draft, "Pending", None).await?;
            }
            ClaimStep::Lost(reason, message) => {
                if claim.status.phase != "Lost" {
                    self.claim_phase(&mut draft, "Lost", None).await?;
                    self.say(&draft, (EventType::Warning, reason, message.into()));
                }
            }
            ClaimStep::Bind(volume) => {
                self.bind(draft, &volume).await?;
                self.count(|figures| figures.ends(Operation::Provision, key.to_string()));
            }
            ClaimStep::Classify(class) => {
                draft.tree["spec"]["storageClassName"] = class.into();
                let written = self.write(&mut draft, "").await;
                self.ctx.figures.iter().for_each(|figures| figures.volumes.classified(written.is_ok()));
                written?;
            }
            ClaimStep::Provision(provisioner) => {
                self.count(|figures| figures.begins(Operation::Provision, key.to_string(), &provisioner));
                let asked = self.ask_for(draft, &claim, &provisioner).await;
                if asked.is_err() {
                    self.count(|figures| figures.fails(Operation::Provision, key.to_string()));
                }
                asked?;
            }
            ClaimStep::Unprovisionable(why) => {
                self.say(&draft, (EventType::Warning, "ProvisioningFailed", why));
            }
        }
        Ok(Action::Done)
    }

    pub(super) fn count(&self, count: impl FnOnce(&VolumeFigures)) {
        if let Some(figures) = &self.ctx.figures {
            count(&figures.volumes);
        }
    }

    /// Pods of a claim that have no node.
    fn waiting_pods(&self, claim: &Key) -> Result<Vec<String>, BoxError> {
        let mut names = Vec::new();
        for pod in self.pods.in_namespace(&claim.namespace) {
            if pod.node_name().is_none() && uses_claim(&decode(&pod)?, &claim.name) {
                names.push(pod.meta().name.clone());
            }
        }
        Ok(names)
    }

    /// Says who is to make a claim's volume. Source: `provisionClaimOperationExternal`.
    async fn ask_for(&self, mut draft: Draft, claim: &Claim, provisioner: &str) -> Result<(), BoxError> {
        let annotations = &claim.metadata.annotations;
        if !PROVISIONER.iter().all(|name| annotations.get(*name).is_some_and(|held| held == provisioner)) {
            PROVISIONER.iter().for_each(|name| draft.annotate(name, provisioner));
            self.write(&mut draft, "").await?;
        }
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
             system administrator. If volume creation is delayed, please verify that the provisioner is running and \
             correctly registered."
        );
        self.say(&draft, (EventType::Normal, "ExternalProvisioning", message));
        Ok(())
    }

    /// Binds both to each other: the volume first, then the claim, each before its status. What breaks off in between
    /// is taken up again from what is there. Source: `bind`.
    async fn bind(&self, mut claim: Draft, volume: &str) -> Result<(), BoxError> {
        let Some(object) = self.volumes.get(&Key::new("", volume)) else { return Ok(()) };
        let mut volume = Draft::of(VOLUMES, &object)?;
        let held: Volume = volume.read()?;
        let wanted: Claim = claim.read()?;
        let (own, meta) = (held.is_for(&wanted), &wanted.metadata);
        if !own && held.spec.claim_ref.is_some() {
            // Somebody took it since it was chosen: what says so brings the next look.
            return Ok(());
        }
        if !own || held.spec.claim_ref.as_ref().is_some_and(|held| held.uid.is_empty()) {
            let reference = ClaimRef {
                kind: CLAIMS.kind.into(),
                namespace: meta.namespace.clone(),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
                api_version: CLAIMS.api_version(),
                resource_version: meta.resource_version.clone(),
            };
            volume.tree["spec"]["claimRef"] = json!(reference);
            if !own {
                volume.annotate(BOUND_BY_CONTROLLER, "yes");
            }
            self.write(&mut volume, "").await?;
        }
        self.volume_phase(&mut volume, "Bound", "").await?;
        let named = wanted.spec.volume_name == volume.key.name;
        if !named || !wanted.has(BIND_COMPLETED) {
            if !named {
                claim.tree["spec"]["volumeName"] = volume.key.name.as_str().into();
                claim.annotate(BOUND_BY_CONTROLLER, "yes");
            }
            claim.annotate(BIND_COMPLETED, "yes");
            self.write(&mut claim, "").await?;
        }
        self.claim_phase(&mut claim, "Bound", Some(&volume.tree)).await
    }

    /// Source: `updateClaimStatus`.
    async fn claim_phase(
        &self,
        draft: &mut Draft,
        phase: &str,
        volume: Option<&Value>,
    ) -> Result<(), BoxError> {
        let held: Claim = draft.read()?;
        let before = draft.tree["status"].clone();
        if !draft.tree["status"].is_object() {
            draft.tree["status"] = Value::Object(Map::new());
        }
        let Some(status) = draft.tree["status"].as_object_mut() else { return Ok(()) };
        status.insert("phase".into(), phase.into());
        match volume {
            None => {
                status.remove("accessModes");
                status.remove("capacity");
            }
            Some(volume) => {
                let spec = &volume["spec"];
                status.insert("accessModes".into(), spec["accessModes"].clone());
                // What a bound claim has may differ from its volume: a file system that has yet to grow.
                if held.status.phase != phase {
                    status.insert("capacity".into(), spec["capacity"].clone());
                }
                let attributes = &spec["volumeAttributesClassName"];
                if held.status.phase == "Pending" && attributes.is_string() {
                    status.insert("currentVolumeAttributesClassName".into(), attributes.clone());
                }
            }
        }
        if draft.tree["status"] == before {
            return Ok(());
        }
        self.write(draft, "status").await
    }

    async fn volume_phase(&self, draft: &mut Draft, phase: &str, message: &str) -> Result<(), BoxError> {
        if draft.tree["status"]["phase"] == phase {
            return Ok(());
        }
        draft.tree["status"]["phase"] = phase.into();
        match draft.tree["status"].as_object_mut() {
            Some(status) if message.is_empty() => drop(status.remove("message")),
            Some(status) => drop(status.insert("message".into(), message.into())),
            None => {}
        }
        self.write(draft, "status").await
    }

    /// One pass over one volume.
    pub(super) async fn sync_volume(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.volumes.get(key) else { return Ok(Action::Done) };
        let mut draft = Draft::of(VOLUMES, &object)?;
        let volume: Volume = draft.read()?;
        let claim = self.claim_of(&volume).await?;
        match plan_volume(&volume, claim.as_ref()) {
            VolumeStep::Available => self.volume_phase(&mut draft, "Available", "").await?,
            VolumeStep::Bound => self.volume_phase(&mut draft, "Bound", "").await?,
            VolumeStep::Wake => {
                if let Some(claim) = &claim {
                    self.wake(Item::Claim(key_of(&claim.metadata)));
                }
            }
            VolumeStep::Mismatch(told, claim_told) => {
                self.say(&draft, (EventType::Warning, "VolumeMismatch", told));
                if let Some(claim) = &claim {
                    let involved = Involved::named(&CLAIMS, &key_of(&claim.metadata), &claim.metadata.uid);
                    self.events.event(involved, EventType::Warning, "VolumeMismatch", claim_told);
                }
            }
            VolumeStep::Release(reclaim) => self.release(draft, &volume, reclaim).await?,
            VolumeStep::Unbind => self.unbind(draft, &volume).await?,
        }
        Ok(Action::Done)
    }

    /// The claim that a volume names, if it is still the same. Before a volume is released, the server is asked: the
    /// cache may not show a claim yet that somebody else bound. Source: `syncVolume`.
    async fn claim_of(&self, volume: &Volume) -> Result<Option<Claim>, BoxError> {
        let Some(held) = volume.spec.claim_ref.as_ref().filter(|held| !held.uid.is_empty()) else {
            return Ok(None);
        };
        let key = Key::new(held.namespace.as_str(), held.name.as_str());
        let known = match self.claims.get(&key).filter(|claim| claim.meta().uid == held.uid) {
            Some(claim) => Some(claim),
            None if matches!(volume.status.phase.as_str(), "Released" | "Failed") => None,
            None => match self.ctx.client.get(&CLAIMS.gvr(), &key).await {
                Ok(claim) => Some(claim),
                Err(Status { reason: Reason::NotFound, .. }) => None,
                Err(status) => return Err(status.into()),
            },
        };
        let claim = known.map(|claim| decode::<Claim>(&claim)).transpose()?;
        Ok(claim.filter(|claim| claim.metadata.uid == held.uid))
    }

    async fn release(&self, mut draft: Draft, volume: &Volume, reclaim: Reclaim) -> Result<(), BoxError> {
        if !matches!(volume.status.phase.as_str(), "Released" | "Failed") {
            self.volume_phase(&mut draft, "Released", "").await?;
        }
        if volume.spec.persistent_volume_reclaim_policy == "Delete" {
            let class = self.classes.get(&Key::new("", volume.class()));
            let class = class.and_then(|class| decode::<Class>(&class).ok());
            let plugin = class.map_or_else(|| "N/A".to_owned(), |class| class.provisioner);
            let name = volume.metadata.name.clone();
            self.count(|figures| figures.begins(Operation::Delete, name, &plugin));
        }
        match reclaim {
            Reclaim::Leave => Ok(()),
            Reclaim::Fail(_, _) if volume.status.phase == "Failed" => Ok(()),
            Reclaim::Fail(reason, message) => {
                self.volume_phase(&mut draft, "Failed", &message).await?;
                self.say(&draft, (EventType::Warning, reason, message));
                Ok(())
            }
        }
    }

    /// Source: `unbindVolume`.
    async fn unbind(&self, mut draft: Draft, volume: &Volume) -> Result<(), BoxError> {
        if is_own_binding(volume) {
            draft.forget(BOUND_BY_CONTROLLER);
            if let Some(spec) = draft.tree["spec"].as_object_mut() {
                spec.remove("claimRef");
            }
        } else if let Some(held) = draft.tree["spec"]["claimRef"].as_object_mut() {
            // It stays kept for the claim, as whoever made it said.
            held.remove("uid");
        }
        self.write(&mut draft, "").await?;
        self.volume_phase(&mut draft, "Available", "").await
    }
}

/// The newest class that says it is the default, the first by name among equally old ones.
/// Source: `storage/util.GetDefaultClass`.
fn default_class(classes: &[Class]) -> Option<&str> {
    let says = |class: &&Class| {
        let held = &class.metadata.annotations;
        DEFAULT_STORAGE_CLASS.iter().any(|name| held.get(*name).is_some_and(|value| value == "true"))
    };
    let newest = classes.iter().filter(says).min_by(|a, b| {
        let (a, b) = (&a.metadata, &b.metadata);
        b.creation_timestamp.cmp(&a.creation_timestamp).then_with(|| a.name.cmp(&b.name))
    })?;
    Some(&newest.metadata.name)
}
