//! Descriptors that are kept back: whoever took all others, a daemon that comes can still be let in.

use std::fs::File;

/// Kept back: a daemon's connection, and one that comes while an old one is not gone yet.
const KEPT: usize = 2;

/// Open descriptors that stand for nothing.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    kept: Vec<File>,
}

impl Spare {
    /// Gives one free; answers whether there was one.
    pub(crate) fn release(&mut self) -> bool {
        self.kept.pop().is_some()
    }

    /// Keeps as many as there should be, where there are any to be had. Answers whether there is one at least.
    pub(crate) fn refill(&mut self) -> bool {
        while self.kept.len() < KEPT
            && let Ok(file) = File::open("/dev/null")
        {
            self.kept.push(file);
        }
        !self.kept.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_released_is_kept_again() {
        let mut spare = Spare::default();
        assert!(!spare.release());
        assert!(spare.refill());
        for _ in 0..KEPT {
            assert!(spare.release());
        }
        assert!(!spare.release());
        assert!(spare.refill());
    }
}
