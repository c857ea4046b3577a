//! What admission has to say about a request that it lets pass: warnings for the client and annotations for the audit log.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// The notes of one request, or of one round of a write that may be repeated.
#[derive(Debug, Default)]
pub struct Notes(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    warnings: Vec<String>,
    annotations: BTreeMap<String, String>,
}

impl Notes {
    /// A `Warning` header of the answer; said twice it is told once.
    pub fn warn(&self, text: impl Into<String>) {
        let (text, mut said) = (text.into(), self.0.lock());
        if !said.warnings.contains(&text) {
            said.warnings.push(text);
        }
    }

    /// An annotation of the request's audit event; the first of a key stays, as upstream.
    pub fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        self.0.lock().annotations.entry(key.into()).or_insert_with(|| value.into());
    }

    /// Adds the notes of a round that counts.
    pub fn absorb(&self, round: Self) {
        let said = round.0.into_inner();
        said.warnings.into_iter().for_each(|warning| self.warn(warning));
        said.annotations.into_iter().for_each(|(key, value)| self.annotate(key, value));
    }

    /// The warnings, in the order in which they were first said.
    pub fn warnings(&self) -> Vec<String> {
        self.0.lock().warnings.clone()
    }

    /// The audit annotations.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.0.lock().annotations.clone()
    }
}
