//! The built-in admission plugins, each shown through the API.

use http::Method;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::http_front::{Answer, JSON, get, write};

const PODS: &str = "/api/v1/namespaces/shop/pods";
const CLAIMS: &str = "/api/v1/namespaces/shop/persistentvolumeclaims";
const STORAGE_CLASSES: &str = "/apis/storage.k8s.io/v1/storageclasses";
const PRIORITY_CLASSES: &str = "/apis/scheduling.k8s.io/v1/priorityclasses";
const MERGE: &str = "application/merge-patch+json";

pub(crate) async fn post(cluster: &Cluster, path: &str, body: Value) -> Answer {
    write(cluster, Method::POST, path, JSON, body.to_string()).await
}

/// What is made of an object that is posted.
pub(crate) async fn made(cluster: &Cluster, path: &str, body: Value) -> Value {
    let answer = post(cluster, path, body).await;
    assert_eq!(answer.code, 201, "{path}: {}", answer.message());
    answer.json()
}

/// The words with which an object is refused.
pub(crate) async fn refused(cluster: &Cluster, path: &str, body: Value) -> String {
    let answer = post(cluster, path, body).await;
    assert_eq!(answer.code, 403, "{path}: {}", answer.message());
    answer.message()
}

/// A cluster with namespace `shop`, whose service account is there.
pub(crate) async fn shop() -> Cluster {
    let cluster = Cluster::start().await;
    made(&cluster, "/api/v1/namespaces", json!({ "metadata": { "name": "shop" } })).await;
    made(&cluster, "/api/v1/namespaces/shop/serviceaccounts", json!({ "metadata": { "name": "default" } }))
        .await;
    cluster
}

pub(crate) async fn label(cluster: &Cluster, labels: Value) -> Answer {
    let body = json!({ "metadata": { "labels": labels } });
    write(cluster, Method::PATCH, "/api/v1/namespaces/shop", MERGE, body.to_string()).await
}

pub(crate) fn pod(name: &str, resources: Value) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "containers": [
        { "name": "c", "image": "a:1", "resources": resources },
    ] } })
}

#[tokio::test]
async fn a_token_is_not_mounted_where_the_account_or_the_pod_declines() {
    let cluster = shop().await;
    for account in [None, Some(true), Some(false)] {
        let name = format!("account-{}", account.map_or("silent".to_owned(), |mounts| mounts.to_string()));
        let body = json!({ "metadata": { "name": name }, "automountServiceAccountToken": account });
        made(&cluster, "/api/v1/namespaces/shop/serviceaccounts", body).await;
        for declared in [None, Some(true), Some(false)] {
            let mut body = pod("p", json!({}));
            body["spec"]["serviceAccountName"] = json!(name);
            body["spec"]["automountServiceAccountToken"] = json!(declared);
            let made = made(&cluster, &format!("{PODS}?dryRun=All"), body).await;
            // The pod's word goes before the account's.
            let expected = declared.or(account).unwrap_or(true);
            let mounts = made["spec"]["containers"][0]["volumeMounts"].as_array().into_iter().flatten();
            let places: Vec<_> = mounts.map(|mount| mount["mountPath"].as_str().unwrap()).collect();
            let place = "/var/run/secrets/kubernetes.io/serviceaccount";
            assert_eq!(places, if expected { vec![place] } else { vec![] }, "{account:?} {declared:?}");
            assert_eq!(made["spec"]["volumes"].is_array(), expected, "{account:?} {declared:?}");
        }
    }
}

