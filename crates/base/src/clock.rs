//! Time as a handle, so that tests can drive it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
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
    sleepers: watch::Sender<Sleepers>,
}

/// Who sleeps until when: deadlines, told apart by a number.
#[derive(Debug, Default)]
struct Sleepers {
    deadlines: BTreeSet<(Timestamp, u64)>,
    of: HashMap<u64, Timestamp>,
    numbers: u64,
}

impl Sleepers {
    /// The deadlines, the next one first.
    fn moments(&self) -> impl Iterator<Item = Timestamp> {
        self.deadlines.iter().map(|(deadline, _)| *deadline)
    }

    fn add(&mut self, deadline: Timestamp) -> u64 {
        self.numbers += 1;
        self.of.insert(self.numbers, deadline);
        self.deadlines.insert((deadline, self.numbers));
        self.numbers
    }

    fn remove(&mut self, number: u64) -> bool {
        let held = self.of.remove(&number);
        held.is_some_and(|deadline| self.deadlines.remove(&(deadline, number)))
    }

    /// Whoever sleeps does so for as long as before, by a clock that has gone back: as with the system's.
    fn go_back(&mut self, by: SignedDuration) {
        self.of
            .values_mut()
            .for_each(|deadline| *deadline = deadline.saturating_sub(by).unwrap_or(*deadline));
        self.deadlines = self.of.iter().map(|(number, deadline)| (*deadline, *number)).collect();
    }
}

/// One that sleeps; forgotten with it, whether it woke or was given up.
struct Sleeper {
    sleepers: watch::Sender<Sleepers>,
    number: u64,
}

impl Sleeper {
    fn new(sleepers: &watch::Sender<Sleepers>, deadline: Timestamp) -> Self {
        let mut number = 0;
        sleepers.send_modify(|held| number = held.add(deadline));
        Self { sleepers: sleepers.clone(), number }
    }

    fn has_slept(&self, now: Timestamp) -> bool {
        self.sleepers.borrow().of.get(&self.number).is_none_or(|deadline| *deadline <= now)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.sleepers.send_if_modified(|held| held.remove(self.number));
    }
}

impl VirtualClock {
    /// A clock that shows `start`.
    pub fn new(start: Timestamp) -> Self {
        Self {
            now: Arc::new(Mutex::new(start)),
            ticks: watch::Sender::new(0),
            sleepers: watch::Sender::default(),
        }
    }

    /// When the next sleeper wants to be woken: a test that goes from one such moment to the next misses nothing.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.sleepers.borrow().moments().next()
    }

    /// Goes to the first moment, `at_least` and `at_most` so far away, until which somebody sleeps, once somebody does: a
    /// test waits for a timer to be set and lets it run off, without a guess at when that will be.
    pub async fn go_to_deadline(&self, at_least: Duration, at_most: Duration) {
        let wanted = |held: &Sleepers| {
            let now = self.now();
            let [first, last] =
                [at_least, at_most].map(|by| now.saturating_add(by).unwrap_or(Timestamp::MAX));
            held.moments().find(|deadline| (first..=last).contains(deadline))
        };
        self.go(wanted).await;
    }

    /// Goes to the next moment until which somebody sleeps, once everybody whose moment has come has woken up and there is
    /// one that is no further away than `at_most`. One call after the other, time passes no faster than it is used.
    pub async fn go_on(&self, at_most: Duration) {
        let wanted = |held: &Sleepers| {
            let now = self.now();
            let last = now.saturating_add(at_most).unwrap_or(Timestamp::MAX);
            held.moments().next().filter(|deadline| *deadline > now && *deadline <= last)
        };
        self.go(wanted).await;
    }

    async fn go(&self, wanted: impl Fn(&Sleepers) -> Option<Timestamp>) {
        let mut sleepers = self.sleepers.subscribe();
        let mut deadline = None;
        // The sender lives as long as `self`, so waiting cannot fail while this call borrows it.
        let _ = sleepers
            .wait_for(|held| {
                deadline = wanted(held);
                deadline.is_some()
            })
            .await;
        if let Some(deadline) = deadline {
            self.set(deadline);
        }
    }

    /// Moves the clock forward and wakes every sleeper whose deadline has come.
    pub fn advance(&self, by: Duration) {
        self.set(self.now().saturating_add(by).unwrap_or(Timestamp::MAX));
    }

    /// Sets the clock, which may go back, and wakes every sleeper whose deadline has come. Where it goes back nobody sleeps
    /// for longer than was asked for.
    pub fn set(&self, now: Timestamp) {
        let before = std::mem::replace(&mut *self.now.lock(), now);
        if now < before {
            self.sleepers.send_modify(|held| held.go_back(before.duration_since(now)));
        }
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
        let sleeper = Sleeper::new(&self.sleepers, deadline);
        // The sender lives as long as `self`, so waiting cannot fail while this call borrows it.
        let _ = ticks.wait_for(|_| sleeper.has_slept(self.now())).await;
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

    #[tokio::test]
    async fn where_a_clock_goes_back_nobody_sleeps_for_longer() {
        let clock = VirtualClock::new(Timestamp::UNIX_EPOCH + Duration::from_secs(10_000));
        let mut sleep = Box::pin(clock.sleep_until(clock.now() + Duration::from_secs(60)));
        assert!(futures_poll(&mut sleep).await.is_none());
        clock.set(Timestamp::UNIX_EPOCH);
        assert_eq!(clock.next_deadline(), Some(Timestamp::UNIX_EPOCH + Duration::from_secs(60)));
        clock.advance(Duration::from_secs(59));
        assert!(futures_poll(&mut sleep).await.is_none());
        clock.advance(Duration::from_secs(1));
        sleep.await;
        assert_eq!(clock.next_deadline(), None);
    }

    #[tokio::test]
    async fn time_goes_on_when_somebody_waits_for_it() {
        let clock = VirtualClock::new(Timestamp::UNIX_EPOCH);
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
        let minute = Duration::from_secs(60);
        let mut go = Box::pin(clock.go_on(minute));
        assert!(futures_poll(&mut go).await.is_none(), "nobody sleeps");
        let mut far = Box::pin(clock.sleep_until(at(100)));
        assert!(futures_poll(&mut far).await.is_none());
        assert!(futures_poll(&mut go).await.is_none(), "that is too far away");
        let mut near = Box::pin(clock.sleep_until(at(50)));
        assert!(futures_poll(&mut near).await.is_none());
        go.await;
        assert_eq!(clock.now(), at(50));
        // The sleeper has not woken up yet: it may want to go to sleep again, before the other one wakes.
        let mut go = Box::pin(clock.go_on(minute));
        assert!(futures_poll(&mut go).await.is_none());
        near.await;
        go.await;
        assert_eq!(clock.now(), at(100));
        far.await;

        let mut go = Box::pin(clock.go_to_deadline(minute, 2 * minute));
        let mut sleeps = [110, 180].map(|second| Box::pin(clock.sleep_until(at(second))));
        assert!(futures_poll(&mut sleeps[0]).await.is_none());
        assert!(futures_poll(&mut go).await.is_none(), "that is too near");
        assert!(futures_poll(&mut sleeps[1]).await.is_none());
        go.await;
        assert_eq!(clock.now(), at(180));
    }

    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        tokio::select! { biased; out = future => Some(out), () = std::future::ready(()) => None }
    }
}
