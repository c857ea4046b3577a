//! The scheduler against a real API server.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

#[path = "../../../controllers/tests/it/cluster.rs"]
mod cluster;

use std::sync::Arc;

use api::{DeleteOptions, Key, PatchType};
use cluster::Cluster;
use reconcile::kinds;
use scheduler::Scheduler;
use serde_json::{Value, json};

async fn start() -> Cluster {
    let cluster = Cluster::start(|cluster| {
        vec![Arc::new(Scheduler::new(&cluster.client, &cluster.informers, &cluster.clock))]
    })
    .await;
    cluster.play_nodes(false);
    cluster.create(&kinds::SERVICE_ACCOUNTS, "default", json!({ "metadata": { "name": "default" } })).await;
    cluster
}

async fn node(cluster: &Cluster, name: &str, cpu: &str) {
    cluster.create(&kinds::NODES, "", json!({ "metadata": { "name": name } })).await;
    let status = json!({ "status": { "allocatable": { "cpu": cpu, "memory": "1Gi", "pods": "110" } } });
    let key = Key::new("", name);
    cluster.client.patch(&kinds::NODES.gvr(), &key, "status", PatchType::Merge, &status).await.unwrap();
    // A new node is tainted until it is ready, which nobody here looks after.
    cluster.merge(&kinds::NODES, &key, json!({ "spec": { "taints": null } })).await;
}

async fn pod(cluster: &Cluster, name: &str, cpu: &str) -> Key {
    let container = json!({ "name": "c", "image": "i", "resources": { "requests": { "cpu": cpu } } });
    let body = json!({ "metadata": { "name": name }, "spec": { "containers": [container] } });
    cluster.create(&kinds::PODS, "default", body).await.key()
}

const NO_ROOM: &str = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: \
                       1 No preemption victims found for incoming pod.";

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_placed_refused_with_a_reason_and_placed_once_there_is_room() {
    let cluster = start().await;
    node(&cluster, "n1", "1").await;
    let first = pod(&cluster, "first", "700m").await;
    let placed = cluster.until(kinds::PODS, &first, |held| held["status"]["phase"] == "Running").await;
    assert_eq!(placed["spec"]["nodeName"], "n1");
    let scheduled = |held: &Value, status: &str| {
        let conditions = held["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|row| row["type"] == "PodScheduled" && row["status"] == status)
    };
    assert!(scheduled(&placed, "True").is_some());

    let second = pod(&cluster, "second", "700m").await;
    let refused = cluster.until(kinds::PODS, &second, |held| scheduled(held, "False").is_some()).await;
    let condition = scheduled(&refused, "False").unwrap();
    assert_eq!(condition["reason"], "Unschedulable");
    assert_eq!(condition["message"], NO_ROOM);
    cluster
        .until_all(kinds::EVENTS, "default", |events| {
            let reasons: Vec<Value> = events.iter().map(|event| event.decode::<Value>().unwrap()).collect();
            let said = |reason: &str, message: &str| {
                reasons.iter().any(|event| event["reason"] == reason && event["message"] == message)
            };
            said("Scheduled", "Successfully assigned default/first to n1")
                && said("FailedScheduling", NO_ROOM)
        })
        .await;

    cluster.client.delete(&kinds::PODS.gvr(), &first, DeleteOptions::default()).await.unwrap();
    let placed = cluster.until(kinds::PODS, &second, |held| held["status"]["phase"] == "Running").await;
    assert!(scheduled(&placed, "True").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_fills_the_nodes_and_never_overfills_one() {
    let cluster = start().await;
    let early = pod(&cluster, "early", "100m").await;
    cluster
        .until(kinds::PODS, &early, |held| {
            held["status"]["conditions"][0]["message"] == "no nodes available to schedule pods"
        })
        .await;
    for name in ["n1", "n2", "n3"] {
        node(&cluster, name, "1").await;
    }
    let names: Vec<String> = (0..35).map(|number| format!("p{number:02}")).collect();
    for name in &names {
        pod(&cluster, name, "100m").await;
    }
    // 36 pods of a tenth each: thirty find a place.
    let pods = cluster
        .until_all(kinds::PODS, "default", |pods| {
            pods.len() == 36 && pods.iter().filter(|pod| pod.node_name().is_some()).count() == 30
        })
        .await;
    for name in ["n1", "n2", "n3"] {
        assert_eq!(pods.iter().filter(|pod| pod.node_name() == Some(name)).count(), 10, "{name}");
    }
}
