//! An engine of a test's own, and its removal however the test ends.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::{Engine, EngineConfig};
use engine_api::{ByteStream, ContainerSpec, ContainerStatus, Exit, Process, Runtime, SandboxSpec};
use futures::StreamExt;
use sys::cgroup::CgroupHost;
use sys::mount::MountTable;

/// Programs of busybox that the tests' image has.
const PROGRAMS: [&str; 28] = [
    "sh", "cat", "echo", "sleep", "true", "false", "id", "ls", "mount", "unshare", "grep", "head", "dd",
    "kill", "ps", "stty", "tty", "hostname", "wc", "nc", "env", "pwd", "touch", "seq", "tail", "yes",
    "nproc", "printenv",
];

/// A place for an engine: temporary directories and a cgroup name.
pub(crate) struct Place {
    dir: tempfile::TempDir,
    pub(crate) cgroup: String,
    image: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = format!("skiff-test-{}", base::id::suffix(10));
        let store = image::Store::open(&dir.path().join("images")).unwrap();
        let image = store.import(busybox_archive().as_slice(), "busybox:test").unwrap().to_string();
        Self { dir, cgroup, image }
    }

    /// The id of the tests' image.
    pub(crate) fn image(&self) -> &str {
        &self.image
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) async fn open(&self) -> Box<Bench> {
        let bench = open_at(self.path(), &self.cgroup, &self.image).await;
        Box::new(bench)
    }

    /// What is left of this place in the kernel and on disk: mounts, cgroups, run-time files.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = MountTable::own()
            .unwrap()
            .below(self.path())
            .iter()
            .map(|path| format!("mount {}", path.display()))
            .collect();
        let host = CgroupHost::detect().unwrap();
        left.extend(host.group(&self.cgroup).processes().unwrap().iter().map(|pid| format!("process {pid}")));
        for root in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let group = root.path().join(&self.cgroup);
            if group.exists() {
                left.push(format!("cgroup {}", group.display()));
            }
        }
        for dir in ["data", "run"] {
            if self.path().join(dir).exists() {
                left.push(format!("directory {dir}"));
            }
        }
        left
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let host = CgroupHost::detect().unwrap();
        let group = host.group(&self.cgroup);
        let _ = group.kill(Duration::from_secs(20));
        let _ = group.remove();
        for target in MountTable::own().unwrap().below(self.path()) {
            let _ = sys::mount::unmount(&target);
        }
    }
}

/// An engine with the tests' image.
pub(crate) struct Bench {
    pub(crate) engine: Arc<Engine>,
    pub(crate) image: String,
}

/// Opens the engine at a place, which may be another process's.
pub(crate) async fn open_at(dir: &Path, cgroup: &str, image: &str) -> Bench {
    let store = image::Store::open(&dir.join("images")).unwrap();
    let config =
        EngineConfig { data_dir: dir.join("data"), run_dir: dir.join("run"), cgroup_root: cgroup.to_owned() };
    Bench { engine: Engine::open(config, store).await.unwrap(), image: image.to_owned() }
}

impl Bench {
    /// A sandbox with its defaults.
    pub(crate) async fn sandbox(&self) -> String {
        self.sandbox_from(SandboxSpec { hostname: "pod".into(), ..SandboxSpec::default() }).await
    }

    pub(crate) async fn sandbox_from(&self, spec: SandboxSpec) -> String {
        let id = base::id::hex64();
        self.engine.create_sandbox(SandboxSpec { id: id.clone(), ..spec }).await.unwrap();
        id
    }

    /// A specification of a shell script.
    pub(crate) fn script(&self, sandbox: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            id: base::id::hex64(),
            sandbox_id: sandbox.to_owned(),
            name: "test".into(),
            image: "busybox:test".into(),
            image_id: self.image.clone(),
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            ..ContainerSpec::default()
        }
    }

    pub(crate) async fn start(&self, spec: ContainerSpec) -> ContainerStatus {
        let id = spec.id.clone();
        self.engine.create_container(spec).await.unwrap();
        self.engine.start_container(&id).await.unwrap()
    }

    /// Runs a container to its end; answers how it ended and what it wrote, both streams as logged.
    pub(crate) async fn run(&self, spec: ContainerSpec) -> (Exit, String) {
        let status = self.start(spec).await;
        let exit = self.engine.wait_container(&status.spec.id).await.unwrap();
        (exit, log_text(&status.log_path))
    }
}

/// The text of a log, without times and tags.
pub(crate) fn log_text(path: &Path) -> String {
    let log = std::fs::read_to_string(path).unwrap();
    let mut text = String::new();
    for line in log.lines() {
        let mut fields = line.splitn(4, ' ');
        let (_, _, tag, rest) =
            (fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap());
        text.push_str(rest);
        if tag == "F" {
            text.push('\n');
        }
    }
    text
}

/// All that a stream gives.
pub(crate) async fn all(stream: Option<ByteStream>) -> String {
    let mut bytes = Vec::new();
    let mut stream = stream.expect("the stream is there");
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk.unwrap());
    }
    String::from_utf8(bytes).unwrap()
}

/// A stream until it has given `needle`; panics at its end.
pub(crate) async fn until(stream: &mut ByteStream, needle: &str) -> String {
    let mut text = String::new();
    while !text.contains(needle) {
        let chunk = stream.next().await.unwrap_or_else(|| panic!("the stream ended after {text:?}")).unwrap();
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
    text
}

/// What a process wrote and how it ended.
pub(crate) async fn outcome(process: Process) -> (Exit, String, String) {
    let (stdout, stderr) = tokio::join!(all(process.io.stdout), all(process.io.stderr));
    (process.exit.await.unwrap().unwrap(), stdout, stderr)
}

fn busybox_archive() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut entry = |path: &str, kind: tar::EntryType, mode: u32, contents: &[u8], link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(contents.len() as u64);
        match link {
            Some(target) => archive.append_link(&mut header, path, target).unwrap(),
            None => archive.append_data(&mut header, path, contents).unwrap(),
        }
    };
    for dir in ["bin", "etc", "tmp", "dev", "proc", "sys"] {
        entry(dir, tar::EntryType::Directory, 0o755, &[], None);
    }
    let busybox = std::fs::read("/bin/busybox").expect("Debian's busybox-static is installed");
    entry("bin/busybox", tar::EntryType::Regular, 0o755, &busybox, None);
    for program in PROGRAMS {
        entry(&format!("bin/{program}"), tar::EntryType::Symlink, 0o777, &[], Some("busybox"));
    }
    let passwd = b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/srv:/bin/sh\n";
    entry("etc/passwd", tar::EntryType::Regular, 0o644, passwd, None);
    entry("etc/group", tar::EntryType::Regular, 0o644, b"root:x:0:\napp:x:1001:\nweb:x:60:app\n", None);
    entry("etc/noexec", tar::EntryType::Regular, 0o644, b"no program", None);
    archive.into_inner().unwrap()
}

/// Where this test's own executable is.
pub(crate) fn own_program() -> PathBuf {
    std::env::current_exe().unwrap()
}
