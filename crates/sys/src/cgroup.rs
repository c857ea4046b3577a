//! Control groups, version 1, 2 and hybrid, told apart per controller: limits, use, kills and removal.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::device_filter::Rule;
use crate::mount::MountTable;

/// Controllers that a container is put into.
const CONTROLLERS: [&str; 9] =
    ["cpu", "cpuacct", "memory", "pids", "freezer", "devices", "cpuset", "blkio", "hugetlb"];

/// Init, or whoever adopted a dead process, has this long to reap it; it is looked for in such steps.
const REAP_MAX: Duration = Duration::from_secs(20);
const REAP_STEP: Duration = Duration::from_millis(10);

/// How a controller is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    /// Its mount point.
    root: PathBuf,
    /// Controllers of it that Skiff uses; empty for a hierarchy that only groups (`name=systemd`).
    controllers: Vec<String>,
    /// The unified hierarchy.
    unified: bool,
}

/// The host's hierarchies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupHost {
    hierarchies: Vec<Hierarchy>,
    /// Groups are to confine devices. In a user namespace nobody may have them do so, nor make device nodes.
    confines_devices: bool,
}

/// Limits in the words of version 1; version 2 gets them converted. `None` leaves as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU shares, 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// CPU time per period in microseconds; negative: no limit.
    pub cpu_quota_us: Option<i64>,
    /// The period in microseconds.
    pub cpu_period_us: Option<u64>,
    /// Memory in bytes; negative: no limit.
    pub memory_bytes: Option<i64>,
    /// Swap beside the memory, in bytes; negative: no limit. Version 1 bounds only both together: without a limit of the
    /// memory it has none of the swap.
    pub swap_bytes: Option<i64>,
    /// Processes and threads; 0 or negative: no limit.
    pub pids: Option<i64>,
    /// Cores, as a list such as `0-1`.
    pub cpuset_cpus: Option<String>,
    /// Huge pages in bytes, by the size of one in bytes.
    pub huge_pages: BTreeMap<u64, u64>,
}

/// What a group uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time in nanoseconds.
    pub cpu_ns: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Memory less what can be reclaimed at once, in bytes.
    pub memory_working_set_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// A write that sets one limit.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    controller: &'static str,
    file: Cow<'static, str>,
    value: String,
    /// The kernel may lack the file: it was built or started without accounting of swap.
    optional: bool,
}

impl CgroupHost {
    /// The hierarchies that this process sees. In a user namespace: those in which it may make groups, with the controllers
    /// that these get; there may be none.
    pub fn detect() -> io::Result<Self> {
        if crate::entrance::in_user_namespace() {
            return Ok(Self::delegated(&MountTable::own()?));
        }
        let host = Self::from_table(&MountTable::own()?, |root| {
            std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default()
        });
        if host.hierarchies.is_empty() {
            return Err(io::Error::other("no cgroup hierarchy is mounted: mount cgroup2 on /sys/fs/cgroup"));
        }
        Ok(host)
    }

    /// Those hierarchies of a table that were given to this process: where it may write. What others have mounted elsewhere
    /// is theirs. Source: the kernel's `cgroup-v2.rst`, "Delegation".
    fn delegated(table: &MountTable) -> Self {
        use rustix::fs::Access;
        let may = |root: &Path| rustix::fs::access(root, Access::WRITE_OK | Access::EXEC_OK).is_ok();
        let host = Self::from_table(&table.only(|entry| may(&entry.target)), |root| {
            let offered = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            let offered: Vec<String> = offered.split_ascii_whitespace().map(str::to_owned).collect();
            enable_controllers(root, &offered);
            // What a group below gets, and no more: processes may be in the way at the top.
            std::fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default()
        });
        Self { confines_devices: false, ..host }
    }

    /// Whether there are groups at all. Without them nothing is limited, and processes are found by other marks.
    pub fn has_groups(&self) -> bool {
        self.used().next().is_some()
    }

    /// Whether groups limit memory.
    pub fn limits_memory(&self) -> bool {
        self.has("memory")
    }

    /// Whether there is a controller, such as `cpuset`, for groups.
    pub fn has(&self, controller: &str) -> bool {
        self.hierarchy(controller).is_some()
    }

