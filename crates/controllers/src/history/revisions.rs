//! What a revision holds: a patch that brings a template back. Pure.

use std::collections::BTreeMap;

use api::ObjectMeta;
use reconcile::{Kind, kinds};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::semantic::meaning;
use crate::context::controller_ref;
use crate::template;

/// Longer names of owners are cut, so that a revision's name is one. Source: `ControllerRevisionName`.
const PREFIX_MAX: usize = 223;

/// A projection of `apps/v1.ControllerRevision`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Revision {
    /// Metadata, with annotations.
    pub(crate) metadata: ObjectMeta,
    /// Its number: the newest has the greatest.
    pub(crate) revision: i64,
    /// The patch.
    pub(crate) data: Value,
}

impl Revision {
    /// The template that it brings back; anybody may have written something else there.
    pub(crate) fn template(&self) -> Option<Value> {
        let mut template =
            self.data.pointer("/spec/template").filter(|held| held["spec"].is_object())?.clone();
        template.as_object_mut()?.remove("$patch");
        Some(template)
    }
}

/// Oldest first. Source: `byRevision`.
pub(crate) fn sort(revisions: &mut [Revision]) {
    let order =
        |held: &Revision| (held.revision, held.metadata.creation_timestamp, held.metadata.name.clone());
    revisions.sort_by_key(order);
}

/// The number after the newest.
pub(crate) fn next_number(sorted: &[Revision]) -> i64 {
    sorted.last().map_or(1, |newest| newest.revision.saturating_add(1))
}

/// What makes the revision of a template the newest.
#[derive(Debug, PartialEq)]
pub(crate) enum Newest<'a> {
    /// It is.
    Is(&'a Revision),
    /// One that was there earlier gets this number: a rollback.
    Again(&'a Revision, i64),
    /// It is made with this number.
    Made(i64),
}

/// The revision of a StatefulSet's template among those that there are: one that holds just this, or else one that means
/// the same. Source: `getStatefulSetRevisions`.
pub(crate) fn newest<'a>(snapshot: &Snapshot, sorted: &'a [Revision]) -> Newest<'a> {
    let held = sorted.iter().rposition(|revision| snapshot.is_held_by(revision));
    match held.or_else(|| snapshot.is_meant_by(sorted)) {
        Some(place) if place + 1 == sorted.len() => Newest::Is(&sorted[place]),
        Some(place) => Newest::Again(&sorted[place], next_number(sorted)),
        None => Newest::Made(next_number(sorted)),
    }
}

/// The name of a revision of an owner.
pub(crate) fn name(owner: &str, hash: &str) -> String {
    let end = (0..=PREFIX_MAX.min(owner.len())).rev().find(|end| owner.is_char_boundary(*end)).unwrap_or(0);
    format!("{}-{hash}", &owner[..end])
}

/// A template as revisions keep it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Snapshot {
    labels: BTreeMap<String, String>,
    data: Value,
}

impl Snapshot {
    /// Of a template.
    pub(crate) fn of(template: &Value) -> Self {
        Self {
            labels: template::labels(template),
            data: normal(&json!({ "spec": { "template": template } })),
        }
    }

    /// Its hash; a count of collisions makes another one.
    pub(crate) fn hash(&self, collisions: Option<i32>) -> String {
        template::hash(&self.data, collisions)
    }

    /// The name and the hash of its revision for an owner.
    pub(crate) fn name(&self, owner: &str, collisions: Option<i32>) -> (String, String) {
        let hash = self.hash(collisions);
        (name(owner, &hash), hash)
    }

    /// Whether a revision holds just this. Source: `EqualRevision`.
    pub(crate) fn is_held_by(&self, revision: &Revision) -> bool {
        normal(&revision.data) == self.data
    }

    /// The last of the revisions that mean the same, however they are written.
    fn is_meant_by(&self, sorted: &[Revision]) -> Option<usize> {
        let template = self.data.pointer("/spec/template")?.as_object()?;
        let template: Map<_, _> = template
            .iter()
            .filter(|(name, _)| *name != "$patch")
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        let own = meaning(&template.into());
        sorted.iter().rposition(|revision| revision.template().is_some_and(|held| meaning(&held) == own))
    }

    /// A revision that holds it.
    pub(super) fn body(
        &self,
        kind: &Kind,
        owner: &ObjectMeta,
        name: &str,
        (hash_label, hash): (&str, &str),
        number: i64,
    ) -> Value {
        let mut labels = self.labels.clone();
        labels.insert(hash_label.to_owned(), hash.to_owned());
        json!({
            "apiVersion": kinds::CONTROLLER_REVISIONS.api_version(), "kind": kinds::CONTROLLER_REVISIONS.kind,
            "metadata": {
                "name": name, "namespace": owner.namespace, "labels": labels, "annotations": owner.annotations,
                "ownerReferences": [controller_ref(kind, owner)],
            },
            "data": self.data, "revision": number,
        })
    }
}

/// A revision's data in the form in which two are compared. `$patch` says that the template is replaced as a whole.
fn normal(data: &Value) -> Value {
    let mut data = template::without_nulls(data);
    if let Some(held) = data.pointer_mut("/spec/template").filter(|held| held.is_object()) {
        *held = template::normalized(held, &[]);
        held["$patch"] = "replace".into();
    }
    data
}
