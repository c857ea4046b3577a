//! How long the steps of something took, on the machine's monotonic clock, which all of its processes share.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

/// The newest spans of one thing that are kept: enough for the start of a pod with twenty containers.
const KEPT: usize = 512;

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// What was done.
    pub step: String,
    /// For which part, such as a container's name; empty: for the whole.
    pub of: String,
    /// When it began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub began_ns: u64,
    /// When it ended.
    pub ended_ns: u64,
}

/// The steps of one thing, the oldest of too many forgotten.
#[derive(Debug, Default)]
pub struct Spans(Mutex<VecDeque<Span>>);

/// A step that is under way: it ends when this is dropped.
#[derive(Debug)]
#[must_use = "a step ends when this is dropped"]
pub struct Open {
    spans: Option<Arc<Spans>>,
    step: &'static str,
    of: String,
    began_ns: u64,
}

impl Spans {
    /// A step begins.
    pub fn open(self: &Arc<Self>, step: &'static str, of: &str) -> Open {
        Open { spans: Some(self.clone()), step, of: of.to_owned(), began_ns: now_ns() }
    }

    /// A step was taken, here or in another process.
    pub fn add(&self, span: Span) {
        let mut spans = self.0.lock();
        if spans.len() == KEPT {
            spans.pop_front();
        }
        spans.push_back(span);
    }

    /// What is known, in the order in which the steps began.
    pub fn list(&self) -> Vec<Span> {
        let mut spans: Vec<Span> = self.0.lock().iter().cloned().collect();
        // What contains others comes before them.
        spans.sort_by_key(|span| (span.began_ns, std::cmp::Reverse(span.ended_ns)));
        spans
    }
}

impl Open {
    /// A step of what nobody keeps the steps of.
    pub fn unseen() -> Self {
        Self { spans: None, step: "", of: String::new(), began_ns: 0 }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(spans) = self.spans.take() {
            let (step, of) = (self.step.to_owned(), std::mem::take(&mut self.of));
            spans.add(Span { step, of, began_ns: self.began_ns, ended_ns: now_ns() });
        }
    }
}

/// The machine's monotonic clock.
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_stand_in_the_order_of_their_beginnings_and_are_bounded() {
        let spans = Arc::new(Spans::default());
        let whole = spans.open("whole", "");
        drop(spans.open("part", "main"));
        drop(whole);
        drop(Open::unseen());
        let steps: Vec<String> = spans.list().into_iter().map(|span| span.step).collect();
        assert_eq!(steps, ["whole", "part"]);
        assert!(spans.list().iter().all(|span| span.began_ns <= span.ended_ns));
        for _ in 0..KEPT {
            drop(spans.open("later", ""));
        }
        assert!(spans.list().iter().all(|span| span.step == "later") && spans.list().len() == KEPT);
    }
}
