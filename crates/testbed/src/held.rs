//! What an instance holds of its host, counted: the same before and after a load of which nothing is left.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::host::Host;

/// The number of the daemon's process, in a shell on the host.
const DAEMON: &str = r#"$(sed -n 's/^ *"pid": \([0-9]*\),$/\1/p' /run/$SKIFF_NAME/instance.json)"#;

/// What may leak on a host.
#[derive(Debug)]
pub struct Held {
    /// Network devices.
    pub interfaces: usize,
    /// Mounts.
    pub mounts: usize,
    /// Processes.
    pub processes: usize,
    /// Namespaces that a process is in or that are held by a mount.
    pub namespaces: usize,
    /// Control groups.
    pub cgroups: BTreeSet<PathBuf>,
    /// Addresses of sandboxes, and their published ports.
    pub network_files: usize,
    /// Files of the running system.
    pub run_files: usize,
    /// Files of containers and pods in the data directory: records, logs, volumes, snapshots.
    pub data_files: usize,
    /// Elements of the service proxy's maps.
    pub frontends: usize,
    /// The daemon's own.
    pub daemon: Daemon,
}

/// What a daemon holds.
#[derive(Debug)]
pub struct Daemon {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Proportional memory.
    pub memory_kb: usize,
}

fn number(host: &Host, line: &str) -> usize {
    host.must_sh(line).trim().parse().unwrap_or_else(|error| panic!("{line}: {error}"))
}

impl Held {
    /// Counts. Panics where that fails.
    #[track_caller]
    pub fn on(host: &Host) -> Self {
        let kept = "engine node images/snapshots";
        Self {
            interfaces: number(host, "ip -br link | wc -l"),
            mounts: number(host, "wc -l </proc/1/mountinfo"),
            processes: host.processes().unwrap_or_else(|error| panic!("{error:#}")).len(),
            namespaces: number(
                host,
                "{ readlink /proc/[0-9]*/ns/*; grep -o ' nsfs .*' /proc/1/mountinfo; } 2>/dev/null | sort -u | wc -l",
            ),
            cgroups: host.cgroups().into_iter().collect(),
            network_files: number(host, "find /var/lib/$SKIFF_NAME/network -type f | wc -l"),
            run_files: number(host, "find /run/$SKIFF_NAME -xdev -type f | wc -l"),
            data_files: number(
                host,
                &format!("cd /var/lib/$SKIFF_NAME; find {kept} -xdev -type f 2>/dev/null | wc -l"),
            ),
            frontends: number(host, "nft list map ip skiff-$SKIFF_NAME addresses | grep -c goto || true"),
            daemon: Daemon {
                descriptors: number(host, &format!("ls /proc/{DAEMON}/fd | wc -l")),
                threads: number(host, &format!("ls /proc/{DAEMON}/task | wc -l")),
                memory_kb: number(host, &format!("awk '/^Pss:/ {{print $2}}' /proc/{DAEMON}/smaps_rollup")),
            },
        }
    }

    /// Panics unless `after`, with the same pods, is the same. Pods came and went, so that names differ; how many there are
    /// does not.
    #[track_caller]
    pub fn assert_same(&self, after: &Self) {
        let fresh: Vec<_> = after.cgroups.difference(&self.cgroups).collect();
        assert_eq!(self.cgroups.len(), after.cgroups.len(), "cgroups leaked, among these: {fresh:#?}");
        for (what, before, now) in self.counts().iter().zip(after.counts()).map(|(a, b)| (a.0, a.1, b.1)) {
            assert_eq!(before, now, "{what} leaked; before: {self:?}\nafter: {after:?}");
        }
    }

    fn counts(&self) -> [(&'static str, usize); 6] {
        [
            ("interfaces", self.interfaces),
            ("mounts", self.mounts),
            ("processes", self.processes),
            ("network files", self.network_files),
            ("files of the running system", self.run_files),
            ("frontends", self.frontends),
        ]
    }

    /// As [`Held::assert_same`], where there are no pods before and after: also nothing of them is kept.
    #[track_caller]
    pub fn assert_nothing_left(&self, after: &Self) {
        self.assert_same(after);
        let both = format!("before: {self:?}\nafter: {after:?}");
        assert_eq!(self.namespaces, after.namespaces, "namespaces leaked; {both}");
        assert_eq!(self.data_files, after.data_files, "files of containers and pods leaked; {both}");
    }

    /// Panics where the daemon holds more than it did, but for what it remembers of objects (events, old replica sets).
    #[track_caller]
    pub fn assert_daemon_did_not_grow(&self, after: &Self) {
        let (old, new) = (&self.daemon, &after.daemon);
        let both = format!("before: {old:?}, after: {new:?}");
        assert!(new.descriptors <= old.descriptors + 32, "descriptors leaked; {both}");
        assert!(new.threads <= old.threads + 32, "threads leaked; {both}");
        assert!(new.memory_kb <= old.memory_kb * 2 + (32 << 10), "memory leaked; {both}");
    }
}
