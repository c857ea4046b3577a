//! Figures, the table of them, and what samples say.

use std::fmt::Write;

use anyhow::Result;

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Seconds.
    Seconds,
    /// Milliseconds; kept in seconds.
    Milliseconds,
    /// 2^20 bytes.
    Megabytes,
    /// Hundredths.
    Percent,
    /// Events in a second.
    PerSecond,
    /// 2^20 bytes in a second.
    MegabytesPerSecond,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Seconds => format!("{value:.2} s"),
            Self::Milliseconds => format!("{value:.0} ms"),
            Self::Megabytes => format!("{value:.1} MB"),
            Self::Percent => format!("{value:.2} %"),
            Self::PerSecond => format!("{value:.1} /s"),
            Self::MegabytesPerSecond => format!("{value:.0} MB/s"),
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    name: String,
    unit: Unit,
    value: f64,
    target: Option<Target>,
}

/// What a figure should be, in its unit.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Figure {
    /// `value` and `at_most` in the unit; times in seconds are turned into milliseconds where those are shown.
    pub(crate) fn new(name: &str, unit: Unit, value: f64, at_most: Option<f64>) -> Self {
        let value = if unit == Unit::Milliseconds { value * 1000.0 } else { value };
        Self { name: name.to_owned(), unit, value, target: at_most.map(Target::AtMost) }
    }

    /// Of what more is better: `value` and `least` in the unit.
    pub(crate) fn at_least(name: &str, unit: Unit, value: f64, least: f64) -> Self {
        Self { name: name.to_owned(), unit, value, target: Some(Target::AtLeast(least)) }
    }

    fn row(&self) -> [String; 4] {
        let (target, met) = match self.target {
            None => (String::new(), None),
            Some(Target::AtMost(most)) => {
                (format!("at most {}", self.unit.show(most)), Some(self.value <= most))
            }
            Some(Target::AtLeast(least)) => {
                (format!("at least {}", self.unit.show(least)), Some(self.value >= least))
            }
        };
        let verdict = match met {
            None => "",
            Some(true) => "ok",
            Some(false) => "**missed**",
        };
        [self.name.clone(), self.unit.show(self.value), target, verdict.to_owned()]
    }
}

/// The figures as a Markdown table, aligned for the terminal.
pub(crate) fn table(figures: &[Figure]) -> String {
    let mut rows = vec![["figure", "measured", "target", ""].map(str::to_owned)];
    rows.extend(figures.iter().map(Figure::row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 4] = std::array::from_fn(width);
    let rule = widths.map(|width| "-".repeat(width));
    rows.insert(1, rule);
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

/// Times in seconds, sorted.
#[derive(Debug, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// At least one sample.
    pub(crate) fn new(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        Self(seconds)
    }

    /// The samples of `count` repetitions, after one that warms up and is not counted.
    pub(crate) fn collect(count: usize, mut sample: impl FnMut() -> Result<f64>) -> Result<Self> {
        sample()?;
        Ok(Self::new((0..count).map(|_| sample()).collect::<Result<_>>()?))
    }

    /// By nearest rank: the 99th of 50 samples is the largest.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or(f64::NAN)
    }

    /// The 50th percentile.
    pub(crate) fn median(&self) -> f64 {
        self.percentile(50)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let samples = Samples::new((1..=50).rev().map(f64::from).collect());
        assert_eq!((samples.median(), samples.percentile(98), samples.percentile(99)), (25.0, 49.0, 50.0));
        assert_eq!(Samples::new(vec![7.0]).median(), 7.0);
    }

    #[test]
    fn the_table_says_what_was_missed() {
        let figures = [
            Figure::new("start", Unit::Seconds, 0.5, Some(1.0)),
            Figure::new("pod", Unit::Milliseconds, 0.3, Some(250.0)),
            Figure::new("peer", Unit::Megabytes, 3.0, None),
            Figure::at_least("log", Unit::MegabytesPerSecond, 400.0, 500.0),
        ];
        let table = table(&figures);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 6);
        assert!(lines[5].contains("at least 500 MB/s") && lines[5].contains("**missed**"), "{table}");
        assert!(lines[2].contains("0.50 s") && lines[2].ends_with("| ok         |"), "{table}");
        assert!(lines[3].contains("300 ms") && lines[3].contains("**missed**"), "{table}");
        assert!(!lines[4].contains("ok") && lines.iter().all(|line| line.len() == lines[0].len()), "{table}");
    }
}
