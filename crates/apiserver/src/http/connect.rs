//! Connections to nodes' servers on behalf of pods: logs, exec, attach, port-forward.

use std::sync::Arc;

use api::connect::{Body, NodeAddress, User};
use api::{GroupVersionResource, Object, Reason, Status, Verb};
use base::BoxError;
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::Front;
use super::path::ResourcePath;
use super::query::Query;
use super::respond::typed_response;
use crate::admission::{Notes, World};
use crate::authz::Attributes;
use crate::field::{self, FieldError, FieldErrors};
use crate::nodes::address_of;
use crate::pipeline::check_served;
use crate::tree;

const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

impl Front {
    /// Authorizes the connection, finds the node and hands the request over.
    pub(super) async fn connect<B>(
        &self,
        user: &User,
        path: &ResourcePath,
        query: &Query,
        request: http::Request<B>,
        notes: &Arc<Notes>,
    ) -> Result<http::Response<Body>, Status>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        self.may_connect(user, path, (request.method(), query), notes).await?;
        if path.subresource == "log" {
            check_log(query, &path.name)?;
        }
        let (node, target) = match (path.group.as_str(), path.resource.as_str(), path.subresource.as_str()) {
            ("", "pods", _) => match self.pod_target(path, query).await? {
                Some(target) => target,
                // Nothing runs yet, so that there is nothing to read.
                None => return Ok(typed_response(StatusCode::OK, "text/plain", Bytes::new())),
            },
            _ => return Err(unsupported(path)),
        };
        let address = self.node_address(&node).await?;
        let (mut head, body) = request.into_parts();
        head.uri = target.parse().map_err(|_| Status::bad_request("the path cannot be sent to the node"))?;
        head.headers.remove(http::header::HOST);
        let body = body.map_err(Into::into).boxed_unsync();
        self.nodes.request(&address, http::Request::from_parts(head, body)).await
    }

    /// Whether a user may open a connection, and there is such a one.
    pub(super) async fn may_connect(
        &self,
        user: &User,
        path: &ResourcePath,
        (method, query): (&Method, &Query),
        notes: &Arc<Notes>,
    ) -> Result<(), Status> {
        let attributes = Attributes {
            user: user.clone(),
            verb: verb(method, &path.subresource).into(),
            namespace: path.namespace.clone(),
            group: path.group.clone(),
            version: path.version.clone(),
            resource: path.resource.clone(),
            subresource: path.subresource.clone(),
            name: path.name.clone(),
            is_resource: true,
            ..Attributes::default()
        };
        self.pipeline.authorize_noted(&attributes, notes).await?;
        let resource = GroupVersionResource::new(&path.group, &path.version, &path.resource);
        let kind = self.pipeline.kind(&resource)?;
        check_served(&kind, &path.subresource, asked(method))?;
        if let Some(options) = connect_options(path, query) {
            let place = [path.namespace.as_str(), path.name.as_str(), path.subresource.as_str()];
            self.pipeline.admit_connection(user, &kind, place, options, notes).await?;
        }
        Ok(())
    }

    /// The pod's node and the path at its server; `None` for the log of a pod that has no node yet.
    async fn pod_target(
        &self,
        path: &ResourcePath,
        query: &Query,
    ) -> Result<Option<(String, String)>, Status> {
        let pod = self
            .pipeline
            .find("", "pods", &path.namespace, &path.name)
            .await?
            .ok_or_else(|| Status::not_found("", "pods", &path.name))?;
        let tree = decoded(&pod)?;
        let container = match path.subresource.as_str() {
            "portforward" => String::new(),
            _ => container_of(&tree, query.get("container").unwrap_or_default(), &path.name)?,
        };
        let Some(node) = pod.node_name() else {
            return match path.subresource.as_str() {
                "log" => Ok(None),
                _ => Err(Status::bad_request(format!("pod {} does not have a host assigned", path.name))),
            };
        };
        let place = format!("{}/{}", path.namespace, path.name);
        let target = match path.subresource.as_str() {
            "log" => format!("/containerLogs/{place}/{container}{}", encode(log_query(query))),
            "exec" => format!("/exec/{place}/{container}{}", encode(stream_query(query))),
            "attach" => format!("/attach/{place}/{container}{}", encode(stream_query(query))),
            _ => {
                let ports = query.pairs().map(|(name, value)| {
                    (if name == "ports" { "port" } else { name }.to_owned(), value.to_owned())
                });
                format!("/portForward/{place}{}", encode(ports))
            }
        };
        Ok(Some((node.to_owned(), target)))
    }

    pub(super) async fn node_address(&self, name: &str) -> Result<NodeAddress, Status> {
        let node = self
            .pipeline
            .find("", "nodes", "", name)
            .await?
            .ok_or_else(|| Status::not_found("", "nodes", name))?;
        address_of(&decoded(&node)?, name)
    }
}

