//! What a request may not reach: other namespaces, other nodes, what a node says of itself, the end of the daemon.

use api::connect::User;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::http_front::{Answer, JSON, MAPS, get, send, write};

/// Whom the certificate of a joined node names.
fn node(name: &str) -> User {
    let groups = vec!["system:nodes".to_owned()];
    apiserver::authn::authenticated(User { name: format!("system:node:{name}"), groups, ..User::default() })
}

async fn as_node(cluster: &Cluster, method: Method, path: &str, media: &str, body: &Value) -> Answer {
    send(cluster, Some(&node("a")), method, path, &[("content-type", media)], body.to_string()).await
}

#[tokio::test]
async fn a_node_makes_no_pods_and_so_reads_no_secrets() {
    let cluster = Cluster::start().await;
    let mirror = json!({
        "metadata": { "name": "thief", "annotations": { "kubernetes.io/config.mirror": "x" } },
        "spec": {
            "nodeName": "a", "containers": [{ "name": "c", "image": "a:1" }],
            "volumes": [{ "name": "s", "secret": { "secretName": "anything" } }],
        },
    });
    let pods = "/api/v1/namespaces/default/pods";
    let refused = as_node(&cluster, Method::POST, pods, JSON, &mirror).await;
    assert_eq!(refused.code, 403, "{}", refused.message());
    let secret = "/api/v1/namespaces/default/secrets/anything";
    assert_eq!(as_node(&cluster, Method::GET, secret, JSON, &Value::Null).await.code, 403);
}

#[tokio::test]
async fn a_node_is_given_its_range_and_keeps_its_taints() {
    const MERGE: &str = "application/merge-patch+json";
    let cluster = Cluster::start().await;
    let nodes = "/api/v1/nodes";
    let object = |spec: Value| json!({ "metadata": { "name": "a" }, "spec": spec });
    for spec in [json!({ "podCIDR": "0.0.0.0/0" }), json!({ "podCIDRs": ["10.42.0.0/24"] })] {
        let refused = as_node(&cluster, Method::POST, nodes, JSON, &object(spec)).await;
        assert_eq!(refused.code, 403);
        assert!(refused.message().contains("spec.podCIDR"), "{}", refused.message());
    }
    let taint = json!([{ "key": "node.kubernetes.io/not-ready", "effect": "NoSchedule" }]);
    let made = as_node(&cluster, Method::POST, nodes, JSON, &object(json!({ "taints": taint }))).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let own = "/api/v1/nodes/a";
    for (patch, what) in [
        (json!({ "spec": { "podCIDR": "10.42.0.0/24" } }), "spec.podCIDR"),
        (json!({ "spec": { "taints": null } }), "taints"),
        (json!({ "metadata": { "labels": { "node-role.kubernetes.io/control-plane": "" } } }), "labels"),
    ] {
        let refused = as_node(&cluster, Method::PATCH, own, MERGE, &patch).await;
        assert_eq!(refused.code, 403, "{patch}");
        assert!(refused.message().contains(what), "{}", refused.message());
    }
    let given = json!({ "spec": { "podCIDR": "10.42.1.0/24", "podCIDRs": ["10.42.1.0/24"] } });
    assert_eq!(write(&cluster, Method::PATCH, own, MERGE, given.to_string()).await.code, 200);
    let labels =
        json!({ "metadata": { "labels": { "kubernetes.io/hostname": "a", "example.com/rack": "7" } } });
    let labelled = as_node(&cluster, Method::PATCH, own, MERGE, &labels).await;
    assert_eq!((labelled.code, &labelled.json()["spec"]["podCIDR"]), (200, &json!("10.42.1.0/24")));
}

