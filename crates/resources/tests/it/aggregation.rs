//! An extension API server, as the conformance test `Aggregator` has one: TLS, a Service with endpoints, users in headers.
//! It believes whom ConfigMap `kube-system/extension-apiserver-authentication` tells it to believe.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::connect::{Body, NodeConnector, User};
use api::{Call, GroupVersionResource, ListOptions, Response};
use apiserver::ExtensionResource;
use apiserver::pki::{HotResolver, Issued, client_config};
use base::lifecycle::Tasks;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use http::{Method, Request};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::cluster::{Cluster, Made, resource};
use crate::http_front::{JSON, get, send, write};
use crate::proxy::{Streets, body};

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
pub(crate) const FLUNDERS: &str = "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const PATIENCE: Duration = Duration::from_secs(120);

/// Returns when an object is as wanted, to those who watch it and so to the server itself.
pub(crate) async fn until(
    cluster: &Cluster,
    kind: &GroupVersionResource,
    (namespace, name): (&str, &str),
    done: impl Fn(&Value) -> bool,
) -> Value {
    let options = ListOptions { field_selector: format!("metadata.name={name}"), ..ListOptions::default() };
    let seen = async {
        let answer = cluster.call(kind, namespace, "", "", Call::Watch(options)).await.unwrap();
        let Response::Watch(mut events) = answer else { panic!("no watch") };
        while let Some(batch) = events.next().await {
            for event in batch.unwrap() {
                let object: Value = event.object.decode().unwrap();
                if done(&object) {
                    return object;
                }
            }
        }
        panic!("the watch of {name} ended");
    };
    tokio::time::timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("{name} is not as wanted"))
}

fn condition<'a>(service: &'a Value, part: &str) -> &'a str {
    service["status"]["conditions"][0][part].as_str().unwrap_or_default()
}

async fn until_reason(cluster: &Cluster, name: &str, reason: &str) -> Value {
    let services = resource("apiregistration.k8s.io", "v1", "apiservices");
    until(cluster, &services, ("", name), |service| condition(service, "reason") == reason).await
}

/// What the sample says: what it serves, and of everything else who asked for what. Of watches it says nothing.
async fn sample(request: Request<Incoming>) -> http::Response<Body> {
    let (head, given) = request.into_parts();
    if head.uri.query().is_some_and(|query| query.contains("watch=true")) {
        return std::future::pending().await;
    }
    let given = given.collect().await.unwrap().to_bytes();
    let texts = |name: &str| -> Vec<String> {
        head.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    };
    let answer = match head.uri.path() {
        "/apis/wardle.example.com/v1alpha1" => json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "wardle.example.com/v1alpha1",
            "resources": [{ "name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
                "verbs": ["create", "delete", "get", "list", "watch"] },
                { "name": "flunders/status", "namespaced": true, "kind": "Flunder", "verbs": ["get"] }],
        }),
        "/openapi/v3" => json!({ "paths": { "apis/wardle.example.com/v1alpha1": {
            "serverRelativeURL": "/openapi/v3/apis/wardle.example.com/v1alpha1?hash=1" } } }),
        "/openapi/v2" => json!({
            "paths": { "/apis/wardle.example.com/v1alpha1/flunders": {}, "/version": {} },
            "definitions": { "com.example.Flunder": { "type": "object" } },
        }),
        "/apis/wardle.example.com/v1alpha1/away" => {
            let away = http::Response::builder().status(302).header("location", "https://10.0.0.1/");
            return away.body(body("")).unwrap();
        }
        _ => json!({
            "method": head.method.as_str(), "path": head.uri.to_string(), "body": String::from_utf8_lossy(&given),
            "user": texts("x-remote-user"), "groups": texts("x-remote-group"),
            "scope": texts("x-remote-extra-example.com%2fscope"), "authorization": texts("authorization"),
            "host": texts("host"),
        }),
    };
    http::Response::builder().header("content-type", JSON).body(body(answer.to_string())).unwrap()
}

/// A server's certificate for the Service, and the authority that signed it, as PEM.
fn certificate() -> (CertificateDer<'static>, PrivateKeyDer<'static>, String) {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["sample-api.default.svc".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &authority).unwrap();
    let pem = authority.pem();
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    (leaf.der().clone(), key, pem)
}

