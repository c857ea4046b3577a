//! The engine as [`engine_api::Runtime`].

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use base::spans::Span;
use engine_api::{
    Connection, ContainerEvent, ContainerSpec, ContainerState, ContainerStatus, EngineError, ErrorKind,
    EventsLost, ExecSpec, Exit, Process, Resources, Runtime, RuntimeHandler, SandboxSpec, SandboxStatus,
    Stats, TerminalSize,
};
use futures::stream::{BoxStream, StreamExt};
use shim::{Answer, Call};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

use crate::containers::{ended, status};
use crate::engine::{Engine, SILENCE_MAX, exit_of};
use crate::link::{Link, refused};
use crate::process::{self, Ends};
use crate::sandboxes::limits_of;
use crate::{oci, user};

/// How long a connection into a sandbox may take.
const CONNECT_MAX: Duration = Duration::from_secs(10);

#[async_trait]
impl Runtime for Engine {
    async fn create_sandbox(&self, spec: SandboxSpec) -> Result<SandboxStatus, EngineError> {
        self.make_sandbox(spec).await
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), EngineError> {
        self.halt_sandbox(id).await
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), EngineError> {
        self.delete_sandbox(id).await
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, EngineError> {
        let sandboxes: Vec<_> = self.sandboxes.read().values().cloned().collect();
        Ok(sandboxes.iter().map(|sandbox| self.status_of(sandbox)).collect())
    }

    fn start_steps(&self, sandbox_id: &str) -> Vec<Span> {
        self.find_sandbox(sandbox_id).map(|sandbox| sandbox.steps.list()).unwrap_or_default()
    }

    fn expect_sandbox(&self) {
        self.expect_moves();
    }

    fn handlers(&self) -> Vec<RuntimeHandler> {
        self.handlers.all()
    }

    async fn create_container(&self, spec: ContainerSpec) -> Result<ContainerStatus, EngineError> {
        self.make_container(spec).await
    }

    async fn start_container(&self, id: &str) -> Result<ContainerStatus, EngineError> {
        self.run_container(id).await
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<Exit, EngineError> {
        self.halt_container(id, grace).await
    }

    async fn signal_container(&self, id: &str, signal: i32) -> Result<(), EngineError> {
        let record = self.container_named(id)?.record.borrow().clone();
        if !matches!(record.state, ContainerState::Running { .. }) {
            return Err(EngineError::conflict(format!("container {id} does not run")));
        }
        self.signal(&record.spec, signal).await
    }

    async fn remove_container(&self, id: &str, force: bool) -> Result<(), EngineError> {
        self.delete_container(id, force).await
    }

    async fn container(&self, id: &str) -> Result<ContainerStatus, EngineError> {
        self.container_named(id).map(|container| status(&container))
    }

    async fn containers(&self) -> Result<Vec<ContainerStatus>, EngineError> {
        Ok(self.containers.read().values().map(|container| status(container)).collect())
    }

    async fn wait_container(&self, id: &str) -> Result<Exit, EngineError> {
        ended(&*self.container_named(id)?).await
    }

    async fn exec(&self, id: &str, spec: ExecSpec) -> Result<Process, EngineError> {
        self.run_exec(id, spec).await
    }

    async fn attach(&self, id: &str) -> Result<Process, EngineError> {
        self.connect_streams(id).await
    }

    async fn resize_container(&self, id: &str, size: TerminalSize) -> Result<(), EngineError> {
        let spec = self.container_named(id)?.record.borrow().spec.clone();
        self.link_of(&spec.sandbox_id)?.request(resize(id, size)).await
    }

    async fn connect(&self, sandbox_id: &str, port: u16) -> Result<Box<dyn Connection>, EngineError> {
        let netns = PathBuf::from(self.status_of(&*self.sandbox_named(sandbox_id)?).netns_path);
        let work = move || sys::ns::connect_localhost(&netns, port, CONNECT_MAX);
        let failed = |error: &dyn std::fmt::Display| {
            EngineError::new(
                ErrorKind::Unreachable,
                format!("connecting to port {port} in the sandbox: {error}"),
            )
        };
        let stream = tokio::task::spawn_blocking(work).await.map_err(|error| failed(&error))?;
        let stream = stream.and_then(tokio::net::TcpStream::from_std).map_err(|error| failed(&error))?;
        Ok(Box::new(stream))
    }

    async fn log_path(&self, id: &str) -> Result<PathBuf, EngineError> {
        let container = self.container_named(id)?;
        let spec = container.record.borrow().spec.clone();
        if let Ok(link) = self.link_of(&spec.sandbox_id) {
            // A container that the shim let go of already writes no log; and what was written can be read in any case.
            let asked = link.request(Call::ReopenLog { id: id.to_owned() });
            let _ = tokio::time::timeout(SILENCE_MAX, asked).await;
        }
        Ok(container.log_path.clone())
    }

    async fn stats(&self, id: &str) -> Result<Stats, EngineError> {
        let path = self.container_group(id)?;
        let usage = self.cgroups.group(&path).usage();
        Ok(Stats {
            cpu_usage_ns: usage.cpu_ns,
            memory_usage_bytes: usage.memory_bytes,
            memory_working_set_bytes: usage.memory_working_set_bytes,
            pids: usage.pids,
        })
    }

    async fn update_resources(&self, id: &str, resources: Resources) -> Result<(), EngineError> {
        let container = self.container_named(id)?;
        let _gate = container.gate.lock().await;
        let path = self.container_group(id)?;
        if matches!(container.record.borrow().state, ContainerState::Running { .. }) {
            let applied = self.cgroups.group(&path).apply(&limits_of(&resources));
            let warnings =
                applied.map_err(|error| EngineError::internal("setting the container's limits", &error))?;
            self.warn_of_limits(id, warnings);
        }
        container.record.send_modify(|record| {
            let had = std::mem::take(&mut record.spec.resources);
            record.spec.resources = resources.over(had);
        });
        self.save_container(&container);
        Ok(())
    }

    async fn limit_group(&self, path: &str, resources: Resources) -> Result<(), EngineError> {
        crate::sandboxes::check_below("cgroup", std::path::Path::new(path))?;
        self.lift_limits_in(path).await?;
        let (me, path) = (self.me(), path.to_owned());
        self.blocking("setting the limits of a group", move || match me.upgrade() {
            Some(engine) => engine.set_limits(&path, &resources),
            None => Ok(()),
        })
        .await
    }

    async fn events(&self) -> BoxStream<'static, Result<ContainerEvent, EventsLost>> {
        let events = BroadcastStream::new(self.subscribe());
        events.map(|event| event.map_err(|BroadcastStreamRecvError::Lagged(lost)| EventsLost(lost))).boxed()
    }
}

impl Engine {
    fn container_group(&self, id: &str) -> Result<String, EngineError> {
        let spec = self.container_named(id)?.record.borrow().spec.clone();
        let sandbox = self.sandbox_named(&spec.sandbox_id)?;
        let path = self.group_path(&sandbox.record.lock().spec);
        Ok(format!("{path}/{id}"))
    }

