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
    cluster.until(kinds::SERVICE_ACCOUNTS, &Key::new("default", "default"), |held| !held.is_null()).await;
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
    cluster.until(kinds::SERVICE_ACCOUNTS, &Key::new("default", "default"), |held| !held.is_null()).await;
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
