//! The shim's loop: one thread, one epoll instance, woken only by events.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Child;
use std::time::Instant;

use jiff::Timestamp;
use shim::{
    Answer, Call, CallError, ContainerConfig, ContainerReport, EXIT_FILE, Event, ExitRecord, FromShim,
    LOG_FILES_KEPT, MAX_MESSAGE, State, Step, ToShim, VERSION,
};
use sys::children::{ChildSignals, Ended};
use sys::process::Pidfd;

use super::launch::{self, Errand, Launch, Launched, Waiting};
use super::log::Log;
use super::outside::{self, Runtime};
use super::poller::{Poller, Source, Token};
use super::sandbox;
use super::spare::Spare;
use super::steps::{self, Steps};
use super::streams::{Stream, Streams};

/// The first version of the protocol in which a welcome tells of starts that are under way.
const STARTS_ARE_TOLD: u32 = 2;

/// A container.
struct Container {
    config: ContainerConfig,
    state: State,
    streams: Streams,
    size: Option<(u16, u16)>,
}

/// A process that the shim waits for.
struct Process {
    pidfd: Pidfd,
    token: Token,
    kind: Kind,
}

/// What a process is.
#[derive(Clone)]
enum Kind {
    /// The first process of a container.
    First(u64),
    /// A further one.
    Exec(String),
    /// None: another runtime is asked for something about a container, and this comes after.
    Errand(u64, After),
}

/// What a call comes to after another runtime was asked.
#[derive(Clone)]
enum After {
    /// The container is forgotten.
    Delete,
    /// It is made anew.
    Create(Box<ContainerConfig>),
    /// Its first process has the signal; else it is sent by number here.
    Signal(i32),
}

/// A launcher at work, and who asked for it.
struct Launching {
    child: Child,
    socket: OwnedFd,
    token: Token,
    peer: u64,
    call: u64,
    kind: Kind,
    terminal: bool,
    process_file: Option<std::path::PathBuf>,
}

/// A daemon's connection.
struct Peer {
    socket: OwnedFd,
    token: Token,
    /// The daemon's version of the protocol, once it has said hello.
    version: Option<u32>,
    /// It has its welcome: from then on it is told events.
    welcomed: bool,
}

/// What a call comes to: an answer with descriptors now, or later.
enum Outcome {
    Now(Answer),
    Later,
}

struct Server {
    poller: Poller,
    listener: OwnedFd,
    /// Absent while there is no descriptor for a daemon that comes.
    listening: Option<Token>,
    spare: Spare,
    children: ChildSignals,
    peers: BTreeMap<u64, Peer>,
    containers: BTreeMap<u64, Container>,
    launching: BTreeMap<u64, Launching>,
    /// For the next start.
    waiting: Option<Waiting>,
    processes: BTreeMap<u32, Process>,
    init: Option<Child>,
    ending: bool,
    /// What making the sandbox took.
    steps: Vec<Step>,
}

/// The shim's whole life. Standard input is the listening socket, so that daemons can connect before the shim is up.
pub(crate) fn serve(directory: &Path) -> io::Result<()> {
    let mut steps = Steps::since(steps::now_ns());
    sys::process::new_session()?;
    sys::process::become_subreaper()?;
    let listener = io::stdin().as_fd().try_clone_to_owned()?;
    let children = ChildSignals::new()?;
    let made =
        sandbox::read_config(directory).and_then(|config| Ok((sandbox::set_up(directory, &config)?, config)));
    let (init, config) = match made {
        Ok(made) => made,
        Err(error) => return refuse(&listener, error),
    };
    std::env::set_current_dir("/")?;
    steps.took("shim: make namespaces");
    let mut server = Server::new(listener, children, init, steps.into_taken())?;
    server.greet_first()?;
    // After the first welcome: entering a cgroup can take the kernel milliseconds, which the daemon uses meanwhile.
    for message in sandbox::enter_cgroups(&config) {
        server.tell_all(Event::Warning { message, id: String::new() });
    }
    while !server.ending {
        server.turn()?;
    }
    server.end();
    Ok(())
}

