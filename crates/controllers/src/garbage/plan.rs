//! Decides what becomes of one object.

use api::{ObjectMeta, OwnerReference, Propagation};
use serde_json::{Value, json};

/// The finalizer of an object whose dependents go first.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an object whose dependents stay.
pub(super) const ORPHAN: &str = "orphan";

/// How an owner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// There, and staying as far as this object is concerned.
    Solid,
    /// Gone: nothing with this uid is there.
    Absent,
    /// Being deleted in the foreground: it waits for its dependents.
    Waiting,
}

/// A dependent of the object that is decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dependent {
    /// Whether it holds up the owner's foreground deletion.
    pub(super) blocks: bool,
    /// Whether it is itself waiting for its dependents.
    pub(super) waits: bool,
}

/// What to do with an object.
#[derive(Debug, PartialEq)]
pub(super) enum Decision {
    /// Nothing.
    Keep,
    /// Look at its dependents: they have to go (or to stay) first.
    VisitDependents,
    /// Take this finalizer away.
    Unfinalize(&'static str),
    /// Take the references to these owners away; others hold it.
    Disown(Vec<String>),
    /// Delete it. Its dependents no longer hold up its owners if `unblock`.
    Delete { propagation: Propagation, unblock: bool },
}

/// Whether a finalizer is set.
pub(super) fn has_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().any(|held| held == finalizer)
}

/// Whether an object is being deleted in the foreground.
pub(super) fn waits(meta: &ObjectMeta) -> bool {
    meta.is_terminating() && has_finalizer(meta, FOREGROUND)
}

/// Decides for an object as it is on the server. Source: `attemptToDeleteItem`, `attemptToOrphanWorker`.
pub(super) fn decide(meta: &ObjectMeta, owners: &[(String, Owner)], dependents: &[Dependent]) -> Decision {
    if meta.is_terminating() {
        return if has_finalizer(meta, ORPHAN) {
            if dependents.is_empty() { Decision::Unfinalize(ORPHAN) } else { Decision::VisitDependents }
        } else if has_finalizer(meta, FOREGROUND) {
            let blocked = dependents.iter().any(|dependent| dependent.blocks);
            if blocked { Decision::VisitDependents } else { Decision::Unfinalize(FOREGROUND) }
        } else {
            Decision::Keep
        };
    }
    if owners.is_empty() {
        return Decision::Keep;
    }
    let is = |wanted: Owner| owners.iter().any(|(_, owner)| *owner == wanted);
    if is(Owner::Solid) {
        let gone: Vec<String> =
            owners.iter().filter(|(_, owner)| *owner != Owner::Solid).map(|(uid, _)| uid.clone()).collect();
        return if gone.is_empty() { Decision::Keep } else { Decision::Disown(gone) };
    }
    if is(Owner::Waiting) && !dependents.is_empty() {
        // A circle of owners would wait for itself for ever.
        let unblock = dependents.iter().any(|dependent| dependent.waits);
        return Decision::Delete { propagation: Propagation::Foreground, unblock };
    }
    let propagation = if has_finalizer(meta, ORPHAN) {
        Propagation::Orphan
    } else if has_finalizer(meta, FOREGROUND) {
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    Decision::Delete { propagation, unblock: false }
}

/// A merge patch that leaves the owner references that satisfy `keep`, bound to the version that was looked at.
pub(super) fn owners_patch(meta: &ObjectMeta, keep: impl Fn(&OwnerReference) -> bool) -> Value {
    let owners: Vec<&OwnerReference> = meta.owner_references.iter().filter(|owner| keep(owner)).collect();
    json!({ "metadata": { "ownerReferences": owners, "resourceVersion": meta.resource_version } })
}

/// A merge patch that takes a finalizer away, bound to the version that was looked at.
pub(super) fn finalizers_patch(meta: &ObjectMeta, finalizer: &str) -> Value {
    let left: Vec<&String> = meta.finalizers.iter().filter(|held| *held != finalizer).collect();
    json!({ "metadata": { "finalizers": left, "resourceVersion": meta.resource_version } })
}

/// A merge patch after which the references hold up no owner's deletion.
pub(super) fn unblock_patch(meta: &ObjectMeta) -> Value {
    let owners: Vec<OwnerReference> = meta
        .owner_references
        .iter()
        .map(|owner| OwnerReference {
            block_owner_deletion: owner.block_owner_deletion.map(|_| false),
            ..owner.clone()
        })
        .collect();
    json!({ "metadata": { "ownerReferences": owners, "resourceVersion": meta.resource_version } })
}
