//! Events (`core/v1`, which `kubectl describe` reads): recorded without ever blocking the caller, repeated ones counted
//! on one object, similar ones joined, and floods cut. Source: client-go's `tools/record` and its defaults.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::{Key, Object, PatchType, Reason, Status};
use base::clock::SharedClock;
use base::lifecycle::Tasks;
use client::Client;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::kinds::{self, Kind};
use crate::time;

/// How many events may wait to be written; more are dropped and counted.
const WAITING_MAX: usize = 1000;
/// How many different events are remembered, to count their repetitions.
const REMEMBERED_MAX: usize = 4096;
/// Events of one object: so many at once, …
const BURST: f64 = 25.0;
/// … then one in this time.
const REFILL: Duration = Duration::from_secs(300);
/// So many similar events (equal but for their message) are told apart within [`SIMILAR_WITHIN`].
const SIMILAR_MAX: usize = 10;
/// Similar events that are further apart are not joined.
const SIMILAR_WITHIN: Duration = Duration::from_secs(600);
/// Upstream's limit of `message`. Source: `validateV1EventSeries` and kubelet practice, 1 kB.
const MESSAGE_MAX: usize = 1024;

/// Normal or Warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum EventType {
    /// All is well.
    Normal,
    /// Something to look at.
    Warning,
}

/// What an event is about. Shape: `core/v1.ObjectReference`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Involved {
    /// `apps/v1`.
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
    /// Namespace; empty for cluster-scoped objects.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The version that was looked at.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// A part of the object, such as `spec.containers{web}`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field_path: String,
}

