//! What is not an object: documents, health, and what is answered where nothing is.

use api::connect::User;
use http::Method;
use serde_json::json;

use crate::cluster::Cluster;
use crate::http_front::{Answer, JSON, MAPS, get, send, started, write};

async fn ask(cluster: &Cluster, method: Method, path: &str) -> Answer {
    let user: Option<&User> = Some(&cluster.user);
    send(cluster, user, method, path, &[], "").await
}

#[tokio::test]
async fn where_nothing_is_upstreams_text_is_answered() {
    let cluster = Cluster::start().await;
    for (method, path) in [
        (Method::GET, "/foo"),
        (Method::PUT, "/foo"),
        (Method::GET, "/apis/nope"),
        (Method::PUT, "/apis/nope"),
        (Method::GET, "/apis/nope/v1"),
        (Method::GET, "/healthz/nothing"),
        (Method::GET, "/debug/nothing"),
    ] {
        let answer = ask(&cluster, method.clone(), path).await;
        assert_eq!((answer.code, &answer.body[..]), (404, &b"404 page not found\n"[..]), "{method} {path}");
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
    }
    // Below what upstream's router knows it answers itself.
    for path in ["/apis/apps/v9", "/api/v9", "/version/x"] {
        let answer = ask(&cluster, Method::GET, path).await;
        assert_eq!((answer.code, &answer.json()["reason"]), (404, &json!("NotFound")), "{path}");
    }
    for path in ["/version", "/apis", "/api/v1"] {
        let answer = ask(&cluster, Method::PUT, path).await;
        assert_eq!((answer.code, &answer.json()["reason"]), (405, &json!("MethodNotAllowed")), "{path}");
    }
    assert_eq!(ask(&cluster, Method::PUT, "/healthz/ping").await.code, 200);
    assert_eq!(
        ask(&cluster, Method::GET, "/index.html").await.json(),
        ask(&cluster, Method::GET, "/").await.json()
    );
}

#[tokio::test]
async fn documents_are_kept_for_ever_under_their_hash() {
    let cluster = Cluster::start().await;
    let index = get(&cluster, "/openapi/v3", JSON).await.json();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let known = get(&cluster, &url, JSON).await;
    assert_eq!((known.code, known.header("cache-control")), (200, "public, immutable"));
    assert!(known.header("expires").ends_with(" GMT"), "{}", known.header("expires"));
    let plain = get(&cluster, "/openapi/v3/apis/apps/v1", JSON).await;
    assert_eq!((plain.code, plain.header("expires")), (200, ""));
    assert_eq!(plain.body, known.body);
    let stale = get(&cluster, "/openapi/v3/apis/apps/v1?hash=0", JSON).await;
    assert_eq!((stale.code, stale.header("location")), (301, url.as_str()));
    let protobuf = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";
    for media in [protobuf, "application/com.github.proto-openapi.spec.v3@v1.0+protobuf"] {
        let packed = get(&cluster, &url, &format!("{media},*/*")).await;
        assert_eq!((packed.code, packed.header("content-type")), (200, protobuf), "{media}");
        assert_eq!(packed.header("etag"), known.header("etag"), "{media}");
        assert_eq!(packed.body[..7], *b"\x0a\x053.0.0");
    }
    assert_eq!(
        get(&cluster, &url, "application/com.github.proto-openapi.spec.v2.v1.0+protobuf").await.code,
        406
    );
    assert_eq!(get(&cluster, "/openapi/v3/apis/nope/v1", JSON).await.code, 404);
    for path in ["version", "apis/apps", "openid/v1/jwks"] {
        let url = index["paths"][path]["serverRelativeURL"].as_str().unwrap();
        let document = get(&cluster, url, JSON).await.json();
        assert_eq!(document["paths"].as_object().unwrap().len(), 1, "{path}");
    }
}

#[tokio::test]
async fn a_table_carries_what_there_is_to_carry() {
    let cluster = Cluster::start().await;
    let table = "application/json;as=Table;g=meta.k8s.io;v=v1";
    for path in
        [format!("{MAPS}?includeObject=Foo"), format!("{MAPS}?includeObject=Foo&watch=1&timeoutSeconds=1")]
    {
        let refused = get(&cluster, &path, table).await;
        let says = "Unable to convert to Table as requested: includeObject: Invalid value: \"Foo\": must be \
                    'Metadata', 'Object', 'None', or empty";
        assert_eq!((refused.code, refused.message().as_str()), (400, says), "{path}");
    }
    for fine in ["", "None", "Metadata", "Object"] {
        assert_eq!(get(&cluster, &format!("{MAPS}?includeObject={fine}"), table).await.code, 200, "{fine}");
    }
    // Who asks for no table is not asked what it should carry.
    assert_eq!(get(&cluster, &format!("{MAPS}?includeObject=Foo"), JSON).await.code, 200);
}

#[tokio::test]
async fn health_tells_what_was_done_at_the_start() {
    let cluster = Cluster::start().await;
    started(&cluster).await;
    let names = async |endpoint: &str| {
        let report = get(&cluster, &format!("/{endpoint}?verbose"), "").await;
        assert_eq!(report.code, 200, "{:?}", report.body);
        let report = String::from_utf8(report.body.to_vec()).unwrap();
        let lines = report.lines().filter_map(|line| line.strip_prefix("[+]")?.strip_suffix(" ok"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let live = names("livez").await;
    for name in [
        "ping",
        "log",
        "etcd",
        "poststarthook/start-apiextensions-controllers",
        "poststarthook/crd-informer-synced",
        "poststarthook/rbac/bootstrap-roles",
        "poststarthook/scheduling/bootstrap-system-priority-classes",
        "poststarthook/priority-and-fairness-config-producer",
        "poststarthook/bootstrap-controller",
        "poststarthook/apiservice-registration-controller",
        "autoregister-completion",
    ] {
        assert!(live.iter().any(|one| one == name), "{name}: {live:?}");
        assert_eq!(get(&cluster, &format!("/readyz/{name}"), "").await.code, 200, "{name}");
    }
    assert_eq!(names("healthz").await, live);
    let only_ready: Vec<String> =
        names("readyz").await.into_iter().filter(|name| !live.contains(name)).collect();
    assert_eq!(only_ready, ["etcd-readiness", "informer-sync", "shutdown"]);
}

#[tokio::test]
async fn old_watch_paths_are_watches() {
    let cluster = Cluster::start().await;
    for name in ["a", "b"] {
        let map = json!({ "metadata": { "name": name } }).to_string();
        assert_eq!(write(&cluster, Method::POST, MAPS, JSON, map).await.code, 201);
    }
    let names = async |path: &str| {
        let path = format!("/api/v1/watch/{path}?resourceVersion=0&timeoutSeconds=1");
        let events = get(&cluster, &path, JSON).await.events();
        let names =
            events.iter().map(|event| event["object"]["metadata"]["name"].as_str().unwrap().to_owned());
        let mut names: Vec<String> = names.filter(|name| name.len() == 1).collect();
        names.sort();
        names
    };
    assert_eq!(names("configmaps").await, ["a", "b"]);
    assert_eq!(names("namespaces/default/configmaps").await, ["a", "b"]);
    assert_eq!(names("namespaces/default/configmaps/b").await, ["b"]);
}
