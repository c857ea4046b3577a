//! Volumes follow what they show. Source: `test/e2e/common/storage/{configmap,secrets,downwardapi}_volume.go`,
//! `projected_*.go`.

use serde_json::{Value, json};

use crate::space::{IDLE, Space, config_map, is_ready, main, mount, pod, secret};

/// The source of an object that need not be there.
fn optional(kind: &str, projected: bool, name: &str) -> Value {
    match (kind, projected) {
        ("configMap", false) => json!({"configMap": {"name": name, "optional": true}}),
        ("secret", false) => json!({"secret": {"secretName": name, "optional": true}}),
        _ => json!({"projected": {"sources": [{kind: {"name": name, "optional": true}}]}}),
    }
}

pub(crate) fn optional_objects_come_change_and_go_in_volumes(space: &Space<'_>) {
    let mut pod = pod("follower", IDLE);
    let kinds = [("configMap", "configmaps"), ("secret", "secrets")];
    let make = |kind: &str, name: &str, data: Value| match kind {
        "secret" => secret(name, data),
        _ => config_map(name, data),
    };
    for (kind, resource) in kinds {
        space.create(resource, &make(kind, "changed", json!({"data-1": "value-1"})));
        space.create(resource, &make(kind, "deleted", json!({"data-1": "value-1"})));
        for projected in [false, true] {
            for name in ["changed", "deleted", "created"] {
                let volume = format!("{}-{projected}-{name}", kind.to_lowercase());
                let path = format!("/v/{volume}");
                mount(&mut pod, &volume, optional(kind, projected, name), &path, Value::Null);
            }
        }
    }
    space.start(&pod);
    let places = ["configmap-false", "configmap-true", "secret-false", "secret-true"];
    for place in places {
        let script = format!("cd /v; cat {place}-changed/data-1 {place}-deleted/data-1; ls {place}-created");
        assert_eq!(space.exec("follower", "main", &script), "value-1value-1", "{place}");
    }
    for (kind, resource) in kinds {
        // Keys come and go with the same change.
        let data =
            json!({"data-1": null, "data-3": if kind == "secret" { "dmFsdWUtMw==" } else { "value-3" }});
        space.patch(&format!("{resource}/changed"), &json!({"data": data}));
        space.delete(&format!("{resource}/deleted"));
        space.create(resource, &make(kind, "created", json!({"data-1": "value-1"})));
    }
    for place in places {
        let is = |path: &str, value: &str| format!("[ \"`cat /v/{place}-{path} 2>&1`\" = {value} ]");
        space.until_in("follower", "main", &is("changed/data-3", "value-3"));
        // What went with the same change went at the same time.
        space.exec("follower", "main", &format!("test ! -e /v/{place}-changed/data-1"));
        space.until_in("follower", "main", &is("created/data-1", "value-1"));
        space.until_in("follower", "main", &format!("[ ! -e /v/{place}-deleted/data-1 ]"));
    }
    let pod = space.until_pod("follower", "Ready", is_ready);
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{pod}");
}

pub(crate) fn labels_and_annotations_change_in_volumes(space: &Space<'_>) {
    let mut pod = pod("told", IDLE);
    pod["metadata"]["labels"] = json!({"key1": "value1", "key2": "value2"});
    pod["metadata"]["annotations"] = json!({"builder": "bar"});
    let item = |name: &str| json!({"path": name, "fieldRef": {"fieldPath": format!("metadata.{name}")}});
    let items = json!({"items": [item("labels"), item("annotations")]});
    mount(&mut pod, "plain", json!({"downwardAPI": items}), "/v/plain", Value::Null);
    let projected = json!({"projected": {"sources": [{"downwardAPI": items}]}});
    mount(&mut pod, "projected", projected, "/v/projected", Value::Null);
    // Who mounts one file sees it as it was.
    let file = json!({"name": "plain", "mountPath": "/v/labels", "subPath": "labels"});
    main(&mut pod)["volumeMounts"].as_array_mut().unwrap().push(file);
    space.start(&pod);
    for place in ["plain", "projected"] {
        let labels = space.exec("told", "main", &format!("cat /v/{place}/labels"));
        assert_eq!(labels, "key1=\"value1\"\nkey2=\"value2\"");
        let annotations = space.exec("told", "main", &format!("cat /v/{place}/annotations"));
        assert!(annotations.lines().any(|line| line == "builder=\"bar\""), "{annotations}");
    }
    let change = json!({"metadata": {"labels": {"key3": "value3"}, "annotations": {"builder": "foo"}}});
    space.patch("pods/told", &change);
    for place in ["plain", "projected"] {
        space.until_in("told", "main", &format!("grep -q key3=.value3 /v/{place}/labels"));
        space.until_in("told", "main", &format!("grep -q builder=.foo /v/{place}/annotations"));
    }
    assert!(!space.exec("told", "main", "cat /v/labels").contains("key3"));
}
