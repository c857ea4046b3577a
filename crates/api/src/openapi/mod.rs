//! OpenAPI documents, made from the catalog and the schema: version 2 as one document, version 3 as an index and a
//! document per group version. kubectl explains, completes and merges by them, and finds there that the server
//! validates fields (`fieldValidation` on each write). Source: `k8s.io/kube-openapi`, KEP-2896.

mod paths;
mod protobuf;
mod schemas;

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Map, Value, json};

use crate::catalog::{Catalog, Row, group_version};
use crate::schema::{Descriptions, Schema, Typed};
use schemas::Definitions;

pub use protobuf::{MEDIA_TYPE as V2_PROTOBUF, OLD_MEDIA_TYPE as V2_PROTOBUF_OLD};

/// Which of the two languages a document speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// Swagger 2.0.
    V2,
    /// OpenAPI 3.0.
    V3,
}

impl Dialect {
    /// Where definitions stand.
    fn reference(self, name: &str) -> Value {
        match self {
            Self::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Self::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

/// `/openapi/v2`: all of it. `version` is the server's (`v1.37.0`).
pub fn v2(catalog: &Catalog, version: &str) -> Value {
    let descriptions = Descriptions::open();
    let rows: Vec<&Row> = catalog.rows().map(AsRef::as_ref).collect();
    let (paths, definitions) = contents(&rows, Dialect::V2, &descriptions);
    json!({
        "swagger": "2.0", "info": {"title": "Kubernetes", "version": version},
        "paths": paths, "definitions": definitions,
        "securityDefinitions": {"BearerToken": {
            "description": "Bearer Token authentication", "type": "apiKey", "name": "authorization", "in": "header",
        }},
        "security": [{"BearerToken": []}],
    })
}

/// A document of version 2 in protobuf ([`V2_PROTOBUF`]): its definitions.
pub fn v2_protobuf(document: &Value) -> Vec<u8> {
    protobuf::encode(document)
}

/// `/openapi/v3`: where each group version's document is. The hash in an address changes with what is served there, so
/// that clients may keep documents.
pub fn v3_index(catalog: &Catalog, version: &str) -> Value {
    let mut paths = Map::new();
    for group in catalog.groups() {
        for name in &group.versions {
            let rows = rows_of(catalog, &group.name, name);
            let path = document_path(&group.name, name);
            let url = format!("/openapi/v3/{path}?hash={:016X}", fingerprint(&rows, version));
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

/// `/openapi/v3/<path>`: the document of a group version (`api/v1`, `apis/apps/v1`).
pub fn v3(catalog: &Catalog, path: &str, version: &str) -> Option<Value> {
    let (group, name) = match path.strip_prefix("apis/") {
        Some(rest) => rest.split_once('/')?,
        None => ("", path.strip_prefix("api/")?),
    };
    let rows = rows_of(catalog, group, name);
    if rows.is_empty() {
        return None;
    }
    let descriptions = Descriptions::open();
    let (paths, schemas) = contents(&rows, Dialect::V3, &descriptions);
    Some(json!({
        "openapi": "3.0.0", "info": {"title": "Kubernetes", "version": version}, "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"BearerToken": {
            "description": "Bearer Token authentication", "type": "apiKey", "name": "authorization", "in": "header",
        }}},
    }))
}

fn document_path(group: &str, version: &str) -> String {
    let prefix = if group.is_empty() { "api" } else { "apis" };
    format!("{prefix}/{}", group_version(group, version))
}

fn rows_of<'c>(catalog: &'c Catalog, group: &str, version: &str) -> Vec<&'c Row> {
    catalog.rows().map(AsRef::as_ref).filter(|row| row.group == group && row.version == version).collect()
}

/// What the rows' documents depend on, as a number: rows that are changed at run time change their schema's address or
/// their own facts.
fn fingerprint(rows: &[&Row], version: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    version.hash(&mut hasher);
    for row in rows {
        (&row.kind, &row.plural, row.namespaced, &row.verbs, &row.short_names, row.ty).hash(&mut hasher);
        std::sync::Arc::as_ptr(&row.schema).hash(&mut hasher);
        row.subresources.iter().for_each(|one| (&one.name, &one.kind, &one.verbs).hash(&mut hasher));
    }
    hasher.finish()
}

/// Paths and definitions of rows.
fn contents(rows: &[&Row], dialect: Dialect, descriptions: &Descriptions) -> (Value, Value) {
    let mut definitions = Definitions::new(dialect, descriptions);
    let mut all = Map::new();
    for row in rows {
        paths::of(row, dialect, &mut definitions, &mut all);
    }
    (Value::Object(all), definitions.finish())
}

/// The type of a kind in the schema that a row uses, or a built-in one (`Scale`).
fn type_of_kind<'r>(row: &'r Row, group: &str, version: &str, kind: &str) -> Option<Typed<'r>> {
    if (row.group.as_ref(), row.version.as_ref(), row.kind.as_ref()) == (group, version, kind) {
        return Some(row.typed());
    }
    let builtin = Schema::builtin();
    let own = row.schema.of_kind(group, version, kind).map(|id| row.schema.typed(id));
    own.or_else(|| builtin.of_kind(group, version, kind).map(|id| builtin.typed(id)))
}

#[cfg(test)]
mod tests;
