//! The daemon: builds every component from finished settings, wires them, and supervises.

mod agents;
mod connect;
mod control;
mod host;
mod local;
mod narrate;
mod net;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use base::clock::SystemClock;
use base::lifecycle::Supervisor;
use cli::instance::{Running, process_start};
use rustix::fs::{FlockOperation, flock};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::report::{Report, Reporter};
use crate::settings::Settings;

/// Each component has this long to drain.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Runs the daemon until it is told to stop; containers stay.
pub(crate) fn run(settings: Settings, reporter: Reporter) -> Result<()> {
    start_log();
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")
        .and_then(|runtime| runtime.block_on(serve(&settings, reporter)));
    if let Err(error) = &result {
        reporter.send(&Report::Failed(format!("{error:#}")));
    }
    result
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SKIFF_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(cli::output::colours())
        .init();
}

async fn serve(settings: &Settings, reporter: Reporter) -> Result<()> {
    let begun = Instant::now();
    let instance = &settings.instance;
    for directory in [&instance.data_dir, &instance.run_dir] {
        private_directory(directory)?;
    }
    let _lock = lock(&instance.data_dir)?;
    let stop = stop_on_signals()?;
    let clock = Arc::new(SystemClock);
    let mut supervisor = Supervisor::new();
    let host = host::Host::of(settings)?;
    crate::ports::check(&[
        (SocketAddr::new(host.any(), settings.api_port), "--api-port"),
        (SocketAddr::new(host.any(), settings.node_port), "--node-port"),
    ])?;

    let readiness = supervisor.readiness();
    let narrator = narrate::Narrator::start(reporter, readiness.clone());
    narrator.step("setting up the network");
    let net = net::Net::set_up(settings, &host)?;
    narrator.step("opening the store");
    let control = control::build(settings, &host, &net, clock.clone(), &mut supervisor).await?;
    narrator.step("taking containers and images back");
    agents::build(settings, &host, &net, &control, clock, &mut supervisor).await?;
    let kubeconfig = control.kubeconfig()?;
    write_private(&instance.kubeconfig(), &kubeconfig)?;

    narrator.step("");
    let running = running(settings, &host, &control.url)?;
    let announce = async {
        tokio::select! {
            () = readiness.wait_all() => drop(narrator),
            () = stop.cancelled() => return Ok(()),
        }
        if let Some(path) = &settings.kubeconfig {
            crate::kubeconfig::merge(path, &instance.name, &kubeconfig)?;
        }
        let state = serde_json::to_string_pretty(&running)?;
        write_private(&instance.state_file(), &state)?;
        tracing::info!(milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(0), "ready");
        reporter.send(&Report::Ready(Box::new(running)));
        anyhow::Ok(())
    };
    let announce = async {
        let announced = announce.await;
        if announced.is_err() {
            stop.cancel();
        }
        announced
    };
    let (ended, announced) = tokio::join!(supervisor.run(stop.clone(), DRAIN_MAX), announce);
    let _ = fs::remove_file(instance.state_file());
    ended.map_err(|error| anyhow!("{error}"))?;
    announced
}

/// What this instance says of itself.
fn running(settings: &Settings, host: &host::Host, api: &str) -> Result<Running> {
    let pid = std::process::id();
    Ok(Running {
        pid,
        pid_start: process_start(pid).context("read this process's start")?,
        version: env!("CARGO_PKG_VERSION").into(),
        api: api.to_owned(),
        node: settings.node_name.clone(),
        address: host.address.to_string(),
        kubeconfig: settings.instance.kubeconfig(),
        settings: serde_json::to_value(settings.facts())?,
    })
}

fn private_directory(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("create {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("protect {}", path.display()))
}

/// Writes a file that only root may read, whole or not at all.
fn write_private(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, "")
        .and_then(|()| fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600)))?;
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path).with_context(|| format!("write {}", path.display()))
}

/// One daemon per data directory.
fn lock(directory: &Path) -> Result<fs::File> {
    let path = directory.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another daemon uses {}; stop it first, or choose another --data-dir", directory.display());
    }
    Ok(file)
}

/// A token that SIGTERM or SIGINT cancels.
fn stop_on_signals() -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = stop.clone();
    // It lives as long as the process, whose end it brings about.
    #[allow(clippy::disallowed_methods)]
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        token.cancel();
    });
    Ok(stop)
}

/// Takes away what the network of an instance left on the host.
pub(crate) fn purge_network(instance: &cli::instance::Instance) -> Result<()> {
    net::purge(instance)
}
