//! The data that the store speaks in: requests, answers and events.

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::StoreError;

/// A point in the store's history. The empty store is at revision 1, as etcd's; 0 means "the newest" in requests.
pub type Revision = i64;

/// A lease's id; 0 means none.
pub type LeaseId = i64;

/// One version of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The revision that created the key.
    pub create_revision: Revision,
    /// The revision of this version.
    pub mod_revision: Revision,
    /// How many versions since creation, from 1.
    pub version: i64,
    /// The lease that holds the key, or 0.
    pub lease: LeaseId,
}

/// Where a range ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangeEnd {
    /// The key alone.
    Single,
    /// Every key that starts with the key.
    Prefix,
    /// Up to, not including, this key.
    Before(Bytes),
}

/// A read of a range.
#[derive(Debug, Clone)]
pub struct RangeRequest {
    /// The first key.
    pub key: Bytes,
    /// Where the range ends.
    pub end: RangeEnd,
    /// The revision to read at; 0 reads the newest.
    pub revision: Revision,
    /// At most so many keys; 0 sets no limit.
    pub limit: usize,
    /// Leave the values out.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
}

impl RangeRequest {
    /// Everything that starts with `prefix`, newest, without limit.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        Self { end: RangeEnd::Prefix, ..Self::key(prefix) }
    }

    /// One key, newest.
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            end: RangeEnd::Single,
            revision: 0,
            limit: 0,
            keys_only: false,
            count_only: false,
        }
    }
}

/// The answer to a range.
#[derive(Debug, Clone)]
pub struct RangeResponse {
    /// The newest revision of the store when the range was read.
    pub revision: Revision,
    /// The keys found, in order.
    pub kvs: Vec<KeyValue>,
    /// How many keys the range holds at the revision read, whatever the limit.
    pub count: usize,
    /// Whether the limit cut the answer.
    pub more: bool,
}

/// What a compare looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompareTarget {
    /// The revision of the newest version equals; 0 says that the key is absent.
    ModRevision(Revision),
    /// The creation revision equals; 0 says that the key is absent.
    CreateRevision(Revision),
    /// The value equals.
    Value(Bytes),
    /// The lease equals.
    Lease(LeaseId),
}

/// One condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key looked at.
    pub key: Bytes,
    /// What has to hold.
    pub target: CompareTarget,
}

/// One operation of a transaction.
#[derive(Debug, Clone)]
pub enum Op {
    /// Writes a key.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
        /// The lease to attach it to, or 0.
        lease: LeaseId,
    },
    /// Deletes a key or range.
    Delete {
        /// The first key.
        key: Bytes,
        /// Where the range ends.
        end: RangeEnd,
    },
    /// Reads within the transaction.
    Range(RangeRequest),
}

/// If all compares hold, `then`; otherwise `or_else`. No key is put twice in one list (etcd refuses it).
#[derive(Debug, Clone, Default)]
pub struct Txn {
    /// The conditions; an empty list holds.
    pub compares: Vec<Compare>,
    /// Applied when all hold.
    pub then: Vec<Op>,
    /// Applied when one does not.
    pub or_else: Vec<Op>,
}

/// What one operation did, in the order of the list that was applied.
#[derive(Debug, Clone)]
pub enum OpOutcome {
    /// A put.
    Put,
    /// A delete, with the number of keys deleted.
    Delete {
        /// How many keys went.
        deleted: usize,
    },
    /// A read.
    Range(RangeResponse),
}

/// The answer to a transaction.
#[derive(Debug, Clone)]
pub struct TxnResponse {
    /// Whether `then` was applied.
    pub succeeded: bool,
    /// The revision of the writes, or the newest one where nothing was written.
    pub revision: Revision,
    /// One outcome for each operation applied.
    pub outcomes: Vec<OpOutcome>,
}

/// What to watch.
#[derive(Debug, Clone)]
pub struct WatchRequest {
    /// The first key.
    pub key: Bytes,
    /// Where the range ends.
    pub end: RangeEnd,
    /// The first revision to deliver; 0 starts after the newest.
    pub start_revision: Revision,
    /// Deliver the previous version with each event.
    pub prev_kv: bool,
    /// Report progress also when nothing changes.
    pub progress: bool,
}

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It was written.
    Put,
    /// It was deleted; the event's `kv` carries key and revision, and no value.
    Delete,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The new version.
    pub kv: KeyValue,
    /// The version before, if asked for and present.
    pub prev: Option<KeyValue>,
}

/// Changes in revision order; empty for a progress report.
#[derive(Debug, Clone)]
pub struct WatchBatch {
    /// Everything up to this revision has been delivered.
    pub revision: Revision,
    /// The changes.
    pub events: Vec<Event>,
}

/// A stream of changes. It ends with an error when the watch cannot go on (compaction, a lost server).
pub type WatchStream = BoxStream<'static, Result<WatchBatch, StoreError>>;
