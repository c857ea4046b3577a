//! Who owns what: a controller adopts objects that match its selector and have no controller, and releases its own that
//! match no longer. Source: `controller.PodControllerRefManager`.

use std::sync::Arc;

use api::{Key, Object, ObjectMeta, OwnerReference, PatchType, Reason, Status};
use reconcile::{Change, Informer, Kind};
use serde_json::{Value, json};

use crate::context::{Ctx, adopt_patch, controller_ref, release_patch};
use crate::selector::{LabelSelector, Select};

/// An owner and what it selects.
pub(crate) struct Claim<'a> {
    /// Handles.
    pub(crate) ctx: &'a Ctx,
    /// The owner's kind.
    pub(crate) owner_kind: Kind,
    /// The owner.
    pub(crate) owner: &'a ObjectMeta,
    /// What it selects.
    pub(crate) selector: &'a LabelSelector,
    /// Where the objects are held.
    pub(crate) objects: &'a Informer,
    /// A finalizer that its objects carry: what is adopted gets it, what is released loses it.
    pub(crate) finalizer: Option<&'a str>,
}

impl Claim<'_> {
    /// The objects that belong to the owner after adoption and release. Orphans are adopted if `adoptable` says so.
    pub(crate) async fn run(&self, adoptable: impl Fn(&Object) -> bool) -> Result<Vec<Arc<Object>>, Status> {
        self.run_among(|_| true, adoptable).await
    }

    /// The same where more than the selector decides what may belong to the owner: its own that are no `member` are
    /// released too.
    pub(crate) async fn run_among(
        &self,
        member: impl Fn(&Object) -> bool,
        adoptable: impl Fn(&Object) -> bool,
    ) -> Result<Vec<Arc<Object>>, Status> {
        let uid = &self.owner.uid;
        // What lies in another namespace is nobody's there, whatever it says of its owner.
        let is_ours = |object: &Object| {
            let meta = object.meta();
            meta.namespace == self.owner.namespace && meta.controller().is_some_and(|owner| owner.uid == *uid)
        };
        let (mut claimed, strays): (Vec<_>, Vec<_>) = self
            .objects
            .owned_by(uid)
            .into_iter()
            .filter(|object| is_ours(object))
            .partition(|object| self.selector.matches(&object.meta().labels) && member(object));
        claimed.extend(self.settle(strays, |object| member(object) && adoptable(object)).await?);
        Ok(claimed)
    }

    /// Releases the owner's strays, which belong to it and should not, and adopts the orphans that it selects and that are
    /// `adoptable`; gives these. An owner that is being deleted does neither.
    pub(crate) async fn settle(
        &self,
        strays: Vec<Arc<Object>>,
        adoptable: impl Fn(&Object) -> bool,
    ) -> Result<Vec<Arc<Object>>, Status> {
        if self.owner.is_terminating() {
            return Ok(Vec::new());
        }
        let uid = &self.owner.uid;
        for object in strays {
            let mut patch = release_patch(uid, &object.meta().uid);
            if let Some(finalizer) = self.finalizer {
                patch["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!([finalizer]);
            }
            self.patch(&object, &patch).await?;
        }
        let orphans: Vec<_> = self
            .objects
            .orphans(&self.owner.namespace, |labels| self.selector.matches(labels))
            .into_iter()
            .filter(|object| !object.meta().is_terminating() && adoptable(object))
            .collect();
        self.adopt(orphans).await
    }

    /// Makes the owner the controller of these, if it is there and stays; gives those that are its own now.
    pub(crate) async fn adopt(&self, orphans: Vec<Arc<Object>>) -> Result<Vec<Arc<Object>>, Status> {
        let mut adopted = Vec::new();
        if !orphans.is_empty() && self.owner_still_exists().await? {
            let owner = controller_ref(&self.owner_kind, self.owner);
            for object in orphans {
                let mut patch = adopt_patch(&owner, &object.meta().uid);
                if let Some(finalizer) = self.finalizer {
                    patch["metadata"]["finalizers"] = json!([finalizer]);
                }
                adopted.extend(self.patch(&object, &patch).await?);
            }
        }
        Ok(adopted)
    }

    /// Asks the server, not the cache: an owner that is gone must not adopt.
    async fn owner_still_exists(&self) -> Result<bool, Status> {
        let key = Key::new(self.owner.namespace.as_str(), self.owner.name.as_str());
        match self.ctx.client.get(&self.owner_kind.gvr(), &key).await {
            Ok(live) => Ok(live.meta().uid == self.owner.uid && !live.meta().is_terminating()),
            Err(status) if status.reason == Reason::NotFound => Ok(false),
            Err(status) => Err(status),
        }
    }

    async fn patch(&self, object: &Object, patch: &Value) -> Result<Option<Arc<Object>>, Status> {
        let resource = self.objects.resource();
        let kind = PatchType::StrategicMerge;
        ignore_gone(self.ctx.client.patch(resource, &object.key(), "", kind, patch).await)
    }
}