/// Starts the sample: only front proxies of `front_proxies` may speak to it. Its address, and its authority.
async fn start(tasks: &Tasks, listener: TcpListener, front_proxies: &str) -> String {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(front_proxies.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let (leaf, key, authority) = certificate();
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![leaf], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    tasks.spawn(async move {
        let connections = Tasks::default();
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(|request| async { Ok::<_, Infallible>(sample(request).await) });
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                let _ = serving.await;
            });
        }
    });
    authority
}

async fn made(cluster: &Cluster, path: &str, object: Value) {
    let answer = write(cluster, Method::POST, path, JSON, object.to_string()).await;
    assert_eq!(answer.code, 201, "{}", answer.message());
}

fn slice(ready: bool) -> Value {
    json!({
        "metadata": { "name": "sample-api-1", "labels": { "kubernetes.io/service-name": "sample-api" } },
        "addressType": "IPv4", "ports": [{ "name": "https", "port": 8443 }],
        "endpoints": [{ "addresses": ["10.1.0.9"], "conditions": { "ready": ready } }],
    })
}

/// A cluster in which an APIService is registered step by step, until it is available.
async fn with_sample(tasks: &Tasks) -> Cluster {
    with_sample_and(tasks, Made::default().nodes).await
}

/// The same, with nodes.
pub(crate) async fn with_sample_and(tasks: &Tasks, nodes: Arc<dyn NodeConnector>) -> Cluster {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = "10.1.0.9:8443".parse().unwrap();
    let streets = Streets(HashMap::from([(address, listener.local_addr().unwrap())]));
    let cluster = Cluster::make(Made { egress: Some(Arc::new(streets)), nodes, ..Made::default() }).await;
    let trust = ("kube-system", "extension-apiserver-authentication");
    let maps = resource("", "v1", "configmaps");
    let trust = until(&cluster, &maps, trust, |_| true).await["data"].clone();
    assert_eq!(trust["requestheader-username-headers"], "[\"X-Remote-User\"]");
    assert!(trust["client-ca-file"].as_str().unwrap().contains("BEGIN CERTIFICATE"));
    let authority = start(tasks, listener, trust["requestheader-client-ca-file"].as_str().unwrap()).await;

    let name = "v1alpha1.wardle.example.com";
    let service = json!({ "metadata": { "name": name }, "spec": {
        "group": "wardle.example.com", "version": "v1alpha1", "groupPriorityMinimum": 2000, "versionPriority": 200,
        "caBundle": STANDARD.encode(&authority), "service": { "namespace": "default", "name": "sample-api" } } });
    made(&cluster, SERVICES, service).await;
    let seen = until_reason(&cluster, name, "ServiceNotFound").await;
    assert_eq!(condition(&seen, "message"), "service/sample-api in \"default\" is not present");
    let refused = get(&cluster, FLUNDERS, JSON).await;
    assert_eq!((refused.code, refused.body.as_ref()), (503, b"service unavailable\n".as_slice()));

    let ports = json!({ "ports": [{ "name": "https", "port": 443, "targetPort": 8443 }] });
    let service = json!({ "metadata": { "name": "sample-api" }, "spec": ports });
    made(&cluster, "/api/v1/namespaces/default/services", service).await;
    until_reason(&cluster, name, "MissingEndpoints").await;
    made(&cluster, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice(true)).await;
    let seen = until_reason(&cluster, name, "Passed").await;
    assert_eq!((condition(&seen, "status"), condition(&seen, "message")), ("True", "all checks passed"));
    cluster
}

