//! The shim's executable: carried inside this one, put on disk to be run.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sys::mount::MountTable;

const SHIM: &[u8] = include_bytes!(env!("SKIFF_SHIM"));

/// Puts the executable into `dir` under a name made from its contents' hash, whole or not at all, and answers its path. One
/// that is there already is used: shims of other versions keep running from theirs.
pub(crate) fn install(dir: &Path) -> io::Result<PathBuf> {
    let path = dir.join(concat!("skiff-shim-", env!("SKIFF_SHIM_HASH")));
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == SHIM.len() as u64) {
        return protected(path);
    }
    sys::mount::unmount(&path)?;
    let staged = dir.join(format!("skiff-shim.{}.new", std::process::id()));
    std::fs::write(&staged, SHIM)?;
    std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(0o500))?;
    std::fs::rename(&staged, &path)?;
    protected(path)
}

/// Shows the executable read-only, at its own place: a container that executes its runtime, as which every process of it
/// begins, could else write to it by /proc/PID/exe as soon as no shim runs from it (CVE-2019-5736).
fn protected(path: PathBuf) -> io::Result<PathBuf> {
    let path = std::fs::canonicalize(path)?;
    if !MountTable::own()?.below(&path).contains(&path) {
        sys::mount::bind_read_only(&path, &path)?;
    }
    Ok(path)
}
