//! One question to a container: an HTTP request, a TCP connection, or a command in it. Used by probes and by hooks.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use engine_api::{ByteStream, ExecSpec, Process, Runtime};
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, ExecAction, HTTPGetAction, HTTPHeader, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

/// So much of a command's output or of an answer's body is kept. Source: upstream's `maxRespBodyLength` and exec probe.
const OUTPUT_MAX: usize = 10 * 1024;

/// So often a request is sent elsewhere. Source: Go's `defaultCheckRedirect`.
const REDIRECTS_MAX: usize = 10;

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

/// What an HTTP server answered, at the end of the redirects that were followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    status: u16,
    body: String,
}

impl Answer {
    /// What it means to a probe: a status from 200 to 399 is fine; a redirect that was not followed is worth a warning.
    /// Source: `DoHTTPProbe` in `pkg/probe/http`.
    pub(crate) fn verdict(self) -> Result<Option<String>, String> {
        match self.status {
            200..=299 => Ok(None),
            300..=399 => Ok(Some(format!("Probe terminated redirects, Response body: {}", self.body))),
            status => Err(format!("HTTP probe failed with statuscode: {status}")),
        }
    }
}

/// Why an HTTP server did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unanswered {
    pub(crate) message: String,
    /// It was asked over TLS, and whoever is there does not speak that.
    pub(crate) plain: bool,
}

impl From<String> for Unanswered {
    fn from(message: String) -> Self {
        Self { message, plain: false }
    }
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    tls: bool,
    /// A name or an address, that of version 6 in brackets.
    host: String,
    port: u16,
    /// Path and query.
    target: String,
}

impl Place {
    fn of(container: &Container, action: &HTTPGetAction, address: Option<IpAddr>) -> Result<Self, String> {
        let port = port(container, &action.port)?;
        let named = action.host.as_deref().filter(|host| !host.is_empty()).map(str::to_owned);
        let host = match (named, address) {
            (Some(host), _) => host,
            (None, Some(IpAddr::V6(ip))) => format!("[{ip}]"),
            (None, Some(ip)) => ip.to_string(),
            (None, None) => return Err("the pod has no address".to_owned()),
        };
        let path = action.path.as_deref().unwrap_or_default();
        let slash = if path.starts_with('/') { "" } else { "/" };
        let tls = action.scheme.as_deref() == Some("HTTPS");
        Ok(Self { tls, host, port, target: format!("{slash}{path}") })
    }

    fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.target)
    }

    /// Where a redirect leads; `None` if that is another host, which nobody is sent to.
    fn redirected(&self, location: &str) -> Result<Option<Self>, String> {
        let base = url::Url::parse(&self.url()).map_err(|error| error.to_string())?;
        let next = base
            .join(location)
            .map_err(|error| format!("failed to parse Location header \"{location}\": {error}"))?;
        let spoken = matches!(next.scheme(), "http" | "https");
        let (Some(host), Some(port), true) = (next.host_str(), next.port_or_known_default(), spoken) else {
            return Err(format!("unsupported protocol scheme \"{}\"", next.scheme()));
        };
        if base.host_str() != Some(host) {
            return Ok(None);
        }
        let query = next.query().map(|query| format!("?{query}")).unwrap_or_default();
        let target = format!("{}{query}", next.path());
        Ok(Some(Self { tls: next.scheme() == "https", host: host.to_owned(), port, target }))
    }
}

