//! Sets a pod's volumes up, binds them into containers, and takes everything away at the end. All of it is idempotent:
//! a node that comes back does it again. These functions block.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use engine_api::{Mount, MountPropagation, MountSource};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, Volume, VolumeMount};

use super::payload::{self, Objects, Payload, Readers, Source};
use super::{PodDirectories, VolumeError, atomic, host_path, ownership, subpath};
use crate::pod::PodView;
use crate::pod::env::expand;
use crate::pod::fields::FieldContext;
use crate::pod::quantity::value;
use crate::pod::resources::pod_resources;
use crate::pod::spec::message_path;

/// What volumes are made from.
pub(crate) struct Setup<'a> {
    pub(crate) pod: &'a PodView,
    pub(crate) directories: &'a PodDirectories,
    pub(crate) fields: &'a FieldContext,
    pub(crate) objects: &'a dyn Objects,
    pub(crate) now: Timestamp,
}

/// Makes and fills every volume of the pod; repeated, it brings them up to date.
pub(crate) fn set_up(setup: &Setup<'_>) -> Result<(), VolumeError> {
    for volume in setup.pod.spec.volumes.iter().flatten() {
        set_up_one(setup, volume).map_err(|cause| VolumeError { volume: volume.name.clone(), cause })?;
    }
    Ok(())
}

fn set_up_one(setup: &Setup<'_>, volume: &Volume) -> Result<(), String> {
    let io = |error: io::Error| error.to_string();
    if let Some(source) = &volume.host_path {
        return host_path::prepare(Path::new(&source.path), source.type_.as_deref().unwrap_or_default());
    }
    if let Some(source) = &volume.empty_dir {
        return empty_dir(setup, &volume.name, source).map_err(io);
    }
    let Some(payload) = object_payload(setup, volume)? else {
        return Err("this node does not know the volume's type".to_owned());
    };
    let target = setup.directories.memory_volume(&volume.name);
    make_directory(&target, 0o755).map_err(io)?;
    let group = fs_group(setup.pod);
    let own = |fresh: &Path| match group {
        Some(gid) => ownership::give_to_group(fresh, gid, true),
        None => Ok(()),
    };
    atomic::write(&target, &payload, setup.now, &own).map(drop).map_err(io)
}

/// The files of a volume that is made from API objects; `None` for other types.
fn object_payload(setup: &Setup<'_>, volume: &Volume) -> Result<Option<Payload>, String> {
    let namespace = setup.pod.metadata.namespace.as_str();
    let mut files = Payload::new();
    if let Some(source) = &volume.config_map {
        let optional = source.optional == Some(true);
        let from = Source { kind: "configmap", namespace, name: &source.name, optional };
        let items = source.items.as_deref().unwrap_or_default();
        let data = setup.objects.config_map(&source.name);
        payload::add_keys(&mut files, from, data, items, source.default_mode)?;
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let from = Source { kind: "secret", namespace, name, optional: source.optional == Some(true) };
        let items = source.items.as_deref().unwrap_or_default();
        payload::add_keys(&mut files, from, setup.objects.secret(name), items, source.default_mode)?;
    } else if let Some(source) = &volume.downward_api {
        let items = source.items.as_deref().unwrap_or_default();
        payload::add_fields(&mut files, setup.pod, setup.fields, items, source.default_mode)?;
    } else if let Some(source) = &volume.projected {
        let sources = source.sources.as_deref().unwrap_or_default();
        files = payload::projected(
            setup.pod,
            setup.fields,
            setup.objects,
            sources,
            source.default_mode,
            readers(setup.pod),
        )?;
    } else {
        return Ok(None);
    }
    Ok(Some(files))
}

fn empty_dir(setup: &Setup<'_>, name: &str, source: &EmptyDirVolumeSource) -> io::Result<()> {
    let target = empty_dir_path(setup.directories, name, source);
    let fresh = !target.exists();
    make_directory(&target, 0o777)?;
    if is_memory(source) && !is_mounted(&target)? {
        sys::mount::tmpfs(&target, memory_size(setup, source))?;
    }
    match fs_group(setup.pod) {
        Some(gid) if fresh => ownership::give_to_group(&target, gid, false),
        _ => Ok(()),
    }
}

/// The size of a volume in memory: the least of its own limit, the pod's, and what the node has. Source: KEP-1967.
fn memory_size(setup: &Setup<'_>, source: &EmptyDirVolumeSource) -> Option<u64> {
    let own = source.size_limit.as_ref().map(value);
    let pod = pod_resources(&setup.pod.spec, None).memory_limit_bytes;
    let bounds = [own, pod, Some(setup.fields.node_memory_bytes)].into_iter().flatten();
    bounds.filter(|bytes| *bytes > 0).min().and_then(|bytes| u64::try_from(bytes).ok())
}

fn is_memory(source: &EmptyDirVolumeSource) -> bool {
    source.medium.as_deref() == Some("Memory")
}

