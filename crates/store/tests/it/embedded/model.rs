//! The store as a map per revision, and random operations on both.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use store::memory::Memory;
use store::{
    Compare, CompareTarget, Embedded, Event, EventKind, KeyValue, LeaseId, Op, OpOutcome, RangeEnd,
    RangeRequest, Revision, Store as _, StoreError, Txn, WatchRequest,
};

use super::random::Random;

/// All keys, and what they hold.
pub(crate) type State = BTreeMap<Bytes, KeyValue>;

/// Every state there ever was.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    states: Vec<State>,
    changes: Vec<Vec<(EventKind, Bytes)>>,
    pub(crate) compacted: Revision,
}

impl Model {
    pub(crate) fn new() -> Self {
        // There are no revisions below 1, the empty store's.
        Self { states: vec![State::new(); 2], changes: vec![Vec::new(); 2], compacted: 0 }
    }

    pub(crate) fn revision(&self) -> Revision {
        self.states.len() as Revision - 1
    }

    pub(crate) fn at(&self, revision: Revision) -> &State {
        &self.states[usize::try_from(revision).unwrap()]
    }

    pub(crate) fn newest(&self) -> &State {
        self.at(self.revision())
    }

    fn changes(&self, revision: Revision) -> &[(EventKind, Bytes)] {
        &self.changes[usize::try_from(revision).unwrap()]
    }

    /// Applies the writes of a transaction; returns how many keys each of the operations deleted (0 for others).
    pub(crate) fn apply(&mut self, ops: &[Op]) -> Vec<usize> {
        let revision = self.revision() + 1;
        let (mut state, mut changes, mut deleted) = (self.newest().clone(), Vec::new(), Vec::new());
        for op in ops {
            let before = changes.len();
            match op {
                Op::Put { key, value, lease } => {
                    let kv = put(state.get(key), key, value, *lease, revision);
                    state.insert(key.clone(), kv);
                    changes.push((EventKind::Put, key.clone()));
                    deleted.push(0);
                    continue;
                }
                Op::Delete { key, end } => {
                    for key in matching(&state, key, end) {
                        state.remove(&key);
                        changes.push((EventKind::Delete, key));
                    }
                }
                Op::Range(_) => {}
            }
            deleted.push(changes.len() - before);
        }
        if !changes.is_empty() {
            self.states.push(state);
            self.changes.push(changes);
        }
        deleted
    }

    /// Deletes what a lease holds.
    pub(crate) fn revoke(&mut self, lease: LeaseId) {
        let held: Vec<_> =
            self.newest().values().filter(|kv| kv.lease == lease).map(|kv| kv.key.clone()).collect();
        let ops: Vec<_> = held.into_iter().map(|key| Op::Delete { key, end: RangeEnd::Single }).collect();
        self.apply(&ops);
    }

    /// Forgets what came after a revision: it was never committed.
    pub(crate) fn cut(&mut self, revision: Revision) {
        let len = usize::try_from(revision).unwrap() + 1;
        self.states.truncate(len);
        self.changes.truncate(len);
    }

    /// Checks that the store is at the model's newest revision and answers every readable revision as the model does,
    /// and that a watch of everything tells how it came about.
    pub(crate) async fn check(&self, store: &Embedded) {
        assert_eq!(store.current_revision().await.unwrap(), self.revision());
        for revision in self.compacted.max(1)..=self.revision() {
            let request = RangeRequest { revision, ..RangeRequest::prefix("") };
            let found = store.range(request).await.unwrap();
            assert!(found.kvs.iter().eq(self.at(revision).values()), "at {revision}: {:?}", found.kvs);
        }
        if self.compacted > 1 {
            let request = RangeRequest { revision: self.compacted - 1, ..RangeRequest::prefix("") };
            let error = store.range(request).await.unwrap_err();
            assert!(matches!(error, StoreError::Compacted { oldest } if oldest == self.compacted), "{error}");
        }
        self.check_watch(store, self.compacted.max(2)).await;
    }

    async fn check_watch(&self, store: &Embedded, start_revision: Revision) {
        let request = WatchRequest {
            key: Bytes::new(),
            end: RangeEnd::Prefix,
            start_revision,
            prev_kv: true,
            progress: true,
        };
        let mut watch = store.watch(request).await.unwrap();
        store.request_progress().await.unwrap();
        let mut events = Vec::new();
        loop {
            let batch = watch.next().await.unwrap().unwrap();
            events.extend(batch.events);
            if batch.revision == self.revision() {
                break;
            }
        }
        let mut events = events.into_iter();
        for revision in start_revision..=self.revision() {
            for (kind, key) in self.changes(revision) {
                self.check_event(events.next().unwrap(), *kind, key, revision);
            }
        }
        assert_eq!(events.next(), None);
    }

    fn check_event(&self, event: Event, kind: EventKind, key: &Bytes, revision: Revision) {
        assert_eq!((event.kind, &event.kv.key, event.kv.mod_revision), (kind, key, revision));
        if kind == EventKind::Put {
            assert_eq!(event.kv, self.at(revision)[key]);
        }
        // The version before the oldest readable revision may be forgotten.
        if revision > self.compacted || event.prev.is_some() {
            assert_eq!(event.prev.as_ref(), self.at(revision - 1).get(key));
        }
    }
}

fn put(
    before: Option<&KeyValue>,
    key: &Bytes,
    value: &Bytes,
    lease: LeaseId,
    revision: Revision,
) -> KeyValue {
    KeyValue {
        key: key.clone(),
        value: value.clone(),
        create_revision: before.map_or(revision, |kv| kv.create_revision),
        mod_revision: revision,
        version: before.map_or(1, |kv| kv.version + 1),
        lease,
    }
}

