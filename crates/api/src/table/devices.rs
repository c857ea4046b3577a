//! Devices and the claims on them, and pods that are scheduled together.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Cell, Column, Family, NAME, age, at, column, items, text};

pub(super) const KINDS: Family = &[
    ("resource.k8s.io", "DeviceClass", &[NAME, AGE]),
    ("resource.k8s.io", "DeviceTaintRule", TAINT_RULE),
    ("resource.k8s.io", "ResourceClaim", CLAIM),
    ("resource.k8s.io", "ResourceClaimTemplate", &[NAME, AGE]),
    ("resource.k8s.io", "ResourceSlice", SLICE),
    ("scheduling.k8s.io", "Workload", &[NAME, AGE]),
    ("scheduling.k8s.io", "PodGroup", POD_GROUP),
];

const TAINT_RULE: &[Column] = &[
    NAME,
    column("Key", "string", Cell::Text(&["spec", "taint", "key"])),
    column("Value", "string", Cell::Text(&["spec", "taint", "value"])),
    column("Effect", "string", Cell::Text(&["spec", "taint", "effect"])),
    column("TimeAdded", "string", Cell::Of(time_added)),
    AGE,
];
const CLAIM: &[Column] = &[NAME, column("State", "string", Cell::Of(claim_state)), AGE];
const SLICE: &[Column] = &[
    NAME,
    column("Node", "string", Cell::Text(&["spec", "nodeName"])),
    column("Driver", "string", Cell::Text(&["spec", "driver"])),
    column("Pool", "string", Cell::Text(&["spec", "pool", "name"])),
    AGE,
];
const POD_GROUP: &[Column] = &[
    NAME,
    column("Policy", "string", Cell::Of(group_policy)),
    column("Workload", "string", Cell::Path(&["spec", "workloadRef", "workloadName"])),
    column("Status", "string", Cell::Of(group_status)),
    AGE,
];

fn time_added(object: &Value, now: Timestamp) -> Value {
    match at(object, &["spec", "taint", "timeAdded"]) {
        Value::Null => json!(""),
        time => json!(age(time, now)),
    }
}

fn claim_state(object: &Value, _: Timestamp) -> Value {
    let deleted = !at(object, &["metadata", "deletionTimestamp"]).is_null();
    let allocated = !at(object, &["status", "allocation"]).is_null();
    let reserved = allocated && !items(object, &["status", "reservedFor"]).is_empty();
    let states = [
        (deleted, "deleted"),
        (!allocated && !deleted, "pending"),
        (allocated, "allocated"),
        (reserved, "reserved"),
    ];
    let words = states.iter().filter(|(holds, _)| *holds).map(|(_, word)| *word);
    json!(words.collect::<Vec<_>>().join(","))
}

fn group_policy(object: &Value, _: Timestamp) -> Value {
    json!(if at(object, &["spec", "schedulingPolicy", "gang"]).is_null() { "Basic" } else { "Gang" })
}

fn group_status(object: &Value, _: Timestamp) -> Value {
    if let Some(target) = super::condition(object, "DisruptionTarget") {
        return json!(text(target, &["reason"]));
    }
    json!(match super::condition(object, "PodGroupInitiallyScheduled") {
        None => "Pending",
        Some(condition) if text(condition, &["status"]) == "True" => "Scheduled",
        Some(_) => "Unschedulable",
    })
}
