//! Priority and fairness as clients meet it: the objects that every cluster has, who waits, and who is turned away.

use std::sync::Arc;

use api::Status;
use api::connect::{Body, NodeAddress, NodeConnector, User};
use async_trait::async_trait;
use base::lifecycle::Tasks;
use bytes::Bytes;
use futures::channel::mpsc;
use futures::{SinkExt, StreamExt};
use http::{Method, Request};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::{Value, json};

use crate::cluster::{Cluster, resource};
use crate::http_front::{Answer, JSON, MAPS, get, send, write};

const GROUP: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";
const MERGE: &str = "application/merge-patch+json";

/// Waits for what levels and schemas lead to.
async fn until(cluster: &Cluster, what: &str, holds: impl AsyncFnMut() -> bool) {
    let of = |plural| resource("flowcontrol.apiserver.k8s.io", "v1", plural);
    cluster.until(&[of("prioritylevelconfigurations"), of("flowschemas")], what, holds).await;
}

#[tokio::test]
async fn the_default_objects_are_there_and_kept() {
    let cluster = Cluster::start().await;
    let names = async |plural: &str| -> Vec<String> {
        let list = get(&cluster, &format!("{GROUP}/{plural}"), JSON).await.json();
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        names("prioritylevelconfigurations").await,
        [
            "catch-all",
            "exempt",
            "global-default",
            "leader-election",
            "node-high",
            "system",
            "workload-high",
            "workload-low"
        ]
    );
    assert_eq!(names("flowschemas").await.len(), 11);
    let level = |name: &str| format!("{GROUP}/prioritylevelconfigurations/{name}");
    let shares = json!({ "spec": { "limited": { "nominalConcurrencyShares": 77 } } });
    let shares_of = async |name: &str| {
        get(&cluster, &level(name), JSON).await.json()["spec"]["limited"]["nominalConcurrencyShares"].clone()
    };
    // Mandatory ones go back, suggested ones follow their annotation, and what is deleted comes again.
    for (name, shipped) in [("catch-all", 5), ("system", 30)] {
        assert_eq!(write(&cluster, Method::PATCH, &level(name), MERGE, shares.to_string()).await.code, 200);
        until(&cluster, "as shipped", async || shares_of(name).await == shipped).await;
    }
    let own = json!({ "metadata": { "annotations": { "apf.kubernetes.io/autoupdate-spec": "false" } } });
    assert_eq!(write(&cluster, Method::PATCH, &level("system"), MERGE, own.to_string()).await.code, 200);
    assert_eq!(write(&cluster, Method::PATCH, &level("system"), MERGE, shares.to_string()).await.code, 200);
    assert_eq!(write(&cluster, Method::DELETE, &level("node-high"), JSON, "").await.code, 200);
    until(&cluster, "again there", async || get(&cluster, &level("node-high"), JSON).await.code == 200).await;
    assert_eq!(shares_of("system").await, 77);
    // A schema without its level dangles until there is one.
    let condition = async || {
        let schema = get(&cluster, &format!("{GROUP}/flowschemas/probes"), JSON).await.json();
        schema["status"]["conditions"][0].clone()
    };
    until(&cluster, "found", async || condition().await["reason"] == "Found").await;
    let schema = json!({ "metadata": { "name": "lost" }, "spec": { "priorityLevelConfiguration": { "name": "nowhere" } } });
    let made = write(&cluster, Method::POST, &format!("{GROUP}/flowschemas"), JSON, schema.to_string()).await;
    assert_eq!(made.code, 201, "{}", made.message());
    until(&cluster, "dangling", async || {
        let lost = get(&cluster, &format!("{GROUP}/flowschemas/lost/status"), JSON).await.json();
        lost["status"]["conditions"][0]["status"] == "True"
    })
    .await;
}

/// Jane, who may do everything, has a level of her own that lets one request in, and one wait.
async fn with_narrow_level() -> (Cluster, User) {
    let cluster = Cluster::start().await;
    let jane = narrow(&cluster).await;
    (cluster, jane)
}

