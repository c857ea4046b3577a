//! Filling a cache: list once, then follow the store's watch; list again only when history is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::backoff::Policy;
use futures::StreamExt;
use store::{EventKind, RangeEnd, RangeRequest, Revision, StoreError, WatchBatch, WatchRequest};

use super::Cache;

/// Delays between attempts while the store fails.
const RETRY: Policy = Policy { first: Duration::from_millis(50), max: Duration::from_secs(5) };
/// How many keys one read of the first list takes.
const PAGE: usize = 500;

impl Cache {
    /// Keeps the cache filled until it is ended.
    pub async fn feed(self: Arc<Self>) {
        self.ended.run_until_cancelled(self.keep_filled()).await;
    }

    async fn keep_filled(&self) {
        let mut failures = 0;
        loop {
            match self.follow().await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    tracing::warn!(prefix = self.prefix, %error, "watch cache lost the store's watch");
                }
            }
            tokio::time::sleep(RETRY.delay(failures)).await;
        }
    }

    /// Resumes after the revision reached, or lists; then follows until the watch ends.
    async fn follow(&self) -> Result<(), StoreError> {
        if self.revision() == 0 {
            self.fill().await?;
        }
        let request = WatchRequest {
            key: self.prefix.clone().into(),
            end: RangeEnd::Prefix,
            start_revision: self.revision() + 1,
            prev_kv: false,
            progress: true,
        };
        let mut stream = match self.store.watch(request).await {
            Err(StoreError::Compacted { .. }) => return self.fill().await,
            other => other?,
        };
        while let Some(batch) = stream.next().await {
            match batch {
                Ok(batch) => self.apply(batch),
                Err(StoreError::Compacted { .. }) => return self.fill().await,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn fill(&self) -> Result<(), StoreError> {
        let mut objects = BTreeMap::new();
        let mut request = RangeRequest { limit: PAGE, ..RangeRequest::prefix(self.prefix.clone()) };
        let end = prefix_end(self.prefix.as_bytes());
        let mut revision: Revision = 0;
        loop {
            let page = self.store.range(request.clone()).await?;
            if revision == 0 {
                revision = page.revision;
            }
            for kv in &page.kvs {
                let Some(suffix) = self.suffix_of(&kv.key) else { continue };
                if let Some(object) = crate::storage::read(&self.kind, &kv.key, &kv.value, kv.mod_revision) {
                    objects.insert(suffix.into(), Arc::new(object));
                }
            }
            let Some(last) = page.kvs.last().filter(|_| page.more) else { break };
            let mut next = last.key.to_vec();
            next.push(0);
            request.key = next.into();
            request.end = RangeEnd::Before(end.clone().into());
            request.revision = revision;
        }
        self.state.lock().fill(objects, revision);
        self.revision.send_replace(revision);
        Ok(())
    }

    fn apply(&self, batch: WatchBatch) {
        let mut state = self.state.lock();
        for event in &batch.events {
            let Some(suffix) = self.suffix_of(&event.kv.key) else { continue };
            let revision = event.kv.mod_revision;
            let object = match event.kind {
                EventKind::Delete => None,
                EventKind::Put => {
                    let read = crate::storage::read(&self.kind, &event.kv.key, &event.kv.value, revision);
                    let Some(object) = read else { continue };
                    Some(Arc::new(object))
                }
            };
            state.apply(suffix, object, revision);
        }
        state.reached(batch.revision);
        drop(state);
        self.revision.send_if_modified(|seen| {
            let moved = batch.revision > *seen;
            *seen = (*seen).max(batch.revision);
            moved
        });
    }

    fn suffix_of<'a>(&self, key: &'a [u8]) -> Option<&'a str> {
        std::str::from_utf8(key).ok()?.strip_prefix(self.prefix.as_str())
    }
}

/// The first key after all that start with `prefix`. Prefixes here end in `/`, so the last byte can always grow.
pub(crate) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}
