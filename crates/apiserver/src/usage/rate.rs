//! From two samples to what was used between them. Pure. Source: metrics-server's `pkg/storage`.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::parse::{Point, Sample};

/// What something used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Used {
    /// Billionths of a core.
    pub(crate) cpu_nanocores: u64,
    /// The working set.
    pub(crate) memory_bytes: u64,
}

/// What a node and its containers used in a time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Window {
    /// Its end, by the node's clock.
    pub(crate) end: Timestamp,
    pub(crate) length: SignedDuration,
    pub(crate) node: Used,
    /// By namespace and pod, then by container.
    pub(crate) pods: BTreeMap<(String, String), BTreeMap<String, Used>>,
}

/// What was used between two samples.
pub(super) fn between(before: &Sample, latest: &Sample) -> Window {
    let length = latest.at.duration_since(before.at);
    let seconds = length.as_secs_f64();
    let mut pods: BTreeMap<_, BTreeMap<String, Used>> = BTreeMap::new();
    for (key, point) in &latest.containers {
        // A container that began since then has used all of its time since it began.
        let began = before.containers.get(key).filter(|old| {
            old.cpu_seconds <= point.cpu_seconds && old.started.total_cmp(&point.started).is_eq()
        });
        let used = match began {
            Some(old) => used(old.cpu_seconds, point, seconds),
            None => used(0.0, point, age(point, latest.at).unwrap_or(seconds)),
        };
        let (namespace, pod, container) = key.clone();
        pods.entry((namespace, pod)).or_default().insert(container, used);
    }
    Window { end: latest.at, length, node: used(before.node.cpu_seconds, &latest.node, seconds), pods }
}

/// For how many seconds a container has run.
fn age(point: &Point, now: Timestamp) -> Option<f64> {
    let age = now.duration_since(Timestamp::UNIX_EPOCH).as_secs_f64() - point.started;
    (point.started > 0.0 && age > 0.0).then_some(age)
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast from a float saturates, and less than nothing is nothing"
)]
fn used(before: f64, point: &Point, seconds: f64) -> Used {
    let rate = if seconds > 0.0 { (point.cpu_seconds - before).max(0.0) / seconds } else { 0.0 };
    Used { cpu_nanocores: (rate * 1e9).round() as u64, memory_bytes: point.memory_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(second: i64, node: f64, containers: &[(&str, f64, f64)]) -> Sample {
        let point = |cpu_seconds, started| Point { cpu_seconds, memory_bytes: 1, started };
        let containers = containers.iter().map(|(name, cpu, started)| {
            (("n".to_owned(), "p".to_owned(), (*name).to_owned()), point(*cpu, *started))
        });
        Sample {
            at: Timestamp::from_second(second).unwrap(),
            node: point(node, 0.0),
            containers: containers.collect(),
        }
    }

    #[test]
    fn a_rate_is_what_was_used_in_between() {
        let before = sample(1000, 50.0, &[("old", 4.0, 100.0), ("again", 9.0, 100.0), ("gone", 1.0, 100.0)]);
        let latest = sample(1010, 55.0, &[("old", 5.0, 100.0), ("again", 1.0, 1006.0), ("new", 2.0, 1005.0)]);
        let window = between(&before, &latest);
        assert_eq!((window.length.as_secs(), window.node.cpu_nanocores), (10, 500_000_000));
        let pod = &window.pods[&("n".to_owned(), "p".to_owned())];
        let cores: Vec<_> = pod.iter().map(|(name, used)| (name.as_str(), used.cpu_nanocores)).collect();
        assert_eq!(cores, [("again", 250_000_000), ("new", 400_000_000), ("old", 100_000_000)]);
    }

    #[test]
    fn no_time_and_a_counter_that_went_back_use_nothing() {
        let window = between(&sample(1000, 50.0, &[]), &sample(1000, 60.0, &[]));
        assert_eq!(window.node.cpu_nanocores, 0);
        let window = between(&sample(1000, 50.0, &[]), &sample(1010, 40.0, &[]));
        assert_eq!(window.node.cpu_nanocores, 0);
    }
}