impl Involved {
    /// Refers to an object of a kind.
    pub fn object(kind: &Kind, object: &Object) -> Self {
        let meta = object.meta();
        Self {
            api_version: kind.api_version(),
            kind: kind.kind.to_owned(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path: String::new(),
        }
    }

    /// Refers to an object by the parts of its name.
    pub fn named(kind: &Kind, key: &Key, uid: &str) -> Self {
        Self {
            api_version: kind.api_version(),
            kind: kind.kind.to_owned(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            uid: uid.to_owned(),
            ..Self::default()
        }
    }

    /// The same object, a part of it.
    #[must_use]
    pub fn field(mut self, path: impl Into<String>) -> Self {
        self.field_path = path.into();
        self
    }
}

/// One occurrence, as it is handed to the recorder.
struct Occurrence {
    involved: Involved,
    event_type: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Records events under one source. Cheap to clone.
#[derive(Clone)]
pub struct EventRecorder {
    sender: mpsc::Sender<Occurrence>,
    dropped: Arc<AtomicU64>,
    clock: SharedClock,
    _writer: Arc<Tasks>,
}

impl EventRecorder {
    /// A recorder that writes through `client`. `component` is upstream's name of the source (`deployment-controller`,
    /// `kubelet`); `host` is the node's name for agents of a node, else empty. Made within a tokio runtime.
    pub fn new(client: Client, clock: SharedClock, component: &str, host: &str) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let writer = Writer {
            client,
            component: component.to_owned(),
            host: host.to_owned(),
            correlator: Correlator::default(),
            named: Timestamp::MIN,
        };
        let tasks = Tasks::default();
        tasks.spawn(writer.run(receiver));
        Self { sender, dropped: Arc::default(), clock, _writer: Arc::new(tasks) }
    }

    /// Records that something happened to an object. Never blocks: what does not fit is dropped.
    pub fn event(
        &self,
        involved: Involved,
        event_type: EventType,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) {
        let occurrence = Occurrence {
            involved,
            event_type,
            reason: reason.into(),
            message: shorten(message.into()),
            at: self.clock.now(),
        };
        if self.sender.try_send(occurrence).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many events were dropped because too many waited.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn shorten(mut message: String) -> String {
    if message.len() > MESSAGE_MAX {
        let end = (0..=MESSAGE_MAX - 3).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push_str("...");
    }
    message
}

/// What makes two occurrences the same event, or (with an empty message) similar ones.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Identity {
    involved: Involved,
    event_type: EventType,
    reason: String,
    message: String,
}

/// An event object that was written, to be counted up.
#[derive(Debug, Clone)]
struct Written {
    key: Key,
    first: Timestamp,
    count: u64,
    used: Timestamp,
}

/// The different messages of similar events.
#[derive(Debug)]
struct Similar {
    messages: Vec<String>,
    last: Timestamp,
}

/// The tokens that an object's events have left.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Timestamp,
}

/// Decides what becomes of an occurrence: a new event, one more of a known one, or nothing.
#[derive(Default)]
struct Correlator {
    written: HashMap<Identity, Written>,
    similar: HashMap<Identity, Similar>,
    buckets: HashMap<Involved, Bucket>,
}

impl Correlator {
    /// The identity under which an occurrence is to be written (its message is empty if it stands for similar ones);
    /// `None` if the object has used up its events.
    fn admit(&mut self, occurrence: &Occurrence) -> Option<Identity> {
        self.trim();
        // Versions differ from occurrence to occurrence; the object is the same.
        let involved = Involved { resource_version: String::new(), ..occurrence.involved.clone() };
        if !self.spend(&involved, occurrence.at) {
            return None;
        }
        let group = Identity {
            involved,
            event_type: occurrence.event_type,
            reason: occurrence.reason.clone(),
            message: String::new(),
        };
        let similar = self
            .similar
            .entry(group.clone())
            .or_insert_with(|| Similar { messages: Vec::new(), last: occurrence.at });
        if since(similar.last, occurrence.at) > SIMILAR_WITHIN {
            similar.messages.clear();
        }
        similar.last = occurrence.at;
        let known = similar.messages.contains(&occurrence.message);
        if !known && similar.messages.len() < SIMILAR_MAX {
            similar.messages.push(occurrence.message.clone());
        }
        let apart = known || similar.messages.len() < SIMILAR_MAX;
        let message = if apart { occurrence.message.clone() } else { String::new() };
        Some(Identity { message, ..group })
    }

    fn spend(&mut self, involved: &Involved, now: Timestamp) -> bool {
        let bucket = self.buckets.entry(involved.clone()).or_insert(Bucket { tokens: BURST, filled: now });
        let earned = since(bucket.filled, now).as_secs_f64() / REFILL.as_secs_f64();
        bucket.tokens = (bucket.tokens + earned).min(BURST);
        bucket.filled = now;
        let enough = bucket.tokens >= 1.0;
        if enough {
            bucket.tokens -= 1.0;
        }
        enough
    }

    /// Keeps memory bounded: what was used longest ago goes. Rare, so that its cost does not matter.
    fn trim(&mut self) {
        if self.written.len() > REMEMBERED_MAX {
            let mut used: Vec<_> = self.written.values().map(|written| written.used).collect();
            used.sort_unstable();
            let middle = used[used.len() / 2];
            self.written.retain(|_, written| written.used > middle);
        }
        if self.similar.len() > REMEMBERED_MAX {
            self.similar.clear();
        }
        if self.buckets.len() > REMEMBERED_MAX {
            self.buckets.clear();
        }
    }
}

/// What is written: of similar events the newest speaks for all.
fn message(identity: &Identity, occurrence: &Occurrence) -> String {
    if identity.message.is_empty() {
        format!("(combined from similar events): {}", occurrence.message)
    } else {
        identity.message.clone()
    }
}

fn since(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

/// Writes what the correlator admits.
struct Writer {
    client: Client,
    component: String,
    host: String,
    correlator: Correlator,
    /// The moment by which an event was named last.
    named: Timestamp,
}

/// The moment that names an event: its own, or one just after the last, since two events of one moment are two.
fn naming(at: Timestamp, last: Timestamp) -> Timestamp {
    at.max(last.saturating_add(Duration::from_nanos(1)).unwrap_or(last))
}

impl Writer {
    async fn run(mut self, mut receiver: mpsc::Receiver<Occurrence>) {
        while let Some(occurrence) = receiver.recv().await {
            let Some(identity) = self.correlator.admit(&occurrence) else { continue };
            if let Err(error) = self.write(&identity, &occurrence).await {
                tracing::debug!(reason = occurrence.reason, %error, "event not written");
            }
        }
    }

    async fn write(&mut self, identity: &Identity, occurrence: &Occurrence) -> Result<(), Status> {
        if let Some(written) = self.correlator.written.get(identity).cloned() {
            match self.count_up(identity, &written, occurrence).await {
                // It may have expired on the server: then it begins anew.
                Err(status) if status.reason == Reason::NotFound => {}
                Ok(()) => {
                    let next = Written { count: written.count + 1, used: occurrence.at, ..written };
                    self.correlator.written.insert(identity.clone(), next);
                    return Ok(());
                }
                Err(status) => return Err(status),
            }
        }
        let key = self.create(identity, occurrence).await?;
        let written = Written { key, first: occurrence.at, count: 1, used: occurrence.at };
        self.correlator.written.insert(identity.clone(), written);
        Ok(())
    }

    async fn count_up(
        &self,
        identity: &Identity,
        written: &Written,
        occurrence: &Occurrence,
    ) -> Result<(), Status> {
        let patch = serde_json::json!({
            "message": message(identity, occurrence),
            "count": written.count + 1,
            "firstTimestamp": time::seconds(written.first),
            "lastTimestamp": time::seconds(occurrence.at),
        });
        self.client.patch(&kinds::EVENTS.gvr(), &written.key, "", PatchType::Merge, &patch).await.map(drop)
    }

    async fn create(&mut self, identity: &Identity, occurrence: &Occurrence) -> Result<Key, Status> {
        let involved = &occurrence.involved;
        // Events of cluster-scoped objects live in `default`, as upstream's do.
        let namespace = if involved.namespace.is_empty() { "default" } else { &involved.namespace };
        self.named = naming(occurrence.at, self.named);
        let name = format!("{}.{:x}", involved.name, self.named.as_nanosecond());
        let key = Key::new(namespace, name);
        let at = time::seconds(occurrence.at);
        let mut source = serde_json::json!({ "component": self.component });
        if !self.host.is_empty() {
            source["host"] = self.host.as_str().into();
        }
        let body = serde_json::json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": { "name": key.name, "namespace": key.namespace },
            "involvedObject": involved,
            "type": occurrence.event_type, "reason": occurrence.reason, "message": message(identity, occurrence),
            "source": source, "reportingComponent": self.component, "reportingInstance": self.host,
            "firstTimestamp": at, "lastTimestamp": at, "count": 1, "eventTime": null,
        });
        self.client.create(&kinds::EVENTS.gvr(), &key.namespace, &body).await?;
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrence(reason: &str, message: &str, second: i64) -> Occurrence {
        Occurrence {
            involved: Involved { kind: "Pod".into(), name: "web".into(), ..Involved::default() },
            event_type: EventType::Normal,
            reason: reason.into(),
            message: message.into(),
            at: Timestamp::from_second(second).unwrap(),
        }
    }

    #[test]
    fn floods_are_cut_and_refill() {
        let mut correlator = Correlator::default();
        let admitted = (0..100).filter(|_| correlator.admit(&occurrence("Pulled", "x", 0)).is_some()).count();
        assert_eq!(admitted, 25);
        assert!(correlator.admit(&occurrence("Pulled", "x", 299)).is_none());
        assert!(correlator.admit(&occurrence("Pulled", "x", 301)).is_some());
    }

    #[test]
    fn similar_messages_are_joined_after_ten() {
        let mut correlator = Correlator::default();
        let messages: Vec<String> = (0..12)
            .filter_map(|n| {
                let occurrence = occurrence("Failed", &format!("m{n}"), 0);
                correlator.admit(&occurrence).map(|identity| message(&identity, &occurrence))
            })
            .collect();
        assert_eq!(messages[8], "m8");
        assert_eq!(messages[11], "(combined from similar events): m11");
        // What is known by its message is still told apart.
        assert_eq!(correlator.admit(&occurrence("Failed", "m9", 0)).unwrap().message, "m9");
    }

    #[test]
    fn events_of_one_moment_have_names_of_their_own() {
        let at = |nanos: i128| Timestamp::from_nanosecond(nanos).unwrap();
        for (now, last, expected) in [(5, 3, 5), (5, 5, 6), (5, 6, 7), (-5, 7, 8)] {
            assert_eq!(naming(at(now), at(last)), at(expected));
        }
        assert_eq!(naming(at(1), Timestamp::MIN), at(1));
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let message = shorten("ä".repeat(2000));
        assert!(message.len() <= MESSAGE_MAX && message.ends_with("ä..."));
    }
}
