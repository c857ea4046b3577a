//! Damaged files, which are refused, and disks that fail while the store runs.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use store::memory::Memory;
use store::{
    Embedded, Op, OpenError, RangeEnd, RangeRequest, Revision, Store as _, StoreError, Txn, WatchRequest,
};

use super::SMALL;
use super::disk::Image;

fn put(key: &str, value: &str) -> Txn {
    let put = Op::Put { key: key.to_owned().into(), value: value.to_owned().into(), lease: 0 };
    Txn { then: vec![put], ..Txn::default() }
}

/// Files of a store with many frames, several segments and, if asked for, a base.
async fn files(with_base: bool) -> Image {
    let memory = Memory::new();
    let store = super::open(memory.clone());
    for number in 0..60 {
        store.txn(put("k", &format!("{number:0100}"))).await.unwrap();
    }
    if with_base {
        store.compact(50).await.unwrap();
    }
    drop(store);
    let files = memory.files();
    assert_eq!(files.keys().any(|name| name.starts_with("base-")), with_base, "{:?}", files.keys());
    assert!(files.keys().filter(|name| name.starts_with("log-")).count() > 1);
    files
}

fn damage(image: Image, what: &str) -> OpenError {
    match Embedded::open(Arc::new(Memory::with_files(image)), SMALL) {
        Ok(_) => panic!("damage is not noticed: {what}"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn damage_to_acknowledged_data_is_refused() {
    for with_base in [false, true] {
        let files = files(with_base).await;
        let last = files.keys().next_back().unwrap().clone();
        for (name, content) in &files {
            // The last frame of all could be an unfinished write; everything before it was acknowledged.
            let data = content.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            let end = if *name == last { data - 200 } else { data };
            for offset in (0..end).step_by(41) {
                let mut image = files.clone();
                image.get_mut(name).unwrap()[offset] ^= 0x10;
                let error = damage(image, &format!("{name} at {offset} of {end}"));
                let named = matches!(&error, OpenError::Damaged { .. });
                assert!(named, "{name} at {offset}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn a_missing_file_is_noticed() {
    for with_base in [false, true] {
        let files = files(with_base).await;
        let last = files.keys().next_back().unwrap().clone();
        for name in files.keys().filter(|name| **name != last) {
            let mut image = files.clone();
            image.remove(name);
            assert!(matches!(damage(image, name), OpenError::Damaged { .. }), "{name}");
        }
    }
}

/// Everything readable, as text.
async fn values(store: &Embedded) -> (Revision, Vec<String>) {
    let found = store.range(RangeRequest::prefix("")).await.unwrap();
    let text = found.kvs.iter().map(|kv| format!("{:?}={:?}", kv.key, kv.value)).collect();
    (found.revision, text)
}

#[tokio::test]
async fn a_failing_disk_shows_nothing_that_is_not_durable() {
    for operations in 0..40 {
        let memory = Memory::new();
        let store = super::open(memory.clone());
        store.txn(put("before", "1")).await.unwrap();
        let request = WatchRequest {
            key: "k".into(),
            end: RangeEnd::Prefix,
            start_revision: 0,
            prev_kv: false,
            progress: false,
        };
        let mut watch = store.watch(request).await.unwrap();
        memory.fail_after(Some(operations));
        let mut acknowledged = 0;
        let error = loop {
            match store.txn(put(&format!("k{acknowledged}"), &"v".repeat(300))).await {
                Ok(_) => acknowledged += 1,
                Err(error) => break error,
            }
        };
        assert!(
            matches!(&error, StoreError::Unavailable(why) if why.contains("as the test asked")),
            "{error}"
        );
        let shown = values(&store).await;
        assert_eq!(shown.1.len(), 1 + acknowledged);
        let mut seen = 0;
        let end = loop {
            match watch.next().await.unwrap() {
                Ok(batch) => seen += batch.events.len(),
                Err(error) => break error,
            }
        };
        assert_eq!(seen, acknowledged);
        assert!(matches!(end, StoreError::Unavailable(_)), "{end}");
        assert!(watch.next().await.is_none());
        // It stays so, also when the disk is well again: what reached it is only known after a restart.
        memory.fail_after(None);
        for refused in [
            store.txn(put("later", "1")).await.map(drop),
            store.compact(2).await,
            store.lease_grant(Duration::from_secs(1)).await.map(drop),
            store.request_progress().await,
        ] {
            assert!(matches!(refused, Err(StoreError::Unavailable(_))));
        }
        assert_eq!(values(&store).await, shown, "what may not be on disk is not shown later either");
        drop(store);
        let store = super::open(memory.clone());
        let (revision, found) = values(&store).await;
        assert!(found.len() == shown.1.len() || found.len() == shown.1.len() + 1);
        assert!(shown.1.iter().all(|value| found.contains(value)));
        assert_eq!(store.txn(put("later", "1")).await.unwrap().revision, revision + 1);
    }
}

#[tokio::test]
async fn a_full_disk_that_fails_shows_nothing_of_what_had_no_room() {
    let memory = Memory::new();
    let store = super::open(memory.clone());
    store.txn(put("before", "1")).await.unwrap();
    let shown = values(&store).await;
    memory.fill_after(Some(0));
    store.txn(put("held", "1")).await.unwrap_err();
    // What is held is tried once more, and never again.
    for fails_after in [Some(0), None] {
        memory.fail_after(fails_after);
        let refused = store.txn(put("later", "1")).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(why)) if why.contains("restarted")));
        assert_eq!(values(&store).await, shown);
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_room() {
    // Each of the operations of a few writes is once the first to fail, those of a new segment among them.
    for operations in 0..40 {
        let memory = Memory::new();
        let store = super::open(memory.clone());
        let request = WatchRequest {
            key: "k".into(),
            end: RangeEnd::Prefix,
            start_revision: 0,
            prev_kv: false,
            progress: false,
        };
        let mut watch = store.watch(request).await.unwrap();
        memory.fill_after(Some(operations));
        let mut acknowledged = 0;
        while store.txn(put(&format!("k{acknowledged}"), &"v".repeat(300))).await.is_ok() {
            acknowledged += 1;
        }
        let shown = values(&store).await.1;
        for refused in [store.txn(put("later", "1")).await.map(drop), store.compact(2).await] {
            assert!(matches!(refused, Err(StoreError::Unavailable(why)) if why.contains("room")));
        }
        assert_eq!(values(&store).await.1, shown, "what is refused is not shown");
        memory.fill_after(None);
        store.txn(put("later", "1")).await.unwrap();
        // What was refused first may have taken effect; nothing else did, and watches went on.
        let mut seen = 0;
        while seen < acknowledged {
            seen += watch.next().await.unwrap().unwrap().events.len();
        }
        let kept = acknowledged..=acknowledged + 1;
        let keys = |found: &[String]| found.iter().filter(|text| text.contains("\"k")).count();
        let found = values(&store).await.1;
        assert!(kept.contains(&keys(&found)), "{acknowledged}: {found:?}");
        drop(store);
        assert_eq!(values(&super::open(memory)).await.1, found);
    }
}

#[tokio::test]
async fn a_lease_whose_time_is_over_on_a_full_disk_ends_when_there_is_room() {
    let memory = Memory::new();
    let store = super::open(memory.clone());
    let ttl = Duration::from_millis(500);
    let lease = store.lease_grant(ttl).await.unwrap();
    let op = Op::Put { key: "leased".into(), value: "v".into(), lease };
    store.txn(Txn { then: vec![op], ..Txn::default() }).await.unwrap();
    let request = WatchRequest {
        key: "leased".into(),
        end: RangeEnd::Single,
        start_revision: 0,
        prev_kv: false,
        progress: false,
    };
    let mut watch = store.watch(request).await.unwrap();
    memory.fill_after(Some(0));
    // Its end is refused meanwhile.
    tokio::time::sleep(2 * ttl).await;
    memory.fill_after(None);
    let ended = tokio::time::timeout(Duration::from_secs(60), watch.next()).await.expect("the lease ends");
    assert_eq!(ended.unwrap().unwrap().events[0].kind, store::EventKind::Delete);
}

#[tokio::test]
async fn a_store_that_is_dropped_ends_its_watches() {
    let store = super::open(Memory::new());
    let request = WatchRequest {
        key: "k".into(),
        end: RangeEnd::Prefix,
        start_revision: 0,
        prev_kv: false,
        progress: false,
    };
    let mut watch = store.watch(request).await.unwrap();
    drop(store);
    assert!(matches!(watch.next().await, Some(Err(StoreError::Unavailable(_)))));
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn leases_get_their_full_time_after_a_restart() {
    let memory = Memory::new();
    let store = super::open(memory.clone());
    let ttl = Duration::from_secs(4);
    let lease = store.lease_grant(ttl).await.unwrap();
    let op = Op::Put { key: "k".into(), value: "v".into(), lease };
    store.txn(Txn { then: vec![op], ..Txn::default() }).await.unwrap();
    tokio::time::sleep(ttl / 4).await;
    drop(store);
    let restarted = std::time::Instant::now();
    let store = super::open(memory);
    let request = WatchRequest {
        key: "k".into(),
        end: RangeEnd::Single,
        start_revision: 0,
        prev_kv: false,
        progress: false,
    };
    let mut watch = store.watch(request).await.unwrap();
    let ended = tokio::time::timeout(20 * ttl, watch.next()).await.expect("the lease ends");
    let batch = ended.unwrap().unwrap();
    assert_eq!(batch.events[0].kind, store::EventKind::Delete);
    assert!(restarted.elapsed() >= ttl);
    assert!(matches!(store.lease_keep_alive(lease).await, Err(StoreError::LeaseNotFound(_))));
}
