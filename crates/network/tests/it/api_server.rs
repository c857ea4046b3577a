//! The API server's watches, played by the test.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use api::{Call, Object, Request, Response, Status, WatchEvent, WatchEventKind, WatchStream};
use async_trait::async_trait;
use client::Transport;
use futures::StreamExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// What is told, and who listens until a watch takes it.
type Channel = (mpsc::UnboundedSender<Batch>, Option<mpsc::UnboundedReceiver<Batch>>);
type Batch = Result<Vec<WatchEvent>, Status>;

#[derive(Default)]
pub(crate) struct ApiServer {
    watches: Mutex<HashMap<String, Channel>>,
    revision: AtomicI64,
    pub(crate) patches: Mutex<Vec<Value>>,
    /// Told of every patch.
    pub(crate) patched: tokio::sync::Notify,
}

impl ApiServer {
    pub(crate) fn new() -> Arc<Self> {
        let server = Arc::new(Self::default());
        for resource in ["namespaces", "services", "endpointslices", "nodes", "leases"] {
            server.event(resource, WatchEventKind::Bookmark, json!({"metadata": {}}), true);
        }
        server
    }

    /// Tells the watchers of a resource; gives the revision.
    pub(crate) fn put(&self, resource: &str, object: Value) -> i64 {
        self.event(resource, WatchEventKind::Modified, object, false)
    }

    pub(crate) fn delete(&self, resource: &str, object: Value) -> i64 {
        self.event(resource, WatchEventKind::Deleted, object, false)
    }

    /// Tells the watchers of a resource that nothing has changed up to a revision, which it gives.
    pub(crate) fn bookmark(&self, resource: &str) -> i64 {
        self.event(resource, WatchEventKind::Bookmark, json!({"metadata": {}}), false)
    }

    fn event(&self, resource: &str, kind: WatchEventKind, mut object: Value, end: bool) -> i64 {
        let revision = self.revision.fetch_add(1, Ordering::SeqCst) + 1;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        let object = Arc::new(Object::parse(serde_json::to_vec(&object).unwrap().into()).unwrap());
        let mut watches = self.watches.lock();
        let (sender, _) = watches.entry(resource.to_owned()).or_insert_with(channel);
        sender.send(Ok(vec![WatchEvent { kind, object, initial_events_end: end }])).unwrap();
        revision
    }
}

fn channel() -> Channel {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Some(receiver))
}

#[async_trait]
impl Transport for ApiServer {
    async fn send(&self, request: Request) -> Result<Response, Status> {
        match request.call {
            Call::Watch(_) => {
                let receiver =
                    self.watches.lock().get_mut(&request.resource.resource).and_then(|w| w.1.take());
                let Some(mut receiver) = receiver else { std::future::pending().await };
                let stream: WatchStream = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx)).boxed();
                Ok(Response::Watch(stream))
            }
            Call::Patch { body, .. } => {
                let patch: Value = serde_json::from_slice(&body).unwrap();
                self.patches.lock().push(patch);
                self.patched.notify_one();
                let object = Arc::new(Object::parse(body).unwrap());
                Ok(Response::Object { object, created: false, warnings: Vec::new() })
            }
            // Events.
            Call::Create { body, .. } => {
                let object = Arc::new(Object::parse(body).unwrap());
                Ok(Response::Object { object, created: true, warnings: Vec::new() })
            }
            other => panic!("unexpected {:?}", other.verb()),
        }
    }
}
