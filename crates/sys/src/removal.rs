//! Deletes a directory with what it holds, and nothing else: below a mount lies the data of others. A bind mount may
//! show a directory of the very same file system, so that its device number tells nothing; the kernel is asked to cross no
//! mount (`openat2` with `RESOLVE_NO_XDEV`), and refuses by itself to remove a mount's directory. What containers have put
//! there may be nested as deeply as they liked: beyond [`DEPTH_MAX`] it is taken up to the top first, so that neither stack
//! nor descriptors grow with it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2, renameat, unlinkat,
};
use rustix::io::Errno;

/// Directories within each other that are open at once.
const DEPTH_MAX: usize = 32;
/// How often a directory is read again in which others make files meanwhile.
const PASSES: usize = 100;

/// Removes a directory with all that it holds; nothing there is no error.
///
/// # Errors
/// If something is mounted in it: that is left as it is, with all that it shows.
pub fn remove_tree(root: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (root.parent(), root.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} has no name", root.display())));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let above = match openat(CWD, parent, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(above) => above,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(at(parent, error)),
    };
    // Its own place may be a mount as well.
    let open = match openat2(&above, name, DIRECTORY, Mode::empty(), WITHIN) {
        Ok(open) => open,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::XDEV) => return Err(mounted(root)),
        Err(error) => return Err(at(root, error)),
    };
    Removal { root: &open, path: root, taken_up: 0 }.empty()?;
    match fs::remove_dir(root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::new(error.kind(), format!("{}: {error}", root.display())))
        }
        _ => Ok(()),
    }
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn at(path: &Path, error: Errno) -> io::Error {
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn mounted(path: &Path) -> io::Error {
    let message = format!(
        "{} is a mount that shows the data of others: it is not removed. Unmount it (umount {0}), and the rest goes by itself",
        path.display()
    );
    io::Error::new(io::ErrorKind::ResourceBusy, message)
}

struct Removal<'a> {
    root: &'a OwnedFd,
    path: &'a Path,
    /// How many directories were taken up to the top.
    taken_up: u64,
}

impl Removal<'_> {
    fn empty(&mut self) -> io::Result<()> {
        let root = self.root;
        // What was taken up stands in the root, which is read until nothing is left.
        let mut passes = 0;
        while passes < PASSES {
            let before = self.taken_up;
            if self.pass(root.as_fd(), self.path, 0)? == 0 {
                return Ok(());
            }
            passes += usize::from(self.taken_up == before);
        }
        Err(io::Error::other(format!("{} does not become empty: somebody writes there", self.path.display())))
    }

    /// Removes what a directory shows, and tells how much that was.
    fn pass(&mut self, directory: BorrowedFd<'_>, path: &Path, depth: usize) -> io::Result<u64> {
        let mut found = 0;
        for entry in Dir::read_from(directory).map_err(|error| at(path, error))? {
            let entry = entry.map_err(|error| at(path, error))?;
            let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            found += 1;
            self.remove(directory, path.join(name), entry.file_name(), entry.file_type(), depth)?;
        }
        Ok(found)
    }

    fn remove(
        &mut self,
        parent: BorrowedFd<'_>,
        path: PathBuf,
        name: &std::ffi::CStr,
        kind: FileType,
        depth: usize,
    ) -> io::Result<()> {
        if kind != FileType::Directory {
            match unlinkat(parent, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // Of an unknown type, and a directory.
                Err(Errno::ISDIR) => {}
                Err(Errno::BUSY) => return Err(mounted(&path)),
                Err(error) => return Err(at(&path, error)),
            }
        }
        for _ in 0..PASSES {
            match unlinkat(parent, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(Errno::BUSY) => return Err(mounted(&path)),
                Err(error) => return Err(at(&path, error)),
            }
            // It was no mount a moment ago, or its removal had said so.
            let inside = match enter(parent, name) {
                Ok(inside) => inside,
                Err(Errno::NOENT) => return Ok(()),
                Err(Errno::XDEV) => return Err(mounted(&path)),
                Err(error) => return Err(at(&path, error)),
            };
            if depth >= DEPTH_MAX {
                drop(inside);
                return self.take_up(parent, name, &path);
            }
            self.pass(inside.as_fd(), &path, depth + 1)?;
        }
        Err(io::Error::other(format!("{} does not become empty: somebody writes there", path.display())))
    }

    /// Moves a directory to the top, where the next pass finds it.
    fn take_up(&mut self, parent: BorrowedFd<'_>, name: &std::ffi::CStr, path: &Path) -> io::Result<()> {
        loop {
            self.taken_up += 1;
            match renameat(parent, name, self.root, format!("..removed-{}", self.taken_up)) {
                Ok(()) => return Ok(()),
                Err(Errno::BUSY) => return Err(mounted(path)),
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                Err(error) => return Err(at(path, error)),
            }
        }
    }
}