    /// The hierarchies of a mount table; `unified` reads the list of controllers of the unified one at its root.
    /// A controller belongs to the hierarchy where it is first found: the kernel binds it to one only.
    pub fn from_table(table: &MountTable, unified: impl Fn(&Path) -> String) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        let mut taken: Vec<String> = Vec::new();
        for entry in table.entries() {
            let names: Vec<String> = match entry.fs_type.as_str() {
                "cgroup" => entry.super_options.split(',').map(str::to_owned).collect(),
                "cgroup2" => unified(&entry.target).split_ascii_whitespace().map(str::to_owned).collect(),
                _ => continue,
            };
            // A second mount of the same hierarchy, or of a part of it inside a container.
            let seen = hierarchies
                .iter()
                .any(|known| known.root == entry.target || (known.unified && entry.fs_type == "cgroup2"));
            if seen {
                continue;
            }
            let grouping = entry.fs_type == "cgroup2" || names.iter().any(|name| name.starts_with("name="));
            let controllers: Vec<String> = names
                .into_iter()
                .filter(|name| CONTROLLERS.contains(&name.as_str()) && !taken.contains(name))
                .collect();
            if controllers.is_empty() && !grouping {
                continue;
            }
            taken.extend(controllers.iter().cloned());
            hierarchies.push(Hierarchy {
                root: entry.target.clone(),
                controllers,
                unified: entry.fs_type == "cgroup2",
            });
        }
        // Where everything else is of version 1, nobody is put into groups of the unified hierarchy for huge pages alone.
        if hierarchies.iter().any(|hierarchy| !hierarchy.unified && !hierarchy.controllers.is_empty()) {
            for hierarchy in hierarchies.iter_mut().filter(|hierarchy| hierarchy.unified) {
                if hierarchy.controllers == ["hugetlb"] {
                    hierarchy.controllers.clear();
                }
            }
        }
        Self { hierarchies, confines_devices: true }
    }

    /// The group at a path below every hierarchy's root (`skiff/<sandbox>/<container>`); made by [`Group::create`].
    pub fn group(&self, path: &str) -> Group<'_> {
        Group { host: self, path: path.trim_matches('/').to_owned() }
    }

    /// Memory in use on the host less what can be reclaimed at once, in bytes; `None` where the root group does not count
    /// it, as in version 2.
    pub fn memory_working_set(&self) -> Option<u64> {
        let v1 = self.hierarchy("memory").filter(|hierarchy| !hierarchy.unified)?;
        v1.root
            .join("memory.usage_in_bytes")
            .exists()
            .then(|| self.group("").usage().memory_working_set_bytes)
    }

    /// Whether device rules can be set by files (version 1 has the controller).
    pub fn has_v1_devices(&self) -> bool {
        self.hierarchy("devices").is_some_and(|hierarchy| !hierarchy.unified)
    }

    /// Whether who enters a group with limits has to wait for the kernel ([`CgroupHost::prepare_moves`] makes that short).
    pub fn limits_are_waited_for(&self) -> bool {
        self.used().any(|hierarchy| hierarchy.unified)
    }

    /// Has moves of whole processes, which are all that version 2 knows, wait less in the next some ten milliseconds: the
    /// first one in a while waits for a grace period of the kernel (11 ms on an idle machine) and those that follow soon do
    /// not. So this one goes ahead, while something else is prepared: the calling process moves to where it is. Blocks. Where
    /// it may not, nothing is lost. Source: Linux, `kernel/rcu/sync.c`.
    pub fn prepare_moves(&self) {
        let Some(unified) = self.hierarchies.iter().find(|hierarchy| hierarchy.unified) else { return };
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let Some(own) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else { return };
        let _ = std::fs::write(unified.root.join(own).join("cgroup.procs"), "0");
    }

    /// The hierarchies that containers are put into: those with controllers, or else whatever groups.
    fn used(&self) -> impl Iterator<Item = &Hierarchy> {
        let bare = self.hierarchies.iter().all(|hierarchy| hierarchy.controllers.is_empty());
        self.hierarchies.iter().filter(move |hierarchy| bare || !hierarchy.controllers.is_empty())
    }

    fn hierarchy(&self, controller: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
    }
}

/// A group in every hierarchy of the host.
#[derive(Debug, Clone)]
pub struct Group<'a> {
    host: &'a CgroupHost,
    path: String,
}

