//! The instance's directories as file systems: what holds secrets is memory, and removal never reaches through a mount.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail};
use cli::claim::Claim;
use sys::mount::MountTable;

/// The source of a tmpfs of Skiff's own, as `mount` shows it.
const OWN: &str = "skiff-run";

/// Sees to it that the run directory, which holds pods' Secrets and tokens, is memory: where it is on a disk, and empty,
/// a tmpfs is mounted over it. What cannot be helped is told.
pub(crate) fn keep_in_memory(run_dir: &Path) -> Result<()> {
    if sys::mount::is_memory(run_dir).with_context(|| format!("look at {}", run_dir.display()))? {
        return Ok(());
    }
    let remedy = "Secrets of pods are written to a disk; give a directory on a tmpfs with --run-dir";
    // Those outside of the namespaces would not see its sockets.
    if crate::rootless::inside().is_some() {
        tracing::warn!(directory = %run_dir.display(), "the run directory is no tmpfs: {remedy}");
        return Ok(());
    }
    let is_empty = fs::read_dir(run_dir).is_ok_and(|mut entries| entries.next().is_none());
    if !is_empty {
        tracing::warn!(directory = %run_dir.display(), "the run directory is in use and no tmpfs: {remedy}");
        return Ok(());
    }
    if let Err(error) = sys::mount::private_tmpfs(OWN, run_dir) {
        tracing::warn!(directory = %run_dir.display(), %error, "no tmpfs can be mounted on the run directory: {remedy}");
    }
    Ok(())
}

/// Removes the run directory with everything in it, also a tmpfs of Skiff's own.
pub(crate) fn remove(run_dir: &Path) -> Result<()> {
    empty(run_dir)?;
    let table = MountTable::own().context("read the mounts")?;
    if table.entries().iter().any(|entry| entry.target == run_dir && entry.source == OWN) {
        sys::mount::unmount(run_dir).with_context(|| format!("unmount {}", run_dir.display()))?;
    }
    empty(run_dir)
}

/// Removes a directory; one that is a mount point of its own is emptied.
pub(crate) fn empty(directory: &Path) -> Result<()> {
    clear(directory)?;
    let claim = fs::remove_file(directory.join(Claim::FILE));
    let claim = claim.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) });
    match claim.and_then(|()| fs::remove_dir(directory)) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ResourceBusy) => Ok(()),
        other => other.with_context(|| format!("remove {}", directory.display())),
    }
}

/// Removes everything in a directory but the claim: what is interrupted is still known as the instance's, and can be
/// gone on with. What is mounted inside is unmounted first: behind such a mount may be a directory of the host (a
/// `subPath` of a `hostPath` volume), which is nobody's to remove.
pub(crate) fn clear(directory: &Path) -> Result<()> {
    // As the table spells it, whatever links lead there.
    let real = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let inside = || -> Result<Vec<_>> {
        let table = MountTable::own().context("read the mounts")?;
        Ok(table.below(&real).into_iter().filter(|target| *target != real).collect())
    };
    for target in inside()? {
        sys::mount::unmount(&target).with_context(|| format!("unmount {}", target.display()))?;
    }
    let left = inside()?;
    if !left.is_empty() {
        bail!("{left:?} cannot be unmounted: unmount by hand, then run skiff down --purge again");
    }
    let remove = || -> std::io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                // Nor is anything removed below what is mounted while this is at it.
                true => sys::removal::remove_tree(&entry.path())?,
                false if entry.file_name() == Claim::FILE => {}
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    };
    match remove() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| format!("empty {}", directory.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_inside_is_let_go_and_not_emptied() {
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("precious"), "kept").unwrap();
        let place = tempfile::tempdir().unwrap();
        let run = place.path().join("run");
        let mounted = run.join("node/pods/u/subpaths/data/main/0");
        fs::create_dir_all(&mounted).unwrap();
        sys::mount::bind(host.path(), &mounted).unwrap();
        fs::write(run.join(Claim::FILE), "").unwrap();
        clear(&run).unwrap();
        assert_eq!(fs::read_dir(&run).unwrap().count(), 1, "only what says whose it is");
        remove(&run).unwrap();
        assert!(!run.exists());
        assert_eq!(fs::read_to_string(host.path().join("precious")).unwrap(), "kept");
    }

    #[test]
    fn a_run_directory_on_a_disk_becomes_memory_and_goes_again() {
        let place = tempfile::tempdir().unwrap();
        let run = place.path().join("run");
        fs::create_dir(&run).unwrap();
        if sys::mount::is_memory(&run).unwrap() {
            return;
        }
        keep_in_memory(&run).unwrap();
        assert!(sys::mount::is_memory(&run).unwrap());
        fs::write(run.join("secret"), "s").unwrap();
        keep_in_memory(&run).unwrap();
        remove(&run).unwrap();
        assert!(!run.exists());
        assert!(MountTable::own().unwrap().below(place.path()).is_empty());
    }
}
