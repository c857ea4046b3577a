//! What the kernel counts and limits in the control groups of containers, beyond what the engine tells. Figures that a
//! version or a kernel lacks are absent. Blocks. Sources: the kernel's `Documentation/admin-guide/cgroup-v1` and
//! `cgroup-v2.rst`, `Documentation/accounting/psi.rst`, proc(5).

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use sys::mount::MountTable;

/// Kernels write a limit that is none as some number close to the largest: whole pages of it.
const UNLIMITED: u64 = 1 << 62;
/// Disks of one group that are told of.
const DISKS_MAX: usize = 64;

/// Where the hierarchies are mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Roots {
    v1: HashMap<String, PathBuf>,
    unified: Option<PathBuf>,
}

impl Roots {
    /// Those that this process sees.
    pub(super) fn own() -> Self {
        MountTable::own().map(|table| Self::of(&table)).unwrap_or_default()
    }

    fn of(table: &MountTable) -> Self {
        let mut roots = Self::default();
        for entry in table.entries() {
            match entry.fs_type.as_str() {
                "cgroup2" => drop(roots.unified.get_or_insert_with(|| entry.target.clone())),
                "cgroup" => {
                    for option in entry.super_options.split(',') {
                        roots.v1.entry(option.to_owned()).or_insert_with(|| entry.target.clone());
                    }
                }
                _ => {}
            }
        }
        roots
    }

    /// The group of a container that has a process; `None` where it cannot be told.
    pub(super) fn of_container(&self, pid: u32, id: &str) -> Option<Group> {
        let membership = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        self.group(&membership, id)
    }

    /// The group that is named after the container. Its process may have made groups below it and gone there.
    fn group(&self, membership: &str, id: &str) -> Option<Group> {
        let mut group = Group::default();
        for line in membership.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            let Some(path) = up_to(path, id) else { continue };
            if controllers.is_empty() {
                group.unified = self.unified.as_ref().map(|root| root.join(&path));
            }
            for controller in controllers.split(',') {
                if let Some(root) = self.v1.get(controller) {
                    group.v1.insert(controller.to_owned(), root.join(&path));
                }
            }
            group.path = format!("/{}", path.display());
        }
        (!group.path.is_empty()).then_some(group)
    }
}

/// The path as far as the directory of this name; `None` where it has none, or leads out of what this process sees.
fn up_to(path: &str, name: &str) -> Option<PathBuf> {
    let mut found = PathBuf::new();
    for part in Path::new(path.trim_start_matches('/')).components() {
        let Component::Normal(part) = part else { return None };
        found.push(part);
        if part == name {
            return Some(found);
        }
    }
    None
}

/// A container's group in each hierarchy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Group {
    path: String,
    v1: HashMap<String, PathBuf>,
    unified: Option<PathBuf>,
}

/// What a group did and may do.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct GroupFigures {
    /// Its path below the hierarchies' roots.
    pub(super) path: String,
    pub(super) user_ns: Option<u64>,
    pub(super) system_ns: Option<u64>,
    pub(super) periods: Option<u64>,
    pub(super) throttled_periods: Option<u64>,
    pub(super) throttled_ns: Option<u64>,
    pub(super) cpu_shares: Option<u64>,
    /// Absent without a limit.
    pub(super) cpu_quota_us: Option<u64>,
    pub(super) cpu_period_us: Option<u64>,
    pub(super) cache_bytes: Option<u64>,
    pub(super) rss_bytes: Option<u64>,
    pub(super) mapped_file_bytes: Option<u64>,
    pub(super) swap_bytes: Option<u64>,
    pub(super) page_faults: Option<u64>,
    pub(super) major_page_faults: Option<u64>,
    pub(super) max_usage_bytes: Option<u64>,
    /// How often memory was wanted at the limit.
    pub(super) failcnt: Option<u64>,
    pub(super) oom_kills: Option<u64>,
    pub(super) memory_limit: Option<Limit>,
    pub(super) swap_limit: Option<Limit>,
    pub(super) processes: Option<u64>,
    pub(super) threads: Option<u64>,
    pub(super) threads_max: Option<Limit>,
    pub(super) disks: Vec<Disk>,
    /// Of processors, memory and disks.
    pub(super) pressure: [Option<Pressure>; 3],
}

