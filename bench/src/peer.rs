//! What other runtimes need for the same processes, where they are installed: bare OCI runtimes, and containerd over runc.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::figures::Samples;

/// The bare runtimes.
const BARE: [&str; 2] = ["runc", "crun"];
/// The container in which commands are executed.
const LONG: &str = "bench-long";
/// How long containerd may take until its socket is there.
const READY_MAX: Duration = Duration::from_secs(20);

/// `runc run` of busybox's `true` from an unpacked directory; `None` where runc is not installed.
pub(crate) fn runc(archive: &Path, count: usize) -> Result<Option<Samples>> {
    if !is_installed("runc") {
        return Ok(None);
    }
    let bundle = Path::new("/run/bench-runc");
    unpack(archive, bundle)?;
    write_config(bundle, |spec| spec["process"]["args"] = json!(["true"]))?;
    let samples =
        Samples::collect(count, || timed(Command::new("runc").args(["run", "bench"]).current_dir(bundle)))?;
    fs::remove_dir_all(bundle)?;
    Ok(Some(samples))
}

/// The runtimes that are installed, with what they start containers from: limits and a filter as Skiff's have, a network
/// namespace that is there.
pub(crate) struct Peers {
    directory: PathBuf,
    runtimes: Vec<Runtime>,
}

enum Runtime {
    Bare(&'static str),
    /// Its daemon, which is this one's own.
    Containerd(Child),
}

impl Peers {
    pub(crate) fn new(archive: &Path) -> Result<Self> {
        let directory = PathBuf::from("/run/bench-peers");
        unpack(archive, &directory)?;
        output(Command::new("ip").args(["netns", "add", "bench-peers"]))?;
        write_config(&directory, limited)?;
        let mut runtimes: Vec<Runtime> =
            BARE.into_iter().filter(|name| is_installed(name)).map(Runtime::Bare).collect();
        if is_installed("containerd") && is_installed("ctr") {
            runtimes.push(Runtime::Containerd(containerd(&directory, archive)?));
        }
        let mut peers = Self { directory, runtimes };
        let able: Vec<bool> = (0..peers.runtimes.len()).map(|peer| peers.is_able(peer)).collect();
        let mut able = able.into_iter();
        peers.runtimes.retain(|_| able.next().unwrap_or(false));
        Ok(peers)
    }

    /// Whether it can start a container on this machine at all: crun, for one, takes no hybrid of cgroups' versions.
    fn is_able(&self, peer: usize) -> bool {
        let started = self.start(peer);
        if let Err(error) = &started {
            crate::progress(&format!("a peer is left out: {error}"));
        }
        started.is_ok()
    }

