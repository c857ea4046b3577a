//! Takes a pod's volumes away. What users keep may be mounted below the pod's directories (parts of volumes are, for
//! containers that ask for a `subPath`): before anything is deleted nothing may be mounted there any more, and the deletion
//! itself crosses no mount, so that also one that was missed, or came meanwhile, costs nobody's data.

use std::io;
use std::path::Path;

use sys::removal::remove_tree;

use super::PodDirectories;

/// How often mounts are looked for that came while others went.
const LOOKS: usize = 3;

/// Unmounts and removes everything of the pod. Blocks.
///
/// # Errors
/// If something stays mounted: nothing is deleted below it, and a later call goes on.
pub(crate) fn tear_down(directories: &PodDirectories) -> io::Result<()> {
    for root in [directories.run(), directories.data()] {
        unmount_below(root)?;
        remove_tree(root)?;
    }
    Ok(())
}

fn unmount_below(root: &Path) -> io::Result<()> {
    // As the table spells it, whatever links lead there.
    let root = match root.canonicalize() {
        Ok(root) => root,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for _ in 0..LOOKS {
        let mounted = sys::mount::MountTable::own()?.below(&root);
        if mounted.is_empty() {
            return Ok(());
        }
        for path in mounted {
            sys::mount::unmount(&path)?;
        }
    }
    match sys::mount::MountTable::own()?.below(&root).as_slice() {
        [] => Ok(()),
        left => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("{left:?} cannot be unmounted: nothing of the pod is deleted before they are"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_mounted_goes_and_what_it_showed_stays() {
        let dir = tempfile::tempdir().unwrap();
        let users = dir.path().join("users");
        fs::create_dir_all(&users).unwrap();
        fs::write(users.join("db"), "kept").unwrap();
        // The node's directory behind a link, as where an administrator moved it to another disk.
        fs::create_dir(dir.path().join("disk")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("disk"), dir.path().join("data")).unwrap();
        let directories = PodDirectories::new(&dir.path().join("data"), &dir.path().join("run"), "u1");
        let places = [directories.subpath("data", "main", 0), directories.disk_volume("left")];
        for place in &places {
            fs::create_dir_all(place).unwrap();
            sys::mount::bind(&users, place).unwrap();
        }
        // One over the other.
        sys::mount::bind(&users, &places[1]).unwrap();
        tear_down(&directories).unwrap();
        assert!(!directories.data().exists() && !directories.run().exists());
        assert_eq!(fs::read_to_string(users.join("db")).unwrap(), "kept");
        tear_down(&directories).unwrap();
    }
}
