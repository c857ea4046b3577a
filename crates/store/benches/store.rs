//! How fast the embedded store is on this machine's disk: `cargo bench -p store [-- DIRECTORY]`.
//!
//! Prints figures and asserts nothing. The directory (default: the system's for temporary files) chooses the disk.

#![allow(clippy::expect_used, reason = "a measurement ends where something unexpected happens")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use store::{Embedded, EmbeddedConfig, Files, Op, RangeRequest, Store as _, Txn, WatchRequest};

/// About the size of a pod.
const VALUE_BYTES: usize = 1200;
const RUN: Duration = Duration::from_secs(4);

fn put(number: usize) -> Txn {
    let key = format!("/registry/pods/namespace-{:02}/pod-{:06}", number % 50, number % 100_000);
    let op = Op::Put { key: key.into(), value: vec![b'x'; VALUE_BYTES].into(), lease: 0 };
    Txn { then: vec![op], ..Txn::default() }
}

fn open(files: &Arc<Files>) -> Arc<Embedded> {
    Embedded::open(files.clone(), EmbeddedConfig::STANDARD).expect("the store opens")
}

fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    sorted.get(sorted.len() * percent / 100).map_or(0.0, |took| took.as_secs_f64() * 1000.0)
}

/// Writers that each wait for their answer before the next write.
async fn write(store: &Arc<Embedded>, writers: usize) {
    let start = Instant::now();
    let run = |writer: usize| async move {
        let (mut number, mut took) = (writer, Vec::new());
        while start.elapsed() < RUN {
            let asked = Instant::now();
            store.txn(put(number)).await.expect("a write");
            took.push(asked.elapsed());
            number += writers;
        }
        took
    };
    let mut took: Vec<_> = futures::future::join_all((0..writers).map(run)).await.concat();
    took.sort_unstable();
    println!(
        "{writers:4} writers   {:9.0} writes/s   p50 {:6.2} ms   p99 {:6.2} ms",
        took.len() as f64 / start.elapsed().as_secs_f64(),
        percentile(&took, 50),
        percentile(&took, 99)
    );
}

async fn read(store: &Embedded) {
    let start = Instant::now();
    let found = store.range(RangeRequest::prefix("/registry/pods/")).await.expect("a range");
    println!("list of {:6} keys   {:6.2} ms", found.kvs.len(), start.elapsed().as_secs_f64() * 1000.0);
}

/// How long after a write is answered a watch has it, with many watches of other keys beside it.
async fn watch(store: &Arc<Embedded>) {
    use futures::StreamExt as _;
    let request = |prefix: String| WatchRequest {
        key: prefix.into(),
        end: store::RangeEnd::Prefix,
        start_revision: 0,
        prev_kv: true,
        progress: false,
    };
    let mut others = Vec::new();
    for number in 0..200 {
        others.push(store.watch(request(format!("/registry/other-{number}/"))).await.expect("a watch"));
    }
    let mut watch = store.watch(request("/registry/pods/".to_owned())).await.expect("a watch");
    let mut took = Vec::new();
    for number in 0..500 {
        let asked = Instant::now();
        let (written, _) = futures::join!(store.txn(put(number)), watch.next());
        written.expect("a write");
        took.push(asked.elapsed());
    }
    took.sort_unstable();
    println!("write to event    p50 {:6.2} ms   p99 {:6.2} ms", percentile(&took, 50), percentile(&took, 99));
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _inside = runtime.enter();
    let parent = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let parent = parent.map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(parent).expect("a directory");
    let files = Arc::new(Files::open(dir.path()).expect("the directory"));
    let store = open(&files);
    runtime.block_on(async {
        for writers in [1, 8, 32, 256] {
            write(&store, writers).await;
        }
        read(&store).await;
        watch(&store).await;
    });
    let revision = runtime.block_on(store.current_revision()).expect("a revision");
    drop(store);
    let start = Instant::now();
    let store = open(&files);
    println!("recovery of {revision:7} revisions   {:6.0} ms", start.elapsed().as_secs_f64() * 1000.0);
    let start = Instant::now();
    runtime.block_on(store.compact(revision)).expect("a compaction");
    println!("compaction        {:6.2} ms", start.elapsed().as_secs_f64() * 1000.0);
    drop(store);
    let start = Instant::now();
    drop(open(&files));
    println!("recovery after it {:6.0} ms", start.elapsed().as_secs_f64() * 1000.0);
}
