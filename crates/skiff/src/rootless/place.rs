//! Where a keeper's files are, and who lives in its namespaces.
//!
//! | file | content |
//! |---|---|
//! | `lock` | held by the command that looks for the keeper or starts it |
//! | `keeper.json` | which process it is, its namespaces, what is lost |
//! | `keeper.sock` | where daemons say which ports they want |
//! | `ports.json` | which they wanted last |
//! | `keeper.log` | what it has to tell |
//! | `net` | the pin of the network namespace, for whoever shares its mounts |
//! | `outward.log` | what the program that leads to the outside says |

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cli::instance::{Instance, process_start};
use serde::{Deserialize, Serialize};
use sys::process::Pidfd;

use super::relay::Wish;

/// A keeper's directory, beside the run directory of its instance.
#[derive(Debug, Clone)]
pub(super) struct Place {
    directory: PathBuf,
}

/// What a keeper says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Said {
    pub(super) pid: u32,
    pub(super) pid_start: u64,
    pub(super) namespace: Namespaces,
    /// What the user namespace is known by: see [`mark`].
    pub(super) mark: String,
    pub(super) losses: Vec<String>,
}

/// A limit of the user namespace that nothing here comes near. The number in a link in /proc is another namespace's as soon
/// as its own is gone, perhaps that of another program of the user's; a limit with a random value is not.
const MARK: &str = "max_time_namespaces";

/// Marks this process's user namespace.
pub(super) fn mark() -> Result<String> {
    let mut random = [0; 4];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .context("get a random number")?;
    let value = ((u32::from_ne_bytes(random) >> 1) | (1 << 30)).to_string();
    sys::entrance::set_limit(MARK, &value).context("mark the user namespace")?;
    Ok(value)
}

fn is_marked(process: &Pidfd, mark: &str) -> bool {
    sys::entrance::limit_of(process, MARK).is_ok_and(|value| value == mark)
}

/// The namespaces, as links in /proc name them: `user:[4026532440]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Namespaces {
    pub(super) user: String,
    pub(super) mnt: String,
}

impl Namespaces {
    /// Those of a process, by its name in /proc.
    pub(super) fn of(process: &str) -> Option<Self> {
        let link = |kind: &str| {
            let target = fs::read_link(format!("/proc/{process}/ns/{kind}")).ok()?;
            target.to_str().map(str::to_owned)
        };
        Some(Self { user: link("user")?, mnt: link("mnt")? })
    }
}

impl Keeper {
    /// Everybody else in its user namespace, containers too. The caller is outside of it.
    pub(super) fn inhabitants(&self) -> Vec<Pidfd> {
        members(|seen| seen.user == self.namespace.user, Some(self.pid)).collect()
    }
}

/// A keeper that lives.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) pid: u32,
    pub(super) process: Pidfd,
    pub(super) namespace: Namespaces,
    pub(super) losses: Vec<String>,
}

impl Place {
    pub(super) fn of(instance: &Instance) -> Self {
        let mut directory = instance.run_dir.clone().into_os_string();
        directory.push(".rootless");
        Self { directory: directory.into() }
    }

    pub(super) fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    fn file(&self) -> PathBuf {
        self.directory.join("keeper.json")
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join("keeper.sock")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.directory.join("keeper.log")
    }

    pub(super) fn network(&self) -> PathBuf {
        self.directory.join("net")
    }

    /// Makes the directory, this user's alone, and keeps other commands from doing the same at once.
    pub(super) fn lock(&self) -> Result<File> {
        loop {
            let locked = self.lock_file().with_context(|| {
                format!(
                    "Skiff needs root, or for a user without root a directory of its own at {}: run sudo skiff …, or set \
                     XDG_RUNTIME_DIR, XDG_DATA_HOME and HOME to directories of yours",
                    self.directory.display()
                )
            })?;
            if let Some(file) = locked {
                return Ok(file);
            }
        }
    }

