//! Revisions: which set is which version, and what a new set looks like.

use std::collections::BTreeMap;

use reconcile::kinds;
use serde_json::{Value, json};

use super::template;
use super::types::{
    DESIRED_REPLICAS, Deployment, LAST_APPLIED, MAX_REPLICAS, POD_TEMPLATE_HASH, REVISION, REVISION_HISTORY,
    ROLLBACK_TO,
};
use crate::context::controller_ref;
use crate::replicaset::Set;

/// Remembered revisions take at most so many characters.
const HISTORY_MAX_CHARS: usize = 2000;

/// Annotations of a Deployment that its sets do not get.
pub(super) const OWN: [&str; 6] =
    [LAST_APPLIED, REVISION, REVISION_HISTORY, DESIRED_REPLICAS, MAX_REPLICAS, ROLLBACK_TO];

/// A set's revision; 0 if it has none.
pub(super) fn of(set: &Set) -> i64 {
    set.metadata.annotations.get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Brings a set's annotations up to date: the Deployment's own (the change-cause among them), its revision if that is
/// newer, and the sizes it was made for. Gives whether anything changed. Source: `SetNewReplicaSetAnnotations`.
pub(super) fn annotate(
    deployment: &Deployment,
    annotations: &mut BTreeMap<String, String>,
    next: i64,
    exists: bool,
) -> bool {
    let mut changed = false;
    for (name, value) in &deployment.metadata.annotations {
        if !OWN.contains(&name.as_str()) && annotations.get(name) != Some(value) {
            annotations.insert(name.clone(), value.clone());
            changed = true;
        }
    }
    let old = annotations.get(REVISION).cloned();
    let old_number = old.as_deref().and_then(|old| old.parse::<i64>().ok()).unwrap_or(0);
    if old_number < next {
        annotations.insert(REVISION.to_owned(), next.to_string());
        changed = true;
        if let Some(old) = old.filter(|_| exists) {
            remember(annotations, &old);
        }
    }
    if !exists {
        let desired = deployment.replicas();
        annotations.insert(DESIRED_REPLICAS.to_owned(), desired.to_string());
        annotations
            .insert(MAX_REPLICAS.to_owned(), desired.saturating_add(deployment.max_surge()).to_string());
        changed = true;
    }
    changed
}

/// Appends a revision to the history; the oldest go where it grows too long.
fn remember(annotations: &mut BTreeMap<String, String>, old: &str) {
    let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
    if !history.is_empty() {
        history.push(',');
    }
    history.push_str(old);
    while history.len() > HISTORY_MAX_CHARS {
        match history.find(',') {
            Some(comma) => drop(history.drain(..=comma)),
            None => return history.clear(),
        }
    }
}

/// The set of the Deployment's present template, without its size: as it will be, and as it is sent.
pub(super) fn new_set(deployment: &Deployment, revision: i64) -> (Set, Value) {
    let meta = &deployment.metadata;
    let hash = template::hash(&deployment.spec.template, deployment.status.collision_count);
    let mut pods = deployment.spec.template.clone();
    pods["metadata"]["labels"][POD_TEMPLATE_HASH] = hash.as_str().into();
    let mut selector = deployment.spec.selector.clone();
    selector.match_labels.insert(POD_TEMPLATE_HASH.to_owned(), hash.clone());
    let mut annotations = BTreeMap::new();
    annotate(deployment, &mut annotations, revision, false);
    let mut set = Set::default();
    set.metadata.name = format!("{}-{hash}", meta.name);
    set.metadata.namespace.clone_from(&meta.namespace);
    set.metadata.annotations.clone_from(&annotations);
    set.spec.template.clone_from(&pods);
    set.spec.min_ready_seconds = deployment.spec.min_ready_seconds;
    let body = json!({
        "apiVersion": kinds::REPLICA_SETS.api_version(), "kind": kinds::REPLICA_SETS.kind,
        "metadata": {
            "name": set.metadata.name, "namespace": meta.namespace, "labels": pods["metadata"]["labels"],
            "annotations": annotations, "ownerReferences": [controller_ref(&kinds::DEPLOYMENTS, meta)],
        },
        "spec": { "minReadySeconds": deployment.spec.min_ready_seconds, "selector": selector, "template": pods },
    });
    (set, body)
}
