//! What the catalog offers is what is served: verbs and subresources, and their bodies, checked against their kinds.

use http::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, signing_request};
use crate::http_front::{Answer, JSON, MAPS, get, write};

const PODS: &str = "/api/v1/namespaces/default/pods";
const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const MERGE: &str = "application/merge-patch+json";

async fn post(cluster: &Cluster, path: &str, body: &Value) -> Answer {
    write(cluster, Method::POST, path, JSON, body.to_string()).await
}

/// A cluster with a ServiceAccount, a pod without a node and a Deployment of two.
async fn furnished() -> Cluster {
    let cluster = Cluster::start().await;
    let objects = [
        (ACCOUNTS, json!({ "metadata": { "name": "default" } })),
        (
            PODS,
            json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "a:1" }] } }),
        ),
        (
            DEPLOYMENTS,
            json!({ "metadata": { "name": "web" }, "spec": {
                "replicas": 2, "selector": { "matchLabels": { "app": "web" } },
                "template": {
                    "metadata": { "labels": { "app": "web" } },
                    "spec": { "containers": [{ "name": "c", "image": "a:1" }] },
                },
            } }),
        ),
        (
            REQUESTS,
            json!({ "metadata": { "name": "csr" }, "spec": {
                "request": signing_request(), "signerName": "example.com/mine", "usages": ["client auth"],
            } }),
        ),
    ];
    for (path, object) in objects {
        let made = post(&cluster, path, &object).await;
        assert_eq!(made.code, 201, "{path}: {}", made.message());
    }
    cluster
}