#[tokio::test]
async fn limit_ranges_give_defaults_and_bounds() {
    let cluster = shop().await;
    let limits = json!({ "metadata": { "name": "l" }, "spec": { "limits": [
        { "type": "Container", "max": { "memory": "1Gi" }, "default": { "cpu": "1", "memory": "512Mi" },
          "defaultRequest": { "cpu": "500m", "memory": "256Mi" } },
        { "type": "PersistentVolumeClaim", "max": { "storage": "5Gi" } },
    ] } });
    made(&cluster, "/api/v1/namespaces/shop/limitranges", limits).await;
    let plain = made(&cluster, PODS, pod("plain", json!({}))).await;
    assert_eq!(
        plain["spec"]["containers"][0]["resources"],
        json!({ "limits": { "cpu": "1", "memory": "512Mi" }, "requests": { "cpu": "500m", "memory": "256Mi" } })
    );
    assert_eq!(
        plain["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu, memory request for container c; cpu, memory limit for container c"
    );
    let large = pod("large", json!({ "limits": { "memory": "1536Mi" } }));
    assert_eq!(
        refused(&cluster, PODS, large).await,
        "pods \"large\" is forbidden: maximum memory usage per Container is 1Gi, but limit is 1536Mi"
    );
    let claim = json!({ "metadata": { "name": "d" }, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "6Gi" } },
    } });
    assert_eq!(
        refused(&cluster, CLAIMS, claim).await,
        "persistentvolumeclaims \"d\" is forbidden: maximum storage usage per PersistentVolumeClaim is 5Gi, but \
         request is 6Gi"
    );
}

#[tokio::test]
async fn pod_security_refuses_pods_and_warns_of_workloads() {
    let cluster = shop().await;
    made(&cluster, PODS, pod("old", json!({}))).await;
    // Admission asks the cache, which shows the pod once a list does.
    assert_eq!(get(&cluster, PODS, JSON).await.json()["items"][0]["metadata"]["name"], "old");
    let labelled = label(&cluster, json!({ "pod-security.kubernetes.io/enforce": "restricted" })).await;
    assert_eq!(labelled.code, 200, "{}", labelled.message());
    let warnings = labelled.warnings();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains(
        "existing pods in namespace \\\"shop\\\" violate the new PodSecurity enforce level \\\"restricted:latest\\\""
    ));
    assert!(warnings[1].contains("old: allowPrivilegeEscalation != false, unrestricted capabilities"));

    let why = refused(&cluster, PODS, pod("new", json!({}))).await;
    assert!(
        why.starts_with(
            "pods \"new\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false \
             (container \"c\" must set securityContext.allowPrivilegeEscalation=false), "
        ),
        "{why}"
    );
    let deployment = json!({ "metadata": { "name": "d" }, "spec": {
        "selector": { "matchLabels": { "a": "b" } },
        "template": { "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "a" }] } },
    } });
    let warned = post(&cluster, "/apis/apps/v1/namespaces/shop/deployments", deployment).await;
    assert_eq!(warned.code, 201);
    assert!(warned.warnings()[0].contains("would violate PodSecurity \\\"restricted:latest\\\": "));

    let wrong = label(&cluster, json!({ "pod-security.kubernetes.io/enforce": "strict" })).await;
    assert_eq!(
        (wrong.code, wrong.message().as_str()),
        (
            422,
            "Namespace \"shop\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \
             \"strict\": must be one of privileged, baseline, restricted"
        )
    );
}

#[tokio::test]
async fn priority_classes_give_numbers_and_one_is_the_default() {
    let cluster = shop().await;
    let class = |name: &str, value: i64| json!({ "metadata": { "name": name }, "value": value, "globalDefault": true, "preemptionPolicy": "Never" });
    made(&cluster, PRIORITY_CLASSES, class("usual", 10)).await;
    assert_eq!(
        refused(&cluster, PRIORITY_CLASSES, class("other", 11)).await,
        "priorityclasses.scheduling.k8s.io \"other\" is forbidden: PriorityClass usual is already marked as default. \
         Only one default can exist"
    );
    let made = made(&cluster, PODS, pod("p", json!({}))).await;
    let spec = &made["spec"];
    assert_eq!((&spec["priority"], &spec["priorityClassName"]), (&json!(10), &json!("usual")));
    assert_eq!(spec["preemptionPolicy"], "Never");
    let mut wrong = pod("q", json!({}));
    wrong["spec"]["priorityClassName"] = "none".into();
    let why = refused(&cluster, PODS, wrong).await;
    assert_eq!(why, "pods \"q\" is forbidden: no PriorityClass with name none was found");
}

