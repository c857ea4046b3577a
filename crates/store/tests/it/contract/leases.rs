//! Leases: what they hold ends with them.

use std::time::Duration;

use store::{CompareTarget, EventKind, StoreError};

use super::{Bench, cases};

cases![
    revoking_deletes_what_it_holds,
    a_key_follows_its_last_lease,
    a_lease_ends_by_itself,
    a_lease_kept_alive_lives_on,
    an_unknown_lease_is_refused,
];

const LONG: Duration = Duration::from_secs(600);

async fn revoking_deletes_what_it_holds(bench: Bench) {
    let lease = bench.store.lease_grant(LONG).await.unwrap();
    bench.put("free", "1").await;
    let put = bench
        .apply(vec![bench.op_put_leased("a", "1", lease), bench.op_put_leased("b", "1", lease)])
        .await
        .revision;
    assert_eq!(bench.get("a").await.unwrap().lease, lease);
    let holds = vec![bench.compare("a", CompareTarget::Lease(lease))];
    assert!(bench.try_txn(holds, Vec::new()).await.unwrap().succeeded);
    let mut watch = bench.watch(bench.watch_request(0)).await;
    bench.store.lease_revoke(lease).await.unwrap();
    assert_eq!(bench.range(bench.all()).await.count, 1);
    let events = watch.events(2).await;
    assert!(events.iter().all(|event| event.kind == EventKind::Delete && event.kv.mod_revision == put + 1));
    let error = bench.store.lease_revoke(lease).await.unwrap_err();
    assert!(matches!(error, StoreError::LeaseNotFound(id) if id == lease), "{error}");
}

async fn a_key_follows_its_last_lease(bench: Bench) {
    let first = bench.store.lease_grant(LONG).await.unwrap();
    let second = bench.store.lease_grant(LONG).await.unwrap();
    assert_ne!(first, second);
    for (name, last) in [("moved", second), ("freed", 0)] {
        bench.apply(vec![bench.op_put_leased(name, "1", first)]).await;
        bench.apply(vec![bench.op_put_leased(name, "2", last)]).await;
    }
    bench.apply(vec![bench.op_put_leased("reborn", "1", first)]).await;
    bench.delete("reborn").await;
    let before = bench.put("reborn", "2").await;
    bench.store.lease_revoke(first).await.unwrap();
    assert_eq!(bench.range(bench.all()).await.count, 3);
    // A lease that holds nothing ends without a revision.
    assert_eq!(bench.store.current_revision().await.unwrap(), before);
    bench.store.lease_revoke(second).await.unwrap();
    assert_eq!(bench.get("moved").await, None);
    assert_eq!(bench.range(bench.all()).await.count, 2);
}

async fn a_lease_ends_by_itself(bench: Bench) {
    let lease = bench.store.lease_grant(Duration::from_secs(1)).await.unwrap();
    let mut watch = bench.watch(bench.watch_request(0)).await;
    bench.apply(vec![bench.op_put_leased("k", "1", lease)]).await;
    let events = watch.events(2).await;
    assert_eq!(events[1].kind, EventKind::Delete);
    assert_eq!(bench.get("k").await, None);
    let error = bench.store.lease_keep_alive(lease).await.unwrap_err();
    assert!(matches!(error, StoreError::LeaseNotFound(id) if id == lease), "{error}");
}

async fn a_lease_kept_alive_lives_on(bench: Bench) {
    // Longer than the shortest lease that etcd gives, and than a loaded machine may keep this test waiting.
    let ttl = Duration::from_secs(8);
    let kept = bench.store.lease_grant(ttl).await.unwrap();
    let left = bench.store.lease_grant(ttl).await.unwrap();
    bench.apply(vec![bench.op_put_leased("kept", "1", kept), bench.op_put_leased("left", "1", left)]).await;
    let mut watch = bench.watch(bench.watch_request(0)).await;
    let keep = async {
        loop {
            tokio::time::sleep(ttl / 8).await;
            bench.store.lease_keep_alive(kept).await.unwrap();
        }
    };
    let events = tokio::select! {
        () = keep => unreachable!("it keeps on"),
        events = watch.events(1) => events,
    };
    assert_eq!(events[0].kv.key, bench.key("left"));
    assert!(bench.get("kept").await.is_some());
}

async fn an_unknown_lease_is_refused(bench: Bench) {
    for error in [
        bench.store.lease_keep_alive(4711).await.unwrap_err(),
        bench.store.lease_revoke(4711).await.unwrap_err(),
        bench.try_txn(Vec::new(), vec![bench.op_put_leased("k", "1", 4711)]).await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::LeaseNotFound(4711)), "{error}");
    }
}