/// Whether a failure says that the object is gone, or is another one by now.
pub(crate) fn is_gone(status: &Status) -> bool {
    matches!(status.reason, Reason::NotFound | Reason::Conflict)
}

/// Whether a failure says that the namespace is being deleted, in which nothing can be made any more.
pub(crate) fn is_ending_namespace(status: &Status) -> bool {
    status.details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// An object that is gone needs no change any more. One that has changed since it was looked at may well need it: that is
/// seen by the next pass, and no event has to come for it.
pub(crate) fn ignore_missing<T>(result: Result<T, Status>) -> Result<Option<T>, Status> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(status) if status.reason == Reason::NotFound => {
            tracing::debug!(error = %status, "left as it is");
            Ok(None)
        }
        Err(status) => Err(status),
    }
}

/// An object that was to be deleted, and is gone or another one by now, needs nothing any more.
pub(crate) fn ignore_gone<T>(result: Result<T, Status>) -> Result<Option<T>, Status> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(status) if is_gone(&status) => {
            tracing::debug!(error = %status, "left as it is");
            Ok(None)
        }
        Err(status) => Err(status),
    }
}

/// The object that a controller reference means, if it is of this kind and still the same. Source: `resolveControllerRef`.
pub(crate) fn resolve(
    owners: &Informer,
    kind: &Kind,
    namespace: &str,
    owner: Option<&OwnerReference>,
) -> Option<Arc<Object>> {
    let owner = owner.filter(|owner| owner.kind == kind.kind)?;
    owners.get(&Key::new(namespace, owner.name.as_str())).filter(|held| held.meta().uid == owner.uid)
}

/// The object that a changed one belonged to, if it belongs to another one now.
pub(crate) fn former(owners: &Informer, kind: &Kind, change: &Change) -> Option<Key> {
    let (old, new) = (change.old.as_ref()?.meta(), change.new.as_ref()?.meta());
    let moved = old.controller() != new.controller();
    moved.then(|| resolve(owners, kind, &old.namespace, old.controller())).flatten().map(|held| held.key())
}

/// The objects that could adopt what has just lost its controller, or got other labels without having one. `selector` reads
/// theirs; who selects everything adopts nothing.
pub(crate) fn adopters(
    owners: &Informer,
    change: &Change,
    selector: impl Fn(&Object) -> Option<LabelSelector>,
) -> Vec<Key> {
    let Some(orphan) = change.new.as_ref().map(|object| object.meta()) else { return Vec::new() };
    let same = |old: &Arc<Object>| old.meta().labels == orphan.labels && old.meta().controller().is_none();
    if orphan.controller().is_some()
        || orphan.is_terminating()
        || orphan.labels.is_empty()
        || change.old.as_ref().is_some_and(same)
    {
        return Vec::new();
    }
    let selects = |held: &Arc<Object>| {
        selector(held).is_some_and(|selector| !selector.is_empty() && selector.matches(&orphan.labels))
    };
    owners
        .in_namespace(&orphan.namespace)
        .iter()
        .filter(|held| selects(held))
        .map(|held| held.key())
        .collect()
}
