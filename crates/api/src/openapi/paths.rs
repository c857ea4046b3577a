//! A row's paths and their operations. Source: `registerResourceHandlers` of `apiserver/pkg/endpoints/installer.go`, and
//! `apiextensions-apiserver/pkg/controller/openapi/builder` for custom resources.

use serde_json::{Map, Value};

use super::operations::{
    self, ANYTHING, Answer, Body, JSON_YAML, LISTS, LOGS, OBJECTS, Operation, capital, names_of,
};
use super::parameters::{self, Parameter, Query, Shared};
use super::{Dialect, schemas::Definitions, type_of_kind};
use crate::catalog::{Row, Subresource};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// Codes of answers.
type Codes = &'static [(&'static str, &'static str)];
const FOUND: Codes = &[("200", "OK")];
const WRITTEN: Codes = &[("200", "OK"), ("201", "Created")];
const MADE: Codes = &[("200", "OK"), ("201", "Created"), ("202", "Accepted")];
const REMOVED: Codes = &[("200", "OK"), ("202", "Accepted")];

/// The patches that are taken, in upstream's order: there are clients that send the first.
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
/// Custom resources take no strategic merge.
const PATCHES_OF_CUSTOM: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

const READ_POST: &[(&str, &str)] = &[("get", "Get"), ("post", "Post")];
const ALL: &[(&str, &str)] = &[
    ("delete", "Delete"),
    ("get", "Get"),
    ("head", "Head"),
    ("options", "Options"),
    ("patch", "Patch"),
    ("post", "Post"),
    ("put", "Put"),
];

/// What all paths of a row share.
struct Paths<'a, 'd> {
    row: &'a Row,
    dialect: Dialect,
    definitions: &'a mut Definitions<'d>,
    shared: &'a mut Shared,
    all: &'a mut Map<String, Value>,
}

/// What a path's operations are about.
#[derive(Clone, Copy)]
struct About<'n> {
    /// The kind that requests and answers speak of.
    kind: [&'n str; 3],
    /// `NamespacedPod`, `NamespacedPodStatus`.
    noun: &'n str,
    /// `status`; empty for the object itself.
    subresource: &'n str,
    namespaced: bool,
    named: bool,
}

/// Adds the paths of a row.
pub(super) fn of(
    row: &Row,
    dialect: Dialect,
    definitions: &mut Definitions<'_>,
    shared: &mut Shared,
    all: &mut Map<String, Value>,
) {
    let kind = [row.group.as_ref(), row.version.as_ref(), row.kind.as_ref()];
    let mut paths = Paths { row, dialect, definitions, shared, all };
    let Some(own) = paths.name_of(kind) else { return };
    let prefix = if row.group.is_empty() { "/api" } else { "/apis" };
    let base = format!("{prefix}/{}", row.api_version());
    let (scope, noun) = if row.namespaced {
        (format!("namespaces/{{namespace}}/{}", row.plural), format!("Namespaced{}", row.kind))
    } else {
        (row.plural.to_string(), row.kind.to_string())
    };
    let about = About { kind, noun: &noun, subresource: "", namespaced: row.namespaced, named: false };
    let collection = paths.collection(about, &own);
    paths.insert(format!("{base}/{scope}"), collection);
    let everywhere = format!("{}ForAllNamespaces", row.kind);
    let about_all = About { noun: &everywhere, namespaced: false, ..about };
    if row.namespaced && row.serves("list") {
        let list = paths.list(about_all);
        paths.insert(format!("{base}/{}", row.plural), vec![list]);
    }
    let named = About { named: true, ..about };
    let object = paths.object(named, &own, &row.verbs);
    paths.insert(format!("{base}/{scope}/{{name}}"), object);
    for subresource in &row.subresources {
        let noun = noun.clone() + &capital(&subresource.name);
        let named = About { noun: &noun, subresource: &subresource.name, ..named };
        paths.subresource(&format!("{base}/{scope}/{{name}}/{}", subresource.name), named, subresource, &own);
    }
    if row.custom.is_none() && row.serves("watch") {
        let watched = paths.watch(About { noun: &format!("{noun}List"), ..about }, "watchlist");
        paths.insert(format!("{base}/watch/{scope}"), vec![watched]);
        let watched = paths.watch(named, "watch");
        paths.insert(format!("{base}/watch/{scope}/{{name}}"), vec![watched]);
        if row.namespaced {
            let noun = format!("{}ListForAllNamespaces", row.kind);
            let watched = paths.watch(About { noun: &noun, ..about_all }, "watchlist");
            paths.insert(format!("{base}/watch/{}", row.plural), vec![watched]);
        }
    }
}

