//! Work that keeps a core busy for long (expressions up to seconds): the other tasks of the thread go on elsewhere
//! meanwhile, and no more of it runs at a time than leaves cores and memory to others.

use parking_lot::{Condvar, Mutex};
use tokio::runtime::{Handle, RuntimeFlavor};

/// How much of it runs at a time.
const AT_ONCE_MAX: usize = 2;

/// Places, of which each piece of work takes one.
#[derive(Debug, Default)]
struct Places {
    taken: Mutex<usize>,
    left: Condvar,
}

/// A place that was taken.
struct Place<'p>(&'p Places);

impl Places {
    const fn new() -> Self {
        Self { taken: Mutex::new(0), left: Condvar::new() }
    }

    /// Waits for a place.
    fn take(&self) -> Place<'_> {
        let mut taken = self.taken.lock();
        self.left.wait_while(&mut taken, |taken| *taken >= AT_ONCE_MAX);
        *taken += 1;
        Place(self)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.taken.lock() -= 1;
        self.0.left.notify_one();
    }
}

/// Runs work that does not wait for anything and takes no other place.
pub(crate) fn run<T>(work: impl FnOnce() -> T) -> T {
    static PLACES: Places = Places::new();
    let work = || {
        let _place = PLACES.take();
        work()
    };
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        // A runtime of one thread (clients, tests) has nobody who could go on.
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_more_than_may_run_at_once() {
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    run(|| {
                        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        running.fetch_sub(1, Ordering::SeqCst);
                    });
                });
            }
        });
        assert!((1..=AT_ONCE_MAX).contains(&most.into_inner()));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn others_go_on_meanwhile() {
        let (tell, told) = std::sync::mpsc::channel();
        #[allow(clippy::disallowed_methods, reason = "the test waits for them")]
        let mut tasks = tokio::task::JoinSet::new();
        // It waits for a task that has only its own thread's core to run on.
        let waits = async move { run(|| told.recv_timeout(Duration::from_secs(60))).unwrap() };
        #[allow(clippy::disallowed_methods, reason = "the test waits for it")]
        tasks.spawn(waits);
        #[allow(clippy::disallowed_methods, reason = "the test waits for it")]
        tasks.spawn(async move { tell.send(()).unwrap() });
        tasks.join_all().await;
    }
}
