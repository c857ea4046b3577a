//! `skiff down`: stops the daemon, ends every container within its grace, and on request removes everything.
//!
//! The daemon's own end leaves containers alone. So this command ends it first and then does the rest itself over the
//! same engine, which takes the sandboxes back from their shims: it works as well where the daemon was killed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use cli::instance::Instance;
use engine::{Engine, EngineConfig};
use engine_api::{ContainerState, EngineError, Runtime};
use futures::future::join_all;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A container has this long between its stop signal and its end.
const GRACE: Duration = Duration::from_secs(10);

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
    let kubeconfig =
        instance.running().and_then(|running| Some(running.settings["--kubeconfig"].as_str()?.to_owned()));
    if let Some(running) = instance.running() {
        cli::output::progress("stopping the daemon");
        end_process(running.pid)?;
    }
    if instance.data_dir.join("engine").exists() {
        tokio::runtime::Runtime::new()
            .context("start the runtime")?
            .block_on(end_containers(instance, args.purge))?;
    }
    if args.purge {
        purge(instance, kubeconfig.as_deref().map(Path::new))?;
    }
    cli::output::write_out(&format!("instance {:?} is down\n", instance.name))?;
    Ok(0)
}

/// Asks a process to end and returns when it has.
fn end_process(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("the daemon's process id")?;
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error).context("open the daemon's process"),
    };
    pidfd_send_signal(&handle, Signal::TERM).context("signal the daemon")?;
    let mut ended = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut ended, None).context("wait for the daemon")?;
    Ok(())
}

/// Ends every container and sandbox; with `purge` also the engine's own cgroups and files go.
async fn end_containers(instance: &Instance, purge: bool) -> Result<()> {
    let store = image::Store::open(&instance.data_dir.join("images")).context("open the image store")?;
    let config = EngineConfig {
        data_dir: instance.data_dir.join("engine"),
        run_dir: instance.run_dir.join("engine"),
        cgroup_root: instance.name.clone(),
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
    let stops = running.iter().map(|container| engine.stop_container(&container.spec.id, GRACE));
    first_error(join_all(stops).await.into_iter().map(|result| result.map(drop)))?;
    let sandboxes = engine.sandboxes().await?;
    let removals = sandboxes.iter().map(|sandbox| engine.remove_sandbox(&sandbox.spec.id));
    first_error(join_all(removals).await)?;
    if purge { engine.purge().await.context("remove the engine's cgroups and files") } else { Ok(()) }
}

fn first_error(results: impl IntoIterator<Item = Result<(), EngineError>>) -> Result<()> {
    results.into_iter().collect::<Result<(), _>>().context("end the containers")
}

/// Removes the network, the directories and the kubeconfig's entry.
fn purge(instance: &Instance, kubeconfig: Option<&Path>) -> Result<()> {
    crate::daemon::purge_network(instance)?;
    for directory in [&instance.run_dir, &instance.data_dir] {
        empty(directory)?;
    }
    match kubeconfig {
        Some(path) if !path.as_os_str().is_empty() => crate::kubeconfig::remove(path, &instance.name),
        _ => Ok(()),
    }
}

/// Removes a directory; one that is a mount point of its own is emptied.
fn empty(directory: &Path) -> Result<()> {
    let failed = || format!("remove {}", directory.display());
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => Ok(()),
        other => other.with_context(failed),
    }
}
