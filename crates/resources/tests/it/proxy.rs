//! Requests that leave through the API server: to pods, Services and nodes, as the conformance tests of `Proxy` ask, and
//! what is refused. Backends listen on loopback; [`Streets`] tells which addresses of the cluster they stand for.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use api::Status;
use api::connect::{Body, NodeAddress, NodeConnector, User};
use apiserver::proxy::Egress;
use async_trait::async_trait;
use base::lifecycle::Tasks;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::aggregation::until;
use crate::cluster::{Cluster, Made, resource};
use crate::http_front::{Answer, JSON, get, send, write};

const POD: &str = "/api/v1/namespaces/default/pods/web:8080/proxy";
const SERVICE: &str = "/api/v1/namespaces/default/services/web:http/proxy";
const MERGE: &str = "application/merge-patch+json";

/// Addresses of the cluster, and the loopback addresses that stand for them.
pub(crate) struct Streets(pub(crate) HashMap<SocketAddr, SocketAddr>);

#[async_trait]
impl Egress for Streets {
    async fn connect(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        match self.0.get(&address) {
            Some(real) => TcpStream::connect(real).await,
            None => Err(std::io::ErrorKind::ConnectionRefused.into()),
        }
    }
}

/// A node that tells what it was asked, and has used a core, and half of one for its pod, for some years.
struct Mirror;

#[async_trait]
impl NodeConnector for Mirror {
    async fn request(&self, node: &NodeAddress, request: Request<Body>) -> Result<Response<Body>, Status> {
        if request.uri().path() == "/metrics/resource" {
            return Ok(Response::new(body(figures())));
        }
        let told = json!({ "node": node.name, "path": request.uri().to_string() });
        Ok(Response::new(Full::from(told.to_string()).map_err(|never| match never {}).boxed_unsync()))
    }
}

fn figures() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let cores = (now - 1_700_000_000_000) as f64 / 1000.0;
    let labels = "{container=\"c\",namespace=\"default\",pod=\"web\"}";
    format!(
        "node_cpu_usage_seconds_total {cores} {now}\nnode_memory_working_set_bytes 1048576 {now}\n\
         container_cpu_usage_seconds_total{labels} {} {now}\ncontainer_memory_working_set_bytes{labels} 2048 {now}\n",
        cores / 2.0
    )
}

/// Listens on loopback and answers each connection with `answer`.
pub(crate) async fn listen<F, R>(tasks: &Tasks, answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        let connections = Tasks::default();
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let answer = answer.clone();
                async move { Ok::<_, Infallible>(answer(request).await) }
            });
            connections.spawn(async move {
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                let _ = connection.with_upgrades().await;
            });
        }
    });
    address
}

