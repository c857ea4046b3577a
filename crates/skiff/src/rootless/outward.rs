//! The way out of the network namespace: pasta (passt.top) or slirp4netns, programs of the host's distribution which copy
//! packets of a device inside to sockets outside. Where neither is there the namespace has an address and no way out.
//!
//! Neither lets anybody inside reach what listens on the host's loopback only, nor opens ports on the host: the relay does.

use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use ipnet::Ipv4Net;
use sys::net::{Mac, RouteSocket, Routing};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::place::Place;

/// A program has so long until its device is there.
const READY_MAX: Duration = Duration::from_secs(20);
/// One that ended is started again after so long; where that fails, after twice as long each time, up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The address of a namespace without a way out; it is slirp4netns's as well.
const ALONE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
/// The device that has it.
const DEVICE: &str = "alone0";

/// The programs, in the order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Pasta,
    Slirp,
}

impl Program {
    const ALL: [Self; 2] = [Self::Pasta, Self::Slirp];

    fn name(self) -> &'static str {
        match self {
            Self::Pasta => "pasta",
            Self::Slirp => "slirp4netns",
        }
    }

    /// Its arguments: pasta tells that it is ready by writing its number into a file, slirp4netns on a descriptor.
    fn arguments(self, network: &Path, ready: &Path) -> Vec<std::ffi::OsString> {
        let words = |words: &[&str]| words.iter().map(Into::into).collect::<Vec<std::ffi::OsString>>();
        match self {
            Self::Pasta => {
                let mut all = words(&["--foreground", "--quiet", "--config-net", "--no-map-gw"]);
                all.extend(words(&["-t", "none", "-u", "none", "-T", "none", "-U", "none", "--pid"]));
                all.extend([ready.into(), "--netns".into(), network.into()]);
                all
            }
            Self::Slirp => {
                let mut all = words(&["--configure", "--mtu=65520", "--disable-host-loopback"]);
                all.extend(words(&["--ready-fd=1", "--netns-type=path"]));
                all.extend([network.into(), "tap0".into()]);
                all
            }
        }
    }
}

/// What leads out.
pub(super) struct Outward {
    place: Place,
    /// What runs, or ended and is to be started again.
    running: Option<(Program, Child)>,
    /// The next pause.
    pause: Duration,
    /// When it was started last.
    since: Instant,
    /// When one that ended is to be started again.
    due: Option<Instant>,
    /// Why nothing does.
    why: String,
}

/// A program in the search path, or where administrators' programs are.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let directories = std::env::split_paths(&path).chain(more);
    let mut candidates =
        directories.filter(|directory| directory.is_absolute()).map(|directory| directory.join(program));
    candidates.find(|file| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file())
}

impl Outward {
    /// Starts the first program that is there and works.
    pub(super) async fn start(place: &Place) -> Self {
        let mut outward = Self {
            place: place.clone(),
            running: None,
            pause: PAUSE,
            since: Instant::now(),
            due: None,
            why: String::new(),
        };
        for program in Program::ALL {
            let Some(path) = find(program.name()) else { continue };
            match begin(program, &path, place).await {
                Ok(child) => {
                    outward.running = Some((program, child));
                    break;
                }
                Err(error) => outward.why = format!("{}: {error:#}", program.name()),
            }
        }
        outward
    }

    pub(super) fn is_none_running(&self) -> bool {
        self.running.is_none()
    }

    /// What runs, or why nothing does; nothing where no program is installed.
    pub(super) fn state(&self) -> Result<&'static str, String> {
        match &self.running {
            Some((program, _)) => Ok(program.name()),
            None => Err(self.why.clone()),
        }
    }

    /// Waits for the program's end and tries to start it once more; where that failed, waits and tries anew. For ever where
    /// there was none. It may be dropped at any time, and called again.
    pub(super) async fn again(&mut self) {
        let Some((program, child)) = &mut self.running else { return std::future::pending().await };
        let program = *program;
        // Of one that ended before, known at once.
        let ended = child.wait().await;
        let due = *self.due.get_or_insert_with(|| {
            eprintln!("{} ended ({ended:?}) and is started again", program.name());
            Instant::now() + self.pause
        });
        tokio::time::sleep_until(due).await;
        let begun = match find(program.name()) {
            None => Err(anyhow!("it is not there any more")),
            Some(path) => begin(program, &path, &self.place).await,
        };
        self.due = None;
        let steady = begun.is_ok() && self.since.elapsed() >= PAUSE_MAX;
        self.pause = if steady { PAUSE } else { self.pause.saturating_mul(2).min(PAUSE_MAX) };
        self.since = Instant::now();
        match begun {
            Ok(child) => self.running = Some((program, child)),
            Err(error) => eprintln!("{}: {error:#}; nothing leads outside for now", program.name()),
        }
    }

    pub(super) async fn end(&mut self) {
        if let Some((_, child)) = &mut self.running {
            // It may have ended by itself.
            let _ = child.kill().await;
        }
    }
}

