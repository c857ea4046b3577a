//! What is printed: figures beside their targets and upstream's.

use super::controllers::Life;
use super::field::Spent;
use crate::figures::Samples;

/// What a row should be, and what upstream was measured at on such a machine; empty where nobody did.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Targets {
    pub(crate) per_second: Option<f64>,
    pub(crate) cpu_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) upstream: &'static str,
}

/// One scenario of pods.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    name: String,
    pods: usize,
    per_second: f64,
    cpu_ms: f64,
    own_cpu_ms: f64,
    /// Median and 99th percentile, where somebody waits.
    waiting_ms: Option<(f64, f64)>,
    targets: Targets,
}

impl Line {
    /// So many pods took so much.
    pub(crate) fn new(name: &str, pods: usize, spent: Spent, targets: Targets) -> Self {
        Self {
            name: name.to_owned(),
            pods,
            per_second: pods as f64 / spent.seconds,
            cpu_ms: spent.daemon * 1000.0 / pods as f64,
            own_cpu_ms: spent.own * 1000.0 / pods as f64,
            waiting_ms: None,
            targets,
        }
    }

    /// The same, and how long each took.
    pub(crate) fn waiting(self, times: &Samples) -> Self {
        Self { waiting_ms: Some((times.median() * 1000.0, times.percentile(99) * 1000.0)), ..self }
    }

    fn cells(&self) -> Vec<String> {
        let Targets { per_second, cpu_ms, p99_ms, upstream } = self.targets;
        let shown = |value: Option<f64>, digits: usize| {
            value.map_or_else(String::new, |value| format!("{value:.digits$}"))
        };
        let (median, p99) = self.waiting_ms.unzip();
        let bold = |text: String, missed: bool| if missed { format!("**{text}**") } else { text };
        let late = p99.zip(p99_ms).is_some_and(|(p99, most)| p99 > most);
        vec![
            self.name.clone(),
            self.pods.to_string(),
            bold(format!("{:.0}", self.per_second), per_second.is_some_and(|least| self.per_second < least)),
            shown(per_second, 0),
            bold(format!("{:.3}", self.cpu_ms), cpu_ms.is_some_and(|most| self.cpu_ms > most)),
            shown(cpu_ms, 2),
            shown(median, 1),
            bold(shown(p99, 1), late),
            shown(p99_ms, 0),
            upstream.to_owned(),
            format!("{:.3}", self.own_cpu_ms),
        ]
    }
}

/// The lines as a Markdown table; what misses its target is bold.
pub(crate) fn lines(lines: &[Line]) -> String {
    let head = [
        "pods",
        "number",
        "a second",
        "at least",
        "CPU ms each",
        "at most",
        "median ms",
        "p99 ms",
        "at most",
        "upstream",
        "the bench's CPU ms",
    ];
    markdown(&head, lines.iter().map(Line::cells).collect())
}

/// Times and CPU of each size, and how they compare, for each pod, with those of the smallest: 1 is linear.
pub(crate) fn lives(lives: &[Life]) -> String {
    let head = [
        "replicas",
        "created, s",
        "CPU ms each",
        "to smallest",
        "rolled, s",
        "CPU ms each",
        "to smallest",
        "deleted, s",
        "CPU ms each",
        "to smallest",
    ];
    let of = |life: &Life| [life.created, life.rolled, life.deleted];
    let rows = lives.iter().map(|life| {
        let mut row = vec![life.replicas.to_string()];
        for (step, spent) in of(life).into_iter().enumerate() {
            let each = |life: &Life| of(life)[step].daemon * 1000.0 / life.replicas as f64;
            let factor = lives.first().map_or(1.0, |first| each(life) / each(first));
            row.extend([
                format!("{:.2}", spent.seconds),
                format!("{:.3}", each(life)),
                format!("{factor:.2}"),
            ]);
        }
        row
    });
    markdown(&head, rows.collect())
}

/// One figure with what it should be at most.
#[derive(Debug, Clone)]
pub(crate) struct Single {
    name: String,
    unit: &'static str,
    value: f64,
    at_most: f64,
}

impl Single {
    /// `value` and `at_most` in the unit.
    pub(crate) fn at_most(name: &str, unit: &'static str, value: f64, at_most: f64) -> Self {
        Self { name: name.to_owned(), unit, value, at_most }
    }
}

/// The figures as a Markdown table; what misses its target is bold.
pub(crate) fn singles(singles: &[Single]) -> String {
    let rows = singles.iter().map(|single| {
        let value = format!("{:.1} {}", single.value, single.unit);
        let value = if single.value > single.at_most { format!("**{value}**") } else { value };
        vec![single.name.clone(), value, format!("{:.0} {}", single.at_most, single.unit)]
    });
    markdown(&["figure", "measured", "at most"], rows.collect())
}

/// Nothing where there are no rows.
fn markdown(head: &[&str], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut all = vec![head.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()];
    all.extend(rows);
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    all.insert(1, widths.iter().map(|width| "-".repeat(*width)).collect());
    let mut text = String::new();
    for row in &all {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += &format!("| {} |\n", cells.join(" | "));
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(seconds: f64, daemon: f64) -> Spent {
        Spent { seconds, daemon, own: 0.5 }
    }

    #[test]
    fn what_misses_its_target_is_bold() {
        let targets =
            Targets { per_second: Some(300.0), cpu_ms: Some(0.5), p99_ms: Some(100.0), upstream: "7" };
        let line = Line::new("bound", 1000, spent(5.0, 0.4), targets);
        let text = lines(&[line.waiting(&Samples::new(vec![0.05, 0.2]))]);
        assert!(text.contains("| **200** "), "{text}");
        assert!(
            text.contains("| 0.400 ") && text.contains("| 50.0 ") && text.contains("**200.0**"),
            "{text}"
        );
        assert!(singles(&[Single::at_most("memory", "KB", 13.0, 12.0)]).contains("**13.0 KB**"));
        assert_eq!(singles(&[]), "");
    }

    #[test]
    fn a_size_is_compared_with_the_smallest() {
        let life = |replicas, cpu| Life {
            replicas,
            created: spent(1.0, cpu),
            rolled: spent(1.0, 2.0 * cpu),
            deleted: spent(1.0, cpu),
        };
        let text = lives(&[life(100, 0.1), life(200, 0.4)]);
        let last = text.lines().nth(3).unwrap();
        assert_eq!(last.matches("| 2.00 ").count(), 3, "{text}");
    }
}