/// How much of something there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    /// As much as there is.
    None,
    Most(u64),
}

impl Limit {
    /// What a file says of a limit; `None` where it cannot be understood, or there is no such file.
    fn parse(text: Option<String>) -> Option<Self> {
        let text = text?;
        match text.trim() {
            "max" => Some(Self::None),
            number => {
                number.parse().ok().map(|most| if most < UNLIMITED { Self::Most(most) } else { Self::None })
            }
        }
    }

    pub(super) fn most(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Most(most) => Some(most),
        }
    }

    /// What is left of a limit of both memory and swap beside that of the memory.
    fn beside(self, memory: Self) -> Self {
        match (self, memory) {
            (Self::Most(both), Self::Most(memory)) => Self::Most(both.saturating_sub(memory)),
            // Memory alone may be all of it.
            (both, Self::None) => both,
            (Self::None, _) => Self::None,
        }
    }
}

/// What went to and from a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Disk {
    /// `/dev/sda`; major and minor number where the name is not known.
    pub(super) device: String,
    pub(super) read_bytes: u64,
    pub(super) written_bytes: u64,
    pub(super) reads: u64,
    pub(super) writes: u64,
}

/// Time in which some or all of the group's processes waited, in microseconds, and what share of the time that was.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Pressure {
    pub(super) some: Stalled,
    /// Old kernels do not tell it of the host's processors.
    pub(super) full: Option<Stalled>,
}

/// A line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Stalled {
    pub(super) total_us: u64,
    /// Percent of the last 10, 60 and 300 seconds.
    pub(super) averages: [f64; 3],
}

impl Pressure {
    fn parse(text: &str) -> Option<Self> {
        let line = |kind: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
            let mut stalled = Stalled::default();
            for (name, value) in line.split_whitespace().filter_map(|word| word.split_once('=')) {
                match name {
                    "avg10" => stalled.averages[0] = value.parse().ok()?,
                    "avg60" => stalled.averages[1] = value.parse().ok()?,
                    "avg300" => stalled.averages[2] = value.parse().ok()?,
                    "total" => stalled.total_us = value.parse().ok()?,
                    _ => {}
                }
            }
            Some(stalled)
        };
        Some(Self { some: line("some ")?, full: line("full ") })
    }

    /// The host's own: `cpu`, `memory` or `io`.
    pub(super) fn of_host(what: &str) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/pressure/{what}")).ok()?)
    }
}

impl Group {
    /// Reads everything.
    pub(super) fn read(&self) -> GroupFigures {
        let mut figures = GroupFigures { path: self.path.clone(), ..GroupFigures::default() };
        self.read_cpu(&mut figures);
        self.read_memory(&mut figures);
        self.read_processes(&mut figures);
        self.read_disks(&mut figures);
        figures.pressure = ["cpu", "memory", "io"].map(|what| {
            let file = self.unified.as_ref()?.join(format!("{what}.pressure"));
            Pressure::parse(&std::fs::read_to_string(file).ok()?)
        });
        figures
    }

    fn v1(&self, controller: &str, file: &str) -> Option<String> {
        std::fs::read_to_string(self.v1.get(controller)?.join(file)).ok()
    }

    fn v2(&self, file: &str) -> Option<String> {
        std::fs::read_to_string(self.unified.as_ref()?.join(file)).ok()
    }

