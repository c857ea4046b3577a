//! The figures of work queues in Prometheus' text, under upstream's names. Source:
//! `component-base/metrics/prometheus/workqueue`, `client-go/util/workqueue`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base::queues::{BOUNDS, Durations, Figures};

/// [`BOUNDS`] as Go writes them.
const LABELS: [&str; BOUNDS.len()] = [
    "1e-06",
    "9.999999999999999e-06",
    "9.999999999999999e-05",
    "0.001",
    "0.01",
    "0.1",
    "1",
    "10",
    "100",
    "1000",
];

type All = BTreeMap<&'static str, Figures>;

/// What is one number: its name, kind and meaning, and the number.
type Plain = (&'static str, &'static str, &'static str, fn(&Figures) -> f64);

#[allow(clippy::cast_precision_loss, reason = "no queue has counted to 2^53")]
const PLAIN: [Plain; 5] = [
    ("adds_total", "counter", "Keys that were added.", |figures| figures.adds as f64),
    ("depth", "gauge", "Keys that wait.", |figures| figures.depth as f64),
    ("longest_running_processor_seconds", "gauge", "How long the longest work goes on now.", |figures| {
        figures.longest.as_secs_f64()
    }),
    ("retries_total", "counter", "Keys that were set for later.", |figures| figures.retries as f64),
    ("unfinished_work_seconds", "gauge", "How long work goes on now, all together.", |figures| {
        figures.unfinished.as_secs_f64()
    }),
];

/// What is a histogram: its name and meaning, and what it counts.
type Histogram = (&'static str, &'static str, fn(&Figures) -> &Durations);

const HISTOGRAMS: [Histogram; 2] = [
    ("queue_duration_seconds", "How long keys waited.", |figures| &figures.waited),
    ("work_duration_seconds", "How long keys were worked on.", |figures| &figures.worked),
];

/// All series of all queues; nothing where there is none.
pub(super) fn text(all: &All) -> String {
    let mut out = String::new();
    if all.is_empty() {
        return out;
    }
    for (name, kind, help, value) in PLAIN {
        head(&mut out, name, kind, help);
        for (queue, figures) in all {
            line(&mut out, format_args!("{name}{{name=\"{queue}\"}} {}", value(figures)));
        }
    }
    for (name, help, value) in HISTOGRAMS {
        head(&mut out, name, "histogram", help);
        for (queue, figures) in all {
            histogram(&mut out, name, queue, value(figures));
        }
    }
    out
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a text does not fail.
    let _ = writeln!(out, "# HELP workqueue_{name} {help}\n# TYPE workqueue_{name} {kind}");
}

fn line(out: &mut String, series: std::fmt::Arguments<'_>) {
    let _ = writeln!(out, "workqueue_{series}");
}

/// A bucket counts all that lie below its bound.
fn histogram(out: &mut String, name: &str, queue: &str, durations: &Durations) {
    let mut below = 0;
    for (bound, count) in LABELS.iter().zip(durations.within) {
        below += count;
        line(out, format_args!("{name}_bucket{{name=\"{queue}\",le=\"{bound}\"}} {below}"));
    }
    let count = durations.count;
    line(out, format_args!("{name}_bucket{{name=\"{queue}\",le=\"+Inf\"}} {count}"));
    line(out, format_args!("{name}_sum{{name=\"{queue}\"}} {}", durations.sum.as_secs_f64()));
    line(out, format_args!("{name}_count{{name=\"{queue}\"}} {count}"));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn labels_are_the_bounds() {
        assert_eq!(LABELS.map(|label| label.parse::<f64>().unwrap()), BOUNDS);
    }

    #[test]
    fn queues_are_shown_under_upstreams_names() {
        assert_eq!(text(&All::new()), "");
        let mut figures = Figures { depth: 2, adds: 5, retries: 1, ..Figures::default() };
        figures.unfinished = Duration::from_millis(1500);
        figures.worked.add(Duration::from_millis(5));
        figures.worked.add(Duration::from_secs(2000));
        let text = text(&All::from([("deployment", figures)]));
        for line in [
            "# TYPE workqueue_depth gauge",
            r#"workqueue_depth{name="deployment"} 2"#,
            r#"workqueue_adds_total{name="deployment"} 5"#,
            r#"workqueue_retries_total{name="deployment"} 1"#,
            r#"workqueue_unfinished_work_seconds{name="deployment"} 1.5"#,
            r#"workqueue_longest_running_processor_seconds{name="deployment"} 0"#,
            "# TYPE workqueue_work_duration_seconds histogram",
            r#"workqueue_work_duration_seconds_bucket{name="deployment",le="0.001"} 0"#,
            r#"workqueue_work_duration_seconds_bucket{name="deployment",le="0.01"} 1"#,
            r#"workqueue_work_duration_seconds_bucket{name="deployment",le="1000"} 1"#,
            r#"workqueue_work_duration_seconds_bucket{name="deployment",le="+Inf"} 2"#,
            r#"workqueue_work_duration_seconds_sum{name="deployment"} 2000.005"#,
            r#"workqueue_work_duration_seconds_count{name="deployment"} 2"#,
            r#"workqueue_queue_duration_seconds_count{name="deployment"} 0"#,
        ] {
            assert!(text.lines().any(|one| one == line), "{line} in\n{text}");
        }
    }
}
