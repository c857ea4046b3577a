//! The launcher: a short-lived child of the shim that runs one process by the OCI runtime library.
//!
//! The library forks, changes directory and makes its caller undumpable: not for the shim. The process that it makes is
//! the launcher's child; when the launcher has ended it is the shim's, which is the nearest subreaper.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::oci_spec::runtime::{
    Capability, Linux, LinuxCapabilities, LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction, Mount,
    Process, Spec, User,
};
use libcontainer::seccomp::{initialize_seccomp, is_notify};
use libcontainer::syscall::syscall::{SyscallType, create_syscall};
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use serde::{Deserialize, Serialize};
use shim::{CallError, RUNTIME_DIR, Step};
use sys::ns::Namespace;
use sys::seccomp::Filter;

use super::steps::Steps;
use super::{filter, groups, outside, passage};

/// The directory in a bundle where the document stands as the library is to read it.
const LIBRARY_DIR: &str = "library";
/// Where what is to be mounted at `/dev` waits for the end of what the library does there.
const DEV_ASIDE: &str = "/dev/.skiff-dev";
/// The name of the socket in a bundle over which the library hands out a terminal's master.
const TERMINAL_SOCKET: &str = "tty.sock";

/// What to run. Without a terminal three descriptors come with it: standard input, output and error.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Launch {
    /// The container.
    pub(crate) id: String,
    /// Its bundle.
    pub(crate) bundle: PathBuf,
    /// A further process of the running container, in OCI form; else its first.
    pub(crate) exec: Option<PathBuf>,
    /// Gets a terminal.
    pub(crate) terminal: bool,
    /// When it was asked for: `CLOCK_MONOTONIC`.
    pub(crate) asked_ns: u64,
    /// The program of another OCI runtime.
    pub(crate) runtime: Option<PathBuf>,
    /// The sandbox has a user namespace of its own.
    pub(crate) users: bool,
    /// Where the container's cgroups are entered; where none are named, they are found.
    pub(crate) cgroup_entrances: Vec<PathBuf>,
    /// What else is asked of that program, in place of a process.
    pub(crate) errand: Option<Errand>,
}

/// What another runtime is asked about a container, beside running processes in it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Errand {
    /// To send a signal to the first process.
    Kill(i32),
    /// To forget the container, which has ended.
    Delete,
}

/// What came of it. With a running process its pidfd comes as a descriptor, then the terminal's master.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Launched {
    /// It has been executed.
    Running {
        /// The process, as the host sees it.
        pid: u32,
        /// What that took.
        steps: Vec<Step>,
    },
    /// What else was asked for is done.
    Done,
    /// It could not be.
    Failed(CallError),
}

/// A launcher without a task yet: making it takes a part of a start that nobody has to wait for.
pub(crate) struct Waiting {
    child: Child,
    socket: OwnedFd,
}

