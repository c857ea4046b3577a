//! Sets of indexes as a Job's status spells them: `1,3-5,7`. Source: `orderedIntervals` in `indexed_job_utils.go`.

use std::collections::BTreeSet;
use std::fmt;

/// A set of indexes: first and last of each run, in order, with gaps between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Indexes(Vec<(i64, i64)>);

impl Indexes {
    /// Reads what is below `bound`; parts that make no sense are left out.
    pub(super) fn parse(text: &str, bound: i64) -> Self {
        let number = |text: &str| text.parse::<i64>().ok();
        let mut runs = Vec::new();
        for part in text.split(',') {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first), number(last)),
                None => (number(part), number(part)),
            };
            if let (Some(first), Some(last)) = (first, last)
                && first < bound
            {
                runs.push((first, last.min(bound - 1)));
            }
        }
        Self::of_runs(runs)
    }

    fn of_runs(mut runs: Vec<(i64, i64)>) -> Self {
        runs.sort_unstable();
        let mut joined: Vec<(i64, i64)> = Vec::with_capacity(runs.len());
        for (first, last) in runs.into_iter().filter(|(first, last)| first <= last) {
            match joined.last_mut() {
                Some(open) if first <= open.1.saturating_add(1) => open.1 = open.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        Self(joined)
    }

    /// These and those.
    pub(super) fn with(&self, more: impl IntoIterator<Item = i64>) -> Self {
        let mut runs = self.0.clone();
        runs.extend(more.into_iter().map(|index| (index, index)));
        Self::of_runs(runs)
    }

    /// Both.
    pub(super) fn union(&self, other: &Self) -> Self {
        Self::of_runs(self.0.iter().chain(&other.0).copied().collect())
    }

    /// How many.
    pub(super) fn len(&self) -> i64 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an index is among them.
    pub(super) fn has(&self, index: i64) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(at).is_some_and(|(first, _)| *first <= index)
    }

    /// How many of these are among those.
    pub(super) fn overlap(&self, other: &Self) -> i64 {
        let (mut one, mut two) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut count = 0;
        while let (Some((first, last)), Some((other_first, other_last))) = (one.peek(), two.peek()) {
            count += (last.min(other_last) - first.max(other_first) + 1).max(0);
            if last < other_last {
                one.next()
            } else {
                two.next()
            };
        }
        count
    }

    /// The first `count` indexes below `bound` that are not among them. Takes as long as there are runs and results,
    /// not indexes.
    pub(super) fn missing(&self, count: usize, bound: i64) -> Vec<i64> {
        let mut missing = Vec::new();
        let mut next = 0;
        for (first, last) in self.0.iter().copied().chain([(bound, bound)]) {
            let free = (next..first.min(bound)).take(count.saturating_sub(missing.len()));
            missing.extend(free);
            next = next.max(last.saturating_add(1));
        }
        missing
    }
}

impl FromIterator<i64> for Indexes {
    fn from_iter<I: IntoIterator<Item = i64>>(indexes: I) -> Self {
        let sorted: BTreeSet<i64> = indexes.into_iter().collect();
        Self::default().with(sorted)
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (first, last)) in self.0.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            match last - first {
                0 => write!(formatter, "{comma}{first}")?,
                // Two are no run.
                1 => write!(formatter, "{comma}{first},{last}")?,
                _ => write!(formatter, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn are_read_and_written_in_runs() {
        for (text, bound, expected) in [
            ("", 10, ""),
            ("3", 10, "3"),
            ("1,2", 10, "1,2"),
            ("1-2,3", 10, "1-3"),
            ("0-3,5,7-9", 8, "0-3,5,7"),
            ("0-3,5,7-9", 2, "0,1"),
            ("x,2,3-y,4", 10, "2,4"),
            ("8-12", 8, ""),
        ] {
            assert_eq!(Indexes::parse(text, bound).to_string(), expected, "{text}");
        }
    }

    #[test]
    fn are_sets() {
        let some = Indexes::parse("1,3-5,9", 20);
        assert_eq!((some.len(), some.with([2, 10, 4]).to_string()), (5, "1-5,9,10".to_owned()));
        let has: Vec<i64> = (0..12).filter(|index| some.has(*index)).collect();
        assert_eq!(has, [1, 3, 4, 5, 9]);
        assert_eq!(some.union(&Indexes::parse("0,6-8", 20)).to_string(), "0,1,3-9");
        for (one, other, both) in [("0-9", "3,5-20", 6), ("1,3", "2,4", 0), ("", "1", 0), ("0-4", "0-4", 5)] {
            let (one, other) = (Indexes::parse(one, 99), Indexes::parse(other, 99));
            assert_eq!((one.overlap(&other), other.overlap(&one)), (both, both), "{one} {other}");
        }
    }

    #[test]
    fn tell_which_are_missing() {
        let some = Indexes::parse("1,3-5,9", 20);
        assert_eq!(some.missing(4, 20), [0, 2, 6, 7]);
        assert_eq!(some.missing(9, 8), [0, 2, 6, 7]);
        assert_eq!(some.missing(9, 12), [0, 2, 6, 7, 8, 10, 11]);
        assert_eq!(some.missing(0, 12), [0_i64; 0]);
        assert_eq!(Indexes::default().missing(2, 1), [0]);
        assert_eq!(Indexes::parse("0-99", 100).missing(5, 50), [0_i64; 0]);
    }
}
