//! Answers that are believed for a while: a map whose entries end, of bounded size.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use base::clock::SharedClock;
use jiff::Timestamp;
use parking_lot::Mutex;

/// The map.
pub(crate) struct Expiring<K, V> {
    clock: SharedClock,
    max: usize,
    entries: Mutex<HashMap<K, (V, Timestamp)>>,
}

impl<K: Hash + Eq, V: Clone> Expiring<K, V> {
    /// A map of at most `max` entries.
    pub(crate) fn new(clock: SharedClock, max: usize) -> Self {
        Self { clock, max, entries: Mutex::default() }
    }

    /// What is held and has not ended.
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        let now = self.clock.now();
        self.entries.lock().get(key).filter(|(_, end)| *end > now).map(|(value, _)| value.clone())
    }

    /// Holds a value for so long. Where there is no room, what has ended goes; where all still holds, all goes.
    pub(crate) fn put(&self, key: K, value: V, held: Duration) {
        let now = self.clock.now();
        let end = now.saturating_add(held).unwrap_or(now);
        let mut entries = self.entries.lock();
        if entries.len() >= self.max {
            entries.retain(|_, (_, end)| *end > now);
        }
        if entries.len() >= self.max {
            entries.clear();
        }
        entries.insert(key, (value, end));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base::clock::VirtualClock;

    use super::*;

    #[test]
    fn entries_end_and_never_grow_beyond_the_bound() {
        let clock = VirtualClock::new(Timestamp::UNIX_EPOCH);
        let held = Expiring::new(Arc::new(clock.clone()), 2);
        held.put("a", 1, Duration::from_secs(10));
        held.put("b", 2, Duration::from_secs(30));
        assert_eq!((held.get(&"a"), held.get(&"b"), held.get(&"c")), (Some(1), Some(2), None));
        clock.advance(Duration::from_secs(10));
        assert_eq!((held.get(&"a"), held.get(&"b")), (None, Some(2)));
        held.put("c", 3, Duration::from_secs(30));
        assert_eq!((held.get(&"b"), held.get(&"c")), (Some(2), Some(3)));
        held.put("d", 4, Duration::from_secs(30));
        assert_eq!((held.get(&"b"), held.get(&"d"), held.entries.lock().len()), (None, Some(4), 1));
    }
}
