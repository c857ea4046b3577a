//! The connection to a shim: calls with answers by id, events in order.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engine_api::{EngineError, ErrorKind};
use parking_lot::Mutex;
use shim::{Answer, Call, CallError, ContainerReport, ExitRecord, FromShim, MAX_MESSAGE, Step, ToShim};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedMutexGuard, oneshot};

/// How long a shim may take to make its namespaces and greet.
const GREETING_MAX: Duration = Duration::from_secs(30);
/// How long a shim may take for what it answers at once, or after another runtime's errand.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// How long it may take to execute a process. Source: upstream's `runtimeRequestTimeout`.
const EXECUTION_MAX: Duration = Duration::from_secs(120);
/// How long a start may take: another runtime has that long for each of its steps, and takes back what failed.
const START_MAX: Duration = Duration::from_secs(300);

/// What a call came to.
pub(crate) type Outcome = Result<(Answer, Vec<OwnedFd>), CallError>;

/// A call that waits for its answer.
pub(crate) struct Waiting {
    reply: oneshot::Sender<Outcome>,
    /// The container that it starts: its state has to change before any later event is looked at.
    pub(crate) starts: Option<String>,
    /// The further process that it executes.
    pub(crate) executes: Option<String>,
}

impl Waiting {
    /// Answers whether whoever asked still waits.
    pub(crate) fn answer(self, outcome: Outcome) -> bool {
        self.reply.send(outcome).is_ok()
    }
}

/// A call that is under way: who stops waiting for its answer is forgotten.
struct Asked<'a> {
    link: &'a Link,
    id: u64,
    executes: Option<String>,
    /// What a start or a further process came to is looked at whoever waits.
    kept: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.link.take(self.id);
            if let Some(exec_id) = &self.executes {
                self.link.forget_exec(exec_id);
            }
        }
    }
}

/// A connection to a shim.
pub(crate) struct Link {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    /// `None` once the connection is closed.
    waiting: Mutex<Option<HashMap<u64, Waiting>>>,
    execs: Mutex<HashMap<String, oneshot::Sender<ExitRecord>>>,
    /// Containers whose start an earlier daemon asked for, by id, with their gates: until the shim has told what came of
    /// it, nothing else is done with them.
    starting: Mutex<HashMap<String, OwnedMutexGuard<()>>>,
    /// The shim's version of the protocol.
    version: u32,
}

/// What a shim says first.
pub(crate) struct Welcome {
    pub(crate) pid: u32,
    pub(crate) containers: Vec<ContainerReport>,
    pub(crate) steps: Vec<Step>,
}

