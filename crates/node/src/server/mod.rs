//! The node's HTTP server: logs, exec, attach, port-forward, and the few endpoints that tools read. The same handler
//! serves HTTPS (authenticated and authorized here) and the process's own API server (which has done both already).

pub(crate) mod auth;
mod cadvisor;
mod cgroups;
mod configz;
pub(crate) mod disk_use;
mod exec;
mod host;
mod host_logs;
mod https;
mod kept;
mod logs;
mod port_forward;
mod query;
mod route;
mod summary;
mod text;
mod usage;
mod volume_use;

use std::net::SocketAddr;
use std::sync::Arc;

use api::Status;
use api::connect::Body;
use base::BoxError;
use base::lifecycle::{Context, Tasks};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};

use crate::config::FollowsApiServer;
use crate::deps::Deps;
use crate::traces;
use route::Route;

/// Serves one node's requests.
pub struct NodeServer {
    deps: Arc<Deps>,
    https: Option<https::Listening>,
    /// Sessions (exec, attach, port-forward) outlive the request that opened them.
    sessions: Tasks,
    /// What was found when somebody last asked for the summary.
    before: Arc<summary::Before>,
    /// Who may use the HTTPS server.
    guard: auth::Guard,
}

impl NodeServer {
    /// Takes the port, if the configuration has one.
    pub(crate) async fn bind(deps: Arc<Deps>) -> Result<Arc<Self>, BoxError> {
        let https = match &deps.config.server {
            Some(config) => Some(https::Listening::bind(config).await?),
            None => None,
        };
        let guard = auth::Guard::new(deps.client.clone(), deps.clock.clone(), &deps.config.node_name);
        let (sessions, before) = (Tasks::default(), Arc::default());
        Ok(Arc::new(Self { deps, https, sessions, before, guard }))
    }

    /// The port that the HTTPS server has; upstream's number where there is none.
    pub fn port(&self) -> u16 {
        self.address().map_or(10250, |address| address.port())
    }

    /// Where the HTTPS server listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.https.as_ref().map(https::Listening::address)
    }

    /// Accepts connections as long as the component runs.
    pub(crate) fn start(self: &Arc<Self>, ctx: &Context) {
        if self.https.is_some() {
            ctx.spawn(https::accept(self.clone()));
        }
    }

    /// Answers a request whose sender has been authenticated and authorized. Upgrades travel in the request's
    /// [`hyper::upgrade::OnUpgrade`] extension.
    pub async fn handle(self: &Arc<Self>, request: Request<Body>) -> Response<Body> {
        let route = route::parse(request.method(), request.uri().path());
        let counted = self.deps.figures.request(request.method(), route.name(), route.is_long_running());
        let answer = self.dispatch(route, request).await.unwrap_or_else(|status| failure(&status));
        drop(counted);
        answer
    }

    async fn dispatch(
        self: &Arc<Self>,
        route: Route,
        request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let deps = &self.deps;
        match route {
            Route::Logs(target) => logs::answer(self, &target, request),
            Route::Exec(target) => exec::exec(self, target, request).await,
            Route::Attach(target) => exec::attach(self, target, request).await,
            Route::PortForward(target) => port_forward::serve(self, &target, request).await,
            Route::Pods => Ok(json(&summary::pods(deps))),
            Route::Stats => {
                let brief = query::Query::of(&request).flag(&["only_cpu_and_memory"]);
                Ok(json(&summary::stats(deps, (&self.before, &self.sessions), brief).await))
            }
            Route::Metrics => Ok(metrics(summary::metrics(deps, (&self.before, &self.sessions)).await?)),
            Route::ProbeMetrics => Ok(metrics(deps.figures.probes.text()?)),
            Route::ResourceMetrics => Ok(metrics(summary::resource_metrics(deps).await)),
            Route::CadvisorMetrics => Ok(metrics(cadvisor::metrics(deps).await)),
            Route::StartTrace(target) => start_trace(deps, &target),
            Route::Configz => Ok(json(&configz::document(deps, self.port()))),
            Route::HostLogs(path) => host_logs::serve(&path).await,
            Route::Healthz => Ok(text(StatusCode::OK, "ok")),
            Route::ApiServer => {
                let follows = deps.config.server.as_ref().and_then(|server| server.api_server.clone());
                let at = query::Query::of(&request).get("at").unwrap_or_default().to_owned();
                api_server_moved(follows, format!("https://{at}")).await
            }
            Route::NotFound => Err(Status::new(
                api::Reason::NotFound,
                "the node serves no such path: see /containerLogs, /exec, /attach, /portForward, /pods, /stats/summary, /metrics, /metrics/cadvisor, /metrics/resource, /metrics/probes, /configz, /logs/, /healthz",
            )),
        }
    }
}

/// What starting a pod took.
fn start_trace(deps: &Deps, target: &route::Target) -> Result<Response<Body>, Status> {
    let pod = query::pod(deps, target)?;
    let sandboxes = deps.state.pod(pod.uid()).sandboxes;
    let below = sandboxes.iter().flat_map(|sandbox| deps.runtime.start_steps(&sandbox.id)).collect();
    let steps = deps.traces.of(pod.uid(), below);
    Ok(json(&traces::document(&pod.key().to_string(), pod.uid(), &steps)))
}

/// Only the API server itself, and whoever may do anything on the node, gets here.
async fn api_server_moved(
    follows: Option<Arc<dyn FollowsApiServer>>,
    server: String,
) -> Result<Response<Body>, Status> {
    let Some(follows) = follows else {
        return Err(Status::new(api::Reason::NotFound, "the API server is in this node's own process"));
    };
    match follows.moved(&server).await {
        Ok(()) => Ok(text(StatusCode::OK, "ok")),
        Err(error) => Err(Status::new(api::Reason::ServiceUnavailable, base::error::chain(&*error))),
    }
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn response(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    response(status, "text/plain; charset=utf-8", full(text))
}

/// Figures in the Prometheus text format.
fn metrics(text: String) -> Response<Body> {
    response(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", full(text))
}

fn json(value: &serde_json::Value) -> Response<Body> {
    response(StatusCode::OK, "application/json", full(value.to_string()))
}

/// A failure as the API server passes it on.
fn failure(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response(code, "application/json", full(status.to_json().to_string()))
}
