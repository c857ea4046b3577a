//! What is sent to the API server of a status: the fields of the node's that have changed since it was last written.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

use crate::pod::status::{DISRUPTION, OWN_CONDITIONS};

/// Fields that the node writes.
const OWN_FIELDS: [&str; 16] = [
    "phase",
    "reason",
    "message",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "qosClass",
    "observedGeneration",
    "conditions",
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
    "resources",
    "allocatedResources",
];

/// A status as JSON, without what others write.
pub(crate) fn own_fields(status: &PodStatus) -> Map<String, Value> {
    let Ok(Value::Object(mut fields)) = serde_json::to_value(status) else { return Map::new() };
    fields.retain(|name, _| OWN_FIELDS.contains(&name.as_str()));
    if let Some(Value::Array(conditions)) = fields.get_mut("conditions") {
        conditions.retain(|condition| {
            let kind = condition["type"].as_str().unwrap_or_default();
            OWN_CONDITIONS.contains(&kind)
                || (kind, condition["reason"].as_str()) == (DISRUPTION.0, Some(DISRUPTION.1))
        });
    }
    fields
}

/// The strategic merge patch from `known` to `wanted`; `None` if they are equal.
pub(crate) fn status_patch(
    uid: &str,
    known: &Map<String, Value>,
    wanted: &Map<String, Value>,
) -> Option<Value> {
    let mut status = Map::new();
    for name in OWN_FIELDS {
        let (old, new) = (known.get(name), wanted.get(name));
        if old == new {
            continue;
        }
        let change = match name {
            // Lists that the server merges by key.
            "conditions" => changed_conditions(old, new),
            "podIPs" | "hostIPs" => changed_addresses(old, new),
            // Maps, which the server would merge: what is no longer in them has to go.
            "resources" | "allocatedResources" => replaced(new),
            _ => new.cloned().unwrap_or(Value::Null),
        };
        status.insert(name.to_owned(), change);
    }
    if status.is_empty() { None } else { Some(json!({ "metadata": { "uid": uid }, "status": status })) }
}

fn replaced(new: Option<&Value>) -> Value {
    let mut value = new.cloned().unwrap_or(Value::Null);
    if let Value::Object(fields) = &mut value {
        fields.insert("$patch".to_owned(), "replace".into());
    }
    value
}

fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Conditions that differ. A condition whose reason or message went away says so, and so does one that is gone.
fn changed_conditions(old: Option<&Value>, new: Option<&Value>) -> Value {
    let changed = list(new).iter().filter(|condition| !list(old).contains(condition)).map(|condition| {
        let before = list(old).iter().find(|known| known["type"] == condition["type"]);
        let mut condition = condition.clone();
        if let (Some(before), Value::Object(fields)) = (before.and_then(Value::as_object), &mut condition) {
            for name in before.keys().filter(|name| name.as_str() != "lastProbeTime") {
                fields.entry(name.clone()).or_insert(Value::Null);
            }
        }
        condition
    });
    let gone =
        list(old).iter().filter(|known| list(new).iter().all(|condition| condition["type"] != known["type"]));
    let gone = gone.map(|known| json!({ "$patch": "delete", "type": known["type"] }));
    Value::Array(changed.chain(gone).collect())
}

fn changed_addresses(old: Option<&Value>, new: Option<&Value>) -> Value {
    let addresses =
        |value| list(value).iter().filter_map(|entry| entry["ip"].as_str()).collect::<BTreeSet<_>>();
    let kept = addresses(new);
    let mut entries: Vec<Value> = list(new).to_vec();
    for gone in addresses(old).difference(&kept) {
        entries.push(json!({ "$patch": "delete", "ip": gone }));
    }
    Value::Array(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(status: Value) -> Map<String, Value> {
        own_fields(&serde_json::from_value(status).unwrap())
    }

    #[test]
    fn only_changes_are_sent() {
        let old = fields(
            json!({"phase": "Pending", "podIPs": [{"ip": "10.0.0.1"}], "message": "x", "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "False", "reason": "ContainersNotReady"},
            {"type": "Initialized", "status": "True"}]}),
        );
        let new = fields(json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.2"}], "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}]}));
        let patch = status_patch("u1", &old, &new).unwrap();
        assert_eq!(
            patch,
            json!({"metadata": {"uid": "u1"}, "status": {
                "phase": "Running", "message": null,
                "podIPs": [{"ip": "10.0.0.2"}, {"$patch": "delete", "ip": "10.0.0.1"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": null}]}})
        );
        assert_eq!(status_patch("u1", &new, &new), None);
        let whole = |limits: Value| fields(json!({"resources": {"limits": limits}}));
        let patch =
            status_patch("u1", &whole(json!({"cpu": "1"})), &whole(json!({"memory": "1Gi"}))).unwrap();
        assert_eq!(patch["status"], json!({"resources": {"$patch": "replace", "limits": {"memory": "1Gi"}}}));
        let resized = fields(json!({"conditions": [{"type": "PodResizePending", "status": "True"}]}));
        let patch = status_patch("u1", &resized, &fields(json!({"conditions": []}))).unwrap();
        assert_eq!(patch["status"]["conditions"], json!([{"$patch": "delete", "type": "PodResizePending"}]));
    }
}
