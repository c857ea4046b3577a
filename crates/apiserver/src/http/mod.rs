//! The HTTP front: the same requests as in-process, decoded from paths, queries and bodies.

mod aggregate;
mod body;
mod connect;
mod counted;
mod documents;
mod guard;
mod health;
mod impersonate;
mod kept;
mod lists;
mod metrics;
mod negotiate;
mod path;
mod pretty;
pub(crate) mod proxy;
mod query;
mod queues;
mod respond;
mod watch;

use std::sync::Arc;
use std::time::Instant;

use api::connect::{Body, NodeConnector, User};
use api::{Call, FieldValidation, GroupVersionResource, Reason, Request, Response, Status};
use base::BoxError;
use base::lifecycle::Readiness;
use base::queues::Queues;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::aggregation::Aggregator;
use crate::authn;
use crate::authn::config::Anonymous;
use crate::authn::front_proxy::{self, FrontProxy};
use crate::authz::Attributes;
use crate::bootstrap::Bootstrap;
use crate::flow::Flow;
use crate::pipeline::{Pipeline, attributes};
use crate::proxy::Outbound;
use crate::started::Started;
use crate::words::{self, Kind};
use body::text;
use counted::Labels;
use guard::{Asks, Trail};
pub use guard::{Known, Remote};
use impersonate::forget_credentials;
pub(crate) use kept::Kept;
pub(crate) use metrics::Metrics;
use negotiate::Offer;
use path::{ResourcePath, Target};
use query::Query;
pub(crate) use watch::Encoded;

/// Subresources that are connections to a node and not objects.
const CONNECTIONS: [&str; 5] = ["log", "exec", "attach", "portforward", "proxy"];

/// What the front is made of.
pub struct Front {
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) nodes: Arc<dyn NodeConnector>,
    /// Extension API servers.
    pub(crate) aggregator: Arc<Aggregator>,
    /// The way to pods and Services.
    pub(crate) outbound: Arc<Outbound>,
    /// TLS to pods and Services, whose certificates nobody vouches for.
    pub(crate) insecure: Arc<rustls::ClientConfig>,
    /// Which requests without credentials are let in, where a configuration says so.
    pub(crate) anonymous: Option<Anonymous>,
    /// Readiness of the process's components, where a supervisor runs them.
    pub(crate) readiness: Option<Readiness>,
    /// What is counted.
    pub(crate) metrics: Metrics,
    /// What has been done since the server started.
    pub(crate) started: Arc<Started>,
    /// Documents of discovery and OpenAPI.
    pub(crate) documents: Kept,
    /// Work queues of the process, for `/metrics`.
    pub(crate) queues: Queues,
    /// Who waits for whom.
    pub(crate) flow: Arc<Flow>,
    /// `v1.37.0+skiff.1`
    pub(crate) git_version: String,
    /// How clients reach the server.
    pub(crate) bootstrap: Arc<Mutex<Bootstrap>>,
    /// What watchers are shown, encoded once for all of them.
    pub(crate) encoded: Arc<Encoded>,
    /// Ends watches when the server drains.
    pub(crate) drain: CancellationToken,
}

