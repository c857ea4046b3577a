//! Keeps the FlowSchemas and PriorityLevelConfigurations that every cluster has, and says of each schema whether its level
//! is there. Source: `pkg/registry/flowcontrol/ensurer`, `apiserver/pkg/util/flowcontrol/apf_controller.go`.

use std::sync::Arc;
use std::time::Duration;

use api::connect::User;
use api::{Call, GroupVersionResource, Object, PatchType, Reason, Request, Status, WriteOptions};
use base::backoff::Policy;
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use super::defaults::{self, AUTO_UPDATE, GROUP, LEVELS, SCHEMAS};
use crate::admission::World;
use crate::pipeline::{Pipeline, rfc3339};
use crate::strategy::View;
use crate::tree;

/// The field manager of what is written here. Source: `api-priority-and-fairness-config-consumer-v1`.
const MANAGER: &str = "api-priority-and-fairness-config-producer-v1";
const STATUS_MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";
/// So many writes are under way at once: the store commits them together.
const WRITES: usize = 64;
const RETRY: Policy = Policy { first: Duration::from_millis(100), max: Duration::from_secs(30) };
/// The condition of a schema that says that its level is missing.
const DANGLING: &str = "Dangling";

/// What is to be done about one object.
#[derive(Debug, PartialEq)]
enum Plan {
    Keep,
    Create,
    Update(Box<Value>),
}

/// Decides about one object of the table. Pure. A mandatory object is always as the table has it; a suggested one as long
/// as its annotation says so, or nothing was said and nobody has changed it.
fn plan(existing: Option<&Value>, wanted: &Value, mandatory: bool) -> Plan {
    let Some(existing) = existing else { return Plan::Create };
    let said = tree::text(existing, &["metadata", "annotations", AUTO_UPDATE]);
    let untouched = tree::at(existing, &["metadata", "generation"]).as_i64() == Some(1);
    let ours = mandatory || said == "true" || (said != "false" && untouched);
    let mut new = existing.clone();
    let wish = if ours { "true" } else { "false" };
    if said != wish && (mandatory || !matches!(said, "true" | "false")) {
        let metadata = tree::member(&mut new, "metadata");
        tree::object(metadata, "annotations").insert(AUTO_UPDATE.into(), wish.into());
    }
    if ours {
        *tree::member(&mut new, "spec") = tree::at(wanted, &["spec"]).clone();
    }
    if new == *existing { Plan::Keep } else { Plan::Update(Box::new(new)) }
}

/// The condition that a schema should have, if it has not got it. Pure.
fn condition(schema: &Value, has_level: bool, now: &str) -> Option<Value> {
    let level = tree::text(schema, &["spec", "priorityLevelConfiguration", "name"]);
    let start = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?}");
    let (status, reason, message) = if has_level {
        ("False", "Found", format!("{start} and it exists"))
    } else {
        ("True", "NotFound", format!("{start} but there is no such object"))
    };
    let held = tree::items(schema, &["status", "conditions"]);
    let held = held.iter().find(|held| tree::text(held, &["type"]) == DANGLING);
    let is = |part: &str, text: &str| held.is_some_and(|held| tree::text(held, &[part]) == text);
    if is("status", status) && is("reason", reason) && is("message", &message) {
        return None;
    }
    // The moment is that of the last change of the status, and not of what is said about it.
    let since =
        held.filter(|_| is("status", status)).map_or(now, |held| tree::text(held, &["lastTransitionTime"]));
    Some(json!({
        "type": DANGLING, "status": status, "reason": reason, "message": message, "lastTransitionTime": since,
    }))
}

/// Keeps them, for as long as it runs.
pub(crate) async fn keep(pipeline: Arc<Pipeline>, user: User) {
    let mut failures = 0;
    loop {
        let seen = [LEVELS, SCHEMAS].map(|resource| seen(&pipeline, resource));
        match once(&pipeline, &user).await {
            Ok(()) => {
                failures = 0;
                tokio::select! {
                    () = changed(&pipeline, LEVELS, seen[0]) => {}
                    () = changed(&pipeline, SCHEMAS, seen[1]) => {}
                }
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, "priority and fairness is not as it should be; trying again");
                tokio::time::sleep(RETRY.delay(failures)).await;
            }
        }
    }
}

fn seen(pipeline: &Pipeline, resource: &str) -> i64 {
    let kind = pipeline.catalog().storage_of(GROUP, resource);
    kind.map_or(0, |kind| pipeline.cache(&kind).revision())
}

/// Returns when something happened to a resource after a revision.
async fn changed(pipeline: &Pipeline, resource: &str, after: i64) {
    let Some(kind) = pipeline.catalog().storage_of(GROUP, resource) else {
        return std::future::pending().await;
    };
    pipeline.cache(&kind).happened(after, |_| true).await;
}

/// One round.
async fn once(pipeline: &Pipeline, user: &User) -> Result<(), Status> {
    ensure(pipeline, user).await?;
    let due: Vec<_> =
        pipeline.objects(GROUP, SCHEMAS).into_iter().map(|schema| say(pipeline, user, schema)).collect();
    futures::stream::iter(due).buffer_unordered(WRITES).try_collect().await
}

