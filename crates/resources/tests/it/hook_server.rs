//! A webhook on a loopback port, over HTTPS, found by its URL or by a Service.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use apiserver::pki::Pki;
use base::clock::SystemClock;
use base::lifecycle::Tasks;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::cluster::{Cluster, ELSEWHERE, resource};

/// What a webhook says to a review that was sent to a path; `None`: nothing, ever.
pub(crate) type Says = Arc<dyn Fn(&str, &Value) -> Option<Value> + Send + Sync>;

/// Paths and reviews that it was asked.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;
/// How whoever asked said who they are.
type Asking = Arc<Mutex<Vec<String>>>;

/// A running webhook.
pub(crate) struct HookServer {
    address: SocketAddr,
    ca: String,
    asked: Asked,
    asked_by: Asking,
    pki: Arc<Pki>,
    _tasks: Tasks,
    _dir: tempfile::TempDir,
}

impl HookServer {
    /// A webhook that answers so.
    pub(crate) async fn start(says: impl Fn(&str, &Value) -> Option<Value> + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let names = vec!["hook.default.svc".to_owned()];
        let pki = Pki::open(dir.path(), Arc::new(SystemClock), names, [loopback]).unwrap();
        let listener = TcpListener::bind((loopback, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(pki.server_config(&[b"http/1.1"]).unwrap());
        let (asked, tasks) = (Arc::new(Mutex::new(Vec::new())), Tasks::default());
        let (says, heard): (Says, _) = (Arc::new(says), asked.clone());
        let asked_by = Asking::default();
        let by = asked_by.clone();
        tasks.spawn(async move {
            let mut open = FuturesUnordered::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { return };
                        open.push(serve(acceptor.clone(), stream, says.clone(), (heard.clone(), by.clone())));
                    }
                    Some(()) = open.next() => {}
                }
            }
        });
        Self { address, ca: STANDARD.encode(pki.ca_pem()), asked, asked_by, pki, _tasks: tasks, _dir: dir }
    }

    /// The authority that vouches for it, in PEM.
    pub(crate) fn ca(&self) -> Vec<u8> {
        STANDARD.decode(&self.ca).unwrap()
    }

    /// A `clientConfig` with a URL.
    pub(crate) fn by_url(&self, path: &str) -> Value {
        json!({ "url": format!("https://{}{path}", self.address), "caBundle": self.ca })
    }

    /// A `clientConfig` with the Service that [`HookServer::serve_as_service`] makes.
    pub(crate) fn by_service(&self, path: &str) -> Value {
        let service = json!({ "namespace": "default", "name": "hook", "port": 8443, "path": path });
        json!({ "service": service, "caBundle": self.ca })
    }

    /// Makes Service `default/hook` lead here.
    pub(crate) async fn serve_as_service(&self, cluster: &Cluster) {
        let service = json!({ "metadata": { "name": "hook" }, "spec": { "ports": [{ "port": 8443 }] } });
        cluster.create(&resource("", "v1", "services"), "default", service).await.unwrap();
        let slice = json!({
            "metadata": { "name": "hook-1", "labels": { "kubernetes.io/service-name": "hook" } },
            "addressType": "IPv4", "ports": [{ "name": "", "port": self.address.port() }],
            "endpoints": [{ "addresses": [ELSEWHERE], "conditions": { "ready": true } }],
        });
        let slices = resource("discovery.k8s.io", "v1", "endpointslices");
        cluster.create_as_server(&slices, "default", slice).await.unwrap();
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A certificate and its key, in base64, by which it knows who asks.
    pub(crate) fn certificate(&self) -> (String, String) {
        let life = std::time::Duration::from_secs(3600);
        let issued = self.pki.issue_client("server", &[], life).unwrap();
        (STANDARD.encode(issued.cert_pem), STANDARD.encode(issued.key_pem))
    }

    /// How whoever asked said who they are: `Authorization`, "certificate" or nothing.
    pub(crate) fn asked_by(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked_by.lock())
    }

    /// What it was asked since it was last asked this: paths and reviews.
    pub(crate) fn asked(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut *self.asked.lock())
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, says: Says, (heard, by): (Asked, Asking)) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let is_certified = stream.get_ref().1.peer_certificates().is_some();
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (says, heard, by) = (says.clone(), heard.clone(), by.clone());
        let header = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        let asking =
            header.unwrap_or_else(|| if is_certified { "certificate".into() } else { String::new() });
        by.lock().push(asking);
        async move {
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let review: Value = serde_json::from_slice(&body).unwrap();
            let answer = says(&path, &review);
            heard.lock().push((path, review));
            let Some(answer) = answer else { return std::future::pending().await };
            let body = Full::new(bytes::Bytes::from(answer.to_string()));
            Ok::<_, std::convert::Infallible>(http::Response::new(body))
        }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}
