//! What the kernel tells of the host's memory. Source: `meminfo` of proc(5).

/// The text of `/proc/meminfo`.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemInfo(String);

impl MemInfo {
    /// As it is now; it tells nothing where it cannot be read.
    pub(crate) fn read() -> Self {
        Self(std::fs::read_to_string("/proc/meminfo").unwrap_or_default())
    }

    #[cfg(test)]
    pub(crate) fn of(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// A figure by its name, in bytes.
    pub(crate) fn bytes(&self, name: &str) -> Option<u64> {
        let rest = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    }

    /// Memory in use, in bytes.
    pub(crate) fn used(&self) -> Option<u64> {
        Some(self.bytes("MemTotal")?.saturating_sub(self.bytes("MemFree")?))
    }

    /// The host's working set, in bytes: memory in use, without file pages that nobody has used lately. Everybody who acts
    /// by it, or shows it, goes by the same figure: as in cAdvisor that of the root group, which that of the unified
    /// hierarchy does not have. Blocks.
    pub(crate) fn working_set(&self) -> Option<u64> {
        let group = sys::cgroup::CgroupHost::detect().ok().and_then(|host| host.memory_working_set());
        group.or_else(|| self.without_unused_pages())
    }

    fn without_unused_pages(&self) -> Option<u64> {
        Some(self.used()?.saturating_sub(self.bytes("Inactive(file)")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_pages_that_lie_unused_are_no_part_of_the_working_set() {
        let text = "MemTotal:  1000 kB\nMemFree:  200 kB\nInactive:  1 kB\nInactive(file):  300 kB\n";
        let meminfo = MemInfo::of(text);
        assert_eq!((meminfo.used(), meminfo.without_unused_pages()), (Some(800 << 10), Some(500 << 10)));
        let part = MemInfo::of("MemTotal: 9 kB\n");
        assert_eq!((part.used(), part.without_unused_pages()), (None, None));
    }

    #[test]
    fn figures_are_found_by_their_whole_names() {
        let meminfo = MemInfo::of("MemTotal:  16 kB\nInactive:  1 kB\nInactive(file):  2 kB\nHuge:  x kB\n");
        let found = ["MemTotal", "Inactive", "Inactive(file)", "Mem", "Huge"].map(|name| meminfo.bytes(name));
        assert_eq!(found, [Some(16 << 10), Some(1 << 10), Some(2 << 10), None, None]);
    }
}
