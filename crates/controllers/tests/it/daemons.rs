//! DaemonSets: a pod on each node that is meant for it, on a real API server.

use std::sync::Arc;

use api::{DeleteOptions, Key, Object, PatchType, Propagation};
use reconcile::kinds;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::{reason, start};

fn agent(rolling: Value) -> Value {
    json!({ "metadata": { "name": "agent", "annotations": { "kubernetes.io/change-cause": "first" } }, "spec": {
        "selector": { "matchLabels": { "app": "agent" } }, "template": template("agent:1"),
        "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": rolling } } })
}

fn template(image: &str) -> Value {
    json!({ "metadata": { "labels": { "app": "agent" } },
        "spec": { "nodeSelector": { "agent": "yes" }, "containers": [{ "name": "agent", "image": image }] } })
}

fn key() -> Key {
    Key::new("default", "agent")
}

async fn add_node(cluster: &Cluster, name: &str) {
    let body = json!({ "metadata": { "name": name, "labels": { "agent": "yes" } } });
    cluster.create(&kinds::NODES, "", body).await;
    is_up(cluster, name).await;
}

/// The node tells that it is ready; without, it has a taint that daemons do not bear.
async fn is_up(cluster: &Cluster, name: &str) {
    let ready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
    let kind = PatchType::StrategicMerge;
    cluster.client.patch(&kinds::NODES.gvr(), &Key::new("", name), "status", kind, &ready).await.unwrap();
}

/// What `kubectl rollout status` waits for.
fn is_complete(set: &Value, nodes: i64) -> bool {
    let status = &set["status"];
    let counts = [
        "desiredNumberScheduled",
        "currentNumberScheduled",
        "updatedNumberScheduled",
        "numberReady",
        "numberAvailable",
    ];
    counts.iter().all(|count| status[count].as_i64().unwrap_or(0) == nodes)
        && status["observedGeneration"] == set["metadata"]["generation"]
        && status["numberUnavailable"].is_null()
}

async fn completes(cluster: &Cluster, nodes: i64) -> Value {
    cluster.until(kinds::DAEMON_SETS, &key(), |held| is_complete(held, nodes)).await
}

fn images(pods: &[Arc<Object>]) -> Vec<String> {
    let image = |pod: &Arc<Object>| {
        pod.decode::<Value>().unwrap()["spec"]["containers"][0]["image"].as_str().unwrap().to_owned()
    };
    pods.iter().map(image).collect()
}

fn all_of(image: &str, nodes: usize) -> impl Fn(&[Arc<Object>]) -> bool {
    move |pods| images(pods) == vec![image.to_owned(); nodes]
}

