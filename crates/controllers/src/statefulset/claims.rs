//! The claims of a StatefulSet's pods: made with the pods, kept or deleted as the retention policy says. Pure.
//!
//! Claims are deleted by the garbage collector: the policy is carried out by owner references to the set, or, of pods
//! that are too many, to the pod.

use std::collections::BTreeMap;

use api::{ObjectMeta, OwnerReference};
use reconcile::{Kind, kinds};
use serde_json::{Value, json};

use super::types::StatefulSet;
use crate::context::controller_ref;

/// Claims that are there, by name.
pub(super) type Held = BTreeMap<String, ObjectMeta>;

/// What is done about one claim.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ClaimStep {
    /// It is made.
    Create { name: String, body: Value },
    /// It has the right name and is being deleted: the pod has to wait for another.
    Going { name: String },
    /// It gets other owners: a merge patch.
    Own { name: String, patch: Value },
}

/// The name of a template of claims, which is that of the volume too.
pub(super) fn template_name(template: &Value) -> &str {
    template["metadata"]["name"].as_str().unwrap_or("")
}

/// The claims of a pod: the volume's name and the claim's.
pub(super) fn names(set: &StatefulSet, ordinal: i64) -> impl Iterator<Item = (&str, String)> {
    set.spec.volume_claim_templates.iter().map(move |template| {
        let volume = template_name(template);
        (volume, format!("{volume}-{}-{ordinal}", set.metadata.name))
    })
}

/// Whether a claim's name is one that pods of the set have.
pub(super) fn is_of(set: &StatefulSet, claim: &str) -> bool {
    set.spec.volume_claim_templates.iter().any(|template| {
        let prefix = format!("{}-{}", template_name(template), set.metadata.name);
        super::identity::ordinal(&prefix, claim).is_some()
    })
}

/// The claims that a pod needs and that are not there, and those that are and go. Source: `createPersistentVolumeClaims`.
pub(super) fn missing(set: &StatefulSet, ordinal: i64, held: &Held) -> Vec<ClaimStep> {
    let templates = set.spec.volume_claim_templates.iter();
    templates
        .zip(names(set, ordinal))
        .filter_map(|(template, (_, name))| match held.get(&name) {
            None => Some(ClaimStep::Create { body: body(set, template, &name, ordinal), name }),
            Some(meta) if meta.is_terminating() => Some(ClaimStep::Going { name }),
            Some(_) => None,
        })
        .collect()
}

/// A claim as its template says, with the labels of the selector and the owner that the policy wants.
fn body(set: &StatefulSet, template: &Value, name: &str, ordinal: i64) -> Value {
    let mut claim = template.clone();
    claim["apiVersion"] = kinds::PERSISTENT_VOLUME_CLAIMS.api_version().into();
    claim["kind"] = kinds::PERSISTENT_VOLUME_CLAIMS.kind.into();
    claim["metadata"]["name"] = name.into();
    claim["metadata"]["namespace"] = set.metadata.namespace.as_str().into();
    for (key, value) in &set.spec.selector.match_labels {
        claim["metadata"]["labels"][key] = value.as_str().into();
    }
    if wanted_owner(set, ordinal) == Owner::Set {
        claim["metadata"]["ownerReferences"] = json!([controller_ref(&kinds::STATEFUL_SETS, &set.metadata)]);
    }
    if let Some(claim) = claim.as_object_mut() {
        claim.remove("status");
    }
    claim
}

/// With whom a claim goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Nobody,
    Set,
    Pod,
}

fn deletes(policy: &str) -> bool {
    policy == "Delete"
}

fn wanted_owner(set: &StatefulSet, ordinal: i64) -> Owner {
    let policy = &set.spec.persistent_volume_claim_retention_policy;
    let surplus = !set.wants(ordinal);
    match (deletes(&policy.when_scaled), deletes(&policy.when_deleted)) {
        (true, _) if surplus => Owner::Pod,
        (_, true) => Owner::Set,
        _ => Owner::Nobody,
    }
}

/// Whether a reference means this object by its name; its uid may be another's.
fn names_it(reference: &OwnerReference, kind: &Kind, meta: &ObjectMeta) -> bool {
    reference.api_version == kind.api_version() && reference.kind == kind.kind && reference.name == meta.name
}

