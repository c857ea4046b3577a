//! Whether a driver is there: a connection to it is kept, whose end tells that it went, also where it was killed and its
//! socket stays. Source: `DRAPluginManager.HandleConn`, `sync`.

use std::sync::Arc;
use std::time::Duration;

use base::backoff::Policy;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use jiff::Timestamp;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::{Driver, health, slices};
use crate::admission::Workers;
use crate::deps::Deps;

const CONNECT_MAX: Duration = Duration::from_secs(10);
const AGAIN: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(120) };
/// A connection that stands for less is a failure: it begins before the driver has said anything, and pods hear of each.
const STANDS_MIN: Duration = Duration::from_secs(30);

/// Looks after a driver until its registration is gone, and after its slices for as long as nobody comes in its place.
pub(crate) async fn attend(deps: &Deps, workers: &Workers, driver: Arc<Driver>, gone: &CancellationToken) {
    let known = async {
        tokio::join!(presence(deps, workers, &driver), health::follow(deps, workers, &driver));
    };
    tokio::select! {
        () = known => {}
        () = gone.cancelled() => {}
    }
    deps.plugins.claims.set_connected(&driver, false);
    health::forget(deps, &driver);
    health::tell(deps, workers, &driver.name);
}

/// A driver has left: its slices go, unless one of its name comes soon.
pub(crate) async fn left(deps: &Deps, name: &str) {
    let since = deps.now();
    let until = since.saturating_add(slices::AWAY_MAX).unwrap_or(Timestamp::MAX);
    deps.clock.sleep_until(until).await;
    if !deps.plugins.claims.is_usable(name) {
        slices::wipe(deps, Some(name)).await;
    }
}

/// Keeps a connection, which carries nothing.
async fn presence(deps: &Deps, workers: &Workers, driver: &Arc<Driver>) {
    let mut failures = 0;
    loop {
        if let Ok(connection) = connect(driver).await {
            let since = deps.now();
            deps.plugins.claims.set_connected(driver, true);
            // Pods may wait for it.
            for mailbox in workers.lock().values() {
                mailbox.volumes_may_be_had();
            }
            let _ = connection.await;
            deps.plugins.claims.set_connected(driver, false);
            let stood = Duration::try_from(deps.now().duration_since(since)).unwrap_or_default();
            failures = failures_after(failures, stood);
        }
        let away = async {
            left(deps, &driver.name).await;
            std::future::pending::<()>().await;
        };
        failures = tokio::select! {
            failures = come_back(deps, driver, failures) => failures,
            () = away => return,
        };
    }
}

/// How many failures still count after a connection. Pure.
fn failures_after(failures: u32, stood: Duration) -> u32 {
    if stood < STANDS_MIN { failures } else { 0 }
}

/// Waits until a driver can be reached again. Answers how often it could not.
async fn come_back(deps: &Deps, driver: &Driver, mut failures: u32) -> u32 {
    loop {
        failures += 1;
        let again = deps.now().saturating_add(AGAIN.delay(failures)).unwrap_or(Timestamp::MAX);
        deps.clock.sleep_until(again).await;
        let reached = tokio::time::timeout(CONNECT_MAX, UnixStream::connect(&driver.endpoint)).await;
        if matches!(reached, Ok(Ok(_))) {
            return failures;
        }
    }
}

/// A connection, as a future that ends with it.
async fn connect(driver: &Driver) -> Result<impl Future<Output = ()>, String> {
    let connecting = async {
        let stream = UnixStream::connect(&driver.endpoint).await.map_err(|error| error.to_string())?;
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).max_header_list_size(16 << 10);
        let handshake = builder.handshake::<_, Empty<bytes::Bytes>>(TokioIo::new(stream)).await;
        handshake.map_err(|error| error.to_string())
    };
    let connected = tokio::time::timeout(CONNECT_MAX, connecting).await;
    let (sender, connection) = connected.map_err(|_| "no answer".to_owned())??;
    Ok(async move {
        let _ = connection.await;
        // As long as it is there the connection is kept.
        drop(sender);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_connection_that_stood_ends_the_failures() {
        assert_eq!(failures_after(3, Duration::ZERO), 3);
        assert_eq!(failures_after(3, Duration::from_secs(29)), 3);
        assert_eq!(failures_after(3, STANDS_MIN), 0);
    }
}