    fn read_cpu(&self, figures: &mut GroupFigures) {
        let (period, quota);
        if self.v1.contains_key("cpu") {
            // Counted in ticks of which 100 are a second.
            let used = self.v1("cpuacct", "cpuacct.stat").unwrap_or_default();
            let tick = |name| field(&used, name).and_then(|ticks| ticks.checked_mul(10_000_000));
            (figures.user_ns, figures.system_ns) = (tick("user"), tick("system"));
            figures.cpu_shares = number(self.v1("cpu", "cpu.shares"));
            quota = number(self.v1("cpu", "cpu.cfs_quota_us"));
            period = number(self.v1("cpu", "cpu.cfs_period_us"));
        } else {
            let used = self.v2("cpu.stat").unwrap_or_default();
            let micros = |name| field(&used, name).and_then(|micros| micros.checked_mul(1000));
            (figures.user_ns, figures.system_ns) = (micros("user_usec"), micros("system_usec"));
            figures.cpu_shares = number(self.v2("cpu.weight")).map(shares_of);
            let limit = self.v2("cpu.max").unwrap_or_default();
            let mut words = limit.split_whitespace().map(|word| word.parse().ok());
            (quota, period) = (words.next().flatten(), words.next().flatten());
        }
        (figures.cpu_quota_us, figures.cpu_period_us) = (quota, period);
        let stat = self.v1("cpu", "cpu.stat").or_else(|| self.v2("cpu.stat")).unwrap_or_default();
        figures.periods = field(&stat, "nr_periods");
        figures.throttled_periods = field(&stat, "nr_throttled");
        let micros = field(&stat, "throttled_usec").and_then(|micros| micros.checked_mul(1000));
        figures.throttled_ns = field(&stat, "throttled_time").or(micros);
    }

    fn read_memory(&self, figures: &mut GroupFigures) {
        if let Some(stat) = self.v1("memory", "memory.stat") {
            let of = |name| field(&stat, name);
            figures.cache_bytes = of("total_cache");
            figures.rss_bytes = of("total_rss");
            figures.mapped_file_bytes = of("total_mapped_file");
            figures.swap_bytes = of("total_swap");
            (figures.page_faults, figures.major_page_faults) = (of("total_pgfault"), of("total_pgmajfault"));
            figures.max_usage_bytes = number(self.v1("memory", "memory.max_usage_in_bytes"));
            figures.failcnt = number(self.v1("memory", "memory.failcnt"));
            figures.oom_kills =
                self.v1("memory", "memory.oom_control").and_then(|text| field(&text, "oom_kill"));
            figures.memory_limit = Limit::parse(self.v1("memory", "memory.limit_in_bytes"));
            let both = Limit::parse(self.v1("memory", "memory.memsw.limit_in_bytes"));
            figures.swap_limit = both.zip(figures.memory_limit).map(|(both, memory)| both.beside(memory));
            return;
        }
        let Some(stat) = self.v2("memory.stat") else { return };
        let of = |name| field(&stat, name);
        (figures.cache_bytes, figures.rss_bytes) = (of("file"), of("anon"));
        figures.mapped_file_bytes = of("file_mapped");
        (figures.page_faults, figures.major_page_faults) = (of("pgfault"), of("pgmajfault"));
        figures.swap_bytes = number(self.v2("memory.swap.current"));
        figures.max_usage_bytes = number(self.v2("memory.peak"));
        let events = self.v2("memory.events").unwrap_or_default();
        (figures.failcnt, figures.oom_kills) = (field(&events, "max"), field(&events, "oom_kill"));
        figures.memory_limit = Limit::parse(self.v2("memory.max"));
        figures.swap_limit = Limit::parse(self.v2("memory.swap.max"));
    }

    fn read_processes(&self, figures: &mut GroupFigures) {
        let lines = |text: String| text.lines().count() as u64;
        figures.processes = self.v1("pids", "cgroup.procs").or_else(|| self.v2("cgroup.procs")).map(lines);
        figures.threads = number(self.v1("pids", "pids.current").or_else(|| self.v2("pids.current")));
        figures.threads_max = Limit::parse(self.v1("pids", "pids.max").or_else(|| self.v2("pids.max")));
    }

    fn read_disks(&self, figures: &mut GroupFigures) {
        figures.disks = match self.v1("blkio", "blkio.throttle.io_service_bytes_recursive") {
            Some(bytes) => {
                let operations = self.v1("blkio", "blkio.throttle.io_serviced_recursive");
                disks_of_v1(&bytes, &operations.unwrap_or_default())
            }
            None => disks_of_v2(&self.v2("io.stat").unwrap_or_default()),
        };
        figures.disks.truncate(DISKS_MAX);
        figures.disks.iter_mut().for_each(|disk| disk.device = named(&disk.device));
    }
}

