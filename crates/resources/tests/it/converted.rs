//! Custom resources that a webhook converts between their versions.

use api::{Call, ListOptions, PatchType, Response, WatchEventKind, WriteOptions};
use futures::StreamExt;
use serde_json::{Value, json};

use crate::cluster::{Cluster, options, resource};
use crate::hook_server::HookServer;

/// Version v1 says `spec.hostPort`, version v2 `spec.host` and `spec.port`.
fn definition(client: Value, stored: &str) -> Value {
    let version = |name: &str, fields: Value| {
        json!({
            "name": name, "served": true, "storage": name == stored, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": fields},
                "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}},
        })
    };
    let text = json!({"type": "string"});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "routes.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "routes", "kind": "Route"},
            "versions": [version("v1", json!({"hostPort": text})),
                version("v2", json!({"host": text, "port": text, "weight": {"type": "integer", "default": 1}}))],
            "conversion": {"strategy": "Webhook",
                "webhook": {"conversionReviewVersions": ["v3", "v1"], "clientConfig": client}},
        },
    })
}

fn convert(mut object: Value, version: &Value) -> Value {
    let (spec, to) = (object["spec"].clone(), version.as_str().unwrap());
    if to.ends_with("v2") {
        let (host, port) = spec["hostPort"].as_str().unwrap().split_once(':').unwrap();
        object["spec"] = json!({"host": host, "port": port, "dropped": true});
    } else {
        let text = |field: &str| spec[field].as_str().unwrap().to_owned();
        object["spec"] = json!({"hostPort": format!("{}:{}", text("host"), text("port"))});
    }
    object["apiVersion"] = version.clone();
    object["metadata"]["labels"] = json!({"converted": "yes"});
    // What no webhook may change.
    object["metadata"]["generation"] = 99.into();
    object
}

fn says(path: &str, review: &Value) -> Option<Value> {
    let request = &review["request"];
    let version = &request["desiredAPIVersion"];
    let objects = request["objects"].as_array().unwrap().iter();
    let mut objects: Vec<Value> = objects.map(|object| convert(object.clone(), version)).collect();
    let mut result = json!({"status": "Success"});
    match path {
        "/renames" => objects.iter_mut().for_each(|object| object["metadata"]["name"] = "other".into()),
        "/refuses" => result = json!({"status": "Failed", "message": "not today"}),
        "/loses" => drop(objects.pop()),
        _ => {}
    }
    let response = json!({"uid": request["uid"], "result": result, "convertedObjects": objects});
    Some(json!({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}))
}

fn route(version: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("example.com/{version}"), "kind": "Route", "metadata": {"name": name}, "spec": spec})
}

