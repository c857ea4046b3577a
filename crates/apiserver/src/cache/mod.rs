//! The watch cache: per stored resource the newest objects and the latest changes, fed by one store watch, shared by
//! every list, informer and watcher of the process.

mod feed;
mod state;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::{Object, Reason, Status};
use parking_lot::Mutex;
use store::{Revision, Store, StoreError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use feed::prefix_end;
pub use state::{Change, Scope};
pub(crate) use stream::BATCH_MAX;
pub use stream::{Filter, Start, WatchOptions};

use crate::encryption::Sealed;
use crate::words::Kind;
use state::{Contents, State};

/// How long a read waits for the cache to catch up before it asks the store or gives up.
const CATCH_UP_MAX: Duration = Duration::from_secs(3);

/// One stored resource's cache.
pub struct Cache {
    kind: Kind,
    prefix: String,
    /// Where its values come from; closed ones where they are encrypted.
    store: Arc<dyn Store>,
    sealed: Option<Arc<Sealed>>,
    state: Mutex<State>,
    /// The revision up to which the cache has seen everything; 0 before the first list.
    revision: watch::Sender<Revision>,
    /// The resource is not served any more.
    ended: CancellationToken,
    /// Events that the store told.
    received: AtomicU64,
    /// How often all was read anew.
    filled: AtomicU64,
}

/// What happened to a resource after a revision.
#[derive(Debug)]
pub enum Changes {
    /// Nothing.
    None,
    /// These changes, in order.
    Some(Vec<Arc<Change>>),
    /// More than is remembered: here is all there is now, and the revision at which it was.
    All(Vec<Arc<Object>>, Revision),
}

/// Objects and the revision at which they were all there was.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// In key order.
    pub items: Vec<Arc<Object>>,
    /// The cache's revision.
    pub revision: Revision,
    /// How many more there are behind the limit.
    pub remaining: u64,
    /// Those whose stored values cannot be read, by key suffix, and why: they are missing among the items.
    pub unreadable: Vec<(Box<str>, Arc<str>)>,
}

impl Cache {
    /// A cache over all objects of a stored kind; [`Cache::feed`] fills it. Where values are encrypted, it reads them below
    /// that, each for itself: one that no key opens keeps nobody from the others.
    pub(crate) fn new(store: Arc<dyn Store>, sealed: Option<Arc<Sealed>>, kind: Kind) -> Arc<Self> {
        let store = sealed.as_ref().map_or(store, |sealed| sealed.inner().clone());
        let state = Mutex::new(State::default());
        let prefix = crate::storage::prefix(&kind.group, &kind.plural);
        let (revision, ended) = (watch::Sender::new(0), CancellationToken::new());
        let (received, filled) = Default::default();
        Arc::new(Self { kind, prefix, store, sealed, state, revision, ended, received, filled })
    }

    /// Ends the cache and all its watches: the resource is not served any more.
    pub fn end(&self) {
        // First this, then the watchers: one that comes in between sees it.
        self.ended.cancel();
        self.state.lock().fill(Contents::default(), self.revision());
    }

    /// The store's prefix of the resource.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The revision up to which everything has been seen; 0 before the first list.
    pub fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// Returns once the cache has been filled.
    pub async fn synced(&self) {
        // The sender is held by `self`, so waiting cannot fail.
        let _ = self.revision.subscribe().wait_for(|revision| *revision > 0).await;
    }

    /// What happened after `revision` (0: everything).
    pub fn changes(&self, revision: Revision) -> Changes {
        let state = self.state.lock();
        match state.since(revision).filter(|_| revision > 0) {
            Some(changes) if changes.is_empty() => Changes::None,
            Some(changes) => Changes::Some(changes),
            None => Changes::All(state.range(""), state.revision()),
        }
    }

