//! Pods with claims: their volumes are chosen, or made, where they go.

use std::sync::Arc;

use api::{DeleteOptions, Key, PatchType};
use reconcile::kinds::{self, Catalog};
use scheduler::Scheduler;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::{condition, node, start};

async fn class(cluster: &Cluster, provisioner: &str) {
    let class = json!({ "metadata": { "name": "late" }, "provisioner": provisioner,
        "volumeBindingMode": "WaitForFirstConsumer" });
    cluster.create(&kinds::STORAGE_CLASSES, "", class).await;
}

async fn claim(cluster: &Cluster, name: &str) -> Key {
    let body = json!({ "metadata": { "name": name }, "spec": { "accessModes": ["ReadWriteOnce"],
        "storageClassName": "late", "resources": { "requests": { "storage": "1Gi" } } } });
    cluster.create(&kinds::PERSISTENT_VOLUME_CLAIMS, "default", body).await.key()
}

/// A volume that one node reaches.
async fn volume(cluster: &Cluster, name: &str, node: &str) -> Key {
    let near = json!([{ "matchExpressions": [{ "key": "host", "operator": "In", "values": [node] }] }]);
    let body = json!({ "metadata": { "name": name }, "spec": { "accessModes": ["ReadWriteOnce"],
        "capacity": { "storage": "1Gi" }, "storageClassName": "late", "local": { "path": "/x" },
        "nodeAffinity": { "required": { "nodeSelectorTerms": near } } } });
    let key = cluster.create(&kinds::PERSISTENT_VOLUMES, "", body).await.key();
    status(cluster, kinds::PERSISTENT_VOLUMES, &key, json!({ "phase": "Available" })).await;
    key
}

async fn status(cluster: &Cluster, kind: reconcile::Kind, key: &Key, status: Value) {
    let patch = json!({ "status": status });
    cluster.client.patch(&kind.gvr(), key, "status", PatchType::Merge, &patch).await.unwrap();
}

async fn pod(cluster: &Cluster, name: &str, claim: &str) -> Key {
    let volumes = json!([{ "name": "v", "persistentVolumeClaim": { "claimName": claim } }]);
    let body = json!({ "metadata": { "name": name },
        "spec": { "containers": [{ "name": "c", "image": "i" }], "volumes": volumes } });
    cluster.create(&kinds::PODS, "default", body).await.key()
}

/// What the binder does once a volume names its claim.
async fn bind(cluster: &Cluster, claim: &Key, volume: &str) {
    let bound = json!({ "metadata": { "annotations": { "pv.kubernetes.io/bind-completed": "yes" } },
        "spec": { "volumeName": volume } });
    cluster.merge(&kinds::PERSISTENT_VOLUME_CLAIMS, claim, bound).await;
    status(cluster, kinds::PERSISTENT_VOLUME_CLAIMS, claim, json!({ "phase": "Bound" })).await;
}

async fn two_nodes(cluster: &Cluster) {
    for name in ["n1", "n2"] {
        node(cluster, name, "4").await;
        let labels = json!({ "metadata": { "labels": { "host": name } } });
        cluster.merge(&kinds::NODES, &Key::new("", name), labels).await;
    }
}

