//! Sandboxes and containers: their specifications, states and the runtime that keeps them.

use base::spans::Span;
use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{EngineError, Process};

/// The label in which users of the engine but the node say whose a sandbox or container is (`docker`, `cri`): nobody
/// touches what bears another's name.
pub const OWNER_LABEL: &str = "skiff.owner";

/// A group of containers that share namespaces and one shim: a pod, or a single `run` container's surroundings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Chosen by the caller; names cgroup, directories and shim. 64 lower-case hexadecimal digits.
    pub id: String,
    /// Human name: `namespace/pod` or the container's name.
    pub name: String,
    /// Opaque to the engine; kept with the sandbox and given back (pod uid, owner `docker` or `kubernetes`, …).
    pub labels: BTreeMap<String, String>,
    /// Host name inside; empty with the host's UTS namespace.
    pub hostname: String,
    /// Use the host's network namespace.
    pub host_network: bool,
    /// Use the host's PID namespace.
    pub host_pid: bool,
    /// Use the host's IPC namespace.
    pub host_ipc: bool,
    /// All containers share one PID namespace whose PID 1 is Skiff's own init.
    pub share_pid: bool,
    /// The size of /dev/shm in bytes (0: 64 MiB); without effect with the host's IPC namespace.
    #[serde(default)]
    pub shared_memory_bytes: u64,
    /// Kernel parameters of the sandbox's own namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// The cgroup that holds the group, relative to the engine's cgroup root; empty lets the engine choose.
    pub cgroup_parent: String,
    /// Limits of the whole group.
    pub resources: Resources,
    /// Limits of `cgroup_parent`, which is this sandbox's and its successors' alone; `None` leaves them as they are.
    #[serde(default)]
    pub parent_resources: Option<Resources>,
    /// Where container logs of this group go; empty writes them beside the container's state.
    pub log_directory: PathBuf,
    /// Which of the engine's OCI runtimes executes the containers; empty: the built-in one.
    #[serde(default)]
    pub runtime_handler: String,
    /// User and group ids of its own: a user namespace, in which root is nobody on the host. Not with the host's
    /// namespaces.
    #[serde(default)]
    pub own_users: bool,
}

/// An OCI runtime that sandboxes can ask for, and what it can do beyond what all can.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeHandler {
    /// As [`SandboxSpec::runtime_handler`] names it; empty: the built-in one.
    pub name: String,
    /// Mounts that are read-only with all that is mounted below them.
    pub recursive_read_only_mounts: bool,
    /// User namespaces.
    pub user_namespaces: bool,
}

/// Whether a sandbox lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    /// Shim and namespaces are there.
    Ready,
    /// Stopped, or its shim died.
    NotReady,
}

/// A sandbox as it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// The specification that it was made from.
    pub spec: SandboxSpec,
    /// Whether it lives.
    pub state: SandboxState,
    /// When it was made.
    pub created_at: Timestamp,
    /// A path that names its network namespace (`/proc/self/ns/net` of the host with host network).
    pub netns_path: String,
}

/// Limits and requests in the kernel's own units. `None` sets nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// CPU shares in cgroup v1's scale (2 to 262144).
    pub cpu_shares: Option<u64>,
    /// CPU time per period in microseconds.
    pub cpu_quota_us: Option<i64>,
    /// The period in microseconds.
    pub cpu_period_us: Option<u64>,
    /// Memory in bytes.
    pub memory_limit_bytes: Option<i64>,
    /// Swap beside the memory, in bytes; 0: none, negative: no limit. Where cgroups are of version 1 it is bounded only
    /// together with a limit of the memory.
    #[serde(default)]
    pub swap_limit_bytes: Option<i64>,
    /// Processes and threads.
    pub pids_limit: Option<i64>,
    /// Cores that may be used, as a list such as `0-1`.
    pub cpuset_cpus: Option<String>,
    /// Huge pages in bytes, by the size of one in bytes.
    #[serde(default)]
    pub hugepages: BTreeMap<u64, u64>,
    /// The kernel's OOM score adjustment.
    pub oom_score_adj: Option<i32>,
}

