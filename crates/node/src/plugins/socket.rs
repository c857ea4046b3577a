//! gRPC over unix sockets, with bounds: whoever is at the other end may be anybody's program.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Response, Status};

/// Until somebody accepts. Source: upstream's `dialTimeoutDuration`.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// An answer that is larger is an error. Source: gRPC's own default.
pub(super) const ANSWER_MAX: usize = 4 << 20;
/// Of the names and values that come with an answer.
const HEADERS_MAX: u32 = 16 << 10;
/// What is passed on of a plugin's own words, to events and logs.
const WORDS_MAX: usize = 1000;

/// A connection that is made when it is first used, and again when it was lost. Within a tokio runtime.
pub(super) fn channel(path: &Path) -> Channel {
    let path = path.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT_MAX)
        .http2_max_header_list_size(HEADERS_MAX)
        .connect_with_connector_lazy(connect)
}

/// Waits for an answer, but no longer than `limit`. Errors are in gRPC's words, as upstream's events have them.
pub(super) async fn ask<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, String> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(words(&status)),
        Err(_) => Err(words(&Status::deadline_exceeded("context deadline exceeded"))),
    }
}

fn words(status: &Status) -> String {
    let said: String = status.message().chars().take(WORDS_MAX).collect();
    format!("rpc error: code = {:?} desc = {said}", status.code())
}