impl Waiting {
    /// Starts one.
    pub(crate) fn new() -> io::Result<Self> {
        let (own, theirs) = sys::seqpacket::pair()?;
        let child = Command::new("/proc/self/exe")
            .arg("launch")
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, socket: own })
    }

    /// Gives it its task. The answer comes over the socket.
    pub(crate) fn give(self, launch: &Launch, fds: &[BorrowedFd<'_>]) -> io::Result<(Child, OwnedFd)> {
        let message = shim::encode(launch)?;
        match sys::seqpacket::send(&self.socket, &message, fds) {
            Ok(()) => Ok((self.child, self.socket)),
            Err(error) => {
                self.end();
                Err(error)
            }
        }
    }

    /// Whether it is this process.
    pub(crate) fn is(&self, pid: u32) -> bool {
        self.child.id() == pid
    }

    /// Ends it.
    pub(crate) fn end(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The answer of a launcher: what came of it and the descriptors with it.
pub(crate) fn receive(socket: impl AsFd) -> io::Result<(Launched, Vec<OwnedFd>)> {
    let mut buffer = vec![0; shim::MAX_MESSAGE];
    let (length, fds) = sys::seqpacket::recv(socket, &mut buffer)?;
    if length == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the launcher ended without an answer"));
    }
    Ok((shim::decode(&buffer[..length])?, fds))
}

/// The launcher's whole life. Its task comes and its answer goes over standard input.
pub(crate) fn run() -> io::Result<()> {
    // What it makes would be nobody's. A shim that ended before this is noticed by its socket's end.
    sys::process::die_with_parent()?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let mut buffer = vec![0; shim::MAX_MESSAGE];
    let (length, fds) = sys::seqpacket::recv(&socket, &mut buffer)?;
    let launch: Launch = shim::decode(&buffer[..length])?;
    let mut steps = Steps::since(launch.asked_ns);
    steps.took("launcher: begin");
    let (answer, fds) = match execute(&launch, fds, &mut steps) {
        Ok(Some((pid, fds))) => (Launched::Running { pid, steps: steps.into_taken() }, fds),
        Ok(None) => (Launched::Done, Vec::new()),
        Err(error) => (Launched::Failed(error), Vec::new()),
    };
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    sys::seqpacket::send(&socket, &shim::encode(&answer)?, &fds)
}

/// The process that runs, with its descriptors; none where something else was asked for.
fn execute(
    launch: &Launch,
    fds: Vec<OwnedFd>,
    steps: &mut Steps,
) -> Result<Option<(u32, Vec<OwnedFd>)>, CallError> {
    std::env::set_current_dir(&launch.bundle).map_err(|error| failure(&error))?;
    // Read before the way to it is made: what lies outside of the sandbox's directory may be covered then.
    let prepared = launch.runtime.is_none().then(|| Payload::new(launch)).transpose();
    let prepared = prepared.map_err(|error| failure(&error))?;
    if let (None, true, Some(sandbox)) = (&launch.exec, launch.users, launch.bundle.parent()) {
        let opened = passage::open(sandbox).and_then(|()| std::env::set_current_dir(&launch.bundle));
        opened.map_err(|error| failure(&error))?;
    }
    if let Some((failed, payload)) = prepared {
        return execute_inside(launch, fds, (failed, payload), steps).map(Some);
    }
    let Some(program) = &launch.runtime else { return Err(CallError::new("there is nothing to execute")) };
    let console = launch.terminal.then(listen_for_terminal).transpose().map_err(|error| failure(&error))?;
    let runtime = outside::Runtime { program, bundle: &launch.bundle, id: &launch.id };
    if let Some(errand) = launch.errand {
        return runtime.run_errand(errand).map(|()| None);
    }
    let terminal = console.is_some().then_some(TERMINAL_SOCKET);
    let pid = match &launch.exec {
        Some(process) => runtime.execute(process, fds, terminal)?,
        None => runtime.start(fds, terminal)?,
    };
    steps.took("runtime: start the process");
    with_handles(pid, console).map(Some)
}

fn execute_inside(
    launch: &Launch,
    fds: Vec<OwnedFd>,
    (mut failed, payload): (io::PipeReader, Payload),
    steps: &mut Steps,
) -> Result<(u32, Vec<OwnedFd>), CallError> {
    let console = launch.terminal.then(listen_for_terminal).transpose().map_err(|error| failure(&error))?;
    let document = if payload.rewritten { launch.bundle.join(LIBRARY_DIR) } else { launch.bundle.clone() };
    steps.took("launcher: document and filter");
    groups::enter(launch).map_err(|error| failure(&error))?;
    steps.took("launcher: enter the cgroups");
    let result = build(launch, &document, fds, payload, console.is_some(), steps);
    // Ends when every holder of the other side has executed its program or ended.
    let mut why = String::new();
    failed.read_to_string(&mut why).map_err(|error| failure(&error))?;
    if !why.is_empty() {
        return Err(shim::decode(why.as_bytes()).unwrap_or_else(|_| CallError::new(why)));
    }
    steps.took("container: confine and execute");
    with_handles(result.map_err(|error| failure(&error))?, console)
}

/// The process, of which nobody has reaped anything yet, with a handle on it and its terminal.
fn with_handles(pid: u32, console: Option<UnixListener>) -> Result<(u32, Vec<OwnedFd>), CallError> {
    let pidfd = sys::process::Pidfd::open(pid).map_err(|error| failure(&error))?;
    let mut fds = vec![OwnedFd::from(pidfd)];
    if let Some(console) = console {
        fds.push(receive_terminal(&console).map_err(|error| failure(&error))?);
    }
    Ok((pid, fds))
}

/// Has the library make the process and lets it go on to its program. The payload is dropped with the builder.
fn build(
    launch: &Launch,
    document: &Path,
    fds: Vec<OwnedFd>,
    payload: Payload,
    terminal: bool,
    steps: &mut Steps,
) -> Result<u32, LibcontainerError> {
    let mut builder = ContainerBuilder::new(launch.id.clone(), SyscallType::default())
        .with_executor(payload)
        .with_root_path(launch.bundle.join(RUNTIME_DIR))?
        .with_console_socket(terminal.then(|| launch.bundle.join(TERMINAL_SOCKET)));
    let mut fds = fds.into_iter();
    builder.stdin = fds.next();
    builder.stdout = fds.next();
    builder.stderr = fds.next();
    let pid = match &launch.exec {
        Some(process) => {
            let pid = builder.as_tenant().with_process(Some(process)).with_detach(terminal).build()?;
            steps.took("library: make the process");
            pid.as_raw()
        }
        None => {
            let mut container =
                builder.as_init(document).with_systemd(false).with_detach(terminal).build()?;
            steps.took("library: make the container");
            container.start()?;
            steps.took("library: start it");
            container.pid().map_or(0, |pid| pid.as_raw())
        }
    };
    u32::try_from(pid).map_err(|_| LibcontainerError::Other(format!("the runtime answered process id {pid}")))
}

fn listen_for_terminal() -> io::Result<UnixListener> {
    // Relative to the bundle, the current directory: its whole path may be longer than an address can be.
    let _ = std::fs::remove_file(TERMINAL_SOCKET);
    UnixListener::bind(TERMINAL_SOCKET)
}

/// The master that the container's process sent before it said that it was ready: it is there.
fn receive_terminal(listener: &UnixListener) -> io::Result<OwnedFd> {
    listener.set_nonblocking(true)?;
    let (connection, _) = listener.accept()?;
    connection.set_nonblocking(true)?;
    std::fs::remove_file(TERMINAL_SOCKET)?;
    let (_, mut fds) = sys::seqpacket::recv(&connection, &mut [0; 4096])?;
    fds.pop().ok_or_else(|| io::Error::other("the runtime sent no terminal"))
}

/// What the process does at the very end, inside the container: executes its program, or says over a pipe why it
/// cannot. The pipe's end without a word tells that the program runs.
#[derive(Clone)]
struct Payload {
    failed: Rc<RefCell<io::PipeWriter>>,
    rest: Option<Rc<Confinement>>,
    /// The library reads a document of its own.
    rewritten: bool,
}

/// What the library leaves to the very end: the system call filter, which it would compile anew for each first process
/// and leaves out for further ones. Loading it needs `CAP_SYS_ADMIN`, so the process keeps that until here.
struct Confinement {
    filter: Option<Loadable>,
    capabilities: LinuxCapabilities,
    /// A further process enters the user namespace here, which the library does not do.
    users: Option<Entrance>,
    /// Mounts of a first process, of which the library takes no notice of how far their changes travel.
    mounts: Vec<(PathBuf, Travels)>,
    /// Something is to be mounted at `/dev`, under what lies at these paths.
    dev: Option<Vec<PathBuf>>,
}

/// How far the changes of a mount travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Travels {
    /// Not at all.
    Nowhere,
    /// To the container.
    Inwards,
}

