//! Accepts connections, finds what a request means, and keeps what belongs to no single request.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base::BoxError;
use base::lifecycle::Context;
use engine_api::logs::Notices;
use engine_api::{Builds, ContainerEventKind, ContainerState, Images, Runtime, SandboxNetworks};
use futures::StreamExt;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::net::UnixListener;
use tokio::sync::{broadcast, watch};

use crate::answer::{Answer, Failure};
use crate::container_spec::Owner;
use crate::exec::Execs;
use crate::locks::Locks;
use crate::query::Query;

/// The newest API version spoken here.
pub(crate) const API_MAX: (u32, u32) = (1, 50);
/// The oldest one that is answered.
pub(crate) const API_MIN: (u32, u32) = (1, 24);
/// The largest JSON body of a request.
const BODY_BYTES_MAX: usize = 4 << 20;
/// How long the output of a finished container that removes itself may take to reach its clients.
const OUTPUT_GRACE: Duration = Duration::from_secs(2);

/// Where this server keeps its files, and who it says it is.
#[derive(Debug, Clone)]
pub struct Config {
    /// Skiff's version.
    pub version: String,
    /// The directory for volumes and containers' `hosts`, `hostname` and `resolv.conf`.
    pub data_dir: PathBuf,
    /// This node's name.
    pub node_name: String,
}

/// Serves the API.
pub struct Server {
    shared: Arc<Shared>,
}

/// What every request may use.
pub(crate) struct Shared {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) images: Arc<dyn Images>,
    pub(crate) builds: Arc<dyn Builds>,
    pub(crate) networks: Arc<dyn SandboxNetworks>,
    pub(crate) config: Config,
    pub(crate) execs: Execs,
    /// Of the logs that are followed.
    pub(crate) notices: Notices,
    /// Held while a container is made, so that a name is given once.
    pub(crate) naming: tokio::sync::Mutex<()>,
    /// Held by who starts a container or clears up after it.
    pub(crate) starting: Locks,
    /// Ids of containers that were removed.
    pub(crate) removed: broadcast::Sender<String>,
    /// How many clients are attached to each container.
    pub(crate) attached: watch::Sender<HashMap<String, usize>>,
    /// Addresses of sandboxes, as far as they were asked for.
    pub(crate) addresses: Mutex<HashMap<String, String>>,
}

/// A request with what it needs to be answered.
pub(crate) struct Call {
    pub(crate) shared: Arc<Shared>,
    pub(crate) ctx: Context,
    pub(crate) query: Query,
    /// The API version that the client speaks.
    pub(crate) version: (u32, u32),
    pub(crate) request: Request<Incoming>,
}

impl Call {
    /// The body as JSON; an empty one and `null` are the default.
    pub(crate) async fn json<T: DeserializeOwned + Default>(&mut self) -> Result<T, Failure> {
        let body = Limited::new(self.request.body_mut(), BODY_BYTES_MAX);
        let bytes =
            body.collect().await.map_err(|error| Failure::bad_request(format!("read the body: {error}")))?;
        let bytes = bytes.to_bytes();
        if bytes.is_empty() {
            return Ok(T::default());
        }
        let parsed: Result<Option<T>, _> = serde_json::from_slice(&bytes);
        let value = parsed.map_err(|error| Failure::bad_request(format!("invalid JSON: {error}")))?;
        Ok(value.unwrap_or_default())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.request.headers().get(name)?.to_str().ok()
    }
}

