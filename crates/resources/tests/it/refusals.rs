//! Refusals to the letter: what a client is told of patches, events, services, logs and the like that make no sense.

use http::Method;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::http_front::{Answer, JSON, get, write};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const EVENTS: &str = "/api/v1/namespaces/default/events";
const NEW_EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";

fn told(answer: &Answer) -> (u16, Option<String>, String) {
    (answer.code, answer.json()["reason"].as_str().map(str::to_owned), answer.message())
}

fn fields(answer: &Answer) -> Vec<String> {
    let causes = answer.json()["details"]["causes"].as_array().cloned().unwrap_or_default();
    causes.iter().map(|cause| cause["field"].as_str().unwrap_or_default().to_owned()).collect()
}

async fn post(cluster: &Cluster, path: &str, body: Value) -> Answer {
    write(cluster, Method::POST, path, JSON, body.to_string()).await
}

async fn made(cluster: &Cluster, path: &str, body: Value) -> Value {
    let answer = post(cluster, path, body).await;
    assert_eq!(answer.code, 201, "{}", answer.message());
    answer.json()
}

#[tokio::test]
async fn patches_that_cannot_be_applied_say_so_in_upstreams_words() {
    let cluster = Cluster::start().await;
    let deployment = json!({ "metadata": { "name": "web" }, "spec": { "selector": { "matchLabels": { "app": "web" } },
        "template": { "metadata": { "labels": { "app": "web" } },
            "spec": { "containers": [{ "name": "a", "image": "i" }, { "name": "b", "image": "i" }] } } } });
    made(&cluster, DEPLOYMENTS, deployment).await;
    let web = format!("{DEPLOYMENTS}/web");
    let patch = |media: &'static str, patch: &str| {
        let (cluster, web, patch) = (&cluster, &web, patch.to_owned());
        async move { told(&write(cluster, Method::PATCH, web, media, patch).await) }
    };
    let invalid = |message: &str| (422, Some("Invalid".to_owned()), message.to_owned());
    let rejected = invalid("the server rejected our request due to an error in our request");
    for wrong in [
        r#"[{"op":"foo","path":"/spec/replicas"}]"#,
        r#"[{"op":"test","path":"/spec/replicas","value":7}]"#,
        r#"[{"op":"remove","path":"/spec/none"}]"#,
    ] {
        assert_eq!(patch(JSON_PATCH, wrong).await, rejected, "{wrong}");
    }
    assert_eq!(
        patch(STRATEGIC, r#"{"spec":{"replicas":"x"}}"#).await,
        invalid(
            " \"\" is invalid: patch: Invalid value: \"map[spec:map[replicas:x]]\": unrecognized type: int32"
        )
    );
    let order = r#"{"spec":{"template":{"spec":{"$setElementOrder/containers":[{"name":"a"}],"containers":[{"name":"c"}]}}}}"#;
    let message =
        "The order in patch list:\n[map[name:c]]\n doesn't match $setElementOrder list:\n[map[name:a]]\n";
    assert_eq!(patch(STRATEGIC, order).await, (500, None, message.to_owned()));
}

#[tokio::test]
async fn events_are_checked_as_the_group_asks_that_they_are_written_through() {
    let cluster = Cluster::start().await;
    let event = |name: &str, namespace: &str| json!({ "metadata": { "name": name }, "involvedObject": { "namespace": namespace } });
    let other = post(&cluster, EVENTS, event("a", "other")).await;
    assert_eq!(
        told(&other),
        (
            422,
            Some("Invalid".into()),
            "Event \"a\" is invalid: involvedObject.namespace: Invalid value: \"other\": does not match \
             event.namespace"
                .into()
        )
    );
    // Two texts that Go's type always writes, in the core group alone; and any name will do there.
    let seen = made(&cluster, EVENTS, event("System_a", "default")).await;
    assert_eq!((&seen["reportingComponent"], &seen["reportingInstance"]), (&json!(""), &json!("")));
    let seen = get(&cluster, &format!("{NEW_EVENTS}/System_a"), JSON).await.json();
    assert_eq!((&seen["reportingController"], &seen["reportingInstance"]), (&Value::Null, &Value::Null));
    let bare = json!({ "metadata": { "name": "b" }, "regarding": { "namespace": "default" }, "note": "n" });
    assert_eq!(fields(&post(&cluster, NEW_EVENTS, bare).await), ["eventTime", "type"]);
    let timed = json!({ "metadata": { "name": "b" }, "regarding": { "namespace": "default" }, "type": "Odd",
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "a b" });
    let mut said = fields(&post(&cluster, NEW_EVENTS, timed).await);
    said.dedup();
    assert_eq!(said, ["reportingController", "reportingInstance", "action", "reason", "type"]);
    let good = json!({ "metadata": { "name": "b" }, "regarding": { "namespace": "default" }, "type": "Normal",
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "example.com/c",
        "reportingInstance": "c-1", "reason": "Seen", "action": "Look" });
    made(&cluster, NEW_EVENTS, good).await;
    let merge = "application/merge-patch+json";
    let change = async |path: &str| {
        write(&cluster, Method::PATCH, &format!("{path}/b"), merge, r#"{"reason":"Other"}"#).await
    };
    assert_eq!(
        change(NEW_EVENTS).await.message(),
        "Event.events.k8s.io \"b\" is invalid: reason: Invalid value: \"Other\": field is immutable"
    );
    assert_eq!(change(EVENTS).await.code, 200);
}

#[tokio::test]
async fn nothing_is_taken_from_a_new_service_without_a_word() {
    let cluster = Cluster::start().await;
    let service = |name: &str, kind: &str, policy: &str| {
        json!({ "metadata": { "name": name }, "spec": { "type": kind, "externalTrafficPolicy": policy,
            "ports": [{ "port": 80 }] } })
    };
    let inner = post(&cluster, SERVICES, service("a", "ClusterIP", "Local")).await;
    assert_eq!(
        inner.message(),
        "Service \"a\" is invalid: spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for \
         externally-accessible services"
    );
    // What only the old type had goes with it.
    made(&cluster, SERVICES, service("b", "NodePort", "Local")).await;
    let path = format!("{SERVICES}/b");
    let merge = "application/merge-patch+json";
    let inner = write(&cluster, Method::PATCH, &path, merge, r#"{"spec":{"type":"ClusterIP"}}"#).await;
    assert_eq!(inner.code, 200, "{}", inner.message());
    assert_eq!(inner.json()["spec"]["externalTrafficPolicy"], Value::Null);
}

#[tokio::test]
async fn what_is_asked_of_a_log_is_checked_before_its_pod_is_looked_for() {
    let cluster = Cluster::start().await;
    let answer = get(&cluster, "/api/v1/namespaces/default/pods/none/log?sinceSeconds=0", JSON).await;
    assert_eq!(
        (answer.code, answer.message(), &answer.json()["details"]["kind"]),
        (
            422,
            "PodLogOptions \"none\" is invalid: sinceSeconds: Invalid value: 0: must be greater than 0"
                .into(),
            &json!("PodLogOptions")
        )
    );
    assert_eq!(fields(&answer), ["sinceSeconds"]);
}

#[tokio::test]
async fn a_wrong_access_mode_is_told_once() {
    let cluster = Cluster::start().await;
    let volume = json!({ "metadata": { "name": "v" }, "spec": { "accessModes": ["Never"],
        "capacity": { "storage": "1Gi" }, "hostPath": { "path": "/v" } } });
    let answer = post(&cluster, "/api/v1/persistentvolumes", volume).await;
    assert_eq!((answer.code, fields(&answer)), (422, vec!["spec.accessModes".to_owned()]));
}
