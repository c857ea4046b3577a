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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_by_their_whole_names() {
        let meminfo = MemInfo::of("MemTotal:  16 kB\nInactive:  1 kB\nInactive(file):  2 kB\nHuge:  x kB\n");
        let found = ["MemTotal", "Inactive", "Inactive(file)", "Mem", "Huge"].map(|name| meminfo.bytes(name));
        assert_eq!(found, [Some(16 << 10), Some(1 << 10), Some(2 << 10), None, None]);
    }
}