fn empty_dir_path(directories: &PodDirectories, name: &str, source: &EmptyDirVolumeSource) -> PathBuf {
    if is_memory(source) { directories.memory_volume(name) } else { directories.disk_volume(name) }
}

fn is_mounted(path: &Path) -> io::Result<bool> {
    Ok(sys::mount::MountTable::own()?.below(path).iter().any(|mounted| mounted == path))
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
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

fn fs_group(pod: &PodView) -> Option<u32> {
    let gid = pod.spec.security_context.as_ref().and_then(|context| context.fs_group)?;
    u32::try_from(gid).ok()
}

/// The one uid that every container runs as, if they agree.
fn readers(pod: &PodView) -> Readers {
    let context = pod.spec.security_context.as_ref();
    let pod_uid = context.and_then(|context| context.run_as_user);
    let mut uids = pod.containers().map(|(_, container)| {
        container.security_context.as_ref().and_then(|context| context.run_as_user).or(pod_uid)
    });
    let first = uids.next().flatten();
    let uid = first.filter(|uid| uids.all(|other| other == Some(*uid)));
    Readers { uid: uid.and_then(|uid| u32::try_from(uid).ok()), gid: fs_group(pod) }
}

/// Where a volume lies on the host; `None` if the pod has none of that name.
fn volume_path(pod: &PodView, directories: &PodDirectories, name: &str) -> Option<PathBuf> {
    let volume = pod.spec.volumes.iter().flatten().find(|volume| volume.name == name)?;
    Some(match (&volume.host_path, &volume.empty_dir) {
        (Some(source), _) => PathBuf::from(&source.path),
        (_, Some(source)) => empty_dir_path(directories, name, source),
        _ => directories.memory_volume(name),
    })
}

/// The mounts of one run of a container; makes its termination message file. `env` resolves `subPathExpr`.
pub(crate) fn container_mounts(
    pod: &PodView,
    directories: &PodDirectories,
    container: &Container,
    attempt: u32,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        mounts.push(volume_mount(pod, directories, container, index, mount, env)?);
    }
    let message = directories.termination_message(&container.name, attempt);
    make_message_file(&message).map_err(|error| format!("termination message file: {error}"))?;
    let mut files = vec![(message, message_path(container).to_owned())];
    for name in ["resolv.conf", "hosts", "hostname"] {
        files.push((directories.etc(name), format!("/etc/{name}")));
    }
    for (source, target) in files {
        let target = PathBuf::from(target);
        // A volume at the same place is what the user wants to see there.
        if !mounts.iter().any(|mount| mount.target == target) && source.exists() {
            mounts.push(Mount {
                source: MountSource::Bind(source),
                target,
                read_only: false,
                propagation: MountPropagation::Private,
            });
        }
    }
    Ok(mounts)
}

fn volume_mount(
    pod: &PodView,
    directories: &PodDirectories,
    container: &Container,
    index: usize,
    mount: &VolumeMount,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Mount, String> {
    let root = volume_path(pod, directories, &mount.name).ok_or_else(|| {
        format!("cannot find volume \"{}\" to mount into container \"{}\"", mount.name, container.name)
    })?;
    let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(path), _) if !path.is_empty() => Some(path.clone()),
        (_, Some(expression)) if !expression.is_empty() => Some(expand(expression, env)),
        _ => None,
    };
    let source = match sub_path {
        None => root,
        Some(relative) => {
            let stable = directories.subpath(&mount.name, &container.name, index);
            bind_subpath(&root, &relative, &stable).map_err(|error| {
                format!(
                    "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {error}",
                    mount.name, container.name
                )
            })?;
            stable
        }
    };
    let target = Path::new("/").join(&mount.mount_path);
    let derived =
        pod.spec.volumes.iter().flatten().any(|volume| {
            volume.name == mount.name && volume.host_path.is_none() && volume.empty_dir.is_none()
        });
    Ok(Mount {
        source: MountSource::Bind(source),
        target,
        // What comes from API objects is written by the node only.
        read_only: mount.read_only.unwrap_or(false) || derived,
        propagation: match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::HostToContainer,
            Some("Bidirectional") => MountPropagation::Bidirectional,
            _ => MountPropagation::Private,
        },
    })
}

/// Binds what `relative` names inside `root` to a path of the node's own.
fn bind_subpath(root: &Path, relative: &str, stable: &Path) -> io::Result<()> {
    let found = subpath::open(root, relative)?;
    // A run before this one may have bound it: what it names may have changed since.
    sys::mount::unmount(stable)?;
    let held = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    if fs::metadata(&held)?.is_dir() {
        fs::create_dir_all(stable)?;
    } else {
        if let Some(parent) = stable.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::OpenOptions::new().write(true).create(true).truncate(false).open(stable)?;
    }
    sys::mount::bind(&held, stable)
}

fn make_message_file(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::File::create(path)?;
    // Whoever the container runs as may write it.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))
}