/// Opens a directory to remove what it holds; a mount is [`Errno::XDEV`].
fn enter(parent: BorrowedFd<'_>, name: &std::ffi::CStr) -> rustix::io::Result<OwnedFd> {
    openat2(parent, name, DIRECTORY, Mode::empty(), WITHIN)
}

const WITHIN: ResolveFlags =
    ResolveFlags::NO_XDEV.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::BENEATH);

#[cfg(test)]
mod tests {
    use super::*;

    /// A mount that is gone with the test, also a failed one.
    struct Bound(PathBuf);

    impl Drop for Bound {
        fn drop(&mut self) {
            let _ = crate::mount::unmount(&self.0);
        }
    }

    fn bound(source: &Path, target: &Path) -> Bound {
        crate::mount::bind(source, target).unwrap();
        Bound(target.to_owned())
    }

    #[test]
    fn below_a_mount_nothing_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (pod, users) = (dir.path().join("pod"), dir.path().join("users"));
        for path in [&pod.join("volumes/data"), &pod.join("other/deep"), &users.join("db")] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(users.join("db/table"), "kept").unwrap();
        fs::write(pod.join("file"), "").unwrap();
        // Of the same file system: only the kernel tells that this is a mount.
        let mount = bound(&users, &pod.join("volumes/data"));
        // Nor of what is a mount itself.
        let error = remove_tree(&pod.join("volumes/data")).unwrap_err().to_string();
        assert!(error.contains("volumes/data is a mount"), "{error}");
        // Also one that comes after its directory was looked at.
        let volumes = openat(CWD, pod.join("volumes"), DIRECTORY, Mode::empty()).unwrap();
        assert_eq!(enter(volumes.as_fd(), c"data").unwrap_err(), Errno::XDEV);
        let error = remove_tree(&pod).unwrap_err().to_string();
        assert!(error.contains("volumes/data is a mount") && error.contains("umount"), "{error}");
        assert_eq!(fs::read_to_string(users.join("db/table")).unwrap(), "kept");
        let file = bound(&users.join("db/table"), &{
            fs::write(pod.join("bound"), "").unwrap();
            pod.join("bound")
        });
        drop(mount);
        assert!(remove_tree(&pod).is_err());
        drop(file);
        remove_tree(&pod).unwrap();
        assert!(!pod.exists());
        assert_eq!(fs::read_to_string(users.join("db/table")).unwrap(), "kept");
        remove_tree(&pod).unwrap();
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (pod, users) = (dir.path().join("pod"), dir.path().join("users"));
        fs::create_dir_all(&pod).unwrap();
        fs::create_dir_all(&users).unwrap();
        fs::write(users.join("file"), "kept").unwrap();
        std::os::unix::fs::symlink(&users, pod.join("link")).unwrap();
        remove_tree(&pod).unwrap();
        assert!(users.join("file").exists());
        // Nor is the root itself followed.
        std::os::unix::fs::symlink(&users, &pod).unwrap();
        assert!(remove_tree(&pod).is_err());
        assert!(users.join("file").exists());
    }

    #[test]
    fn however_deep_a_container_nests_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("pod");
        fs::create_dir(&pod).unwrap();
        let mut current = openat(CWD, &pod, DIRECTORY, Mode::empty()).unwrap();
        // Far deeper than descriptors are held.
        for _ in 0..1000 {
            rustix::fs::mkdirat(&current, "d", Mode::from_raw_mode(0o700)).unwrap();
            drop(openat(&current, "f", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o600)).unwrap());
            current = openat(&current, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        drop(current);
        remove_tree(&pod).unwrap();
        assert!(!pod.exists());
    }
}
