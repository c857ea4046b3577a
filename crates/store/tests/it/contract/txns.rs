//! Transactions: compares, several writes in one revision, what is refused, and that a refusal changes nothing.

use store::{CompareTarget, Op, OpOutcome, RangeEnd, RangeRequest, StoreError, Txn};

use super::{Bench, cases};

cases![
    all_writes_share_a_revision,
    a_transaction_without_effect_takes_no_revision,
    compares_look_at_what_they_say,
    an_absent_key_compares_as_zero,
    one_failed_compare_is_enough,
    reads_see_the_writes_before_them,
    a_range_delete_counts,
    a_key_cannot_change_twice,
    too_large_is_refused,
    a_refused_transaction_changes_nothing,
    concurrent_writers_each_get_their_own_revision,
    only_one_of_many_creators_wins,
];

async fn all_writes_share_a_revision(bench: Bench) {
    let before = bench.put("gone", "1").await;
    let ops = vec![bench.op_put("a", "1"), bench.op_put("b", "2"), bench.op_delete("gone")];
    let response = bench.apply(ops).await;
    assert!(response.succeeded);
    assert_eq!(response.revision, before + 1);
    assert!(matches!(
        response.outcomes[..],
        [OpOutcome::Put, OpOutcome::Put, OpOutcome::Delete { deleted: 1 }]
    ));
    for name in ["a", "b"] {
        assert_eq!(bench.get(name).await.unwrap().mod_revision, response.revision);
    }
    assert_eq!(bench.get("gone").await, None);
}

async fn a_transaction_without_effect_takes_no_revision(bench: Bench) {
    let before = bench.put("k", "1").await;
    let response = bench.apply(vec![bench.op_delete("absent"), Op::Range(bench.all())]).await;
    assert_eq!(response.revision, before);
    assert!(matches!(response.outcomes[0], OpOutcome::Delete { deleted: 0 }));
    let empty = bench.apply(Vec::new()).await;
    assert!(empty.succeeded && empty.outcomes.is_empty());
    assert_eq!(bench.put("k", "2").await, before + 1);
}

async fn compares_look_at_what_they_say(bench: Bench) {
    let created = bench.put("k", "1").await;
    let changed = bench.put("k", "2").await;
    for (target, holds) in [
        (CompareTarget::ModRevision(changed), true),
        (CompareTarget::ModRevision(created), false),
        (CompareTarget::ModRevision(0), false),
        (CompareTarget::CreateRevision(created), true),
        (CompareTarget::CreateRevision(changed), false),
        (CompareTarget::CreateRevision(0), false),
        (CompareTarget::Value("2".into()), true),
        (CompareTarget::Value("1".into()), false),
        (CompareTarget::Lease(0), true),
        (CompareTarget::Lease(7), false),
    ] {
        let response = bench.try_txn(vec![bench.compare("k", target.clone())], Vec::new()).await.unwrap();
        assert_eq!(response.succeeded, holds, "{target:?}");
    }
}

async fn an_absent_key_compares_as_zero(bench: Bench) {
    for (target, holds) in [
        (CompareTarget::ModRevision(0), true),
        (CompareTarget::ModRevision(1), false),
        (CompareTarget::CreateRevision(0), true),
        (CompareTarget::Lease(0), true),
        (CompareTarget::Value("".into()), false),
    ] {
        let response =
            bench.try_txn(vec![bench.compare("absent", target.clone())], Vec::new()).await.unwrap();
        assert_eq!(response.succeeded, holds, "{target:?}");
    }
}

async fn one_failed_compare_is_enough(bench: Bench) {
    let revision = bench.put("a", "1").await;
    let compares = vec![
        bench.compare("a", CompareTarget::ModRevision(revision)),
        bench.compare("b", CompareTarget::ModRevision(revision)),
    ];
    let then = vec![bench.op_put("a", "changed")];
    let or_else = vec![Op::Range(RangeRequest::key(bench.key("a")))];
    let response = bench.store.txn(Txn { compares, then, or_else }).await.unwrap();
    assert!(!response.succeeded);
    let [OpOutcome::Range(found)] = &response.outcomes[..] else { panic!("{response:?}") };
    assert_eq!(found.kvs[0].value, "1");
    assert_eq!(response.revision, revision);
    assert_eq!(bench.get("a").await.unwrap().mod_revision, revision);
}

