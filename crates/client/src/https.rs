//! The transport over HTTPS: one HTTP/2 connection that is opened when it is needed and opened again when it broke.
//!
//! [`Https::send_http`] and [`Https::connect`] are for what is no resource verb: logs, version, and streams that upgrade
//! an HTTP/1.1 connection (exec, attach, port-forward).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::{Call, Reason, Request, Response, Status};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::Tasks;
use bytes::Bytes;
use http::{HeaderValue, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Transport;

mod decode;
mod encode;
#[cfg(test)]
mod tests;

/// Bytes of an answer that are read at most, a page of a list at its largest.
const BODY_MAX_BYTES: usize = 256 << 20;
/// How long opening a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// An open connection is probed after so long without a sign of life while answers are awaited.
const PROBE: Duration = Duration::from_secs(20);
/// Read again at most this often.
const TOKEN_FRESH: Duration = Duration::from_secs(60);
/// Flow control: large lists are a third cheaper with wide windows.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Why a server cannot be talked to, before any request is made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The server's address makes no sense.
    #[error("server address {0:?} is not of the form https://host:port")]
    Address(String),
    /// A certificate or key cannot be read.
    #[error("{what} is not valid PEM: {source}")]
    Pem {
        /// Which one.
        what: &'static str,
        /// The parser's words.
        source: rustls_pki_types::pem::Error,
    },
    /// TLS refuses the certificates.
    #[error("certificates are not usable: {0}")]
    Tls(#[from] rustls::Error),
}

/// Who the client is, beside its certificate.
#[derive(Clone, Default)]
pub enum Token {
    /// No token.
    #[default]
    None,
    /// A fixed bearer token.
    Fixed(String),
    /// A file with a bearer token, which others renew (ServiceAccount tokens).
    File(PathBuf),
}

/// Where the server is and how each side proves who it is. PEM throughout.
#[derive(Clone, Default)]
pub struct Config {
    /// `https://host:port`.
    pub server: String,
    /// Certificate authorities of the server.
    pub ca_pem: Vec<u8>,
    /// The name in the server's certificate, where it is not the host of `server`.
    pub tls_server_name: Option<String>,
    /// The client's certificate chain and key.
    pub client_pem: Option<(Vec<u8>, Vec<u8>)>,
    /// The client's token.
    pub token: Token,
    /// How the client names itself; `skiff/<version>` if empty.
    pub user_agent: String,
}

/// Where the server is.
#[derive(Debug, PartialEq, Eq)]
struct Endpoint {
    authority: String,
    host: String,
    port: u16,
    /// The name in its certificate.
    server_name: ServerName<'static>,
}

impl Endpoint {
    fn parse(server: &str, server_name: Option<&str>) -> Result<Self, SetupError> {
        let bad = || SetupError::Address(server.to_owned());
        let uri: Uri = server.parse().map_err(|_| bad())?;
        let host = uri.host().filter(|_| uri.scheme_str() == Some("https")).ok_or_else(bad)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = server_name.map_or_else(|| host.clone(), str::to_owned);
        Ok(Self {
            authority: uri.authority().ok_or_else(bad)?.to_string(),
            port: uri.port_u16().unwrap_or(443),
            server_name: ServerName::try_from(name).map_err(|_| bad())?,
            host,
        })
    }
}

/// A connection, and the task that keeps it.
struct Open {
    sender: http2::SendRequest<Full<Bytes>>,
    task: JoinHandle<()>,
}

/// The transport.
pub struct Https {
    endpoint: parking_lot::RwLock<Arc<Endpoint>>,
    /// The name in the server's certificate, where it is not its host.
    fixed_server_name: Option<String>,
    tls: rustls::ClientConfig,
    token: Token,
    read_token: Mutex<Option<(Instant, String)>>,
    user_agent: HeaderValue,
    connection: Mutex<Option<Open>>,
    tasks: Tasks,
}

impl Https {
    /// Prepares the connection; nothing is sent yet.
    pub fn new(config: &Config) -> Result<Self, SetupError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        for cert in certificates(&config.ca_pem, "the certificate authority")? {
            roots.add(cert)?;
        }
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let tls = match &config.client_pem {
            None => tls.with_no_client_auth(),
            Some((chain, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|source| SetupError::Pem { what: "the client key", source })?;
                tls.with_client_auth_cert(certificates(chain, "the client certificate")?, key)?
            }
        };
        Self::with_tls(config, tls)
    }

    /// The same over a finished TLS configuration (`ca_pem` and `client_pem` are not looked at), for clients whose
    /// certificate is renewed while they run.
    pub fn with_tls(config: &Config, tls: rustls::ClientConfig) -> Result<Self, SetupError> {
        let endpoint = Endpoint::parse(&config.server, config.tls_server_name.as_deref())?;
        let agent = match config.user_agent.as_str() {
            "" => concat!("skiff/", env!("CARGO_PKG_VERSION")),
            agent => agent,
        };
        let bad_agent = |_| SetupError::Address(config.server.clone());
        Ok(Self {
            endpoint: parking_lot::RwLock::new(Arc::new(endpoint)),
            fixed_server_name: config.tls_server_name.clone(),
            tls,
            token: config.token.clone(),
            read_token: Mutex::new(None),
            user_agent: HeaderValue::from_str(agent).map_err(bad_agent)?,
            connection: Mutex::new(None),
            tasks: Tasks::default(),
        })
    }

    /// `host:port` of the server, for the Host header of requests over [`Https::connect`].
    pub fn authority(&self) -> String {
        self.endpoint().authority.clone()
    }

    fn endpoint(&self) -> Arc<Endpoint> {
        self.endpoint.read().clone()
    }

    /// Follows the server to another address. What is under way at the old one breaks off, as when a connection is lost.
    ///
    /// # Errors
    /// If nobody answers there who shows the server's certificate; then everything stays as it was.
    pub async fn move_to(&self, server: &str) -> Result<(), BoxError> {
        let endpoint = Endpoint::parse(server, self.fixed_server_name.as_deref())?;
        if endpoint == *self.endpoint() {
            return Ok(());
        }
        self.dial(&endpoint, b"h2").await?;
        let mut held = self.connection.lock().await;
        *self.endpoint.write() = Arc::new(endpoint);
        if let Some(open) = held.take() {
            open.task.abort();
        }
        Ok(())
    }

    /// Opens a TLS connection of its own, speaking HTTP/1.1: for requests that upgrade. The caller sends the
    /// `authorization` header of [`Https::authorization`], if there is one.
    pub async fn connect(&self) -> Result<TlsStream<TcpStream>, Status> {
        self.dial(&self.endpoint(), b"http/1.1").await
    }

    /// The value of the `authorization` header; `None` for clients known by their certificate.
    pub async fn authorization(&self) -> Result<Option<HeaderValue>, Status> {
        let token = match &self.token {
            Token::None => return Ok(None),
            Token::Fixed(token) => token.clone(),
            Token::File(path) => {
                let mut held = self.read_token.lock().await;
                match &*held {
                    Some((read, token)) if read.elapsed() < TOKEN_FRESH => token.clone(),
                    _ => {
                        let token = tokio::fs::read_to_string(path).await.map_err(|error| {
                            unavailable(format!("cannot read token file {}: {error}", path.display()))
                        })?;
                        held.insert((Instant::now(), token.trim().to_owned())).1.clone()
                    }
                }
            }
        };
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| Status::bad_request("the bearer token holds characters that a header cannot"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// Sends a request by path and query (`/version`, `/api/v1/namespaces/x/pods/y/log?follow=true`) and gives the
    /// answer as it comes, whatever its status code.
    pub async fn send_http(
        &self,
        mut request: http::Request<Full<Bytes>>,
    ) -> Result<http::Response<Incoming>, Status> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = format!("https://{}{path}", self.endpoint().authority)
            .parse()
            .map_err(|error| Status::bad_request(format!("{path:?} is no path: {error}")))?;
        request.headers_mut().insert(header::USER_AGENT, self.user_agent.clone());
        if let Some(value) = self.authorization().await? {
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        loop {
            let (mut sender, fresh) = self.sender().await?;
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(mut failed) => match failed.take_message() {
                    // The server closed the connection before it saw the request: once more on a new one.
                    Some(unsent) if !fresh => request = unsent,
                    _ => return Err(unavailable(self.says(&failed.into_error()))),
                },
            }
        }
    }

    fn says(&self, error: &(dyn std::error::Error + 'static)) -> String {
        format!("API server {}: {}", self.endpoint().authority, base::error::chain(error))
    }

    /// The open connection, or a new one (told by the flag).
    async fn sender(&self) -> Result<(http2::SendRequest<Full<Bytes>>, bool), Status> {
        let mut held = self.connection.lock().await;
        if let Some(open) = held.as_ref().filter(|open| !open.sender.is_closed()) {
            return Ok((open.sender.clone(), false));
        }
        let stream = self.dial(&self.endpoint(), b"h2").await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(PROBE)
            .keep_alive_timeout(PROBE)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unavailable(self.says(&error)))?;
        let task = self.tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the API server ended");
            }
        });
        *held = Some(Open { sender: sender.clone(), task });
        Ok((sender, true))
    }

    async fn dial(&self, server: &Endpoint, protocol: &[u8]) -> Result<TlsStream<TcpStream>, Status> {
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![protocol.to_vec()];
        let dial = async {
            let tcp = TcpStream::connect((server.host.as_str(), server.port)).await?;
            tcp.set_nodelay(true)?;
            TlsConnector::from(Arc::new(tls)).connect(server.server_name.clone(), tcp).await
        };
        match tokio::time::timeout(CONNECT, dial).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => {
                Err(unavailable(format!("cannot reach API server {}: {error}", server.authority)))
            }
            Err(_) => Err(unavailable(format!(
                "API server {} did not answer within {} s",
                server.authority,
                CONNECT.as_secs()
            ))),
        }
    }
}

#[async_trait]
impl Transport for Https {
    async fn send(&self, request: Request) -> Result<Response, Status> {
        let verb = request.call.verb();
        let watches = matches!(request.call, Call::Watch(_));
        let response = self.send_http(encode::http_request(&request)?).await?;
        let (head, body) = response.into_parts();
        if head.status.is_success() && watches {
            return Ok(Response::Watch(decode::watch(body)));
        }
        let body = Limited::new(body, BODY_MAX_BYTES)
            .collect()
            .await
            .map_err(|error: BoxError| unavailable(self.says(&*error)))?
            .to_bytes();
        if head.status.is_success() {
            decode::answer(verb, &head, body)
        } else {
            Err(api::wire::failure(head.status.as_u16(), &body))
        }
    }
}

fn unavailable(message: String) -> Status {
    Status::new(Reason::ServiceUnavailable, message)
}

fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|source| SetupError::Pem { what, source })
}