    async fn run_exec(&self, id: &str, exec: ExecSpec) -> Result<Process, EngineError> {
        let container = self.container_named(id)?;
        let record = container.record.borrow().clone();
        if !matches!(record.state, ContainerState::Running { .. }) {
            return Err(EngineError::conflict(format!("container {id} is not running")));
        }
        self.expect_moves_to_limits();
        let exec_id = base::id::hex64();
        let file = self.write_exec(&record.spec, &exec, &exec_id).await?;
        let link = self.link_of(&record.spec.sandbox_id)?;
        let failed = |error: std::io::Error| EngineError::internal("making pipes", &error);
        let pipes = (!exec.terminal).then(|| process::exec_pipes(exec.stdin)).transpose().map_err(failed)?;
        let (pipes, remote) = match pipes {
            Some(Ends { io, resizes, remote }) => (Some((io, resizes)), remote),
            None => (None, Vec::new()),
        };
        let told = link.expect_exec(&exec_id);
        let call = Call::Exec {
            id: id.to_owned(),
            exec_id: exec_id.clone(),
            process: file,
            terminal: exec.terminal,
        };
        let answered = link.call(call, remote).await.and_then(|outcome| outcome.map_err(cannot_exec));
        let (pid, mut fds) = match answered {
            Ok((Answer::Started { pid, .. }, fds)) => (pid, fds),
            other => {
                link.forget_exec(&exec_id);
                let unexpected =
                    EngineError::new(ErrorKind::Internal, "the shim answered an exec with something else");
                return Err(other.err().unwrap_or(unexpected));
            }
        };
        let io = match (pipes, fds.pop()) {
            (Some((io, _)), _) => io,
            (None, Some(master)) => {
                let (ends, terminal) = process::terminal(master, exec.stdin).map_err(failed)?;
                let mut resizes = ends.resizes;
                self.tasks.spawn(async move {
                    while let Some(size) = resizes.recv().await {
                        terminal.resize(size);
                    }
                });
                ends.io
            }
            (None, None) => return Err(EngineError::new(ErrorKind::Internal, "the shim sent no terminal")),
        };
        let (sender, exit) = oneshot::channel();
        self.tasks.spawn(watch_exec(link, exec_id, told, sender));
        Ok(Process { io, exit, pid })
    }

