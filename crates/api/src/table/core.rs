//! Configuration, identities, limits, events and health: the plain kinds of the core group.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, CREATED, Cell, Column, Family, NAME, age, at, column, number, text, wide};

pub(super) const KINDS: Family = &[
    ("", "Namespace", NAMESPACE),
    ("", "ConfigMap", CONFIG_MAP),
    ("", "Secret", SECRET),
    ("", "ServiceAccount", &[NAME, AGE]),
    ("", "LimitRange", CREATED),
    ("", "ResourceQuota", RESOURCE_QUOTA),
    ("", "Event", EVENT),
    ("", "ComponentStatus", COMPONENT_STATUS),
];

const NAMESPACE: &[Column] = &[NAME, column("Status", "string", Cell::Text(&["status", "phase"])), AGE];
const CONFIG_MAP: &[Column] = &[NAME, column("Data", "string", Cell::Of(config_entries)), AGE];
const SECRET: &[Column] = &[
    NAME,
    column("Type", "string", Cell::Text(&["type"])),
    column("Data", "string", Cell::Count(&["data"])),
    AGE,
];
const RESOURCE_QUOTA: &[Column] = &[
    NAME,
    column("Request", "string", Cell::Of(|object, _| quota(object, false))),
    column("Limit", "string", Cell::Of(|object, _| quota(object, true))),
    AGE,
];
const COMPONENT_STATUS: &[Column] = &[
    NAME,
    column("Status", "string", Cell::Of(health)),
    column("Message", "string", Cell::Of(|object, _| json!(text(healthy(object), &["message"])))),
    column("Error", "string", Cell::Of(|object, _| json!(text(healthy(object), &["error"])))),
];
const EVENT: &[Column] = &[
    column("Last Seen", "string", Cell::Of(|object, now| json!(age(last_seen(object), now)))),
    column("Type", "string", Cell::Of(|object, _| json!(text(object, &["type"])))),
    column("Reason", "string", Cell::Of(|object, _| json!(text(object, &["reason"])))),
    column("Object", "string", Cell::Of(involved)),
    wide("Subobject", "string", Cell::Of(|object, _| json!(text(object, &["involvedObject", "fieldPath"])))),
    wide("Source", "string", Cell::Of(event_source)),
    column("Message", "string", Cell::Of(|object, _| json!(text(object, &["message"]).trim()))),
    wide("First Seen", "string", Cell::Of(|object, now| json!(age(first_seen(object), now)))),
    wide("Count", "string", Cell::Of(|object, _| json!(times(object)))),
    wide("Name", "string", Cell::Name),
];

fn config_entries(object: &Value, _: Timestamp) -> Value {
    let count = |name| at(object, &[name]).as_object().map_or(0, serde_json::Map::len);
    json!(count("data") + count("binaryData"))
}

/// What is used of what is granted; limits and everything else stand apart.
fn quota(object: &Value, limits: bool) -> Value {
    let hard = at(object, &["status", "hard"]).as_object();
    let mut granted: Vec<_> =
        hard.into_iter().flatten().filter(|(name, _)| name.starts_with("limits.") == limits).collect();
    granted.sort_by_key(|(name, _)| name.as_str());
    let used = |name: &str| match text(object, &["status", "used", name]) {
        "" => "0".to_owned(),
        used => used.to_owned(),
    };
    let pairs = granted
        .iter()
        .map(|(name, hard)| format!("{name}: {}/{}", used(name), hard.as_str().unwrap_or_default()));
    json!(pairs.collect::<Vec<_>>().join(", "))
}

fn healthy(object: &Value) -> &Value {
    let conditions = super::items(object, &["conditions"]);
    let found = conditions.iter().find(|condition| text(condition, &["type"]) == "Healthy");
    found.unwrap_or(&Value::Null)
}

fn health(object: &Value, _: Timestamp) -> Value {
    json!(match text(healthy(object), &["status"]) {
        "True" => "Healthy",
        "" => "Unknown",
        _ => "Unhealthy",
    })
}

fn last_seen(object: &Value) -> &Value {
    let observed = [&["series", "lastObservedTime"][..], &["lastTimestamp"]];
    let found = observed.iter().map(|path| at(object, path)).find(|value| !value.is_null());
    found.unwrap_or_else(|| first_seen(object))
}

fn first_seen(object: &Value) -> &Value {
    match at(object, &["firstTimestamp"]) {
        Value::Null => at(object, &["eventTime"]),
        first => first,
    }
}

fn times(object: &Value) -> i64 {
    match at(object, &["series"]) {
        Value::Null => number(object, &["count"]).max(1),
        series => number(series, &["count"]),
    }
}

fn involved(object: &Value, _: Timestamp) -> Value {
    let about = at(object, &["involvedObject"]);
    let kind = text(about, &["kind"]).to_ascii_lowercase();
    match text(about, &["name"]) {
        "" => json!(kind),
        name => json!(format!("{kind}/{name}")),
    }
}

fn event_source(object: &Value, _: Timestamp) -> Value {
    let first = |one: &'static [&'static str], other: &'static [&'static str]| match text(object, one) {
        "" => text(object, other),
        found => found,
    };
    let component = first(&["source", "component"], &["reportingComponent"]);
    match first(&["source", "host"], &["reportingInstance"]) {
        "" => json!(component),
        instance => json!(format!("{component}, {instance}")),
    }
}
