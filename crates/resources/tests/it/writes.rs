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
    let mut other = made.clone();
    other["metadata"]["uid"] = "another".into();
    other["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    assert_eq!(
        cluster.update(&maps, ("default", "a", ""), &other).await.unwrap_err().reason,
        Reason::Conflict
    );
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

/// Whoever registers a node by one request (kubelets, nodes without one) tells its size and its conditions in it.
#[tokio::test]
async fn a_new_node_has_its_status_and_no_update_changes_it() {
    let cluster = Cluster::start().await;
    let nodes = resource("", "v1", "nodes");
    let status = json!({ "allocatable": { "cpu": "4", "pods": "110" } });
    let node = json!({ "metadata": { "name": "n" }, "status": status });
    let mut made = cluster.create(&nodes, "", node).await.unwrap();
    assert_eq!(made["status"]["allocatable"]["cpu"], "4");
    made["status"]["allocatable"]["cpu"] = "8".into();
    let updated = cluster.update(&nodes, ("", "n", ""), &made).await.unwrap();
    assert_eq!(updated["status"]["allocatable"]["cpu"], "4");
    // Of others nothing is taken over.
    let mut deployment = deployment("a:1");
    deployment["status"] = json!({ "replicas": 7 });
    let made = cluster.create(&resource("apps", "v1", "deployments"), "default", deployment).await.unwrap();
    assert_ne!(made["status"]["replicas"], 7);
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
    assert!(cluster.get(&resource("", "v1", "namespaces"), "", "default").await.is_ok());
    // It reads what it places pods by, and nothing else.
    let unread = cluster.get(&maps, "default", "a").await.unwrap_err();
    assert_eq!(unread.reason, Reason::Forbidden);
    let refused = cluster.create(&maps, "default", json!({ "metadata": { "name": "b" } })).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Forbidden);
}

#[tokio::test]
async fn nulls_in_maps_and_lists_are_their_zero_in_every_write() {
    let cluster = Cluster::start().await;
    let maps = resource("", "v1", "configmaps");
    let nulls = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "a", "annotations": { "a": null }, "labels": { "l": null }, "finalizers": null },
        "data": { "d": null }, "immutable": null,
    });
    let place = ("default", "a", "");
    let check = |object: &Value| {
        assert_eq!(object["metadata"]["annotations"]["a"], "", "{object}");
        assert_eq!((&object["metadata"]["labels"]["l"], &object["data"]["d"]), (&json!(""), &json!("")));
        assert!(object.get("immutable").is_none() && object["metadata"].get("finalizers").is_none());
    };
    check(&cluster.create(&maps, "default", nulls.clone()).await.unwrap());
    check(&cluster.get(&maps, "default", "a").await.unwrap());
    let clean = json!({ "metadata": { "annotations": null, "labels": null }, "data": null });
    let patches = [
        (
            PatchType::Json,
            json!([
                { "op": "add", "path": "/metadata/annotations", "value": { "a": null } },
                { "op": "add", "path": "/metadata/labels", "value": { "l": null } },
                { "op": "add", "path": "/data", "value": { "d": null } },
            ]),
        ),
        (PatchType::Apply, nulls.clone()),
    ];
    for (kind, patch) in patches {
        cluster.patch(&maps, place, PatchType::Merge, clean.clone(), options()).await.unwrap();
        let force = WriteOptions { force: kind == PatchType::Apply, ..options() };
        check(&cluster.patch(&maps, place, kind, patch, force).await.unwrap());
        check(&cluster.get(&maps, "default", "a").await.unwrap());
    }
    // To the two merge patches a null says that there is nothing.
    for kind in [PatchType::Merge, PatchType::StrategicMerge] {
        check(&cluster.update(&maps, place, &nulls).await.unwrap());
        let patched = cluster.patch(&maps, place, kind, nulls.clone(), options()).await.unwrap();
        assert!(
            patched["metadata"].get("annotations").is_none() && patched.get("data").is_none(),
            "{patched}"
        );
    }
    let mut pods = deployment("a:1");
    pods["spec"]["template"]["spec"]["nodeSelector"] = json!({ "zone": null });
    pods["spec"]["template"]["spec"]["containers"][0]["args"] = json!([null]);
    pods["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap().push(Value::Null);
    let deployments = resource("apps", "v1", "deployments");
    let refused = cluster.create(&deployments, "default", pods.clone()).await.unwrap_err();
    assert_eq!(refused.details.causes[0].field, "spec.template.spec.containers[1].name");
    pods["spec"]["template"]["spec"]["containers"][1] = json!({ "name": "b", "image": "b:1" });
    let made = cluster.create(&deployments, "default", pods).await.unwrap();
    let spec = &made["spec"]["template"]["spec"];
    assert_eq!((&spec["nodeSelector"]["zone"], &spec["containers"][0]["args"]), (&json!(""), &json!([""])));
}

