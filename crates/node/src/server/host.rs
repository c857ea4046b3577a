//! File systems and network interfaces as the Summary API shows them. Pure, but for reading the kernel's figures.
//! Sources: `proc(5)`, `statvfs(3)`, upstream's `stats/v1alpha1` (FsStats, NetworkStats).

use std::path::Path;

use serde_json::{Value, json};

use crate::meminfo::MemInfo;

/// Interfaces that are no way out of the host: upstream leaves out the same, by how their names begin.
const INNER: [&str; 3] = ["lo", "veth", "docker"];
/// Interfaces of one network that are told of.
const INTERFACES_MAX: usize = 64;
/// The interface of a pod.
pub(super) const POD_INTERFACE: &str = "eth0";

/// The file system that a directory lies on, in bytes and inodes.
pub(super) fn file_system(directory: &Path, now: &str) -> Option<Value> {
    let read = rustix::fs::statvfs(directory).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(read.f_frsize);
    Some(json!({
        "time": now, "availableBytes": bytes(read.f_bavail), "capacityBytes": bytes(read.f_blocks),
        "usedBytes": bytes(read.f_blocks.saturating_sub(read.f_bfree)), "inodesFree": read.f_ffree,
        "inodes": read.f_files, "inodesUsed": read.f_files.saturating_sub(read.f_ffree),
    }))
}

/// The most process ids that the host gives, and how many it has given.
pub(super) fn processes(now: &str) -> Option<Value> {
    let max: u64 = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok()?.trim().parse().ok()?;
    let loadavg = std::fs::read_to_string("/proc/loadavg").ok()?;
    Some(json!({ "time": now, "maxpid": max, "curproc": tasks(&loadavg)? }))
}

/// The fourth field of `loadavg` tells after its slash how many tasks there are.
fn tasks(loadavg: &str) -> Option<u64> {
    loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

/// The host's swap.
pub(super) fn swap(now: &str) -> Option<Value> {
    let (left, used) = swap_of(&MemInfo::read())?;
    Some(json!({ "time": now, "swapAvailableBytes": left, "swapUsageBytes": used }))
}

fn swap_of(meminfo: &MemInfo) -> Option<(u64, u64)> {
    let (all, left) = (meminfo.bytes("SwapTotal")?, meminfo.bytes("SwapFree")?);
    Some((left, all.saturating_sub(left)))
}

/// The network of a process (`self`: of the host); `default` is the interface that stands for the others.
pub(super) fn network_of(process: &str, default: &str, now: &str) -> Option<Value> {
    let dev = std::fs::read_to_string(format!("/proc/{process}/net/dev")).ok()?;
    network(&dev, default, now)
}

/// The host's network, for which the interface of the default route stands.
pub(super) fn network_of_host(now: &str) -> Option<Value> {
    let routes = std::fs::read_to_string("/proc/self/net/route").unwrap_or_default();
    network_of("self", default_interface(&routes).unwrap_or_default(), now)
}

/// The interface of the first default route of `/proc/net/route`.
fn default_interface(routes: &str) -> Option<&str> {
    routes.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace();
        let interface = words.next()?;
        (words.next()? == "00000000").then_some(interface)
    })
}

/// What `/proc/PID/net/dev` says; nothing where there is no interface but inner ones.
fn network(dev: &str, default: &str, now: &str) -> Option<Value> {
    let interfaces: Vec<Value> = dev.lines().filter_map(interface).take(INTERFACES_MAX).collect();
    let first = interfaces.iter().find(|one| one["name"] == default).or(interfaces.first())?;
    let mut shown = first.clone();
    shown["time"] = now.into();
    shown["interfaces"] = interfaces.into();
    Some(shown)
}

fn interface(line: &str) -> Option<Value> {
    let Interface { name, received, sent } = Interface::parse(line)?;
    Some(json!({
        "name": name, "rxBytes": received.bytes, "rxErrors": received.errors, "txBytes": sent.bytes,
        "txErrors": sent.errors,
    }))
}

