//! The protocol between Skiff and the shims that keep its containers: plain data, versioned, and its codec.
//!
//! A shim keeps one sandbox. It listens on [`SOCKET`] in its directory; each message is one `SOCK_SEQPACKET` datagram
//! of JSON, with file descriptors where said. A daemon opens with [`ToShim::Hello`] and is answered
//! [`FromShim::Welcome`] with all that the shim knows; then it calls, is answered by id, and is told events. A daemon
//! that does not read is cut off: it connects again and learns everything from the next welcome.
//!
//! New fields have defaults; what is new otherwise raises [`VERSION`]. Each side learns the other's in the greeting and
//! says nothing that the other lacks ([`Call::since`], [`Event::since`]), so that a daemon can adopt the shims of an older
//! and of a newer release. A side that is older than [`OLDEST`] is refused.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The version of this protocol. 2: a welcome does not wait for a start that is under way but tells of it
/// ([`State::Starting`], [`Event::Started`], [`Event::NotStarted`]); [`Event::Warning`].
pub const VERSION: u32 = 2;
/// The oldest version that this release still speaks.
pub const OLDEST: u32 = 1;
/// The socket's name in the sandbox's directory.
pub const SOCKET: &str = "shim.sock";
/// The file in the sandbox's directory with the [`SandboxConfig`].
pub const CONFIG_FILE: &str = "shim.json";
/// The directory of pinned namespaces in the sandbox's directory: `net`, `ipc`, `uts`, `pid`, `user`.
pub const NAMESPACES_DIR: &str = "ns";
/// The file in a container's bundle with its [`ExitRecord`], written when it has ended.
pub const EXIT_FILE: &str = "exit.json";
/// The directory in a container's bundle with the OCI runtime's own state.
pub const RUNTIME_DIR: &str = "oci";
/// The largest message in bytes. What may be larger (specifications) travels as files.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// How many rotated log files stay beside the current one.
pub const LOG_FILES_KEPT: u32 = 4;

/// What a shim needs to make its sandbox; read once from [`CONFIG_FILE`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// A network namespace of its own.
    pub network: bool,
    /// An IPC namespace of its own.
    pub ipc: bool,
    /// A UTS namespace of its own, with this host name.
    pub hostname: Option<String>,
    /// A PID namespace shared by the containers, with the shim's `init` as PID 1.
    pub shared_pid: bool,
    /// Kernel parameters of these namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// A user namespace of its own, with these ids; the other namespaces belong to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<IdRange>,
    /// Files to which the shim, which has one thread, writes itself: out of the daemon's cgroup.
    pub cgroup_entrances: Vec<PathBuf>,
}

/// A range of the host's user and group ids, which are 0 and up in a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The host's id of the namespace's root.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

/// What a shim needs to keep a container. The OCI specification is `config.json` in the bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// The container's id.
    pub id: String,
    /// The directory with `config.json`; the shim writes [`EXIT_FILE`] and [`RUNTIME_DIR`] there.
    pub bundle: PathBuf,
    /// The log, in the CRI format.
    pub log: PathBuf,
    /// Rotate the log beyond this size.
    pub log_max_bytes: u64,
    /// Gets a terminal.
    pub terminal: bool,
    /// Keeps standard input open for attached clients.
    pub stdin: bool,
    /// Closes standard input when the first attached client ends it.
    pub stdin_once: bool,
    /// The `cgroup.procs` file that lists the container's processes.
    pub members: Option<PathBuf>,
    /// The file whose `oom_kill` line counts kills for memory.
    pub oom_events: Option<PathBuf>,
    /// The program of another OCI runtime that executes the container; absent for the built-in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<PathBuf>,
    /// Its sandbox has a user namespace of its own.
    #[serde(default)]
    pub users: bool,
    /// Files to which whoever makes its processes writes itself: into the container's cgroups. A daemon that names none
    /// leaves it to the shim to find them.
    #[serde(default)]
    pub cgroup_entrances: Vec<PathBuf>,
}

/// How a container's first process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The exit code; 128 + signal where a signal ended it.
    pub code: i32,
    /// The signal, or 0.
    pub signal: i32,
    /// The kernel killed a process of the container for memory.
    pub oom_killed: bool,
    /// When.
    pub finished_at: Timestamp,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Known, not started.
    Created,
    /// Being started: [`Event::Started`] or [`Event::NotStarted`] follows. Since version 2.
    Starting,
    /// Runs.
    Running {
        /// Its first process, as the host sees it.
        pid: u32,
        /// Since when.
        started_at: Timestamp,
    },
    /// Ended.
    Exited {
        /// When it had started.
        started_at: Option<Timestamp>,
        /// How.
        exit: ExitRecord,
    },
}

