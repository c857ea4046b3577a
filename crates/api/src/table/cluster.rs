//! Nodes, and what the cluster's own components keep.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, CREATED, Cell, Column, Family, NAME, at, column, has, items, or_none, text, wide};

pub(super) const KINDS: Family = &[
    ("", "Node", NODE),
    ("node.k8s.io", "RuntimeClass", RUNTIME_CLASS),
    ("coordination.k8s.io", "Lease", LEASE),
    ("coordination.k8s.io", "LeaseCandidate", LEASE_CANDIDATE),
    ("scheduling.k8s.io", "PriorityClass", PRIORITY_CLASS),
    ("apiextensions.k8s.io", "CustomResourceDefinition", CREATED),
    ("apiregistration.k8s.io", "APIService", API_SERVICE),
    ("storagemigration.k8s.io", "StorageVersionMigration", MIGRATION),
];

const NODE: &[Column] = &[
    NAME,
    column("Status", "string", Cell::Of(node_status)),
    column("Roles", "string", Cell::Of(node_roles)),
    AGE,
    column("Version", "string", Cell::Text(&["status", "nodeInfo", "kubeletVersion"])),
    wide("Internal-IP", "string", Cell::Of(|object, _| node_address(object, "InternalIP"))),
    wide("External-IP", "string", Cell::Of(|object, _| node_address(object, "ExternalIP"))),
    wide("OS-Image", "string", Cell::Of(|object, _| node_fact(object, "osImage"))),
    wide("Kernel-Version", "string", Cell::Of(kernel)),
    wide("Container-Runtime", "string", Cell::Of(|object, _| node_fact(object, "containerRuntimeVersion"))),
];
const RUNTIME_CLASS: &[Column] = &[NAME, column("Handler", "string", Cell::Text(&["handler"])), AGE];
const LEASE: &[Column] = &[NAME, column("Holder", "string", Cell::Text(&["spec", "holderIdentity"])), AGE];
const LEASE_CANDIDATE: &[Column] = &[
    NAME,
    column("LeaseName", "string", Cell::Text(&["spec", "leaseName"])),
    column("BinaryVersion", "string", Cell::Text(&["spec", "binaryVersion"])),
    column("EmulationVersion", "string", Cell::Text(&["spec", "emulationVersion"])),
    AGE,
];
const PRIORITY_CLASS: &[Column] = &[
    NAME,
    column("Value", "integer", Cell::Path(&["value"])),
    column("Global-Default", "boolean", Cell::Flag(&["globalDefault"])),
    AGE,
    column("PreemptionPolicy", "string", Cell::Text(&["preemptionPolicy"])),
];
const API_SERVICE: &[Column] = &[
    NAME,
    column("Service", "string", Cell::Of(aggregated_by)),
    column("Available", "string", Cell::Of(available)),
    AGE,
];
const MIGRATION: &[Column] = &[
    NAME,
    column("Resource", "string", Cell::Of(migrated)),
    column("Status", "string", Cell::Of(migration_status)),
];

fn node_status(object: &Value, _: Timestamp) -> Value {
    let mut status = match (super::condition(object, "Ready"), has(object, "Ready")) {
        (_, true) => "Ready".to_owned(),
        (Some(_), false) => "NotReady".to_owned(),
        (None, false) => "Unknown".to_owned(),
    };
    if at(object, &["spec", "unschedulable"]) == true {
        status.push_str(",SchedulingDisabled");
    }
    json!(status)
}

fn node_roles(object: &Value, _: Timestamp) -> Value {
    let labels = at(object, &["metadata", "labels"]).as_object();
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    or_none(roles.join(","))
}

fn node_address(object: &Value, kind: &str) -> Value {
    let address =
        items(object, &["status", "addresses"]).iter().find(|address| text(address, &["type"]) == kind);
    or_none(address.map(|address| text(address, &["address"]).to_owned()).unwrap_or_default())
}

fn node_fact(object: &Value, name: &str) -> Value {
    match text(object, &["status", "nodeInfo", name]) {
        "" => json!("<unknown>"),
        fact => json!(fact),
    }
}

fn kernel(object: &Value, _: Timestamp) -> Value {
    let version = node_fact(object, "kernelVersion");
    match text(object, &["status", "nodeInfo", "architecture"]) {
        "" => version,
        machine => json!(format!("{} ({machine})", version.as_str().unwrap_or_default())),
    }
}

fn aggregated_by(object: &Value, _: Timestamp) -> Value {
    match at(object, &["spec", "service"]) {
        Value::Null => json!("Local"),
        service => json!(format!("{}/{}", text(service, &["namespace"]), text(service, &["name"]))),
    }
}

/// Source: `kube-aggregator/pkg/registry/apiservice/storage.go`.
fn available(object: &Value, _: Timestamp) -> Value {
    let Some(condition) = super::condition(object, "Available") else { return json!("Unknown") };
    match text(condition, &["status"]) {
        "True" => json!("True"),
        status => json!(format!("{status} ({})", text(condition, &["reason"]))),
    }
}

fn migrated(object: &Value, _: Timestamp) -> Value {
    let resource = at(object, &["spec", "resource"]);
    json!(crate::status::qualified(text(resource, &["group"]), text(resource, &["resource"])))
}

fn migration_status(object: &Value, _: Timestamp) -> Value {
    let conditions = items(object, &["status", "conditions"]).iter();
    let held = conditions.filter(|condition| text(condition, &["status"]) == "True");
    let last = held
        .map(|condition| text(condition, &["type"]))
        .rfind(|kind| matches!(*kind, "Running" | "Failed" | "Succeeded"));
    json!(last.unwrap_or("Unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{cells, columns_of};

    fn row(group: &str, kind: &str, object: &Value) -> Vec<Value> {
        cells(columns_of(group, kind), object, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_cordoned_node_says_so() {
        let node = json!({
            "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        });
        let cells = row("", "Node", &node);
        assert_eq!(
            cells[1..4],
            [json!("Ready,SchedulingDisabled"), json!("control-plane"), json!("<unknown>")]
        );
        assert_eq!(cells[5], "192.0.2.1");
    }
}
