//! Behaviours of the conformance list (`docs/conformance.md`) that no other test here checks as a side of its subject.

use api::{Call, ListOptions, PatchType, Response, WatchEventKind, WatchStream, WriteOptions};
use futures::StreamExt;
use http::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, options, resource, signing_request};
use crate::http_front::{JSON, get, send, write};

const MERGE: &str = "application/merge-patch+json";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

/// What a watch of ConfigMaps in `default` tells: kind, name and `data.n`.
type Seen = (WatchEventKind, String, String);

struct Watch {
    stream: WatchStream,
    pending: Vec<(String, Seen)>,
}

impl Watch {
    async fn open(cluster: &Cluster, labels: &str, revision: &str) -> Self {
        let options = ListOptions {
            label_selector: labels.into(),
            resource_version: revision.into(),
            ..ListOptions::default()
        };
        let call = Call::Watch(options);
        match cluster.call(&resource("", "v1", "configmaps"), "default", "", "", call).await {
            Ok(Response::Watch(stream)) => Self { stream, pending: Vec::new() },
            Ok(_) => panic!("no watch"),
            Err(status) => panic!("{status}"),
        }
    }

    /// The next event and the version that it carries.
    async fn next(&mut self) -> (String, Seen) {
        while self.pending.is_empty() {
            let batch = self.stream.next().await.unwrap().unwrap();
            self.pending.extend(batch.into_iter().map(|event| {
                let object: Value = event.object.decode().unwrap();
                let number = object["data"]["n"].as_str().unwrap_or_default().to_owned();
                let meta = event.object.meta();
                (meta.resource_version.clone(), (event.kind, meta.name.clone(), number))
            }));
        }
        self.pending.remove(0)
    }

    async fn tells(&mut self, kind: WatchEventKind, name: &str, number: &str) -> String {
        let (revision, seen) = self.next().await;
        assert_eq!(seen, (kind, name.to_owned(), number.to_owned()));
        revision
    }
}

