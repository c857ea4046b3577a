//! Who selects pods: found for a pod that changes without a decode of each, as pods change often and selectors seldom.

use std::collections::BTreeMap;

use api::Key;
use parking_lot::RwLock;
use reconcile::Queue;
use reconcile::queue::{DECODED, QueueKey};

/// The selectors of objects, and how many pods each selected when it was looked at last.
#[derive(Debug)]
pub(crate) struct Selectors<S>(RwLock<BTreeMap<Key, (S, usize)>>);

impl<S> Default for Selectors<S> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

/// Somebody who selects a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selecting {
    pub(crate) key: Key,
    /// How many pods it selects.
    pods: usize,
}

impl Selecting {
    /// It is to be looked at, because of one of its pods.
    pub(crate) fn add_to<K: QueueKey>(self, queue: &Queue<K>, item: impl Fn(Key) -> K) {
        queue.add_gathered(item(self.key), self.pods, DECODED);
    }
}

impl<S> Selectors<S> {
    /// An object selects this now, or is gone.
    pub(crate) fn set(&self, key: &Key, selector: Option<S>) {
        let mut held = self.0.write();
        match selector {
            Some(selector) => {
                let pods = held.get(key).map_or(0, |(_, pods)| *pods);
                held.insert(key.clone(), (selector, pods));
            }
            None => drop(held.remove(key)),
        }
    }

    /// So many pods are what it selects.
    pub(crate) fn counted(&self, key: &Key, pods: usize) {
        if let Some((_, held)) = self.0.write().get_mut(key) {
            *held = pods;
        }
    }

    /// Those of a namespace whose selector is like that.
    pub(crate) fn of(&self, namespace: &str, is: impl Fn(&S) -> bool) -> Vec<Selecting> {
        let held = self.0.read();
        held.range(Key::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace)
            .filter(|(_, (selector, _))| is(selector))
            .map(|(key, (_, pods))| Selecting { key: key.clone(), pods: *pods })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_keep_their_counts_until_they_go() {
        let selectors = Selectors::default();
        let (one, other) = (Key::new("ns", "one"), Key::new("nt", "one"));
        selectors.counted(&one, 7);
        assert!(selectors.of("ns", |_| true).is_empty());
        selectors.set(&one, Some("a"));
        selectors.set(&other, Some("a"));
        selectors.counted(&one, 300);
        selectors.set(&one, Some("b"));
        assert!(selectors.of("ns", |held| *held == "a").is_empty());
        assert_eq!(selectors.of("ns", |held| *held == "b"), [Selecting { key: one.clone(), pods: 300 }]);
        selectors.set(&one, None);
        assert!(selectors.of("ns", |_| true).is_empty());
        assert_eq!(selectors.of("nt", |_| true), [Selecting { key: other, pods: 0 }]);
    }
}
