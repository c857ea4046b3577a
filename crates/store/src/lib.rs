//! The versioned key-value store behind the API server: etcd's semantics behind one trait, [`Store`].
//!
//! Every implementation passes the contract suite. A write is answered after it is on disk; no watcher or reader sees
//! a revision before that; a revision is never used twice.

mod embedded;
mod etcd;
mod log;
pub mod memory;
mod model;

pub use embedded::{Embedded, EmbeddedConfig, REQUEST_BYTES_MAX, TXN_OPS_MAX};
pub use etcd::{Etcd, EtcdConfig, EtcdTls, ProgressTrust};
pub use log::OpenError;
pub use log::backend::{Backend, Files, LogFile};
pub use model::{
    Compare, CompareTarget, Event, EventKind, KeyValue, LeaseId, Op, OpOutcome, RangeEnd, RangeRequest,
    RangeResponse, Revision, Txn, TxnResponse, WatchBatch, WatchRequest, WatchStream,
};

use std::time::Duration;

use async_trait::async_trait;

/// Why the store refused or failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The revision asked for is older than the compaction; `oldest` is the oldest revision that can be read.
    #[error("required revision has been compacted; the oldest available is {oldest}")]
    Compacted {
        /// The oldest revision that is still readable.
        oldest: Revision,
    },
    /// The revision asked for lies in the future.
    #[error("required revision {asked} is a future revision; the current one is {current}")]
    Future {
        /// The revision asked for.
        asked: Revision,
        /// The newest revision.
        current: Revision,
    },
    /// No such lease (it expired or was revoked).
    #[error("lease {0} not found")]
    LeaseNotFound(LeaseId),
    /// A request over the store's limits.
    #[error("request is too large: {0}")]
    TooLarge(String),
    /// A request that makes no sense, such as an empty key or a key that is changed twice in one transaction.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// A value that a store over another one cannot read (it was encrypted with a key that is not there).
    #[error("{0}")]
    Unreadable(String),
    /// The disk or the remote store failed. Whether the write happened is unknown: read before repeating it.
    #[error("storage unavailable: {0}")]
    Unavailable(String),
}

/// A versioned key-value store with etcd's semantics. Cheap to share behind an `Arc`.
///
/// Keys are ordered bytes. Every committed transaction that writes gets the next revision; all of its writes share it.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads a range at a revision (0: the newest).
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError>;

    /// Compares, then applies one of two lists of operations, atomically. Answered when durable.
    async fn txn(&self, txn: Txn) -> Result<TxnResponse, StoreError>;

    /// Streams the changes of a range from a revision on, in revision order, without gap or repetition; the changes
    /// of one revision arrive in one batch. With `progress`, batches without events tell the revision up to which the
    /// watcher has seen everything: whenever asked by [`Store::request_progress`], from time to time, and once when a
    /// watch that began in the past has told all that had happened when it was opened.
    async fn watch(&self, request: WatchRequest) -> Result<WatchStream, StoreError>;

    /// Asks every watch with `progress` to report the revision it has reached, which is at least the newest revision at
    /// the time of this call: a cache that waits for that report knows that it is current, also over several servers.
    async fn request_progress(&self) -> Result<(), StoreError>;

    /// The newest revision, from the store itself and not from a cache.
    async fn current_revision(&self) -> Result<Revision, StoreError>;

    /// The bytes that its data takes where it lies, free space within included.
    async fn size(&self) -> Result<u64, StoreError>;

    /// Forgets all versions that are older than `revision`, except the newest of each key at that revision.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;

    /// Grants a lease: keys attached to it are deleted when it ends.
    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Restarts a lease's time.
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease and deletes its keys.
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError>;
}
