//! The daemon: builds every component from finished settings, wires them, and supervises.

mod access;
mod address;
mod agents;
mod calls;
pub(crate) mod certificates;
mod cluster;
mod connect;
mod control;
mod host;
mod local;
pub(crate) mod lock;
mod member;
mod member_access;
mod members;
mod narrate;
mod net;
mod runtime_socket;
mod served;
mod shared;
mod storage;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use base::clock::{SharedClock, SystemClock};
use base::lifecycle::Supervisor;
use cli::instance::{Running, process_start};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::access::Access;
use self::address::{Follower, HostAddress};
use self::control::Control;
use self::member_access::MemberAccess;
use self::members::Members;
use self::narrate::Narrator;
use crate::membership::Membership;
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
        .and_then(|runtime| {
            let served = runtime.block_on(serve(&settings, reporter));
            // Threads that wait for a file system that does not answer would be waited for for ever.
            runtime.shutdown_timeout(DRAIN_MAX);
            served
        });
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
    crate::home::take_data(settings)?;
    let _lock = match lock::take(&instance.data_dir)? {
        lock::State::Taken(lock) => lock,
        lock::State::Held { pid } => bail!(
            "another daemon (process {pid}) uses {}; stop it first, or choose another --data-dir",
            instance.data_dir.display()
        ),
    };
    crate::home::take_run(settings)?;
    let stop = stop_on_signals()?;
    let clock: SharedClock = Arc::new(SystemClock);
    let mut supervisor = Supervisor::new();
    let readiness = supervisor.readiness();
    let narrator = narrate::Narrator::start(reporter, readiness.clone());
    let announcement = match Membership::load(instance)? {
        Some(membership) => {
            match member::build(settings, membership, clock, &narrator, &stop, &mut supervisor).await? {
                Some(access) => Announcement::Member(access),
                None => return Ok(()),
            }
        }
        None => Announcement::Server(build_server(settings, clock, &narrator, &mut supervisor).await?),
    };
    narrator.step("");
    let announce = async {
        tokio::select! {
            () = readiness.wait_all() => drop(narrator),
            () = stop.cancelled() => return Ok(()),
        }
        let running = announcement.announce()?;
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

/// What the daemon tells the world once everything is ready.
enum Announcement {
    /// A cluster of its own: access to it.
    Server(Arc<Access>),
    /// A node of a cluster elsewhere: its way there.
    Member(Arc<MemberAccess>),
}

impl Announcement {
    fn announce(self) -> Result<Running> {
        match self {
            Self::Server(access) => access.announce(),
            Self::Member(access) => access.announce(),
        }
    }
}

/// Builds a cluster of one: control plane and node.
async fn build_server(
    settings: &Settings,
    clock: SharedClock,
    narrator: &Narrator,
    supervisor: &mut Supervisor,
) -> Result<Arc<Access>> {
    let host = host::Host::of(settings)?;
    crate::rootless::ports::claim_api(settings.api_port)?;
    crate::ports::check(&[
        (SocketAddr::new(host.any(), settings.api_port), "--api-port"),
        (SocketAddr::new(host.any(), settings.node_port), "--node-port"),
    ])?;
    narrator.step("opening the store");
    let store = storage::open(settings).await?;
    narrator.step("setting up the network");
    let net = match &settings.etcd {
        None => net::Net::set_up(settings, &host)?,
        Some(_) => {
            shared::expect_keys(&store, &settings.instance.data_dir.join("pki")).await?;
            let ranges = shared::ranges(&store, || net::Net::choose(settings)).await?;
            let node_pods = shared::node_pods(&store, &ranges, &settings.node_name).await?;
            net::Net::shared(settings, &host, ranges, node_pods)?
        }
    };
    let control = control::build(settings, &host, (&net, store), clock.clone(), supervisor).await?;
    let pki = control.server.pki().clone();
    let access = Access::new(settings, pki.clone(), clock.clone(), control.port, host.address)?;
    let access = Arc::new(access);
    supervisor.add(access.clone());
    let addresses = follow_address(settings, &host, &net, &control, &access, supervisor);
    // One of several servers has no say over where the API is for all.
    if settings.etcd.is_none() {
        let at = (addresses.clone(), control.port);
        let connector = control.connector.clone();
        let told = Members::new(&control.informers, connector, &settings.node_name, at, clock.clone());
        supervisor.add(Arc::new(told));
    }
    let reach = agents::Reach { addresses, serving: access.serving(), api_server: None };
    let user = format!("system:node:{}", settings.node_name);
    let cluster = agents::Cluster {
        client: local::client(&control.pipeline, &control.calls, &user, &["system:nodes"]),
        informers: control.informers.clone(),
        ca_pem: pki.ca_pem(),
        is_ours: true,
    };
    narrator.step("taking containers and images back");
    let server = agents::build(settings, &host, &net, cluster, reach, clock, supervisor).await?;
    control.connector.set_local(&settings.node_name, server);
    Ok(access)
}

/// The host's address, followed while the daemon runs unless the settings name one.
fn follow_address(
    settings: &Settings,
    host: &host::Host,
    net: &net::Net,
    control: &Control,
    access: &Arc<Access>,
    supervisor: &mut Supervisor,
) -> watch::Receiver<Vec<IpAddr>> {
    if settings.address.is_some() {
        return watch::Sender::new(vec![host.address]).subscribe();
    }
    let followers: Vec<Arc<dyn Follower>> = vec![control.server.clone(), access.clone()];
    let address = HostAddress::new(
        &settings.instance.name,
        net.handles.routing.clone(),
        (followers, &["apiserver", "access"]),
        host.address,
    );
    let addresses = address.watch();
    supervisor.add(Arc::new(address));
    addresses
}

/// What this instance says of itself.
fn running(settings: &Settings, address: IpAddr, api: &str) -> Result<Running> {
    let pid = std::process::id();
    Ok(Running {
        pid,
        pid_start: process_start(pid).context("read this process's start")?,
        version: env!("CARGO_PKG_VERSION").into(),
        api: api.to_owned(),
        node: settings.node_name.clone(),
        address: address.to_string(),
        kubeconfig: settings.instance.kubeconfig(),
        settings: serde_json::to_value(settings.noted())?,
    })
}

/// Writes a file that only root may read, whole or not at all.
fn write_private(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, "")
        .and_then(|()| fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600)))?;
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path).with_context(|| format!("write {}", path.display()))
}

/// A token that SIGTERM or SIGINT cancels.
fn stop_on_signals() -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = stop.clone();
    #[allow(
        clippy::disallowed_methods,
        reason = "it lives as long as the process, whose end it brings about"
    )]
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        token.cancel();
    });
    Ok(stop)
}

/// Takes away what the network of an instance left on the host, and its files.
pub(crate) fn purge_network(instance: &cli::instance::Instance) -> Result<()> {
    net::take_away(instance, network::host::purge)
}

/// Takes away what the network of an instance has on the host; its ranges are kept for the next start.
pub(crate) fn stop_network(instance: &cli::instance::Instance) -> Result<()> {
    net::take_away(instance, network::host::take_down)
}
