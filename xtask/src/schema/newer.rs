//! What a release newer than the OpenAPI description added or removed, from the sources of k8s-openapi.

use std::collections::BTreeMap;

use super::source::{Definition as Source, Field as SourceField};
use super::table::{Attributes, Definition, Field, Table};

const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// Adds what is new (marked `since`), drops what is gone.
pub(crate) fn merge(table: &mut Table, sources: &BTreeMap<String, Source>, release: &str) {
    let is_list = |name: &str| name.strip_suffix("List").is_some_and(|item| sources.contains_key(item));
    table.definitions.retain(|name, _| sources.contains_key(name) || is_list(name));
    for source in sources.values() {
        // The crate's generic list is no definition of upstream's.
        if source.name == "io.k8s.List" {
            continue;
        }
        match table.definitions.get_mut(&source.name) {
            // Aliases and hand-written types of the crate say nothing about fields.
            Some(definition) if definition.attributes.contains_key("alias") || source.fields.is_empty() => {}
            Some(definition) => merge_fields(definition, source, release),
            None => add(table, source, release),
        }
    }
}

fn merge_fields(definition: &mut Definition, source: &Source, release: &str) {
    let known = |name: &str| source.fields.iter().any(|field| field.json == name);
    // Type metadata is no field of the crate's structs; WatchEvent is an enum there.
    let type_meta =
        definition.attributes.contains_key("kind") || definition.fields.contains_key("apiVersion");
    definition
        .fields
        .retain(|name, _| known(name) || (type_meta && (name == "apiVersion" || name == "kind")));
    for field in &source.fields {
        definition.fields.entry(field.json.clone()).or_insert_with(|| new_field(field, release));
    }
}

fn add(table: &mut Table, source: &Source, release: &str) {
    let mut definition = Definition::default();
    definition.attributes.insert("since".into(), release.into());
    for field in &source.fields {
        definition.fields.insert(field.json.clone(), new_field(field, release));
    }
    if let Some([group, version, kind]) = &source.kind {
        definition.attributes.insert("kind".into(), format!("{group}/{version}/{kind}"));
        add_type_meta(&mut definition);
        let mut list = Definition::default();
        list.attributes.insert("since".into(), release.into());
        list.attributes.insert("kind".into(), format!("{group}/{version}/{kind}List"));
        add_type_meta(&mut list);
        let items = Field { ty: format!("[]{}", source.name), number: 2, attributes: Attributes::new() };
        list.fields.insert("items".into(), required(items));
        list.fields.insert("metadata".into(), Field { ty: LIST_META.into(), number: 1, ..Field::default() });
        table.definitions.insert(format!("{}List", source.name), list);
    }
    table.definitions.insert(source.name.clone(), definition);
}

fn add_type_meta(definition: &mut Definition) {
    for name in ["apiVersion", "kind"] {
        definition.fields.insert(name.into(), Field { ty: "string".into(), ..Field::default() });
    }
}

fn required(mut field: Field) -> Field {
    field.attributes.insert("required".into(), String::new());
    field
}

fn new_field(source: &SourceField, release: &str) -> Field {
    let mut field = Field { ty: field_type(&source.rust_type), ..Field::default() };
    field.attributes.insert("since".into(), release.into());
    if let Some(list) = &source.list {
        field.attributes.insert("list".into(), list.clone());
    }
    // The crate makes metadata obligatory where upstream does not.
    if source.required && source.json != "metadata" { required(field) } else { field }
}

/// The table's spelling of a Rust type.
fn field_type(rust: &str) -> String {
    let inner = |prefix: &str| rust.strip_prefix(prefix).and_then(|inner| inner.strip_suffix('>'));
    if let Some(item) = inner("Vec<").or_else(|| inner("std::vec::Vec<")) {
        return format!("[]{}", field_type(item));
    }
    if let Some(value) = inner("std::collections::BTreeMap<std::string::String, ") {
        return format!("map[{}]", field_type(value));
    }
    if let Some(boxed) = inner("std::boxed::Box<").or_else(|| inner("Box<")) {
        return field_type(boxed);
    }
    match rust {
        "std::string::String" | "String" => "string".into(),
        "i32" => "int32".into(),
        "i64" => "int64".into(),
        "f64" => "double".into(),
        "bool" => "bool".into(),
        "crate::ByteString" => "bytes".into(),
        _ => definition_name(rust),
    }
}

/// `crate::api::core::v1::Pod` is `io.k8s.api.core.v1.Pod`.
fn definition_name(path: &str) -> String {
    match path.strip_prefix("crate::") {
        Some(path) => {
            let dotted =
                path.replace("::", ".").replacen("apiextensions_apiserver", "apiextensions-apiserver", 1);
            format!("io.k8s.{}", dotted.replacen("kube_aggregator", "kube-aggregator", 1))
        }
        None => "any".into(),
    }
}
