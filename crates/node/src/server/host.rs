//! File systems and network interfaces as the Summary API shows them. Pure, but for reading the kernel's figures.
//! Sources: `proc(5)`, `statvfs(3)`, upstream's `stats/v1alpha1` (FsStats, NetworkStats).

use std::path::Path;

use serde_json::{Value, json};

/// Interfaces that are no way out of the host: upstream leaves out the same, by how their names begin.
const INNER: [&str; 3] = ["lo", "veth", "docker"];
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
    let interfaces: Vec<Value> = dev.lines().filter_map(interface).collect();
    let first = interfaces.iter().find(|one| one["name"] == default).or(interfaces.first())?;
    let mut shown = first.clone();
    shown["time"] = now.into();
    shown["interfaces"] = interfaces.into();
    Some(shown)
}

fn interface(line: &str) -> Option<Value> {
    let (name, figures) = line.split_once(':')?;
    let name = name.trim();
    let figures: Vec<u64> = figures.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let of = |column: usize| figures.get(column).copied();
    if INNER.iter().any(|inner| name.starts_with(inner)) {
        return None;
    }
    Some(json!({
        "name": name, "rxBytes": of(0)?, "rxErrors": of(2)?, "txBytes": of(8)?, "txErrors": of(10)?,
    }))
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
        assert_eq!(network(DEV, "gone", "now").unwrap()["name"], "eth1");
        assert_eq!(network("    lo: 1 2 3 4 5 6 7 8 9 10 11\n", "lo", "now"), None);
        assert_eq!(network("", "", ""), None);
        let routes = "Iface\tDestination\tGateway\neth1\t0001A8C0\t0\neth0\t00000000\t0101A8C0\n";
        assert_eq!(default_interface(routes), Some("eth0"));
        assert_eq!(default_interface(""), None);
    }

    #[test]
    fn a_file_system_is_as_large_as_its_parts() {
        let shown = file_system(Path::new("/"), "now").unwrap();
        let of = |name: &str| shown[name].as_u64().unwrap();
        assert!(of("usedBytes") + of("availableBytes") <= of("capacityBytes"));
        assert_eq!(of("inodesUsed") + of("inodesFree"), of("inodes"));
    }
}
