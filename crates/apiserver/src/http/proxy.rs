//! The subresource `proxy` of pods, Services and nodes: the request goes to whom it names, the answer comes back, both as
//! streams. Source: `pkg/registry/core/{pod,service,node}/rest`, `apimachinery/pkg/util/proxy/upgradeaware.go`.

use std::net::SocketAddr;
use std::sync::Arc;

use api::connect::{Body, NodeAddress, User};
use api::{Object, Reason, Status};
use base::BoxError;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::BodyExt;
use rustls_pki_types::ServerName;
use serde_json::Value;

use super::body::{full, text};
use super::path::ResourcePath;
use super::query::Query;
use super::{Front, Remote};
use crate::admission::{Notes, World};
use crate::pipeline::Pipeline;
use crate::proxy::locate::{self, Endpoint, Named};
use crate::proxy::{Destination, linked, rewrite};

/// The label by which an EndpointSlice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Whom a proxied request reaches.
enum Reached {
    /// An address; whether by TLS.
    Address(SocketAddr, bool),
    /// A node's own server.
    Node(NodeAddress),
}

impl Front {
    /// Answers a request whose path names a proxy.
    pub(super) async fn proxy<B>(
        &self,
        user: &User,
        path: &ResourcePath,
        query: &Query,
        request: Request<B>,
        notes: &Arc<Notes>,
    ) -> Result<Response<Body>, Status>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        self.may_connect(user, path, (request.method(), query), notes).await?;
        let reached = match path.resource.as_str() {
            "pods" => self.proxied_pod(path).await?,
            "services" => self.proxied_service(path).await?,
            _ => self.proxied_node(path).await?,
        };
        let upgrade = rewrite::is_upgrade(request.headers());
        if let Some(answer) = to_directory(&request, &path.rest).filter(|_| !upgrade) {
            return Ok(answer);
        }
        let prefix = request.uri().path().strip_suffix(&path.rest).unwrap_or_default().to_owned();
        let outgoing = outgoing(request, &prefix, &path.rest)?;
        let asked_host = text(outgoing.headers(), header::HOST).to_owned();
        let (host, answer) = match &reached {
            Reached::Node(node) => {
                (SocketAddr::new(node.address, node.port), self.nodes.request(node, outgoing).await)
            }
            Reached::Address(address, tls) => {
                let answer = self.send_to(*address, *tls, outgoing).await;
                (*address, answer.map_err(|error| unreachable(&*error, upgrade)))
            }
        };
        let mut answer = answer?;
        let upgraded = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        if upgrade && !upgraded && answer.status().as_u16() < 400 {
            let code = answer.status().as_u16();
            return Err(Status::internal(format!("invalid upgrade response: status code {code}")));
        }
        let host = host.to_string();
        rewrite::answer(answer.headers_mut(), &prefix, [&host, &asked_host], upgraded);
        Ok(linked(answer, move |text| rewrite::link(text, &prefix, [&host, &asked_host])))
    }

    async fn send_to(
        &self,
        address: SocketAddr,
        tls: bool,
        request: Request<Body>,
    ) -> Result<Response<Body>, BoxError> {
        let tls = tls.then(|| (self.insecure.clone(), ServerName::from(address.ip())));
        self.outbound.send(&Destination { address, tls }, request).await
    }

    async fn proxied_pod(&self, path: &ResourcePath) -> Result<Reached, Status> {
        let asked = locate::named(&path.name, "pod")?;
        let pod = self.read("pods", &path.namespace, asked.name).await?;
        Ok(Reached::Address(locate::pod(&asked, &pod)?, asked.tls))
    }

    async fn proxied_service(&self, path: &ResourcePath) -> Result<Reached, Status> {
        let asked = locate::named(&path.name, "service")?;
        let service = self.read("services", &path.namespace, asked.name).await?;
        let port = locate::service_port(&service, asked.name, asked.port)?;
        let mut endpoints = endpoints(&self.pipeline, &path.namespace, asked.name, port);
        // Whoever writes Endpoints does not choose where the API server connects to: only pods of the namespace count.
        endpoints.retain(|endpoint| is_of_pod(&self.pipeline, &path.namespace, endpoint));
        let chosen = self.outbound.one_of(endpoints).ok_or_else(|| locate::no_endpoints(&path.name))?;
        Ok(Reached::Address(chosen.address, asked.tls))
    }

    async fn proxied_node(&self, path: &ResourcePath) -> Result<Reached, Status> {
        let asked = locate::named(&path.name, "node")?;
        let node = self.node_address(asked.name).await?;
        let Some(port) = other_port(&asked, &node)? else {
            // Where a member finds the API server is told by the API server alone, in whose name this would arrive.
            if path.rest.trim_matches('/') == "apiServer" {
                return Err(Status::new(Reason::Forbidden, "a node's API server is not set through a proxy"));
            }
            return Ok(Reached::Node(node));
        };
        if !locate::is_proxyable(node.address) {
            return Err(locate::not_allowed());
        }
        Ok(Reached::Address(SocketAddr::new(node.address, port), asked.tls))
    }

    async fn read(&self, resource: &str, namespace: &str, name: &str) -> Result<Value, Status> {
        let object = self.pipeline.find("", resource, namespace, name).await?;
        let object = object.ok_or_else(|| Status::not_found("", resource, name))?;
        object.decode().map_err(|error| Status::internal(error.to_string()))
    }
}

