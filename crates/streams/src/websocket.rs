//! WebSocket: the handshake, the channel protocols of remote commands (`v5.channel.k8s.io` and its predecessors), and a
//! byte stream over binary messages for tunnels.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use api::Status;
use api::connect::Body;
use base64::Engine as _;
use bytes::{Buf as _, Bytes, BytesMut};
use futures::{Sink, SinkExt as _, Stream, StreamExt as _};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use crate::full;
use crate::process::{Output, Remote};

/// A message that is longer ends the connection.
const MESSAGE_MAX_BYTES: usize = 1024 * 1024;

/// How long a client may take to answer the end of a connection.
const CLOSE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// An upgraded connection.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Whether a request asks for a WebSocket.
pub(crate) fn is_requested(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
}

/// The protocols that the client offers, in its order.
fn offered(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let lists = values.filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',').map(|name| name.trim().to_owned())).collect()
}

/// Chooses the first of `supported` that the client offers and answers the handshake. The protocol is empty where the
/// client offers none.
pub(crate) fn accept(
    request: &mut Request<Body>,
    supported: &[&'static str],
) -> Result<(Response<Body>, OnUpgrade, &'static str), Status> {
    let key = request
        .headers()
        .get(header::SEC_WEBSOCKET_KEY)
        .ok_or_else(|| Status::bad_request("WebSocket handshake without Sec-WebSocket-Key"))?;
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    let offered = offered(request.headers());
    let chosen = supported.iter().find(|name| offered.iter().any(|offered| offered == *name)).copied();
    if chosen.is_none() && !offered.is_empty() {
        let text = format!(
            "none of the WebSocket protocols {} is known: use one of {}",
            offered.join(", "),
            supported.join(", ")
        );
        return Err(Status::bad_request(text));
    }
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(chosen) = chosen {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen));
    }
    Ok((response, hyper::upgrade::on(request), chosen.unwrap_or_default()))
}

/// Takes the connection over once the answer has been sent.
pub(crate) async fn upgraded(upgrade: OnUpgrade) -> Result<Socket, hyper::Error> {
    let io = TokioIo::new(upgrade.await?);
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_MAX_BYTES))
        .max_frame_size(Some(MESSAGE_MAX_BYTES));
    Ok(WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await)
}

/// Channel numbers of remote commands.
mod channel {
    pub(super) const STDIN: u8 = 0;
    pub(super) const STDOUT: u8 = 1;
    pub(super) const STDERR: u8 = 2;
    pub(super) const ERROR: u8 = 3;
    pub(super) const RESIZE: u8 = 4;
    /// Version 5: the channel whose number follows is closed.
    pub(super) const CLOSE: u8 = 255;
}

/// Protocols of remote commands, the best first.
pub(crate) const COMMAND_PROTOCOLS: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];

/// Splits a connection into a process's streams; the future moves messages until either side ends.
pub(crate) fn command_session(
    socket: Socket,
    protocol: &str,
) -> (Remote, impl Future<Output = ()> + Send + 'static) {
    let (stdin, stdin_receiver) = mpsc::channel(16);
    let (resize, resize_receiver) = mpsc::channel(16);
    let (output, output_receiver) = mpsc::channel(16);
    let remote = Remote { stdin: Some(stdin_receiver), resize: Some(resize_receiver), output };
    let encoded = protocol.contains("base64");
    (remote, pump(socket, encoded, Some(stdin), Some(resize), output_receiver))
}

async fn pump(
    mut socket: Socket,
    encoded: bool,
    mut stdin: Option<mpsc::Sender<Bytes>>,
    mut resize: Option<mpsc::Sender<Bytes>>,
    mut output: mpsc::Receiver<(Output, Bytes)>,
) {
    // The input that waits for a slow process; while it does, no more is read from the client.
    let mut waiting: Option<(u8, Bytes)> = None;
    loop {
        let deliver = deliver(waiting.clone(), &stdin, &resize);
        tokio::select! {
            message = socket.next(), if waiting.is_none() => match message {
                Some(Ok(Message::Binary(bytes))) => waiting = incoming(bytes, encoded, &mut stdin),
                Some(Ok(Message::Text(text))) => {
                    waiting = incoming(Bytes::copy_from_slice(text.as_bytes()), encoded, &mut stdin);
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
            accepted = deliver, if waiting.is_some() => {
                let stream = waiting.take().map(|(number, _)| number);
                // The process does not read any more: what still comes is passed over.
                match stream {
                    Some(channel::STDIN) if !accepted => stdin = None,
                    Some(channel::RESIZE) if !accepted => resize = None,
                    _ => {}
                }
            }
            frame = output.recv() => match frame {
                Some((which, bytes)) => {
                    if socket.send(outgoing(which, &bytes, encoded)).await.is_err() {
                        return;
                    }
                    if which == Output::Error {
                        return close(socket).await;
                    }
                }
                None => return close(socket).await,
            },
        }
    }
}

/// Ends the connection in good order: clients take any other code than 1000 for a failure, and a connection that is
/// dropped before they have answered may take the last messages with it.
pub(crate) async fn close(mut socket: Socket) {
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    if socket.close(Some(frame)).await.is_ok() {
        let answer = async { while let Some(Ok(_)) = socket.next().await {} };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, answer).await;
    }
}

async fn deliver(
    message: Option<(u8, Bytes)>,
    stdin: &Option<mpsc::Sender<Bytes>>,
    resize: &Option<mpsc::Sender<Bytes>>,
) -> bool {
    let Some((number, bytes)) = message else { return false };
    let to = if number == channel::STDIN { stdin } else { resize };
    match to {
        Some(to) => to.send(bytes).await.is_ok(),
        None => false,
    }
}

/// A message from the client, if it has to be delivered.
fn incoming(
    mut message: Bytes,
    encoded: bool,
    stdin: &mut Option<mpsc::Sender<Bytes>>,
) -> Option<(u8, Bytes)> {
    if message.is_empty() {
        return None;
    }
    let mut number = message.get_u8();
    if encoded {
        number = number.wrapping_sub(b'0');
        message = base64::engine::general_purpose::STANDARD.decode(&message).ok()?.into();
    }
    match number {
        // An empty first message is how clients open the channel.
        channel::STDIN | channel::RESIZE if !message.is_empty() => Some((number, message)),
        channel::CLOSE => {
            if message.first() == Some(&channel::STDIN) {
                *stdin = None;
            }
            None
        }
        _ => None,
    }
}

fn outgoing(which: Output, bytes: &[u8], encoded: bool) -> Message {
    let number = match which {
        Output::Stdout => channel::STDOUT,
        Output::Stderr => channel::STDERR,
        Output::Error => channel::ERROR,
    };
    if encoded {
        let text = base64::engine::general_purpose::STANDARD.encode(bytes);
        return Message::text(format!("{number}{text}"));
    }
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.extend_from_slice(&[number]);
    message.extend_from_slice(bytes);
    Message::Binary(message.freeze())
}

/// A byte stream over a WebSocket's binary messages: what `SPDY/3.1+portforward.k8s.io` tunnels through.
pub(crate) struct Tunnel {
    socket: Socket,
    rest: Bytes,
}

impl Tunnel {
    pub(crate) fn new(socket: Socket) -> Self {
        Self { socket, rest: Bytes::new() }
    }
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.rest.is_empty() {
                let count = self.rest.len().min(buffer.remaining());
                buffer.put_slice(&self.rest[..count]);
                self.rest.advance(count);
                return Poll::Ready(Ok(()));
            }
            match std::task::ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(broken)?;
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        Pin::new(&mut self.socket).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(broken)
    }
}
