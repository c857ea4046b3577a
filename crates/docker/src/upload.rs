//! Bodies that the engine reads: archives and contexts, read to their end even when what matters ended before.

use std::pin::Pin;
use std::task::{Context, Poll};

use engine_api::{ByteStream, EngineError};
use futures::{Stream, StreamExt, TryStreamExt};
use http_body_util::{BodyDataStream, BodyExt};
use hyper::body::{Bytes, Incoming};
use tokio::sync::oneshot;

use crate::server::Call;

/// How much of a body is read only so that its sender sees the answer.
const UNREAD_BYTES_MAX: u64 = 256 << 20;

type Chunks = BodyDataStream<Incoming>;

/// Gives the request's body to `take`, and reads what that left of it before its result is the answer: an archive ends
/// before its padding does, and what is wrong is known before all has arrived, while a client that is still sending
/// sees a broken connection and not the answer.
pub(crate) async fn upload<F, T>(call: Call, take: impl FnOnce(ByteStream) -> F) -> T
where
    F: Future<Output = T>,
{
    let (back, returned) = oneshot::channel();
    let lent = Lent { chunks: Some(call.request.into_body().into_data_stream()), back: Some(back) };
    let lent = lent.map_err(|error| EngineError::invalid(format!("the upload broke off: {error}")));
    let taken = take(lent.boxed()).await;
    if let Ok(mut rest) = returned.await {
        let mut left = UNREAD_BYTES_MAX;
        while let (true, Some(Ok(chunk))) = (left > 0, rest.next().await) {
            left = left.saturating_sub(chunk.len() as u64);
        }
    }
    taken
}

/// A body that is given back by whoever drops it.
struct Lent {
    chunks: Option<Chunks>,
    back: Option<oneshot::Sender<Chunks>>,
}

impl Stream for Lent {
    type Item = Result<Bytes, hyper::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.chunks.as_mut().map_or(Poll::Ready(None), |chunks| chunks.poll_next_unpin(cx))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(chunks), Some(back)) = (self.chunks.take(), self.back.take()) {
            // Nobody waits for it when the client has gone.
            let _ = back.send(chunks);
        }
    }
}
