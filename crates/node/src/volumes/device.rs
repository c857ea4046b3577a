//! Block devices that are volumes: with the file system that they hold, or one that is made where they are empty; or as
//! they are. What holds anything else is left alone. Source: `pkg/volume/local`, `SafeFormatAndMount` in `mount-utils`.

use std::fs::File;
use std::io::{self, Seek as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::path::Path;
use std::process::Command;

use rustix::fs::FlockOperation;
use sys::mount_options::Options;

use super::empty_dir;

/// What is made where nothing is asked for.
const DEFAULT: &str = "ext4";
/// So much of a device's beginning, and of its end, has to be nothing but zeros before it counts as empty: partition
/// tables and members of arrays have their names at the end as well.
const EMPTY_BYTES: u64 = 1 << 20;

/// A file system that can be made: its name, and what its program is to be told beside the device.
const MAKERS: [(&str, &[&str]); 5] =
    [("ext4", &["-F", "-m0"]), ("ext3", &["-F", "-m0"]), ("ext2", &["-F"]), ("xfs", &[]), ("btrfs", &[])];

/// Where file systems have their names. Source: `magic` of libblkid.
const MAGIC: [(&str, u64, &[u8]); 3] =
    [("ext", 0x438, &[0x53, 0xef]), ("xfs", 0, b"XFSB"), ("btrfs", 0x1_0040, b"_BHRfS_M")];

/// What a device holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// Nothing, as far as can be seen.
    Empty,
    /// A file system, by its family.
    FileSystem(&'static str),
    /// Something else.
    Other,
}

/// How a device is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// `ext4` where nothing is said.
    pub(crate) fs_type: Option<String>,
    pub(crate) options: Options,
}

/// Whether a path leads to a block device.
pub(crate) fn is_device(path: &Path) -> io::Result<bool> {
    Ok(std::fs::metadata(path)?.file_type().is_block_device())
}

/// That a volume which a container is to use as a device is one.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    match is_device(path) {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("path \"{}\" is no block device", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(format!("path \"{}\" does not exist", path.display()))
        }
        Err(error) => Err(format!("path \"{}\": {error}", path.display())),
    }
}

/// Mounts a device, where it is not mounted yet. Blocks.
pub(crate) fn prepare(device: &Path, target: &Path, asked: &Asked) -> Result<(), String> {
    let failed = |error: io::Error| format!("{}: {error}", device.display());
    empty_dir::make_directory(target, 0o750).map_err(failed)?;
    if empty_dir::is_mounted(target).map_err(failed)? {
        return Ok(());
    }
    let wanted = asked.fs_type.as_deref().filter(|kind| !kind.is_empty()).unwrap_or(DEFAULT);
    let Some((_, arguments)) = MAKERS.iter().find(|(kind, _)| *kind == wanted) else {
        let known = MAKERS.map(|(kind, _)| kind).join(", ");
        return Err(format!(
            "fsType {wanted:?} is none that this node mounts from a device: it knows {known}"
        ));
    };
    let file = File::open(device).map_err(failed)?;
    // Another pod may be about to do the same: what one finds empty, the other has filled a moment later.
    rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
    match content(&file).map_err(failed)? {
        Content::FileSystem(_) => {}
        Content::Empty if asked.options.is_read_only() => {
            return Err(format!(
                "cannot mount unformatted disk {} as we are manipulating it in read-only mode",
                device.display()
            ));
        }
        Content::Empty => make(device, wanted, arguments)?,
        Content::Other => {
            return Err(format!(
                "device {0} holds something that is no file system of type {wanted}, and is not formatted: if nobody needs it, clear it (wipefs -a {0})",
                device.display()
            ));
        }
    }
    let mounted = asked.options.mount(device, target, wanted);
    mounted.map_err(|error| format!("mount failed: mounting {} as {wanted}: {error}", device.display()))
}

fn content(file: &File) -> io::Result<Content> {
    for (family, at, magic) in MAGIC {
        let mut found = vec![0; magic.len()];
        if file.read_exact_at(&mut found, at).is_ok() && found == magic {
            return Ok(Content::FileSystem(family));
        }
    }
    let size = (&*file).seek(io::SeekFrom::End(0))?;
    let empty = is_zero(file, 0)? && is_zero(file, size.saturating_sub(EMPTY_BYTES))?;
    Ok(if empty { Content::Empty } else { Content::Other })
}

/// Whether nothing but zeros is there from an offset on, as far as is looked.
fn is_zero(file: &File, from: u64) -> io::Result<bool> {
    let mut buffer = vec![0; 64 << 10];
    let mut at = from;
    while at < from + EMPTY_BYTES {
        match file.read_at(&mut buffer, at)? {
            0 => break,
            read if buffer[..read].iter().any(|byte| *byte != 0) => return Ok(false),
            read => at += read as u64,
        }
    }
    Ok(true)
}

