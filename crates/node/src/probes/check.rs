//! One question to a container: an HTTP request, a TCP connection, or a command in it. Used by probes and by hooks.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use engine_api::{ByteStream, ExecSpec, Process, Runtime};
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, ExecAction, HTTPGetAction, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

/// So much of a command's output or of an answer's body is kept. Source: upstream's `maxRespBodyLength` and exec probe.
const OUTPUT_MAX: usize = 10 * 1024;

/// A port by number or by name.
pub(crate) fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => match name.parse() {
            Ok(number) => Some(number),
            Err(_) => container
                .ports
                .iter()
                .flatten()
                .find(|known| known.name.as_deref() == Some(name))
                .map(|known| known.container_port),
        },
    };
    let number = number.ok_or_else(|| "the port's name is none of the container's ports".to_owned())?;
    u16::try_from(number)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
}

/// `httpGet`: a status from 200 to 399 is fine.
pub(crate) async fn http_get(
    container: &Container,
    action: &HTTPGetAction,
    address: Option<IpAddr>,
    agent: &str,
) -> Result<(), String> {
    let port = port(container, &action.port)?;
    let tls = action.scheme.as_deref() == Some("HTTPS");
    let named = action.host.as_deref().filter(|host| !host.is_empty()).map(str::to_owned);
    let host = match (named, address) {
        (Some(host), _) => host,
        (None, Some(IpAddr::V6(ip))) => format!("[{ip}]"),
        (None, Some(ip)) => ip.to_string(),
        (None, None) => return Err("the pod has no address".to_owned()),
    };
    let path = action.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let scheme = if tls { "https" } else { "http" };
    let url = format!("{scheme}://{host}:{port}{slash}{path}");
    let failed = |error: String| format!("Get \"{url}\": {error}");
    let stream = TcpStream::connect(format!("{host}:{port}"))
        .await
        .map_err(|error| failed(dial(&format!("{host}:{port}"), &error)))?;
    let mut request = http::Request::get(format!("{slash}{path}"))
        .header(http::header::HOST, format!("{host}:{port}"))
        .header(http::header::USER_AGENT, agent)
        .header(http::header::ACCEPT, "*/*")
        .header(http::header::CONNECTION, "close");
    for header in action.http_headers.iter().flatten() {
        if header.name.eq_ignore_ascii_case("host")
            && let Some(headers) = request.headers_mut()
        {
            headers.remove(http::header::HOST);
        }
        request = request.header(header.name.as_str(), header.value.as_str());
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(error.to_string()))?;
    let answer = if tls {
        let config = super::insecure::config().map_err(|error| failed(error.to_string()))?;
        let bare = host.trim_matches(['[', ']']).to_owned();
        let name = rustls_pki_types::ServerName::try_from(bare).map_err(|error| failed(error.to_string()))?;
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(|error| failed(error.to_string()))?;
        exchange(stream, request).await
    } else {
        exchange(stream, request).await
    };
    let status = answer.map_err(failed)?;
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {status}"))
    }
}

/// Sends one request over a fresh connection; gives the status.
async fn exchange<S>(stream: S, request: http::Request<Empty<Bytes>>) -> Result<u16, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let text = |error: hyper::Error| base::error::chain(&error);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(text)?;
        let status = answer.status().as_u16();
        // The server is given the chance to finish its answer.
        let _ = Limited::new(answer.into_body(), OUTPUT_MAX).collect().await;
        Ok(status)
    };
    // The connection lives in this future: nothing stays behind.
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => {
            ended.map_err(text)?;
            exchange.await
        }
    }
}

pub(super) fn dial(target: &str, error: &std::io::Error) -> String {
    format!("dial tcp {target}: connect: {}", plain(error))
}

/// The system's words without the number.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let cut = text.find(" (os error").unwrap_or(text.len());
    text[..cut].to_lowercase()
}

/// `tcpSocket`: a connection that opens is fine.
pub(crate) async fn tcp_socket(
    container: &Container,
    action: &TCPSocketAction,
    address: Option<IpAddr>,
) -> Result<(), String> {
    let port = port(container, &action.port)?;
    let named = action.host.as_deref().filter(|host| !host.is_empty());
    let opened = match (named, address) {
        (Some(host), _) => TcpStream::connect((host, port)).await.map_err(|error| (host.to_owned(), error)),
        (None, Some(ip)) => {
            TcpStream::connect(SocketAddr::new(ip, port)).await.map_err(|error| (ip.to_string(), error))
        }
        (None, None) => return Err("the pod has no address".to_owned()),
    };
    opened.map(drop).map_err(|(host, error)| dial(&format!("{host}:{port}"), &error))
}

/// `exec`: exit code 0 is fine; else the output is the reason.
pub(crate) async fn exec(runtime: &dyn Runtime, id: &str, action: &ExecAction) -> Result<(), String> {
    let command = action.command.clone().unwrap_or_default();
    let spec = ExecSpec { command, ..ExecSpec::default() };
    let process = runtime.exec(id, spec).await.map_err(|error| error.to_string())?;
    let Process { io, exit, .. } = process;
    let (out, err) = tokio::join!(read(io.stdout), read(io.stderr));
    let exit = exit.await.map_err(|_| "the command's exit is unknown".to_owned())?;
    let exit = exit.map_err(|error| error.to_string())?;
    if exit.code == 0 {
        return Ok(());
    }
    let mut output = out;
    output.extend(err);
    output.truncate(OUTPUT_MAX);
    Err(String::from_utf8_lossy(&output).into_owned())
}

/// Reads to the end; keeps the beginning.
async fn read(stream: Option<ByteStream>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else { return kept };
    while let Some(Ok(bytes)) = stream.next().await {
        let room = OUTPUT_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
    kept
}

/// Bounds an answer in time.
pub(crate) async fn within<F>(limit: Duration, question: F) -> Result<(), String>
where
    F: Future<Output = Result<(), String>>,
{
    match tokio::time::timeout(limit, question).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("timed out after {}s", limit.as_secs())),
    }
}