fn decoded(object: &Object) -> Result<Value, Status> {
    object.decode().map_err(|error| Status::internal(error.to_string()))
}

fn unsupported(path: &ResourcePath) -> Status {
    let message = format!("{}/{} is not served", path.resource, path.subresource);
    Status::new(Reason::NotFound, message)
}

/// The verb that a row of the catalog serves a method as.
fn asked(method: &Method) -> Verb {
    match *method {
        Method::POST => Verb::Create,
        Method::PUT => Verb::Update,
        Method::PATCH => Verb::Patch,
        Method::DELETE => Verb::Delete,
        _ => Verb::Get,
    }
}

/// The verb that authorization sees: what changes something is a creation, whatever method carries it.
fn verb(method: &Method, subresource: &str) -> &'static str {
    match (subresource, method) {
        ("log", _) | ("proxy", &Method::GET | &Method::HEAD | &Method::OPTIONS) => "get",
        ("proxy", &Method::PUT) => "update",
        ("proxy", &Method::PATCH) => "patch",
        ("proxy", &Method::DELETE) => "delete",
        _ => "create",
    }
}

/// The options of a connection as admission sees them; logs are read and not admitted.
fn connect_options(path: &ResourcePath, query: &Query) -> Option<Value> {
    let flag = |name: &str| query.flag(name);
    let streams = |kind: &str| {
        json!({
            "kind": kind, "apiVersion": "v1", "stdin": flag("stdin"), "stdout": flag("stdout"),
            "stderr": flag("stderr"), "tty": flag("tty"), "container": query.get("container").unwrap_or_default(),
        })
    };
    let options = match (path.resource.as_str(), path.subresource.as_str()) {
        (_, "exec") => {
            let mut options = streams("PodExecOptions");
            options["command"] = query.all("command").collect::<Vec<_>>().into();
            options
        }
        (_, "attach") => streams("PodAttachOptions"),
        (_, "portforward") => {
            let ports: Vec<i64> = query.all("ports").filter_map(|port| port.parse().ok()).collect();
            json!({ "kind": "PodPortForwardOptions", "apiVersion": "v1", "ports": ports })
        }
        (resource, "proxy") => {
            let kind = match resource {
                "pods" => "PodProxyOptions",
                "services" => "ServiceProxyOptions",
                _ => "NodeProxyOptions",
            };
            json!({ "kind": kind, "apiVersion": "v1", "path": path.rest })
        }
        _ => return None,
    };
    Some(options)
}

/// The container asked for, or the one that goes without saying.
fn container_of(pod: &Value, asked: &str, pod_name: &str) -> Result<String, Status> {
    let names = |list: &str| -> Vec<String> {
        tree::items(pod, &["spec", list]).iter().map(|item| tree::text(item, &["name"]).to_owned()).collect()
    };
    let containers = names("containers");
    let known = |name: &str| {
        ["containers", "initContainers", "ephemeralContainers"]
            .iter()
            .any(|list| names(list).iter().any(|known| known == name))
    };
    if !asked.is_empty() {
        if known(asked) {
            return Ok(asked.to_owned());
        }
        let message = format!("container {asked} is not valid for pod {pod_name}");
        return Err(Status::bad_request(message));
    }
    let annotated = tree::text(pod, &["metadata", "annotations", DEFAULT_CONTAINER]);
    match containers.as_slice() {
        _ if !annotated.is_empty() && known(annotated) => Ok(annotated.to_owned()),
        [one] => Ok(one.clone()),
        several => Err(Status::bad_request(format!(
            "a container name must be specified for pod {pod_name}, choose one of: [{}]",
            several.join(" ")
        ))),
    }
}

