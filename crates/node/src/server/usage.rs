//! What the node and its pods use: counters and gauges as they are at this moment. Rates are for whoever asks twice.
//! Sources: kernel's `Documentation/admin-guide/cgroup-v2.rst`, `proc(5)`.

use std::collections::HashMap;
use std::path::PathBuf;

use api::Object;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use super::cgroups::{GroupFigures, Roots};
use crate::deps::{Deps, blocking};
use crate::meminfo::MemInfo;
use crate::pod::PodView;
use crate::static_pods::mirrored;

/// CPU time in nanoseconds, and memory that cannot be reclaimed at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) cpu_ns: u64,
    pub(super) memory_bytes: u64,
    pub(super) working_set_bytes: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.cpu_ns += other.cpu_ns;
        self.memory_bytes += other.memory_bytes;
        self.working_set_bytes += other.working_set_bytes;
    }
}

/// Samples that are nearer to each other say little of a rate.
const APART: SignedDuration = SignedDuration::from_secs(1);

/// How fast counters of CPU time grow: from the time before that somebody asked to now.
#[derive(Default)]
pub(super) struct Rates(Mutex<HashMap<String, Counted>>);

struct Counted {
    at: Timestamp,
    cpu_ns: u64,
    nanocores: Option<u64>,
    asked: Timestamp,
}

impl Rates {
    /// Nanoseconds of CPU time in a second; nothing the first time. `who` is whose counter it is.
    pub(super) fn nanocores(&self, who: &str, now: Timestamp, cpu_ns: u64) -> Option<u64> {
        let mut all = self.0.lock();
        let Some(known) = all.get_mut(who) else {
            all.insert(who.to_owned(), Counted { at: now, cpu_ns, nanocores: None, asked: now });
            return None;
        };
        known.asked = now;
        let passed = now.duration_since(known.at);
        if passed >= APART {
            let grown = cpu_ns.checked_sub(known.cpu_ns).map(u128::from);
            let rate = grown.map(|grown| grown * 1_000_000_000 / passed.as_nanos().unsigned_abs());
            known.nanocores = rate.and_then(|rate| u64::try_from(rate).ok());
            (known.at, known.cpu_ns) = (now, cpu_ns);
        }
        known.nanocores
    }

    /// Forgets those that nobody asked for at this moment: they are gone.
    pub(super) fn keep(&self, now: Timestamp) {
        self.0.lock().retain(|_, known| known.asked == now);
    }
}

/// A running container.
pub(super) struct ContainerUsage {
    pub(super) id: String,
    pub(super) pid: u32,
    pub(super) log_path: PathBuf,
    pub(super) name: String,
    /// The image as the pod names it.
    pub(super) image: String,
    pub(super) started: Option<Timestamp>,
    pub(super) usage: Usage,
    /// What the kernel tells beyond; only where it was asked for.
    pub(super) group: Option<GroupFigures>,
}

/// A pod with running containers.
pub(super) struct PodUsage {
    pub(super) pod: PodView,
    pub(super) containers: Vec<ContainerUsage>,
}

impl PodUsage {
    /// All containers together.
    pub(super) fn sum(&self) -> Usage {
        let mut sum = Usage::default();
        self.containers.iter().for_each(|container| sum += container.usage);
        sum
    }
}

/// What all pods use, as far as it could be measured.
#[derive(Default)]
pub(super) struct Measured {
    pub(super) pods: Vec<PodUsage>,
    /// Something could not be measured.
    pub(super) failed: bool,
}

