//! `grpc` probes: one call of `grpc.health.v1.Health/Check` over a fresh connection. Its two messages have one field each,
//! which is why they are encoded here. Sources: gRPC over HTTP/2, the gRPC health checking protocol.

use std::net::IpAddr;
use std::sync::{Arc, Weak};

use base::lifecycle::Tasks;
use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::GRPCAction;
use tokio::net::TcpStream;

use super::check::dial;

/// An answer is a few bytes long.
const ANSWER_MAX: usize = 16 * 1024;
/// Names of `HealthCheckResponse.ServingStatus`.
const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
const SERVING: u64 = 1;
/// `grpc-status`: the server does not know the call.
const UNIMPLEMENTED: &str = "12";

/// Runs hyper's tasks as long as their owner lives, which they themselves do not prolong.
#[derive(Clone)]
struct Owned(Weak<Tasks>);

impl<F> hyper::rt::Executor<F> for Owned
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        if let Some(tasks) = self.0.upgrade() {
            tasks.spawn(async move {
                task.await;
            });
        }
    }
}

/// Asks whether a service is SERVING.
pub(crate) async fn check(action: &GRPCAction, address: Option<IpAddr>) -> Result<(), String> {
    let address = address.ok_or("the pod has no address")?;
    let port = u16::try_from(action.port).map_err(|_| format!("invalid port number: {}", action.port))?;
    let target = std::net::SocketAddr::new(address, port).to_string();
    let service = action.service.as_deref().unwrap_or_default();
    let stream = TcpStream::connect(&target).await.map_err(|error| {
        format!("timeout: failed to connect service \"{target}\": {}", dial(&target, &error))
    })?;
    let answer = if action.mode.as_deref() == Some("TLS") {
        let mut config = super::insecure::config().map_err(|error| failed(&error))?.as_ref().clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(address.into(), stream)
            .await
            .map_err(|error| failed(&error))?;
        call(stream, &target, service).await
    } else {
        call(stream, &target, service).await
    };
    let Answer { message, status, words } = answer?;
    match status.as_deref() {
        Some("0") => serving(&message),
        Some(UNIMPLEMENTED) => Err(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {words}"
        )),
        status => Err(format!(
            "error: health rpc probe failed: rpc error: code = {} desc = {words}",
            status.unwrap_or("missing")
        )),
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> String {
    format!("error: health rpc probe failed: {}", base::error::chain(error))
}

/// What came back: the frame, `grpc-status` and `grpc-message`.
struct Answer {
    message: Bytes,
    status: Option<String>,
    words: String,
}

/// Calls `Check` over a fresh connection.
async fn call<S>(stream: S, target: &str, service: &str) -> Result<Answer, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    // All of the connection's tasks end with this, however the question ends.
    let tasks = Arc::new(Tasks::default());
    let executor = Owned(Arc::downgrade(&tasks));
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    tasks.spawn(async move {
        // Its end is seen by the call.
        let _ = connection.await;
    });
    let request = http::Request::post(format!("http://{target}/grpc.health.v1.Health/Check"))
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .header(http::header::USER_AGENT, "kube-probe/1.37")
        .body(Full::new(request_message(service)))
        .map_err(|error| failed(&error))?;
    let (head, body) = sender.send_request(request).await.map_err(|error| failed(&error))?.into_parts();
    if head.status != http::StatusCode::OK {
        return Err(format!("error: health rpc probe failed: unexpected HTTP status code {}", head.status));
    }
    let body = Limited::new(body, ANSWER_MAX).collect().await;
    let body = body.map_err(|error| format!("error: health rpc probe failed: {error}"))?;
    // An answer without a message has its status in the head.
    let trailers = body.trailers().cloned().unwrap_or_default();
    let field = |name: &str| {
        let value = trailers.get(name).or_else(|| head.headers.get(name))?;
        Some(value.to_str().unwrap_or_default().to_owned())
    };
    let (status, words) = (field("grpc-status"), field("grpc-message").unwrap_or_default());
    Ok(Answer { message: body.to_bytes(), status, words })
}

/// `HealthCheckRequest { string service = 1; }` with its frame: uncompressed, length, message.
fn request_message(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(1 << 3 | 2);
        put_varint(&mut message, service.len());
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put(message);
    frame.freeze()
}

fn put_varint(into: &mut BytesMut, mut number: usize) {
    while number >= 0x80 {
        into.put_u8(u8::try_from(number & 0x7f).unwrap_or_default() | 0x80);
        number >>= 7;
    }
    into.put_u8(u8::try_from(number).unwrap_or_default());
}

