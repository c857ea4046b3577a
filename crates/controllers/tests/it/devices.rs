//! Devices for pods: claims as long as pods need them, and pods as long as their devices may be used.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, Object};
use base::clock::Clock;
use parking_lot::Mutex;
use reconcile::kinds::{self, RESOURCE_CLAIMS};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::loops::{at_rest, virtual_cluster};
use crate::{condition, start};

const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

fn requests(tolerations: &Value) -> Value {
    let exactly = json!({ "deviceClassName": "gpu", "tolerations": tolerations });
    json!({ "devices": { "requests": [{ "name": "r", "exactly": exactly }] } })
}

fn pod(name: &str, claims: Value) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "resourceClaims": claims,
        "containers": [{ "name": "c", "image": "a" }] } })
}

fn template(name: &str) -> Value {
    let spec = json!({ "metadata": { "labels": { "a": "b" } }, "spec": requests(&json!([])) });
    json!({ "metadata": { "name": name }, "spec": spec })
}

/// What the scheduler does: a device for a claim, and nobody yet who uses it.
async fn allocate(cluster: &Cluster, claim: &Key, tolerations: Value) {
    let protect = json!({ "metadata": { "finalizers": [FINALIZER] } });
    cluster.merge(&RESOURCE_CLAIMS, claim, protect).await;
    let device = json!({ "request": "r", "driver": "a.example.com", "pool": "p", "device": "d",
        "tolerations": tolerations });
    let status = json!({ "status": { "allocation": { "devices": { "results": [device] } } } });
    let (resource, merge) = (RESOURCE_CLAIMS.gvr(), api::PatchType::Merge);
    cluster.client.patch(&resource, claim, "status", merge, &status).await.unwrap();
}

async fn accounts(cluster: &Cluster) {
    cluster.until(kinds::SERVICE_ACCOUNTS, &Key::new("default", "default"), |held| !held.is_null()).await;
}

fn is_used_by(pod: &Object) -> impl Fn(&Value) -> bool {
    let uid = pod.meta().uid.clone();
    move |claim| {
        let users = claim["status"]["reservedFor"].as_array();
        users.is_some_and(|users| users.iter().any(|user| user["uid"] == *uid))
    }
}

