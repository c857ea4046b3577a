//! The transport against a real TLS server in the process.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use api::{GroupVersionResource, Key, ListOptions};
use hyper::service::service_fn;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::Client;

struct Server {
    config: Config,
    connections: Arc<AtomicU32>,
    asked: mpsc::UnboundedReceiver<String>,
    _tasks: Tasks,
}

/// Serves `answer` for every request; hangs up after the first of each connection if asked to.
async fn serve(answer: &[&'static [u8]], code: u16, hang_up: bool) -> Server {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("https://{}", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicU32::new(0));
    let (sender, asked) = mpsc::unbounded_channel();
    let tasks = Tasks::default();
    let answer = answer.to_vec();
    let count = connections.clone();
    tasks.spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let Ok(stream) = acceptor.accept(tcp).await else { continue };
            let sender = sender.clone();
            let answered = Arc::new(Notify::new());
            let (done, answer) = (answered.clone(), answer.clone());
            let service = service_fn(move |request: http::Request<Incoming>| {
                let token = request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap());
                let line = format!("{} {} {}", request.method(), request.uri().path(), token.unwrap_or("-"));
                sender.send(line).unwrap();
                let frames: Vec<Result<_, Infallible>> = answer
                    .iter()
                    .map(|part| Ok(hyper::body::Frame::data(Bytes::from_static(part))))
                    .collect();
                let body = http_body_util::StreamBody::new(futures::stream::iter(frames));
                done.notify_one();
                async move { http::Response::builder().status(code).body(body) }
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => continue,
                () = answered.notified(), if hang_up => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        }
    });
    let config = Config {
        server,
        ca_pem: ca.pem().into_bytes(),
        token: Token::Fixed("secret".into()),
        ..Config::default()
    };
    Server { config, connections, asked, _tasks: tasks }
}

fn pods() -> GroupVersionResource {
    GroupVersionResource::new("", "v1", "pods")
}

#[tokio::test]
async fn reads_objects_over_one_connection() {
    let mut server = serve(
        &[br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","res"#, br#"ourceVersion":"5"}}"#],
        200,
        false,
    )
    .await;
    let client = Client::new(Arc::new(Https::new(&server.config).unwrap()), "test");
    for _ in 0..3 {
        assert_eq!(client.get(&pods(), &Key::new("ns", "a")).await.unwrap().revision(), 5);
    }
    assert_eq!(server.asked.recv().await.unwrap(), "GET /api/v1/namespaces/ns/pods/a Bearer secret");
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn watches_stream_events_cut_anywhere() {
    let server = serve(
        &[
            b"{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"na",
            b"me\":\"a\"}}}\n{\"type\":\"DELETED\",\"object\":{\"metadata\":{\"name\":\"a\"}}}\n",
        ],
        200,
        false,
    )
    .await;
    let client = Client::new(Arc::new(Https::new(&server.config).unwrap()), "test");
    let stream = client.watch(&pods(), "", ListOptions::default()).await.unwrap();
    let kinds: Vec<_> = futures::StreamExt::collect::<Vec<_>>(stream)
        .await
        .into_iter()
        .flat_map(|batch| batch.unwrap())
        .map(|event| event.kind)
        .collect();
    assert_eq!(kinds, [api::WatchEventKind::Added, api::WatchEventKind::Deleted]);
}

#[tokio::test]
async fn refusals_are_statuses_and_hang_ups_are_survived() {
    let body = br#"{"kind":"Status","code":409,"reason":"Conflict","message":"changed"}"#;
    let server = serve(&[body], 409, true).await;
    let client = Client::new(Arc::new(Https::new(&server.config).unwrap()), "test");
    for _ in 0..3 {
        let status = client.get(&pods(), &Key::new("ns", "a")).await.unwrap_err();
        assert_eq!((status.reason, status.message.as_str()), (Reason::Conflict, "changed"));
    }
    assert!(server.connections.load(Ordering::SeqCst) >= 2);
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let server = serve(&[b"{}"], 200, false).await;
    let other = serve(&[b"{}"], 200, false).await;
    let config = Config { ca_pem: other.config.ca_pem.clone(), ..server.config.clone() };
    let client = Client::new(Arc::new(Https::new(&config).unwrap()), "test");
    let status = client.get(&pods(), &Key::new("ns", "a")).await.unwrap_err();
    assert_eq!(status.reason, Reason::ServiceUnavailable);
    assert!(status.message.contains("certificate"), "{}", status.message);
}

#[tokio::test]
async fn a_server_is_followed_to_where_it_answers() {
    let mut server =
        serve(&[br#"{"kind":"Pod","metadata":{"name":"a","resourceVersion":"5"}}"#], 200, false).await;
    let other = serve(&[b"{}"], 200, false).await;
    // The certificate is for the address: the same server under another one.
    let config = Config { tls_server_name: Some("127.0.0.1".into()), ..server.config.clone() };
    let https = Arc::new(Https::new(&config).unwrap());
    let before = https.authority();
    https.move_to("nonsense").await.unwrap_err();
    https.move_to(&other.config.server).await.expect_err("another server shows another certificate");
    assert_eq!(https.authority(), before);
    https.move_to(&config.server.replace("127.0.0.1", "localhost")).await.unwrap();
    assert_eq!(https.authority(), before.replace("127.0.0.1", "localhost"));
    let client = Client::new(https, "test");
    assert_eq!(client.get(&pods(), &Key::new("ns", "a")).await.unwrap().revision(), 5);
    assert!(server.asked.recv().await.is_some());
}