/// Whether a frame holds `HealthCheckResponse { ServingStatus status = 1; }` with SERVING.
fn serving(frame: &[u8]) -> Result<(), String> {
    let status = status_of(frame).ok_or("error: health rpc probe failed: the answer cannot be read")?;
    if status == SERVING {
        return Ok(());
    }
    let name = usize::try_from(status).ok().and_then(|index| STATUSES.get(index).copied());
    let name = name.map_or_else(|| status.to_string(), str::to_owned);
    Err(format!("service unhealthy (responded with \"{name}\")"))
}

/// The status in a frame; 0 where the message leaves it out, `None` where it is no such message.
fn status_of(frame: &[u8]) -> Option<u64> {
    let (head, message) = frame.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?);
    if head[0] != 0 || usize::try_from(length).ok()? != message.len() {
        return None;
    }
    let mut rest = message;
    let mut status = 0;
    while !rest.is_empty() {
        let key = take_varint(&mut rest)?;
        match key & 7 {
            0 => {
                let value = take_varint(&mut rest)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            2 => {
                let length = usize::try_from(take_varint(&mut rest)?).ok()?;
                rest = rest.split_at_checked(length)?.1;
            }
            _ => return None,
        }
    }
    Some(status)
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use hyper::service::service_fn;

    use super::*;

    /// A health service that knows `up` and `down`, and only the one call.
    async fn server() -> (std::net::SocketAddr, Arc<Tasks>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = Arc::new(Tasks::default());
        let serving = Owned(Arc::downgrade(&tasks));
        tasks.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    let path = request.uri().path().to_owned();
                    assert_eq!(request.headers()["content-type"], "application/grpc");
                    let asked = request.into_body().collect().await.unwrap().to_bytes();
                    let (frame, status) = match (path.as_str(), asked.as_ref()) {
                        ("/grpc.health.v1.Health/Check", b"\0\0\0\0\x04\x0a\x02up" | b"\0\0\0\0\0") => {
                            (&b"\0\0\0\0\x02\x08\x01"[..], "0")
                        }
                        ("/grpc.health.v1.Health/Check", b"\0\0\0\0\x06\x0a\x04down") => {
                            (&b"\0\0\0\0\x02\x08\x02"[..], "0")
                        }
                        ("/grpc.health.v1.Health/Check", b"\0\0\0\0\x06\x0a\x04none") => (&b""[..], "12"),
                        _ => (&b""[..], "5"),
                    };
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", status.parse().unwrap());
                    trailers.insert("grpc-message", "words".parse().unwrap());
                    let body = Full::new(Bytes::copy_from_slice(frame));
                    let body = body.with_trailers(std::future::ready(Some(Ok(trailers))));
                    Ok::<_, std::convert::Infallible>(http::Response::new(body))
                });
                let builder = hyper::server::conn::http2::Builder::new(serving.clone());
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                hyper::rt::Executor::execute(&serving, async move {
                    let _ = connection.await;
                });
            }
        });
        (address, tasks)
    }

    #[tokio::test]
    async fn services_are_asked_whether_they_serve() {
        let (address, _server) = server().await;
        let ask = |service: Option<&str>| {
            let service = service.map(str::to_owned);
            let action = GRPCAction { port: i32::from(address.port()), service, mode: None };
            async move { check(&action, Some(address.ip())).await }
        };
        assert_eq!(ask(None).await, Ok(()));
        assert_eq!(ask(Some("up")).await, Ok(()));
        let unhealthy = ask(Some("down")).await.unwrap_err();
        assert_eq!(unhealthy, "service unhealthy (responded with \"NOT_SERVING\")");
        let unknown = ask(Some("none")).await.unwrap_err();
        assert!(unknown.contains("does not implement the grpc health protocol"), "{unknown}");
        let other = ask(Some("other")).await.unwrap_err();
        assert!(other.contains("code = 5 desc = words"), "{other}");
        drop(_server);
        let action = GRPCAction { port: 1, ..GRPCAction::default() };
        let refused = check(&action, Some(address.ip())).await.unwrap_err();
        assert!(refused.contains("failed to connect service"), "{refused}");
    }

    #[test]
    fn answers_are_read_with_care() {
        assert_eq!(status_of(b"\0\0\0\0\0"), Some(0), "UNKNOWN is left out");
        assert_eq!(status_of(b"\0\0\0\0\x05\x12\x01x\x08\x01"), Some(1), "fields that are new are skipped");
        for bad in [&b""[..], b"\0\0\0", b"\x01\0\0\0\0", b"\0\0\0\0\x09\x08\x01", b"\0\0\0\0\x01\x08"] {
            assert_eq!(status_of(bad), None, "{bad:?}");
        }
        assert_eq!(status_of(&[&[0, 0, 0, 0, 12, 8][..], &[0xff; 11]].concat()), None);
        let long = request_message(&"x".repeat(300));
        assert_eq!(&long[..8], [0, 0, 0, 1, 47, 10, 0xac, 2]);
    }
}
