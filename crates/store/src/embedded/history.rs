//! The events since the compaction and the watches that read them.
//!
//! A watch has no buffer of its own: it remembers from which revision on there is something to read for it, and reads
//! it from the history when its consumer asks. So a slow consumer costs no memory, and one that is too slow finds its
//! place compacted.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::index::Range;
use crate::{Event, KeyValue, Revision, StoreError, WatchBatch};

/// A batch holds the events of whole revisions, and no further revision when it has so many.
const BATCH_EVENTS: usize = 512;
/// A watch looks at so many revisions at a time, so that it does not hold the lock for long.
const SCAN_REVISIONS: usize = 8192;

/// The changes of one revision.
pub(crate) type Events = Arc<[Event]>;

/// A watch's place.
#[derive(Debug)]
struct Cursor {
    /// The first revision that holds something unread; none when all is read.
    unread: Option<Revision>,
    /// A progress report is due: at least this revision is to be reported.
    report: Option<Revision>,
    /// When progress was last reported, with or without events.
    reported: Instant,
}

/// One watch.
#[derive(Debug)]
pub(crate) struct Watcher {
    range: Range,
    /// Nothing before this revision is delivered.
    start: Revision,
    prev_kv: bool,
    progress: bool,
    cursor: Mutex<Cursor>,
    /// Wakes the consumer.
    pub(crate) wake: Notify,
}

/// What a consumer finds.
pub(crate) enum Poll {
    /// Something to deliver.
    Batch(WatchBatch),
    /// More may be there: ask again, after others had their turn.
    Again,
    /// Nothing until woken.
    Wait,
}

/// Events since the compaction, and who reads them.
#[derive(Debug)]
pub(crate) struct History {
    /// The revision of the first entry; every later revision has exactly one.
    first: Revision,
    entries: VecDeque<Events>,
    watchers: HashMap<u64, Arc<Watcher>>,
    next_watcher: u64,
    progress_interval: Duration,
}

impl History {
    /// A history whose first revision will be `first`.
    pub(crate) fn new(first: Revision, progress_interval: Duration) -> Self {
        Self { first, entries: VecDeque::new(), watchers: HashMap::new(), next_watcher: 0, progress_interval }
    }

    /// Starts anew at the revision of a base.
    pub(crate) fn restart(&mut self, first: Revision, events: Events) {
        self.first = first;
        self.entries = VecDeque::from([events]);
    }

    /// The revision of the last entry.
    fn last(&self) -> Revision {
        self.first + self.entries.len() as Revision - 1
    }

    /// Appends the next revision and wakes the watches that it concerns.
    pub(crate) fn push(&mut self, events: Events) {
        self.entries.push_back(events);
        let (revision, Some(events)) = (self.last(), self.entries.back()) else { return };
        let now = Instant::now();
        for watcher in self.watchers.values() {
            watcher.offer(revision, events, now, self.progress_interval);
        }
    }

    /// Forgets the events before `revision`; returns the keys that changed up to and at `revision`.
    pub(crate) fn compact(&mut self, revision: Revision, mut changed: impl FnMut(&KeyValue)) {
        while self.first < revision {
            let Some(events) = self.entries.pop_front() else { return };
            events.iter().for_each(|event| changed(&event.kv));
            self.first += 1;
        }
        if let Some(events) = self.entries.front() {
            events.iter().for_each(|event| changed(&event.kv));
        }
    }

    /// The changes of a revision that is neither compacted nor in the future.
    pub(crate) fn at(&self, revision: Revision) -> Option<&Events> {
        self.entries.get(usize::try_from(revision - self.first).ok()?)
    }

    /// Adds a watch that delivers from `start` on.
    pub(crate) fn add(
        &mut self,
        range: Range,
        start: Revision,
        prev_kv: bool,
        progress: bool,
    ) -> (u64, Arc<Watcher>) {
        let unread = (start <= self.last()).then_some(start.max(self.first));
        let report = unread.filter(|_| progress).map(|_| self.last());
        let cursor = Mutex::new(Cursor { unread, report, reported: Instant::now() });
        let watcher = Arc::new(Watcher { range, start, prev_kv, progress, cursor, wake: Notify::new() });
        let id = self.next_watcher;
        self.next_watcher += 1;
        self.watchers.insert(id, watcher.clone());
        (id, watcher)
    }

    /// Removes a watch.
    pub(crate) fn remove(&mut self, id: u64) {
        self.watchers.remove(&id);
    }

    /// Asks every watch with progress to report.
    pub(crate) fn request_progress(&self) {
        for watcher in self.watchers.values().filter(|watcher| watcher.progress) {
            watcher.cursor.lock().report = Some(self.last());
            watcher.wake.notify_one();
        }
    }

    /// Wakes every watch: the store ended.
    pub(crate) fn wake_all(&self) {
        self.watchers.values().for_each(|watcher| watcher.wake.notify_one());
    }

    /// What there is for a watch. `oldest` is the compacted revision.
    pub(crate) fn poll(&self, watcher: &Watcher, oldest: Revision) -> Result<Poll, StoreError> {
        let mut cursor = watcher.cursor.lock();
        let reached = cursor.unread.map_or(self.last(), |unread| unread - 1);
        if cursor.report.is_some_and(|wanted| wanted <= reached) {
            cursor.report = None;
            cursor.reported = Instant::now();
            return Ok(Poll::Batch(WatchBatch { revision: reached, events: Vec::new() }));
        }
        let Some(unread) = cursor.unread else { return Ok(Poll::Wait) };
        if unread < oldest {
            return Err(StoreError::Compacted { oldest });
        }
        let (events, next) = self.scan(watcher, unread);
        cursor.unread = (next <= self.last()).then_some(next);
        if events.is_empty() {
            return Ok(Poll::Again);
        }
        cursor.reported = Instant::now();
        Ok(Poll::Batch(WatchBatch { revision: next - 1, events }))
    }

    /// The watch's events from `from` on, and the first revision that was not looked at.
    fn scan(&self, watcher: &Watcher, from: Revision) -> (Vec<Event>, Revision) {
        let mut found = Vec::new();
        let mut next = from;
        let skip = usize::try_from(from - self.first).unwrap_or(0);
        for events in self.entries.iter().skip(skip).take(SCAN_REVISIONS) {
            found.extend(events.iter().filter(|event| watcher.range.contains(&event.kv.key)).map(|event| {
                Event { prev: event.prev.clone().filter(|_| watcher.prev_kv), ..event.clone() }
            }));
            next += 1;
            if found.len() >= BATCH_EVENTS {
                break;
            }
        }
        (found, next)
    }
}

impl Watcher {
    /// Notes a new revision, and wakes the consumer if it concerns it.
    fn offer(&self, revision: Revision, events: &Events, now: Instant, progress_interval: Duration) {
        if revision < self.start {
            return;
        }
        let mut cursor = self.cursor.lock();
        if cursor.unread.is_some() {
            return;
        }
        if events.iter().any(|event| self.range.contains(&event.kv.key)) {
            cursor.unread = Some(revision);
        } else if self.progress && now.duration_since(cursor.reported) >= progress_interval {
            cursor.report = Some(revision);
        } else {
            return;
        }
        self.wake.notify_one();
    }
}
