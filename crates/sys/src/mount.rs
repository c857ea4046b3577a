//! Mounts: overlay, bind, tmpfs, and the table of what is mounted.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags};

/// Mounts an overlay at `target`: `lower` directories, the topmost first, under `upper` with its `work` directory on the
/// same file system, with further overlayfs options, of which flags have no value. Each directory is its own parameter (kernel 6.5 and later), so that neither their number nor the
/// characters in their names are bound; older kernels get one option string.
pub fn overlay(
    lower: &[PathBuf],
    upper: &Path,
    work: &Path,
    options: &[(&str, &str)],
    target: &Path,
) -> io::Result<()> {
    match overlay_by_parameters(lower, upper, work, options, target) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            overlay_by_options(lower, upper, work, options, target)
        }
        result => result,
    }
}

fn overlay_by_parameters(
    lower: &[PathBuf],
    upper: &Path,
    work: &Path,
    options: &[(&str, &str)],
    target: &Path,
) -> io::Result<()> {
    use rustix::mount as m;
    let context = m::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for dir in lower {
        m::fsconfig_set_string(&context, "lowerdir+", dir)?;
    }
    m::fsconfig_set_string(&context, "upperdir", upper)?;
    m::fsconfig_set_string(&context, "workdir", work)?;
    for (name, value) in options {
        match *value {
            "" => m::fsconfig_set_flag(&context, *name)?,
            value => m::fsconfig_set_string(&context, *name, value)?,
        }
    }
    m::fsconfig_create(&context)?;
    let mount = m::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    m::move_mount(&mount, "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

fn overlay_by_options(
    lower: &[PathBuf],
    upper: &Path,
    work: &Path,
    more: &[(&str, &str)],
    target: &Path,
) -> io::Result<()> {
    let mut options = OsString::from("lowerdir=");
    for (index, dir) in lower.iter().enumerate() {
        if index > 0 {
            options.push(":");
        }
        options.push(escaped(dir, b":,\\"));
    }
    options.push(",upperdir=");
    options.push(escaped(upper, b",\\"));
    options.push(",workdir=");
    options.push(escaped(work, b",\\"));
    for (name, value) in more {
        options.push(if value.is_empty() { format!(",{name}") } else { format!(",{name}={value}") });
    }
    let options = CString::new(options.into_vec())?;
    Ok(rustix::mount::mount("overlay", target, "overlay", MountFlags::empty(), Some(options.as_c_str()))?)
}

/// A path with a backslash before each of `special`, as overlayfs reads its options.
fn escaped(path: &Path, special: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(path.as_os_str().len());
    for byte in path.as_os_str().as_bytes() {
        if special.contains(byte) {
            bytes.push(b'\\');
        }
        bytes.push(*byte);
    }
    OsString::from_vec(bytes)
}

/// Mounts a fresh tmpfs (mode 1777) of at most `size_bytes`; `None`: half of the machine's memory, as the kernel has it
/// where nothing is said (0 would mean no limit, tmpfs(5)).
pub fn tmpfs(target: &Path, size_bytes: Option<u64>) -> io::Result<()> {
    open_tmpfs("tmpfs", target, size_bytes, MountFlags::empty())
}

/// Mounts a fresh tmpfs for the shared memory of processes: as [`tmpfs`], where nothing can be executed.
pub fn shared_memory(target: &Path, size_bytes: u64) -> io::Result<()> {
    open_tmpfs("shm", target, Some(size_bytes), MountFlags::NOEXEC)
}

fn open_tmpfs(source: &str, target: &Path, size_bytes: Option<u64>, more: MountFlags) -> io::Result<()> {
    let size = size_bytes.filter(|bytes| *bytes > 0).map(|bytes| format!(",size={bytes}"));
    let options = CString::new(format!("mode=1777{}", size.unwrap_or_default()))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | more;
    Ok(rustix::mount::mount(source, target, "tmpfs", flags, Some(options.as_c_str()))?)
}

/// Mounts a fresh tmpfs for one owner (mode 0700), which the table shows as `source`.
pub fn private_tmpfs(source: &str, target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(rustix::mount::mount(source, target, "tmpfs", flags, Some(c"mode=700"))?)
}

/// Mounts the unified hierarchy of cgroups, as the calling process's cgroup namespace shows it.
pub fn cgroups(target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(rustix::mount::mount("cgroup2", target, "cgroup2", flags, None)?)
}

/// Whether what is at `path` is kept in memory and on no disk.
pub fn is_memory(path: &Path) -> io::Result<bool> {
    // statfs(2): TMPFS_MAGIC, RAMFS_MAGIC.
    let memory = [0x0102_1994_u32, 0x8584_58f6];
    let kind = rustix::fs::statfs(path)?.f_type;
    Ok(u32::try_from(kind).is_ok_and(|kind| memory.contains(&kind)))
}

/// Shows `source` at `target` too, with what is mounted below it.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_bind_recursive(source, target)?)
}

/// Shows a file or directory at `target` too, where nothing can be written through.
pub fn bind_read_only(source: &Path, target: &Path) -> io::Result<()> {
    rustix::mount::mount_bind(source, target)?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount_remount(target, flags, c"").map_err(|error| {
        // A mount that can be written through would be taken for a protected one.
        let _ = unmount(target);
        error.into()
    })
}

/// Unmounts, at once for new uses and really when the last user is gone. Nothing mounted there, or nothing there, is
/// no error.
pub fn unmount(target: &Path) -> io::Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes the calling process's mounts private, so that none of its changes reach others. For a mount namespace of its
/// own.
pub fn make_private() -> io::Result<()> {
    use rustix::mount::MountPropagationFlags as Flags;
    Ok(rustix::mount::mount_change("/", Flags::PRIVATE | Flags::REC)?)
}

/// Makes the mount at `target` one whose changes reach its copies in other namespaces, and theirs it: a group of its own,
/// which knows nothing of what it was a copy of. It has to be a mount.
pub fn share(target: &Path) -> io::Result<()> {
    use rustix::mount::MountPropagationFlags as Flags;
    rustix::mount::mount_change(target, Flags::PRIVATE)?;
    Ok(rustix::mount::mount_change(target, Flags::SHARED)?)
}

/// Makes the calling process's mounts followers: changes of others reach them, theirs reach nobody. For a mount namespace
/// of its own.
pub fn make_slave() -> io::Result<()> {
    use rustix::mount::MountPropagationFlags as Flags;
    Ok(rustix::mount::mount_change("/", Flags::DOWNSTREAM | Flags::REC)?)
}

/// Makes what is mounted at `target` and below private: nothing that others mount reaches it, nor the other way round.
pub fn seclude(target: &Path) -> io::Result<()> {
    use rustix::mount::MountPropagationFlags as Flags;
    Ok(rustix::mount::mount_change(target, Flags::PRIVATE | Flags::REC)?)
}

/// Makes what is mounted at `target` and below a follower: what others mount reaches it, and nothing the other way round.
pub fn follow(target: &Path) -> io::Result<()> {
    use rustix::mount::MountPropagationFlags as Flags;
    Ok(rustix::mount::mount_change(target, Flags::DOWNSTREAM | Flags::REC)?)
}

/// A directory with what is mounted below it, to be attached elsewhere.
pub fn clone_tree(source: &Path) -> io::Result<OwnedFd> {
    use rustix::mount::OpenTreeFlags as Flags;
    let flags = Flags::OPEN_TREE_CLONE | Flags::OPEN_TREE_CLOEXEC | Flags::AT_RECURSIVE;
    Ok(rustix::mount::open_tree(rustix::fs::CWD, source, flags)?)
}

/// Attaches what [`clone_tree`] gave.
pub fn attach(tree: impl AsFd, target: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, "", rustix::fs::CWD, target, flags)?)
}