/// Version 2's weight (1 to 10000) on version 1's scale (2 to 262144): the reverse of KEP-2254's.
fn shares_of(weight: u64) -> u64 {
    2 + weight.clamp(1, 10_000).saturating_sub(1) * 262_142 / 9999
}

fn number(text: Option<String>) -> Option<u64> {
    text?.trim().parse().ok()
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Lines `8:0 Read 4096`.
fn disks_of_v1(bytes: &str, operations: &str) -> Vec<Disk> {
    let mut disks: Vec<Disk> = Vec::new();
    for (text, are_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [device, what, count] = words.as_slice() else { continue };
            let Ok(count) = count.parse() else { continue };
            let disk = at(&mut disks, device);
            match (*what, are_bytes) {
                ("Read", true) => disk.read_bytes = count,
                ("Write", true) => disk.written_bytes = count,
                ("Read", false) => disk.reads = count,
                ("Write", false) => disk.writes = count,
                _ => {}
            }
        }
    }
    disks
}

/// Lines `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 …`.
fn disks_of_v2(text: &str) -> Vec<Disk> {
    let mut disks = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(device) = words.next() else { continue };
        let disk = at(&mut disks, device);
        for (name, count) in words.filter_map(|word| word.split_once('=')) {
            let Ok(count) = count.parse() else { continue };
            match name {
                "rbytes" => disk.read_bytes = count,
                "wbytes" => disk.written_bytes = count,
                "rios" => disk.reads = count,
                "wios" => disk.writes = count,
                _ => {}
            }
        }
    }
    disks
}

fn at<'d>(disks: &'d mut Vec<Disk>, device: &str) -> &'d mut Disk {
    let known = disks.iter().position(|disk| disk.device == device);
    let index = known.unwrap_or_else(|| {
        disks.push(Disk { device: device.to_owned(), ..Disk::default() });
        disks.len() - 1
    });
    &mut disks[index]
}

