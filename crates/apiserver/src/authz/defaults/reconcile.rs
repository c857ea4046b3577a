//! Brings the default roles and bindings of a cluster up to date when the server starts: what is missing is made, what
//! lacks something is given it, what somebody added stays. Where all is in place, nothing is written.
//! Source: `pkg/registry/rbac/reconciliation`.

use api::connect::User;
use api::{Call, GroupVersionResource, Object, Reason, Request, Status, WriteOptions};
use base::BoxError;
use futures::{StreamExt, TryStreamExt};
use serde_json::{Map, Value, json};

use super::{AUTO_UPDATE, Item};
use crate::authz::rbac::{GROUP, Rule, missing_rules};
use crate::pipeline::Pipeline;
use crate::strategy::View;
use crate::tree;

/// So many writes are under way at once: the store commits them together.
const WRITES: usize = 64;
const MANAGER: &str = "skiff-bootstrap";

/// What is to be done about one object of the table.
#[derive(Debug, PartialEq)]
enum Plan {
    Keep,
    Create,
    Update(Value),
    /// A binding's role cannot be changed: it goes and comes again.
    Replace,
}

/// Makes the objects agree with the table.
pub(crate) async fn reconcile(pipeline: &Pipeline, user: &User) -> Result<(), BoxError> {
    let mut due = Vec::new();
    for item in super::parsed().items {
        let existing = pipeline.peek(GROUP, item.resource, &item.namespace, &item.name);
        match plan(existing.as_deref(), &item.object) {
            Plan::Keep => {}
            plan => due.push(write(pipeline, user, item, plan)),
        }
    }
    futures::stream::iter(due).buffer_unordered(WRITES).try_collect().await
}

async fn write(pipeline: &Pipeline, user: &User, item: Item, plan: Plan) -> Result<(), BoxError> {
    let written = act(pipeline, user, &item, plan).await;
    written.map_err(|status| format!("{} {}: {status}", item.resource, item.name).into())
}

async fn act(pipeline: &Pipeline, user: &User, item: &Item, plan: Plan) -> Result<(), Status> {
    let options = || WriteOptions { field_manager: MANAGER.into(), ..WriteOptions::default() };
    let bytes = |object: &Value| {
        serde_json::to_vec(object).map(Into::into).map_err(|error| Status::internal(error.to_string()))
    };
    let call = async |name: &str, call: Call| {
        let request = Request {
            resource: GroupVersionResource::new(GROUP, "v1", item.resource),
            namespace: item.namespace.clone(),
            name: name.to_owned(),
            subresource: String::new(),
            call,
        };
        match pipeline.call(user, request).await {
            // Another server over the same store was there first.
            Err(status) if matches!(status.reason, Reason::AlreadyExists | Reason::Conflict) => Ok(()),
            Err(status) if status.reason == Reason::NotFound => Ok(()),
            other => other.map(drop),
        }
    };
    let create = async || call("", Call::Create { body: bytes(&item.object)?, options: options() }).await;
    match plan {
        Plan::Keep => Ok(()),
        Plan::Create => create().await,
        Plan::Update(object) => {
            call(&item.name, Call::Update { body: bytes(&object)?, options: options() }).await
        }
        Plan::Replace => {
            call(&item.name, Call::Delete(api::DeleteOptions::default())).await?;
            create().await
        }
    }
}

/// Decides. Pure.
fn plan(existing: Option<&Object>, wanted: &Value) -> Plan {
    let Some(existing) = existing else { return Plan::Create };
    let Ok(mut object) = existing.decode::<Value>() else { return Plan::Keep };
    let before = object.clone();
    if tree::text(&before, &["metadata", "annotations", AUTO_UPDATE]) == "false" {
        return Plan::Keep;
    }
    if tree::at(&before, &["roleRef"]) != tree::at(wanted, &["roleRef"]) {
        return Plan::Replace;
    }
    for part in ["labels", "annotations"] {
        add_members(&mut object, wanted, part);
    }
    add_rules(&mut object, wanted);
    let selectors = ["aggregationRule", "clusterRoleSelectors"];
    let held = tree::items(&before, &selectors).to_vec();
    let lacking = tree::items(wanted, &selectors).iter().filter(|selector| !held.contains(selector));
    let lacking: Vec<Value> = lacking.cloned().collect();
    if !lacking.is_empty() {
        let all: Vec<Value> = held.into_iter().chain(lacking).collect();
        tree::object(&mut object, "aggregationRule").insert("clusterRoleSelectors".into(), all.into());
    }
    let held = tree::items(&before, &["subjects"]);
    let is_held = |subject: &Value| held.iter().any(|known| same_subject(known, subject));
    let lacking: Vec<Value> =
        tree::items(wanted, &["subjects"]).iter().filter(|subject| !is_held(subject)).cloned().collect();
    if !lacking.is_empty() {
        *tree::member(&mut object, "subjects") = held.iter().cloned().chain(lacking).collect();
    }
    if object == before { Plan::Keep } else { Plan::Update(object) }
}