#[tokio::test]
async fn what_a_row_does_not_offer_is_not_served() {
    let cluster = furnished().await;
    let map = json!({ "metadata": { "name": "x" } });
    assert_eq!(post(&cluster, MAPS, &map).await.code, 201);
    let one = format!("{MAPS}/x");
    for (method, path, code) in [
        (Method::DELETE, "/api/v1/namespaces".to_owned(), 405),
        (Method::GET, "/api/v1/namespaces/default/bindings".to_owned(), 405),
        (Method::GET, "/apis/authorization.k8s.io/v1/subjectaccessreviews".to_owned(), 405),
        (Method::POST, one.clone(), 405),
        (Method::GET, format!("{one}/status"), 404),
        (Method::GET, format!("{one}/log"), 404),
        (Method::PUT, format!("{one}/status"), 404),
        (Method::GET, format!("{one}/proxy"), 404),
        (Method::GET, format!("{PODS}/p/scale"), 404),
        (Method::POST, format!("{PODS}/p/ephemeralcontainers"), 405),
        (Method::DELETE, format!("{PODS}/p/exec"), 405),
        (Method::GET, format!("{PODS}/p/eviction"), 405),
        (Method::GET, "/api/v1/namespaces/default/finalize".to_owned(), 405),
        (Method::GET, "/api/v1/namespaces/default/services/x/proxy".to_owned(), 404),
    ] {
        let refused = write(&cluster, method.clone(), &path, JSON, map.to_string()).await;
        assert_eq!(refused.code, code, "{method} {path}: {}", refused.message());
    }
    let offered = get(&cluster, "/api/v1", JSON).await.json();
    let names: Vec<&str> = offered["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["name"].as_str().unwrap())
        .collect();
    assert!(names.contains(&"pods/log") && names.contains(&"nodes/proxy"), "{names:?}");
    assert!(!names.contains(&"pods/scale"), "{names:?}");
}

#[tokio::test]
async fn a_binding_that_is_posted_to_its_collection_binds() {
    let cluster = furnished().await;
    let bindings = "/api/v1/namespaces/default/bindings";
    let binding = json!({ "metadata": { "name": "p" }, "target": { "kind": "Node", "name": "n" } });
    let mut nameless = binding.clone();
    nameless["metadata"] = json!({});
    assert_eq!(post(&cluster, bindings, &nameless).await.code, 400);
    let bound = post(&cluster, bindings, &binding).await;
    assert_eq!((bound.code, &bound.json()["status"]), (201, &json!("Success")));
    let pod = get(&cluster, &format!("{PODS}/p"), JSON).await.json();
    assert_eq!(pod["spec"]["nodeName"], "n");
    assert_eq!(post(&cluster, bindings, &binding).await.code, 409);
}

#[tokio::test]
async fn a_pod_that_gates_hold_back_is_not_bound() {
    let cluster = furnished().await;
    let gated = json!({ "metadata": { "name": "gated", "labels": { "hash": "1" } }, "spec": {
        "schedulingGates": [{ "name": "example.com/wait" }],
        "topologySpreadConstraints": [{ "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {}, "matchLabelKeys": ["hash"] }],
        "containers": [{ "name": "c", "image": "i" }] } });
    let made = post(&cluster, PODS, &gated).await.json();
    assert_eq!(made["status"]["conditions"][0]["reason"], "SchedulingGated");
    let merged = &made["spec"]["topologySpreadConstraints"][0]["labelSelector"];
    assert_eq!(merged["matchExpressions"], json!([{ "key": "hash", "operator": "In", "values": ["1"] }]));
    let binding = |version: &str| json!({ "metadata": { "name": "gated", "resourceVersion": version }, "target": { "kind": "Node", "name": "n" } });
    let refused = post(&cluster, &format!("{PODS}/gated/binding"), &binding("")).await;
    assert_eq!(refused.code, 409);
    assert_eq!(
        refused.message(),
        "Operation cannot be fulfilled on pods/binding \"gated\": pod gated has non-empty .spec.schedulingGates"
    );
    let path = format!("{PODS}/gated");
    let open = json!({ "spec": { "schedulingGates": null } }).to_string();
    assert_eq!(write(&cluster, Method::PATCH, &path, MERGE, open).await.code, 200);
    let nominated = json!({ "status": { "nominatedNodeName": "m" } }).to_string();
    assert_eq!(write(&cluster, Method::PATCH, &format!("{path}/status"), MERGE, nominated).await.code, 200);
    // The version of the pod is that before both changes.
    let old = made["metadata"]["resourceVersion"].as_str().unwrap();
    assert_eq!(post(&cluster, &format!("{path}/binding"), &binding(old)).await.code, 409);
    assert_eq!(post(&cluster, &format!("{path}/binding"), &binding("")).await.code, 201);
    let bound = get(&cluster, &path, JSON).await.json();
    assert_eq!(bound["spec"]["nodeName"], "n");
    assert!(bound["status"].get("nominatedNodeName").is_none());
    let again = post(&cluster, &format!("{path}/binding"), &binding("")).await;
    assert!(again.message().contains("pods/binding \"gated\": pod gated is already assigned to node \"n\""));
}

#[tokio::test]
async fn a_body_of_wrong_types_changes_nothing() {
    let cluster = furnished().await;
    let scale = format!("{DEPLOYMENTS}/web/scale");
    let wrong = json!({ "spec": { "replicas": "3" } });
    let json_patch = json!([{ "op": "replace", "path": "/spec/replicas", "value": "3" }]);
    for (code, method, media, body) in [
        (422, Method::PATCH, MERGE, &wrong),
        (422, Method::PATCH, "application/strategic-merge-patch+json", &wrong),
        (422, Method::PATCH, "application/json-patch+json", &json_patch),
        (400, Method::PUT, JSON, &wrong),
    ] {
        let refused = write(&cluster, method, &scale, media, body.to_string()).await;
        assert_eq!(refused.code, code, "{media}: {}", refused.message());
    }
    assert_eq!(get(&cluster, &scale, JSON).await.json()["spec"]["replicas"], 2);
    let binding = json!({ "target": { "name": 3 } });
    assert_eq!(post(&cluster, &format!("{PODS}/p/binding"), &binding).await.code, 400);
    let eviction = json!({ "deleteOptions": { "gracePeriodSeconds": "0" } });
    assert_eq!(post(&cluster, &format!("{PODS}/p/eviction"), &eviction).await.code, 400);
    let options = json!({ "gracePeriodSeconds": "0" }).to_string();
    assert_eq!(write(&cluster, Method::DELETE, &format!("{PODS}/p"), JSON, options).await.code, 400);
    let pod = get(&cluster, &format!("{PODS}/p"), JSON).await.json();
    assert!(pod["metadata"].get("deletionTimestamp").is_none() && pod["spec"].get("nodeName").is_none());
    let token = json!({ "spec": { "expirationSeconds": "600" } });
    assert_eq!(post(&cluster, &format!("{ACCOUNTS}/default/token"), &token).await.code, 400);
    let finalize = json!({ "spec": { "finalizers": "kubernetes" } }).to_string();
    let path = "/api/v1/namespaces/default/finalize";
    assert_eq!(write(&cluster, Method::PUT, path, JSON, finalize).await.code, 400);
    let approval = json!({ "status": { "conditions": ["Approved"] } }).to_string();
    let path = format!("{REQUESTS}/csr/approval");
    assert_eq!(write(&cluster, Method::PATCH, &path, MERGE, approval).await.code, 422);
}

#[tokio::test]
async fn unknown_fields_are_warned_about_or_refused_everywhere() {
    let cluster = furnished().await;
    let unknown = json!({ "spec": { "x": 1 } });
    let mut asked = unknown.clone();
    asked["spec"]["nonResourceAttributes"] = json!({ "path": "/x", "verb": "get" });
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let token = format!("{ACCOUNTS}/default/token");
    for (path, unknown) in [(reviews, asked), (token.as_str(), unknown)] {
        let refused = post(&cluster, &format!("{path}?fieldValidation=Strict"), &unknown).await;
        assert_eq!(refused.code, 400, "{path}");
        let warned = post(&cluster, path, &unknown).await;
        assert_eq!((warned.code, warned.warnings().len()), (201, 1), "{path}");
        let ignored = post(&cluster, &format!("{path}?fieldValidation=Ignore"), &unknown).await;
        assert_eq!((ignored.code, ignored.warnings().len()), (201, 0), "{path}");
    }
    let scale = format!("{DEPLOYMENTS}/web/scale");
    let patch = json!({ "spec": { "replicas": 3, "x": 1 } }).to_string();
    let strict = format!("{scale}?fieldValidation=Strict");
    assert_eq!(write(&cluster, Method::PATCH, &strict, MERGE, patch.clone()).await.code, 422);
    let scaled = write(&cluster, Method::PATCH, &scale, MERGE, patch).await;
    assert_eq!(
        (scaled.code, scaled.warnings().len(), &scaled.json()["spec"]["replicas"]),
        (200, 1, &json!(3))
    );
}

#[tokio::test]
async fn a_decision_is_applied_and_changes_nothing_else() {
    let cluster = furnished().await;
    let intent = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": { "name": "csr" },
        "spec": { "request": "BBBB", "signerName": "example.com/mine" },
        "status": { "certificate": "AAAA", "conditions": [{ "type": "Approved", "status": "True", "reason": "Because" }] },
    });
    let path = format!("{REQUESTS}/csr/approval?fieldManager=judge");
    let approved =
        write(&cluster, Method::PATCH, &path, "application/apply-patch+yaml", intent.to_string()).await;
    assert_eq!(approved.code, 200, "{}", approved.message());
    let approved = approved.json();
    assert_eq!(approved["status"]["conditions"][0]["type"], "Approved");
    assert_eq!(
        (approved["status"].get("certificate"), &approved["spec"]["request"]),
        (None, &json!(signing_request()))
    );
    let owner = approved["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["manager"] == "judge");
    assert_eq!(owner.unwrap()["subresource"], "approval");
}

#[tokio::test]
async fn a_retired_deployment_scales_and_has_its_templates_labels() {
    let cluster = furnished().await;
    let old = "/apis/extensions/v1beta1/namespaces/default/deployments";
    let object = json!({ "metadata": { "name": "old" }, "spec": { "template": {
        "metadata": { "labels": { "app": "old" } }, "spec": { "containers": [{ "name": "c", "image": "a:1" }] },
    } } });
    let made = post(&cluster, old, &object).await;
    assert_eq!((made.code, &made.json()["metadata"]["labels"]), (201, &json!({ "app": "old" })));
    let patch = json!({ "spec": { "replicas": 5 } }).to_string();
    let scaled = write(&cluster, Method::PATCH, &format!("{old}/old/scale"), MERGE, patch).await;
    assert_eq!((scaled.code, &scaled.json()["apiVersion"]), (200, &json!("autoscaling/v1")));
    let new = get(&cluster, &format!("{DEPLOYMENTS}/old"), JSON).await.json();
    assert_eq!((&new["spec"]["replicas"], &new["metadata"]["generation"]), (&json!(5), &json!(2)));
}

#[tokio::test]
async fn an_access_review_asks_one_thing() {
    let cluster = Cluster::start().await;
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let resource = json!({ "verb": "list", "resource": "pods", "namespace": "default" });
    let node = |resource: &Value| {
        json!({ "spec": {
        "user": "system:node:a", "groups": ["system:nodes"], "resourceAttributes": resource,
    } })
    };
    let mut selected = resource.clone();
    selected["fieldSelector"] =
        json!({ "requirements": [{ "key": "spec.nodeName", "operator": "In", "values": ["a"] }] });
    for (asked, allowed) in [(&resource, false), (&selected, true)] {
        let answer = post(&cluster, reviews, &node(asked)).await;
        assert_eq!((answer.code, &answer.json()["status"]["allowed"]), (201, &json!(allowed)), "{asked}");
    }
    selected["fieldSelector"]["rawSelector"] = "spec.nodeName=a".into();
    assert_eq!(post(&cluster, reviews, &node(&selected)).await.code, 422);
    assert_eq!(post(&cluster, reviews, &json!({ "spec": { "user": "x" } })).await.code, 422);
    assert_eq!(
        post(&cluster, reviews, &json!({ "spec": { "resourceAttributes": resource } })).await.code,
        422
    );
}