/// The name of a device with these numbers.
fn named(numbers: &str) -> String {
    let uevent = std::fs::read_to_string(format!("/sys/dev/block/{numbers}/uevent")).unwrap_or_default();
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(|| numbers.to_owned(), |name| format!("/dev/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_found_by_its_name_wherever_its_process_went() {
        let table = MountTable::parse(
            b"1 0 0:1 / /cg/memory rw - cgroup cgroup rw,memory\n2 0 0:2 / /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
              3 0 0:3 / /cg/unified rw - cgroup2 cgroup2 rw\n",
        );
        let roots = Roots::of(&table);
        let membership =
            "4:memory:/skiff/pod1/c1/inner\n3:cpu,cpuacct:/skiff/pod1/c1\n2:pids:/../c1\n0::/skiff/pod1/c1\n";
        let group = roots.group(membership, "c1").unwrap();
        assert_eq!(group.path, "/skiff/pod1/c1");
        assert_eq!(group.v1["memory"], Path::new("/cg/memory/skiff/pod1/c1"));
        assert_eq!(group.v1["cpuacct"], Path::new("/cg/cpu/skiff/pod1/c1"));
        assert_eq!(group.unified.as_deref(), Some(Path::new("/cg/unified/skiff/pod1/c1")));
        assert!(!group.v1.contains_key("pids"));
        assert_eq!(roots.group(membership, "c2"), None);
    }

    fn write(dir: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn version_1_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        write(
            path,
            &[
                ("cpuacct.stat", "user 3\nsystem 2\n"),
                ("cpu.shares", "512\n"),
                ("cpu.cfs_quota_us", "-1\n"),
                ("cpu.cfs_period_us", "100000\n"),
                ("cpu.stat", "nr_periods 5\nnr_throttled 2\nthrottled_time 7000\n"),
                ("memory.stat", "cache 1\ntotal_cache 10\ntotal_rss 20\ntotal_swap 3\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
                ("cgroup.procs", "1\n2\n"),
                ("pids.current", "6\n"),
                ("pids.max", "max\n"),
                ("blkio.throttle.io_service_bytes_recursive", "0:999 Read 4096\n0:999 Write 8\nTotal 4104\n"),
                ("blkio.throttle.io_serviced_recursive", "0:999 Read 1\n0:999 Write 2\n"),
            ],
        );
        let controllers = ["cpu", "cpuacct", "memory", "pids", "blkio"];
        let v1 = controllers.into_iter().map(|name| (name.to_owned(), path.to_owned())).collect();
        let read = Group { path: "/c".to_owned(), v1, unified: None }.read();
        let disk =
            Disk { device: "0:999".to_owned(), read_bytes: 4096, written_bytes: 8, reads: 1, writes: 2 };
        let wanted = GroupFigures {
            path: "/c".to_owned(),
            user_ns: Some(30_000_000),
            system_ns: Some(20_000_000),
            periods: Some(5),
            throttled_periods: Some(2),
            throttled_ns: Some(7000),
            cpu_shares: Some(512),
            cpu_period_us: Some(100_000),
            cache_bytes: Some(10),
            rss_bytes: Some(20),
            swap_bytes: Some(3),
            oom_kills: Some(4),
            memory_limit: Some(Limit::None),
            threads_max: Some(Limit::None),
            processes: Some(2),
            threads: Some(6),
            disks: vec![disk],
            ..GroupFigures::default()
        };
        assert_eq!(read, wanted);
    }

    #[test]
    fn no_limit_is_another_thing_than_one_that_is_not_told() {
        let parse = |text: &str| Limit::parse(Some(text.to_owned()));
        assert_eq!([parse("max\n"), parse("9223372036854771712")], [Some(Limit::None); 2]);
        assert_eq!((parse("7\n"), parse("x"), Limit::parse(None)), (Some(Limit::Most(7)), None, None));
        assert_eq!(Limit::Most(9).beside(Limit::Most(4)), Limit::Most(5));
        assert_eq!(Limit::None.beside(Limit::Most(4)), Limit::None);
    }

    #[test]
    fn version_2_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        write(
            path,
            &[
                ("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 1\nthrottled_usec 9\n"),
                ("cpu.weight", "1\n"),
                ("cpu.max", "50000 100000\n"),
                ("cpu.pressure", "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\n"),
                ("memory.stat", "anon 20\nfile 10\nfile_mapped 5\n"),
                ("memory.max", "1048576\n"),
                ("memory.events", "low 0\nmax 3\noom_kill 1\n"),
                ("memory.swap.max", "max\n"),
                ("pids.max", "100\n"),
                ("io.stat", "0:999 rbytes=4096 wbytes=8 rios=1 wios=2 dbytes=0\n"),
            ],
        );
        let read = Group { unified: Some(path.to_owned()), ..Group::default() }.read();
        assert_eq!((read.user_ns, read.system_ns, read.throttled_ns), (Some(3000), Some(2000), Some(9000)));
        assert_eq!(
            (read.cpu_shares, read.cpu_quota_us, read.cpu_period_us),
            (Some(2), Some(50_000), Some(100_000))
        );
        assert_eq!(
            (read.rss_bytes, read.memory_limit, read.swap_limit),
            (Some(20), Some(Limit::Most(1 << 20)), Some(Limit::None))
        );
        assert_eq!(
            (read.failcnt, read.oom_kills, read.threads_max),
            (Some(3), Some(1), Some(Limit::Most(100)))
        );
        assert_eq!((read.disks[0].read_bytes, read.disks[0].writes), (4096, 2));
        let pressure = read.pressure[0].clone().unwrap();
        assert_eq!((pressure.some.total_us, pressure.some.averages), (77, [1.5, 0.25, 0.0]));
        assert_eq!(pressure.full, None, "what the kernel does not tell is not 0");
        assert_eq!(shares_of(10_000), 262_144);
    }
}
