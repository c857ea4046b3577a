//! A testbed's directory, whose lock tells whether its testbed lives. What a killed test left behind is removed by the
//! next one on this machine.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use base::lock::FileLock;
use tempfile::TempDir;

use crate::tools::cgroup_directories;

const PREFIX: &str = "skiff-testbed-";

/// The file in the directory that is locked as long as the testbed lives.
const LOCK: &str = "lock";

/// The directory of a living testbed: one directory per host, by the host's name. Removed when it is dropped.
pub(crate) struct BedDirectory {
    // Fields are dropped in this order: who finds the lock free may remove the rest.
    directory: TempDir,
    _lock: FileLock,
}

impl BedDirectory {
    /// Makes one, after it has removed those whose testbed was killed, with all that their hosts left on this machine.
    pub(crate) fn new() -> Result<Self> {
        let parent = std::env::temp_dir();
        // A directory is made and locked in one step, as others who look for free locks see it.
        let all = File::create(parent.join(format!("{PREFIX}lock"))).context("open the testbeds' lock")?;
        all.lock().context("take the testbeds' lock")?;
        for entry in fs::read_dir(&parent)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                remove_if_dead(&entry.path());
            }
        }
        let directory = TempDir::with_prefix(PREFIX)?;
        let lock = FileLock::take(File::create(directory.path().join(LOCK))?)?;
        all.unlock()?;
        Ok(Self { directory, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Removes a testbed's directory and what its hosts left, if nobody has its lock. Only names found in the directory
/// itself are touched elsewhere.
fn remove_if_dead(directory: &Path) {
    let Ok(lock) = File::open(directory.join(LOCK)) else { return };
    let Ok(_dead) = FileLock::take(lock) else { return };
    for host in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = host.file_name();
        if let Some(name) = name.to_str().filter(|name| *name != LOCK) {
            remove_cgroups(name);
            remove_mount_point(name);
        }
    }
    if let Err(error) = fs::remove_dir_all(directory) {
        eprintln!("testbed: cannot remove {}, which a killed test left: {error}", directory.display());
    }
}

/// Where a host's data directory was mounted: the one thing that a host makes outside its namespaces. Never what is in
/// it.
pub(crate) fn remove_mount_point(host: &str) {
    let _ = fs::remove_dir(Path::new("/var/lib").join(host));
}

/// Removes a host's cgroups from every hierarchy. Processes that are in them still die with their namespace, whose
/// first process was killed: their end is helped and waited for.
pub(crate) fn remove_cgroups(host: &str) {
    for directory in cgroup_directories(host).into_iter().rev() {
        if fs::remove_dir(&directory).is_err() {
            let _ = end_processes(&directory);
            let _ = fs::remove_dir(&directory);
        }
    }
}

fn end_processes(cgroup: &Path) -> io::Result<()> {
    let listed = fs::read_to_string(PathBuf::from(cgroup).join("cgroup.procs"))?;
    for pid in listed.split_ascii_whitespace() {
        Command::new("kill").args(["-9", pid]).stderr(Stdio::null()).status()?;
        Command::new("tail").args(["--pid", pid, "-f", "/dev/null"]).status()?;
    }
    Ok(())
}
