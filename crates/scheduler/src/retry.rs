//! Writes that fail for reasons that pass are tried again at once: a pod does not wait out a back-off for them, and no user
//! is told. Source: `schedutil.Retriable`, client-go's `retry.DefaultBackoff`.

use std::time::Duration;

use api::{Reason, Status};
use base::clock::SharedClock;

/// How long it is waited before each further try.
const WAITS: [Duration; 3] =
    [Duration::from_millis(10), Duration::from_millis(50), Duration::from_millis(250)];

/// What a write comes to that is tried again while the server cannot carry it out.
pub(crate) async fn passing<T, F: Future<Output = Result<T, Status>>>(
    clock: &SharedClock,
    write: impl Fn() -> F,
) -> Result<T, Status> {
    let passes =
        |status: &Status| matches!(status.reason, Reason::InternalError | Reason::ServiceUnavailable);
    for wait in WAITS {
        match write().await {
            Err(status) if passes(&status) => {
                tracing::debug!(%status, "not written, tried again");
                clock.sleep_until(clock.now().saturating_add(wait).unwrap_or(jiff::Timestamp::MAX)).await;
            }
            said => return said,
        }
    }
    write().await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use base::clock::VirtualClock;

    use super::*;

    /// How often a write is tried that fails so often, and whether it comes to something.
    async fn tried(failures: usize, status: fn() -> Status) -> (usize, bool) {
        let clock = Arc::new(VirtualClock::new(jiff::Timestamp::UNIX_EPOCH));
        let (shared, count): (SharedClock, _) = (clock.clone(), AtomicUsize::new(0));
        let write = || {
            let before = count.fetch_add(1, Ordering::Relaxed);
            std::future::ready(if before < failures { Err(status()) } else { Ok(()) })
        };
        let went_well = tokio::select! {
            said = passing(&shared, write) => said.is_ok(),
            () = async {
                loop {
                    clock.go_on(Duration::from_secs(1)).await;
                }
            } => false,
        };
        (count.load(Ordering::Relaxed), went_well)
    }

    #[tokio::test]
    async fn what_passes_is_tried_again_and_nothing_else() {
        let passes: fn() -> Status = || Status::internal("no leader");
        let stays: fn() -> Status = || Status::new(Reason::Forbidden, "closed");
        assert_eq!(tried(0, passes).await, (1, true));
        assert_eq!(tried(3, passes).await, (4, true));
        assert_eq!(tried(9, passes).await, (4, false));
        assert_eq!(tried(1, stays).await, (1, false));
    }
}