    /// What they are called.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        self.runtimes.iter().map(|runtime| match runtime {
            Runtime::Bare(name) => (*name).to_owned(),
            Runtime::Containerd(_) => "containerd and runc".to_owned(),
        })
    }

    /// Seconds until a container's program runs; it is removed after that.
    pub(crate) fn start(&self, peer: usize) -> Result<f64> {
        let seconds = timed(&mut self.run(peer, "bench-start"))?;
        self.remove(peer, "bench-start")?;
        Ok(seconds)
    }

    /// Starts a container in which commands are executed, at each.
    pub(crate) fn run_all(&self) -> Result<()> {
        (0..self.runtimes.len()).try_for_each(|peer| timed(&mut self.run(peer, LONG)).map(drop))
    }

    /// Seconds that `true` takes in it.
    pub(crate) fn execute(&self, peer: usize) -> Result<f64> {
        timed(&mut match &self.runtimes[peer] {
            Runtime::Bare(name) => words(name, &["exec", LONG, "true"]),
            Runtime::Containerd(_) => self.ctr(&["task", "exec", "--exec-id", "bench", LONG, "true"]),
        })
    }

    pub(crate) fn end_all(&self) -> Result<()> {
        (0..self.runtimes.len()).try_for_each(|peer| self.remove(peer, LONG))
    }

    /// The command that returns when the program of a new container runs.
    fn run(&self, peer: usize, id: &str) -> Command {
        let bundle = self.directory.to_string_lossy().into_owned();
        match &self.runtimes[peer] {
            Runtime::Bare(name) => words(name, &["run", "--detach", "--bundle", &bundle, id]),
            Runtime::Containerd(_) => self.ctr(&[
                "run",
                "--detach",
                "--seccomp",
                "--memory-limit",
                "134217728",
                "--cpus",
                "1",
                "--with-ns",
                "network:/var/run/netns/bench-peers",
                "docker.io/library/busybox:latest",
                id,
                "sleep",
                "100000",
            ]),
        }
    }

    fn remove(&self, peer: usize, id: &str) -> Result<()> {
        match &self.runtimes[peer] {
            Runtime::Bare(name) => output(&mut words(name, &["delete", "--force", id])).map(drop),
            Runtime::Containerd(_) => {
                output(&mut self.ctr(&["task", "delete", "--force", id]))?;
                output(&mut self.ctr(&["container", "delete", id])).map(drop)
            }
        }
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        ctr(&self.directory, arguments)
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for peer in 0..self.runtimes.len() {
            let _ = self.remove(peer, LONG);
        }
        for runtime in &mut self.runtimes {
            if let Runtime::Containerd(daemon) = runtime {
                let _ = daemon.kill();
                let _ = daemon.wait();
            }
        }
        let _ = output(Command::new("ip").args(["netns", "delete", "bench-peers"]));
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A containerd of our own, with the image.
fn containerd(directory: &Path, archive: &Path) -> Result<Child> {
    let file = directory.join("containerd.toml");
    let place = directory.display();
    let config = format!(
        "version = 2\nroot = \"{place}/root\"\nstate = \"{place}/state\"\ndisabled_plugins = \
         [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{place}/containerd.sock\"\n"
    );
    fs::write(&file, config)?;
    let log = fs::File::create(directory.join("containerd.log"))?;
    let mut daemon = Command::new("containerd");
    let daemon = daemon.arg("--config").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let daemon = daemon.spawn().context("start containerd")?;
    let begun = Instant::now();
    while output(&mut ctr(directory, &["version"])).is_err() {
        ensure!(begun.elapsed() < READY_MAX, "containerd does not answer");
        std::thread::yield_now();
    }
    output(ctr(directory, &["image", "import"]).arg(archive))?;
    let listed = output(&mut ctr(directory, &["image", "list", "--quiet"]))?;
    let listed = String::from_utf8_lossy(&listed).into_owned();
    let name = listed.lines().next().context("containerd has no image")?;
    let wanted = "docker.io/library/busybox:latest";
    if name != wanted {
        output(&mut ctr(directory, &["image", "tag", name, wanted]))?;
    }
    Ok(daemon)
}

fn ctr(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("ctr");
    command.arg("--address").arg(directory.join("containerd.sock")).args(arguments);
    command
}

fn is_installed(program: &str) -> bool {
    let version = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok()
}

fn words(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Unpacks an image of one layer into a bundle.
fn unpack(archive: &Path, bundle: &Path) -> Result<()> {
    fs::create_dir_all(bundle.join("rootfs"))?;
    // The archive holds one layer: the layout of `docker save`.
    let manifest = output(Command::new("tar").args(["-xOf"]).arg(archive).arg("manifest.json"))?;
    let manifest: Value = serde_json::from_slice(&manifest).context("the archive's manifest")?;
    let layer = manifest[0]["Layers"][0].as_str().context("the archive has no layer")?;
    let layer_tar = output(Command::new("tar").args(["-xOf"]).arg(archive).arg(layer))?;
    let file = bundle.join("layer.tar");
    fs::write(&file, layer_tar)?;
    output(Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(bundle.join("rootfs")))?;
    Ok(())
}

/// Writes runc's own document, without a terminal and changed.
fn write_config(bundle: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let program = BARE.into_iter().find(|name| is_installed(name)).context("no OCI runtime is installed")?;
    let config = bundle.join("config.json");
    let _ = fs::remove_file(&config);
    output(Command::new(program).arg("spec").current_dir(bundle))?;
    let mut spec: Value = serde_json::from_slice(&fs::read(&config)?)?;
    spec["process"]["terminal"] = false.into();
    change(&mut spec);
    Ok(fs::write(&config, serde_json::to_vec(&spec)?)?)
}

/// A long container as Skiff's are: limits, a filter that refuses few calls, and the network namespace.
fn limited(spec: &mut Value) {
    spec["process"]["args"] = json!(["sleep", "100000"]);
    spec["linux"]["resources"]["memory"] = json!({"limit": 134_217_728});
    spec["linux"]["resources"]["cpu"] = json!({"quota": 100_000, "period": 100_000, "shares": 102});
    let refused =
        ["bpf", "kexec_load", "open_by_handle_at", "init_module", "reboot", "swapon", "userfaultfd"];
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": refused, "action": "SCMP_ACT_ERRNO"}],
    });
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    for namespace in namespaces.into_iter().flatten().filter(|namespace| namespace["type"] == "network") {
        namespace["path"] = "/var/run/netns/bench-peers".into();
    }
}

/// Seconds that a command takes, which has to succeed. Its output goes nowhere: what it starts may hold it open.
fn timed(command: &mut Command) -> Result<f64> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begun = Instant::now();
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(status.success(), "{command:?}: {status}");
    Ok(seconds)
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout)
}