    /// Locks the file; `None` where whoever held it has removed it, with the directory: it keeps nobody away any more.
    fn lock_file(&self) -> std::io::Result<Option<File>> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        match fs::set_permissions(&self.directory, fs::Permissions::from_mode(0o700)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            set => set?,
        }
        let path = self.directory.join("lock");
        let file = match File::options().write(true).create(true).truncate(false).open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        file.lock()?;
        Ok(is_at(&file, &path).then_some(file))
    }

    pub(super) fn say(&self, said: &Said) -> Result<()> {
        let text = serde_json::to_vec(said)?;
        sys::files::write_atomic(&self.file(), &text)
            .with_context(|| format!("write {}", self.file().display()))
    }

    /// Keeps the ports that a daemon wants, for a keeper that follows this one.
    pub(super) fn keep_wish(&self, wish: &str) -> Result<()> {
        sys::files::write_atomic(&self.ports(), wish.as_bytes()).context("keep the list of ports")
    }

    pub(super) fn wish(&self) -> Option<Wish> {
        serde_json::from_slice(&fs::read(self.ports()).ok()?).ok()
    }

    fn ports(&self) -> PathBuf {
        self.directory.join("ports.json")
    }

    pub(super) fn said(&self) -> Option<Said> {
        serde_json::from_slice(&fs::read(self.file()).ok()?).ok()
    }

    /// The keeper, if it lives.
    pub(super) fn keeper(&self) -> Result<Option<Keeper>> {
        let Some(said) = self.said() else { return Ok(None) };
        let Ok(process) = Pidfd::open(said.pid) else { return Ok(None) };
        // Looked at after the handle was opened: what started then is what the handle names.
        if process_start(said.pid) != Some(said.pid_start) {
            return Ok(None);
        }
        Ok(Some(Keeper { pid: said.pid, process, namespace: said.namespace, losses: said.losses }))
    }

    /// Somebody who lives in all of a dead keeper's namespaces: its daemon, or a shim.
    pub(super) fn survivor(&self) -> Option<Pidfd> {
        let said = self.said()?;
        members(|seen| *seen == said.namespace, None).find(|process| is_marked(process, &said.mark))
    }

    /// Everybody left in a dead keeper's user namespace.
    pub(super) fn left(&self, said: &Said) -> Vec<Pidfd> {
        let found: Vec<Pidfd> = members(|seen| seen.user == said.namespace.user, None).collect();
        // All of them are in one namespace, as the kernel numbers them.
        let are_ours = found.iter().any(|process| is_marked(process, &said.mark));
        if are_ours { found } else { Vec::new() }
    }

    /// Removes the directory, when nobody lives in the namespaces any more.
    pub(super) fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.directory) {
            // It was gone; or the next command made its lock there as soon as the one before was removed.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
                Ok(())
            }
            removed => removed.with_context(|| format!("remove {}", self.directory.display())),
        }
    }
}

/// Whether an open file is what is at a path.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |of: fs::Metadata| (of.dev(), of.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(there)) => identity(held) == identity(there),
        _ => false,
    }
}

/// The programs of a keeper that was killed, for the one that follows it: besides keepers nobody of the user namespace stands
/// in the host's network.
pub(super) fn programs_left() -> Vec<Pidfd> {
    let network = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let (Some(own), Some(host)) = (Namespaces::of("self"), network("self")) else { return Vec::new() };
    let others = processes().filter(|pid| *pid != std::process::id());
    let left = others.filter(|pid| network(&pid.to_string()).as_ref() == Some(&host));
    left.filter_map(|pid| open_member(pid, &|seen| seen.user == own.user)).collect()
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
}

fn open_member(pid: u32, is_one: &impl Fn(&Namespaces) -> bool) -> Option<Pidfd> {
    let holds = || Namespaces::of(&pid.to_string()).is_some_and(|seen| is_one(&seen));
    let process = holds().then(|| Pidfd::open(pid).ok()).flatten()?;
    // Again: the number may have become another's before the handle was opened.
    holds().then_some(process)
}

/// Processes by their namespaces, as far as this user may see them: those of its own namespaces it may.
fn members(is_one: impl Fn(&Namespaces) -> bool, but: Option<u32>) -> impl Iterator<Item = Pidfd> {
    let others = processes().filter(move |pid| Some(*pid) != but);
    others.filter_map(move |pid| open_member(pid, &is_one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_is_known_as_long_as_it_lives() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        let place =
            Place::of(&Instance { name: "x".into(), data_dir: "/d".into(), run_dir: run_dir.clone() });
        assert_eq!(place.directory(), dir.path().join("run.rootless"));
        drop(place.lock().unwrap());
        assert!(place.keeper().unwrap().is_none());
        let pid = std::process::id();
        let said = Said {
            pid,
            pid_start: process_start(pid).unwrap(),
            namespace: Namespaces::of("self").unwrap(),
            mark: "1".into(),
            losses: vec!["much".into()],
        };
        place.say(&said).unwrap();
        assert_eq!(place.keeper().unwrap().unwrap().losses, said.losses);
        place.say(&Said { pid_start: said.pid_start + 1, ..said.clone() }).unwrap();
        assert!(place.keeper().unwrap().is_none(), "the number is another's");
        // This process's own namespaces have another mark: their number is no proof.
        assert!(place.survivor().is_none());
        assert!(place.left(&said).is_empty());
        place.remove().unwrap();
        place.remove().unwrap();
    }

    #[test]
    fn a_lock_that_was_removed_keeps_nobody_away() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::at(&dir.path().join("run.rootless"));
        let path = place.directory().join("lock");
        let held = place.lock().unwrap();
        assert!(is_at(&held, &path));
        place.remove().unwrap();
        assert!(!is_at(&held, &path));
        let other = place.lock().unwrap();
        assert!(is_at(&other, &path) && !is_at(&held, &path));
    }
}
