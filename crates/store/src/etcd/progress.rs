//! Progress of watches: who asked for it, and when etcd's own answer can be believed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::Revision;

/// The watches that report progress.
#[derive(Debug, Default)]
pub(super) struct Progress {
    next: AtomicU64,
    watches: Mutex<HashMap<u64, Arc<Asked>>>,
}

/// What one watch was asked for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// A report is due when the watch has reached this revision.
    revision: Mutex<Option<Revision>>,
    /// Wakes the watch.
    pub(super) wake: Notify,
}

/// A watch's place among those that report progress, given up when dropped.
#[derive(Debug)]
pub(super) struct Membership {
    progress: Arc<Progress>,
    id: u64,
    pub(super) asked: Arc<Asked>,
}

impl Progress {
    /// Adds a watch.
    pub(super) fn join(self: &Arc<Self>) -> Membership {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let asked = Arc::new(Asked::default());
        self.watches.lock().insert(id, asked.clone());
        Membership { progress: self.clone(), id, asked }
    }

    /// Asks every watch for a report of at least `revision`.
    pub(super) fn ask(&self, revision: Revision) {
        for asked in self.watches.lock().values() {
            asked.want(revision);
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.progress.watches.lock().remove(&self.id);
    }
}

impl Asked {
    /// Wants a report of at least `revision`.
    pub(super) fn want(&self, revision: Revision) {
        let mut wanted = self.revision.lock();
        *wanted = (*wanted).max(Some(revision));
        drop(wanted);
        self.wake.notify_one();
    }

    /// The revision that has to be reported, if one has.
    pub(super) fn wanted(&self) -> Option<Revision> {
        *self.revision.lock()
    }

    /// Everything up to `revision` was reported.
    pub(super) fn reported(&self, revision: Revision) {
        let mut wanted = self.revision.lock();
        if wanted.is_some_and(|wanted| wanted <= revision) {
            *wanted = None;
        }
    }
}

/// Whether a server of this version answers progress requests only after the events before them (etcd issue 15220,
/// mended in 3.4.25 and 3.5.8). An unreadable version is taken for an old one.
pub(super) fn is_reliable(version: &str) -> bool {
    let mut numbers = version.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(3), Some(4), Some(patch)) => patch >= 25,
        (Some(3), Some(5), Some(patch)) => patch >= 8,
        (Some(major), Some(minor), _) => (major, minor) > (3, 5),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        for good in ["3.4.25", "3.4.30", "3.5.8", "3.5.16-rc.1", "3.6.0", "3.10.1", "4.0.0"] {
            assert!(is_reliable(good), "{good}");
        }
        for bad in ["3.4.23", "3.5.7", "3.3.27", "2.3.8", "3.5", "", "new"] {
            assert!(!is_reliable(bad), "{bad}");
        }
    }

    #[test]
    fn a_report_answers_what_it_covers() {
        let progress = Arc::new(Progress::default());
        let membership = progress.join();
        progress.ask(7);
        progress.ask(5);
        assert_eq!(membership.asked.wanted(), Some(7));
        membership.asked.reported(6);
        assert_eq!(membership.asked.wanted(), Some(7));
        membership.asked.reported(7);
        assert_eq!(membership.asked.wanted(), None);
        drop(membership);
        assert!(progress.watches.lock().is_empty());
    }
}
