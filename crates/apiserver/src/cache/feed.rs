//! Filling a cache: list once, then follow the store's watch; list again only when history is lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::Object;
use base::backoff::Policy;
use futures::StreamExt;
use store::{
    EventKind, KeyValue, RangeEnd, RangeRequest, Revision, StoreError, WatchBatch, WatchRequest, WatchStream,
};
use tokio::sync::watch;

use super::Cache;
use super::state::{Contents, State};

/// Delays between attempts while the store fails.
const RETRY: Policy = Policy { first: Duration::from_millis(50), max: Duration::from_secs(5) };
/// How many keys one read of the first list takes.
const PAGE: usize = 500;
/// So many revisions before its beginning a cache knows what happened, if the store still does.
const HISTORY: Revision = 1000;
/// How long the store may take to tell them.
const HISTORY_PATIENCE: Duration = Duration::from_secs(2);

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
        let mut stream = match self.revision() {
            0 => self.fill().await?,
            reached => match self.watch_after(reached).await {
                Err(StoreError::Compacted { .. }) => self.fill().await?,
                other => other?,
            },
        };
        let mut keys = self.sealed.as_ref().map(|sealed| sealed.keys().changes());
        loop {
            let whole = self.state.lock().is_whole();
            let batch = tokio::select! {
                batch = stream.next() => batch,
                // What could not be read is read again with the keys that there are now.
                () = changed(keys.as_mut()), if !whole => {
                    stream = self.fill().await?;
                    continue;
                }
            };
            match batch {
                Some(Ok(batch)) => self.apply(&batch),
                Some(Err(StoreError::Compacted { .. })) => stream = self.fill().await?,
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            }
        }
    }

    async fn watch_after(&self, revision: Revision) -> Result<WatchStream, StoreError> {
        let request = WatchRequest {
            key: self.prefix.clone().into(),
            end: RangeEnd::Prefix,
            start_revision: revision + 1,
            prev_kv: false,
            progress: true,
        };
        self.store.watch(request).await
    }

    /// Fills the cache with what is there now and with the latest history, so that who watched before this process began
    /// goes on where he was. What follows comes with the stream.
    async fn fill(&self) -> Result<WatchStream, StoreError> {
        let stream = self.begin().await?;
        self.filled.fetch_add(1, Ordering::Relaxed);
        Ok(stream)
    }

    async fn begin(&self) -> Result<WatchStream, StoreError> {
        let newest = self.store.current_revision().await?;
        match self.fill_with_history(newest).await {
            Ok(Some(stream)) => return Ok(stream),
            Err(error @ StoreError::Unavailable(_)) => return Err(error),
            // The past is compacted, lies under keys that nobody has any more, or is told too slowly: begin without it.
            Ok(None) | Err(_) => {}
        }
        let (contents, revision) = self.read_all(0).await?;
        self.state.lock().fill(contents, revision);
        self.revision.send_replace(revision);
        self.watch_after(revision).await
    }

    /// Begins at a revision in the past and catches up to `newest` before anybody sees the cache; nothing if the store takes
    /// too long to tell what happened since.
    async fn fill_with_history(&self, newest: Revision) -> Result<Option<WatchStream>, StoreError> {
        let begin = newest.saturating_sub(HISTORY).max(1);
        let (contents, begin) = match self.read_all(begin).await {
            Err(StoreError::Compacted { oldest }) => (self.read_all(oldest).await?.0, oldest),
            read => (read?.0, begin),
        };
        let mut stream = self.watch_after(begin).await?;
        let catching_up = catch_up(&mut stream, begin, newest);
        let Ok(history) = tokio::time::timeout(HISTORY_PATIENCE, catching_up).await else { return Ok(None) };
        let history = history?;
        let mut state = self.state.lock();
        state.fill(contents, begin);
        history.iter().for_each(|batch| self.take(&mut state, batch));
        let reached = state.revision();
        drop(state);
        self.revision.send_replace(reached);
        Ok(Some(stream))
    }

    /// All objects at a revision (0: the newest), page by page, and the revision.
    async fn read_all(&self, at: Revision) -> Result<(Contents, Revision), StoreError> {
        let mut contents = Contents::default();
        let mut request =
            RangeRequest { limit: PAGE, revision: at, ..RangeRequest::prefix(self.prefix.clone()) };
        let end = prefix_end(self.prefix.as_bytes());
        let mut revision = at;
        loop {
            let page = self.store.range(request.clone()).await?;
            if revision == 0 {
                revision = page.revision;
            }
            for kv in &page.kvs {
                let Some(suffix) = self.suffix_of(&kv.key) else { continue };
                match self.read(kv) {
                    Ok(Some(object)) => drop(contents.objects.insert(suffix.into(), Arc::new(object))),
                    Ok(None) => {}
                    Err(why) => drop(contents.unreadable.insert(suffix.into(), why)),
                }
            }
            let Some(last) = page.kvs.last().filter(|_| page.more) else { break };
            let mut next = last.key.to_vec();
            next.push(0);
            request.key = next.into();
            request.end = RangeEnd::Before(end.clone().into());
            request.revision = revision;
        }
        Ok((contents, revision))
    }

    /// The object of a stored value, or why there is none: no key opens it. Nothing where it is not one of the kind's.
    fn read(&self, kv: &KeyValue) -> Result<Option<Object>, Arc<str>> {
        let value = match &self.sealed {
            Some(sealed) => sealed.opened(kv).map_err(|error| {
                tracing::error!(%error, "an object cannot be read; its resource is refused until its key is there");
                match error {
                    StoreError::Unreadable(why) => Arc::from(why),
                    other => Arc::from(other.to_string()),
                }
            })?,
            None => kv.value.clone(),
        };
        Ok(crate::storage::read(&self.kind, &kv.key, &value, kv.mod_revision))
    }

    fn apply(&self, batch: &WatchBatch) {
        self.take(&mut self.state.lock(), batch);
        self.revision.send_if_modified(|seen| {
            let moved = batch.revision > *seen;
            *seen = (*seen).max(batch.revision);
            moved
        });
    }

    fn take(&self, state: &mut State, batch: &WatchBatch) {
        self.received.fetch_add(batch.events.len() as u64, Ordering::Relaxed);
        for event in &batch.events {
            let Some(suffix) = self.suffix_of(&event.kv.key) else { continue };
            let revision = event.kv.mod_revision;
            match event.kind {
                EventKind::Delete => state.apply(suffix, None, revision),
                EventKind::Put => match self.read(&event.kv) {
                    Ok(Some(object)) => state.apply(suffix, Some(Arc::new(object)), revision),
                    Ok(None) => {}
                    Err(why) => state.lose(suffix, why, revision),
                },
            }
        }
        state.reached(batch.revision);
    }

    fn suffix_of<'a>(&self, key: &'a [u8]) -> Option<&'a str> {
        std::str::from_utf8(key).ok()?.strip_prefix(self.prefix.as_str())
    }
}

/// Returns when there are other keys; never where there are none.
async fn changed(keys: Option<&mut watch::Receiver<u64>>) {
    let Some(keys) = keys else { return std::future::pending().await };
    if keys.changed().await.is_err() {
        std::future::pending().await
    }
}

/// The batches of a stream up to a revision.
async fn catch_up(
    stream: &mut WatchStream,
    begin: Revision,
    newest: Revision,
) -> Result<Vec<WatchBatch>, StoreError> {
    let (mut history, mut reached) = (Vec::new(), begin);
    while reached < newest {
        let Some(batch) = stream.next().await else {
            return Err(StoreError::Unavailable("the watch ended while a cache caught up".into()));
        };
        let batch = batch?;
        reached = batch.revision;
        history.push(batch);
    }
    Ok(history)
}

/// The first key after all that start with `prefix`. Prefixes here end in `/`, so the last byte can always grow.
pub(crate) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}
