//! CustomResourceDefinitions: what a client does with one and with its objects, from creation to the end.

use api::{DeleteOptions, PatchType, Reason, WriteOptions};
use futures::StreamExt;
use http::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, options, resource};
use crate::http_front::{JSON, get, write};

const OBJECTS: &str = "/apis/example.com/v1/namespaces/default/widgets";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

fn definition() -> Value {
    let schema = json!({"type": "object", "required": ["spec"], "properties": {
        "spec": {"type": "object", "description": "What is wanted.", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1, "maximum": 10},
            "color": {"type": "string", "enum": ["red", "green"], "default": "red"},
            "ports": {"type": "array", "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["port", "protocol"], "items": {"type": "object", "required": ["port"],
                "properties": {"port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"},
                    "name": {"type": "string"}}}},
            "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "percent": {"x-kubernetes-int-or-string": true},
        }},
        "status": {"type": "object", "properties": {"ready": {"type": "integer"}, "replicas": {"type": "integer"}, "selector": {"type": "string"}}},
    }});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size",
                    "statusReplicasPath": ".status.ready", "labelSelectorPath": ".status.selector"}},
                "additionalPrinterColumns": [
                    {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                ],
                "selectableFields": [{"jsonPath": ".spec.color"}],
            }],
        },
    })
}

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

async fn defined(cluster: &Cluster, definition: Value) -> Value {
    let crds = resource("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    let name = definition["metadata"]["name"].as_str().unwrap().to_owned();
    cluster.create(&crds, "", definition).await.unwrap();
    cluster.get(&crds, "", &name).await.unwrap()
}

fn condition<'c>(crd: &'c Value, kind: &str) -> &'c Value {
    crd["status"]["conditions"].as_array().unwrap().iter().find(|one| one["type"] == kind).unwrap()
}