/// A user namespace to enter, and who to be in it.
struct Entrance {
    namespace: std::fs::File,
    user: User,
    /// The host's id of the user, whom the terminal is given to, where there is one.
    terminals: Option<u32>,
}

/// A filter, ready or not.
enum Loadable {
    Compiled(Filter),
    /// One that asks a supervisor, for a further process: the library knows how.
    Supervised(Box<LinuxSeccomp>),
}

impl Payload {
    fn new(launch: &Launch) -> io::Result<(io::PipeReader, Self)> {
        let (reader, writer) = io::pipe()?;
        let rest = confine_later(launch)?.map(Rc::new);
        let rewritten = rest.is_some() && launch.exec.is_none();
        Ok((reader, Self { failed: Rc::new(RefCell::new(writer)), rest, rewritten }))
    }

    fn say(&self, error: &CallError) {
        if let Ok(text) = shim::encode(error) {
            let _ = self.failed.borrow_mut().write_all(&text);
        }
    }
}

impl Executor for Payload {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        if let Some(rest) = &self.rest
            && let Err(error) = rest.apply()
        {
            self.say(&CallError::new(format!("confining the process: {error}")));
            return Err(ExecutorError::Other(error));
        }
        let process = spec.process().as_ref();
        let words = process.and_then(|process| process.args().as_deref()).unwrap_or_default();
        let Some((program, arguments)) = words.split_first() else {
            self.say(&CallError::new("no command specified"));
            return Err(ExecutorError::InvalidArg);
        };
        // Resets the signal mask and SIGPIPE, looks the program up in the container's PATH.
        let error = Command::new(program).args(arguments).exec();
        let error = cannot_execute(program, &error);
        self.say(&error);
        Err(ExecutorError::Other(error.message))
    }

    /// Executing is the only true check: the kernel's answer is told by [`Executor::exec`].
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }
}

