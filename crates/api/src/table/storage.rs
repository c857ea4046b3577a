//! Volumes, claims and classes, and the drivers that serve them.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::names::DEFAULT_STORAGE_CLASS;

use super::{AGE, Cell, Column, Family, NAME, at, column, items, joined, or_none, text, wide};

pub(super) const KINDS: Family = &[
    ("", "PersistentVolume", VOLUME),
    ("", "PersistentVolumeClaim", CLAIM),
    ("storage.k8s.io", "StorageClass", STORAGE_CLASS),
    ("storage.k8s.io", "VolumeAttachment", ATTACHMENT),
    ("storage.k8s.io", "VolumeAttributesClass", ATTRIBUTES_CLASS),
    ("storage.k8s.io", "CSIDriver", DRIVER),
    ("storage.k8s.io", "CSINode", DRIVER_NODE),
    ("storage.k8s.io", "CSIStorageCapacity", CAPACITY),
];

const ATTRIBUTES: Column =
    column("VolumeAttributesClass", "string", Cell::Optional(&["spec", "volumeAttributesClassName"]));
const MODE: Column = wide("VolumeMode", "string", Cell::Optional(&["spec", "volumeMode"]));

const VOLUME: &[Column] = &[
    NAME,
    column("Capacity", "string", Cell::Of(|object, _| size(at(object, &["spec", "capacity"])))),
    column("Access Modes", "string", Cell::Of(|object, _| modes(items(object, &["spec", "accessModes"])))),
    column("Reclaim Policy", "string", Cell::Text(&["spec", "persistentVolumeReclaimPolicy"])),
    column("Status", "string", Cell::Of(phase)),
    column("Claim", "string", Cell::Of(claim)),
    column("StorageClass", "string", Cell::Of(class)),
    ATTRIBUTES,
    column("Reason", "string", Cell::Text(&["status", "reason"])),
    AGE,
    MODE,
];
const CLAIM: &[Column] = &[
    NAME,
    column("Status", "string", Cell::Of(phase)),
    column("Volume", "string", Cell::Text(&["spec", "volumeName"])),
    column(
        "Capacity",
        "string",
        Cell::Of(|object, _| bound(object, size(at(object, &["status", "capacity"])))),
    ),
    column(
        "Access Modes",
        "string",
        Cell::Of(|object, _| bound(object, modes(items(object, &["status", "accessModes"])))),
    ),
    column("StorageClass", "string", Cell::Of(class)),
    ATTRIBUTES,
    AGE,
    MODE,
];
const STORAGE_CLASS: &[Column] = &[
    column("Name", "string", Cell::Of(class_name)),
    column("Provisioner", "string", Cell::Text(&["provisioner"])),
    column("ReclaimPolicy", "string", Cell::Of(|object, _| or(text(object, &["reclaimPolicy"]), "Delete"))),
    column(
        "VolumeBindingMode",
        "string",
        Cell::Of(|object, _| or(text(object, &["volumeBindingMode"]), "Immediate")),
    ),
    column("AllowVolumeExpansion", "string", Cell::Flag(&["allowVolumeExpansion"])),
    AGE,
];
const ATTACHMENT: &[Column] = &[
    NAME,
    column("Attacher", "string", Cell::Text(&["spec", "attacher"])),
    column("PV", "string", Cell::Text(&["spec", "source", "persistentVolumeName"])),
    column("Node", "string", Cell::Text(&["spec", "nodeName"])),
    column("Attached", "boolean", Cell::Flag(&["status", "attached"])),
    AGE,
];
const ATTRIBUTES_CLASS: &[Column] = &[NAME, column("DriverName", "string", Cell::Text(&["driverName"])), AGE];
const DRIVER: &[Column] = &[
    NAME,
    column(
        "AttachRequired",
        "boolean",
        Cell::Of(|object, _| json!(at(object, &["spec", "attachRequired"]) != false)),
    ),
    column("PodInfoOnMount", "boolean", Cell::Flag(&["spec", "podInfoOnMount"])),
    column("StorageCapacity", "boolean", Cell::Flag(&["spec", "storageCapacity"])),
    column("TokenRequests", "string", Cell::Of(token_requests)),
    column("RequiresRepublish", "boolean", Cell::Flag(&["spec", "requiresRepublish"])),
    column(
        "Modes",
        "string",
        Cell::Of(|object, _| or_none(joined(items(object, &["spec", "volumeLifecycleModes"]), ","))),
    ),
    AGE,
];
const DRIVER_NODE: &[Column] = &[NAME, column("Drivers", "integer", Cell::Count(&["spec", "drivers"])), AGE];
const CAPACITY: &[Column] = &[
    NAME,
    column("StorageClassName", "string", Cell::Text(&["storageClassName"])),
    column("Capacity", "string", Cell::Optional(&["capacity"])),
];