    /// Returns once something that `concerns` says yes to has happened after a revision, or may have. That the store is
    /// further on, because of other resources, is nothing.
    pub(crate) async fn happened(&self, after: Revision, concerns: impl Fn(&Change) -> bool) {
        let (mut revisions, mut after) = (self.revisions(), after);
        loop {
            match self.changes(after) {
                Changes::None => {}
                Changes::Some(changes) if !changes.iter().any(|change| concerns(change)) => {
                    after = changes.last().map_or(after, |change| change.revision);
                }
                Changes::Some(_) | Changes::All(..) => return,
            }
            // The sender is held by `self`.
            let _ = revisions.changed().await;
        }
    }

    /// The revision as it moves.
    pub(crate) fn revisions(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// Whether the resource is not served any more, or through another cache.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// The object under a key, as the cache knows it.
    pub fn peek(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.state.lock().get(&crate::storage::suffix(namespace, name))
    }

    /// Why the object under a key cannot be read, if so.
    pub(crate) fn unreadable(&self, namespace: &str, name: &str) -> Option<Status> {
        let why = self.state.lock().unreadable(&crate::storage::suffix(namespace, name))?;
        Some(unavailable(StoreError::Unreadable(why.to_string())))
    }

    /// Makes sure that the cache holds everything that was committed before this call.
    pub async fn make_current(&self) -> Result<(), Status> {
        let newest = self.store.current_revision().await.map_err(unavailable)?;
        if self.revision() >= newest {
            return Ok(());
        }
        self.store.request_progress().await.map_err(unavailable)?;
        self.wait_for(newest).await
    }

    /// As [`Cache::wait_for`], asking the store to say how far it is: changes elsewhere move its revision too.
    pub async fn wait_for_or_progress(&self, revision: Revision) -> Result<(), Status> {
        if self.revision() < revision {
            self.store.request_progress().await.map_err(unavailable)?;
        }
        self.wait_for(revision).await
    }

    /// Waits until the cache has seen `revision`.
    pub async fn wait_for(&self, revision: Revision) -> Result<(), Status> {
        let mut seen = self.revision.subscribe();
        let reached = tokio::time::timeout(CATCH_UP_MAX, seen.wait_for(|now| *now >= revision)).await;
        match reached {
            Ok(_) => Ok(()),
            Err(_) => Err(too_large(revision, self.revision())),
        }
    }

    /// The objects of a namespace (empty: of all) that pass `keep`, at most `limit` of them (0: all).
    pub fn list(&self, namespace: &str, limit: usize, keep: impl Fn(&Object) -> bool) -> Snapshot {
        let candidates = {
            let state = self.state.lock();
            (state.range(namespace), state.unreadable_in(namespace), state.revision())
        };
        let (all, unreadable, revision) = candidates;
        let mut snapshot = Snapshot { revision, unreadable, ..Snapshot::default() };
        for object in all {
            if limit > 0 && snapshot.items.len() == limit {
                snapshot.remaining += 1;
            } else if keep(&object) {
                snapshot.items.push(object);
            }
        }
        snapshot
    }

    /// How many events the store has told, and how often the cache was filled anew.
    pub(crate) fn counts(&self) -> [u64; 2] {
        [&self.received, &self.filled].map(|count| count.load(Ordering::Relaxed))
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.state.lock().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A store's failure as the API shows it.
pub fn unavailable(error: store::StoreError) -> Status {
    match error {
        store::StoreError::Compacted { oldest } => expired(0, oldest),
        store::StoreError::Future { asked, current } => too_large(asked, current),
        store::StoreError::TooLarge(what) => Status::new(Reason::RequestEntityTooLarge, what),
        store::StoreError::Unreadable(what) => Status::internal(format!("Internal error occurred: {what}")),
        other => Status::new(Reason::ServiceUnavailable, other.to_string()),
    }
}

/// 504: the version asked for is not there yet. Source: `storage.NewTooLargeResourceVersionError`.
fn too_large(asked: Revision, current: Revision) -> Status {
    let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
    let mut status = Status::new(Reason::Timeout, message);
    status.details.retry_after_seconds = 1;
    status.details.causes.push(api::Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    });
    status
}

/// 410: the history asked for is gone.
pub fn expired(asked: Revision, oldest: Revision) -> Status {
    Status::new(Reason::Expired, format!("too old resource version: {asked} ({oldest})"))
}
