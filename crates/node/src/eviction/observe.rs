//! What the host has left.

use std::collections::BTreeMap;
use std::path::Path;

use super::Signal;
use crate::meminfo::MemInfo;

/// What there is of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) available: u64,
    pub(crate) capacity: u64,
}

/// What was seen; absent is what the host does not tell.
pub(crate) type Observations = BTreeMap<Signal, Observed>;

/// Looks at the host. Blocks. `data_dir` is where pods write and images lie.
pub(crate) fn observe(data_dir: &Path) -> Observations {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut seen = Observations::new();
    let meminfo = MemInfo::read();
    if let (Some(capacity), Some(used)) = (meminfo.bytes("MemTotal"), meminfo.working_set()) {
        seen.insert(Signal::Memory, Observed { available: capacity.saturating_sub(used), capacity });
    }
    if let Ok(fs) = rustix::fs::statvfs(data_dir) {
        let bytes = |blocks: u64| blocks.saturating_mul(fs.f_frsize);
        let disk = Observed { available: bytes(fs.f_bavail), capacity: bytes(fs.f_blocks) };
        let inodes = Observed { available: fs.f_favail, capacity: fs.f_files };
        seen.extend([(Signal::NodeDisk, disk), (Signal::ImageDisk, disk)]);
        seen.extend([(Signal::NodeInodes, inodes), (Signal::ImageInodes, inodes)]);
    }
    let pids = free_pids(&text("/proc/sys/kernel/pid_max"), &text("/proc/loadavg"));
    seen.extend(pids.map(|pids| (Signal::Pids, pids)));
    seen
}

/// Process ids: the fourth field of `loadavg` tells after its slash how many tasks there are.
fn free_pids(pid_max: &str, loadavg: &str) -> Option<Observed> {
    let capacity: u64 = pid_max.trim().parse().ok()?;
    let tasks: u64 = loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some(Observed { available: capacity.saturating_sub(tasks), capacity })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_files_are_read() {
        let pids = Observed { available: 32_468, capacity: 32_768 };
        assert_eq!(free_pids("32768\n", "0.1 0.2 0.3 2/300 4711\n"), Some(pids));
        assert_eq!(free_pids("", "0.1 0.2 0.3 2/300 4711\n"), None);
        let seen = observe(Path::new("/"));
        assert_eq!(seen.len(), Signal::ALL.len(), "{seen:?}");
        assert!(seen[&Signal::Memory].available < seen[&Signal::Memory].capacity);
    }
}
