//! Exec and attach, over WebSocket or SPDY.

use std::sync::Arc;

use api::Status;
use api::connect::Body;
use engine_api::{EngineError, ExecSpec, Process};
use futures::future::BoxFuture;
use http::{Request, Response};

use super::process::{self, Wanted};
use super::query::{self, Query};
use super::route::Target;
use super::{NodeServer, spdy, websocket};

/// Starts the process once the client's streams are there.
type Starter = Box<dyn FnOnce() -> BoxFuture<'static, Result<Process, EngineError>> + Send>;

/// `/exec/{namespace}/{pod}/{container}?command=…`
pub(super) async fn exec(
    server: &Arc<NodeServer>,
    target: Target,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let query = Query::of(&request);
    let command = query.all("command");
    if command.is_empty() {
        return Err(Status::bad_request("you must specify at least 1 command for the container"));
    }
    let wanted = Wanted::of(&query);
    check(wanted)?;
    let record = query::running(&server.deps, &target)?;
    let spec = ExecSpec { command, terminal: wanted.tty, stdin: wanted.stdin, ..ExecSpec::default() };
    let runtime = server.deps.runtime.clone();
    let start: Starter = Box::new(move || Box::pin(async move { runtime.exec(&record.id, spec).await }));
    connect(server, request, wanted, start)
}

/// `/attach/{namespace}/{pod}/{container}`
pub(super) async fn attach(
    server: &Arc<NodeServer>,
    target: Target,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let query = Query::of(&request);
    let record = query::running(&server.deps, &target)?;
    // Whether there is a terminal was decided when the container was made.
    let wanted = Wanted { tty: record.terminal, attached: true, ..Wanted::of(&query) };
    check(wanted)?;
    let runtime = server.deps.runtime.clone();
    let start: Starter = Box::new(move || {
        Box::pin(async move {
            let mut process = runtime.attach(&record.id).await?;
            if !wanted.stdin {
                process.io.stdin = None;
            }
            Ok(process)
        })
    });
    connect(server, request, wanted, start)
}

fn check(wanted: Wanted) -> Result<(), Status> {
    if wanted.stdin || wanted.stdout || wanted.stderr {
        Ok(())
    } else {
        Err(Status::bad_request("you must specify at least one of stdin, stdout, stderr"))
    }
}

fn connect(
    server: &Arc<NodeServer>,
    mut request: Request<Body>,
    wanted: Wanted,
    start: Starter,
) -> Result<Response<Body>, Status> {
    if websocket::is_requested(request.headers()) {
        let (response, upgrade, protocol) = websocket::accept(&mut request, &websocket::COMMAND_PROTOCOLS)?;
        server.sessions.spawn(async move {
            let Ok(socket) = websocket::upgraded(upgrade).await else { return };
            let (remote, session) = websocket::command_session(socket, protocol);
            let run = async { process::run(start().await, wanted, remote).await };
            tokio::join!(session, run);
        });
        return Ok(response);
    }
    let (response, upgrade, protocol) = spdy::accept(&mut request, &spdy::COMMAND_PROTOCOLS)?;
    server.sessions.spawn(async move {
        let Ok(io) = upgrade.await else { return };
        spdy::command_session(hyper_util::rt::TokioIo::new(io), protocol, wanted, start).await;
    });
    Ok(response)
}