/// Mounts a fresh tmpfs that everybody may pass and only root may write or list (mode 0711).
pub fn passable_tmpfs(target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(rustix::mount::mount("passage", target, "tmpfs", flags, Some(c"mode=711"))?)
}

/// Makes an empty read-only tmpfs, mounted over `dir`, the root of the calling process's mount namespace and lets go of
/// everything else.
pub fn enter_empty_root(dir: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("empty", dir, "tmpfs", flags, Some(c"size=4k,mode=555"))?;
    rustix::process::chdir(dir)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::mount::mount_remount("/", flags | MountFlags::RDONLY, c"")?;
    Ok(rustix::process::chdir("/")?)
}

/// What is mounted, as a process sees it (proc(5), `mountinfo`).
#[derive(Debug, Clone, Default)]
pub struct MountTable {
    entries: Vec<MountEntry>,
}

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Where.
    pub target: PathBuf,
    /// The directory of its file system that is shown there.
    pub root: PathBuf,
    /// What it was mounted from: a device, or a name that means nothing to the kernel.
    pub source: String,
    /// The type of file system.
    pub fs_type: String,
    /// The file system's own options.
    pub super_options: String,
    /// What is mounted in it reaches its copies in other namespaces, and what is mounted in those it.
    pub shared: bool,
}

