//! Manifests of retired versions, as old tutorials and charts have them.

use http::Method;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::http_front::{JSON, get, write};

/// Where a manifest is sent, itself, where the same object is now, and a field of it there with its value.
struct Old {
    path: &'static str,
    object: Value,
    now: &'static str,
    field: (&'static str, Value),
}

fn template() -> Value {
    json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}})
}

fn workloads() -> Vec<Old> {
    let job = json!({"spec": {"containers": [{"name": "c", "image": "x:1"}], "restartPolicy": "Never"}});
    vec![
        Old {
            path: "/apis/apps/v1beta1/namespaces/default/statefulsets",
            object: json!({"spec": {"serviceName": "s", "template": template()}}),
            now: "/apis/apps/v1/namespaces/default/statefulsets",
            field: ("/spec/updateStrategy/type", json!("OnDelete")),
        },
        Old {
            path: "/apis/apps/v1beta2/namespaces/default/daemonsets",
            object: json!({"spec": {"selector": {"matchLabels": {"app": "x"}}, "template": template()}}),
            now: "/apis/apps/v1/namespaces/default/daemonsets",
            field: ("/spec/updateStrategy/rollingUpdate/maxUnavailable", json!(1)),
        },
        Old {
            path: "/apis/extensions/v1beta1/namespaces/default/replicasets",
            object: json!({"spec": {"template": template()}}),
            now: "/apis/apps/v1/namespaces/default/replicasets",
            field: ("/spec/selector/matchLabels/app", json!("x")),
        },
        Old {
            path: "/apis/batch/v1beta1/namespaces/default/cronjobs",
            object: json!({"spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": {"template": job}}}}),
            now: "/apis/batch/v1/namespaces/default/cronjobs",
            field: ("/spec/concurrencyPolicy", json!("Allow")),
        },
        Old {
            path: "/apis/policy/v1beta1/namespaces/default/poddisruptionbudgets",
            object: json!({"spec": {"minAvailable": 1, "selector": {}}}),
            now: "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
            field: ("/spec/selector/matchExpressions/0/operator", json!("Exists")),
        },
        Old {
            path: "/apis/autoscaling/v2beta1/namespaces/default/horizontalpodautoscalers",
            object: json!({"spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"},
                "metrics": [{"type": "Resource", "resource": {"name": "memory", "targetAverageUtilization": 70}}]}}),
            now: "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers",
            field: ("/spec/metrics/0/resource/target/averageUtilization", json!(70)),
        },
    ]
}

fn others() -> Vec<Old> {
    let hook = json!({"name": "w.example.com", "sideEffects": "None",
        "clientConfig": {"url": "https://example.com/w"}});
    let networking = "/apis/networking.k8s.io/v1";
    vec![
        Old {
            path: "/apis/extensions/v1beta1/namespaces/default/networkpolicies",
            object: json!({"spec": {"podSelector": {}}}),
            now: "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
            field: ("/spec/podSelector", json!({})),
        },
        Old {
            path: "/apis/networking.k8s.io/v1beta1/ingressclasses",
            object: json!({"spec": {"controller": "example.com/c"}}),
            now: "/apis/networking.k8s.io/v1/ingressclasses",
            field: ("/apiVersion", json!(networking.trim_start_matches("/apis/"))),
        },
        Old {
            path: "/apis/rbac.authorization.k8s.io/v1beta1/clusterroles",
            object: json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}),
            now: "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            field: ("/rules/0/verbs/0", json!("get")),
        },
        Old {
            path: "/apis/storage.k8s.io/v1beta1/storageclasses",
            object: json!({"provisioner": "example.com/p"}),
            now: "/apis/storage.k8s.io/v1/storageclasses",
            field: ("/reclaimPolicy", json!("Delete")),
        },
        Old {
            path: "/apis/scheduling.k8s.io/v1beta1/priorityclasses",
            object: json!({"value": 5}),
            now: "/apis/scheduling.k8s.io/v1/priorityclasses",
            field: ("/preemptionPolicy", json!("PreemptLowerPriority")),
        },
        Old {
            path: "/apis/coordination.k8s.io/v1beta1/namespaces/default/leases",
            object: json!({"spec": {"holderIdentity": "h"}}),
            now: "/apis/coordination.k8s.io/v1/namespaces/default/leases",
            field: ("/spec/holderIdentity", json!("h")),
        },
        Old {
            path: "/apis/discovery.k8s.io/v1beta1/namespaces/default/endpointslices",
            object: json!({"addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.1"],
                "topology": {"topology.kubernetes.io/zone": "z"}}]}),
            now: "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
            field: ("/endpoints/0/zone", json!("z")),
        },
        Old {
            path: "/apis/admissionregistration.k8s.io/v1beta1/validatingwebhookconfigurations",
            object: json!({ "webhooks": [hook] }),
            now: "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
            field: ("/webhooks/0/timeoutSeconds", json!(30)),
        },
    ]
}

