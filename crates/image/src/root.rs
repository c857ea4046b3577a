//! A directory as the root of untrusted paths: the kernel resolves every path inside it, symbolic links included.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Stat, mkdirat, openat2, readlinkat, statat};
use rustix::io::Errno;

/// How often a resolution that raced with a rename is tried again.
const RACES_MAX: usize = 32;
/// How many links a path may lead through (the kernel's own bound).
const LINKS_MAX: usize = 40;

/// A directory that paths cannot leave.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Opens a directory of the host.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { fd: rustix::fs::openat(CWD, path, flags, Mode::empty())? })
    }

    /// A directory that is open already.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// The directory itself.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A directory inside, for `*at` calls on the names in it.
    pub fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        self.resolve(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
    }

    /// A directory inside, opened for reading it, its attributes and its times.
    pub fn read_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
    }

    /// A file inside, for reading. Never blocks on a pipe or a device that the path may mean.
    pub fn file(&self, path: &Path) -> io::Result<File> {
        self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty()).map(File::from)
    }

    /// What a path is, after following every symbolic link.
    pub fn stat(&self, path: &Path) -> io::Result<Stat> {
        let fd = self.resolve(path, OFlags::PATH, Mode::empty())?;
        Ok(statat(&fd, "", AtFlags::EMPTY_PATH)?)
    }

    /// What a path is, without following its last component.
    pub fn stat_itself(&self, path: &Path) -> io::Result<Stat> {
        let fd = self.resolve(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(statat(&fd, "", AtFlags::EMPTY_PATH)?)
    }

    /// The directory that holds a path, and the path's name in it. `None` for the root itself.
    pub fn parent(&self, path: &Path) -> io::Result<Option<(OwnedFd, OsString)>> {
        let path = clean(path);
        let Some(name) = path.file_name() else { return Ok(None) };
        let directory = self.directory(path.parent().unwrap_or(Path::new("")))?;
        Ok(Some((directory, name.to_owned())))
    }

    /// Where a path leads, also through links to what is not there (yet): where a mount on it needs its mount point.
    pub fn follow(&self, path: &Path) -> io::Result<PathBuf> {
        let mut walked = PathBuf::new();
        let mut waiting: Vec<OsString> = reversed(path);
        let mut links = 0;
        while let Some(name) = waiting.pop() {
            if name == ".." {
                walked.pop();
                continue;
            }
            let at = walked.join(&name);
            match self.directory(&walked).and_then(|parent| Ok(readlinkat(parent, &name, Vec::new())?)) {
                Ok(_) if links == LINKS_MAX => return Err(Errno::LOOP.into()),
                Ok(target) => {
                    links += 1;
                    let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                    if target.is_absolute() {
                        walked.clear();
                    }
                    waiting.extend(reversed(&target));
                }
                // No link, or nothing at all.
                Err(_) => walked = at,
            }
        }
        Ok(walked)
    }

    /// Makes the directories of a path that are missing, asking `made` to finish each new one (given its path, its
    /// parent and its name). Existing ones, also through symbolic links, are left alone.
    pub fn make_directories<E: From<io::Error>>(
        &self,
        path: &Path,
        mut made: impl FnMut(&Path, &OwnedFd, &OsStr) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut walked = PathBuf::new();
        for component in clean(path).components() {
            let parent = self.directory(&walked)?;
            walked.push(component);
            match mkdirat(&parent, component.as_os_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) => made(&walked, &parent, component.as_os_str())?,
                // A link to nowhere makes the next step fail with its own error.
                Err(Errno::EXIST) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        self.directory(&walked)?;
        Ok(())
    }

    fn resolve(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..RACES_MAX {
            match openat2(&self.fd, path, flags | OFlags::CLOEXEC, mode, inside) {
                Err(Errno::AGAIN) => {}
                other => return Ok(other?),
            }
        }
        Err(io::Error::other(format!("{} changes too fast to be resolved", path.display())))
    }
}

/// A path's names, the last first; the root and `.` are none.
fn reversed(path: &Path) -> Vec<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(_) | Component::ParentDir => Some(component.as_os_str().to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(name).collect()
}

/// A path as a relative one without `.` and with `..` taken literally, never above the root.
pub fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

/// An archive's path made relative; `None` where it holds `..` or a zero byte, which no honest archive does.
pub(crate) fn archive_path(bytes: &[u8]) -> Option<PathBuf> {
    let path = Path::new(OsStr::from_bytes(bytes));
    let honest = !bytes.contains(&0) && !path.components().any(|component| component == Component::ParentDir);
    honest.then(|| clean(path))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn paths_are_cleaned() {
        assert_eq!(clean(Path::new("/a/./b/../c/")), Path::new("a/c"));
        assert_eq!(clean(Path::new("../../etc")), Path::new("etc"));
        assert_eq!(clean(Path::new("/")), Path::new(""));
        assert_eq!(archive_path(b"./a//b").unwrap(), Path::new("a/b"));
        assert_eq!(archive_path(b"/etc/x").unwrap(), Path::new("etc/x"));
        assert!(archive_path(b"a/../../b").is_none());
        assert!(archive_path(b"a\0b").is_none());
    }

    #[test]
    fn a_path_is_followed_to_where_nothing_is() {
        let inside = tempfile::tempdir().unwrap();
        let link = |target: &str, name: &str| symlink(target, inside.path().join(name)).unwrap();
        fs::create_dir_all(inside.path().join("usr/etc")).unwrap();
        link("usr/etc", "etc");
        link("../run/resolv.conf", "usr/etc/resolv.conf");
        link("/../../outside/f", "up");
        link("loop", "loop");
        let root = Root::open(inside.path()).unwrap();
        for (path, end) in [
            ("/etc/resolv.conf", "usr/run/resolv.conf"),
            ("/up", "outside/f"),
            ("/up/x/../y", "outside/f/y"),
            ("etc/none/./x", "usr/etc/none/x"),
            ("/", ""),
        ] {
            assert_eq!(root.follow(Path::new(path)).unwrap(), Path::new(end), "{path}");
        }
        assert!(root.follow(Path::new("loop")).is_err());
    }

    #[test]
    fn links_cannot_leave_the_root() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        let inside = tempfile::tempdir().unwrap();
        symlink(outside.path(), inside.path().join("absolute")).unwrap();
        symlink("../../../../../../../../tmp", inside.path().join("up")).unwrap();
        symlink("/proc/self/root", inside.path().join("magic")).unwrap();
        fs::create_dir(inside.path().join("tmp")).unwrap();
        fs::write(inside.path().join("tmp/mine"), "m").unwrap();
        let root = Root::open(inside.path()).unwrap();
        assert!(root.file(Path::new("absolute/secret")).is_err());
        assert!(root.directory(Path::new("magic")).is_err());
        assert!(root.file(Path::new("up/mine")).is_ok(), "`..` stops at the root");
        let none = |_: &Path, _: &OwnedFd, _: &OsStr| Ok::<(), io::Error>(());
        assert!(root.make_directories(Path::new("absolute/new"), none).is_err());
        assert!(!outside.path().join("new").exists());
        root.make_directories(Path::new("up/new/deep"), none).unwrap();
        assert!(inside.path().join("tmp/new/deep").is_dir());
    }
}
