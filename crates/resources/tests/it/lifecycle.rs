//! Deletion: grace, finalizers, propagation, preconditions, namespaces; binding and tokens of pods.

use api::{DeleteOptions, PatchType, Propagation, Reason};
use http::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, options, resource};
use crate::http_front::{Answer, JSON, get, write};

fn spec() -> Value {
    json!({ "containers": [{ "name": "a", "image": "a:1" }] })
}

async fn bound_pod(cluster: &Cluster, name: &str) -> Value {
    let pods = resource("", "v1", "pods");
    let accounts = resource("", "v1", "serviceaccounts");
    // Made by a controller in a whole cluster; who comes second finds it.
    let _ = cluster.create(&accounts, "default", json!({ "metadata": { "name": "default" } })).await;
    let pod =
        json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "a", "image": "a:1" }] } });
    let made = cluster.create(&pods, "default", pod).await.unwrap();
    let binding = json!({ "target": { "kind": "Node", "name": "n" } });
    let call = api::Call::Create { body: binding.to_string().into(), options: options() };
    cluster.call(&pods, "default", name, "binding", call).await.unwrap();
    made
}

#[tokio::test]
async fn a_bound_pod_goes_when_its_node_says_so() {
    let cluster = Cluster::start().await;
    let pods = resource("", "v1", "pods");
    let made = bound_pod(&cluster, "p").await;
    assert_eq!(made["spec"]["volumes"][0]["projected"]["sources"].as_array().unwrap().len(), 3);
    let going = cluster.delete(&pods, "default", "p", DeleteOptions::default()).await.unwrap();
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    let uid = Some("another".to_owned());
    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    let other = DeleteOptions { precondition_uid: uid, ..now.clone() };
    let refused = cluster.delete(&pods, "default", "p", other).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Conflict);
    // A second deletion may shorten the grace, and nothing else: not by what is the pod's own either.
    let with =
        |seconds: Option<i64>| DeleteOptions { grace_period_seconds: seconds, ..DeleteOptions::default() };
    for (seconds, left) in
        [(Some(60), 30), (Some(20), 20), (None, 20), (Some(30), 20), (Some(10), 10), (Some(-1), 1)]
    {
        let still = cluster.delete(&pods, "default", "p", with(seconds)).await.unwrap();
        assert_eq!(still["metadata"]["deletionGracePeriodSeconds"], left, "{seconds:?}");
    }
    let gone = cluster.delete(&pods, "default", "p", now).await.unwrap();
    assert_eq!(gone["deleted"], made["metadata"]["uid"]);
    assert_eq!(cluster.get(&pods, "default", "p").await.unwrap_err().reason, Reason::NotFound);
}

#[tokio::test]
async fn what_stays_for_now_is_accepted_where_dependents_are_not_orphaned() {
    let cluster = Cluster::start().await;
    bound_pod(&cluster, "p").await;
    let path = "/api/v1/namespaces/default/pods/p";
    let options = json!({ "orphanDependents": false }).to_string();
    let going = write(&cluster, Method::DELETE, path, JSON, options.clone()).await;
    assert_eq!((going.code, &going.json()["kind"]), (202, &json!("Pod")));
    let now = write(&cluster, Method::DELETE, &format!("{path}?gracePeriodSeconds=0"), JSON, "").await;
    let gone = now.json();
    assert_eq!((now.code, &gone["kind"]), (200, &json!("Pod")));
    assert_eq!(gone["metadata"]["deletionGracePeriodSeconds"], 0);
    assert!(gone["metadata"]["deletionTimestamp"].is_string());
    bound_pod(&cluster, "p").await;
    let now = json!({ "orphanDependents": false, "gracePeriodSeconds": 0 }).to_string();
    assert_eq!(write(&cluster, Method::DELETE, path, JSON, now).await.code, 200);
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let cluster = Cluster::start().await;
    bound_pod(&cluster, "p").await;
    let pods = resource("", "v1", "pods");
    let pod = cluster.get(&pods, "default", "p").await.unwrap();
    assert_eq!(pod["spec"]["nodeName"], "n");
    assert_eq!(pod["status"]["conditions"][0]["type"], "PodScheduled");
    let binding = json!({ "target": { "kind": "Node", "name": "m" } });
    let call = api::Call::Create { body: binding.to_string().into(), options: options() };
    let Err(again) = cluster.call(&pods, "default", "p", "binding", call).await else {
        panic!("bound twice")
    };
    assert_eq!(again.reason, Reason::Conflict);
}