#[tokio::test]
async fn requests_are_passed_on_with_their_user() {
    let tasks = Tasks::default();
    let cluster = with_sample(&tasks).await;
    let jane = User {
        name: "jane".into(),
        groups: vec!["system:masters".into(), "staff".into()],
        extra: vec![("example.com/scope".into(), vec!["x".into()])],
        ..User::default()
    };
    let headers =
        [("authorization", "Bearer secret"), ("x-remote-group", "system:nodes"), ("content-type", JSON)];
    let path = format!("{FLUNDERS}?fieldManager=a%2Fb");
    let told = send(&cluster, Some(&jane), Method::POST, &path, &headers, "{\"a\":1}").await.json();
    assert_eq!(
        told,
        json!({
            "method": "POST", "path": path, "body": "{\"a\":1}", "user": ["jane"], "scope": ["x"],
            "groups": ["system:masters", "staff"], "authorization": [], "host": ["sample-api.default.svc"],
        })
    );
    let stranger = User { name: "eve".into(), ..User::default() };
    let refused = send(&cluster, Some(&stranger), Method::GET, FLUNDERS, &[], "").await;
    assert_eq!(refused.code, 403);
    let listed = "cannot list resource \"flunders\" in API group \"wardle.example.com\"";
    assert!(refused.message().contains(listed), "{}", refused.message());
    let away = get(&cluster, "/apis/wardle.example.com/v1alpha1/away", JSON).await;
    assert_eq!(away.code, 502);
    // What was authorized is what is asked for: nothing is hidden in a name.
    for hidden in ["x%2Fstatus", "..%2F..%2Fother%2Fflunders", "%2e%2e", "x/status/../../y"] {
        let refused = get(&cluster, &format!("{FLUNDERS}/{hidden}"), JSON).await;
        assert_eq!(refused.code, 400, "{hidden}: {:?}", refused.body);
    }
    let plain = get(&cluster, &format!("{FLUNDERS}//a%20b"), JSON).await.json();
    assert_eq!(plain["path"], format!("{FLUNDERS}/a%20b"));
}

#[tokio::test]
async fn components_of_this_process_read_what_it_serves() {
    let tasks = Tasks::default();
    let cluster = with_sample(&tasks).await;
    let flunders = resource("wardle.example.com", "v1alpha1", "flunders");
    let selected = ListOptions { metric_label_selector: "a=b".into(), ..ListOptions::default() };
    let listed = cluster.call(&flunders, "default", "", "", Call::List(selected)).await.unwrap();
    // The sample's answer has no items.
    assert!(matches!(listed, Response::List(list) if list.items.is_empty()));
    let get = || Call::Get { resource_version: String::new() };
    let read = cluster.call(&flunders, "default", "*", "size", get()).await.unwrap();
    let Response::Object { object, .. } = read else { panic!("no object") };
    let told: Value = object.decode().unwrap();
    assert_eq!(told["path"], format!("{FLUNDERS}/%2A/size"));
    assert!(told["groups"].as_array().unwrap().contains(&json!("system:masters")), "{told}");
    // And delete there: of what went nothing is told.
    let gone = Call::DeleteCollection(api::DeleteOptions::default(), ListOptions::default());
    let gone = cluster.call(&flunders, "default", "", "", gone).await.unwrap();
    assert!(matches!(gone, Response::Deleted { object: None, .. }));
    let written = Call::Create { body: "{}".into(), options: api::WriteOptions::default() };
    assert_eq!(cluster.call(&flunders, "default", "", "", written).await.err().unwrap().code, 405);
}

