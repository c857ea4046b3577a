//! Pods with claims: their volumes are chosen, or made, where they go.

use api::{Key, PatchType};
use reconcile::kinds;
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
    let held = cluster.until(kinds::PERSISTENT_VOLUME_CLAIMS, &claim, |_| true).await;
    assert_eq!(kept["spec"]["claimRef"]["uid"], held["metadata"]["uid"]);
    // Nobody is bound before its volume is.
    let waits = cluster.until(kinds::PODS, &key, |_| true).await;
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
