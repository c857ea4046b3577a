//! Port-forward: SPDY, SPDY tunnelled through a WebSocket (what kubectl does), and plain WebSocket channels.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use api::Status;
use api::connect::Body;
use bytes::{Bytes, BytesMut};
use engine_api::{EngineError, Runtime};
use futures::future::{BoxFuture, join_all};
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use http::Request;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::Instant;
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

/// Connects a client that speaks SPDY with ports of a sandbox.
async fn forward<S>(io: S, runtime: Arc<dyn Runtime>, sandbox: String)
where
    S: AsyncRead + tokio::io::AsyncWrite + Send + 'static,
{
    serve(io, PAIR_TIMEOUT, |error, data| connection(&*runtime, &sandbox, error, data).boxed()).await;
}

/// Serves a SPDY session: for each connection the client opens an error stream and a data stream with the same request
/// id, and the port in their headers. One whose partner has not come in the time `within` is given up.
/// Source: `monitorStreamPair` of `k8s.io/streaming/pkg/portforward/httpstream.go`.
async fn serve<'c, S>(io: S, within: Duration, connect: impl Fn(Incoming, Incoming) -> BoxFuture<'c, ()>)
where
    S: AsyncRead + tokio::io::AsyncWrite + Send + 'static,
{
    let (session, mut incoming) = Session::start(io);
    let connections = async {
        let mut waiting = Waiting { within, streams: VecDeque::new() };
        let mut running = futures::stream::FuturesUnordered::new();
        loop {
            let stream = tokio::select! {
                stream = incoming.recv() => stream,
                Some(()) = running.next() => continue,
                late = waiting.late() => {
                    running.push(give_up(late).boxed());
                    continue;
                }
            };
            let Some(stream) = stream else { break };
            // The session counts no stream that its client has ended, and those would wait and be kept all the same.
            if waiting.streams.len() + running.len() >= spdy::STREAMS_MAX {
                stream.out.cancel().await;
                continue;
            }
            if let Some((error, data)) = waiting.pair(stream) {
                running.push(connect(error, data));
            }
        }
        while running.next().await.is_some() {}
    };
    tokio::join!(session, connections);
}

/// Streams whose partner has not come, the oldest first. With the connections there are [`spdy::STREAMS_MAX`] at most.
struct Waiting {
    within: Duration,
    streams: VecDeque<(Instant, Incoming)>,
}

impl Waiting {
    /// The error stream and the data stream of a connection, when this is the second of them.
    fn pair(&mut self, stream: Incoming) -> Option<(Incoming, Incoming)> {
        let partner = self.streams.iter().position(|(_, other)| {
            other.header("requestid") == stream.header("requestid")
                && other.header("streamtype") != stream.header("streamtype")
        });
        let Some((_, other)) = partner.and_then(|partner| self.streams.remove(partner)) else {
            self.streams.push_back((Instant::now() + self.within, stream));
            return None;
        };
        let is_error = stream.header("streamtype") == Some("error");
        Some(if is_error { (stream, other) } else { (other, stream) })
    }

    /// Returns the next one that has waited for too long. Cancel safe.
    async fn late(&mut self) -> Incoming {
        match self.streams.front() {
            Some((until, _)) => tokio::time::sleep_until(*until).await,
            None => std::future::pending().await,
        }
        match self.streams.pop_front() {
            Some((_, stream)) => stream,
            None => std::future::pending().await,
        }
    }
}

/// Tells the client that the other stream has not come, where it can be told, and ends this one.
async fn give_up(late: Incoming) {
    let request = late.header("requestid").unwrap_or_default();
    if late.header("streamtype") == Some("error") {
        let message = format!("(request={request}) timed out waiting for streams");
        let _ = late.out.send(message.into()).await;
        late.out.finish().await;
    } else {
        late.out.cancel().await;
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spdy::tests::client;

    #[tokio::test]
    async fn a_stream_without_its_partner_is_given_up_and_makes_room() {
        let (mut client, server) = client();
        let connect = |error: Incoming, data: Incoming| {
            async move {
                let _ = data.out.send("connected".into()).await;
                data.out.finish().await;
                error.out.finish().await;
            }
            .boxed()
        };
        // The last two have to find each other in that time, on a machine that is busy too.
        let session = serve(server, Duration::from_secs(2), connect);
        let talk = async {
            fn headers<'a>(kind: &'a str, request: &'a str) -> [(&'a str, &'a str); 3] {
                [("streamtype", kind), ("port", "80"), ("requestID", request)]
            }
            client.open(1, &headers("error", "0")).await;
            client.open(3, &headers("data", "1")).await;
            // As many as there may be, and none has a partner.
            for id in 0..u32::try_from(spdy::STREAMS_MAX).unwrap() - 2 {
                client.open(5 + 2 * id, &headers("data", &format!("x{id}"))).await;
            }
            client.until(|client| client.resets.len() == spdy::STREAMS_MAX - 1).await;
            client.open(9001, &headers("data", "2")).await;
            client.open(9003, &headers("error", "2")).await;
            client.until(|client| client.told(9001) == "connected").await;
            let told = client.told(1);
            // Which ends the session.
            drop(client);
            told
        };
        let (told, ()) = tokio::join!(talk, session);
        assert_eq!(told, "(request=0) timed out waiting for streams");
    }
}
