//! A set of CPUs, written as the kernel and upstream write it: `0-3,8`. Source: cpuset(7), "List format".

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Larger numbers no kernel has: `CONFIG_NR_CPUS` ends there.
const NUMBER_MAX: u32 = 8191;

/// Numbers of CPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuSet(BTreeSet<u32>);

impl CpuSet {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    pub(crate) fn contains(&self, cpu: u32) -> bool {
        self.0.contains(&cpu)
    }

    pub(crate) fn with(&self, other: &Self) -> Self {
        Self(&self.0 | &other.0)
    }

    pub(crate) fn without(&self, other: &Self) -> Self {
        Self(&self.0 - &other.0)
    }

    pub(crate) fn meets(&self, other: &Self) -> bool {
        !self.0.is_disjoint(&other.0)
    }

    pub(crate) fn is_within(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<T: IntoIterator<Item = u32>>(cpus: T) -> Self {
        Self(cpus.into_iter().collect())
    }
}

impl FromStr for CpuSet {
    type Err = String;

    /// Empty text is the empty set.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |word: &str| {
            let number = word.parse::<u32>().ok().filter(|number| *number <= NUMBER_MAX);
            number.ok_or_else(|| format!("{word:?} is no number of a CPU"))
        };
        let mut cpus = BTreeSet::new();
        for part in text.trim().split(',').filter(|_| !text.trim().is_empty()) {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if first > last {
                return Err(format!("invalid range {part:?} ({first} > {last})"));
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for cpu in self.iter() {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == cpu => *last = cpu,
                _ => ranges.push((cpu, cpu)),
            }
        }
        for (at, (first, last)) in ranges.into_iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_and_written_as_the_kernel_does() {
        for (text, cpus, written) in [
            ("", vec![], ""),
            ("0", vec![0], "0"),
            ("0-3,8\n", vec![0, 1, 2, 3, 8], "0-3,8"),
            ("8,1,0,2-3,3", vec![0, 1, 2, 3, 8], "0-3,8"),
            ("5,3", vec![3, 5], "3,5"),
        ] {
            let set: CpuSet = text.parse().unwrap();
            assert_eq!((set.iter().collect::<Vec<_>>(), set.to_string()), (cpus, written.to_owned()));
        }
        for bad in ["x", "1-", "-1", "3-1", "1,,2", "0-4000000000", "8192", "0 1"] {
            assert!(bad.parse::<CpuSet>().is_err(), "{bad}");
        }
    }
}
