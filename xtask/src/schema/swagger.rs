//! Upstream's OpenAPI v2 description.

use anyhow::{Context, Result};
use serde_json::Value;

use super::table::{Attributes, Definition, Field, Table};

/// Types that are more than their JSON form says; the catalog's readers treat each in its own way.
const ALIASES: [(&str, &str); 7] = [
    ("io.k8s.apimachinery.pkg.api.resource.Quantity", "quantity"),
    ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", "intstr"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Time", "time"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", "microtime"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", "any"),
    ("io.k8s.apimachinery.pkg.runtime.RawExtension", "any"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Patch", "any"),
];

/// Reads the definitions.
pub(crate) fn read(text: &str) -> Result<Table> {
    let document: Value = serde_json::from_str(text).context("the description is not JSON")?;
    let definitions = document["definitions"].as_object().context("the description has no definitions")?;
    let mut table = Table::default();
    for (name, schema) in definitions {
        table.definitions.insert(name.clone(), definition(name, schema));
    }
    Ok(table)
}

fn definition(name: &str, schema: &Value) -> Definition {
    let mut definition = Definition::default();
    let attributes = &mut definition.attributes;
    let alias = ALIASES.iter().find(|(aliased, _)| *aliased == name).map(|(_, alias)| *alias);
    // What has neither fields nor an alias holds arbitrary JSON (apiextensions' JSON and its kin).
    let bare = schema.get("properties").is_none().then(|| match schema["type"].as_str() {
        Some("string") => "string",
        _ => "any",
    });
    if let Some(alias) = alias.or(bare) {
        attributes.insert("alias".into(), alias.into());
    }
    copy(schema, "x-kubernetes-map-type", attributes, "map");
    if let Some(kinds) = schema["x-kubernetes-group-version-kind"].as_array() {
        let one = |kind: &Value| {
            let part = |name: &str| kind[name].as_str().unwrap_or_default().to_owned();
            format!("{}/{}/{}", part("group"), part("version"), part("kind"))
        };
        // The options' types belong to every group version there is: not one line each.
        if let [kind] = kinds.as_slice() {
            attributes.insert("kind".into(), one(kind));
        }
    }
    if let Some(unions) = schema.get("x-kubernetes-unions") {
        attributes.insert("unions".into(), unions.to_string());
    }
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let mut field = field(property);
        if required.contains(&name.as_str()) {
            field.attributes.insert("required".into(), String::new());
        }
        definition.fields.insert(name.clone(), field);
    }
    definition
}

fn field(property: &Value) -> Field {
    let mut attributes = Attributes::new();
    copy(property, "x-kubernetes-map-type", &mut attributes, "map");
    copy(property, "x-kubernetes-patch-strategy", &mut attributes, "patch");
    copy(property, "x-kubernetes-patch-merge-key", &mut attributes, "key");
    if let Some(list) = property["x-kubernetes-list-type"].as_str() {
        let keys = property["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
        let keys: Vec<&str> = keys.filter_map(Value::as_str).collect();
        let value = if keys.is_empty() { list.to_owned() } else { format!("{list}:{}", keys.join(",")) };
        attributes.insert("list".into(), value);
    }
    Field { ty: field_type(property), number: 0, attributes }
}

fn copy(from: &Value, name: &str, to: &mut Attributes, as_name: &str) {
    if let Some(value) = from[name].as_str() {
        to.insert(as_name.into(), value.into());
    }
}

fn field_type(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        return reference.trim_start_matches("#/definitions/").to_owned();
    }
    let format = schema["format"].as_str();
    match (schema["type"].as_str(), format) {
        (Some("array"), _) => format!("[]{}", field_type(&schema["items"])),
        (Some("object"), _) if schema.get("additionalProperties").is_some() => {
            format!("map[{}]", field_type(&schema["additionalProperties"]))
        }
        (Some("integer"), Some("int32")) => "int32".into(),
        (Some("integer"), _) => "int64".into(),
        (Some("number"), _) => "double".into(),
        (Some("boolean"), _) => "bool".into(),
        (Some("string"), Some("byte")) => "bytes".into(),
        (Some("string"), Some("date-time")) => "time".into(),
        (Some("string"), _) => "string".into(),
        _ => "any".into(),
    }
}