async fn make(cluster: &Cluster, name: &str, label: &str) -> String {
    let object = json!({ "metadata": { "name": name, "labels": { "watch": label } }, "data": { "n": "0" } });
    let made = cluster.create(&resource("", "v1", "configmaps"), "default", object).await.unwrap();
    made["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

async fn set(cluster: &Cluster, name: &str, number: &str) -> String {
    let (maps, patch) = (resource("", "v1", "configmaps"), json!({ "data": { "n": number } }));
    let place = ("default", name, "");
    let changed = cluster.patch(&maps, place, PatchType::Merge, patch, options()).await.unwrap();
    changed["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

async fn remove(cluster: &Cluster, name: &str) {
    let maps = resource("", "v1", "configmaps");
    cluster.delete(&maps, "default", name, api::DeleteOptions::default()).await.unwrap();
}

#[tokio::test]
async fn a_watch_starts_after_the_version_it_names() {
    let cluster = Cluster::start().await;
    make(&cluster, "a", "x").await;
    let first = set(&cluster, "a", "1").await;
    set(&cluster, "a", "2").await;
    remove(&cluster, "a").await;
    let mut watch = Watch::open(&cluster, "watch=x", &first).await;
    watch.tells(WatchEventKind::Modified, "a", "2").await;
    watch.tells(WatchEventKind::Deleted, "a", "2").await;
}

#[tokio::test]
async fn a_closed_watch_goes_on_where_it_was() {
    let cluster = Cluster::start().await;
    let mut watch = Watch::open(&cluster, "watch=x", "").await;
    make(&cluster, "a", "x").await;
    watch.tells(WatchEventKind::Added, "a", "0").await;
    set(&cluster, "a", "1").await;
    let last = watch.tells(WatchEventKind::Modified, "a", "1").await;
    drop(watch);
    set(&cluster, "a", "2").await;
    remove(&cluster, "a").await;
    let mut again = Watch::open(&cluster, "watch=x", &last).await;
    again.tells(WatchEventKind::Modified, "a", "2").await;
    again.tells(WatchEventKind::Deleted, "a", "2").await;
}

#[tokio::test]
async fn several_watchers_see_what_they_select() {
    let cluster = Cluster::start().await;
    let mut a = Watch::open(&cluster, "watch=a", "").await;
    let mut b = Watch::open(&cluster, "watch=b", "").await;
    let mut both = Watch::open(&cluster, "watch in (a,b)", "").await;
    for (name, label) in [("one", "a"), ("two", "b")] {
        make(&cluster, name, label).await;
        set(&cluster, name, "1").await;
        remove(&cluster, name).await;
        let own = if label == "a" { &mut a } else { &mut b };
        for watch in [own, &mut both] {
            watch.tells(WatchEventKind::Added, name, "0").await;
            watch.tells(WatchEventKind::Modified, name, "1").await;
            watch.tells(WatchEventKind::Deleted, name, "1").await;
        }
    }
}

#[tokio::test]
async fn watches_from_every_version_tell_the_same_order() {
    let cluster = Cluster::start().await;
    let mut revisions = vec![make(&cluster, "base", "x").await];
    for number in 0..10 {
        let name = format!("m{number}");
        revisions.push(make(&cluster, &name, "x").await);
        revisions.push(set(&cluster, &name, "1").await);
        if number % 3 == 0 {
            remove(&cluster, &name).await;
        }
    }
    let whole = 10 * 2 + 4;
    let mut order = Vec::new();
    let mut first = Watch::open(&cluster, "watch=x", &revisions[0]).await;
    for _ in 0..whole {
        order.push(first.next().await);
    }
    for revision in &revisions[1..] {
        let begin = order.iter().position(|(seen, _)| seen == revision).unwrap() + 1;
        let mut watch = Watch::open(&cluster, "watch=x", revision).await;
        for expected in &order[begin..] {
            assert_eq!(&watch.next().await, expected);
        }
    }
}

#[tokio::test]
async fn what_has_no_table_is_not_acceptable_as_one() {
    let cluster = Cluster::start().await;
    let review =
        json!({ "spec": { "resourceAttributes": { "verb": "get", "resource": "pods" } } }).to_string();
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let headers = [("accept", TABLE), ("content-type", JSON)];
    let answer = send(&cluster, Some(&cluster.user), Method::POST, path, &headers, review).await;
    assert_eq!((answer.code, answer.json()["reason"].as_str()), (406, Some("NotAcceptable")));
}

#[tokio::test]
async fn every_groups_preferred_version_is_one_that_it_serves() {
    let cluster = Cluster::start().await;
    let groups = get(&cluster, "/apis", JSON).await.json();
    let groups = groups["groups"].as_array().unwrap();
    assert!(groups.len() > 15, "{}", groups.len());
    for group in groups {
        let preferred = &group["preferredVersion"]["groupVersion"];
        let served = group["versions"].as_array().unwrap();
        assert!(served.iter().any(|version| &version["groupVersion"] == preferred), "{group}");
        let name = group["name"].as_str().unwrap();
        let one = get(&cluster, &format!("/apis/{name}"), JSON).await.json();
        assert_eq!(&one["preferredVersion"]["groupVersion"], preferred);
        let listed = get(&cluster, &format!("/apis/{}", preferred.as_str().unwrap()), JSON).await.json();
        assert_eq!(&listed["groupVersion"], preferred);
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found_and_what_is_takes_its_own_methods() {
    let cluster = Cluster::start().await;
    for (method, path, code) in [
        (Method::PUT, "/api/v1/nothing", 404),
        (Method::PUT, "/api/v1/namespaces/default/configmaps", 405),
        (Method::POST, "/api/v1/configmaps", 405),
        (Method::POST, "/api/v1/namespaces/default/configmaps/a", 405),
        (Method::GET, "/api/v1/configmaps/a", 404),
        (Method::DELETE, "/api/v1/configmaps/a", 404),
        (Method::GET, "/apis/nothing.example.com/v1", 404),
    ] {
        let answer = write(&cluster, method.clone(), path, JSON, "{}").await;
        assert_eq!(answer.code, code, "{method} {path}: {}", answer.message());
    }
}

/// An object's life through every verb: created, read, listed, patched, updated, watched, deleted, and a collection
/// of its like deleted by label.
async fn lives(cluster: &Cluster, collection: &str, object: Value, patch: Value, part: &str) {
    let labelled = |name: &str| {
        let mut object = object.clone();
        object["metadata"] = json!({ "name": name, "labels": { "suite": "lives" } });
        object.to_string()
    };
    for name in ["one", "two", "three"] {
        let made = write(cluster, Method::POST, collection, JSON, labelled(name)).await;
        assert_eq!(made.code, 201, "{collection}: {}", made.message());
    }
    let again = write(cluster, Method::POST, collection, JSON, labelled("one")).await;
    assert_eq!((again.code, again.json()["reason"].as_str()), (409, Some("AlreadyExists")));
    let one = format!("{collection}/one");
    let names = async |query: &str| -> Vec<String> {
        let list = get(cluster, &format!("{collection}?{query}"), JSON).await.json();
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("labelSelector=suite%3Dlives").await, ["one", "three", "two"]);
    assert_eq!(names("fieldSelector=metadata.name%3Dtwo").await, ["two"]);
    // What its namespace has, all namespaces have.
    let everywhere = collection.replace("/namespaces/default", "");
    let all = get(cluster, &format!("{everywhere}?labelSelector=suite%3Dlives"), JSON).await.json();
    assert_eq!(all["items"].as_array().unwrap().len(), 3);

    let before = get(cluster, &one, JSON).await.json();
    let patched = write(cluster, Method::PATCH, &one, MERGE, patch.to_string()).await;
    assert_eq!(patched.code, 200, "{collection}: {}", patched.message());
    let mut patched = patched.json();
    assert_eq!(patched.pointer(part), patch.pointer(part), "{patched}");
    patched["metadata"]["annotations"] = json!({ "updated": "yes" });
    let updated = write(cluster, Method::PUT, &one, JSON, patched.to_string()).await;
    assert_eq!(updated.code, 200, "{collection}: {}", updated.message());
    assert_eq!(get(cluster, &one, JSON).await.json()["metadata"]["annotations"]["updated"], "yes");
    let stale = write(cluster, Method::PUT, &one, JSON, before.to_string()).await;
    assert_eq!((stale.code, stale.json()["reason"].as_str()), (409, Some("Conflict")));

    assert_eq!(write(cluster, Method::DELETE, &one, JSON, "").await.code, 200);
    assert_eq!(get(cluster, &one, JSON).await.code, 404);
    let rest = format!("{collection}?labelSelector=suite%3Dlives");
    assert_eq!(write(cluster, Method::DELETE, &rest, JSON, "").await.code, 200);
    assert_eq!(names("labelSelector=suite%3Dlives").await, Vec::<String>::new());
    let revision = before["metadata"]["resourceVersion"].as_str().unwrap();
    let watch = format!(
        "{collection}?watch=1&timeoutSeconds=1&resourceVersion={revision}&fieldSelector=metadata.name%3Done"
    );
    let kinds: Vec<Value> =
        get(cluster, &watch, JSON).await.events().into_iter().map(|event| event["type"].clone()).collect();
    assert_eq!(kinds, ["MODIFIED", "MODIFIED", "DELETED"]);
}

#[tokio::test]
async fn events_live_in_both_groups() {
    let cluster = Cluster::start().await;
    let core = json!({ "involvedObject": { "namespace": "default", "kind": "Pod", "name": "p" }, "type": "Normal",
        "reason": "Tested", "message": "first" });
    lives(&cluster, "/api/v1/namespaces/default/events", core, json!({ "message": "second" }), "/message")
        .await;
    let newer = json!({ "regarding": { "namespace": "default", "kind": "Pod", "name": "p" }, "type": "Normal",
        "reason": "Tested", "note": "first", "action": "Test", "reportingController": "example.com/test",
        "reportingInstance": "test-1", "eventTime": "2026-01-01T00:00:00.000000Z" });
    let series = json!({ "series": { "count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z" } });
    let path = "/apis/events.k8s.io/v1/namespaces/default/events";
    lives(&cluster, path, newer, series, "/series/count").await;
}

#[tokio::test]
async fn service_accounts_webhooks_and_quotas_live() {
    let cluster = Cluster::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let automount = json!({ "automountServiceAccountToken": false });
    lives(&cluster, accounts, json!({}), automount, "/automountServiceAccountToken").await;
    let quota = json!({ "spec": { "hard": { "pods": "5" } } });
    let more = json!({ "spec": { "hard": { "pods": "7" } } });
    lives(&cluster, "/api/v1/namespaces/default/resourcequotas", quota, more, "/spec/hard/pods").await;
    let webhook = json!({ "webhooks": [{ "name": "a.example.com", "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "clientConfig": { "url": "https://127.0.0.1:1/x" }, "rules": [
            { "apiGroups": ["example.com"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["none"] }] }] });
    for kind in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
        let path = format!("/apis/admissionregistration.k8s.io/v1/{kind}");
        let patch = json!({ "metadata": { "labels": { "patched": "yes" } } });
        lives(&cluster, &path, webhook.clone(), patch, "/metadata/labels/patched").await;
    }
}

#[tokio::test]
async fn certificate_requests_live_and_are_decided_and_signed_apart() {
    let cluster = Cluster::start().await;
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let request = signing_request();
    let object = json!({ "spec": { "request": request, "signerName": "example.com/nobody", "usages": ["client auth"],
        "expirationSeconds": 3600 } });
    let patch = json!({ "metadata": { "annotations": { "patched": "yes" } } });
    lives(&cluster, path, object.clone(), patch, "/metadata/annotations/patched").await;

    let mut named = object;
    named["metadata"] = json!({ "name": "csr" });
    assert_eq!(write(&cluster, Method::POST, path, JSON, named.to_string()).await.code, 201);
    let approved = json!({ "status": { "conditions": [
        { "type": "Approved", "status": "True", "reason": "Tested" }] } });
    let approval = format!("{path}/csr/approval");
    assert_eq!(get(&cluster, &approval, JSON).await.json()["metadata"]["name"], "csr");
    let answer = write(&cluster, Method::PATCH, &approval, MERGE, approved.to_string()).await;
    assert_eq!(answer.json()["status"]["conditions"][0]["type"], "Approved", "{}", answer.message());
    let failed = json!({ "type": "Failed", "status": "True", "reason": "Tested" });
    let mut signed = get(&cluster, &format!("{path}/csr/status"), JSON).await.json();
    signed["status"]["conditions"].as_array_mut().unwrap().push(failed);
    let answer = write(&cluster, Method::PUT, &format!("{path}/csr/status"), JSON, signed.to_string()).await;
    assert_eq!(
        answer.json()["status"]["conditions"].as_array().map(Vec::len),
        Some(2),
        "{}",
        answer.message()
    );
}

#[tokio::test]
async fn a_namespace_is_patched() {
    let cluster = Cluster::start().await;
    let namespaces = resource("", "v1", "namespaces");
    cluster.create(&namespaces, "", json!({ "metadata": { "name": "n" } })).await.unwrap();
    let patch = json!({ "metadata": { "labels": { "tested": "yes" } } });
    let place = ("", "n", "");
    let done =
        cluster.patch(&namespaces, place, PatchType::StrategicMerge, patch, WriteOptions::default()).await;
    let labels = json!({ "kubernetes.io/metadata.name": "n", "tested": "yes" });
    assert_eq!(done.unwrap()["metadata"]["labels"], labels);
}

/// A definition `KINDs.GROUP` with a version for each schema; the last one is stored.
fn definition(group: &str, kind: &str, versions: &[(&str, Value)]) -> Value {
    let plural = format!("{}s", kind.to_lowercase());
    let count = versions.len();
    let versions = versions.iter().enumerate().map(|(at, (name, schema))| {
        json!({ "name": name, "served": true, "storage": at + 1 == count, "schema": { "openAPIV3Schema": schema } })
    });
    json!({
        "metadata": { "name": format!("{plural}.{group}") },
        "spec": { "group": group, "scope": "Namespaced", "names": { "plural": plural, "kind": kind },
            "versions": versions.collect::<Vec<_>>() },
    })
}

/// The name in `/openapi/v2` of a kind of `com.example.GROUP`.
fn model(group: &str, version: &str, kind: &str) -> String {
    format!("com.example.{group}.{version}.{kind}")
}

async fn published(cluster: &Cluster, name: &str) -> Option<Value> {
    let document = get(cluster, "/openapi/v2", JSON).await.json();
    document["definitions"].get(name).cloned()
}

#[tokio::test]
async fn definitions_are_published_as_they_are_and_go_with_what_is_no_longer_served() {
    let cluster = Cluster::start().await;
    let definitions = resource("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    let schema = json!({ "type": "object", "properties": { "spec": { "type": "object", "description": "Wanted.",
        "required": ["bars"], "properties": { "bars": { "type": "array", "description": "All of them.",
            "items": { "type": "string" } } } } } });
    let free = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let inner = json!({ "type": "object", "properties": { "spec": free, "embedded": { "type": "object",
        "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true } } });
    // Kinds of one group, of several groups, and in several versions.
    for object in [
        definition("one.example.com", "Foo", &[("v1", schema.clone())]),
        definition("one.example.com", "Free", &[("v1", free.clone())]),
        definition("two.example.com", "Inner", &[("v1", inner)]),
        definition("two.example.com", "Foo", &[("v2", schema.clone()), ("v3", schema.clone())]),
    ] {
        cluster.create(&definitions, "", object).await.unwrap();
    }
    let foo = published(&cluster, &model("one", "v1", "Foo")).await.unwrap();
    assert_eq!(foo["properties"]["spec"]["description"], "Wanted.");
    assert_eq!(foo["properties"]["spec"]["properties"]["bars"]["items"]["type"], "string");
    assert_eq!(
        foo["x-kubernetes-group-version-kind"],
        json!([{ "group": "one.example.com", "version": "v1", "kind": "Foo" }])
    );
    let root = published(&cluster, &model("one", "v1", "Free")).await.unwrap();
    assert_eq!(root["x-kubernetes-preserve-unknown-fields"], true);
    let inner = published(&cluster, &model("two", "v1", "Inner")).await.unwrap();
    for place in ["spec", "embedded"] {
        let free = &inner["properties"][place]["x-kubernetes-preserve-unknown-fields"];
        assert_eq!(*free, true, "{place}");
    }
    for version in ["v2", "v3"] {
        assert!(published(&cluster, &model("two", version, "Foo")).await.is_some(), "{version}");
    }

    // One version is renamed, another is served no more.
    let mut changed = cluster.get(&definitions, "", "foos.two.example.com").await.unwrap();
    let mut renamed = changed["spec"]["versions"][0].clone();
    renamed["name"] = json!("v4");
    changed["spec"]["versions"][0] = renamed;
    changed["spec"]["versions"][1]["served"] = json!(false);
    cluster.update(&definitions, ("", "foos.two.example.com", ""), &changed).await.unwrap();
    assert!(published(&cluster, &model("two", "v4", "Foo")).await.is_some());
    for gone in ["v2", "v3"] {
        assert_eq!(published(&cluster, &model("two", gone, "Foo")).await, None, "{gone}");
    }
    assert_eq!(published(&cluster, &model("one", "v1", "Foo")).await, Some(foo));
}

#[tokio::test]
async fn a_definition_is_listed_has_a_status_and_is_found() {
    let cluster = Cluster::start().await;
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    for kind in ["Noxu", "Other"] {
        let mut object = definition("mygroup.example.com", kind, &[("v1", schema.clone())]);
        object["metadata"]["labels"] = json!({ "suite": "crd" });
        assert_eq!(write(&cluster, Method::POST, path, JSON, object.to_string()).await.code, 201);
    }
    let list = get(&cluster, &format!("{path}?labelSelector=suite%3Dcrd"), JSON).await.json();
    assert_eq!(list["items"].as_array().unwrap().len(), 2);
    let status = format!("{path}/noxus.mygroup.example.com/status");
    let mut object = get(&cluster, &status, JSON).await.json();
    let condition =
        json!({ "type": "Tested", "status": "True", "reason": "Test", "message": "set by a test" });
    object["status"]["conditions"].as_array_mut().unwrap().push(condition.clone());
    let answer = write(&cluster, Method::PUT, &status, JSON, object.to_string()).await;
    let conditions = answer.json()["status"]["conditions"].clone();
    let has = |kind: &str| conditions.as_array().unwrap().iter().any(|one| one["type"] == kind);
    assert!(has("Tested") && has("Established"), "{conditions}");
    let patch = json!({ "metadata": { "annotations": { "patched": "yes" } } }).to_string();
    assert_eq!(write(&cluster, Method::PATCH, &status, MERGE, patch).await.code, 200);

    let groups = get(&cluster, "/apis", JSON).await.json();
    let group =
        groups["groups"].as_array().unwrap().iter().find(|group| group["name"] == "mygroup.example.com");
    assert_eq!(group.unwrap()["preferredVersion"]["version"], "v1");
    let listed = get(&cluster, "/apis/mygroup.example.com/v1", JSON).await.json();
    assert_eq!(listed["resources"][0]["kind"], "Noxu");
    let own = get(&cluster, "/apis/apiextensions.k8s.io/v1", JSON).await.json();
    assert!(
        own["resources"].as_array().unwrap().iter().any(|one| one["name"] == "customresourcedefinitions")
    );

    assert_eq!(
        write(&cluster, Method::DELETE, &format!("{path}?labelSelector=suite%3Dcrd"), JSON, "").await.code,
        200
    );
    let left = get(&cluster, &format!("{path}?labelSelector=suite%3Dcrd"), JSON).await.json();
    // They go when their objects have gone.
    for definition in left["items"].as_array().unwrap() {
        assert!(definition["metadata"]["deletionTimestamp"].is_string(), "{definition}");
    }
}

#[tokio::test]
async fn custom_objects_are_watched_and_get_defaults_from_requests_and_from_what_is_stored() {
    let cluster = Cluster::start().await;
    let definitions = resource("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    let property = json!({ "type": "string", "default": "A" });
    let schema = json!({ "type": "object", "properties": { "a": property } });
    let foo = definition("defaults.example.com", "Foo", &[("v1", schema)]);
    cluster.create(&definitions, "", foo).await.unwrap();
    let path = "/apis/defaults.example.com/v1/namespaces/default/foos";
    let object =
        json!({ "apiVersion": "defaults.example.com/v1", "kind": "Foo", "metadata": { "name": "x" } });
    let made = write(&cluster, Method::POST, path, JSON, object.to_string()).await.json();
    assert_eq!(made["a"], "A");
    let revision = made["metadata"]["resourceVersion"].as_str().unwrap();
    let second = object.to_string().replace("\"x\"", "\"y\"");
    assert_eq!(write(&cluster, Method::POST, path, JSON, second).await.code, 201);
    assert_eq!(write(&cluster, Method::DELETE, &format!("{path}/y"), JSON, "").await.code, 200);
    let watch = format!("{path}?watch=1&timeoutSeconds=1&resourceVersion={revision}");
    let events = get(&cluster, &watch, JSON).await.events();
    let told: Vec<_> =
        events.iter().map(|event| (&event["type"], &event["object"]["metadata"]["name"])).collect();
    assert_eq!(told, [(&json!("ADDED"), &json!("y")), (&json!("DELETED"), &json!("y"))]);

    let later = json!({ "spec": { "versions": [{ "name": "v1", "served": true, "storage": true, "schema": {
        "openAPIV3Schema": { "type": "object", "properties": {
            "a": { "type": "string" }, "b": { "type": "string", "default": "B" } } } } }] } });
    let place = ("", "foos.defaults.example.com", "");
    cluster.patch(&definitions, place, PatchType::Merge, later, options()).await.unwrap();
    let read = get(&cluster, &format!("{path}/x"), JSON).await.json();
    assert_eq!((&read["a"], &read["b"]), (&json!("A"), &json!("B")));
}
