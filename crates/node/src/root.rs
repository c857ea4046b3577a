//! The node's directory as upstream lays the kubelet's out, and as a mount that is shared: what drivers mount in it, in
//! containers that have it with `mountPropagation: Bidirectional`, is seen by the host and by other containers. Where the
//! host's root is no shared mount (without systemd it is private) nothing in it would be; so it becomes a mount of its own.
//! Source: `pkg/kubelet/config/defaults.go`; mount_namespaces(7).

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;

use sys::mount::{MountEntry, MountTable};

/// Where plugins lay their sockets so that the node finds them.
pub(crate) const REGISTRY: &str = "plugins_registry";
/// Where drivers have their own sockets, and staged volumes.
pub(crate) const PLUGINS: &str = "plugins";

/// Directories that are there before anybody asks for them, for pods that have them as `hostPath`.
const DIRECTORIES: [&str; 5] = [PLUGINS, REGISTRY, "device-plugins", "pod-resources", "pods"];

/// What is to be done so that a directory is a shared mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Nothing,
    /// It is a mount: an administrator's disk, or one that an earlier run made and did not come to share.
    Share,
    BindAndShare,
}

/// Decides by what is mounted there now. Repeated, it finds nothing to do. Pure.
fn step(entries: &[MountEntry], root: &Path) -> Step {
    // The latest lies over the others.
    match entries.iter().rev().find(|entry| entry.target == root) {
        None => Step::BindAndShare,
        Some(MountEntry { shared: true, .. }) => Step::Nothing,
        Some(_) => Step::Share,
    }
}

/// Makes the directories.
///
/// # Errors
/// If one cannot be made.
pub(crate) fn lay_out(root: &Path) -> io::Result<()> {
    for name in DIRECTORIES {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(root.join(name))?;
    }
    Ok(())
}

/// Makes a node's directory a shared mount, unless it is one. It stays one when the process ends: containers have copies
/// of it. Whoever removes the directory unmounts it before.
///
/// # Errors
/// If it cannot be made, or not be mounted: the caller may go on without, and mounts of drivers stay in their containers.
pub fn share_root(root: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(root)?;
    // As the table spells it, whatever links lead there.
    let root = root.canonicalize()?;
    match step(MountTable::own()?.entries(), &root) {
        Step::Nothing => Ok(()),
        Step::Share => sys::mount::share(&root),
        Step::BindAndShare => {
            sys::mount::bind(&root, &root)?;
            sys::mount::share(&root)
        }
    }
}

/// Where charts, drivers and device plugins look for the kubelet's directory.
pub const KNOWN_AS: &str = "/var/lib/kubelet";

/// Shows the node's directory at another place too, if nothing is there: an upstream kubelet's is left alone. What is
/// mounted in one is seen in the other, since the copy of a shared mount is of its group. Tells whether it is shown.
///
/// # Errors
/// If it cannot be looked at, or not be mounted.
pub fn show_root(root: &Path, place: &Path) -> io::Result<bool> {
    if is_same(root, place)? {
        return Ok(true);
    }
    match fs::read_dir(place) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Ok(false);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(place)?,
        Err(error) => return Err(error),
    }
    sys::mount::bind(root, place)?;
    Ok(true)
}

/// Takes away what [`show_root`] has made, and nothing else.
///
/// # Errors
/// If it cannot be unmounted.
pub fn hide_root(root: &Path, place: &Path) -> io::Result<()> {
    if !is_same(root, place)? {
        return Ok(());
    }
    // Where a link leads to the directory itself nothing was made, …
    let real = place.canonicalize()?;
    if real == root.canonicalize()? {
        return Ok(());
    }
    sys::mount::unmount(&real)?;
    match fs::remove_dir(place) {
        // … and where one leads elsewhere it stays, as does an administrator's own mount below ours, and what somebody
        // has put there.
        Err(error) if !is_others(&error) => Err(error),
        _ => Ok(()),
    }
}

fn is_others(error: &io::Error) -> bool {
    use io::ErrorKind::{DirectoryNotEmpty, NotADirectory, NotFound, ResourceBusy};
    matches!(error.kind(), DirectoryNotEmpty | NotADirectory | NotFound | ResourceBusy)
}

