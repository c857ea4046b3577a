//! Whatever cannot be done, is contested or comes at the wrong time, no controller works on it without end.

use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, PatchType};
use base::clock::{Clock, SystemClock, VirtualClock};
use reconcile::kinds;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::{start_alone, start_virtual};

/// How long nobody works before it counts as rest.
const REST: Duration = Duration::from_millis(300);

/// Returns once nobody works any more, with how often these queues' keys have been worked on. The controllers' clock stands
/// still meanwhile: what is tried again and again without a pause never comes to rest, and fails by the patience of the
/// test.
pub(crate) async fn at_rest(cluster: &Cluster, names: &[&str]) -> u64 {
    let worked = || -> u64 {
        let figures = cluster.queues.figures();
        names.iter().map(|name| figures.get(name).map_or(0, |queue| queue.worked.count + queue.depth)).sum()
    };
    let rest = async {
        let mut before = worked();
        loop {
            tokio::time::sleep(REST).await;
            let now = worked();
            if now == before {
                return now;
            }
            before = now;
        }
    };
    let Ok(worked) = tokio::time::timeout(Duration::from_secs(120), rest).await else {
        panic!("somebody works without end");
    };
    worked
}

fn pod_template(app: &str) -> Value {
    json!({ "metadata": { "labels": { "app": app } }, "spec": { "containers": [{ "name": "c", "image": "a" }] } })
}

fn set(name: &str, app: &str, replicas: u32) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "replicas": replicas,
        "selector": { "matchLabels": { "app": app } }, "template": pod_template(app) } })
}

