//! Processes run inside a container: created, started with a hijacked connection, looked at afterwards.

use std::collections::{HashMap, VecDeque};

use engine_api::{ExecSpec, TerminalSize};
use futures::StreamExt;
use http::StatusCode;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;

use crate::answer::{Answer, Failure, json as json_answer, ok, status};
use crate::hijack::{Wants, upgrade};
use crate::server::Call;

/// How many are remembered; the oldest are forgotten.
const EXECS_MAX: usize = 1024;

/// Every exec that was asked for lately.
#[derive(Default)]
pub(crate) struct Execs(Mutex<Table>);

#[derive(Default)]
struct Table {
    by_id: HashMap<String, Exec>,
    order: VecDeque<String>,
}

#[derive(Clone)]
struct Exec {
    container: String,
    spec: ExecSpec,
    wants: Wants,
    pid: u32,
    running: bool,
    exit_code: Option<i32>,
    resize: Option<mpsc::Sender<TerminalSize>>,
}

impl Execs {
    fn add(&self, id: &str, exec: Exec) {
        let mut table = self.0.lock();
        table.by_id.insert(id.to_owned(), exec);
        table.order.push_back(id.to_owned());
        while table.order.len() > EXECS_MAX {
            if let Some(oldest) = table.order.pop_front() {
                table.by_id.remove(&oldest);
            }
        }
    }

    fn get(&self, id: &str) -> Result<Exec, Failure> {
        let found = self.0.lock().by_id.get(id).cloned();
        found.ok_or_else(|| Failure::not_found(format!("No such exec instance: {id}")))
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Exec)) {
        if let Some(exec) = self.0.lock().by_id.get_mut(id) {
            change(exec);
        }
    }
}

/// `POST /containers/{id}/exec`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ExecRequest {
    user: String,
    privileged: bool,
    tty: bool,
    attach_stdin: bool,
    attach_stdout: bool,
    attach_stderr: bool,
    env: Option<Vec<String>>,
    working_dir: String,
    cmd: Option<Vec<String>>,
}

/// `POST /exec/{id}/start`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct StartRequest {
    detach: bool,
}

pub(crate) async fn create(mut call: Call, name: &str) -> Answer {
    let request: ExecRequest = call.json().await?;
    let found = call.shared.find(name).await?;
    if !found.is_running() {
        return Err(Failure::conflict(format!("container {} is not running", found.id())));
    }
    let command = request.cmd.unwrap_or_default();
    if command.is_empty() {
        return Err(Failure::bad_request("No exec command specified"));
    }
    let id = base::id::hex64();
    let exec = Exec {
        container: found.id().to_owned(),
        wants: Wants {
            stdin: request.attach_stdin,
            stdout: request.attach_stdout,
            stderr: request.attach_stderr,
            terminal: request.tty,
        },
        spec: ExecSpec {
            command,
            env: request.env.unwrap_or_default(),
            working_dir: request.working_dir,
            user: request.user,
            terminal: request.tty,
            stdin: request.attach_stdin,
            privileged: request.privileged,
        },
        pid: 0,
        running: false,
        exit_code: None,
        resize: None,
    };
    call.shared.execs.add(&id, exec);
    Ok(json_answer(StatusCode::CREATED, &json!({ "Id": id })))
}

pub(crate) async fn start(mut call: Call, id: &str) -> Answer {
    let request: StartRequest = call.json().await?;
    let exec = call.shared.execs.get(id)?;
    if exec.running || exec.exit_code.is_some() {
        return Err(Failure::conflict(format!("Error: Exec command {id} has already run")));
    }
    let process = call.shared.runtime.exec(&exec.container, exec.spec.clone()).await?;
    call.shared.execs.change(id, |exec| {
        exec.running = true;
        exec.pid = process.pid;
        exec.resize = Some(process.io.resize.clone());
    });
    let (shared, name) = (call.shared.clone(), id.to_owned());
    let ended = async move {
        // A process whose end nobody can tell counts as failed.
        let code = match process.exit.await {
            Ok(Ok(exit)) => exit.code,
            _ => 126,
        };
        shared.execs.change(&name, |exec| {
            exec.running = false;
            exec.exit_code = Some(code);
            exec.resize = None;
        });
    };
    if request.detach {
        let io = process.io;
        call.ctx.spawn(async move {
            // Read to the end, or the process would stop when its pipe is full.
            let drain = |stream: Option<engine_api::ByteStream>| async move {
                if let Some(stream) = stream {
                    stream.for_each(|_| std::future::ready(())).await;
                }
            };
            drop(io.stdin);
            futures::future::join(drain(io.stdout), drain(io.stderr)).await;
        });
        call.ctx.spawn(ended);
        return status(StatusCode::OK);
    }
    // The exit is known before the stream ends: clients ask for it right after.
    let (told, waiting) = tokio::sync::oneshot::channel();
    call.ctx.spawn(async move {
        ended.await;
        let _ = told.send(());
    });
    let mut io = process.io;
    io.stdout = io.stdout.map(|stream| until(stream, waiting));
    upgrade(call, io, exec.wants, std::future::ready(()))
}

/// The stream, which ends only when the process's exit is recorded.
fn until(
    stream: engine_api::ByteStream,
    recorded: tokio::sync::oneshot::Receiver<()>,
) -> engine_api::ByteStream {
    let end = futures::stream::once(async move {
        // A sender that is gone has nothing more to record.
        let _ = recorded.await;
        Ok(bytes::Bytes::new())
    });
    stream.chain(end).boxed()
}

pub(crate) async fn resize(call: &Call, id: &str) -> Answer {
    let size = crate::containers::terminal_size(call)?;
    let exec = call.shared.execs.get(id)?;
    let Some(resize) = exec.resize else {
        return Err(Failure::conflict(format!("exec {id} is not running")));
    };
    let sent = resize.send(size).await;
    sent.map_err(|_| Failure::conflict(format!("exec {id} is not running")))?;
    status(StatusCode::OK)
}

pub(crate) fn inspect(call: &Call, id: &str) -> Answer {
    let exec = call.shared.execs.get(id)?;
    let (program, arguments) =
        exec.spec.command.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
    ok(&json!({
        "ID": id,
        "Running": exec.running,
        "ExitCode": exec.exit_code,
        "ProcessConfig": {
            "tty": exec.spec.terminal,
            "entrypoint": program,
            "arguments": arguments,
            "privileged": exec.spec.privileged,
            "user": exec.spec.user,
        },
        "OpenStdin": exec.wants.stdin,
        "OpenStdout": exec.wants.stdout,
        "OpenStderr": exec.wants.stderr,
        "CanRemove": !exec.running,
        "ContainerID": exec.container,
        "DetachKeys": "",
        "Pid": exec.pid,
    }))
}
