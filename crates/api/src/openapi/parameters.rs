//! The parameters of operations: tables of what the server reads of a query, and how they stand in a document.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Map, Value, json};

use super::Dialect;

/// A query parameter: name, type, what it does.
pub(super) type Query = (&'static str, &'static str, &'static str);

pub(super) const PRETTY: Query = ("pretty", "string", "Whether the output is indented.");
const DRY_RUN: Query = ("dryRun", "string", "All: everything is done except storing the result.");
pub(super) const WRITE: &[Query] = &[
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
pub(super) const FORCE: &[Query] =
    &[("force", "boolean", "Takes over fields that others own; allowed for apply patches only.")];
pub(super) const DELETE: &[Query] = &[
    DRY_RUN,
    ("gracePeriodSeconds", "integer", "Seconds before the object is removed; 0 removes it at once."),
    (
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
        "Removes an object that cannot be read from the store, without looking at finalizers and preconditions.",
    ),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    ("propagationPolicy", "string", "What happens to dependents: Orphan, Background or Foreground."),
];
/// Which objects, and from when: of lists and of deletions of collections.
pub(super) const SELECT: &[Query] = &[
    ("continue", "string", "Where the last page ended."),
    ("fieldSelector", "string", "Restricts the objects by their fields."),
    ("labelSelector", "string", "Restricts the objects by their labels."),
    ("limit", "integer", "The most objects in a page."),
    RESOURCE_VERSION,
    ("resourceVersionMatch", "string", "How resourceVersion is meant: Exact or NotOlderThan."),
    ("sendInitialEvents", "boolean", "Whether a watch begins with what is there."),
    ("timeoutSeconds", "integer", "Ends the call after so many seconds."),
];
const RESOURCE_VERSION: Query = ("resourceVersion", "string", "The resource version to serve from.");
pub(super) const WATCH: &[Query] = &[
    ("allowWatchBookmarks", "boolean", "Asks a watch for events that carry a resource version only."),
    ("watch", "boolean", "Answers with changes instead of a list."),
];
/// What the get of a custom resource names.
pub(super) const GET: &[Query] = &[RESOURCE_VERSION];
pub(super) const LOG: &[Query] = &[
    ("container", "string", "The container whose log it is; needed where a pod has several."),
    ("follow", "boolean", "Goes on as the container writes."),
    ("insecureSkipTLSVerifyBackend", "boolean", "Whether the node's certificate is not looked at."),
    ("limitBytes", "integer", "The most bytes of the answer."),
    ("previous", "boolean", "The log of the container that ran before."),
    ("sinceSeconds", "integer", "Only what was written in the last so many seconds."),
    ("stream", "string", "Which stream: All, Stdout or Stderr."),
    ("tailLines", "integer", "Only so many lines from the end."),
    ("timestamps", "boolean", "Whether each line begins with its time."),
];
const CONTAINER: Query = ("container", "string", "The container; needed where a pod has several.");
const STREAMS: [Query; 4] = [
    ("stderr", "boolean", "Whether the errors of the process are sent."),
    ("stdin", "boolean", "Whether the process reads what the client sends."),
    ("stdout", "boolean", "Whether the output of the process is sent."),
    ("tty", "boolean", "Whether the process has a terminal."),
];
const COMMAND: Query = ("command", "string", "The program and its arguments, one parameter each; no shell.");
const PATH: &[Query] =
    &[("path", "string", "The path that is asked for, as the request's own path says it.")];

/// What connecting to an object reads of the query, by the kind of its options.
pub(super) fn of_connection(kind: &str) -> &'static [Query] {
    const ATTACH: &[Query] = &[CONTAINER, STREAMS[0], STREAMS[1], STREAMS[2], STREAMS[3]];
    const EXEC: &[Query] = &[COMMAND, CONTAINER, STREAMS[0], STREAMS[1], STREAMS[2], STREAMS[3]];
    const PORT_FORWARD: &[Query] = &[("ports", "integer", "The ports to forward, for WebSockets.")];
    match kind {
        "PodAttachOptions" => ATTACH,
        "PodExecOptions" => EXEC,
        "PodPortForwardOptions" => PORT_FORWARD,
        _ => PATH,
    }
}

/// A parameter of an operation. They are ordered by name, as upstream's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Parameter {
    name: &'static str,
    place: &'static str,
    ty: &'static str,
    says: Cow<'static, str>,
}

impl Parameter {
    pub(super) fn query(&(name, ty, says): &Query) -> Self {
        Self { name, place: "query", ty, says: says.into() }
    }

    pub(super) fn path(name: &'static str, says: impl Into<Cow<'static, str>>) -> Self {
        Self { name, place: "path", ty: "string", says: says.into() }
    }

    /// The parameter in a document.
    fn written(&self, dialect: Dialect) -> Value {
        let mut parameter = json!({"in": self.place, "name": self.name, "description": self.says});
        if self.place == "path" {
            parameter["required"] = true.into();
        }
        match dialect {
            Dialect::V2 => {
                parameter["type"] = self.ty.into();
                parameter["uniqueItems"] = true.into();
            }
            Dialect::V3 => parameter["schema"] = json!({"type": self.ty, "uniqueItems": true}),
        }
        parameter
    }

    /// Under which name a document of version 2 shares it. What speaks of a kind is not shared, nor is what older
    /// kubectls look for by name with each operation.
    fn shared_name(&self) -> Option<String> {
        if matches!(self.name, "name" | "dryRun" | "fieldValidation") {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        (self.place, self.ty, &self.says).hash(&mut hasher);
        Some(format!("{}-{:08x}", self.name, hasher.finish() >> 32))
    }
}

/// The parameters that a document of version 2 writes once. Source: `kube-openapi/pkg/builder/parameters.go`.
pub(super) struct Shared {
    dialect: Dialect,
    all: Map<String, Value>,
}

impl Shared {
    pub(super) fn new(dialect: Dialect) -> Self {
        Self { dialect, all: Map::new() }
    }

    /// Parameters as an operation or a path names them.
    pub(super) fn written(&mut self, parameters: &[Parameter]) -> Vec<Value> {
        parameters.iter().map(|parameter| self.one(parameter)).collect()
    }

    fn one(&mut self, parameter: &Parameter) -> Value {
        let name = parameter.shared_name().filter(|_| self.dialect == Dialect::V2);
        let Some(name) = name else { return parameter.written(self.dialect) };
        let reference = json!({"$ref": format!("#/parameters/{name}")});
        self.all.entry(name).or_insert_with(|| parameter.written(Dialect::V2));
        reference
    }

    pub(super) fn finish(self) -> Value {
        Value::Object(self.all)
    }
}

/// Takes what all operations of a path have in common out of them: it stands with the path. Source: `findCommonParameters`
/// of `kube-openapi/pkg/builder`.
pub(super) fn common(operations: &mut [&mut Vec<Parameter>]) -> Vec<Parameter> {
    for parameters in operations.iter_mut() {
        parameters.sort();
    }
    let Some((first, rest)) = operations.split_first() else { return Vec::new() };
    let everywhere = |one: &&Parameter| rest.iter().all(|parameters| parameters.contains(one));
    let common: Vec<Parameter> = first.iter().filter(everywhere).cloned().collect();
    for parameters in operations {
        parameters.retain(|parameter| !common.contains(parameter));
    }
    common
}