#[tokio::test]
async fn nobody_answers_for_this_servers_own_groups_nor_on_its_own_host() {
    let tasks = Tasks::default();
    let cluster = with_sample(&tasks).await;
    let claim = |group: &str, version: &str, service: &str| {
        let spec = json!({
            "group": group, "version": version, "groupPriorityMinimum": 100, "versionPriority": 1,
            "insecureSkipTLSVerify": true, "service": { "namespace": "default", "name": service } });
        json!({ "metadata": { "name": format!("{version}.{group}") }, "spec": spec })
    };
    made(&cluster, SERVICES, claim("apps", "v9", "sample-api")).await;
    let seen = until_reason(&cluster, "v9.apps", "GroupIsLocal").await;
    assert_eq!(condition(&seen, "status"), "False");
    assert_eq!(get(&cluster, "/apis/apps/v9/deployments", JSON).await.code, 404);
    // The very kind that says who serves what.
    let services = resource("apiregistration.k8s.io", "v1", "apiservices");
    for (group, version) in [("apiregistration.k8s.io", "v1"), ("", "v1"), ("apps", "v1")] {
        let name = format!("{version}.{group}");
        let own = claim(group, version, "sample-api");
        let path = format!("{SERVICES}/{name}");
        let patch = json!({ "spec": own["spec"] }).to_string();
        let taken = write(&cluster, Method::PATCH, &path, "application/merge-patch+json", patch).await;
        if taken.code == 404 {
            made(&cluster, SERVICES, own).await;
        }
        until(&cluster, &services, ("", &name), |seen| condition(seen, "reason") == "GroupIsLocal").await;
    }
    assert_eq!(get(&cluster, SERVICES, JSON).await.json()["kind"], "APIServiceList");
    assert_eq!(get(&cluster, "/api/v1/namespaces/default", JSON).await.json()["kind"], "Namespace");

    let ports = json!({ "ports": [{ "name": "https", "port": 443 }] });
    let service = json!({ "metadata": { "name": "inside" }, "spec": ports });
    made(&cluster, "/api/v1/namespaces/default/services", service).await;
    let mut inside = slice(true);
    inside["metadata"] = json!({ "name": "inside-1", "labels": { "kubernetes.io/service-name": "inside" } });
    inside["endpoints"][0]["addresses"] = json!(["127.0.0.1"]);
    let slices = resource("discovery.k8s.io", "v1", "endpointslices");
    cluster.create_as_server(&slices, "default", inside).await.unwrap();
    made(&cluster, SERVICES, claim("inside.example.com", "v1", "inside")).await;
    until_reason(&cluster, "v1.inside.example.com", "MissingEndpoints").await;
}

#[tokio::test]
async fn what_it_serves_is_found_and_stale_when_it_is_gone() {
    let tasks = Tasks::default();
    let cluster = with_sample(&tasks).await;
    let version = |list: &Value| -> Value {
        let items = list["items"].as_array().unwrap();
        let group = items.iter().find(|item| item["metadata"]["name"] == "wardle.example.com");
        group.map_or(Value::Null, |group| group["versions"][0].clone())
    };
    let found = version(&get(&cluster, "/apis", AGGREGATED).await.json());
    assert_eq!((&found["freshness"], &found["version"]), (&json!("Current"), &json!("v1alpha1")));
    assert_eq!(found["resources"][0]["responseKind"]["kind"], "Flunder");
    let groups = get(&cluster, "/apis", JSON).await.json();
    let names: Vec<&str> =
        groups["groups"].as_array().unwrap().iter().map(|group| group["name"].as_str().unwrap()).collect();
    let at = |name: &str| names.iter().position(|known| *known == name);
    assert!(
        at("wardle.example.com") > at("apps") && at("wardle.example.com") < at("metrics.k8s.io"),
        "{names:?}"
    );
    assert_eq!(
        get(&cluster, "/apis/wardle.example.com", JSON).await.json()["preferredVersion"]["version"],
        "v1alpha1"
    );
    let own = get(&cluster, "/apis/wardle.example.com/v1alpha1", JSON).await.json();
    assert_eq!(own["resources"][0]["name"], "flunders");
    let index = get(&cluster, "/openapi/v3", JSON).await.json();
    assert!(
        index["paths"]["apis/wardle.example.com/v1alpha1"].is_object()
            && index["paths"]["api/v1"].is_object()
    );
    let document = get(&cluster, "/openapi/v3/apis/wardle.example.com/v1alpha1?hash=1", JSON).await;
    assert_eq!(document.json()["path"], "/openapi/v3/apis/wardle.example.com/v1alpha1?hash=1");
    let document = get(&cluster, "/openapi/v2", JSON).await.json();
    assert!(document["paths"]["/apis/wardle.example.com/v1alpha1/flunders"].is_object());
    assert!(document["definitions"]["com.example.Flunder"].is_object());

    let told = || {
        let all = cluster.pipeline.extensions().into_iter();
        let plural =
            |all: Vec<ExtensionResource>| all.into_iter().map(|one| one.resource).collect::<Vec<_>>();
        all.map(|one| (one.group, one.available, plural(one.resources))).collect::<Vec<_>>()
    };
    let flunders = || vec!["flunders".to_owned()];
    assert_eq!(told(), [("wardle.example.com".to_owned(), true, flunders())]);

    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/sample-api-1";
    let patch = json!({ "endpoints": slice(false)["endpoints"] }).to_string();
    let gone = write(&cluster, Method::PATCH, path, "application/merge-patch+json", patch).await;
    assert_eq!(gone.code, 200, "{}", gone.message());
    until_reason(&cluster, "v1alpha1.wardle.example.com", "MissingEndpoints").await;
    let found = version(&get(&cluster, "/apis", AGGREGATED).await.json());
    assert_eq!(
        (&found["freshness"], &found["resources"][0]["resource"]),
        (&json!("Stale"), &json!("flunders"))
    );
    assert_eq!(told(), [("wardle.example.com".to_owned(), false, flunders())]);
    assert_eq!(get(&cluster, FLUNDERS, JSON).await.code, 503);
    assert_eq!(get(&cluster, "/apis/apps/v1", JSON).await.code, 200);
    let deleted =
        write(&cluster, Method::DELETE, &format!("{SERVICES}/v1alpha1.wardle.example.com"), JSON, "").await;
    assert_eq!(deleted.code, 200);
}

