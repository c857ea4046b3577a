//! Facts about the running host and this process.

use std::io;
use std::path::Path;

/// The identity of this boot: another value means that every process, mount and namespace of before is gone.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Whether this kernel is of a version or of a later one.
pub fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    is_at_least(&rustix::system::uname().release().to_string_lossy(), (major, minor))
}

fn is_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= wanted
}

/// Whether the kernel has AppArmor and it is on.
pub fn has_app_armor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

/// This process's OOM score adjustment.
pub fn own_oom_score_adj() -> io::Result<i32> {
    std::fs::read_to_string("/proc/self/oom_score_adj")?.trim().parse().map_err(io::Error::other)
}

/// Whether this process holds a capability, by its number (`capability.h`), in its effective set.
pub fn has_capability(number: u32) -> bool {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        })
        .is_some_and(|set| set >> number & 1 == 1)
}

/// `CAP_SYS_RESOURCE`: may raise hard limits and lower OOM score adjustments.
pub const CAP_SYS_RESOURCE: u32 = 24;

/// A device node of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceNode {
    /// Its absolute path.
    pub path: std::path::PathBuf,
    /// Character device, else block.
    pub character: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

fn node(path: std::path::PathBuf, metadata: &std::fs::Metadata) -> Option<DeviceNode> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let kind = metadata.file_type();
    (kind.is_char_device() || kind.is_block_device()).then(|| DeviceNode {
        path,
        character: kind.is_char_device(),
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

/// The device that a path leads to.
///
/// # Errors
/// If there is none.
pub fn device_node(path: &Path) -> io::Result<DeviceNode> {
    let none = || io::Error::new(io::ErrorKind::InvalidInput, "not a device");
    node(path.canonicalize()?, &std::fs::metadata(path)?).ok_or_else(none)
}

/// Every device node under `root` (`/dev`), but for terminals, shared memory and message queues, which each container
/// has of its own.
pub fn device_nodes(root: &Path) -> io::Result<Vec<DeviceNode>> {
    const OWN: [&str; 6] = ["pts", "shm", "mqueue", "console", "ptmx", "fd"];
    let mut nodes = Vec::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            if dir == root && OWN.iter().any(|own| entry.file_name() == *own) {
                continue;
            }
            let Ok(metadata) = std::fs::symlink_metadata(entry.path()) else { continue };
            let kind = metadata.file_type();
            if kind.is_dir() {
                open.push(entry.path());
            } else {
                nodes.extend(node(entry.path(), &metadata));
            }
        }
    }
    nodes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_their_numbers() {
        for (release, wanted, holds) in [
            ("6.18.44-x", (5, 12), true),
            ("5.12.0", (5, 12), true),
            ("5.4.0-100-generic", (5, 12), false),
            ("6.1", (6, 3), false),
            ("nonsense", (5, 12), false),
        ] {
            assert_eq!(is_at_least(release, wanted), holds, "{release}");
        }
    }
}
