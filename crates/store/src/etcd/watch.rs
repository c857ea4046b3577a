//! A watch on etcd: one gRPC stream each.

use etcd_client::{
    KvClient, TxnOp, TxnOpResponse, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream,
};
use futures::StreamExt as _;
use futures::stream;

use super::progress::Membership;
use super::{Etcd, convert};
use crate::{
    Event, EventKind, RangeEnd, RangeRequest, Revision, StoreError, WatchBatch, WatchRequest, WatchStream,
};

/// etcd's watch id in an answer to a progress request, which concerns all watches of a stream.
const ALL_WATCHES: i64 = -1;

/// A watch in its consumer's hands.
struct Watch {
    requests: WatchRequestSender,
    responses: WatchResponseStream,
    /// Everything up to this revision was delivered.
    position: Revision,
    /// For watches with progress.
    progress: Option<Reporter>,
}

/// What a watch needs to report progress.
struct Reporter {
    membership: Membership,
    /// For a server whose own reports cannot be believed.
    proof: Option<Proof>,
}

/// Compares the watched range with what was delivered.
struct Proof {
    kv: KvClient,
    /// All keys of the range.
    range: RangeRequest,
    /// The first revision that the watch delivers.
    start: Revision,
    /// How many keys the range held at the watch's position, once that is known.
    keys: Option<i64>,
}

/// Opens a watch; on return etcd has placed it.
pub(super) async fn open(etcd: &Etcd, request: WatchRequest) -> Result<WatchStream, StoreError> {
    let mut options = WatchOptions::new().with_start_revision(request.start_revision.max(0));
    options = match request.end.clone() {
        RangeEnd::Single => options,
        RangeEnd::Prefix => options.with_prefix(),
        RangeEnd::Before(end) => options.with_range(end),
    };
    if request.prev_kv {
        options = options.with_prev_key();
    }
    if request.progress {
        options = options.with_progress_notify();
    }
    let opened = etcd.watch.clone().watch(request.key.clone(), Some(options)).await;
    let (requests, mut responses) = opened.map_err(convert::unavailable)?.split();
    let created = receive(&mut responses).await?;
    if created.canceled() {
        return Ok(stream::iter([Err(ended(&created))]).boxed());
    }
    let newest = convert::revision(created.header());
    let start = if request.start_revision <= 0 { newest + 1 } else { request.start_revision };
    let position = newest.min(start - 1);
    let progress = match request.progress.then(|| reporter(etcd, request, start)) {
        None => None,
        Some(mut reporter) => match reporter.begin(position).await {
            Ok(()) => {
                if position < newest {
                    reporter.membership.asked.want(newest);
                }
                Some(reporter)
            }
            Err(error @ StoreError::Compacted { .. }) => return Ok(stream::iter([Err(error)]).boxed()),
            Err(error) => return Err(error),
        },
    };
    let watch = Watch { requests, responses, position, progress };
    Ok(stream::unfold(Some(watch), next_batch).boxed())
}

fn reporter(etcd: &Etcd, request: WatchRequest, start: Revision) -> Reporter {
    let range = RangeRequest { end: request.end, ..RangeRequest::key(request.key) };
    let proof = (!etcd.trusted).then(|| Proof { kv: etcd.kv.clone(), range, start, keys: None });
    Reporter { membership: etcd.progress.join(), proof }
}

async fn receive(responses: &mut WatchResponseStream) -> Result<WatchResponse, StoreError> {
    let message = responses.message().await.map_err(convert::unavailable)?;
    message.ok_or_else(|| StoreError::Unavailable("etcd closed the watch".to_owned()))
}

/// Why etcd ended a watch.
fn ended(response: &WatchResponse) -> StoreError {
    match response.compact_revision() {
        0 => StoreError::Unavailable(format!("etcd cancelled the watch: {}", response.cancel_reason())),
        oldest => StoreError::Compacted { oldest },
    }
}

/// The next batch of a watch; after an error the stream ends.
async fn next_batch(watch: Option<Watch>) -> Option<(Result<WatchBatch, StoreError>, Option<Watch>)> {
    let mut watch = watch?;
    match watch.next().await {
        Ok(batch) => Some((Ok(batch), Some(watch))),
        Err(error) => Some((Err(error), None)),
    }
}

