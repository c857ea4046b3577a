//! Who wants a container to end, and by when: several may ask at once, and the soonest counts.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Longer than any grace that means something; graces beyond it would overflow the clock.
const GRACE_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The requests to end one container.
#[derive(Debug, Default)]
pub(crate) struct Stops {
    wanted: watch::Sender<Wanted>,
}

#[derive(Debug, Default)]
struct Wanted {
    /// Requests that are not yet answered.
    requests: usize,
    /// When the soonest of them has the container killed.
    kill_at: Option<Instant>,
}

/// A request to end a container; withdrawn by dropping it, though the others keep what it hastened.
pub(crate) struct Request<'a>(&'a Stops);

impl Stops {
    /// Asks for an end at the latest in `grace`.
    pub(crate) fn request(&self, grace: Duration) -> Request<'_> {
        let at = Instant::now() + grace.min(GRACE_MAX);
        self.wanted.send_modify(|wanted| {
            wanted.requests += 1;
            wanted.kill_at = Some(wanted.kill_at.map_or(at, |known| known.min(at)));
        });
        Request(self)
    }

    /// Whether the time to kill has come.
    pub(crate) fn are_due(&self) -> bool {
        self.wanted.borrow().kill_at.is_some_and(|at| at <= Instant::now())
    }

    /// Returns when the time to kill has come, also where it comes nearer meanwhile. Cancel safe.
    pub(crate) async fn due(&self) {
        let mut wanted = self.wanted.subscribe();
        loop {
            let Some(at) = wanted.borrow_and_update().kill_at else {
                // Nobody asks: there is nothing to be due. The sender lives as long as `self`.
                let _ = wanted.changed().await;
                continue;
            };
            tokio::select! {
                () = tokio::time::sleep_until(at) => return,
                _ = wanted.changed() => {}
            }
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.0.wanted.send_modify(|wanted| {
            wanted.requests -= 1;
            if wanted.requests == 0 {
                wanted.kill_at = None;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn the_soonest_request_counts_until_all_are_answered() {
        let stops = Stops::default();
        let first = stops.request(HOUR * 2);
        let second = stops.request(HOUR);
        assert!(!stops.are_due());
        let hastened = async {
            // Withdrawn at once: what it hastened stays.
            drop(stops.request(Duration::ZERO));
        };
        tokio::join!(stops.due(), hastened);
        drop(first);
        assert!(stops.are_due());
        drop(second);
        assert!(!stops.are_due(), "the next request starts anew");
        let _later = stops.request(Duration::MAX);
        assert!(!stops.are_due());
    }
}
