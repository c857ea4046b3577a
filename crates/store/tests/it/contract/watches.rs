//! Watches: order, history, filters, previous versions, progress, compaction.

use bytes::Bytes;
use store::{EventKind, RangeEnd, StoreError, WatchRequest};

use super::{Bench, cases, short, text};

cases![
    a_watch_starts_after_the_newest,
    a_watch_delivers_history,
    a_watch_may_start_in_the_future,
    one_revision_is_one_batch,
    only_the_range_is_delivered,
    previous_versions_come_when_asked_for,
    progress_is_reported_when_asked,
    progress_never_overtakes_events,
    a_watch_from_the_past_says_when_it_has_told_all,
    a_compacted_start_is_refused,
    a_watch_survives_compaction,
    many_changes_arrive_complete,
    what_a_watch_shows_can_be_read,
];

async fn a_watch_starts_after_the_newest(bench: Bench) {
    bench.put("before", "1").await;
    let mut watch = bench.watch(bench.watch_request(0)).await;
    let put = bench.put("k", "1").await;
    let deleted = bench.delete("k").await;
    let events = watch.events(2).await;
    assert_eq!(events[0].kind, EventKind::Put);
    assert_eq!((&events[0].kv.value[..], events[0].kv.mod_revision), (&b"1"[..], put));
    assert_eq!((events[0].kv.create_revision, events[0].kv.version), (put, 1));
    assert_eq!(events[1].kind, EventKind::Delete);
    let gone = &events[1].kv;
    assert_eq!((gone.key.clone(), gone.mod_revision), (bench.key("k"), deleted));
    assert_eq!((gone.value.len(), gone.create_revision, gone.version, gone.lease), (0, 0, 0, 0));
    assert!(events.iter().all(|event| event.prev.is_none()));
}

async fn a_watch_delivers_history(bench: Bench) {
    let first = bench.put("a", "1").await;
    bench.put("a", "2").await;
    bench.delete("a").await;
    let mut watch = bench.watch(bench.watch_request(first)).await;
    let revisions: Vec<_> = watch.events(3).await.iter().map(|event| event.kv.mod_revision).collect();
    assert_eq!(revisions, [first, first + 1, first + 2]);
    let live = bench.put("a", "3").await;
    assert_eq!(watch.events(1).await[0].kv.mod_revision, live);
    let mut later = bench.watch(bench.watch_request(first + 1)).await;
    assert_eq!(later.events(3).await[0].kv.mod_revision, first + 1);
}

async fn a_watch_may_start_in_the_future(bench: Bench) {
    let now = bench.put("k", "0").await;
    let mut watch = bench.watch(bench.watch_request(now + 3)).await;
    for value in ["1", "2", "3"] {
        bench.put("k", value).await;
    }
    let events = watch.events(1).await;
    assert_eq!((&events[0].kv.value[..], events[0].kv.mod_revision), (&b"3"[..], now + 3));
}

async fn one_revision_is_one_batch(bench: Bench) {
    let mut watch = bench.watch(bench.watch_request(0)).await;
    for round in 0..20 {
        let ops = (0..10).map(|number| bench.op_put(&number.to_string(), &round.to_string())).collect();
        bench.apply(ops).await;
    }
    let mut seen = 0;
    while seen < 200 {
        let events = watch.batch().await.events;
        assert_eq!(events.len() % 10, 0, "a revision is torn");
        for revision in events.chunks(10) {
            assert!(revision.iter().all(|event| event.kv.mod_revision == revision[0].kv.mod_revision));
        }
        seen += events.len();
    }
}

async fn only_the_range_is_delivered(bench: Bench) {
    let from = bench.store.current_revision().await.unwrap() + 1;
    let request = |key: &str, end: RangeEnd, start| WatchRequest {
        key: bench.key(key),
        end,
        ..bench.watch_request(start)
    };
    let cases = [
        ("b", RangeEnd::Single, vec!["b"]),
        ("b", RangeEnd::Prefix, vec!["b", "b/1"]),
        ("a", RangeEnd::Before(bench.key("b/")), vec!["a", "b"]),
    ];
    let mut live = Vec::new();
    for (key, end, _) in &cases {
        live.push(bench.watch(request(key, end.clone(), 0)).await);
    }
    for name in ["a", "b", "b/1", "c"] {
        bench.put(name, "1").await;
    }
    for ((key, end, expected), mut live) in cases.into_iter().zip(live) {
        let mut history = bench.watch(request(key, end, from)).await;
        for watch in [&mut live, &mut history] {
            let events = watch.events(expected.len()).await;
            let names: Vec<_> = events.iter().map(|event| short(&event.kv.key, &bench)).collect();
            assert_eq!(names, expected);
        }
    }
}

async fn previous_versions_come_when_asked_for(bench: Bench) {
    let from = bench.store.current_revision().await.unwrap() + 1;
    let mut live = bench.watch(WatchRequest { prev_kv: true, ..bench.watch_request(0) }).await;
    bench.put("k", "1").await;
    bench.put("k", "2").await;
    bench.delete("k").await;
    let mut history = bench.watch(WatchRequest { prev_kv: true, ..bench.watch_request(from) }).await;
    for watch in [&mut live, &mut history] {
        let events = watch.events(3).await;
        let before: Vec<_> = events
            .iter()
            .map(|event| event.prev.as_ref().map(|prev| (text(&prev.value), prev.version)))
            .collect();
        assert_eq!(before, [None, Some(("1".to_owned(), 1)), Some(("2".to_owned(), 2))]);
    }
}

