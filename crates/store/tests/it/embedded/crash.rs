//! Crashes: recorded operations are replayed up to every single one, and what was not synced is kept, lost, cut, torn
//! or reordered. Every image must open, hold everything acknowledged, and nothing that was not committed.

use std::time::Duration;

use futures::future::join_all;
use store::memory::Memory;
use store::{Embedded, LeaseId, Op, Revision, Store, StoreError, Txn};

use super::disk::{Disk, Image, Names, Writes};
use super::model::{Model, random_ops};
use super::random::Random;

/// Something that the store promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    Revision(Revision),
    Compacted(Revision),
    Granted(LeaseId),
    Revoked(LeaseId),
}

/// When it was asked for and promised, counted in operations of the disk.
#[derive(Debug, Clone, Copy)]
struct Acknowledged {
    asked: usize,
    answered: usize,
    promise: Promise,
}

/// A run of the store on a recording disk.
struct Recording {
    memory: Memory,
    /// What the disk held at the start, all durable.
    start: Image,
    model: Model,
    leases: Vec<LeaseId>,
    log: Vec<Acknowledged>,
}

impl Recording {
    fn new() -> Self {
        Self::on(Image::new(), Model::new(), Vec::new())
    }

    /// Starts from what a crash left, and from what was promised before it.
    fn on(start: Image, model: Model, promises: Vec<Promise>) -> Self {
        let log =
            promises.into_iter().map(|promise| Acknowledged { asked: 0, answered: 0, promise }).collect();
        Self { memory: Memory::with_files(start.clone()), start, model, leases: Vec::new(), log }
    }

    /// Rounds of concurrent transactions, which share frames, and of everything else that is logged.
    async fn run(&mut self, random: &mut Random, rounds: usize) {
        let store = super::open(self.memory.clone());
        // What an open store shows is a promise, whether it was acknowledged before or not.
        let answered = self.memory.recorded();
        for promise in [Promise::Revision(self.model.revision()), Promise::Compacted(self.model.compacted)] {
            self.log.push(Acknowledged { asked: 0, answered, promise });
        }
        for _ in 0..rounds {
            self.transactions(&store, random).await;
            let asked = self.memory.recorded();
            let promise = match random.below(6) {
                0 => {
                    let lease = store.lease_grant(Duration::from_secs(600)).await.unwrap();
                    self.leases.push(lease);
                    Promise::Granted(lease)
                }
                1 if !self.leases.is_empty() => {
                    let lease = self.leases.remove(random.below(self.leases.len()));
                    store.lease_revoke(lease).await.unwrap();
                    self.model.revoke(lease);
                    Promise::Revoked(lease)
                }
                2 | 3 if self.model.revision() > self.model.compacted + 4 => {
                    let revision = self.model.revision() - 3;
                    store.compact(revision).await.unwrap();
                    self.model.compacted = revision;
                    Promise::Compacted(revision)
                }
                _ => continue,
            };
            self.log.push(Acknowledged { asked, answered: self.memory.recorded(), promise });
        }
        self.model.check(&store).await;
    }

    async fn transactions(&mut self, store: &Embedded, random: &mut Random) {
        let lists: Vec<Vec<Op>> = (0..=random.below(3)).map(|_| random_ops(random, &self.leases)).collect();
        let answers = join_all(lists.iter().map(|ops| async {
            let asked = self.memory.recorded();
            let then = ops.clone();
            let revision = store.txn(Txn { then, ..Txn::default() }).await.unwrap().revision;
            let answered = self.memory.recorded();
            Acknowledged { asked, answered, promise: Promise::Revision(revision) }
        }))
        .await;
        // One writer decides in the order in which requests are queued, which is that of the list.
        for (ops, answer) in lists.iter().zip(&answers) {
            self.model.apply(ops);
            assert_eq!(answer.promise, Promise::Revision(self.model.revision()));
        }
        self.log.extend(answers);
    }

    /// Every image that a crash after some operation may leave, with the number of operations done.
    fn images(&self, random: &mut Random) -> Vec<(usize, Image)> {
        const CRASHES: [(Writes, Names); 8] = [
            (Writes::Kept, Names::Kept),
            (Writes::Lost, Names::Lost),
            (Writes::Lost, Names::Kept),
            (Writes::Kept, Names::Lost),
            (Writes::Cut, Names::Some),
            (Writes::Torn, Names::Some),
            (Writes::Torn, Names::Kept),
            (Writes::Cut, Names::Kept),
        ];
        let mut disk = Disk::new(&self.start);
        let mut images = Vec::new();
        for (done, operation) in self.memory.operations().iter().enumerate() {
            disk.apply(operation);
            let mut crashes: Vec<_> =
                CRASHES.iter().map(|(writes, names)| disk.crash(*writes, *names, random)).collect();
            crashes.sort();
            crashes.dedup();
            images.extend(crashes.into_iter().map(|image| (done + 1, image)));
        }
        images
    }

