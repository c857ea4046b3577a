//! One extension API server: how it is reached, what it serves, and whether it can be used. It is looked at whenever its
//! Service or its endpoints change, with back-off while it fails, and every [`LOOK_EVERY`] otherwise.
//! Source: `kube-aggregator/pkg/controllers/status/remote`.

use std::sync::{Arc, Weak};
use std::time::Duration;

use api::connect::{Body, User};
use base::backoff::Policy;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full};
use parking_lot::RwLock;
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::ServerName;
use rustls_platform_verifier::Verifier;
use serde_json::Value;
use store::Revision;

use super::availability::{self, Condition};
use super::{Aggregator, openapi};
use crate::admission::World;
use crate::authn::front_proxy;
use crate::cache::{Cache, Change};
use crate::http::proxy::endpoints;
use crate::pipeline::Pipeline;
use crate::pki::{self, HotResolver};
use crate::proxy::locate::{Endpoint, is_proxyable};
use crate::proxy::{AnyServer, Destination, Outbound, collected};
use crate::strategy::View;
use crate::tree;

/// How often a server that works is looked at. Source: upstream's resync of APIServices.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// While it does not work. Source: upstream's rate limiter.
const RETRY: Policy = Policy { first: Duration::from_millis(100), max: Duration::from_secs(30) };
/// It has this long to tell what it serves. Source: upstream's discovery client.
const ANSWER_MAX: Duration = Duration::from_secs(6);
/// It has this long to answer a component of this process.
const READ_MAX: Duration = Duration::from_secs(30);
/// So many endpoints are tried in one look.
const ATTEMPTS_MAX: usize = 5;
/// What it serves is told in at most so many bytes.
const DISCOVERY_BYTES_MAX: usize = 4 << 20;

/// The Service of an extension API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceRef {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) port: i64,
}

/// What is known of it.
#[derive(Debug, Clone, Default)]
struct State {
    available: bool,
    /// Its APIResourceList, as last read.
    resources: Option<Arc<Value>>,
    openapi: openapi::Documents,
}

/// An extension API server, for one group version.
#[derive(Debug)]
pub(crate) struct Remote {
    name: String,
    uid: String,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) group_priority: i64,
    pub(crate) version_priority: i64,
    service: ServiceRef,
    tls: Result<(Arc<ClientConfig>, ServerName<'static>), String>,
    state: RwLock<State>,
}

/// What an extension API server said at some time, without keeping it: equal ones say that nothing has changed.
#[derive(Debug)]
pub(crate) struct Stamp {
    remote: Weak<Remote>,
    available: bool,
    said: [Option<Weak<Value>>; 3],
}

impl Stamp {
    pub(super) fn of(remote: &Arc<Remote>) -> Self {
        let state = remote.state.read();
        let [v2, v3] = state.openapi.all();
        let said = [state.resources.as_ref(), v2, v3].map(|said| said.map(Arc::downgrade));
        Self { remote: Arc::downgrade(remote), available: state.available, said }
    }
}

impl PartialEq for Stamp {
    fn eq(&self, other: &Self) -> bool {
        let same = |(one, other): (&Option<Weak<Value>>, &Option<Weak<Value>>)| match (one, other) {
            (Some(one), Some(other)) => one.ptr_eq(other),
            (one, other) => one.is_none() && other.is_none(),
        };
        self.remote.ptr_eq(&other.remote)
            && self.available == other.available
            && self.said.iter().zip(&other.said).all(same)
    }
}

/// A request that got no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// Nobody is there.
    NoEndpoint,
    /// Why not.
    Failed(String),
}

impl Remote {
    pub(super) fn new(name: &str, uid: &str, spec: &Value, certificate: &Arc<HotResolver>) -> Self {
        let text = |path: &[&str]| tree::text(spec, path).to_owned();
        let number = |path: &[&str]| tree::at(spec, path).as_i64();
        let service = ServiceRef {
            namespace: text(&["service", "namespace"]),
            name: text(&["service", "name"]),
            port: number(&["service", "port"]).unwrap_or(443),
        };
        Self {
            name: name.to_owned(),
            uid: uid.to_owned(),
            group: text(&["group"]),
            version: text(&["version"]),
            group_priority: number(&["groupPriorityMinimum"]).unwrap_or_default(),
            version_priority: number(&["versionPriority"]).unwrap_or_default(),
            tls: tls(spec, &service, certificate),
            service,
            state: RwLock::default(),
        }
    }

