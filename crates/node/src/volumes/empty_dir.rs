//! `emptyDir`: a directory of the pod's own, on disk or in memory.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;

use super::set_up::{Setup, fs_group};
use super::{PodDirectories, ownership};
use crate::pod::quantity::value;
use crate::pod::resources::pod_resources;

/// Where it lies.
pub(crate) fn path(directories: &PodDirectories, name: &str, source: &EmptyDirVolumeSource) -> PathBuf {
    if is_memory(source) { directories.memory_volume(name) } else { directories.disk_volume(name) }
}

/// Makes it. Blocks.
pub(super) fn prepare(setup: &Setup, name: &str, source: &EmptyDirVolumeSource) -> io::Result<()> {
    let target = path(&setup.directories, name, source);
    let fresh = !target.exists();
    make_directory(&target, 0o777)?;
    if is_memory(source) && !is_mounted(&target)? {
        sys::mount::tmpfs(&target, memory_size(setup, source))?;
    }
    match fs_group(&setup.pod) {
        Some(gid) if fresh => ownership::give_to_group(&target, gid, false),
        _ => Ok(()),
    }
}

/// The size of a volume in memory: the least of its own limit, the pod's, and what the node has. Source: KEP-1967.
fn memory_size(setup: &Setup, source: &EmptyDirVolumeSource) -> Option<u64> {
    let own = source.size_limit.as_ref().map(value);
    let pod = pod_resources(&setup.pod.spec, None).memory_limit_bytes;
    let bounds = [own, pod, Some(setup.fields.node_memory_bytes)].into_iter().flatten();
    bounds.filter(|bytes| *bytes > 0).min().and_then(|bytes| u64::try_from(bytes).ok())
}

/// Whether it lies in memory.
pub(crate) fn is_memory(source: &EmptyDirVolumeSource) -> bool {
    source.medium.as_deref() == Some("Memory")
}

/// Whether a directory of the node's own is a mount. It itself is not looked at: what is mounted there may not answer.
pub(super) fn is_mounted(path: &Path) -> io::Result<bool> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok(false) };
    // As the table spells it, whatever links lead there.
    let real = match above.canonicalize() {
        Ok(above) => above.join(name),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    Ok(sys::mount::MountTable::own()?.entries().iter().any(|entry| entry.target == real))
}

/// Makes a directory of the node's own with those above it.
pub(super) fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(parent)?;
    }
    fs::create_dir(path)?;
    // The mode at creation is cut by the umask.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pod::fields::FieldContext;
    use crate::pod::tests::pod;

    #[test]
    fn a_mount_is_known_by_every_way_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::create_dir_all(real.join("v")).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(!is_mounted(&link.join("v")).unwrap() && !is_mounted(&link.join("none/v")).unwrap());
        sys::mount::tmpfs(&link.join("v"), Some(4096)).unwrap();
        let known = [&real, &link].map(|root| is_mounted(&root.join("v")).unwrap());
        sys::mount::unmount(&real.join("v")).unwrap();
        assert_eq!(known, [true, true]);
    }

    #[test]
    fn a_volume_in_memory_is_bounded_by_the_least() {
        let size = |limit: Option<&str>, own: Option<&str>, node: i64| {
            let resources =
                limit.map_or(serde_json::json!({}), |limit| serde_json::json!({"limits": {"memory": limit}}));
            let pod = pod(serde_json::json!({"containers": [{"name": "main", "resources": resources}]}));
            let directories = PodDirectories::new(Path::new("/d"), Path::new("/r"), "u1");
            let mut setup = Setup::of(Arc::new(pod), directories);
            setup.fields = FieldContext { node_memory_bytes: node, ..FieldContext::default() };
            let size_limit = own.map(|own| serde_json::from_value(own.into()).unwrap());
            memory_size(&setup, &EmptyDirVolumeSource { size_limit, ..EmptyDirVolumeSource::default() })
        };
        assert_eq!(size(None, None, 4 << 30), Some(4 << 30));
        assert_eq!(size(Some("1Gi"), None, 4 << 30), Some(1 << 30));
        assert_eq!(size(Some("1Gi"), Some("1Mi"), 4 << 30), Some(1 << 20));
        assert_eq!(size(None, Some("8Gi"), 4 << 30), Some(4 << 30));
        assert_eq!(size(None, Some("0"), 0), None, "the kernel's own bound");
    }
}
