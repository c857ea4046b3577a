//! Time as a handle, so that tests can drive it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;

/// Wall time and timers. Deciding code takes a `&dyn Clock`, never the system's.
#[async_trait]
pub trait Clock: Send + Sync + 'static {
    /// The present moment.
    fn now(&self) -> Timestamp;
    /// Returns at `deadline`, at once if it has passed.
    async fn sleep_until(&self, deadline: Timestamp);
}

/// A shared clock.
pub type SharedClock = Arc<dyn Clock>;

/// The system's clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    async fn sleep_until(&self, deadline: Timestamp) {
        let left = deadline.duration_since(Timestamp::now());
        if let Ok(left) = Duration::try_from(left) {
            tokio::time::sleep(left).await;
        }
    }
}

/// A clock that stands still until it is advanced: hours pass in microseconds.
#[derive(Debug, Clone)]
pub struct VirtualClock {
    now: Arc<Mutex<Timestamp>>,
    ticks: watch::Sender<u64>,
    sleepers: Arc<Mutex<Sleepers>>,
}

/// Who sleeps until when: deadlines, told apart by a number.
#[derive(Debug, Default)]
struct Sleepers {
    deadlines: BTreeSet<(Timestamp, u64)>,
    numbers: u64,
}

/// One that sleeps; forgotten with it, whether it woke or was given up.
struct Sleeper {
    sleepers: Arc<Mutex<Sleepers>>,
    entry: (Timestamp, u64),
}

impl Sleeper {
    fn new(sleepers: &Arc<Mutex<Sleepers>>, deadline: Timestamp) -> Self {
        let mut held = sleepers.lock();
        held.numbers += 1;
        let entry = (deadline, held.numbers);
        held.deadlines.insert(entry);
        Self { sleepers: sleepers.clone(), entry }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.sleepers.lock().deadlines.remove(&self.entry);
    }
}

impl VirtualClock {
    /// A clock that shows `start`.
    pub fn new(start: Timestamp) -> Self {
        Self { now: Arc::new(Mutex::new(start)), ticks: watch::Sender::new(0), sleepers: Arc::default() }
    }

    /// When the next sleeper wants to be woken: a test that goes from one such moment to the next misses nothing.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.sleepers.lock().deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Moves the clock forward and wakes every sleeper whose deadline has come.
    pub fn advance(&self, by: Duration) {
        self.set(self.now().saturating_add(by).unwrap_or(Timestamp::MAX));
    }

    /// Sets the clock, which may go back, and wakes every sleeper whose deadline has come.
    pub fn set(&self, now: Timestamp) {
        *self.now.lock() = now;
        self.ticks.send_modify(|tick| *tick += 1);
    }
}

#[async_trait]
impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        *self.now.lock()
    }

    async fn sleep_until(&self, deadline: Timestamp) {
        let mut ticks = self.ticks.subscribe();
        let _sleeper = Sleeper::new(&self.sleepers, deadline);
        // The sender lives as long as `self`, so waiting cannot fail while this call borrows it.
        let _ = ticks.wait_for(|_| self.now() >= deadline).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_virtual_clock_wakes_its_sleepers() {
        let clock = VirtualClock::new(Timestamp::UNIX_EPOCH);
        let deadline = clock.now() + Duration::from_secs(3600);
        let sleep = clock.sleep_until(deadline);
        tokio::pin!(sleep);
        assert!(futures_poll(&mut sleep).await.is_none());
        assert_eq!(clock.next_deadline(), Some(deadline));
        clock.advance(Duration::from_secs(3600));
        sleep.await;
        assert_eq!(clock.now(), deadline);
        assert_eq!(clock.next_deadline(), None);
    }

    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        tokio::select! { biased; out = future => Some(out), () = std::future::ready(()) => None }
    }
}
