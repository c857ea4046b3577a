//! A row's paths and their operations.

use serde_json::{Map, Value, json};

use super::{Dialect, schemas::Definitions, type_of_kind};
use crate::catalog::Row;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// A query parameter: name, type, what it does.
type Parameter = (&'static str, &'static str, &'static str);

const DRY_RUN: Parameter = ("dryRun", "string", "All: everything is done except storing the result.");
const PRETTY: Parameter = ("pretty", "string", "Whether the output is indented.");
const WRITE: &[Parameter] = &[
    DRY_RUN,
    (
        "fieldManager",
        "string",
        "The name of whoever makes the change, for the record of who owns which field.",
    ),
    (
        "fieldValidation",
        "string",
        "What happens to unknown and repeated fields: Ignore drops them, Warn also says so, Strict refuses the request.",
    ),
];
const FORCE: Parameter =
    ("force", "boolean", "Takes over fields that others own; allowed for apply patches only.");
const DELETE: &[Parameter] = &[
    DRY_RUN,
    ("gracePeriodSeconds", "integer", "Seconds before the object is removed; 0 removes it at once."),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    ("propagationPolicy", "string", "What happens to dependents: Orphan, Background or Foreground."),
];
const LIST: &[Parameter] = &[
    ("allowWatchBookmarks", "boolean", "Asks a watch for events that carry a resource version only."),
    ("continue", "string", "Where the last page ended."),
    ("fieldSelector", "string", "Restricts the objects by their fields."),
    ("labelSelector", "string", "Restricts the objects by their labels."),
    ("limit", "integer", "The most objects in a page."),
    ("resourceVersion", "string", "The resource version to serve from."),
    ("resourceVersionMatch", "string", "How resourceVersion is meant: Exact or NotOlderThan."),
    ("sendInitialEvents", "boolean", "Whether a watch begins with what is there."),
    ("timeoutSeconds", "integer", "Ends the call after so many seconds."),
    ("watch", "boolean", "Answers with changes instead of a list."),
];

/// What all operations of a path share.
struct Path<'a, 'd> {
    row: &'a Row,
    dialect: Dialect,
    definitions: &'a mut Definitions<'d>,
    /// The kind that requests and answers speak of.
    kind: [&'a str; 3],
    /// `NamespacedPod`, `NamespacedPodStatus`.
    noun: String,
}

/// An operation before it is written down.
struct Operation<'p> {
    /// HTTP method.
    method: &'static str,
    /// The verb of its id: `read`, `replace`, ….
    verb: &'static str,
    /// `x-kubernetes-action`.
    action: &'static str,
    parameters: Vec<&'p [Parameter]>,
    /// A definition's name, or `None` for what the path's kind is.
    body: Option<Body>,
    answer: String,
    created: bool,
}

enum Body {
    Object(String),
    Patch,
}

/// Adds the paths of a row.
pub(super) fn of(
    row: &Row,
    dialect: Dialect,
    definitions: &mut Definitions<'_>,
    all: &mut Map<String, Value>,
) {
    let prefix = if row.group.is_empty() { "/api" } else { "/apis" };
    let base = format!("{prefix}/{}", row.api_version());
    let (scope, noun) = if row.namespaced {
        (format!("{base}/namespaces/{{namespace}}/{}", row.plural), format!("Namespaced{}", row.kind))
    } else {
        (format!("{base}/{}", row.plural), row.kind.to_string())
    };
    let kind = [row.group.as_ref(), row.version.as_ref(), row.kind.as_ref()];
    let mut path = Path { row, dialect, definitions, kind, noun };
    let Some(own) = path.name_of(kind) else { return };
    if let Some(item) = path.collection(&own) {
        insert(all, &scope, path.with_parameters(item, row.namespaced, false));
    }
    if row.namespaced && row.serves("list") {
        path.noun = format!("{}ForAllNamespaces", row.kind);
        let list = path.list();
        let item = path.item(vec![list]);
        insert(all, &format!("{base}/{}", row.plural), path.with_parameters(item, false, false));
        path.noun = format!("Namespaced{}", row.kind);
    }
    let verbs: Vec<&str> = row.verbs.iter().map(AsRef::as_ref).collect();
    if let Some(item) = path.object(&own, &verbs) {
        insert(all, &format!("{scope}/{{name}}"), path.with_parameters(item, row.namespaced, true));
    }
    let noun = path.noun.clone();
    for subresource in &row.subresources {
        path.kind = [&subresource.group, &subresource.version, &subresource.kind];
        path.noun = noun.clone() + &capital(&subresource.name);
        let Some(name) = path.name_of(path.kind) else { continue };
        let verbs: Vec<&str> = subresource.verbs.iter().map(AsRef::as_ref).collect();
        if let Some(item) = path.object(&name, &verbs) {
            let at = format!("{scope}/{{name}}/{}", subresource.name);
            insert(all, &at, path.with_parameters(item, row.namespaced, true));
        }
    }
}

fn insert(all: &mut Map<String, Value>, path: &str, item: Value) {
    all.insert(path.to_owned(), item);
}

impl Path<'_, '_> {
    /// The name of a kind's definition, which the document then holds.
    fn name_of(&mut self, [group, version, kind]: [&str; 3]) -> Option<String> {
        if let Some(name) = self.published(group, version, kind) {
            return Some(name);
        }
        let ty = type_of_kind(self.row, group, version, kind)?;
        self.definitions.schema(ty);
        ty.structure().map(|definition| definition.name.to_string())
    }

    /// The definition of a kind, or a kind's list, that a CustomResourceDefinition brings.
    fn published(&mut self, group: &str, version: &str, kind: &str) -> Option<String> {
        let (row, dialect) = (self.row, self.dialect);
        let published = &row.custom.as_ref()?.published[usize::from(dialect == Dialect::V3)];
        let schema = match kind {
            kind if row.kind == kind => &published.kind,
            kind if row.list_kind == kind => &published.list,
            _ => return None,
        };
        if row.group != group || row.version != version {
            return None;
        }
        self.meta("ObjectMeta");
        self.meta("ListMeta");
        let name = crate::custom::definition_name(group, version, kind);
        self.definitions.publish(&name, schema);
        Some(name)
    }

    /// The name of a definition of the meta group.
    fn meta(&mut self, name: &str) -> String {
        let full = format!("{META}.{name}");
        let schema = crate::schema::Schema::builtin();
        if let Some(id) = schema.named(&full) {
            self.definitions.schema(schema.typed(id));
        }
        full
    }

    fn list(&mut self) -> Operation<'static> {
        let list = [self.row.group.as_ref(), self.row.version.as_ref(), self.row.list_kind.as_ref()];
        let answer = self.name_of(list).unwrap_or_default();
        Operation {
            method: "get",
            verb: "list",
            action: "list",
            parameters: vec![LIST],
            body: None,
            answer,
            created: false,
        }
    }

    /// Operations on a collection.
    fn collection(&mut self, own: &str) -> Option<Value> {
        let mut operations = Vec::new();
        if self.row.serves("list") {
            operations.push(self.list());
        }
        if self.row.serves("create") {
            operations.push(create(own));
        }
        if self.row.serves("deletecollection") {
            let (options, answer) = (self.meta("DeleteOptions"), self.meta("Status"));
            operations.push(Operation {
                method: "delete",
                verb: "deleteCollection",
                action: "deletecollection",
                parameters: vec![DELETE, LIST],
                body: Some(Body::Object(options)),
                answer,
                created: false,
            });
        }
        (!operations.is_empty()).then(|| self.item(operations))
    }

    /// Operations on one object, or on a subresource of it.
    fn object(&mut self, own: &str, verbs: &[&str]) -> Option<Value> {
        let subresource = self.kind != [&self.row.group, &self.row.version, &self.row.kind]
            || self.noun.len() > "Namespaced".len() + self.row.kind.len();
        let mut operations = Vec::new();
        if verbs.contains(&"get") {
            operations.push(Operation {
                method: "get",
                verb: "read",
                action: "get",
                parameters: vec![],
                body: None,
                answer: own.to_owned(),
                created: false,
            });
        }
        if verbs.contains(&"update") {
            operations.push(Operation {
                method: "put",
                verb: "replace",
                action: "put",
                parameters: vec![WRITE],
                body: Some(Body::Object(own.to_owned())),
                answer: own.to_owned(),
                created: true,
            });
        }
        if verbs.contains(&"patch") {
            operations.push(Operation {
                method: "patch",
                verb: "patch",
                action: "patch",
                parameters: vec![WRITE, &[FORCE]],
                body: Some(Body::Patch),
                answer: own.to_owned(),
                created: true,
            });
        }
        if verbs.contains(&"delete") {
            let (options, answer) = (self.meta("DeleteOptions"), self.meta("Status"));
            operations.push(Operation {
                method: "delete",
                verb: "delete",
                action: "delete",
                parameters: vec![DELETE],
                body: Some(Body::Object(options)),
                answer,
                created: false,
            });
        }
        // The create of an ordinary kind belongs to its collection.
        if subresource && verbs.contains(&"create") {
            operations.push(create(own));
        }
        (!operations.is_empty()).then(|| self.item(operations))
    }

    fn item(&mut self, operations: Vec<Operation<'_>>) -> Value {
        let mut item = Map::new();
        for operation in operations {
            let method = operation.method;
            item.insert(method.to_owned(), self.operation(operation));
        }
        Value::Object(item)
    }

    fn operation(&mut self, operation: Operation<'_>) -> Value {
        let [group, version, kind] = self.kind;
        let tag = format!("{}_{}", group_word(&self.row.group).to_lowercase(), self.row.version);
        let id = format!(
            "{}{}{}{}",
            operation.verb,
            group_word(&self.row.group),
            capital(&self.row.version),
            self.noun
        );
        let mut parameters: Vec<Value> =
            operation.parameters.iter().copied().flatten().map(|one| self.query(one)).collect();
        let mut out = json!({
            "operationId": id, "tags": [tag], "x-kubernetes-action": operation.action,
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
        });
        let mut responses = Map::new();
        responses.insert("200".into(), self.answer("OK", &operation.answer));
        if operation.created {
            responses.insert("201".into(), self.answer("Created", &operation.answer));
        }
        responses.insert("401".into(), json!({"description": "Unauthorized"}));
        out["responses"] = Value::Object(responses);
        if let Some(body) = &operation.body {
            self.body(body, &mut out, &mut parameters);
        }
        if self.dialect == Dialect::V2 {
            out["schemes"] = json!(["https"]);
            out["produces"] = json!(["application/json", "application/yaml"]);
        }
        out["parameters"] = Value::Array(parameters);
        out
    }

    fn body(&mut self, body: &Body, operation: &mut Value, parameters: &mut Vec<Value>) {
        const PATCHES: [&str; 4] = [
            "application/apply-patch+yaml",
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
        ];
        let (schema, media): (Value, &[&str]) = match body {
            Body::Object(name) => (self.dialect.reference(name), &["*/*"]),
            // Clients send the patches that they find here: custom resources take no strategic merge, the last.
            Body::Patch if self.row.custom.is_some() => (json!({"type": "object"}), &PATCHES[..3]),
            Body::Patch => (json!({"type": "object"}), &PATCHES),
        };
        match self.dialect {
            Dialect::V2 => {
                parameters.push(json!({"in": "body", "name": "body", "required": true, "schema": schema}));
                operation["consumes"] = json!(media);
            }
            Dialect::V3 => {
                let content: Map<String, Value> =
                    media.iter().map(|media| ((*media).to_owned(), json!({"schema": schema}))).collect();
                operation["requestBody"] = json!({"content": content});
            }
        }
    }

    fn answer(&self, description: &str, name: &str) -> Value {
        let schema = if name.is_empty() { json!({"type": "object"}) } else { self.dialect.reference(name) };
        match self.dialect {
            Dialect::V2 => json!({"description": description, "schema": schema}),
            Dialect::V3 => json!({"description": description, "content": {
                "application/json": {"schema": schema}, "application/yaml": {"schema": schema},
            }}),
        }
    }

    fn query(&self, (name, ty, description): &Parameter) -> Value {
        self.parameter("query", name, ty, description)
    }

    fn parameter(&self, place: &str, name: &str, ty: &str, description: &str) -> Value {
        let mut parameter = json!({"in": place, "name": name, "description": description});
        if place == "path" {
            parameter["required"] = true.into();
        }
        match self.dialect {
            Dialect::V2 => {
                parameter["type"] = ty.into();
                parameter["uniqueItems"] = true.into();
            }
            Dialect::V3 => parameter["schema"] = json!({"type": ty, "uniqueItems": true}),
        }
        parameter
    }

    /// The parameters of a path itself.
    fn with_parameters(&self, mut item: Value, namespaced: bool, named: bool) -> Value {
        let mut parameters = Vec::new();
        if named {
            let description = format!("name of the {}", self.row.kind);
            parameters.push(self.parameter("path", "name", "string", &description));
        }
        if namespaced {
            let description = "the object's namespace: who may do what, and whose names must differ";
            parameters.push(self.parameter("path", "namespace", "string", description));
        }
        parameters.push(self.query(&PRETTY));
        item["parameters"] = Value::Array(parameters);
        item
    }
}

fn create(own: &str) -> Operation<'static> {
    Operation {
        method: "post",
        verb: "create",
        action: "post",
        parameters: vec![WRITE],
        body: Some(Body::Object(own.to_owned())),
        answer: own.to_owned(),
        created: true,
    }
}

/// A group as ids of operations spell it: `Core`, `Apps`, `Networking`.
fn group_word(group: &str) -> String {
    if group.is_empty() { "Core".to_owned() } else { capital(group.split('.').next().unwrap_or_default()) }
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}