impl Server {
    /// Over the engine's traits.
    pub fn new(
        runtime: Arc<dyn Runtime>,
        images: Arc<dyn Images>,
        builds: Arc<dyn Builds>,
        networks: Arc<dyn SandboxNetworks>,
        config: Config,
    ) -> Self {
        let shared = Shared {
            runtime,
            images,
            builds,
            networks,
            config,
            execs: Execs::default(),
            notices: Notices::default(),
            naming: tokio::sync::Mutex::new(()),
            starting: Locks::default(),
            removed: broadcast::Sender::new(256),
            attached: watch::Sender::new(HashMap::new()),
            addresses: Mutex::new(HashMap::new()),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Serves until the context is cancelled.
    pub async fn serve(&self, listener: UnixListener, ctx: &Context) -> Result<(), BoxError> {
        // What a daemon that was killed left of its uploads.
        crate::build::clear_contexts(&self.shared.config).await?;
        let janitor = self.shared.clone();
        ctx.spawn(async move { janitor.tidy().await });
        loop {
            let (stream, _) = tokio::select! {
                accepted = base::accept::next("the engine's socket", || listener.accept()) => accepted,
                () = ctx.cancelled() => return Ok(()),
            };
            let (shared, inner) = (self.shared.clone(), ctx.clone());
            ctx.spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    let (shared, ctx) = (shared.clone(), inner.clone());
                    async move { Ok::<_, Infallible>(respond(shared, ctx, request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .half_close(true)
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades();
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection to the engine's socket broke off");
                }
            });
        }
    }
}

async fn respond(
    shared: Arc<Shared>,
    ctx: Context,
    request: Request<Incoming>,
) -> http::Response<crate::answer::Body> {
    let line = format!("{} {}", request.method(), request.uri().path());
    let answer = route(shared, ctx, request).await;
    let response = answer.unwrap_or_else(Failure::into_response);
    tracing::debug!(request = line, status = response.status().as_u16(), "engine request");
    response
}

/// Splits `/v1.41/rest` into the version and the rest.
fn split_version(path: &str) -> Result<((u32, u32), &str), Failure> {
    let Some((version, rest)) = path.strip_prefix("/v").and_then(|rest| rest.split_once('/')) else {
        return Ok((API_MAX, path));
    };
    let parsed =
        version.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let Some(parsed) = parsed else { return Ok((API_MAX, path)) };
    let text = |(major, minor): (u32, u32)| format!("{major}.{minor}");
    if parsed > API_MAX {
        let message = format!(
            "client version {version} is too new. Maximum supported API version is {}",
            text(API_MAX)
        );
        return Err(Failure::bad_request(message));
    }
    if parsed < API_MIN {
        let message = format!(
            "client version {version} is too old. Minimum supported API version is {}",
            text(API_MIN)
        );
        return Err(Failure::bad_request(message));
    }
    Ok((parsed, &path[path.len() - rest.len() - 1..]))
}

async fn route(shared: Arc<Shared>, ctx: Context, request: Request<Incoming>) -> Answer {
    let uri = request.uri().clone();
    let (version, path) = split_version(uri.path())?;
    let decoded: Vec<String> = path
        .trim_matches('/')
        .split('/')
        .map(|part| percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned())
        .collect();
    let parts: Vec<&str> = decoded.iter().map(String::as_str).collect();
    let query = Query::parse(uri.query().unwrap_or_default());
    let method = request.method().clone();
    let call = Call { shared, ctx, query, version, request };
    match (method.clone(), parts.as_slice()) {
        (Method::GET | Method::HEAD, ["_ping"]) => Ok(crate::system::ping(&method)),
        (Method::GET, ["version"]) => crate::system::version(&call),
        (Method::GET, ["info"]) => crate::system::info(&call).await,
        (Method::GET, ["events"]) => crate::events::stream(&call).await,
        (Method::POST, ["build"]) => crate::build::build(call).await,
        (Method::POST, ["commit"]) => crate::build::commit(call).await,
        (Method::POST, ["build", "prune"]) => {
            crate::answer::ok(&serde_json::json!({ "CachesDeleted": [], "SpaceReclaimed": 0 }))
        }
        (method, ["images", rest @ ..]) => images(call, &method, rest).await,
        (method, ["containers", rest @ ..]) => containers(call, &method, rest).await,
        (method, ["exec", id, action]) => match (method, *action) {
            (Method::POST, "start") => crate::exec::start(call, id).await,
            (Method::POST, "resize") => crate::exec::resize(&call, id).await,
            (Method::GET, "json") => crate::exec::inspect(&call, id),
            _ => Err(unknown(path)),
        },
        _ => Err(unknown(path)),
    }
}

fn unknown(path: &str) -> Failure {
    Failure::not_found(format!("page not found: {path} is not part of the Docker API that skiff serves"))
}

async fn images(call: Call, method: &Method, rest: &[&str]) -> Answer {
    match (method, rest) {
        (&Method::GET, ["json"]) => crate::images::list(&call).await,
        (&Method::GET, ["get"]) => crate::images::save(&call, call.query.all("names")).await,
        (&Method::POST, ["load"]) => crate::images::load(call).await,
        (&Method::POST, ["create"]) => crate::images::create(call).await,
        (&Method::POST, ["prune"]) => crate::images::prune(&call).await,
        (&Method::GET, [name @ .., "json"]) => crate::images::inspect(&call, &name.join("/")).await,
        (&Method::GET, [name @ .., "history"]) => crate::images::history(&call, &name.join("/")).await,
        (&Method::GET, [name @ .., "get"]) => crate::images::save(&call, vec![name.join("/")]).await,
        (&Method::POST, [name @ .., "tag"]) => crate::images::tag(&call, &name.join("/")).await,
        (&Method::POST, [name @ .., "push"]) => crate::images::push(&call, &name.join("/")).await,
        (&Method::DELETE, name) => crate::images::remove(&call, &name.join("/")).await,
        _ => Err(unknown("images")),
    }
}

async fn containers(call: Call, method: &Method, rest: &[&str]) -> Answer {
    match (method, rest) {
        (&Method::GET, ["json"]) => crate::inspect::list(&call).await,
        (&Method::POST, ["create"]) => crate::containers::create(call).await,
        (&Method::POST, ["prune"]) => crate::containers::prune(&call).await,
        (&Method::DELETE, [name]) => crate::containers::remove(&call, name).await,
        (&Method::GET, [name, "json"]) => crate::inspect::inspect(&call, name).await,
        (&Method::GET, [name, "logs"]) => crate::logs::logs(&call, name).await,
        (&Method::POST, [name, "start"]) => crate::containers::start(&call, name).await,
        (&Method::POST, [name, "stop"]) => crate::containers::stop(&call, name).await,
        (&Method::POST, [name, "kill"]) => crate::containers::kill(&call, name).await,
        (&Method::POST, [name, "wait"]) => crate::containers::wait(&call, name).await,
        (&Method::POST, [name, "resize"]) => crate::containers::resize(&call, name).await,
        (&Method::POST, [name, "attach"]) => crate::containers::attach(call, name).await,
        (&Method::POST, [name, "exec"]) => crate::exec::create(call, name).await,
        _ => Err(unknown("containers")),
    }
}

impl Shared {
    /// Removes containers that remove themselves, when they have ended.
    async fn tidy(&self) {
        let mut events = self.runtime.events().await;
        self.tidy_all().await;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) if matches!(event.kind, ContainerEventKind::Exited(_)) => {
                    self.tidy_one(&event.container_id).await;
                }
                Ok(_) => {}
                Err(_lost) => self.tidy_all().await,
            }
        }
    }

    async fn tidy_all(&self) {
        let containers = match self.runtime.containers().await {
            Ok(containers) => containers,
            Err(error) => {
                tracing::warn!(%error, "containers could not be listed");
                return;
            }
        };
        for container in containers {
            if matches!(container.state, ContainerState::Exited { .. }) {
                self.tidy_one(&container.spec.id).await;
            }
        }
    }

    async fn tidy_one(&self, id: &str) {
        let Ok(found) = self.find(id).await else { return };
        let Owner::Docker(request) = &found.owner else { return };
        if found.is_running() {
            return;
        }
        self.withdraw(&found).await;
        if !request.host_config.auto_remove {
            return;
        }
        let mut attached = self.attached.subscribe();
        // Whoever is attached gets the end of the output first; one that does not read is not waited for long.
        let _ = tokio::time::timeout(OUTPUT_GRACE, attached.wait_for(|all| !all.contains_key(id))).await;
        if let Err(error) = self.discard(&found).await {
            tracing::warn!(container = id, ?error, "a finished container could not be removed");
        }
    }
}

/// A status for what is already as asked.
pub(crate) fn unchanged() -> Answer {
    crate::answer::status(StatusCode::NOT_MODIFIED)
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod api_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_negotiated() {
        assert_eq!(split_version("/v1.41/images/json").unwrap(), ((1, 41), "/images/json"));
        assert_eq!(split_version("/_ping").unwrap(), (API_MAX, "/_ping"));
        assert_eq!(split_version("/version").unwrap(), (API_MAX, "/version"));
        assert!(split_version("/v1.99/info").is_err());
        assert!(split_version("/v1.10/info").is_err());
    }
}