impl Group<'_> {
    /// Its path below the hierarchies' roots, without a leading slash.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.any_dir().is_some()
    }

    /// Makes it where controllers are, with the groups above it. Existing ones are fine.
    pub fn create(&self) -> io::Result<()> {
        for hierarchy in self.host.used() {
            self.create_in(hierarchy)?;
        }
        Ok(())
    }

    /// Makes it with nothing left of an earlier use, its processes confined to the default devices and `more`: where
    /// version 1's controller does not do that by files, by a program of the group.
    pub fn create_confined(&self, more: &[Rule]) -> io::Result<()> {
        let unified = self.host.hierarchies.iter().find(|hierarchy| hierarchy.unified);
        let needed = self.host.confines_devices && !self.host.has_v1_devices();
        let Some(unified) = unified.filter(|_| needed) else { return self.create() };
        // Programs of a group add up: one that is used again starts with none.
        self.remove()?;
        self.create()?;
        self.create_in(unified)?;
        let dir = unified.root.join(&self.path);
        crate::device_filter::confine(&dir, more).map_err(|error| {
            let remedy = "a kernel with CONFIG_CGROUP_BPF is needed, or a privileged container";
            io::Error::new(error.kind(), format!("{}: confining devices: {error}: {remedy}", dir.display()))
        })
    }

    /// The files to which a process writes itself (as `0`) to enter the group in every hierarchy, also those that only
    /// group. Makes it there.
    pub fn entrances(&self) -> io::Result<Vec<PathBuf>> {
        self.host.hierarchies.iter().try_for_each(|hierarchy| self.create_in(hierarchy))?;
        Ok(self.host.hierarchies.iter().map(|hierarchy| self.entrance(hierarchy)).collect())
    }

    /// As [`Group::entrances`] of a group with limits: where it is, or will be, in the hierarchies that have controllers.
    pub fn entrances_to_limits(&self) -> Vec<PathBuf> {
        self.host.used().map(|hierarchy| self.entrance(hierarchy)).collect()
    }

    /// Where a process of one thread enters. Version 1 lets a thread go by itself, which waits for nobody; for a whole
    /// process the kernel first waits until no thread of the machine is on its way through fork or exec, which takes a grace
    /// period of its read-copy-update. Source: Linux, `kernel/cgroup/cgroup.c`, `cgroup_procs_write_start`.
    fn entrance(&self, hierarchy: &Hierarchy) -> PathBuf {
        let file = if hierarchy.unified { "cgroup.procs" } else { "tasks" };
        hierarchy.root.join(&self.path).join(file)
    }

    fn create_in(&self, hierarchy: &Hierarchy) -> io::Result<()> {
        match self.make_path(hierarchy) {
            // A group above it was empty and went with the last one in it: made anew.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.make_path(hierarchy),
            other => other,
        }
    }

    fn make_path(&self, hierarchy: &Hierarchy) -> io::Result<()> {
        let mut dir = hierarchy.root.clone();
        for component in self.path.split('/') {
            if hierarchy.unified {
                enable_controllers(&dir, &hierarchy.controllers);
            }
            let parent = dir.clone();
            dir.push(component);
            match std::fs::create_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(with_path(error, &dir));
                }
                _ => {}
            }
            if !hierarchy.unified && hierarchy.controllers.iter().any(|name| name == "cpuset") {
                fill_cpuset(&parent, &dir).map_err(|error| with_path(error, &dir))?;
            }
        }
        Ok(())
    }

    /// Sets limits. A limit whose controller the host lacks is answered in words, not refused.
    pub fn apply(&self, limits: &Limits) -> io::Result<Vec<String>> {
        let mut missing = Vec::new();
        let unified =
            |controller: &str| self.host.hierarchy(controller).is_some_and(|hierarchy| hierarchy.unified);
        for setting in plan_settings(limits, unified) {
            let Some(dir) = self.dir(setting.controller) else {
                missing
                    .push(format!("no {} controller: {} is not limited", setting.controller, setting.file));
                continue;
            };
            let file = dir.join(&*setting.file);
            match std::fs::write(&file, &setting.value) {
                Err(error) if setting.optional && error.kind() == io::ErrorKind::NotFound => {
                    if has_swap() {
                        missing.push(format!("no {}: swap is not limited", setting.file));
                    }
                }
                written => written.map_err(|error| with_path(error, &file))?,
            }
        }
        Ok(missing)
    }

    /// The processes in it and in the groups below it.
    pub fn processes(&self) -> io::Result<Vec<u32>> {
        let Some(dir) = self.any_dir() else { return Ok(Vec::new()) };
        let mut pids = Vec::new();
        collect_processes(&dir, &mut pids)?;
        Ok(pids)
    }

    /// Kills every process in it and below, those forked meanwhile too, and returns when all have ended; with an error
    /// after `timeout`. Blocks.
    pub fn kill(&self, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let pids = self.processes()?;
            if pids.is_empty() {
                return Ok(());
            }
            let watched: Vec<_> =
                pids.iter().filter_map(|pid| crate::process::Pidfd::open(*pid).ok()).collect();
            self.signal_all(&pids)?;
            for pidfd in &watched {
                if !pidfd.wait(deadline.saturating_duration_since(Instant::now()))? {
                    let left = self.processes()?;
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("processes {left:?} of cgroup {} did not end after SIGKILL", self.path),
                    ));
                }
            }
        }
    }

    fn signal_all(&self, pids: &[u32]) -> io::Result<()> {
        if self.any_dir().is_some_and(|dir| std::fs::write(dir.join("cgroup.kill"), "1").is_ok()) {
            return Ok(());
        }
        pids.iter().try_for_each(|pid| crate::process::signal(*pid, 9))
    }

    /// Removes it with the groups below it from every hierarchy. `Busy` while processes are in it; gone is fine. Blocks:
    /// processes that have ended and were not reaped yet by their parent, which may be another program, are waited for.
    pub fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + REAP_MAX;
        loop {
            let removed = self.try_remove();
            let busy = removed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy);
            if !busy || Instant::now() >= deadline || !self.processes()?.is_empty() {
                return removed;
            }
            #[allow(
                clippy::disallowed_methods,
                reason = "the kernel tells nobody when a dead process is reaped"
            )]
            std::thread::sleep(REAP_STEP);
        }
    }

    fn try_remove(&self) -> io::Result<()> {
        let mut result = Ok(());
        for hierarchy in &self.host.hierarchies {
            result = result.and(remove_tree(&hierarchy.root.join(&self.path)));
        }
        result
    }

    /// As [`Group::remove`], and then the groups above it and below `root` that hold nothing any more.
    pub fn remove_up_to(&self, root: &str) -> io::Result<()> {
        self.remove()?;
        let root = root.trim_matches('/');
        let mut path = self.path.as_str();
        while let Some((parent, _)) = path.rsplit_once('/')
            && parent.len() > root.len()
        {
            for hierarchy in &self.host.hierarchies {
                // Refused where others are in it, which is as it should be.
                let _ = std::fs::remove_dir(hierarchy.root.join(parent));
            }
            path = parent;
        }
        Ok(())
    }

    /// Where it is in each hierarchy of version 1 that has controllers, by the name of the hierarchy's mount point.
    pub fn v1_directories(&self) -> Vec<(String, PathBuf)> {
        let with_controllers = self.host.hierarchies.iter().filter(|known| !known.controllers.is_empty());
        let of_v1 = with_controllers.filter(|hierarchy| !hierarchy.unified);
        let named = of_v1.filter_map(|hierarchy| {
            let name = hierarchy.root.file_name()?.to_str()?.to_owned();
            Some((name, hierarchy.root.join(&self.path)))
        });
        named.collect()
    }

    /// The file whose `oom_kill` line counts processes that the kernel killed for memory in this group.
    pub fn oom_file(&self) -> Option<PathBuf> {
        let hierarchy = self.host.hierarchy("memory")?;
        let file = if hierarchy.unified { "memory.events" } else { "memory.oom_control" };
        Some(hierarchy.root.join(&self.path).join(file))
    }

    /// The group's own `cgroup.procs` file: who is in it.
    pub fn members_file(&self) -> Option<PathBuf> {
        Some(self.any_dir_path()?.join("cgroup.procs"))
    }

    /// What it uses now; parts whose controller is missing are 0.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        if let Some(dir) = self.dir("cpuacct") {
            usage.cpu_ns = read_number(&dir.join("cpuacct.usage"));
        } else if let Some(dir) = self.dir("cpu") {
            usage.cpu_ns = read_field(&dir.join("cpu.stat"), "usage_usec").saturating_mul(1000);
        }
        if let Some(dir) = self.dir("memory") {
            let unified = self.host.hierarchy("memory").is_some_and(|hierarchy| hierarchy.unified);
            let (file, inactive) = if unified {
                ("memory.current", "inactive_file")
            } else {
                ("memory.usage_in_bytes", "total_inactive_file")
            };
            usage.memory_bytes = read_number(&dir.join(file));
            let inactive = read_field(&dir.join("memory.stat"), inactive);
            usage.memory_working_set_bytes = usage.memory_bytes.saturating_sub(inactive);
        }
        if let Some(dir) = self.dir("pids") {
            usage.pids = read_number(&dir.join("pids.current"));
        }
        usage
    }

    /// Where it is in a controller's hierarchy.
    fn dir(&self, controller: &str) -> Option<PathBuf> {
        Some(self.host.hierarchy(controller)?.root.join(&self.path))
    }

    fn any_dir_path(&self) -> Option<PathBuf> {
        let best = ["pids", "freezer", "memory", "cpu"].iter().find_map(|controller| self.dir(controller));
        best.or_else(|| Some(self.host.used().next()?.root.join(&self.path)))
    }

    fn any_dir(&self) -> Option<PathBuf> {
        self.any_dir_path().filter(|dir| dir.exists())
    }
}