/// Every pod of the node, by namespace and name, under the uid that it runs as here: that of a pod of a file is not the
/// one of its copy, and the API may have no copy.
pub(super) async fn pods(deps: &Deps) -> Measured {
    let mut measured = Measured::default();
    let mut objects = deps.caches.pods.list();
    let shown = |own: &Object| {
        let copy = deps.caches.pods.get(&own.key());
        copy.is_some_and(|copy| mirrored(&copy).as_ref() == Some(&own.meta().uid))
    };
    objects.extend(deps.static_pods.list().into_iter().filter(|own| !shown(own)));
    for object in objects {
        let Ok(mut pod) = PodView::decode(&object) else {
            measured.failed = true;
            continue;
        };
        pod.metadata.uid = deps.runs_as(&pod);
        let mut containers = Vec::new();
        for record in deps.state.pod(pod.uid()).containers.iter().filter(|record| record.is_running()) {
            let stats = match deps.runtime.stats(&record.id).await {
                Ok(stats) => stats,
                Err(error) => {
                    // Whoever has ended meanwhile uses nothing.
                    measured.failed |= deps.state.container(&record.id).is_some_and(|now| now.is_running());
                    tracing::debug!(container = record.id, %error, "use of resources not measured");
                    continue;
                }
            };
            let usage = Usage {
                cpu_ns: stats.cpu_usage_ns,
                memory_bytes: stats.memory_usage_bytes,
                working_set_bytes: stats.memory_working_set_bytes,
            };
            let engine_api::ContainerState::Running { pid, .. } = &record.state else { continue };
            containers.push(ContainerUsage {
                id: record.id.clone(),
                pid: *pid,
                log_path: record.log_path.clone(),
                name: record.name.clone(),
                image: record.image.clone(),
                started: record.started_at(),
                usage,
                group: None,
            });
        }
        measured.pods.push(PodUsage { pod, containers });
    }
    measured
}

/// Adds what the kernel tells of the containers' groups. Blocks.
pub(super) fn add_groups(pods: &mut [PodUsage]) {
    let roots = Roots::own();
    for container in pods.iter_mut().flat_map(|pod| &mut pod.containers) {
        container.group = roots.of_container(container.pid, &container.id).map(|group| group.read());
    }
}

/// The whole host.
pub(super) async fn node() -> Usage {
    blocking(|| {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu_ns = group_cpu(&read("/sys/fs/cgroup/cpu.stat")).or_else(|| host_cpu(&read("/proc/stat")));
        let meminfo = MemInfo::read();
        Usage {
            cpu_ns: cpu_ns.unwrap_or_default(),
            memory_bytes: meminfo.used().unwrap_or_default(),
            working_set_bytes: meminfo.working_set().unwrap_or_default(),
        }
    })
    .await
    .unwrap_or_default()
}

/// `usage_usec` of the root group's `cpu.stat` (cgroup version 2), in nanoseconds.
fn group_cpu(stat: &str) -> Option<u64> {
    let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    usage.trim().parse::<u64>().ok()?.checked_mul(1000)
}

/// Time that the processors were busy, of `/proc/stat`, in nanoseconds.
fn host_cpu(stat: &str) -> Option<u64> {
    /// Nanoseconds in a tick: `USER_HZ` is 100 wherever Linux runs.
    const TICK: u64 = 10_000_000;
    let ticks: Vec<u64> = stat
        .lines()
        .find_map(|line| line.strip_prefix("cpu "))?
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; guests' time is part of user and nice.
    let busy = ticks.iter().take(8).enumerate().filter(|(index, _)| !matches!(index, 3 | 4));
    busy.map(|(_, ticks)| *ticks).sum::<u64>().checked_mul(TICK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_time_between_two_questions() {
        let (rates, begun) = (Rates::default(), Timestamp::UNIX_EPOCH);
        let at = |millis| begun.saturating_add(SignedDuration::from_millis(millis)).unwrap();
        assert_eq!(rates.nanocores("a", at(0), 1_000_000_000), None);
        assert_eq!(rates.nanocores("a", at(500), 1_100_000_000), None, "too soon");
        assert_eq!(rates.nanocores("a", at(2000), 2_000_000_000), Some(500_000_000));
        assert_eq!(rates.nanocores("a", at(2100), 9_000_000_000), Some(500_000_000), "that of before");
        assert_eq!(rates.nanocores("a", at(4000), 0), None, "a counter that began anew");
        rates.nanocores("b", at(5000), 1);
        rates.keep(at(5000));
        assert_eq!(rates.0.lock().len(), 1);
    }

    #[test]
    fn the_kernels_figures_are_read() {
        assert_eq!(group_cpu("usage_usec 1500\nuser_usec 1000\n"), Some(1_500_000));
        assert_eq!(group_cpu(""), None);
        let stat = "cpu  1 2 3 400 500 6 7 8 90 90\ncpu0 1 2\n";
        assert_eq!(host_cpu(stat), Some(27 * 10_000_000));
        assert_eq!(host_cpu("intr 1"), None);
    }
}
