//! A client of the Docker Engine API on Skiff's socket: requests, streams, and hijacked connections.

use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::instance::Instance;

/// The API version that these commands speak.
const VERSION: &str = "v1.41";

/// A request body.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// The engine's socket.
#[derive(Debug, Clone)]
pub struct Engine {
    socket: PathBuf,
    /// The command that starts it, for errors.
    start: String,
}

/// An error answer of the engine, with its HTTP status.
#[derive(Debug)]
pub struct Refused {
    /// The status.
    pub status: StatusCode,
    /// The engine's message.
    pub message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refused {}

/// No body.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// A JSON body.
pub fn json(value: &Value) -> Body {
    Full::new(Bytes::from(value.to_string())).map_err(|never| match never {}).boxed()
}

/// A streamed body.
pub fn streamed<S>(stream: S) -> Body
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Sync + 'static,
{
    BodyExt::boxed(StreamBody::new(stream.map_ok(Frame::data)))
}

impl Engine {
    /// A client of an instance's socket.
    pub fn of(instance: &Instance) -> Self {
        Self { socket: instance.docker_socket(), start: instance.command("up") }
    }

    /// Sends a request and gives its answer, whatever its status.
    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        #[allow(
            clippy::disallowed_methods,
            reason = "the connection lives as long as its request: it ends with the process or the response"
        )]
        tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Ok(sender.send_request(request).await?)
    }

    fn unreachable(&self, error: &std::io::Error) -> anyhow::Error {
        let socket = self.socket.display();
        match error.kind() {
            ErrorKind::PermissionDenied => anyhow!("{socket} may be used by root only; use sudo"),
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                anyhow!("no engine is running at {socket}; start it with: {}", self.start)
            }
            _ => anyhow!("cannot reach the engine at {socket}: {error}"),
        }
    }

    /// Sends a request; an error status becomes [`Refused`].
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Body,
    ) -> Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("/{VERSION}{path}"))
            .header("Host", "skiff")
            .header("Content-Type", content_type)
            .body(body)?;
        checked(self.send(request).await?).await
    }

    /// Sends a request with an optional JSON body and decodes the answer.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T> {
        let body = body.map_or_else(empty, json);
        let response = self.request(method, path, "application/json", body).await?;
        let bytes = response.into_body().collect().await?.to_bytes();
        let bytes = if bytes.is_empty() { Bytes::from_static(b"null") } else { bytes };
        serde_json::from_slice(&bytes)
            .with_context(|| format!("the engine's answer to {path} is not what was expected"))
    }

    /// Posts a request and hands the answer's JSON documents over as they arrive.
    pub async fn documents(
        &self,
        path: &str,
        content_type: &str,
        body: Body,
        each: impl FnMut(Value) -> Result<()>,
    ) -> Result<()> {
        each_document(path, self.request(Method::POST, path, content_type, body).await?, each).await
    }

    /// The same with a registry's credentials (base64 of Docker's AuthConfig) in the header that Docker uses.
    pub async fn documents_with_auth(
        &self,
        path: &str,
        auth: &str,
        each: impl FnMut(Value) -> Result<()>,
    ) -> Result<()> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("/{VERSION}{path}"))
            .header("Host", "skiff")
            .header("X-Registry-Auth", auth)
            .body(empty())?;
        each_document(path, checked(self.send(request).await?).await?, each).await
    }

    /// Sends a request that takes the connection over (attach, exec).
    pub async fn hijack(&self, path: &str, body: Option<&Value>) -> Result<TokioIo<Upgraded>> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("/{VERSION}{path}"))
            .header("Host", "skiff")
            .header("Connection", "Upgrade")
            .header("Upgrade", "tcp")
            .header("Content-Type", "application/json")
            .body(body.map_or_else(empty, json))?;
        let response = self.send(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            checked(response).await?;
            bail!("the engine did not hand the connection over for {path}");
        }
        Ok(TokioIo::new(hyper::upgrade::on(response).await?))
    }
}

/// Hands the JSON documents of an answer over as they arrive.
async fn each_document(
    path: &str,
    response: Response<Incoming>,
    mut each: impl FnMut(Value) -> Result<()>,
) -> Result<()> {
    let mut stream = response.into_body().into_data_stream();
    let mut buffer = Vec::new();
    while let Some(chunk) = stream.next().await {
        buffer.extend_from_slice(&chunk?);
        let mut documents = serde_json::Deserializer::from_slice(&buffer).into_iter::<Value>();
        let mut done = 0;
        while let Some(document) = documents.next() {
            match document {
                Ok(document) => {
                    done = documents.byte_offset();
                    each(document)?;
                }
                Err(error) if error.is_eof() => break,
                Err(error) => bail!("the engine's answer to {path} is not JSON: {error}"),
            }
        }
        buffer.drain(..done);
    }
    Ok(())
}

/// Turns an error answer into [`Refused`].
async fn checked(response: Response<Incoming>) -> Result<Response<Incoming>> {
    let status = response.status();
    if status.is_success() || status == StatusCode::NOT_MODIFIED {
        return Ok(response);
    }
    let bytes = response.into_body().collect().await?.to_bytes();
    let message = serde_json::from_slice::<Value>(&bytes)
        .ok()
        .and_then(|value| value["message"].as_str().map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(&bytes).into_owned());
    Err(Refused { status, message }.into())
}

/// Percent-encodes a query value.
pub fn quote(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/:".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}