/// A container in a welcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerReport {
    /// The container's id.
    pub id: String,
    /// Where it is in its life.
    pub state: State,
}

/// What a daemon says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToShim {
    /// Opens a connection.
    Hello {
        /// The daemon's [`VERSION`].
        version: u32,
    },
    /// Asks for something; answered by [`FromShim::Reply`] with the same id.
    Call {
        /// Chosen by the daemon, fresh on its connection.
        id: u64,
        /// What.
        call: Call,
    },
}

/// What can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// Makes a container known.
    Create(ContainerConfig),
    /// Runs its first process; [`Answer::Started`] when that has been executed.
    Start {
        /// The container.
        id: String,
    },
    /// Signals its first process.
    Signal {
        /// The container.
        id: String,
        /// The signal's number.
        signal: i32,
    },
    /// Runs a process in a container. Without a terminal three descriptors come with it: standard input, output and
    /// error of the process. With one, the answer carries the terminal's master.
    Exec {
        /// The container.
        id: String,
        /// Names the process in [`Event::ExecExited`]; unique in the sandbox.
        exec_id: String,
        /// A file with the process in OCI form; the shim removes it.
        process: PathBuf,
        /// Gets a terminal.
        terminal: bool,
    },
    /// Signals a process that [`Call::Exec`] started.
    SignalExec {
        /// The process.
        exec_id: String,
        /// The signal's number.
        signal: i32,
    },
    /// Connects a client to a container's streams. Descriptors come with it, in this order: where standard output is
    /// written to; where standard error is (not with a terminal); where standard input is read from (if `stdin`).
    Attach {
        /// The container.
        id: String,
        /// A descriptor for standard input is there.
        stdin: bool,
    },
    /// Changes the size of a container's terminal.
    Resize {
        /// The container.
        id: String,
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// Opens the log again, after another program moved it.
    ReopenLog {
        /// The container.
        id: String,
    },
    /// Forgets a container that does not run.
    Delete {
        /// The container.
        id: String,
    },
    /// Kills what runs and ends the shim.
    Shutdown,
}

/// What a shim says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromShim {
    /// Answers a hello.
    Welcome {
        /// The shim's [`VERSION`].
        version: u32,
        /// The shim's process.
        pid: u32,
        /// Every container that it keeps.
        containers: Vec<ContainerReport>,
        /// What making the sandbox took.
        #[serde(default)]
        steps: Vec<Step>,
    },
    /// The connection is of no use: the sandbox could not be made, and the shim ends, or the daemon's version is not spoken.
    Failed {
        /// Why.
        message: String,
    },
    /// Answers a call.
    Reply {
        /// The call's id.
        id: u64,
        /// What came of it.
        result: Result<Answer, CallError>,
    },
    /// Tells that something happened.
    Event(Event),
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It was done.
    Done,
    /// A process runs. With an exec's terminal its master comes as a descriptor.
    Started {
        /// The process, as the host sees it.
        pid: u32,
        /// When.
        started_at: Timestamp,
        /// What it took.
        #[serde(default)]
        steps: Vec<Step>,
    },
}

/// A step that took time, on the machine's monotonic clock, which all of its processes share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What was done.
    pub name: String,
    /// When it began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub began_ns: u64,
    /// When it ended.
    pub ended_ns: u64,
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallError {
    /// In words.
    pub message: String,
    /// The exit code that stands for a process that could not be run: 127 where its program was not found, 126 where it
    /// could not be executed, 128 for anything else.
    pub code: i32,
}

impl CallError {
    /// A failure without a more telling code.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 128 }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A container's first process ended; its log is complete and its [`EXIT_FILE`] written.
    Exited {
        /// The container.
        id: String,
        /// How.
        exit: ExitRecord,
    },
    /// A process that [`Call::Exec`] started has ended.
    ExecExited {
        /// The process.
        exec_id: String,
        /// How.
        exit: ExitRecord,
    },
    /// A container whose start another daemon asked for runs. Since version 2.
    Started {
        /// The container.
        id: String,
        /// Its first process, as the host sees it.
        pid: u32,
        /// Since when.
        started_at: Timestamp,
    },
    /// A container whose start another daemon asked for could not be started. Since version 2.
    NotStarted {
        /// The container.
        id: String,
        /// Why.
        error: CallError,
    },
    /// Something is not as it ought to be, and the sandbox works all the same. Since version 2.
    Warning {
        /// What.
        message: String,
        /// The container that it is about; empty for the sandbox.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        id: String,
    },
}

