//! Binds a pod's volumes into its containers. These functions block.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use engine_api::{Device, Mount, MountPropagation, MountSource};
use k8s_openapi::api::core::v1::{Container, VolumeMount};

use super::kind::Kind;
use super::ledger::Ledger;
use super::{PodDirectories, empty_dir, subpath};
use crate::pod::PodView;
use crate::pod::env::expand;
use crate::pod::recursion;
use crate::pod::spec::message_path;

/// Where containers find a volume.
struct Place {
    path: PathBuf,
    /// It is never written through, whatever a container asks for.
    read_only: bool,
    /// Nothing can be written or executed there as it is. That is kept where nothing more is asked for: to mount it once
    /// more read-only would say anew what else holds of it.
    sealed: bool,
}

impl Place {
    fn new(path: PathBuf, read_only: bool) -> Self {
        Self { path, read_only, sealed: false }
    }
}

/// Where a volume lies on the host. Those that are not the pod's own were noted when they were set up.
fn place(pod: &PodView, directories: &PodDirectories, name: &str) -> Result<Option<Place>, String> {
    let volume = pod.spec.volumes.iter().flatten().find(|volume| volume.name == name);
    let Some(volume) = volume else { return Ok(None) };
    let place = match Kind::of(&pod.metadata.name, volume)? {
        Kind::HostPath(source) => Place::new(PathBuf::from(&source.path), false),
        Kind::EmptyDir(source) => Place::new(empty_dir::path(directories, name, source), false),
        Kind::Image(_) => Place { sealed: true, ..Place::new(directories.memory_volume(name), false) },
        // What comes from API objects is written by the node only.
        Kind::Objects => Place::new(directories.memory_volume(name), true),
        Kind::Claim(of) => noted(directories, name, &format!("claim \"{}\"", of.name))?,
        Kind::Csi(_) => noted(directories, name, "the volume")?,
        Kind::Nfs(source) => Place::new(directories.mounted(name), source.read_only == Some(true)),
    };
    Ok(Some(place))
}

/// The place of a volume that was noted; `what` it is for whom it is missing.
fn noted(directories: &PodDirectories, name: &str, what: &str) -> Result<Place, String> {
    let ledger = Ledger::read(&directories.ledger()).map_err(|error| error.to_string())?;
    let entry = ledger.get(name).ok_or_else(|| format!("{what} was not set up here"))?;
    // A device with a file system lies where that is mounted.
    let mounted = directories.mounted(name);
    let path = if fs::symlink_metadata(&mounted).is_ok() { mounted } else { entry.path.clone() };
    Ok(Place::new(path, entry.read_only))
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
                recursive_read_only: false,
                propagation: MountPropagation::Private,
            });
        }
    }
    Ok(mounts)
}

/// The devices of a container that are volumes. Source: `makeBlockVolumes` in `pkg/kubelet`.
pub(crate) fn container_devices(
    directories: &PodDirectories,
    container: &Container,
) -> Result<Vec<Device>, String> {
    let asked = container.volume_devices.as_deref().unwrap_or_default();
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let ledger = Ledger::read(&directories.ledger()).map_err(|error| error.to_string())?;
    let given = asked.iter().map(|asked| {
        let entry = ledger.get(&asked.name).filter(|entry| entry.device).ok_or_else(|| {
            format!("cannot find volume \"{}\" to pass into container \"{}\"", asked.name, container.name)
        })?;
        let access = if entry.read_only { "r" } else { "rwm" }.to_owned();
        Ok(Device { host: entry.path.clone(), path: Path::new("/").join(&asked.device_path), access })
    });
    given.collect()
}

fn volume_mount(
    pod: &PodView,
    directories: &PodDirectories,
    container: &Container,
    index: usize,
    mount: &VolumeMount,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Mount, String> {
    let Place { path: root, read_only, sealed } = place(pod, directories, &mount.name)?.ok_or_else(|| {
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
    Ok(Mount {
        source: MountSource::Bind(source),
        target,
        read_only: (mount.read_only.unwrap_or(false) || read_only) && !sealed,
        recursive_read_only: recursion::wanted(mount) && !sealed,
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