#[tokio::test]
async fn a_binding_without_annotation_values_leaves_the_pod_readable() {
    let cluster = Cluster::start().await;
    let (pods, accounts) = (resource("", "v1", "pods"), resource("", "v1", "serviceaccounts"));
    let _ = cluster.create(&accounts, "default", json!({ "metadata": { "name": "default" } })).await;
    let pod =
        json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "a", "image": "a:1" }] } });
    cluster.create(&pods, "default", pod).await.unwrap();
    let binding =
        json!({ "metadata": { "annotations": { "a": null } }, "target": { "kind": "Node", "name": "n" } });
    let call = api::Call::Create { body: binding.to_string().into(), options: options() };
    assert!(cluster.call(&pods, "default", "p", "binding", call).await.is_ok());
    assert_eq!(cluster.get(&pods, "default", "p").await.unwrap()["metadata"]["annotations"]["a"], "");
}

#[tokio::test]
async fn a_scale_is_applied_with_its_owners() {
    let cluster = Cluster::start().await;
    let deployments = resource("apps", "v1", "deployments");
    let manager = |manager: &str, force| WriteOptions { field_manager: manager.into(), force, ..options() };
    let mut intent = deployment("a:1");
    intent["spec"]["replicas"] = 2.into();
    cluster
        .patch(&deployments, ("default", "web", ""), PatchType::Apply, intent, manager("one", false))
        .await
        .unwrap();
    let scale = |replicas: u32| json!({ "apiVersion": "autoscaling/v1", "kind": "Scale", "spec": { "replicas": replicas } });
    let place = ("default", "web", "scale");
    let refused = cluster
        .patch(&deployments, place, PatchType::Apply, scale(5), manager("two", false))
        .await
        .unwrap_err();
    assert_eq!(refused.reason, Reason::Conflict);
    assert_eq!(refused.details.causes[0].field, ".spec.replicas");
    let forced =
        cluster.patch(&deployments, place, PatchType::Apply, scale(5), manager("two", true)).await.unwrap();
    assert_eq!((&forced["kind"], &forced["spec"]["replicas"]), (&json!("Scale"), &json!(5)));
    let web = cluster.get(&deployments, "default", "web").await.unwrap();
    let owners: Vec<(&str, &str)> = web["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["fieldsV1"].pointer("/f:spec/f:replicas").is_some())
        .map(|entry| (entry["manager"].as_str().unwrap(), entry["subresource"].as_str().unwrap_or_default()))
        .collect();
    assert_eq!(owners, [("two", "scale")]);
    assert_eq!(web["metadata"]["generation"], 2);
    let wrong = json!({ "apiVersion": "autoscaling/v1", "kind": "Scale", "spec": { "replicas": -1 } });
    let wrong = cluster.patch(&deployments, place, PatchType::Merge, wrong, options()).await.unwrap_err();
    assert_eq!(wrong.details.causes[0].field, "spec.replicas");
}

#[tokio::test]
async fn a_change_back_is_written_though_the_cache_has_not_seen_the_change() {
    let cluster = Cluster::start().await;
    let maps = resource("", "v1", "configmaps");
    let place = ("default", "a", "");
    cluster
        .create(&maps, "default", json!({ "metadata": { "name": "a" }, "data": { "k": "0" } }))
        .await
        .unwrap();
    // The cache follows the store in its own time: sooner or later one of these writes finds it a version behind.
    for round in 0..200 {
        for value in ["1", "0"] {
            let patch = json!({ "data": { "k": value } });
            cluster.patch(&maps, place, PatchType::Merge, patch, options()).await.unwrap();
            let read = cluster.get(&maps, "default", "a").await.unwrap();
            assert_eq!(read["data"]["k"], value, "round {round}");
        }
    }
}

#[tokio::test]
async fn status_and_spec_have_owners_of_their_own() {
    let cluster = Cluster::start().await;
    let deployments = resource("apps", "v1", "deployments");
    let mut intent = deployment("a:1");
    intent["status"] = json!({ "replicas": 9 });
    let manager = |manager: &str| WriteOptions { field_manager: manager.into(), ..options() };
    let made = cluster
        .patch(&deployments, ("default", "web", ""), PatchType::Apply, intent.clone(), manager("one"))
        .await
        .unwrap();
    assert_eq!(made["status"], json!({}));
    intent["spec"]["replicas"] = 7.into();
    intent["status"] = json!({ "observedGeneration": 1 });
    let told = cluster
        .patch(&deployments, ("default", "web", "status"), PatchType::Apply, intent, manager("two"))
        .await
        .unwrap();
    assert_eq!((&told["spec"]["replicas"], &told["status"]["observedGeneration"]), (&json!(1), &json!(1)));
    let entries = told["metadata"]["managedFields"].as_array().unwrap();
    let of = |manager: &str| &entries.iter().find(|entry| entry["manager"] == manager).unwrap()["fieldsV1"];
    assert!(of("one").get("f:status").is_none() && of("one").get("f:spec").is_some());
    assert_eq!(*of("two"), json!({ "f:status": { "f:observedGeneration": {} } }));
    let created = cluster
        .create(
            &deployments,
            "default",
            json!({
                "metadata": { "name": "plain" }, "spec": deployment("a:1")["spec"],
            }),
        )
        .await
        .unwrap();
    let owned = &created["metadata"]["managedFields"][0]["fieldsV1"];
    assert!(owned.get("f:status").is_none() && owned["f:spec"].get(".").is_none(), "{owned}");
    assert!(owned["f:spec"]["f:template"]["f:metadata"]["f:labels"].get(".").is_some(), "{owned}");
}