#[tokio::test]
async fn default_classes_are_given_and_claims_grow_where_their_class_allows() {
    let cluster = shop().await;
    let class = |name: &str, default: &str, grows: bool| {
        json!({
            "metadata": { "name": name, "annotations": { "storageclass.kubernetes.io/is-default-class": default } },
            "provisioner": "example.com/disk", "allowVolumeExpansion": grows,
        })
    };
    made(&cluster, STORAGE_CLASSES, class("slow", "false", true)).await;
    made(&cluster, STORAGE_CLASSES, class("fast", "true", false)).await;
    let claim = json!({ "metadata": { "name": "d" }, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } },
    } });
    let claim = made(&cluster, CLAIMS, claim).await;
    assert_eq!(claim["spec"]["storageClassName"], "fast");
    let grow = json!({ "spec": { "resources": { "requests": { "storage": "2Gi" } } } }).to_string();
    let path = format!("{CLAIMS}/d");
    let bound = json!({ "status": { "phase": "Bound" } }).to_string();
    assert_eq!(write(&cluster, Method::PATCH, &format!("{path}/status"), MERGE, bound).await.code, 200);
    let stiff = write(&cluster, Method::PATCH, &path, MERGE, grow).await;
    assert_eq!(
        stiff.message(),
        "persistentvolumeclaims \"d\" is forbidden: only dynamically provisioned pvc can be resized and the \
         storageclass that provisions the pvc must support resize"
    );

    let classes = "/apis/networking.k8s.io/v1/ingressclasses";
    let class = json!({ "spec": { "controller": "example.com/c" }, "metadata": {
        "name": "web", "annotations": { "ingressclass.kubernetes.io/is-default-class": "true" } } });
    made(&cluster, classes, class).await;
    let ingress = json!({ "metadata": { "name": "i" }, "spec": { "defaultBackend": {
        "service": { "name": "s", "port": { "number": 80 } } } } });
    let ingress = made(&cluster, "/apis/networking.k8s.io/v1/namespaces/shop/ingresses", ingress).await;
    assert_eq!(ingress["spec"]["ingressClassName"], "web");
}

#[tokio::test]
async fn runtime_classes_give_overhead_and_places() {
    let cluster = shop().await;
    let class = json!({
        "metadata": { "name": "vm" }, "handler": "vm", "overhead": { "podFixed": { "memory": "64Mi" } },
        "scheduling": { "nodeSelector": { "vm": "yes" } },
    });
    made(&cluster, "/apis/node.k8s.io/v1/runtimeclasses", class).await;
    let mut wanted = pod("p", json!({}));
    wanted["spec"]["runtimeClassName"] = "vm".into();
    let given = made(&cluster, PODS, wanted.clone()).await;
    assert_eq!(given["spec"]["overhead"], json!({ "memory": "64Mi" }));
    assert_eq!(given["spec"]["nodeSelector"], json!({ "vm": "yes" }));
    wanted["metadata"]["name"] = "q".into();
    wanted["spec"]["overhead"] = json!({ "memory": "1Mi" });
    assert_eq!(
        refused(&cluster, PODS, wanted).await,
        "pods \"q\" is forbidden: pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"
    );
    let mut unknown = pod("r", json!({}));
    unknown["spec"]["runtimeClassName"] = "none".into();
    let why = refused(&cluster, PODS, unknown).await;
    assert_eq!(why, "pods \"r\" is forbidden: pod rejected: RuntimeClass \"none\" not found");
}

#[tokio::test]
async fn new_nodes_are_tainted_and_their_pods_know_their_zone() {
    let cluster = shop().await;
    let node = json!({ "metadata": { "name": "n", "labels": { "topology.kubernetes.io/zone": "z" } } });
    let node = made(&cluster, "/api/v1/nodes", node).await;
    assert_eq!(
        node["spec"]["taints"],
        json!([{ "key": "node.kubernetes.io/not-ready", "effect": "NoSchedule" }])
    );
    made(&cluster, PODS, pod("p", json!({}))).await;
    let binding = json!({ "metadata": { "name": "p" }, "target": { "kind": "Node", "name": "n" } });
    made(&cluster, &format!("{PODS}/p/binding"), binding).await;
    let bound = get(&cluster, &format!("{PODS}/p"), JSON).await.json();
    assert_eq!(bound["metadata"]["labels"]["topology.kubernetes.io/zone"], "z");
}