/// The annotation that named a class before the field did.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

fn or(text: &str, otherwise: &str) -> Value {
    json!(if text.is_empty() { otherwise } else { text })
}

fn size(capacity: &Value) -> Value {
    or(text(capacity, &["storage"]), "0")
}

/// Upstream's abbreviations, in its order.
fn modes(modes: &[Value]) -> Value {
    let known = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let found = known.iter().filter(|(mode, _)| modes.iter().any(|one| one == mode)).map(|(_, short)| *short);
    json!(found.collect::<Vec<_>>().join(","))
}

fn phase(object: &Value, _: Timestamp) -> Value {
    match at(object, &["metadata", "deletionTimestamp"]) {
        Value::Null => json!(text(object, &["status", "phase"])),
        _ => json!("Terminating"),
    }
}

fn claim(object: &Value, _: Timestamp) -> Value {
    match at(object, &["spec", "claimRef"]) {
        Value::Null => json!(""),
        claim => json!(format!("{}/{}", text(claim, &["namespace"]), text(claim, &["name"]))),
    }
}

fn class(object: &Value, _: Timestamp) -> Value {
    match text(object, &["metadata", "annotations", CLASS]) {
        "" => json!(text(object, &["spec", "storageClassName"])),
        class => json!(class),
    }
}

/// What is shown of a claim once it has a volume.
fn bound(object: &Value, cell: Value) -> Value {
    if text(object, &["spec", "volumeName"]).is_empty() { json!("") } else { cell }
}

fn class_name(object: &Value, _: Timestamp) -> Value {
    let annotations = at(object, &["metadata", "annotations"]);
    let is_default = DEFAULT_STORAGE_CLASS.iter().any(|name| text(annotations, &[name]) == "true");
    let name = text(object, &["metadata", "name"]);
    if is_default { json!(format!("{name} (default)")) } else { json!(name) }
}

fn token_requests(object: &Value, _: Timestamp) -> Value {
    match at(object, &["spec", "tokenRequests"]).as_array() {
        None => json!("<unset>"),
        Some(requests) => {
            let audiences = requests.iter().map(|request| text(request, &["audience"]));
            json!(audiences.collect::<Vec<_>>().join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{cells, columns_of};

    fn row(group: &str, kind: &str, object: &Value) -> Vec<Value> {
        cells(columns_of(group, kind), object, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn volumes_and_claims() {
        let volume = json!({"metadata": {"name": "v", "deletionTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"capacity": {"storage": "5Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain", "claimRef": {"namespace": "n", "name": "c"}, "volumeMode": "Block"},
            "status": {"phase": "Bound"}});
        let cells = row("", "PersistentVolume", &volume);
        assert_eq!(
            cells[1..6],
            [json!("5Gi"), json!("RWO,RWX"), json!("Retain"), json!("Terminating"), json!("n/c")]
        );
        assert_eq!((&cells[7], &cells[10]), (&json!("<unset>"), &json!("Block")));
        let mut claim = json!({"metadata": {"name": "c"}, "spec": {"storageClassName": "fast"},
            "status": {"phase": "Pending", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}});
        assert_eq!(
            row("", "PersistentVolumeClaim", &claim)[1..6],
            [json!("Pending"), json!(""), json!(""), json!(""), json!("fast")]
        );
        claim["spec"]["volumeName"] = json!("v");
        assert_eq!(row("", "PersistentVolumeClaim", &claim)[2..5], [json!("v"), json!("1Gi"), json!("RWO")]);
    }
}
