//! Create, update and patch through the whole pipeline.

use api::{PatchType, Reason, WriteOptions};
use serde_json::{Value, json};

use crate::cluster::{Cluster, options, resource};

fn deployment(image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
        "spec": {
            "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "web", "image": image }] },
            },
        },
    })
}

#[tokio::test]
async fn versions_conflict_and_no_change_writes_nothing() {
    let cluster = Cluster::start().await;
    let maps = resource("", "v1", "configmaps");
    let made =
        cluster.create(&maps, "default", json!({ "metadata": { "name": "a" }, "data": { "k": "1" } })).await;
    let mut made = made.unwrap();
    let twice = cluster.create(&maps, "default", json!({ "metadata": { "name": "a" } })).await.unwrap_err();
    assert_eq!(twice.reason, Reason::AlreadyExists);
    let same = cluster.update(&maps, ("default", "a", ""), &made).await.unwrap();
    assert_eq!(same["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    made["data"]["k"] = "2".into();
    let changed = cluster.update(&maps, ("default", "a", ""), &made).await.unwrap();
    assert_ne!(changed["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    made["data"]["k"] = "3".into();
    let stale = cluster.update(&maps, ("default", "a", ""), &made).await.unwrap_err();
    assert_eq!(stale.reason, Reason::Conflict);
    assert_eq!(cluster.get(&maps, "default", "a").await.unwrap()["data"]["k"], "2");
}

#[tokio::test]
async fn generation_counts_the_spec_and_status_stands_apart() {
    let cluster = Cluster::start().await;
    let deployments = resource("apps", "v1", "deployments");
    let place = ("default", "web", "");
    let made = cluster.create(&deployments, "default", deployment("a:1")).await.unwrap();
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(made["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
    assert_eq!(made["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
    let mut status = made.clone();
    status["spec"]["replicas"] = 9.into();
    status["status"] = json!({ "replicas": 1, "observedGeneration": 1 });
    let status = cluster.update(&deployments, ("default", "web", "status"), &status).await.unwrap();
    assert_eq!((&status["spec"]["replicas"], &status["status"]["replicas"]), (&json!(1), &json!(1)));
    assert_eq!(status["metadata"]["generation"], 1);
    let patch = json!({ "spec": { "replicas": 3 }, "status": { "replicas": 7 } });
    let changed = cluster.patch(&deployments, place, PatchType::Merge, patch, options()).await.unwrap();
    assert_eq!((&changed["metadata"]["generation"], &changed["status"]["replicas"]), (&json!(2), &json!(1)));
}

#[tokio::test]
async fn the_four_patches_do_what_they_say() {
    let cluster = Cluster::start().await;
    let deployments = resource("apps", "v1", "deployments");
    let place = ("default", "web", "");
    cluster.create(&deployments, "default", deployment("a:1")).await.unwrap();
    let strategic =
        json!({ "spec": { "template": { "spec": { "containers": [{ "name": "side", "image": "b:1" }] } } } });
    let patched =
        cluster.patch(&deployments, place, PatchType::StrategicMerge, strategic, options()).await.unwrap();
    assert_eq!(patched["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 2);
    let json_patch =
        json!([{ "op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "c:1" }]);
    cluster.patch(&deployments, place, PatchType::Json, json_patch, options()).await.unwrap();
    let apply = |manager: &str, force| WriteOptions { field_manager: manager.into(), force, ..options() };
    let intent = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" }, "spec": { "replicas": 4 } });
    let first = cluster
        .patch(&deployments, place, PatchType::Apply, intent.clone(), apply("one", true))
        .await
        .unwrap();
    assert_eq!(first["spec"]["replicas"], 4);
    let mut other = intent;
    other["spec"]["replicas"] = 5.into();
    let refused = cluster
        .patch(&deployments, place, PatchType::Apply, other.clone(), apply("two", false))
        .await
        .unwrap_err();
    assert_eq!(refused.reason, Reason::Conflict);
    let forced =
        cluster.patch(&deployments, place, PatchType::Apply, other, apply("two", true)).await.unwrap();
    assert_eq!(forced["spec"]["replicas"], 5);
}

#[tokio::test]
async fn bad_input_names_its_field_and_dry_runs_leave_nothing() {
    let cluster = Cluster::start().await;
    let deployments = resource("apps", "v1", "deployments");
    let mut wrong = deployment("a:1");
    wrong["spec"]["template"]["metadata"]["labels"]["app"] = "other".into();
    let error = cluster.create(&deployments, "default", wrong).await.unwrap_err();
    assert_eq!(error.details.causes[0].field, "spec.template.metadata.labels");
    let missing = cluster.create(&deployments, "nowhere", deployment("a:1")).await.unwrap_err();
    assert_eq!(missing.reason, Reason::NotFound);
    let dry = WriteOptions { dry_run: true, ..options() };
    let call = api::Call::Create { body: deployment("a:1").to_string().into(), options: dry };
    assert!(cluster.call(&deployments, "default", "", "", call).await.is_ok());
    assert_eq!(cluster.get(&deployments, "default", "web").await.unwrap_err().reason, Reason::NotFound);
    cluster.create(&deployments, "default", deployment("a:1")).await.unwrap();
    let patch = json!({ "spec": { "selector": { "matchLabels": { "app": "x" } } } });
    let place = ("default", "web", "");
    let frozen = cluster.patch(&deployments, place, PatchType::Merge, patch, options()).await.unwrap_err();
    assert!(frozen.message.contains("field is immutable"), "{}", frozen.message);
}

#[tokio::test]
async fn a_retired_version_is_served_from_the_stored_one() {
    let cluster = Cluster::start().await;
    let mut old = deployment("a:1");
    old["apiVersion"] = "extensions/v1beta1".into();
    old["spec"].as_object_mut().unwrap().remove("selector");
    let retired = resource("extensions", "v1beta1", "deployments");
    let made = cluster.create(&retired, "default", old).await.unwrap();
    assert_eq!(made["apiVersion"], "extensions/v1beta1");
    let stored = cluster.get(&resource("apps", "v1", "deployments"), "default", "web").await.unwrap();
    assert_eq!(stored["apiVersion"], "apps/v1");
    assert_eq!(stored["spec"]["selector"]["matchLabels"]["app"], "web");
    assert_eq!(stored["spec"]["strategy"]["rollingUpdate"]["maxSurge"], 1);
}

#[tokio::test]
async fn others_may_do_nothing() {
    let mut cluster = Cluster::start().await;
    cluster.user = apiserver::authn::service_account("default", "default", "1");
    let secrets = resource("", "v1", "secrets");
    let refused = cluster.get(&secrets, "default", "a").await.unwrap_err();
    assert_eq!(refused.reason, Reason::Forbidden);
    assert_eq!(
        refused.message,
        "secrets \"a\" is forbidden: User \"system:serviceaccount:default:default\" cannot get resource \"secrets\" in \
         API group \"\" in the namespace \"default\""
    );
}

#[tokio::test]
async fn a_component_of_this_process_has_its_rights() {
    let mut cluster = Cluster::start().await;
    cluster.user = api::connect::User { name: "skiff:controllers".into(), ..Default::default() };
    let maps = resource("", "v1", "configmaps");
    cluster.create(&maps, "default", json!({ "metadata": { "name": "a" } })).await.unwrap();
    cluster.user.name = "skiff:scheduler".into();
    assert!(cluster.get(&maps, "default", "a").await.is_ok());
    let refused = cluster.create(&maps, "default", json!({ "metadata": { "name": "b" } })).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Forbidden);
}
