//! An instance of Skiff on this machine: its name, and every path and name that derives from it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::claim::Claim;

/// The name of the instance that is meant when none is given.
pub const DEFAULT_NAME: &str = "skiff";

/// Which instance a command speaks to.
#[derive(Debug, Clone, Args)]
pub struct InstanceArgs {
    /// Name of the instance; cgroups, bridge, nftables table, sockets and ports derive from it
    #[arg(long, global = true, default_value = DEFAULT_NAME, env = "SKIFF_NAME", help_heading = "Instance")]
    pub name: String,
    /// Where data is kept [default: /var/lib/NAME; without root ~/.local/share/NAME]
    #[arg(long, global = true, env = "SKIFF_DATA_DIR", value_name = "DIR", help_heading = "Instance")]
    pub data_dir: Option<PathBuf>,
    /// Where sockets and run-time state live [default: /run/NAME; without root $XDG_RUNTIME_DIR/NAME]
    #[arg(long, global = true, env = "SKIFF_RUN_DIR", value_name = "DIR", help_heading = "Instance")]
    pub run_dir: Option<PathBuf>,
}

/// An instance with its paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its name: 1 to 10 characters, `a-z`, `0-9` and `-`, so that interface names (15 characters) can carry it.
    pub name: String,
    /// Data that survives a reboot.
    pub data_dir: PathBuf,
    /// Sockets and state of the running system.
    pub run_dir: PathBuf,
}

impl InstanceArgs {
    /// Checks the name and finds the instance as it was started: a directory that is not given is the one that the
    /// instance itself names in the other, and the default where it names none.
    pub fn resolve_started(&self) -> Result<Instance> {
        let mut instance = self.resolve()?;
        if self.data_dir.is_none()
            && let Some(claim) = Claim::seen(&instance.run_dir, &instance.name)
        {
            instance.data_dir = claim.data_dir;
        }
        if self.run_dir.is_none()
            && let Some(claim) = Claim::seen(&instance.data_dir, &instance.name)
        {
            instance.run_dir = claim.run_dir;
        }
        Ok(instance)
    }

    /// Checks the name and fills in the default paths.
    pub fn resolve(&self) -> Result<Instance> {
        let fits = (1..=10).contains(&self.name.len())
            && self
                .name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && self.name.starts_with(|first: char| first.is_ascii_lowercase());
        if !fits {
            bail!(
                "instance name {:?} does not fit: use 1 to 10 characters of a-z, 0-9 and '-', beginning with a letter",
                self.name
            );
        }
        let bases = match rustix::process::geteuid().is_root() {
            true => Bases { data: "/var/lib".into(), run: "/run".into() },
            false => Bases::of_user(|name| std::env::var_os(name).map(PathBuf::from)),
        };
        let or_default = |given: &Option<PathBuf>, base: &Path| -> Result<PathBuf> {
            match given {
                Some(path) => std::path::absolute(path).with_context(|| format!("path {}", path.display())),
                None => Ok(base.join(&self.name)),
            }
        };
        Ok(Instance {
            name: self.name.clone(),
            data_dir: or_default(&self.data_dir, &bases.data)?,
            run_dir: or_default(&self.run_dir, &bases.run)?,
        })
    }
}

/// Where instances are, each in a directory of its name.
#[derive(Debug, PartialEq, Eq)]
struct Bases {
    data: PathBuf,
    run: PathBuf,
}

impl Bases {
    /// Those of a user without root. Source: XDG Base Directory Specification 0.8, by which what is not absolute does not
    /// count. Where the session has no run-time directory, that is beside the data.
    fn of_user(var: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let absolute = |name: &str| var(name).filter(|path| path.is_absolute());
        let home = absolute("HOME").unwrap_or_else(|| PathBuf::from("/"));
        let data = absolute("XDG_DATA_HOME").unwrap_or_else(|| home.join(".local/share"));
        let run = absolute("XDG_RUNTIME_DIR").unwrap_or_else(|| home.join(".local/run"));
        Self { data, run }
    }
}

