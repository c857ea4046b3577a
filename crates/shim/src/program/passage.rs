//! A way to a sandbox's directory for users who may not pass the directories above it.
//!
//! Root of a user namespace is nobody on the host, and the instance's directories let nobody pass. So the launcher, in a
//! mount namespace of its own, covers the topmost of those with an empty one that lets everybody pass, in which there is
//! nothing but the sandbox's directory, under its path.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sys::ns::Namespace;

/// Makes the way, for this process and what it starts.
pub(crate) fn open(sandbox: &Path) -> io::Result<()> {
    let Some(closed) = topmost_closed(sandbox)? else { return Ok(()) };
    sys::ns::unshare(&[Namespace::Mount])?;
    sys::mount::make_slave()?;
    let tree = sys::mount::clone_tree(sandbox)?;
    sys::mount::passable_tmpfs(&closed)?;
    std::fs::create_dir_all(sandbox)?;
    for directory in sandbox.ancestors().take_while(|directory| *directory != closed) {
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o711))?;
    }
    sys::mount::attach(&tree, sandbox)
}

/// The first of a directory and those above it, from the root, that others may not pass.
fn topmost_closed(directory: &Path) -> io::Result<Option<PathBuf>> {
    let mut down: Vec<&Path> = directory.ancestors().collect();
    down.reverse();
    for ancestor in down {
        if std::fs::metadata(ancestor)?.permissions().mode() & 0o001 == 0 {
            return Ok(Some(ancestor.to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let inner = dir.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        mode(dir.path(), 0o711);
        mode(&dir.path().join("a"), 0o711);
        mode(&inner, 0o700);
        assert_eq!(topmost_closed(&inner).unwrap(), Some(inner.clone()));
        mode(&dir.path().join("a"), 0o700);
        assert_eq!(topmost_closed(&inner).unwrap(), Some(dir.path().join("a")));
        mode(&dir.path().join("a"), 0o711);
        mode(&inner, 0o711);
        assert_eq!(topmost_closed(&inner).unwrap(), None);
    }
}
