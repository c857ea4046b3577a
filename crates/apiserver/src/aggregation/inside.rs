//! What components of this process read of extension API servers, and delete there: they ask the pipeline as for anything
//! else, and have the answer in the shape that the pipeline gives.

use std::fmt::Write as _;
use std::sync::Arc;

use api::connect::User;
use api::{Call, DeleteOptions, List, ListOptions, Object, Propagation, Reason, Request, Response, Status};
use bytes::Bytes;
use http::{Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Aggregator, Remote, discovery};
use crate::authn::{in_group, names};
use crate::pipeline::Pipeline;
use crate::tree;

/// A list may be so long.
const BYTES_MAX: usize = 32 << 20;
/// Everything but RFC 3986's unreserved characters.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Whom extension API servers take this process's components for: their rights there are given to upstream's names for
/// those that ask them. Source: `system:controller:horizontal-pod-autoscaler`, `system:controller:namespace-controller`.
const MEASURER: &str = "system:serviceaccount:kube-system:horizontal-pod-autoscaler";
const CLEANER: &str = "system:serviceaccount:kube-system:namespace-controller";
/// The groups that are asked for figures.
const MEASURED: [&str; 3] = ["metrics.k8s.io", "custom.metrics.k8s.io", "external.metrics.k8s.io"];
const GROUPS: [&str; 3] =
    ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"];

/// A group version that an extension API server serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// Group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Whether its server can be asked now.
    pub available: bool,
    /// What it serves, as it last said, without subresources.
    pub resources: Vec<ExtensionResource>,
}

/// A resource of an extension API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtensionResource {
    /// Plural.
    pub resource: String,
    /// Kind.
    pub kind: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// What can be done with it.
    pub verbs: Vec<String>,
}

impl Extension {
    fn of(remote: &Remote) -> Self {
        let list = remote.resources();
        let said = list.as_deref().map_or(&[][..], |list| tree::items(list, &["resources"]));
        let is_plain = |resource: &&Value| !tree::text(resource, &["name"]).contains('/');
        let read = |resource: &Value| ExtensionResource {
            resource: tree::text(resource, &["name"]).to_owned(),
            kind: tree::text(resource, &["kind"]).to_owned(),
            namespaced: tree::at(resource, &["namespaced"]) == &Value::Bool(true),
            verbs: tree::items(resource, &["verbs"])
                .iter()
                .filter_map(|verb| Some(verb.as_str()?.to_owned()))
                .collect(),
        };
        Self {
            group: remote.group.clone(),
            version: remote.version.clone(),
            available: remote.is_available(),
            resources: said.iter().filter(is_plain).map(read).collect(),
        }
    }
}

impl Aggregator {
    /// What extension API servers serve, by groups, the versions in the order in which they are preferred.
    pub(crate) fn extensions(&self) -> Vec<Extension> {
        let remotes = self.remotes();
        let mut all: Vec<_> = remotes.all().collect();
        all.sort_by(|one, other| one.group.cmp(&other.group).then_with(|| discovery::order(one, other)));
        all.into_iter().map(|remote| Extension::of(remote)).collect()
    }

    /// Answers a request that was authorized, if an extension API server serves what it is about.
    pub(crate) async fn read(
        &self,
        pipeline: &Pipeline,
        user: &User,
        request: &Request,
    ) -> Option<Result<Response, Status>> {
        let remote = self.remotes().get(&request.resource.group, &request.resource.version)?.clone();
        Some(self.read_from(&remote, pipeline, user, request).await)
    }

