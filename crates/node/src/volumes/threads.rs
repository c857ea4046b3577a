//! Threads for file system work that may never come back: a path on a server that is away holds whoever looks at it, and
//! nothing calls the kernel off. Each piece of work has a name, of which there is one at a time; who waits for it goes on
//! without it after a while, the thread is left behind, and the next try waits for that very thread. There are only so many.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

/// Threads at once, those that were left behind among them. Of tokio's 512, others keep most.
const THREADS_MAX: usize = 128;
/// How long one waits for a piece of work. Source: upstream's `podAttachAndMountTimeout`.
const PATIENCE: Duration = Duration::from_secs(123);
/// How long a removal waits for work that was given up.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// Pod and volume.
pub(crate) type Name = (String, String);

/// The threads.
pub(crate) struct Threads {
    busy: Arc<Busy>,
    permits: Arc<Semaphore>,
    patience: Duration,
}

#[derive(Default)]
struct Busy {
    names: Mutex<HashSet<Name>>,
    ended: Notify,
}

/// Why a piece of work has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfinished {
    /// It is under way for too long, or so many others are.
    #[error(
        "timed out waiting for the condition: the file system does not answer. Bring back what serves it, or delete the pod"
    )]
    TimedOut,
    /// Its thread ended without one.
    #[error("the work was given up")]
    GivenUp,
}

/// A name that is taken, until this goes.
struct Taken {
    busy: Arc<Busy>,
    name: Name,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.busy.names.lock().remove(&self.name);
        self.busy.ended.notify_waiters();
    }
}

impl Default for Threads {
    fn default() -> Self {
        Self::new(THREADS_MAX, PATIENCE)
    }
}

impl Threads {
    /// At most so many at once, each waited for at most so long.
    pub(crate) fn new(most: usize, patience: Duration) -> Self {
        Self { busy: Arc::default(), permits: Arc::new(Semaphore::new(most)), patience }
    }

    /// Does a piece of work that may block. Cancel safe: what has begun goes on by itself.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        name: Name,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unfinished> {
        let done = async {
            let taken = self.take(name).await;
            let permit = self.permits.clone().acquire_owned().await.map_err(|_| Unfinished::GivenUp)?;
            let thread = tokio::task::spawn_blocking(move || {
                let done = work();
                drop((taken, permit));
                done
            });
            thread.await.map_err(|_| Unfinished::GivenUp)
        };
        tokio::time::timeout(self.patience, done).await.unwrap_or(Err(Unfinished::TimedOut))
    }

    /// Waits until nothing is done for a pod any more, but not for what does not come back.
    pub(crate) async fn settled(&self, pod_uid: &str) {
        let ended = async {
            loop {
                let ended = self.busy.ended.notified();
                if !self.busy.names.lock().iter().any(|(uid, _)| uid == pod_uid) {
                    return;
                }
                ended.await;
            }
        };
        // Who hangs is left behind: the removal that follows crosses no mount that it may still make.
        let _ = tokio::time::timeout(SETTLE_MAX, ended).await;
    }

    async fn take(&self, name: Name) -> Taken {
        loop {
            // Before the look, so that no end is missed.
            let ended = self.busy.ended.notified();
            if self.busy.names.lock().insert(name.clone()) {
                return Taken { busy: self.busy.clone(), name };
            }
            ended.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn name(volume: &str) -> Name {
        ("u1".to_owned(), volume.to_owned())
    }

    /// The same threads, waited for so long.
    fn with(threads: &Threads, patience: Duration) -> Threads {
        Threads { busy: threads.busy.clone(), permits: threads.permits.clone(), patience }
    }

    /// Threads for those who do not wait at all, and for those who wait for as long as it takes.
    fn hasty_and_patient(most: usize) -> (Threads, Threads) {
        let hasty = Threads::new(most, Duration::ZERO);
        let patient = with(&hasty, Duration::from_secs(600));
        (hasty, patient)
    }

    #[tokio::test]
    async fn who_hangs_holds_up_nobody_else_and_is_not_begun_twice() {
        let (hasty, patient) = hasty_and_patient(2);
        let (release, held) = mpsc::channel::<()>();
        let hung = hasty.run(name("hung"), move || held.recv()).await;
        assert_eq!(hung.unwrap_err(), Unfinished::TimedOut);
        assert_eq!(patient.run(name("other"), || 7).await, Ok(7));
        // The thread that was left behind is still at it.
        assert_eq!(hasty.run(name("hung"), || 8).await, Err(Unfinished::TimedOut));
        let again = patient.run(name("hung"), || 9);
        release.send(()).unwrap();
        assert_eq!(again.await, Ok(9));
    }

    #[tokio::test]
    async fn threads_that_are_left_behind_are_bounded() {
        let (hasty, patient) = hasty_and_patient(1);
        let (release, held) = mpsc::channel::<()>();
        assert!(hasty.run(name("hung"), move || held.recv()).await.is_err());
        assert_eq!(hasty.run(name("other"), || 7).await, Err(Unfinished::TimedOut));
        drop(release);
        assert_eq!(patient.run(name("other"), || 7).await, Ok(7));
    }
}