/// The conformance cases "conversion custom resource" and "convert mixed version list", and what surrounds them.
#[tokio::test]
async fn a_webhook_converts_what_is_read_written_and_watched() {
    let (cluster, hook) = (Cluster::start().await, HookServer::start(says).await);
    hook.serve_as_service(&cluster).await;
    let crds = resource("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    cluster.create(&crds, "", definition(hook.by_service("/convert"), "v1")).await.unwrap();
    let [v1, v2] = ["v1", "v2"].map(|version| resource("example.com", version, "routes"));

    let made = route("v1", "a", json!({"hostPort": "a.example:80"}));
    cluster.create(&v1, "default", made).await.unwrap();
    assert!(hook.asked().is_empty(), "what is stored as it is written needs no conversion");
    let read = cluster.get(&v2, "default", "a").await.unwrap();
    assert_eq!(read["spec"], json!({"host": "a.example", "port": "80", "weight": 1}));
    assert_eq!(
        (&read["metadata"]["labels"], &read["metadata"]["generation"]),
        (&json!({"converted": "yes"}), &json!(1))
    );
    let asked = hook.asked();
    assert_eq!((asked.len(), asked[0].0.as_str()), (1, "/convert"));
    assert_eq!(asked[0].1["apiVersion"], "apiextensions.k8s.io/v1");
    assert_eq!(asked[0].1["request"]["desiredAPIVersion"], "example.com/v2");

    let merge = json!({"spec": {"port": "81"}});
    let place = ("default", "a", "");
    cluster.patch(&v2, place, PatchType::Merge, merge, WriteOptions::default()).await.unwrap();
    assert_eq!(cluster.get(&v1, "default", "a").await.unwrap()["spec"]["hostPort"], "a.example:81");

    let mut client = hook.by_url("/convert");
    client["service"] = Value::Null;
    let stored = definition(client, "v2")["spec"].clone();
    let change = json!({"spec": {"versions": stored["versions"], "conversion": stored["conversion"]}});
    let place = ("", "routes.example.com", "");
    cluster.patch(&crds, place, PatchType::Merge, change, options()).await.unwrap();
    let made = route("v2", "b", json!({"host": "b.example", "port": "1"}));
    cluster.create(&v2, "default", made).await.unwrap();
    hook.asked();
    let call = Call::List(ListOptions::default());
    let Response::List(list) = cluster.call(&v2, "default", "", "", call).await.unwrap() else { panic!() };
    let items: Vec<Value> = list.items.iter().map(|item| item.decode().unwrap()).collect();
    assert_eq!(items.iter().map(|item| &item["spec"]["port"]).collect::<Vec<_>>(), ["81", "1"]);
    assert!(items.iter().all(|item| item["apiVersion"] == "example.com/v2"));
    let asked = hook.asked();
    assert_eq!((asked.len(), asked[0].1["request"]["objects"].as_array().unwrap().len()), (1, 1));

    let call = Call::Watch(ListOptions::default());
    let Response::Watch(mut watch) = cluster.call(&v1, "default", "", "", call).await.unwrap() else {
        panic!()
    };
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let events = watch.next().await.unwrap().unwrap();
        let shown = events.iter().filter(|event| event.kind == WatchEventKind::Added);
        seen.extend(shown.map(|event| event.object.decode::<Value>().unwrap()["spec"]["hostPort"].clone()));
    }
    assert_eq!(seen, ["a.example:81", "b.example:1"]);
}

#[tokio::test]
async fn what_a_conversion_webhook_may_not_do_is_told_in_upstreams_words() {
    let (cluster, hook) = (Cluster::start().await, HookServer::start(says).await);
    let crds = resource("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    cluster.create(&crds, "", definition(hook.by_url("/"), "v1")).await.unwrap();
    let [v1, v2] = ["v1", "v2"].map(|version| resource("example.com", version, "routes"));
    cluster.create(&v1, "default", route("v1", "a", json!({"hostPort": "a:80"}))).await.unwrap();
    let nowhere = json!({"url": "https://127.0.0.1:1/x"});
    let missing = json!({"service": {"namespace": "default", "name": "none", "port": 443, "path": "/x"}});
    let about = "conversion webhook for example.com/v1, Kind=Route";
    for (client, wanted) in [
        (
            hook.by_url("/renames"),
            format!("{about} returned invalid object: must have the same name: a != other"),
        ),
        (hook.by_url("/refuses"), format!("{about} failed: not today")),
        (hook.by_url("/loses"), format!("{about} returned 0 objects, expected 1")),
        (
            nowhere,
            format!(
                "{about} failed: Post \"https://127.0.0.1:1/x\": dial tcp 127.0.0.1:1: connect: connection refused"
            ),
        ),
        (
            missing,
            format!("{about} failed: Post \"https://none.default.svc:443/x\": service \"none\" not found"),
        ),
    ] {
        let change =
            json!([{"op": "replace", "path": "/spec/conversion/webhook/clientConfig", "value": client}]);
        let place = ("", "routes.example.com", "");
        cluster.patch(&crds, place, PatchType::Json, change, options()).await.unwrap();
        let refused = cluster.get(&v2, "default", "a").await.unwrap_err();
        assert_eq!((refused.code, refused.message), (500, wanted));
        // Who speaks the version that is stored needs no webhook.
        cluster.get(&v1, "default", "a").await.unwrap();
    }
}
