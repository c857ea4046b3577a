//! One lock per container, there while somebody holds or wants it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

/// Locks by name.
#[derive(Default)]
pub(crate) struct Locks(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Locks {
    /// Waits for the lock of this name; dropping what it gives lets the next one have it.
    pub(crate) async fn lock(&self, name: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut all = self.0.lock();
            // Those that nobody holds or waits for are gone before a new one comes.
            all.retain(|_, lock| Arc::strong_count(lock) > 1);
            all.entry(name.to_owned()).or_default().clone()
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_name_is_held_once_and_names_do_not_meet() {
        let locks = Locks::default();
        let held = locks.lock("a").await;
        assert!(locks.lock("a").now_or_never().is_none());
        drop(locks.lock("b").now_or_never().expect("another name is free"));
        drop(held);
        drop(locks.lock("a").now_or_never().expect("it was given back"));
        drop(locks.lock("c").await);
        assert_eq!(locks.0.lock().len(), 1, "only the last one is still there");
    }
}
