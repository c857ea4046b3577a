//! The table of operations: how many, what each costs its server, and how long clients wait.

use std::fmt::Write as _;
use std::io::Write as _;

/// One scenario.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) per_second: f64,
    /// Processor time of the server for each operation.
    pub(crate) cpu_ms: f64,
    /// How long clients wait; not a number where nobody does.
    pub(crate) median_ms: f64,
    pub(crate) p99_ms: f64,
    /// What the processor time should be at most.
    pub(crate) cpu_at_most_ms: Option<f64>,
    /// How long 99 of 100 clients should wait at most.
    pub(crate) p99_at_most_ms: Option<f64>,
}

impl Row {
    /// The same, and how long 99 of 100 clients should wait at most.
    pub(crate) fn waiting(self, p99_at_most_ms: f64) -> Self {
        Self { p99_at_most_ms: Some(p99_at_most_ms), ..self }
    }

    /// Says it on the way, in case that what follows fails.
    pub(crate) fn told(self) -> Self {
        let cells = self.cells();
        // Nobody needs it.
        let _ = writeln!(std::io::stderr(), "bench: {}", cells.join(" | "));
        self
    }

    fn cells(&self) -> [String; 7] {
        let measured = |value: String, number: f64, at_most: Option<f64>| match at_most {
            Some(most) if number > most => format!("**{value}**"),
            _ => value,
        };
        let target = |at_most: Option<f64>, digits: usize| {
            at_most.map_or_else(String::new, |most| format!("{most:.digits$}"))
        };
        let waiting = |value: f64| if value.is_nan() { String::new() } else { format!("{value:.2}") };
        [
            self.name.clone(),
            format!("{:.0}", self.per_second),
            measured(format!("{:.4}", self.cpu_ms), self.cpu_ms, self.cpu_at_most_ms),
            target(self.cpu_at_most_ms, 3),
            waiting(self.median_ms),
            measured(waiting(self.p99_ms), self.p99_ms, self.p99_at_most_ms),
            target(self.p99_at_most_ms, 0),
        ]
    }
}

/// The rows as a Markdown table; what misses its target is bold.
pub(crate) fn table(rows: &[Row]) -> String {
    let head = ["operation", "a second", "CPU ms each", "at most", "median ms", "p99 ms", "at most"]
        .map(str::to_owned);
    let cells: Vec<[String; 7]> = std::iter::once(head).chain(rows.iter().map(Row::cells)).collect();
    let widths: [usize; 7] =
        std::array::from_fn(|column| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for (number, row) in cells.iter().enumerate() {
        let padded: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {} |", padded.join(" | "));
        if number == 0 {
            let _ = writeln!(text, "| {} |", widths.map(|width| "-".repeat(width)).join(" | "));
        }
    }
    text
}
