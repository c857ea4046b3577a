//! The store with its values closed: what goes in is encrypted, what comes out is opened, and nobody above knows.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use store::{
    Event, KeyValue, LeaseId, Op, OpOutcome, RangeRequest, RangeResponse, Revision, Store, StoreError, Txn,
    TxnResponse, WatchBatch, WatchRequest, WatchStream,
};

use super::{Keys, Providers};

/// A store over another one. Conditions on values see what is stored, and nobody asks them of objects.
pub(crate) struct Sealed {
    inner: Arc<dyn Store>,
    keys: Arc<Keys>,
}

impl Sealed {
    /// Encrypts what lies in `inner` with these keys.
    pub(crate) fn new(inner: Arc<dyn Store>, keys: Arc<Keys>) -> Arc<Self> {
        Arc::new(Self { inner, keys })
    }

    /// The keys.
    pub(crate) fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// Whether the value under a key would be written otherwise now: an update that changes nothing writes it then.
    pub(crate) async fn is_stale(&self, key: &str) -> Result<bool, StoreError> {
        let providers = self.keys.providers();
        if providers.of(key.as_bytes()).is_none() {
            return Ok(false);
        }
        let read = self.inner.range(RangeRequest::key(key.to_owned())).await?;
        let Some(kv) = read.kvs.first() else { return Ok(false) };
        let opened = providers.open(&kv.key, &kv.value).map_err(|cause| unreadable(&kv.key, &cause))?;
        Ok(opened.stale)
    }
}

/// A value that no key opens. Source: `storage/etcd3/store.go`.
fn unreadable(key: &[u8], cause: &str) -> StoreError {
    StoreError::Unreadable(format!("unable to transform key {:?}: {cause}", String::from_utf8_lossy(key)))
}

fn open(providers: &Providers, kv: &mut KeyValue) -> Result<(), StoreError> {
    let opened = providers.open(&kv.key, &kv.value).map_err(|cause| unreadable(&kv.key, &cause))?;
    kv.value = opened.value;
    Ok(())
}

fn open_all(providers: &Providers, mut read: RangeResponse) -> Result<RangeResponse, StoreError> {
    for kv in &mut read.kvs {
        open(providers, kv)?;
    }
    Ok(read)
}

fn open_event(providers: &Providers, event: &mut Event) -> Result<(), StoreError> {
    if event.kind == store::EventKind::Put {
        open(providers, &mut event.kv)?;
    }
    event.prev.as_mut().map_or(Ok(()), |prev| open(providers, prev))
}

fn close(providers: &Providers, op: Op) -> Result<Op, StoreError> {
    let Op::Put { key, value, lease } = op else { return Ok(op) };
    let closed = providers.close(&key, value).map_err(|cause| {
        StoreError::Unreadable(format!(
            "unable to transform key {:?}: {cause}",
            String::from_utf8_lossy(&key)
        ))
    })?;
    Ok(Op::Put { key, value: closed, lease })
}

#[async_trait]
impl Store for Sealed {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        open_all(&self.keys.providers(), self.inner.range(request).await?)
    }

    async fn txn(&self, mut txn: Txn) -> Result<TxnResponse, StoreError> {
        let providers = self.keys.providers();
        for ops in [&mut txn.then, &mut txn.or_else] {
            *ops =
                std::mem::take(ops).into_iter().map(|op| close(&providers, op)).collect::<Result<_, _>>()?;
        }
        let mut response = self.inner.txn(txn).await?;
        for outcome in &mut response.outcomes {
            if let OpOutcome::Range(read) = outcome {
                read.kvs.iter_mut().try_for_each(|kv| open(&providers, kv))?;
            }
        }
        Ok(response)
    }

    async fn watch(&self, request: WatchRequest) -> Result<WatchStream, StoreError> {
        let keys = self.keys.clone();
        let opened = move |batch: Result<WatchBatch, StoreError>| {
            let mut batch = batch?;
            let providers = keys.providers();
            batch.events.iter_mut().try_for_each(|event| open_event(&providers, event))?;
            Ok(batch)
        };
        Ok(Box::pin(self.inner.watch(request).await?.map(opened)))
    }

    async fn request_progress(&self) -> Result<(), StoreError> {
        self.inner.request_progress().await
    }

    async fn current_revision(&self) -> Result<Revision, StoreError> {
        self.inner.current_revision().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.inner.compact(revision).await
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.inner.lease_grant(ttl).await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.lease_keep_alive(lease).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.lease_revoke(lease).await
    }
}
