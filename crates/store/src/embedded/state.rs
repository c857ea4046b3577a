//! The state of the embedded store and every decision on it, without any I/O.
//!
//! The one writer first *stages* a batch: versions enter the index under revisions that no reader asks for yet. When
//! the batch is durable it is *published*: the visible revision moves, and history and watches learn of it. If the
//! disk fails, the staged part is never published and the store refuses every further write.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::history::{Events, History};
use super::index::{Index, Range, Walk};
use super::lease::{Leases, TTL_MAX, millis};
use crate::log::Replay;
use crate::log::record::{self, Change, Record};
use crate::{
    Compare, CompareTarget, Event, EventKind, KeyValue, LeaseId, Op, OpOutcome, RangeRequest, RangeResponse,
    Revision, StoreError, Txn, TxnResponse,
};

/// The revision of an empty store, as etcd's.
const EMPTY: Revision = 1;

/// Everything that the store knows.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) index: Index,
    pub(crate) history: History,
    pub(crate) leases: Leases,
    /// The newest durable revision: what readers and watches see.
    pub(crate) visible: Revision,
    /// Versions before this revision are forgotten; 0 before the first compaction.
    pub(crate) compacted: Revision,
    /// Why the store takes no more writes.
    pub(crate) failed: Option<StoreError>,
    /// Why no write is taken now: the disk has no room for one that was staged before.
    pub(crate) full: Option<StoreError>,
    staged: Staged,
    /// What a base's revision did, while the base is replayed.
    touched: Vec<(EventKind, Bytes)>,
}

/// What is decided and not yet durable.
#[derive(Debug, Default)]
struct Staged {
    /// The newest revision given out.
    revision: Revision,
    /// The events of each staged revision, in order.
    events: Vec<Events>,
    grants: Vec<(LeaseId, Duration)>,
    revokes: Vec<LeaseId>,
    compact: Option<Revision>,
}

impl State {
    /// An empty store.
    pub(crate) fn new(progress_interval: Duration) -> Self {
        Self {
            index: Index::default(),
            history: History::new(EMPTY + 1, progress_interval),
            leases: Leases::default(),
            visible: EMPTY,
            compacted: 0,
            failed: None,
            full: None,
            staged: Staged { revision: EMPTY, ..Staged::default() },
            touched: Vec::new(),
        }
    }

    /// The revision that the next write will get.
    pub(crate) fn next_revision(&self) -> Revision {
        self.staged.revision + 1
    }

    /// The revision to read at for a request, as seen from the newest revision `newest`.
    pub(crate) fn read_revision(&self, asked: Revision, newest: Revision) -> Result<Revision, StoreError> {
        if asked <= 0 {
            Ok(newest)
        } else if asked > newest {
            Err(StoreError::Future { asked, current: newest })
        } else if asked < self.compacted {
            Err(StoreError::Compacted { oldest: self.compacted })
        } else {
            Ok(asked)
        }
    }

    /// Decides a transaction and stages its writes; the record goes to `log`.
    pub(crate) fn stage_txn(&mut self, txn: Txn, log: &mut Vec<u8>) -> Result<TxnResponse, StoreError> {
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { txn.then } else { txn.or_else };
        self.check_ops(&ops)?;
        let revision = self.next_revision();
        let mut events = Vec::new();
        let outcomes = ops.into_iter().map(|op| self.apply(op, revision, &mut events)).collect();
        self.stage_events(revision, events, log);
        Ok(TxnResponse { succeeded, revision: self.staged.revision, outcomes })
    }

    /// Refuses, before anything is changed, what cannot be applied.
    fn check_ops(&self, ops: &[Op]) -> Result<(), StoreError> {
        ops.iter().try_for_each(|op| match op {
            Op::Put { lease: 0, .. } | Op::Delete { .. } => Ok(()),
            Op::Put { lease, .. } => self.leases.check(*lease),
            Op::Range(request) => self.read_revision(request.revision, self.staged.revision).map(drop),
        })
    }

    fn holds(&self, compare: &Compare) -> bool {
        let found = self.index.get(&compare.key, self.staged.revision);
        match (&compare.target, &found) {
            (CompareTarget::ModRevision(wanted), found) => {
                found.as_ref().map_or(0, |kv| kv.mod_revision) == *wanted
            }
            (CompareTarget::CreateRevision(wanted), found) => {
                found.as_ref().map_or(0, |kv| kv.create_revision) == *wanted
            }
            (CompareTarget::Lease(wanted), found) => found.as_ref().map_or(0, |kv| kv.lease) == *wanted,
            (CompareTarget::Value(wanted), Some(kv)) => kv.value == *wanted,
            // An absent key has no value, not even the empty one.
            (CompareTarget::Value(_), None) => false,
        }
    }

