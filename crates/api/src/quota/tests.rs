//! What objects use, from upstream's documented cases.

use serde_json::json;

use super::*;
use crate::resources::to_json;

const PODS: Counted<'_> = Counted { group: "", resource: "pods" };
const CLAIMS: Counted<'_> = Counted { group: "", resource: "persistentvolumeclaims" };

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn used(group: &str, resource: &str, object: Value) -> Value {
    to_json(&Counted { group, resource }.usage(&object, now()))
}

fn container(name: &str) -> Value {
    json!({ "name": name, "resources": {
        "requests": { "cpu": "100m", "memory": "1Gi", "example.com/gpu": "2", "hugepages-2Mi": "4Mi" },
        "limits": { "cpu": "200m" },
    } })
}

#[test]
fn pods_use_what_their_containers_ask_for() {
    let pod = json!({ "spec": { "containers": [container("a")] } });
    assert_eq!(
        used("", "pods", pod),
        json!({
            "count/pods": "1", "pods": "1", "cpu": "100m", "requests.cpu": "100m", "limits.cpu": "200m",
            "memory": "1Gi", "requests.memory": "1Gi", "hugepages-2Mi": "4Mi", "requests.hugepages-2Mi": "4Mi",
            "requests.example.com/gpu": "2",
        })
    );
}

#[test]
fn pods_that_ended_are_objects_only() {
    let ended = json!({ "status": { "phase": "Succeeded" }, "spec": { "containers": [container("a")] } });
    assert_eq!(used("", "pods", ended), json!({ "count/pods": "1" }));
    let lost = |ends: &str| json!({ "metadata": { "deletionTimestamp": ends, "deletionGracePeriodSeconds": 30 }, "spec": {} });
    assert_eq!(used("", "pods", lost("2025-12-31T23:00:00Z")), json!({ "count/pods": "1" }));
    assert_eq!(used("", "pods", lost("2025-12-31T23:59:50Z")), json!({ "count/pods": "1", "pods": "1" }));
}

#[test]
fn services_use_ports_by_their_type() {
    let service = |spec: Value| used("", "services", json!({ "spec": spec }));
    let ports = json!([{ "port": 1 }, { "port": 2, "nodePort": 30000 }]);
    let counts = |spec| {
        let used = service(spec);
        (used["services.loadbalancers"].clone(), used["services.nodeports"].clone())
    };
    assert_eq!(counts(json!({ "type": "ClusterIP", "ports": ports })), (json!("0"), json!("0")));
    assert_eq!(counts(json!({ "type": "NodePort", "ports": ports })), (json!("0"), json!("2")));
    assert_eq!(counts(json!({ "type": "LoadBalancer", "ports": ports })), (json!("1"), json!("2")));
    let named = json!({ "type": "LoadBalancer", "ports": ports, "allocateLoadBalancerNodePorts": false });
    assert_eq!(counts(named), (json!("1"), json!("1")));
}

#[test]
fn claims_use_storage_of_their_class() {
    let claim =
        json!({ "spec": { "storageClassName": "gold", "resources": { "requests": { "storage": "10Gi" } } } });
    assert_eq!(
        used("", "persistentvolumeclaims", claim.clone()),
        json!({
            "count/persistentvolumeclaims": "1", "persistentvolumeclaims": "1", "requests.storage": "10Gi",
            "gold.storageclass.storage.k8s.io/persistentvolumeclaims": "1",
            "gold.storageclass.storage.k8s.io/requests.storage": "10Gi",
        })
    );
    let mut grown = claim;
    grown["status"] = json!({ "allocatedResources": { "storage": "20Gi" } });
    assert_eq!(used("", "persistentvolumeclaims", grown)["requests.storage"], "20Gi");
    assert!(CLAIMS.is_tracked_as("gold.storageclass.storage.k8s.io/requests.storage"));
    assert!(!CLAIMS.is_tracked_as("gold.storageclass.storage.k8s.io/cpu"));
}

