//! Volumes of drivers are attached where pods need them. The test plays the driver and the nodes.

use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, Object, PatchType};
use base::clock::{SystemClock, VirtualClock};
use reconcile::kinds;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::{in_steps, reason, start_alone};

const DRIVER: &str = "d.example.com";
/// Of volume `vol-1` on `n1` and on `n2`, by the driver.
const ON_FIRST: &str = "csi-30f6d22005837af41fef7d63fe7b3970943d7d3f3347148ba9b313bbaab0f238";
const ON_SECOND: &str = "csi-d745e3bb5d8f577acaf20d6703d70b3f4eb0554bdf2b367e8652727de7f7970b";
const NAME: &str = "kubernetes.io/csi/d.example.com^vol-1";

async fn status(cluster: &Cluster, kind: reconcile::Kind, name: &str, status: Value) {
    let (key, patch) = (Key::new("", name), json!({ "status": status }));
    cluster.client.patch(&kind.gvr(), &key, "status", PatchType::Merge, &patch).await.unwrap();
}

/// Two nodes, a bound claim `d` of a volume `pv` of the driver.
async fn prepare(cluster: &Cluster) {
    cluster.until(kinds::SERVICE_ACCOUNTS, &Key::new("default", "default"), |held| !held.is_null()).await;
    for name in ["n1", "n2"] {
        let managed = json!({ "volumes.kubernetes.io/controller-managed-attach-detach": "true" });
        let node = json!({ "metadata": { "name": name, "annotations": managed } });
        cluster.create(&kinds::NODES, "", node).await;
        let ready =
            json!({ "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }] });
        status(cluster, kinds::NODES, name, ready).await;
    }
    volume(cluster, "pv", "d", DRIVER, "vol-1").await;
}

async fn volume(cluster: &Cluster, name: &str, claim: &str, driver: &str, handle: &str) {
    let storage = json!({ "storage": "1Gi" });
    let volume = json!({ "metadata": { "name": name }, "spec": { "capacity": storage,
        "accessModes": ["ReadWriteOnce"], "storageClassName": "manual", "persistentVolumeReclaimPolicy": "Retain",
        "csi": { "driver": driver, "volumeHandle": handle } } });
    cluster.create(&kinds::PERSISTENT_VOLUMES, "", volume).await;
    let claim_body = json!({ "metadata": { "name": claim }, "spec": { "accessModes": ["ReadWriteOnce"],
        "storageClassName": "manual", "volumeName": name, "resources": { "requests": storage } } });
    cluster.create(&kinds::PERSISTENT_VOLUME_CLAIMS, "default", claim_body).await;
    let bound = |held: &Value| held["status"]["phase"] == "Bound";
    cluster.until(kinds::PERSISTENT_VOLUME_CLAIMS, &Key::new("default", claim), bound).await;
}

async fn pod(cluster: &Cluster, name: &str, node: &str, volumes: Value) {
    let pod = json!({ "metadata": { "name": name }, "spec": {
        "nodeName": node, "volumes": volumes, "containers": [{ "name": "c", "image": "a" }] } });
    cluster.create(&kinds::PODS, "default", pod).await;
}

fn claimed(claim: &str) -> Value {
    json!([{ "name": "data", "persistentVolumeClaim": { "claimName": claim } }])
}

async fn end(cluster: &Cluster, pod: &str) {
    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    cluster.client.delete(&kinds::PODS.gvr(), &Key::new("default", pod), now).await.unwrap();
}

async fn attachment(cluster: &Cluster, name: &str, holds: impl Fn(&Value) -> bool) -> Value {
    cluster.until(kinds::VOLUME_ATTACHMENTS, &Key::new("", name), holds).await
}

fn is_there(held: &Value) -> bool {
    held["metadata"]["uid"].is_string() && held["metadata"]["deletionTimestamp"].is_null()
}

fn is_ending(held: &Value) -> bool {
    held["metadata"]["deletionTimestamp"].is_string()
}

/// What the driver does: it says that it has attached the volume, and has to be asked before the attachment goes.
async fn attach(cluster: &Cluster, name: &str) {
    let key = Key::new("", name);
    let keep = json!({ "metadata": { "finalizers": ["external-attacher/d-example-com"] } });
    cluster.merge(&kinds::VOLUME_ATTACHMENTS, &key, keep).await;
    status(cluster, kinds::VOLUME_ATTACHMENTS, name, json!({ "attached": true })).await;
}

async fn detach(cluster: &Cluster, name: &str) {
    let free = json!({ "metadata": { "finalizers": null } });
    cluster.merge(&kinds::VOLUME_ATTACHMENTS, &Key::new("", name), free).await;
}

async fn reports(cluster: &Cluster, node: &str, names: &[&str]) {
    let wanted: Vec<Value> = names.iter().map(|name| json!({ "name": name, "devicePath": "" })).collect();
    let says = |held: &Value| match &held["status"]["volumesAttached"] {
        Value::Null => wanted.is_empty(),
        said => *said == json!(wanted),
    };
    cluster.until(kinds::NODES, &Key::new("", node), says).await;
}

async fn told(cluster: &Cluster, pod: &str, why: &str, message: &str) {
    let says = |event: &Arc<Object>| {
        let held: Value = event.decode().unwrap();
        held["involvedObject"]["name"] == pod && reason(event) == why && held["message"] == message
    };
    cluster.until_all(kinds::EVENTS, "default", |events| events.iter().any(says)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_follows_its_pods_and_no_node_loses_what_it_uses() {
    let cluster = start_alone(Arc::new(SystemClock)).await;
    prepare(&cluster).await;
    pod(&cluster, "a", "n1", claimed("d")).await;
    let made = attachment(&cluster, ON_FIRST, is_there).await;
    let spec = json!({ "attacher": DRIVER, "nodeName": "n1", "source": { "persistentVolumeName": "pv" } });
    assert_eq!(made["spec"], spec);
    attach(&cluster, ON_FIRST).await;
    reports(&cluster, "n1", &[NAME]).await;
    told(&cluster, "a", "SuccessfulAttachVolume", "AttachVolume.Attach succeeded for volume \"pv\" ").await;
    status(&cluster, kinds::NODES, "n1", json!({ "volumesInUse": [NAME] })).await;
    // One node has it: the pod on another waits, and its users know for what.
    pod(&cluster, "b", "n2", claimed("d")).await;
    let busy = "Multi-Attach error for volume \"pv\" Volume is already used by pod(s) a";
    told(&cluster, "b", "FailedAttachVolume", busy).await;
    end(&cluster, "a").await;
    // The node has been looked at once more when this one is reported; what it uses stays.
    volume(&cluster, "pv-2", "e", DRIVER, "vol-2").await;
    pod(&cluster, "c", "n1", claimed("e")).await;
    let second = |all: &[Arc<Object>]| {
        let held = all.iter().map(|held| held.decode::<Value>().unwrap());
        held.filter(|held| held["spec"]["source"]["persistentVolumeName"] == "pv-2").count() == 1
    };
    let all = cluster.until_all(kinds::VOLUME_ATTACHMENTS, "", second).await;
    let other = all.iter().map(|held| held.meta().name.clone()).find(|name| name != ON_FIRST).unwrap();
    attach(&cluster, &other).await;
    let two = "kubernetes.io/csi/d.example.com^vol-2";
    reports(&cluster, "n1", &[NAME, two]).await;
    attachment(&cluster, ON_FIRST, is_there).await;
    status(&cluster, kinds::NODES, "n1", json!({ "volumesInUse": [two] })).await;
    attachment(&cluster, ON_FIRST, is_ending).await;
    reports(&cluster, "n1", &[two]).await;
    // Only when the driver has let it go, it is asked for elsewhere.
    assert!(cluster.informers.get(kinds::VOLUME_ATTACHMENTS).get(&Key::new("", ON_SECOND)).is_none());
    detach(&cluster, ON_FIRST).await;
    attachment(&cluster, ON_SECOND, is_there).await;
    attach(&cluster, ON_SECOND).await;
    reports(&cluster, "n2", &[NAME]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_and_nodes_that_are_off_keep_nothing() {
    let cluster = start_alone(Arc::new(SystemClock)).await;
    let plain = json!({ "metadata": { "name": "none.example.com" }, "spec": { "attachRequired": false } });
    cluster.create(&kinds::CSI_DRIVERS, "", plain).await;
    prepare(&cluster).await;
    volume(&cluster, "pv-none", "none", "none.example.com", "x").await;
    pod(&cluster, "none", "n1", claimed("none")).await;
    pod(&cluster, "a", "n1", claimed("d")).await;
    // A volume without a claim, of a plugin that is a driver today.
    let disk = json!([{ "name": "disk", "cinder": { "volumeID": "disk-1" } }]);
    pod(&cluster, "b", "n1", disk).await;
    let inline = |all: &[Arc<Object>]| {
        all.iter()
            .any(|held| held.decode::<Value>().unwrap()["spec"]["attacher"] == "cinder.csi.openstack.org")
    };
    let all = cluster.until_all(kinds::VOLUME_ATTACHMENTS, "", inline).await;
    let found = all.iter().map(|held| held.decode::<Value>().unwrap());
    let found = found.map(|held| held["spec"]["source"]["inlineVolumeSpec"]["csi"].clone());
    assert!(found.into_iter().any(|csi| csi["volumeHandle"] == "disk-1"));
    attachment(&cluster, ON_FIRST, is_there).await;
    let failure = json!({ "attached": false,
        "attachError": { "time": "2024-01-01T00:00:00Z", "message": "no such disk" } });
    status(&cluster, kinds::VOLUME_ATTACHMENTS, ON_FIRST, failure).await;
    let why = "AttachVolume.Attach failed for volume \"pv\" : no such disk";
    told(&cluster, "a", "FailedAttachVolume", why).await;
    status(&cluster, kinds::VOLUME_ATTACHMENTS, ON_FIRST, json!({ "attachError": null })).await;
    attach(&cluster, ON_FIRST).await;
    reports(&cluster, "n1", &[NAME]).await;
    // Nothing was asked of a driver that needs no attaching.
    assert_eq!(cluster.informers.get(kinds::VOLUME_ATTACHMENTS).len(), 2);
    status(&cluster, kinds::NODES, "n1", json!({ "volumesInUse": [NAME] })).await;
    end(&cluster, "a").await;
    let taint = json!([{ "key": "node.kubernetes.io/out-of-service", "value": "x", "effect": "NoExecute" }]);
    cluster.merge(&kinds::NODES, &Key::new("", "n1"), json!({ "spec": { "taints": taint } })).await;
    attachment(&cluster, ON_FIRST, is_ending).await;
    reports(&cluster, "n1", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_lost_is_waited_for_six_minutes() {
    let clock = VirtualClock::new(jiff::Timestamp::now());
    let cluster = start_alone(Arc::new(clock.clone())).await;
    prepare(&cluster).await;
    pod(&cluster, "a", "n1", claimed("d")).await;
    attachment(&cluster, ON_FIRST, is_there).await;
    attach(&cluster, ON_FIRST).await;
    reports(&cluster, "n1", &[NAME]).await;
    status(&cluster, kinds::NODES, "n1", json!({ "volumesInUse": [NAME] })).await;
    let before = base::clock::Clock::now(&clock);
    end(&cluster, "a").await;
    // Nobody hears of the node any more.
    in_steps(&clock, Duration::from_secs(400), attachment(&cluster, ON_FIRST, is_ending)).await;
    let passed = base::clock::Clock::now(&clock).duration_since(before);
    assert!(passed.as_secs() >= 360, "it was waited for only {passed:?}");
    reports(&cluster, "n1", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_recycles_volumes() {
    let cluster = start_alone(Arc::new(SystemClock)).await;
    let claim_ref =
        json!({ "kind": "PersistentVolumeClaim", "namespace": "default", "name": "gone", "uid": "u" });
    let volume = json!({ "metadata": { "name": "old" }, "spec": { "capacity": { "storage": "1Gi" },
        "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Recycle", "claimRef": claim_ref,
        "hostPath": { "path": "/data" } } });
    cluster.create(&kinds::PERSISTENT_VOLUMES, "", volume).await;
    let failed = |held: &Value| held["status"]["phase"] == "Failed";
    let held = cluster.until(kinds::PERSISTENT_VOLUMES, &Key::new("", "old"), failed).await;
    assert_eq!(held["status"]["message"], "No recycler plugin found for the volume!");
    let says = |events: &[Arc<Object>]| events.iter().any(|event| reason(event) == "VolumeFailedRecycle");
    cluster.until_all(kinds::EVENTS, "default", says).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_volume_that_another_one_has_replaced_is_detached() {
    let cluster = start_alone(Arc::new(SystemClock)).await;
    prepare(&cluster).await;
    volume(&cluster, "pv-3", "f", DRIVER, "vol-3").await;
    // It was made for `vol-1`, when that was the volume of this name.
    let left = json!({ "metadata": { "name": ON_FIRST, "finalizers": ["external-attacher/d-example-com"] },
        "spec": { "attacher": DRIVER, "nodeName": "n1", "source": { "persistentVolumeName": "pv-3" } } });
    cluster.create(&kinds::VOLUME_ATTACHMENTS, "", left).await;
    attachment(&cluster, ON_FIRST, is_ending).await;
}
