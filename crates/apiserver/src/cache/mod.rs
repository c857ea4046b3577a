//! The watch cache: per stored resource the newest objects and the latest changes, fed by one store watch, shared by
//! every list, informer and watcher of the process.

mod feed;
mod state;
mod stream;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::{Object, Reason, Status};
use parking_lot::Mutex;
use store::{Revision, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use feed::prefix_end;
pub use state::{Change, Scope};
pub use stream::{Filter, Start, WatchOptions};

use crate::words::Kind;
use state::State;

/// How long a read waits for the cache to catch up before it asks the store or gives up.
const CATCH_UP_MAX: Duration = Duration::from_secs(3);

/// One stored resource's cache.
pub struct Cache {
    kind: Kind,
    prefix: String,
    store: Arc<dyn Store>,
    state: Mutex<State>,
    /// The revision up to which the cache has seen everything; 0 before the first list.
    revision: watch::Sender<Revision>,
    /// The resource is not served any more.
    ended: CancellationToken,
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
}

impl Cache {
    /// A cache over all objects of a stored kind; [`Cache::feed`] fills it.
    pub fn new(store: Arc<dyn Store>, kind: Kind) -> Arc<Self> {
        let state = Mutex::new(State::default());
        let prefix = crate::storage::prefix(&kind.group, &kind.plural);
        let (revision, ended) = (watch::Sender::new(0), CancellationToken::new());
        Arc::new(Self { kind, prefix, store, state, revision, ended })
    }

    /// Ends the cache and all its watches: the resource is not served any more.
    pub fn end(&self) {
        // First this, then the watchers: one that comes in between sees it.
        self.ended.cancel();
        self.state.lock().fill(BTreeMap::new(), self.revision());
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
            None => Changes::All(state.range("", ""), state.revision()),
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

    /// The objects of a namespace (empty: of all) that pass `keep`, at most `limit` of them (0: all), after the key
    /// suffix `after`.
    pub fn list(
        &self,
        namespace: &str,
        after: &str,
        limit: usize,
        keep: impl Fn(&Object) -> bool,
    ) -> Snapshot {
        let candidates = {
            let state = self.state.lock();
            (state.range(namespace, after), state.revision())
        };
        let (all, revision) = candidates;
        let mut snapshot = Snapshot { revision, ..Snapshot::default() };
        for object in all {
            if limit > 0 && snapshot.items.len() == limit {
                snapshot.remaining += 1;
            } else if keep(&object) {
                snapshot.items.push(object);
            }
        }
        snapshot
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
