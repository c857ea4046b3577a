//! Looks an object up as it really is, and does what the plan says.

use std::sync::Arc;

use api::{DeleteOptions, Key, Object, ObjectMeta, OwnerReference, PatchType, Reason, Status};
use base::BoxError;
use reconcile::kinds::Served;
use reconcile::{Action, EventType, Involved};
use serde_json::Value;

use super::plan::{
    Decision, Dependent, ORPHAN, Owner, decide, finalizers_patch, has_finalizer, owners_patch, unblock_patch,
    waits,
};
use super::{Node, Worker, reaches};

impl Worker {
    /// One pass over one object.
    pub(super) async fn sync(&self, node: &Node) -> Result<Action, BoxError> {
        if self.is_plainly_owned(node) {
            return Ok(Action::Done);
        }
        let Some(live) = self.live(node).await? else { return Ok(Action::Done) };
        let meta = live.meta();
        let mut owners = Vec::with_capacity(meta.owner_references.len());
        if !meta.is_terminating() {
            for owner in &meta.owner_references {
                owners.push((owner.uid.clone(), self.state_of(node, owner).await?));
            }
        }
        let found = self.dependents(&node.uid);
        let dependents: Vec<Dependent> = found
            .iter()
            .map(|(_, object)| Dependent {
                blocks: blocks(object.meta(), &node.uid),
                waits: waits(object.meta()),
            })
            .collect();
        match decide(meta, &owners, &dependents) {
            Decision::Keep => {}
            Decision::VisitDependents if has_finalizer(meta, ORPHAN) => {
                self.orphan(node, meta, found).await?
            }
            Decision::VisitDependents => {
                // One that waits too is looked at when its own dependents change. In a circle each would call the other
                // for ever.
                for (dependent, _) in found.into_iter().filter(|(_, object)| !waits(object.meta())) {
                    self.queue.add(dependent);
                }
            }
            Decision::Unfinalize(finalizer) => {
                self.patch(node, &finalizers_patch(meta, finalizer)).await?;
            }
            Decision::Disown(gone) => {
                self.patch(node, &owners_patch(meta, |owner| !gone.contains(&owner.uid))).await?;
            }
            Decision::Delete { propagation, unblock } => {
                if unblock {
                    self.patch(node, &unblock_patch(meta)).await?;
                }
                let options = DeleteOptions {
                    propagation: Some(propagation),
                    precondition_uid: Some(node.uid.clone()),
                    // Owners that came since would be overlooked; after an unblock the version is a new one.
                    precondition_resource_version: (!unblock).then(|| meta.resource_version.clone()),
                    ..DeleteOptions::default()
                };
                tracing::debug!(resource = %node.resource, key = %node.key, ?propagation, "collecting");
                self.ctx.client.delete(&node.resource, &node.key, options).await?;
            }
        }
        Ok(Action::Done)
    }

    /// Whether the caches show an object that stays, with owners that stay: what almost every object looks like once all
    /// caches are filled, and no reason to ask the server.
    fn is_plainly_owned(&self, node: &Node) -> bool {
        let stays = |object: &Arc<Object>| !object.meta().is_terminating();
        let informer = self.monitors.read().get(&node.resource).map(|monitor| monitor.informer.clone());
        let held = informer.and_then(|informer| informer.by_uid(&node.uid)).filter(stays);
        held.is_some_and(|held| {
            let owners = &held.meta().owner_references;
            owners.iter().all(|owner| {
                self.find(&owner.uid).is_some_and(|(found, object)| {
                    stays(&object) && reaches(&held.meta().namespace, &found.key.namespace)
                })
            })
        })
    }