    /// Takes over what is known of the same server under another specification.
    pub(super) fn inherit(&self, before: &Self) {
        *self.state.write() = before.state.read().clone();
    }

    /// Whether its requests are passed on.
    pub(crate) fn is_available(&self) -> bool {
        self.state.read().available
    }

    /// What it serves, as it last said.
    pub(crate) fn resources(&self) -> Option<Arc<Value>> {
        self.state.read().resources.clone()
    }

    /// Its part of the OpenAPI documents, as it last said.
    pub(crate) fn openapi(&self) -> openapi::Documents {
        self.state.read().openapi.clone()
    }

    /// The host that requests name.
    pub(crate) fn host(&self) -> String {
        format!("{}.{}.svc", self.service.name, self.service.namespace)
    }

    /// The server's path of the group version.
    pub(super) fn path(&self) -> String {
        if self.group.is_empty() {
            return format!("/api/{}", self.version);
        }
        format!("/apis/{}/{}", self.group, self.version)
    }

    /// The Service as it is now, and its endpoints that are ready.
    fn look(&self, pipeline: &Pipeline) -> Result<Vec<Endpoint>, Condition> {
        let ServiceRef { namespace, name, .. } = &self.service;
        let service = pipeline.peek("", "services", namespace, name);
        let service = service.and_then(|service| service.decode::<Value>().ok());
        availability::of_service(service.as_ref(), &self.service, |port| {
            let mut found = endpoints(pipeline, namespace, name, port);
            // Whoever writes endpoints does not make this server speak to its own host.
            found.retain(|endpoint| is_proxyable(endpoint.address.ip()));
            found
        })
    }

    /// Sends a request to one of its endpoints.
    pub(crate) async fn send(
        &self,
        pipeline: &Pipeline,
        outbound: &Outbound,
        request: Request<Body>,
    ) -> Result<Response<Body>, Unanswered> {
        let endpoints = self.look(pipeline).map_err(|_| Unanswered::NoEndpoint)?;
        let endpoint = outbound.one_of(endpoints).ok_or(Unanswered::NoEndpoint)?;
        self.send_to(&endpoint, outbound, request).await.map_err(Unanswered::Failed)
    }

    async fn send_to(
        &self,
        endpoint: &Endpoint,
        outbound: &Outbound,
        request: Request<Body>,
    ) -> Result<Response<Body>, String> {
        let tls = Some(self.tls.clone()?);
        let answer = outbound.send(&Destination { address: endpoint.address, tls }, request).await;
        answer.map_err(|error| base::error::chain(&*error))
    }

    /// Asks it something on this server's own behalf: status, body and entity tag.
    pub(super) async fn ask(
        &self,
        endpoint: &Endpoint,
        outbound: &Outbound,
        (path, accept, known): (&str, &str, Option<&str>),
        bytes_max: usize,
    ) -> Result<(StatusCode, Vec<u8>, Option<String>), String> {
        let mut request = Request::get(path).header(header::HOST, self.host()).header(header::ACCEPT, accept);
        if let Some(tag) = known {
            request = request.header(header::IF_NONE_MATCH, tag);
        }
        let body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
        let mut request = request.body(body).map_err(|error| error.to_string())?;
        front_proxy::name(request.headers_mut(), &super::identity());
        let answer = async {
            let answer = self.send_to(endpoint, outbound, request).await?;
            let tag = answer.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
            let status = answer.status();
            Ok((status, collected(answer.into_body(), bytes_max).await?, tag))
        };
        tokio::time::timeout(ANSWER_MAX, answer).await.map_err(|_| "no answer in time".to_owned())?
    }