    async fn read_from(
        &self,
        remote: &Remote,
        pipeline: &Pipeline,
        user: &User,
        request: &Request,
    ) -> Result<Response, Status> {
        let Some((method, path, body)) = passed_on(request) else {
            let why = "of extension API servers components only read and delete";
            return Err(Status::new(Reason::MethodNotAllowed, why));
        };
        let is_component = in_group(user, names::COMPONENTS);
        let user = if is_component { component(&request.resource.group) } else { user.clone() };
        let unreached = |cause: String| {
            let message = format!("error trying to reach service: {cause}");
            Status::new(Reason::ServiceUnavailable, message)
        };
        let asked = remote.pass_on(pipeline, &self.outbound, &user, (method, &path, body), BYTES_MAX).await;
        let (code, body) = asked.map_err(unreached)?;
        if !code.is_success() {
            return Err(failure(code, &body));
        }
        match &request.call {
            Call::List(_) => list(&body),
            // What went is told in many ways, and nobody here asks.
            Call::Delete(_) | Call::DeleteCollection(..) => {
                Ok(Response::Deleted { uid: String::new(), object: None, warnings: Vec::new() })
            }
            _ => object(&body),
        }
    }
}

fn component(group: &str) -> User {
    let name = if MEASURED.contains(&group) { MEASURER } else { CLEANER };
    User { name: name.into(), groups: GROUPS.map(str::to_owned).to_vec(), ..User::default() }
}

/// Method, path and body of a request, if it is one that is passed on.
fn passed_on(request: &Request) -> Option<(Method, String, Bytes)> {
    let none = ListOptions::default();
    Some(match &request.call {
        Call::Get { .. } => (Method::GET, path(request, &none), Bytes::new()),
        Call::List(options) => (Method::GET, path(request, options), Bytes::new()),
        Call::Delete(options) => (Method::DELETE, path(request, &none), delete_body(options)),
        Call::DeleteCollection(options, which) => {
            (Method::DELETE, path(request, which), delete_body(options))
        }
        _ => return None,
    })
}

/// `DeleteOptions` as requests carry them.
fn delete_body(options: &DeleteOptions) -> Bytes {
    let mut body = json!({ "kind": "DeleteOptions", "apiVersion": "v1" });
    if options.dry_run {
        body["dryRun"] = json!(["All"]);
    }
    if let Some(seconds) = options.grace_period_seconds {
        body["gracePeriodSeconds"] = seconds.into();
    }
    if let Some(propagation) = options.propagation {
        body["propagationPolicy"] = match propagation {
            Propagation::Orphan => "Orphan",
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
        }
        .into();
    }
    let preconditions =
        [("uid", &options.precondition_uid), ("resourceVersion", &options.precondition_resource_version)];
    for (name, wanted) in preconditions {
        if let Some(wanted) = wanted {
            body["preconditions"][name] = wanted.as_str().into();
        }
    }
    body.to_string().into()
}

/// The path and query of a request.
fn path(request: &Request, options: &ListOptions) -> String {
    let resource = &request.resource;
    let mut path = format!("/apis/{}/{}", resource.group, resource.version);
    let parts = [
        ("/namespaces/", &request.namespace),
        ("/", &resource.resource),
        ("/", &request.name),
        ("/", &request.subresource),
    ];
    for (before, part) in parts.into_iter().filter(|(_, part)| !part.is_empty()) {
        // Writing to a string cannot fail.
        let _ = write!(path, "{before}{}", utf8_percent_encode(part, ESCAPED));
    }
    let queries =
        [("labelSelector", &options.label_selector), ("metricLabelSelector", &options.metric_label_selector)];
    let mut before = '?';
    for (name, value) in queries.into_iter().filter(|(_, value)| !value.is_empty()) {
        let _ = write!(path, "{before}{name}={}", utf8_percent_encode(value, ESCAPED));
        before = '&';
    }
    path
}

#[derive(Deserialize)]
struct ListBody<'a> {
    #[serde(borrow, default)]
    items: Vec<&'a RawValue>,
}

fn list(body: &[u8]) -> Result<Response, Status> {
    let list: ListBody<'_> = serde_json::from_slice(body).map_err(garbled)?;
    let items = list.items.into_iter().map(|item| parsed(item.get().as_bytes()));
    Ok(Response::List(List { items: items.collect::<Result<_, _>>()?, ..List::default() }))
}

fn object(body: &[u8]) -> Result<Response, Status> {
    Ok(Response::Object { object: parsed(body)?, created: false, warnings: Vec::new() })
}

