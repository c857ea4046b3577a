//! The catalog changes while the server runs: a row that is inserted is served, discovered and described at once, and one
//! that is removed is not.

use std::sync::Arc;

use api::catalog::{ALL_VERBS, Row};
use api::schema::{Name, Schema, Struct, Type};
use api::{Call, ListOptions, PatchType, Reason, Response, WatchEventKind};
use futures::StreamExt;
use serde_json::json;

use crate::cluster::{Cluster, options, resource};
use crate::http_front::{JSON, get};

/// A kind that nobody built in; its objects hold what they like.
fn widgets() -> Row {
    let mut schema = Schema::default();
    let mut kind = |kind: &'static str| {
        schema.add(Type::Struct(Box::new(Struct {
            name: format!("com.example.v1.{kind}").into(),
            preserve_unknown: true,
            kind: Some(["example.com", "v1", kind].map(Name::Borrowed)),
            ..Struct::default()
        })))
    };
    let (ty, _) = (kind("Widget"), kind("WidgetList"));
    Row {
        group: "example.com".into(),
        version: "v1".into(),
        kind: "Widget".into(),
        list_kind: "WidgetList".into(),
        plural: "widgets".into(),
        singular: "widget".into(),
        short_names: vec!["wd".into()],
        categories: Vec::new(),
        namespaced: true,
        verbs: ALL_VERBS.map(Name::Borrowed).to_vec(),
        subresources: Vec::new(),
        storage_group: "example.com".into(),
        storage_version: "v1".into(),
        deprecation: None,
        selectable_fields: Vec::new(),
        schema: Arc::new(schema),
        ty,
        custom: None,
    }
}

async fn described(cluster: &Cluster) -> [bool; 4] {
    let group = get(cluster, "/apis/example.com/v1", JSON).await;
    let form = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let holds = async |path: &str, accept: &str, what: &str| {
        get(cluster, path, accept).await.json().to_string().contains(what)
    };
    [
        group.code == 200 && group.json()["resources"][0]["shortNames"] == json!(["wd"]),
        holds("/apis", form, "\"widgets\"").await,
        holds("/openapi/v2", JSON, "com.example.v1.Widget").await,
        holds("/openapi/v3", JSON, "apis/example.com/v1?hash=").await,
    ]
}

#[tokio::test]
async fn a_row_that_comes_at_run_time_is_served_at_once_and_one_that_goes_is_not() {
    let cluster = Cluster::start().await;
    let widgets_of = resource("example.com", "v1", "widgets");
    let object = |name: &str| json!({ "metadata": { "name": name }, "spec": { "size": 3, "any": ["x"] } });
    let unknown = cluster.create(&widgets_of, "default", object("a")).await.unwrap_err();
    assert_eq!((unknown.reason, described(&cluster).await), (Reason::NotFound, [false; 4]));

    cluster.pipeline.serve(widgets()).await;
    assert_eq!(described(&cluster).await, [true; 4]);
    let call = Call::Watch(ListOptions::default());
    let Ok(Response::Watch(mut stream)) = cluster.call(&widgets_of, "default", "", "", call).await else {
        panic!("no watch");
    };
    let made = cluster.create(&widgets_of, "default", object("a")).await.unwrap();
    assert_eq!((&made["kind"], &made["apiVersion"]), (&json!("Widget"), &json!("example.com/v1")));
    assert_eq!((&made["spec"]["any"], &made["metadata"]["generation"]), (&json!(["x"]), &json!(1)));
    let event = stream.next().await.unwrap().unwrap().remove(0);
    assert_eq!((event.kind, event.object.meta().name.as_str()), (WatchEventKind::Added, "a"));
    let patch = json!({ "spec": { "size": 4 } });
    let place = ("default", "a", "");
    let patched = cluster.patch(&widgets_of, place, PatchType::Merge, patch, options()).await.unwrap();
    assert_eq!((&patched["spec"]["size"], &patched["metadata"]["generation"]), (&json!(4), &json!(2)));
    let call = Call::List(ListOptions::default());
    let Ok(Response::List(list)) = cluster.call(&widgets_of, "", "", "", call).await else {
        panic!("no list")
    };
    assert_eq!(list.items.len(), 1);

    cluster.pipeline.withdraw(&widgets_of);
    assert_eq!(described(&cluster).await, [false; 4]);
    let gone = cluster.get(&widgets_of, "default", "a").await.unwrap_err();
    assert_eq!(gone.reason, Reason::NotFound);
    while let Some(batch) = stream.next().await {
        if let Err(ended) = batch {
            assert_eq!(ended.reason, Reason::Expired);
        }
    }
    // What was stored is there again with the row.
    cluster.pipeline.serve(widgets()).await;
    let again = cluster.get(&widgets_of, "default", "a").await.unwrap();
    assert_eq!(again["spec"]["size"], 4);
}