fn matching(state: &State, key: &Bytes, end: &RangeEnd) -> Vec<Bytes> {
    let inside = |candidate: &&Bytes| match end {
        RangeEnd::Single => *candidate == key,
        RangeEnd::Prefix => candidate.starts_with(key),
        RangeEnd::Before(end) => *candidate >= key && *candidate < end,
    };
    state.keys().filter(inside).cloned().collect()
}

/// Few keys, so that operations meet.
pub(crate) fn random_key(random: &mut Random) -> Bytes {
    const KEYS: [&str; 8] = ["a", "a/1", "a/2", "a/2/x", "b", "b/1", "c", "\u{ff}"];
    Bytes::from_static(KEYS[random.below(KEYS.len())].as_bytes())
}

fn random_end(random: &mut Random) -> RangeEnd {
    match random.below(3) {
        0 => RangeEnd::Single,
        1 => RangeEnd::Prefix,
        _ => RangeEnd::Before(random_key(random)),
    }
}

/// A few writes that change no key twice. A value may be larger than a sector.
pub(crate) fn random_ops(random: &mut Random, leases: &[LeaseId]) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut used: Vec<Bytes> = Vec::new();
    for _ in 0..=random.below(3) {
        let key = random_key(random);
        if used.contains(&key) {
            continue;
        }
        used.push(key.clone());
        let lease =
            if random.once_in(4) && !leases.is_empty() { leases[random.below(leases.len())] } else { 0 };
        let value = Bytes::from(vec![b'0' + u8::try_from(random.below(10)).unwrap(); random.below(700)]);
        ops.push(Op::Put { key, value, lease });
    }
    if random.once_in(3) {
        ops = vec![Op::Delete { key: random_key(random), end: random_end(random) }];
    }
    ops
}

/// What the store is asked to do and the model does with it.
struct Run {
    random: Random,
    memory: Memory,
    store: Arc<Embedded>,
    model: Model,
    leases: Vec<LeaseId>,
}

impl Run {
    async fn step(&mut self) {
        match self.random.below(20) {
            0 => self.leases.push(self.store.lease_grant(Duration::from_secs(600)).await.unwrap()),
            1 if !self.leases.is_empty() => {
                let lease = self.leases.swap_remove(self.random.below(self.leases.len()));
                self.store.lease_revoke(lease).await.unwrap();
                self.model.revoke(lease);
            }
            2 => self.compact().await,
            3 => self.reopen(),
            4..8 => self.read().await,
            _ => self.write().await,
        }
    }

    async fn write(&mut self) {
        let key = random_key(&mut self.random);
        let newest = self.model.newest().get(&key);
        let target = match self.random.below(3) {
            0 => CompareTarget::ModRevision(newest.map_or(0, |kv| kv.mod_revision)),
            1 => CompareTarget::CreateRevision(newest.map_or(0, |kv| kv.create_revision)),
            _ => CompareTarget::ModRevision(1),
        };
        let holds = target != CompareTarget::ModRevision(1);
        let (then, or_else) =
            (random_ops(&mut self.random, &self.leases), random_ops(&mut self.random, &self.leases));
        let applied = if holds { then.clone() } else { or_else.clone() };
        let response =
            self.store.txn(Txn { compares: vec![Compare { key, target }], then, or_else }).await.unwrap();
        let deleted = self.model.apply(&applied);
        assert_eq!((response.succeeded, response.revision), (holds, self.model.revision()));
        for (outcome, expected) in response.outcomes.iter().zip(deleted) {
            match outcome {
                OpOutcome::Delete { deleted } => assert_eq!(*deleted, expected),
                OpOutcome::Put => {}
                OpOutcome::Range(_) => unreachable!("nothing is read"),
            }
        }
    }

    async fn read(&mut self) {
        let oldest = self.model.compacted.max(1);
        let revision =
            oldest + self.random.below(usize::try_from(self.model.revision() - oldest).unwrap() + 1) as i64;
        let request = RangeRequest {
            end: random_end(&mut self.random),
            revision,
            limit: self.random.below(4),
            ..RangeRequest::key(random_key(&mut self.random))
        };
        let found = self.store.range(request.clone()).await.unwrap();
        let state = self.model.at(revision);
        let expected = matching(state, &request.key, &request.end);
        assert_eq!(found.count, expected.len());
        let limit = if request.limit == 0 { usize::MAX } else { request.limit };
        assert!(found.kvs.iter().eq(expected.iter().take(limit).map(|key| &state[key])));
        assert_eq!(found.more, expected.len() > limit);
    }

    async fn compact(&mut self) {
        let revision = self.model.compacted + 1 + self.random.below(20) as i64;
        if revision <= self.model.revision() {
            self.store.compact(revision).await.unwrap();
            self.model.compacted = revision;
        }
    }

    fn reopen(&mut self) {
        // Only one store at a time may write to the directory.
        self.store = super::open(Memory::new());
        self.store = super::open(self.memory.clone());
    }
}

#[tokio::test]
async fn random_operations_agree_with_the_model() {
    for seed in 0..30 {
        println!("seed {seed}");
        let memory = Memory::new();
        let store = super::open(memory.clone());
        let mut run =
            Run { random: Random::new(seed), memory, store, model: Model::new(), leases: Vec::new() };
        for _ in 0..200 {
            run.step().await;
        }
        run.model.check(&run.store).await;
        run.reopen();
        run.model.check(&run.store).await;
    }
}