/// Tells the first daemon that connects why there is no sandbox.
fn refuse(listener: &OwnedFd, error: io::Error) -> io::Result<()> {
    wait_readable(listener)?;
    if let Some(peer) = sys::seqpacket::accept(listener)? {
        // Read what it says: closing with its greeting unread would reset the connection before it reads the reason.
        wait_readable(&peer)?;
        sys::seqpacket::recv(&peer, &mut vec![0; MAX_MESSAGE])?;
        let message = shim::encode(&FromShim::Failed { message: error.to_string() })?;
        sys::seqpacket::send(&peer, &message, &[])?;
    }
    Err(error)
}

fn wait_readable(fd: impl AsFd) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags};
    rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], None)?;
    Ok(())
}

impl Server {
    fn new(
        listener: OwnedFd,
        children: ChildSignals,
        init: Option<Child>,
        steps: Vec<Step>,
    ) -> io::Result<Self> {
        let mut poller = Poller::new()?;
        let listening = Some(poller.readable(&listener, Source::Listener)?);
        let mut spare = Spare::default();
        spare.refill();
        poller.readable(&children, Source::Children)?;
        Ok(Self {
            poller,
            listener,
            listening,
            spare,
            children,
            peers: BTreeMap::new(),
            containers: BTreeMap::new(),
            launching: BTreeMap::new(),
            waiting: None,
            processes: BTreeMap::new(),
            init,
            ending: false,
            steps,
        })
    }

    /// Serves until the daemon that made the sandbox has its welcome (or is gone again).
    fn greet_first(&mut self) -> io::Result<()> {
        self.turn()?;
        if !self.peers.is_empty() {
            self.turn()?;
        }
        Ok(())
    }

    /// Waits once and handles what came.
    fn turn(&mut self) -> io::Result<()> {
        let deadline = self.containers.values().filter_map(|container| container.streams.deadline()).min();
        for (token, source) in self.poller.wait(deadline)? {
            if self.poller.is_live(token) {
                self.on_event(source);
            }
        }
        self.greet();
        self.listen_again();
        if deadline.is_some() {
            let now = Instant::now();
            for container in self.containers.values_mut() {
                container.streams.on_deadline(&mut self.poller, now);
            }
            self.forget_drained();
        }
        Ok(())
    }

    fn on_event(&mut self, source: Source) {
        let now = Timestamp::now();
        match source {
            Source::Listener => self.on_listener(),
            Source::Children => {
                self.children.clear();
                self.reap_strays();
            }
            Source::Peer(peer) => {
                self.on_peer(peer);
            }
            Source::Launcher(launch) => self.on_launcher(launch),
            Source::Process(pid) => self.on_process(pid),
            Source::Output(slot, stream) => {
                self.with_streams(slot, |streams, poller| streams.on_output(poller, stream, now))
            }
            Source::Input(slot) => self.with_streams(slot, |streams, poller| streams.on_input(poller)),
            Source::Sink(slot, id) => self.with_streams(slot, |streams, poller| streams.on_sink(poller, id)),
            Source::Feed(slot, id) => self.with_streams(slot, |streams, poller| streams.on_feed(poller, id)),
        }
    }

    fn with_streams(&mut self, slot: u64, act: impl FnOnce(&mut Streams, &mut Poller)) {
        if let Some(container) = self.containers.get_mut(&slot) {
            act(&mut container.streams, &mut self.poller);
        }
        self.tell_of_log(slot);
    }