/// An interface's counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) received: Traffic,
    pub(super) sent: Traffic,
}

/// What went in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) bytes: u64,
    pub(super) packets: u64,
    pub(super) errors: u64,
    pub(super) dropped: u64,
}

impl Interface {
    /// A line of `/proc/PID/net/dev`; nothing for titles and inner interfaces.
    fn parse(line: &str) -> Option<Self> {
        let (name, figures) = line.split_once(':')?;
        let name = name.trim();
        if INNER.iter().any(|inner| name.starts_with(inner)) {
            return None;
        }
        let figures: Vec<u64> = figures.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let traffic = |first: usize| {
            let of = |column: usize| figures.get(first + column).copied();
            Some(Traffic { bytes: of(0)?, packets: of(1)?, errors: of(2)?, dropped: of(3)? })
        };
        Some(Self { name: name.to_owned(), received: traffic(0)?, sent: traffic(8)? })
    }
}

/// The interfaces of a process's network (`self`: of the host), at most so many: whoever may make some in his pod may
/// make thousands.
pub(super) fn interfaces_of(process: &str) -> Vec<Interface> {
    let dev = std::fs::read_to_string(format!("/proc/{process}/net/dev")).unwrap_or_default();
    dev.lines().filter_map(Interface::parse).take(INTERFACES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "Inter-|   Receive                                                |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
        lo:    9 9 9 0 0 0 0 0 9 9 9 0 0 0 0 0\n  eth1: 1 2 3 0 0 0 0 0 4 5 6 0 0 0 0 0\n  \
        eth0: 10 2 30 0 0 0 0 0 40 5 60 0 0 0 0 0\nveth12: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1\n";

    #[test]
    fn one_interface_stands_for_the_network() {
        let eth0 = json!({ "name": "eth0", "rxBytes": 10, "rxErrors": 30, "txBytes": 40, "txErrors": 60 });
        let shown = network(DEV, "eth0", "now").unwrap();
        assert_eq!(
            (&shown["rxBytes"], &shown["txErrors"], &shown["time"]),
            (&json!(10), &json!(60), &json!("now"))
        );
        assert_eq!(shown["interfaces"].as_array().unwrap().len(), 2);
        assert_eq!(shown["interfaces"][1], eth0);
        let sent = Traffic { bytes: 40, packets: 5, errors: 60, dropped: 0 };
        let interfaces: Vec<Interface> = DEV.lines().filter_map(Interface::parse).collect();
        assert_eq!((interfaces.len(), interfaces[1].name.as_str(), interfaces[1].sent), (2, "eth0", sent));
        assert_eq!(network(DEV, "gone", "now").unwrap()["name"], "eth1");
        assert_eq!(network("    lo: 1 2 3 4 5 6 7 8 9 10 11\n", "lo", "now"), None);
        assert_eq!(network("", "", ""), None);
        let routes = "Iface\tDestination\tGateway\neth1\t0001A8C0\t0\neth0\t00000000\t0101A8C0\n";
        assert_eq!(default_interface(routes), Some("eth0"));
        assert_eq!(default_interface(""), None);
    }

    #[test]
    fn processes_and_swap_of_the_host_are_read() {
        assert_eq!(tasks("0.1 0.2 0.3 2/345 678\n"), Some(345));
        assert_eq!(swap_of(&MemInfo::of("SwapTotal: 10 kB\nSwapFree:  4 kB\n")), Some((4096, 6144)));
        assert_eq!((tasks(""), swap_of(&MemInfo::of(""))), (None, None));
    }

    #[test]
    fn a_file_system_is_as_large_as_its_parts() {
        let shown = file_system(Path::new("/"), "now").unwrap();
        let of = |name: &str| shown[name].as_u64().unwrap();
        assert!(of("usedBytes") + of("availableBytes") <= of("capacityBytes"));
        assert_eq!(of("inodesUsed") + of("inodesFree"), of("inodes"));
    }
}
