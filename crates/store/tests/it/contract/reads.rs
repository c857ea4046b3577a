//! Ranges: ends, limits, counts, revisions, compaction.

use bytes::Bytes;
use store::{RangeEnd, RangeRequest, StoreError};

use super::{Bench, cases, pairs};

cases![
    a_key_carries_its_history,
    ranges_end_where_they_say,
    limits_cut_and_count_goes_on,
    pages_at_one_revision_are_consistent,
    keys_only_and_count_only,
    the_past_can_be_read,
    the_future_is_refused,
    an_empty_key_is_refused,
    compaction_forgets_the_past,
    a_deleted_key_is_forgotten_by_compaction,
];

async fn a_key_carries_its_history(bench: Bench) {
    assert_eq!(bench.get("k").await, None);
    let created = bench.put("k", "1").await;
    let changed = bench.put("k", "2").await;
    assert_eq!(changed, created + 1);
    let kv = bench.get("k").await.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version, kv.lease), (created, changed, 2, 0));
    assert_eq!((kv.key, kv.value), (bench.key("k"), Bytes::from("2")));
    let deleted = bench.delete("k").await;
    assert_eq!(deleted, changed + 1);
    assert_eq!(bench.get("k").await, None);
    let again = bench.put("k", "3").await;
    let kv = bench.get("k").await.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (again, again, 1));
    assert_eq!(bench.store.current_revision().await.unwrap(), again);
    // What was written lies somewhere.
    assert!(bench.store.size().await.unwrap() > 0);
}

async fn ranges_end_where_they_say(bench: Bench) {
    for name in ["a", "a/1", "a/2", "b", "c"] {
        bench.put(name, name).await;
    }
    let names = async |key: &str, end: RangeEnd| {
        let request = RangeRequest { end, ..RangeRequest::key(bench.key(key)) };
        pairs(&bench.range(request).await, &bench).into_iter().map(|(key, _)| key).collect::<Vec<_>>()
    };
    assert_eq!(names("a", RangeEnd::Single).await, ["a"]);
    assert_eq!(names("a", RangeEnd::Prefix).await, ["a", "a/1", "a/2"]);
    assert_eq!(names("a/", RangeEnd::Prefix).await, ["a/1", "a/2"]);
    assert_eq!(names("a/2", RangeEnd::Before(bench.key("c"))).await, ["a/2", "b"]);
    assert!(names("c", RangeEnd::Before(bench.key("a"))).await.is_empty());
    assert!(names("c", RangeEnd::Before(bench.key("c"))).await.is_empty());
    let everything = bench.range(RangeRequest::prefix("")).await;
    assert!(everything.kvs.iter().any(|kv| kv.key == bench.key("c")));
    assert!(everything.kvs.is_sorted_by(|a, b| a.key < b.key));
}

async fn limits_cut_and_count_goes_on(bench: Bench) {
    for name in ["a", "b", "c"] {
        bench.put(name, name).await;
    }
    let limited = bench.range(RangeRequest { limit: 2, ..bench.all() }).await;
    assert_eq!((limited.kvs.len(), limited.count, limited.more), (2, 3, true));
    let exact = bench.range(RangeRequest { limit: 3, ..bench.all() }).await;
    assert_eq!((exact.kvs.len(), exact.count, exact.more), (3, 3, false));
    let none = bench.range(RangeRequest::prefix(bench.key("x"))).await;
    assert_eq!((none.kvs.len(), none.count, none.more), (0, 0, false));
}

async fn pages_at_one_revision_are_consistent(bench: Bench) {
    for name in ["a", "b", "c"] {
        bench.put(name, "old").await;
    }
    let first = bench.range(RangeRequest { limit: 1, ..bench.all() }).await;
    bench.put("b", "new").await;
    bench.delete("c").await;
    bench.put("d", "new").await;
    let next = [&first.kvs[0].key[..], b"\0"].concat();
    let end = RangeEnd::Before(bench.key("\u{7f}"));
    let rest = RangeRequest { end, revision: first.revision, ..RangeRequest::key(next) };
    let rest = bench.range(rest).await;
    let expected = [("b", "old"), ("c", "old")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(pairs(&rest, &bench), expected);
    assert_eq!((rest.count, rest.more), (2, false));
    assert_eq!(rest.revision, first.revision + 3);
}

async fn keys_only_and_count_only(bench: Bench) {
    bench.put("a", "1").await;
    let revision = bench.put("b", "2").await;
    let keys = bench.range(RangeRequest { keys_only: true, ..bench.all() }).await;
    assert_eq!(keys.kvs.len(), 2);
    assert!(keys.kvs.iter().all(|kv| kv.value.is_empty()));
    assert_eq!(keys.kvs[1].mod_revision, revision);
    let count = bench.range(RangeRequest { count_only: true, ..bench.all() }).await;
    assert_eq!((count.kvs.len(), count.count, count.more), (0, 2, false));
}

async fn the_past_can_be_read(bench: Bench) {
    let first = bench.put("k", "1").await;
    let second = bench.put("k", "2").await;
    let third = bench.delete("k").await;
    let at = async |revision| {
        let response = bench.range(RangeRequest { revision, ..bench.all() }).await;
        assert_eq!(response.revision, third);
        response.kvs.first().map(|kv| kv.value.clone())
    };
    assert_eq!(at(first - 1).await, None);
    assert_eq!(at(first).await.unwrap(), "1");
    assert_eq!(at(second).await.unwrap(), "2");
    assert_eq!(at(third).await, None);
}

async fn the_future_is_refused(bench: Bench) {
    let revision = bench.put("k", "1").await;
    let error = bench.store.range(RangeRequest { revision: revision + 10, ..bench.all() }).await.unwrap_err();
    assert!(matches!(error, StoreError::Future { asked, .. } if asked == revision + 10), "{error}");
    let error = bench.store.compact(revision + 10).await.unwrap_err();
    assert!(matches!(error, StoreError::Future { .. }), "{error}");
}

async fn an_empty_key_is_refused(bench: Bench) {
    let error = bench.store.range(RangeRequest::key("")).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid(_)), "{error}");
}

async fn compaction_forgets_the_past(bench: Bench) {
    let first = bench.put("k", "1").await;
    let second = bench.put("k", "2").await;
    let third = bench.put("k", "3").await;
    bench.store.compact(second).await.unwrap();
    let error = bench.store.range(RangeRequest { revision: first, ..bench.all() }).await.unwrap_err();
    assert!(matches!(error, StoreError::Compacted { oldest } if oldest == second), "{error}");
    for (revision, value) in [(second, "2"), (third, "3"), (0, "3")] {
        let response = bench.range(RangeRequest { revision, ..bench.all() }).await;
        assert_eq!(response.kvs[0].value, value);
    }
    // Once more, or further back, there is nothing to forget.
    for revision in [second, first] {
        let error = bench.store.compact(revision).await.unwrap_err();
        assert!(matches!(error, StoreError::Compacted { oldest } if oldest == second), "{error}");
    }
}

async fn a_deleted_key_is_forgotten_by_compaction(bench: Bench) {
    bench.put("gone", "1").await;
    bench.put("kept", "1").await;
    let deleted = bench.delete("gone").await;
    bench.store.compact(deleted).await.unwrap();
    let response = bench.range(RangeRequest { revision: deleted, ..bench.all() }).await;
    assert_eq!(pairs(&response, &bench), [("kept".to_owned(), "1".to_owned())]);
    let again = bench.put("gone", "2").await;
    let kv = bench.get("gone").await.unwrap();
    assert_eq!((kv.create_revision, kv.version), (again, 1));
}
