//! The HTTP front: the same requests as in-process, decoded from paths, queries and bodies.

mod body;
mod connect;
mod documents;
mod health;
mod impersonate;
mod lists;
mod metrics;
mod negotiate;
mod path;
mod pretty;
mod query;
mod respond;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::connect::{Body, NodeConnector, User};
use api::{Call, FieldValidation, GroupVersionResource, Reason, Request, Response, Status};
use base::BoxError;
use base::lifecycle::Readiness;
use bytes::Bytes;
use http::{HeaderMap, Method, header};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::admission::Notes;
use crate::authn;
use crate::authn::config::Anonymous;
use crate::authz::Attributes;
use crate::bootstrap::Bootstrap;
use crate::pipeline::{Pipeline, attributes};
use crate::words::{self, Kind};
use body::text;
use metrics::Labels;
pub(crate) use metrics::Metrics;
use negotiate::Offer;
use path::{ResourcePath, Target};
use query::Query;

/// How long a request that is no watch may take.
const REQUEST_MAX: Duration = Duration::from_secs(60);
/// Subresources that are connections to a node and not objects.
const CONNECTIONS: [&str; 5] = ["log", "exec", "attach", "portforward", "proxy"];

/// What the front is made of.
pub struct Front {
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) nodes: Arc<dyn NodeConnector>,
    /// Which requests without credentials are let in, where a configuration says so.
    pub(crate) anonymous: Option<Anonymous>,
    /// Readiness of the process's components, where a supervisor runs them.
    pub(crate) readiness: Option<Readiness>,
    /// What is counted.
    pub(crate) metrics: Metrics,
    /// `v1.37.0+skiff.1`
    pub(crate) git_version: String,
    /// How clients reach the server.
    pub(crate) bootstrap: Arc<Mutex<Bootstrap>>,
    /// Ends watches when the server drains.
    pub(crate) drain: CancellationToken,
}

/// What a request says besides method and path.
struct Parts<'a> {
    method: &'a Method,
    headers: &'a HeaderMap,
    path: &'a str,
    query: Query,
}

