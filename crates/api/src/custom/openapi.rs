//! A custom resource's schema as OpenAPI documents publish it. Version 3 has all of it; version 2 cannot say several
//! things, and clients of old refuse what they do not know. Source: `apiextensions-apiserver/pkg/controller/openapi`.

use serde_json::{Map, Value, json};

/// What version 2 does not know, or clients of it stumble over.
const NOT_IN_V2: [&str; 7] =
    ["nullable", "default", "allOf", "anyOf", "oneOf", "not", "x-kubernetes-validations"];

/// The schema for version 3, without what the definition's author only sees.
pub(super) fn v3(schema: &Value) -> Value {
    schema.clone()
}

/// The schema for version 2.
pub(super) fn v2(schema: &Value) -> Value {
    let Some(fields) = schema.as_object() else { return schema.clone() };
    let flag = |name: &str| fields.get(name) == Some(&Value::Bool(true));
    // What may be null or anything has no type there: clients would refuse it.
    let mut out = Map::new();
    if flag("x-kubernetes-preserve-unknown-fields") {
        let kept = ["description", "type", "x-kubernetes-preserve-unknown-fields"];
        out.extend(fields.iter().filter(|(name, _)| kept.contains(&name.as_str())).map(owned));
        if fields.get("type") != Some(&json!("object")) {
            out.remove("type");
        }
        return Value::Object(out);
    }
    for (name, value) in fields {
        let value = match name.as_str() {
            name if NOT_IN_V2.contains(&name) => continue,
            "type" | "items" | "properties" | "additionalProperties" | "required"
                if flag("nullable") || flag("x-kubernetes-int-or-string") =>
            {
                continue;
            }
            "properties" => value
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, value)| (name.clone(), v2(value)))
                .collect(),
            "items" | "additionalProperties" if value.is_object() => v2(value),
            "additionalProperties" => continue,
            _ => value.clone(),
        };
        out.insert(name.clone(), value);
    }
    Value::Object(out)
}

fn owned((name, value): (&String, &Value)) -> (String, Value) {
    (name.clone(), value.clone())
}

/// A kind's definition: the schema with what every object has.
pub(super) fn kind(mut schema: Value, reference: Value, kind: [&str; 3]) -> Value {
    let [group, version, name] = kind;
    let description = |what: &str| json!({"type": "string", "description": what});
    if let Some(root) = schema.as_object_mut() {
        let preserves = root.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
        root.entry("type").or_insert_with(|| "object".into());
        let properties = root.entry("properties").or_insert_with(|| json!({}));
        properties["apiVersion"] = description("The group and version in which this object is written.");
        properties["kind"] = description("The kind of this object, in CamelCase.");
        properties["metadata"] = reference;
        if preserves {
            root.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
        }
        root.insert(
            "x-kubernetes-group-version-kind".into(),
            json!([{"group": group, "version": version, "kind": name}]),
        );
    }
    schema
}

/// The definition of a kind of which nothing is told: clients would take what is told for all that there is.
pub(super) fn untold([group, version, name]: [&str; 3]) -> Value {
    let kind = json!([{"group": group, "version": version, "kind": name}]);
    json!({"type": "object", "x-kubernetes-group-version-kind": kind})
}

/// The definition of a kind's list.
pub(super) fn list(item: Value, metadata: Value, [group, version, name]: [&str; 3]) -> Value {
    json!({
        "type": "object", "required": ["items"], "description": format!("{name} is a list of objects."),
        "properties": {
            "apiVersion": {"type": "string", "description": "The group and version in which this object is written."},
            "kind": {"type": "string", "description": "The kind of this object, in CamelCase."},
            "metadata": metadata,
            "items": {"type": "array", "items": item, "description": "The objects of the list."},
        },
        "x-kubernetes-group-version-kind": [{"group": group, "version": version, "kind": name}],
    })
}

/// The name of a kind's definition: `com.example.v1.Widget`.
pub fn name(group: &str, version: &str, kind: &str) -> String {
    let mut parts: Vec<&str> = group.split('.').collect();
    parts.reverse();
    format!("{}.{version}.{kind}", parts.join("."))
}