impl Link {
    /// Connects to the shim of the sandbox directory `dir` and greets it.
    pub(crate) async fn open(dir: &Path) -> io::Result<(Self, Welcome)> {
        let socket = sys::watch::watch(sys::seqpacket::connect(dir, shim::SOCKET)?)?;
        let mut link = Self {
            socket,
            next: AtomicU64::new(0),
            waiting: Mutex::new(Some(HashMap::new())),
            execs: Mutex::new(HashMap::new()),
            starting: Mutex::new(HashMap::new()),
            version: 0,
        };
        let greeting = async {
            link.send(&ToShim::Hello { version: shim::VERSION }, &[]).await?;
            link.receive().await
        };
        let greeted = tokio::time::timeout(GREETING_MAX, greeting).await;
        match greeted.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the shim does not answer"))?? {
            Some((FromShim::Welcome { version, pid, containers, steps }, _)) => {
                shim::check_version(version).map_err(io::Error::other)?;
                link.version = version;
                Ok((link, Welcome { pid, containers, steps }))
            }
            Some((FromShim::Failed { message }, _)) => Err(io::Error::other(message)),
            Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the shim did not greet")),
            None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the shim ended while it started")),
        }
    }

    async fn send(&self, message: &ToShim, fds: &[OwnedFd]) -> io::Result<()> {
        let bytes = shim::encode(message)?;
        let send = |socket: &OwnedFd| {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            sys::seqpacket::send(socket, &bytes, &fds)
        };
        self.socket.async_io(Interest::WRITABLE, send).await
    }

    /// The next message; `None` at the end of the connection.
    pub(crate) async fn receive(&self) -> io::Result<Option<(FromShim, Vec<OwnedFd>)>> {
        let receive = |socket: &OwnedFd| {
            let mut buffer = vec![0; MAX_MESSAGE];
            let (length, fds) = sys::seqpacket::recv(socket, &mut buffer)?;
            buffer.truncate(length);
            Ok((buffer, fds))
        };
        let (bytes, fds) = self.socket.async_io(Interest::READABLE, receive).await?;
        if bytes.is_empty() { Ok(None) } else { Ok(Some((shim::decode(&bytes)?, fds))) }
    }

    /// Asks the shim for something and waits for its answer: bounded, since a stopped shim gives none.
    pub(crate) async fn call(&self, call: Call, fds: Vec<OwnedFd>) -> Result<Outcome, EngineError> {
        if call.since() > self.version {
            let message = format!(
                "the sandbox's shim is of an older skiff (version {} of its protocol) and lacks what is asked for \
                 (version {}): make the sandbox anew",
                self.version,
                call.since()
            );
            return Err(EngineError::new(ErrorKind::Unsupported, message));
        }
        let starts = match &call {
            Call::Start { id } => Some(id.clone()),
            _ => None,
        };
        let executes = match &call {
            Call::Exec { exec_id, .. } => Some(exec_id.clone()),
            _ => None,
        };
        let patience = patience(&call);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let mut asked = Asked { link: self, id, executes: executes.clone(), kept: false };
        let kept = starts.is_some() || executes.is_some();
        match self.waiting.lock().as_mut() {
            Some(waiting) => waiting.insert(id, Waiting { reply, starts, executes }),
            None => return Err(lost()),
        };
        let answered = async {
            let sent = self.send(&ToShim::Call { id, call }, &fds).await;
            sent.map_err(|error| EngineError::internal("calling the shim", &error))?;
            asked.kept = kept;
            drop(fds);
            answer.await.map_err(|_| lost())
        };
        tokio::time::timeout(patience, answered).await.unwrap_or_else(|_| Err(silent(patience)))
    }

    /// As [`Link::call`], where a refusal is an error and nothing is answered.
    pub(crate) async fn request(&self, call: Call) -> Result<(), EngineError> {
        self.call(call, Vec::new()).await?.map(drop).map_err(refused)
    }

    /// Whether a container's start was asked for and not answered yet: who asked may have given up.
    pub(crate) fn is_starting(&self, container: &str) -> bool {
        let waiting = self.waiting.lock();
        let mut calls = waiting.iter().flat_map(HashMap::values);
        calls.any(|call| call.starts.as_deref() == Some(container))
    }

    /// Takes the call that an answer is for.
    pub(crate) fn take(&self, id: u64) -> Option<Waiting> {
        self.waiting.lock().as_mut()?.remove(&id)
    }

    /// Where the end of a process that is about to be executed will be told.
    pub(crate) fn expect_exec(&self, exec_id: &str) -> oneshot::Receiver<ExitRecord> {
        let (sender, receiver) = oneshot::channel();
        self.execs.lock().insert(exec_id.to_owned(), sender);
        receiver
    }

    /// A process will not be executed after all.
    pub(crate) fn forget_exec(&self, exec_id: &str) {
        self.execs.lock().remove(exec_id);
    }

    /// A process that was executed has ended.
    pub(crate) fn exec_ended(&self, exec_id: &str, exit: ExitRecord) {
        if let Some(sender) = self.execs.lock().remove(exec_id) {
            let _ = sender.send(exit);
        }
    }

    /// A container is being started, as an earlier daemon asked: its gate stays closed until that has come to its end.
    pub(crate) fn hold(&self, container: &str, gate: OwnedMutexGuard<()>) {
        self.starting.lock().insert(container.to_owned(), gate);
    }

    /// What was being started has been, or will not be.
    pub(crate) fn let_go(&self, container: &str) {
        self.starting.lock().remove(container);
    }

    /// The containers whose start is under way.
    pub(crate) fn held(&self) -> Vec<String> {
        self.starting.lock().keys().cloned().collect()
    }

    /// The connection is at its end: whoever waits learns so.
    pub(crate) fn close(&self) {
        self.waiting.lock().take();
        self.execs.lock().clear();
        self.starting.lock().clear();
    }
}

fn patience(call: &Call) -> Duration {
    match call {
        Call::Start { .. } => START_MAX,
        Call::Exec { .. } => EXECUTION_MAX,
        _ => ANSWER_MAX,
    }
}

fn silent(patience: Duration) -> EngineError {
    let message = format!(
        "the sandbox's shim has not answered for {} s: it may be stopped or stuck",
        patience.as_secs()
    );
    EngineError::new(ErrorKind::Internal, message)
}

fn lost() -> EngineError {
    EngineError::new(ErrorKind::Internal, "the connection to the sandbox's shim was lost")
}

/// A shim's refusal as an error of the engine.
pub(crate) fn refused(error: CallError) -> EngineError {
    EngineError::new(ErrorKind::Conflict, error.message)
}