fn says(what: &str) -> impl Fn(&Value) -> bool {
    move |held| {
        let message = condition(held, "PodScheduled").and_then(|held| held["message"].as_str());
        message.is_some_and(|message| message.contains(what))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_goes_where_its_volume_is_and_keeps_it_for_its_claim() {
    let cluster = start().await;
    two_nodes(&cluster).await;
    class(&cluster, "kubernetes.io/no-provisioner").await;
    let key = pod(&cluster, "p", "c").await;
    cluster.until(kinds::PODS, &key, says("persistentvolumeclaim \"c\" not found")).await;
    let claim = claim(&cluster, "c").await;
    let none = "2 node(s) didn't find available persistent volumes to bind";
    cluster.until(kinds::PODS, &key, says(none)).await;
    let volume = volume(&cluster, "v", "n2").await;
    let kept = |held: &Value| held["spec"]["claimRef"]["name"] == "c";
    let kept = cluster.until(kinds::PERSISTENT_VOLUMES, &volume, kept).await;
    assert_eq!(kept["metadata"]["annotations"]["pv.kubernetes.io/bound-by-controller"], "yes");
    let held = cluster.until(kinds::PERSISTENT_VOLUME_CLAIMS, &claim, Value::is_object).await;
    assert_eq!(kept["spec"]["claimRef"]["uid"], held["metadata"]["uid"]);
    // Nobody is bound before its volume is.
    let waits = cluster.until(kinds::PODS, &key, Value::is_object).await;
    assert!(waits["spec"]["nodeName"].is_null());
    bind(&cluster, &claim, "v").await;
    let placed = cluster.until(kinds::PODS, &key, |held| held["status"]["phase"] == "Running").await;
    assert_eq!(placed["spec"]["nodeName"], "n2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_made_for_the_node_that_was_chosen_or_the_pod_is_tried_again() {
    let cluster = start().await;
    two_nodes(&cluster).await;
    class(&cluster, "example.com/p").await;
    let claim = claim(&cluster, "c").await;
    let key = pod(&cluster, "p", "c").await;
    let claims = kinds::PERSISTENT_VOLUME_CLAIMS;
    let chosen = |held: &Value| {
        held["metadata"]["annotations"]["volume.kubernetes.io/selected-node"].as_str().map(str::to_owned)
    };
    cluster.until(claims, &claim, |held| chosen(held).is_some()).await;
    // It cannot be made there: whoever tried takes the choice back, and the pod is tried again.
    let back = json!({ "metadata": { "annotations": { "volume.kubernetes.io/selected-node": null } } });
    cluster.merge(&claims, &claim, back).await;
    let failed =
        "running PreBind plugin \"VolumeBinding\": binding volumes: provisioning failed for PVC \"c\"";
    let told = cluster.until(kinds::PODS, &key, says(failed)).await;
    assert_eq!(condition(&told, "PodScheduled").unwrap()["reason"], "SchedulerError");
    let again = cluster.until(claims, &claim, |held| chosen(held).is_some()).await;
    let node = chosen(&again).unwrap();
    volume(&cluster, "made", &node).await;
    bind(&cluster, &claim, "made").await;
    let placed = cluster.until(kinds::PODS, &key, |held| held["status"]["phase"] == "Running").await;
    assert_eq!(placed["spec"]["nodeName"], node.as_str());
}

/// A claim with its volume of the driver `d`.
async fn bound(cluster: &Cluster, name: &str, access: &str, labels: Value) {
    let spec = json!({ "accessModes": [access], "storageClassName": "", "volumeName": format!("v-{name}"),
        "resources": { "requests": { "storage": "1Gi" } } });
    let body = json!({ "metadata": { "name": name }, "spec": spec });
    let claim = cluster.create(&kinds::PERSISTENT_VOLUME_CLAIMS, "default", body).await.key();
    let volume = json!({ "metadata": { "name": format!("v-{name}"), "labels": labels },
        "spec": { "accessModes": [access], "capacity": { "storage": "1Gi" },
            "csi": { "driver": "d.example.com", "volumeHandle": name } } });
    cluster.create(&kinds::PERSISTENT_VOLUMES, "", volume).await;
    bind(cluster, &claim, &format!("v-{name}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_that_are_in_use_elsewhere_or_too_many_keep_pods_waiting() {
    let cluster = start().await;
    node(&cluster, "n1", "4").await;
    let zone = json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": "a" } } });
    cluster.merge(&kinds::NODES, &Key::new("", "n1"), zone).await;
    let driver = |count: u32| json!([{ "name": "d.example.com", "nodeID": "n1", "topologyKeys": [], "allocatable": { "count": count } }]);
    let node = json!({ "metadata": { "name": "n1" }, "spec": { "drivers": driver(1) } });
    cluster.create(&kinds::CSI_NODES, "", node).await;
    bound(&cluster, "alone", "ReadWriteOncePod", json!({})).await;
    let first = pod(&cluster, "first", "alone").await;
    cluster.until(kinds::PODS, &first, |held| held["status"]["phase"] == "Running").await;
    let second = pod(&cluster, "second", "alone").await;
    let in_use =
        "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
    cluster.until(kinds::PODS, &second, says(in_use)).await;
    bound(&cluster, "more", "ReadWriteOnce", json!({})).await;
    let third = pod(&cluster, "third", "more").await;
    cluster.until(kinds::PODS, &third, says("1 node(s) exceed max volume count")).await;
    // Each is tried again when what was in its way is gone.
    cluster.client.delete(&kinds::PODS.gvr(), &first, DeleteOptions::default()).await.unwrap();
    let placed = |held: &Value| held["spec"]["nodeName"] == "n1";
    cluster
        .until_all(kinds::PODS, "default", |pods| {
            pods.iter().filter(|pod| pod.node_name().is_some() && pod.meta().name != "first").count() == 1
        })
        .await;
    cluster
        .client
        .delete(&kinds::CSI_NODES.gvr(), &Key::new("", "n1"), DeleteOptions::default())
        .await
        .unwrap();
    let node = json!({ "metadata": { "name": "n1" }, "spec": { "drivers": driver(9) } });
    cluster.create(&kinds::CSI_NODES, "", node).await;
    cluster.until(kinds::PODS, &second, placed).await;
    cluster.until(kinds::PODS, &third, placed).await;
    bound(&cluster, "far", "ReadWriteOnce", json!({ "topology.kubernetes.io/zone": "b" })).await;
    let far = pod(&cluster, "far", "far").await;
    cluster.until(kinds::PODS, &far, says("1 node(s) had no available volume zone")).await;
    let near = json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": "a" } } });
    cluster.merge(&kinds::PERSISTENT_VOLUMES, &Key::new("", "v-far"), near).await;
    cluster.until(kinds::PODS, &far, placed).await;
}

/// A cluster with the binder of claims and volumes.
async fn start_with_binder() -> Cluster {
    let cluster = Cluster::start(|cluster| {
        let ctx = controllers::Ctx {
            client: cluster.component("controllers"),
            informers: cluster.informers.clone(),
            clock: cluster.clock.clone(),
            catalog: Catalog::new(Arc::new(api::catalog::Catalog::builtin())),
            queues: cluster.queues.clone(),
            root_ca_pem: cluster.root_ca_pem.subscribe(),
            figures: None,
        };
        let all = controllers::all(&ctx).into_iter();
        let binder = all.filter(|component| component.name() == "persistentvolume-binder-controller");
        let client = cluster.component("scheduler");
        let scheduler = Scheduler::new(&client, &cluster.informers, &cluster.clock);
        binder.chain([Arc::new(scheduler) as Arc<_>]).collect()
    })
    .await;
    cluster.play_nodes(false);
    cluster.create(&kinds::SERVICE_ACCOUNTS, "default", json!({ "metadata": { "name": "default" } })).await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn scheduler_and_binder_bring_claims_and_volumes_together() {
    let cluster = start_with_binder().await;
    two_nodes(&cluster).await;
    class(&cluster, "example.com/p").await;
    let claims = [claim(&cluster, "there").await, claim(&cluster, "made").await];
    volume(&cluster, "v", "n2").await;
    let available = |held: &Value| held["status"]["phase"] == "Available";
    cluster.until(kinds::PERSISTENT_VOLUMES, &Key::new("", "v"), available).await;
    let volumes: Vec<Value> = ["there", "made"]
        .iter()
        .map(|name| json!({ "name": name, "persistentVolumeClaim": { "claimName": name } }))
        .collect();
    let near = json!({ "host": "n2" });
    let body = json!({ "metadata": { "name": "p" }, "spec": { "nodeSelector": near,
        "containers": [{ "name": "c", "image": "i" }], "volumes": volumes } });
    let pod = cluster.create(&kinds::PODS, "default", body).await.key();
    // The binder says who is to make the volume once the scheduler has said where.
    let provisioner = "volume.kubernetes.io/storage-provisioner";
    let asked = |held: &Value| held["metadata"]["annotations"][provisioner] == "example.com/p";
    let mut made = None;
    for key in &claims {
        let settled = |held: &Value| held["status"]["phase"] == "Bound" || asked(held);
        let held = cluster.until(kinds::PERSISTENT_VOLUME_CLAIMS, key, settled).await;
        if asked(&held) {
            assert_eq!(held["metadata"]["annotations"]["volume.kubernetes.io/selected-node"], "n2");
            made = Some(held);
        }
    }
    // One of the two gets the volume that is there; for the other one is made.
    let meta = &made.unwrap()["metadata"];
    let body = json!({ "metadata": { "name": "pvc-1",
            "annotations": { "pv.kubernetes.io/provisioned-by": "example.com/p" } },
        "spec": { "accessModes": ["ReadWriteOnce"], "capacity": { "storage": "1Gi" }, "storageClassName": "late",
            "csi": { "driver": "p.example.com", "volumeHandle": "1" },
            "claimRef": { "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "default",
                "name": meta["name"], "uid": meta["uid"] } } });
    cluster.create(&kinds::PERSISTENT_VOLUMES, "", body).await;
    let placed = cluster.until(kinds::PODS, &pod, |held| held["status"]["phase"] == "Running").await;
    assert_eq!(placed["spec"]["nodeName"], "n2");
    let bound = |held: &Value| held["status"]["phase"] == "Bound";
    for key in &claims {
        cluster.until(kinds::PERSISTENT_VOLUME_CLAIMS, key, bound).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_its_volume_makes_room_without_going() {
    let cluster = start().await;
    node(&cluster, "n1", "1").await;
    class(&cluster, "example.com/p").await;
    let priority = json!({ "metadata": { "name": "high" }, "value": 1000 });
    cluster.create(&kinds::PRIORITY_CLASSES, "", priority).await;
    let claim = claim(&cluster, "c").await;
    let container = json!({ "name": "c", "image": "i", "resources": { "requests": { "cpu": "700m" } } });
    let volumes = json!([{ "name": "v", "persistentVolumeClaim": { "claimName": "c" } }]);
    let body =
        json!({ "metadata": { "name": "low" }, "spec": { "containers": [container], "volumes": volumes } });
    let low = cluster.create(&kinds::PODS, "default", body).await.key();
    let chosen = |held: &Value| {
        held["metadata"]["annotations"]["volume.kubernetes.io/selected-node"].as_str().is_some()
    };
    cluster.until(kinds::PERSISTENT_VOLUME_CLAIMS, &claim, chosen).await;
    let body = json!({ "metadata": { "name": "high" },
        "spec": { "priorityClassName": "high", "containers": [container] } });
    let high = cluster.create(&kinds::PODS, "default", body).await.key();
    let placed = cluster.until(kinds::PODS, &high, |held| held["status"]["phase"] == "Running").await;
    assert_eq!(placed["spec"]["nodeName"], "n1");
    let uid = placed["metadata"]["uid"].as_str().unwrap_or_default();
    let says = format!("Preempted by pod {uid} on node n1 (in kube-scheduler memory).");
    cluster
        .until_all(kinds::EVENTS, "default", |events| {
            let mut events = events.iter().map(|event| event.decode::<Value>().unwrap());
            events.any(|event| event["reason"] == "Preempted" && event["message"] == says.as_str())
        })
        .await;
    // It waits for the next chance, and nothing tells it to go.
    let room = |held: &Value| {
        let message = condition(held, "PodScheduled").and_then(|held| held["message"].as_str());
        message.is_some_and(|message| message.starts_with("0/1 nodes are available: 1 Insufficient cpu."))
    };
    let waits = cluster.until(kinds::PODS, &low, room).await;
    assert!(waits["metadata"]["deletionTimestamp"].is_null() && waits["spec"]["nodeName"].is_null());
    assert!(condition(&waits, "DisruptionTarget").is_none());
}
