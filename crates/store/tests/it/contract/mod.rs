//! The contract of [`Store`], as etcd fulfils it. Each case keeps to its own keys, so that cases can share one store;
//! none knows which revision it starts from.

mod leases;
mod reads;
mod txns;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use store::{
    Compare, CompareTarget, Event, KeyValue, LeaseId, Op, RangeRequest, RangeResponse, Revision, Store,
    StoreError, Txn, TxnResponse, WatchBatch, WatchRequest, WatchStream,
};

/// Nothing that a case waits for takes this long, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a case works with: the store and the prefix that is its own.
#[derive(Clone)]
pub(crate) struct Bench {
    pub(crate) store: Arc<dyn Store>,
    prefix: String,
}

/// One case of the contract.
pub(crate) type Case = (&'static str, fn(Bench) -> BoxFuture<'static, ()>);

/// Makes the list of cases of a module from its functions' names.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(super) const CASES: &[$crate::contract::Case] =
            &[$((stringify!($name), |bench| Box::pin($name(bench)))),*];
    };
}
pub(crate) use cases;

/// Runs every case.
pub(crate) async fn run(store: Arc<dyn Store>) {
    run_some(store, |_| true).await;
}

/// Runs the chosen cases, one after the other, as compaction concerns the whole store.
pub(crate) async fn run_some(store: Arc<dyn Store>, chosen: fn(&str) -> bool) {
    let cases = [reads::CASES, txns::CASES, watches::CASES, leases::CASES].concat();
    for (name, case) in cases.into_iter().filter(|(name, _)| chosen(name)) {
        println!("case {name}");
        let bench = Bench { store: store.clone(), prefix: format!("/{name}/") };
        let done = tokio::time::timeout(2 * PATIENCE, case(bench)).await;
        assert!(done.is_ok(), "case {name} hangs");
    }
}

impl Bench {
    /// A key of this case.
    pub(crate) fn key(&self, name: &str) -> Bytes {
        Bytes::from(format!("{}{name}", self.prefix))
    }

    /// All keys of this case.
    pub(crate) fn all(&self) -> RangeRequest {
        RangeRequest::prefix(self.prefix.clone())
    }

    pub(crate) async fn range(&self, request: RangeRequest) -> RangeResponse {
        self.store.range(request).await.expect("a range")
    }

    pub(crate) async fn get(&self, name: &str) -> Option<KeyValue> {
        self.range(RangeRequest::key(self.key(name))).await.kvs.pop()
    }

    pub(crate) async fn try_txn(
        &self,
        compares: Vec<Compare>,
        then: Vec<Op>,
    ) -> Result<TxnResponse, StoreError> {
        self.store.txn(Txn { compares, then, or_else: Vec::new() }).await
    }

    /// Applies operations unconditionally.
    pub(crate) async fn apply(&self, then: Vec<Op>) -> TxnResponse {
        self.try_txn(Vec::new(), then).await.expect("a transaction")
    }

    /// Writes one key; returns the revision.
    pub(crate) async fn put(&self, name: &str, value: &str) -> Revision {
        self.apply(vec![self.op_put(name, value)]).await.revision
    }

    /// Deletes one key; returns the revision.
    pub(crate) async fn delete(&self, name: &str) -> Revision {
        self.apply(vec![self.op_delete(name)]).await.revision
    }

    pub(crate) fn op_put(&self, name: &str, value: &str) -> Op {
        self.op_put_leased(name, value, 0)
    }

    pub(crate) fn op_put_leased(&self, name: &str, value: &str, lease: LeaseId) -> Op {
        Op::Put { key: self.key(name), value: Bytes::from(value.to_owned()), lease }
    }

    pub(crate) fn op_delete(&self, name: &str) -> Op {
        Op::Delete { key: self.key(name), end: store::RangeEnd::Single }
    }

    pub(crate) fn compare(&self, name: &str, target: CompareTarget) -> Compare {
        Compare { key: self.key(name), target }
    }

    /// A watch of all keys of this case, from a revision on (0: from now on).
    pub(crate) fn watch_request(&self, start_revision: Revision) -> WatchRequest {
        let RangeRequest { key, end, .. } = self.all();
        WatchRequest { key, end, start_revision, prev_kv: false, progress: false }
    }

    pub(crate) async fn watch(&self, request: WatchRequest) -> Watching {
        Watching { stream: self.store.watch(request).await.expect("a watch"), reached: 0 }
    }
}

/// A watch that checks, whatever the case looks for, that revisions only grow.
pub(crate) struct Watching {
    stream: WatchStream,
    reached: Revision,
}

impl Watching {
    /// The next item, within the case's patience.
    pub(crate) async fn next(&mut self) -> Option<Result<WatchBatch, StoreError>> {
        tokio::time::timeout(PATIENCE, self.stream.next()).await.expect("the watch says something")
    }

    pub(crate) async fn batch(&mut self) -> WatchBatch {
        let batch = self.next().await.expect("the watch goes on").expect("the watch has no error");
        assert!(batch.events.is_sorted_by_key(|event| event.kv.mod_revision));
        if let (Some(first), Some(last)) = (batch.events.first(), batch.events.last()) {
            assert!(first.kv.mod_revision > self.reached, "revision {} comes again", first.kv.mod_revision);
            assert!(last.kv.mod_revision <= batch.revision);
        }
        assert!(batch.revision >= self.reached, "{} after {}", batch.revision, self.reached);
        self.reached = batch.revision;
        batch
    }

    /// The next `count` events, and no more.
    pub(crate) async fn events(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            events.extend(self.batch().await.events);
        }
        assert_eq!(events.len(), count, "more events than expected: {events:?}");
        events
    }
}

/// Key and value, for short comparisons.
pub(crate) fn pairs(response: &RangeResponse, bench: &Bench) -> Vec<(String, String)> {
    response.kvs.iter().map(|kv| (short(&kv.key, bench), text(&kv.value))).collect()
}

/// A key without the case's prefix.
pub(crate) fn short(key: &[u8], bench: &Bench) -> String {
    text(key.strip_prefix(bench.prefix.as_bytes()).expect("a key of this case"))
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}
