//! The one writer: a thread that turns queued requests into frames of the log.
//!
//! It takes whatever is queued, decides each request in order, writes all of them as one frame, waits until the frame
//! is durable, publishes, and only then answers. Requests that arrive meanwhile form the next frame: the slower the
//! disk, the larger the group. Where several write at once, it waits for a moment before it takes what is queued: one
//! wait for the disk then serves more of them (as PostgreSQL's `commit_delay` does, with `commit_siblings` 1).

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::bases::Bases;
use super::state::State;
use crate::log::{FrameBuf, Log};
use crate::{LeaseId, Revision, StoreError, Txn, TxnResponse};

/// Requests that wait for the writer; more wait in their callers.
const QUEUE: usize = 1024;
/// A frame takes no further request when it has so many bytes.
const FRAME_BYTES: usize = 4 << 20;
/// The writer waits for others that write so long at most, and no longer than the disk took the last time.
const GATHER_MAX: Duration = Duration::from_micros(500);

/// What readers, watches, timer and writer share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: RwLock<State>,
    /// Told when the timer has to look again: the next lease's deadline may have come nearer, or there is no room.
    pub(crate) leases_changed: Notify,
}

/// Where an answer goes. The caller may be gone: then it is dropped.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// A request that writes.
pub(crate) enum Job {
    Txn(Txn, Answer<TxnResponse>),
    Compact(Revision, Answer<()>),
    Grant(Duration, Answer<LeaseId>),
    Revoke(LeaseId, Answer<()>),
    /// Ends a lease if its time is still over when the writer comes to it.
    Expire(LeaseId, Answer<()>),
    /// Asks for nothing: look at `stopping`.
    Wake,
}

/// An answer that waits for the frame to be durable.
enum Reply {
    None,
    Txn(Answer<TxnResponse>, Result<TxnResponse, StoreError>),
    Unit(Answer<()>, Result<(), StoreError>),
    Grant(Answer<LeaseId>, Result<LeaseId, StoreError>),
}

/// The writer's thread, stopped and joined when dropped: what was queued is written first.
#[derive(Debug)]
pub(crate) struct Writer {
    jobs: mpsc::Sender<Job>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn start(shared: Arc<Shared>, log: Log, base_bytes_min: u64) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let stopping = Arc::new(AtomicBool::new(false));
        let (bases, stop) = (Bases::new(base_bytes_min), stopping.clone());
        let work = Work { shared, log, frame: FrameBuf::new(), held: None, bases };
        #[allow(clippy::disallowed_methods, reason = "blocking file I/O; joined when this is dropped")]
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || work.run(queue, &stop))?;
        Ok(Self { jobs, stopping, thread: Some(thread) })
    }

    /// Where requests go.
    pub(crate) fn jobs(&self) -> &mpsc::Sender<Job> {
        &self.jobs
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // A full queue wakes the thread as well.
        let _ = self.jobs.try_send(Job::Wake);
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the store's writer panicked");
        }
    }
}

/// What the thread owns.
struct Work {
    shared: Arc<Shared>,
    log: Log,
    frame: FrameBuf,
    /// The first revision of `frame`, where the disk had no room for it. It is decided, so it has to come next.
    held: Option<Revision>,
    bases: Bases,
}

impl Work {
    fn run(mut self, mut queue: mpsc::Receiver<Job>, stopping: &AtomicBool) {
        let mut received = Vec::new();
        let (mut before, mut took) = (0, Duration::ZERO);
        while queue.blocking_recv_many(&mut received, QUEUE) > 0 {
            // Those who were answered together will probably ask again together.
            if received.len() < before {
                gather(took);
                while received.len() < QUEUE
                    && let Ok(job) = queue.try_recv()
                {
                    received.push(job);
                }
            }
            before = received.len();
            let since = Instant::now();
            if stopping.load(Ordering::Acquire) {
                // What is queued is still written; then the queue ends.
                queue.close();
            }
            let mut jobs: VecDeque<_> = received.drain(..).collect();
            while !jobs.is_empty() {
                self.write(&mut jobs);
            }
            took = since.elapsed();
        }
        self.shared.state.write().fail(StoreError::Unavailable("the store is closed".to_owned()));
    }

    /// Takes jobs for one frame and answers them when it is durable.
    fn write(&mut self, jobs: &mut VecDeque<Job>) {
        if !self.write_held() {
            let mut state = self.shared.state.write();
            let refused: Vec<_> = jobs.drain(..).map(|job| stage(&mut state, job, &mut Vec::new())).collect();
            drop(state);
            return refused.into_iter().for_each(Reply::send);
        }
        self.frame.clear();
        let (revision, replies) = {
            let mut state = self.shared.state.write();
            let revision = state.next_revision();
            let mut replies = Vec::with_capacity(jobs.len());
            while self.frame.len() < FRAME_BYTES
                && let Some(job) = jobs.pop_front()
            {
                replies.push(stage(&mut state, job, self.frame.records()));
            }
            (revision, replies)
        };
        let written = if self.frame.is_empty() { Ok(()) } else { self.log.append(&mut self.frame, revision) };
        match written {
            Ok(()) => {
                let compacted = self.shared.state.write().publish(Instant::now());
                if replies.iter().any(|reply| matches!(reply, Reply::Grant(..))) {
                    self.shared.leases_changed.notify_one();
                }
                replies.into_iter().for_each(Reply::send);
                self.compacted(compacted);
            }
            Err(error) => {
                let error = self.not_written(revision, &error);
                replies.into_iter().for_each(|reply| reply.refuse(&error));
            }
        }
    }

