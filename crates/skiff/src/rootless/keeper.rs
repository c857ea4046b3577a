//! The keeper: a small process that outlives daemons. It is root of the user namespace and has its mounts, but stands in
//! the host's network, where it listens for connections into the namespace's.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use base::lifecycle::Tasks;
use clap::Args;
use cli::instance::process_start;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

use super::losses::{self, Facts};
use super::outward::Outward;
use super::place::{Namespaces, Place, Said};
use super::relay::{Network, Relay, Wish};

/// The hidden command that runs it.
pub(super) const COMMAND: &str = "rootless-keeper";
/// What it says on standard output when it is ready.
const READY: &str = "ready";
/// The group in which the keeper and daemons are, where groups were given to this user: none is left in the one above,
/// which else could not hand its controllers down. Source: the kernel's `cgroup-v2.rst`, "No Internal Process Constraint".
const GROUP: &str = "/sys/fs/cgroup/keeper.rootless";
const GROUPS: &str = "/sys/fs/cgroup";
/// Whom programs ask for names, and whom systemd-resolved asks, which is where it leaves the former to ask itself.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
/// What is there where systemd runs, and the directory of the users whose processes it leaves when their sessions end.
/// Sources: sd_booted(3), loginctl(1).
const SYSTEMD: &str = "/run/systemd/system";
const LINGERING: &str = "/var/lib/systemd/linger";
/// So much of its log is shown where it does not come up.
const LOG_SHOWN: u64 = 2000;
/// The largest message of a daemon.
const MESSAGE_MAX: u64 = 1 << 20;

/// Arguments of the keeper.
#[derive(Debug, Args)]
pub(crate) struct KeepArgs {
    /// Its directory
    directory: PathBuf,
    /// The namespaces are there; their keeper was killed
    #[arg(long)]
    again: bool,
    /// Which ids the user namespace has
    #[arg(long, default_value = "many")]
    ids: String,
    /// Who the user is, where that is known
    #[arg(long)]
    user: Option<String>,
}

/// Has a command's descriptors be those of a keeper.
pub(super) fn apart(command: &mut Command, place: &Place) -> Result<()> {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(place.log())
        .context("open the keeper's log")?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    Ok(())
}

/// Waits until the keeper is ready, or has said why it will not be.
pub(super) fn await_ready(mut child: Child, place: &Place) -> Result<()> {
    let out = child.stdout.take().context("the keeper has no standard output")?;
    let line = BufReader::new(out).lines().next().transpose().context("listen to the keeper")?;
    if line.as_deref() == Some(READY) {
        return Ok(());
    }
    let status = child.wait().context("wait for the keeper")?;
    bail!("the keeper of the namespaces ended ({status}): {}", tail(&place.log()).trim())
}

/// The end of a log.
pub(super) fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_SHOWN)))?;
        let mut bytes = Vec::new();
        file.take(LOG_SHOWN).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

/// Puts this process, which came into the namespaces later, into the group of the keeper where there is one.
///
/// # Errors
/// If this process comes from a part of the tree that was not given to the user. Nobody moves from there into the groups
/// of containers either: none would start.
pub(super) fn join_group() -> Result<()> {
    let group = Path::new(GROUP);
    if !group.is_dir() {
        return Ok(());
    }
    std::fs::write(group.join("cgroup.procs"), "0").context(
        "this session is outside the cgroups of the instance: start it where it was first started, or run skiff down \
         first",
    )
}

/// Runs the keeper until it is told to end.
pub(crate) fn run(args: &KeepArgs) -> Result<u8> {
    rustix::process::setsid().context("leave the terminal's session")?;
    std::env::set_current_dir("/").context("leave the working directory")?;
    let place = Place::at(&args.directory);
    let before = place.said().filter(|_| args.again);
    if args.again {
        for program in super::place::programs_left() {
            // It may have ended by itself. What it made goes with it, before another makes the same.
            let _ = program.signal(9);
            program.wait(super::END_MAX).context("wait for a program of the keeper before")?;
        }
    } else {
        set_up_mounts()?;
        leave_top();
    }
    let network = Network::start(&place.network(), args.again).context("make the network namespace")?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(serve(args, &place, network, before)).map(|()| 0)
}

/// Others' mounts reach the namespace, its own reach nobody. Cgroups are shown as those of this process's group, which
/// hides the host's: the OCI runtime library looks at what is mounted there.
fn set_up_mounts() -> Result<()> {
    sys::mount::make_slave().context("take the mounts out of the host's")?;
    lead_names_out()?;
    sys::mount::cgroups(Path::new(GROUPS)).with_context(|| format!("mount cgroup2 on {GROUPS}"))
}

