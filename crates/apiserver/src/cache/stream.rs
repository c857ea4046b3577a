//! One watch on the cache: from a snapshot or a revision on, filtered, with bookmarks.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::{Object, Status, WatchEvent, WatchEventKind, WatchStream};
use bytes::Bytes;
use futures::stream;
use store::{Revision, StoreError};
use tokio::time::{Instant, Sleep};

use super::state::{Change, Mail, Mailbox, Scope, WatcherId};
use super::{Cache, expired, unavailable};

/// How often an idle watch is told the revision that it has reached.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// Events that are rendered at once.
pub(crate) const BATCH_MAX: usize = 64;

/// Whether an object belongs to the watch.
pub type Filter = Arc<dyn Fn(&Object) -> bool + Send + Sync>;

/// Where a watch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the present objects as ADDED events; `mark_end` follows them with a bookmark that says so.
    Snapshot {
        /// KEP-3157's `sendInitialEvents`.
        mark_end: bool,
    },
    /// After a revision.
    After(Revision),
}

/// What to watch.
#[derive(Clone)]
pub struct WatchOptions {
    /// The index that finds the watcher.
    pub scope: Scope,
    /// Selectors.
    pub filter: Filter,
    /// Where it begins.
    pub start: Start,
    /// Whether bookmarks are welcome.
    pub bookmarks: bool,
    /// `apiVersion` and `kind` of bookmarks.
    pub type_meta: (String, String),
    /// When it ends by itself.
    pub deadline: Option<Instant>,
}

/// Keeps the watcher registered for as long as the stream lives.
struct Registration {
    cache: Arc<Cache>,
    scope: Scope,
    id: WatcherId,
    mailbox: Arc<Mailbox>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.cache.state.lock().unregister(&self.scope, self.id);
    }
}

struct Watch {
    registration: Registration,
    options: WatchOptions,
    first: VecDeque<Vec<WatchEvent>>,
    told: Revision,
    /// When something is due without an event; one timer for the watch's whole life, as events are many.
    alarm: Option<Pin<Box<Sleep>>>,
    over: bool,
}

impl Cache {
    /// Opens a watch. Fails with 410 where the history before `start` is gone.
    pub fn watch(self: &Arc<Self>, options: WatchOptions) -> Result<WatchStream, Status> {
        let (registration, first, told) = {
            let mut state = self.state.lock();
            if self.ended.is_cancelled() {
                return Err(expired(state.revision(), state.oldest()));
            }
            let (first, told) = match options.start {
                Start::Snapshot { mark_end } => {
                    let (namespace, name) = match &options.scope {
                        Scope::Namespace(namespace) => (namespace.as_str(), None),
                        Scope::Name(suffix) => ("", Some(suffix.as_str())),
                        Scope::All | Scope::Node(_) | Scope::Owner(_) => ("", None),
                    };
                    let unreadable = match name {
                        Some(suffix) => state.unreadable(suffix),
                        None => state.unreadable_in(namespace).into_iter().next().map(|(_, why)| why),
                    };
                    if let Some(why) = unreadable {
                        return Err(unavailable(StoreError::Unreadable(why.to_string())));
                    }
                    let objects = match name {
                        Some(suffix) => state.get(suffix).into_iter().collect(),
                        None => state.range(namespace),
                    };
                    (initial_events(objects, &options, mark_end, state.revision()), state.revision())
                }
                Start::After(revision) => {
                    let changes = state.since(revision).ok_or_else(|| expired(revision, state.oldest()))?;
                    let changes = changes.into_iter().filter(|change| touches(&options.scope, change));
                    (events(changes, &options.filter), revision)
                }
            };
            let (id, mailbox) = state.register(&options.scope);
            let registration =
                Registration { cache: self.clone(), scope: options.scope.clone(), id, mailbox };
            (registration, first, told)
        };
        let first = batches(first);
        let alarm = next_alarm(&options).map(|at| Box::pin(tokio::time::sleep_until(at)));
        let watch = Watch { registration, options, first, told, alarm, over: false };
        Ok(Box::pin(stream::unfold(watch, |mut watch| async move {
            let item = watch.next().await?;
            Some((item, watch))
        })))
    }
}

/// Events in batches that are written one by one: a client that is slow holds one of them in memory and not all.
fn batches(events: Vec<WatchEvent>) -> VecDeque<Vec<WatchEvent>> {
    let (mut events, mut batches) = (events.into_iter(), VecDeque::new());
    loop {
        let batch: Vec<WatchEvent> = events.by_ref().take(BATCH_MAX).collect();
        if batch.is_empty() {
            return batches;
        }
        batches.push_back(batch);
    }
}

