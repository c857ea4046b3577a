//! The small controllers.

use api::{DeleteOptions, Key};
use reconcile::kinds;
use serde_json::{Value, json};

use crate::start;

#[tokio::test(flavor = "multi_thread")]
async fn ephemeral_volumes_have_claims_as_long_as_their_pods() {
    let cluster = start().await;
    cluster.takes_pods("default").await;
    let spec = json!({ "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } });
    let template = json!({ "metadata": { "labels": { "a": "b" } }, "spec": spec });
    let pod = json!({ "metadata": { "name": "p" }, "spec": {
        "volumes": [{ "name": "tmp", "ephemeral": { "volumeClaimTemplate": template } }],
        "containers": [{ "name": "c", "image": "a" }] } });
    let pod = cluster.create(&kinds::PODS, "default", pod).await;
    let (claims, key) = (kinds::PERSISTENT_VOLUME_CLAIMS, Key::new("default", "p-tmp"));
    let made = cluster.until(claims, &key, |held| !held.is_null()).await;
    assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], pod.meta().uid);
    assert_eq!(made["metadata"]["labels"]["a"], "b");
    // One that is in the way of another pod is said to be so.
    cluster.create(&claims, "default", json!({ "metadata": { "name": "q-tmp" }, "spec": spec })).await;
    cluster.until(claims, &Key::new("default", "q-tmp"), |held| !held.is_null()).await;
    let pod = json!({ "metadata": { "name": "q" }, "spec": {
        "volumes": [{ "name": "tmp", "ephemeral": { "volumeClaimTemplate": template } }],
        "containers": [{ "name": "c", "image": "a" }] } });
    cluster.create(&kinds::PODS, "default", pod).await;
    let message =
        "ephemeral volume tmp: PVC default/q-tmp was not created for pod default/q (pod is not owner)";
    let said = |events: &[std::sync::Arc<api::Object>]| {
        events.iter().any(|event| event.decode::<Value>().unwrap()["message"] == message)
    };
    cluster.until_all(kinds::EVENTS, "default", said).await;
    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    cluster.client.delete(&kinds::PODS.gvr(), &Key::new("default", "p"), now).await.unwrap();
    cluster.until(claims, &key, Value::is_null).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_told_how_long_to_remember_and_tokens_sign() {
    let cluster = start().await;
    let told = |held: &Value| held["metadata"]["annotations"]["node.alpha.kubernetes.io/ttl"] == "0";
    cluster.until(kinds::NODES, &Key::new("", "n1"), told).await;
    cluster.until(kinds::NAMESPACES, &Key::new("", "kube-public"), |held| !held.is_null()).await;
    let map = json!({ "metadata": { "name": "cluster-info" }, "data": { "kubeconfig": "x" } });
    cluster.create(&kinds::CONFIG_MAPS, "kube-public", map).await;
    let token = json!({ "metadata": { "name": "bootstrap-token-foobar" }, "type": "bootstrap.kubernetes.io/token",
        "stringData": { "token-id": "foobar", "token-secret": "0123456789abcdef", "usage-bootstrap-signing": "true" } });
    cluster.create(&kinds::SECRETS, "kube-system", token).await;
    let key = Key::new("kube-public", "cluster-info");
    let signed = |held: &Value| held["data"]["jws-kubeconfig-foobar"].is_string();
    cluster.until(kinds::CONFIG_MAPS, &key, signed).await;
    let token = Key::new("kube-system", "bootstrap-token-foobar");
    cluster.client.delete(&kinds::SECRETS.gvr(), &token, DeleteOptions::default()).await.unwrap();
    cluster.until(kinds::CONFIG_MAPS, &key, |held| !held.is_null() && !signed(held)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_told_what_their_expressions_get_wrong() {
    let cluster = start().await;
    let rules = json!([{ "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"], "operations": ["*"] }]);
    let policy = |expression: &str| {
        json!({ "metadata": { "name": "small" }, "spec": { "matchConstraints": { "resourceRules": rules },
            "validations": [{ "expression": expression }] } })
    };
    let (policies, key) = (kinds::VALIDATING_ADMISSION_POLICIES, Key::new("", "small"));
    cluster.create(&policies, "", policy("object.spec.replica < 5")).await;
    let observed = |generation: i64| move |held: &Value| held["status"]["observedGeneration"] == generation;
    let held = cluster.until(policies, &key, observed(1)).await;
    let told = &held["status"]["typeChecking"]["expressionWarnings"][0];
    assert_eq!(told["fieldRef"], "spec.validations[0].expression");
    let warning = told["warning"].as_str().unwrap();
    assert!(warning.starts_with("apps/v1, Kind=Deployment: ERROR: "), "{warning}");
    assert!(warning.contains("undefined field 'replica'"), "{warning}");
    cluster.merge(&policies, &key, policy("object.spec.replicas < 5")).await;
    let held = cluster.until(policies, &key, observed(2)).await;
    assert_eq!(held["status"]["typeChecking"], json!({}));
}