async fn rolls_and_is_undone(rolling: Value) {
    let cluster = start().await;
    cluster.takes_pods("default").await;
    for name in ["n2", "n3", "n4"] {
        add_node(&cluster, name).await;
    }
    cluster.create(&kinds::DAEMON_SETS, "default", agent(rolling)).await;
    completes(&cluster, 3).await;
    let pods = cluster.until_all(kinds::PODS, "default", all_of("agent:1", 3)).await;
    let mut nodes: Vec<&str> = pods.iter().map(|pod| pod.node_name().unwrap()).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["n2", "n3", "n4"]);
    let first =
        cluster.until_all(kinds::CONTROLLER_REVISIONS, "default", |held| held.len() == 1).await[0].clone();
    let hash = first.meta().labels["controller-revision-hash"].clone();
    assert_eq!(first.meta().name, format!("agent-{hash}"));
    assert_eq!(first.annotation("kubernetes.io/change-cause").as_deref(), Some("first"));
    for pod in &pods {
        assert_eq!(pod.meta().labels["controller-revision-hash"], hash);
        assert_eq!(pod.meta().labels["pod-template-generation"], "1");
    }
    cluster
        .until_all(kinds::EVENTS, "default", |events| {
            events
                .iter()
                .any(|event| reason(event) == "SuccessfulCreate" && event.meta().name.starts_with("agent."))
        })
        .await;

    cluster.merge(&kinds::DAEMON_SETS, &key(), json!({ "spec": { "template": template("agent:2") } })).await;
    completes(&cluster, 3).await;
    cluster.until_all(kinds::PODS, "default", all_of("agent:2", 3)).await;

    // What `kubectl rollout undo` does: the patch that the first revision holds.
    let patch = first.decode::<Value>().unwrap()["data"].clone();
    let resource = kinds::DAEMON_SETS.gvr();
    cluster.client.patch(&resource, &key(), "", PatchType::StrategicMerge, &patch).await.unwrap();
    completes(&cluster, 3).await;
    cluster.until_all(kinds::PODS, "default", all_of("agent:1", 3)).await;
    let numbers = |held: &[Arc<Object>]| {
        let number = |held: &Arc<Object>| held.decode::<Value>().unwrap()["revision"].as_i64().unwrap();
        let mut numbers: Vec<i64> = held.iter().map(number).collect();
        numbers.sort_unstable();
        numbers
    };
    cluster.until_all(kinds::CONTROLLER_REVISIONS, "default", |held| numbers(held) == [2, 3]).await;
    cluster.client.delete(&resource, &key(), DeleteOptions::default()).await.unwrap();
    for kind in [kinds::PODS, kinds::CONTROLLER_REVISIONS] {
        cluster.until_all(kind, "default", <[_]>::is_empty).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn daemons_roll_out_one_node_at_a_time_and_are_undone() {
    rolls_and_is_undone(json!({ "maxUnavailable": 1 })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn daemons_roll_out_with_surge_and_are_undone() {
    rolls_and_is_undone(json!({ "maxUnavailable": 0, "maxSurge": "50%" })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn daemons_follow_the_nodes() {
    let cluster = start().await;
    cluster.takes_pods("default").await;
    cluster.create(&kinds::DAEMON_SETS, "default", agent(json!({}))).await;
    // No node is meant for it yet.
    completes(&cluster, 0).await;
    let node = Key::new("", "n1");
    is_up(&cluster, "n1").await;
    cluster.merge(&kinds::NODES, &node, json!({ "metadata": { "labels": { "agent": "yes" } } })).await;
    completes(&cluster, 1).await;
    add_node(&cluster, "n2").await;
    completes(&cluster, 2).await;
    // One that fails is replaced.
    let pods = cluster.until_all(kinds::PODS, "default", |pods| pods.len() == 2).await;
    let failed = pods.iter().find(|pod| pod.node_name() == Some("n1")).unwrap();
    let (patch, kind) = (json!({ "status": { "phase": "Failed" } }), PatchType::StrategicMerge);
    cluster.client.patch(&kinds::PODS.gvr(), &failed.key(), "status", kind, &patch).await.unwrap();
    cluster.until(kinds::PODS, &failed.key(), Value::is_null).await;
    completes(&cluster, 2).await;
    cluster
        .until_all(kinds::EVENTS, "default", |events| {
            events.iter().any(|event| reason(event) == "FailedDaemonPod")
        })
        .await;
    cluster.merge(&kinds::NODES, &node, json!({ "metadata": { "labels": { "agent": "no" } } })).await;
    completes(&cluster, 1).await;
    let left = cluster.until_all(kinds::PODS, "default", |pods| pods.len() == 1).await;
    assert_eq!(left[0].node_name(), Some("n2"));
}

async fn on_one_node() -> Cluster {
    let cluster = start().await;
    cluster.takes_pods("default").await;
    add_node(&cluster, "n2").await;
    cluster
}

/// The only revision that there is.
async fn revision(cluster: &Cluster) -> Arc<Object> {
    cluster.until_all(kinds::CONTROLLER_REVISIONS, "default", |held| held.len() == 1).await[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_revision_become_one_and_no_pod_is_restarted() {
    let cluster = on_one_node().await;
    cluster.create(&kinds::DAEMON_SETS, "default", agent(json!({}))).await;
    completes(&cluster, 1).await;
    let pod = cluster.informers.get(kinds::PODS).in_namespace("default")[0].clone();
    let first = revision(&cluster).await;
    let mut copy: Value = first.decode().unwrap();
    let meta = copy["metadata"].clone();
    copy["metadata"] = json!({ "name": "agent-copy", "labels": { "app": "agent", "controller-revision-hash": "copy" },
        "ownerReferences": meta["ownerReferences"] });
    copy["revision"] = 7.into();
    cluster.create(&kinds::CONTROLLER_REVISIONS, "default", copy).await;
    cluster.merge(&kinds::DAEMON_SETS, &key(), json!({ "metadata": { "labels": { "wake": "up" } } })).await;
    cluster.until(kinds::CONTROLLER_REVISIONS, &first.key(), Value::is_null).await;
    let relabelled = |held: &Value| held["metadata"]["labels"]["controller-revision-hash"] == "copy";
    cluster.until(kinds::PODS, &pod.key(), relabelled).await;
    let held = completes(&cluster, 1).await;
    assert_eq!(held["metadata"]["labels"]["wake"], "up");
    assert_eq!(cluster.informers.get(kinds::PODS).get(&pod.key()).unwrap().meta().uid, pod.meta().uid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_daemon_set_takes_over_pods_and_history() {
    let cluster = on_one_node().await;
    cluster.create(&kinds::DAEMON_SETS, "default", agent(json!({}))).await;
    completes(&cluster, 1).await;
    let pod = cluster.informers.get(kinds::PODS).in_namespace("default")[0].clone();
    let orphan = DeleteOptions { propagation: Some(Propagation::Orphan), ..DeleteOptions::default() };
    cluster.client.delete(&kinds::DAEMON_SETS.gvr(), &key(), orphan).await.unwrap();
    cluster.until(kinds::DAEMON_SETS, &key(), Value::is_null).await;
    // Caches of several kinds come one after the other: who sees the pod as another's makes one beside it.
    let orphaned = |held: &Value| held["metadata"]["ownerReferences"].is_null();
    cluster.until(kinds::PODS, &pod.key(), orphaned).await;
    let history = revision(&cluster).await.key();
    cluster.until(kinds::CONTROLLER_REVISIONS, &history, orphaned).await;
    let new = cluster.create(&kinds::DAEMON_SETS, "default", agent(json!({}))).await;
    completes(&cluster, 1).await;
    let owned = |held: &Value| held["metadata"]["ownerReferences"][0]["uid"] == new.meta().uid.as_str();
    let kept = cluster.until(kinds::PODS, &pod.key(), owned).await;
    assert_eq!(kept["metadata"]["uid"], pod.meta().uid.as_str());
    assert_eq!(cluster.informers.get(kinds::PODS).in_namespace("default").len(), 1);
    cluster.until(kinds::CONTROLLER_REVISIONS, &history, owned).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_is_made_another() {
    let cluster = on_one_node().await;
    for (kind, body) in [
        (kinds::DAEMON_SETS, agent(json!({}))),
        (kinds::STATEFUL_SETS, {
            let mut set = agent(json!({}));
            set["spec"]["updateStrategy"] = Value::Null;
            set
        }),
    ] {
        cluster.create(&kind, "default", body.clone()).await;
        let name = revision(&cluster).await.key();
        cluster.client.delete(&kind.gvr(), &key(), DeleteOptions::default()).await.unwrap();
        for gone in [kinds::PODS, kinds::CONTROLLER_REVISIONS] {
            cluster.until_all(gone, "default", <[_]>::is_empty).await;
        }
        // Something else has the name that the revision of this template would have.
        let stranger = json!({ "metadata": { "name": name.name }, "revision": 1, "data": { "x": 1 } });
        cluster.create(&kinds::CONTROLLER_REVISIONS, "default", stranger).await;
        cluster.create(&kind, "default", body).await;
        let collided = |held: &Value| held["status"]["collisionCount"] == 1;
        cluster.until(kind, &key(), collided).await;
        let both = |held: &[Arc<Object>]| held.len() == 2;
        let revisions = cluster.until_all(kinds::CONTROLLER_REVISIONS, "default", both).await;
        assert!(revisions.iter().any(|held| held.meta().name.starts_with("agent-") && held.key() != name));
        cluster.until_all(kinds::PODS, "default", |pods| pods.len() == 1).await;
        cluster.client.delete(&kind.gvr(), &key(), DeleteOptions::default()).await.unwrap();
        cluster
            .client
            .delete(&kinds::CONTROLLER_REVISIONS.gvr(), &name, DeleteOptions::default())
            .await
            .unwrap();
        for gone in [kinds::PODS, kinds::CONTROLLER_REVISIONS] {
            cluster.until_all(gone, "default", <[_]>::is_empty).await;
        }
    }
}