/// Starts a program and waits until its device is there.
async fn begin(program: Program, path: &Path, place: &Place) -> Result<Child> {
    let log_path = place.directory().join("outward.log");
    let log = std::fs::File::create(&log_path).context("open its log")?;
    // A FIFO in place of the file tells when it is written.
    let ready_path = place.directory().join("outward.ready");
    let _ = std::fs::remove_file(&ready_path);
    rustix::fs::mkfifoat(rustix::fs::CWD, &ready_path, rustix::fs::Mode::from_raw_mode(0o600))
        .context("make a pipe")?;
    let mut command = Command::new(path);
    command
        .args(program.arguments(&place.network(), &ready_path))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true);
    let told = match program {
        Program::Slirp => {
            let (told, tell) = std::io::pipe()?;
            command.stdout(tell);
            std::os::fd::OwnedFd::from(told)
        }
        Program::Pasta => {
            // For writing too: it has no end then, and opening it waits for nobody.
            let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
            let both =
                std::fs::File::options().read(true).write(true).custom_flags(flags).open(&ready_path)?;
            std::os::fd::OwnedFd::from(both)
        }
    };
    rustix::io::ioctl_fionbio(&told, true)?;
    let mut told = pipe::Receiver::from_owned_fd_unchecked(told)?;
    let mut child = command.spawn().context("start it")?;
    drop(command);
    let mut byte = [0];
    let ready = tokio::select! {
        read = told.read_exact(&mut byte) => read.is_ok(),
        _ = child.wait() => false,
        () = tokio::time::sleep(READY_MAX) => false,
    };
    let _ = std::fs::remove_file(&ready_path);
    if !ready {
        let _ = child.kill().await;
        bail!("it does not work here: {}", super::keeper::tail(&log_path).trim());
    }
    Ok(child)
}

/// Gives a namespace without a way out an address, by which its pods reach the API server. A bridge without ports: any
/// kernel has bridges.
pub(super) fn add_address(network: &Path) -> Result<()> {
    let failed = |error: sys::net::NetError| std::io::Error::other(error.to_string());
    let added = sys::ns::run_in_netns(network, || {
        let routing = RouteSocket::open().map_err(failed)?;
        let found = |routing: &RouteSocket| -> std::io::Result<Option<u32>> {
            let links = routing.links().map_err(failed)?;
            Ok(links.into_iter().find(|link| link.name == DEVICE).map(|link| link.index))
        };
        if found(&routing)?.is_none() {
            let [a, b, c, d] = ALONE.octets();
            routing.add_bridge(DEVICE, Mac([0x02, 0x00, a, b, c, d]), 1500).map_err(failed)?;
        }
        let Some(link) = found(&routing)? else { return Ok(()) };
        routing.set_up(link).map_err(failed)?;
        let net = Ipv4Net::new(ALONE, 24).map_err(std::io::Error::other)?;
        sys::net::or_exists(routing.add_address(link, net)).map_err(failed)
    });
    added.context("add an address")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_to_open_nothing() {
        let words = |program: Program| {
            let words = program.arguments(Path::new("/n"), Path::new("/r"));
            words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        let pasta = words(Program::Pasta);
        assert!(pasta.contains("--no-map-gw -t none -u none -T none -U none"), "{pasta}");
        assert!(pasta.ends_with("--pid /r --netns /n"), "{pasta}");
        assert!(words(Program::Slirp).contains("--disable-host-loopback"));
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-here"), None);
    }

    #[tokio::test]
    async fn one_that_does_not_start_again_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new("true").spawn().unwrap();
        let mut outward = Outward {
            place: Place::at(dir.path()),
            running: Some((Program::Slirp, child)),
            pause: Duration::from_millis(1),
            since: Instant::now(),
            due: None,
            why: String::new(),
        };
        // There is no network to lead out of, or no program that could.
        outward.again().await;
        outward.again().await;
        assert!(!outward.is_none_running());
        assert_eq!(outward.pause, Duration::from_millis(4));
    }

    #[test]
    fn a_namespace_without_a_way_out_has_an_address() {
        let dir = tempfile::tempdir().unwrap();
        let pin = dir.path().join("net");
        let network = super::super::relay::Network::start(&pin, false).unwrap();
        let addresses = || {
            let read = sys::ns::run_in_netns(&pin, || {
                let routing =
                    RouteSocket::open().map_err(|error| std::io::Error::other(error.to_string()))?;
                routing.addresses().map_err(|error| std::io::Error::other(error.to_string()))
            });
            read.unwrap()
        };
        let added = [add_address(&pin), add_address(&pin)];
        let found = addresses();
        sys::mount::unmount(&pin).unwrap();
        drop(network);
        assert!(added.iter().all(Result::is_ok), "{added:?}");
        assert_eq!(found.iter().filter(|(_, net)| net.addr() == ALONE).count(), 1);
    }
}
