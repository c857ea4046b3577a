//! The small controllers.

use api::{DeleteOptions, Key};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
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

#[tokio::test(flavor = "multi_thread")]
async fn tokens_in_secrets_come_and_go_with_their_account() {
    let cluster = start().await;
    let (secrets, accounts) = (kinds::SECRETS, kinds::SERVICE_ACCOUNTS);
    let account =
        json!({ "metadata": { "name": "robot" }, "secrets": [{ "name": "t" }, { "name": "other" }] });
    cluster.create(&accounts, "default", account).await;
    let robot = Key::new("default", "robot");
    let uid = cluster.until(accounts, &robot, |held| !held.is_null()).await["metadata"]["uid"].clone();
    let annotations = json!({ "kubernetes.io/service-account.name": "robot" });
    let kind = "kubernetes.io/service-account-token";
    let secret =
        |name: &str| json!({ "metadata": { "name": name, "annotations": annotations }, "type": kind });
    for name in ["s", "t"] {
        cluster.create(&secrets, "default", secret(name)).await;
        let filled = |held: &Value| held["data"]["token"].is_string();
        let held = cluster.until(secrets, &Key::new("default", name), filled).await;
        let text = |field: &str| {
            let bytes = STANDARD.decode(held["data"][field].as_str().unwrap()).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(
            (text("token"), text("namespace")),
            (format!("{name} of default/robot"), "default".into())
        );
        assert_eq!(text("ca.crt"), **cluster.root_ca_pem.borrow());
        assert_eq!(held["metadata"]["annotations"]["kubernetes.io/service-account.uid"], uid);
    }
    // The account names no Secret that is gone, and takes the others along.
    let now = DeleteOptions::default;
    cluster.client.delete(&secrets.gvr(), &Key::new("default", "t"), now()).await.unwrap();
    let names = |held: &Value| held["secrets"] == json!([{ "name": "other" }]);
    cluster.until(accounts, &robot, names).await;
    cluster.client.delete(&accounts.gvr(), &robot, now()).await.unwrap();
    cluster.until(secrets, &Key::new("default", "s"), Value::is_null).await;
    // One that never had an account goes at once.
    cluster.create(&secrets, "default", secret("late")).await;
    cluster.until(secrets, &Key::new("default", "late"), Value::is_null).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_find_the_authority_as_a_bundle_and_the_use_of_tokens_is_noted() {
    let cluster = start().await;
    let ca = cluster.root_ca_pem.borrow().clone();
    let published = |bundles: &[std::sync::Arc<api::Object>]| {
        bundles.iter().any(|bundle| {
            let bundle: Value = bundle.decode().unwrap();
            bundle["spec"]
                == json!({ "signerName": "kubernetes.io/kube-apiserver-serving", "trustBundle": &*ca })
        })
    };
    cluster.until_all(kinds::CLUSTER_TRUST_BUNDLES, "", published).await;
    let tracking = Key::new("kube-system", "kube-apiserver-legacy-service-account-token-tracking");
    cluster.until(kinds::CONFIG_MAPS, &tracking, |held| held["data"]["since"].is_string()).await;
}