    /// Writes the file that tells the shim what to execute.
    async fn write_exec(
        &self,
        spec: &ContainerSpec,
        exec: &ExecSpec,
        exec_id: &str,
    ) -> Result<PathBuf, EngineError> {
        let bundle = self.layout.bundle(&spec.sandbox_id, &spec.id);
        let (rootfs, exec, spec) = (self.rootfs(spec), exec.clone(), spec.clone());
        let file = bundle.join(format!("exec-{exec_id}.json"));
        let written = file.clone();
        let work = move || -> Result<(), EngineError> {
            let failed = |error: &dyn std::fmt::Display| {
                EngineError::new(ErrorKind::Internal, format!("preparing the exec: {error}"))
            };
            let config = std::fs::read(bundle.join("config.json")).map_err(|error| failed(&error))?;
            let config: serde_json::Value =
                serde_json::from_slice(&config).map_err(|error| failed(&error))?;
            let who = (!exec.user.is_empty()).then(|| user::lookup(&rootfs, &exec.user)).transpose()?;
            let all = exec
                .privileged
                .then(|| crate::capabilities::resolve(&spec.security, true, sys::host::has_capability))
                .transpose()?;
            let mut process = oci::exec_process(&config["process"], &exec, who.as_ref(), all.as_ref())?;
            if !crate::mapping::may_set_groups() {
                oci::leave_groups(&mut process);
            }
            let bytes = serde_json::to_vec(&process).map_err(|error| failed(&error))?;
            sys::files::write_atomic(&written, &bytes).map_err(|error| failed(&error))
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| EngineError::internal("preparing the exec", &error))??;
        Ok(file)
    }

    async fn connect_streams(&self, id: &str) -> Result<Process, EngineError> {
        let container = self.container_named(id)?;
        let record = container.record.borrow().clone();
        let ended_before = matches!(record.state, ContainerState::Exited { .. });
        if ended_before || container.unknown_to_shim.load(Ordering::Relaxed) {
            // For the next run, whose output must not be missed.
            let _gate = container.gate.lock().await;
            self.introduce(&container).await?;
        }
        let link = self.link_of(&record.spec.sandbox_id)?;
        let Ends { io, resizes, remote } = process::attach_pipes(record.spec.stdin, record.spec.terminal)
            .map_err(|error| EngineError::internal("making pipes", &error))?;
        let call = Call::Attach { id: id.to_owned(), stdin: record.spec.stdin };
        link.call(call, remote).await?.map_err(refused)?;
        self.tasks.spawn(forward_resizes(link, id.to_owned(), resizes));
        let (sender, exit) = oneshot::channel();
        let before = record.state.clone();
        self.tasks.spawn(async move {
            if ended_before {
                // The next run may be over before it is looked at: its exit is another one.
                let mut watched = container.record.subscribe();
                let _ = watched.wait_for(|now| now.state != before).await;
            }
            let exit = ended(&container).await;
            let _ = sender.send(exit);
        });
        let pid = match record.state {
            ContainerState::Running { pid, .. } => pid,
            _ => 0,
        };
        Ok(Process { io, exit, pid })
    }
}

/// Tells a client how its process ended; kills the process when the client no longer wants to know.
async fn watch_exec(
    link: Arc<Link>,
    exec_id: String,
    mut told: oneshot::Receiver<shim::ExitRecord>,
    mut client: oneshot::Sender<Result<Exit, EngineError>>,
) {
    let end = tokio::select! {
        end = &mut told => end,
        () = client.closed() => {
            // It may have ended on its own meanwhile.
            let _ = link.request(Call::SignalExec { exec_id, signal: 9 }).await;
            return;
        }
    };
    let lost = |_| {
        EngineError::new(ErrorKind::Internal, "the sandbox's shim ended before the process was seen to end")
    };
    let _ = client.send(end.map(exit_of).map_err(lost));
}

async fn forward_resizes(link: Arc<Link>, id: String, mut sizes: mpsc::Receiver<TerminalSize>) {
    while let Some(size) = sizes.recv().await {
        if link.request(resize(&id, size)).await.is_err() {
            return;
        }
    }
}

fn resize(id: &str, size: TerminalSize) -> Call {
    Call::Resize { id: id.to_owned(), rows: size.height, columns: size.width }
}

/// A process that could not be executed, as Docker and CRI clients expect it to be said.
fn cannot_exec(error: shim::CallError) -> EngineError {
    EngineError::new(ErrorKind::Invalid, format!("OCI runtime exec failed: {}", error.message))
}