#[test]
fn everything_is_counted_and_some_by_older_names() {
    assert_eq!(used("apps", "deployments", json!({})), json!({ "count/deployments.apps": "1" }));
    assert_eq!(used("", "secrets", json!({})), json!({ "count/secrets": "1", "secrets": "1" }));
    let widgets = Counted { group: "example.com", resource: "widgets" };
    assert!(widgets.is_tracked_as("count/widgets.example.com") && !widgets.is_tracked_as("widgets"));
    for name in ["cpu", "limits.memory", "requests.example.com/gpu", "hugepages-1Gi", "count/pods"] {
        assert!(PODS.is_tracked_as(name), "{name}");
    }
    for name in ["requests.storage", "secrets", "example.com/gpu", "count/secrets"] {
        assert!(!PODS.is_tracked_as(name), "{name}");
    }
    let claim = json!({ "spec": { "devices": { "requests": [
        { "exactly": { "deviceClassName": "gpu", "count": 2 } },
        { "firstAvailable": [{ "deviceClassName": "gpu" }, { "deviceClassName": "big", "allocationMode": "All" }] },
    ] } } });
    let used = used("resource.k8s.io", "resourceclaims", claim);
    assert_eq!(used["gpu.deviceclass.resource.k8s.io/devices"], "3");
    assert_eq!(used["big.deviceclass.resource.k8s.io/devices"], "32");
}

#[test]
fn scopes_choose_objects() {
    let pod = |spec: Value| json!({ "spec": spec });
    let scoped =
        |scope: &str, spec: Value| PODS.is_in_scope(&json!({ "spec": { "scopes": [scope] } }), &pod(spec));
    assert!(
        scoped("Terminating", json!({ "activeDeadlineSeconds": 0 })) && !scoped("Terminating", json!({}))
    );
    assert!(scoped("NotTerminating", json!({})));
    assert!(scoped("BestEffort", json!({ "containers": [{ "name": "a" }] })));
    assert!(scoped("NotBestEffort", json!({ "containers": [container("a")] })));
    let foreign = json!({ "affinity": { "podAntiAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [{ "podAffinityTerm": { "namespaces": ["x"] } }] } } });
    assert!(scoped("CrossNamespacePodAffinity", foreign) && !scoped("CrossNamespacePodAffinity", json!({})));
    let selected = |operator: &str, class: &str| {
        let quota = json!({ "spec": { "scopeSelector": { "matchExpressions": [
            { "scopeName": "PriorityClass", "operator": operator, "values": ["high"] } ] } } });
        PODS.is_in_scope(&quota, &pod(json!({ "priorityClassName": class })))
    };
    assert!(selected("In", "high") && !selected("In", "low") && !selected("In", ""));
    assert!(selected("NotIn", "low") && selected("NotIn", "") && !selected("NotIn", "high"));
    assert!(selected("Exists", "low") && selected("DoesNotExist", ""));
    let secrets = Counted { group: "", resource: "secrets" };
    assert!(!secrets.is_in_scope(&json!({ "spec": { "scopes": ["BestEffort"] } }), &json!({})));
    assert!(secrets.is_in_scope(&json!({}), &json!({})));
}

#[test]
fn containers_name_what_is_limited() {
    let pod = json!({ "spec": { "containers": [container("b"), { "name": "a" }] } });
    let why = unnamed(&pod, ["limits.cpu", "memory", "pods", "limits.memory"].into_iter());
    assert_eq!(why.unwrap(), "must specify limits.cpu for: a; limits.memory for: a,b; memory for: a");
    assert_eq!(unnamed(&pod, ["pods"].into_iter()), None);
    let mut whole = pod;
    whole["spec"]["resources"] = json!({ "limits": { "cpu": "1" } });
    assert_eq!(unnamed(&whole, ["memory"].into_iter()), None);
}

#[test]
fn where_only_objects_are_counted_what_is_in_them_does_not_matter() {
    let plain = json!({ "metadata": { "name": "x" } });
    for (group, resource) in
        [("", "secrets"), ("", "services"), ("", "persistentvolumeclaims"), ("apps", "deployments")]
    {
        let kind = Counted { group, resource };
        let used = kind.usage(&plain, now());
        let counters: Vec<&String> = used.keys().filter(|name| kind.counts_objects(name)).collect();
        assert!(counters.iter().any(|name| name.starts_with("count/")), "{resource}");
        assert!(counters.iter().all(|name| used[*name] == count(1)), "{resource}: {used:?}");
    }
    let claims = "gold.storageclass.storage.k8s.io/persistentvolumeclaims";
    assert!(!CLAIMS.counts_objects(claims) && !CLAIMS.counts_objects("requests.storage"));
    assert!(!PODS.counts_objects("pods") && PODS.counts_objects("count/pods"));
}
