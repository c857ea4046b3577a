//! The scheduler against a real API server.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

#[path = "../../../controllers/tests/it/cluster.rs"]
mod cluster;
mod devices;
mod extenders;
mod volumes;

use std::sync::Arc;

use api::{DeleteOptions, Key, PatchType};
use cluster::Cluster;
use reconcile::{Informers, Kind, kinds};
use scheduler::{Config, Scheduler};
use serde_json::{Value, json};

async fn start() -> Cluster {
    start_with(Config::default).await
}

async fn start_with(config: impl Fn() -> Config) -> Cluster {
    let cluster = Cluster::start(|cluster| {
        // It reads, too, with no more rights than it has.
        let client = cluster.component("scheduler");
        let informers = Informers::new(client.clone(), cluster.clock.clone());
        let scheduler = Scheduler::new(&client, &informers, &cluster.clock);
        vec![Arc::new(scheduler.configured(config()))]
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

const NO_ROOM: &str = "0/1 nodes are available: 1 Insufficient cpu. preemption: \
                       0/1 nodes are available: 1 No preemption victims found for incoming pod.";

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
    assert_eq!(condition["observedGeneration"], 1);
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

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    pod["status"]["conditions"].as_array()?.iter().find(|held| held["type"] == kind)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_more_important_pod_has_another_go() {
    let cluster = start().await;
    node(&cluster, "n1", "1").await;
    let class = json!({ "metadata": { "name": "high" }, "value": 1000 });
    cluster.create(&kinds::PRIORITY_CLASSES, "", class).await;
    let container = json!({ "name": "c", "image": "i", "resources": { "requests": { "cpu": "700m" } } });
    // Its finalizer keeps the one that goes, so that it can be looked at.
    let body = json!({ "metadata": { "name": "low", "finalizers": ["example.com/hold"] },
        "spec": { "containers": [container] } });
    let low = cluster.create(&kinds::PODS, "default", body).await.key();
    cluster.until(kinds::PODS, &low, |held| held["status"]["phase"] == "Running").await;
    let body = json!({ "metadata": { "name": "high" },
        "spec": { "priorityClassName": "high", "containers": [container] } });
    let high = cluster.create(&kinds::PODS, "default", body).await.key();
    let told = cluster.until(kinds::PODS, &low, |held| condition(held, "DisruptionTarget").is_some()).await;
    let target = condition(&told, "DisruptionTarget").unwrap();
    assert_eq!(
        (target["status"].as_str(), target["reason"].as_str()),
        (Some("True"), Some("PreemptionByScheduler"))
    );
    assert_eq!(target["message"], "default-scheduler: preempting to accommodate a higher priority pod");
    let waits =
        |held: &Value| held["status"]["nominatedNodeName"] == "n1" || held["spec"]["nodeName"] == "n1";
    let waiting = cluster.until(kinds::PODS, &high, waits).await;
    let uid = waiting["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    cluster.until(kinds::PODS, &low, |held| !held["metadata"]["deletionTimestamp"].is_null()).await;
    cluster.merge(&kinds::PODS, &low, json!({ "metadata": { "finalizers": null } })).await;
    let placed = cluster.until(kinds::PODS, &high, |held| held["status"]["phase"] == "Running").await;
    assert_eq!(placed["spec"]["nodeName"], "n1");
    cluster
        .until_all(kinds::EVENTS, "default", |events| {
            let reasons: Vec<Value> = events.iter().map(|event| event.decode::<Value>().unwrap()).collect();
            let says = format!("Preempted by pod {uid} on node n1");
            reasons.iter().any(|event| event["reason"] == "Preempted" && event["message"] == says.as_str())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_holds_a_pod_back_until_it_is_taken_away() {
    let cluster = start().await;
    node(&cluster, "n1", "1").await;
    let body = json!({ "metadata": { "name": "gated" }, "spec": {
        "schedulingGates": [{ "name": "example.com/wait" }], "containers": [{ "name": "c", "image": "i" }] } });
    let key = cluster.create(&kinds::PODS, "default", body).await.key();
    let says = |held: &Value| {
        condition(held, "PodScheduled").is_some_and(|held| held["reason"] == "SchedulingGated")
    };
    let held = cluster.until(kinds::PODS, &key, says).await;
    let held = condition(&held, "PodScheduled").unwrap();
    assert_eq!(held["message"], "Scheduling is blocked due to non-empty scheduling gates");
    // Pods that come later go before it.
    let other = pod(&cluster, "other", "100m").await;
    cluster.until(kinds::PODS, &other, |held| held["status"]["phase"] == "Running").await;
    cluster.merge(&kinds::PODS, &key, json!({ "spec": { "schedulingGates": null } })).await;
    cluster.until(kinds::PODS, &key, |held| held["status"]["phase"] == "Running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_that_fails_is_told_and_tried_again() {
    const fn of(resource: &'static str, kind: &'static str) -> Kind {
        let group = "admissionregistration.k8s.io";
        Kind { group, version: "v1", resource, kind, namespaced: false }
    }
    const POLICIES: Kind = of("validatingadmissionpolicies", "ValidatingAdmissionPolicy");
    const BINDINGS: Kind = of("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding");
    let cluster = start().await;
    node(&cluster, "n1", "1").await;
    let rule = json!({ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
        "resources": ["pods/binding"] });
    let policy = json!({ "metadata": { "name": "closed" }, "spec": {
        "matchConstraints": { "resourceRules": [rule] },
        "validations": [{ "expression": "object.target.name != 'n1'", "message": "n1 is closed" }] } });
    cluster.create(&POLICIES, "", policy).await;
    let body = json!({ "metadata": { "name": "closed" },
        "spec": { "policyName": "closed", "validationActions": ["Deny"] } });
    let closed = cluster.create(&BINDINGS, "", body).await.key();
    let first = pod(&cluster, "first", "700m").await;
    let says =
        |held: &Value| condition(held, "PodScheduled").is_some_and(|held| held["reason"] == "SchedulerError");
    let held = cluster.until(kinds::PODS, &first, says).await;
    let message = condition(&held, "PodScheduled").unwrap()["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("running Bind plugin \"DefaultBinder\": "), "{message}");
    assert!(message.contains("n1 is closed"), "{message}");
    cluster
        .until_all(kinds::EVENTS, "default", |events| {
            let events = events.iter().map(|event| event.decode::<Value>().unwrap());
            events.into_iter().any(|event| {
                event["reason"] == "FailedScheduling" && event["message"].as_str() == Some(message)
            })
        })
        .await;
    cluster.client.delete(&BINDINGS.gvr(), &closed, DeleteOptions::default()).await.unwrap();
    let placed = cluster.until(kinds::PODS, &first, |held| held["status"]["phase"] == "Running").await;
    // Nothing that was decided before comes after the binding.
    assert_eq!(condition(&placed, "PodScheduled").unwrap()["status"], "True");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_placed_by_the_profile_that_it_asks_for() {
    const PROFILES: &str = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n\
        profiles:\n- schedulerName: default-scheduler\n- schedulerName: packing\n  pluginConfig:\n  \
        - {name: NodeResourcesFit, args: {scoringStrategy: {type: MostAllocated}}}\n";
    let cluster = start_with(|| Config::parse(PROFILES).unwrap()).await;
    node(&cluster, "n1", "1").await;
    let first = pod(&cluster, "first", "300m").await;
    cluster.until(kinds::PODS, &first, |held| held["status"]["phase"] == "Running").await;
    node(&cluster, "n2", "1").await;
    let asks = |name: &str, scheduler: &str| {
        json!({ "metadata": { "name": name }, "spec": { "schedulerName": scheduler,
        "containers": [{ "name": "c", "image": "i", "resources": { "requests": { "cpu": "100m" } } }] } })
    };
    let packed = cluster.create(&kinds::PODS, "default", asks("packed", "packing")).await.key();
    let placed = cluster.until(kinds::PODS, &packed, |held| held["status"]["phase"] == "Running").await;
    assert_eq!(placed["spec"]["nodeName"], "n1");
    cluster
        .until_all(kinds::EVENTS, "default", |events| {
            let events = events.iter().map(|event| event.decode::<Value>().unwrap());
            let own = |event: Value| {
                event["involvedObject"]["name"] == "packed" && event["source"]["component"] == "packing"
            };
            events.into_iter().any(own)
        })
        .await;
    // Nobody of that name is here: the pod is left alone.
    let foreign = cluster.create(&kinds::PODS, "default", asks("foreign", "other")).await.key();
    let free = cluster.create(&kinds::PODS, "default", asks("free", "default-scheduler")).await.key();
    let placed = cluster.until(kinds::PODS, &free, |held| held["status"]["phase"] == "Running").await;
    assert_eq!(placed["spec"]["nodeName"], "n2");
    let left = cluster.until(kinds::PODS, &foreign, Value::is_object).await;
    assert!(left["spec"]["nodeName"].is_null() && condition(&left, "PodScheduled").is_none());
}