/// Whether a reference means an earlier object of the same name.
fn is_stale(claim: &ObjectMeta, kind: &Kind, meta: &ObjectMeta) -> bool {
    let reference = claim.owner_references.iter().find(|reference| names_it(reference, kind, meta));
    reference.is_some_and(|reference| reference.uid != meta.uid)
}

fn has_owner(claim: &ObjectMeta, uid: &str) -> bool {
    claim.owner_references.iter().any(|reference| reference.uid == uid)
}

/// Whether somebody else controls the claim, so that the policy does not reach it.
fn has_other_controller(claim: &ObjectMeta, set: &StatefulSet, pod: &ObjectMeta) -> bool {
    let policy = &set.spec.persistent_volume_claim_retention_policy;
    (deletes(&policy.when_scaled) || deletes(&policy.when_deleted))
        && claim.owner_references.iter().any(|reference| {
            reference.controller == Some(true)
                && !names_it(reference, &kinds::STATEFUL_SETS, &set.metadata)
                && !names_it(reference, &kinds::PODS, pod)
        })
}

/// Whether a claim's owners are as the policy wants them. Source: `isClaimOwnerUpToDate`.
fn is_up_to_date(claim: &ObjectMeta, set: &StatefulSet, pod: &ObjectMeta, ordinal: i64) -> bool {
    // What an earlier set or pod of the name owns is the garbage collector's.
    if is_stale(claim, &kinds::STATEFUL_SETS, &set.metadata) || is_stale(claim, &kinds::PODS, pod) {
        return true;
    }
    let (ours, pods) = (has_owner(claim, &set.metadata.uid), has_owner(claim, &pod.uid));
    if has_other_controller(claim, set, pod) {
        return !ours && !pods;
    }
    let controls = |reference: &OwnerReference| reference.controller == Some(true);
    let half = claim
        .owner_references
        .iter()
        .any(|reference| [&set.metadata.uid, &pod.uid].contains(&&reference.uid) && !controls(reference));
    let wanted = wanted_owner(set, ordinal);
    !half && ours == (wanted == Owner::Set) && pods == (wanted == Owner::Pod)
}

/// The owners that a claim is to have. Source: `updateClaimOwnerRefForSetAndPod`.
fn owners(claim: &ObjectMeta, set: &StatefulSet, pod: &ObjectMeta, ordinal: i64) -> Vec<OwnerReference> {
    let others = claim.owner_references.iter().filter(|reference| {
        !names_it(reference, &kinds::STATEFUL_SETS, &set.metadata) && !names_it(reference, &kinds::PODS, pod)
    });
    let mut owners: Vec<OwnerReference> = others.cloned().collect();
    if !has_other_controller(claim, set, pod) {
        match wanted_owner(set, ordinal) {
            Owner::Nobody => {}
            Owner::Set => owners.push(controller_ref(&kinds::STATEFUL_SETS, &set.metadata)),
            Owner::Pod => owners.push(controller_ref(&kinds::PODS, pod)),
        }
    }
    owners
}

/// What brings the owners of a pod's claims in line with the policy.
pub(super) fn owned_wrongly(
    set: &StatefulSet,
    ordinal: i64,
    pod: &ObjectMeta,
    held: &Held,
) -> Vec<ClaimStep> {
    names(set, ordinal)
        .filter_map(|(_, name)| {
            let claim = held.get(&name).filter(|claim| !is_up_to_date(claim, set, pod, ordinal))?;
            let patch = json!({ "metadata": {
                "uid": claim.uid, "resourceVersion": claim.resource_version,
                "ownerReferences": owners(claim, set, pod, ordinal),
            }});
            Some(ClaimStep::Own { name, patch })
        })
        .collect()
}

/// Whether a claim still goes with an earlier pod of the name: a new one must not use it. Source: `PodClaimIsStale`.
pub(super) fn stale(set: &StatefulSet, ordinal: i64, held: &Held) -> bool {
    if !deletes(&set.spec.persistent_volume_claim_retention_policy.when_scaled) {
        return false;
    }
    let unborn = ObjectMeta { name: super::identity::pod_name(set, ordinal), ..ObjectMeta::default() };
    names(set, ordinal)
        .any(|(_, name)| held.get(&name).is_some_and(|claim| is_stale(claim, &kinds::PODS, &unborn)))
}