impl Resources {
    /// These over others: what is `None` here is as it was there.
    #[must_use]
    pub fn over(self, had: Self) -> Self {
        Self {
            cpu_shares: self.cpu_shares.or(had.cpu_shares),
            cpu_quota_us: self.cpu_quota_us.or(had.cpu_quota_us),
            cpu_period_us: self.cpu_period_us.or(had.cpu_period_us),
            memory_limit_bytes: self.memory_limit_bytes.or(had.memory_limit_bytes),
            swap_limit_bytes: self.swap_limit_bytes.or(had.swap_limit_bytes),
            pids_limit: self.pids_limit.or(had.pids_limit),
            cpuset_cpus: self.cpuset_cpus.or(had.cpuset_cpus),
            hugepages: if self.hugepages.is_empty() { had.hugepages } else { self.hugepages },
            oom_score_adj: self.oom_score_adj.or(had.oom_score_adj),
        }
    }
}

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A path of the host.
    Bind(PathBuf),
    /// A fresh tmpfs of at most so many bytes (0: the kernel's default).
    Tmpfs {
        /// Its size limit.
        size_bytes: u64,
        /// Options of the mount over the defaults (`nosuid`, `nodev`, `mode=1777`), in the words of mount(8).
        #[serde(default)]
        options: Vec<String>,
    },
}

/// How mounts made later travel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountPropagation {
    /// Not at all.
    #[default]
    Private,
    /// From the host to the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// A mount inside a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where from.
    pub source: MountSource,
    /// The absolute path inside.
    pub target: PathBuf,
    /// Whether it cannot be written through.
    pub read_only: bool,
    /// Whether what is mounted below it at its source is read-only too; only with `read_only`.
    #[serde(default)]
    pub recursive_read_only: bool,
    /// How later mounts travel.
    pub propagation: MountPropagation,
}

/// A device of the host that a container may use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its node on the host, or a link to it.
    pub host: PathBuf,
    /// The absolute path of the node inside.
    pub path: PathBuf,
    /// What may be done with it: read (`r`), write (`w`), make nodes of it (`m`).
    pub access: String,
}

/// Who runs the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// `uid`, `name`, `uid:gid` or `name:group`, resolved in the container's own files; empty: the image's user;
    /// `:gid` or `:group`: the image's user with that group in place of its own.
    pub spec: String,
    /// Groups beside the primary one.
    pub supplemental_groups: Vec<u32>,
    /// No groups that the image's `/etc/group` puts the user into: only those asked for.
    #[serde(default)]
    pub only_these_groups: bool,
    /// Further ones by number or by name, looked up in the container's own files.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Refuse to start as uid 0.
    pub must_not_be_root: bool,
}

/// Who a process is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The user.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// Every group, sorted.
    pub groups: Vec<u32>,
}

/// A limit of each of a container's processes. Source: getrlimit(2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `nofile`, `nproc`, ….
    pub name: String,
    /// What holds; [`u64::MAX`] is no limit.
    pub soft: u64,
    /// How far a process may raise it.
    pub hard: u64,
}

/// Which system calls are allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompProfile {
    /// The engine's default profile.
    #[default]
    RuntimeDefault,
    /// Everything.
    Unconfined,
    /// A profile file (OCI JSON) on the host.
    Localhost(PathBuf),
}

/// Which AppArmor profile confines the process, where the kernel has AppArmor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppArmorProfile {
    /// Nothing is asked for: the engine's default where there is one.
    #[default]
    Unset,
    /// The engine's default, or nothing runs.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// One of the host's, by name.
    Localhost(String),
}

/// Parts of SELinux labels; what is empty is the engine's choice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxOptions {
    /// The user.
    pub user: String,
    /// The role.
    pub role: String,
    /// The type.
    pub kind: String,
    /// The level.
    pub level: String,
}

/// What the process may do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// All capabilities, all devices, no seccomp.
    pub privileged: bool,
    /// Added to the default set (`NET_ADMIN`, `ALL`).
    pub add_capabilities: Vec<String>,
    /// Dropped from it; `ALL` first drops every one.
    pub drop_capabilities: Vec<String>,
    /// Set the no-new-privileges bit.
    pub no_new_privileges: bool,
    /// The root file system cannot be written.
    pub read_only_rootfs: bool,
    /// System call filter.
    pub seccomp: SeccompProfile,
    /// Leave /proc unmasked.
    pub unmask_proc: bool,
    /// AppArmor.
    #[serde(default)]
    pub app_armor: AppArmorProfile,
    /// SELinux; without effect where the kernel has none.
    #[serde(default)]
    pub selinux: Option<SelinuxOptions>,
    /// Paths that cannot be read, beside the engine's own.
    #[serde(default)]
    pub masked_paths: Vec<String>,
    /// Paths that cannot be written, beside the engine's own.
    #[serde(default)]
    pub read_only_paths: Vec<String>,
}

