//! The table of operations: how many, what each costs its server, and how long clients wait.

use std::fmt::Write;

/// One scenario.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) per_second: f64,
    /// Processor time of the server for each operation.
    pub(crate) cpu_ms: f64,
    pub(crate) median_ms: f64,
    pub(crate) p99_ms: f64,
    /// What the processor time should be at most.
    pub(crate) cpu_at_most_ms: Option<f64>,
}

impl Row {
    fn cells(&self) -> [String; 7] {
        let target = self.cpu_at_most_ms.map_or_else(String::new, |most| format!("at most {most}"));
        let verdict = match self.cpu_at_most_ms {
            None => "",
            Some(most) if self.cpu_ms <= most => "ok",
            Some(_) => "**missed**",
        };
        [
            self.name.clone(),
            format!("{:.0}", self.per_second),
            format!("{:.4}", self.cpu_ms),
            target,
            verdict.to_owned(),
            format!("{:.2}", self.median_ms),
            format!("{:.2}", self.p99_ms),
        ]
    }
}

/// The rows as a Markdown table.
pub(crate) fn table(rows: &[Row]) -> String {
    let head =
        ["operation", "a second", "CPU ms each", "target", "", "median ms", "p99 ms"].map(str::to_owned);
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