pub(crate) fn body(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Tells what it was asked; sends elsewhere; speaks another protocol, in capitals.
async fn backend(mut request: Request<Incoming>, tasks: Arc<Tasks>) -> Response<Body> {
    if request.headers().contains_key("upgrade") {
        let upgraded = hyper::upgrade::on(&mut request);
        tasks.spawn(async move {
            let mut stream = TokioIo::new(upgraded.await.unwrap());
            let mut word = [0; 5];
            stream.read_exact(&mut word).await.unwrap();
            stream.write_all(&word.to_ascii_uppercase()).await.unwrap();
        });
        let switch =
            Response::builder().status(101).header("connection", "Upgrade").header("upgrade", "shout");
        return switch.body(body("")).unwrap();
    }
    let (head, given) = request.into_parts();
    let given = given.collect().await.unwrap().to_bytes();
    if head.uri.path() == "/away" {
        let away = Response::builder().status(302).header("location", "/login?x=1");
        return away.body(body("")).unwrap();
    }
    if head.uri.path() == "/page" {
        let page = Response::builder().header("content-type", "text/html");
        return page.body(body("<a href=\"/login\">in</a>")).unwrap();
    }
    let headers: HashMap<String, String> = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    let told = json!({
        "method": head.method.as_str(), "path": head.uri.to_string(), "headers": headers,
        "body": String::from_utf8_lossy(&given),
    });
    Response::builder()
        .status(if head.uri.path() == "/teapot" { 418 } else { 200 })
        .header("access-control-allow-origin", "*")
        .body(body(told.to_string()))
        .unwrap()
}

async fn made(cluster: &Cluster, path: &str, object: Value) {
    let answer = write(cluster, Method::POST, path, JSON, object.to_string()).await;
    assert_eq!(answer.code, 201, "{}", answer.message());
}

async fn patched(cluster: &Cluster, path: &str, patch: Value) {
    let answer = write(cluster, Method::PATCH, path, MERGE, patch.to_string()).await;
    assert_eq!(answer.code, 200, "{}", answer.message());
}

async fn pod(cluster: &Cluster, name: &str, address: &str) {
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({ "metadata": { "name": name }, "spec": { "nodeName": "n", "containers": [
        { "name": "c", "image": "a:1", "ports": [{ "containerPort": 8080 }] }] } });
    made(cluster, pods, pod).await;
    let status = json!({ "status": { "podIP": address, "podIPs": [{ "ip": address }] } });
    patched(cluster, &format!("{pods}/{name}/status"), status).await;
    let kind = resource("", "v1", "pods");
    until(cluster, &kind, ("default", name), |pod| pod["status"]["podIP"] == address).await;
}

/// Makes a slice with an endpoint.
async fn serves(cluster: &Cluster, name: &str, service: &str, address: &str, target: &str) {
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    made(cluster, slices, slice(name, service, address, target)).await;
    let kind = resource("discovery.k8s.io", "v1", "endpointslices");
    until(cluster, &kind, ("default", name), |_| true).await;
}

/// Writes the node's status.
async fn says(cluster: &Cluster, field: &str, value: Value) {
    patched(cluster, "/api/v1/nodes/n/status", json!({ "status": { field: value } })).await;
    let kind = resource("", "v1", "nodes");
    until(cluster, &kind, ("", "n"), |node| node["status"][field].is_array()).await;
}

fn slice(name: &str, service: &str, address: &str, target: &str) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4", "ports": [{ "name": "http", "port": 8080 }],
        "endpoints": [{ "addresses": [address],
            "targetRef": { "kind": "Pod", "namespace": "default", "name": target } }],
    })
}