/// Where a container's log goes.
pub type LogPath = PathBuf;

/// Namespaces of another container or sandbox that a container joins in place of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceSharing {
    /// Join the PID namespace of this container of the same sandbox.
    pub pid_of: Option<String>,
}

/// A container to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// 64 lower-case hexadecimal digits, chosen by the caller.
    pub id: String,
    /// The sandbox that it joins.
    pub sandbox_id: String,
    /// Name within its sandbox, or the `run` container's name.
    pub name: String,
    /// Opaque to the engine.
    pub labels: BTreeMap<String, String>,
    /// The image's reference as the user gave it.
    pub image: String,
    /// The image's id (`sha256:…`): what really runs.
    pub image_id: String,
    /// Replaces the image's entry point when not empty.
    pub entrypoint: Vec<String>,
    /// Replaces the image's command when not empty (or when `entrypoint` is given).
    pub args: Vec<String>,
    /// `KEY=value`, over the image's.
    pub env: Vec<String>,
    /// Working directory; empty: the image's.
    pub working_dir: String,
    /// Who runs it.
    pub user: User,
    /// Mounts, in order.
    pub mounts: Vec<Mount>,
    /// Devices beside those that every container has.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Devices that vendors describe to the engine (CDI), by their names: `vendor/class=name`.
    #[serde(default)]
    pub cdi_devices: Vec<String>,
    /// Limits.
    pub resources: Resources,
    /// Limits of each process; those that are not named are the engine's own.
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    /// What it may do.
    pub security: Security,
    /// Gets a terminal.
    pub terminal: bool,
    /// Keeps standard input open for attach; otherwise it is /dev/null.
    pub stdin: bool,
    /// Standard input closes when the first attached client ends it.
    pub stdin_once: bool,
    /// The signal that stops it; empty: the image's, then SIGTERM.
    pub stop_signal: String,
    /// Log file in the CRI format, relative to the sandbox's log directory; empty: `<id>.log`.
    pub log_path: LogPath,
    /// Rotate the log beyond this size (0: 10 MiB).
    pub log_max_bytes: u64,
    /// Namespaces joined.
    pub namespaces: NamespaceSharing,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 + signal where a signal ended it.
    pub code: i32,
    /// The signal that ended it, or 0.
    pub signal: i32,
    /// The kernel killed it for memory.
    pub oom_killed: bool,
    /// When.
    pub finished_at: Timestamp,
    /// Why, where it never ran (`StartError` with this text) or its shim died.
    pub message: String,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Runs.
    Running {
        /// Its first process, as the host sees it.
        pid: u32,
        /// Since when.
        started_at: Timestamp,
    },
    /// Ended.
    Exited {
        /// When it had started; `None` if it never did.
        started_at: Option<Timestamp>,
        /// How.
        exit: Exit,
    },
}

/// A container as it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// The specification that it was made from.
    pub spec: ContainerSpec,
    /// Where it is in its life.
    pub state: ContainerState,
    /// When it was made.
    pub created_at: Timestamp,
    /// The absolute path of its log.
    pub log_path: PathBuf,
    /// Who its first process was started as; `None` until it was started.
    #[serde(default)]
    pub identity: Option<Identity>,
}

/// A process to run inside a running container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// More environment.
    pub env: Vec<String>,
    /// Working directory; empty: the container's.
    pub working_dir: String,
    /// User; empty: the container's.
    pub user: String,
    /// Gets a terminal.
    pub terminal: bool,
    /// Standard input is wanted.
    pub stdin: bool,
    /// All capabilities.
    pub privileged: bool,
}

/// What happened to a container or sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerEventKind {
    /// Made.
    Created,
    /// Runs.
    Started,
    /// Ended.
    Exited(Exit),
    /// Gone.
    Removed,
    /// The sandbox's shim died: its containers count as ended, and each says so after this.
    SandboxDied,
    /// Something is not as it ought to be, and the container runs all the same.
    Warning(String),
}

/// An event of the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerEvent {
    /// The sandbox.
    pub sandbox_id: String,
    /// The container; empty for events of the sandbox.
    pub container_id: String,
    /// What happened.
    pub kind: ContainerEventKind,
}

