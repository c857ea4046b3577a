//! `skiff down`: stops the daemon, ends every container within its grace, and on request removes everything.
//!
//! The daemon's own end leaves containers alone. So this command ends it first and then does the rest itself over the
//! same engine, which takes the sandboxes back from their shims: it works as well where the daemon was killed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use cli::instance::Instance;
use engine::{Engine, EngineConfig};
use engine_api::{ContainerState, EngineError, Runtime, SandboxStatus};
use futures::future::join_all;

use crate::daemon::lock::{self, Lock};
use crate::home::{self, Traces};
use crate::rundir;

/// A container that is no pod's has this long between its stop signal and its end.
const GRACE: Duration = Duration::from_secs(10);
/// A daemon that was asked to end has this many seconds; it drains each component for 5 s at most.
const DAEMON_END_MAX_S: i64 = 60;
/// SIGTERM and SIGKILL.
const TERMINATE: i32 = 15;
const KILL: i32 = 9;

/// Arguments of `skiff down`.
#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// Remove data, network and every other trace as well
    #[arg(long)]
    pub(crate) purge: bool,
}

/// Runs `down`.
pub(crate) fn run(args: &DownArgs, instance: &Instance) -> Result<u8> {
    if !rustix::process::geteuid().is_root() {
        bail!("skiff down needs root. Run: sudo {}", instance.command("down"));
    }
    let Some(traces) = home::traces(instance)? else {
        cli::output::write_out(&format!("no instance {:?} was ever started here\n", instance.name))?;
        return Ok(0);
    };
    let lock = take_over(instance, &traces)?;
    if instance.data_dir.join("engine").exists() {
        tokio::runtime::Runtime::new()
            .context("start the runtime")?
            .block_on(end_containers(instance, args.purge))?;
    }
    if args.purge {
        crate::daemon::purge_network(instance)?;
    } else {
        crate::daemon::stop_network(instance)?;
    }
    // Nothing runs any more, so nothing in it means anything, as after a reboot; but that it says where the data is.
    if traces.run.is_some() {
        let remove = if args.purge { rundir::remove } else { rundir::clear };
        remove(&instance.run_dir)?;
    }
    if args.purge
        && let Some(data) = &traces.data
    {
        for kubeconfig in &data.kubeconfigs {
            crate::kubeconfig::remove(kubeconfig, &instance.name)?;
        }
        let hidden = node::hide_root(&instance.data_dir.join("node"), Path::new(node::KNOWN_AS));
        hidden.with_context(|| format!("unmount {}", node::KNOWN_AS))?;
        // Last, because the directory says where the rest is.
        rundir::empty(&instance.data_dir)?;
    }
    drop(lock);
    cli::output::write_out(&format!("instance {:?} is down\n", instance.name))?;
    Ok(0)
}

/// Ends the daemon, whatever it is at, and takes its place, so that none starts meanwhile. `None` where its data is
/// gone, and the lock with it.
fn take_over(instance: &Instance, traces: &Traces) -> Result<Option<Lock>> {
    if traces.data.is_none() {
        if let Some(running) = instance.running() {
            cli::output::progress("stopping the daemon");
            end_process(running.pid)?;
        }
        return Ok(None);
    }
    if let lock::State::Held { pid } = lock::take(&instance.data_dir)? {
        cli::output::progress("stopping the daemon");
        end_process(pid)?;
    }
    match lock::take(&instance.data_dir)? {
        lock::State::Taken(lock) => Ok(Some(lock)),
        lock::State::Held { pid } => bail!("another daemon (process {pid}) has started meanwhile; try again"),
    }
}

/// Asks a process to end and returns when it has. One that does not is killed: what it acknowledged is on disk.
fn end_process(pid: u32) -> Result<()> {
    sys::process::signal(pid, TERMINATE).context("signal the daemon")?;
    if lock::ended_within(pid, DAEMON_END_MAX_S)? {
        return Ok(());
    }
    sys::process::signal(pid, KILL).context("kill the daemon")?;
    if lock::ended_within(pid, DAEMON_END_MAX_S)? {
        return Ok(());
    }
    bail!("the daemon (process {pid}) does not end, also not when it is killed")
}

/// Ends every container and sandbox; with `purge` also the engine's own cgroups and files go.
async fn end_containers(instance: &Instance, purge: bool) -> Result<()> {
    let store = image::Store::open(&instance.data_dir.join("images")).context("open the image store")?;
    let config = EngineConfig {
        data_dir: instance.data_dir.join("engine"),
        run_dir: instance.run_dir.join("engine"),
        cgroup_root: instance.name.clone(),
        // Nothing is started any more.
        runtimes: std::collections::BTreeMap::new(),
        cdi_directories: Vec::new(),
    };
    let engine = Engine::open(config, store).await.context("open the engine")?;
    let containers = engine.containers().await?;
    let running: Vec<_> = containers
        .iter()
        .filter(|container| matches!(container.state, ContainerState::Running { .. }))
        .collect();
    if !running.is_empty() {
        cli::output::progress(&format!("ending {} containers", running.len()));
    }
    let sandboxes = engine.sandboxes().await?;
    let stops = running.iter().map(|container| {
        let grace = grace_of(&sandboxes, &container.spec.sandbox_id);
        node::end_container(&*engine, &base::clock::SystemClock, container, grace)
    });
    first_error(join_all(stops).await.into_iter().map(|result| result.map(drop)))?;
    let removals = sandboxes.iter().map(|sandbox| engine.remove_sandbox(&sandbox.spec.id));
    first_error(join_all(removals).await)?;
    if purge { engine.purge().await.context("remove the engine's cgroups and files") } else { Ok(()) }
}

fn first_error(results: impl IntoIterator<Item = Result<(), EngineError>>) -> Result<()> {
    results.into_iter().collect::<Result<(), _>>().context("end the containers")
}

/// The grace of a container: its pod's, where it belongs to one.
fn grace_of(sandboxes: &[SandboxStatus], sandbox: &str) -> Duration {
    let sandbox = sandboxes.iter().find(|known| known.spec.id == sandbox);
    sandbox.and_then(|sandbox| node::termination_grace(&sandbox.spec)).unwrap_or(GRACE)
}