impl Front {
    /// Answers one request; `peer` is the user of the connection's client certificate.
    pub async fn serve<B>(&self, peer: Option<&User>, request: http::Request<B>) -> http::Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let accept = text(request.headers(), header::ACCEPT).to_owned();
        let since = Instant::now();
        let target = path::parse(request.uri().path());
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let labels = Labels::of(request.method(), target.as_ref(), &query, |path| self.has(path));
        let held = self.metrics.began(&labels);
        let notes = Arc::<Notes>::default();
        let answer = match target {
            Some(target) => self.route(peer, target, query, request, &notes).await,
            None => Err(Status::bad_request("the path is not valid UTF-8")),
        };
        let mut response = answer.unwrap_or_else(|status| respond::failure(&status, &accept));
        for text in notes.warnings() {
            response
                .headers_mut()
                .extend(respond::warning_header(&text).map(|value| (header::WARNING, value)));
        }
        self.metrics.answered(&labels, response.status(), since);
        if !labels.long_running() {
            return response;
        }
        // A watch is open until its body ends.
        response.map(|body| body.map_frame(move |frame| (&held, frame).1).boxed_unsync())
    }

    async fn route<B>(
        &self,
        peer: Option<&User>,
        target: Target,
        query: Query,
        request: http::Request<B>,
        notes: &Arc<Notes>,
    ) -> Result<http::Response<Body>, Status>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let user = self.authenticate(peer, request.uri().path(), request.headers()).await?;
        let user = self.impersonate(user, request.headers()).await?;
        let uri = request.uri().clone();
        match target {
            Target::Other => {
                let parts =
                    Parts { method: request.method(), headers: request.headers(), path: uri.path(), query };
                self.authorize_path(&user, &parts).await?;
                self.document(&parts).await
            }
            Target::Resource(path) if CONNECTIONS.contains(&path.subresource.as_str()) => {
                self.connect(&user, &path, &query, request, notes).await
            }
            Target::Resource(path) => {
                let (head, body) = request.into_parts();
                let parts = Parts { method: &head.method, headers: &head.headers, path: uri.path(), query };
                let watch = query::is_watch(parts.method, &path, &parts.query);
                let answer = self.resource(&user, &path, &parts, body, notes);
                if watch {
                    return answer.await;
                }
                tokio::time::timeout(REQUEST_MAX, answer).await.unwrap_or_else(|_| {
                    Err(Status::new(
                        Reason::Timeout,
                        "request did not complete within the allotted timeout of 60 s",
                    ))
                })
            }
        }
    }

    async fn resource<B>(
        &self,
        user: &User,
        path: &ResourcePath,
        parts: &Parts<'_>,
        body: B,
        notes: &Arc<Notes>,
    ) -> Result<http::Response<Body>, Status>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        // Authorization comes before the body is looked at: what is forbidden gives no hint.
        let mut request = Request {
            resource: GroupVersionResource::new(&path.group, &path.version, &path.resource),
            namespace: path.namespace.clone(),
            name: path.name.clone(),
            subresource: path.subresource.clone(),
            call: query::call(
                parts.method,
                path,
                &parts.query,
                text(parts.headers, header::CONTENT_TYPE),
                text(parts.headers, header::USER_AGENT),
                Bytes::new(),
            )?,
        };
        self.pipeline.authorize(&attributes(user, &request)).await?;
        let kind = self.pipeline.kind(&request.resource)?;
        let builtin = api::protobuf::speaks(kind.typed());
        let offer = Offer { protobuf: builtin, stream: matches!(request.call, Call::Watch(_)) };
        let accepted = respond::accepted(parts.headers, &parts.query, offer)?;
        if !builtin {
            query::check_patch(&request.call)?;
        }
        let mut warning = None;
        if !matches!(request.call, Call::Get { .. } | Call::List(_) | Call::Watch(_)) {
            let (body, repeated) = body::read(parts.headers, body, builtin).await?;
            request.call = query::call(
                parts.method,
                path,
                &parts.query,
                text(parts.headers, header::CONTENT_TYPE),
                text(parts.headers, header::USER_AGENT),
                body,
            )?;
            warning = warning_of(&kind, &request.call, repeated)?;
        }
        let response = self.pipeline.call_authorized(user, request, notes).await?;
        let gzip = body::takes_gzip(parts.headers);
        let render = respond::Render { kind: &kind, name: &path.name, accepted, gzip, query: &parts.query };
        let mut answer = match response {
            Response::Watch(stream) => watch::respond(stream, &render, self.drain.clone()),
            other => render.response(other).await?,
        };
        for text in kind.deprecation().into_iter().chain(warning.as_deref()) {
            answer.headers_mut().extend(respond::warning_header(text).map(|value| (header::WARNING, value)));
        }
        Ok(answer)
    }

    /// Whether a path names a resource, and a subresource, that there is.
    fn has(&self, path: &ResourcePath) -> bool {
        let resource = GroupVersionResource::new(&path.group, &path.version, &path.resource);
        let kind = self.pipeline.kind(&resource);
        kind.is_ok_and(|kind| path.subresource.is_empty() || kind.subresource(&path.subresource).is_some())
    }

    async fn authenticate(
        &self,
        peer: Option<&User>,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<User, Status> {
        if let Some(user) = peer {
            return Ok(user.clone());
        }
        let refused = || Status::new(Reason::Unauthorized, "Unauthorized");
        let (scheme, token) = text(headers, header::AUTHORIZATION).split_once(' ').unwrap_or_default();
        if !scheme.eq_ignore_ascii_case("bearer") || token.trim().is_empty() {
            let allowed = self.anonymous.as_ref().is_none_or(|anonymous| anonymous.allows(path));
            return if allowed { Ok(authn::anonymous()) } else { Err(refused()) };
        }
        let known = self.pipeline.authenticate_token(token.trim(), &[]).await?;
        known.map(|(user, _)| user).ok_or_else(refused)
    }

    async fn authorize_path(&self, user: &User, parts: &Parts<'_>) -> Result<(), Status> {
        let asked = Attributes {
            user: user.clone(),
            verb: parts.method.as_str().to_ascii_lowercase(),
            path: parts.path.to_owned(),
            ..Attributes::default()
        };
        self.pipeline.authorize(&asked).await
    }
}

/// What a repeated key of a body means to a write: as an unknown field it is refused, with all that is wrong besides, told
/// or let pass.
fn warning_of(kind: &Kind, call: &Call, repeated: Option<String>) -> Result<Option<String>, Status> {
    let (body, validation) = match call {
        Call::Create { body, options }
        | Call::Update { body, options }
        | Call::Patch { body, options, .. } => (body, options.field_validation),
        _ => return Ok(None),
    };
    match (validation, repeated) {
        (FieldValidation::Strict, Some(key)) => {
            let decoded = words::decode(kind, body, FieldValidation::Warn)?;
            let problems: Vec<String> =
                [format!("yaml: unmarshal errors:\n  {key}")].into_iter().chain(decoded.1).collect();
            let (name, version) = (&kind.kind, &kind.version);
            Err(Status::bad_request(format!(
                "{name} in version \"{version}\" cannot be handled as a {name}: strict decoding error: {}",
                problems.join(", ")
            )))
        }
        (FieldValidation::Warn, repeated) => Ok(repeated),
        _ => Ok(None),
    }
}