#[tokio::test]
async fn finalizers_keep_an_object_until_the_last_is_gone() {
    let cluster = Cluster::start().await;
    let maps = resource("", "v1", "configmaps");
    let object = json!({ "metadata": { "name": "a", "finalizers": ["example.com/x"] } });
    cluster.create(&maps, "default", object).await.unwrap();
    let foreground = DeleteOptions { propagation: Some(Propagation::Foreground), ..DeleteOptions::default() };
    let going = cluster.delete(&maps, "default", "a", foreground).await.unwrap();
    assert_eq!(going["metadata"]["finalizers"], json!(["example.com/x", "foregroundDeletion"]));
    let place = ("default", "a", "");
    let added =
        json!({ "metadata": { "finalizers": ["example.com/x", "foregroundDeletion", "example.com/y"] } });
    assert!(cluster.patch(&maps, place, PatchType::Merge, added, options()).await.is_err());
    let none = json!({ "metadata": { "finalizers": null } });
    cluster.patch(&maps, place, PatchType::Merge, none, options()).await.unwrap();
    assert_eq!(cluster.get(&maps, "default", "a").await.unwrap_err().reason, Reason::NotFound);
}

#[tokio::test]
async fn a_namespace_ends_when_it_is_finalized() {
    let cluster = Cluster::start().await;
    let namespaces = resource("", "v1", "namespaces");
    cluster.create(&namespaces, "", json!({ "metadata": { "name": "a" } })).await.unwrap();
    let going = cluster.delete(&namespaces, "", "a", DeleteOptions::default()).await.unwrap();
    assert_eq!(going["status"]["phase"], "Terminating");
    let maps = resource("", "v1", "configmaps");
    let late = cluster.create(&maps, "a", json!({ "metadata": { "name": "x" } })).await.unwrap_err();
    assert_eq!(late.reason, Reason::Forbidden);
    let mut finalized = going;
    finalized["spec"]["finalizers"] = json!([]);
    cluster.update(&namespaces, ("", "a", "finalize"), &finalized).await.unwrap();
    assert_eq!(cluster.get(&namespaces, "", "a").await.unwrap_err().reason, Reason::NotFound);
    let refused = cluster.delete(&namespaces, "", "kube-system", DeleteOptions::default()).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Forbidden);
}

#[tokio::test]
async fn a_token_ends_with_its_account() {
    let cluster = Cluster::start().await;
    let accounts = resource("", "v1", "serviceaccounts");
    cluster.create(&accounts, "default", json!({ "metadata": { "name": "bob" } })).await.unwrap();
    let call = api::Call::Create { body: "{\"spec\":{}}".into(), options: options() };
    let Ok(api::Response::Object { object, .. }) =
        cluster.call(&accounts, "default", "bob", "token", call).await
    else {
        panic!("no token");
    };
    let request: Value = object.decode().unwrap();
    let token = request["status"]["token"].as_str().unwrap();
    let (user, _) = cluster.pipeline.authenticate_token(token, &[]).await.unwrap().unwrap();
    assert_eq!(user.name, "system:serviceaccount:default:bob");
    assert!(cluster.pipeline.authenticate_token(token, &["other".into()]).await.unwrap().is_none());
    cluster.delete(&accounts, "default", "bob", DeleteOptions::default()).await.unwrap();
    // Tokens are checked against the cache; a consistent list makes it current.
    let list = api::Call::List(api::ListOptions::default());
    assert!(cluster.call(&accounts, "default", "", "", list).await.is_ok());
    assert!(cluster.pipeline.authenticate_token(token, &[]).await.unwrap().is_none());
}

