//! Pod templates: the pods that they stand for, what makes a difference between two, and their hash.

use std::collections::BTreeMap;

use api::ObjectMeta;
use reconcile::Kind;
use serde_json::{Map, Value, json};

use crate::context::controller_ref;

/// The pod that a template of a controlling object stands for. Source: `controller.GetPodFromTemplate`.
pub(crate) fn pod(template: &Value, kind: &Kind, owner: &ObjectMeta) -> Value {
    let mut metadata = Map::new();
    // Pods are named after their owner, with a dash. Names are cut by the server where they would be too long.
    metadata.insert("generateName".into(), format!("{}-", owner.name).into());
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(field).filter(|value| !value.is_null()) {
            metadata.insert(field.into(), value.clone());
        }
    }
    metadata.insert("namespace".into(), owner.namespace.as_str().into());
    metadata.insert("ownerReferences".into(), json!([controller_ref(kind, owner)]));
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"] })
}

/// A template's labels.
pub(crate) fn labels(template: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(template["metadata"]["labels"].clone()).unwrap_or_default()
}

/// A value without the fields that are spelled `null`: they are absent.
pub(crate) fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.clone(), without_nulls(value)))
            .collect(),
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

/// A template without what does not make a difference: absent fields that are spelled `null`, empty maps of metadata,
/// and the labels that a controller gives (`ignored`).
pub(crate) fn normalized(template: &Value, ignored: &[&str]) -> Value {
    let mut template = without_nulls(template);
    if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
        if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
            labels.retain(|name, _| !ignored.contains(&name.as_str()));
        }
        for field in ["labels", "annotations"] {
            if metadata.get(field).and_then(Value::as_object).is_some_and(Map::is_empty) {
                metadata.remove(field);
            }
        }
    }
    template
}

/// A hash in the alphabet of generated names. Only its distinctness matters: clients compare hashes and never compute
/// them. A count of collisions, where there is one, makes another hash of the same value.
pub(crate) fn hash(value: &Value, collisions: Option<i32>) -> String {
    let mut hash = Fnv32::default();
    hash.value(value);
    if let Some(collisions) = collisions {
        hash.bytes(&collisions.to_le_bytes());
    }
    base::id::safe_encode(&hash.0.to_string())
}

/// FNV-1a with 32 bits.
struct Fnv32(u32);

impl Default for Fnv32 {
    fn default() -> Self {
        Self(0x811c_9dc5)
    }
}

impl Fnv32 {
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }

    /// Fields in the order of their names, whatever order the map keeps.
    fn value(&mut self, value: &Value) {
        match value {
            Value::Object(fields) => {
                self.bytes(b"{");
                for (name, value) in fields.iter().collect::<BTreeMap<_, _>>() {
                    self.bytes(name.as_bytes());
                    self.bytes(b":");
                    self.value(value);
                    self.bytes(b",");
                }
                self.bytes(b"}");
            }
            Value::Array(items) => {
                self.bytes(b"[");
                for item in items {
                    self.value(item);
                    self.bytes(b",");
                }
                self.bytes(b"]");
            }
            scalar => self.bytes(scalar.to_string().as_bytes()),
        }
    }
}
