//! Requests that change one part of an object: ephemeral containers, resources, evictions under a budget, approvals.

use http::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, signing_request};
use crate::http_front::{Answer, JSON, get, write};

const PODS: &str = "/api/v1/namespaces/default/pods";
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const JOBS: &str = "/apis/batch/v1/namespaces/default/jobs";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const MERGE: &str = "application/merge-patch+json";

async fn post(cluster: &Cluster, path: &str, body: Value) -> Answer {
    write(cluster, Method::POST, path, JSON, body.to_string()).await
}

async fn patch(cluster: &Cluster, path: &str, media: &str, body: Value) -> Answer {
    write(cluster, Method::PATCH, path, media, body.to_string()).await
}

/// A cluster with a pod `p` of one container, labelled `app=p`.
async fn with_pod() -> Cluster {
    let cluster = Cluster::start().await;
    let account = json!({ "metadata": { "name": "default" } });
    assert_eq!(post(&cluster, "/api/v1/namespaces/default/serviceaccounts", account).await.code, 201);
    let pod = json!({ "metadata": { "name": "p", "labels": { "app": "p" } }, "spec": { "containers": [
        { "name": "c", "image": "a:1", "resources": { "requests": { "cpu": "1", "memory": "1Mi" } } } ] } });
    let made = post(&cluster, PODS, pod).await;
    assert_eq!(made.code, 201, "{}", made.message());
    cluster
}

fn causes(answer: &Answer) -> Vec<(String, String)> {
    let text = |cause: &Value, part: &str| cause[part].as_str().unwrap_or_default().to_owned();
    let causes = answer.json()["details"]["causes"].clone();
    let all = causes.as_array().into_iter().flatten();
    all.map(|cause| (text(cause, "field"), text(cause, "message"))).collect()
}

#[tokio::test]
async fn ephemeral_containers_come_by_their_own_way_and_stay() {
    let cluster = with_pod().await;
    let path = format!("{PODS}/p/ephemeralcontainers");
    let with = |containers: Value| json!({ "spec": { "ephemeralContainers": containers } });
    let debug = json!([{ "name": "debugger", "image": "b:1", "targetContainerName": "c" }]);
    // As `kubectl debug` asks.
    let added = patch(&cluster, &path, STRATEGIC, with(debug.clone())).await;
    assert_eq!(added.code, 200, "{}", added.message());
    let pod = get(&cluster, &format!("{PODS}/p"), JSON).await.json();
    assert_eq!(pod["spec"]["ephemeralContainers"][0]["imagePullPolicy"], "IfNotPresent");
    assert_eq!(pod["metadata"]["generation"], 2);
    assert_eq!(get(&cluster, &path, JSON).await.json()["kind"], "Pod");

    let removed = patch(&cluster, &path, MERGE, with(json!([]))).await;
    assert_eq!(removed.code, 422);
    assert_eq!(
        causes(&removed),
        [(
            "spec.ephemeralContainers".to_owned(),
            "Forbidden: existing ephemeral containers \"debugger\" may not be removed\n".to_owned()
        )]
    );
    let ports = json!([{ "name": "second", "image": "b:1", "ports": [{ "containerPort": 1 }] }]);
    let refused = patch(&cluster, &path, STRATEGIC, with(ports)).await;
    assert_eq!(
        causes(&refused),
        [(
            "spec.ephemeralContainers[1].ports".to_owned(),
            "Forbidden: cannot be set for an Ephemeral Container".to_owned()
        )]
    );
    // An update of the pod itself does not add any.
    let direct =
        patch(&cluster, &format!("{PODS}/p"), STRATEGIC, with(json!([{ "name": "x", "image": "b:1" }])))
            .await;
    assert_eq!(direct.code, 422);
}

#[tokio::test]
async fn a_resize_changes_resources_and_nothing_else() {
    let cluster = with_pod().await;
    let path = format!("{PODS}/p/resize");
    let with = |container: Value| json!({ "spec": { "containers": [container] } });
    let more = json!({ "name": "c", "image": "other:1", "resources": { "requests": { "cpu": "2" } } });
    let resized = patch(&cluster, &path, STRATEGIC, with(more)).await;
    assert_eq!(resized.code, 200, "{}", resized.message());
    let container = get(&cluster, &format!("{PODS}/p"), JSON).await.json()["spec"]["containers"][0].clone();
    assert_eq!(
        (&container["image"], &container["resources"]["requests"]["cpu"]),
        (&json!("a:1"), &json!("2"))
    );
    let gone = json!({ "name": "c", "resources": { "requests": { "memory": null } } });
    let refused = patch(&cluster, &path, STRATEGIC, with(gone)).await;
    assert_eq!(causes(&refused)[0].0, "spec.containers[0].resources.requests");
}

