//! What stands between a request and its answer besides who may do what: the audit log, priority and fairness, the time
//! that a request may take. Source: `apiserver/pkg/server/config.go` (the order), `endpoints/filters`, `server/filters`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use api::connect::{Body, User};
use api::{Reason, Status};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::body::text;
use super::path::{ResourcePath, Target};
use super::query::{self, Query};
use super::respond::typed_response;
use super::{CONNECTIONS, Front};
use crate::admission::Notes;
use crate::audit::{self, Begin, Record, Subject};
use crate::flow::{Digest, Named, Refused, Scan, Schema, Seat};
use crate::words::Kind;

/// How long a request that is no watch may take. Source: `--request-timeout`.
const REQUEST_MAX: Duration = Duration::from_secs(60);
/// Of the time that a request has, it waits for its turn so much at most.
const WAIT_PART: u32 = 4;
const AUDIT_ID: &str = "audit-id";
/// Of a client's own name for its request so much is kept. Source: `maxAuditIDLength`.
const AUDIT_ID_MAX: usize = 64;
const SCHEMA_UID: &str = "x-kubernetes-pf-flowschema-uid";
const LEVEL_UID: &str = "x-kubernetes-pf-prioritylevel-uid";

/// Who is at the other end of the connection, where the server knows it (an extension of the request).
#[derive(Debug, Clone, Copy)]
pub struct Remote(pub SocketAddr);

/// Told once the client at the other end of a connection has proved who it is (an extension of its requests).
#[derive(Debug, Clone, Default)]
pub struct Known(Arc<AtomicBool>);

impl Known {
    /// The client has proved who it is.
    pub fn proved(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it has.
    pub fn is_proved(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a request asks for, as far as its head says it.
pub(super) struct Asks<'a> {
    pub(super) verb: &'a str,
    pub(super) target: &'a Target,
    pub(super) path: &'a str,
    pub(super) query: &'a Query,
    /// Whether it lasts as long as its client likes: a watch, or a connection to a pod, Service or node.
    pub(super) long_running: bool,
    /// How long it may take, if it is none of those.
    pub(super) deadline: Duration,
}

/// What follows a request on its way and is told with its answer.
pub(super) struct Trail {
    /// What admission says besides.
    pub(super) notes: Arc<Notes>,
    audit_id: String,
    record: Option<Record>,
    schema: Option<Arc<Schema>>,
}

impl<'a> Asks<'a> {
    /// Reads a request's head.
    pub(super) fn new(
        method: &'a Method,
        path: &'a str,
        target: &'a Target,
        query: &'a Query,
        lower: &'a str,
    ) -> Self {
        let verb = match target {
            Target::Resource(path) => verb(method, path, query),
            Target::Other => lower,
        };
        let long_running = is_long_running(method, target, query);
        Self { verb, target, path, query, long_running, deadline: REQUEST_MAX }
    }

    /// Takes over how long the client gives it. What is long-running has no such time: its parameter of that name, if
    /// there is one, is its backend's.
    pub(super) fn timed(&mut self) -> Result<(), Status> {
        if !self.long_running {
            self.deadline = deadline(self.query)?;
        }
        Ok(())
    }

    fn resource(&self) -> Option<&'a ResourcePath> {
        match self.target {
            Target::Resource(path) => Some(path),
            Target::Other => None,
        }
    }

    fn subject<'b>(&'b self, user: Option<&'b User>) -> Subject<'b> {
        let resource = self.resource().map(|path| audit::Target {
            group: &path.group,
            version: &path.version,
            resource: &path.resource,
            subresource: &path.subresource,
            namespace: path.within(),
            name: &path.name,
        });
        Subject { user, verb: self.verb, resource, path: self.path }
    }

    fn digest<'b>(&'b self, user: &'b User) -> Digest<'b> {
        let resource = self.resource().map(|path| Named {
            group: &path.group,
            version: &path.version,
            name: &path.name,
            resource: &path.resource,
            subresource: &path.subresource,
            namespace: path.within(),
        });
        Digest { user, verb: self.verb, resource, path: self.path }
    }
}

/// Whether a request lasts as long as its client likes. Source: `server/filters/longrunning.go` with the verbs and
/// subresources of kube-apiserver.
pub(super) fn is_long_running(method: &Method, target: &Target, query: &Query) -> bool {
    let Target::Resource(path) = target else { return false };
    query::is_watch(method, path, query) || CONNECTIONS.contains(&path.subresource.as_str())
}

/// The verb of a request for a resource. Source: `endpoints/request/requestinfo.go`.
fn verb(method: &Method, path: &ResourcePath, query: &Query) -> &'static str {
    match (method.as_str(), path.name.is_empty()) {
        _ if query::is_watch(method, path, query) => "watch",
        ("GET" | "HEAD", true) => "list",
        ("GET" | "HEAD", false) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "deletecollection",
        ("DELETE", false) => "delete",
        _ => "",
    }
}

