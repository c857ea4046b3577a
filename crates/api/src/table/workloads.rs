//! Cells that several workload kinds share.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{at, items, number, or_none, text};

/// `ready/desired`.
pub(super) fn ready(object: &Value, _: Timestamp) -> Value {
    json!(format!(
        "{}/{}",
        number(object, &["status", "readyReplicas"]),
        number(object, &["spec", "replicas"])
    ))
}

fn of_containers(object: &Value, field: &str) -> Value {
    let containers = items(object, &["spec", "template", "spec", "containers"]);
    or_none(containers.iter().map(|container| text(container, &[field])).collect::<Vec<_>>().join(","))
}

/// The names of the template's containers.
pub(super) fn containers(object: &Value, _: Timestamp) -> Value {
    of_containers(object, "name")
}

/// The images of the template's containers.
pub(super) fn images(object: &Value, _: Timestamp) -> Value {
    of_containers(object, "image")
}

/// The selector: an object's, or the plain labels of a ReplicationController.
pub(super) fn selector(object: &Value, _: Timestamp) -> Value {
    let selector = at(object, &["spec", "selector"]);
    let is_object = selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some();
    if is_object { super::selector(selector) } else { super::labels(selector) }
}
