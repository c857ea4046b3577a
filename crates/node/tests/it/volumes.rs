//! Volumes of pods, and what becomes of their directories.

use std::time::Duration;

use serde_json::json;

use crate::pods::running;
use crate::world::{World, one};

#[tokio::test]
async fn a_volume_follows_the_bundles_of_a_signer() {
    let world = World::new().await;
    let pem = |letters: &str| format!("-----BEGIN CERTIFICATE-----\n{letters}\n-----END CERTIFICATE-----\n");
    let bundle = |letters: &str| {
        json!({"apiVersion": "certificates.k8s.io/v1", "kind": "ClusterTrustBundle", "metadata": {"name": "x:s:1"},
            "spec": {"signerName": "x/s", "trustBundle": pem(letters)}})
    };
    let mut spec = one();
    spec["volumes"] = json!([{"name": "ca", "projected": {"sources": [
        {"clusterTrustBundle": {"signerName": "x/s", "labelSelector": {}, "path": "ca.pem"}}]}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "ca", "mountPath": "/ca"}]);
    world.create("web", spec);
    world.until("FailedMount", || (!world.events("FailedMount").is_empty()).then_some(())).await;
    assert!(world.events("FailedMount")[0].contains("matched zero ClusterTrustBundles"));
    world.api.put("clustertrustbundles", bundle("AAAA"));
    let web = world.pod_until("web", "Running", running).await;
    let uid = web["metadata"]["uid"].as_str().unwrap();
    let volume = world.directory.path().join("run/pods").join(uid).join("volumes/ca");
    assert_eq!(std::fs::read_to_string(volume.join("ca.pem")).unwrap(), pem("AAAA"));
    world.api.put("clustertrustbundles", bundle("BBBB"));
    world.file_until(&volume, "ca.pem", |text| text == pem("BBBB")).await;
}

#[tokio::test]
async fn directories_of_pods_that_nobody_knows_are_removed() {
    let mut world = World::new().await;
    world.create("web", one());
    let web = world.pod_until("web", "Running", running).await;
    world.stop().await;
    let path = |name: &str| world.directory.path().join(name);
    let left = [
        path("logs/default_lost_u-lost/main"),
        path("run/pods/u-lost/etc"),
        path("data/pods/u-lost/volumes/v"),
    ];
    left.iter().for_each(|path| std::fs::create_dir_all(path).unwrap());
    let pods = path("data/pods");
    let own = pods.join(web["metadata"]["uid"].as_str().unwrap());
    let watched = inotify::Inotify::init().unwrap();
    watched.watches().add(&pods, inotify::WatchMask::DELETE).unwrap();
    let mut events = watched.into_event_stream(vec![0; 4096]).unwrap();
    world.start().await;
    // The last of them.
    let gone = async {
        while pods.join("u-lost").exists() {
            futures::StreamExt::next(&mut events).await.unwrap().unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(120), gone).await.expect("what is left of a pod is removed");
    assert!(left.iter().all(|path| !path.parent().unwrap().exists()));
    assert!(own.is_dir(), "what belongs to somebody stays");
}
