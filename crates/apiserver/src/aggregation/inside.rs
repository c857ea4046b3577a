//! What components of this process read of extension API servers, and delete there: they ask the pipeline as for anything
//! else, and have the answer in the shape that the pipeline gives.

use api::connect::User;
use api::{Call, Object, Reason, Request, Response, Status, wire};
use bytes::Bytes;
use http::Method;
use serde_json::Value;

use super::{Aggregator, Remote, discovery};
use crate::authn::{in_group, names};
use crate::pipeline::Pipeline;
use crate::tree;

/// A list may be so long.
const BYTES_MAX: usize = 32 << 20;
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
            return Err(wire::failure(code.as_u16(), &body));
        }
        match &request.call {
            Call::List(_) => wire::list(&body.into()).map(Response::List).map_err(garbled),
            // What went is told in many ways, and nobody here asks.
            Call::Delete(_) | Call::DeleteCollection(..) => {
                Ok(Response::Deleted { uid: String::new(), object: None, warnings: Vec::new() })
            }
            _ => {
                let object = Object::parse(body.into()).map_err(garbled)?.into();
                Ok(Response::Object { object, created: false, warnings: Vec::new() })
            }
        }
    }
}

fn component(group: &str) -> User {
    let name = if MEASURED.contains(&group) { MEASURER } else { CLEANER };
    User { name: name.into(), groups: GROUPS.map(str::to_owned).to_vec(), ..User::default() }
}

/// Method, path and body of a request, if it is one that is passed on.
fn passed_on(request: &Request) -> Option<(Method, String, Bytes)> {
    let method = match &request.call {
        Call::Get { .. } | Call::List(_) => Method::GET,
        Call::Delete(_) | Call::DeleteCollection(..) => Method::DELETE,
        _ => return None,
    };
    Some((method, wire::path_and_query(request), wire::body(&request.call)))
}

fn garbled(error: serde_json::Error) -> Status {
    Status::internal(format!("the extension API server's answer cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use api::{DeleteOptions, GroupVersionResource, ListOptions, Propagation};

    use super::*;

    fn request(group: &str, version: &str, resource: &str, call: Call) -> Request {
        let (name, subresource) = (String::new(), String::new());
        let resource = GroupVersionResource::new(group, version, resource);
        Request { resource, namespace: "ns".into(), name, subresource, call }
    }

    #[test]
    fn paths_are_those_of_the_metrics_apis() {
        let path = |resource: &str, name: &str, subresource: &str, call: Call| {
            let mut request = request("custom.metrics.k8s.io", "v1beta2", resource, call);
            (request.name, request.subresource) = (name.into(), subresource.into());
            passed_on(&request).unwrap().1
        };
        let options = ListOptions {
            label_selector: "a=b".into(),
            metric_label_selector: "c in (d,e)".into(),
            ..ListOptions::default()
        };
        let base = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/ns";
        assert_eq!(
            path("pods", "*", "rate", Call::List(options)),
            format!("{base}/pods/%2A/rate?labelSelector=a%3Db&metricLabelSelector=c%20in%20%28d%2Ce%29")
        );
        let get = Call::Get { resource_version: String::new() };
        assert_eq!(path("metrics", "rate", "", get), format!("{base}/metrics/rate"));
    }

    #[test]
    fn deletions_carry_their_options() {
        let options =
            DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
        let which = ListOptions { label_selector: "a=b".into(), ..ListOptions::default() };
        let call = Call::DeleteCollection(options, which);
        let (method, path, body) = passed_on(&request("example.com", "v1", "flunders", call)).unwrap();
        assert_eq!(method, Method::DELETE);
        assert_eq!(path, "/apis/example.com/v1/namespaces/ns/flunders?labelSelector=a%3Db");
        assert!(String::from_utf8_lossy(&body).contains(r#""propagationPolicy":"Background""#));
        let watch = Call::Watch(ListOptions::default());
        assert!(passed_on(&request("example.com", "v1", "flunders", watch)).is_none());
        assert_eq!(component("example.com").name, CLEANER);
        assert_eq!(component("custom.metrics.k8s.io").name, MEASURER);
    }
}