/// A port of the node that is not its server's.
fn other_port(asked: &Named<'_>, node: &NodeAddress) -> Result<Option<u16>, Status> {
    if asked.port.is_empty() {
        return Ok(None);
    }
    let wrong = |_| Status::bad_request(format!("node port {:?} is no number", asked.port));
    let port = asked.port.parse::<u16>().map_err(wrong)?;
    Ok(Some(port).filter(|port| *port != node.port))
}

/// The ready endpoints of a Service for a port, from its slices, or from its Endpoints where it has no slices.
pub(crate) fn endpoints(pipeline: &Pipeline, namespace: &str, service: &str, port: &str) -> Vec<Endpoint> {
    let slices = pipeline.all("discovery.k8s.io", "endpointslices", namespace);
    let of_service =
        |slice: &&Arc<Object>| slice.meta().labels.get(SERVICE_NAME).is_some_and(|name| name == service);
    let decoded = |object: &Arc<Object>| object.decode::<Value>().ok();
    let slices: Vec<Value> = slices.iter().filter(of_service).filter_map(decoded).collect();
    if !slices.is_empty() {
        return slices.iter().flat_map(|slice| locate::of_slice(slice, port)).collect();
    }
    let endpoints = crate::strategy::View::peek(pipeline, "", "endpoints", namespace, service);
    endpoints.as_ref().and_then(decoded).map(|all| locate::of_endpoints(&all, port)).unwrap_or_default()
}

/// Whether an endpoint is an address of the pod that it names, in the Service's namespace, and may be connected to.
fn is_of_pod(pipeline: &Pipeline, namespace: &str, endpoint: &Endpoint) -> bool {
    let Some((of_namespace, name)) = &endpoint.pod else { return false };
    if of_namespace != namespace || !locate::is_proxyable(endpoint.address.ip()) {
        return false;
    }
    let pod = crate::strategy::View::peek(pipeline, "", "pods", namespace, name);
    let pod = pod.and_then(|pod| pod.decode::<Value>().ok());
    pod.is_some_and(|pod| locate::pod_addresses(&pod).any(|address| address == endpoint.address.ip()))
}

/// Relative links of a page work only where its address ends in a slash: who asks for the proxy itself is sent there.
fn to_directory<B>(request: &Request<B>, rest: &str) -> Option<Response<Body>> {
    if !rest.is_empty() || !matches!(*request.method(), Method::GET | Method::HEAD) {
        return None;
    }
    let query = request.uri().query().map_or_else(String::new, |query| format!("?{query}"));
    let location = HeaderValue::from_str(&format!("{}/{query}", request.uri().path())).ok()?;
    let mut answer = Response::new(full(Bytes::new()));
    *answer.status_mut() = StatusCode::MOVED_PERMANENTLY;
    answer.headers_mut().insert(header::LOCATION, location);
    Some(answer)
}

/// The request as the backend gets it.
fn outgoing<B>(request: Request<B>, prefix: &str, rest: &str) -> Result<Request<Body>, Status>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let (mut head, body) = request.into_parts();
    let rest = if rest.is_empty() { "/" } else { rest };
    let target = match head.uri.query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    name_host(&mut head.headers, &head.uri);
    head.uri = target.parse().map_err(|_| Status::bad_request("the path cannot be sent on"))?;
    head.version = Version::HTTP_11;
    let client = head.extensions.get::<Remote>().map(|client| client.0.ip());
    rewrite::request(&mut head.headers, client);
    rewrite::forwarded_uri(&mut head.headers, prefix, rest);
    Ok(Request::from_parts(head, body.map_err(Into::into).boxed_unsync()))
}

/// HTTP/2 tells the host beside the headers.
fn name_host(headers: &mut HeaderMap, uri: &http::Uri) {
    if headers.contains_key(header::HOST) {
        return;
    }
    let host = uri.authority().map_or("localhost", http::uri::Authority::as_str);
    if let Ok(host) = HeaderValue::from_str(host) {
        headers.insert(header::HOST, host);
    }
}

/// A backend that does not answer, in upstream's words.
fn unreachable(error: &(dyn std::error::Error + 'static), upgrade: bool) -> Status {
    let cause = base::error::chain(error);
    if upgrade {
        return Status::new(Reason::InternalError, format!("error dialing backend: {cause}"));
    }
    Status::new(Reason::ServiceUnavailable, format!("error trying to reach service: {cause}"))
}
