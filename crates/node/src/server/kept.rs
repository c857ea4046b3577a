//! Answers that are used again for a while: a bounded number, each with its own end.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;

/// Answers by a hash of what was asked.
pub(super) struct Kept<A> {
    max: usize,
    answers: Mutex<HashMap<[u8; 32], Answer<A>>>,
}

struct Answer<A> {
    given: Timestamp,
    until: Timestamp,
    answer: A,
}

impl<A> Answer<A> {
    /// A clock that was set back makes no answer older than it is: what was given later than now counts no more.
    fn holds(&self, now: Timestamp) -> bool {
        self.given <= now && now < self.until
    }
}

impl<A: Clone> Kept<A> {
    /// At most `max` answers.
    pub(super) fn new(max: usize) -> Self {
        Self { max, answers: Mutex::default() }
    }

    /// The answer that still holds.
    pub(super) fn get(&self, key: &[u8; 32], now: Timestamp) -> Option<A> {
        let answers = self.answers.lock();
        answers.get(key).filter(|kept| kept.holds(now)).map(|kept| kept.answer.clone())
    }

    /// Keeps an answer. Where there is no room the oldest goes.
    pub(super) fn put(&self, key: [u8; 32], answer: A, now: Timestamp, ttl: Duration) {
        let mut answers = self.answers.lock();
        if answers.len() >= self.max && !answers.contains_key(&key) {
            answers.retain(|_, kept| kept.holds(now));
        }
        if answers.len() >= self.max && !answers.contains_key(&key) {
            let oldest = answers.iter().min_by_key(|(_, kept)| kept.given).map(|(key, _)| *key);
            oldest.and_then(|key| answers.remove(&key));
        }
        let until = now.saturating_add(ttl).unwrap_or(Timestamp::MAX);
        answers.insert(key, Answer { given: now, until, answer });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_end_and_are_never_more_than_they_may_be() {
        let kept = Kept::new(2);
        let at = |second| Timestamp::from_second(second).unwrap();
        let ttl = Duration::from_secs(10);
        kept.put([1; 32], "a", at(0), ttl);
        assert_eq!((kept.get(&[1; 32], at(9)), kept.get(&[1; 32], at(10))), (Some("a"), None));
        assert_eq!(kept.get(&[1; 32], at(-1)), None, "the clock was set back");
        kept.put([2; 32], "b", at(1), ttl);
        kept.put([3; 32], "c", at(2), ttl);
        assert_eq!((kept.get(&[1; 32], at(3)), kept.get(&[2; 32], at(3))), (None, Some("b")));
        kept.put([2; 32], "d", at(3), ttl);
        assert_eq!((kept.get(&[2; 32], at(4)), kept.get(&[3; 32], at(4))), (Some("d"), Some("c")));
    }
}
