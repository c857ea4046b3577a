//! The embedded store: every version in memory, every write in a log that is synced before the answer.

mod bases;
mod history;
mod index;
mod lease;
mod state;
mod validate;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::lifecycle::Tasks;
use futures::StreamExt as _;
use futures::stream;
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

pub use validate::{REQUEST_BYTES_MAX, TXN_OPS_MAX};

use crate::log::backend::Backend;
use crate::log::{Log, OpenError, Sizes};
use crate::{
    LeaseId, RangeRequest, RangeResponse, Revision, Store, StoreError, Txn, TxnResponse, WatchRequest,
    WatchStream,
};
use history::{Poll, Watcher};
use index::{Range, Walk};
use state::{Found, State};
use writer::{Answer, Job, Shared, Writer};

/// So many keys of a range are read before others get their turn.
const KEYS_PER_TURN: usize = 4096;
/// What had no room on the disk is tried again after this time, where nobody asks for it before.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// The settings of the embedded store. Sizes are bytes.
#[derive(Debug, Clone)]
pub struct EmbeddedConfig {
    /// A log segment that has reached this size is followed by a new one.
    pub segment_bytes: u64,
    /// Zeros are written so far ahead of the data, as a sync that changes no file size costs half.
    pub ahead_bytes: u64,
    /// A compaction rewrites the live state when that frees at least so many bytes (and more than it writes).
    pub base_bytes_min: u64,
    /// A watch with progress is told, when something else is written, after it heard nothing for so long.
    pub progress_interval: Duration,
}

impl EmbeddedConfig {
    /// What a running cluster uses.
    pub const STANDARD: Self = Self {
        segment_bytes: 16 << 20,
        ahead_bytes: 1 << 20,
        base_bytes_min: 16 << 20,
        progress_interval: Duration::from_secs(5),
    };
}

/// The embedded store. Dropping the last handle writes what is queued and ends its thread and its watches.
pub struct Embedded {
    shared: Arc<Shared>,
    writer: Writer,
    backend: Arc<dyn Backend>,
    /// Ends the lease timer with the store.
    _timer: Tasks,
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded").finish_non_exhaustive()
    }
}

impl Embedded {
    /// Opens the store in `backend`, replaying what it holds, or creates an empty one.
    ///
    /// Reads the whole log: call it where blocking is allowed, within a tokio runtime (it starts the lease timer).
    pub fn open(backend: Arc<dyn Backend>, config: EmbeddedConfig) -> Result<Arc<Self>, OpenError> {
        let mut state = State::new(config.progress_interval);
        let sizes = Sizes { segment: config.segment_bytes, ahead: config.ahead_bytes };
        let log = Log::open(backend.clone(), sizes, &mut state)?;
        state.leases.rearm(Instant::now());
        let shared =
            Arc::new(Shared { state: RwLock::new(state), leases_changed: tokio::sync::Notify::new() });
        let writer = Writer::start(shared.clone(), log, config.base_bytes_min)
            .map_err(|source| OpenError::Io { what: "start the store's writer".to_owned(), source })?;
        let timer = Tasks::default();
        timer.spawn(expire_leases(shared.clone(), writer.jobs().clone()));
        Ok(Arc::new(Self { shared, _timer: timer, writer, backend }))
    }

    /// Queues a job and waits for its answer.
    async fn ask<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T, StoreError> {
        let ended = || StoreError::Unavailable("the store's writer has ended".to_owned());
        ask(self.writer.jobs(), job).await.ok_or_else(ended)?
    }

    /// Collects a range in turns, all at the same revision. `None` if that was compacted away between two turns.
    async fn collect(&self, request: &RangeRequest) -> Result<Option<RangeResponse>, StoreError> {
        let (newest, at) = {
            let state = self.shared.state.read();
            (state.visible, state.read_revision(request.revision, state.visible)?)
        };
        let mut found = Found::new(request, newest);
        let mut rest = Some(Range::new(request.key.clone(), request.end.clone()));
        while let Some(range) = rest {
            {
                let state = self.shared.state.read();
                if at < state.compacted {
                    return Ok(None);
                }
                let walk = Walk { at, max: KEYS_PER_TURN };
                rest =
                    state.index.walk(&range, walk, |_, hit| found.add(|keys_only| hit.key_value(keys_only)));
            }
            if rest.is_some() {
                tokio::task::yield_now().await;
            }
        }
        Ok(Some(found.response))
    }
}