/// Whether two names lead to one directory.
fn is_same(root: &Path, place: &Path) -> io::Result<bool> {
    let identity = |path: &Path| match fs::metadata(path) {
        Ok(metadata) => Ok(Some((metadata.dev(), metadata.ino()))),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    };
    let (root, shown) = (identity(root)?, identity(place)?);
    Ok(root.is_some() && root == shown)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    /// Mounts that are gone with the test, also a failed one.
    struct Place(tempfile::TempDir);

    impl Place {
        fn mounts(&self) -> Vec<PathBuf> {
            MountTable::own().unwrap().below(self.0.path())
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            for mounted in self.mounts() {
                let _ = sys::mount::unmount(&mounted);
            }
        }
    }

    #[test]
    fn what_another_namespace_mounts_in_it_is_seen_here() {
        let place = Place(tempfile::tempdir().unwrap());
        let root = place.0.path().join("node");
        share_root(&root).unwrap();
        // As after a crash: nothing is mounted twice.
        share_root(&root).unwrap();
        lay_out(&root).unwrap();
        assert_eq!(place.mounts(), [root.as_path()]);
        let inside = root.join(PLUGINS);
        let script = r#"mount -t tmpfs -o size=4k driver "$1" && touch "$1/volume""#;
        let ran = Command::new("unshare")
            .args(["--mount", "--propagation", "unchanged", "--", "sh", "-c", script, "sh"])
            .arg(&inside)
            .status()
            .unwrap();
        assert!(ran.success());
        assert!(inside.join("volume").exists());
        assert_eq!(place.mounts(), [inside.as_path(), root.as_path()]);
    }

    #[test]
    fn it_is_shown_where_nothing_is_and_hidden_again() {
        let place = Place(tempfile::tempdir().unwrap());
        let (root, shown) = (place.0.path().join("node"), place.0.path().join("kubelet"));
        share_root(&root).unwrap();
        lay_out(&root).unwrap();
        fs::create_dir(&shown).unwrap();
        fs::write(shown.join("config.yaml"), "an upstream kubelet's").unwrap();
        assert!(!show_root(&root, &shown).unwrap());
        hide_root(&root, &shown).unwrap();
        assert_eq!(fs::read_to_string(shown.join("config.yaml")).unwrap(), "an upstream kubelet's");
        fs::remove_dir_all(&shown).unwrap();
        hide_root(&root, &shown).unwrap();
        // As after a crash: once is enough.
        assert!(show_root(&root, &shown).unwrap() && show_root(&root, &shown).unwrap());
        assert_eq!(place.mounts().len(), 2);
        let volume = root.join("pods");
        sys::mount::tmpfs(&volume, Some(4096)).unwrap();
        fs::write(volume.join("volume"), "").unwrap();
        assert!(shown.join("pods/volume").exists());
        sys::mount::unmount(&shown.join("pods")).unwrap();
        assert!(!volume.join("volume").exists());
        hide_root(&root, &shown).unwrap();
        assert!(!shown.exists() && root.join("pods").exists());
        assert_eq!(place.mounts(), [root.as_path()]);
    }

    #[test]
    fn a_place_that_is_a_link_or_a_mount_of_its_own_is_left() {
        let place = Place(tempfile::tempdir().unwrap());
        let path = |name: &str| place.0.path().join(name);
        let (root, disk) = (path("node"), path("disk"));
        share_root(&root).unwrap();
        lay_out(&root).unwrap();
        for (link, target) in [("elsewhere", &disk), ("itself", &root)] {
            fs::create_dir_all(target).unwrap();
            std::os::unix::fs::symlink(target, path(link)).unwrap();
            assert!(show_root(&root, &path(link)).unwrap());
            hide_root(&root, &path(link)).unwrap();
            assert_eq!(place.mounts(), [root.as_path()], "{link}");
            assert!(path(link).is_symlink());
        }
        sys::mount::tmpfs(&disk, Some(4096)).unwrap();
        assert!(show_root(&root, &disk).unwrap());
        hide_root(&root, &disk).unwrap();
        assert!(disk.exists() && place.mounts().contains(&disk) && root.join("pods").exists());
        fs::write(path("file"), "").unwrap();
        hide_root(&root, &path("file/kubelet")).unwrap();
    }

    #[test]
    fn a_mount_that_is_there_is_shared_and_not_made_again() {
        let entry = |target: &str, shared| MountEntry {
            target: target.into(),
            root: "/".into(),
            source: "x".into(),
            fs_type: "ext4".into(),
            super_options: "rw".into(),
            shared,
        };
        let root = Path::new("/data/node");
        assert_eq!(step(&[entry("/", true), entry("/data/node/x", true)], root), Step::BindAndShare);
        assert_eq!(step(&[entry("/data/node", true)], root), Step::Nothing);
        assert_eq!(step(&[entry("/data/node", true), entry("/data/node", false)], root), Step::Share);
    }
}
