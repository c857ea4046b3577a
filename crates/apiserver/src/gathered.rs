//! What a connection sends, gathered. HTTP/2 flushes after each frame, and a large answer has hundreds of them: each would
//! be two TLS records, a system call and a walk through the network stack of its own. Frames that follow each other at
//! once go out together.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So much is gathered at most: four full TLS records.
const BYTES_MAX: usize = 64 * 1024;
/// What is smaller goes out as it comes: an ordinary answer is one small write.
const LARGE_BYTES: usize = 8 * 1024;

/// A connection whose large writes are held back until nothing follows them.
pub(crate) struct Gathered<T> {
    inner: T,
    /// Whether anything is gathered at all. Only who flushes again and again may be trusted to, as HTTP/2 does.
    gathers: bool,
    held: BytesMut,
    /// Whether a flush came after the last write and was put off.
    put_off: bool,
}

impl<T: AsyncWrite + Unpin> Gathered<T> {
    pub(crate) fn new(inner: T, gathers: bool) -> Self {
        Self { inner, gathers, held: BytesMut::new(), put_off: false }
    }

    fn passes(&self, bytes: usize) -> bool {
        !self.gathers || (self.held.is_empty() && bytes < LARGE_BYTES)
    }

    /// Holds back as much of some pieces as there is room for.
    fn hold(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let all: usize = pieces.iter().map(|piece| piece.len()).sum();
        if self.held.len() + all > BYTES_MAX {
            ready!(self.send(cx))?;
        }
        self.held.reserve(BYTES_MAX - self.held.len());
        let before = self.held.len();
        for piece in pieces {
            let room = BYTES_MAX - self.held.len();
            self.held.extend_from_slice(&piece[..piece.len().min(room)]);
        }
        self.put_off = false;
        Poll::Ready(Ok(self.held.len() - before))
    }

    /// Sends all that is held back.
    fn send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let sent = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.held))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.advance(sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathered<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.passes(bytes.len()) {
            return Pin::new(&mut this.inner).poll_write(cx, bytes);
        }
        this.hold(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.passes(pieces.iter().map(|piece| piece.len()).sum()) {
            return Pin::new(&mut this.inner).poll_write_vectored(cx, pieces);
        }
        this.hold(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// The first flush after a write that is held back is put off: if nothing follows, the next one, for which the task is
    /// woken, sends it.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.held.is_empty() && !this.put_off {
            this.put_off = true;
            cx.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        ready!(this.send(cx))?;
        // Most connections never send anything large again.
        this.held = BytesMut::new();
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.send(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gathered<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::task::Waker;

    use bytes::Bytes;
    use futures::{StreamExt, stream};
    use http_body::Frame;
    use http_body_util::{BodyExt, Empty, StreamBody};
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};

    use super::*;

    /// What was written, piece by piece; takes so much at once.
    struct Wire {
        writes: Vec<usize>,
        most: usize,
    }

    impl AsyncWrite for Wire {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(self.most);
            self.writes.push(taken);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// What reaches the wire of frames, each of which is flushed, before and after a last flush.
    fn sent(gathers: bool, frames: &[usize]) -> (Vec<usize>, Vec<usize>) {
        let mut out = Gathered::new(Wire { writes: Vec::new(), most: usize::MAX }, gathers);
        let cx = &mut Context::from_waker(Waker::noop());
        for frame in frames {
            let (head, body) = (vec![0; 9], vec![0; frame - 9]);
            let pieces = [IoSlice::new(&head), IoSlice::new(&body)];
            // The wire does not take pieces together: what passes is its first piece.
            let taken = Pin::new(&mut out).poll_write_vectored(cx, &pieces);
            assert!(matches!(taken, Poll::Ready(Ok(taken)) if taken == *frame || taken == 9), "{taken:?}");
            assert!(Pin::new(&mut out).poll_flush(cx).is_ready());
        }
        let before = out.inner.writes.clone();
        assert!(Pin::new(&mut out).poll_flush(cx).is_ready());
        (before, out.inner.writes)
    }

    #[test]
    fn large_frames_that_follow_each_other_go_out_together() {
        assert_eq!(sent(true, &[16_393, 16_393]), (vec![], vec![32_786]));
        assert_eq!(sent(true, &[16_393; 5]), (vec![49_179], vec![49_179, 32_786]));
        // The end of a large answer goes with it.
        assert_eq!(sent(true, &[16_393, 100]), (vec![], vec![16_493]));
        // Small ones and those of others go as they come.
        assert_eq!(sent(true, &[100, 200]).0.len(), 2);
        assert_eq!(sent(false, &[16_393, 16_393]).0.len(), 2);
    }

    #[test]
    fn what_is_held_leaves_before_the_end_and_however_little_is_taken() {
        let mut out = Gathered::new(Wire { writes: Vec::new(), most: 10_000 }, true);
        let cx = &mut Context::from_waker(Waker::noop());
        let frame = vec![0; 100_000];
        assert!(matches!(Pin::new(&mut out).poll_write(cx, &frame), Poll::Ready(Ok(BYTES_MAX))));
        assert!(Pin::new(&mut out).poll_shutdown(cx).is_ready());
        assert_eq!(out.inner.writes.iter().sum::<usize>(), BYTES_MAX);
    }

    /// Each answer is one piece, after which nothing comes, as in a watch: all of it arrives.
    #[tokio::test]
    async fn nothing_stays_behind_on_a_connection_of_http_2() {
        let (near, far) = tokio::io::duplex(BYTES_MAX);
        let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
            let size: usize = request.uri().path()[1..].parse().unwrap();
            let piece = Ok::<_, Infallible>(Frame::data(Bytes::from(vec![7; size])));
            let pieces = stream::iter([piece]).chain(stream::pending());
            Ok::<_, Infallible>(http::Response::new(StreamBody::new(pieces)))
        });
        let io = TokioIo::new(Gathered::new(near, true));
        let server =
            hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service);
        let client = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(far));
        let talk = async {
            let (mut client, connection) = client.await.unwrap();
            let ask = async {
                for size in [1, LARGE_BYTES - 10, LARGE_BYTES, 16_384, BYTES_MAX, BYTES_MAX + 1, 300_000] {
                    let request = http::Request::get(format!("http://x/{size}"));
                    let request = request.body(Empty::<Bytes>::new()).unwrap();
                    let mut answer = client.send_request(request).await.unwrap();
                    let mut come = 0;
                    while come < size {
                        let frame = answer.frame().await.unwrap().unwrap();
                        come += frame.into_data().map_or(0, |data| data.len());
                    }
                    assert_eq!(come, size);
                }
            };
            tokio::select! { () = ask => {}, ended = connection => panic!("the client ended: {ended:?}") }
        };
        tokio::select! { () = talk => {}, ended = server => panic!("the server ended: {ended:?}") }
    }
}
