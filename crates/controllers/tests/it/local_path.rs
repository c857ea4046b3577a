//! Claims of the default class get directories of the node that was chosen for them, which go with them.

use std::sync::Arc;

use api::{DeleteOptions, Key, PatchType, Reason};
use base::clock::SystemClock;
use controllers::Ctx;
use controllers::local_path::LocalPaths;
use reconcile::kinds::{self, Catalog};
use reconcile::local_path::{REMOVE, REMOVED, ROOT, removal};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::loops::at_rest;

async fn start() -> Cluster {
    Cluster::start(|cluster| {
        let ctx = Ctx {
            client: cluster.client.clone(),
            informers: cluster.informers.clone(),
            clock: Arc::new(SystemClock),
            catalog: Catalog::new(Arc::new(api::catalog::Catalog::builtin())),
            queues: cluster.queues.clone(),
            figures: None,
            root_ca_pem: cluster.root_ca_pem.subscribe(),
        };
        let mut all = controllers::all(&ctx);
        all.push(Arc::new(LocalPaths::new(&ctx)));
        all
    })
    .await
}

async fn node(cluster: &Cluster, annotations: Value) {
    let (nodes, key) = (kinds::NODES.gvr(), Key::new("", "n1"));
    let patch = json!({ "metadata": { "annotations": annotations } });
    cluster.client.patch(&nodes, &key, "", PatchType::Merge, &patch).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_gets_a_directory_and_both_go_together() {
    let cluster = start().await;
    let class =
        cluster.until(kinds::STORAGE_CLASSES, &Key::new("", "local-path"), |held| !held.is_null()).await;
    assert_eq!(class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"], "true");
    cluster
        .create(
            &kinds::NODES,
            "",
            json!({ "metadata": { "name": "n1",
            "labels": { "kubernetes.io/hostname": "n1" }, "annotations": { ROOT: "/data/local-path" } } }),
        )
        .await;
    // It names no class.
    let claim = json!({ "metadata": { "name": "data" }, "spec": { "accessModes": ["ReadWriteOnce"],
        "resources": { "requests": { "storage": "1Gi" } } } });
    let (claims, volumes) = (kinds::PERSISTENT_VOLUME_CLAIMS, kinds::PERSISTENT_VOLUMES);
    let key = Key::new("default", "data");
    let classified = |held: &Value| held["spec"]["storageClassName"] == "local-path";
    cluster.create(&claims, "default", claim).await;
    cluster.until(claims, &key, classified).await;
    // As the scheduler does for the first pod.
    let chosen = json!({ "metadata": { "annotations": { "volume.kubernetes.io/selected-node": "n1" } } });
    cluster.client.patch(&claims.gvr(), &key, "", PatchType::Merge, &chosen).await.unwrap();
    let bound = cluster.until(claims, &key, |held| held["status"]["phase"] == "Bound").await;
    let name = bound["spec"]["volumeName"].as_str().unwrap().to_owned();
    let volume = Key::new("", name.as_str());
    let made = cluster.until(volumes, &volume, |held| held["status"]["phase"] == "Bound").await;
    assert_eq!(made["spec"]["local"]["path"], format!("/data/local-path/{name}_default_data"));

    cluster.client.delete(&claims.gvr(), &key, DeleteOptions::default()).await.unwrap();
    // The node is asked when nobody has the volume any more.
    let asked = |held: &Value| held["metadata"]["annotations"][removal(&name)] == REMOVE;
    cluster.until(kinds::NODES, &Key::new("", "n1"), asked).await;
    let held = cluster.until(volumes, &volume, |held| !held.is_null()).await;
    assert_eq!(held["metadata"]["finalizers"], json!(["skiff.dev/local-path"]));
    node(&cluster, json!({ removal(&name): REMOVED })).await;
    cluster.until(volumes, &volume, Value::is_null).await;
    let forgotten = |held: &Value| held["metadata"]["annotations"][removal(&name)].is_null();
    cluster.until(kinds::NODES, &Key::new("", "n1"), forgotten).await;

    // What was asked for is taken back where it is not true any more: nobody waits for this volume's end.
    node(&cluster, json!({ removal("saved"): REMOVE })).await;
    let taken_back = |held: &Value| held["metadata"]["annotations"][removal("saved")].is_null();
    cluster.until(kinds::NODES, &Key::new("", "n1"), taken_back).await;

    // Who deletes the class means it.
    let key = Key::new("", "local-path");
    cluster.client.delete(&kinds::STORAGE_CLASSES.gvr(), &key, DeleteOptions::default()).await.unwrap();
    let marked = json!({ "metadata": { "annotations": { "a": "b" } } });
    let system = Key::new("", "kube-system");
    cluster.client.patch(&kinds::NAMESPACES.gvr(), &system, "", PatchType::Merge, &marked).await.unwrap();
    cluster.until(kinds::NAMESPACES, &system, |held| held["metadata"]["annotations"]["a"] == "b").await;
    at_rest(&cluster, &["local_path"]).await;
    let missing = cluster.client.get(&kinds::STORAGE_CLASSES.gvr(), &key).await.unwrap_err();
    assert_eq!(missing.reason, Reason::NotFound);
}