/// What the running instance says of itself in `<run_dir>/instance.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    /// The daemon's process.
    pub pid: u32,
    /// Ticks since boot when that process started: tells it from a later one with the same pid.
    pub pid_start: u64,
    /// Version of the binary.
    pub version: String,
    /// `https://host:port` of the API server.
    pub api: String,
    /// The node's name.
    pub node: String,
    /// The node's address.
    pub address: String,
    /// Kubeconfig of the administrator.
    pub kubeconfig: PathBuf,
    /// The settings it was started with, for comparison.
    pub settings: serde_json::Value,
}

impl Instance {
    /// The Docker Engine API's socket.
    pub fn docker_socket(&self) -> PathBuf {
        self.run_dir.join("docker.sock")
    }

    /// The Container Runtime Interface's socket.
    pub fn runtime_socket(&self) -> PathBuf {
        self.run_dir.join("cri.sock")
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir.join("kubeconfig")
    }

    /// Where the running instance describes itself.
    pub fn state_file(&self) -> PathBuf {
        self.run_dir.join("instance.json")
    }

    /// The daemon's log.
    pub fn log_file(&self) -> PathBuf {
        self.data_dir.join("skiff.log")
    }

    /// What the running instance says of itself; `None` where none runs.
    pub fn running(&self) -> Option<Running> {
        self.last().filter(|running| process_start(running.pid) == Some(running.pid_start))
    }

    /// What the instance said of itself when it last ran; `None` where it never did or ended in order.
    pub fn last(&self) -> Option<Running> {
        serde_json::from_slice(&std::fs::read(self.state_file()).ok()?).ok()
    }

    /// Whether this user may not see if it runs.
    pub fn hidden(&self) -> bool {
        let seen = std::fs::metadata(self.state_file());
        seen.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    }

    /// The running instance, or an error with the remedy.
    pub fn expect_running(&self) -> Result<Running> {
        if self.hidden() {
            bail!("{} may be read by root only; use sudo", self.run_dir.display());
        }
        self.running().with_context(|| {
            format!("no instance {:?} is running here; start it with: {}", self.name, self.command("up"))
        })
    }

    /// The command line of a verb for this instance.
    pub fn command(&self, verb: &str) -> String {
        if self.name == DEFAULT_NAME {
            format!("skiff {verb}")
        } else {
            format!("skiff {verb} --name {}", self.name)
        }
    }
}

/// When a process started, in clock ticks since boot (`/proc/PID/stat`, field 22); `None` if there is none.
pub fn process_start(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name is in parentheses and may contain anything: fields are counted after the last one.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Result<Instance> {
        InstanceArgs { name: name.into(), data_dir: None, run_dir: None }.resolve()
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        for name in ["", "Upper", "a-name-too-long", "9lives", "dot.ted"] {
            assert!(named(name).is_err(), "{name}");
        }
        assert_eq!(named("skiff").unwrap().docker_socket(), Path::new("/run/skiff/docker.sock"));
    }

    #[test]
    fn users_have_directories_of_their_own() {
        let with = |set: &[(&str, &str)]| {
            let find = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, path)| path.into());
            let Bases { data, run } = Bases::of_user(find);
            (data.display().to_string(), run.display().to_string())
        };
        let home = ("HOME", "/home/ana");
        assert_eq!(with(&[home]), ("/home/ana/.local/share".into(), "/home/ana/.local/run".into()));
        let all = [home, ("XDG_DATA_HOME", "/d"), ("XDG_RUNTIME_DIR", "/run/user/7")];
        assert_eq!(with(&all), ("/d".into(), "/run/user/7".into()));
        assert_eq!(with(&[home, ("XDG_DATA_HOME", "relative")]).0, "/home/ana/.local/share");
    }

    #[test]
    fn this_process_has_a_start() {
        assert!(process_start(std::process::id()).is_some());
        assert!(process_start(u32::MAX).is_none());
    }
}
