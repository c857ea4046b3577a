//! Connections that stop being HTTP and become the streams of a process.
//!
//! Source: Docker Engine API, "Attach to a container": with a terminal the bytes as they are, otherwise frames of
//! `[stream, 0, 0, 0, length as u32 big-endian]` and content.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use engine_api::{ByteStream, ProcessIo};
use futures::StreamExt;
use futures::stream::select;
use http::{HeaderValue, Response, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::answer::{Answer, full};
use crate::server::Call;

const RAW: &str = "application/vnd.docker.raw-stream";
const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";
/// How long a client may take to close after the end of the output.
const UNREAD_GRACE: Duration = Duration::from_secs(2);
pub(crate) const STDOUT: u8 = 1;
pub(crate) const STDERR: u8 = 2;

/// Which streams a client wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wants {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    /// One stream without frames.
    pub(crate) terminal: bool,
}

impl Wants {
    pub(crate) fn content_type(self, version: (u32, u32)) -> &'static str {
        // The second type came with 1.42; older clients know the first for both.
        if self.terminal || version < (1, 42) { RAW } else { MULTIPLEXED }
    }
}

/// One frame of the multiplexed stream.
pub(crate) fn frame(stream: u8, content: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(8 + content.len());
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    frame.extend_from_slice(&[stream, 0, 0, 0]);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&content[..length as usize]);
    frame.freeze()
}

/// Answers with the upgrade and joins the connection to the process; `after` runs when they have parted.
pub(crate) fn upgrade(
    mut call: Call,
    io: ProcessIo,
    wants: Wants,
    after: impl Future<Output = ()> + Send + 'static,
) -> Answer {
    let upgraded = hyper::upgrade::on(&mut call.request);
    call.ctx.spawn(async move {
        let rest = match upgraded.await {
            Ok(connection) => Some(join(connection, io, wants).await),
            Err(error) => {
                tracing::debug!(%error, "a client did not take the stream over");
                None
            }
        };
        after.await;
        if let Some(mut rest) = rest {
            // Closed with something unread, the connection would be reset, and the client lose output that it has not
            // read yet. It closes when it has seen the end.
            let mut nowhere = tokio::io::sink();
            let unread = tokio::io::copy(&mut rest, &mut nowhere);
            let _ = tokio::time::timeout(UNREAD_GRACE, unread).await;
        }
    });
    let mut response = Response::new(full(Vec::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(wants.content_type(call.version)));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("tcp"));
    Ok(response)
}

/// Gives the connection's reading side back; the other one is shut down.
async fn join(connection: Upgraded, io: ProcessIo, wants: Wants) -> impl AsyncRead + Unpin {
    let (mut reader, writer) = tokio::io::split(TokioIo::new(connection));
    let ProcessIo { stdin, stdout, stderr, resize: _resize } = io;
    let input = async {
        match stdin {
            Some(stdin) if wants.stdin => feed(&mut reader, stdin).await,
            // Held, not closed: another client may be the one that feeds it.
            held => {
                let _held = held;
                std::future::pending::<()>().await;
            }
        }
        // The output decides when this ends.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = drain(writer, stdout, stderr, wants) => {}
        () = input => {}
    }
    reader
}

async fn feed(mut reader: impl AsyncRead + Unpin, mut stdin: std::pin::Pin<Box<dyn AsyncWrite + Send>>) {
    // Either side may go away first; neither is an error of ours.
    let _ = tokio::io::copy(&mut reader, &mut stdin).await;
    let _ = stdin.shutdown().await;
}

async fn drain(
    mut writer: impl AsyncWrite + Unpin,
    stdout: Option<ByteStream>,
    stderr: Option<ByteStream>,
    wants: Wants,
) {
    let tagged = |stream: Option<ByteStream>, tag: u8| {
        stream.map_or_else(
            || futures::stream::empty().boxed(),
            |stream| stream.map(move |chunk| (tag, chunk)).boxed(),
        )
    };
    let mut chunks = select(tagged(stdout, STDOUT), tagged(stderr, STDERR));
    while let Some((tag, chunk)) = chunks.next().await {
        let Ok(chunk) = chunk else { break };
        let wanted = if tag == STDOUT { wants.stdout } else { wants.stderr };
        if !wanted || chunk.is_empty() {
            continue;
        }
        let bytes = if wants.terminal { chunk } else { frame(tag, &chunk) };
        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
            // The client went away: the process goes on.
            return;
        }
    }
    let _ = writer.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_carry_stream_and_length() {
        assert_eq!(frame(STDERR, b"hello").as_ref(), b"\x02\0\0\0\0\0\0\x05hello");
    }

    #[tokio::test]
    async fn output_is_framed_unless_there_is_a_terminal() {
        let stream = |text: &'static str| Some(futures::stream::iter([Ok(Bytes::from(text))]).boxed());
        let wants = Wants { stdin: false, stdout: true, stderr: true, terminal: false };
        let mut out = Vec::new();
        drain(&mut out, stream("o"), stream("e"), wants).await;
        let mut expected = [frame(STDOUT, b"o"), frame(STDERR, b"e")].concat();
        if out != expected {
            expected = [frame(STDERR, b"e"), frame(STDOUT, b"o")].concat();
        }
        assert_eq!(out, expected);
        let mut out = Vec::new();
        drain(&mut out, stream("o"), None, Wants { terminal: true, ..wants }).await;
        assert_eq!(out, b"o");
        let mut out = Vec::new();
        drain(&mut out, stream("o"), stream("e"), Wants { stdout: false, ..wants }).await;
        assert_eq!(out, frame(STDERR, b"e"));
    }
}