    /// Tells when a container's log could not be written, and when it is written again.
    fn tell_of_log(&mut self, slot: u64) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        if let Some(message) = container.streams.log().take_news() {
            let id = container.config.id.clone();
            self.tell_all(Event::Warning { message, id });
        }
    }

    fn on_listener(&mut self) {
        loop {
            match sys::seqpacket::accept(&self.listener) {
                Ok(Some(socket)) => self.add_peer(socket),
                Ok(None) => return,
                // There is no descriptor left: who comes gets one of those that are kept back.
                Err(_) if self.spare.release() => {}
                Err(_) => return self.stop_listening(),
            }
        }
    }

    fn add_peer(&mut self, socket: OwnedFd) {
        let id = self.poller.fresh();
        if let Ok(token) = self.poller.readable(&socket, Source::Peer(id)) {
            self.peers.insert(id, Peer { socket, token, version: None, welcomed: false });
        }
    }

    /// Whoever waits at the listener would be told again and again, and could not be let in.
    fn stop_listening(&mut self) {
        if let Some(token) = self.listening.take() {
            self.poller.remove(&self.listener, token);
        }
    }

    /// Listens again when something was closed, and keeps descriptors back as long as there are any.
    fn listen_again(&mut self) {
        if self.spare.refill() && self.listening.is_none() {
            self.listening = self.poller.readable(&self.listener, Source::Listener).ok();
        }
    }

    /// Reads one message of a daemon; answers whether there was one.
    fn on_peer(&mut self, id: u64) -> bool {
        let Some(peer) = self.peers.get(&id) else { return false };
        let mut buffer = vec![0; MAX_MESSAGE];
        match sys::seqpacket::recv(&peer.socket, &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Ok((length, fds)) if length > 0 => match shim::decode(&buffer[..length]) {
                Ok(ToShim::Hello { version }) => self.on_hello(id, version),
                Ok(ToShim::Call { id: call, call: what }) if peer.version.is_some() => {
                    self.on_call(id, call, what, fds);
                }
                // Not our protocol: nothing that follows could be understood either.
                Ok(ToShim::Call { .. }) | Err(_) => self.drop_peer(id),
            },
            _ => self.drop_peer(id),
        }
        true
    }

    fn on_hello(&mut self, id: u64, version: u32) {
        if let Err(message) = shim::check_version(version) {
            self.send(id, &FromShim::Failed { message }, &[]);
            self.drop_peer(id);
        } else if let Some(peer) = self.peers.get_mut(&id) {
            peer.version = Some(version);
        }
    }

    /// Welcomes daemons. What a killed daemon asked for before its end comes first. A daemon of version 1 knows nothing of
    /// starts that are under way and waits for their end: else it would take a container for one that never starts, and
    /// its process would be nobody's.
    fn greet(&mut self) {
        let greeting = |peer: &Peer| peer.version.filter(|_| !peer.welcomed);
        if self.peers.values().all(|peer| greeting(peer).is_none()) {
            return;
        }
        let earlier: Vec<u64> =
            self.peers.iter().filter(|(_, peer)| greeting(peer).is_none()).map(|(id, _)| *id).collect();
        for peer in earlier {
            while self.on_peer(peer) {}
        }
        let starting = self.launching.values().any(|launch| matches!(launch.kind, Kind::First(_)));
        let ready = self.peers.iter().filter(|(_, peer)| {
            greeting(peer).is_some_and(|version| !starting || version >= STARTS_ARE_TOLD)
        });
        for peer in ready.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.welcome(peer);
        }
    }

    fn drop_peer(&mut self, id: u64) {
        if let Some(peer) = self.peers.remove(&id) {
            self.poller.remove(&peer.socket, peer.token);
        }
    }

    fn welcome(&mut self, id: u64) {
        let containers = self
            .containers
            .iter()
            .filter(|(_, container)| !container.config.id.is_empty())
            .map(|(slot, container)| ContainerReport {
                id: container.config.id.clone(),
                state: if self.is_starting(*slot) { State::Starting } else { container.state.clone() },
            })
            .collect();
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.welcomed = true;
        }
        let (version, pid, steps) = (VERSION, std::process::id(), self.steps.clone());
        self.send(id, &FromShim::Welcome { version, pid, containers, steps }, &[]);
    }

    fn is_starting(&self, slot: u64) -> bool {
        self.launching.values().any(|launch| matches!(launch.kind, Kind::First(of) if of == slot))
    }

    /// Sends to a daemon; one that does not read is cut off.
    fn send(&mut self, id: u64, message: &FromShim, fds: &[BorrowedFd<'_>]) {
        let Some(peer) = self.peers.get(&id) else { return };
        let sent = shim::encode(message).and_then(|bytes| sys::seqpacket::send(&peer.socket, &bytes, fds));
        if sent.is_err() {
            self.drop_peer(id);
        }
    }

    fn tell_all(&mut self, event: Event) {
        self.tell(event, None);
    }

    /// Tells an event to every daemon that knows its kind, but for one that has learned of it by an answer.
    fn tell(&mut self, event: Event, but: Option<u64>) {
        let since = event.since();
        let message = FromShim::Event(event);
        let told = self.peers.iter().filter(|(id, peer)| {
            peer.welcomed && Some(**id) != but && peer.version.is_some_and(|version| version >= since)
        });
        for peer in told.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.send(peer, &message, &[]);
        }
    }

    fn on_call(&mut self, peer: u64, id: u64, call: Call, fds: Vec<OwnedFd>) {
        let a_start_follows = matches!(call, Call::Create(_));
        let result = match self.perform(peer, id, call, fds) {
            Ok(Outcome::Now(answer)) => Ok(answer),
            Ok(Outcome::Later) => return,
            Err(error) => Err(error),
        };
        self.send(peer, &FromShim::Reply { id, result }, &[]);
        if a_start_follows && self.waiting.is_none() {
            // Without one the start makes its own, or tells why it cannot.
            self.waiting = Waiting::new().ok();
        }
    }

    fn perform(&mut self, peer: u64, call: u64, what: Call, fds: Vec<OwnedFd>) -> Result<Outcome, CallError> {
        match what {
            Call::Create(config) => {
                let after = || After::Create(Box::new(config.clone()));
                if let Some(slot) = self.known_outside(&config.id) {
                    return self.run_errand(peer, call, slot, Errand::Delete, after());
                }
                self.create(config)?;
            }
            Call::Start { id } => return self.start(peer, call, &id),
            Call::Signal { id, signal } => {
                let slot = self.slot(&id)?;
                if self.runs_outside(slot) {
                    return self.run_errand(peer, call, slot, Errand::Kill(signal), After::Signal(signal));
                }
                self.signal_first(slot, signal)?;
            }
            Call::Exec { id, exec_id, process, terminal } => {
                return self.exec(peer, call, &id, exec_id, process, terminal, &fds);
            }
            Call::SignalExec { exec_id, signal } => {
                self.signal(|kind| matches!(kind, Kind::Exec(of) if *of == exec_id), signal)?;
            }
            Call::Attach { id, stdin } => self.attach(&id, stdin, fds)?,
            Call::Resize { id, rows, columns } => {
                let container = self.container(&id)?;
                container.size = Some((rows, columns));
                if container.config.terminal
                    && let Some(terminal) = container.streams.terminal()
                {
                    sys::tty::set_size(terminal, rows, columns)
                        .map_err(|error| failed("resizing", &error))?;
                }
            }
            Call::ReopenLog { id } => {
                self.container(&id)?
                    .streams
                    .log()
                    .open()
                    .map_err(|error| failed("opening the log", &error))?;
            }
            Call::Delete { id } => {
                if let Some(slot) = self.known_outside(&id) {
                    return self.run_errand(peer, call, slot, Errand::Delete, After::Delete);
                }
                self.delete(&id)?;
            }
            Call::Shutdown => self.ending = true,
        }
        Ok(Outcome::Now(Answer::Done))
    }

    fn slot(&self, id: &str) -> Result<u64, CallError> {
        let found = self.containers.iter().find(|(_, container)| container.config.id == id);
        found
            .map(|(slot, _)| *slot)
            .ok_or_else(|| CallError::new(format!("no container {id} in this sandbox")))
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, CallError> {
        let slot = self.slot(id)?;
        self.containers.get_mut(&slot).ok_or_else(|| CallError::new("no such container"))
    }

    /// Makes a container known. Repeating it for one that does not run makes it anew.
    fn create(&mut self, config: ContainerConfig) -> Result<(), CallError> {
        if let Ok(slot) = self.slot(&config.id) {
            // Made for a client that attached before the start: it is kept with its clients.
            let made = self
                .containers
                .get(&slot)
                .is_some_and(|container| container.state == State::Created && container.config == config);
            if made {
                return Ok(());
            }
            self.delete(&config.id)?;
        }
        let mut log = Log::new(&config.log, config.log_max_bytes, LOG_FILES_KEPT);
        log.open().map_err(|error| failed("opening the log", &error))?;
        let slot = self.poller.fresh();
        let streams = Streams::new(slot, log, config.stdin_once);
        self.containers.insert(slot, Container { config, state: State::Created, streams, size: None });
        Ok(())
    }

    fn delete(&mut self, id: &str) -> Result<(), CallError> {
        let slot = self.slot(id)?;
        if self.is_starting(slot) {
            return Err(CallError::new("the container is being started"));
        }
        if let Some(container) = self.containers.get_mut(&slot) {
            if matches!(container.state, State::Running { .. }) {
                return Err(CallError::new("the container runs"));
            }
            container.streams.finish(&mut self.poller, Timestamp::now());
            // Nameless from here, and gone once clients that are behind have their rest.
            container.config.id.clear();
        }
        self.forget_drained();
        Ok(())
    }

    fn forget_drained(&mut self) {
        self.containers
            .retain(|_, container| !container.config.id.is_empty() || !container.streams.is_drained());
    }

    fn attach(&mut self, id: &str, stdin: bool, fds: Vec<OwnedFd>) -> Result<(), CallError> {
        let slot = self.slot(id)?;
        let Some(container) = self.containers.get_mut(&slot) else { return Ok(()) };
        if matches!(container.state, State::Exited { .. }) {
            return Err(CallError::new("the container has ended"));
        }
        let streams: &[Stream] =
            if container.config.terminal { &[Stream::Stdout] } else { &[Stream::Stdout, Stream::Stderr] };
        if fds.len() != streams.len() + usize::from(stdin) {
            return Err(CallError::new("attach came with a wrong number of descriptors"));
        }
        let mut fds = fds.into_iter();
        let attached = (|| {
            for (stream, fd) in streams.iter().zip(fds.by_ref()) {
                container.streams.attach_sink(&mut self.poller, *stream, fd)?;
            }
            fds.next().map_or(Ok(()), |fd| container.streams.attach_feed(&mut self.poller, fd))
        })();
        attached.map_err(|error| failed("attaching", &error))
    }

    fn signal_first(&self, slot: u64, signal: i32) -> Result<(), CallError> {
        self.signal(|kind| matches!(kind, Kind::First(of) if *of == slot), signal)
    }

    fn signal(&self, which: impl Fn(&Kind) -> bool, signal: i32) -> Result<(), CallError> {
        let process = self.processes.values().find(|process| which(&process.kind));
        let process = process.ok_or_else(|| CallError::new("the process does not run"))?;
        process.pidfd.signal(signal).map_err(|error| failed("sending the signal", &error))
    }

    fn start(&mut self, peer: u64, call: u64, id: &str) -> Result<Outcome, CallError> {
        let slot = self.slot(id)?;
        let busy = self.is_starting(slot);
        let Some(container) = self.containers.get_mut(&slot) else { return Ok(Outcome::Later) };
        if busy || container.state != State::Created {
            return Err(CallError::new("the container was started already"));
        }
        let ends =
            connect_pipes(container, &mut self.poller).map_err(|error| failed("making pipes", &error))?;
        let launch = Launch {
            id: id.to_owned(),
            bundle: container.config.bundle.clone(),
            exec: None,
            terminal: container.config.terminal,
            asked_ns: steps::now_ns(),
            runtime: container.config.runtime.clone(),
            users: container.config.users,
            cgroup_entrances: container.config.cgroup_entrances.clone(),
            errand: None,
        };
        let ends: Vec<BorrowedFd<'_>> = ends.iter().map(AsFd::as_fd).collect();
        self.launch(peer, call, &launch, &ends, Kind::First(slot))
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one call")]
    fn exec(
        &mut self,
        peer: u64,
        call: u64,
        id: &str,
        exec_id: String,
        process: std::path::PathBuf,
        terminal: bool,
        fds: &[OwnedFd],
    ) -> Result<Outcome, CallError> {
        let container = self.container(id)?;
        if !matches!(container.state, State::Running { .. }) {
            return Err(CallError::new("the container does not run"));
        }
        if fds.len() != if terminal { 0 } else { 3 } {
            return Err(CallError::new("exec came with a wrong number of descriptors"));
        }
        let launch = Launch {
            id: id.to_owned(),
            bundle: container.config.bundle.clone(),
            exec: Some(process),
            terminal,
            asked_ns: steps::now_ns(),
            runtime: container.config.runtime.clone(),
            users: container.config.users,
            cgroup_entrances: container.config.cgroup_entrances.clone(),
            errand: None,
        };
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        self.launch(peer, call, &launch, &fds, Kind::Exec(exec_id))
    }

    fn launch(
        &mut self,
        peer: u64,
        call: u64,
        launch: &Launch,
        fds: &[BorrowedFd<'_>],
        kind: Kind,
    ) -> Result<Outcome, CallError> {
        // One that has been killed meanwhile takes nothing.
        let prepared = self.waiting.take().and_then(|waiting| waiting.give(launch, fds).ok());
        let started = prepared.map_or_else(|| Waiting::new()?.give(launch, fds), Ok);
        let (child, socket) = started.map_err(|error| failed("starting a launcher", &error))?;
        let id = self.poller.fresh();
        let token =
            self.poller.readable(&socket, Source::Launcher(id)).map_err(|error| failed("waiting", &error))?;
        let (terminal, process_file) = (launch.terminal, launch.exec.clone());
        self.launching
            .insert(id, Launching { child, socket, token, peer, call, kind, terminal, process_file });
        Ok(Outcome::Later)
    }

    /// A container of another runtime that has run and ended, of which that runtime still knows.
    fn known_outside(&self, id: &str) -> Option<u64> {
        let slot = self.slot(id).ok()?;
        let container = self.containers.get(&slot)?;
        let ended = matches!(container.state, State::Exited { .. });
        (ended && container.config.runtime.is_some()).then_some(slot)
    }

    fn runs_outside(&self, slot: u64) -> bool {
        self.containers.get(&slot).is_some_and(|container| {
            matches!(container.state, State::Running { .. }) && container.config.runtime.is_some()
        })
    }

    /// Has a launcher ask a container's runtime for something.
    fn run_errand(
        &mut self,
        peer: u64,
        call: u64,
        slot: u64,
        errand: Errand,
        after: After,
    ) -> Result<Outcome, CallError> {
        let Some(container) = self.containers.get(&slot) else {
            return Err(CallError::new("no such container"));
        };
        let launch = Launch {
            id: container.config.id.clone(),
            bundle: container.config.bundle.clone(),
            exec: None,
            terminal: false,
            asked_ns: steps::now_ns(),
            runtime: container.config.runtime.clone(),
            users: false,
            cgroup_entrances: Vec::new(),
            errand: Some(errand),
        };
        self.launch(peer, call, &launch, &[], Kind::Errand(slot, after))
    }

    /// Another runtime has done what it was asked, or has not: then there is nothing more that it could be asked.
    fn after_errand(&mut self, slot: u64, after: After, done: bool) -> Result<Answer, CallError> {
        match after {
            After::Signal(signal) if !done => self.signal_first(slot, signal)?,
            After::Signal(_) => {}
            After::Create(config) => self.create(*config)?,
            After::Delete => {
                let id = self.containers.get(&slot).map(|container| container.config.id.clone());
                id.filter(|id| !id.is_empty()).map_or(Ok(()), |id| self.delete(&id))?;
            }
        }
        Ok(Answer::Done)
    }

    /// A launcher answered or died. It ends right after its answer, and only then what it started is the shim's child.
    fn on_launcher(&mut self, id: u64) {
        let Some(mut launch) = self.launching.remove(&id) else { return };
        let received = launch::receive(&launch.socket);
        self.poller.remove(&launch.socket, launch.token);
        if received.is_err() {
            let _ = launch.child.kill();
        }
        let _ = launch.child.wait();
        if let Some(file) = &launch.process_file {
            let _ = std::fs::remove_file(file);
        }
        if let Kind::Errand(slot, after) = launch.kind {
            let done = matches!(received, Ok((Launched::Done, _)));
            let result = self.after_errand(slot, after, done);
            self.send(launch.peer, &FromShim::Reply { id: launch.call, result }, &[]);
            return self.reap_strays();
        }
        let result = match received {
            Ok((Launched::Done, _)) => Err(CallError::new("the launcher started nothing")),
            Ok((Launched::Running { pid, steps: taken }, fds)) => {
                let mut steps = Steps::after(taken);
                steps.took("shim: take over");
                self.adopt(pid, fds, launch.kind.clone(), launch.terminal, steps.into_taken())
            }
            Ok((Launched::Failed(error), _)) => Err(error),
            Err(error) => Err(failed("the launcher", &error)),
        };
        if let Kind::First(slot) = launch.kind {
            self.tell_start(slot, launch.peer, result.as_ref().map(|(answer, _)| answer));
        }
        match result {
            Ok((answer, master)) => {
                let fds: Vec<BorrowedFd<'_>> = master.iter().map(AsFd::as_fd).collect();
                self.send(launch.peer, &FromShim::Reply { id: launch.call, result: Ok(answer) }, &fds);
            }
            Err(error) => {
                if let Kind::First(slot) = launch.kind {
                    self.with_streams(slot, |streams, poller| streams.finish(poller, Timestamp::now()));
                }
                self.send(launch.peer, &FromShim::Reply { id: launch.call, result: Err(error) }, &[]);
            }
        }
        self.reap_strays();
    }

    /// Tells daemons that did not ask for it what came of a start: the one that did may be gone.
    fn tell_start(&mut self, slot: u64, asked: u64, result: Result<&Answer, &CallError>) {
        let Some(container) = self.containers.get(&slot) else { return };
        let id = container.config.id.clone();
        let event = match result {
            Ok(Answer::Started { pid, started_at, .. }) => {
                Event::Started { id, pid: *pid, started_at: *started_at }
            }
            Ok(Answer::Done) => return,
            Err(error) => Event::NotStarted { id, error: error.clone() },
        };
        self.tell(event, Some(asked));
    }

    /// Takes over a process that a launcher started. Answers an exec's terminal too.
    fn adopt(
        &mut self,
        pid: u32,
        fds: Vec<OwnedFd>,
        kind: Kind,
        terminal: bool,
        steps: Vec<Step>,
    ) -> Result<(Answer, Option<OwnedFd>), CallError> {
        let mut fds = fds.into_iter();
        let (Some(pidfd), master) = (fds.next(), fds.next()) else {
            return Err(CallError::new("the launcher sent no process handle"));
        };
        if terminal && master.is_none() {
            return Err(CallError::new("the launcher sent no terminal"));
        }
        let started_at = Timestamp::now();
        let mut answer_with = master;
        if let Kind::First(slot) = &kind
            && let Some(container) = self.containers.get_mut(slot)
        {
            container.state = State::Running { pid, started_at };
            if let Some(master) = answer_with.take() {
                connect_terminal(container, &mut self.poller, master)
                    .map_err(|error| failed("connecting the terminal", &error))?;
            }
        }
        let pidfd = Pidfd::from_fd(pidfd);
        let token =
            self.poller.readable(&pidfd, Source::Process(pid)).map_err(|error| failed("waiting", &error))?;
        self.processes.insert(pid, Process { pidfd, token, kind });
        Ok((Answer::Started { pid, started_at, steps }, answer_with))
    }

    /// A process that the shim waits for has ended.
    fn on_process(&mut self, pid: u32) {
        let Ok(Some(ended)) = sys::children::try_reap(pid) else { return };
        let Some(process) = self.processes.remove(&pid) else { return };
        self.poller.remove(&process.pidfd, process.token);
        match process.kind {
            Kind::First(slot) => self.on_first_ended(slot, ended),
            Kind::Exec(exec_id) => {
                let exit = record(ended, false);
                self.tell_all(Event::ExecExited { exec_id, exit });
            }
            Kind::Errand(..) => {}
        }
    }

    fn on_first_ended(&mut self, slot: u64, ended: Ended) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        // Without a PID namespace of its own, what the first process left behind lives on: it ends with its container.
        for pid in container.config.members.iter().flat_map(|file| members(file)) {
            let _ = sys::process::signal(pid, 9);
        }
        container.streams.finish(&mut self.poller, Timestamp::now());
        let oom_killed =
            container.config.oom_events.as_ref().is_some_and(|file| sys::cgroup::oom_kills(file) > 0);
        let exit = record(ended, oom_killed);
        if let Ok(bytes) = shim::encode(&exit) {
            let _ = sys::files::write_atomic(&container.config.bundle.join(EXIT_FILE), &bytes);
        }
        let started_at = match container.state {
            State::Running { started_at, .. } => Some(started_at),
            _ => None,
        };
        container.state = State::Exited { started_at, exit: exit.clone() };
        let id = container.config.id.clone();
        self.tell_of_log(slot);
        self.tell_all(Event::Exited { id, exit });
    }

    /// Reaps orphans that came to the shim, and handles known processes on the way. A launcher that has ended is left
    /// to the event of its socket, after which this runs again.
    fn reap_strays(&mut self) {
        while let Ok(Some(pid)) = sys::children::peek() {
            if self.processes.contains_key(&pid) {
                self.on_process(pid);
                continue;
            }
            if let Some(waiting) = self.waiting.take_if(|waiting| waiting.is(pid)) {
                // By its handle, which knows then that the number is another's.
                waiting.end();
                continue;
            }
            let launcher = self.launching.values().any(|launch| launch.child.id() == pid);
            if launcher || sys::children::try_reap(pid).is_err() {
                return;
            }
        }
    }

    /// Kills what is left. The containers' other processes end with their PID namespaces or by the daemon, by cgroup.
    fn end(&mut self) {
        for launch in self.launching.values_mut() {
            // It may hang: what ends it is not waited for.
            let _ = launch.child.kill();
        }
        if let Some(waiting) = self.waiting.take() {
            waiting.end();
        }
        for (pid, process) in &self.processes {
            if process.pidfd.signal(9).is_ok() {
                let _ = sys::children::reap(*pid);
            }
        }
        let made = self.containers.values().filter(|container| container.state != State::Created);
        outside::delete_all(made.filter_map(|container| {
            let (bundle, id) = (&container.config.bundle, container.config.id.as_str());
            container.config.runtime.as_ref().map(|program| Runtime { program, bundle, id })
        }));
        if let Some(mut init) = self.init.take() {
            let _ = init.kill();
            let _ = init.wait();
        }
    }
}

fn record(ended: Ended, oom_killed: bool) -> ExitRecord {
    ExitRecord { code: ended.code, signal: ended.signal, oom_killed, finished_at: Timestamp::now() }
}

fn members(file: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect()
}

fn failed(what: &str, error: &io::Error) -> CallError {
    CallError::new(format!("{what}: {error}"))
}

/// Makes a container's pipes, keeps the shim's ends and answers the container's: input, output, error. None with a
/// terminal.
fn connect_pipes(container: &mut Container, poller: &mut Poller) -> io::Result<Vec<OwnedFd>> {
    if container.config.terminal {
        return Ok(Vec::new());
    }
    let mut ends = Vec::with_capacity(3);
    if container.config.stdin {
        let (reader, writer) = io::pipe()?;
        container.streams.connect_input(poller, writer.into())?;
        ends.push(reader.into());
    } else {
        ends.push(std::fs::File::open("/dev/null")?.into());
    }
    for stream in [Stream::Stdout, Stream::Stderr] {
        let (reader, writer) = io::pipe()?;
        container.streams.connect_output(poller, stream, reader.into())?;
        ends.push(writer.into());
    }
    Ok(ends)
}

fn connect_terminal(container: &mut Container, poller: &mut Poller, master: OwnedFd) -> io::Result<()> {
    if let Some((rows, columns)) = container.size {
        sys::tty::set_size(&master, rows, columns)?;
    }
    if container.config.stdin {
        container.streams.connect_input(poller, master.try_clone()?)?;
    }
    container.streams.connect_output(poller, Stream::Stdout, master)
}
