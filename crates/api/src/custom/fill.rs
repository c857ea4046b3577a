//! Defaults and nulls of custom resources. Source: `apiextensions-apiserver/pkg/apiserver/schema/defaulting`.

use serde_json::{Map, Value};

use super::props::Props;

/// Fills what is absent, or null where null is no value, with its default; drops such nulls where there is none.
pub(super) fn default(value: &mut Value, schema: &Props) {
    match value {
        Value::Object(fields) => {
            for (name, property) in &schema.properties {
                fill(fields, name, property);
            }
            let is_known = |name: &String| schema.properties.contains_key(name);
            if let Some(additional) = schema.additional() {
                let nulls = fields.iter().filter(|(name, value)| value.is_null() && !is_known(name));
                let names: Vec<String> = nulls.map(|(name, _)| name.clone()).collect();
                names.iter().for_each(|name| fill(fields, name, additional));
            }
            for (name, field) in fields.iter_mut() {
                if let Some(below) = schema.child(name) {
                    default(field, below);
                }
            }
        }
        Value::Array(items) => {
            let Some(item) = schema.item() else { return };
            for entry in items {
                if entry.is_null()
                    && !item.nullable
                    && let Some(value) = &item.default
                {
                    *entry = value.clone();
                }
                default(entry, item);
            }
        }
        _ => {}
    }
}

fn fill(fields: &mut Map<String, Value>, name: &str, schema: &Props) {
    let is_null = fields.get(name).map(Value::is_null);
    match (&schema.default, is_null) {
        (Some(value), None) => {
            fields.insert(name.to_owned(), value.clone());
        }
        (Some(value), Some(true)) if !schema.nullable => {
            fields.insert(name.to_owned(), value.clone());
        }
        (None, Some(true)) if !schema.nullable && !schema.preserves() => {
            fields.remove(name);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_reach_as_far_as_there_are_objects() {
        let schema = Props::read(&json!({"type": "object", "properties": {
            "a": {"type": "string", "default": "x"},
            "b": {"type": "object", "default": {}, "properties": {"c": {"type": "integer", "default": 3}}},
            "d": {"type": "object", "properties": {"e": {"type": "integer", "default": 4}}},
            "n": {"type": "string", "nullable": true, "default": "y"},
            "z": {"type": "string"},
            "l": {"type": "array", "items": {"type": "object", "properties": {"p": {"type": "string", "default": "TCP"}}}},
            "m": {"type": "object", "additionalProperties": {"type": "object", "properties":
                {"q": {"type": "boolean", "default": true}}}},
        }}))
        .unwrap();
        let mut value = json!({"n": null, "z": null, "a": null, "l": [{}, {"p": "UDP"}], "m": {"k": {}}});
        default(&mut value, &schema);
        assert_eq!(
            value,
            json!({"a": "x", "b": {"c": 3}, "n": null, "l": [{"p": "TCP"}, {"p": "UDP"}], "m": {"k": {"q": true}}})
        );
    }
}
