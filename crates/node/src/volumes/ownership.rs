//! `fsGroup`: the group that may use a pod's volumes.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

/// Gives a tree to a group: files become readable (and, unless `read_only`, writable) for it, directories also pass it
/// on. Symbolic links are left alone. Source: upstream's `SetVolumeOwnership`.
pub(crate) fn give_to_group(root: &Path, gid: u32, read_only: bool) -> io::Result<()> {
    let mut open = vec![root.to_path_buf()];
    while let Some(path) = open.pop() {
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_symlink() {
            continue;
        }
        let mask = match (metadata.is_dir(), read_only) {
            (true, true) => 0o2550,
            (true, false) => 0o2770,
            (false, true) => 0o440,
            (false, false) => 0o660,
        };
        if metadata.gid() != gid {
            chown(&path, None, Some(gid))?;
        }
        let mode = metadata.permissions().mode() & 0o7777;
        if mode | mask != mode || metadata.gid() != gid {
            // Changing the group clears set-id bits: the mode comes after it.
            fs::set_permissions(&path, fs::Permissions::from_mode(mode | mask))?;
        }
        if metadata.is_dir() {
            for entry in fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_given_to_its_group() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/f"), "x").unwrap();
        fs::set_permissions(root.join("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
        let before = fs::metadata("/etc/passwd").unwrap().permissions().mode();
        // The tests' own group: giving to another needs rights that tests may lack.
        let gid = fs::metadata(root).unwrap().gid();
        give_to_group(root, gid, false).unwrap();
        assert_eq!(fs::metadata(root.join("d")).unwrap().permissions().mode() & 0o7777, 0o2775);
        assert_eq!(fs::metadata(root.join("d/f")).unwrap().permissions().mode() & 0o7777, 0o660);
        assert_eq!(fs::metadata("/etc/passwd").unwrap().permissions().mode(), before);
    }
}
