//! gRPC over unix sockets, with bounds: whoever is at the other end may be anybody's program.

use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use base::backoff::Policy;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Response, Status};

/// Until somebody accepts. Source: upstream's `dialTimeoutDuration`.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Whoever does not listen yet is tried again.
const CONNECT_AGAIN: Policy = Policy { first: Duration::from_millis(50), max: Duration::from_secs(1) };
/// An answer that is larger is an error. Source: gRPC's own default.
pub(super) const ANSWER_MAX: usize = 4 << 20;
/// Of the names and values that come with an answer.
const HEADERS_MAX: u32 = 16 << 10;
/// What is passed on of a plugin's own words, to events and logs.
const WORDS_MAX: usize = 1000;

/// A connection that is made when it is first used, and again when it was lost. Within a tokio runtime.
pub(super) fn channel(path: &Path) -> Channel {
    endpoint().connect_with_connector_lazy(tower::service_fn(connector(path)))
}

/// As [`channel`], once somebody has accepted: whoever says that it is there may listen a moment later, but no later than
/// `limit`.
pub(super) async fn connected(path: &Path, limit: Duration) -> Result<Channel, String> {
    let mut last = String::new();
    let tries = async {
        let mut failures = 0;
        loop {
            match endpoint().connect_with_connector(tower::service_fn(connector(path))).await {
                Ok(channel) => return channel,
                Err(error) => last = base::error::chain(&error),
            }
            failures += 1;
            tokio::time::sleep(CONNECT_AGAIN.delay(failures)).await;
        }
    };
    let done = tokio::time::timeout(limit, tries).await;
    done.map_err(|_| format!("nobody listens at {}: {last}", path.display()))
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT_MAX)
        .http2_max_header_list_size(HEADERS_MAX)
}

/// How the socket at a path is connected to.
fn connector(
    path: &Path,
) -> impl Fn(Uri) -> BoxFuture<'static, io::Result<TokioIo<UnixStream>>> + Clone + use<> {
    let path = path.to_owned();
    move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }.boxed()
    }
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

/// A refusal as upstream's events have it.
pub(super) fn words(status: &Status) -> String {
    let said: String = status.message().chars().take(WORDS_MAX).collect();
    format!("rpc error: code = {:?} desc = {said}", status.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_listens_a_moment_later_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("late.sock");
        let listens = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            tokio::net::UnixListener::bind(&path).unwrap()
        };
        let (connected, _listener) = tokio::join!(connected(&path, Duration::from_secs(60)), listens);
        connected.unwrap();
    }

    #[tokio::test]
    async fn whoever_does_not_listen_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let error = connected(&dir.path().join("none.sock"), Duration::from_millis(100)).await.unwrap_err();
        assert!(error.starts_with("nobody listens at ") && error.contains("No such file"), "{error}");
    }
}