impl Call {
    /// The first version of the protocol that knows it.
    pub fn since(&self) -> u32 {
        match self {
            Self::Create(_)
            | Self::Start { .. }
            | Self::Signal { .. }
            | Self::Exec { .. }
            | Self::SignalExec { .. }
            | Self::Attach { .. }
            | Self::Resize { .. }
            | Self::ReopenLog { .. }
            | Self::Delete { .. }
            | Self::Shutdown => 1,
        }
    }
}

impl Event {
    /// The first version of the protocol that knows it.
    pub fn since(&self) -> u32 {
        match self {
            Self::Exited { .. } | Self::ExecExited { .. } => 1,
            Self::Started { .. } | Self::NotStarted { .. } | Self::Warning { .. } => 2,
        }
    }
}

/// Whether this release speaks with one of that version; else why not.
pub fn check_version(version: u32) -> Result<(), String> {
    if version >= OLDEST {
        return Ok(());
    }
    Err(format!(
        "version {version} of the shim's protocol is not spoken any more, {OLDEST} is the oldest: \
         make the sandbox anew with one release of skiff"
    ))
}

/// A message as bytes.
pub fn encode<T: Serialize>(message: &T) -> std::io::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "a message is too large for the shim",
        ));
    }
    Ok(bytes)
}

/// A message from bytes.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> std::io::Result<T> {
    Ok(serde_json::from_slice(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_is_kept() {
        // A shim of an older release reads and writes exactly this; changing it orphans running containers.
        let call = ToShim::Call { id: 7, call: Call::Signal { id: "c".into(), signal: 15 } };
        let wire = br#"{"Call":{"id":7,"call":{"Signal":{"id":"c","signal":15}}}}"#;
        assert_eq!(encode(&call).unwrap(), wire);
        assert_eq!(decode::<ToShim>(wire).unwrap(), call);
        let reply = FromShim::Reply { id: 7, result: Err(CallError::new("no")) };
        assert_eq!(
            encode(&reply).unwrap(),
            br#"{"Reply":{"id":7,"result":{"Err":{"message":"no","code":128}}}}"#
        );
    }

    #[test]
    fn what_shims_of_older_releases_say_is_understood() {
        // Each as it was written when its version was new.
        let exit = r#"{"code":3,"signal":0,"oom_killed":false,"finished_at":"2026-01-02T03:04:05Z"}"#;
        let told = [
            r#"{"Welcome":{"version":1,"pid":7,"containers":[{"id":"a","state":"Created"},{"id":"b","state":{"Running":{"pid":8,"started_at":"2026-01-02T03:04:05Z"}}},{"id":"c","state":{"Exited":{"started_at":null,"exit":EXIT}}}]}}"#,
            r#"{"Failed":{"message":"no"}}"#,
            r#"{"Reply":{"id":1,"result":{"Ok":"Done"}}}"#,
            r#"{"Reply":{"id":2,"result":{"Ok":{"Started":{"pid":8,"started_at":"2026-01-02T03:04:05Z"}}}}}"#,
            r#"{"Reply":{"id":3,"result":{"Err":{"message":"no","code":127}}}}"#,
            r#"{"Event":{"Exited":{"id":"c","exit":EXIT}}}"#,
            r#"{"Event":{"ExecExited":{"exec_id":"e","exit":EXIT}}}"#,
            r#"{"Welcome":{"version":2,"pid":7,"containers":[{"id":"a","state":"Starting"}]}}"#,
            r#"{"Event":{"Started":{"id":"a","pid":8,"started_at":"2026-01-02T03:04:05Z"}}}"#,
            r#"{"Event":{"NotStarted":{"id":"a","error":{"message":"no","code":127}}}}"#,
            r#"{"Event":{"Warning":{"message":"m"}}}"#,
        ];
        let heard = told.map(|text| decode::<FromShim>(text.replace("EXIT", exit).as_bytes()).unwrap());
        let FromShim::Welcome { version: 1, containers, .. } = &heard[0] else { panic!("{:?}", heard[0]) };
        let State::Exited { started_at: None, exit } = &containers[2].state else { panic!("{containers:?}") };
        assert_eq!((exit.code, containers.len()), (3, 3));
        // And a daemon of an older release understands what has not changed since.
        let warning = Event::Warning { message: "m".into(), id: String::new() };
        assert_eq!(encode(&FromShim::Event(warning)).unwrap(), told[10].as_bytes());
    }

    #[test]
    fn what_is_too_old_is_refused() {
        assert!(check_version(OLDEST).is_ok() && check_version(VERSION + 1).is_ok());
        assert!(check_version(OLDEST - 1).unwrap_err().contains("1 is the oldest"));
    }

    #[test]
    fn too_large_is_an_error() {
        let call = ToShim::Call { id: 1, call: Call::Start { id: "x".repeat(MAX_MESSAGE) } };
        assert!(encode(&call).is_err());
    }
}