    /// Opens an image and checks it against what was promised by then. Returns the model of what it holds.
    async fn check(&self, done: usize, image: Image) -> Model {
        let store = super::open(Memory::with_files(image));
        let promised = |wanted: fn(&Promise) -> Option<Revision>| {
            let answered = self.log.iter().filter(|entry| entry.answered <= done);
            answered.filter_map(|entry| wanted(&entry.promise)).max().unwrap_or(0)
        };
        let newest = promised(
            |promise| if let Promise::Revision(revision) = promise { Some(*revision) } else { None },
        );
        let compacted =
            promised(
                |promise| if let Promise::Compacted(revision) = promise { Some(*revision) } else { None },
            );
        let revision = store.current_revision().await.unwrap();
        assert!(revision >= newest, "revision {newest} was acknowledged, {revision} is there");
        assert!(revision <= self.model.revision());
        let mut model = self.model.clone();
        model.cut(revision);
        model.compacted = oldest(&store).await;
        assert!(model.compacted >= compacted, "compaction to {compacted} was acknowledged");
        assert!(model.compacted <= self.model.compacted);
        model.check(&store).await;
        self.check_leases(done, &store).await;
        // It goes on from here, with a revision that nobody has seen.
        let put = Op::Put { key: "after".into(), value: "crash".into(), lease: 0 };
        let response = store.txn(Txn { then: vec![put.clone()], ..Txn::default() }).await.unwrap();
        assert_eq!(response.revision, revision + 1);
        model.apply(&[put]);
        model.check(&store).await;
        model
    }

    /// What holds after a crash that came after `done` operations.
    fn promises(&self, done: usize) -> Vec<Promise> {
        let answered = self.log.iter().filter(|entry| entry.answered <= done).map(|entry| entry.promise);
        let open: Vec<_> =
            self.log.iter().filter(|entry| entry.asked <= done && entry.answered > done).collect();
        answered
            .filter(|promise| match promise {
                // Whether the end of this lease took effect nobody knows.
                Promise::Granted(lease) => open.iter().all(|entry| entry.promise != Promise::Revoked(*lease)),
                _ => true,
            })
            .collect()
    }

    async fn check_leases(&self, done: usize, store: &Embedded) {
        for entry in &self.log {
            let (Promise::Granted(lease), true) = (entry.promise, entry.answered <= done) else { continue };
            let revoked = self.log.iter().find(|entry| entry.promise == Promise::Revoked(lease));
            let found = store.lease_keep_alive(lease).await;
            match revoked {
                Some(revoked) if revoked.answered <= done => assert!(found.is_err(), "lease {lease} is back"),
                Some(revoked) if revoked.asked <= done => {}
                _ => assert!(found.is_ok(), "lease {lease} is lost"),
            }
        }
    }
}

/// The oldest readable revision, which the refusal of another one names.
async fn oldest(store: &Embedded) -> Revision {
    match store.range(store::RangeRequest { revision: 1, ..store::RangeRequest::key("a") }).await {
        Ok(_) => 0,
        Err(StoreError::Compacted { oldest }) => oldest,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn every_crash_keeps_its_promises() {
    let mut checked = 0;
    for seed in 0..6 {
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let mut recording = Recording::new();
        recording.run(&mut random, 40).await;
        for (done, image) in recording.images(&mut random) {
            recording.check(done, image).await;
            checked += 1;
        }
    }
    assert!(checked > 1000, "only {checked} images");
}

#[tokio::test]
async fn a_crash_during_recovery_keeps_them_too() {
    let mut random = Random::new(99);
    let mut first = Recording::new();
    first.run(&mut random, 30).await;
    let mut images = first.images(&mut random);
    for _ in 0..40 {
        let (done, image) = images.swap_remove(random.below(images.len()));
        // What the image holds is what the second run starts from.
        let mut model = first.check(done, image.clone()).await;
        // Without what the check itself wrote, to a copy.
        model.cut(model.revision() - 1);
        let mut second = Recording::on(image, model, first.promises(done));
        second.run(&mut random, 4).await;
        for (done, image) in second.images(&mut random) {
            second.check(done, image).await;
        }
    }
}

/// A process that is killed leaves writes that only the kernel has. Whoever opens the store again sees them, so they
/// must be on disk before anybody is shown them: a power failure afterwards takes nothing back.
#[tokio::test]
async fn what_a_killed_process_left_is_durable_before_it_is_shown() {
    let mut random = Random::new(7);
    let mut shown_unacknowledged = 0;
    for killed_after in 0..40 {
        let mut recording = Recording::new();
        let store = super::open(recording.memory.clone());
        // The store dies between two operations of the disk: what it did so far stays in the kernel's memory.
        recording.memory.fail_after(Some(killed_after));
        let put = |number: usize| {
            let value = "v".repeat(100 + number).into();
            vec![Op::Put { key: format!("{number}").into(), value, lease: 0 }]
        };
        let mut number = 0;
        while let Ok(response) = store.txn(Txn { then: put(number), ..Txn::default() }).await {
            recording.model.apply(&put(number));
            let promise = Promise::Revision(response.revision);
            recording.log.push(Acknowledged { asked: 0, answered: recording.memory.recorded(), promise });
            number += 1;
        }
        drop(store);
        recording.memory.fail_after(None);
        let store = super::open(recording.memory.clone());
        let revision = store.current_revision().await.unwrap();
        if revision > recording.model.revision() {
            recording.model.apply(&put(number));
            shown_unacknowledged += 1;
        }
        recording.model.check(&store).await;
        let promise = Promise::Revision(revision);
        recording.log.push(Acknowledged { asked: 0, answered: recording.memory.recorded(), promise });
        drop(store);
        for (done, image) in recording.images(&mut random) {
            recording.check(done, image).await;
        }
    }
    assert!(shown_unacknowledged > 0, "no kill came between a write and its sync");
}
