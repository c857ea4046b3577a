//! The APIServices of what is served here, kept without being asked: those of built-in groups are put right when the
//! server starts, those of CustomResourceDefinitions follow their definitions. Whoever takes the label off one has it to
//! himself. Source: `kube-aggregator/pkg/controllers/autoregister`, `pkg/controlplane/controller/crdregistration`.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use api::catalog::Catalog;
use api::{Call, DeleteOptions, Object, Status};
use futures::{FutureExt, StreamExt};
use serde_json::{Value, json};

use super::priorities::{group_priority, version_priority};
use crate::pipeline::Pipeline;
use crate::started::{self, Started};
use crate::tree;

/// Says that the server keeps an APIService, and when.
const LABEL: &str = "kube-aggregator.kubernetes.io/automanaged";
/// So many are written at once: a first start makes all of them.
const AT_ONCE: usize = 16;

/// How an APIService is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// Put right when the server starts.
    OnStart,
    /// Put right whenever it differs.
    Always,
    /// Made once; then it is the user's, who may have another server serve the group.
    Once,
}

impl Kept {
    fn label(self) -> Option<&'static str> {
        match self {
            Self::OnStart => Some("onstart"),
            Self::Always => Some("true"),
            Self::Once => None,
        }
    }
}

/// What is to be done about an APIService.
#[derive(Debug, PartialEq)]
enum Step {
    Create(Value),
    /// Replace, at the resource version read.
    Update(Value),
    Delete(String),
}

/// The APIServices that should be, by name.
fn desired(catalog: &Catalog) -> BTreeMap<String, (Value, Kept)> {
    let mut all = BTreeMap::new();
    for row in catalog.rows() {
        let (group, version) = (row.group.as_ref(), row.version.as_ref());
        let name = format!("{version}.{group}");
        // A group and version of which something is built in is built in.
        let kept = match (row.custom.is_some(), group) {
            (true, _) if all.contains_key(&name) => continue,
            (true, _) => Kept::Always,
            (false, super::METRICS) => Kept::Once,
            (false, super::GROUP) => continue,
            (false, _) => Kept::OnStart,
        };
        let mut spec = json!({
            "version": version, "groupPriorityMinimum": group_priority(group),
            "versionPriority": version_priority(group, version, kept == Kept::Always),
        });
        if !group.is_empty() {
            spec["group"] = group.into();
        }
        let mut service = json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": { "name": name },
            "spec": spec,
        });
        if let Some(label) = kept.label() {
            service["metadata"]["labels"] = json!({ LABEL: label });
        }
        all.insert(name, (service, kept));
    }
    all
}

/// What makes what is there into what should be; `start` is the first time. Pure.
fn plan(desired: &BTreeMap<String, (Value, Kept)>, present: &[Arc<Object>], start: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    for (name, (wanted, kept)) in desired {
        let Some(object) = present.iter().find(|object| object.meta().name == *name) else {
            if start || *kept == Kept::Always {
                steps.push(Step::Create(wanted.clone()));
            }
            continue;
        };
        if !object.meta().labels.contains_key(LABEL) || !(start || *kept == Kept::Always) {
            continue;
        }
        let Ok(mut new) = object.decode::<Value>() else { continue };
        if new["spec"] != wanted["spec"]
            || new["metadata"]["labels"][LABEL] != wanted["metadata"]["labels"][LABEL]
        {
            new["spec"] = wanted["spec"].clone();
            tree::object(tree::member(&mut new, "metadata"), "labels")
                .insert(LABEL.into(), wanted["metadata"]["labels"][LABEL].clone());
            steps.push(Step::Update(new));
        }
    }
    for object in present.iter().filter(|object| !desired.contains_key(&object.meta().name)) {
        match object.meta().labels.get(LABEL).map(String::as_str) {
            Some("true") => steps.push(Step::Delete(object.meta().name.clone())),
            Some("onstart") if start => steps.push(Step::Delete(object.meta().name.clone())),
            _ => {}
        }
    }
    steps
}