/// What a container uses now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time since start, in nanoseconds.
    pub cpu_usage_ns: u64,
    /// Memory in use, in bytes.
    pub memory_usage_bytes: u64,
    /// Memory that cannot be reclaimed at once (the working set), in bytes.
    pub memory_working_set_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// Keeps sandboxes and containers. Everything is idempotent where a caller may repeat it after a crash: removing what
/// is gone and stopping what has ended succeed.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Makes namespaces, cgroup and shim. The network namespace is empty but for loopback; the caller attaches it.
    async fn create_sandbox(&self, spec: SandboxSpec) -> Result<SandboxStatus, EngineError>;
    /// Kills what is left in it and ends its shim and namespaces; containers' exits stay readable.
    async fn stop_sandbox(&self, id: &str) -> Result<(), EngineError>;
    /// Removes it with all of its containers.
    async fn remove_sandbox(&self, id: &str) -> Result<(), EngineError>;
    /// Every sandbox.
    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, EngineError>;
    /// The OCI runtimes that sandboxes can ask for, the built-in one first.
    fn handlers(&self) -> Vec<RuntimeHandler> {
        vec![RuntimeHandler::default()]
    }

    /// Prepares root file system and state.
    async fn create_container(&self, spec: ContainerSpec) -> Result<ContainerStatus, EngineError>;
    /// Runs its first process; answers when that has been executed, or says why it could not be.
    async fn start_container(&self, id: &str) -> Result<ContainerStatus, EngineError>;
    /// Sends the stop signal, waits up to `grace`, then kills. Answers when it has ended. Of several at once the soonest
    /// end counts: a later call with a shorter grace, or a forced removal, hastens a stop that is under way.
    async fn stop_container(&self, id: &str, grace: std::time::Duration) -> Result<Exit, EngineError>;
    /// Sends a signal (number) to its first process.
    async fn signal_container(&self, id: &str, signal: i32) -> Result<(), EngineError>;
    /// Removes it with its file system; a running one only with `force`, which kills it.
    async fn remove_container(&self, id: &str, force: bool) -> Result<(), EngineError>;
    /// One container.
    async fn container(&self, id: &str) -> Result<ContainerStatus, EngineError>;
    /// Every container.
    async fn containers(&self) -> Result<Vec<ContainerStatus>, EngineError>;
    /// Returns when the container has ended, with how; at once if it has.
    async fn wait_container(&self, id: &str) -> Result<Exit, EngineError>;

    /// Runs a process inside a running container.
    async fn exec(&self, id: &str, spec: ExecSpec) -> Result<Process, EngineError>;
    /// Connects to the streams of a container's first process. Output from now on; the log has what came before. May
    /// be called on a container that was created and not started yet, or has ended and will be started again, so that
    /// nothing is missed.
    async fn attach(&self, id: &str) -> Result<Process, EngineError>;
    /// Changes the size of a container's terminal.
    async fn resize_container(&self, id: &str, size: crate::TerminalSize) -> Result<(), EngineError>;
    /// Opens a TCP connection to `localhost:port` inside the sandbox's network namespace.
    async fn connect(&self, sandbox_id: &str, port: u16) -> Result<Box<dyn Connection>, EngineError>;
    /// Forces a rotation-safe reopen and tells the log's path.
    async fn log_path(&self, id: &str) -> Result<PathBuf, EngineError>;
    /// Use of resources now.
    async fn stats(&self, id: &str) -> Result<Stats, EngineError>;
    /// What making a sandbox and starting its containers took, as far as it is known here: nothing of what an earlier
    /// process did. The names of steps are for people.
    fn start_steps(&self, _sandbox_id: &str) -> Vec<Span> {
        Vec::new()
    }
    /// A sandbox will be made in a moment: what takes its time and can be begun before more is known may be.
    fn expect_sandbox(&self) {}
    /// Changes limits of a running container; what is `None` stays as it is.
    async fn update_resources(&self, id: &str, resources: Resources) -> Result<(), EngineError>;
    /// Sets limits of a group above sandboxes, by its path below the engine's own group (`kubepods/burstable`). A group that
    /// is not there has none. Sandboxes right in it lose limits of their own: the group's are theirs.
    async fn limit_group(&self, path: &str, resources: Resources) -> Result<(), EngineError>;

    /// Events from now on. A receiver that lags learns so and lists again.
    async fn events(&self) -> BoxStream<'static, Result<ContainerEvent, EventsLost>>;
}

/// A receiver of events was too slow and lost some: it has to list again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} runtime events were lost: list again")]
pub struct EventsLost(pub u64);

/// A byte stream in both directions.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}