/// How often an `oom_kill` line of `file` counted; 0 where it cannot be read.
pub fn oom_kills(file: &Path) -> u64 {
    read_field(file, "oom_kill")
}

/// The writes that set limits; `unified` tells which version a controller has.
fn plan_settings(limits: &Limits, unified: impl Fn(&str) -> bool) -> Vec<Setting> {
    let mut plan = Vec::new();
    let mut set = |controller, file: &'static str, value: String| {
        plan.push(Setting { controller, file: file.into(), value, optional: false })
    };
    let v2 = unified("cpu");
    if let Some(shares) = limits.cpu_shares {
        let shares = shares.clamp(2, 262_144);
        match v2 {
            true => set("cpu", "cpu.weight", weight_of(shares).to_string()),
            false => set("cpu", "cpu.shares", shares.to_string()),
        }
    }
    if v2 && (limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some()) {
        let quota =
            limits.cpu_quota_us.filter(|quota| *quota > 0).map_or("max".into(), |quota| quota.to_string());
        set("cpu", "cpu.max", format!("{quota} {}", limits.cpu_period_us.unwrap_or(100_000)));
    } else {
        if let Some(period) = limits.cpu_period_us {
            set("cpu", "cpu.cfs_period_us", period.to_string());
        }
        if let Some(quota) = limits.cpu_quota_us {
            set("cpu", "cpu.cfs_quota_us", if quota > 0 { quota } else { -1 }.to_string());
        }
    }
    plan.extend(plan_memory(limits, unified("memory")));
    let mut set = |controller, file: Cow<'static, str>, value: String| {
        plan.push(Setting { controller, file, value, optional: false })
    };
    if let Some(pids) = limits.pids {
        set("pids", "pids.max".into(), if pids > 0 { pids.to_string() } else { "max".into() });
    }
    if let Some(cpus) = &limits.cpuset_cpus {
        set("cpuset", "cpuset.cpus".into(), cpus.clone());
    }
    let of_pages = if unified("hugetlb") { "max" } else { "limit_in_bytes" };
    for (size, bytes) in &limits.huge_pages {
        set("hugetlb", format!("hugetlb.{}.{of_pages}", page_name(*size)).into(), bytes.to_string());
    }
    plan
}