/// A resolver on the host's loopback is not on the namespace's: whom it asks is asked in its place.
fn lead_names_out() -> Result<()> {
    if losses::finds_names(&read(RESOLV_CONF)) || !losses::finds_names(&read(RESOLVED)) {
        return Ok(());
    }
    sys::mount::bind(Path::new(RESOLVED), Path::new(RESOLV_CONF))
        .with_context(|| format!("mount {RESOLVED} on {RESOLV_CONF}"))
}

/// A file's text; none where it is missing.
fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Whether the end of a user's last session leaves its processes; so it is taken to be where nobody knows.
fn outlives_sessions(user: Option<&str>) -> bool {
    let is_kept = |user: &str| Path::new(LINGERING).join(user).exists();
    !Path::new(SYSTEMD).exists() || user.is_none_or(is_kept)
}

/// Takes as many descriptors as this user may have; answers how many these are, `None` for any number.
fn raise_descriptors() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if setrlimit(Resource::Nofile, most).is_ok() { limit.maximum } else { limit.current }
}

/// Leaves the top group, with the command that started this, where groups may be made.
fn leave_top() {
    if std::fs::create_dir(GROUP).is_err() {
        return;
    }
    let starter = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
    for process in ["0".to_owned()].into_iter().chain(starter) {
        // One that cannot be moved keeps controllers from being handed down, which is told as a loss.
        let _ = std::fs::write(Path::new(GROUP).join("cgroup.procs"), process);
    }
}

/// Leaves the group and removes it, when nobody else is in it.
fn leave_group() {
    let top = Path::new(GROUPS);
    let handed_down = std::fs::read_to_string(top.join("cgroup.subtree_control")).unwrap_or_default();
    let taken_back: Vec<String> =
        handed_down.split_ascii_whitespace().map(|name| format!("-{name}")).collect();
    // What is refused stays, and goes with the group above it, which is whose gave it.
    let _ = std::fs::write(top.join("cgroup.subtree_control"), taken_back.join(" "));
    let _ = std::fs::write(top.join("cgroup.procs"), "0");
    let _ = std::fs::remove_dir(GROUP);
}

async fn serve(args: &KeepArgs, place: &Place, network: Network, before: Option<Said>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut outward = Outward::start(place).await;
    if outward.is_none_running() {
        super::outward::add_address(&place.network()).context("give the network an address")?;
    }
    let socket = place.socket();
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).with_context(|| format!("listen on {}", socket.display()))?;
    let (mark, losses) = match before {
        Some(said) => (said.mark, said.losses),
        None => {
            let facts = Facts {
                ids: args.ids.clone(),
                outward: outward.state(),
                names: losses::finds_names(&read(RESOLV_CONF)),
                lingers: outlives_sessions(args.user.as_deref()),
                cgroups: sys::cgroup::CgroupHost::detect().context("look for cgroups")?.into(),
            };
            (super::place::mark()?, losses::of(&facts))
        }
    };
    let relay = Arc::new(Relay::new(network, super::relay::room(raise_descriptors())));
    if args.again
        && let Some(wish) = place.wish()
    {
        // What cannot be had any more is told to the daemon, which wishes anew.
        relay.set(wish).await;
    }
    let pid = std::process::id();
    let said = Said {
        pid,
        pid_start: process_start(pid).context("read this process's start")?,
        namespace: Namespaces::of("self").context("read this process's namespaces")?,
        mark,
        losses,
    };
    place.say(&said)?;
    cli::output::write_out(&format!("{READY}\n"))?;
    let tasks = Tasks::default();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (relay, place) = (relay.clone(), place.clone());
                match accepted {
                    Ok((stream, _)) => drop(tasks.spawn(async move {
                        if let Err(error) = answer(stream, &relay, &place).await {
                            eprintln!("a daemon's wish for ports: {error:#}");
                        }
                    })),
                    Err(_) => tokio::time::sleep(super::relay::REFUSED).await,
                }
            }
            () = outward.again() => {}
            _ = terminate.recv() => break,
            // The terminal's end is not the keeper's.
            _ = hang_up.recv() => {}
        }
    }
    outward.end().await;
    tasks.shutdown().await;
    leave_group();
    Ok(())
}

/// A daemon's connection: each line is a wish, each answer what of it is refused.
async fn answer(stream: UnixStream, relay: &Relay, place: &Place) -> Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = tokio::io::BufReader::new(read);
    loop {
        let mut line = String::new();
        if (&mut lines).take(MESSAGE_MAX).read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let wish: Wish = serde_json::from_str(&line)?;
        if !wish.others_stay {
            place.keep_wish(&line)?;
        }
        let mut refused = serde_json::to_vec(&relay.set(wish).await)?;
        refused.push(b'\n');
        write.write_all(&refused).await?;
    }
}
