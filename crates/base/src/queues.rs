//! What work queues tell of themselves, for whoever shows it. Queues count under the lock that they hold anyway; what can be
//! told when it is asked for is not counted before.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

/// The upper bounds, in seconds, by which durations are counted. Source: `component-base/metrics/prometheus/workqueue`.
/// What is a little less than it should be is so there.
pub const BOUNDS: [f64; 10] =
    [1e-6, 9.999_999_999_999_999e-6, 9.999_999_999_999_999e-5, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0];

/// Durations, counted by how long they are.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Durations {
    /// How many there are within each of [`BOUNDS`] and beyond the one before.
    pub within: [u64; BOUNDS.len()],
    /// How many there are.
    pub count: u64,
    /// Their sum.
    pub sum: Duration,
}

impl Durations {
    /// Counts one.
    pub fn add(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        if let Some(count) = self.within.iter_mut().zip(BOUNDS).find(|(_, bound)| seconds <= *bound) {
            *count.0 += 1;
        }
        self.count += 1;
        self.sum = self.sum.saturating_add(duration);
    }

    fn join(&mut self, other: &Self) {
        self.within.iter_mut().zip(other.within).for_each(|(count, more)| *count += more);
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
    }
}

/// What a queue tells.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Figures {
    /// Keys that wait for a worker, also those that one is still busy with.
    pub depth: u64,
    /// Keys that were added and did not wait already.
    pub adds: u64,
    /// Keys that were set for later, after a failure or not.
    pub retries: u64,
    /// How long keys waited.
    pub waited: Durations,
    /// How long they were worked on.
    pub worked: Durations,
    /// How long work goes on that has not ended, all together.
    pub unfinished: Duration,
    /// The longest of it.
    pub longest: Duration,
}

impl Figures {
    fn join(&mut self, other: &Self) {
        self.depth += other.depth;
        self.adds += other.adds;
        self.retries += other.retries;
        self.waited.join(&other.waited);
        self.worked.join(&other.worked);
        self.unfinished += other.unfinished;
        self.longest = self.longest.max(other.longest);
    }
}

/// Something that has figures of a queue.
pub trait Counted: Send + Sync {
    /// As they are now.
    fn figures(&self) -> Figures;
}

/// The queues of a process that somebody asks about, by name. Cheap to clone; every clone knows the same.
#[derive(Clone, Default)]
pub struct Queues(Arc<Mutex<Vec<Named>>>);

type Named = (&'static str, Weak<dyn Counted>);

impl Queues {
    /// Tells of a queue as long as it is there.
    pub fn tell_of(&self, name: &'static str, queue: Weak<dyn Counted>) {
        let mut known = self.0.lock();
        known.retain(|(_, queue)| queue.strong_count() > 0);
        known.push((name, queue));
    }

    /// The figures of all queues that are there; those of one name are one.
    pub fn figures(&self) -> BTreeMap<&'static str, Figures> {
        let known = self.0.lock().clone();
        let mut all: BTreeMap<&'static str, Figures> = BTreeMap::new();
        for (name, queue) in known {
            if let Some(queue) = queue.upgrade() {
                all.entry(name).or_default().join(&queue.figures());
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Figures);

    impl Counted for Fixed {
        fn figures(&self) -> Figures {
            self.0
        }
    }

    #[test]
    fn queues_are_told_of_while_they_are_there_and_as_one_under_one_name() {
        let queues = Queues::default();
        let mut waited = Durations::default();
        for micros in [5, 1_000_000, 2_000_000_000_000] {
            waited.add(Duration::from_micros(micros));
        }
        assert_eq!((waited.within, waited.count), ([0, 1, 0, 0, 0, 0, 1, 0, 0, 0], 3));
        let figures =
            Figures { depth: 1, adds: 2, waited, longest: Duration::from_secs(1), ..Figures::default() };
        let tell = |name, figures| -> Arc<dyn Counted> {
            let queue: Arc<dyn Counted> = Arc::new(Fixed(figures));
            queues.tell_of(name, Arc::downgrade(&queue));
            queue
        };
        let held = [tell("a", figures), tell("a", Figures { longest: Duration::from_secs(3), ..figures })];
        drop(tell("b", figures));
        let all = queues.figures();
        assert_eq!(all.keys().collect::<Vec<_>>(), [&"a"]);
        let joined = &all["a"];
        assert_eq!((joined.depth, joined.adds, joined.waited.count), (2, 4, 6));
        assert_eq!(joined.longest, Duration::from_secs(3));
        drop(held);
        assert!(queues.figures().is_empty());
    }
}
