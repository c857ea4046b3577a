//! Failed daemons are deleted later and later, so that a node that refuses a pod again and again is not kept busy.
//! Source: `flowcontrol.Backoff` as `failedPodsBackoff`.

use std::collections::HashMap;
use std::time::Duration;

use base::backoff::Policy;
use jiff::Timestamp;

/// Source: `startDaemonSetController`.
const POLICY: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(15 * 60) };

/// A set, the generation that its status is about, and a node: a new template begins anew.
type Place = (String, i64, String);

#[derive(Debug)]
struct Held {
    failures: u32,
    since: Timestamp,
}

/// When pods failed last.
#[derive(Debug, Default)]
pub(super) struct Failures {
    places: HashMap<Place, Held>,
}

impl Failures {
    /// How long a failed pod has to be left alone; if it has not, its deletion counts from now on.
    pub(super) fn wait(&mut self, place: Place, now: Timestamp) -> Option<Duration> {
        let age = |held: &Held| Duration::try_from(now.duration_since(held.since)).unwrap_or_default();
        // What failed so long ago is forgotten.
        self.places.retain(|_, held| age(held) <= 2 * POLICY.max);
        let held = self.places.entry(place).or_insert(Held { failures: 0, since: now });
        let left = POLICY.delay(held.failures).saturating_sub(age(held));
        if !left.is_zero() {
            return Some(left);
        }
        held.failures = held.failures.saturating_add(1);
        held.since = now;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_are_forgotten() {
        let mut failures = Failures::default();
        let place = |node: &str| ("u".to_owned(), 1, node.to_owned());
        let mut now = Timestamp::UNIX_EPOCH;
        assert_eq!(failures.wait(place("a"), now), None);
        assert_eq!(failures.wait(place("b"), now), None);
        let mut waits = Vec::new();
        for _ in 0..12 {
            let wait = failures.wait(place("a"), now).unwrap();
            waits.push(wait.as_secs());
            now += wait;
            assert_eq!(failures.wait(place("a"), now), None);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]);
        now += Duration::from_secs(1801);
        assert_eq!(failures.wait(place("a"), now), None);
        assert_eq!(failures.places.len(), 1);
        assert_eq!(failures.wait(place("a"), now), Some(Duration::from_secs(1)));
    }
}
