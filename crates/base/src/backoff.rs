//! Exponential back-off, per key.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// How delays grow: `first`, then twice as long each time, never beyond `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The first delay.
    pub first: Duration,
    /// The longest delay.
    pub max: Duration,
}

impl Policy {
    /// The delay after `failures` failures in a row (0 gives none).
    pub fn delay(&self, failures: u32) -> Duration {
        match failures {
            0 => Duration::ZERO,
            n => self.first.saturating_mul(1u32.checked_shl(n - 1).unwrap_or(u32::MAX)).min(self.max),
        }
    }
}

/// Failures in a row per key, and the delay that they earn.
#[derive(Debug)]
pub struct Backoff<K> {
    policy: Policy,
    failures: HashMap<K, u32>,
}

impl<K: Eq + Hash> Backoff<K> {
    /// No failures yet.
    pub fn new(policy: Policy) -> Self {
        Self { policy, failures: HashMap::new() }
    }

    /// Counts one more failure and tells how long to wait.
    pub fn failed(&mut self, key: K) -> Duration {
        let count = self.failures.entry(key).or_insert(0);
        *count = count.saturating_add(1);
        self.policy.delay(*count)
    }

    /// Forgets the failures of `key`.
    pub fn succeeded(&mut self, key: &K) {
        self.failures.remove(key);
    }

    /// How many failures in a row `key` has.
    pub fn failures(&self, key: &K) -> u32 {
        self.failures.get(key).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum_and_reset() {
        let policy = Policy { first: Duration::from_millis(10), max: Duration::from_millis(35) };
        let mut backoff = Backoff::new(policy);
        let delays: Vec<_> = (0..4).map(|_| backoff.failed("a").as_millis()).collect();
        assert_eq!(delays, [10, 20, 35, 35]);
        backoff.succeeded(&"a");
        assert_eq!(backoff.failed("a").as_millis(), 10);
        assert_eq!(policy.delay(400), policy.max);
    }
}
