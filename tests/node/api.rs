//! Requests to a host's API server, by path: answers, lines as they come, and WebSockets. One for each thread, which is in
//! the host's network.

use std::fs::File;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use client::https::Https;
use futures::StreamExt as _;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde_json::Value;
use sys::ns::Namespace;
use testbed::Host;
use tokio::runtime::{Builder, Runtime};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

/// Nothing here takes so long, however slow the machine: a wait that reaches it has failed.
const WAIT_MAX: Duration = Duration::from_secs(180);

/// What a server answered.
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The object in it; null where it is none.
    pub(crate) fn object(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub(crate) struct Api {
    runtime: Runtime,
    https: Https,
}

impl Api {
    /// Takes the calling thread into the host's network.
    pub(crate) fn of(host: &Host) -> Self {
        let network = File::open(format!("/proc/{}/ns/net", host.pid())).unwrap();
        sys::ns::join(network, Namespace::Network).unwrap();
        let path = host.directory().join("home/.kube/config");
        let config = client::kubeconfig::load(&path, None).unwrap().config;
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        Self { https: Https::new(&config).unwrap(), runtime }
    }

    /// The server's address and port.
    pub(crate) fn server(&self) -> (String, u16) {
        let authority = self.https.authority();
        let (host, port) = authority.rsplit_once(':').unwrap();
        (host.to_owned(), port.parse().unwrap())
    }

    /// Waits for what comes within the longest time that anything takes.
    #[track_caller]
    fn wait<T>(&self, what: &str, future: impl Future<Output = T>) -> T {
        let timed = async { tokio::time::timeout(WAIT_MAX, future).await };
        self.runtime.block_on(timed).unwrap_or_else(|_| panic!("{what}: nothing after {WAIT_MAX:?}"))
    }

    /// Sends a request; the body is of the type, which is JSON where it is empty.
    #[track_caller]
    pub(crate) fn send(&self, method: &Method, path: &str, kind: &str, body: Option<&Value>) -> Answer {
        let kind = if kind.is_empty() { "application/json" } else { kind };
        let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, kind);
        let body = body.map(ToString::to_string).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        self.wait(path, async {
            let answer = self.https.send_http(request).await.unwrap();
            let code = answer.status().as_u16();
            Answer { code, body: answer.into_body().collect().await.unwrap().to_bytes() }
        })
    }

    /// An answer's lines as they come.
    #[track_caller]
    pub(crate) fn lines(&self, path: &str) -> Lines<'_> {
        let request = Request::get(path).body(Full::default()).unwrap();
        let answer = self.wait(path, self.https.send_http(request)).unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        let deadline = Instant::now() + WAIT_MAX;
        Lines { api: self, body: answer.into_body(), held: BytesMut::new(), deadline, path: path.to_owned() }
    }

    /// All messages that come over a WebSocket, and the protocol that was chosen.
    #[track_caller]
    pub(crate) fn messages(&self, path: &str, protocol: &str) -> (String, Vec<Message>) {
        self.wait(path, async {
            let stream = self.https.connect().await.unwrap();
            let url = format!("wss://{}{path}", self.https.authority());
            let mut request = url.into_client_request().unwrap();
            let protocol_header = header::SEC_WEBSOCKET_PROTOCOL;
            request.headers_mut().insert(protocol_header.clone(), protocol.parse().unwrap());
            let (mut socket, answer) = client_async(request, stream).await.unwrap();
            let chosen =
                answer.headers().get(protocol_header).map(|value| value.to_str().unwrap().to_owned());
            let mut messages = Vec::new();
            while let Some(message) = socket.next().await {
                match message.unwrap() {
                    Message::Close(_) => break,
                    message => messages.push(message),
                }
            }
            (chosen.unwrap_or_default(), messages)
        })
    }
}

/// Lines of an answer.
pub(crate) struct Lines<'a> {
    api: &'a Api,
    body: Incoming,
    held: BytesMut,
    deadline: Instant,
    path: String,
}

impl Lines<'_> {
    /// The next line; nothing where the answer has ended.
    #[track_caller]
    pub(crate) fn next(&mut self, what: impl FnOnce() -> String) -> Option<Bytes> {
        loop {
            if let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
                return Some(self.held.split_to(end + 1).freeze());
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            let frame = async { tokio::time::timeout(left, self.body.frame()).await };
            let Ok(frame) = self.api.runtime.block_on(frame) else {
                panic!("{}: not so after {WAIT_MAX:?}: {}", self.path, what())
            };
            let frame = frame?.unwrap();
            self.held.extend_from_slice(&frame.into_data().unwrap_or_default());
        }
    }
}

/// What a remote command printed on both outputs, and what became of it.
pub(crate) struct Executed {
    pub(crate) out: String,
    pub(crate) status: Value,
}

impl Executed {
    /// Takes the messages of a `v4.channel.k8s.io` connection apart.
    pub(crate) fn of(messages: &[Message]) -> Self {
        let mut executed = Self { out: String::new(), status: Value::Null };
        for message in messages {
            let Message::Binary(bytes) = message else { continue };
            match bytes.split_first() {
                Some((1 | 2, text)) => executed.out.push_str(&String::from_utf8_lossy(text)),
                Some((3, status)) => executed.status = serde_json::from_slice(status).unwrap_or_default(),
                _ => {}
            }
        }
        executed
    }

    pub(crate) fn succeeded(&self) -> bool {
        self.status["status"] == "Success"
    }
}

/// Bytes as objects hold them.
pub(crate) fn base64(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

/// What the middle part of a token says.
pub(crate) fn claims(payload: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}
