//! Comparing and naming pod templates.

use std::collections::BTreeMap;

use serde_json::Value;

use super::types::POD_TEMPLATE_HASH;

/// A template without what does not make a difference: absent fields that are spelled `null`, and the hash label.
pub(super) fn normalized(template: &Value) -> Value {
    let mut template = without_nulls(template);
    if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
        if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
            labels.remove(POD_TEMPLATE_HASH);
        }
        for field in ["labels", "annotations"] {
            if metadata.get(field).and_then(Value::as_object).is_some_and(serde_json::Map::is_empty) {
                metadata.remove(field);
            }
        }
    }
    template
}

fn without_nulls(value: &Value) -> Value {
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

/// Whether two templates make the same pods. Source: `EqualIgnoreHash`.
pub(super) fn equal(a: &Value, b: &Value) -> bool {
    normalized(a) == normalized(b)
}

/// The value of the hash label, and the suffix of the set's name. Only its distinctness matters: clients compare
/// labels and never compute it.
pub(super) fn hash(template: &Value, collisions: Option<i32>) -> String {
    let mut hash = Fnv32::default();
    hash.value(&normalized(template));
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_real_differences_count() {
        let plain =
            json!({ "metadata": { "labels": { "app": "a" } }, "spec": { "containers": [{ "name": "c" }] } });
        let hashed = json!({ "metadata": { "creationTimestamp": null, "labels": { "pod-template-hash": "x", "app": "a" } },
            "spec": { "containers": [{ "name": "c", "command": null }] } });
        let other =
            json!({ "metadata": { "labels": { "app": "a" } }, "spec": { "containers": [{ "name": "d" }] } });
        assert!(equal(&plain, &hashed) && !equal(&plain, &other));
        assert_eq!(hash(&plain, None), hash(&hashed, None));
        assert_ne!(hash(&plain, None), hash(&other, None));
        assert_ne!(hash(&plain, None), hash(&plain, Some(1)));
    }
}