impl MountTable {
    /// The calling process's table.
    pub fn own() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read("/proc/self/mountinfo")?))
    }

    /// A table from the text of a `mountinfo` file. Lines that are none are left out.
    pub fn parse(text: &[u8]) -> Self {
        Self { entries: text.split(|byte| *byte == b'\n').filter_map(parse_line).collect() }
    }

    /// Its lines, in the order of mounting.
    pub fn entries(&self) -> &[MountEntry] {
        &self.entries
    }

    /// The table with only those entries.
    pub fn only(&self, keep: impl Fn(&MountEntry) -> bool) -> Self {
        Self { entries: self.entries.iter().filter(|entry| keep(entry)).cloned().collect() }
    }

    /// The targets at or below a directory, the deepest and latest first: the order of unmounting. Links on the way to the
    /// directory are followed, for the table knows none; the directory itself is taken for what it is. Blocks.
    pub fn below(&self, dir: &Path) -> Vec<PathBuf> {
        let dir = &place(dir);
        self.entries
            .iter()
            .rev()
            .filter(|entry| entry.target.starts_with(dir))
            .map(|entry| entry.target.clone())
            .collect()
    }
}

/// Where a path leads, but for its last part.
fn place(path: &Path) -> PathBuf {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return path.to_owned() };
    parent.canonicalize().map_or_else(|_| path.to_owned(), |parent| parent.join(name))
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = unescaped(fields.by_ref().nth(3)?);
    let target = unescaped(fields.next()?);
    // Optional fields end with a lone dash.
    let mut shared = false;
    let optional = fields.by_ref().skip(1).take_while(|field| *field != b"-");
    optional.for_each(|field| shared |= field.starts_with(b"shared:"));
    let fs_type = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = String::from_utf8_lossy(fields.next()?).into_owned();
    let super_options = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(MountEntry { target, root, source, fs_type, super_options, shared })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads_escapes_and_optional_fields() {
        let table = MountTable::parse(
            b"36 35 98:0 /mnt1 /run/a\\040b rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n\
              37 36 0:5 / /run/a\\040b/c rw - cgroup cgroup rw,memory\nnonsense\n",
        );
        assert_eq!(table.entries().len(), 2);
        assert_eq!(table.entries()[0].source, "/dev/root");
        assert_eq!(table.entries()[1].super_options, "rw,memory");
        assert_eq!(table.entries().iter().map(|entry| entry.shared).collect::<Vec<_>>(), [true, false]);
        assert_eq!(table.below(Path::new("/run/a b")), [Path::new("/run/a b/c"), Path::new("/run/a b")]);
    }

    #[test]
    fn memory_is_bounded_and_only_shared_memory_keeps_programs_from_running() {
        let dir = tempfile::tempdir().unwrap();
        let total = rustix::system::sysinfo().totalram;
        let mounted = [
            ("volume", tmpfs as fn(&Path, Option<u64>) -> io::Result<()>, None),
            ("small", tmpfs, Some(1 << 20)),
            ("shm", |target: &Path, size: Option<u64>| shared_memory(target, size.unwrap()), Some(1 << 20)),
        ]
        .map(|(name, mount, size)| {
            let target = dir.path().join(name);
            std::fs::create_dir(&target).unwrap();
            mount(&target, size).unwrap();
            let fs = rustix::fs::statvfs(&target).unwrap();
            unmount(&target).unwrap();
            (fs.f_blocks * fs.f_frsize, fs.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC))
        });
        let [(whole, _), (small, _), (shared, _)] = mounted;
        assert!(whole > 0 && whole <= total, "{whole} of {total}");
        assert_eq!((small, shared), (1 << 20, 1 << 20));
        assert_eq!(mounted.map(|(_, noexec)| noexec), [false, false, true]);
    }

    #[test]
    fn an_overlay_takes_odd_names_and_goes_without_trace() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (lower, upper, work, target) = (path("low:er,\\1"), path("up,per"), path("work"), path("target"));
        std::fs::write(lower.join("file"), "below").unwrap();
        for mount in [overlay_by_parameters, overlay_by_options] {
            let options = [("metacopy", "off"), ("userxattr", "")];
            mount(std::slice::from_ref(&lower), &upper, &work, &options, &target).unwrap();
            let seen = std::fs::read_to_string(target.join("file"));
            let written = std::fs::write(target.join("new"), "above");
            assert_eq!(MountTable::own().unwrap().below(dir.path()), [target.as_path()]);
            unmount(&target).unwrap();
            unmount(&target).unwrap();
            assert_eq!(seen.unwrap(), "below");
            written.unwrap();
            assert!(upper.join("new").exists());
        }
        assert!(MountTable::own().unwrap().below(dir.path()).is_empty());
    }
}