/// The streams that a log may be of. Both together are as good as none.
const STREAMS: [&str; 3] = ["All", "Stderr", "Stdout"];

/// What a request for a log asks for has to make sense. Source: `ValidatePodLogOptions` in
/// `core/validation/validation.go`.
fn check_log(query: &Query, pod: &str) -> Result<(), Status> {
    let mut errors = FieldErrors::new();
    let tail = query.number("tailLines")?;
    let least = |name: &str, number: Option<i64>, least: i64, detail: &str, errors: &mut FieldErrors| {
        if let Some(number) = number.filter(|number| *number < least) {
            errors.push(FieldError::invalid(name, &json!(number), detail));
        }
    };
    least("tailLines", tail, 0, "must be greater than or equal to 0", &mut errors);
    least("limitBytes", query.number("limitBytes")?, 1, "must be greater than 0", &mut errors);
    let since = query.number("sinceSeconds")?;
    if since.is_some() && query.get("sinceTime").is_some_and(|time| !time.is_empty()) {
        let detail = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        errors.push(FieldError::forbidden("", detail));
    } else {
        least("sinceSeconds", since, 1, "must be greater than 0", &mut errors);
    }
    if let Some(stream) = query.get("stream") {
        if !STREAMS.contains(&stream) {
            errors.push(FieldError::not_supported("stream", &json!(stream), &STREAMS));
        }
        if stream != STREAMS[0] && tail.is_some() {
            let detail = "`tailLines` and specific `stream` are mutually exclusive for now";
            errors.push(FieldError::forbidden("", detail));
        }
    }
    field::check("", "PodLogOptions", pod, &errors)
}

type Pairs = Vec<(String, String)>;

/// The parameters of a log request, spelled the same at the node.
fn log_query(query: &Query) -> Pairs {
    let passed = [
        "follow",
        "previous",
        "sinceSeconds",
        "sinceTime",
        "timestamps",
        "tailLines",
        "limitBytes",
        "stream",
    ];
    query
        .pairs()
        .filter(|(name, _)| passed.contains(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The parameters of exec and attach as the node's server spells them. Source: `pkg/apis/core/types.go`,
/// `ExecStdinParam` and its siblings.
fn stream_query(query: &Query) -> Pairs {
    let mut pairs: Pairs = Vec::new();
    for (from, to) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if query.flag(from) {
            pairs.push((to.to_owned(), "1".to_owned()));
        }
    }
    pairs.extend(query.all("command").map(|word| ("command".to_owned(), word.to_owned())));
    pairs
}

fn encode(pairs: impl IntoIterator<Item = (String, String)>) -> String {
    let text = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    if text.is_empty() { text } else { format!("?{text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_asked_for_in_a_way_that_makes_sense() {
        let said = |query: &str| {
            check_log(&Query::parse(query), "web").map_err(|status| (status.code, status.message))
        };
        for fine in
            ["", "tailLines=0", "limitBytes=1&sinceSeconds=1", "stream=All&tailLines=1", "stream=Stderr"]
        {
            assert_eq!(said(fine), Ok(()), "{fine}");
        }
        let above = "Invalid value: 0: must be greater than 0";
        for (query, wanted) in [
            ("tailLines=-1", "tailLines: Invalid value: -1: must be greater than or equal to 0".to_owned()),
            ("sinceSeconds=0", format!("sinceSeconds: {above}")),
            ("limitBytes=0", format!("limitBytes: {above}")),
            (
                "sinceSeconds=0&sinceTime=2026-01-01T00:00:00Z",
                ": Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified".to_owned(),
            ),
            (
                "stream=Foo",
                "stream: Unsupported value: \"Foo\": supported values: \"All\", \"Stderr\", \"Stdout\""
                    .to_owned(),
            ),
            (
                "stream=Stdout&tailLines=1",
                ": Forbidden: `tailLines` and specific `stream` are mutually exclusive for now".to_owned(),
            ),
        ] {
            let message = format!("PodLogOptions \"web\" is invalid: {wanted}");
            assert_eq!(said(query), Err((422, message)), "{query}");
        }
        let number = "strconv.ParseInt: parsing \"x\": invalid syntax".to_owned();
        assert_eq!(said("tailLines=x"), Err((400, number)));
    }
}
