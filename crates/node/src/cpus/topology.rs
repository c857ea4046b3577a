//! Where the host's CPUs are: which of them share a core, a socket and a node of memory, as sysfs tells.
//! Source: the kernel's `ABI/stable/sysfs-devices-system-cpu`, `ABI/stable/sysfs-devices-node`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use super::set::CpuSet;

/// Where sysfs shows CPUs and nodes of memory.
pub(crate) const SYSTEM: &str = "/sys/devices/system";

/// Where one CPU is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The lowest CPU of its core: the kernel's own numbers of cores are unique in a socket only.
    pub(crate) core: u32,
    pub(crate) socket: u32,
    pub(crate) numa: u32,
}

/// A part of the machine that CPUs are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Numa,
    Socket,
    Core,
}

impl Place {
    pub(super) fn at(&self, level: Level) -> u32 {
        match level {
            Level::Numa => self.numa,
            Level::Socket => self.socket,
            Level::Core => self.core,
        }
    }
}

/// The CPUs that are on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Topology(pub(super) BTreeMap<u32, Place>);

impl Topology {
    /// Reads it. `system` is [`SYSTEM`].
    pub(crate) fn read(system: &Path) -> io::Result<Self> {
        let numas = numas(&system.join("node"));
        let online = list(&system.join("cpu/online"))?;
        let places = online.iter().map(|cpu| {
            let own = system.join(format!("cpu/cpu{cpu}/topology"));
            // A machine that does not tell has one thread in each core, and one socket.
            let siblings = list(&own.join("thread_siblings_list")).unwrap_or_default();
            let socket = std::fs::read_to_string(own.join("physical_package_id")).ok();
            let place = Place {
                core: siblings.iter().next().unwrap_or(cpu),
                // -1 where it is not known.
                socket: socket.and_then(|text| text.trim().parse().ok()).unwrap_or(0),
                numa: numas.get(&cpu).copied().unwrap_or(0),
            };
            (cpu, place)
        });
        Ok(Self(places.collect()))
    }

    pub(crate) fn cpus(&self) -> CpuSet {
        self.0.keys().copied().collect()
    }

    /// The parts of one kind.
    pub(super) fn parts(&self, level: Level) -> BTreeSet<u32> {
        self.0.values().map(|place| place.at(level)).collect()
    }

    /// The CPUs of one part.
    pub(super) fn within(&self, level: Level, part: u32) -> CpuSet {
        self.0.iter().filter(|(_, place)| place.at(level) == part).map(|(cpu, _)| *cpu).collect()
    }

    /// How many threads a core has. Source: `CPUTopology.CPUsPerCore`.
    pub(super) fn threads(&self) -> usize {
        self.0.len() / self.parts(Level::Core).len().max(1)
    }

    /// These with all that share a core with one of them.
    pub(super) fn whole_cores(&self, cpus: &CpuSet) -> CpuSet {
        let cores: BTreeSet<u32> = cpus.iter().filter_map(|cpu| Some(self.0.get(&cpu)?.core)).collect();
        self.0.iter().filter(|(_, place)| cores.contains(&place.core)).map(|(cpu, _)| *cpu).collect()
    }
}

fn list(path: &Path) -> io::Result<CpuSet> {
    let text = std::fs::read_to_string(path)?;
    text.parse().map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
}

/// The node of memory of each CPU; empty where the kernel has no nodes.
fn numas(directory: &Path) -> BTreeMap<u32, u32> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let of_each = entries.filter_map(|entry| {
        let number: u32 = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        Some((number, list(&entry.path().join("cpulist")).ok()?))
    });
    of_each.flat_map(|(number, cpus)| cpus.iter().map(move |cpu| (cpu, number)).collect::<Vec<_>>()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// So many threads per core, cores per socket and sockets, numbered as most machines do: first one thread of each core.
    /// Cores go round the sockets. Each socket is a node.
    pub(in crate::cpus) fn round(sockets: u32, cores: u32, threads: u32) -> Topology {
        let all = sockets * cores;
        let place =
            |cpu: u32| Place { core: cpu % all, socket: cpu % all % sockets, numa: cpu % all % sockets };
        Topology((0..all * threads).map(|cpu| (cpu, place(cpu))).collect())
    }

    #[test]
    fn a_machine_is_read_off_sysfs() {
        let system = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = system.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("cpu/online", "0-3,5\n");
        for (cpu, siblings, socket) in [(0, "0,2", 0), (1, "1,3", 1), (2, "0,2", 0), (3, "1,3", 1)] {
            write(&format!("cpu/cpu{cpu}/topology/thread_siblings_list"), &format!("{siblings}\n"));
            write(&format!("cpu/cpu{cpu}/topology/physical_package_id"), &format!("{socket}\n"));
        }
        write("cpu/cpu5/topology/physical_package_id", "-1\n");
        write("node/node1/cpulist", "1,3\n");
        write("node/online", "0-1\n");
        let topology = Topology::read(system.path()).unwrap();
        let place = |core, socket, numa| Place { core, socket, numa };
        let wanted = [
            (0, place(0, 0, 0)),
            (1, place(1, 1, 1)),
            (2, place(0, 0, 0)),
            (3, place(1, 1, 1)),
            (5, place(5, 0, 0)),
        ];
        assert_eq!(topology, Topology(wanted.into()));
        assert_eq!(topology.whole_cores(&"2".parse().unwrap()).to_string(), "0,2");
        assert_eq!(round(1, 4, 2).threads(), 2);
        assert!(Topology::read(&system.path().join("elsewhere")).is_err());
    }
}