/// How long a request may take: what its client says, and never more than the server allows.
/// Source: `endpoints/filters/request_deadline.go`.
fn deadline(query: &Query) -> Result<Duration, Status> {
    let Some(said) = query.get("timeout").filter(|said| !said.is_empty()) else { return Ok(REQUEST_MAX) };
    let nanoseconds = base::go_duration::parse(said).ok_or_else(|| {
        Status::bad_request(format!(
            "invalid timeout specified in the request URL - time: invalid duration {said:?}"
        ))
    })?;
    let asked = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0));
    Ok(if asked.is_zero() { REQUEST_MAX } else { asked.min(REQUEST_MAX) })
}

/// The 504 of a request that took longer than it may.
pub(super) fn timed_out() -> Status {
    Status::new(Reason::Timeout, "Timeout: request did not complete within the allotted timeout")
}

impl Trail {
    /// Begins with the request.
    pub(super) fn new(headers: &HeaderMap) -> Self {
        let said = headers.get(AUDIT_ID).and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
        let audit_id = said.map_or_else(base::id::uuid, |id| id.chars().take(AUDIT_ID_MAX).collect());
        Self { notes: Arc::default(), audit_id, record: None, schema: None }
    }

    /// What is being written down of the request, if anything is.
    pub(super) fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    fn told(&self, headers: &mut HeaderMap) {
        if let Ok(mut id) = HeaderValue::from_str(&self.audit_id) {
            // No two answers share it: HTTP/2's table of headers is spared what it would only drive others out with.
            id.set_sensitive(true);
            headers.insert(AUDIT_ID, id);
        }
        if let Some((schema, level)) = self.schema.as_ref().map(|schema| schema.uids()) {
            for (name, uid) in [(SCHEMA_UID, schema), (LEVEL_UID, level)] {
                let Ok(uid) = HeaderValue::from_str(uid) else { continue };
                headers.insert(HeaderName::from_static(name), uid);
            }
        }
    }

    /// Ends a request's way: its answer gets the headers, and its record the code or failure. Returns the record of one
    /// that goes on after its answer began; it ends when that is dropped.
    pub(super) fn answered(
        self,
        response: &mut http::Response<Body>,
        failure: Option<&Status>,
        goes_on: bool,
    ) -> Option<Record> {
        self.told(response.headers_mut());
        let record = self.record?;
        record.annotate_all(self.notes.annotations());
        record.answered(response.status().as_u16(), failure);
        if goes_on {
            record.started();
            return Some(record);
        }
        record.complete();
        None
    }
}

