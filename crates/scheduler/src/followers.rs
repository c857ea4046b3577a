//! Who waits for news of claims while a pod is bound: attempts that are under way, told without being looked for.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use api::Key;
use tokio::sync::Notify;

/// Whoever waits, by claim. Who does not wait any more is forgotten with the next that waits or the next news.
#[derive(Debug, Default)]
pub(crate) struct Followers(HashMap<Key, Vec<Weak<Notify>>>);

impl Followers {
    /// Is told whenever something of these claims changes, until it is dropped.
    pub(crate) fn follow<'a>(&mut self, claims: impl Iterator<Item = &'a Key>) -> Arc<Notify> {
        let told = Arc::new(Notify::new());
        claims.for_each(|key| self.follow_too(&told, key));
        told
    }

    /// The same for another claim.
    pub(crate) fn follow_too(&mut self, told: &Arc<Notify>, claim: &Key) {
        let waiting = self.0.entry(claim.clone()).or_default();
        waiting.retain(|held| held.strong_count() > 0);
        waiting.push(Arc::downgrade(told));
    }

    /// There is news of a claim.
    pub(crate) fn wake(&mut self, claim: &Key) {
        let Some(waiting) = self.0.get_mut(claim) else { return };
        waiting.retain(|held| held.upgrade().map(|told| told.notify_one()).is_some());
        if waiting.is_empty() {
            self.0.remove(claim);
        }
    }

    /// There is news that may be of any claim.
    pub(crate) fn wake_all(&self) {
        self.0.values().flatten().filter_map(Weak::upgrade).for_each(|told| told.notify_one());
    }

    /// Whether nobody waits.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
