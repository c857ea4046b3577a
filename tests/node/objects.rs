//! Objects that pods use, at the API. Source: `test/e2e/common/node/{configmap,secrets,podtemplates,lease,runtimeclass}.go`,
//! `test/e2e/common/storage/{configmap,secrets}_volume.go`.

use http::Method;
use serde_json::{Value, json};

use crate::api::base64;
use crate::space::{MERGE, Space, config_map, pod, secret, text};

pub(crate) fn empty_keys_are_refused(space: &Space<'_>) {
    for (resource, object) in [
        ("configmaps", config_map("empty", json!({"": "value-1"}))),
        ("secrets", secret("empty", json!({"": "value-1"}))),
    ] {
        let said = space.refused(&Method::POST, resource, "", &object);
        assert_eq!((&said["reason"], &said["code"]), (&json!("Invalid"), &json!(422)), "{said}");
    }
}

/// The names of the objects of a resource with a label, in all namespaces.
fn labelled(space: &Space<'_>, resource: &str, label: &str) -> Vec<String> {
    let list = space.list(&format!("/api/v1/{resource}?labelSelector={}", label.replace('=', "%3D")));
    list.iter().map(|object| text(&object["metadata"]["name"])).collect()
}

pub(crate) fn config_maps_and_secrets_live(space: &Space<'_>) {
    for (resource, object, value) in [
        ("configmaps", config_map("living", json!({"valueName": "value"})), "value1".to_owned()),
        ("secrets", secret("living", json!({"valueName": "value"})), base64("value1")),
    ] {
        let label = format!("test-static={}", space.name);
        let mut object = object;
        object["metadata"]["labels"] = json!({"test-static": space.name});
        space.create(resource, &object);
        let patch = json!({"metadata": {"labels": {"test": "patched"}}, "data": {"valueName": value}});
        let path = format!("{resource}/living");
        space.patch(&path, &patch);
        let read = space.get(&path);
        assert_eq!(
            (&read["metadata"]["labels"]["test"], &read["data"]["valueName"]),
            (&json!("patched"), &json!(value))
        );
        assert_eq!(labelled(space, resource, &label), ["living"]);
        space.delete(&format!("{resource}?labelSelector={}", label.replace('=', "%3D")));
        assert_eq!(labelled(space, resource, &label), Vec::<String>::new());
    }
}

pub(crate) fn immutable_objects_keep_their_data(space: &Space<'_>) {
    for (resource, object) in [
        ("configmaps", config_map("kept", json!({"data-1": "value-1"}))),
        ("secrets", secret("kept", json!({"data-1": "value-1"}))),
    ] {
        let path = format!("{resource}/kept");
        space.create(resource, &object);
        space.patch(&path, &json!({"data": {"data-1": base64("changed")}}));
        space.patch(&path, &json!({"immutable": true}));
        for change in
            [json!({"data": {"data-1": base64("again")}}), json!({"immutable": false}), json!({"data": null})]
        {
            let said = space.refused(&Method::PATCH, &path, MERGE, &change);
            assert_eq!(said["reason"], "Invalid", "{resource} {change}: {said}");
        }
        let labelled = space.patch(&path, &json!({"metadata": {"labels": {"label1": "value1"}}}));
        assert_eq!(labelled["data"]["data-1"], base64("changed"));
        space.delete(&path);
    }
}

fn template(name: &str) -> Value {
    let spec = pod(name, "true")["spec"].clone();
    json!({"apiVersion": "v1", "kind": "PodTemplate",
        "metadata": {"name": name, "labels": {"podtemplate-set": "true"}},
        "template": {"metadata": {"labels": {"pod": name}}, "spec": spec}})
}