    fn apply(&mut self, op: Op, revision: Revision, events: &mut Vec<Event>) -> OpOutcome {
        match op {
            Op::Put { key, value, lease } => {
                events.push(self.put(key, value, lease, revision));
                OpOutcome::Put
            }
            Op::Delete { key, end } => {
                let keys = self.index.keys(&Range::new(key, end), revision);
                let before = events.len();
                events.extend(keys.into_iter().filter_map(|key| self.delete(key, revision)));
                OpOutcome::Delete { deleted: events.len() - before }
            }
            Op::Range(request) => {
                // A read sees what the transaction wrote before it.
                let newest = if events.is_empty() { self.staged.revision } else { revision };
                OpOutcome::Range(self.range(request, newest))
            }
        }
    }

    fn put(&mut self, key: Bytes, value: Bytes, lease: LeaseId, revision: Revision) -> Event {
        let (kv, prev) = self.index.put(key, value, lease, revision);
        self.leases.attach(&kv.key, prev.as_ref().map_or(0, |prev| prev.lease), lease);
        Event { kind: EventKind::Put, kv, prev }
    }

    fn delete(&mut self, key: Bytes, revision: Revision) -> Option<Event> {
        let prev = self.index.delete(&key, revision)?;
        self.leases.attach(&key, prev.lease, 0);
        Some(deletion(key, revision, Some(prev)))
    }

    /// A read within a transaction, whose revision was checked before.
    fn range(&self, request: RangeRequest, newest: Revision) -> RangeResponse {
        let at = if request.revision <= 0 { newest } else { request.revision };
        let mut found = Found::new(&request, newest);
        self.index.walk(&Range::new(request.key, request.end), Walk { at, max: usize::MAX }, |_, hit| {
            found.add(|keys_only| hit.key_value(keys_only));
        });
        found.response
    }

    fn stage_events(&mut self, revision: Revision, events: Vec<Event>, log: &mut Vec<u8>) {
        if events.is_empty() {
            return;
        }
        record::put_revision(log, revision, events.iter().map(|event| (event.kind, &event.kv)));
        self.staged.revision = revision;
        self.staged.events.push(events.into());
    }

    /// Stages a compaction.
    pub(crate) fn stage_compact(&mut self, revision: Revision, log: &mut Vec<u8>) -> Result<(), StoreError> {
        if revision > self.visible {
            return Err(StoreError::Future { asked: revision, current: self.visible });
        }
        let compacted = self.staged.compact.unwrap_or(self.compacted);
        if revision <= compacted {
            return Err(StoreError::Compacted { oldest: compacted });
        }
        record::put_compact(log, revision);
        self.staged.compact = Some(revision);
        Ok(())
    }

    /// Stages a lease.
    pub(crate) fn stage_grant(&mut self, ttl: Duration, log: &mut Vec<u8>) -> Result<LeaseId, StoreError> {
        if ttl > TTL_MAX {
            return Err(StoreError::Invalid(format!(
                "a lease of {} s is too long: the most is {} s",
                ttl.as_secs(),
                TTL_MAX.as_secs()
            )));
        }
        let id = self.leases.fresh_id();
        record::put_grant(log, id, millis(ttl));
        self.staged.grants.push((id, ttl));
        Ok(id)
    }

    /// Stages the end of a lease and the deletion of its keys, in one revision.
    pub(crate) fn stage_revoke(&mut self, id: LeaseId, log: &mut Vec<u8>) -> Result<(), StoreError> {
        let keys = self.leases.begin_end(id)?;
        let revision = self.next_revision();
        let events = keys.into_iter().filter_map(|key| self.delete(key, revision)).collect();
        self.stage_events(revision, events, log);
        record::put_revoke(log, id);
        self.staged.revokes.push(id);
        Ok(())
    }

    /// Makes everything staged visible: it is durable. Returns the revision compacted to, if any.
    pub(crate) fn publish(&mut self, now: Instant) -> Option<Revision> {
        let staged = std::mem::take(&mut self.staged);
        self.staged.revision = staged.revision;
        self.visible = staged.revision;
        for events in staged.events {
            self.history.push(events);
        }
        for (id, ttl) in staged.grants {
            self.leases.grant(id, ttl, now);
        }
        for id in staged.revokes {
            self.leases.end(id);
        }
        let compacted = staged.compact?;
        self.compact(compacted);
        Some(compacted)
    }

    /// Why writes are refused, if they are.
    pub(crate) fn refusal(&self) -> Option<StoreError> {
        self.failed.clone().or_else(|| self.full.clone())
    }

    /// Refuses all writes from here on, and tells the watches.
    pub(crate) fn fail(&mut self, error: StoreError) {
        self.failed.get_or_insert(error);
        self.history.wake_all();
    }

