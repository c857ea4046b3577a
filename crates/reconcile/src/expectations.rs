//! What a controller has done and not yet seen in its cache. Until it has, the cache is behind the controller's own
//! writes, and acting on it would create or delete twice. Source: `k8s.io/kubernetes/pkg/controller`
//! `UIDTrackingControllerExpectations`.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use base::clock::SharedClock;
use jiff::Timestamp;
use parking_lot::Mutex;

use api::Key;

use crate::informer::Change;

/// After this time a missing observation is taken as lost, and the controller acts on what it sees.
pub const EXPIRES_AFTER: Duration = Duration::from_secs(5 * 60);

/// Expectations per controlling object. An object that was deleted and made again under its name begins without any.
pub struct Expectations {
    clock: SharedClock,
    pending: Mutex<HashMap<Key, Pending>>,
}

struct Pending {
    /// Of the controlling object.
    uid: String,
    /// Creations that were asked for and neither seen nor failed.
    creations: u64,
    /// Uids of objects whose deletion was asked for and not seen.
    deletions: HashSet<String>,
    since: Timestamp,
}

impl Pending {
    fn is_met(&self) -> bool {
        self.creations == 0 && self.deletions.is_empty()
    }
}

impl Expectations {
    /// Nothing is expected yet.
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, pending: Mutex::new(HashMap::new()) }
    }

    /// How long the object with this key and uid has to wait before it may act; `None` if everything was seen, or waiting has
    /// become pointless. Nobody tells when that time is over: a pass that has to wait comes again after it.
    pub fn wait(&self, key: &Key, uid: &str) -> Option<Duration> {
        let now = self.clock.now();
        let mut pending = self.pending.lock();
        let held = pending.get_mut(key).filter(|held| held.uid == uid && !held.is_met())?;
        // A clock that went back begins anew, and does not prolong the wait.
        held.since = held.since.min(now);
        let age = Duration::try_from(now.duration_since(held.since)).unwrap_or_default();
        EXPIRES_AFTER.checked_sub(age).filter(|left| !left.is_zero())
    }

    /// `creations` objects will now be created for the object with this key and uid, and those with these uids deleted;
    /// replaces what was expected before.
    pub fn expect(&self, key: &Key, uid: &str, creations: u64, deletions: impl IntoIterator<Item = String>) {
        let fresh = Pending {
            uid: uid.to_owned(),
            creations,
            deletions: deletions.into_iter().collect(),
            since: self.clock.now(),
        };
        self.pending.lock().insert(key.clone(), fresh);
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

    /// A pod of the object was made or is going. One that is being deleted counts for nobody any more, however long it takes
    /// to go.
    pub fn pod_changed(&self, key: &Key, change: &Change) {
        let Some(pod) = change.latest().map(|pod| pod.meta()) else { return };
        if change.new.is_none() || pod.is_terminating() {
            self.deletion_observed(key, &pod.uid);
        } else if change.old.is_none() {
            self.creation_observed(key);
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

    fn expectations() -> (VirtualClock, Expectations, Key) {
        let clock = VirtualClock::new(Timestamp::UNIX_EPOCH);
        let expectations = Expectations::new(Arc::new(clock.clone()));
        (clock, expectations, Key::new("default", "web"))
    }

    #[test]
    fn are_met_by_observations_or_failures() {
        let (_, expectations, key) = expectations();
        let waits = || expectations.wait(&key, "u").is_some();
        assert!(!waits());

        expectations.expect(&key, "u", 2, []);
        expectations.creation_observed(&key);
        assert!(waits());
        expectations.creations_failed(&key, 1);
        assert!(!waits());

        expectations.expect(&key, "u", 0, ["a".to_owned(), "b".to_owned()]);
        expectations.deletion_observed(&key, "a");
        // Seeing the same deletion twice must not count for another one.
        expectations.deletion_observed(&key, "a");
        assert!(waits());

        expectations.expect(&key, "u", 1, ["c".to_owned()]);
        expectations.creation_observed(&key);
        assert!(waits());
        expectations.deletion_observed(&key, "c");
        assert!(!waits());
    }

    #[test]
    fn end_after_a_time_that_is_told() {
        let (clock, expectations, key) = expectations();
        expectations.expect(&key, "u", 1, []);
        assert_eq!(expectations.wait(&key, "u"), Some(EXPIRES_AFTER));
        clock.advance(Duration::from_secs(100));
        let left = expectations.wait(&key, "u").unwrap();
        assert_eq!(left, EXPIRES_AFTER - Duration::from_secs(100));
        clock.advance(left);
        assert_eq!(expectations.wait(&key, "u"), None);
    }

    #[test]
    fn are_not_those_of_another_object_of_the_name() {
        let (_, expectations, key) = expectations();
        expectations.expect(&key, "old", 1, []);
        assert_eq!(expectations.wait(&key, "new"), None);
        assert!(expectations.wait(&key, "old").is_some());
    }

    #[test]
    fn a_clock_that_goes_back_prolongs_no_wait() {
        let (clock, expectations, key) = expectations();
        clock.advance(Duration::from_secs(1_000_000));
        expectations.expect(&key, "u", 1, []);
        clock.set(Timestamp::UNIX_EPOCH);
        let left = expectations.wait(&key, "u").unwrap();
        assert_eq!(left, EXPIRES_AFTER);
        clock.advance(left);
        assert_eq!(expectations.wait(&key, "u"), None);
    }
}
