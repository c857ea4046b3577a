//! What the host is: read once at start.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::deps::Hardware;
use crate::meminfo::MemInfo;

/// Identity of host and kernel, as `nodeInfo` reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostInfo {
    pub(crate) machine_id: String,
    pub(crate) system_uuid: String,
    pub(crate) boot_id: String,
    pub(crate) kernel_version: String,
    pub(crate) os_image: String,
}

fn line(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Reads the identity; what a host does not tell is empty.
pub(crate) fn host_info() -> HostInfo {
    HostInfo {
        machine_id: line("/etc/machine-id"),
        system_uuid: line("/sys/class/dmi/id/product_uuid"),
        boot_id: sys::host::boot_id().unwrap_or_default(),
        kernel_version: line("/proc/sys/kernel/osrelease"),
        os_image: os_image(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
    }
}

/// `PRETTY_NAME` of `os-release`(5).
fn os_image(text: &str) -> String {
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    value.map_or_else(|| "Linux".to_owned(), |value| value.trim_matches('"').to_owned())
}

/// Cores, memory and disk. `data_dir` is where pods write.
pub(crate) fn hardware(data_dir: &Path) -> Hardware {
    let cores =
        std::thread::available_parallelism().map_or(1, |cores| i64::try_from(cores.get()).unwrap_or(1));
    Hardware {
        milli_cpu: cores.saturating_mul(1000),
        memory_bytes: MemInfo::read()
            .bytes("MemTotal")
            .map_or(0, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        disk_bytes: rustix::fs::statvfs(data_dir)
            .map_or(0, |fs| i64::try_from(fs.f_blocks.saturating_mul(fs.f_frsize)).unwrap_or(i64::MAX)),
        huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
    }
}

/// Huge pages of each size that the kernel has, in bytes. Source: the kernel's `admin-guide/mm/hugetlbpage.rst`.
fn huge_pages(directory: &Path) -> BTreeMap<u64, u64> {
    let sizes = fs::read_dir(directory).into_iter().flatten().flatten();
    let pages = sizes.filter_map(|entry| {
        let name = entry.file_name();
        let kilobytes = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?;
        let size = kilobytes.parse::<u64>().ok()?.checked_mul(1024)?;
        let count: u64 = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
        Some((size, size.checked_mul(count)?))
    });
    pages.collect()
}

/// The architecture in Go's words.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_host_are_read() {
        assert_eq!(
            os_image("NAME=\"x\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        let directory = tempfile::tempdir().unwrap();
        for (size, count) in [(2048, 3), (1_048_576, 0)] {
            let pages = directory.path().join(format!("hugepages-{size}kB"));
            std::fs::create_dir(&pages).unwrap();
            std::fs::write(pages.join("nr_hugepages"), format!("{count}\n")).unwrap();
        }
        assert_eq!(huge_pages(directory.path()), BTreeMap::from([(2 << 20, 6 << 20), (1 << 30, 0)]));
        assert_eq!(huge_pages(Path::new("/nowhere")), BTreeMap::new());
    }
}
