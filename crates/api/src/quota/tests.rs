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

fn stored(value: Value) -> std::sync::Arc<crate::Object> {
    std::sync::Arc::new(crate::Object::parse(serde_json::to_vec(&value).unwrap().into()).unwrap())
}

#[test]
fn devices_count_as_what_their_class_stands_for_unless_a_pod_counts_for_them() {
    const CLAIMS: Counted<'_> = Counted { group: "resource.k8s.io", resource: "resourceclaims" };
    let (gpu, implicit) = ("requests.example.com/gpu", "requests.deviceclass.resource.kubernetes.io/gpu");
    let classes = || {
        let class = |name: &str, spec: Value| stored(json!({ "metadata": { "name": name }, "spec": spec }));
        vec![class("gpu", json!({ "extendedResourceName": "example.com/gpu" })), class("big", json!({}))]
    };
    let claim = |name: &str, created: &str, uid: Value| {
        let owner =
            json!([{ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true }]);
        json!({ "metadata": { "name": name, "creationTimestamp": created, "ownerReferences": owner,
            "annotations": { "resource.kubernetes.io/extended-resource-claim": "true" } },
            "spec": { "devices": { "requests": [{ "exactly": { "deviceClassName": "gpu", "count": 3 } }] } } })
    };
    let pod = |status: Value, resource: &str| {
        let container = json!({ "name": "c", "resources": { "requests": { resource: "2" } } });
        json!({ "metadata": { "name": "p", "uid": "u" }, "spec": { "containers": [container] }, "status": status })
    };
    let own = claim("c", "2026-01-01T00:00:01Z", "u".into());
    let mut bare = own.clone();
    bare["metadata"]["annotations"] = Value::Null;
    let named = |name: &str| json!({ "extendedResourceClaimStatus": { "resourceClaimName": name } });
    let asks = "example.com/gpu";
    let (earlier, later) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:02Z");
    for (counted, pod, others, of_gpu, of_implicit) in [
        (&own, None, vec![], "3", "3"),
        (&own, Some(pod(Value::Null, asks)), vec![], "1", "3"),
        (&own, Some(pod(Value::Null, "deviceclass.resource.kubernetes.io/gpu")), vec![], "3", "1"),
        (&own, Some(pod(named("c"), asks)), vec![("b", earlier)], "1", "3"),
        (&own, Some(pod(named("b"), asks)), vec![], "3", "3"),
        (&own, Some(pod(Value::Null, asks)), vec![("b", later)], "1", "3"),
        (&own, Some(pod(Value::Null, asks)), vec![("b", earlier)], "3", "3"),
        (&own, Some(pod(Value::Null, asks)), vec![("b", "2026-01-01T00:00:01Z")], "3", "3"),
        (&own, Some(pod(json!({ "phase": "Failed" }), asks)), vec![], "3", "3"),
        (&claim("c", earlier, "other".into()), Some(pod(Value::Null, asks)), vec![], "3", "3"),
        (&bare, Some(pod(Value::Null, asks)), vec![], "3", "3"),
    ] {
        let pods = |name: &str| pod.clone().filter(|_| name == "p").map(stored);
        let mut all: Vec<Value> =
            others.iter().map(|(name, created)| claim(name, created, "u".into())).collect();
        all.push(counted.clone());
        let claims = || all.iter().cloned().map(stored).collect();
        let around = Around::new(&classes, &pods, &claims);
        let used = to_json(&CLAIMS.usage_among(counted, Timestamp::UNIX_EPOCH, &around));
        assert_eq!(used["gpu.deviceclass.resource.k8s.io/devices"], "3");
        assert_eq!(
            (&used[gpu], &used[implicit]),
            (&json!(of_gpu), &json!(of_implicit)),
            "{pod:?} {others:?}"
        );
        for (name, tracked) in [
            (gpu, true),
            (implicit, true),
            ("requests.deviceclass.resource.kubernetes.io/big", true),
            ("requests.deviceclass.resource.kubernetes.io/none", false),
            ("requests.example.com/none", false),
            ("requests.cpu", false),
            ("example.com/gpu", false),
        ] {
            assert_eq!(CLAIMS.is_tracked_among(name, &around), tracked, "{name}");
        }
        assert!(!Counted { group: "", resource: "secrets" }.is_tracked_among(gpu, &around));
    }
    assert!(PODS.is_tracked_as(implicit) && !PODS.is_tracked_as("requests.kubernetes.io/gpu"));
    let used = used("", "pods", pod(Value::Null, "deviceclass.resource.kubernetes.io/gpu"));
    assert_eq!(used[implicit], "2");
}