/// A cluster with pod and Service `web`, and a node `n`.
async fn cluster(tasks: &Tasks) -> Cluster {
    let streams = Arc::new(Tasks::default());
    let real = listen(tasks, move |request| backend(request, streams.clone())).await;
    let streets = Streets(HashMap::from([("10.1.0.7:8080".parse().unwrap(), real)]));
    let cluster =
        Cluster::make(Made { nodes: Arc::new(Mirror), egress: Some(Arc::new(streets)), ..Made::default() })
            .await;
    let account = json!({ "metadata": { "name": "default" } });
    made(&cluster, "/api/v1/namespaces/default/serviceaccounts", account).await;
    pod(&cluster, "web", "10.1.0.7").await;
    let service = json!({ "metadata": { "name": "web" }, "spec": {
        "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] } });
    made(&cluster, "/api/v1/namespaces/default/services", service).await;
    serves(&cluster, "web-1", "web", "10.1.0.7", "web").await;
    made(&cluster, "/api/v1/nodes", json!({ "metadata": { "name": "n" } })).await;
    says(&cluster, "addresses", json!([{ "type": "InternalIP", "address": "127.0.0.1" }])).await;
    cluster
}

async fn ask(cluster: &Cluster, method: Method, path: &str, given: &str) -> Answer {
    let headers = [("authorization", "Bearer secret"), ("x-own", "1"), ("connection", "close")];
    send(cluster, Some(&cluster.user), method, path, &headers, given.to_owned()).await
}

#[tokio::test]
async fn every_method_reaches_pods_and_services_with_path_query_and_body() {
    let tasks = Tasks::default();
    let cluster = cluster(&tasks).await;
    for proxy in [POD, SERVICE, "/api/v1/namespaces/default/services/http:web:80/proxy"] {
        for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS]
        {
            let answer = ask(&cluster, method.clone(), &format!("{proxy}/a%2Fb/?x=1"), "given").await;
            assert_eq!(answer.code, 200, "{proxy} {method}: {:?}", answer.body);
            let told = answer.json();
            assert_eq!((&told["method"], &told["path"]), (&json!(method.as_str()), &json!("/a%2Fb/?x=1")));
            assert_eq!((&told["body"], &told["headers"]["x-own"]), (&json!("given"), &json!("1")));
            assert_eq!(told["headers"]["x-forwarded-uri"], format!("{proxy}/a%2Fb/"));
            assert!(told["headers"]["authorization"].is_null(), "credentials stay here");
            assert_eq!(answer.header("access-control-allow-origin"), "");
        }
        let teapot = ask(&cluster, Method::GET, &format!("{proxy}/teapot"), "").await;
        assert_eq!(teapot.code, 418);
        let away = ask(&cluster, Method::GET, &format!("{proxy}/away"), "").await;
        assert_eq!((away.code, away.header("location")), (302, format!("{proxy}/login?x=1").as_str()));
        let page = ask(&cluster, Method::GET, &format!("{proxy}/page"), "").await;
        assert_eq!(page.body, format!("<a href=\"{proxy}/login\">in</a>"));
        let bare = ask(&cluster, Method::GET, &format!("{proxy}?x=1"), "").await;
        assert_eq!((bare.code, bare.header("location")), (301, format!("{proxy}/?x=1").as_str()));
        assert_eq!(ask(&cluster, Method::POST, proxy, "").await.json()["path"], "/");
    }
}

#[tokio::test]
async fn who_does_not_answer_is_told_in_upstreams_words() {
    let tasks = Tasks::default();
    let cluster = cluster(&tasks).await;
    let said = async |path: &str| {
        let answer = get(&cluster, path, JSON).await;
        (answer.code, answer.message())
    };
    let refused = "error trying to reach service: dial tcp 10.1.0.7:9: connect: connection refused";
    assert_eq!(said("/api/v1/namespaces/default/pods/web:9/proxy/").await, (503, refused.into()));
    let services = "/api/v1/namespaces/default/services";
    let port = "no service port 81 found for service \"web\"";
    assert_eq!(said(&format!("{services}/web:81/proxy/")).await, (503, port.into()));
    let nobody = "no endpoints available for service \"web:other\"";
    assert_eq!(said(&format!("{services}/web:other/proxy/")).await, (503, nobody.into()));
    assert_eq!(said(&format!("{services}/none/proxy/")).await.0, 404);
    let odd = "invalid service request \"ftp:web:1\"";
    assert_eq!(said(&format!("{services}/ftp:web:1/proxy/")).await, (400, odd.into()));
}

#[tokio::test]
async fn nobody_makes_the_api_server_connect_to_itself() {
    let tasks = Tasks::default();
    let cluster = cluster(&tasks).await;
    for (name, address) in [("own", "127.0.0.1"), ("cloud", "169.254.169.254")] {
        pod(&cluster, name, address).await;
        let answer = get(&cluster, &format!("/api/v1/namespaces/default/pods/{name}/proxy/"), JSON).await;
        assert_eq!((answer.code, answer.message().as_str()), (400, "address not allowed"));
    }
    // An endpoint that is not an address of the pod that it names is none.
    made(
        &cluster,
        "/api/v1/namespaces/default/services",
        json!({ "metadata": { "name": "odd" }, "spec": {
        "ports": [{ "name": "http", "port": 80 }] } }),
    )
    .await;
    serves(&cluster, "odd-1", "odd", "10.1.0.8", "web").await;
    let answer = get(&cluster, "/api/v1/namespaces/default/services/odd:http/proxy/", JSON).await;
    assert_eq!(
        (answer.code, answer.message().as_str()),
        (503, "no endpoints available for service \"odd:http\"")
    );
    // Another port of a node whose address is this host's own.
    let answer = get(&cluster, "/api/v1/nodes/n:22/proxy/", JSON).await;
    assert_eq!((answer.code, answer.message().as_str()), (400, "address not allowed"));
}

#[tokio::test]
async fn a_nodes_own_server_is_reached_by_who_may() {
    let tasks = Tasks::default();
    let cluster = cluster(&tasks).await;
    for name in ["n", "n:10250"] {
        let told = get(&cluster, &format!("/api/v1/nodes/{name}/proxy/logs/?x=1"), JSON).await.json();
        assert_eq!(told, json!({ "node": "n", "path": "/logs/?x=1" }));
    }
    let stranger = User { name: "jane".into(), ..User::default() };
    for path in ["/api/v1/nodes/n/proxy/pods", POD, SERVICE] {
        let answer = send(&cluster, Some(&stranger), Method::GET, path, &[], "").await;
        assert_eq!(answer.code, 403, "{path}");
    }
}

#[tokio::test]
async fn another_protocol_passes_through() {
    let tasks = Tasks::default();
    let cluster = Arc::new(cluster(&tasks).await);
    let (front, user) = (cluster.front.clone(), cluster.user.clone());
    let api = listen(&tasks, move |request| {
        let (front, user) = (front.clone(), user.clone());
        async move { front.serve(Some(&user), request).await }
    })
    .await;
    let stream = TokioIo::new(TcpStream::connect(api).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tasks.spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    let request = Request::get(SERVICE).header("connection", "Upgrade").header("upgrade", "shout");
    let mut answer = sender.send_request(request.body(body("")).unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
    stream.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"HELLO");
}

#[tokio::test]
async fn what_nodes_and_pods_use_is_told() {
    const METRICS: &str = "/apis/metrics.k8s.io/v1beta1";
    let tasks = Tasks::default();
    let cluster = cluster(&tasks).await;
    let nodes = get(&cluster, &format!("{METRICS}/nodes"), JSON).await.json();
    assert_eq!((&nodes["kind"], &nodes["items"]), (&json!("NodeMetricsList"), &json!([])), "it is not ready");
    says(&cluster, "conditions", json!([{ "type": "Ready", "status": "True" }])).await;

    let node = get(&cluster, &format!("{METRICS}/nodes/n"), JSON).await.json();
    assert_eq!((&node["kind"], &node["usage"]["memory"]), (&json!("NodeMetrics"), &json!("1Mi")));
    let about = |quantity: &Value, cores: f64| {
        let text = quantity.as_str().unwrap();
        let told = text.parse::<api::quantity::Quantity>().unwrap().milli_value() as f64 / 1000.0;
        assert!((told - cores).abs() < 0.1 * cores, "{text}");
    };
    about(&node["usage"]["cpu"], 1.0);
    let pods = get(&cluster, &format!("{METRICS}/namespaces/default/pods"), JSON).await.json();
    let pod = &pods["items"][0];
    assert_eq!((&pod["metadata"]["name"], &pod["containers"][0]["name"]), (&json!("web"), &json!("c")));
    about(&pod["containers"][0]["usage"]["cpu"], 0.5);
    let none = get(&cluster, &format!("{METRICS}/pods?labelSelector=a%3Db"), JSON).await.json();
    assert_eq!(none["items"], json!([]));
    let missing = get(&cluster, &format!("{METRICS}/namespaces/default/pods/none"), JSON).await;
    assert_eq!(missing.message(), "pods.metrics.k8s.io \"default/none\" not found");
    let table = get(&cluster, &format!("{METRICS}/pods"), "application/json;as=Table;v=v1;g=meta.k8s.io")
        .await
        .json();
    assert_eq!(
        (&table["rows"][0]["cells"][0], &table["rows"][0]["cells"][2]),
        (&json!("web"), &json!("2Ki"))
    );
}
