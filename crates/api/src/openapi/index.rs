//! Documents of what is not a resource: discovery, version, and what tokens are proved by. Each group and version has
//! such a path in its own document of version 3, and a path without version has a document of its own. Source: the
//! services of `apiserver/pkg/endpoints/discovery` and `pkg/server/routes`.

use serde_json::{Map, Value};

use super::operations::{self, Answer, OBJECTS, Operation, camel, capital, names_of};
use super::parameters::Shared;
use super::{Dialect, schemas::Definitions};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const VERSION: &str = "io.k8s.apimachinery.pkg.version.Info";

/// Documents of version 3 that concern no group: where they are, and the path that they describe.
pub(super) const OTHERS: [(&str, &str); 5] = [
    (".well-known/openid-configuration", "/.well-known/openid-configuration/"),
    ("api", "/api/"),
    ("apis", "/apis/"),
    ("openid/v1/jwks", "/openid/v1/jwks/"),
    ("version", "/version/"),
];

/// The path of a group (`/apis/apps/`); the core group has the one that all clients begin with.
pub(super) fn of_group(group: &str) -> String {
    if group.is_empty() { "/api/".into() } else { format!("/apis/{group}/") }
}

/// The path of a group's version.
pub(super) fn of_version(group: &str, version: &str) -> String {
    format!("{}{version}/", of_group(group))
}

/// Adds an index path, if it is one.
pub(super) fn add(
    path: &str,
    dialect: Dialect,
    definitions: &mut Definitions<'_>,
    shared: &mut Shared,
    all: &mut Map<String, Value>,
) {
    let Some(operation) = operation(path) else { return };
    if let Answer::Object(name) = &operation.answer {
        definitions.builtin(name);
    }
    all.insert(path.to_owned(), operations::item(vec![operation], dialect, shared));
}

fn operation(path: &str) -> Option<Operation> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (id, tag, description, answer) = match parts[..] {
        ["api"] => ("getCoreAPIVersions".into(), "core".into(), "get available API versions", "APIVersions"),
        ["apis"] => ("getAPIVersions".into(), "apis".into(), "get available API versions", "APIGroupList"),
        ["apis", group] => {
            let (word, tag) = names_of(group, "");
            (format!("get{word}APIGroup"), tag, "get information of a group", "APIGroup")
        }
        ["api", version] => of_resources("", version),
        ["apis", group, version] => of_resources(group, version),
        _ => return other(&parts),
    };
    let consumes = OBJECTS;
    let answer = Answer::Object(format!("{META}.{answer}"));
    Some(Operation { consumes, ..get(id, tag, description, OBJECTS, answer) })
}

fn of_resources(group: &str, version: &str) -> (String, String, &'static str, &'static str) {
    let (word, tag) = names_of(group, version);
    (format!("get{word}APIResources"), tag, "get available resources", "APIResourceList")
}

fn other(parts: &[&str]) -> Option<Operation> {
    const JSON: &[&str] = &["application/json"];
    let (id, description, produces, answer) = match parts {
        ["version"] => ("CodeVersion", "get the version of the server", JSON, Answer::Object(VERSION.into())),
        [".well-known", "openid-configuration"] => (
            "ServiceAccountIssuerOpenIDConfiguration",
            "get what tokens of ServiceAccounts are proved by",
            JSON,
            Answer::Text,
        ),
        ["openid", "v1", "jwks"] => (
            "ServiceAccountIssuerOpenIDKeyset",
            "get the keys by which tokens of ServiceAccounts are proved",
            &["application/jwk-set+json"][..],
            Answer::Text,
        ),
        _ => return None,
    };
    // A leading dot is no letter, and the letter after it is raised.
    let tag = parts.first().map(|first| camel(first)).unwrap_or_default();
    let consumes = if matches!(answer, Answer::Object(_)) { JSON } else { &[] };
    Some(Operation { consumes, ..get(format!("get{}", capital(id)), tag, description, produces, answer) })
}

fn get(
    id: String,
    tag: String,
    description: &str,
    produces: &'static [&'static str],
    answer: Answer,
) -> Operation {
    Operation {
        method: "get",
        id,
        tag,
        description: description.into(),
        produces,
        codes: &[("200", "OK")],
        answer,
        ..Operation::default()
    }
}