pub(crate) async fn virtual_cluster() -> (VirtualClock, Cluster) {
    let (clock, cluster) = start_virtual().await;
    cluster.takes_pods("default").await;
    (clock, cluster)
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_that_never_come_and_clocks_that_jump() {
    let (clock, cluster) = virtual_cluster().await;
    let cron = |name: &str, schedule: &str| {
        let template = json!({ "spec": { "template": { "spec": { "restartPolicy": "Never",
            "containers": [{ "name": "c", "image": "a" }] } } } });
        json!({ "metadata": { "name": name },
            "spec": { "schedule": schedule, "suspend": false, "jobTemplate": template, "concurrencyPolicy": "Forbid" } })
    };
    for (name, schedule) in [("never", "0 0 31 2 *"), ("always", "@every -1h"), ("minutes", "* * * * *")] {
        cluster.create(&kinds::CRON_JOBS, "default", cron(name, schedule)).await;
    }
    let first = at_rest(&cluster, &["cronjob"]).await;
    // Ten years pass at once, and are taken back.
    let start = clock.now();
    clock.advance(Duration::from_secs(10 * 365 * 86_400));
    cluster.until_all(kinds::JOBS, "default", |jobs| jobs.len() >= 2).await;
    let later = at_rest(&cluster, &["cronjob"]).await;
    clock.set(start);
    let back = at_rest(&cluster, &["cronjob"]).await;
    assert!(first <= 12 && later - first <= 24 && back - later <= 12, "{first} {later} {back}");
    assert_eq!(cluster.informers.get(kinds::JOBS).in_namespace("default").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn sets_that_fight_over_pods_come_to_rest() {
    let (clock, cluster) = virtual_cluster().await;
    let orphan = json!({ "metadata": { "name": "orphan", "labels": { "app": "x" } }, "spec": pod_template("x")["spec"] });
    cluster.create(&kinds::PODS, "default", orphan).await;
    cluster.create(&kinds::REPLICA_SETS, "default", set("one", "x", 2)).await;
    cluster.create(&kinds::REPLICA_SETS, "default", set("two", "x", 2)).await;
    let stateful = json!({ "metadata": { "name": "three" }, "spec": { "replicas": 1, "serviceName": "three",
        "selector": { "matchLabels": { "app": "x" } }, "template": pod_template("x") } });
    cluster.create(&kinds::STATEFUL_SETS, "default", stateful).await;
    // A pod of the right name that is another's.
    let taken = json!({ "metadata": { "name": "four-0" }, "spec": pod_template("y")["spec"] });
    cluster.create(&kinds::PODS, "default", taken).await;
    let blocked = json!({ "metadata": { "name": "four" }, "spec": { "replicas": 1, "serviceName": "four",
        "selector": { "matchLabels": { "app": "z" } }, "template": pod_template("z") } });
    cluster.create(&kinds::STATEFUL_SETS, "default", blocked).await;
    let queues = ["replicaset", "statefulset"];
    let all_made = || cluster.informers.get(kinds::PODS).in_namespace("default").len() == 6;
    for _ in 0..10 {
        at_rest(&cluster, &queues).await;
        if all_made() {
            break;
        }
        // Who lost a pod to another tries again a moment later.
        clock.advance(Duration::from_secs(1));
    }
    assert!(all_made());
    let worked = at_rest(&cluster, &queues).await;
    assert!(worked <= 200, "{worked}");
    for name in ["one", "two"] {
        let settled = |held: &Value| held["status"]["readyReplicas"] == 2;
        cluster.until(kinds::REPLICA_SETS, &Key::new("default", name), settled).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_below_what_is_used_is_tried_later_and_later() {
    let (clock, cluster) = virtual_cluster().await;
    cluster.create(&kinds::REPLICA_SETS, "default", set("web", "web", 3)).await;
    cluster.until_all(kinds::PODS, "default", |pods| pods.len() == 3).await;
    let quota = json!({ "metadata": { "name": "tight" }, "spec": { "hard": { "pods": "1" } } });
    cluster.create(&kinds::RESOURCE_QUOTAS, "default", quota).await;
    let counted = |held: &Value| held["status"]["used"]["pods"] == "3";
    cluster.until(kinds::RESOURCE_QUOTAS, &Key::new("default", "tight"), counted).await;
    let more = json!({ "spec": { "replicas": 500 } });
    cluster.merge(&kinds::REPLICA_SETS, &Key::new("default", "web"), more).await;
    let failed = |held: &Value| held["status"]["conditions"][0]["type"] == "ReplicaFailure";
    cluster.until(kinds::REPLICA_SETS, &Key::new("default", "web"), failed).await;
    let asked = || cluster.pods_asked_for.load(std::sync::atomic::Ordering::Relaxed);
    let before = at_rest(&cluster, &["replicaset", "resourcequota_primary"]).await;
    let asked_before = asked();
    // Not so long that the node, which says nothing, counts as lost.
    for _ in 0..10 {
        clock.advance(Duration::from_secs(4));
        at_rest(&cluster, &["replicaset", "resourcequota_primary"]).await;
    }
    let after = at_rest(&cluster, &["replicaset", "resourcequota_primary"]).await;
    // One attempt makes one pod at first, and none of 497 after it failed.
    assert!(
        after - before <= 100 && asked() - asked_before <= 20,
        "{before} {after} {asked_before} {}",
        asked()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_end_on_a_node_out_of_service_go() {
    let cluster = start_alone(Arc::new(SystemClock)).await;
    cluster.takes_pods("default").await;
    cluster.create(&kinds::NODES, "", json!({ "metadata": { "name": "n1" } })).await;
    let mut spec = pod_template("x")["spec"].clone();
    spec["nodeName"] = "n1".into();
    cluster.create(&kinds::PODS, "default", json!({ "metadata": { "name": "p" }, "spec": spec })).await;
    let (pods, pod) = (kinds::PODS.gvr(), Key::new("default", "p"));
    cluster.client.delete(&pods, &pod, DeleteOptions::default()).await.unwrap();
    let going = |held: &Value| held["metadata"]["deletionTimestamp"].is_string();
    cluster.until(kinds::PODS, &pod, going).await;
    // Nobody is there who would end it, until somebody says that the node is off.
    let taint = json!({ "spec": { "taints": [
        { "key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute" }] } });
    let strategic = PatchType::StrategicMerge;
    cluster.client.patch(&kinds::NODES.gvr(), &Key::new("", "n1"), "", strategic, &taint).await.unwrap();
    cluster.until(kinds::PODS, &pod, Value::is_null).await;
}
