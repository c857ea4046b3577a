//! What a controller has done and not yet seen in its cache. Until it has, the cache is behind the controller's own
//! writes, and acting on it would create or delete twice. Source: `k8s.io/kubernetes/pkg/controller`
//! `UIDTrackingControllerExpectations`.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use base::clock::SharedClock;
use jiff::Timestamp;
use parking_lot::Mutex;

use api::Key;

/// After this time a missing observation is taken as lost, and the controller acts on what it sees.
pub const EXPIRES_AFTER: Duration = Duration::from_secs(5 * 60);

/// Expectations per controlling object.
pub struct Expectations {
    clock: SharedClock,
    pending: Mutex<HashMap<Key, Pending>>,
}

struct Pending {
    /// Creations that were asked for and neither seen nor failed.
    creations: u64,
    /// Uids of objects whose deletion was asked for and not seen.
    deletions: HashSet<String>,
    since: Timestamp,
}

impl Expectations {
    /// Nothing is expected yet.
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, pending: Mutex::new(HashMap::new()) }
    }

    /// Whether `key` may act: everything was seen, or waiting has become pointless.
    pub fn satisfied(&self, key: &Key) -> bool {
        let pending = self.pending.lock();
        pending
            .get(key)
            .is_none_or(|held| (held.creations == 0 && held.deletions.is_empty()) || self.is_expired(held))
    }

    fn is_expired(&self, held: &Pending) -> bool {
        let age = self.clock.now().duration_since(held.since);
        Duration::try_from(age).is_ok_and(|age| age > EXPIRES_AFTER)
    }

    fn fresh(&self) -> Pending {
        Pending { creations: 0, deletions: HashSet::new(), since: self.clock.now() }
    }

    /// `creations` objects will now be created for `key`, and those with these uids deleted; replaces what was expected
    /// before.
    pub fn expect(&self, key: &Key, creations: u64, deletions: impl IntoIterator<Item = String>) {
        let fresh = Pending { creations, deletions: deletions.into_iter().collect(), ..self.fresh() };
        self.pending.lock().insert(key.clone(), fresh);
    }

    /// `count` objects will now be created for `key`; replaces what was expected before.
    pub fn expect_creations(&self, key: &Key, count: u64) {
        self.expect(key, count, []);
    }

    /// The objects with these uids will now be deleted; replaces what was expected before.
    pub fn expect_deletions(&self, key: &Key, uids: impl IntoIterator<Item = String>) {
        self.expect(key, 0, uids);
    }

    /// One creation was seen, or failed and will never be seen.
    pub fn creation_observed(&self, key: &Key) {
        if let Some(held) = self.pending.lock().get_mut(key) {
            held.creations = held.creations.saturating_sub(1);
        }
    }

    /// So many creations failed, or were given up.
    pub fn creations_failed(&self, key: &Key, count: u64) {
        if let Some(held) = self.pending.lock().get_mut(key) {
            held.creations = held.creations.saturating_sub(count);
        }
    }

    /// The deletion of `uid` was seen, or failed and will never be seen.
    pub fn deletion_observed(&self, key: &Key, uid: &str) {
        if let Some(held) = self.pending.lock().get_mut(key) {
            held.deletions.remove(uid);
        }
    }

    /// The controlling object is gone.
    pub fn forget(&self, key: &Key) {
        self.pending.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base::clock::VirtualClock;

    use super::*;

    #[test]
    fn are_met_by_observations_failures_or_time() {
        let clock = VirtualClock::new(Timestamp::UNIX_EPOCH);
        let expectations = Expectations::new(Arc::new(clock.clone()));
        let key = Key::new("default", "web");
        assert!(expectations.satisfied(&key));

        expectations.expect_creations(&key, 2);
        expectations.creation_observed(&key);
        assert!(!expectations.satisfied(&key));
        expectations.creations_failed(&key, 1);
        assert!(expectations.satisfied(&key));

        expectations.expect_deletions(&key, ["a".to_owned(), "b".to_owned()]);
        expectations.deletion_observed(&key, "a");
        // Seeing the same deletion twice must not count for another one.
        expectations.deletion_observed(&key, "a");
        assert!(!expectations.satisfied(&key));
        clock.advance(EXPIRES_AFTER);
        assert!(!expectations.satisfied(&key));
        clock.advance(Duration::from_secs(1));
        assert!(expectations.satisfied(&key));

        expectations.expect(&key, 1, ["c".to_owned()]);
        expectations.creation_observed(&key);
        assert!(!expectations.satisfied(&key));
        expectations.deletion_observed(&key, "c");
        assert!(expectations.satisfied(&key));
    }
}
