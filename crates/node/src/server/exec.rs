//! Exec and attach, over WebSocket or SPDY.

use std::sync::Arc;

use api::Status;
use api::connect::Body;
use engine_api::ExecSpec;
use http::{Request, Response};
use streams::{Starter, Wanted};

use super::NodeServer;
use super::query::{self, Query};
use super::route::Target;

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
    let wanted = wanted(&query);
    wanted.check()?;
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
    let wanted = Wanted { tty: record.terminal, attached: true, ..wanted(&query) };
    wanted.check()?;
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

/// Which streams a request asks for.
fn wanted(query: &Query) -> Wanted {
    let tty = query.flag(&["tty"]);
    Wanted {
        stdin: query.flag(&["stdin", "input"]),
        stdout: query.flag(&["stdout", "output"]),
        // A terminal has one output.
        stderr: query.flag(&["stderr", "error"]) && !tty,
        tty,
        attached: false,
    }
}

fn connect(
    server: &Arc<NodeServer>,
    mut request: Request<Body>,
    wanted: Wanted,
    start: Starter,
) -> Result<Response<Body>, Status> {
    let (response, session) = streams::command(&mut request, wanted, start)?;
    server.sessions.spawn(session);
    Ok(response)
}
