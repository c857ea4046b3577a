//! The store with its values closed: what goes in is encrypted, what comes out is opened, and nobody above knows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use store::{
    Event, KeyValue, LeaseId, Op, OpOutcome, RangeRequest, RangeResponse, Revision, Store, StoreError, Txn,
    TxnResponse, WatchBatch, WatchRequest, WatchStream,
};

use super::metrics::Way;
use super::{Keys, Metrics, Providers, family, provider_of};

/// A store over another one. Conditions on values see what is stored, and nobody asks them of objects.
pub(crate) struct Sealed {
    inner: Arc<dyn Store>,
    keys: Arc<Keys>,
    metrics: Metrics,
}

impl Sealed {
    /// Encrypts what lies in `inner` with these keys.
    pub(crate) fn new(inner: Arc<dyn Store>, keys: Arc<Keys>, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { inner, keys, metrics })
    }

    /// The keys.
    pub(crate) fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// The store underneath: its values are closed.
    pub(crate) fn inner(&self) -> &Arc<dyn Store> {
        &self.inner
    }

    /// A value of the store underneath, as it was before it was written.
    pub(crate) fn opened(&self, kv: &KeyValue) -> Result<Bytes, StoreError> {
        self.metrics.opened(&self.keys.providers(), kv)
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

/// Opening and closing, counted where the resource is one that is encrypted.
impl Metrics {
    fn opened(&self, providers: &Providers, kv: &KeyValue) -> Result<Bytes, StoreError> {
        let since = Instant::now();
        let opened = providers.open(&kv.key, &kv.value);
        if let Some(own) = providers.of(&kv.key) {
            self.went(Way::FromStorage, provider_of(own, &kv.value), since.elapsed(), opened.is_ok());
        }
        opened.map(|opened| opened.value).map_err(|cause| unreadable(&kv.key, &cause))
    }

    fn open(&self, providers: &Providers, kv: &mut KeyValue) -> Result<(), StoreError> {
        kv.value = self.opened(providers, kv)?;
        Ok(())
    }

    fn open_all(&self, providers: &Providers, mut read: RangeResponse) -> Result<RangeResponse, StoreError> {
        read.kvs.iter_mut().try_for_each(|kv| self.open(providers, kv))?;
        Ok(read)
    }

    fn open_event(&self, providers: &Providers, event: &mut Event) -> Result<(), StoreError> {
        if event.kind == store::EventKind::Put {
            self.open(providers, &mut event.kv)?;
        }
        event.prev.as_mut().map_or(Ok(()), |prev| self.open(providers, prev))
    }

    fn close(&self, providers: &Providers, op: Op) -> Result<Op, StoreError> {
        let Op::Put { key, value, lease } = op else { return Ok(op) };
        let since = Instant::now();
        let closed = providers.close(&key, value);
        if let Some(own) = providers.of(&key) {
            let writes = own.first().filter(|first| first.cipher.is_some());
            let provider = writes.map_or(&b""[..], |first| family(&first.prefix));
            let provider = std::str::from_utf8(provider).unwrap_or_default();
            self.went(Way::ToStorage, provider, since.elapsed(), closed.is_ok());
        }
        let value = closed.map_err(|cause| unreadable(&key, &cause))?;
        Ok(Op::Put { key, value, lease })
    }
}

#[async_trait]
impl Store for Sealed {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.metrics.open_all(&self.keys.providers(), self.inner.range(request).await?)
    }

    async fn txn(&self, mut txn: Txn) -> Result<TxnResponse, StoreError> {
        let providers = self.keys.providers();
        for ops in [&mut txn.then, &mut txn.or_else] {
            *ops = std::mem::take(ops)
                .into_iter()
                .map(|op| self.metrics.close(&providers, op))
                .collect::<Result<_, _>>()?;
        }
        let mut response = self.inner.txn(txn).await?;
        for outcome in &mut response.outcomes {
            if let OpOutcome::Range(read) = outcome {
                read.kvs.iter_mut().try_for_each(|kv| self.metrics.open(&providers, kv))?;
            }
        }
        Ok(response)
    }

    async fn watch(&self, request: WatchRequest) -> Result<WatchStream, StoreError> {
        let (keys, metrics) = (self.keys.clone(), self.metrics.clone());
        let opened = move |batch: Result<WatchBatch, StoreError>| {
            let mut batch = batch?;
            let providers = keys.providers();
            batch.events.iter_mut().try_for_each(|event| metrics.open_event(&providers, event))?;
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

    async fn size(&self) -> Result<u64, StoreError> {
        self.inner.size().await
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
