//! Reads a node's `/metrics/resource`: Prometheus' text format, of which only these metrics count. Pure.
//! Source: `pkg/kubelet/metrics/collectors/resource_metrics.go`.

use std::collections::BTreeMap;

use jiff::Timestamp;

/// Counters and gauges at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Point {
    /// CPU time so far, in core-seconds.
    pub(super) cpu_seconds: f64,
    pub(super) memory_bytes: u64,
    /// When it began, in seconds since 1970; 0 where it is not told.
    pub(super) started: f64,
}

/// Namespace, pod and container.
pub(crate) type ContainerKey = (String, String, String);

/// What a node told at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    /// By the node's clock.
    pub(super) at: Timestamp,
    pub(super) node: Point,
    pub(super) containers: BTreeMap<ContainerKey, Point>,
}

/// Reads the text; `None` if it says nothing of the node itself.
pub(super) fn sample(text: &str) -> Option<Sample> {
    let mut at = None;
    let mut node = Point::default();
    let mut containers: BTreeMap<ContainerKey, Point> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some(read) = Line::read(line) else { continue };
        match read.name {
            "node_cpu_usage_seconds_total" => {
                node.cpu_seconds = read.value;
                at = Timestamp::from_millisecond(read.at?).ok();
            }
            "node_memory_working_set_bytes" => node.memory_bytes = bytes(read.value),
            name => {
                let Some(field) = name.strip_prefix("container_") else { continue };
                let Some(key) = read.container() else { continue };
                let point = containers.entry(key).or_default();
                match field {
                    "cpu_usage_seconds_total" => point.cpu_seconds = read.value,
                    "memory_working_set_bytes" => point.memory_bytes = bytes(read.value),
                    "start_time_seconds" => point.started = read.value,
                    _ => {}
                }
            }
        }
    }
    Some(Sample { at: at?, node, containers })
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast from a float saturates, and memory is no fraction"
)]
fn bytes(value: f64) -> u64 {
    value as u64
}

/// A line of the text.
struct Line<'a> {
    name: &'a str,
    labels: &'a str,
    value: f64,
    /// Milliseconds since 1970.
    at: Option<i64>,
}

impl<'a> Line<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let end = line.find(['{', ' '])?;
        let (name, rest) = line.split_at(end);
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => rest.split_once('}')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let value: f64 =
            words.next()?.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0)?;
        Some(Self { name, labels, value, at: words.next().and_then(|word| word.parse().ok()) })
    }

    fn label(&self, name: &str) -> Option<&'a str> {
        let mut pairs = self.labels.split(',').filter_map(|pair| pair.split_once('='));
        pairs.find(|(label, _)| label.trim() == name).map(|(_, value)| value.trim_matches('"'))
    }

    fn container(&self) -> Option<ContainerKey> {
        let text = |name| self.label(name).map(str::to_owned);
        Some((text("namespace")?, text("pod")?, text("container")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelets_text_is_read() {
        let text = "# HELP x y\n# TYPE x counter\n\
            node_cpu_usage_seconds_total 12.5 1700000000000\n\
            node_memory_working_set_bytes 1.024e+06 1700000000000\n\
            container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 0.25 1700000000000\n\
            container_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 4096 1700000000000\n\
            container_start_time_seconds{container=\"c\",namespace=\"n\",pod=\"p\"} 1.7e9 1700000000000\n\
            container_cpu_usage_seconds_total{container=\"broken} 1\nscrape_error 0\n";
        let read = sample(text).unwrap();
        assert_eq!(read.at.as_second(), 1_700_000_000);
        assert_eq!(read.node, Point { cpu_seconds: 12.5, memory_bytes: 1_024_000, started: 0.0 });
        let key = ("n".to_owned(), "p".to_owned(), "c".to_owned());
        let point = Point { cpu_seconds: 0.25, memory_bytes: 4096, started: 1.7e9 };
        assert_eq!(read.containers.into_iter().collect::<Vec<_>>(), [(key, point)]);
    }

    #[test]
    fn what_is_no_such_text_says_nothing() {
        for text in
            ["", "\u{0}\n{}{", "node_cpu_usage_seconds_total NaN 1", "node_cpu_usage_seconds_total 1 x"]
        {
            assert_eq!(sample(text), None, "{text:?}");
        }
    }
}
