//! Quotas are counted, and storage objects go when nobody uses them.

use api::{DeleteOptions, Key};
use reconcile::kinds;
use serde_json::{Value, json};

use crate::start;

const PODS: &str =
    "pods \"b\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1";

fn pod(name: &str, claim: Option<&str>) -> Value {
    let volumes: Vec<Value> = claim
        .iter()
        .map(|claim| json!({ "name": "v", "persistentVolumeClaim": { "claimName": claim } }))
        .collect();
    json!({ "metadata": { "name": name }, "spec": {
        "nodeName": "n1", "volumes": volumes, "containers": [{ "name": "c", "image": "a" }] } })
}

fn now() -> DeleteOptions {
    DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_counted_and_what_goes_makes_room() {
    let cluster = start().await;
    cluster.takes_pods("default").await;
    let hard = json!({ "pods": "1", "count/configmaps": "9", "count/widgets.example.com": "1" });
    let quota = json!({ "metadata": { "name": "q" }, "spec": { "hard": hard } });
    cluster.create(&kinds::RESOURCE_QUOTAS, "default", quota).await;
    let key = Key::new("default", "q");
    let pods = |count: &'static str| move |held: &Value| held["status"]["used"]["pods"] == count;
    let counted = cluster.until(kinds::RESOURCE_QUOTAS, &key, pods("0")).await;
    assert_eq!(counted["status"]["hard"], hard);
    // Nobody serves widgets.
    assert!(counted["status"]["used"]["count/widgets.example.com"].is_null());
    cluster.create(&kinds::PODS, "default", pod("a", None)).await;
    let refused = cluster.client.create(&kinds::PODS.gvr(), "default", &pod("b", None)).await;
    assert_eq!(refused.unwrap_err().message, PODS);
    cluster.client.delete(&kinds::PODS.gvr(), &Key::new("default", "a"), now()).await.unwrap();
    // A count that is under way may still write down what was there before: there is room in the end.
    let room = async {
        loop {
            cluster.until(kinds::RESOURCE_QUOTAS, &key, pods("0")).await;
            match cluster.client.create(&kinds::PODS.gvr(), "default", &pod("b", None)).await {
                Err(refused) => assert_eq!(refused.message, PODS),
                Ok(_) => return,
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(120), room).await.unwrap();
    cluster.until(kinds::RESOURCE_QUOTAS, &key, pods("1")).await;
}

const PROTECTION: &str = "kubernetes.io/pvc-protection";

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_lost_its_protection_gets_it_again() {
    let cluster = start().await;
    let claim = json!({ "metadata": { "name": "d" }, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } });
    let (claims, key) = (kinds::PERSISTENT_VOLUME_CLAIMS, Key::new("default", "d"));
    cluster.create(&claims, "default", claim).await;
    let protected = |held: &Value| held["metadata"]["finalizers"] == json!([PROTECTION]);
    let made = cluster.until(claims, &key, protected).await;
    let mut bare = made.clone();
    bare["metadata"]["finalizers"] = json!([]);
    let bare = cluster.client.update(&claims.gvr(), &key, "", &bare).await.unwrap();
    assert!(bare.meta().finalizers.is_empty());
    let lost = bare.revision();
    let later = |held: &Value| {
        held["metadata"]["resourceVersion"].as_str().is_some_and(|text| text.parse::<i64>().unwrap() > lost)
    };
    cluster.until(claims, &key, |held| later(held) && protected(held)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_goes_after_the_pods_that_use_it() {
    let cluster = start().await;
    cluster.takes_pods("default").await;
    let claim = |name: &str| {
        json!({ "metadata": { "name": name }, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } })
    };
    cluster.create(&kinds::PERSISTENT_VOLUME_CLAIMS, "default", claim("d")).await;
    cluster.create(&kinds::PODS, "default", pod("a", Some("d"))).await;
    // The controller has seen the pod once its cache has.
    cluster.until(kinds::PODS, &Key::new("default", "a"), |held| !held.is_null()).await;
    let key = Key::new("default", "d");
    let claims = kinds::PERSISTENT_VOLUME_CLAIMS;
    cluster.client.delete(&claims.gvr(), &key, DeleteOptions::default()).await.unwrap();
    cluster.until(claims, &key, |held| !held["metadata"]["deletionTimestamp"].is_null()).await;
    // One that nobody uses goes; the controller has been at work since, and has let this one be.
    cluster.create(&claims, "default", claim("unused")).await;
    let unused = Key::new("default", "unused");
    cluster.client.delete(&claims.gvr(), &unused, DeleteOptions::default()).await.unwrap();
    cluster.until(claims, &unused, Value::is_null).await;
    let kept = cluster.client.get(&claims.gvr(), &key).await.unwrap();
    assert_eq!(kept.meta().finalizers, [PROTECTION]);
    cluster.client.delete(&kinds::PODS.gvr(), &Key::new("default", "a"), now()).await.unwrap();
    cluster.until(claims, &key, Value::is_null).await;
}

fn volume(name: &str, policy: &str, size: &str) -> Value {
    json!({ "metadata": { "name": name }, "spec": {
        "capacity": { "storage": size }, "accessModes": ["ReadWriteOnce"], "storageClassName": "manual",
        "persistentVolumeReclaimPolicy": policy, "hostPath": { "path": "/data" } } })
}

fn claim(name: &str, class: &str) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "storageClassName": class,
        "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } })
}

fn phase(phase: &'static str) -> impl Fn(&Value) -> bool {
    move |held: &Value| held["status"]["phase"] == phase
}

fn says_unused(held: &Value) -> Option<(&str, &str)> {
    let mut conditions = held["status"]["conditions"].as_array()?.iter();
    let said = conditions.find(|condition| condition["type"] == "Unused")?;
    said["lastTransitionTime"].as_str().zip(said["status"].as_str())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_claim_says_since_when_no_pod_uses_it() {
    let cluster = start().await;
    cluster.takes_pods("default").await;
    let (claims, key) = (kinds::PERSISTENT_VOLUME_CLAIMS, Key::new("default", "a"));
    let says =
        |said: &'static str| move |held: &Value| says_unused(held).is_some_and(|(_, status)| status == said);
    let waiting = cluster.create(&claims, "default", claim("a", "manual")).await;
    cluster.create(&kinds::PERSISTENT_VOLUMES, "", volume("v", "Retain", "1Gi")).await;
    let idle = cluster.until(claims, &key, says("True")).await;
    assert_eq!(idle["status"]["phase"], "Bound");
    assert_eq!(says_unused(&waiting.decode().unwrap()), None);
    // A pod that no node runs counts as well.
    let mut user = pod("user", Some("a"));
    user["spec"]["nodeName"] = Value::Null;
    cluster.create(&kinds::PODS, "default", user).await;
    cluster.until(claims, &key, says("False")).await;
    let ended = json!({ "status": { "phase": "Succeeded" } });
    let (pods, user) = (kinds::PODS.gvr(), Key::new("default", "user"));
    cluster.client.patch(&pods, &user, "status", api::PatchType::Merge, &ended).await.unwrap();
    cluster.until(claims, &key, says("True")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_and_volumes_come_together_and_part() {
    let cluster = start().await;
    let (claims, volumes) = (kinds::PERSISTENT_VOLUME_CLAIMS, kinds::PERSISTENT_VOLUMES);
    let key = |name: &str| Key::new("default", name);
    cluster.create(&claims, "default", claim("a", "manual")).await;
    for (name, policy, size) in [("large", "Retain", "9Gi"), ("small", "Delete", "2Gi")] {
        cluster.create(&volumes, "", volume(name, policy, size)).await;
    }
    // Which of the two is there first is chance: it is taken, and the other one stays free.
    let bound = cluster.until(claims, &key("a"), phase("Bound")).await;
    let taken = Key::new("", bound["spec"]["volumeName"].as_str().unwrap());
    let other = Key::new("", if taken.name == "large" { "small" } else { "large" });
    let held = cluster.until(volumes, &taken, phase("Bound")).await;
    assert_eq!(held["spec"]["claimRef"]["uid"], bound["metadata"]["uid"]);
    assert_eq!(bound["status"]["capacity"], held["spec"]["capacity"]);
    assert_eq!(bound["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"], "yes");
    assert_eq!(held["metadata"]["annotations"]["pv.kubernetes.io/bound-by-controller"], "yes");
    cluster.until(volumes, &other, phase("Available")).await;
    // A claim that comes later takes what is left, and one more waits until there is more.
    cluster.create(&claims, "default", claim("b", "manual")).await;
    cluster.until(claims, &key("b"), phase("Bound")).await;
    cluster.create(&claims, "default", claim("c", "manual")).await;
    let none = |events: &[std::sync::Arc<api::Object>], reason: &str| {
        events.iter().any(|event| event.decode::<Value>().unwrap()["reason"] == reason)
    };
    cluster.until_all(kinds::EVENTS, "default", |events| none(events, "ProvisioningFailed")).await;
    cluster.create(&volumes, "", volume("third", "Retain", "1Gi")).await;
    cluster.until(claims, &key("c"), phase("Bound")).await;
    // What is left behind is kept, or nobody can delete it.
    for name in ["a", "b"] {
        cluster.client.delete(&claims.gvr(), &key(name), DeleteOptions::default()).await.unwrap();
        cluster.until(claims, &key(name), Value::is_null).await;
    }
    cluster.until(volumes, &Key::new("", "large"), phase("Released")).await;
    let failed = cluster.until(volumes, &Key::new("", "small"), phase("Failed")).await;
    let why = "error getting deleter volume plugin for volume \"small\": no deletable volume plugin matched";
    assert_eq!(failed["status"]["message"], why);
    // A claim whose volume goes is lost.
    let third = Key::new("", "third");
    cluster.client.delete(&volumes.gvr(), &third, DeleteOptions::default()).await.unwrap();
    // Its protection would keep it as long as it is bound.
    cluster.merge(&volumes, &third, json!({ "metadata": { "finalizers": null } })).await;
    cluster.until(claims, &key("c"), phase("Lost")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn provisioners_outside_are_told_when_it_is_time() {
    let cluster = start().await;
    let class = json!({ "metadata": { "name": "late" }, "provisioner": "example.com/p",
        "volumeBindingMode": "WaitForFirstConsumer" });
    cluster.create(&kinds::STORAGE_CLASSES, "", class).await;
    let (claims, key) = (kinds::PERSISTENT_VOLUME_CLAIMS, Key::new("default", "d"));
    cluster.create(&claims, "default", claim("d", "late")).await;
    let says = |reason: &'static str| {
        move |events: &[std::sync::Arc<api::Object>]| {
            events.iter().any(|event| event.decode::<Value>().unwrap()["reason"] == reason)
        }
    };
    cluster.until_all(kinds::EVENTS, "default", says("WaitForFirstConsumer")).await;
    let chosen = json!({ "metadata": { "annotations": { "volume.kubernetes.io/selected-node": "n1" } } });
    cluster.merge(&claims, &key, chosen).await;
    cluster
        .until(claims, &key, |held| {
            held["metadata"]["annotations"]["volume.kubernetes.io/storage-provisioner"] == "example.com/p"
        })
        .await;
    cluster.until_all(kinds::EVENTS, "default", says("ExternalProvisioning")).await;
    // The provisioner makes the volume for the claim.
    let uid = cluster.informers.get(claims).get(&key).unwrap().meta().uid.clone();
    let mut made = volume("made", "Delete", "1Gi");
    made["metadata"]["annotations"] = json!({ "pv.kubernetes.io/provisioned-by": "example.com/p" });
    made["spec"]["storageClassName"] = "late".into();
    made["spec"]["claimRef"] = json!({ "kind": "PersistentVolumeClaim", "apiVersion": "v1",
        "namespace": "default", "name": "d", "uid": uid });
    cluster.create(&kinds::PERSISTENT_VOLUMES, "", made).await;
    cluster.until(claims, &key, phase("Bound")).await;
    cluster.client.delete(&claims.gvr(), &key, DeleteOptions::default()).await.unwrap();
    // It is the provisioner's to delete.
    cluster.until(kinds::PERSISTENT_VOLUMES, &Key::new("", "made"), phase("Released")).await;
}