#[tokio::test]
async fn an_eviction_asks_the_budget() {
    let cluster = with_pod().await;
    let budget = json!({ "metadata": { "name": "b" }, "spec": { "minAvailable": 1,
        "selector": { "matchLabels": { "app": "p" } } } });
    assert_eq!(post(&cluster, BUDGETS, budget).await.code, 201);
    let ready =
        json!({ "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] } });
    assert_eq!(patch(&cluster, &format!("{PODS}/p/status"), STRATEGIC, ready).await.code, 200);

    let evict = || {
        post(&cluster, "/api/v1/namespaces/default/pods/p/eviction", json!({ "metadata": { "name": "p" } }))
    };
    // Old clients send what is now policy/v1.
    let old = json!({ "apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": { "name": "p" } });
    let early = post(&cluster, "/api/v1/namespaces/default/pods/p/eviction", old).await;
    assert_eq!((early.code, &early.json()["details"]["retryAfterSeconds"]), (429, &json!(10)));
    let seen = |allowed: i64| {
        json!({ "status": { "observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": 1,
            "desiredHealthy": 1, "expectedPods": 1 } })
    };
    let status = format!("{BUDGETS}/b/status");
    assert_eq!(patch(&cluster, &status, MERGE, seen(0)).await.code, 200);
    let refused = evict().await;
    assert_eq!(refused.code, 429);
    assert_eq!(refused.message(), "Cannot evict pod as it would violate the pod's disruption budget.");
    let cause = &refused.json()["details"]["causes"][0];
    assert_eq!(cause["reason"], "DisruptionBudget");
    assert_eq!(cause["message"], "The disruption budget b needs 1 healthy pods and has 1 currently");

    assert_eq!(patch(&cluster, &status, MERGE, seen(1)).await.code, 200);
    let uid = get(&cluster, &format!("{PODS}/p"), JSON).await.json()["metadata"]["uid"].clone();
    let other = json!({ "metadata": { "name": "p" }, "deleteOptions": { "preconditions": { "uid": "x" } } });
    let other = post(&cluster, &format!("{PODS}/p/eviction"), other).await;
    assert_eq!(
        (other.code, other.message()),
        (
            409,
            format!(
                "Operation cannot be fulfilled on Pod \"p\": the UID in the precondition (x) does not match the UID in record \
         ({}). The object might have been deleted and then recreated",
                uid.as_str().unwrap()
            )
        )
    );
    let done = evict().await;
    assert_eq!(done.code, 201, "{}", done.message());
    assert_eq!(get(&cluster, &format!("{PODS}/p"), JSON).await.code, 404);
    let budget = get(&cluster, &format!("{BUDGETS}/b"), JSON).await.json();
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    assert!(budget["status"]["disruptedPods"]["p"].is_string());
}

#[tokio::test]
async fn a_decision_about_a_certificate_cannot_be_taken_back() {
    let cluster = Cluster::start().await;
    let request = json!({ "metadata": { "name": "csr" }, "spec": {
        "request": signing_request(), "signerName": "example.com/mine", "usages": ["client auth"] } });
    assert_eq!(post(&cluster, REQUESTS, request).await.code, 201);
    let path = format!("{REQUESTS}/csr/approval");
    let decide = |kinds: &[&str]| {
        let all: Vec<Value> =
            kinds.iter().map(|kind| json!({ "type": kind, "status": "True", "reason": "r" })).collect();
        patch(&cluster, &path, MERGE, json!({ "status": { "conditions": all } }))
    };
    assert_eq!(decide(&["Approved"]).await.code, 200);
    let back = decide(&["Denied"]).await;
    assert_eq!(
        causes(&back),
        [(
            "status.conditions".to_owned(),
            "Forbidden: updates may not remove a condition of type \"Approved\"".to_owned()
        )]
    );
    assert_eq!(decide(&["Approved", "Denied"]).await.code, 422);
}

#[tokio::test]
async fn a_job_is_found_by_its_own_uid() {
    let cluster = Cluster::start().await;
    let job = |restart: &str| {
        json!({ "metadata": { "name": "pi" }, "spec": { "template": { "spec": {
            "restartPolicy": restart, "containers": [{ "name": "c", "image": "a:1" }] } } } })
    };
    let refused = post(&cluster, JOBS, job("Always")).await;
    assert_eq!(
        refused.message(),
        "Job.batch \"pi\" is invalid: spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \
         \"Never\""
    );
    let made = post(&cluster, JOBS, job("Never")).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let made = made.json();
    let uid = &made["metadata"]["uid"];
    assert_eq!(&made["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], uid);
    assert_eq!(&made["spec"]["template"]["metadata"]["labels"]["controller-uid"], uid);
    let changed =
        patch(&cluster, &format!("{JOBS}/pi"), MERGE, json!({ "spec": { "completions": 2 } })).await;
    assert_eq!(
        causes(&changed),
        [("spec.completions".to_owned(), "Invalid value: 2: field is immutable".to_owned())]
    );
}