/// Where a request came from: what proxies say, and the other end of the connection. Source: `utilnet.SourceIPs`.
fn source_ips(headers: &HeaderMap, remote: Option<&Remote>) -> Vec<String> {
    let header =
        |name: &'static str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let address = |text: &str| text.trim().parse::<IpAddr>().ok();
    let mut all: Vec<IpAddr> = header("x-forwarded-for").split(',').filter_map(address).collect();
    let real = address(header("x-real-ip")).filter(|real| !all.contains(real));
    all.extend(real);
    let remote = remote.map(|remote| remote.0.ip().to_canonical());
    all.extend(remote.filter(|remote| all.last() != Some(remote)));
    all.iter().map(IpAddr::to_string).collect()
}

impl Front {
    /// Begins the record of a request, whose user is known or not.
    pub(super) fn audit<B>(
        &self,
        request: &http::Request<B>,
        asks: &Asks<'_>,
        user: Option<&User>,
        trail: &mut Trail,
    ) {
        let Some(auditor) = self.pipeline.auditor() else { return };
        let uri = request.uri().path_and_query().map_or(asks.path, |uri| uri.as_str());
        trail.record = auditor.begin(Begin {
            subject: asks.subject(user),
            audit_id: &trail.audit_id,
            uri,
            user_agent: text(request.headers(), header::USER_AGENT),
            source_ips: source_ips(request.headers(), request.extensions().get()),
        });
    }

    /// As [`Front::audit`] for a request whose user could not be told, and which ends here: that is all that is written.
    pub(super) fn audit_stranger<B>(
        &self,
        request: &http::Request<B>,
        asks: &Asks<'_>,
        refusal: &Status,
        trail: &mut Trail,
    ) {
        let authorization = text(request.headers(), header::AUTHORIZATION);
        let scheme = authorization.split(' ').next().unwrap_or_default().to_ascii_lowercase();
        let tried = match scheme.as_str() {
            "bearer" | "basic" => format!(", attempted: {scheme}"),
            _ => String::new(),
        };
        let told = Status { message: format!("Authentication failed{tried}"), ..refusal.clone() };
        self.audit_refused(request, asks, &told, trail);
    }

    /// As [`Front::audit`] for a request that is refused before anybody knows whose it is.
    /// Source: `endpoints/filters/request_deadline.go`, `withFailedRequestAudit`.
    pub(super) fn audit_refused<B>(
        &self,
        request: &http::Request<B>,
        asks: &Asks<'_>,
        told: &Status,
        trail: &mut Trail,
    ) {
        self.audit(request, asks, None, trail);
        if let Some(record) = trail.record.take() {
            record.answered(told.code, Some(told));
            record.started();
            record.close();
        }
    }

    /// The 400 of a path that is no text.
    pub(super) fn unreadable_path<B>(&self, request: &http::Request<B>, trail: &mut Trail) -> Status {
        let refusal = Status::bad_request("the path is not valid UTF-8");
        let (method, query) = (request.method().as_str().to_ascii_lowercase(), Query::parse(""));
        let asks = Asks::new(request.method(), request.uri().path(), &Target::Other, &query, &method);
        self.audit_refused(request, &asks, &refusal, trail);
        refusal
    }

    /// Waits until it is the request's turn. The seats are its own until it is answered, those of a watch until it has
    /// begun; connections take none.
    pub(super) async fn turn(
        &self,
        user: &User,
        asks: &Asks<'_>,
        trail: &mut Trail,
    ) -> Result<Option<Seat>, Refused> {
        if asks.long_running && asks.verb != "watch" {
            return Ok(None);
        }
        let digest = asks.digest(user);
        let Some(schema) = self.flow.classify(&digest, &*self.pipeline) else { return Ok(None) };
        trail.schema = Some(schema.clone());
        let scan = self.scan(asks);
        let since = Instant::now();
        let entered = self.flow.enter(&schema, &digest, scan, asks.deadline / WAIT_PART).await;
        trail.notes.waits(since.elapsed());
        entered.map(Some)
    }

