//! An engine of a test's own, and its removal however the test ends.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::{Engine, EngineConfig, ImageService};
use engine_api::contract::{self, Subject};
use sys::cgroup::CgroupHost;
use sys::mount::MountTable;
use sys::process::Pidfd;

/// The handler of Debian's `runc`.
pub(crate) const RUNC: &str = "runc";

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
        let image = store.import(contract::busybox().as_slice(), "busybox:test").unwrap().to_string();
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

    /// What is left of this place in the kernel and on disk: processes, mounts, cgroups, run-time files.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = MountTable::own()
            .unwrap()
            .below(self.path())
            .iter()
            .map(|path| format!("mount {}", path.display()))
            .collect();
        let host = CgroupHost::detect().unwrap();
        left.extend(host.group(&self.cgroup).processes().unwrap().iter().map(|pid| format!("process {pid}")));
        left.extend(self.own_processes().into_iter().filter_map(|(pid, command)| {
            let Ok(pidfd) = Pidfd::open(pid) else { return None };
            // What the kernel kills with its parent may take a moment.
            let ends = pidfd.wait(Duration::from_secs(120)).unwrap();
            (!ends).then(|| format!("process {pid}: {command}"))
        }));
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

    /// Shims and their inits: the processes whose command line names this place.
    pub(crate) fn own_processes(&self) -> Vec<(u32, String)> {
        let own = self.path().to_string_lossy().into_owned();
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let commands = pids.filter_map(|pid| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            Some((pid, String::from_utf8_lossy(&command).replace('\0', " ")))
        });
        commands.filter(|(_, command)| command.contains(&own)).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let host = CgroupHost::detect().unwrap();
        let group = host.group(&self.cgroup);
        let _ = group.kill(contract::PATIENCE);
        let _ = group.remove();
        for target in MountTable::own().unwrap().below(self.path()) {
            let _ = sys::mount::unmount(&target);
        }
    }
}

/// An engine with the tests' image.
pub(crate) struct Bench {
    pub(crate) engine: Arc<Engine>,
    store: image::Store,
    image: String,
}

/// Opens the engine at a place, which may be another process's.
pub(crate) async fn open_at(dir: &Path, cgroup: &str, image: &str) -> Bench {
    let store = image::Store::open(&dir.join("images")).unwrap();
    let config = EngineConfig {
        data_dir: dir.join("data"),
        run_dir: dir.join("run"),
        cgroup_root: cgroup.to_owned(),
        runtimes: [(RUNC.to_owned(), PathBuf::from("/usr/sbin/runc"))].into(),
        cdi_directories: vec![dir.join("cdi")],
    };
    Bench { engine: Engine::open(config, store.clone()).await.unwrap(), store, image: image.to_owned() }
}

impl Bench {
    /// As the contract's cases see it.
    pub(crate) fn subject(&self) -> Subject {
        let images = Arc::new(ImageService::new(self.store.clone()));
        Subject { runtime: self.engine.clone(), images, image: self.image.clone(), handler: String::new() }
    }
}

/// Runs a case of the contract on an engine of its own, of which nothing is left afterwards.
pub(crate) async fn with<F: Future<Output = ()>>(case: impl FnOnce(Subject) -> F) {
    let place = Place::new();
    let bench = place.open().await;
    case(bench.subject()).await;
    bench.engine.purge().await.unwrap();
    drop(bench);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

/// As [`with`], on another OCI runtime.
pub(crate) async fn with_runc<F: Future<Output = ()>>(case: impl FnOnce(Subject) -> F) {
    with(|subject| case(Subject { handler: RUNC.to_owned(), ..subject })).await;
}

/// Where this test's own executable is.
pub(crate) fn own_program() -> PathBuf {
    std::env::current_exe().unwrap()
}