/// `httpGet`: asks, and follows redirects within the host. Source: `RedirectChecker` in `pkg/probe/http`.
pub(crate) async fn http_get(
    container: &Container,
    action: &HTTPGetAction,
    address: Option<IpAddr>,
    agent: &str,
) -> Result<Answer, Unanswered> {
    let mut place = Place::of(container, action, address)?;
    let headers = action.http_headers.as_deref().unwrap_or_default();
    let asked_for = |header: &&HTTPHeader| header.name.eq_ignore_ascii_case("host");
    let mut named = headers.iter().find(asked_for).map(|header| header.value.clone());
    for _ in 0..=REDIRECTS_MAX {
        let failed = |message: String| format!("Get \"{}\": {message}", place.url());
        let request = request(&place, named.as_deref(), headers, agent).map_err(failed)?;
        let (answer, location) = ask(&place, request)
            .await
            .map_err(|unanswered| Unanswered { message: failed(unanswered.message), ..unanswered })?;
        let Some(location) = location.filter(|_| matches!(answer.status, 301..=303 | 307 | 308)) else {
            return Ok(answer);
        };
        let Some(next) = place.redirected(&location).map_err(failed)? else { return Ok(answer) };
        // A name that was asked for holds where the server did not say another.
        named = named.filter(|_| url::Url::parse(&location).is_err());
        place = next;
    }
    Err(format!("Get \"{}\": stopped after {REDIRECTS_MAX} redirects", place.url()).into())
}

type Request = http::Request<Empty<Bytes>>;

/// `named`: the host that the request is for, if not the place's own.
fn request(
    place: &Place,
    named: Option<&str>,
    headers: &[HTTPHeader],
    agent: &str,
) -> Result<Request, String> {
    let host = named.map_or_else(|| place.authority(), str::to_owned);
    let mut request = http::Request::get(&place.target)
        .header(http::header::HOST, host)
        .header(http::header::USER_AGENT, agent)
        .header(http::header::ACCEPT, "*/*")
        .header(http::header::CONNECTION, "close");
    for header in headers.iter().filter(|header| !header.name.eq_ignore_ascii_case("host")) {
        request = request.header(header.name.as_str(), header.value.as_str());
    }
    request.body(Empty::new()).map_err(|error| error.to_string())
}

/// Sends one request over a fresh connection; gives the answer and where it points.
async fn ask(place: &Place, request: Request) -> Result<(Answer, Option<String>), Unanswered> {
    let target = place.authority();
    let stream = TcpStream::connect(&target).await.map_err(|error| dial(&target, &error))?;
    if !place.tls {
        return Ok(exchange(stream, request).await?);
    }
    let config = super::insecure::config().map_err(|error| error.to_string())?;
    let bare = place.host.trim_matches(['[', ']']).to_owned();
    let name = rustls_pki_types::ServerName::try_from(bare).map_err(|error| error.to_string())?;
    match tokio_rustls::TlsConnector::from(config).connect(name, stream).await {
        Ok(stream) => Ok(exchange(stream, request).await?),
        Err(error) if speaks_no_tls(&error) => {
            let message = "http: server gave HTTP response to HTTPS client".to_owned();
            Err(Unanswered { message, plain: true })
        }
        Err(error) => Err(error.to_string().into()),
    }
}

/// Whether a handshake has failed because the answer was none of TLS.
fn speaks_no_tls(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)))
}

async fn exchange<S>(stream: S, request: Request) -> Result<(Answer, Option<String>), String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let text = |error: hyper::Error| base::error::chain(&error);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(text)?;
        let status = answer.status().as_u16();
        let location = answer.headers().get(http::header::LOCATION);
        let location = location.and_then(|value| value.to_str().ok()).map(str::to_owned);
        // The server is given the chance to finish its answer.
        let body = beginning(answer.into_body()).await;
        Ok((Answer { status, body }, location))
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

