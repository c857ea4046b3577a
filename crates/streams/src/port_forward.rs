//! Port-forward: SPDY, SPDY tunnelled through a WebSocket (what kubectl does), and plain WebSocket channels.

use std::sync::Arc;
use std::time::Duration;

use api::Status;
use api::connect::Body;
use bytes::{Bytes, BytesMut};
use engine_api::{EngineError, Runtime};
use futures::future::join_all;
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use http::Request;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::Message;

use crate::Upgraded;
use crate::spdy::{self, Incoming, PORT_FORWARD_PROTOCOL, Session, StreamOut};
use crate::websocket::{self, Socket, Tunnel};

/// The tunnel that kubectl asks for since 1.31. Source: KEP-4006.
const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
/// Plain channels: two per port.
const CHANNEL_PROTOCOLS: [&str; 3] = [TUNNEL_PROTOCOL, "v4.channel.k8s.io", "portforward.k8s.io"];
/// A data stream whose error stream does not come.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);
/// Ports of one plain WebSocket session.
const PORTS_MAX: usize = 64;
const CHUNK_BYTES: usize = 32 * 1024;

/// Answers a client's handshake and connects it with ports of a sandbox. `ports` are those of plain WebSocket channels,
/// as query parameters name them; with the other protocols each connection names its own.
pub fn port_forward(
    request: &mut Request<Body>,
    runtime: Arc<dyn Runtime>,
    sandbox: String,
    ports: &[String],
) -> Result<Upgraded, Status> {
    if !websocket::is_requested(request.headers()) {
        let (response, upgrade, _) = spdy::accept(request, &[PORT_FORWARD_PROTOCOL])?;
        let session = async move {
            let Ok(io) = upgrade.await else { return };
            forward(hyper_util::rt::TokioIo::new(io), runtime, sandbox).await;
        };
        return Ok((response, session.boxed()));
    }
    let ports = parse_ports(ports)?;
    let (response, upgrade, protocol) = websocket::accept(request, &CHANNEL_PROTOCOLS)?;
    if protocol != TUNNEL_PROTOCOL && ports.is_empty() {
        return Err(Status::bad_request("query parameter \"ports\" is required"));
    }
    let session = async move {
        let Ok(socket) = websocket::upgraded(upgrade).await else { return };
        if protocol == TUNNEL_PROTOCOL {
            forward(Tunnel::new(socket), runtime, sandbox).await;
        } else {
            forward_channels(socket, &*runtime, &sandbox, &ports).await;
        }
    };
    Ok((response, session.boxed()))
}

/// Numbers, or lists of them with commas.
fn parse_ports(lists: &[String]) -> Result<Vec<u16>, Status> {
    let numbers: Vec<&str> = lists.iter().flat_map(|list| list.split(',')).collect();
    if numbers.len() > PORTS_MAX {
        return Err(Status::bad_request(format!("at most {PORTS_MAX} ports in one session")));
    }
    let parse = |text: &&str| {
        let port = text.parse::<u16>().ok().filter(|port| *port > 0);
        port.ok_or_else(|| Status::bad_request(format!("query parameter ports: invalid port \"{text}\"")))
    };
    numbers.iter().map(parse).collect()
}

/// Serves a SPDY session: for each connection the client opens an error stream and a data stream with the same request
/// id, and the port in their headers.
async fn forward<S>(io: S, runtime: Arc<dyn Runtime>, sandbox: String)
where
    S: AsyncRead + tokio::io::AsyncWrite + Send + 'static,
{
    let (session, mut incoming) = Session::start(io);
    let connections = async {
        let mut waiting: Vec<(String, Incoming)> = Vec::new();
        let mut running = futures::stream::FuturesUnordered::new();
        loop {
            let stream = tokio::select! {
                stream = incoming.recv() => stream,
                Some(()) = running.next() => continue,
            };
            let Some(stream) = stream else { break };
            let request_id = stream.header("requestid").unwrap_or_default().to_owned();
            let partner = waiting.iter().position(|(id, other)| {
                *id == request_id && other.header("streamtype") != stream.header("streamtype")
            });
            let Some(partner) = partner else {
                if waiting.len() < spdy::STREAMS_MAX {
                    waiting.push((request_id, stream));
                }
                continue;
            };
            let (_, other) = waiting.swap_remove(partner);
            let (error, data) =
                if stream.header("streamtype") == Some("error") { (stream, other) } else { (other, stream) };
            running.push(connection(&*runtime, &sandbox, error, data));
        }
        while running.next().await.is_some() {}
    };
    tokio::join!(session, connections);
}

