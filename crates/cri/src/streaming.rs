//! The streams of exec, attach and port-forward: an HTTP server on loopback, whose URLs open once. Callers reach it from
//! this host alone, and only with a token that they were told over the socket.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::connect::Body;
use base::lifecycle::Context;
use engine_api::ExecSpec;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use streams::{Starter, Upgraded, Wanted};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::proto::{AttachRequest, ExecRequest, PortForwardRequest};
use crate::shared::Shared;

/// Connections at once; more wait.
const CONNECTIONS_MAX: usize = 1024;
/// How long a client may take to say what it wants.
const HEAD_MAX: Duration = Duration::from_secs(30);

/// What a token opens; ids are whole, streams are checked.
pub(crate) enum Stream {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

/// Serves until the context is cancelled.
pub(crate) async fn serve(shared: Arc<Shared>, listener: TcpListener, ctx: Context) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, _) = base::accept::next("the streams' server", || listener.accept()).await;
        let (shared, inner) = (shared.clone(), ctx.clone());
        ctx.spawn(async move {
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let (shared, ctx) = (shared.clone(), inner.clone());
                async move { Ok::<_, Infallible>(answer(&shared, &ctx, request)) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_MAX)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the streams' server broke off");
            }
            drop(place);
        });
    }
}

fn answer(shared: &Shared, ctx: &Context, request: Request<Incoming>) -> Response<Body> {
    let token = request.uri().path().rsplit('/').next().unwrap_or_default();
    let Some(stream) = shared.tokens.take(token, Instant::now()) else {
        return failed(StatusCode::NOT_FOUND, "no stream waits here: each URL opens once, within a minute");
    };
    let mut request = request.map(|body| body.map_err(Into::into).boxed_unsync());
    match open(shared, stream, &mut request) {
        Ok((response, session)) => {
            ctx.spawn(session);
            response
        }
        Err(status) => {
            let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            failed(code, &status.message)
        }
    }
}

fn failed(code: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(bytes::Bytes::copy_from_slice(text.as_bytes()));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = code;
    response
}

fn open(shared: &Shared, stream: Stream, request: &mut Request<Body>) -> Result<Upgraded, api::Status> {
    let runtime = shared.runtime.clone();
    match stream {
        Stream::Exec(exec) => {
            let wanted = Wanted {
                stdin: exec.stdin,
                stdout: exec.stdout,
                stderr: exec.stderr,
                tty: exec.tty,
                attached: false,
            };
            let spec =
                ExecSpec { command: exec.cmd, terminal: exec.tty, stdin: exec.stdin, ..ExecSpec::default() };
            let start: Starter =
                Box::new(move || Box::pin(async move { runtime.exec(&exec.container_id, spec).await }));
            streams::command(request, wanted, start)
        }
        Stream::Attach(attach) => {
            let wanted = Wanted {
                stdin: attach.stdin,
                stdout: attach.stdout,
                stderr: attach.stderr && !attach.tty,
                tty: attach.tty,
                attached: true,
            };
            let start: Starter = Box::new(move || {
                Box::pin(async move {
                    let mut process = runtime.attach(&attach.container_id).await?;
                    if !attach.stdin {
                        process.io.stdin = None;
                    }
                    Ok(process)
                })
            });
            streams::command(request, wanted, start)
        }
        Stream::PortForward(forward) => {
            let ports: Vec<String> = forward.port.iter().map(ToString::to_string).collect();
            streams::port_forward(request, runtime, forward.pod_sandbox_id, &ports)
        }
    }
}