#[tokio::test]
async fn an_old_manifest_is_taken_with_a_warning_and_read_in_both_versions() {
    let cluster = Cluster::start().await;
    let kinds = api::catalog::Catalog::builtin();
    for old in workloads().into_iter().chain(others()) {
        let path = old.path;
        let mut parts = path.trim_start_matches("/apis/").split('/');
        let [group, version] = [parts.next().unwrap(), parts.next().unwrap()];
        let plural = path.rsplit('/').next().unwrap();
        let row = kinds.get(&api::GroupVersionResource::new(group, version, plural)).unwrap();
        let mut object = old.object;
        object["apiVersion"] = json!(row.api_version());
        object["kind"] = json!(row.kind);
        object["metadata"] = json!({"name": "old-one"});
        let created = write(
            &cluster,
            Method::POST,
            &format!("{path}?fieldValidation=Strict"),
            JSON,
            object.to_string(),
        )
        .await;
        assert_eq!(created.code, 201, "{path}: {}", String::from_utf8_lossy(&created.body));
        assert_eq!(created.json()["apiVersion"], row.api_version(), "{path}");
        let warning = format!("299 - \"{}\"", row.deprecation.as_deref().unwrap());
        assert!(created.warnings().contains(&warning.as_str()), "{path}: {:?}", created.warnings());
        let now = get(&cluster, &format!("{}/old-one", old.now), JSON).await;
        assert_eq!(now.json()["apiVersion"], row.storage_api_version());
        assert_eq!(now.json().pointer(old.field.0), Some(&old.field.1), "{path}: {}", now.json());
        assert!(now.warnings().is_empty(), "{path}: {:?}", now.warnings());
        // What the old version shows, written back, changes nothing.
        let one = format!("{path}/old-one");
        let shown = get(&cluster, &one, JSON).await;
        let again = write(&cluster, Method::PUT, &one, JSON, shown.json().to_string()).await;
        assert_eq!(again.code, 200, "{path}: {}", String::from_utf8_lossy(&again.body));
        assert_eq!(
            again.json()["metadata"]["resourceVersion"],
            shown.json()["metadata"]["resourceVersion"],
            "{path}"
        );
        let list = get(&cluster, path, JSON).await.json();
        let mut names = list["items"].as_array().unwrap().iter().map(|item| &item["metadata"]["name"]);
        assert!(names.any(|name| name == "old-one"), "{path}");
    }
}

#[tokio::test]
async fn the_health_of_components_is_computed() {
    let cluster = Cluster::start().await;
    let list = get(&cluster, "/api/v1/componentstatuses", JSON).await;
    assert_eq!((list.code, &list.json()["kind"]), (200, &json!("ComponentStatusList")));
    assert_eq!(list.warnings(), ["299 - \"v1 ComponentStatus is deprecated in v1.19+\""]);
    let names: Vec<Value> = list.json()["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["metadata"]["name"].clone())
        .collect();
    assert_eq!(names, ["controller-manager", "scheduler", "etcd-0"]);
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let store = get(&cluster, "/api/v1/componentstatuses/etcd-0", table).await;
    assert_eq!(store.json()["rows"][0]["cells"], json!(["etcd-0", "Healthy", "ok", ""]));
    assert_eq!(get(&cluster, "/api/v1/componentstatuses/none", JSON).await.code, 404);
    assert_eq!(get(&cluster, "/api/v1/componentstatuses?watch=1", JSON).await.code, 405);
}