/// Queues a job and waits for its answer; `None` if the writer has ended.
async fn ask<T>(
    jobs: &mpsc::Sender<Job>,
    job: impl FnOnce(Answer<T>) -> Job,
) -> Option<Result<T, StoreError>> {
    let (answer, result) = oneshot::channel();
    jobs.send(job(answer)).await.ok()?;
    result.await.ok()
}

#[async_trait]
impl Store for Embedded {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        validate::range(&request.key, &request.end)?;
        loop {
            // A compaction between two turns: at a given revision the next attempt says so, at the newest it succeeds.
            if let Some(response) = self.collect(&request).await? {
                return Ok(response);
            }
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse, StoreError> {
        validate::txn(&txn)?;
        self.ask(|answer| Job::Txn(txn, answer)).await
    }

    async fn watch(&self, request: WatchRequest) -> Result<WatchStream, StoreError> {
        validate::range(&request.key, &request.end)?;
        let range = Range::new(request.key, request.end);
        let mut state = self.shared.state.write();
        let start = if request.start_revision <= 0 { state.visible + 1 } else { request.start_revision };
        if start < state.compacted {
            let oldest = state.compacted;
            return Ok(stream::iter([Err(StoreError::Compacted { oldest })]).boxed());
        }
        let (id, watcher) = state.history.add(range, start, request.prev_kv, request.progress);
        drop(state);
        let watch = Watch { shared: self.shared.clone(), id, watcher };
        Ok(stream::unfold(Some(watch), next_batch).boxed())
    }

    async fn request_progress(&self) -> Result<(), StoreError> {
        let state = self.shared.state.read();
        state.history.request_progress();
        state.failed.clone().map_or(Ok(()), Err)
    }

    async fn current_revision(&self) -> Result<Revision, StoreError> {
        Ok(self.shared.state.read().visible)
    }

    async fn size(&self) -> Result<u64, StoreError> {
        let backend = self.backend.clone();
        let size = tokio::task::spawn_blocking(move || backend.size()).await;
        let failed = |error: String| StoreError::Unavailable(format!("the store's files: {error}"));
        size.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.ask(|answer| Job::Compact(revision, answer)).await
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.ask(|answer| Job::Grant(ttl, answer)).await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        // The timer wakes at the old deadline and finds the new one: no need to tell it.
        self.shared.state.write().leases.keep_alive(lease, Instant::now())
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|answer| Job::Revoke(lease, answer)).await
    }
}

/// A watch in its consumer's hands: forgotten by the store when dropped.
struct Watch {
    shared: Arc<Shared>,
    id: u64,
    watcher: Arc<Watcher>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.state.write().history.remove(self.id);
    }
}

/// The next batch of a watch; after an error the watch is gone and the stream ends.
async fn next_batch(watch: Option<Watch>) -> Option<(Result<crate::WatchBatch, StoreError>, Option<Watch>)> {
    let watch = watch?;
    loop {
        let (poll, failed) = {
            let state = watch.shared.state.read();
            (state.history.poll(&watch.watcher, state.compacted), state.failed.clone())
        };
        match (poll, failed) {
            (Ok(Poll::Batch(batch)), _) => return Some((Ok(batch), Some(watch))),
            (Ok(Poll::Again), _) => tokio::task::yield_now().await,
            (Ok(Poll::Wait), None) => watch.watcher.wake.notified().await,
            (Ok(Poll::Wait), Some(error)) | (Err(error), _) => return Some((Err(error), None)),
        }
    }
}

/// Ends leases when their time is over, and has the writer try again where there was no room. Sleeps until the next
/// deadline, for ever without one.
async fn expire_leases(shared: Arc<Shared>, jobs: mpsc::Sender<Job>) {
    loop {
        let (deadline, full) = {
            let state = shared.state.read();
            (state.leases.next_deadline(), state.full.is_some())
        };
        let deadline = if full { Some(Instant::now() + REFUSED_PAUSE) } else { deadline };
        let due = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = shared.leases_changed.notified() => {}
        }
        if full && jobs.send(Job::Wake).await.is_err() {
            return;
        }
        let expired = shared.state.read().leases.expired(Instant::now());
        for lease in expired {
            match ask(&jobs, |answer| Job::Expire(lease, answer)).await {
                // Revoked by someone else meanwhile: what was wanted.
                Some(Ok(()) | Err(StoreError::LeaseNotFound(_))) => {}
                // There is no room now.
                Some(Err(_)) if shared.state.read().failed.is_none() => break,
                // The disk failed or the store is closed: nothing can be written any more.
                Some(Err(_)) | None => return,
            }
        }
    }
}
