//! Pods with claims of devices: they go where there are devices, and the claims say what they got and for whom.

use api::{DeleteOptions, Key, PatchType};
use reconcile::kinds;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::{condition, node, start};

const DRIVER: &str = "gpu.example.com";
const NONE_LEFT: &str = "0/1 nodes are available: 1 cannot allocate all claims. preemption: \
                         0/1 nodes are available: 1 Preemption is not helpful for scheduling.";

const fn of_admission(resource: &'static str, kind: &'static str) -> reconcile::Kind {
    let group = "admissionregistration.k8s.io";
    reconcile::Kind { group, version: "v1", resource, kind, namespaced: false }
}

const POLICIES: reconcile::Kind = of_admission("validatingadmissionpolicies", "ValidatingAdmissionPolicy");
const BINDINGS: reconcile::Kind =
    of_admission("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding");

/// Has every binding refused, until what this gives is deleted.
async fn close_bindings(cluster: &Cluster) -> Key {
    let rule = json!({ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods/binding"] });
    let policy = json!({ "metadata": { "name": "closed" }, "spec": { "matchConstraints": { "resourceRules": [rule] },
        "validations": [{ "expression": "false" }] } });
    cluster.create(&POLICIES, "", policy).await;
    let body = json!({ "metadata": { "name": "closed" }, "spec": { "policyName": "closed", "validationActions": ["Deny"] } });
    cluster.create(&BINDINGS, "", body).await.key()
}

async fn class(cluster: &Cluster) {
    let selector = json!({ "cel": { "expression": format!("device.driver == '{DRIVER}'") } });
    let body = json!({ "metadata": { "name": "gpu" }, "spec": { "selectors": [selector] } });
    cluster.create(&kinds::DEVICE_CLASSES, "", body).await;
}

/// A slice with these devices of a node.
async fn slice(cluster: &Cluster, node: &str, devices: &[&str]) {
    let devices: Vec<Value> = devices.iter().map(|name| json!({ "name": name })).collect();
    let pool = json!({ "name": node, "generation": 1, "resourceSliceCount": 1 });
    let body = json!({ "metadata": { "name": format!("slice-{node}") },
        "spec": { "driver": DRIVER, "nodeName": node, "pool": pool, "devices": devices } });
    cluster.create(&kinds::RESOURCE_SLICES, "", body).await;
}

fn claim_body(name: &str, owner: Value) -> Value {
    let request = json!({ "name": "r", "exactly": { "deviceClassName": "gpu" } });
    json!({ "metadata": { "name": name, "ownerReferences": owner }, "spec": { "devices": { "requests": [request] } } })
}

async fn claim(cluster: &Cluster, name: &str) -> Key {
    cluster.create(&kinds::RESOURCE_CLAIMS, "default", claim_body(name, json!([]))).await.key()
}

async fn pod(cluster: &Cluster, name: &str, source: Value) -> Key {
    let mut claim = source;
    claim["name"] = "devices".into();
    let container = json!({ "name": "c", "image": "i", "resources": { "claims": [{ "name": "devices" }] } });
    let body = json!({ "metadata": { "name": name }, "spec": { "resourceClaims": [claim], "containers": [container] } });
    cluster.create(&kinds::PODS, "default", body).await.key()
}

fn named(claim: &str) -> Value {
    json!({ "resourceClaimName": claim })
}

async fn status(cluster: &Cluster, kind: reconcile::Kind, key: &Key, status: Value) {
    let patch = json!({ "status": status });
    cluster.client.patch(&kind.gvr(), key, "status", PatchType::Merge, &patch).await.unwrap();
}

/// What the controller of claims does once nobody uses one any more.
async fn free(cluster: &Cluster, claim: &Key) {
    status(cluster, kinds::RESOURCE_CLAIMS, claim, json!({ "allocation": null, "reservedFor": null })).await;
}

fn runs(held: &Value) -> bool {
    held["status"]["phase"] == "Running"
}

fn says(what: &str) -> impl Fn(&Value) -> bool {
    move |held| condition(held, "PodScheduled").is_some_and(|held| held["message"] == what)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_gets_the_devices_of_its_claim_and_the_next_waits_until_they_are_free() {
    let cluster = start().await;
    node(&cluster, "n1", "1").await;
    class(&cluster).await;
    slice(&cluster, "n1", &["a"]).await;
    let one = claim(&cluster, "one").await;
    let first = pod(&cluster, "first", named("one")).await;
    let placed = cluster.until(kinds::PODS, &first, runs).await;
    assert_eq!(placed["spec"]["nodeName"], "n1");
    let held =
        cluster.until(kinds::RESOURCE_CLAIMS, &one, |held| !held["status"]["allocation"].is_null()).await;
    assert_eq!(held["metadata"]["finalizers"], json!(["resource.kubernetes.io/delete-protection"]));
    assert_eq!(
        held["status"]["reservedFor"],
        json!([{ "resource": "pods", "name": "first", "uid": placed["metadata"]["uid"] }])
    );
    let allocation = &held["status"]["allocation"];
    assert_eq!(
        allocation["devices"],
        json!({ "results": [{ "request": "r", "driver": DRIVER, "pool": "n1", "device": "a" }] })
    );
    let here = json!({ "key": "metadata.name", "operator": "In", "values": ["n1"] });
    assert_eq!(allocation["nodeSelector"], json!({ "nodeSelectorTerms": [{ "matchFields": [here] }] }));
    assert!(allocation["allocationTimestamp"].is_string());

    // Another claim has to wait; a pod of the same claim does not.
    let two = claim(&cluster, "two").await;
    let second = pod(&cluster, "second", named("two")).await;
    cluster.until(kinds::PODS, &second, says(NONE_LEFT)).await;
    cluster
        .until_all(kinds::EVENTS, "default", |events| {
            let mut events = events.iter().map(|event| event.decode::<Value>().unwrap());
            events.any(|event| event["reason"] == "FailedScheduling" && event["message"] == NONE_LEFT)
        })
        .await;
    let beside = pod(&cluster, "beside", named("one")).await;
    cluster.until(kinds::PODS, &beside, runs).await;
    let users = |held: &Value| held["status"]["reservedFor"].as_array().map(Vec::len);
    cluster.until(kinds::RESOURCE_CLAIMS, &one, |held| users(held) == Some(2)).await;
    assert!(users(&cluster.until(kinds::RESOURCE_CLAIMS, &two, Value::is_object).await).is_none());

    for key in [&first, &beside] {
        cluster.client.delete(&kinds::PODS.gvr(), key, DeleteOptions::default()).await.unwrap();
    }
    free(&cluster, &one).await;
    cluster.until(kinds::PODS, &second, runs).await;
    cluster.until(kinds::RESOURCE_CLAIMS, &two, |held| users(held) == Some(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_a_claim_that_is_made_for_it() {
    let cluster = start().await;
    node(&cluster, "n1", "1").await;
    slice(&cluster, "n1", &["a", "b"]).await;
    let key = pod(&cluster, "p", json!({ "resourceClaimTemplateName": "t" })).await;
    // Pods that come later go before it: nobody tries it.
    let other = crate::pod(&cluster, "other", "100m").await;
    let held = cluster.until(kinds::PODS, &other, runs).await;
    assert_eq!(held["spec"]["nodeName"], "n1");
    let waits = cluster.until(kinds::PODS, &key, Value::is_object).await;
    assert!(condition(&waits, "PodScheduled").is_none() && waits["spec"]["nodeName"].is_null());
    let made =
        json!({ "resourceClaimStatuses": [{ "name": "devices", "resourceClaimName": "p-devices-x" }] });
    status(&cluster, kinds::PODS, &key, made).await;
    let owner = json!([{ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": waits["metadata"]["uid"], "controller": true }]);
    cluster.create(&kinds::RESOURCE_CLAIMS, "default", claim_body("p-devices-x", owner)).await;
    // Upstream asks no plugin that makes room once nothing is known of the claims.
    let missing = "0/1 nodes are available: request r: device class gpu does not exist. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    cluster.until(kinds::PODS, &key, says(missing)).await;
    class(&cluster).await;
    cluster.until(kinds::PODS, &key, runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pods_and_claims_get_as_many_devices_as_there_are() {
    let cluster = start().await;
    class(&cluster).await;
    for name in ["n1", "n2"] {
        node(&cluster, name, "4").await;
        slice(&cluster, name, &["a", "b", "c"]).await;
    }
    for number in 0..9 {
        let name = format!("c{number}");
        claim(&cluster, &name).await;
        pod(&cluster, &format!("p{number}"), named(&name)).await;
    }
    let placed =
        |pods: &[std::sync::Arc<api::Object>]| pods.iter().filter(|pod| pod.node_name().is_some()).count();
    let refused = |pods: &[std::sync::Arc<api::Object>]| {
        let told = |pod: &std::sync::Arc<api::Object>| {
            condition(&pod.decode::<Value>().unwrap(), "PodScheduled")
                .is_some_and(|held| held["status"] == "False")
        };
        pods.iter().filter(|pod| told(pod)).count()
    };
    cluster.until_all(kinds::PODS, "default", |pods| placed(pods) == 6 && refused(pods) == 3).await;
    let claims = cluster.until_all(kinds::RESOURCE_CLAIMS, "default", |claims| claims.len() == 9).await;
    let mut devices: Vec<String> = claims
        .iter()
        .flat_map(|claim| {
            let results =
                claim.decode::<Value>().unwrap()["status"]["allocation"]["devices"]["results"].take();
            results.as_array().cloned().unwrap_or_default()
        })
        .map(|result| format!("{}/{}", result["pool"], result["device"]))
        .collect();
    devices.sort();
    let count = devices.len();
    devices.dedup();
    assert_eq!((count, devices.len()), (6, 6), "none is had twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_devices_are_in_the_way_gets_others() {
    let cluster = start().await;
    class(&cluster).await;
    for name in ["n1", "n2"] {
        node(&cluster, name, "1").await;
        let labels = json!({ "metadata": { "labels": { "host": name } } });
        cluster.merge(&kinds::NODES, &Key::new("", name), labels).await;
        slice(&cluster, name, &["a"]).await;
    }
    let key = claim(&cluster, "c").await;
    let first = pod(&cluster, "first", named("c")).await;
    let placed = cluster.until(kinds::PODS, &first, runs).await;
    let other = if placed["spec"]["nodeName"] == "n1" { "n2" } else { "n1" };
    cluster.client.delete(&kinds::PODS.gvr(), &first, DeleteOptions::default()).await.unwrap();
    // Nobody uses it any more, but it keeps its device, as one that was made by hand does in between.
    status(&cluster, kinds::RESOURCE_CLAIMS, &key, json!({ "reservedFor": null })).await;
    let body = json!({ "metadata": { "name": "second" }, "spec": { "nodeSelector": { "host": other },
        "resourceClaims": [{ "name": "devices", "resourceClaimName": "c" }],
        "containers": [{ "name": "c", "image": "i", "resources": { "claims": [{ "name": "devices" }] } }] } });
    let second = cluster.create(&kinds::PODS, "default", body).await.key();
    let placed = cluster.until(kinds::PODS, &second, runs).await;
    assert_eq!(placed["spec"]["nodeName"], other);
    let pool = |held: &Value| held["status"]["allocation"]["devices"]["results"][0]["pool"] == other;
    cluster.until(kinds::RESOURCE_CLAIMS, &key, pool).await;
    cluster
        .until_all(kinds::EVENTS, "default", |events| {
            let mut events = events.iter().map(|event| event.decode::<Value>().unwrap());
            let said = "deallocation of ResourceClaim completed, preemption: ";
            events.any(|event| event["message"].as_str().is_some_and(|message| message.contains(said)))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_claim_is_told_and_the_pod_tried_again() {
    let cluster = start().await;
    node(&cluster, "n1", "1").await;
    class(&cluster).await;
    slice(&cluster, "n1", &["a"]).await;
    let mut body = claim_body("c", json!([]));
    let expression = format!("device.attributes['{DRIVER}'].model == 'x'");
    body["spec"]["devices"]["requests"][0]["exactly"]["selectors"] =
        json!([{ "cel": { "expression": expression } }]);
    cluster.create(&kinds::RESOURCE_CLAIMS, "default", body).await;
    let key = pod(&cluster, "p", named("c")).await;
    let wrong = "running \"DynamicResources\" filter plugin: claim default/c: selector #0 on device \
                 gpu.example.com/n1/a: CEL runtime error: no such key: model";
    let held = cluster.until(kinds::PODS, &key, says(wrong)).await;
    assert_eq!(condition(&held, "PodScheduled").unwrap()["reason"], "SchedulerError");
    let slice = json!({ "spec": { "pool": { "generation": 2 },
        "devices": [{ "name": "a", "attributes": { "model": { "string": "x" } } }] } });
    cluster.merge(&kinds::RESOURCE_SLICES, &Key::new("", "slice-n1"), slice).await;
    cluster.until(kinds::PODS, &key, runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_binding_fails_uses_its_claim_no_more() {
    let cluster = start().await;
    node(&cluster, "n1", "1").await;
    class(&cluster).await;
    slice(&cluster, "n1", &["a"]).await;
    let closed = close_bindings(&cluster).await;
    let claim = claim(&cluster, "c").await;
    let key = pod(&cluster, "p", named("c")).await;
    // It keeps its device, but nobody uses it.
    let given_back = |held: &Value| {
        let users = held["status"]["reservedFor"].as_array().map_or(0, Vec::len);
        !held["status"]["allocation"].is_null() && users == 0
    };
    cluster.until(kinds::RESOURCE_CLAIMS, &claim, given_back).await;
    cluster.client.delete(&BINDINGS.gvr(), &closed, DeleteOptions::default()).await.unwrap();
    cluster.until(kinds::PODS, &key, runs).await;
    let used = |held: &Value| held["status"]["reservedFor"].as_array().is_some_and(|users| users.len() == 1);
    cluster.until(kinds::RESOURCE_CLAIMS, &claim, used).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_bound_once_its_device_is_ready() {
    let cluster = start().await;
    node(&cluster, "n1", "1").await;
    class(&cluster).await;
    let device = json!({ "name": "a", "bindsToNode": true, "bindingConditions": ["Ready"],
        "bindingFailureConditions": ["Failed"], "taints": [{ "key": "new", "effect": "NoSchedule" }] });
    let pool = json!({ "name": "fabric", "generation": 1, "resourceSliceCount": 1 });
    let body = json!({ "metadata": { "name": "fabric" },
        "spec": { "driver": DRIVER, "allNodes": true, "pool": pool, "devices": [device] } });
    let fabric = cluster.create(&kinds::RESOURCE_SLICES, "", body).await.key();
    let claim = claim(&cluster, "c").await;
    let key = pod(&cluster, "p", named("c")).await;
    cluster.until(kinds::PODS, &key, says(NONE_LEFT)).await;
    let devices = json!({ "spec": { "devices": [{ "name": "a", "bindsToNode": true, "bindingConditions": ["Ready"],
        "bindingFailureConditions": ["Failed"] }] } });
    cluster.merge(&kinds::RESOURCE_SLICES, &fabric, devices).await;
    let allocated = |held: &Value| !held["status"]["allocation"].is_null();
    let held = cluster.until(kinds::RESOURCE_CLAIMS, &claim, allocated).await;
    assert_eq!(held["status"]["allocation"]["devices"]["results"][0]["bindingConditions"], json!(["Ready"]));
    cluster
        .until_all(kinds::EVENTS, "default", |events| {
            let mut events = events.iter().map(|event| event.decode::<Value>().unwrap());
            events.any(|event| event["reason"] == "BindingConditionsPending")
        })
        .await;
    let waits = cluster.until(kinds::PODS, &key, Value::is_object).await;
    assert!(waits["spec"]["nodeName"].is_null());
    let tell = |kind: &str| {
        json!({ "devices": [{ "driver": DRIVER, "pool": "fabric", "device": "a", "conditions": [{ "type": kind,
            "status": "True", "reason": "Told", "message": "so", "lastTransitionTime": "2026-01-01T00:00:00Z" }] }] })
    };
    // It fails once: the claim loses it, and the pod is tried again.
    status(&cluster, kinds::RESOURCE_CLAIMS, &claim, tell("Failed")).await;
    let failed =
        "running PreBind plugin \"DynamicResources\": claim c binding failed: reason=Told, message=\"so\"";
    let told = |events: &[std::sync::Arc<api::Object>], what: &str| {
        let mut events = events.iter().map(|event| event.decode::<Value>().unwrap());
        events.any(|event| event["message"].as_str().is_some_and(|message| message.contains(what)))
    };
    cluster.until_all(kinds::EVENTS, "default", |events| told(events, failed)).await;
    cluster
        .until_all(kinds::EVENTS, "default", |events| told(events, "deallocation of ResourceClaim completed"))
        .await;
    let again =
        |held: &Value| allocated(held) && held["status"]["devices"].as_array().is_none_or(Vec::is_empty);
    cluster.until(kinds::RESOURCE_CLAIMS, &claim, again).await;
    status(&cluster, kinds::RESOURCE_CLAIMS, &claim, tell("Ready")).await;
    cluster.until(kinds::PODS, &key, runs).await;
}

/// The class stands for `example.com/gpu`.
async fn standing_class(cluster: &Cluster) {
    class(cluster).await;
    let spec = json!({ "spec": { "extendedResourceName": "example.com/gpu" } });
    cluster.merge(&kinds::DEVICE_CLASSES, &Key::new("", "gpu"), spec).await;
}

async fn pod_asking(cluster: &Cluster, name: &str, resource: &str, count: &str) -> Key {
    let asked = json!({ resource: count });
    let container = json!({ "name": "c", "image": "i", "resources": { "requests": asked, "limits": asked } });
    let body = json!({ "metadata": { "name": name }, "spec": { "containers": [container] } });
    cluster.create(&kinds::PODS, "default", body).await.key()
}

/// The claims that were made for extended resources.
async fn special(cluster: &Cluster, count: usize) -> Vec<Value> {
    let claims = cluster.until_all(kinds::RESOURCE_CLAIMS, "default", |claims| claims.len() == count).await;
    claims.iter().map(|claim| claim.decode().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extended_resource_is_had_as_devices_where_a_class_stands_for_it() {
    let cluster = start().await;
    node(&cluster, "n1", "1").await;
    slice(&cluster, "n1", &["a", "b"]).await;
    let first = pod_asking(&cluster, "first", "example.com/gpu", "2").await;
    let none = "0/1 nodes are available: 1 Insufficient example.com/gpu. preemption: \
                0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    cluster.until(kinds::PODS, &first, says(none)).await;
    standing_class(&cluster).await;
    let placed = cluster.until(kinds::PODS, &first, runs).await;
    let claims = special(&cluster, 1).await;
    let (claim, meta) = (&claims[0], &claims[0]["metadata"]);
    let name = meta["name"].as_str().unwrap();
    assert!(name.starts_with("first-extended-resources-"), "{name}");
    assert_eq!(meta["annotations"], json!({ "resource.kubernetes.io/extended-resource-claim": "true" }));
    let owner = json!({ "apiVersion": "v1", "kind": "Pod", "name": "first", "uid": placed["metadata"]["uid"],
        "controller": true });
    assert_eq!(meta["ownerReferences"], json!([owner]));
    assert_eq!(meta["finalizers"], json!(["resource.kubernetes.io/delete-protection"]));
    let exactly = json!({ "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2 });
    let request = json!({ "name": "container-0-request-0", "exactly": exactly });
    assert_eq!(claim["spec"]["devices"]["requests"], json!([request]));
    let results = claim["status"]["allocation"]["devices"]["results"].as_array().unwrap();
    assert_eq!(results.iter().map(|got| got["device"].clone()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(claim["status"]["reservedFor"][0]["uid"], placed["metadata"]["uid"]);
    let mapping = json!({ "containerName": "c", "resourceName": "example.com/gpu",
        "requestName": "container-0-request-0" });
    assert_eq!(
        placed["status"]["extendedResourceClaimStatus"],
        json!({ "resourceClaimName": name, "requestMappings": [mapping] })
    );

    // By the name of the class, too; nothing is left until the first pod's claim goes.
    let second = pod_asking(&cluster, "second", "deviceclass.resource.kubernetes.io/gpu", "1").await;
    cluster.until(kinds::PODS, &second, says(NONE_LEFT)).await;
    let held = Key::new("default", name);
    cluster.client.delete(&kinds::PODS.gvr(), &first, DeleteOptions::default()).await.unwrap();
    cluster.merge(&kinds::RESOURCE_CLAIMS, &held, json!({ "metadata": { "finalizers": null } })).await;
    cluster.client.delete(&kinds::RESOURCE_CLAIMS.gvr(), &held, DeleteOptions::default()).await.unwrap();
    cluster.until(kinds::PODS, &second, runs).await;
    let claims = special(&cluster, 1).await;
    assert_eq!(claims[0]["metadata"]["ownerReferences"][0]["name"], "second");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_offers_the_resource_itself_needs_no_claim() {
    let cluster = start().await;
    standing_class(&cluster).await;
    node(&cluster, "n1", "1").await;
    let offers = json!({ "status": { "allocatable": { "example.com/gpu": "1" }, "capacity": { "example.com/gpu": "1" } } });
    let key = Key::new("", "n1");
    cluster.client.patch(&kinds::NODES.gvr(), &key, "status", PatchType::Merge, &offers).await.unwrap();
    let first = pod_asking(&cluster, "first", "example.com/gpu", "1").await;
    let placed = cluster.until(kinds::PODS, &first, runs).await;
    assert!(placed["status"]["extendedResourceClaimStatus"].is_null());
    let full = pod_asking(&cluster, "second", "example.com/gpu", "1").await;
    cluster.until(kinds::PODS, &full, |held| condition(held, "PodScheduled").is_some()).await;
    assert!(special(&cluster, 0).await.is_empty());
    // Another node has it as devices.
    node(&cluster, "n2", "1").await;
    slice(&cluster, "n2", &["a"]).await;
    let placed = cluster.until(kinds::PODS, &full, runs).await;
    assert_eq!(placed["spec"]["nodeName"], "n2");
    assert_eq!(special(&cluster, 1).await[0]["status"]["allocation"]["devices"]["results"][0]["pool"], "n2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_for_extended_resources_goes_with_the_attempt_that_failed() {
    let cluster = start().await;
    standing_class(&cluster).await;
    slice(&cluster, "n1", &["a"]).await;
    let closed = close_bindings(&cluster).await;
    let key = pod_asking(&cluster, "p", "example.com/gpu", "1").await;
    let waits = cluster.until(kinds::PODS, &key, Value::is_object).await;
    // An attempt before has left one over: it has the device, and is deleted before anything else.
    let owner = json!([{ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": waits["metadata"]["uid"], "controller": true }]);
    let mut stale = claim_body("p-extended-resources-stale", owner);
    stale["metadata"]["annotations"] = json!({ "resource.kubernetes.io/extended-resource-claim": "true" });
    stale["metadata"]["finalizers"] = json!(["resource.kubernetes.io/delete-protection"]);
    let stale = cluster.create(&kinds::RESOURCE_CLAIMS, "default", stale).await.key();
    let result = json!({ "request": "r", "driver": DRIVER, "pool": "n1", "device": "a" });
    status(
        &cluster,
        kinds::RESOURCE_CLAIMS,
        &stale,
        json!({ "allocation": { "devices": { "results": [result] } } }),
    )
    .await;
    node(&cluster, "n1", "1").await;
    let told = |events: &[std::sync::Arc<api::Object>], what: &str| {
        let mut events = events.iter().map(|event| event.decode::<Value>().unwrap());
        events.any(|event| event["message"].as_str().is_some_and(|message| message.contains(what)))
    };
    let left = "1 cannot schedule extended resource claim. deletion of ResourceClaim completed, preemption: ";
    cluster.until_all(kinds::EVENTS, "default", |events| told(events, left)).await;
    cluster.until_all(kinds::EVENTS, "default", |events| told(events, "running Bind plugin")).await;
    let names = |claims: &[std::sync::Arc<api::Object>]| -> Vec<String> {
        claims.iter().map(|claim| claim.meta().name.clone()).collect()
    };
    let gone = |claims: &[std::sync::Arc<api::Object>]| !names(claims).contains(&stale.name);
    cluster.until_all(kinds::RESOURCE_CLAIMS, "default", gone).await;
    cluster.client.delete(&BINDINGS.gvr(), &closed, DeleteOptions::default()).await.unwrap();
    let placed = cluster.until(kinds::PODS, &key, runs).await;
    let claims = special(&cluster, 1).await;
    let named = &placed["status"]["extendedResourceClaimStatus"]["resourceClaimName"];
    assert_eq!(*named, claims[0]["metadata"]["name"]);
}
