//! `fsGroup`: the group that may use a pod's volumes. Other pods may be at work in the volume meanwhile: every file is held
//! by a handle that was found without following a link and without crossing a mount, so that nothing outside of the
//! volume is ever changed, whatever they put in its place.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, Gid, Mode, OFlags, ResolveFlags, chownat, openat, openat2};
use rustix::io::Errno;

/// What the pod says of the group of its volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) gid: u32,
    /// `fsGroupChangePolicy: OnRootMismatch`: a volume whose own directory is as it should be is left alone.
    pub(crate) on_root_mismatch: bool,
}

/// Gives a volume that is the pod's to write to its group. Source: upstream's `VolumeOwnership.ChangePermissions`.
pub(crate) fn hand_over(root: &Path, group: Group) -> io::Result<()> {
    if group.on_root_mismatch {
        let metadata = fs::metadata(root)?;
        let wanted = mask(true, false);
        if metadata.gid() == group.gid && metadata.permissions().mode() & wanted == wanted {
            return Ok(());
        }
    }
    give_to_group(root, group.gid, false)
}

/// What the group may do with a directory, or with a file.
fn mask(directory: bool, read_only: bool) -> u32 {
    match (directory, read_only) {
        (true, true) => 0o2550,
        (true, false) => 0o2770,
        (false, true) => 0o440,
        (false, false) => 0o660,
    }
}

/// Gives a tree to a group: files become readable (and, unless `read_only`, writable) for it, directories also pass it
/// on. Symbolic links are left alone, and so is what is mounted in it. Source: upstream's `SetVolumeOwnership`.
pub(crate) fn give_to_group(root: &Path, gid: u32, read_only: bool) -> io::Result<()> {
    let top = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // Directories that are yet to be read. The root comes last of all, so that it tells of the whole tree.
    let mut open = vec![PathBuf::from(".")];
    while let Some(directory) = open.pop() {
        let inside = match find(&top, &directory, OFlags::DIRECTORY) {
            Ok(inside) => inside,
            // Gone, or something else by now.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => continue,
            Err(error) => return Err(error.into()),
        };
        if directory != Path::new(".") {
            give(&inside, gid, read_only)?;
        }
        for entry in Dir::read_from(&inside)? {
            let entry = entry?;
            let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let path = directory.join(name);
            let found = match find(&top, &path, OFlags::PATH) {
                Ok(found) => found,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => continue,
                Err(error) => return Err(error.into()),
            };
            let metadata = metadata(&found)?;
            if metadata.is_dir() {
                open.push(path);
            } else if !metadata.is_symlink() {
                give(&found, gid, read_only)?;
            }
        }
    }
    give(&top, gid, read_only)
}

fn find(top: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(top, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), within)
}

/// The way to change what a handle holds.
fn held(found: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

fn metadata(found: &OwnedFd) -> io::Result<fs::Metadata> {
    fs::File::from(found.try_clone()?).metadata()
}

fn give(found: &OwnedFd, gid: u32, read_only: bool) -> io::Result<()> {
    let metadata = metadata(found)?;
    let wanted = mask(metadata.is_dir(), read_only);
    if metadata.gid() != gid {
        chownat(found, "", None, Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)?;
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode | wanted != mode || metadata.gid() != gid {
        // Changing the group clears set-id bits: the mode comes after it.
        fs::set_permissions(held(found), fs::Permissions::from_mode(mode | wanted))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_tree_is_given_to_its_group() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/f"), "x").unwrap();
        fs::set_permissions(root.join("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("dirlink")).unwrap();
        let before = mode(Path::new("/etc/passwd"));
        // The tests' own group: giving to another needs rights that tests may lack.
        let gid = fs::metadata(root).unwrap().gid();
        give_to_group(root, gid, false).unwrap();
        assert_eq!(mode(&root.join("d")), 0o2775);
        assert_eq!(mode(&root.join("d/f")), 0o660);
        assert_eq!(mode(root) & 0o2070, 0o2070);
        assert_eq!(mode(Path::new("/etc/passwd")), before);
    }

    #[test]
    fn a_volume_that_is_as_it_should_be_is_left_alone_where_that_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let gid = fs::metadata(root).unwrap().gid();
        let always = Group { gid, on_root_mismatch: false };
        let on_mismatch = Group { gid, on_root_mismatch: true };
        let secret = root.join("f");
        let strict = || {
            fs::write(&secret, "x").unwrap();
            fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        };
        strict();
        hand_over(root, on_mismatch).unwrap();
        assert_eq!(mode(&secret), 0o660);
        strict();
        hand_over(root, on_mismatch).unwrap();
        assert_eq!(mode(&secret), 0o600);
        hand_over(root, always).unwrap();
        assert_eq!(mode(&secret), 0o660);
    }

    #[test]
    fn what_is_mounted_in_a_volume_is_not_the_volumes() {
        let dir = tempfile::tempdir().unwrap();
        let (root, other) = (dir.path().join("root"), dir.path().join("other"));
        fs::create_dir_all(root.join("m")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("f"), "x").unwrap();
        fs::set_permissions(other.join("f"), fs::Permissions::from_mode(0o600)).unwrap();
        let gid = fs::metadata(&root).unwrap().gid();
        sys::mount::bind(&other, &root.join("m")).unwrap();
        let given = give_to_group(&root, gid, false);
        sys::mount::unmount(&root.join("m")).unwrap();
        given.unwrap();
        assert_eq!(mode(&other.join("f")), 0o600);
    }
}
