//! SPDY/3.1 as remote commands and port-forwarding use it: the handshake, streams that the client opens, and the session
//! that moves their frames. Clients before kubectl 1.30 speak it directly, newer ones inside a WebSocket tunnel.

mod frame;
mod headers;

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use api::Status;
use api::connect::Body;
use bytes::Bytes;
use engine_api::{EngineError, Process};
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::full;
use crate::process::{self, Output, Remote, Wanted};
use frame::{Frame, FrameReader};
use headers::{Decoder, Encoder, Headers};

/// Streams that a session may have open.
pub(crate) const STREAMS_MAX: usize = 1024;
/// How long a client may take to open the streams of a command.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
/// Frames that wait for a slow reader; more stop the session, as the protocol is used without windows.
const FRAMES_WAITING: usize = 64;
/// The reason `REFUSED_STREAM`.
const REFUSED: u32 = 3;
/// The reason `CANCEL`.
const CANCEL: u32 = 5;
const PROTOCOL_HEADER: &str = "x-stream-protocol-version";

/// Protocols of remote commands over SPDY.
pub(crate) const COMMAND_PROTOCOLS: [&str; 1] = ["v4.channel.k8s.io"];
/// The protocol of port-forwarding over SPDY.
pub(crate) const PORT_FORWARD_PROTOCOL: &str = "portforward.k8s.io";

/// Answers the handshake; the protocol is the first of `supported` that the client offers.
pub(crate) fn accept(
    request: &mut Request<Body>,
    supported: &[&'static str],
) -> Result<(Response<Body>, OnUpgrade, &'static str), Status> {
    let upgrade = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    if !upgrade.is_some_and(|value| value.eq_ignore_ascii_case("SPDY/3.1")) {
        return Err(Status::bad_request("this endpoint needs an upgrade to WebSocket or SPDY/3.1"));
    }
    let lists = request.headers().get_all(PROTOCOL_HEADER).iter().filter_map(|value| value.to_str().ok());
    let offered: Vec<&str> = lists.flat_map(|list| list.split(',').map(str::trim)).collect();
    let chosen = supported.iter().find(|name| offered.contains(name)).copied();
    let Some(chosen) = chosen.or_else(|| supported.first().copied().filter(|_| offered.is_empty())) else {
        let text = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server supports {supported:?}"
        );
        return Err(Status::new(api::Reason::Forbidden, text));
    };
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(PROTOCOL_HEADER, HeaderValue::from_static(chosen));
    Ok((response, hyper::upgrade::on(request), chosen))
}

/// A stream that the client has opened.
pub(crate) struct Incoming {
    headers: Headers,
    /// Closed when the client has said all.
    pub(crate) data: mpsc::Receiver<Bytes>,
    pub(crate) out: StreamOut,
}

impl Incoming {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// The way back to the client.
#[derive(Clone)]
pub(crate) enum StreamOut {
    /// A stream of a session.
    Stream { id: u32, to: mpsc::Sender<Frame> },
    /// A channel of a plain WebSocket.
    Channel { number: u8, to: mpsc::Sender<(u8, Bytes)> },
}

/// The session is over.
#[derive(Debug)]
pub(crate) struct Over;

impl StreamOut {
    /// A channel of a plain WebSocket.
    pub(crate) fn channel(number: u8, to: mpsc::Sender<(u8, Bytes)>) -> Self {
        Self::Channel { number, to }
    }

    /// Sends bytes.
    pub(crate) async fn send(&self, bytes: Bytes) -> Result<(), Over> {
        match self {
            Self::Stream { id, to } => {
                to.send(Frame::Data { id: *id, fin: false, bytes }).await.map_err(|_| Over)
            }
            Self::Channel { number, to } => to.send((*number, bytes)).await.map_err(|_| Over),
        }
    }

    /// Says that nothing more comes.
    pub(crate) async fn finish(&self) {
        if let Self::Stream { id, to } = self {
            // A session that is over needs no end of stream.
            let _ = to.send(Frame::Data { id: *id, fin: true, bytes: Bytes::new() }).await;
        }
    }

    /// Says that the stream is not gone on with.
    pub(crate) async fn cancel(&self) {
        if let Self::Stream { id, to } = self {
            let _ = to.send(Frame::Reset { id: *id, status: CANCEL }).await;
        }
    }

    /// Ends the whole session once everything before is written.
    async fn close_session(&self) {
        if let Self::Stream { id, to } = self {
            let _ = to.send(Frame::GoAway { last: *id }).await;
        }
    }
}

/// A connection's frames.
pub(crate) struct Session;

impl Session {
    /// Serves a connection: the future moves frames until either side ends; the receiver yields the client's streams.
    pub(crate) fn start<S>(io: S) -> (impl Future<Output = ()> + Send, mpsc::Receiver<Incoming>)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(io);
        let (incoming, incoming_receiver) = mpsc::channel(16);
        let (to_client, from_us) = mpsc::channel(FRAMES_WAITING);
        let session = async move {
            let reading = Reading {
                frames: FrameReader::new(Box::pin(read)),
                decoder: Decoder::new(),
                streams: HashMap::new(),
                incoming,
                to_client,
            };
            tokio::select! {
                read = reading.run() => {
                    if let Err(error) = read {
                        tracing::debug!(%error, "SPDY session ended");
                    }
                }
                // Its errors are the client's going away.
                _ = write_frames(Box::pin(write), from_us) => {}
            }
        };
        (session, incoming_receiver)
    }
}

