//! `subPath`: a part of a volume, found without ever leaving it. A container may have put symbolic links into the volume
//! that point anywhere; the kernel resolves the path inside the volume's root (`openat2` with `RESOLVE_IN_ROOT`), and
//! what it found is bound to a path of the node's own before the container's mounts are made, so that nothing can be
//! exchanged in between.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};

/// Opens `relative` inside `root`, making missing directories of it. The handle is `O_PATH`.
pub(crate) fn open(root: &Path, relative: &str) -> io::Result<OwnedFd> {
    let mut parts = Vec::new();
    for part in Path::new(relative).components() {
        match part {
            Component::Normal(name) => parts.push(name),
            Component::CurDir => {}
            _ => {
                let message = format!("subPath \"{relative}\" must be relative and must not contain '..'");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
        }
    }
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut done = std::path::PathBuf::new();
    let mut current = root.try_clone()?;
    for name in parts {
        done.push(name);
        current = match inside(&root, &done) {
            Ok(found) => found,
            Err(rustix::io::Errno::NOENT) => {
                // The parent is a handle: a link put there meanwhile changes nothing.
                match mkdirat(current.as_fd(), name, Mode::from_raw_mode(0o750)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                inside(&root, &done)?
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(current)
}

fn inside(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn real(fd: &OwnedFd) -> std::path::PathBuf {
        use std::os::fd::AsRawFd as _;
        fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    }

    #[test]
    fn links_are_resolved_inside_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        let root = dir.path().join("root");
        fs::create_dir_all(&outside).unwrap();
        fs::create_dir_all(root.join("data")).unwrap();
        let root = root.canonicalize().unwrap();
        symlink(&outside, root.join("escape")).unwrap();
        symlink("../../..", root.join("up")).unwrap();
        symlink("data", root.join("fine")).unwrap();
        assert_eq!(real(&open(&root, "fine").unwrap()), root.join("data"));
        assert_eq!(real(&open(&root, "up").unwrap()), root);
        // An absolute link leads nowhere inside: it is neither followed nor replaced.
        assert!(open(&root, "escape").is_err());
        assert!(open(&root, "escape/x").is_err());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert!(open(&root, "../outside").is_err());
        assert!(open(&root, "/etc").is_err());
    }

    #[test]
    fn missing_directories_are_made() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        assert_eq!(real(&open(&root, "a/b").unwrap()), root.join("a/b"));
        fs::write(root.join("a/f"), "x").unwrap();
        assert_eq!(real(&open(&root, "a/f").unwrap()), root.join("a/f"));
    }

    /// CVE-2021-25741: a container swaps a directory of its volume for a link while it is looked at.
    #[test]
    fn a_link_that_is_swapped_in_leads_nowhere() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let (root, outside) = (base.join("root"), base.join("outside"));
        fs::create_dir_all(root.join("part/deep")).unwrap();
        fs::create_dir_all(outside.join("deep")).unwrap();
        symlink(&outside, root.join("swap")).unwrap();
        symlink("../outside", root.join("near")).unwrap();
        let done = AtomicBool::new(false);
        let opened = std::thread::scope(|scope| {
            let swapping = scope.spawn(|| {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                while !done.load(Ordering::Relaxed) {
                    for link in ["swap", "near"] {
                        let (part, link) = (root.join("part"), root.join(link));
                        rustix::fs::renameat_with(CWD, part, CWD, link, exchange).unwrap();
                    }
                }
            });
            let mut opened = 0;
            for _ in 0..20_000 {
                if let Ok(found) = open(&root, "part/deep/made") {
                    opened += 1;
                    // The name is what it is by now: what matters is where it never is.
                    assert!(!real(&found).starts_with(&outside), "{:?}", real(&found));
                }
            }
            done.store(true, Ordering::Relaxed);
            swapping.join().unwrap();
            opened
        });
        assert!(opened > 0);
        assert_eq!(fs::read_dir(outside.join("deep")).unwrap().count(), 0);
    }
}