impl Watch {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            let message = tokio::select! {
                message = receive(&mut self.responses) => Some(message?),
                () = asked(self.progress.as_ref()) => None,
            };
            let batch = match message {
                Some(message) => self.take(&message).await?,
                None => self.answer().await?,
            };
            if let Some(batch) = batch {
                if let Some(reporter) = &self.progress {
                    reporter.settle(&batch);
                }
                return Ok(batch);
            }
        }
    }

    /// What a message brings to the consumer.
    async fn take(&mut self, message: &WatchResponse) -> Result<Option<WatchBatch>, StoreError> {
        if message.canceled() {
            return Err(ended(message));
        }
        let events: Vec<_> = message.events().iter().filter_map(convert::event).collect();
        if let Some(last) = events.last() {
            let newest = last.kv.mod_revision;
            // A proof may have covered keys that came and went: what they did is over.
            let events: Vec<_> =
                events.into_iter().filter(|event| event.kv.mod_revision > self.position).collect();
            self.position = self.position.max(newest);
            if let Some(proof) = self.progress.as_mut().and_then(|reporter| reporter.proof.as_mut()) {
                proof.count(&events);
            }
            self.ask_again();
            return Ok((!events.is_empty()).then_some(WatchBatch { revision: self.position, events }));
        }
        if message.created() || message.watch_id() == ALL_WATCHES && !self.is_trusted() {
            return Ok(None);
        }
        let revision = convert::revision(message.header());
        if self.progress.as_ref().and_then(|reporter| reporter.membership.asked.wanted()) > Some(revision) {
            // This member of the cluster lags: ask until it has caught up, at the pace of its answers.
            self.ask_again();
        }
        Ok(self.report(revision))
    }

    /// A progress report, unless one of this revision was made and nobody asked again.
    fn report(&mut self, revision: Revision) -> Option<WatchBatch> {
        let reporter = self.progress.as_ref()?;
        if revision < self.position {
            return None;
        }
        if revision == self.position && reporter.membership.asked.wanted().is_none() {
            return None;
        }
        self.position = revision;
        Some(WatchBatch { revision, events: Vec::new() })
    }

    /// Follows up on a request for progress.
    async fn answer(&mut self) -> Result<Option<WatchBatch>, StoreError> {
        let Some(reporter) = &mut self.progress else { return Ok(None) };
        if reporter.membership.asked.wanted().is_none() {
            return Ok(None);
        }
        let Some(proof) = &mut reporter.proof else {
            self.requests.request_progress().await.map_err(convert::unavailable)?;
            return Ok(None);
        };
        // Not proved means that events are on their way, and each of them leads here again.
        Ok(proof.reached(self.position).await?.and_then(|revision| self.report(revision)))
    }

    /// Comes back to a request for progress that is not answered yet.
    fn ask_again(&self) {
        if let Some(reporter) = &self.progress
            && reporter.membership.asked.wanted().is_some()
        {
            reporter.membership.asked.wake.notify_one();
        }
    }

    fn is_trusted(&self) -> bool {
        self.progress.as_ref().is_none_or(|reporter| reporter.proof.is_none())
    }
}

/// Returns when progress is asked for; never for a watch without.
async fn asked(reporter: Option<&Reporter>) {
    match reporter {
        Some(reporter) => reporter.membership.asked.wake.notified().await,
        None => std::future::pending().await,
    }
}

impl Reporter {
    /// Counts the keys at the watch's start, as later that revision may be compacted.
    async fn begin(&mut self, position: Revision) -> Result<(), StoreError> {
        match &mut self.proof {
            Some(proof) if position + 1 >= proof.start => proof.keys_at(position).await.map(drop),
            _ => Ok(()),
        }
    }

    /// A report without events answers what was asked for.
    fn settle(&self, batch: &WatchBatch) {
        if batch.events.is_empty() {
            self.membership.asked.reported(batch.revision);
        }
    }
}

impl Proof {
    /// How many keys the range held at `position`.
    async fn keys_at(&mut self, position: Revision) -> Result<i64, StoreError> {
        if let Some(keys) = self.keys {
            return Ok(keys);
        }
        if position <= 0 {
            // Before the first revision there was nothing; to etcd, 0 means the newest.
            return Ok(*self.keys.insert(0));
        }
        let (key, options) =
            convert::get(RangeRequest { revision: position, count_only: true, ..self.range.clone() });
        match self.kv.get(key, Some(options)).await {
            Ok(response) => Ok(*self.keys.insert(response.count())),
            Err(error) => Err(match convert::refusal(error) {
                // Whoever starts this far back has to list anew: the oldest revision is behind this one.
                convert::Refusal::Compacted => StoreError::Compacted { oldest: position + 1 },
                convert::Refusal::Other(error) => error,
                _ => StoreError::Unavailable(format!("etcd cannot count the keys at revision {position}")),
            }),
        }
    }

    /// Keeps the number of keys in step with what is delivered.
    fn count(&mut self, events: &[Event]) {
        let Some(keys) = &mut self.keys else { return };
        for event in events {
            match event.kind {
                EventKind::Put if event.kv.version == 1 => *keys += 1,
                EventKind::Put => {}
                EventKind::Delete => *keys -= 1,
            }
        }
    }

    /// The revision that a watch at `position` has reached, if nothing in its range is on its way: no key changed
    /// after `position`, and there are as many as then. Keys that came and went in between leave no trace; the watch
    /// drops what it hears of them later.
    async fn reached(&mut self, position: Revision) -> Result<Option<Revision>, StoreError> {
        let position = position.max(self.start - 1);
        let (key, newer) = convert::get(RangeRequest { limit: 1, keys_only: true, ..self.range.clone() });
        let (same_key, count) = convert::get(RangeRequest { count_only: true, ..self.range.clone() });
        let reads = [
            TxnOp::get(key, Some(newer.with_min_mod_revision(position + 1))),
            TxnOp::get(same_key, Some(count)),
        ];
        let response =
            self.kv.txn(etcd_client::Txn::new().and_then(reads)).await.map_err(convert::unavailable)?;
        let revision = convert::revision(response.header());
        if revision < self.start {
            return Ok(Some(revision));
        }
        let keys = self.keys_at(position).await?;
        let unchanged = match &response.op_responses()[..] {
            [TxnOpResponse::Get(newer), TxnOpResponse::Get(all)] => {
                newer.kvs().is_empty() && all.count() == keys
            }
            _ => false,
        };
        Ok(unchanged.then_some(revision))
    }
}