fn is_free(claim: &Value) -> bool {
    claim["metadata"]["finalizers"].is_null() && claim["status"]["allocation"].is_null()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_have_their_claims_until_they_end() {
    let (_clock, cluster) = virtual_cluster().await;
    // Without its template a pod gets a reason, and the claim when the template comes.
    let listed = json!([{ "name": "gpu", "resourceClaimTemplateName": "t" }]);
    let made = cluster.create(&kinds::PODS, "default", pod("p", listed)).await;
    let message = "PodResourceClaim gpu: resource claim template \"t\": \
                   resourceclaimtemplates.resource.k8s.io \"t\" not found";
    let said = |events: &[Arc<Object>]| {
        events
            .iter()
            .map(|event| event.decode::<Value>().unwrap())
            .any(|event| event["message"] == message && event["reason"] == "FailedResourceClaimCreation")
    };
    cluster.until_all(kinds::EVENTS, "default", said).await;
    cluster.create(&kinds::RESOURCE_CLAIM_TEMPLATES, "default", template("t")).await;
    let key = Key::new("default", "p");
    let told = |pod: &Value| pod["status"]["resourceClaimStatuses"][0]["resourceClaimName"].is_string();
    let held = cluster.until(kinds::PODS, &key, told).await;
    let name = held["status"]["resourceClaimStatuses"][0]["resourceClaimName"].as_str().unwrap();
    let claim = Key::new("default", name);
    let held = cluster.until(RESOURCE_CLAIMS, &claim, |held| !held.is_null()).await;
    assert!(name.starts_with("p-gpu-"), "{name}");
    assert_eq!(held["metadata"]["ownerReferences"][0]["uid"], made.meta().uid);
    assert_eq!(held["metadata"]["annotations"]["resource.kubernetes.io/pod-claim-name"], "gpu");
    assert_eq!(
        (&held["metadata"]["labels"]["a"], &held["spec"]["devices"]["requests"][0]["name"]),
        (&json!("b"), &json!("r"))
    );
    // The pod is on its node already: nobody but the controller reserves its device.
    allocate(&cluster, &claim, json!([])).await;
    cluster.until(RESOURCE_CLAIMS, &claim, is_used_by(&made)).await;
    // One that somebody deletes waits until nobody uses it; the pod's end frees it and takes it away for good.
    cluster.until(kinds::PODS, &key, |pod| pod["status"]["phase"] == "Running").await;
    let before = at_rest(&cluster, &["resource_claim"]).await;
    let ended = json!({ "status": { "phase": "Succeeded" } });
    let (pods, merge) = (kinds::PODS.gvr(), api::PatchType::Merge);
    cluster.client.patch(&pods, &key, "status", merge, &ended).await.unwrap();
    cluster.until_all(RESOURCE_CLAIMS, "default", <[_]>::is_empty).await;
    let after = at_rest(&cluster, &["resource_claim"]).await;
    assert!(before <= 16 && after - before <= 8, "{before} {after}");
    assert!(
        cluster.informers.get(RESOURCE_CLAIMS).in_namespace("default").is_empty(),
        "made for a pod that ended"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_pods_share_is_free_again_after_the_last() {
    let cluster = start().await;
    accounts(&cluster).await;
    let (claims, claim) = (RESOURCE_CLAIMS, Key::new("default", "shared"));
    let body = json!({ "metadata": { "name": "shared" }, "spec": requests(&json!([])) });
    cluster.create(&claims, "default", body).await;
    let listed = json!([{ "name": "gpu", "resourceClaimName": "shared" }]);
    let one = cluster.create(&kinds::PODS, "default", pod("one", listed.clone())).await;
    let two = cluster.create(&kinds::PODS, "default", pod("two", listed)).await;
    allocate(&cluster, &claim, json!([])).await;
    let (first, second) = (is_used_by(&one), is_used_by(&two));
    cluster.until(claims, &claim, |held| first(held) && second(held)).await;
    let delete = async |name: &str| {
        let key = Key::new("default", name);
        cluster.client.delete(&kinds::PODS.gvr(), &key, DeleteOptions::default()).await.unwrap();
    };
    delete("one").await;
    let held = cluster.until(claims, &claim, |held| !first(held)).await;
    assert!(second(&held) && !is_free(&held), "{held:#}");
    delete("two").await;
    let held = cluster.until(claims, &claim, is_free).await;
    assert!(held["metadata"]["deletionTimestamp"].is_null() && !second(&held), "{held:#}");
    // One that is allocated, unused and deleted goes, too.
    allocate(&cluster, &claim, json!([])).await;
    cluster.client.delete(&claims.gvr(), &claim, DeleteOptions::default()).await.unwrap();
    cluster.until(claims, &claim, Value::is_null).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_of_pods_come_again_and_go_with_them() {
    let cluster = start().await;
    accounts(&cluster).await;
    cluster.create(&kinds::RESOURCE_CLAIM_TEMPLATES, "default", template("t")).await;
    let listed = json!([
        { "name": "a", "resourceClaimTemplateName": "t" }, { "name": "b", "resourceClaimTemplateName": "t" },
    ]);
    cluster.create(&kinds::PODS, "default", pod("p", listed)).await;
    let claims = cluster.until_all(RESOURCE_CLAIMS, "default", |claims| claims.len() == 2).await;
    let key = Key::new("default", "p");
    let names = |pod: &Value| -> Vec<String> {
        let told = pod["status"]["resourceClaimStatuses"].as_array().cloned().unwrap_or_default();
        told.iter().map(|entry| entry["resourceClaimName"].as_str().unwrap().to_owned()).collect()
    };
    let lost = claims[0].key();
    cluster.until(kinds::PODS, &key, |pod| names(pod).len() == 2).await;
    cluster.client.delete(&RESOURCE_CLAIMS.gvr(), &lost, DeleteOptions::default()).await.unwrap();
    let told = |pod: &Value| names(pod).len() == 2 && !names(pod).contains(&lost.name);
    cluster.until(kinds::PODS, &key, told).await;
    assert_eq!(cluster.informers.get(RESOURCE_CLAIMS).in_namespace("default").len(), 2);
    allocate(&cluster, &claims[1].key(), json!([])).await;
    cluster.client.delete(&kinds::PODS.gvr(), &key, DeleteOptions::default()).await.unwrap();
    cluster.until_all(RESOURCE_CLAIMS, "default", <[_]>::is_empty).await;
}

/// A pod on its node that uses a device of a claim which bears its taints so long.
async fn user(cluster: &Cluster, name: &str, tolerations: Value) -> Arc<Object> {
    let key = Key::new("default", name);
    let body = json!({ "metadata": { "name": name }, "spec": requests(&tolerations) });
    cluster.create(&RESOURCE_CLAIMS, "default", body).await;
    let listed = json!([{ "name": "gpu", "resourceClaimName": name }]);
    let made = cluster.create(&kinds::PODS, "default", pod(name, listed)).await;
    cluster.until(kinds::PODS, &key, |held| held["status"]["phase"] == "Running").await;
    allocate(cluster, &key, tolerations).await;
    cluster.until(RESOURCE_CLAIMS, &key, is_used_by(&made)).await;
    made
}

fn slice(taints: Value) -> Value {
    json!({ "metadata": { "name": "s" }, "spec": { "driver": "a.example.com", "allNodes": true,
        "pool": { "name": "p", "generation": 1, "resourceSliceCount": 1 },
        "devices": [{ "name": "d", "taints": taints }] } })
}

async fn said(cluster: &Cluster, pod: &Object, message: &str) {
    let about = |event: &Value| {
        event["involvedObject"]["uid"] == pod.meta().uid
            && event["reason"] == "DeviceTaintManagerEviction"
            && event["message"] == message
    };
    let said = |events: &[Arc<Object>]| events.iter().any(|event| about(&event.decode().unwrap()));
    cluster.until_all(kinds::EVENTS, "default", said).await;
}

const EVICTION: &str = "device-taint-eviction-controller";

#[tokio::test(flavor = "multi_thread")]
async fn pods_leave_tainted_devices_when_their_toleration_ends() {
    let (clock, cluster) = virtual_cluster().await;
    let reasons: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let seen = reasons.clone();
    let _watching = cluster.informers.get(kinds::PODS).on_change(move |change| {
        let pod: Value = change.new.as_ref().map_or(Value::Null, |pod| pod.decode().unwrap());
        if condition(&pod, "DisruptionTarget")["status"] == "True" {
            seen.lock().insert(condition(&pod, "DisruptionTarget")["reason"].to_string());
        }
    });
    let slices = kinds::RESOURCE_SLICES;
    cluster.create(&slices, "", slice(json!([]))).await;
    let bears = json!([{ "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60 }]);
    let patient = user(&cluster, "patient", bears).await;
    let stays = user(&cluster, "stays", json!([{ "operator": "Exists", "effect": "NoExecute" }])).await.key();
    assert_eq!(at_rest(&cluster, &[EVICTION]).await, 0, "nobody has to leave");
    let now = reconcile::time::seconds(clock.now());
    let taints = json!([{ "key": "sick", "effect": "NoExecute", "timeAdded": now }]);
    let key = Key::new("", "s");
    cluster.merge(&slices, &key, slice(taints.clone())).await;
    at_rest(&cluster, &[EVICTION]).await;
    cluster.merge(&slices, &key, slice(json!([]))).await;
    said(&cluster, &patient, "Cancelling deletion").await;
    cluster.merge(&slices, &key, slice(taints)).await;
    at_rest(&cluster, &[EVICTION]).await;
    clock.advance(Duration::from_secs(61));
    cluster.until(kinds::PODS, &patient.key(), Value::is_null).await;
    said(&cluster, &patient, "Marking for deletion").await;
    let worked = at_rest(&cluster, &[EVICTION]).await;
    assert!(worked <= 16, "{worked}");
    assert!(cluster.informers.get(kinds::PODS).get(&stays).is_some());
    assert_eq!(reasons.lock().iter().collect::<Vec<_>>(), ["\"DeletionByDeviceTaintManager\""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_make_pods_leave_and_tell_how_far_that_is() {
    let (clock, cluster) = virtual_cluster().await;
    cluster.create(&kinds::RESOURCE_SLICES, "", slice(json!([]))).await;
    let pod = user(&cluster, "p", json!([])).await;
    let rules = kinds::DEVICE_TAINT_RULES;
    // The server's clock is not the controllers'.
    let now = reconcile::time::seconds(clock.now());
    let rule = |name: &str, effect: &str| {
        json!({ "metadata": { "name": name }, "spec": { "deviceSelector": { "driver": "a.example.com" },
            "taint": { "key": "sick", "effect": effect, "timeAdded": now } } })
    };
    cluster.create(&rules, "", rule("trial", "None")).await;
    let reason =
        |wanted: &'static str| move |held: &Value| condition(held, "EvictionInProgress")["reason"] == wanted;
    let held = cluster.until(rules, &Key::new("", "trial"), reason("NoEffect")).await;
    let told = condition(&held, "EvictionInProgress")["message"].as_str().unwrap();
    let wanted =
        "1 published device selected. 1 allocated device selected. 1 pod would be evicted in 1 namespace if";
    assert!(told.starts_with(wanted), "{told}");
    let key = Key::new("", "real");
    cluster.create(&rules, "", rule("real", "NoExecute")).await;
    cluster.until(kinds::PODS, &pod.key(), Value::is_null).await;
    cluster.until(rules, &key, |held| !condition(held, "EvictionInProgress").is_null()).await;
    at_rest(&cluster, &[EVICTION]).await;
    clock.advance(Duration::from_secs(11));
    let held = cluster.until(rules, &key, reason("Completed")).await;
    let told = &condition(&held, "EvictionInProgress")["message"];
    assert_eq!(*told, "1 pod evicted since starting the controller.");
}

/// A claim as the scheduler makes it for the extended resources of a pod.
fn made_for(pod: &Object, name: &str) -> Value {
    let owner = json!([{ "apiVersion": "v1", "kind": "Pod", "name": pod.meta().name, "uid": pod.meta().uid,
        "controller": true }]);
    json!({ "metadata": { "name": name, "ownerReferences": owner, "finalizers": [FINALIZER],
        "annotations": { "resource.kubernetes.io/extended-resource-claim": "true" } }, "spec": requests(&json!([])) })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_for_extended_resources_counts_once_and_goes_with_its_pod() {
    let cluster = start().await;
    accounts(&cluster).await;
    let class =
        json!({ "metadata": { "name": "gpu" }, "spec": { "extendedResourceName": "example.com/gpu" } });
    cluster.create(&kinds::DEVICE_CLASSES, "", class).await;
    let (gpu, devices) = ("requests.example.com/gpu", "gpu.deviceclass.resource.k8s.io/devices");
    let quota = json!({ "metadata": { "name": "q" }, "spec": { "hard": { gpu: "9", devices: "9" } } });
    let quota = cluster.create(&kinds::RESOURCE_QUOTAS, "default", quota).await.key();
    let uses = |of_gpu: &'static str, of_devices: &'static str| {
        move |held: &Value| {
            let used = &held["status"]["used"];
            used[gpu] == of_gpu && used[devices] == of_devices
        }
    };
    cluster.until(kinds::RESOURCE_QUOTAS, &quota, uses("0", "0")).await;

    let mut body = pod("p", json!([]));
    let asked = json!({ "example.com/gpu": "1" });
    body["spec"]["containers"][0]["resources"] = json!({ "requests": asked, "limits": asked });
    let held = cluster.create(&kinds::PODS, "default", body).await;
    let claim =
        cluster.create(&RESOURCE_CLAIMS, "default", made_for(&held, "p-extended-resources-x")).await.key();
    cluster
        .create(
            &RESOURCE_CLAIMS,
            "default",
            json!({ "metadata": { "name": "own" }, "spec": requests(&json!([])) }),
        )
        .await;
    let (pods, merge) = (kinds::PODS.gvr(), api::PatchType::Merge);
    let told = json!({ "status": { "extendedResourceClaimStatus": { "resourceClaimName": claim.name,
        "requestMappings": [{ "containerName": "c", "resourceName": "example.com/gpu", "requestName": "r" }] } } });
    cluster.client.patch(&pods, &held.key(), "status", merge, &told).await.unwrap();
    let device = json!({ "request": "r", "driver": "a.example.com", "pool": "p", "device": "d" });
    let user = json!([{ "resource": "pods", "name": "p", "uid": held.meta().uid }]);
    let status =
        json!({ "status": { "allocation": { "devices": { "results": [device] } }, "reservedFor": user } });
    cluster.client.patch(&RESOURCE_CLAIMS.gvr(), &claim, "status", merge, &status).await.unwrap();
    // The quota is counted anew: the pod's device counts with the pod.
    let noted = json!({ "spec": { "hard": { gpu: "8" } } });
    cluster.merge(&kinds::RESOURCE_QUOTAS, &quota, noted).await;
    let anew = |held: &Value| held["status"]["hard"][gpu] == "8" && uses("2", "2")(held);
    cluster.until(kinds::RESOURCE_QUOTAS, &quota, anew).await;

    // Its node has told how it is: it tells nothing after its end.
    cluster.until(kinds::PODS, &held.key(), |pod| pod["status"]["phase"] == "Running").await;
    let ended = json!({ "status": { "phase": "Succeeded" } });
    cluster.client.patch(&pods, &held.key(), "status", merge, &ended).await.unwrap();
    let left = |claims: &[Arc<Object>]| claims.iter().map(|claim| claim.meta().name.clone()).eq(["own"]);
    cluster.until_all(RESOURCE_CLAIMS, "default", left).await;
    cluster.until(kinds::RESOURCE_QUOTAS, &quota, uses("1", "1")).await;
}