struct Reading<R> {
    frames: FrameReader<R>,
    decoder: Decoder,
    streams: HashMap<u32, mpsc::Sender<Bytes>>,
    incoming: mpsc::Sender<Incoming>,
    to_client: mpsc::Sender<Frame>,
}

impl<R: AsyncRead + Unpin> Reading<R> {
    async fn run(mut self) -> io::Result<()> {
        while let Some(frame) = self.frames.next().await? {
            match frame {
                Frame::SynStream { id, fin, block } => self.open(id, fin, &block).await?,
                Frame::Data { id, fin, bytes } => self.data(id, fin, bytes).await,
                Frame::Reset { id, .. } => drop(self.streams.remove(&id)),
                Frame::Ping(id) => drop(self.to_client.send(Frame::Ping(id)).await),
                Frame::SynReply { .. } | Frame::GoAway { .. } | Frame::Other => {}
            }
        }
        Ok(())
    }

    async fn open(&mut self, id: u32, fin: bool, block: &[u8]) -> io::Result<()> {
        // Also of streams that are refused: the decompressor has to see every block.
        let headers = self.decoder.decode(block).map_err(io::Error::other)?;
        if self.streams.len() >= STREAMS_MAX {
            // Of those that nobody reads any more some may never be ended by the client.
            self.streams.retain(|_, data| !data.is_closed());
        }
        if self.streams.len() >= STREAMS_MAX || self.streams.contains_key(&id) {
            let _ = self.to_client.send(Frame::Reset { id, status: REFUSED }).await;
            return Ok(());
        }
        let (data, receiver) = mpsc::channel(FRAMES_WAITING);
        if !fin {
            self.streams.insert(id, data);
        }
        let _ = self.to_client.send(Frame::SynReply { id, block: Bytes::new() }).await;
        let out = StreamOut::Stream { id, to: self.to_client.clone() };
        let _ = self.incoming.send(Incoming { headers, data: receiver, out }).await;
        Ok(())
    }

    async fn data(&mut self, id: u32, fin: bool, bytes: Bytes) {
        if let Some(stream) = self.streams.get(&id)
            && !bytes.is_empty()
            && stream.send(bytes).await.is_err()
        {
            // Nobody reads it any more; what still comes is passed over.
            self.streams.remove(&id);
        }
        if fin {
            self.streams.remove(&id);
        }
    }
}

/// Writes frames until the session's end; replies get their (empty) header block here, where the compressor lives.
async fn write_frames(mut io: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Frame>) -> io::Result<()> {
    let mut encoder = Encoder::new();
    while let Some(frame) = frames.recv().await {
        let frame = match frame {
            Frame::SynReply { id, .. } => {
                Frame::SynReply { id, block: encoder.encode(&Headers::new()).map_err(io::Error::other)? }
            }
            other => other,
        };
        io.write_all(&frame.encode()).await?;
        if frames.is_empty() {
            io.flush().await?;
        }
        if matches!(frame, Frame::GoAway { .. }) {
            break;
        }
    }
    io.flush().await?;
    io.shutdown().await
}

/// Serves a remote command: waits for its streams, then starts the process and connects it.
pub(crate) async fn command_session<S>(
    io: S,
    _protocol: &str,
    wanted: Wanted,
    start: Box<dyn FnOnce() -> BoxFuture<'static, Result<Process, EngineError>> + Send>,
) where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (session, mut incoming) = Session::start(io);
    let command = async {
        let Ok(Some(streams)) = tokio::time::timeout(STREAMS_TIMEOUT, collect(&mut incoming, wanted)).await
        else {
            return;
        };
        let CommandStreams { remote, mut output, ways } = streams;
        let forward = async {
            while let Some((which, bytes)) = output.recv().await {
                if let Some(way) = ways.get(&which) {
                    let _ = way.send(bytes).await;
                }
                if which == Output::Error {
                    break;
                }
            }
            for way in ways.values() {
                way.finish().await;
            }
            if let Some(way) = ways.get(&Output::Error) {
                way.close_session().await;
            }
        };
        tokio::join!(process::run(start().await, wanted, remote), forward);
    };
    tokio::pin!(session);
    tokio::select! {
        () = &mut session => {}
        // What is queued is still written.
        () = command => session.await,
    }
}

struct CommandStreams {
    remote: Remote,
    output: mpsc::Receiver<(Output, Bytes)>,
    ways: HashMap<Output, StreamOut>,
}

/// Waits for the streams that the client announced; `None` if it went away before.
async fn collect(incoming: &mut mpsc::Receiver<Incoming>, wanted: Wanted) -> Option<CommandStreams> {
    let expected = 1
        + usize::from(wanted.stdin)
        + usize::from(wanted.stdout)
        + usize::from(wanted.stderr)
        + usize::from(wanted.tty);
    let (sender, output) = mpsc::channel(16);
    let mut remote = Remote { stdin: None, resize: None, output: sender };
    let mut ways = HashMap::new();
    for _ in 0..expected {
        let stream = incoming.recv().await?;
        match stream.header("streamtype") {
            Some("stdin") => remote.stdin = Some(stream.data),
            Some("resize") => remote.resize = Some(stream.data),
            Some("stdout") => drop(ways.insert(Output::Stdout, stream.out)),
            Some("stderr") => drop(ways.insert(Output::Stderr, stream.out)),
            Some("error") => drop(ways.insert(Output::Error, stream.out)),
            _ => return None,
        }
    }
    Some(CommandStreams { remote, output, ways })
}

#[cfg(test)]
pub(crate) mod tests;