    /// Only keys that changed since the last compaction have something to forget.
    fn compact(&mut self, revision: Revision) {
        let index = &mut self.index;
        self.history.compact(revision, |kv| index.compact(&kv.key, revision));
        self.compacted = revision;
    }
}

/// A deletion as watches see it.
fn deletion(key: Bytes, revision: Revision, prev: Option<KeyValue>) -> Event {
    let kv = KeyValue {
        key,
        value: Bytes::new(),
        create_revision: 0,
        mod_revision: revision,
        version: 0,
        lease: 0,
    };
    Event { kind: EventKind::Delete, kv, prev }
}

/// The answer to a range while it is collected.
pub(crate) struct Found {
    limit: usize,
    keys_only: bool,
    pub(crate) response: RangeResponse,
}

impl Found {
    pub(crate) fn new(request: &RangeRequest, revision: Revision) -> Self {
        let limit = match (request.count_only, request.limit) {
            (true, _) => 0,
            (false, 0) => usize::MAX,
            (false, limit) => limit,
        };
        let response = RangeResponse { revision, kvs: Vec::new(), count: 0, more: false };
        Self { limit, keys_only: request.keys_only, response }
    }

    /// Counts a key and, within the limit, keeps it.
    pub(crate) fn add(&mut self, key_value: impl FnOnce(bool) -> KeyValue) {
        self.response.count += 1;
        if self.response.kvs.len() < self.limit {
            self.response.kvs.push(key_value(self.keys_only));
        } else if self.limit > 0 {
            self.response.more = true;
        }
    }
}

// === replay ===

impl State {
    /// Applies a record of the log that is already durable.
    fn replay_revision(&mut self, revision: Revision, changes: Vec<Change>) -> Result<(), String> {
        if revision <= self.visible {
            // The base already holds it.
            return Ok(());
        }
        if revision != self.next_revision() {
            return Err(format!("revision {revision} follows {}", self.visible));
        }
        let mut events = Vec::with_capacity(changes.len());
        for change in changes {
            events.push(match change {
                Change::Put { key, value, lease } => self.put(key, value, lease, revision),
                Change::Delete { key } => self
                    .delete(key, revision)
                    .ok_or_else(|| format!("revision {revision} deletes a key that does not exist"))?,
            });
        }
        self.staged.revision = revision;
        self.visible = revision;
        self.history.push(events.into());
        Ok(())
    }

    fn replay_compact(&mut self, revision: Revision) -> Result<(), String> {
        if revision > self.visible {
            return Err(format!("compaction to {revision} follows revision {}", self.visible));
        }
        if revision > self.compacted {
            self.compact(revision);
        }
        Ok(())
    }

    /// The end of a base: from here on the state is that of its revision.
    fn replay_end(&mut self, revision: Revision) -> Result<(), String> {
        let touched = std::mem::take(&mut self.touched);
        let events = touched.into_iter().map(|(kind, key)| match kind {
            EventKind::Delete => Ok(deletion(key, revision, None)),
            EventKind::Put => {
                let kv = self.index.get(&key, revision).ok_or("a base lacks a key that it names")?;
                Ok(Event { kind, kv, prev: None })
            }
        });
        let events: Vec<_> = events.collect::<Result<_, &str>>()?;
        self.history.restart(revision, events.into());
        self.staged.revision = revision;
        self.visible = revision;
        self.compacted = revision;
        Ok(())
    }
}

impl Replay for State {
    fn replay(&mut self, record: Record) -> Result<(), String> {
        match record {
            Record::Revision { revision, changes } => self.replay_revision(revision, changes)?,
            Record::Grant { lease, ttl_ms } => {
                self.leases.grant(lease, Duration::from_millis(ttl_ms).min(TTL_MAX), Instant::now());
            }
            Record::Revoke { lease } => self.leases.end(lease),
            Record::Compact { revision } => self.replay_compact(revision)?,
            Record::Key(kv) => {
                self.index.insert(&kv);
                self.leases.attach(&kv.key, 0, kv.lease);
            }
            Record::Touched { kind, key } => self.touched.push((kind, key)),
            Record::End { revision, .. } => self.replay_end(revision)?,
        }
        Ok(())
    }
}

/// What a base is made of: the live keys at a compacted revision, what that revision did, and the leases.
pub(crate) struct Snapshot {
    pub(crate) revision: Revision,
    pub(crate) leases: Vec<(LeaseId, u64)>,
    pub(crate) touched: Events,
}

impl State {
    /// The parts of a base that are read at once; its keys are walked afterwards. `None` if compacted meanwhile.
    pub(crate) fn snapshot(&self, revision: Revision) -> Option<Snapshot> {
        let touched = if revision == EMPTY { Arc::from([]) } else { self.history.at(revision)?.clone() };
        Some(Snapshot { revision, leases: self.leases.all(), touched })
    }
}
