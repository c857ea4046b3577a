//! How answers look: tables for people, JSON and YAML for programs, progress and colour on terminals only.

use std::io::{IsTerminal, Write};

use anyhow::Result;
use clap::ValueEnum;
use jiff::Timestamp;
use serde::Serialize;

/// The form of a listing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns.
    #[default]
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Prints rows in the form asked for: `value` is what programs get, `header` and `rows` what people get.
pub fn print<T: Serialize>(format: Format, value: &T, header: &[&str], rows: &[Vec<String>]) -> Result<()> {
    let text = match format {
        Format::Table => table(header, rows),
        Format::Json => serde_json::to_string_pretty(value)? + "\n",
        Format::Yaml => serde_yaml_ng::to_string(value)?,
    };
    write_out(&text)
}

/// Writes to standard output; a closed pipe (`| head`) is no error.
pub fn write_out(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Columns padded to their widest cell and three spaces apart, as docker and kubectl print them.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let header: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}   "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Columns inside a frame of `|` and `-`, as `minikube service list` prints them.
pub fn framed(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let rule: String =
        widths.iter().map(|width| format!("|{}", "-".repeat(width + 2))).collect::<String>() + "|\n";
    let mut text = rule.clone();
    text.push_str(
        &(header.iter().zip(&widths).map(|(cell, width)| format!("| {cell:^width$} ")).collect::<String>()
            + "|\n"),
    );
    text.push_str(&rule);
    for row in rows {
        text.push_str(
            &(row.iter().zip(&widths).map(|(cell, width)| format!("| {cell:width$} ")).collect::<String>()
                + "|\n"),
        );
    }
    text + &rule
}

/// How long ago, in upstream's short form: `45s`, `7m`, `2m30s`, `3h`, `2d`.
pub fn age(since: Option<Timestamp>, now: Timestamp) -> String {
    let Some(since) = since else { return "<unknown>".into() };
    let seconds = now.duration_since(since).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 if seconds % 60 != 0 => format!("{}m{}s", seconds / 60, seconds % 60),
        120..10_800 => format!("{}m", seconds / 60),
        10_800..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Bytes as docker prints them: powers of 1000, three significant digits.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    #[allow(clippy::cast_precision_loss, reason = "a rounded figure for people")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0}{}", UNITS[unit])
    } else if value >= 10.0 {
        format!("{value:.1}{}", UNITS[unit])
    } else {
        format!("{value:.2}{}", UNITS[unit])
    }
}

/// Whether standard error is a terminal that takes colours (`NO_COLOR` is honoured).
pub fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// One line of progress on standard error.
pub fn progress(line: &str) {
    if colours() {
        eprintln!("\x1b[2m{line}\x1b[0m");
    } else {
        eprintln!("{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["longer".into(), "2".into()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME     N\na        1\nlonger   2\n");
    }

    #[test]
    fn frames_are_minikubes() {
        let rows = vec![vec!["default".into(), "kubernetes".into()]];
        let text = framed(&["NAMESPACE", "NAME"], &rows);
        assert_eq!(text.lines().next(), Some("|-----------|------------|"));
        assert_eq!(text.lines().nth(3), Some("| default   | kubernetes |"));
    }

    #[test]
    fn sizes_and_ages_are_short() {
        assert_eq!(size(999), "999B");
        assert_eq!(size(74_800_000), "74.8MB");
        let now = Timestamp::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let ago = |seconds| age(Some(now - std::time::Duration::from_secs(seconds)), now);
        assert_eq!(
            [ago(7), ago(150), ago(420), ago(7200), ago(200_000)],
            ["7s", "2m30s", "7m", "120m", "2d"]
        );
    }
}