/// What a request says besides method and path.
struct Parts<'a> {
    method: &'a Method,
    headers: &'a HeaderMap,
    path: &'a str,
    query: &'a Query,
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
        let head = request.method() == Method::HEAD;
        let long_running =
            target.as_ref().is_some_and(|target| guard::is_long_running(request.method(), target, &query));
        let applies = counted::applies(request.headers());
        let labels = Labels::of(request.method(), target.as_ref(), &query, applies, |path| self.has(path));
        let held = self.metrics.requests.began(labels);
        let mut trail = Trail::new(request.headers());
        let answer = match target {
            Some(target) => self.route(peer, target, query, request, &mut trail).await,
            None => Err(self.unreadable_path(&request, &mut trail)),
        };
        let (mut response, failure) = match answer {
            Ok(response) => (response, None),
            Err(status) => (respond::failure(&status, &accept), Some(status)),
        };
        if head {
            response = respond::without_body(response);
        }
        for text in trail.notes.warnings() {
            response
                .headers_mut()
                .extend(respond::warning_header(&text).map(|value| (header::WARNING, value)));
        }
        let waited = trail.notes.waited();
        let record = trail.answered(&mut response, failure.as_ref(), long_running);
        let response = self.metrics.requests.answered(&held, response, since, waited);
        if !long_running {
            return response;
        }
        // A watch is open until its body ends.
        let held = held.long_running().then_some(held);
        response.map(|body| body.map_frame(move |frame| (&held, &record, frame).2).boxed_unsync())
    }

    async fn route<B>(
        &self,
        peer: Option<&User>,
        target: Target,
        query: Query,
        mut request: http::Request<B>,
        trail: &mut Trail,
    ) -> Result<http::Response<Body>, Status>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let (uri, method) = (request.uri().clone(), request.method().clone());
        let lower = method.as_str().to_ascii_lowercase();
        let mut asks = Asks::new(&method, uri.path(), &target, &query, &lower);
        if let Err(refusal) = asks.timed() {
            self.audit_refused(&request, &asks, &refusal, trail);
            return Err(refusal);
        }
        let proxy = request.extensions().get::<FrontProxy>().copied();
        let telling = self.authenticate(peer, proxy, uri.path(), request.headers());
        let user = match self.metrics.authenticated(request.headers(), telling).await {
            Ok(user) => user,
            Err(refusal) => {
                self.audit_stranger(&request, &asks, &refusal, trail);
                return Err(refusal);
            }
        };
        if let Some(known) = request.extensions().get::<Known>()
            && !authn::in_group(&user, authn::names::UNAUTHENTICATED)
        {
            known.proved();
        }
        self.audit(&request, &asks, Some(&user), trail);
        if let Some(record) = trail.record() {
            record.received();
        }
        let user = self.impersonate(user, request.headers(), trail.record()).await?;
        forget_credentials(request.headers_mut());
        // Held until the request is answered: a watch is answered when it has begun.
        let seat = match self.turn(&user, &asks, trail).await {
            Ok(seat) => seat,
            Err(refused) => return Ok(guard::too_many(&refused)),
        };
        if let Some(remote) = self.remote(uri.path()) {
            // A watch has begun, as far as this server can tell, when it is passed on.
            let _seat = seat.filter(|_| !asks.long_running);
            return Box::pin(self.aggregate(&user, &remote, &asks, request, &trail.notes)).await;
        }
        match &target {
            Target::Other => {
                let (headers, path) = (request.headers(), uri.path());
                let parts = Parts { method: &method, headers, path, query: &query };
                self.authorize_path(&user, &parts, trail).await?;
                Box::pin(self.document(&parts)).await
            }
            Target::Resource(path) if path.subresource == "proxy" => {
                Box::pin(self.proxy(&user, path, &query, request, &trail.notes)).await
            }
            Target::Resource(path) if CONNECTIONS.contains(&path.subresource.as_str()) => {
                Box::pin(self.connect(&user, path, &query, request, &trail.notes)).await
            }
            Target::Resource(path) => {
                let (head, body) = request.into_parts();
                let parts =
                    Parts { method: &method, headers: &head.headers, path: uri.path(), query: &query };
                let answer = self.resource(&user, path, &parts, body, trail);
                if asks.verb == "watch" {
                    return answer.await;
                }
                let answered = tokio::time::timeout(asks.deadline, answer).await;
                answered.unwrap_or_else(|_| Err(guard::timed_out()))
            }
        }
    }

    async fn resource<B>(
        &self,
        user: &User,
        path: &ResourcePath,
        parts: &Parts<'_>,
        body: B,
        trail: &Trail,
    ) -> Result<http::Response<Body>, Status>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        // Authorization comes before the body is looked at: what is forbidden gives no hint.
        let resource = GroupVersionResource::new(&path.group, &path.version, &path.resource);
        // Of what is not served, no method is allowed either: that it is not there says more.
        let unserved = |status| self.pipeline.kind(&resource).err().unwrap_or(status);
        let mut request = Request {
            resource: resource.clone(),
            namespace: path.namespace.clone(),
            name: path.name.clone(),
            subresource: path.subresource.clone(),
            call: query::call(
                parts.method,
                path,
                parts.query,
                text(parts.headers, header::CONTENT_TYPE),
                text(parts.headers, header::USER_AGENT),
                None,
            )
            .map_err(unserved)?,
        };
        self.pipeline.authorize_noted(&attributes(user, &request), &trail.notes).await?;
        let kind = self.pipeline.kind(&request.resource)?;
        let builtin = api::protobuf::speaks(kind.typed());
        // What is only asked and never kept (reviews) has no rows.
        let table = kind.verbs.iter().any(|verb| verb == "list");
        let offer = Offer { protobuf: builtin, stream: matches!(request.call, Call::Watch(_)), table };
        let accepted = respond::accepted(parts.headers, parts.query, offer)?;
        if !builtin {
            query::check_patch(&request.call)?;
        }
        guard::tell_deprecation(&kind, &trail.notes);
        if !matches!(request.call, Call::Get { .. } | Call::List(_) | Call::Watch(_)) {
            let (body, repeated) = body::read(parts.headers, body, builtin).await?;
            if let Some(record) = trail.record() {
                record.request(&body);
            }
            request.call = query::call(
                parts.method,
                path,
                parts.query,
                text(parts.headers, header::CONTENT_TYPE),
                text(parts.headers, header::USER_AGENT),
                Some(body),
            )?;
            let repeated = warning_of(&kind, &request.call, repeated)?;
            repeated.into_iter().for_each(|text| trail.notes.warn(text));
        }
        let found = match &request.call {
            Call::Delete(options) if options.pending_is_accepted => StatusCode::ACCEPTED,
            _ => StatusCode::OK,
        };
        let mut response = self.pipeline.call_authorized(user, request, &trail.notes).await?;
        if let Response::Object { warnings, .. } | Response::Deleted { warnings, .. } = &mut response {
            warnings.drain(..).for_each(|text| trail.notes.warn(text));
        }
        if let Some(record) = trail.record() {
            record.responded(&response);
        }
        let gzip = body::takes_gzip(parts.headers);
        let render =
            respond::Render { kind: &kind, name: &path.name, accepted, gzip, query: parts.query, found };
        match response {
            Response::Watch(stream) => {
                render.check_watch()?;
                let watched = self.metrics.watched(&kind);
                Ok(watch::respond(stream, &render, watched, self.encoded.clone(), self.drain.clone()))
            }
            other => render.response(other).await,
        }
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
        proxy: Option<FrontProxy>,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<User, Status> {
        if let Some(user) = peer {
            return Ok(user.clone());
        }
        let refused = || Status::new(Reason::Unauthorized, "Unauthorized");
        if let Some(FrontProxy(trusted)) = proxy {
            return front_proxy::user(headers).filter(|_| trusted).ok_or_else(refused);
        }
        let (scheme, token) = text(headers, header::AUTHORIZATION).split_once(' ').unwrap_or_default();
        if !scheme.eq_ignore_ascii_case("bearer") || token.trim().is_empty() {
            let allowed = self.anonymous.as_ref().is_none_or(|anonymous| anonymous.allows(path));
            return if allowed { Ok(authn::anonymous()) } else { Err(refused()) };
        }
        let known = self.pipeline.authenticate_token(token.trim(), &[]).await?;
        known.map(|(user, _)| user).ok_or_else(refused)
    }

    async fn authorize_path(&self, user: &User, parts: &Parts<'_>, trail: &Trail) -> Result<(), Status> {
        let asked = Attributes {
            user: user.clone(),
            verb: parts.method.as_str().to_ascii_lowercase(),
            path: parts.path.to_owned(),
            ..Attributes::default()
        };
        self.pipeline.authorize_noted(&asked, &trail.notes).await
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