pub(crate) fn pod_templates_live_and_are_deleted_together(space: &Space<'_>) {
    let selected = "podtemplates?labelSelector=podtemplate-set%3Dtrue";
    for name in ["one", "two", "three"] {
        space.create("podtemplates", &template(name));
    }
    assert_eq!(space.list(selected).len(), 3);
    space.patch("podtemplates/one", &json!({"metadata": {"labels": {"podtemplate": "patched"}}}));
    let changed = space.update("podtemplates/one", |object| {
        object["metadata"]["annotations"] = json!({"updated": "true"});
    });
    assert_eq!(changed["metadata"]["labels"]["podtemplate"], "patched");
    assert_eq!(space.get("podtemplates/one")["metadata"]["annotations"]["updated"], "true");
    space.delete("podtemplates/one");
    assert_eq!(space.list(selected).len(), 2);
    space.delete(selected);
    assert_eq!(space.list(selected), Vec::<Value>::new());
}

pub(crate) fn leases_live(space: &Space<'_>) {
    let lease = |name: &str| json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}});
    let mut one = lease("one");
    one["spec"] = json!({"holderIdentity": "holder", "leaseDurationSeconds": 30,
        "acquireTime": "2026-01-01T00:00:00.123456Z", "renewTime": "2026-01-01T00:00:01.000000Z", "leaseTransitions": 0});
    space.create("leases", &one);
    assert_eq!(space.get("leases/one")["spec"], one["spec"]);
    let next = json!({"holderIdentity": "holder2", "leaseDurationSeconds": 45,
        "acquireTime": "2026-01-01T00:00:10.000000Z", "renewTime": "2026-01-01T00:00:11.000000Z", "leaseTransitions": 1});
    space.update("leases/one", |lease| lease["spec"] = next.clone());
    assert_eq!(space.get("leases/one")["spec"], next);
    space.patch("leases/one", &json!({"spec": {"leaseDurationSeconds": 60}}));
    assert_eq!(space.get("leases/one")["spec"]["leaseDurationSeconds"], 60);
    let mut two = lease("two");
    two["metadata"]["labels"] = json!({"deletecollection": "true"});
    space.create("leases", &two);
    assert_eq!(space.list("leases").len(), 2);
    space.delete("leases?labelSelector=deletecollection%3Dtrue");
    assert_eq!(space.list("leases").len(), 1);
    space.delete("leases/one");
}

pub(crate) fn runtime_classes_have_every_verb(space: &Space<'_>) {
    let group = "/apis/node.k8s.io";
    let has = |list: &Value, field: &str, name: &str| {
        list.as_array().unwrap().iter().any(|item| item[field] == name)
    };
    assert!(has(&space.get("/apis")["groups"], "name", "node.k8s.io"));
    assert!(has(&space.get(group)["versions"], "groupVersion", "node.k8s.io/v1"));
    assert!(has(&space.get(&format!("{group}/v1"))["resources"], "name", "runtimeclasses"));
    let all = format!("{group}/v1/runtimeclasses");
    let selected = format!("{all}?labelSelector=test%3D{}", space.name);
    let names: Vec<String> = (1..=3).map(|number| format!("{}-{number}", space.name)).collect();
    let mut watch = space.watch(&selected);
    for name in &names {
        let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
            "metadata": {"name": name, "labels": {"test": space.name}}, "handler": "nobody"});
        space.create(&all, &class);
    }
    assert_eq!(space.list(&selected).len(), 3);
    let one = format!("{all}/{}", names[0]);
    let patch = json!({"metadata": {"annotations": {"patched": "true"}}});
    assert_eq!(space.patch(&one, &patch)["metadata"]["annotations"]["patched"], "true");
    space.update(&one, |class| class["metadata"]["annotations"]["updated"] = "true".into());
    watch.until("patched and updated", |classes| {
        let annotations = classes.get(&names[0]).map(|class| &class["metadata"]["annotations"]);
        annotations.is_some_and(|all| all["patched"] == "true" && all["updated"] == "true")
    });
    space.delete(&one);
    watch.until("one is gone", |classes| classes.len() == 2);
    space.delete(&selected);
    watch.until("all are gone", |classes| classes.is_empty());
}