/// Labels and annotations that are missing; those that somebody set otherwise stay.
fn add_members(object: &mut Value, wanted: &Value, part: &str) {
    let none = Map::new();
    let wanted = tree::at(wanted, &["metadata", part]).as_object().unwrap_or(&none);
    let held = tree::at(object, &["metadata", part]).as_object().cloned().unwrap_or_default();
    let lacking: Vec<_> = wanted.iter().filter(|(key, _)| !held.contains_key(*key)).collect();
    if lacking.is_empty() {
        return;
    }
    let more = lacking.into_iter().map(|(key, value)| (key.clone(), value.clone()));
    let all: Map<String, Value> = held.into_iter().chain(more).collect();
    tree::metadata(object).insert(part.to_owned(), all.into());
}

/// Rules of which the role lacks something.
fn add_rules(object: &mut Value, wanted: &Value) {
    let rules = |value: &Value| -> Vec<Rule> {
        serde_json::from_value(tree::at(value, &["rules"]).clone()).unwrap_or_default()
    };
    let (held, wanted) = (rules(object), rules(wanted));
    let lacking = missing_rules(&held, &wanted);
    if lacking.is_empty() {
        return;
    }
    let all: Vec<Value> = tree::items(object, &["rules"])
        .iter()
        .cloned()
        .chain(lacking.iter().map(|rule| json!(rule)))
        .collect();
    *tree::member(object, "rules") = all.into();
}

fn same_subject(one: &Value, other: &Value) -> bool {
    ["kind", "name", "namespace"].iter().all(|part| tree::text(one, &[part]) == tree::text(other, &[part]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(value: &Value) -> Object {
        Object::parse(serde_json::to_vec(value).unwrap().into()).unwrap()
    }

    fn wanted() -> Value {
        json!({
            "metadata": { "name": "r", "labels": { "a": "b" }, "annotations": { AUTO_UPDATE: "true" } },
            "rules": [{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"] }],
        })
    }

    #[test]
    fn what_is_in_place_is_left_alone() {
        assert_eq!(plan(None, &wanted()), Plan::Create);
        assert_eq!(plan(Some(&stored(&wanted())), &wanted()), Plan::Keep);
        let mut wider = wanted();
        wider["rules"] = json!([{ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] }]);
        wider["metadata"]["labels"] = json!({ "a": "other", "c": "d" });
        assert_eq!(plan(Some(&stored(&wider)), &wanted()), Plan::Keep);
        let mut kept = json!({ "metadata": { "name": "r", "annotations": { AUTO_UPDATE: "false" } } });
        assert_eq!(plan(Some(&stored(&kept)), &wanted()), Plan::Keep);
        kept["metadata"]["annotations"][AUTO_UPDATE] = "true".into();
        assert!(matches!(plan(Some(&stored(&kept)), &wanted()), Plan::Update(_)));
    }

    #[test]
    fn what_is_lacking_is_added_and_what_is_more_stays() {
        let own = json!({ "apiGroups": [""], "resources": ["secrets"], "verbs": ["get"] });
        let mut existing = wanted();
        existing["rules"] = json!([own]);
        existing["metadata"]["labels"] = json!({ "c": "d" });
        let Plan::Update(object) = plan(Some(&stored(&existing)), &wanted()) else { panic!("no update") };
        assert_eq!(object["rules"], json!([own, wanted()["rules"][0]]));
        assert_eq!(object["metadata"]["labels"], json!({ "a": "b", "c": "d" }));
        let selector = |label: &str| json!({ "matchLabels": { label: "true" } });
        let aggregated = |selectors: &[Value]| json!({ "metadata": { "name": "r" }, "aggregationRule": { "clusterRoleSelectors": selectors }, "rules": [own] });
        let plan_of = plan(Some(&stored(&aggregated(&[selector("x")]))), &aggregated(&[selector("y")]));
        assert_eq!(plan_of, Plan::Update(aggregated(&[selector("x"), selector("y")])));
    }

    #[test]
    fn a_binding_gets_its_subjects_back_and_its_role() {
        let binding = |role: &str, groups: &[&str]| {
            let subjects: Vec<Value> =
                groups.iter().map(|name| json!({ "kind": "Group", "name": name })).collect();
            json!({ "metadata": { "name": "b" }, "roleRef": { "kind": "ClusterRole", "name": role }, "subjects": subjects })
        };
        let existing = stored(&binding("r", &["x"]));
        assert_eq!(plan(Some(&existing), &binding("r", &["x"])), Plan::Keep);
        assert_eq!(plan(Some(&existing), &binding("r", &[])), Plan::Keep);
        assert_eq!(plan(Some(&existing), &binding("r", &["y"])), Plan::Update(binding("r", &["x", "y"])));
        assert_eq!(plan(Some(&existing), &binding("s", &["x"])), Plan::Replace);
    }
}
