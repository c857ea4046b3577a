//! Keeps one cache equal to the server: a watch that begins with what is there (KEP-3157) or, where the server does not
//! offer it, a list and a watch; then reconnects from the last revision, and lists again only when that has expired.

use std::sync::Arc;
use std::time::Duration;

use api::{GroupVersionResource, ListOptions, Reason, Status, WatchEvent, WatchEventKind, WatchStream};
use base::backoff::Policy;
use base::clock::SharedClock;
use client::Client;
use futures::StreamExt;

use crate::informer::Shared;

/// Delays between attempts to reach the server. Source: client-go's reflector doubles up to 30 s, too.
const RETRY: Policy = Policy { first: Duration::from_millis(50), max: Duration::from_secs(30) };

/// Page size of plain lists.
const PAGE_ITEMS: u64 = 500;

/// Which objects of a resource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Selection {
    /// Of this namespace; empty: of all.
    pub(crate) namespace: String,
    /// Those that match this field selector.
    pub(crate) fields: String,
}

struct Reflector {
    client: Client,
    resource: GroupVersionResource,
    selection: Selection,
    shared: Arc<Shared>,
    /// Whether the server takes `sendInitialEvents`; assumed until it refuses.
    streams_lists: bool,
}

/// Why a watch ended.
enum Ended {
    /// The revision to go on from is gone: list again.
    Expired,
    /// The server closed it in good order: go on from the last revision.
    Closed,
}

/// Runs until it is dropped.
pub(crate) async fn run(
    client: Client,
    clock: SharedClock,
    resource: GroupVersionResource,
    selection: Selection,
    shared: Arc<Shared>,
) {
    let mut reflector = Reflector { client, resource, selection, shared, streams_lists: true };
    let mut relist = true;
    let mut failures = 0;
    loop {
        let before = reflector.shared.revision();
        let ended = reflector.follow(relist).await;
        if reflector.shared.revision() > before {
            failures = 0;
        }
        match ended {
            Ok(Ended::Expired) => relist = true,
            Ok(Ended::Closed) => relist = !reflector.is_synced(),
            Err(error) => {
                tracing::debug!(resource = %reflector.resource, %error, "list or watch failed, trying again");
                relist = !reflector.is_synced();
            }
        }
        // Also a watch that closes at once must not spin.
        if reflector.shared.revision() == before {
            failures += 1;
            clock.sleep_until(clock.now() + RETRY.delay(failures)).await;
        }
    }
}

impl Reflector {
    fn is_synced(&self) -> bool {
        self.shared.revision() > 0
    }

    fn options(&self) -> ListOptions {
        ListOptions { field_selector: self.selection.fields.clone(), ..ListOptions::default() }
    }

    async fn watch(&self, options: ListOptions) -> Result<WatchStream, Status> {
        let options = ListOptions { allow_watch_bookmarks: true, ..options };
        self.client.watch(&self.resource, &self.selection.namespace, options).await
    }

    /// One connection: lists if it has to, then follows the watch to its end.
    async fn follow(&mut self, relist: bool) -> Result<Ended, Status> {
        let mut stream = if relist { self.fill().await? } else { None };
        if stream.is_none() {
            let options =
                ListOptions { resource_version: self.shared.revision().to_string(), ..self.options() };
            stream = Some(match self.watch(options).await {
                Ok(stream) => stream,
                Err(status) => return expired_or(status),
            });
        }
        let Some(mut stream) = stream else { return Ok(Ended::Closed) };
        while let Some(batch) = stream.next().await {
            match batch {
                Ok(events) => self.apply(events),
                Err(status) => return expired_or(status),
            }
        }
        Ok(Ended::Closed)
    }

    /// Brings the cache to a state of the server; gives the watch that goes on from it, if listing was one.
    async fn fill(&mut self) -> Result<Option<WatchStream>, Status> {
        if self.streams_lists {
            let options = ListOptions {
                send_initial_events: Some(true),
                resource_version_match: "NotOlderThan".to_owned(),
                ..self.options()
            };
            match self.watch(options).await {
                Ok(stream) => return self.fill_from(stream).await.map(Some),
                Err(status) if refuses_initial_events(&status) => self.streams_lists = false,
                Err(status) => return Err(status),
            }
        }
        let mut items = Vec::new();
        let mut options = ListOptions { limit: PAGE_ITEMS, ..self.options() };
        loop {
            let page = self.client.list(&self.resource, &self.selection.namespace, options.clone()).await?;
            items.extend(page.items);
            if page.continue_token.is_empty() {
                self.shared.replace(items);
                self.shared.reached(page.revision.max(1));
                return Ok(None);
            }
            options.continue_token = page.continue_token;
        }
    }

    /// Reads the initial events up to the bookmark that ends them.
    async fn fill_from(&self, mut stream: WatchStream) -> Result<WatchStream, Status> {
        let mut items = Vec::new();
        while let Some(batch) = stream.next().await {
            let mut events = batch?.into_iter();
            while let Some(event) = events.next() {
                match event.kind {
                    WatchEventKind::Added => items.push(event.object),
                    WatchEventKind::Bookmark if event.initial_events_end => {
                        self.shared.replace(items);
                        self.shared.reached(event.object.revision().max(1));
                        self.apply(events.collect());
                        return Ok(stream);
                    }
                    // The state that a list-like watch begins with consists of additions only.
                    WatchEventKind::Modified | WatchEventKind::Deleted | WatchEventKind::Bookmark => {}
                }
            }
        }
        Err(Status::new(Reason::ServiceUnavailable, "the watch ended before its initial events did"))
    }

    fn apply(&self, events: Vec<WatchEvent>) {
        let mut newest = 0;
        for event in events {
            newest = newest.max(event.object.revision());
            match event.kind {
                WatchEventKind::Added | WatchEventKind::Modified => self.shared.put(event.object),
                WatchEventKind::Deleted => self.shared.remove(&event.object),
                WatchEventKind::Bookmark => {}
            }
        }
        self.shared.reached(newest);
    }
}

fn expired_or(status: Status) -> Result<Ended, Status> {
    if matches!(status.reason, Reason::Expired | Reason::Gone) { Ok(Ended::Expired) } else { Err(status) }
}

/// Servers that do not know `sendInitialEvents` refuse it as an invalid or unknown option.
fn refuses_initial_events(status: &Status) -> bool {
    matches!(status.reason, Reason::Invalid | Reason::BadRequest)
}

/// A bare object, for tests.
#[cfg(test)]
pub(crate) fn object(namespace: &str, name: &str, uid: &str, revision: i64) -> Arc<api::Object> {
    let json = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "namespace": namespace, "name": name, "uid": uid, "resourceVersion": revision.to_string() },
    });
    Arc::new(api::Object::parse(serde_json::to_vec(&json).unwrap().into()).unwrap())
}