#[tokio::test]
async fn an_event_is_seen_through_both_groups() {
    let cluster = Cluster::start().await;
    let (core, group) = (resource("", "v1", "events"), resource("events.k8s.io", "v1", "events"));
    let event = json!({
        "metadata": { "name": "e", "namespace": "default" }, "eventTime": "2026-01-01T00:00:00.000000Z",
        "regarding": { "kind": "Pod", "name": "p", "namespace": "default" }, "note": "hello", "type": "Normal",
        "reason": "Seen", "action": "Look", "reportingController": "example.com/c", "reportingInstance": "c-1",
    });
    let made = cluster.create(&group, "default", event).await.unwrap();
    assert_eq!((&made["apiVersion"], &made["note"]), (&json!("events.k8s.io/v1"), &json!("hello")));
    let seen = cluster.get(&core, "default", "e").await.unwrap();
    assert_eq!((&seen["apiVersion"], &seen["message"]), (&json!("v1"), &json!("hello")));
    assert_eq!(seen["metadata"]["uid"], made["metadata"]["uid"]);
    for (events, selector) in [
        (&core, "involvedObject.name=p,reportingComponent=example.com/c"),
        (&group, "regarding.name=p,reportingController=example.com/c"),
    ] {
        let options = api::ListOptions { field_selector: selector.into(), ..api::ListOptions::default() };
        let list = cluster.call(events, "default", "", "", api::Call::List(options)).await;
        let Ok(api::Response::List(list)) = list else { panic!("no list") };
        assert_eq!(list.items.len(), 1, "{selector}");
    }
    let legacy = json!({
        "metadata": { "name": "old", "namespace": "default" }, "involvedObject": { "namespace": "default" },
        "source": { "component": "kubelet" }, "count": 3,
    });
    cluster.create(&core, "default", legacy).await.unwrap();
    let old = cluster.get(&group, "default", "old").await.unwrap();
    assert_eq!(
        (&old["deprecatedCount"], &old["deprecatedSource"]["component"]),
        (&json!(3), &json!("kubelet"))
    );
    cluster.delete(&group, "default", "e", DeleteOptions::default()).await.unwrap();
    assert_eq!(cluster.get(&core, "default", "e").await.unwrap_err().reason, Reason::NotFound);
}

#[tokio::test]
async fn events_end_with_their_lease() {
    let cluster = Cluster::start().await;
    let events = resource("", "v1", "events");
    let mut leases = Vec::new();
    for name in ["a", "b"] {
        let event = json!({ "metadata": { "name": name }, "involvedObject": { "namespace": "default" } });
        cluster.create(&events, "default", event).await.unwrap();
        let key = format!("/registry/core/events/default/{name}");
        let held = cluster.store.range(store::RangeRequest::key(key)).await.unwrap();
        leases.push(held.kvs[0].lease);
    }
    assert!(leases[0] != 0 && leases[0] == leases[1], "{leases:?}");
    cluster.store.lease_revoke(leases[0]).await.unwrap();
    assert_eq!(cluster.get(&events, "default", "a").await.unwrap_err().reason, Reason::NotFound);
    // Whoever writes next gets a lease that the store knows, if not at once then at the second attempt.
    let event = json!({ "metadata": { "name": "c" }, "involvedObject": { "namespace": "default" } });
    if cluster.create(&events, "default", event.clone()).await.is_err() {
        cluster.create(&events, "default", event).await.unwrap();
    }
}