impl Paths<'_, '_> {
    fn insert(&mut self, path: String, operations: Vec<Operation>) {
        if !operations.is_empty() {
            self.all.insert(path, operations::item(operations, self.dialect, self.shared));
        }
    }

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
        self.definitions.builtin(&full);
        full
    }

    /// Whether a CustomResourceDefinition brings the row: then some things are said otherwise.
    fn is_custom(&self) -> bool {
        self.row.custom.is_some()
    }

    /// An operation that says what all of them say.
    fn operation(
        &self,
        about: About<'_>,
        method: &'static str,
        verb: &str,
        action: &'static str,
    ) -> Operation {
        let (word, tag) = names_of(&self.row.group, &self.row.version);
        let mut parameters = Vec::new();
        if about.named {
            parameters.push(Parameter::path("name", format!("name of the {}", about.kind[2])));
        }
        if about.namespaced {
            let says = "the object's namespace: who may do what, and whose names must differ";
            parameters.push(Parameter::path("namespace", says));
        }
        if action != "connect" {
            parameters.push(Parameter::query(&parameters::PRETTY));
        }
        let custom = self.is_custom();
        Operation {
            method,
            id: format!("{verb}{word}{}", about.noun),
            tag,
            description: self.description(verb, about),
            about: Some((action, about.kind.map(str::to_owned))),
            parameters,
            body: None,
            consumes: if custom { JSON_YAML } else { ANYTHING },
            produces: if custom { JSON_YAML } else { OBJECTS },
            codes: FOUND,
            answer: Answer::Text,
        }
    }

    fn description(&self, verb: &str, about: About<'_>) -> String {
        let kind = self.row.kind.as_ref();
        let of = match about.subresource {
            "" => String::new(),
            name => format!(" {name} of"),
        };
        // Source: `GetArticleForNoun`.
        let article = match kind.chars().next() {
            _ if kind.ends_with('s') && !kind.ends_with("ss") => " ",
            Some('A' | 'E' | 'I' | 'O' | 'U') => " an ",
            _ => " a ",
        };
        match verb {
            "list" if self.row.serves("watch") => format!("list or watch objects of kind {kind}"),
            "list" => format!("list objects of kind {kind}"),
            "watch" => {
                format!("watch objects of kind {kind}; deprecated: list them with the parameter watch")
            }
            "create" | "delete" => format!("{verb}{of}{article}{kind}"),
            "patch" => format!("partially update{of} the specified {kind}"),
            verb => format!("{verb}{of} the specified {kind}"),
        }
    }

    fn list(&mut self, about: About<'_>) -> Operation {
        let list = [self.row.group.as_ref(), self.row.version.as_ref(), self.row.list_kind.as_ref()];
        let answer = self.name_of(list).map_or(Answer::Text, Answer::Object);
        let produces = if self.is_custom() { JSON_YAML } else { LISTS };
        let list = Operation { produces, answer, ..self.operation(about, "get", "list", "list") };
        with(list, &[parameters::SELECT, parameters::WATCH])
    }

    /// A watch by its old path.
    fn watch(&mut self, about: About<'_>, action: &'static str) -> Operation {
        let answer = Answer::Object(self.meta("WatchEvent"));
        let watch = Operation { produces: LISTS, answer, ..self.operation(about, "get", "watch", action) };
        with(watch, &[parameters::SELECT, parameters::WATCH])
    }

    fn create(&self, about: About<'_>, own: &str) -> Operation {
        let create = Operation {
            body: Some(Body { definition: own.to_owned(), required: true }),
            codes: MADE,
            answer: Answer::Object(own.to_owned()),
            ..self.operation(about, "post", "create", "post")
        };
        with(create, &[parameters::WRITE])
    }

    /// Operations on a collection.
    fn collection(&mut self, about: About<'_>, own: &str) -> Vec<Operation> {
        let mut operations = Vec::new();
        if self.row.serves("list") {
            operations.push(self.list(about));
        }
        if self.row.serves("create") {
            operations.push(self.create(about, own));
        }
        if self.row.serves("deletecollection") {
            let (options, answer) = (self.meta("DeleteOptions"), self.meta("Status"));
            let noun = format!("Collection{}", about.noun);
            let mut delete =
                self.operation(About { noun: &noun, ..about }, "delete", "delete", "deletecollection");
            delete.description = format!("delete collection of {}", self.row.kind);
            delete.answer = Answer::Object(answer);
            operations.push(if self.is_custom() {
                with(delete, &[parameters::SELECT, parameters::WATCH])
            } else {
                delete.body = Some(Body { definition: options, required: false });
                with(delete, &[parameters::DELETE, parameters::SELECT])
            });
        }
        operations
    }

    /// Operations on one object, or on a subresource of it.
    fn object(&mut self, about: About<'_>, own: &str, verbs: &[crate::schema::Name]) -> Vec<Operation> {
        let serves = |verb: &str| verbs.iter().any(|served| served == verb);
        let body = |name: &str| Some(Body { definition: name.to_owned(), required: true });
        let answer = Answer::Object(own.to_owned());
        let custom = self.is_custom();
        let mut operations = Vec::new();
        if serves("get") {
            let read = Operation { answer: answer.clone(), ..self.operation(about, "get", "read", "get") };
            operations.push(with(read, if custom { &[parameters::GET] } else { &[] }));
        }
        if serves("update") {
            let replace = self.operation(about, "put", "replace", "put");
            let replace = Operation { body: body(own), codes: WRITTEN, answer: answer.clone(), ..replace };
            operations.push(with(replace, &[parameters::WRITE]));
        }
        if serves("patch") {
            let definition = self.meta("Patch");
            let patch = Operation {
                body: body(&definition),
                consumes: if custom { PATCHES_OF_CUSTOM } else { PATCHES },
                codes: if custom { FOUND } else { WRITTEN },
                answer,
                ..self.operation(about, "patch", "patch", "patch")
            };
            operations.push(with(patch, &[parameters::WRITE, parameters::FORCE]));
        }
        if serves("delete") {
            let (options, status) = (self.meta("DeleteOptions"), self.meta("Status"));
            let answer = if self.row.returns_deleted() { own.to_owned() } else { status };
            let delete = Operation {
                body: Some(Body { definition: options, required: false }),
                codes: REMOVED,
                answer: Answer::Object(answer),
                ..self.operation(about, "delete", "delete", "delete")
            };
            operations.push(with(delete, &[parameters::DELETE]));
        }
        // The create of an ordinary kind belongs to its collection.
        if !about.subresource.is_empty() && serves("create") {
            operations.push(self.create(about, own));
        }
        operations
    }

    /// Operations on a subresource.
    fn subresource(&mut self, path: &str, about: About<'_>, subresource: &Subresource, own: &str) {
        match subresource.name.as_ref() {
            "log" => {
                let read = self.operation(about, "get", "read", "get");
                let read = Operation { produces: LOGS, ..read };
                self.insert(path.to_owned(), vec![with(read, &[parameters::LOG])]);
            }
            "exec" | "attach" | "portforward" => {
                let connect = self.connect(about, subresource, READ_POST, None);
                self.insert(path.to_owned(), connect);
            }
            "proxy" => {
                let connect = self.connect(about, subresource, ALL, None);
                self.insert(path.to_owned(), connect);
                let noun = format!("{}WithPath", about.noun);
                let rest = Parameter::path("path", "what is asked for behind the proxy");
                let connect = self.connect(About { noun: &noun, ..about }, subresource, ALL, Some(&rest));
                self.insert(format!("{path}/{{path}}"), connect);
            }
            _ => {
                let kind = [&*subresource.group, &*subresource.version, &*subresource.kind];
                let name = if kind == about.kind { Some(own.to_owned()) } else { self.name_of(kind) };
                let Some(name) = name else { return };
                let operations = self.object(About { kind, ..about }, &name, &subresource.verbs);
                self.insert(path.to_owned(), operations);
            }
        }
    }

    /// Connections to an object: their ids name the method, since there are several. They are about their options and not
    /// about the object: kubectl looks for what a kind offers at the first PATCH that is about it.
    fn connect(
        &self,
        about: About<'_>,
        subresource: &Subresource,
        methods: &[(&'static str, &'static str)],
        rest: Option<&Parameter>,
    ) -> Vec<Operation> {
        let query: &[Query] = parameters::of_connection(&subresource.kind);
        let [group, version, _] = about.kind;
        let about = About { kind: [group, version, subresource.kind.as_ref()], ..about };
        let each = methods.iter().map(|(method, word)| {
            let noun = format!("{word}{}", about.noun);
            let mut connect = self.operation(About { noun: &noun, ..about }, method, "connect", "connect");
            connect.description = format!(
                "connect {} requests to {} of {}",
                method.to_ascii_uppercase(),
                about.subresource,
                self.row.kind
            );
            connect.produces = ANYTHING;
            connect.parameters.extend(rest.cloned());
            with(connect, &[query])
        });
        each.collect()
    }
}

/// An operation with more parameters.
fn with(mut operation: Operation, queries: &[&[Query]]) -> Operation {
    operation.parameters.extend(queries.iter().copied().flatten().map(Parameter::query));
    operation
}
