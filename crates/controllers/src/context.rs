//! What every controller is given, and what they all do in the same way.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object, ObjectMeta, OwnerReference};
use base::BoxError;
use base::backoff::Policy;
use base::clock::SharedClock;
use base::lifecycle::Context;
use base::queues::Queues;
use client::Client;
use futures::future::join_all;
use reconcile::kinds::Catalog;
use reconcile::queue::{QueueKey, RETRY};
use reconcile::{Informer, Informers, Kind, Queue, Reconcile, run_workers};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::figures::Figures;

/// How long a controller waits for its cache to show its own write before it goes on without.
const CATCH_UP: Duration = Duration::from_secs(5);

/// Handles of a controller. Cheap to clone.
#[derive(Clone)]
pub struct Ctx {
    /// Writes, and reads that must not come from a cache. Field manager: per controller.
    pub client: Client,
    /// The process's caches.
    pub informers: Informers,
    /// Time.
    pub clock: SharedClock,
    /// What the server serves: the resources that garbage collection and namespace deletion reach.
    pub catalog: Catalog,
    /// Where work queues tell of themselves.
    pub queues: Queues,
    /// What is counted besides, if somebody shows it.
    pub figures: Option<Arc<Figures>>,
    /// The certificate authority of the API server in PEM, published as `kube-root-ca.crt`; told anew when it is renewed.
    pub root_ca_pem: watch::Receiver<Arc<str>>,
}

impl Ctx {
    /// The same handles for one controller: its writes carry its name in managedFields.
    pub(crate) fn named(&self, controller: &str) -> Self {
        Self { client: self.client.for_manager(controller), ..self.clone() }
    }

    /// A work queue under the name that upstream's has.
    pub(crate) fn queue<K: QueueKey>(&self, name: &'static str) -> Queue<K> {
        self.queue_with(name, RETRY)
    }

    /// The same where failed keys come back as `policy` says.
    pub(crate) fn queue_with<K: QueueKey>(&self, name: &'static str, policy: Policy) -> Queue<K> {
        Queue::with_backoff(self.clock.clone(), policy).named(name, &self.queues)
    }

    /// Waits, at most a moment, until a cache shows a write of this process, so that the next decision sees it.
    pub(crate) async fn caught_up(&self, informer: &Informer, revision: i64) {
        self.shown(informer, informer.caught_up(revision)).await;
    }

    /// The same for objects that this process has deleted: the cache holds them no more, or knows that they go.
    pub(crate) async fn gone_from(&self, informer: &Informer, keys: &[Key]) {
        let mut revisions = informer.revisions();
        let goes = |key: &Key| informer.get(key).is_none_or(|held| held.meta().is_terminating());
        let gone = async {
            // The informer lives as long as this call, and tells every change before its revision.
            let _ = revisions.wait_for(|_| keys.iter().all(goes)).await;
        };
        self.shown(informer, gone).await;
    }

    async fn shown(&self, informer: &Informer, shown: impl Future<Output = ()>) {
        let deadline = self.clock.now() + CATCH_UP;
        tokio::select! {
            () = shown => {}
            () = self.clock.sleep_until(deadline) => {
                tracing::debug!(resource = %informer.resource(), "cache is slow to show a write");
            }
        }
    }
}

/// The key of an object by its metadata.
pub(crate) fn key_of(meta: &ObjectMeta) -> Key {
    Key::new(meta.namespace.as_str(), meta.name.as_str())
}

/// Returns once these caches have held everything that the server had, and says that the component is ready; false if it
/// drains before that.
pub(crate) async fn ready(ctx: &Context, caches: &[&Informer]) -> bool {
    tokio::select! {
        () = ctx.cancelled() => return false,
        _ = join_all(caches.iter().map(|cache| cache.synced())) => {}
    }
    ctx.ready();
    true
}

/// A controller's work: once these caches have held everything that the server had, `worker` works on the queue's keys until
/// the component drains.
pub(crate) async fn work<K, R>(
    ctx: &Context,
    name: &'static str,
    caches: &[&Informer],
    queue: &Queue<K>,
    workers: usize,
    worker: &Arc<R>,
) -> Result<(), BoxError>
where
    K: QueueKey + Debug,
    R: Reconcile<K>,
{
    if ready(ctx, caches).await {
        run_workers(ctx, name, queue, workers, worker.clone()).await;
    }
    Ok(())
}

/// Decodes a projection; the error names the object.
pub(crate) fn decode<T: DeserializeOwned>(object: &Object) -> Result<T, BoxError> {
    object.decode().map_err(|error| format!("cannot read {}: {error}", object.key()).into())
}

/// The owner reference of a managing controller, as objects that it makes carry it.
pub(crate) fn controller_ref(kind: &Kind, owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: kind.api_version(),
        kind: kind.kind.to_owned(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A strategic merge patch that makes `owner` the controller of an object with this uid.
pub(crate) fn adopt_patch(owner: &OwnerReference, uid: &str) -> Value {
    json!({ "metadata": { "uid": uid, "ownerReferences": [owner] } })
}

/// A strategic merge patch that takes the owner `owner_uid` from an object with this uid.
pub(crate) fn release_patch(owner_uid: &str, uid: &str) -> Value {
    json!({ "metadata": { "uid": uid, "ownerReferences": [{ "$patch": "delete", "uid": owner_uid }] } })
}
