//! What there is of cgroups on this machine, and a manager of groups that are somebody else's.

use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;
use rustix::fs::statfs;
use serde::Serialize;

/// Where cgroups are mounted.
pub const DEFAULT_CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// The kinds of file systems that tell the setups apart: linux/magic.h.
const TMPFS_MAGIC: u64 = 0x0102_1994;
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// Which versions of cgroups are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupSetup {
    /// Version 1, with version 2's hierarchy beside.
    Hybrid,
    /// Version 1.
    Legacy,
    /// Version 2.
    Unified,
}

/// The setup cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum GetCgroupSetupError {
    /// Cgroups are not where they are looked for.
    #[error("looking at {DEFAULT_CGROUP_ROOT}: {0}")]
    Io(#[from] io::Error),
    /// Something else is mounted there.
    #[error("no cgroups are mounted on {DEFAULT_CGROUP_ROOT}")]
    FailedToDetect,
}

/// The setup of this machine.
pub fn get_cgroup_setup() -> Result<CgroupSetup, GetCgroupSetupError> {
    let root = Path::new(DEFAULT_CGROUP_ROOT);
    match kind_of(root)? {
        CGROUP2_SUPER_MAGIC => Ok(CgroupSetup::Unified),
        TMPFS_MAGIC if kind_of(&root.join("unified")).is_ok_and(|kind| kind == CGROUP2_SUPER_MAGIC) => {
            Ok(CgroupSetup::Hybrid)
        }
        TMPFS_MAGIC => Ok(CgroupSetup::Legacy),
        _ => Err(GetCgroupSetupError::FailedToDetect),
    }
}

fn kind_of(path: &Path) -> io::Result<u64> {
    let kind = statfs(path)?.f_type;
    u64::try_from(kind).map_err(io::Error::other)
}

/// A manager that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateCgroupSetupError {}

/// What a manager refuses.
#[derive(Debug, thiserror::Error)]
pub enum AnyManagerError {
    /// It is the engine's to do.
    #[error("the runtime library was asked to {0}: the engine keeps its containers' cgroups itself")]
    NotHere(&'static str),
}

/// The groups of a container.
#[derive(Debug, Clone)]
pub struct CgroupConfig {
    /// Where they are below the hierarchies' roots.
    pub cgroup_path: PathBuf,
    /// They would be systemd's to make.
    pub systemd_cgroup: bool,
    /// The container.
    pub container_name: String,
}

/// Whether processes are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezerState {
    /// It is not said.
    Undefined,
    /// They are.
    Frozen,
    /// They are not.
    Thawed,
}

/// What is to be set in a group.
#[derive(Debug, Clone)]
pub struct ControllerOpt<'a> {
    /// What the document says.
    pub resources: &'a LinuxResources,
    /// Nobody is killed for memory.
    pub disable_oom_killer: bool,
    /// Who is killed first.
    pub oom_score_adj: Option<i32>,
    /// Processes are to be held, or not any more.
    pub freezer_state: Option<FreezerState>,
}

/// What a group uses: never told.
#[derive(Debug, Clone, Copy, Serialize)]
pub enum Stats {}

/// What is done with the groups of a container.
pub trait CgroupManager {
    /// Why it cannot be.
    type Error;

    /// Moves a process into them.
    fn add_task(&self, pid: Pid) -> Result<(), Self::Error>;
    /// Sets what they allow.
    fn apply(&self, controller_opt: &ControllerOpt<'_>) -> Result<(), Self::Error>;
    /// Removes them.
    fn remove(&self) -> Result<(), Self::Error>;
    /// Holds their processes, or lets them go.
    fn freeze(&self, state: FreezerState) -> Result<(), Self::Error>;
    /// What they use.
    fn stats(&self) -> Result<Stats, Self::Error>;
    /// Who is in them.
    fn get_all_pids(&self) -> Result<Vec<Pid>, Self::Error>;
}

/// The manager of groups in which the caller is, and what it makes with it.
#[derive(Debug, Clone, Copy)]
pub struct AnyCgroupManager(());

impl AnyCgroupManager {
    /// Who has few rights has no more to do.
    #[must_use]
    pub fn with_rootless(self, _rootless: bool) -> Self {
        self
    }
}

impl CgroupManager for AnyCgroupManager {
    type Error = AnyManagerError;

    /// It was made by one that is in them.
    fn add_task(&self, _pid: Pid) -> Result<(), AnyManagerError> {
        Ok(())
    }

    /// Set before.
    fn apply(&self, _controller_opt: &ControllerOpt<'_>) -> Result<(), AnyManagerError> {
        Ok(())
    }

    /// Asked for where a container could not be made; the engine removes them with the container.
    fn remove(&self) -> Result<(), AnyManagerError> {
        Ok(())
    }

    fn freeze(&self, _state: FreezerState) -> Result<(), AnyManagerError> {
        Err(AnyManagerError::NotHere("freeze a container"))
    }

    fn stats(&self) -> Result<Stats, AnyManagerError> {
        Err(AnyManagerError::NotHere("tell what a container uses"))
    }

    fn get_all_pids(&self) -> Result<Vec<Pid>, AnyManagerError> {
        Err(AnyManagerError::NotHere("list a container's processes"))
    }
}

/// The manager.
pub fn create_cgroup_manager(_config: CgroupConfig) -> Result<AnyCgroupManager, CreateCgroupSetupError> {
    Ok(AnyCgroupManager(()))
}
