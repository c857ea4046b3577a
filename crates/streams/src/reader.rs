//! Bytes that a client only reads, over a WebSocket: logs, for clients that speak nothing else (browsers).
//!
//! Source: `Reader` in `k8s.io/apimachinery/pkg/util/httpstream/wsstream`.

use api::Status;
use api::connect::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use http::{HeaderMap, Request};
use http_body_util::BodyExt as _;
use tokio_tungstenite::tungstenite::protocol::Message;

use crate::{Upgraded, websocket};

/// As bytes, which is also what a client gets that names none, and as text.
const PROTOCOLS: [&str; 2] = ["binary.k8s.io", "base64.binary.k8s.io"];

/// Whether a request asks for a WebSocket.
pub fn is_websocket(headers: &HeaderMap) -> bool {
    websocket::is_requested(headers)
}

/// Answers a client's handshake and sends it what a body has. What the client sends is passed over.
pub fn read(request: &mut Request<Body>, body: Body) -> Result<Upgraded, Status> {
    let (response, upgrade, protocol) = websocket::accept(request, &PROTOCOLS)?;
    let session = async move {
        let Ok(socket) = websocket::upgraded(upgrade).await else { return };
        copy(socket, protocol == PROTOCOLS[1], body).await;
    };
    Ok((response, session.boxed()))
}

/// Begins with an empty message, by which the client knows that it is heard.
async fn copy(mut socket: websocket::Socket, encoded: bool, mut body: Body) {
    if socket.send(message(Bytes::new(), encoded)).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            received = socket.next() => {
                if matches!(received, Some(Ok(Message::Close(_)) | Err(_)) | None) {
                    return;
                }
            }
            frame = body.frame() => {
                // A body that breaks off ends the connection as one that ends: nothing in the protocol tells them apart.
                let Some(Ok(frame)) = frame else { return websocket::close(socket).await };
                let Ok(bytes) = frame.into_data() else { continue };
                if !bytes.is_empty() && socket.send(message(bytes, encoded)).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn message(bytes: Bytes, encoded: bool) -> Message {
    if encoded { Message::text(STANDARD.encode(&bytes)) } else { Message::Binary(bytes) }
}