/// A size as the kernel names it in files: `2MB`, `1GB`. Source: `hugetlb_cgroup.c`, `mem_fmt`.
fn page_name(bytes: u64) -> String {
    match bytes {
        _ if bytes >= 1 << 30 => format!("{}GB", bytes >> 30),
        _ if bytes >= 1 << 20 => format!("{}MB", bytes >> 20),
        _ => format!("{}KB", bytes >> 10),
    }
}

/// The writes that set the limits of memory and swap.
fn plan_memory(limits: &Limits, unified: bool) -> Vec<Setting> {
    let set = |file: &'static str, value, optional| Setting {
        controller: "memory",
        file: file.into(),
        value,
        optional,
    };
    let or = |bytes: i64, unlimited: &str| {
        if bytes > 0 { bytes.to_string() } else { unlimited.to_owned() }
    };
    if unified {
        let memory = limits.memory_bytes.map(|bytes| set("memory.max", or(bytes, "max"), false));
        let swap = limits.swap_bytes.map(|bytes| if bytes == 0 { "0".to_owned() } else { or(bytes, "max") });
        return memory.into_iter().chain(swap.map(|bytes| set("memory.swap.max", bytes, true))).collect();
    }
    let Some(memory) = limits.memory_bytes else { return Vec::new() };
    let mut plan = vec![set("memory.limit_in_bytes", or(memory, "-1"), false)];
    if let Some(swap) = limits.swap_bytes {
        // The sum can never be less than the memory alone: it is lifted before that changes.
        plan.insert(0, set("memory.memsw.limit_in_bytes", "-1".to_owned(), true));
        if memory > 0 && swap >= 0 {
            let both = memory.saturating_add(swap).to_string();
            plan.push(set("memory.memsw.limit_in_bytes", both, true));
        }
    }
    plan
}