/// One forwarded connection.
async fn connection(runtime: &dyn Runtime, sandbox: &str, error: Incoming, data: Incoming) {
    let port: Option<u16> = data.header("port").and_then(|text| text.parse().ok());
    let Incoming { data: from_client, out, .. } = data;
    let opened = match port {
        Some(port) => tokio::time::timeout(PAIR_TIMEOUT, runtime.connect(sandbox, port))
            .await
            .unwrap_or_else(|_| {
                Err(EngineError::internal("connect", &std::io::Error::from(std::io::ErrorKind::TimedOut)))
            })
            .map_err(|error| format!("error forwarding port {port} to pod: {error}")),
        None => Err("the data stream names no port".to_owned()),
    };
    match opened {
        Ok(io) => copy(io, from_client, &out).await,
        Err(message) => {
            let _ = error.out.send(message.into()).await;
        }
    }
    out.finish().await;
    error.out.finish().await;
}

/// Copies both ways until both have ended.
async fn copy(
    io: Box<dyn engine_api::Connection>,
    mut from_client: mpsc::Receiver<Bytes>,
    to_client: &StreamOut,
) {
    let (mut read, mut write) = tokio::io::split(io);
    let up = async {
        while let Some(bytes) = from_client.recv().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    };
    let down = async {
        loop {
            let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {
                    if to_client.send(buffer.freeze()).await.is_err() {
                        return;
                    }
                }
            }
        }
        // The server has said all: the client learns it while it may still be sending.
        to_client.finish().await;
    };
    tokio::pin!(up, down);
    tokio::select! {
        // Nothing comes back any more: what the client still sends has no reader of answers.
        () = &mut down => {}
        () = &mut up => down.await,
    }
}

/// Plain channels: port `n` of the list has channels `2n` (data) and `2n + 1` (error), each opened by the server with the
/// port in little-endian.
async fn forward_channels(mut socket: Socket, runtime: &dyn Runtime, sandbox: &str, ports: &[u16]) {
    let (to_socket, mut outgoing) = mpsc::channel::<(u8, Bytes)>(16);
    let mut inputs = Vec::new();
    let mut connections = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let Ok(number) = u8::try_from(index * 2) else { return };
        for channel in [number, number + 1] {
            let [low, high] = port.to_le_bytes();
            if socket.send(Message::binary(vec![channel, low, high])).await.is_err() {
                return;
            }
        }
        let (input, receiver) = mpsc::channel(16);
        inputs.push(input);
        connections.push(channel_connection(runtime, sandbox, *port, number, receiver, to_socket.clone()));
    }
    drop(to_socket);
    let pump = async {
        loop {
            tokio::select! {
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) if !bytes.is_empty() => {
                        let input = inputs.get(usize::from(bytes[0] / 2));
                        if let Some(input) = input.filter(|_| bytes[0].is_multiple_of(2)) {
                            // A connection that has ended takes nothing any more.
                            let _ = input.send(bytes.slice(1..)).await;
                        }
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => {}
                },
                frame = outgoing.recv() => {
                    let Some((channel, bytes)) = frame else { return };
                    let mut message = BytesMut::with_capacity(bytes.len() + 1);
                    message.extend_from_slice(&[channel]);
                    message.extend_from_slice(&bytes);
                    if socket.send(Message::Binary(message.freeze())).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    {
        tokio::pin!(pump);
        tokio::select! {
            () = &mut pump => {}
            _ = join_all(connections) => pump.await,
        }
    }
    websocket::close(socket).await;
}

async fn channel_connection(
    runtime: &dyn Runtime,
    sandbox: &str,
    port: u16,
    channel: u8,
    from_client: mpsc::Receiver<Bytes>,
    to_client: mpsc::Sender<(u8, Bytes)>,
) {
    match runtime.connect(sandbox, port).await {
        Ok(io) => copy(io, from_client, &StreamOut::channel(channel, to_client)).await,
        Err(error) => {
            let message = format!("error forwarding port {port} to pod: {error}");
            let _ = to_client.send((channel + 1, message.into())).await;
        }
    }
}
