//! The HTTPS listener: TLS with the node's own certificate, client certificates where clients have one, HTTP/1.1 with
//! upgrades.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::connect::Body;
use base::BoxError;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::auth::{self, Identity};
use super::{NodeServer, failure, route};
use crate::config::ServerConfig;

/// Connections at once; more wait.
const CONNECTIONS_MAX: usize = 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// A port that has been taken.
pub(super) struct Listening {
    listener: TcpListener,
    address: SocketAddr,
    tls: TlsAcceptor,
    api_server_name: String,
}

impl Listening {
    pub(super) async fn bind(config: &ServerConfig) -> Result<Self, BoxError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(config.client_ca_pem.as_bytes()) {
            roots.add(certificate?)?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(config.certificates.clone());
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener = TcpListener::bind(config.listen).await.map_err(|error| {
            format!(
                "the node's server cannot listen on {}: {error} (is another node running on this host?)",
                config.listen
            )
        })?;
        let address = listener.local_addr()?;
        let api_server_name = config.api_server_name.clone();
        Ok(Self { listener, address, tls: TlsAcceptor::from(Arc::new(tls)), api_server_name })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Accepts connections until it is dropped.
pub(super) async fn accept(server: Arc<NodeServer>) {
    let Some(listening) = &server.https else { return };
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let (stream, _) = base::accept::next("the node's server", || listening.listener.accept()).await;
        let served = server.clone();
        server.sessions.spawn(async move {
            serve(served, stream).await;
            drop(permit);
        });
    }
}

async fn serve(server: Arc<NodeServer>, stream: TcpStream) {
    let Some(listening) = &server.https else { return };
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, listening.tls.accept(stream)).await;
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let identity = certificates.and_then(|chain| chain.first()).and_then(auth::of_certificate);
    let handler = server.clone();
    let service = service_fn(move |request| {
        let (server, identity) = (handler.clone(), identity.clone());
        async move { Ok::<_, std::convert::Infallible>(answer(&server, identity, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "connection to the node's server ended");
    }
}

async fn answer(
    server: &Arc<NodeServer>,
    certificate: Option<Identity>,
    request: Request<Incoming>,
) -> Response<Body> {
    match check(server, certificate, &request).await {
        Ok(()) => server.handle(request.map(|body| body.map_err(Into::into).boxed_unsync())).await,
        Err(status) => failure(&status),
    }
}

async fn check(
    server: &NodeServer,
    certificate: Option<Identity>,
    request: &Request<Incoming>,
) -> Result<(), api::Status> {
    let route = route::parse(request.method(), request.uri().path());
    let api_server = server.https.as_ref().map_or("", |listening| listening.api_server_name.as_str());
    let identity = server.guard.authenticate(certificate, request.headers()).await?;
    server.guard.authorize(api_server, &identity, request.method(), &route).await
}