#[tokio::test]
async fn what_is_served_here_is_registered() {
    let cluster = Cluster::start().await;
    for (name, priority) in [("v1.", 18_000), ("v1.apps", 17_800), ("v1beta1.metrics.k8s.io", 100)] {
        let service = until_reason(&cluster, name, "Local").await;
        assert_eq!(condition(&service, "status"), "True");
        assert_eq!(service["spec"]["groupPriorityMinimum"], priority);
    }
    let services = resource("apiregistration.k8s.io", "v1", "apiservices");
    let label = "kube-aggregator.kubernetes.io/automanaged";
    let apps = cluster.get(&services, "", "v1.apps").await.unwrap();
    assert_eq!(apps["metadata"]["labels"][label], "onstart");
    let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let definition = json!({ "metadata": { "name": "ws.example.com" }, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": { "plural": "ws", "kind": "W" },
        "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema } }] } });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    made(&cluster, definitions, definition).await;
    let custom = until_reason(&cluster, "v1.example.com", "Local").await;
    assert_eq!(
        (&custom["metadata"]["labels"][label], &custom["spec"]["versionPriority"]),
        (&json!("true"), &json!(100))
    );
}

#[tokio::test]
async fn headers_alone_name_nobody() {
    let cluster = Cluster::start().await;
    let says = [("x-remote-user", "admin"), ("x-remote-group", "system:masters")];
    let refused = send(&cluster, None, Method::GET, "/api/v1/secrets", &says, "").await;
    assert_eq!(refused.code, 403, "without a front proxy's certificate the user is anonymous");
}

/// Who the server thinks asks, by a certificate and headers: code, name and groups.
async fn who(cluster: &Cluster, shown: &Issued, headers: &[(&str, &str)]) -> (u16, Value) {
    let config = client_config(&cluster.pki.ca_pem(), Arc::new(HotResolver::new(shown).unwrap())).unwrap();
    let stream = TcpStream::connect(cluster.address).await.unwrap();
    let name = ServerName::try_from("kubernetes").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let tasks = Tasks::default();
    tasks.spawn(async move {
        let _ = connection.await;
    });
    let mut request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
        .header("host", "kubernetes")
        .header("content-type", JSON);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = sender.send_request(request.body(body("{}")).unwrap()).await.unwrap();
    let code = answer.status().as_u16();
    let said: Value =
        serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
    (code, said["status"]["userInfo"].clone())
}

#[tokio::test]
async fn a_front_proxy_says_on_whose_behalf_it_asks() {
    let cluster = Cluster::start().await;
    let proxy = cluster.pki.issue_front_proxy().unwrap();
    let jane = [("x-remote-user", "jane"), ("x-remote-group", "staff"), ("x-remote-extra-scope", "x")];
    let (code, user) = who(&cluster, &proxy, &jane).await;
    assert_eq!((code, &user["username"]), (201, &json!("jane")));
    assert_eq!(user["groups"], json!(["staff", "system:authenticated"]));
    assert_eq!(user["extra"], json!({ "scope": ["x"] }));
    assert_eq!(who(&cluster, &proxy, &[]).await.0, 401, "it is nobody itself");
    let life = Duration::from_secs(3600);
    let admin = cluster.pki.issue_client("admin", &["system:masters"], life).unwrap();
    assert_eq!(who(&cluster, &admin, &jane).await.1["username"], "admin");
}