    /// Asks it something on behalf of a user: status and body.
    pub(super) async fn pass_on(
        &self,
        pipeline: &Pipeline,
        outbound: &Outbound,
        user: &User,
        (method, path, body): (Method, &str, Bytes),
        bytes_max: usize,
    ) -> Result<(StatusCode, Vec<u8>), String> {
        if !self.is_available() {
            return Err("service unavailable".into());
        }
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, self.host());
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
        let request = request.header(header::ACCEPT, "application/json").body(body);
        let mut request = request.map_err(|error| error.to_string())?;
        front_proxy::name(request.headers_mut(), user);
        let answer = async {
            let answer =
                self.send(pipeline, outbound, request).await.map_err(|unanswered| match unanswered {
                    Unanswered::NoEndpoint => "service unavailable".to_owned(),
                    Unanswered::Failed(cause) => cause,
                })?;
            let status = answer.status();
            Ok((status, collected(answer.into_body(), bytes_max).await?))
        };
        tokio::time::timeout(READ_MAX, answer).await.map_err(|_| "no answer in time".to_owned())?
    }

    /// Whether it can be used: asks some of its endpoints what it serves, until one says it.
    async fn check(&self, looked: &Result<Vec<Endpoint>, Condition>, outbound: &Outbound) -> Condition {
        let endpoints = match looked {
            Ok(endpoints) => endpoints,
            Err(condition) => return condition.clone(),
        };
        let mut last = String::new();
        for endpoint in endpoints.iter().take(ATTEMPTS_MAX) {
            match self.discover(endpoint, outbound).await {
                Ok(resources) => {
                    let before = self.openapi();
                    let documents = openapi::read(self, endpoint, outbound, before).await;
                    let mut state = self.state.write();
                    if state.resources.as_deref() != Some(&resources) {
                        state.resources = Some(Arc::new(resources));
                    }
                    state.openapi = documents;
                    return Condition::passed();
                }
                Err(error) => last = error,
            }
        }
        Condition::failed(last)
    }

    async fn discover(&self, endpoint: &Endpoint, outbound: &Outbound) -> Result<Value, String> {
        let path = self.path();
        let url = format!("https://{}{path}", endpoint.address);
        let failed = |cause: String| format!("failing or missing response from {url}: {cause}");
        let answer =
            self.ask(endpoint, outbound, (&path, "application/json", None), DISCOVERY_BYTES_MAX).await;
        let (status, body, _) = answer.map_err(|cause| failed(format!("Get {url:?}: {cause}")))?;
        if !status.is_success() {
            return Err(failed(format!("bad status from {url}: {}", status.as_u16())));
        }
        // What is no list of resources still is an answer, as upstream sees it.
        Ok(serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// Writes the condition where it says something new.
    async fn tell(&self, pipeline: &Pipeline, condition: &Condition) {
        let found = pipeline.find(super::GROUP, super::PLURAL, "", &self.name).await;
        let Ok(Some(object)) = found else { return };
        let Ok(service) = object.decode::<Value>() else { return };
        let now = crate::rfc3339(pipeline.now());
        let present = tree::items(&service, &["status", "conditions"]);
        let Some(conditions) = condition.among(present, &now) else { return };
        let written = super::write_conditions(pipeline, &self.name, &self.uid, conditions).await;
        if let Err(error) = written {
            tracing::debug!(%error, name = self.name, "the condition of an APIService was not written");
        }
    }
}

/// Who vouches for an extension API server.
#[derive(Debug, PartialEq, Eq)]
enum Trust {
    /// Its certificate is not looked at.
    Anybody,
    /// The authorities that this host believes.
    System,
    /// These, in PEM.
    Bundle(String),
}

/// Whom an APIService tells to believe. Source: `rest.TLSClientConfig`, as `handler_proxy.go` fills it.
fn trust(spec: &Value) -> Result<Trust, String> {
    if tree::at(spec, &["insecureSkipTLSVerify"]).as_bool() == Some(true) {
        return Ok(Trust::Anybody);
    }
    let bundle = STANDARD.decode(tree::text(spec, &["caBundle"]));
    let bundle = bundle.map_err(|error| format!("caBundle: {error}"))?;
    if bundle.is_empty() {
        return Ok(Trust::System);
    }
    String::from_utf8(bundle).map(Trust::Bundle).map_err(|_| "caBundle is no PEM".to_owned())
}

/// TLS as the APIService says: whom to believe, and this server's own certificate.
fn tls(
    spec: &Value,
    service: &ServiceRef,
    certificate: &Arc<HotResolver>,
) -> Result<(Arc<ClientConfig>, ServerName<'static>), String> {
    let name = format!("{}.{}.svc", service.name, service.namespace);
    let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match trust(spec)? {
        Trust::Anybody => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider))),
        Trust::System => {
            let system = Verifier::new(provider).map_err(|error| format!("the system's roots: {error}"))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(system))
        }
        Trust::Bundle(pem) => {
            let roots = pki::roots(&pem).map_err(|error| format!("caBundle: {error}"))?;
            builder.with_root_certificates(roots)
        }
    };
    let mut config = builder.with_client_cert_resolver(certificate.clone());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((Arc::new(config), name))
}