/// Each kind's deletion answers with what upstream's does: the object, or a Status.
#[tokio::test]
async fn deletions_answer_with_the_object_where_upstream_does() {
    let cluster = Cluster::start().await;
    let accounts = resource("", "v1", "serviceaccounts");
    cluster.create(&accounts, "default", json!({ "metadata": { "name": "default" } })).await.unwrap();
    let claim =
        json!({ "devices": { "requests": [{ "name": "r", "exactly": { "deviceClassName": "c" } }] } });
    let core = "/api/v1/namespaces/default";
    let devices = "/apis/resource.k8s.io/v1";
    let storage = "/apis/storage.k8s.io/v1";
    for (path, name, rest, returned) in [
        (format!("{core}/serviceaccounts"), "a", json!({}), true),
        (format!("{core}/podtemplates"), "a", json!({ "template": { "spec": spec() } }), true),
        (format!("{core}/pods"), "a", json!({ "spec": spec() }), true),
        (format!("{core}/resourcequotas"), "a", json!({}), true),
        (format!("{core}/services"), "a", json!({ "spec": { "ports": [{ "port": 1 }] } }), true),
        (format!("{core}/configmaps"), "a", json!({}), false),
        (format!("{core}/secrets"), "a", json!({}), false),
        (format!("{core}/endpoints"), "a", json!({}), false),
        (
            format!("{core}/limitranges"),
            "a",
            json!({ "spec": { "limits": [{ "type": "Container" }] } }),
            false,
        ),
        ("/api/v1/nodes".into(), "a", json!({}), false),
        (format!("{devices}/deviceclasses"), "a", json!({ "spec": {} }), true),
        (format!("{devices}/namespaces/default/resourceclaims"), "a", json!({ "spec": claim }), true),
        (
            format!("{devices}/namespaces/default/resourceclaimtemplates"),
            "a",
            json!({ "spec": { "spec": claim } }),
            true,
        ),
        (format!("{storage}/storageclasses"), "a", json!({ "provisioner": "p" }), true),
        (format!("{storage}/csidrivers"), "a", json!({ "spec": {} }), true),
        (
            format!("{storage}/csinodes"),
            "a",
            json!({ "spec": { "drivers": [{ "name": "d", "nodeID": "n" }] } }),
            true,
        ),
        ("/apis/policy/v1/namespaces/default/poddisruptionbudgets".into(), "a", json!({ "spec": {} }), false),
        ("/apis/scheduling.k8s.io/v1/priorityclasses".into(), "a", json!({ "value": 1 }), false),
        ("/apis/node.k8s.io/v1/runtimeclasses".into(), "a", json!({ "handler": "h" }), false),
    ] {
        let mut object = rest;
        object["metadata"] = json!({ "name": name });
        let made = write(&cluster, Method::POST, &path, JSON, object.to_string()).await;
        assert_eq!(made.code, 201, "{path}: {:?}", made.json());
        let one = format!("{path}/{name}");
        let tried = write(&cluster, Method::DELETE, &format!("{one}?dryRun=All"), JSON, "").await;
        let gone = write(&cluster, Method::DELETE, &one, JSON, "").await;
        for answer in [&tried, &gone] {
            assert_eq!(answer.code, 200, "{path}: {:?}", answer.json());
            let kind = if returned { made.json()["kind"].clone() } else { json!("Status") };
            assert_eq!(answer.json()["kind"], kind, "{path}");
        }
        if returned {
            let version = |answer: &Answer| -> u64 {
                answer.json()["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
            };
            assert_eq!(gone.json()["metadata"]["uid"], made.json()["metadata"]["uid"], "{path}");
            assert!(version(&tried) == version(&made) && version(&gone) > version(&made), "{path}");
        } else {
            assert_eq!(gone.json()["details"]["uid"], made.json()["metadata"]["uid"], "{path}");
        }
        assert_eq!(get(&cluster, &one, JSON).await.code, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_say_that_they_are_there_and_those_that_are_gone_are_forgotten() {
    let leases = resource("coordination.k8s.io", "v1", "leases");
    let ours = async |cluster: &Cluster| -> Vec<Value> {
        let label_selector = "apiserver.kubernetes.io/identity=kube-apiserver".to_owned();
        let options = api::ListOptions { label_selector, ..api::ListOptions::default() };
        match cluster.call(&leases, "kube-system", "", "", api::Call::List(options)).await.unwrap() {
            api::Response::List(list) => list.items.iter().map(|held| held.decode().unwrap()).collect(),
            _ => panic!("not a list"),
        }
    };
    let first = Cluster::start().await;
    first
        .until(std::slice::from_ref(&leases), "said that it is there", async || ours(&first).await.len() == 1)
        .await;
    let [own] = ours(&first).await.try_into().unwrap();
    let name = own["metadata"]["name"].as_str().unwrap();
    let holder = own["spec"]["holderIdentity"].as_str().unwrap();
    assert!(name.starts_with("apiserver-") && holder.starts_with(&format!("{name}_")), "{own}");
    assert_eq!(own["spec"]["leaseDurationSeconds"], 3600);
    // Of a server that is gone, of one that was there a moment ago, and of something else.
    let lease = |name: &str, label: &str, renewed: &str| {
        json!({ "metadata": { "name": name, "labels": { "apiserver.kubernetes.io/identity": label } },
            "spec": { "holderIdentity": "x", "leaseDurationSeconds": 3600, "renewTime": renewed } })
    };
    let (long_ago, now) = ("2020-01-01T00:00:00.000000Z", own["spec"]["renewTime"].as_str().unwrap());
    for (name, label, renewed) in [
        ("apiserver-gone", "kube-apiserver", long_ago),
        ("apiserver-other", "kube-apiserver", now),
        ("something", "else", long_ago),
    ] {
        first.create(&leases, "kube-system", lease(name, label, renewed)).await.unwrap();
    }
    let second = Cluster::start_over(first.store.clone()).await;
    let forgotten = async || ours(&second).await.len() == 2;
    second.until(std::slice::from_ref(&leases), "forgot who is gone", forgotten).await;
    let names: Vec<Value> = ours(&second).await.iter().map(|held| held["metadata"]["name"].clone()).collect();
    assert!(names.contains(&json!(name)) && names.contains(&json!("apiserver-other")), "{names:?}");
    assert!(second.get(&leases, "kube-system", "something").await.is_ok());
}
