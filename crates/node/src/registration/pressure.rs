//! What the host is short of: measured with each heartbeat, shown as conditions of the Node, from which others keep pods
//! away. Source: upstream's default eviction thresholds (`memory.available<100Mi`, `nodefs.available<10%`,
//! `nodefs.inodesFree<5%`) and its `evictionPressureTransitionPeriod`. The share of the disk has a bound of its own: Skiff
//! runs on disks that people fill with other things, where a tenth may be more than all pods will ever write.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use crate::deps::blocking;

const MEMORY_LEAST: u64 = 100 << 20;
const DISK_LEAST_PERCENT: u64 = 10;
/// So much is enough, however large the disk.
const DISK_ENOUGH_BYTES: u64 = 1 << 30;
const INODES_LEAST_PERCENT: u64 = 5;
/// Upstream has no threshold of its own for process ids; a host with fewer left cannot start what a pod needs.
const PIDS_LEAST: u64 = 100;
/// A condition stays so long after it was last seen, so that pods are not called back at once.
const TRANSITION: Duration = Duration::from_secs(300);

/// What the host is short of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    pub(crate) memory: bool,
    pub(crate) disk: bool,
    pub(crate) pids: bool,
}

/// What the host has left; `None` where it does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Left {
    memory_bytes: Option<u64>,
    /// Bytes available and all, of the file system where pods write.
    disk: Option<(u64, u64)>,
    inodes: Option<(u64, u64)>,
    pids: Option<u64>,
}

impl Left {
    fn pressure(&self) -> Pressure {
        let short = |of: Option<(u64, u64)>, percent: u64| {
            of.is_some_and(|(left, all)| {
                all > 0 && u128::from(left) * 100 < u128::from(all) * u128::from(percent)
            })
        };
        Pressure {
            memory: self.memory_bytes.is_some_and(|bytes| bytes < MEMORY_LEAST),
            disk: short(self.disk.filter(|(left, _)| *left < DISK_ENOUGH_BYTES), DISK_LEAST_PERCENT)
                || short(self.inodes, INODES_LEAST_PERCENT),
            pids: self.pids.is_some_and(|left| left < PIDS_LEAST),
        }
    }
}

/// Reads what is left. Blocks.
fn read(data_dir: &Path) -> Left {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let disk = rustix::fs::statvfs(data_dir).ok();
    Left {
        memory_bytes: available_memory(&text("/proc/meminfo")),
        disk: disk
            .as_ref()
            .map(|fs| (fs.f_bavail.saturating_mul(fs.f_frsize), fs.f_blocks.saturating_mul(fs.f_frsize))),
        inodes: disk.as_ref().map(|fs| (fs.f_favail, fs.f_files)),
        pids: free_pids(&text("/proc/sys/kernel/pid_max"), &text("/proc/loadavg")),
    }
}

/// `MemAvailable` of proc(5)'s `meminfo`, in bytes.
fn available_memory(text: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Process ids that are free: the fourth field of `loadavg` tells after its slash how many tasks there are.
fn free_pids(pid_max: &str, loadavg: &str) -> Option<u64> {
    let max: u64 = pid_max.trim().parse().ok()?;
    let tasks: u64 = loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some(max.saturating_sub(tasks))
}

/// When each shortage was last seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    memory: Option<Timestamp>,
    disk: Option<Timestamp>,
    pids: Option<Timestamp>,
}

impl Seen {
    /// Notes what is seen now; answers what counts.
    fn note(&mut self, now: Timestamp, seen: Pressure) -> Pressure {
        let count = |last: &mut Option<Timestamp>, is: bool| {
            if is {
                *last = Some(now);
            }
            last.is_some_and(|at| is || now.duration_since(at).unsigned_abs() < TRANSITION)
        };
        Pressure {
            memory: count(&mut self.memory, seen.memory),
            disk: count(&mut self.disk, seen.disk),
            pids: count(&mut self.pids, seen.pids),
        }
    }
}

/// The pressure as it was last measured, for those who tell of it.
#[derive(Default)]
pub(crate) struct WatchedPressure {
    seen: parking_lot::Mutex<Seen>,
    current: watch::Sender<Pressure>,
}

impl WatchedPressure {
    /// Measures anew. `data_dir` is where pods write.
    pub(crate) async fn measure(&self, now: Timestamp, data_dir: &Path) {
        let dir = data_dir.to_owned();
        let Ok(left) = blocking(move || read(&dir)).await else { return };
        let pressure = self.seen.lock().note(now, left.pressure());
        let changed = self.current.send_if_modified(|known| std::mem::replace(known, pressure) != pressure);
        if changed {
            tracing::warn!(?pressure, "what the host is short of has changed");
        }
    }

    pub(crate) fn current(&self) -> Pressure {
        *self.current.borrow()
    }

    /// Tells of changes from now on.
    pub(crate) fn subscribe(&self) -> Changes {
        Changes(self.current.subscribe())
    }
}

/// Changes of the pressure.
pub(crate) struct Changes(watch::Receiver<Pressure>);

impl Changes {
    /// Returns when it has changed. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_upstreams() {
        let none = Pressure::default();
        assert_eq!(Left::default().pressure(), none, "what is not told is no shortage");
        let left = |memory: u64, disk: u64, inodes: u64, pids: u64| Left {
            memory_bytes: Some(memory << 20),
            disk: Some((disk, 100)),
            inodes: Some((inodes, 100)),
            pids: Some(pids),
        };
        assert_eq!(left(100, 10, 5, 100).pressure(), none);
        assert_eq!(left(99, 10, 5, 100).pressure(), Pressure { memory: true, ..none });
        assert_eq!(left(100, 9, 5, 100).pressure(), Pressure { disk: true, ..none });
        assert_eq!(left(100, 10, 4, 100).pressure(), Pressure { disk: true, ..none });
        assert_eq!(left(100, 10, 5, 99).pressure(), Pressure { pids: true, ..none });
        let large = |left: u64| Left { disk: Some((left, 1 << 40)), ..Left::default() }.pressure().disk;
        assert!(!large(1 << 30) && large((1 << 30) - 1), "on a large disk a gigabyte is enough");
        // File systems without a count of inodes say 0 of 0.
        assert_eq!(Left { inodes: Some((0, 0)), ..Left::default() }.pressure(), none);
    }

    #[test]
    fn the_hosts_files_are_read() {
        assert_eq!(available_memory("MemTotal: 9 kB\nMemAvailable:   16 kB\n"), Some(16 * 1024));
        assert_eq!(available_memory("MemTotal: 9 kB\n"), None);
        assert_eq!(free_pids("32768\n", "0.1 0.2 0.3 2/300 4711\n"), Some(32_468));
        assert_eq!(free_pids("", "0.1 0.2 0.3 2/300 4711\n"), None);
        let left = read(Path::new("/"));
        assert!(left.memory_bytes.is_some() && left.disk.is_some() && left.pids.is_some(), "{left:?}");
    }

    #[test]
    fn a_shortage_counts_for_a_while_after_it_has_passed() {
        let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).unwrap();
        let short = Pressure { disk: true, ..Pressure::default() };
        let mut seen = Seen::default();
        assert_eq!(seen.note(at(0), Pressure::default()), Pressure::default());
        assert_eq!(seen.note(at(10), short), short);
        assert_eq!(seen.note(at(309), Pressure::default()), short);
        assert_eq!(seen.note(at(310), Pressure::default()), Pressure::default());
    }
}