/// Gives a cluster Jane and her level.
async fn narrow(cluster: &Cluster) -> User {
    let jane = apiserver::authn::authenticated(User { name: "jane".into(), ..User::default() });
    let post = async |path: String, object: Value| {
        let made = write(cluster, Method::POST, &path, JSON, object.to_string()).await;
        assert_eq!(made.code, 201, "{}", made.message());
    };
    let role =
        json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" });
    let binding = json!({ "metadata": { "name": "jane" }, "roleRef": role, "subjects": [
        { "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane" } ] });
    post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings".into(), binding).await;
    let queuing = json!({ "queues": 1, "handSize": 1, "queueLengthLimit": 1 });
    let level = json!({ "metadata": { "name": "narrow" }, "spec": { "type": "Limited", "limited": {
        "nominalConcurrencyShares": 0, "borrowingLimitPercent": 0,
        "limitResponse": { "type": "Queue", "queuing": queuing } } } });
    post(format!("{GROUP}/prioritylevelconfigurations"), level).await;
    let rule = json!({ "subjects": [{ "kind": "User", "user": { "name": "jane" } }], "resourceRules": [
        { "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true } ] });
    let schema = json!({ "metadata": { "name": "jane" }, "spec": {
        "matchingPrecedence": 50, "priorityLevelConfiguration": { "name": "narrow" }, "rules": [rule] } });
    post(format!("{GROUP}/flowschemas"), schema).await;
    until(cluster, "classified", async || {
        let uid = get(cluster, &format!("{GROUP}/flowschemas/jane"), JSON).await.json();
        let answer = send(cluster, Some(&jane), Method::GET, MAPS, &[], "").await;
        uid["metadata"]["uid"] == answer.header("x-kubernetes-pf-flowschema-uid")
    })
    .await;
    jane
}

/// A node that takes a request and never begins to answer.
struct Silent;

#[async_trait]
impl NodeConnector for Silent {
    async fn request(&self, _: &NodeAddress, _: Request<Body>) -> Result<http::Response<Body>, Status> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn what_lasts_as_its_client_likes_holds_no_seat() {
    let tasks = Tasks::default();
    let cluster = crate::aggregation::with_sample_and(&tasks, Arc::new(Silent)).await;
    let jane = narrow(&cluster).await;
    let made = async |path: &str, object: Value| {
        let made = write(&cluster, Method::POST, path, JSON, object.to_string()).await;
        assert_eq!(made.code, 201, "{}", made.message());
    };
    made("/api/v1/namespaces/default/serviceaccounts", json!({ "metadata": { "name": "default" } })).await;
    made("/api/v1/nodes", json!({ "metadata": { "name": "n" } })).await;
    let address = json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] } });
    let told = write(&cluster, Method::PATCH, "/api/v1/nodes/n/status", MERGE, address.to_string()).await;
    assert_eq!(told.code, 200, "{}", told.message());
    let pod = json!({ "metadata": { "name": "p" }, "spec": {
        "nodeName": "n", "containers": [{ "name": "c", "image": "i" }] } });
    made("/api/v1/namespaces/default/pods", pod).await;
    let pods = "/api/v1/namespaces/default/pods/p";
    for path in [
        format!("{pods}/log?follow=true&timeout=as-the-node-likes"),
        format!("{pods}/exec?command=sh&container=c"),
        format!("{}?watch=true&timeout=as-it-likes", crate::aggregation::FLUNDERS),
    ] {
        let mut lasting = Box::pin(send(&cluster, Some(&jane), Method::GET, &path, &[], ""));
        assert!(futures::poll!(lasting.as_mut()).is_pending(), "{path}");
        // With the one seat taken there would be a wait, and a refusal.
        let other = send(&cluster, Some(&jane), Method::GET, MAPS, &[], "").await;
        assert_eq!(other.code, 200, "{path}");
        assert!(futures::poll!(lasting.as_mut()).is_pending(), "{path}");
    }
}

#[tokio::test]
async fn who_comes_too_soon_waits_and_who_comes_too_often_is_turned_away() {
    let (cluster, jane) = with_narrow_level().await;
    // A request whose body does not end holds its seat.
    let (mut body, frames) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
    let request =
        Request::post(MAPS).header("content-type", JSON).body(StreamBody::new(frames.boxed())).unwrap();
    let mut slow = Box::pin(cluster.front.serve(Some(&jane), request));
    assert!(futures::poll!(slow.as_mut()).is_pending());
    let executing =
        "apiserver_flowcontrol_current_executing_requests{flow_schema=\"jane\",priority_level=\"narrow\"} 1";
    let waiting =
        "apiserver_flowcontrol_current_inqueue_requests{flow_schema=\"jane\",priority_level=\"narrow\"} 1";
    let counts = async |line: &str| {
        let page = get(&cluster, "/metrics", "").await;
        String::from_utf8(page.body.to_vec()).unwrap().lines().any(|known| known == line)
    };
    assert!(counts(executing).await);
    // Its turn cannot come before the time that it has is over, however short or long that is.
    let late = send(&cluster, Some(&jane), Method::GET, &format!("{MAPS}?timeout=400ms"), &[], "").await;
    refused(&late);
    let mut waits = Box::pin(send(&cluster, Some(&jane), Method::GET, MAPS, &[], ""));
    assert!(futures::poll!(waits.as_mut()).is_pending());
    assert!(counts(waiting).await);
    refused(&send(&cluster, Some(&jane), Method::GET, MAPS, &[], "").await);
    let dump = async |what: &str| {
        let page = get(&cluster, &format!("/debug/api_priority_and_fairness/{what}"), "").await;
        String::from_utf8(page.body.to_vec()).unwrap()
    };
    let cells = |page: &str| -> Vec<String> {
        let line = page.lines().find(|line| line.starts_with("narrow,")).unwrap_or_else(|| panic!("{page}"));
        line.split(',').map(|cell| cell.trim().to_owned()).collect()
    };
    let levels = cells(&dump("dump_priority_levels").await);
    // Active, neither idle nor on its way out; one waits, one runs; some were let in, one was turned away, one waited too
    // long.
    assert_eq!(levels[1..6], ["1", "false", "false", "1", "1"]);
    assert_eq!(levels[7..10], ["1", "1", "0"]);
    assert_eq!(cells(&dump("dump_queues").await)[1..5], ["0", "1", "1", "1"]);
    let page = dump("dump_requests?includeRequestDetails=1").await;
    // One waits in the queue, and one of it runs; who looks on runs too, at a level without queues.
    let waiting = cells(&page);
    assert_eq!(
        (&waiting[1..4], waiting[9].as_str()),
        (&["jane", "0", "0"].map(str::to_owned)[..], "0001-01-01T00:00:00Z")
    );
    assert_eq!(waiting[10..], ["jane", "list", MAPS, "default", "", "v1", "configmaps", ""]);
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("narrow,")).collect();
    let runs = cells(rows[1]);
    assert_eq!((rows.len(), &runs[1..4]), (2, &["jane", "0", "-1"].map(str::to_owned)[..]));
    assert!(runs[5] <= runs[9] && runs[9].starts_with("20"), "{runs:?}");
    assert_eq!(runs[10..], ["jane", "create", MAPS, "default", "", "v1", "configmaps", ""]);
    let looks = page.lines().find(|line| line.starts_with("exempt,")).unwrap();
    let looks: Vec<&str> = looks.split(',').map(str::trim).collect();
    assert_eq!((&looks[2..4], looks[11]), (&["-1", "-1"][..], "get"));
    assert_eq!(cells(&dump("dump_requests").await).len(), 10);
    let eve = apiserver::authn::authenticated(User { name: "eve".into(), ..User::default() });
    let path = "/debug/api_priority_and_fairness/dump_queues";
    assert_eq!(send(&cluster, Some(&eve), Method::GET, path, &[], "").await.code, 403);
    // Others do not notice.
    assert_eq!(get(&cluster, MAPS, JSON).await.code, 200);
    body.send(Ok(Frame::data(r#"{"metadata":{"name":"slow"}}"#.into()))).await.unwrap();
    drop(body);
    let (slow, waits) = futures::join!(slow, waits);
    assert_eq!((slow.status(), waits.code), (http::StatusCode::CREATED, 200));
    for reason in ["queue-full", "time-out"] {
        let line = format!(
            "apiserver_flowcontrol_rejected_requests_total{{flow_schema=\"jane\",priority_level=\"narrow\",reason=\"{reason}\"}} 1"
        );
        assert!(counts(&line).await, "{line}");
    }
    let free = executing.replace(" 1", " 0");
    assert!(counts(&free).await, "all seats are given back");
    assert!(counts("apiserver_flowcontrol_nominal_limit_seats{priority_level=\"workload-low\"} 245").await);
}

fn refused(answer: &Answer) {
    assert_eq!((answer.code, answer.header("retry-after")), (429, "1"));
    assert_eq!(answer.body, "Too many requests, please try again later.\n");
    assert!(!answer.header("x-kubernetes-pf-prioritylevel-uid").is_empty());
}

#[tokio::test]
async fn who_goes_while_waiting_leaves_its_place() {
    let (cluster, jane) = with_narrow_level().await;
    let (body, frames) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
    let slow =
        Request::post(MAPS).header("content-type", JSON).body(StreamBody::new(frames.boxed())).unwrap();
    let mut slow = Box::pin(cluster.front.serve(Some(&jane), slow));
    assert!(futures::poll!(slow.as_mut()).is_pending());
    for _ in 0..3 {
        let mut waits = Box::pin(send(&cluster, Some(&jane), Method::GET, MAPS, &[], ""));
        assert!(futures::poll!(waits.as_mut()).is_pending(), "there is one place, and it is free");
    }
    // So does one that is let in and goes before it is answered.
    drop(slow);
    drop(body);
    assert_eq!(send(&cluster, Some(&jane), Method::GET, MAPS, &[], "").await.code, 200);
}