impl Watch {
    async fn next(&mut self) -> Option<Result<Vec<WatchEvent>, Status>> {
        if let Some(batch) = self.first.pop_front() {
            return Some(Ok(batch));
        }
        let mut batch = Vec::new();
        while !self.over {
            // Looked at here as well: where something always happens, nobody waits.
            if self.alarm.as_ref().is_some_and(|alarm| alarm.deadline() <= Instant::now()) {
                batch.extend(self.rung());
            }
            match self.registration.mailbox.take(BATCH_MAX) {
                Mail::Changes(changes) if !self.over => {
                    self.told = changes.last().map_or(self.told, |change| change.revision);
                    batch.extend(events(changes.into_iter(), &self.options.filter));
                    if batch.len() >= BATCH_MAX {
                        return Some(Ok(batch));
                    }
                }
                _ if !batch.is_empty() => return Some(Ok(batch)),
                Mail::Changes(_) => {}
                Mail::Ended => {
                    self.over = true;
                    let oldest = self.registration.cache.state.lock().oldest();
                    return Some(Err(expired(self.told, oldest)));
                }
                Mail::Empty => {
                    if let Some(bookmark) = self.wait().await {
                        return Some(Ok(vec![bookmark]));
                    }
                }
            }
        }
        None
    }

    /// Waits for mail, the deadline, or the time of a bookmark (which it returns).
    async fn wait(&mut self) -> Option<WatchEvent> {
        tokio::select! {
            () = self.registration.mailbox.woken() => None,
            () = due(self.alarm.as_mut()) => self.rung(),
        }
    }

    /// What is due without an event: the end, or a bookmark where the watcher has been told everything else.
    fn rung(&mut self) -> Option<WatchEvent> {
        if self.options.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            self.over = true;
            return None;
        }
        if let (Some(alarm), Some(at)) = (&mut self.alarm, next_alarm(&self.options)) {
            alarm.as_mut().reset(at);
        }
        let reached = self.registration.cache.state.lock().told(&self.registration.mailbox)?;
        if reached <= self.told {
            return None;
        }
        self.told = reached;
        bookmark(&self.options.type_meta, reached, false)
    }
}

/// The deadline, or the time of the next bookmark where they are welcome.
fn next_alarm(options: &WatchOptions) -> Option<Instant> {
    let bookmark = options.bookmarks.then(|| Instant::now() + BOOKMARK_EVERY);
    [options.deadline, bookmark].into_iter().flatten().min()
}

async fn due(alarm: Option<&mut Pin<Box<Sleep>>>) {
    match alarm {
        Some(alarm) => alarm.await,
        None => std::future::pending().await,
    }
}

fn touches(scope: &Scope, change: &Change) -> bool {
    match scope {
        Scope::All => true,
        Scope::Namespace(namespace) => change.new.meta().namespace == *namespace,
        Scope::Name(suffix) => {
            crate::storage::suffix(&change.new.meta().namespace, &change.new.meta().name) == *suffix
        }
        Scope::Node(node) => {
            let node = Some(node.as_str());
            change.new.node_name() == node || change.old.as_ref().is_some_and(|old| old.node_name() == node)
        }
        Scope::Owner(uid) => change.owners().any(|owner| owner == uid),
    }
}

fn initial_events(
    objects: Vec<Arc<Object>>,
    options: &WatchOptions,
    mark_end: bool,
    revision: Revision,
) -> Vec<WatchEvent> {
    let mut batch: Vec<_> = objects
        .into_iter()
        .filter(|object| (options.filter)(object))
        .map(|object| WatchEvent { kind: WatchEventKind::Added, object, initial_events_end: false })
        .collect();
    if mark_end {
        batch.extend(bookmark(&options.type_meta, revision, true));
    }
    batch
}

/// What changes look like through a filter: objects may enter and leave it.
fn events(changes: impl Iterator<Item = Arc<Change>>, filter: &Filter) -> Vec<WatchEvent> {
    changes.filter_map(|change| event(&change, filter)).collect()
}

fn event(change: &Change, filter: &Filter) -> Option<WatchEvent> {
    let before = change.old.as_ref().is_some_and(|old| filter(old));
    let after = !change.deleted && filter(&change.new);
    let (kind, object) = match (before, after) {
        (false, false) => return None,
        (false, true) => (WatchEventKind::Added, change.new.clone()),
        (true, true) => (WatchEventKind::Modified, change.new.clone()),
        (true, false) => {
            // Who left the selection is shown as it was last seen in it, at the revision of its leaving.
            let left = || crate::storage::with_revision(change.old.as_ref()?, change.revision).map(Arc::new);
            (WatchEventKind::Deleted, if change.deleted { change.new.clone() } else { left()? })
        }
    };
    Some(WatchEvent { kind, object, initial_events_end: false })
}

/// An empty object that carries a revision.
fn bookmark(
    type_meta: &(String, String),
    revision: Revision,
    initial_events_end: bool,
) -> Option<WatchEvent> {
    let mut metadata =
        serde_json::json!({ "resourceVersion": revision.to_string(), "creationTimestamp": null });
    if initial_events_end {
        metadata["annotations"] = serde_json::json!({ "k8s.io/initial-events-end": "true" });
    }
    let (api_version, kind) = type_meta;
    let object = serde_json::json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata });
    let object = Object::parse(Bytes::from(object.to_string())).ok()?;
    Some(WatchEvent { kind: WatchEventKind::Bookmark, object: Arc::new(object), initial_events_end })
}