    /// The object as the server has it now, if it is still the same.
    async fn live(&self, node: &Node) -> Result<Option<Arc<Object>>, Status> {
        match self.ctx.client.get(&node.resource, &node.key).await {
            Ok(live) if live.meta().uid == node.uid => Ok(Some(live)),
            Ok(_) => Ok(None),
            Err(status) if status.reason == Reason::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    async fn patch(&self, node: &Node, patch: &Value) -> Result<(), Status> {
        match self.ctx.client.patch(&node.resource, &node.key, "", PatchType::Merge, patch).await {
            Err(status) if status.reason == Reason::NotFound => Ok(()),
            other => other.map(drop),
        }
    }

    /// How an owner is: by the caches, and where they do not have it, by the server.
    async fn state_of(&self, node: &Node, owner: &OwnerReference) -> Result<Owner, BoxError> {
        if let Some((found, object)) = self.find(&owner.uid) {
            return Ok(if !reaches(&node.key.namespace, &found.key.namespace) {
                self.tell_out_of_reach(node, owner);
                out_of_reach(node)
            } else if waits(object.meta()) {
                Owner::Waiting
            } else {
                Owner::Solid
            });
        }
        let Some(row) = self.resource_of(owner) else {
            // Nobody knows whether it is there: then it is not collected.
            return Err(format!(
                "owner {} {}/{} of {} is of no kind that is served",
                owner.api_version, owner.kind, owner.name, node.key
            )
            .into());
        };
        if row.namespaced && node.key.namespace.is_empty() {
            // Wherever it is: what is in no namespace cannot have an owner in one.
            self.tell_out_of_reach(node, owner);
            return Ok(out_of_reach(node));
        }
        let namespace = if row.namespaced { node.key.namespace.as_str() } else { "" };
        let key = Key::new(namespace, owner.name.as_str());
        let live = self.live(&Node { resource: row.resource, key, uid: owner.uid.clone() }).await?;
        Ok(match live {
            None => Owner::Absent,
            Some(live) if waits(live.meta()) => Owner::Waiting,
            Some(_) => Owner::Solid,
        })
    }

    /// Source: `reportInvalidNamespaceOwnerRef`.
    fn tell_out_of_reach(&self, node: &Node, owner: &OwnerReference) {
        let kind = self.monitors.read().get(&node.resource).map(|monitor| monitor.served.kind.clone());
        let Some(kind) = kind else { return };
        let involved = Involved {
            api_version: node.resource.api_version(),
            kind,
            namespace: node.key.namespace.clone(),
            name: node.key.name.clone(),
            uid: node.uid.clone(),
            ..Involved::default()
        };
        let message = invalid_owner(&node.key.namespace, owner);
        self.events.event(involved, EventType::Warning, "OwnerRefInvalidNamespace", message);
    }

    /// The resource of an owner reference: the kind in the same group; the version may be another one.
    fn resource_of(&self, owner: &OwnerReference) -> Option<Served> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let monitors = self.monitors.read();
        let mut rows = monitors.values().map(|monitor| &monitor.served);
        rows.find(|row| row.resource.group == group && row.kind == owner.kind).cloned()
    }

    /// Takes the owner out of its dependents' references, then lets it go.
    async fn orphan(
        &self,
        node: &Node,
        meta: &ObjectMeta,
        dependents: Vec<(Node, Arc<Object>)>,
    ) -> Result<(), BoxError> {
        for (dependent, _) in dependents {
            // The cache may be behind; the patch is bound to what the server has.
            if let Some(live) = self.live(&dependent).await? {
                self.patch(&dependent, &owners_patch(live.meta(), |owner| owner.uid != node.uid)).await?;
            }
        }
        self.patch(node, &finalizers_patch(meta, ORPHAN)).await?;
        Ok(())
    }
}

/// What an owner in a namespace that is not the object's means: nothing of the kind is there for it, but what is in no
/// namespace is never collected for such an owner's lack. Source: `namespacedOwnerOfClusterScopedObjectErr`.
fn out_of_reach(node: &Node) -> Owner {
    if node.key.namespace.is_empty() { Owner::Solid } else { Owner::Absent }
}

/// Upstream's words for an owner that is in another namespace than an object of `namespace`.
fn invalid_owner(namespace: &str, owner: &OwnerReference) -> String {
    let OwnerReference { api_version, kind, name, uid, .. } = owner;
    format!(
        "ownerRef [{api_version}/{kind}, namespace: {namespace}, name: {name}, uid: {uid}] does not exist in namespace \
         \"{namespace}\""
    )
}

fn blocks(meta: &ObjectMeta, owner_uid: &str) -> bool {
    meta.owner_references
        .iter()
        .any(|owner| owner.uid == owner_uid && owner.block_owner_deletion == Some(true))
}