/// Makes the objects of the table, and brings them up to date.
pub(crate) async fn ensure(pipeline: &Pipeline, user: &User) -> Result<(), Status> {
    let due: Vec<_> = defaults::all().into_iter().map(|row| ensure_one(pipeline, user, row)).collect();
    futures::stream::iter(due).buffer_unordered(WRITES).try_collect().await
}

async fn ensure_one(
    pipeline: &Pipeline,
    user: &User,
    (resource, wanted, mandatory): (&'static str, Value, bool),
) -> Result<(), Status> {
    let name = tree::text(&wanted, &["metadata", "name"]).to_owned();
    let existing = decoded(pipeline.find(GROUP, resource, "", &name).await?)?;
    match plan(existing.as_ref(), &wanted, mandatory) {
        Plan::Keep => Ok(()),
        Plan::Create => {
            let call = Call::Create { body: bytes(&wanted)?, options: options(MANAGER) };
            settled(pipeline.call(user, request(resource, "", call)).await.map(drop))
        }
        Plan::Update(new) => {
            let call = Call::Update { body: bytes(&new)?, options: options(MANAGER) };
            settled(pipeline.call(user, request(resource, &name, call)).await.map(drop))
        }
    }
}

/// Says of a schema whether its level is there.
async fn say(pipeline: &Pipeline, user: &User, schema: Arc<Object>) -> Result<(), Status> {
    let Some(schema) = decoded(Some(schema))? else { return Ok(()) };
    let level = tree::text(&schema, &["spec", "priorityLevelConfiguration", "name"]);
    let has_level = pipeline.find(GROUP, LEVELS, "", level).await?.is_some();
    let Some(condition) = condition(&schema, has_level, &rfc3339(pipeline.now())) else { return Ok(()) };
    let name = tree::text(&schema, &["metadata", "name"]);
    let patch = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "FlowSchema", "metadata": { "name": name },
        "status": { "conditions": [condition] },
    });
    let options = WriteOptions { force: true, ..options(STATUS_MANAGER) };
    let call = Call::Patch { kind: PatchType::Apply, body: bytes(&patch)?, options };
    let mut request = request(SCHEMAS, name, call);
    request.subresource = "status".into();
    settled(pipeline.call(user, request).await.map(drop))
}

fn options(manager: &str) -> WriteOptions {
    WriteOptions { field_manager: manager.into(), ..WriteOptions::default() }
}

fn decoded(object: Option<Arc<Object>>) -> Result<Option<Value>, Status> {
    let value = object.map(|object| object.decode::<Value>()).transpose();
    value.map_err(|error| Status::internal(error.to_string()))
}

fn bytes(object: &Value) -> Result<bytes::Bytes, Status> {
    serde_json::to_vec(object).map(Into::into).map_err(|error| Status::internal(error.to_string()))
}

fn request(resource: &str, name: &str, call: Call) -> Request {
    Request {
        resource: GroupVersionResource::new(GROUP, "v1", resource),
        namespace: String::new(),
        name: name.to_owned(),
        subresource: String::new(),
        call,
    }
}

/// Others may have been there first, or may have deleted it; the next round sees that.
fn settled(written: Result<(), Status>) -> Result<(), Status> {
    match written {
        Err(status)
            if matches!(status.reason, Reason::AlreadyExists | Reason::Conflict | Reason::NotFound) =>
        {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_follow_the_table_until_somebody_says_otherwise() {
        let wanted = json!({ "metadata": { "name": "a", "annotations": { AUTO_UPDATE: "true" } }, "spec": { "x": 1 } });
        let held = |said: Option<&str>, generation: i64, x: i64| {
            let annotations = said.map_or(json!({}), |said| json!({ AUTO_UPDATE: said }));
            json!({ "metadata": { "name": "a", "generation": generation, "annotations": annotations }, "spec": { "x": x } })
        };
        let to = |said: &str, generation, x| Plan::Update(Box::new(held(Some(said), generation, x)));
        assert_eq!(plan(None, &wanted, false), Plan::Create);
        for (existing, mandatory, expected) in [
            (held(Some("true"), 2, 1), false, Plan::Keep),
            (held(Some("true"), 2, 7), false, to("true", 2, 1)),
            (held(Some("false"), 2, 7), false, Plan::Keep),
            (held(Some("false"), 2, 7), true, to("true", 2, 1)),
            (held(None, 1, 7), false, to("true", 1, 1)),
            (held(None, 2, 7), false, to("false", 2, 7)),
        ] {
            assert_eq!(plan(Some(&existing), &wanted, mandatory), expected, "{existing}");
        }
    }

    #[test]
    fn a_schema_without_its_level_dangles() {
        let mut schema = json!({ "spec": { "priorityLevelConfiguration": { "name": "p" } } });
        let dangling = condition(&schema, false, "then").unwrap();
        assert_eq!((&dangling["status"], &dangling["reason"]), (&json!("True"), &json!("NotFound")));
        assert_eq!(
            dangling["message"],
            "This FlowSchema references the PriorityLevelConfiguration object named \"p\" but there is no such object"
        );
        schema["status"] = json!({ "conditions": [dangling] });
        assert_eq!(condition(&schema, false, "now"), None);
        let found = condition(&schema, true, "now").unwrap();
        assert_eq!((&found["status"], &found["lastTransitionTime"]), (&json!("False"), &json!("now")));
    }
}