    /// Writes the frame that had no room, if there is one. Answers whether others may follow.
    fn write_held(&mut self) -> bool {
        // What is staged may not be on disk: nothing may be published any more.
        if self.shared.state.read().failed.is_some() {
            return false;
        }
        let Some(revision) = self.held else { return true };
        if let Err(error) = self.log.append(&mut self.frame, revision) {
            self.not_written(revision, &error);
            return false;
        }
        tracing::info!("the store has room again");
        self.held = None;
        let compacted = {
            let mut state = self.shared.state.write();
            state.full = None;
            state.publish(Instant::now())
        };
        self.shared.leases_changed.notify_one();
        self.compacted(compacted);
        true
    }

    /// A frame is not on disk. Where there was no room for it, it is kept and goes first when somebody asks again, who is
    /// refused until then; after any other failure, only opening the store anew tells what reached the disk.
    fn not_written(&mut self, revision: Revision, error: &io::Error) -> StoreError {
        let mut state = self.shared.state.write();
        if has_no_room(error) {
            let error = StoreError::Unavailable(format!(
                "cannot write the log: {error}. Writes are refused until there is room again; those \
                 refused first may take effect then"
            ));
            if self.held.replace(revision).is_none() {
                tracing::error!(%error, "the store has no room");
                self.shared.leases_changed.notify_one();
            }
            state.full = Some(error.clone());
            return error;
        }
        let error = StoreError::Unavailable(format!(
            "cannot write the log: {error}. The store refuses writes until it is restarted"
        ));
        tracing::error!(%error, "the store failed");
        // Nobody waits for room any more.
        state.full = None;
        state.fail(error.clone());
        error
    }

    fn compacted(&mut self, revision: Option<Revision>) {
        if let Some(revision) = revision {
            self.bases.compacted(revision, &mut self.log, &self.shared);
        }
    }
}

/// Whether a write failed for what passes without a trace: all of it can be written again.
fn has_no_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem
    )
}

/// Gives others, who may write just now, the time to say so.
#[allow(clippy::disallowed_methods, reason = "it is time that is waited for: who comes later is not missed")]
fn gather(took: Duration) {
    std::thread::sleep(took.min(GATHER_MAX));
}

/// Decides one job; its record goes to `log`.
fn stage(state: &mut State, job: Job, log: &mut Vec<u8>) -> Reply {
    if let Some(error) = state.refusal() {
        return match job {
            Job::Wake => Reply::None,
            Job::Txn(_, answer) => Reply::Txn(answer, Err(error)),
            Job::Grant(_, answer) => Reply::Grant(answer, Err(error)),
            Job::Compact(_, answer) | Job::Revoke(_, answer) | Job::Expire(_, answer) => {
                Reply::Unit(answer, Err(error))
            }
        };
    }
    match job {
        Job::Wake => Reply::None,
        Job::Txn(txn, answer) => Reply::Txn(answer, state.stage_txn(txn, log)),
        Job::Compact(revision, answer) => Reply::Unit(answer, state.stage_compact(revision, log)),
        Job::Grant(ttl, answer) => Reply::Grant(answer, state.stage_grant(ttl, log)),
        Job::Revoke(lease, answer) => Reply::Unit(answer, state.stage_revoke(lease, log)),
        Job::Expire(lease, answer) if state.leases.is_expired(lease, Instant::now()) => {
            Reply::Unit(answer, state.stage_revoke(lease, log))
        }
        Job::Expire(_, answer) => Reply::Unit(answer, Ok(())),
    }
}

impl Reply {
    /// Answers. A caller that is gone is no failure.
    fn send(self) {
        match self {
            Self::None => {}
            Self::Txn(answer, result) => drop(answer.send(result)),
            Self::Unit(answer, result) => drop(answer.send(result)),
            Self::Grant(answer, result) => drop(answer.send(result)),
        }
    }

    /// Answers with the disk's failure, whatever was decided.
    fn refuse(self, error: &StoreError) {
        match self {
            Self::None => {}
            Self::Txn(answer, _) => drop(answer.send(Err(error.clone()))),
            Self::Unit(answer, _) => drop(answer.send(Err(error.clone()))),
            Self::Grant(answer, _) => drop(answer.send(Err(error.clone()))),
        }
    }
}