async fn reads_see_the_writes_before_them(bench: Bench) {
    bench.put("a", "1").await;
    let response = bench
        .apply(vec![
            Op::Range(bench.all()),
            bench.op_put("b", "2"),
            Op::Range(bench.all()),
            bench.op_delete("a"),
            Op::Range(bench.all()),
        ])
        .await;
    let counts: Vec<_> = response
        .outcomes
        .iter()
        .filter_map(|outcome| if let OpOutcome::Range(found) = outcome { Some(found.count) } else { None })
        .collect();
    assert_eq!(counts, [1, 2, 1]);
}

async fn a_range_delete_counts(bench: Bench) {
    for name in ["x/1", "x/2", "y"] {
        bench.put(name, "1").await;
    }
    let response = bench.apply(vec![Op::Delete { key: bench.key("x/"), end: RangeEnd::Prefix }]).await;
    assert!(matches!(response.outcomes[..], [OpOutcome::Delete { deleted: 2 }]));
    assert_eq!(bench.range(bench.all()).await.count, 1);
}

async fn a_key_cannot_change_twice(bench: Bench) {
    let before = bench.put("k", "0").await;
    let twice = [
        vec![bench.op_put("k", "1"), bench.op_put("k", "2")],
        vec![bench.op_delete("k"), bench.op_put("k", "2")],
        vec![bench.op_put("k", "1"), Op::Delete { key: bench.key(""), end: RangeEnd::Prefix }],
    ];
    for ops in twice {
        let error = bench.try_txn(Vec::new(), ops).await.unwrap_err();
        assert!(matches!(error, StoreError::Invalid(_)), "{error}");
    }
    assert_eq!(bench.get("k").await.unwrap().mod_revision, before);
    // Two deletions of one key are one.
    let response = bench.apply(vec![bench.op_delete("k"), bench.op_delete("k")]).await;
    assert!(matches!(
        response.outcomes[..],
        [OpOutcome::Delete { deleted: 1 }, OpOutcome::Delete { deleted: 0 }]
    ));
}

async fn too_large_is_refused(bench: Bench) {
    let value = "x".repeat(2 << 20);
    let error = bench.try_txn(Vec::new(), vec![bench.op_put("k", &value)]).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge(_)), "{error}");
    let many = (0..129).map(|number| bench.op_put(&number.to_string(), "1")).collect();
    let error = bench.try_txn(Vec::new(), many).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge(_)), "{error}");
    assert_eq!(bench.range(bench.all()).await.count, 0);
    bench.put("k", &"x".repeat(1 << 20)).await;
    let most = (0..128).map(|number| bench.op_put(&number.to_string(), "1")).collect();
    bench.apply(most).await;
    assert_eq!(bench.range(bench.all()).await.count, 129);
}

async fn a_refused_transaction_changes_nothing(bench: Bench) {
    let before = bench.put("k", "1").await;
    let unknown_lease = vec![bench.op_put("a", "1"), bench.op_put_leased("b", "1", 4711)];
    let error = bench.try_txn(Vec::new(), unknown_lease).await.unwrap_err();
    assert!(matches!(error, StoreError::LeaseNotFound(4711)), "{error}");
    let future = RangeRequest { revision: before + 1000, ..bench.all() };
    let error = bench.try_txn(Vec::new(), vec![bench.op_put("a", "1"), Op::Range(future)]).await.unwrap_err();
    assert!(matches!(error, StoreError::Future { .. }), "{error}");
    assert_eq!(bench.range(bench.all()).await.count, 1);
    assert_eq!(bench.store.current_revision().await.unwrap(), before);
}

async fn concurrent_writers_each_get_their_own_revision(bench: Bench) {
    let before = bench.store.current_revision().await.unwrap();
    let names: Vec<_> = (0..200).map(|number| number.to_string()).collect();
    let mut revisions = futures::future::join_all(names.iter().map(|name| bench.put(name, name))).await;
    revisions.sort_unstable();
    assert_eq!(revisions, (before + 1..=before + 200).collect::<Vec<_>>());
}

async fn only_one_of_many_creators_wins(bench: Bench) {
    let attempts = (0..50).map(|number| {
        let absent = vec![bench.compare("k", CompareTarget::ModRevision(0))];
        bench.try_txn(absent, vec![bench.op_put("k", &number.to_string())])
    });
    let results = futures::future::join_all(attempts).await;
    let winners = results.iter().filter(|result| result.as_ref().unwrap().succeeded).count();
    assert_eq!(winners, 1);
    assert_eq!(bench.get("k").await.unwrap().version, 1);
}