impl Confinement {
    fn apply(&self) -> Result<(), String> {
        if let Some(below) = &self.dev {
            cover_dev(below).map_err(|error| format!("mounting /dev: {error}"))?;
        }
        for (target, travels) in &self.mounts {
            let set = match travels {
                Travels::Nowhere => sys::mount::seclude(target),
                Travels::Inwards => sys::mount::follow(target),
            };
            match set.map_err(|error| (error.kind(), error)) {
                // Another mount lies over it: nobody sees it.
                Ok(())
                | Err((
                    io::ErrorKind::NotFound | io::ErrorKind::InvalidInput | io::ErrorKind::NotADirectory,
                    _,
                )) => {}
                Err((_, error)) => return Err(format!("how far {} travels: {error}", target.display())),
            }
        }
        if let Some(Entrance { namespace, user, terminals }) = &self.users {
            let groups = user.additional_gids().as_deref().unwrap_or_default();
            // It was made by the host's root, who is nobody inside.
            terminals
                .map_or(Ok(()), |owner| std::os::unix::fs::fchown(io::stdin(), Some(owner), None))
                .and_then(|()| sys::ns::join(namespace, Namespace::User))
                .and_then(|()| sys::users::become_user(user.uid(), user.gid(), groups))
                .map_err(|error| format!("entering the user namespace: {error}"))?;
        }
        match &self.filter {
            None => {}
            Some(Loadable::Compiled(filter)) => filter.load().map_err(|error| error.to_string())?,
            Some(Loadable::Supervised(profile)) => {
                initialize_seccomp(profile).map_err(|error| error.to_string())?;
            }
        }
        let syscall = create_syscall();
        libcontainer::capabilities::drop_privileges(&self.capabilities, &*syscall)
            .map_err(|error| error.to_string())
    }
}