    /// What a list, or a watch that begins with what is there, goes through.
    fn scan(&self, asks: &Asks<'_>) -> Option<Scan> {
        let path = asks.resource()?;
        match asks.verb {
            "list" => {}
            "watch" if asks.query.flag("sendInitialEvents") => {}
            "watch" if matches!(asks.query.get("resourceVersion"), None | Some("" | "0")) => {}
            _ => return None,
        }
        let fields = asks.query.get("fieldSelector").unwrap_or_default();
        let named = !path.name.is_empty() || crate::selection::selected(fields, "metadata.name").is_some();
        let limit = asks.query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(0);
        Some(Scan { objects: self.pipeline.count(&path.group, &path.resource), limit, named })
    }
}

/// Says to the client and to the audit log that a version is deprecated. Source: `endpoints/metrics.MonitorRequest`.
pub(super) fn tell_deprecation(kind: &Kind, notes: &Notes) {
    let Some(text) = kind.deprecation() else { return };
    notes.warn(text);
    notes.annotate("k8s.io/deprecated", "true");
    let removed = kind.removed_release();
    if !removed.is_empty() {
        notes.annotate("k8s.io/removed-release", removed);
    }
}

/// The 429 of a request that is turned away, in upstream's form.
pub(super) fn too_many(refused: &Refused) -> http::Response<Body> {
    let text = Bytes::from_static(b"Too many requests, please try again later.\n");
    let mut answer = typed_response(StatusCode::TOO_MANY_REQUESTS, "text/plain; charset=utf-8", text);
    answer.headers_mut().insert(header::RETRY_AFTER, refused.retry_after.into());
    answer.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_want_less_time_and_not_more() {
        let of = |query: &str| deadline(&Query::parse(query)).map_err(|status| status.message);
        for (query, expected) in [
            ("", 60_000),
            ("timeout=2s", 2000),
            ("timeout=500ms", 500),
            ("timeout=1h", 60_000),
            ("timeout=0s", 60_000),
        ] {
            assert_eq!(of(query), Ok(Duration::from_millis(expected)), "{query}");
        }
        let said = "invalid timeout specified in the request URL - time: invalid duration \"soon\"";
        assert_eq!(of("timeout=soon"), Err(said.to_owned()));
    }

    #[test]
    fn what_lasts_as_its_client_likes_has_no_time_of_its_own() {
        let asked = |path: &str, query: &str| {
            let (target, query) = (super::super::path::parse(path).unwrap(), Query::parse(query));
            let mut asks = Asks::new(&Method::GET, path, &target, &query, "get");
            asks.timed().map(|()| (asks.long_running, asks.deadline)).map_err(|status| status.code)
        };
        let pod = "/api/v1/namespaces/a/pods/b";
        for connection in ["log", "exec", "attach", "portforward", "proxy/x"] {
            assert_eq!(asked(&format!("{pod}/{connection}"), "timeout=soon"), Ok((true, REQUEST_MAX)));
        }
        assert_eq!(asked("/apis/g/v1/things", "watch=1&timeout=soon"), Ok((true, REQUEST_MAX)));
        assert_eq!(asked("/apis/g/v1/things", "timeout=2s"), Ok((false, Duration::from_secs(2))));
        assert_eq!(asked(pod, "timeout=soon"), Err(400));
    }

    #[test]
    fn sources_are_in_the_order_of_the_way() {
        let remote = Remote("[::ffff:192.0.2.3]:1".parse().unwrap());
        let mut headers = HeaderMap::new();
        assert_eq!(source_ips(&headers, Some(&remote)), ["192.0.2.3"]);
        headers.insert("x-forwarded-for", HeaderValue::from_static("192.0.2.1, nonsense, 2001:db8::1"));
        headers.insert("x-real-ip", HeaderValue::from_static("192.0.2.2"));
        assert_eq!(
            source_ips(&headers, Some(&remote)),
            ["192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3"]
        );
        headers.insert("x-real-ip", HeaderValue::from_static("192.0.2.3"));
        assert_eq!(source_ips(&headers, Some(&remote)), ["192.0.2.1", "2001:db8::1", "192.0.2.3"]);
    }
}