/// Whether this machine swaps: proc(5), `swaps`, which has a line of titles.
fn has_swap() -> bool {
    std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

/// Version 1's shares (2 to 262144) on version 2's scale (1 to 10000), as KEP-2254 converts them.
fn weight_of(shares: u64) -> u64 {
    1 + (shares - 2) * 9999 / 262_142
}

/// Gives a version 1 cpuset the cores and memory nodes of the one above it, where it has none: it takes no process before.
/// Also one that is there: whoever made it may not have come so far.
fn fill_cpuset(parent: &Path, dir: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if std::fs::read(dir.join(file))?.trim_ascii().is_empty() {
            std::fs::write(dir.join(file), std::fs::read(parent.join(file))?)?;
        }
    }
    Ok(())
}

/// Lets the groups below `dir` have controllers. Best effort per controller: one that a parent withholds stays away,
/// and setting its limit says so.
fn enable_controllers(dir: &Path, controllers: &[String]) {
    let file = dir.join("cgroup.subtree_control");
    let enabled = std::fs::read_to_string(&file).unwrap_or_default();
    for controller in controllers {
        if !enabled.split_ascii_whitespace().any(|name| name == controller) {
            let _ = std::fs::write(&file, format!("+{controller}"));
        }
    }
}

fn collect_processes(dir: &Path, pids: &mut Vec<u32>) -> io::Result<()> {
    let text = match std::fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => text,
        Err(error) if gone(&error) => return Ok(()),
        Err(error) => return Err(with_path(error, dir)),
    };
    // 0 stands for a process of another PID namespace: it cannot be named from here.
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_processes(&entry.path(), pids)?;
        }
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(()),
        Err(error) => return Err(with_path(error, dir)),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(dir) {
        Err(error) if !gone(&error) => Err(with_path(error, dir)),
        _ => Ok(()),
    }
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn read_number(file: &Path) -> u64 {
    std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn read_field(file: &Path, key: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok()).unwrap_or(0)
}

