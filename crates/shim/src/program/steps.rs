//! What the shim and its launchers tell of the time that their steps take.

use rustix::time::{ClockId, clock_gettime};
use shim::Step;

/// Steps that follow each other: each begins where the one before ended.
pub(crate) struct Steps {
    taken: Vec<Step>,
    now_ns: u64,
}

impl Steps {
    /// The first step began at this moment.
    pub(crate) fn since(began_ns: u64) -> Self {
        Self { taken: Vec::new(), now_ns: began_ns }
    }

    /// Further steps after these.
    pub(crate) fn after(taken: Vec<Step>) -> Self {
        let now_ns = taken.last().map_or_else(now_ns, |step| step.ended_ns);
        Self { taken, now_ns }
    }

    /// A step has ended.
    pub(crate) fn took(&mut self, name: &str) {
        let ended_ns = now_ns();
        self.taken.push(Step { name: name.to_owned(), began_ns: self.now_ns, ended_ns });
        self.now_ns = ended_ns;
    }

    /// All of them.
    pub(crate) fn into_taken(self) -> Vec<Step> {
        self.taken
    }
}

/// The machine's monotonic clock.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