/// As much of a body as is of interest.
async fn beginning(mut body: hyper::body::Incoming) -> String {
    let mut kept = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        let room = OUTPUT_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&data[..data.len().min(room)]);
        if data.len() > room {
            break;
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
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
pub(crate) async fn within<T, F>(limit: Duration, question: F) -> Result<T, String>
where
    F: Future<Output = Result<T, String>>,
{
    match tokio::time::timeout(limit, question).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("timed out after {}s", limit.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers each connection with the next of `answers`, and then tells what it was asked.
    async fn server(answers: Vec<String>) -> (u16, impl Future<Output = Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut bytes = vec![0; 4096];
                let length = stream.read(&mut bytes).await.unwrap();
                asked.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
                let answer = answer.replace("PORT", &port.to_string());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        };
        (port, serving)
    }

    async fn get(port: u16, more: Value) -> Result<Answer, Unanswered> {
        let mut action = json!({"port": port, "host": "127.0.0.1", "path": "/a/b?c=d"});
        action.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
        http_get(&Container::default(), &serde_json::from_value(action).unwrap(), None, "test").await
    }

    fn answer(status: u16, location: &str) -> String {
        let location = if location.is_empty() { String::new() } else { format!("Location: {location}\r\n") };
        format!("HTTP/1.1 {status} X\r\n{location}Content-Length: 2\r\nConnection: close\r\n\r\nhi")
    }

    #[tokio::test]
    async fn redirects_are_followed_within_the_host() {
        for (location, asked) in [
            ("/x", "GET /x HTTP/1.1"),
            ("x", "GET /a/x HTTP/1.1"),
            ("../x?y=z", "GET /x?y=z HTTP/1.1"),
            ("http://127.0.0.1:PORT/w", "GET /w HTTP/1.1"),
            ("//127.0.0.1:PORT/w", "GET /w HTTP/1.1"),
        ] {
            let (port, serving) = server(vec![answer(302, location), answer(200, "")]).await;
            let (given, requests) = tokio::join!(get(port, json!({})), serving);
            assert_eq!(given.unwrap().verdict(), Ok(None), "{location}");
            assert!(requests[0].starts_with("GET /a/b?c=d HTTP/1.1\r\n"), "{requests:?}");
            assert!(requests[1].starts_with(asked), "{location}: {requests:?}");
        }
        let (port, serving) = server(vec![answer(301, "/x"), answer(503, "")]).await;
        let (given, _) = tokio::join!(get(port, json!({})), serving);
        let verdict = given.unwrap().verdict();
        assert_eq!(verdict, Err("HTTP probe failed with statuscode: 503".to_owned()));
        let (port, serving) = server(vec![answer(302, "/x"); 11]).await;
        let (given, _) = tokio::join!(get(port, json!({})), serving);
        let error = format!("Get \"http://127.0.0.1:{port}/x\": stopped after 10 redirects");
        assert_eq!(given.unwrap_err().message, error);
    }

    #[tokio::test]
    async fn nobody_is_sent_to_another_host() {
        for (status, location) in [(302, "http://localhost:PORT/w"), (304, "/x"), (302, "")] {
            let (port, serving) = server(vec![answer(status, location)]).await;
            let (given, _) = tokio::join!(get(port, json!({})), serving);
            let body = if status == 304 { "" } else { "hi" };
            let warning = format!("Probe terminated redirects, Response body: {body}");
            assert_eq!(given.unwrap().verdict(), Ok(Some(warning)), "{status} {location}");
        }
    }

    #[tokio::test]
    async fn headers_go_along_and_a_name_as_long_as_nobody_says_another() {
        let headers = json!({"httpHeaders": [{"name": "Host", "value": "web"}, {"name": "X", "value": "1"}]});
        let answers = vec![answer(302, "/x"), answer(302, "http://127.0.0.1:PORT/y"), answer(200, "")];
        let (port, serving) = server(answers).await;
        let (given, requests) = tokio::join!(get(port, headers), serving);
        given.unwrap();
        let hosts = ["web".to_owned(), "web".to_owned(), format!("127.0.0.1:{port}")];
        for (request, host) in requests.into_iter().zip(hosts) {
            let request = request.to_lowercase();
            assert!(
                request.contains(&format!("host: {host}\r\n")) && request.contains("x: 1\r\n"),
                "{request}"
            );
        }
    }

    #[tokio::test]
    async fn a_server_without_tls_is_known_by_its_answer() {
        let (port, serving) = server(vec![answer(400, "")]).await;
        let (given, _) = tokio::join!(get(port, json!({"scheme": "HTTPS"})), serving);
        let unanswered = given.unwrap_err();
        assert!(unanswered.plain, "{unanswered:?}");
        let wanted = format!(
            "Get \"https://127.0.0.1:{port}/a/b?c=d\": http: server gave HTTP response to HTTPS client"
        );
        assert_eq!(unanswered.message, wanted);
    }
}