/// What a look at a Service depends on.
struct Looked {
    caches: [Arc<Cache>; 3],
    service: ServiceRef,
}

impl Looked {
    fn of(pipeline: &Pipeline, service: &ServiceRef) -> Option<Self> {
        let named = [("", "services"), ("discovery.k8s.io", "endpointslices"), ("", "endpoints")];
        let [Some(services), Some(slices), Some(endpoints)] =
            named.map(|(group, resource)| super::cache(pipeline, group, resource))
        else {
            return None;
        };
        Some(Self { caches: [services, slices, endpoints], service: service.clone() })
    }

    fn revisions(&self) -> [Revision; 3] {
        self.caches.each_ref().map(|cache| cache.revision())
    }

    /// Returns once one of them may be another than at these revisions.
    async fn changed(&self, [services, slices, endpoints]: [Revision; 3]) {
        let ServiceRef { namespace, name, .. } = &self.service;
        let is_it =
            |change: &Change| change.new.meta().namespace == *namespace && change.new.meta().name == *name;
        let within = |change: &Change| change.new.meta().namespace == *namespace;
        tokio::select! {
            () = self.caches[0].happened(services, is_it) => {}
            () = self.caches[1].happened(slices, within) => {}
            () = self.caches[2].happened(endpoints, is_it) => {}
        }
    }
}

/// Looks after one: until it is stopped, or there is no pipeline any more.
pub(super) async fn keep(remote: Arc<Remote>, pipeline: Weak<Pipeline>, aggregator: Arc<Aggregator>) {
    let depends = pipeline.upgrade().and_then(|strong| Looked::of(&strong, &remote.service));
    let Some(depends) = depends else { return };
    let mut failures = 0;
    loop {
        let mut seen = depends.revisions();
        let Some(strong) = pipeline.upgrade() else { return };
        aggregator.renew(strong.now());
        let looked = remote.look(&strong);
        let condition = remote.check(&looked, &aggregator.outbound).await;
        remote.state.write().available = condition.available;
        remote.tell(&strong, &condition).await;
        drop(strong);
        failures = if condition.available { 0 } else { failures + 1 };
        let pause = if condition.available { LOOK_EVERY } else { RETRY.delay(failures) };
        let timer = tokio::time::sleep(pause);
        tokio::pin!(timer);
        loop {
            tokio::select! {
                () = &mut timer => break,
                () = depends.changed(seen) => seen = depends.revisions(),
            }
            let Some(strong) = pipeline.upgrade() else { return };
            if remote.look(&strong) != looked {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_names_no_authority_believes_those_of_the_system() {
        assert_eq!(trust(&json!({})), Ok(Trust::System));
        assert_eq!(trust(&json!({ "caBundle": "", "insecureSkipTLSVerify": false })), Ok(Trust::System));
        assert_eq!(trust(&json!({ "caBundle": "YQ==" })), Ok(Trust::Bundle("a".into())));
        assert_eq!(trust(&json!({ "insecureSkipTLSVerify": true })), Ok(Trust::Anybody));
        assert!(trust(&json!({ "caBundle": "*" })).is_err());
    }
}
