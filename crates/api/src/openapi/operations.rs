//! An operation, and how it is written down in each dialect. Source: `apiserver/pkg/endpoints/installer.go` and
//! `endpoints/openapi`.

use serde_json::{Map, Value, json};

use super::Dialect;
use super::parameters::{self, Parameter, Shared};

pub(super) const JSON_YAML: &[&str] = &["application/json", "application/yaml"];
pub(super) const OBJECTS: &[&str] =
    &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
pub(super) const LISTS: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];
pub(super) const LOGS: &[&str] =
    &["text/plain", "application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
pub(super) const ANYTHING: &[&str] = &["*/*"];

/// An operation before it is written down.
#[derive(Debug, Clone, Default)]
pub(super) struct Operation {
    /// HTTP method.
    pub(super) method: &'static str,
    pub(super) id: String,
    pub(super) tag: String,
    pub(super) description: String,
    /// `x-kubernetes-action`, and the kind that it is about, where it is about one.
    pub(super) about: Option<(&'static str, [String; 3])>,
    pub(super) parameters: Vec<Parameter>,
    pub(super) body: Option<Body>,
    pub(super) consumes: &'static [&'static str],
    pub(super) produces: &'static [&'static str],
    /// Codes with which it is answered, and with what.
    pub(super) codes: &'static [(&'static str, &'static str)],
    pub(super) answer: Answer,
}

/// What an operation reads.
#[derive(Debug, Clone)]
pub(super) struct Body {
    /// A definition's name.
    pub(super) definition: String,
    pub(super) required: bool,
}

/// What an operation answers with.
#[derive(Debug, Clone, Default)]
pub(super) enum Answer {
    /// Text, or whatever somebody else says.
    #[default]
    Text,
    /// An object, by its definition's name.
    Object(String),
}

/// Writes the operations of a path.
pub(super) fn item(mut operations: Vec<Operation>, dialect: Dialect, shared: &mut Shared) -> Value {
    let mut of_each: Vec<&mut Vec<Parameter>> =
        operations.iter_mut().map(|operation| &mut operation.parameters).collect();
    let common = parameters::common(&mut of_each);
    let mut item = Map::new();
    for operation in &operations {
        item.insert(operation.method.to_owned(), operation.written(dialect, shared));
    }
    if !common.is_empty() {
        item.insert("parameters".into(), shared.written(&common).into());
    }
    Value::Object(item)
}

impl Operation {
    fn written(&self, dialect: Dialect, shared: &mut Shared) -> Value {
        let mut out = json!({"operationId": self.id, "tags": [self.tag], "description": self.description});
        if let Some((action, [group, version, kind])) = &self.about {
            out["x-kubernetes-action"] = (*action).into();
            out["x-kubernetes-group-version-kind"] =
                json!({"group": group, "version": version, "kind": kind});
        }
        let mut responses: Map<String, Value> = self
            .codes
            .iter()
            .map(|(code, says)| ((*code).to_owned(), self.response(says, dialect)))
            .collect();
        responses.insert("401".into(), json!({"description": "Unauthorized"}));
        out["responses"] = Value::Object(responses);
        let mut parameters = shared.written(&self.parameters);
        if let Some(body) = &self.body {
            self.read(body, dialect, &mut out, &mut parameters);
        }
        if dialect == Dialect::V2 {
            out["schemes"] = json!(["https"]);
            out["produces"] = json!(self.produces);
            if !self.consumes.is_empty() {
                out["consumes"] = json!(self.consumes);
            }
        }
        if !parameters.is_empty() {
            out["parameters"] = Value::Array(parameters);
        }
        out
    }

    fn read(&self, body: &Body, dialect: Dialect, out: &mut Value, parameters: &mut Vec<Value>) {
        let schema = dialect.reference(&body.definition);
        if dialect == Dialect::V2 {
            let mut parameter = json!({"in": "body", "name": "body", "schema": schema});
            if body.required {
                parameter["required"] = true.into();
            }
            // Parameters are in the order of their names, which those of shared ones begin with.
            let before = |one: &Value| {
                let name = one["name"].as_str().or_else(|| one["$ref"].as_str()?.rsplit('/').next());
                name.is_some_and(|name| name < "body")
            };
            parameters.insert(parameters.iter().take_while(|one| before(one)).count(), parameter);
            return;
        }
        let content: Map<String, Value> =
            self.consumes.iter().map(|media| ((*media).to_owned(), json!({"schema": schema}))).collect();
        out["requestBody"] = json!({"content": content});
        if body.required {
            out["requestBody"]["required"] = true.into();
        }
    }

    fn response(&self, description: &str, dialect: Dialect) -> Value {
        let schema = match &self.answer {
            Answer::Text => json!({"type": "string"}),
            Answer::Object(name) => dialect.reference(name),
        };
        match dialect {
            Dialect::V2 => json!({"description": description, "schema": schema}),
            Dialect::V3 => {
                let content: Map<String, Value> = self
                    .produces
                    .iter()
                    .map(|media| ((*media).to_owned(), json!({"schema": schema})))
                    .collect();
                json!({"description": description, "content": content})
            }
        }
    }
}

/// A group and a version as ids and tags of operations spell them: `CoreV1` and `core_v1`, `RbacAuthorizationV1` and
/// `rbacAuthorization_v1`. Source: `GetOperationIDAndTags`.
pub(super) fn names_of(group: &str, version: &str) -> (String, String) {
    let group = if group.is_empty() { "core" } else { group.strip_suffix(".k8s.io").unwrap_or(group) };
    let tag = match version {
        "" => camel(group),
        version => format!("{}_{}", camel(group), camel(version)),
    };
    (capital(&camel(group)) + &capital(&camel(version)), tag)
}

/// Words with nothing between them but their capitals. Source: `ToValidOperationID`.
pub(super) fn camel(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut raise = false;
    for (at, letter) in name.chars().enumerate() {
        if letter.is_alphabetic() || letter == '_' || (at > 0 && letter.is_numeric()) {
            if raise {
                out.extend(letter.to_uppercase())
            } else {
                out.push(letter)
            }
            raise = false;
        } else {
            raise = true;
        }
    }
    out
}

pub(super) fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}