#[tokio::test]
async fn a_definition_is_established_and_served_when_its_creation_is_answered() {
    let cluster = Cluster::start().await;
    let crd = defined(&cluster, definition()).await;
    assert_eq!(condition(&crd, "Established")["status"], "True");
    assert_eq!(condition(&crd, "NamesAccepted")["reason"], "NoConflicts");
    assert_eq!(crd["status"]["acceptedNames"]["listKind"], "WidgetList");
    assert_eq!(crd["status"]["storedVersions"], json!(["v1"]));

    let widgets = resource("example.com", "v1", "widgets");
    let made = cluster.create(&widgets, "default", widget("a", json!({"size": 3}))).await.unwrap();
    assert_eq!((&made["spec"]["color"], &made["metadata"]["generation"]), (&json!("red"), &json!(1)));

    let wrong = widget("b", json!({"size": 11, "color": "blue", "percent": true}));
    let refused = write(&cluster, Method::POST, OBJECTS, JSON, wrong.to_string()).await;
    assert_eq!((refused.code, refused.json()["reason"].as_str()), (422, Some("Invalid")));
    assert_eq!(
        refused.message(),
        "Widget.example.com \"b\" is invalid: [spec.color: Unsupported value: \"blue\": supported values: \"red\", \
         \"green\", spec.percent: Invalid value: \"boolean\": spec.percent in body must be of type integer,string: \
         \"boolean\", spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10]"
    );
    let unknown = widget("c", json!({"size": 1, "colour": "red", "any": {"x": 1}})).to_string();
    let warned = write(&cluster, Method::POST, OBJECTS, JSON, unknown.clone()).await;
    assert_eq!(warned.warnings(), ["299 - \"unknown field \\\"spec.colour\\\"\""]);
    assert_eq!(warned.json()["spec"], json!({"size": 1, "color": "red", "any": {"x": 1}}));
    let strict =
        write(&cluster, Method::POST, &format!("{OBJECTS}?fieldValidation=Strict"), JSON, unknown).await;
    assert_eq!(strict.code, 400);
    assert!(strict.message().ends_with("strict decoding error: unknown field \"spec.colour\""));

    let table = get(&cluster, OBJECTS, TABLE).await.json();
    assert_eq!(table["columnDefinitions"][1]["name"], "Size");
    assert_eq!(table["rows"][0]["cells"][1], 3);
    let selected = get(&cluster, &format!("{OBJECTS}?fieldSelector=spec.color%3Dgreen"), JSON).await;
    assert_eq!(selected.json()["items"], json!([]));
    let v3 = get(&cluster, "/openapi/v3/apis/example.com/v1", JSON).await.json();
    let published = &v3["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(published["properties"]["spec"]["properties"]["size"]["maximum"], 10);
    assert_eq!(published["x-kubernetes-group-version-kind"][0]["kind"], "Widget");
    let patch =
        &v3["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}"]["patch"]["requestBody"];
    assert!(patch["content"]["application/merge-patch+json"].is_object());
    assert!(patch["content"]["application/strategic-merge-patch+json"].is_null());
}

#[tokio::test]
async fn custom_objects_have_no_protobuf_but_their_metadata_has() {
    let cluster = Cluster::start().await;
    defined(&cluster, definition()).await;
    let body = widget("a", json!({"size": 3})).to_string();
    assert_eq!(write(&cluster, Method::POST, OBJECTS, JSON, body.clone()).await.code, 201);
    let protobuf = api::protobuf::MEDIA_TYPE;
    assert_eq!(get(&cluster, OBJECTS, protobuf).await.code, 406);
    let fallback = get(&cluster, OBJECTS, &format!("{protobuf},{JSON}")).await;
    assert_eq!((fallback.code, fallback.header("content-type")), (200, JSON));
    let metadata = format!("{protobuf};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
    let metadata = get(&cluster, OBJECTS, &metadata).await;
    assert_eq!((metadata.code, metadata.header("content-type")), (200, protobuf));
    let refused = write(&cluster, Method::POST, OBJECTS, protobuf, body).await;
    assert_eq!(
        (refused.code, refused.message()),
        (
            415,
            "the body of the request was in an unknown format - accepted media types include: application/json, \
             application/yaml"
                .to_owned()
        )
    );
    let strategic = "application/strategic-merge-patch+json";
    assert_eq!(write(&cluster, Method::PATCH, &format!("{OBJECTS}/a"), strategic, "{}").await.code, 415);
}

#[tokio::test]
async fn patches_status_scale_and_apply_work_on_custom_objects() {
    let cluster = Cluster::start().await;
    defined(&cluster, definition()).await;
    let widgets = resource("example.com", "v1", "widgets");
    let (whole, status, scale) =
        (("default", "a", ""), ("default", "a", "status"), ("default", "a", "scale"));
    let ports = json!([{"port": 80}]);
    cluster.create(&widgets, "default", widget("a", json!({"size": 3, "ports": ports}))).await.unwrap();

    let strategic = cluster.patch(&widgets, whole, PatchType::StrategicMerge, json!({}), options()).await;
    assert_eq!(strategic.unwrap_err().reason, Reason::UnsupportedMediaType);
    let patch = json!({"spec": {"size": 4}, "status": {"ready": 9}});
    let merged = cluster.patch(&widgets, whole, PatchType::Merge, patch, options()).await.unwrap();
    assert_eq!((&merged["spec"]["size"], &merged["status"]), (&json!(4), &Value::Null));
    assert_eq!(merged["metadata"]["generation"], 2);
    let patch = json!({"spec": {"size": 7}, "status": {"ready": 2, "selector": "a=b"}});
    let told = cluster.patch(&widgets, status, PatchType::Merge, patch, options()).await.unwrap();
    assert_eq!((&told["spec"]["size"], &told["status"]["ready"]), (&json!(4), &json!(2)));
    assert_eq!(told["metadata"]["generation"], 2);

    let path = format!("{OBJECTS}/a/scale");
    let shown = get(&cluster, &path, JSON).await.json();
    assert_eq!(
        (&shown["spec"]["replicas"], &shown["status"]),
        (&json!(4), &json!({"replicas": 2, "selector": "a=b"}))
    );
    let patch = json!({"spec": {"replicas": 5}});
    cluster.patch(&widgets, scale, PatchType::Merge, patch, options()).await.unwrap();
    let scaled = cluster.get(&widgets, "default", "a").await.unwrap();
    assert_eq!((&scaled["spec"]["size"], &scaled["metadata"]["generation"]), (&json!(5), &json!(3)));

    let applied = |manager: &str| WriteOptions { field_manager: manager.into(), ..WriteOptions::default() };
    let intent = |port: i64, name: &str| {
        json!({"apiVersion": "example.com/v1", "kind": "Widget",
        "metadata": {"name": "a"}, "spec": {"ports": [{"port": port, "name": name}]}})
    };
    cluster.patch(&widgets, whole, PatchType::Apply, intent(81, "x"), applied("one")).await.unwrap();
    let both =
        cluster.patch(&widgets, whole, PatchType::Apply, intent(82, "y"), applied("two")).await.unwrap();
    let ports: Vec<&Value> =
        both["spec"]["ports"].as_array().unwrap().iter().map(|port| &port["port"]).collect();
    assert_eq!(ports, [80, 81, 82]);
    let conflict = cluster.patch(&widgets, whole, PatchType::Apply, intent(81, "z"), applied("two")).await;
    assert_eq!(conflict.unwrap_err().reason, Reason::Conflict);
}

#[tokio::test]
async fn names_that_another_has_are_refused_until_it_goes() {
    let cluster = Cluster::start().await;
    let crds = resource("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    defined(&cluster, definition()).await;
    let mut other = definition();
    other["metadata"]["name"] = "gadgets.example.com".into();
    other["spec"]["names"] = json!({"plural": "gadgets", "kind": "Gadget", "shortNames": ["wd"]});
    let crd = defined(&cluster, other).await;
    assert_eq!(condition(&crd, "NamesAccepted")["reason"], "ShortNamesConflict");
    assert_eq!(condition(&crd, "Established")["reason"], "NotAccepted");
    let gadgets = resource("example.com", "v1", "gadgets");
    let unknown = cluster.get(&gadgets, "default", "a").await.unwrap_err();
    assert_eq!(unknown.message, "the server could not find the requested resource");

    let mut watch = {
        let call = api::Call::Watch(api::ListOptions {
            field_selector: "metadata.name=gadgets.example.com".into(),
            ..Default::default()
        });
        match cluster.call(&crds, "", "", "", call).await {
            Ok(api::Response::Watch(stream)) => stream,
            _ => panic!("no watch"),
        }
    };
    cluster.delete(&crds, "", "widgets.example.com", DeleteOptions::default()).await.unwrap();
    while let Some(batch) = watch.next().await {
        let established = batch.unwrap().iter().any(|event| {
            let crd: Value = event.object.decode().unwrap();
            condition(&crd, "Established")["status"] == "True"
        });
        if established {
            break;
        }
    }
}

#[tokio::test]
async fn a_definition_goes_with_its_objects_and_takes_none_meanwhile() {
    let cluster = Cluster::start().await;
    let crds = resource("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    let widgets = resource("example.com", "v1", "widgets");
    defined(&cluster, definition()).await;
    let mut held = widget("held", json!({"size": 1}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.create(&widgets, "default", held).await.unwrap();
    cluster.create(&widgets, "default", widget("free", json!({"size": 1}))).await.unwrap();

    let call = api::Call::Watch(api::ListOptions::default());
    let Ok(api::Response::Watch(mut watch)) = cluster.call(&crds, "", "", "", call).await else {
        panic!("no watch")
    };
    let ending = cluster.delete(&crds, "", "widgets.example.com", DeleteOptions::default()).await.unwrap();
    assert_eq!(condition(&ending, "Terminating")["reason"], "InstanceDeletionPending");
    let refused = cluster.create(&widgets, "default", widget("late", json!({"size": 1}))).await.unwrap_err();
    assert_eq!(refused.reason, Reason::MethodNotAllowed);
    assert_eq!(refused.message, "create not allowed while custom resource definition is terminating");
    let patch = json!({"metadata": {"finalizers": null}});
    cluster.patch(&widgets, ("default", "held", ""), PatchType::Merge, patch, options()).await.unwrap();
    let is_end = |event: &api::WatchEvent| event.kind == api::WatchEventKind::Deleted;
    while !watch.next().await.unwrap().unwrap().iter().any(is_end) {}
}

#[tokio::test]
async fn a_new_default_reaches_objects_that_are_stored() {
    let cluster = Cluster::start().await;
    let crds = resource("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    let widgets = resource("example.com", "v1", "widgets");
    let mut crd = defined(&cluster, definition()).await;
    cluster.create(&widgets, "default", widget("a", json!({"size": 1}))).await.unwrap();
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    let properties = crd.pointer_mut(spec).unwrap();
    properties["shape"] = json!({"type": "string", "default": "round"});
    cluster.update(&crds, ("", "widgets.example.com", ""), &crd).await.unwrap();
    let read = cluster.get(&widgets, "default", "a").await.unwrap();
    assert_eq!(read["spec"]["shape"], "round");
    let list = get(&cluster, OBJECTS, JSON).await.json();
    assert_eq!(list["items"][0]["spec"]["shape"], "round");
}

#[tokio::test]
async fn versions_are_shown_as_asked_and_stored_as_said() {
    let cluster = Cluster::start().await;
    let crds = resource("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    let mut crd = definition();
    let mut second = crd["spec"]["versions"][0].clone();
    second["name"] = "v2".into();
    second["storage"] = false.into();
    crd["spec"]["versions"].as_array_mut().unwrap().push(second);
    let mut crd = defined(&cluster, crd).await;
    let (v1, v2) = (resource("example.com", "v1", "widgets"), resource("example.com", "v2", "widgets"));
    let mut object = widget("a", json!({"size": 1}));
    object["apiVersion"] = "example.com/v2".into();
    let made = cluster.create(&v2, "default", object).await.unwrap();
    assert_eq!(made["apiVersion"], "example.com/v2");
    let stored = async || {
        let path = "/registry/example.com/widgets/default/a";
        let read = cluster.store.range(store::RangeRequest::key(path)).await.unwrap();
        serde_json::from_slice::<Value>(&read.kvs[0].value).unwrap()["apiVersion"].clone()
    };
    assert_eq!(stored().await, json!("example.com/v1"));
    assert_eq!(cluster.get(&v1, "default", "a").await.unwrap()["apiVersion"], "example.com/v1");

    crd["spec"]["versions"][0]["storage"] = false.into();
    crd["spec"]["versions"][1]["storage"] = true.into();
    let crd = cluster.update(&crds, ("", "widgets.example.com", ""), &crd).await.unwrap();
    assert_eq!(crd["status"]["storedVersions"], json!(["v1", "v2"]));
    let read = cluster.get(&v1, "default", "a").await.unwrap();
    assert_eq!((&read["apiVersion"], stored().await), (&json!("example.com/v1"), json!("example.com/v1")));
    // Written again, even unchanged, it is stored in the present storage version.
    cluster.update(&v1, ("default", "a", ""), &read).await.unwrap();
    assert_eq!(stored().await, json!("example.com/v2"));
}

#[tokio::test]
async fn rules_are_held_against_writes_and_refused_where_they_are_none() {
    let cluster = Cluster::start().await;
    let crds = resource("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    let rules = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
    let mut wrong = definition();
    wrong.pointer_mut(rules).unwrap()["x-kubernetes-validations"] = json!([{"rule": "self.size >"}]);
    let refused = cluster.create(&crds, "", wrong).await.unwrap_err();
    let field = "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule";
    assert_eq!(refused.details.causes[0].field, field);
    assert!(refused.message.contains("compilation failed: ERROR: <input>:1:"), "{}", refused.message);

    let mut crd = definition();
    crd.pointer_mut(rules).unwrap()["x-kubernetes-validations"] = json!([
        {"rule": "self.color != 'green' || self.size < 5", "message": "green ones are small"},
        {"rule": "self.size >= oldSelf.size", "messageExpression": "'it was %d'.format([oldSelf.size])"},
    ]);
    defined(&cluster, crd).await;
    let widgets = resource("example.com", "v1", "widgets");
    let large = widget("a", json!({"size": 6, "color": "green"}));
    let refused = cluster.create(&widgets, "default", large).await.unwrap_err();
    assert_eq!(
        refused.message,
        "Widget.example.com \"a\" is invalid: spec: Invalid value: green ones are small"
    );
    cluster.create(&widgets, "default", widget("a", json!({"size": 3}))).await.unwrap();
    let patch = json!({"spec": {"size": 2}});
    let shrunk = cluster.patch(&widgets, ("default", "a", ""), PatchType::Merge, patch, options()).await;
    assert!(shrunk.unwrap_err().message.ends_with("spec: Invalid value: it was 3"));
}

#[tokio::test]
async fn upstreams_own_groups_need_an_approval_that_the_older_version_only_tells_of() {
    let cluster = Cluster::start().await;
    let mut crd = definition();
    crd["metadata"]["name"] = "widgets.example.k8s.io".into();
    crd["spec"]["group"] = "example.k8s.io".into();
    let crds = resource("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    let needs = "protected groups must have approval annotation \"api-approved.kubernetes.io\", see \
                 https://github.com/kubernetes/enhancements/pull/1111";
    let refused = cluster.create(&crds, "", crd.clone()).await.unwrap_err();
    assert!(refused.code == 422 && refused.message.ends_with(needs), "{}", refused.message);

    let old = resource("apiextensions.k8s.io", "v1beta1", "customresourcedefinitions");
    crd["apiVersion"] = "apiextensions.k8s.io/v1beta1".into();
    crd["spec"]["preserveUnknownFields"] = false.into();
    // The older version spells their paths otherwise.
    crd["spec"]["versions"][0].as_object_mut().unwrap().remove("additionalPrinterColumns");
    cluster.create(&old, "", crd).await.unwrap();
    let said = async || {
        let crd = cluster.get(&crds, "", "widgets.example.k8s.io").await.unwrap();
        let told = condition(&crd, "KubernetesAPIApprovalPolicyConformant");
        ["status", "reason", "message"].map(|field| told[field].as_str().unwrap().to_owned())
    };
    assert_eq!(said().await, ["False", "MissingAnnotation", needs]);
    // What was let in may be changed, and approved.
    let change = |name: &str, value: &str| json!({"metadata": {"annotations": {name: value}}});
    for (change, wanted) in [
        (change("a", "b"), ["False", "MissingAnnotation", needs]),
        (
            change("api-approved.kubernetes.io", "https://example.com/1"),
            ["True", "ApprovedAnnotation", "approved in https://example.com/1"],
        ),
    ] {
        let place = ("", "widgets.example.k8s.io", "");
        cluster.patch(&crds, place, PatchType::Merge, change, WriteOptions::default()).await.unwrap();
        assert_eq!(said().await, wanted);
    }
}

#[tokio::test]
async fn definitions_and_their_objects_outlive_the_server_and_end_together() {
    let first = Cluster::start().await;
    defined(&first, definition()).await;
    let widgets = resource("example.com", "v1", "widgets");
    let mut held = widget("held", json!({"size": 1}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    first.create(&widgets, "default", held).await.unwrap();
    first.create(&widgets, "default", widget("free", json!({"size": 2}))).await.unwrap();

    let second = Cluster::start_over(first.store.clone()).await;
    assert_eq!(second.get(&widgets, "default", "free").await.unwrap()["spec"]["size"], 2);
    let crds = resource("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    second.delete(&crds, "", "widgets.example.com", DeleteOptions::default()).await.unwrap();
    // The end that one server began the next brings about: what held the last object lets go of it there.
    let third = Cluster::start_over(second.store.clone()).await;
    let refused = third.create(&widgets, "default", widget("late", json!({"size": 3}))).await.unwrap_err();
    assert_eq!(refused.code, 405);
    let call = api::Call::Watch(api::ListOptions::default());
    let api::Response::Watch(mut watch) = third.call(&crds, "", "", "", call).await.unwrap() else {
        panic!()
    };
    let patch = json!({"metadata": {"finalizers": null}});
    let place = ("default", "held", "");
    third.patch(&widgets, place, PatchType::Merge, patch, WriteOptions::default()).await.unwrap();
    let mut gone = false;
    while !gone {
        let events = watch.next().await.unwrap().unwrap();
        gone = events.iter().any(|event| event.kind == api::WatchEventKind::Deleted);
    }
    assert_eq!(third.get(&crds, "", "widgets.example.com").await.unwrap_err().code, 404);
    let left = third.store.range(store::RangeRequest::prefix("/registry/example.com/")).await.unwrap();
    assert_eq!(left.kvs.len(), 0);
}

#[tokio::test]
async fn each_version_is_selected_by_its_own_fields() {
    let cluster = Cluster::start().await;
    let mut gadgets = definition();
    gadgets["metadata"]["name"] = "gadgets.example.com".into();
    gadgets["spec"]["names"] = json!({"plural": "gadgets", "kind": "Gadget"});
    gadgets["spec"]["scope"] = "Cluster".into();
    let versions = &mut gadgets["spec"]["versions"];
    let mut other = versions[0].clone();
    other["name"] = "v2".into();
    other["storage"] = false.into();
    other["schema"]["openAPIV3Schema"]["description"] = "The next one.".into();
    other["selectableFields"] = json!([{"jsonPath": ".status.replicas"}, {"jsonPath": ".spec.size"}]);
    versions.as_array_mut().unwrap().push(other);
    defined(&cluster, gadgets).await;

    let gadget = json!({"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "a"},
        "spec": {"size": 3, "color": "green"}});
    cluster.create(&resource("example.com", "v1", "gadgets"), "", gadget).await.unwrap();
    let select = async |version: &str, selector: &str| {
        let path = format!("/apis/example.com/{version}/gadgets?fieldSelector={selector}");
        let answer = get(&cluster, &path, JSON).await;
        match answer.code {
            200 => Ok(answer.json()["items"].as_array().unwrap().len()),
            code => Err((code, answer.message().to_owned())),
        }
    };
    let refused = |field: &str| Err((400, format!("field label not supported: {field}")));
    assert_eq!(select("v1", "spec.color%3Dgreen").await, Ok(1));
    assert_eq!(select("v1", "spec.size%3D3").await, refused("spec.size"));
    assert_eq!(select("v2", "spec.size%3D3,metadata.name!%3Db").await, Ok(1));
    assert_eq!(select("v2", "spec.size%3D4").await, Ok(0));
    assert_eq!(select("v2", "spec.color%3Dgreen").await, refused("spec.color"));
    // What is absent is the empty text, whatever its name, and there are no namespaces.
    assert_eq!(select("v2", "status.replicas%3D").await, Ok(1));
    assert_eq!(select("v2", "status.replicas%3D0").await, Ok(0));
    assert_eq!(select("v1", "metadata.namespace%3Da").await, refused("metadata.namespace"));

    let fields = async |version: &str, kind: &str| {
        let path = format!("/openapi/v3/apis/example.com/{version}");
        let document = get(&cluster, &path, JSON).await.json();
        let name = format!("com.example.{version}.{kind}");
        document["components"]["schemas"][name]["x-kubernetes-selectable-fields"].clone()
    };
    assert_eq!(fields("v1", "Gadget").await, json!([{"fieldPath": "spec.color"}]));
    let both = json!([{"fieldPath": "status.replicas"}, {"fieldPath": "spec.size"}]);
    assert_eq!((fields("v2", "Gadget").await, fields("v2", "GadgetList").await), (both.clone(), both));
}

#[tokio::test]
async fn an_old_definition_keeps_what_its_schema_does_not_know_and_tells_so() {
    let cluster = Cluster::start().await;
    let old = resource("apiextensions.k8s.io", "v1beta1", "customresourcedefinitions");
    let crds = resource("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    let schema =
        json!({"properties": {"spec": {"required": ["size"], "properties": {"size": {"type": "integer"}}}}});
    let object = json!({"apiVersion": "apiextensions.k8s.io/v1beta1", "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "version": "v1", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget"}, "validation": {"openAPIV3Schema": schema}}});
    cluster.create(&old, "", object.clone()).await.unwrap();
    let mut crd = cluster.get(&crds, "", "widgets.example.com").await.unwrap();
    assert_eq!(crd["spec"]["preserveUnknownFields"], true);
    let told = condition(&crd, "NonStructuralSchema");
    let at = "spec.versions[0].schema.openAPIV3Schema";
    assert_eq!((&told["status"], &told["reason"]), (&json!("True"), &json!("Violations")));
    assert_eq!(
        told["message"],
        format!(
            "[spec.preserveUnknownFields: Invalid value: true: must be false, {at}.properties[spec].type: Required value: \
             must not be empty for specified object fields, {at}.type: Required value: must not be empty at the root]"
        )
    );
    // Unknown fields stay at every level, and what the schema asks for is asked for.
    let made = write(
        &cluster,
        Method::POST,
        OBJECTS,
        JSON,
        widget("a", json!({"size": 1, "deep": {"x": [1]}})).to_string(),
    );
    let made = made.await;
    assert_eq!((made.code, made.warnings().len()), (201, 0), "{}", made.message());
    assert_eq!(made.json()["spec"]["deep"], json!({"x": [1]}));
    let refused = write(&cluster, Method::POST, OBJECTS, JSON, widget("b", json!({})).to_string()).await;
    assert!(
        refused.code == 422 && refused.message().contains("spec.size: Required value"),
        "{}",
        refused.message()
    );
    let v3 = get(&cluster, "/openapi/v3/apis/example.com/v1", JSON).await.json();
    assert!(v3["components"]["schemas"]["com.example.v1.Widget"]["properties"].is_null());
    // It may be changed as it is, and what is structural tells nothing.
    crd["metadata"]["labels"] = json!({"a": "b"});
    let crd = cluster.update(&crds, ("", "widgets.example.com", ""), &crd).await.unwrap();
    let mut new = crd.clone();
    new["spec"]["preserveUnknownFields"] = false.into();
    let refused = cluster.update(&crds, ("", "widgets.example.com", ""), &new).await.unwrap_err();
    assert_eq!(refused.code, 422);
    new["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}}}}});
    cluster.update(&crds, ("", "widgets.example.com", ""), &new).await.unwrap();
    let crd = cluster.get(&crds, "", "widgets.example.com").await.unwrap();
    let conditions = crd["status"]["conditions"].as_array().unwrap();
    assert!(!conditions.iter().any(|one| one["type"] == "NonStructuralSchema"), "{conditions:?}");
    let mut another = object;
    another["spec"]["names"] = json!({"plural": "gadgets", "kind": "Gadget"});
    another["metadata"]["name"] = "gadgets.example.com".into();
    another["spec"]["validation"]["openAPIV3Schema"]["properties"]["spec"]["default"] = json!({});
    let refused = cluster.create(&old, "", another).await.unwrap_err();
    assert!(
        refused.message.contains("must be false in order to use defaults in the schema"),
        "{}",
        refused.message
    );
}