#[tokio::test]
async fn a_page_of_one_namespace_does_not_begin_in_another() {
    let cluster = Cluster::start().await;
    let namespace = json!({ "metadata": { "name": "victim" } }).to_string();
    assert_eq!(write(&cluster, Method::POST, "/api/v1/namespaces", JSON, namespace).await.code, 201);
    let theirs = MAPS.replace("default", "victim");
    for path in [MAPS, theirs.as_str()] {
        for name in ["x", "y"] {
            let object = json!({ "metadata": { "name": name } }).to_string();
            assert_eq!(write(&cluster, Method::POST, path, JSON, object).await.code, 201);
        }
    }
    let page = get(&cluster, &format!("{MAPS}?limit=1"), JSON).await.json();
    let own = page["metadata"]["continue"].as_str().unwrap().to_owned();
    let rest = get(&cluster, &format!("{MAPS}?continue={own}"), JSON).await.json();
    assert_eq!(rest["items"][0]["metadata"]["name"], "y");
    let mut forged: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(&own).unwrap()).unwrap();
    for start in ["victim/", "victim/x", "default", "a"] {
        forged["start"] = start.into();
        let token = URL_SAFE_NO_PAD.encode(forged.to_string());
        let path = format!("{MAPS}?continue={token}");
        for method in [Method::GET, Method::DELETE] {
            let refused = write(&cluster, method.clone(), &path, JSON, "").await;
            assert_eq!(refused.code, 400, "{method} from {start:?}");
        }
    }
    assert_eq!(get(&cluster, &theirs, JSON).await.json()["items"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn no_number_of_a_client_ends_the_daemon() {
    let cluster = Cluster::start().await;
    for seconds in [i64::MAX, i64::MAX / 2, 1 << 40] {
        let path = format!("{MAPS}?watch=1&timeoutSeconds={seconds}");
        let request = Request::get(&path).body(Full::new(Bytes::new())).unwrap();
        assert_eq!(cluster.front.serve(Some(&cluster.user), request).await.status(), 200, "{seconds}");
    }
    let limited = get(&cluster, &format!("{MAPS}?limit={}", i64::MAX), JSON).await;
    assert_eq!(limited.code, 200);
    let pods = "/api/v1/namespaces/default/pods";
    let account = json!({ "metadata": { "name": "default" } }).to_string();
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    write(&cluster, Method::POST, accounts, JSON, account).await;
    let pod = json!({
        "metadata": { "name": "p", "finalizers": ["example.com/x"] },
        "spec": {
            "nodeName": "n", "terminationGracePeriodSeconds": i64::MAX, "activeDeadlineSeconds": i32::MAX,
            "tolerations": [{ "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": i64::MAX }],
            "containers": [{ "name": "c", "image": "a:1" }],
        },
    });
    let made = write(&cluster, Method::POST, pods, JSON, pod.to_string()).await;
    assert_eq!(made.code, 201, "{}", made.message());
    for grace in [i64::MAX, i64::MAX - 1, 5] {
        let path = format!("{pods}/p?gracePeriodSeconds={grace}");
        let deleted = write(&cluster, Method::DELETE, &path, JSON, "").await;
        assert_eq!(deleted.code, 200, "{grace}: {}", deleted.message());
    }
    let token = json!({ "spec": { "expirationSeconds": i64::MAX } }).to_string();
    let refused = write(&cluster, Method::POST, &format!("{accounts}/default/token"), JSON, token).await;
    assert_eq!(refused.code, 422, "{}", refused.message());
}

#[tokio::test]
async fn a_connection_is_known_by_who_proves_who_it_is() {
    let cluster = Cluster::start().await;
    let known_after = async |peer: Option<&User>, bearer: Option<&str>| {
        let known = apiserver::http::Known::default();
        let mut request = Request::get("/version").extension(known.clone());
        if let Some(bearer) = bearer {
            request = request.header("authorization", format!("Bearer {bearer}"));
        }
        let answer = cluster.front.serve(peer, request.body(Full::new(Bytes::new())).unwrap()).await;
        (answer.status().as_u16(), known.is_proved())
    };
    assert_eq!(known_after(None, None).await, (200, false));
    assert_eq!(known_after(None, Some("nonsense")).await, (401, false));
    assert_eq!(known_after(Some(&cluster.user), None).await, (200, true));
}

/// A request as node `a` makes it for the pod `web`, with the uids that everything has.
async fn asks_for(cluster: &Cluster, pod: &str) -> Value {
    let uid = async |path: &str| get(cluster, path, JSON).await.json()["metadata"]["uid"].clone();
    let key = rcgen::KeyPair::generate().unwrap();
    let stub = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let spaced = "/api/v1/namespaces/default";
    json!({ "metadata": { "name": pod, "namespace": "default" }, "spec": {
        "signerName": "example.com/signer", "podName": pod,
        "podUID": uid(&format!("{spaced}/pods/{pod}")).await, "serviceAccountName": "default",
        "serviceAccountUID": uid(&format!("{spaced}/serviceaccounts/default")).await, "nodeName": "a",
        "nodeUID": uid("/api/v1/nodes/a").await,
        "stubPKCS10Request": base64::engine::general_purpose::STANDARD.encode(stub.der()) } })
}

#[tokio::test]
async fn a_node_asks_for_certificates_of_its_own_pods_and_signs_none() {
    let cluster = Cluster::start().await;
    let make = async |path: &str, object: Value| {
        let made = write(&cluster, Method::POST, path, JSON, object.to_string()).await;
        assert_eq!(made.code, 201, "{}", made.message());
    };
    let spaced = "/api/v1/namespaces/default";
    make(&format!("{spaced}/serviceaccounts"), json!({ "metadata": { "name": "default" } })).await;
    make("/api/v1/nodes", json!({ "metadata": { "name": "a" } })).await;
    for (name, node) in [("web", "a"), ("other", "b")] {
        let pod = json!({ "metadata": { "name": name }, "spec": { "nodeName": node,
            "containers": [{ "name": "c", "image": "a:1" }] } });
        make(&format!("{spaced}/pods"), pod).await;
    }
    let requests = "/apis/certificates.k8s.io/v1/namespaces/default/podcertificaterequests";
    let refused = as_node(&cluster, Method::POST, requests, JSON, &asks_for(&cluster, "other").await).await;
    let told = "pod \"default/other\" is not running on node \"a\" named in the PodCertificateRequest";
    assert!(refused.code == 403 && refused.message().contains(told), "{}", refused.message());
    let mut forged = asks_for(&cluster, "web").await;
    forged["spec"]["stubPKCS10Request"] = "AAAA".into();
    let refused = as_node(&cluster, Method::POST, requests, JSON, &forged).await;
    assert!(refused.code == 422 && refused.message().contains("PKCS#10"), "{}", refused.message());
    let made = as_node(&cluster, Method::POST, requests, JSON, &asks_for(&cluster, "web").await).await;
    assert_eq!(made.code, 201, "{}", made.message());
    assert_eq!(made.json()["spec"]["maxExpirationSeconds"], 86400);

    // It sees what names it, and nothing else.
    let all = "/apis/certificates.k8s.io/v1/podcertificaterequests";
    let own = format!("{all}?fieldSelector=spec.nodeName%3Da");
    let seen = as_node(&cluster, Method::GET, &own, JSON, &Value::Null).await;
    assert_eq!(seen.json()["items"].as_array().map(Vec::len), Some(1));
    for (path, code) in [
        (format!("{requests}/web"), 200),
        (format!("{requests}/other"), 403),
        (all.to_owned(), 403),
        (format!("{all}?fieldSelector=spec.nodeName%3Db"), 403),
    ] {
        assert_eq!(as_node(&cluster, Method::GET, &path, JSON, &Value::Null).await.code, code, "{path}");
    }
    let denied = json!({ "status": { "conditions": [{ "type": "Denied", "status": "True", "reason": "R",
        "message": "m", "lastTransitionTime": "2027-01-15T08:00:00Z" }] } });
    let (status, merge) = (format!("{requests}/web/status"), "application/merge-patch+json");
    assert_eq!(as_node(&cluster, Method::PATCH, &status, merge, &denied).await.code, 403);
    let answered = write(&cluster, Method::PATCH, &status, merge, denied.to_string()).await;
    assert_eq!(answered.code, 200, "{}", answered.message());
    let again = json!({ "status": { "conditions": null } });
    let refused = write(&cluster, Method::PATCH, &status, merge, again.to_string()).await;
    assert!(refused.code == 422 && refused.message().contains("immutable after"), "{}", refused.message());
}
