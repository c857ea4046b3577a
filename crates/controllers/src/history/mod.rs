//! ControllerRevisions: the numbered history of a template, which StatefulSets and DaemonSets keep alike, and by which
//! clients tell and undo a rollout. Source: `k8s.io/kubernetes/pkg/controller/history`.

mod revisions;
mod semantic;

use std::collections::HashSet;
use std::sync::Arc;

use api::{DeleteOptions, Key, Object, ObjectMeta, PatchType, Reason, Status};
use base::BoxError;
use reconcile::{Informer, Kind, kinds};
use serde_json::json;

use crate::claim::{Claim, ignore_gone};
use crate::context::{Ctx, decode};
use crate::selector::{LabelSelector, Select};

pub(crate) use revisions::{Newest, Revision, Snapshot, newest, sort};

/// The history of one object.
pub(crate) struct History<'a> {
    /// Handles.
    pub(crate) ctx: &'a Ctx,
    /// Where the revisions are held.
    pub(crate) revisions: &'a Informer,
    /// The kind of the object.
    pub(crate) owner_kind: Kind,
    /// The object.
    pub(crate) owner: &'a ObjectMeta,
    /// What it selects: revisions carry the labels of its template.
    pub(crate) selector: &'a LabelSelector,
}

impl History<'_> {
    fn claim(&self) -> Claim<'_> {
        Claim {
            ctx: self.ctx,
            owner_kind: self.owner_kind,
            owner: self.owner,
            selector: self.selector,
            objects: self.revisions,
            finalizer: None,
        }
    }

    /// The revisions that match, oldest first; orphans among them are adopted. Its own that match no longer are left as
    /// they are. Source: `ListControllerRevisions`, `adoptOrphanRevisions`.
    pub(crate) async fn matching(&self) -> Result<Vec<Revision>, BoxError> {
        let uid = &self.owner.uid;
        let matching = |held: &Arc<Object>| {
            let meta = held.meta();
            meta.controller().is_some_and(|owner| owner.uid == *uid) && self.selector.matches(&meta.labels)
        };
        let mut held: Vec<_> = self.revisions.owned_by(uid).into_iter().filter(matching).collect();
        if !self.owner.is_terminating() {
            let orphans =
                self.revisions.orphans(&self.owner.namespace, |labels| self.selector.matches(labels));
            let lasting = orphans.into_iter().filter(|orphan| !orphan.meta().is_terminating()).collect();
            held.extend(self.claim().adopt(lasting).await?);
        }
        read(&held)
    }

    /// The revisions that belong to the object after adoption and release, oldest first. Source: `controlledHistories`.
    pub(crate) async fn claimed(&self) -> Result<Vec<Revision>, BoxError> {
        read(&self.claim().run(|_| true).await?)
    }

    /// Keeps a snapshot under this name and number: the revision that holds it then, made now or before; `None` if the
    /// name stands for something else.
    pub(crate) async fn create(
        &self,
        snapshot: &Snapshot,
        name: &str,
        hash_label: (&str, &str),
        number: i64,
    ) -> Result<Option<Revision>, BoxError> {
        let body = snapshot.body(&self.owner_kind, self.owner, name, hash_label, number);
        let resource = kinds::CONTROLLER_REVISIONS.gvr();
        match self.ctx.client.create(&resource, &self.owner.namespace, &body).await {
            Ok(object) => {
                self.ctx.caught_up(self.revisions, object.revision()).await;
                Ok(Some(decode(&object)?))
            }
            // Made before, and the cache is behind; or two templates have one hash.
            Err(status) if status.reason == Reason::AlreadyExists => {
                let key = Key::new(self.owner.namespace.as_str(), name);
                let held: Revision = decode(&*self.ctx.client.get(&resource, &key).await?)?;
                Ok(Some(held).filter(|held| snapshot.is_held_by(held)))
            }
            Err(status) => Err(status.into()),
        }
    }

    /// Makes an earlier revision the newest: a rollback. Source: `UpdateControllerRevision`.
    pub(crate) async fn renumber(&self, revision: &Revision, number: i64) -> Result<(), BoxError> {
        if revision.revision == number {
            return Ok(());
        }
        self.patch(revision, json!({ "metadata": { "uid": revision.metadata.uid }, "revision": number }))
            .await
    }

    /// Changes a revision by a merge patch.
    pub(crate) async fn patch(&self, revision: &Revision, patch: serde_json::Value) -> Result<(), BoxError> {
        let resource = kinds::CONTROLLER_REVISIONS.gvr();
        let key = self.key(revision);
        let object = self.ctx.client.patch(&resource, &key, "", PatchType::Merge, &patch).await?;
        self.ctx.caught_up(self.revisions, object.revision()).await;
        Ok(())
    }

    /// Deletes revisions.
    pub(crate) async fn delete(&self, revisions: impl IntoIterator<Item = &Revision>) -> Result<(), Status> {
        for revision in revisions {
            let options = DeleteOptions {
                precondition_uid: Some(revision.metadata.uid.clone()),
                ..DeleteOptions::default()
            };
            let resource = kinds::CONTROLLER_REVISIONS.gvr();
            ignore_gone(self.ctx.client.delete(&resource, &self.key(revision), options).await)?;
        }
        Ok(())
    }

    fn key(&self, revision: &Revision) -> Key {
        Key::new(self.owner.namespace.as_str(), revision.metadata.name.as_str())
    }
}

