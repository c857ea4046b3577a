//! Carrying a request to a backend and its answer back: each over a connection of its own, bodies streamed both ways,
//! upgraded connections joined.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use api::connect::Body;
use base::BoxError;
use base::lifecycle::Tasks;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Egress;

/// A backend has this long to take the connection. Source: upstream's proxy transport.
const CONNECT_MAX: Duration = Duration::from_secs(30);
/// And this long for the TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Where a request goes.
pub(crate) struct Destination {
    pub(crate) address: SocketAddr,
    /// TLS, and the name that the backend is to prove.
    pub(crate) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// The way out.
pub(crate) struct Outbound {
    egress: Arc<dyn Egress>,
    connections: Tasks,
    /// Counts choices, so that backends take turns.
    turn: AtomicUsize,
}

impl Outbound {
    pub(crate) fn new(egress: Arc<dyn Egress>) -> Self {
        Self { egress, connections: Tasks::default(), turn: AtomicUsize::new(0) }
    }

    /// One of several backends: each in its turn.
    pub(crate) fn one_of<T>(&self, mut backends: Vec<T>) -> Option<T> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed).checked_rem(backends.len())?;
        Some(backends.swap_remove(turn))
    }

    /// Sends a request and gives the head of the answer; its body streams. An upgraded connection is joined with the
    /// client's, which the request carries in its extensions.
    pub(crate) async fn send(
        &self,
        to: &Destination,
        request: Request<Body>,
    ) -> Result<Response<Body>, BoxError> {
        let stream = self.dial(to.address).await?;
        let Some((config, name)) = &to.tls else {
            return Ok(exchange(&self.connections, stream, request).await?);
        };
        let handshake = TlsConnector::from(config.clone()).connect(name.clone(), stream);
        let stream = tokio::time::timeout(HANDSHAKE_MAX, handshake);
        let stream = stream.await.map_err(|_| "net/http: TLS handshake timeout")??;
        Ok(exchange(&self.connections, stream, request).await?)
    }

    async fn dial(&self, address: SocketAddr) -> Result<TcpStream, BoxError> {
        let failed = |cause: String| format!("dial tcp {address}: {cause}");
        let stream = tokio::time::timeout(CONNECT_MAX, self.egress.connect(address)).await;
        let stream = stream.map_err(|_| failed("i/o timeout".into()))?;
        let stream = stream.map_err(|error| failed(format!("connect: {}", cause(&error))))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Why a connection was not made, in the words that Go's clients see.
fn cause(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
        std::io::ErrorKind::HostUnreachable => "no route to host".into(),
        std::io::ErrorKind::NetworkUnreachable => "network is unreachable".into(),
        _ => error.to_string(),
    }
}

/// Sends a request over a connection that is open, and gives the answer. An upgraded connection is joined with the
/// client's.
pub(crate) async fn exchange<S>(
    connections: &Tasks,
    stream: S,
    mut request: Request<Body>,
) -> Result<Response<Body>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    connections.spawn(async move {
        // Its errors reach whoever reads the answer.
        let _ = connection.with_upgrades().await;
    });
    let client = hyper::upgrade::on(&mut request);
    let mut answer = sender.send_request(request).await?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        connections.spawn(join(client, hyper::upgrade::on(&mut answer)));
    }
    Ok(answer.map(|body| body.map_err(Into::into).boxed_unsync()))
}

/// Copies both ways until both sides have ended.
async fn join(client: OnUpgrade, backend: OnUpgrade) {
    let (Ok(client), Ok(backend)) = tokio::join!(client, backend) else { return };
    // A side that breaks off is the end, whoever it was.
    let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(backend)).await;
}

/// All of an answer's body, if it is not too large.
pub(crate) async fn collected(mut body: Body, bytes_max: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| base::error::chain(&*error))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > bytes_max {
            return Err(format!("the answer is larger than {bytes_max} bytes"));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// TLS without a look at who the backend is: pods and Services have no authority that everybody knows.
/// Source: upstream's proxy transport (`InsecureSkipVerify`).
pub(crate) fn insecure() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Believes every certificate.
#[derive(Debug)]
pub(crate) struct AnyServer(pub(crate) Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