/// What is left for the end. Where mounts are to be set apart, or the container has a system call filter and the process no
/// `no_new_privileges` (which alone would let it load one), the capabilities that the library is told of are widened by what
/// that needs, and the true ones are kept for the end.
fn confine_later(launch: &Launch) -> io::Result<Option<Confinement>> {
    let mut spec: Spec = shim::decode(&std::fs::read(launch.bundle.join("config.json"))?)?;
    let mut linux = spec.linux().clone().unwrap_or_default();
    let users = launch.exec.as_ref().and_then(|_| user_namespace(&spec));
    let profile = linux.seccomp().clone();
    let supervised = profile.as_ref().is_some_and(|profile| {
        is_notify(profile) || profile.default_action() == LinuxSeccompAction::ScmpActNotify
    });
    let mounts = match launch.exec {
        None => travelling(&spec),
        Some(_) => Vec::new(),
    };
    let dev = match launch.exec {
        None => set_dev_aside(&mut spec)?,
        Some(_) => None,
    };
    let mut process: Process = match &launch.exec {
        None if profile.is_none() && mounts.is_empty() && dev.is_none() => return Ok(None),
        Some(_) if profile.is_none() && users.is_none() => return Ok(None),
        // The library would make its links and nodes in what the host has there.
        None if supervised && dev.is_some() => {
            let message = "a mount at /dev and a system call filter with a supervisor cannot be had together";
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        // Its supervisor is told about the container: by the library, which knows all about that.
        None if supervised => return Ok(None),
        None => spec.process().clone().unwrap_or_default(),
        Some(file) => shim::decode(&std::fs::read(file)?)?,
    };
    let capabilities = process.capabilities().clone().unwrap_or_default();
    let first = first_id(&linux).filter(|_| launch.terminal);
    let users = users.map(|path| enter_later(&path, first, &mut process)).transpose()?;
    // The rights of a process that enters a user namespace are that namespace's from then on.
    if users.is_some() || !mounts.is_empty() || dev.is_some() || process.no_new_privileges() != Some(true) {
        process.set_capabilities(Some(widened(&capabilities, users.is_some())));
    }
    if let Some(file) = &launch.exec {
        sys::files::write_atomic(file, &serde_json::to_vec(&process)?)?;
    } else {
        linux.set_seccomp(None);
        spec.set_linux(Some(linux));
        spec.set_process(Some(process));
        let directory = launch.bundle.join(LIBRARY_DIR);
        std::fs::create_dir_all(&directory)?;
        sys::files::write_atomic(&directory.join("config.json"), &serde_json::to_vec(&spec)?)?;
    }
    let filter = match profile {
        None => None,
        Some(profile) if supervised => Some(Loadable::Supervised(Box::new(profile))),
        Some(profile) => {
            let program = std::env::current_exe()?;
            let directory = program.parent().ok_or(io::ErrorKind::NotFound)?;
            Some(Loadable::Compiled(filter::compiled(&profile, directory)?))
        }
    };
    Ok(Some(Confinement { filter, capabilities, users, mounts, dev }))
}

/// Has the library prepare a `/dev` of the container's own where something else is to be mounted there, which waits aside:
/// the library makes devices and links in whatever lies there, also in the host's. Answers what else is mounted below.
/// As runc does it, which prepares nothing there.
fn set_dev_aside(spec: &mut Spec) -> io::Result<Option<Vec<PathBuf>>> {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let is_bind = |mount: &Mount| mount.typ().as_deref() == Some("bind");
    let dev = Path::new("/dev");
    let found = mounts.iter_mut().find(|mount| is_bind(mount) && mount.destination() == dev);
    let Some(asked) = found else { return Ok(None) };
    asked.set_destination(DEV_ASIDE.into());
    let below = mounts.iter().filter(|mount| is_bind(mount) && mount.destination().starts_with(dev));
    let below = below.map(|mount| mount.destination().clone()).filter(|path| path != Path::new(DEV_ASIDE));
    let below = below.collect();
    let own = br#"{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","strictatime","mode=755","size=65536k"]}"#;
    mounts.insert(0, shim::decode(own)?);
    spec.set_mounts(Some(mounts));
    Ok(Some(below))
}

/// Mounts what has waited, and over it what was mounted below, where it has a place for that. What waited stays where it is,
/// covered: to unmount it might unmount what is below it elsewhere too.
fn cover_dev(below: &[PathBuf]) -> io::Result<()> {
    let held = below.iter().filter_map(|path| Some((path, sys::mount::clone_tree(path).ok()?)));
    let held: Vec<_> = held.collect();
    sys::mount::attach(sys::mount::clone_tree(Path::new(DEV_ASIDE))?, Path::new("/dev"))?;
    for (path, tree) in held {
        match sys::mount::attach(tree, path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            attached => attached?,
        }
    }
    Ok(())
}

/// The mounts that are to be set apart from what the root of all of them does: where it follows the host's, as it does
/// unless something travels to the host, only those that are not to.
fn travelling(spec: &Spec) -> Vec<(PathBuf, Travels)> {
    let shares =
        spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref()) == Some("shared");
    let mounts = spec.mounts().iter().flatten();
    let set = mounts.filter_map(|mount| {
        let has = |option: &str| mount.options().iter().flatten().any(|known| known == option);
        let travels = match (has("rprivate"), has("rslave")) {
            (true, _) => Travels::Nowhere,
            (_, true) if shares => Travels::Inwards,
            _ => return None,
        };
        Some((mount.destination().clone(), travels))
    });
    set.collect()
}