/// Writes a file that containers have bound: in place, because a bind follows the file and not its name.
pub(crate) fn write_etc(directories: &PodDirectories, name: &str, text: &str) -> io::Result<()> {
    let path = directories.etc(name);
    if fs::read_to_string(&path).is_ok_and(|known| known == text) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
}

/// Unmounts and removes everything of the pod.
pub(crate) fn tear_down(directories: &PodDirectories) -> io::Result<()> {
    let table = sys::mount::MountTable::own()?;
    for root in [directories.run(), directories.data()] {
        let mut mounted = table.below(root);
        // The deepest first.
        mounted.sort();
        for path in mounted.iter().rev() {
            sys::mount::unmount(path)?;
        }
        match fs::remove_dir_all(root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::ServiceAccountTokenProjection;

    use super::super::payload::Data;
    use super::*;
    use crate::pod::tests::pod;

    struct Maps(&'static str);

    impl Objects for Maps {
        fn config_map(&self, name: &str) -> Option<Data> {
            (name == "cm").then(|| BTreeMap::from([("k".to_owned(), self.0.as_bytes().to_vec())]))
        }
        fn secret(&self, _: &str) -> Option<Data> {
            None
        }
        fn token(&self, _: &ServiceAccountTokenProjection) -> Option<Vec<u8>> {
            None
        }
    }

    fn run(pod: &PodView, directories: &PodDirectories, objects: &dyn Objects) -> Result<(), VolumeError> {
        let fields = FieldContext::default();
        set_up(&Setup { pod, directories, fields: &fields, objects, now: Timestamp::now() })
    }

    #[test]
    fn volumes_are_made_updated_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let directories = PodDirectories::new(&dir.path().join("data"), &dir.path().join("run"), "u1");
        let pod = pod(serde_json::json!({
            "volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "conf", "configMap": {"name": "cm"}}],
            "containers": [{"name": "main", "volumeMounts": [
                {"name": "scratch", "mountPath": "/scratch"},
                {"name": "conf", "mountPath": "/conf"}]}]}));
        run(&pod, &directories, &Maps("1")).unwrap();
        std::fs::write(directories.disk_volume("scratch").join("x"), "kept").unwrap();
        run(&pod, &directories, &Maps("2")).unwrap();
        assert_eq!(std::fs::read_to_string(directories.memory_volume("conf").join("k")).unwrap(), "2");
        assert!(directories.disk_volume("scratch").join("x").exists());

        write_etc(&directories, "resolv.conf", "nameserver 10.0.0.1\n").unwrap();
        let mounts = container_mounts(&pod, &directories, &pod.spec.containers[0], 0, &|_| None).unwrap();
        let targets: Vec<_> =
            mounts.iter().map(|mount| (mount.target.to_str().unwrap(), mount.read_only)).collect();
        let wanted = [
            ("/scratch", false),
            ("/conf", true),
            ("/dev/termination-log", false),
            ("/etc/resolv.conf", false),
        ];
        assert_eq!(targets, wanted);

        tear_down(&directories).unwrap();
        assert!(!directories.data().exists() && !directories.run().exists());
    }

    #[test]
    fn a_volume_in_memory_is_bounded_by_the_least() {
        let directories = PodDirectories::new(Path::new("/d"), Path::new("/r"), "u1");
        let size = |limit: Option<&str>, own: Option<&str>, node: i64| {
            let resources =
                limit.map_or(serde_json::json!({}), |limit| serde_json::json!({"limits": {"memory": limit}}));
            let pod = pod(serde_json::json!({"containers": [{"name": "main", "resources": resources}]}));
            let fields = FieldContext { node_memory_bytes: node, ..FieldContext::default() };
            let now = Timestamp::UNIX_EPOCH;
            let setup =
                Setup { pod: &pod, directories: &directories, fields: &fields, objects: &Maps("1"), now };
            let size_limit = own.map(|own| serde_json::from_value(own.into()).unwrap());
            memory_size(&setup, &EmptyDirVolumeSource { size_limit, ..EmptyDirVolumeSource::default() })
        };
        assert_eq!(size(None, None, 4 << 30), Some(4 << 30));
        assert_eq!(size(Some("1Gi"), None, 4 << 30), Some(1 << 30));
        assert_eq!(size(Some("1Gi"), Some("1Mi"), 4 << 30), Some(1 << 20));
        assert_eq!(size(None, Some("8Gi"), 4 << 30), Some(4 << 30));
        assert_eq!(size(None, Some("0"), 0), None, "the kernel's own bound");
    }

    #[test]
    fn a_failure_names_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let directories = PodDirectories::new(dir.path(), dir.path(), "u1");
        let pod = pod(serde_json::json!({"containers": [],
            "volumes": [{"name": "conf", "configMap": {"name": "none"}}]}));
        let error = run(&pod, &directories, &Maps("1")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "MountVolume.SetUp failed for volume \"conf\" : configmap \"none\" not found"
        );
    }
}
