//! What admission has to say about a request that it lets pass: warnings for the client and annotations for the audit log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// How many characters the warnings of one answer have together before each is cut; none is added beyond that.
/// Source: `endpoints/filters/warning.go`, as the next.
const CHARS_MAX: usize = 4 * 1024;
/// What is left of a warning that is cut.
const CUT_CHARS: usize = 256;

/// The notes of one request, or of one round of a write that may be repeated.
#[derive(Debug, Default)]
pub struct Notes {
    said: Mutex<Said>,
    /// Nanoseconds.
    waited: AtomicU64,
}

#[derive(Debug, Default)]
struct Said {
    warnings: Vec<String>,
    /// Characters of the warnings.
    chars: usize,
    /// Whether there were too many, so that all are cut.
    cuts: bool,
    annotations: BTreeMap<String, String>,
}

impl Said {
    fn warn(&mut self, mut text: String) {
        if text.is_empty() || (self.cuts && self.chars >= CHARS_MAX) {
            return;
        }
        if self.cuts {
            text = cut(text);
        }
        if self.warnings.contains(&text) {
            return;
        }
        self.chars += text.chars().count();
        self.warnings.push(text);
        if self.chars > CHARS_MAX && !self.cuts {
            self.cuts = true;
            self.warnings = std::mem::take(&mut self.warnings).into_iter().map(cut).collect();
            self.chars = self.warnings.iter().map(|warning| warning.chars().count()).sum();
        }
    }
}

fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(CUT_CHARS) {
        text.truncate(end);
        text.shrink_to_fit();
    }
    text
}

impl Notes {
    /// A `Warning` header of the answer; said twice it is told once, and what is too much is cut.
    pub fn warn(&self, text: impl Into<String>) {
        self.said.lock().warn(text.into());
    }

    /// An annotation of the request's audit event; the first of a key stays, as upstream.
    pub fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        self.said.lock().annotations.entry(key.into()).or_insert_with(|| value.into());
    }

    /// Adds the notes of a round that counts.
    pub fn absorb(&self, round: Self) {
        self.waited.fetch_add(round.waited.into_inner(), Ordering::Relaxed);
        let said = round.said.into_inner();
        said.warnings.into_iter().for_each(|warning| self.warn(warning));
        said.annotations.into_iter().for_each(|(key, value)| self.annotate(key, value));
    }

    /// The warnings, in the order in which they were first said.
    pub fn warnings(&self) -> Vec<String> {
        self.said.lock().warnings.clone()
    }

    /// The request waited so long for others: webhooks, or its turn.
    pub fn waits(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.waited.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// How long it waited in all.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Ordering::Relaxed))
    }

    /// The audit annotations.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.said.lock().annotations.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_cut_once_they_are_too_much_and_come_to_an_end() {
        let notes = Notes::default();
        let long = "ä".repeat(4000);
        notes.warn(long.clone());
        notes.warn(long.clone());
        notes.warn("");
        assert_eq!(notes.warnings(), [long]);
        notes.warn("b".repeat(300));
        assert_eq!(notes.warnings(), ["ä".repeat(256), "b".repeat(256)]);
        for at in 0..100_000 {
            notes.warn(format!("{at:0300}"));
        }
        let warnings = notes.warnings();
        assert!(warnings.iter().all(|warning| warning.chars().count() <= 256));
        assert!(warnings.iter().map(|warning| warning.chars().count()).sum::<usize>() < 4096 + 256);
    }
}