/// The user namespace that a container's document joins.
fn user_namespace(spec: &Spec) -> Option<PathBuf> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::User)?.path().clone()
}

/// The host's id of the user namespace's root.
fn first_id(linux: &Linux) -> Option<u32> {
    linux.uid_mappings().as_ref()?.first().map(|mapping| mapping.host_id())
}

/// Has the library leave a further process with the host's ids until it enters the user namespace.
fn enter_later(namespace: &Path, first: Option<u32>, process: &mut Process) -> io::Result<Entrance> {
    let user = process.user().clone();
    process.set_user(User::default());
    let terminals = first.and_then(|first| first.checked_add(user.uid()));
    Ok(Entrance { namespace: std::fs::File::open(namespace)?, user, terminals })
}

/// Capabilities with those that loading a filter, and giving capabilities up afterwards, needs; `giving`: and giving a
/// terminal to somebody.
fn widened(capabilities: &LinuxCapabilities, giving: bool) -> LinuxCapabilities {
    let widen = |set: &Option<std::collections::HashSet<Capability>>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend([Capability::SysAdmin, Capability::Setpcap]);
        set.extend(giving.then_some(Capability::Chown));
        Some(set)
    };
    let mut wide = capabilities.clone();
    wide.set_bounding(widen(capabilities.bounding()));
    wide.set_permitted(widen(capabilities.permitted()));
    wide.set_effective(widen(capabilities.effective()));
    wide
}

/// The words and exit codes of shells and container runtimes for a program that cannot be executed.
fn cannot_execute(program: &str, error: &io::Error) -> CallError {
    let (why, code) = match error.kind() {
        io::ErrorKind::NotFound if !program.contains('/') => {
            ("executable file not found in $PATH".to_owned(), 127)
        }
        io::ErrorKind::NotFound => ("no such file or directory".to_owned(), 127),
        io::ErrorKind::PermissionDenied => ("permission denied".to_owned(), 126),
        _ => (error.to_string(), 126),
    };
    CallError { message: format!("exec: \"{program}\": {why}"), code }
}

/// An error with its causes.
pub(super) fn failure(error: &dyn std::error::Error) -> CallError {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        source = cause.source();
    }
    CallError::new(message)
}