fn parsed(bytes: &[u8]) -> Result<Arc<Object>, Status> {
    Object::parse(bytes.to_vec().into()).map(Arc::new).map_err(garbled)
}

fn garbled(error: serde_json::Error) -> Status {
    Status::internal(format!("the extension API server's answer cannot be read: {error}"))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    reason: Option<Reason>,
    message: String,
}

/// What it refused, in its own words.
fn failure(code: StatusCode, body: &[u8]) -> Status {
    let refusal: Refusal = serde_json::from_slice(body).unwrap_or_default();
    let reason = refusal.reason.unwrap_or(match code.as_u16() {
        401 => Reason::Unauthorized,
        403 => Reason::Forbidden,
        404 => Reason::NotFound,
        405 => Reason::MethodNotAllowed,
        409 => Reason::Conflict,
        429 => Reason::TooManyRequests,
        503 => Reason::ServiceUnavailable,
        _ => Reason::InternalError,
    });
    let message = if refusal.message.is_empty() {
        format!("the extension API server answered {code}")
    } else {
        refusal.message
    };
    Status { code: code.as_u16(), ..Status::new(reason, message) }
}

#[cfg(test)]
mod tests {
    use api::GroupVersionResource;

    use super::*;

    #[test]
    fn paths_are_those_of_the_metrics_apis() {
        let request = |resource: &str, name: &str, subresource: &str| Request {
            resource: GroupVersionResource::new("custom.metrics.k8s.io", "v1beta2", resource),
            namespace: "ns".into(),
            name: name.into(),
            subresource: subresource.into(),
            call: Call::Get { resource_version: String::new() },
        };
        let options = ListOptions {
            label_selector: "a=b".into(),
            metric_label_selector: "c in (d,e)".into(),
            ..ListOptions::default()
        };
        let base = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/ns";
        assert_eq!(
            path(&request("pods", "*", "rate"), &options),
            format!("{base}/pods/%2A/rate?labelSelector=a%3Db&metricLabelSelector=c%20in%20%28d%2Ce%29")
        );
        assert_eq!(
            path(&request("metrics", "rate", ""), &ListOptions::default()),
            format!("{base}/metrics/rate")
        );
    }

    #[test]
    fn deletions_carry_their_options() {
        let mut request = Request {
            resource: GroupVersionResource::new("example.com", "v1", "flunders"),
            namespace: "ns".into(),
            name: String::new(),
            subresource: String::new(),
            call: Call::DeleteCollection(
                DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() },
                ListOptions { label_selector: "a=b".into(), ..ListOptions::default() },
            ),
        };
        let asked = |request: &Request| {
            let (method, path, body) = passed_on(request).unwrap();
            (method, path, serde_json::from_slice::<Value>(&body).unwrap())
        };
        let base = "/apis/example.com/v1/namespaces/ns/flunders";
        let body = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background" });
        assert_eq!(asked(&request), (Method::DELETE, format!("{base}?labelSelector=a%3Db"), body));
        request.name = "one".into();
        let options = DeleteOptions { precondition_uid: Some("u".into()), ..DeleteOptions::default() };
        request.call = Call::Delete(options);
        let body = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "preconditions": { "uid": "u" } });
        assert_eq!(asked(&request), (Method::DELETE, format!("{base}/one"), body));
        request.call = Call::Watch(ListOptions::default());
        assert!(passed_on(&request).is_none());
        assert_eq!(component("example.com").name, CLEANER);
        assert_eq!(component("custom.metrics.k8s.io").name, MEASURER);
    }

    #[test]
    fn refusals_keep_their_words() {
        let refused = failure(StatusCode::NOT_FOUND, br#"{"reason":"NotFound","message":"no such metric"}"#);
        assert_eq!((refused.reason, refused.message.as_str()), (Reason::NotFound, "no such metric"));
        assert_eq!(failure(StatusCode::BAD_GATEWAY, b"what").code, 502);
    }
}
