//! Budgets are counted, and evictions asked of the API stay within them.

use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, PatchType, Reason};
use base::clock::VirtualClock;
use reconcile::kinds;
use serde_json::{Value, json};

use crate::loops::at_rest;
use crate::{Cluster, condition, pass, start, start_alone, start_virtual, web};

fn eviction(pod: &Key) -> Value {
    json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": { "name": pod.name, "namespace": pod.namespace },
    })
}

fn counts(held: &Value) -> [i64; 4] {
    ["expectedPods", "desiredHealthy", "currentHealthy", "disruptionsAllowed"]
        .map(|name| held["status"][name].as_i64().unwrap_or(-1))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_counts_its_pods_and_evictions_wait_for_it() {
    let cluster = start().await;
    let budget = json!({ "metadata": { "name": "web" }, "spec": {
        "maxUnavailable": "34%", "selector": { "matchLabels": { "app": "web" } } } });
    cluster.create(&kinds::POD_DISRUPTION_BUDGETS, "default", budget).await;
    let key = Key::new("default", "web");
    let budgets = kinds::POD_DISRUPTION_BUDGETS;
    let none = cluster.until(budgets, &key, |held| held["status"]["observedGeneration"] == 1).await;
    assert_eq!(counts(&none), [0, 0, 0, 0]);
    assert_eq!(none["status"]["conditions"][0]["reason"], "InsufficientPods");

    cluster.create(&kinds::DEPLOYMENTS, "default", web(2, "web:1")).await;
    cluster.until(budgets, &key, |held| counts(held) == [2, 1, 2, 1]).await;
    let pods = cluster.until_all(kinds::PODS, "default", |pods| pods.len() == 2).await;
    // What the node does not carry out: the pod keeps its finalizer, and so its place, until this test lets it go.
    let [first, second] = [pods[0].key(), pods[1].key()];
    let hold = json!({ "metadata": { "finalizers": ["example.com/hold"] } });
    cluster.merge(&kinds::PODS, &first, hold).await;
    let evict = async |pod: &Key| {
        cluster.client.create_subresource(&kinds::PODS.gvr(), pod, "eviction", &eviction(pod)).await
    };
    evict(&first).await.unwrap();
    let refused = evict(&second).await.unwrap_err();
    assert_eq!(refused.reason, Reason::TooManyRequests);
    assert_eq!(refused.message, "Cannot evict pod as it would violate the pod's disruption budget.");
    assert_eq!(refused.details.causes[0].reason, "DisruptionBudget");
    // The set replaces what goes, and once the new pod is ready the next one may go.
    cluster.until(budgets, &key, |held| counts(held) == [2, 1, 2, 1]).await;
    evict(&second).await.unwrap();
    cluster.merge(&kinds::PODS, &first, json!({ "metadata": { "finalizers": null } })).await;
    cluster.until(budgets, &key, |held| counts(held) == [2, 1, 2, 1]).await;
    // Another size is another number of expected pods.
    cluster.merge(&kinds::DEPLOYMENTS, &key, json!({ "spec": { "replicas": 5 } })).await;
    cluster.until(budgets, &key, |held| counts(held) == [5, 3, 5, 2]).await;
}

/// A budget over a pod whose controller has no scale, once it is told that it cannot be counted.
async fn odd_budget(cluster: &Cluster) -> (Key, Value) {
    let owner =
        cluster.create(&kinds::CONFIG_MAPS, "default", json!({ "metadata": { "name": "owner" } })).await;
    let owner = json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.meta().uid,
        "controller": true });
    let pod = json!({ "metadata": { "name": "p", "labels": { "app": "odd" }, "ownerReferences": [owner] },
        "spec": { "containers": [{ "name": "c", "image": "a" }] } });
    cluster.create(&kinds::PODS, "default", pod).await;
    let budget = json!({ "metadata": { "name": "odd" }, "spec": {
        "maxUnavailable": 1, "selector": { "matchLabels": { "app": "odd" } } } });
    cluster.create(&kinds::POD_DISRUPTION_BUDGETS, "default", budget).await;
    let key = Key::new("default", "odd");
    let failed = |held: &Value| held["status"]["conditions"][0]["reason"] == "SyncFailed";
    let held = cluster.until(kinds::POD_DISRUPTION_BUDGETS, &key, failed).await;
    (key, held)
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_controllers_without_a_scale_cannot_be_counted() {
    let cluster = start().await;
    cluster.takes_pods("default").await;
    let (key, failed) = odd_budget(&cluster).await;
    let message = failed["status"]["conditions"][0]["message"].as_str().unwrap();
    assert_eq!(message, "configmaps does not implement the scale subresource");
    // Pods alone are counted for a plain number.
    let number = json!({ "spec": { "maxUnavailable": null, "minAvailable": 1 } });
    cluster.merge(&kinds::POD_DISRUPTION_BUDGETS, &key, number).await;
    cluster.until(kinds::POD_DISRUPTION_BUDGETS, &key, |held| counts(held) == [1, 1, 1, 0]).await;
    cluster
        .client
        .delete(&kinds::PODS.gvr(), &Key::new("default", "p"), DeleteOptions::default())
        .await
        .unwrap();
    cluster.until(kinds::POD_DISRUPTION_BUDGETS, &key, |held| counts(held) == [0, 1, 0, 0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_cannot_be_counted_is_tried_again_though_nobody_tells_of_a_change() {
    let clock = VirtualClock::new(jiff::Timestamp::now());
    let cluster = start_alone(Arc::new(clock.clone())).await;
    cluster.takes_pods("default").await;
    odd_budget(&cluster).await;
    let before = at_rest(&cluster, &["disruption"]).await;
    clock.advance(Duration::from_secs(11 * 3600));
    assert_eq!(at_rest(&cluster, &["disruption"]).await, before);
    clock.advance(Duration::from_secs(3600));
    let after = at_rest(&cluster, &["disruption"]).await;
    assert!((before + 1..before + 5).contains(&after), "{before} {after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_takes_back_that_it_is_disrupted() {
    let (clock, cluster) = start_virtual().await;
    cluster.takes_pods("default").await;
    let pod =
        json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "a" }] } });
    cluster.create(&kinds::PODS, "default", pod).await;
    let (pods, key) = (kinds::PODS, Key::new("default", "p"));
    cluster.until(pods, &key, |held| held["status"]["phase"] == "Running").await;
    let said = json!({ "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastTransitionTime": reconcile::time::seconds(jiff::Timestamp::now()) });
    let patch = json!({ "status": { "conditions": [said] } });
    let strategic = PatchType::StrategicMerge;
    cluster.client.patch(&pods.gvr(), &key, "status", strategic, &patch).await.unwrap();
    let back = |held: &Value| condition(held, "DisruptionTarget")["status"] == "False";
    pass(&clock, std::time::Duration::from_secs(120)).await;
    let held = cluster.until(pods, &key, back).await;
    assert!(condition(&held, "DisruptionTarget")["reason"].is_null());
}