fn with_path(error: io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(table: &str, unified: &str) -> CgroupHost {
        CgroupHost::from_table(&MountTable::parse(table.as_bytes()), |_| unified.to_owned())
    }

    #[test]
    fn each_controller_is_found_where_it_is() {
        let hybrid = host(
            "1 0 0:1 / /sys/fs/cgroup rw - tmpfs none rw\n\
             2 1 0:2 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup none rw,cpu,cpuacct\n\
             3 1 0:3 / /sys/fs/cgroup/systemd rw - cgroup none rw,name=systemd\n\
             4 1 0:4 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n\
             5 1 0:2 / /elsewhere rw - cgroup none rw,cpu,cpuacct\n",
            "memory pids hugetlb",
        );
        assert_eq!(hybrid.hierarchy("cpu").unwrap().root, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert!(hybrid.hierarchy("memory").unwrap().unified);
        assert!(hybrid.has("pids") && !hybrid.has("cpuset"));
        assert!(hybrid.hierarchy("cpuset").is_none());
        assert_eq!(hybrid.hierarchies.len(), 3, "a second mount of the same controllers adds nothing");
        assert_eq!(
            hybrid.group("/a/b").oom_file().unwrap(),
            Path::new("/sys/fs/cgroup/unified/a/b/memory.events")
        );
    }

    #[test]
    fn a_process_enters_as_a_thread_where_it_can() {
        let table = "1 0 0:1 / /c/pids rw - cgroup none rw,pids\n\
                     2 0 0:2 / /c/systemd rw - cgroup none rw,name=systemd\n\
                     3 0 0:3 / /c/unified rw - cgroup2 none rw\n";
        let to = |unified| host(table, unified).group("a/b").entrances_to_limits();
        assert_eq!(to("hugetlb"), [Path::new("/c/pids/a/b/tasks")]);
        assert_eq!(to("memory"), ["/c/pids/a/b/tasks", "/c/unified/a/b/cgroup.procs"].map(Path::new));
    }

    #[test]
    fn huge_pages_alone_draw_nobody_into_the_unified_hierarchy() {
        let unified = "4 1 0:4 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n";
        let hybrid =
            host(&format!("2 1 0:2 / /sys/fs/cgroup/cpu rw - cgroup none rw,cpu\n{unified}"), "hugetlb");
        assert!(hybrid.hierarchy("hugetlb").is_none() && hybrid.used().count() == 1);
        assert!(host(unified, "cpu hugetlb").hierarchy("hugetlb").is_some());
        assert_eq!([1 << 30, 2 << 20, 64 << 10].map(page_name), ["1GB", "2MB", "64KB"]);
    }

    #[test]
    fn limits_become_the_right_files_for_each_version() {
        let limits = Limits {
            cpu_shares: Some(1024),
            cpu_quota_us: Some(50_000),
            cpu_period_us: Some(100_000),
            memory_bytes: Some(1 << 20),
            swap_bytes: Some(0),
            pids: Some(-1),
            cpuset_cpus: None,
            huge_pages: BTreeMap::from([(2 << 20, 4 << 20)]),
        };
        let show = |plan: Vec<Setting>| -> Vec<String> {
            plan.into_iter().map(|setting| format!("{}={}", setting.file, setting.value)).collect()
        };
        assert_eq!(
            show(plan_settings(&limits, |_| true)),
            [
                "cpu.weight=39",
                "cpu.max=50000 100000",
                "memory.max=1048576",
                "memory.swap.max=0",
                "pids.max=max",
                "hugetlb.2MB.max=4194304"
            ]
        );
        assert_eq!(
            show(plan_settings(&limits, |_| false)),
            [
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "memory.memsw.limit_in_bytes=-1",
                "memory.limit_in_bytes=1048576",
                "memory.memsw.limit_in_bytes=1048576",
                "pids.max=max",
                "hugetlb.2MB.limit_in_bytes=4194304"
            ]
        );
        assert_eq!(show(plan_settings(&Limits::default(), |_| true)), [""; 0]);
        let swap = Limits { swap_bytes: Some(1 << 20), ..Limits::default() };
        assert_eq!(show(plan_settings(&swap, |_| true)), ["memory.swap.max=1048576"]);
        assert_eq!(show(plan_settings(&swap, |_| false)), [""; 0]);
        let endless = Limits { memory_bytes: Some(-1), swap_bytes: Some(-1), ..Limits::default() };
        assert_eq!(show(plan_settings(&endless, |_| true)), ["memory.max=max", "memory.swap.max=max"]);
    }

    /// What cannot be tried where the controllers are of version 1: that the files of version 2 get what the kernel reads.
    #[test]
    fn limits_reach_the_files_of_version_2() {
        let root = tempfile::tempdir().unwrap();
        let table = format!("1 0 0:1 / {} rw - cgroup2 none rw\n", root.path().display());
        let host = host(&table, "cpuset cpu io memory hugetlb pids");
        let group = host.group("kubepods/pod1");
        group.create().unwrap();
        // Each controller is asked for by itself in every group above; a plain file keeps what was written last.
        for above in ["", "kubepods"] {
            let enabled = root.path().join(above).join("cgroup.subtree_control");
            assert_eq!(std::fs::read_to_string(enabled).unwrap(), "+pids");
        }
        let written = |limits: Limits, file: &str| {
            assert_eq!(group.apply(&limits).unwrap(), [""; 0]);
            std::fs::read_to_string(root.path().join("kubepods/pod1").join(file)).unwrap()
        };
        let none = Limits::default;
        // The scale of KEP-2254: from 2 to 262144, to 1 to 10000.
        for (shares, weight) in
            [(0, "1"), (2, "1"), (102, "4"), (1024, "39"), (262_144, "10000"), (1 << 20, "10000")]
        {
            assert_eq!(written(Limits { cpu_shares: Some(shares), ..none() }, "cpu.weight"), weight);
        }
        for (quota, period, max) in [
            (Some(50_000), Some(100_000), "50000 100000"),
            (Some(-1), Some(100_000), "max 100000"),
            (Some(20_000), None, "20000 100000"),
            (None, Some(50_000), "max 50000"),
        ] {
            let limits = Limits { cpu_quota_us: quota, cpu_period_us: period, ..none() };
            assert_eq!(written(limits, "cpu.max"), max);
        }
        for (bytes, memory) in [(1 << 20, "1048576"), (-1, "max"), (0, "max")] {
            assert_eq!(written(Limits { memory_bytes: Some(bytes), ..none() }, "memory.max"), memory);
        }
        for (bytes, swap) in [(0, "0"), (1 << 20, "1048576"), (-1, "max")] {
            assert_eq!(written(Limits { swap_bytes: Some(bytes), ..none() }, "memory.swap.max"), swap);
        }
        for (count, pids) in [(100, "100"), (0, "max"), (-1, "max")] {
            assert_eq!(written(Limits { pids: Some(count), ..none() }, "pids.max"), pids);
        }
        let cpus = Limits { cpuset_cpus: Some("0-1,3".to_owned()), ..none() };
        assert_eq!(written(cpus, "cpuset.cpus"), "0-1,3");
        let pages = Limits { huge_pages: BTreeMap::from([(1 << 30, 2 << 30)]), ..none() };
        assert_eq!(written(pages, "hugetlb.1GB.max"), "2147483648");
        assert_eq!(group.oom_file().unwrap(), root.path().join("kubepods/pod1/memory.events"));
    }

    /// What the unified hierarchy of this machine does for real: its end of all processes, and huge pages.
    #[test]
    fn the_unified_hierarchy_kills_at_once_and_limits_huge_pages() {
        let table = MountTable::own().unwrap();
        let Some(entry) = table.entries().iter().find(|entry| entry.fs_type == "cgroup2") else { return };
        let root = entry.target.clone();
        let only = format!("1 0 0:1 / {} rw - cgroup2 none rw\n", root.display());
        let controllers = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap();
        let known = controllers.split_ascii_whitespace().find(|name| *name == "hugetlb").unwrap_or_default();
        let host = host(&only, known);
        let path = format!("skiff-sys-unified-{}", std::process::id());
        let group = host.group(&format!("{path}/inner"));
        group.create().unwrap();
        let directory = root.join(&path).join("inner");
        let limited = directory.join("hugetlb.2MB.max").exists().then(|| {
            let limits = Limits { huge_pages: BTreeMap::from([(2 << 20, 4 << 20)]), ..Limits::default() };
            group.apply(&limits).map(|_| std::fs::read_to_string(directory.join("hugetlb.2MB.max")).unwrap())
        });
        // Two processes, one of which has the other: the file ends both.
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "read go; sleep 1000 & echo; wait"]);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        std::fs::write(directory.join("cgroup.procs"), child.id().to_string()).unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"\n").unwrap();
        std::io::Read::read_exact(&mut child.stdout.take().unwrap(), &mut [0]).unwrap();
        let populated = || std::fs::read_to_string(directory.join("cgroup.events")).unwrap();
        let (lives, has_kill) = (populated(), directory.join("cgroup.kill").exists());
        let killed = host.group(&path).kill(Duration::from_secs(60));
        use std::os::unix::process::ExitStatusExt;
        let signal = child.wait().unwrap().signal();
        let removed = host.group(&path).remove();
        killed.unwrap();
        removed.unwrap();
        assert!(lives.contains("populated 1") && has_kill, "{lives}");
        assert_eq!(signal, Some(9));
        assert!(!directory.exists());
        if let Some(limited) = limited {
            assert_eq!(limited.unwrap().trim(), "4194304");
        }
    }

    #[test]
    fn a_group_that_somebody_is_making_can_be_entered() {
        let host = CgroupHost::detect().unwrap();
        let Some(hierarchy) = host.hierarchy("cpuset").filter(|hierarchy| !hierarchy.unified) else { return };
        let path = format!("skiff-sys-filled-{}", std::process::id());
        let top = hierarchy.root.join(&path);
        // It has no cores yet.
        std::fs::create_dir(&top).unwrap();
        let made = host.group(&format!("{path}/inner")).create();
        let cores = |dir: &Path| std::fs::read_to_string(dir.join("cpuset.cpus")).unwrap();
        let told = [cores(&top), cores(&top.join("inner"))];
        host.group(&path).remove().unwrap();
        made.unwrap();
        assert_eq!(told, [cores(&hierarchy.root), cores(&hierarchy.root)]);
    }

    #[test]
    fn a_group_limits_kills_and_goes() {
        let host = CgroupHost::detect().unwrap();
        let path = format!("skiff-sys-test-{}", std::process::id());
        let top = host.group(&path);
        let group = host.group(&format!("{path}/inner"));
        assert!(!group.exists());
        group.create().unwrap();
        assert!(group.exists());
        let warnings =
            group.apply(&Limits { pids: Some(50), memory_bytes: Some(64 << 20), ..Limits::default() });
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let entered = group.members_file().map(|file| std::fs::write(file, child.id().to_string()));
        let members = top.processes();
        let killed = top.kill(Duration::from_secs(60));
        use std::os::unix::process::ExitStatusExt;
        let signal = child.wait().unwrap().signal();
        let removed = top.remove();
        entered.unwrap().unwrap();
        warnings.unwrap();
        killed.unwrap();
        assert_eq!(members.unwrap(), [child.id()]);
        assert_eq!(signal, Some(9));
        removed.unwrap();
        assert!(!top.exists());
        top.remove().unwrap();
    }
}