/// Reads until a batch says that everything up to `revision` was seen; returns the keys seen before.
async fn wait_for(watch: &mut super::Watching, revision: i64) -> Vec<Bytes> {
    let mut seen = Vec::new();
    loop {
        let batch = watch.batch().await;
        seen.extend(batch.events.iter().map(|event| event.kv.key.clone()));
        if batch.revision >= revision {
            return seen;
        }
    }
}

async fn progress_is_reported_when_asked(bench: Bench) {
    let own = WatchRequest { key: bench.key("own"), progress: true, ..bench.watch_request(0) };
    let mut watch = bench.watch(own).await;
    let elsewhere = bench.put("elsewhere", "1").await;
    bench.store.request_progress().await.unwrap();
    assert!(wait_for(&mut watch, elsewhere).await.is_empty());
    // Also when nothing was written since.
    bench.store.request_progress().await.unwrap();
    let again = watch.batch().await;
    assert!(again.revision >= elsewhere && again.events.is_empty());
}

async fn progress_never_overtakes_events(bench: Bench) {
    for round in 0..20 {
        let mut watch = bench.watch(WatchRequest { progress: true, ..bench.watch_request(0) }).await;
        let names: Vec<_> = (0..20).map(|number| format!("{round}/{number}")).collect();
        let revisions = futures::future::join_all(names.iter().map(|name| bench.put(name, "1"))).await;
        bench.store.request_progress().await.unwrap();
        let newest = *revisions.iter().max().unwrap();
        let mut seen = wait_for(&mut watch, newest).await;
        let mut expected: Vec<_> = names.iter().map(|name| bench.key(name)).collect();
        seen.sort();
        expected.sort();
        assert_eq!(seen, expected);
    }
}

async fn a_watch_from_the_past_says_when_it_has_told_all(bench: Bench) {
    let first = bench.put("own", "1").await;
    let elsewhere = bench.put("elsewhere", "1").await;
    for start_revision in [first, elsewhere] {
        let own =
            WatchRequest { key: bench.key("own"), progress: true, ..bench.watch_request(start_revision) };
        let seen = wait_for(&mut bench.watch(own).await, elsewhere).await;
        assert_eq!(seen.len(), usize::from(start_revision == first));
    }
}

async fn a_compacted_start_is_refused(bench: Bench) {
    let first = bench.put("k", "1").await;
    let second = bench.put("k", "2").await;
    bench.put("k", "3").await;
    bench.store.compact(second).await.unwrap();
    let mut watch = bench.watch(bench.watch_request(first)).await;
    let error = watch.next().await.unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Compacted { oldest } if oldest == second), "{error}");
    assert!(watch.next().await.is_none());
    let mut watch = bench.watch(bench.watch_request(second)).await;
    let values: Vec<_> = watch.events(2).await.iter().map(|event| text(&event.kv.value)).collect();
    assert_eq!(values, ["2", "3"]);
}

async fn a_watch_survives_compaction(bench: Bench) {
    let mut watch = bench.watch(bench.watch_request(0)).await;
    bench.put("k", "1").await;
    assert_eq!(watch.events(1).await.len(), 1);
    // The watch has read everything; that the others' past is forgotten is nothing to it.
    for number in 0..10 {
        bench.store.txn(elsewhere(number)).await.unwrap();
    }
    bench.store.compact(bench.store.current_revision().await.unwrap()).await.unwrap();
    bench.put("k", "2").await;
    assert_eq!(watch.events(1).await[0].kv.value, "2");
}

fn elsewhere(number: i32) -> store::Txn {
    let put = store::Op::Put { key: "/elsewhere".into(), value: number.to_string().into(), lease: 0 };
    store::Txn { then: vec![put], ..store::Txn::default() }
}

async fn many_changes_arrive_complete(bench: Bench) {
    let mut live = bench.watch(bench.watch_request(0)).await;
    let from = bench.store.current_revision().await.unwrap() + 1;
    for round in 0..20 {
        let names: Vec<_> = (0..100).map(|number| format!("{round}/{number}")).collect();
        futures::future::join_all(names.iter().map(|name| bench.put(name, "1"))).await;
    }
    let mut history = bench.watch(bench.watch_request(from)).await;
    for watch in [&mut live, &mut history] {
        let mut revisions: Vec<_> =
            watch.events(2000).await.iter().map(|event| event.kv.mod_revision).collect();
        revisions.dedup();
        assert_eq!(revisions, (from..from + 2000).collect::<Vec<_>>());
    }
}

async fn what_a_watch_shows_can_be_read(bench: Bench) {
    let mut watch = bench.watch(bench.watch_request(0)).await;
    let writers = async {
        for number in 0..100 {
            bench.put("k", &number.to_string()).await;
        }
    };
    let reader = async {
        let mut seen = 0;
        while seen < 100 {
            let batch = watch.batch().await;
            seen += batch.events.len();
            let newest = bench.get("k").await.unwrap().mod_revision;
            assert!(newest >= batch.events.last().unwrap().kv.mod_revision);
        }
    };
    futures::join!(writers, reader);
}