fn read(objects: &[Arc<Object>]) -> Result<Vec<Revision>, BoxError> {
    let mut revisions: Vec<Revision> =
        objects.iter().map(|object| decode(object)).collect::<Result<_, _>>()?;
    sort(&mut revisions);
    Ok(revisions)
}

/// The revisions beyond the limit, oldest first: of those that nothing needs (`live` names what is needed) the newest stay.
/// A negative limit keeps all. Source: `truncateHistory`.
pub(crate) fn surplus<'a>(sorted: &'a [Revision], live: &HashSet<&str>, limit: i64) -> Vec<&'a Revision> {
    let unused: Vec<_> =
        sorted.iter().filter(|revision| !live.contains(revision.metadata.name.as_str())).collect();
    let Ok(limit) = usize::try_from(limit) else { return Vec::new() };
    let surplus = unused.len().saturating_sub(limit);
    unused.into_iter().take(surplus).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::revisions::next_number;
    use super::*;

    fn revision(name: &str, number: i64) -> Revision {
        serde_json::from_value(json!({ "metadata": { "name": name, "uid": name }, "revision": number }))
            .unwrap()
    }

    #[test]
    fn the_oldest_that_nothing_needs_go() {
        let held = [revision("a", 1), revision("b", 2), revision("c", 3), revision("d", 4)];
        let names = |live: &[&str], limit| {
            let live = live.iter().copied().collect();
            surplus(&held, &live, limit).iter().map(|held| held.metadata.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&["d"], 2), ["a"]);
        assert_eq!(names(&["a", "d"], 0), ["b", "c"]);
        assert_eq!(names(&["a", "d"], 2), [""; 0]);
        assert_eq!(names(&[], -1), [""; 0]);
    }

    #[test]
    fn equal_numbers_are_ordered_by_age_and_name() {
        let made = |name: &str, number: i64, second: i64| {
            let mut held = revision(name, number);
            held.metadata.creation_timestamp = jiff::Timestamp::from_second(second).ok();
            held
        };
        let mut held = vec![made("b", 2, 5), made("a", 2, 5), made("z", 2, 4), made("y", 1, 9)];
        sort(&mut held);
        let names: Vec<_> = held.iter().map(|held| held.metadata.name.as_str()).collect();
        assert_eq!(names, ["y", "z", "a", "b"]);
        assert_eq!((next_number(&held), next_number(&[])), (3, 1));
    }

    #[test]
    fn a_snapshot_is_a_patch_that_brings_the_template_back() {
        let template = json!({ "metadata": { "creationTimestamp": null, "labels": { "app": "a" } },
            "spec": { "containers": [{ "name": "c", "command": null }] } });
        let owner: ObjectMeta = serde_json::from_value(json!({
            "name": "n".repeat(300), "namespace": "ns", "uid": "u",
            "annotations": { "kubernetes.io/change-cause": "because" } }))
        .unwrap();
        let snapshot = Snapshot::of(&template);
        let hash = snapshot.hash(Some(0));
        assert_ne!(hash, snapshot.hash(Some(1)));
        let name = revisions::name(&owner.name, &hash);
        assert_eq!(name, format!("{}-{hash}", "n".repeat(223)));
        let body = snapshot.body(&kinds::DEPLOYMENTS, &owner, "web-1", ("hash", &hash), 7);
        assert_eq!(
            body["data"],
            json!({ "spec": { "template": { "$patch": "replace", "metadata": { "labels": { "app": "a" } },
                "spec": { "containers": [{ "name": "c" }] } } } })
        );
        assert_eq!(body["metadata"]["annotations"]["kubernetes.io/change-cause"], "because");
        assert_eq!(body["metadata"]["labels"], json!({ "app": "a", "hash": hash }));
        let mut held: Revision = serde_json::from_value(body).unwrap();
        assert!(snapshot.is_held_by(&held) && held.revision == 7);
        assert_eq!(held.template().unwrap()["spec"], json!({ "containers": [{ "name": "c" }] }));
        assert_eq!(held.template().unwrap().get("$patch"), None);
        // As upstream's Go clients wrote it.
        held.data["spec"]["template"]["metadata"]["creationTimestamp"] = Value::Null;
        assert!(snapshot.is_held_by(&held));
        held.data["spec"]["template"]["spec"]["containers"][0]["name"] = "d".into();
        assert!(!snapshot.is_held_by(&held));
    }

    #[test]
    fn a_revision_that_lacks_only_defaults_is_no_other() {
        let template = |image: &str, more: Value| {
            let mut container = json!({ "name": "c", "image": image });
            container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({ "metadata": { "labels": { "app": "a" } }, "spec": { "containers": [container] } })
        };
        let kept = |image: &str, number: i64| {
            let snapshot = Snapshot::of(&template(image, json!({})));
            let owner = ObjectMeta { name: "web".to_owned(), ..ObjectMeta::default() };
            let body = snapshot.body(&kinds::STATEFUL_SETS, &owner, image, ("hash", "h"), number);
            serde_json::from_value::<Revision>(body).unwrap()
        };
        let revisions = [kept("web:1", 1), kept("web:2", 2)];
        let defaulted = json!({ "imagePullPolicy": "IfNotPresent", "terminationMessagePolicy": "File" });
        let found = |image: &str, more: &Value| match newest(
            &Snapshot::of(&template(image, more.clone())),
            &revisions,
        ) {
            Newest::Is(held) => format!("is {}", held.metadata.name),
            Newest::Again(held, number) => format!("again {} as {number}", held.metadata.name),
            Newest::Made(number) => format!("made as {number}"),
        };
        assert_eq!(found("web:2", &defaulted), "is web:2");
        assert_eq!(found("web:1", &defaulted), "again web:1 as 3");
        assert_eq!(found("web:3", &defaulted), "made as 3");
        assert_eq!(found("web:2", &json!({ "imagePullPolicy": "Always" })), "made as 3");
    }

    #[test]
    fn what_others_wrote_into_a_revision_is_no_template() {
        let read = |data: serde_json::Value| Revision { data, ..Revision::default() }.template();
        for data in [
            json!({}),
            json!({ "spec": "x" }),
            json!({ "spec": { "template": [] } }),
            json!({ "spec": { "template": { "metadata": {} } } }),
            json!({ "spec": { "template": { "spec": "x" } } }),
        ] {
            assert_eq!(read(data.clone()), None, "{data}");
        }
        let template = json!({ "spec": {}, "$patch": "replace" });
        assert_eq!(read(json!({ "spec": { "template": template } })), Some(json!({ "spec": {} })));
    }
}