/// Has the file system's own program make one: no library does.
fn make(device: &Path, kind: &str, arguments: &[&str]) -> Result<(), String> {
    let program = format!("mkfs.{kind}");
    let made = Command::new(&program).args(arguments).arg(device).output();
    let made = made.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            format!("failed to format {}: {program} is not installed on this host", device.display())
        }
        _ => format!("failed to format {}: {program}: {error}", device.display()),
    })?;
    if made.status.success() {
        tracing::info!(device = %device.display(), kind, "an empty device was formatted");
        return Ok(());
    }
    let said = String::from_utf8_lossy(&made.stderr);
    let said = said.trim();
    let said = &said[..said.floor_char_boundary(500)];
    Err(format!("failed to format {}: {program}: {}: {said}", device.display(), made.status))
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A loop device over a file, gone with the test.
    pub(in super::super) struct Loop(pub(in super::super) PathBuf);

    impl Loop {
        pub(in super::super) fn over(file: &Path) -> Self {
            let made = Command::new("losetup").args(["-f", "--show"]).arg(file).output().unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            Self(PathBuf::from(String::from_utf8(made.stdout).unwrap().trim()))
        }

        pub(in super::super) fn of_size(dir: &Path, bytes: u64) -> Self {
            let file = dir.join("disk");
            File::create(&file).unwrap().set_len(bytes).unwrap();
            Self::over(&file)
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
        }
    }

    /// A mount that is gone with the test, also a failed one.
    struct Mounted(PathBuf);

    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = sys::mount::unmount(&self.0);
        }
    }

    fn asked(fs_type: Option<&str>) -> Asked {
        Asked { fs_type: fs_type.map(str::to_owned), options: Options::parse(&["noatime"]).unwrap() }
    }

    #[test]
    fn an_empty_device_is_formatted_once() {
        let dir = tempfile::tempdir().unwrap();
        let device = Loop::of_size(dir.path(), 16 << 20);
        let target = Mounted(dir.path().join("mounted"));
        assert_eq!(content(&File::open(&device.0).unwrap()).unwrap(), Content::Empty);
        prepare(&device.0, &target.0, &asked(None)).unwrap();
        std::fs::write(target.0.join("db"), "kept").unwrap();
        prepare(&device.0, &target.0, &asked(None)).unwrap();
        let table = sys::mount::MountTable::own().unwrap();
        let real = target.0.canonicalize().unwrap();
        let here: Vec<_> = table.entries().iter().filter(|entry| entry.target == real).collect();
        assert_eq!(here.iter().map(|entry| &*entry.fs_type).collect::<Vec<_>>(), ["ext4"], "mounted once");
        sys::mount::unmount(&target.0).unwrap();
        assert_eq!(content(&File::open(&device.0).unwrap()).unwrap(), Content::FileSystem("ext"));
        prepare(&device.0, &target.0, &asked(Some("ext4"))).unwrap();
        assert_eq!(std::fs::read_to_string(target.0.join("db")).unwrap(), "kept");
    }

    #[test]
    fn what_somebody_may_need_is_not_formatted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        std::fs::write(&file, [vec![0; 4096], b"precious".to_vec(), vec![0; 1 << 20]].concat()).unwrap();
        let device = Loop::over(&file);
        let target = Mounted(dir.path().join("mounted"));
        let error = prepare(&device.0, &target.0, &asked(None)).unwrap_err();
        assert!(error.contains("is not formatted") && error.contains("wipefs -a /dev/loop"), "{error}");
        let error = prepare(&device.0, &target.0, &asked(Some("../evil"))).unwrap_err();
        assert!(error.contains("none that this node mounts"), "{error}");
        assert!(std::fs::read(&file).unwrap().windows(8).any(|bytes| bytes == b"precious"));
    }

    #[test]
    fn who_only_reads_and_what_has_an_end_cost_nobody_anything() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        let device = Loop::of_size(dir.path(), 16 << 20);
        let target = Mounted(dir.path().join("mounted"));
        let reads = Asked { fs_type: None, options: Options::parse(&["ro"]).unwrap() };
        let error = prepare(&device.0, &target.0, &reads).unwrap_err();
        assert!(error.starts_with("cannot mount unformatted disk /dev/loop"), "{error}");
        assert!(std::fs::read(&file).unwrap().iter().all(|byte| *byte == 0));
        drop(device);
        // As where a partition table has its copy.
        File::options().write(true).open(&file).unwrap().write_all_at(b"EFI PART", (16 << 20) - 512).unwrap();
        let device = Loop::over(&file);
        assert!(prepare(&device.0, &target.0, &asked(None)).unwrap_err().contains("is not formatted"));
        assert!(std::fs::read(&file).unwrap().windows(8).any(|bytes| bytes == b"EFI PART"));
    }

    #[test]
    fn only_a_device_is_used_as_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check(dir.path()).unwrap_err().ends_with("is no block device"));
        assert!(check(&dir.path().join("none")).unwrap_err().ends_with("does not exist"));
        assert!(check(Path::new("/dev/null")).unwrap_err().ends_with("is no block device"));
    }
}