/// Keeps them for as long as there is a pipeline.
pub(crate) async fn follow(pipeline: Weak<Pipeline>, started: Arc<Started>) {
    let Some(strong) = pipeline.upgrade() else { return };
    let Some(cache) = super::cache(&strong, super::GROUP, super::PLURAL) else { return };
    let mut rows = strong.catalog().changes();
    drop(strong);
    cache.synced().await;
    let (mut start, mut failures) = (true, 0);
    loop {
        rows.mark_unchanged();
        let present = cache.list("", 0, |_| true);
        let Some(strong) = pipeline.upgrade() else { return };
        let wanted = desired(&strong.catalog().rows());
        let steps = plan(&wanted, &present.items, start);
        let done: Vec<_> = steps.into_iter().map(|step| carry_out(&strong, step).boxed()).collect();
        let done: Vec<bool> = futures::stream::iter(done).buffer_unordered(AT_ONCE).collect().await;
        let all = done.iter().all(|done| *done);
        start &= !all;
        if all {
            started.done(started::Step::Registration);
        }
        failures = if all { 0 } else { failures + 1 };
        drop(strong);
        tokio::select! {
            changed = rows.changed() => if changed.is_err() { return },
            // A conflict is a sign of one.
            () = cache.happened(present.revision, |_| true) => {}
            () = tokio::time::sleep(super::RETRY.delay(failures)), if failures > 0 => {}
        }
    }
}

/// Takes a step; whether it is as it should be.
async fn carry_out(pipeline: &Pipeline, step: Step) -> bool {
    let (name, call) = match step {
        Step::Create(object) => {
            (String::new(), Call::Create { body: object.to_string().into(), options: super::options() })
        }
        Step::Update(object) => {
            let name = tree::text(&object, &["metadata", "name"]).to_owned();
            (name, Call::Update { body: object.to_string().into(), options: super::options() })
        }
        Step::Delete(name) => (name, Call::Delete(DeleteOptions::default())),
    };
    let done = pipeline.call(&super::identity(), super::about(&name, "", call)).await;
    match done {
        Ok(_) | Err(Status { code: 404 | 409, .. }) => true,
        Err(error) => {
            tracing::warn!(%error, "an APIService is not kept");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: &Value) -> Arc<Object> {
        Arc::new(Object::parse(value.to_string().into()).unwrap())
    }

    #[test]
    fn built_in_groups_are_registered_when_the_server_starts() {
        let desired = desired(&Catalog::builtin());
        assert_eq!(
            desired["v1."].0["spec"],
            json!({ "version": "v1", "groupPriorityMinimum": 18_000, "versionPriority": 1 })
        );
        assert_eq!(desired["v1.apps"].0["metadata"]["labels"][LABEL], "onstart");
        assert!(desired["v1beta1.metrics.k8s.io"].0["metadata"].get("labels").is_none());
        let all = plan(&desired, &[], true);
        assert_eq!(all.len(), desired.len());
        assert_eq!(plan(&desired, &[], false), []);
        let present: Vec<_> = desired.values().map(|(service, _)| object(service)).collect();
        assert_eq!(plan(&desired, &present, true), []);
    }

    #[test]
    fn what_carries_no_label_is_its_owners() {
        let wanted = json!({ "metadata": { "name": "v1.a", "labels": { LABEL: "true" } }, "spec": { "version": "v1" } });
        let desired = BTreeMap::from([("v1.a".to_owned(), (wanted.clone(), Kept::Always))]);
        let own = object(&json!({ "metadata": { "name": "v1.a" }, "spec": { "version": "v9" } }));
        assert_eq!(plan(&desired, &[own], true), []);
        let mut changed = wanted.clone();
        changed["spec"]["version"] = "v9".into();
        assert_eq!(plan(&desired, &[object(&changed)], false), [Step::Update(wanted)]);
        let old = object(&json!({ "metadata": { "name": "v1.b", "labels": { LABEL: "true" } } }));
        let left = object(&json!({ "metadata": { "name": "v1.c", "labels": { LABEL: "onstart" } } }));
        let gone = plan(&BTreeMap::new(), &[old.clone(), left.clone()], false);
        assert_eq!(gone, [Step::Delete("v1.b".into())]);
        assert_eq!(plan(&BTreeMap::new(), &[old, left], true).len(), 2);
    }
}
