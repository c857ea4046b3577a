//! OpenAPI documents, made from the catalog and the schema: version 2 as one document, version 3 as an index and a
//! document per group version. kubectl explains, completes and merges by them, and finds there that the server
//! validates fields (`fieldValidation` on each write). Source: `k8s.io/kube-openapi`, KEP-2896.

mod index;
mod operations;
mod parameters;
mod paths;
mod protobuf;
mod protobuf3;
mod schemas;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Map, Value, json};

use crate::catalog::{Catalog, Row, group_version};
use crate::schema::{Descriptions, Schema, Typed};
use parameters::Shared;
use schemas::Definitions;

pub use protobuf::{MEDIA_TYPE as V2_PROTOBUF, OLD_MEDIA_TYPE as V2_PROTOBUF_OLD};
pub use protobuf3::{MEDIA_TYPE as V3_PROTOBUF, OLD_MEDIA_TYPE as V3_PROTOBUF_OLD};

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
    let builtin = rows.iter().filter(|row| row.custom.is_none());
    let indexed: BTreeSet<String> = builtin
        .flat_map(|row| [index::of_group(&row.group), index::of_version(&row.group, &row.version)])
        .chain(index::OTHERS.map(|(_, path)| path.to_owned()))
        .collect();
    let Contents { paths, definitions, parameters } = contents(&rows, &indexed, Dialect::V2, &descriptions);
    json!({
        "swagger": "2.0", "info": {"title": "Kubernetes", "version": version},
        "paths": paths, "definitions": definitions, "parameters": parameters,
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
    let mut add = |path: String, rows: &[&Row]| {
        let url = format!("/openapi/v3/{path}?hash={}", hash(rows, version));
        paths.insert(path, json!({"serverRelativeURL": url}));
    };
    for (path, _) in index::OTHERS {
        add(path.to_owned(), &[]);
    }
    for group in catalog.groups() {
        for name in &group.versions {
            add(document_path(&group.name, name), &rows_of(catalog, &group.name, name));
        }
        if is_indexed(catalog, &group.name) {
            add(format!("apis/{}", group.name), &[]);
        }
    }
    json!({"paths": paths})
}

/// The hash under which `/openapi/v3/<path>` is to be asked for, if there is such a document.
pub fn v3_hash(catalog: &Catalog, path: &str, version: &str) -> Option<String> {
    let rows = described(catalog, path)?.1;
    Some(hash(&rows, version))
}

/// `/openapi/v3/<path>`: the document of a group version (`api/v1`, `apis/apps/v1`), or of a path that no version has
/// (`apis/apps`, `version`).
pub fn v3(catalog: &Catalog, path: &str, version: &str) -> Option<Value> {
    let (indexed, rows) = described(catalog, path)?;
    let descriptions = Descriptions::open();
    let Contents { paths, definitions, .. } = contents(&rows, &indexed, Dialect::V3, &descriptions);
    Some(json!({
        "openapi": "3.0.0", "info": {"title": "Kubernetes", "version": version}, "paths": paths,
        "components": {"schemas": definitions, "securitySchemes": {"BearerToken": {
            "description": "Bearer Token authentication", "type": "apiKey", "name": "authorization", "in": "header",
        }}},
    }))
}

/// A document of version 3 in protobuf ([`V3_PROTOBUF`]).
pub fn v3_protobuf(document: &Value) -> Vec<u8> {
    protobuf3::encode(document)
}

/// What a document of version 3 describes: the index paths, and the rows.
fn described<'c>(catalog: &'c Catalog, path: &str) -> Option<(BTreeSet<String>, Vec<&'c Row>)> {
    if let Some((_, other)) = index::OTHERS.iter().find(|(at, _)| *at == path) {
        return Some((BTreeSet::from([(*other).to_owned()]), Vec::new()));
    }
    let (group, name) = match path.strip_prefix("apis/") {
        Some(rest) => rest.split_once('/').unwrap_or((rest, "")),
        None => ("", path.strip_prefix("api/")?),
    };
    if name.is_empty() {
        return is_indexed(catalog, group).then(|| (BTreeSet::from([index::of_group(group)]), Vec::new()));
    }
    let rows = rows_of(catalog, group, name);
    let builtin = rows.iter().any(|row| row.custom.is_none());
    let indexed = builtin.then(|| index::of_version(group, name)).into_iter().collect();
    (!rows.is_empty()).then_some((indexed, rows))
}

/// Whether a group has index paths: those of custom resources have none.
fn is_indexed(catalog: &Catalog, group: &str) -> bool {
    !group.is_empty() && catalog.rows().any(|row| row.group == group && row.custom.is_none())
}

fn document_path(group: &str, version: &str) -> String {
    let prefix = if group.is_empty() { "api" } else { "apis" };
    format!("{prefix}/{}", group_version(group, version))
}

fn rows_of<'c>(catalog: &'c Catalog, group: &str, version: &str) -> Vec<&'c Row> {
    catalog.rows().map(AsRef::as_ref).filter(|row| row.group == group && row.version == version).collect()
}

/// What a document of version 3 depends on, as text: clients keep it for ever under its hash, so the hash changes with the
/// server's tables and with what custom resources publish.
fn hash(rows: &[&Row], version: &str) -> String {
    let mut hasher = DefaultHasher::new();
    (version, env!("SKIFF_DOCUMENTS")).hash(&mut hasher);
    for row in rows {
        (&row.kind, &row.plural, row.namespaced, &row.verbs, &row.short_names).hash(&mut hasher);
        row.subresources.iter().for_each(|one| (&one.name, &one.kind, &one.verbs).hash(&mut hasher));
        if let Some(custom) = &row.custom {
            custom.digest.hash(&mut hasher);
        }
    }
    format!("{:016X}", hasher.finish())
}

/// The parts of a document.
struct Contents {
    paths: Value,
    definitions: Value,
    /// Shared ones, in version 2.
    parameters: Value,
}

/// Paths and definitions of index paths and rows.
fn contents(
    rows: &[&Row],
    indexed: &BTreeSet<String>,
    dialect: Dialect,
    descriptions: &Descriptions,
) -> Contents {
    let builtin = rows.iter().filter(|row| row.custom.is_none());
    let versions = builtin.map(|row| [row.group.as_ref(), row.version.as_ref()]).collect();
    let mut definitions = Definitions::new(dialect, versions, descriptions);
    let mut shared = Shared::new(dialect);
    let mut all = Map::new();
    for path in indexed {
        index::add(path, dialect, &mut definitions, &mut shared, &mut all);
    }
    for row in rows {
        paths::of(row, dialect, &mut definitions, &mut shared, &mut all);
    }
    Contents { paths: Value::Object(all), definitions: definitions.finish(), parameters: shared.finish() }
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
