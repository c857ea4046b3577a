//! Devices that vendors describe in files: what a container that is given one gets with it.
//!
//! The files are read when a container asks for such a device, so that a driver's are known as soon as they lie there. Source: the Container Device Interface, `SPEC.md`, and its `pkg/cdi`.

mod spec;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine_api::{EngineError, Mount, MountPropagation, MountSource};
use serde_json::{Value, json};
use sys::host::DeviceNode;

use spec::{Edits, HOOKS, Spec};

/// Where files of vendors lie on a host: those of the administrator, and those of drivers that run. Source: CDI,
/// `DefaultSpecDirs`.
pub const CDI_DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// Larger files are not read.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Of all files of a directory.
const FILES_MAX: usize = 1000;
const BYTES_MAX: usize = 64 << 20;
/// What of files that cannot be read is told where a device is not found.
const SKIPPED_TOLD: usize = 3;
/// A hook that says nothing of its time, or more than this, would hold a start up.
const HOOK_SECONDS_MAX: i64 = 120;

/// Where vendors' files lie; what the later ones say takes the place of what the earlier ones say.
#[derive(Debug)]
pub(crate) struct Registry {
    directories: Vec<PathBuf>,
}

/// What a container gets with its devices.
#[derive(Debug, Default)]
pub(crate) struct Injected {
    /// `KEY=value`, over what it has.
    pub(crate) env: Vec<String>,
    pub(crate) nodes: Vec<Node>,
    /// Each with options that the engine's own mounts have not.
    pub(crate) mounts: Vec<(Mount, Vec<String>)>,
    /// As OCI documents have them; null where there are none.
    pub(crate) hooks: Value,
    pub(crate) groups: Vec<u32>,
}

/// A node of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Node {
    /// As it is to be inside; the owner is the process's where nothing is said.
    pub(crate) node: DeviceNode,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    /// The host's node.
    pub(crate) host: PathBuf,
    /// Of `rwm`.
    pub(crate) access: String,
}

impl Node {
    /// Whether the runtime makes the node: it has the rights and the owner that it is to have. Elsewhere, and in a user
    /// namespace, where a node made anew would not open, it is the host's.
    pub(crate) fn is_made(&self, has_users: bool) -> bool {
        !has_users && self.node.path.starts_with("/dev")
    }

    /// The node with its owner.
    pub(crate) fn owned(&self, uid: u32, gid: u32) -> DeviceNode {
        DeviceNode { uid: self.uid.unwrap_or(uid), gid: self.gid.unwrap_or(gid), ..self.node.clone() }
    }
}

/// A device that was found.
#[derive(Clone)]
struct Found {
    spec: Arc<Spec>,
    /// Which of the file's.
    index: usize,
    /// Where the file lies: later directories count more.
    priority: usize,
}

/// Everything that the files say.
#[derive(Default)]
struct Known {
    devices: BTreeMap<String, Found>,
    /// Names that several files of a directory claim.
    conflicts: BTreeSet<String>,
    /// Files that do not count, and why.
    skipped: Vec<String>,
}

impl Registry {
    pub(crate) fn new(directories: Vec<PathBuf>) -> Self {
        Self { directories }
    }

    /// What a container gets with devices of these names. `own_runtime`: the built-in runtime executes it. Blocks.
    ///
    /// # Errors
    /// If there is no such device, or if it needs what the runtime has not.
    pub(crate) fn resolve(&self, names: &[String], own_runtime: bool) -> Result<Injected, EngineError> {
        if names.is_empty() {
            return Ok(Injected::default());
        }
        // containerd's words.
        let failed = |why: String| EngineError::invalid(format!("CDI device injection failed: {why}"));
        let known = self.read();
        for skipped in &known.skipped {
            tracing::warn!(skipped, "a file of CDI does not count");
        }
        let unknown: Vec<&str> =
            names.iter().map(String::as_str).filter(|name| !known.devices.contains_key(*name)).collect();
        if !unknown.is_empty() {
            return Err(failed(self.missing(&unknown, &known)));
        }
        let edits = edits(names, &known);
        injected(&edits, own_runtime).map_err(|why| failed(format!("failed to inject devices: {why}")))
    }

    fn missing(&self, unknown: &[&str], known: &Known) -> String {
        let mut said = format!("unresolvable CDI devices {}", unknown.join(", "));
        let odd = unknown.iter().find_map(|name| spec::check_qualified(name).err());
        let told: Vec<&str> = known.skipped.iter().take(SKIPPED_TOLD).map(String::as_str).collect();
        if let Some(why) = odd {
            said = format!("{said} ({why})");
        } else if !told.is_empty() {
            said = format!("{said} (files that do not count: {})", told.join("; "));
        } else {
            let places: Vec<String> =
                self.directories.iter().map(|place| place.display().to_string()).collect();
            said = format!("{said} (their driver has to describe them in {})", places.join(" or "));
        }
        said
    }

    fn read(&self) -> Known {
        let mut known = Known::default();
        let mut left = BYTES_MAX;
        for (priority, directory) in self.directories.iter().enumerate() {
            for path in files(directory, &mut known.skipped) {
                match read_spec(&path, &mut left) {
                    Ok(spec) => known.take(Arc::new(spec), priority, &path),
                    Err(why) => known.skipped.push(format!("{}: {why}", path.display())),
                }
            }
        }
        for name in &known.conflicts {
            known.devices.remove(name);
        }
        known
    }
}

impl Known {
    /// Takes a file's devices in. Source: `Cache.refresh`.
    fn take(&mut self, spec: Arc<Spec>, priority: usize, path: &Path) {
        for (index, device) in spec.devices.iter().enumerate() {
            let name = format!("{}={}", spec.kind, device.name);
            if self.devices.get(&name).is_some_and(|other| other.priority == priority) {
                self.skipped.push(format!("{}: conflicting device {name:?}", path.display()));
                self.conflicts.insert(name);
                continue;
            }
            // A name that a later directory has is that one's alone.
            self.conflicts.remove(&name);
            self.devices.insert(name, Found { spec: spec.clone(), index, priority });
        }
    }
}

/// The files of a directory by their names; there need not be one.
fn files(directory: &Path, skipped: &mut Vec<String>) -> Vec<PathBuf> {
    let listed = match std::fs::read_dir(directory) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            skipped.push(format!("{}: {error}", directory.display()));
            return Vec::new();
        }
    };
    let is_spec =
        |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json" || extension == "yaml");
    let mut found: Vec<PathBuf> =
        listed.flatten().map(|entry| entry.path()).filter(is_spec).take(FILES_MAX + 1).collect();
    if found.len() > FILES_MAX {
        skipped.push(format!("{}: it has more than {FILES_MAX} files", directory.display()));
        found.truncate(FILES_MAX);
    }
    found.sort();
    found
}

fn read_spec(path: &Path, left: &mut usize) -> Result<Spec, String> {
    // A pipe would keep whoever opens it waiting.
    let is_file = std::fs::metadata(path).map_err(|error| error.to_string())?.is_file();
    if !is_file {
        return Err("it is no file".to_owned());
    }
    let file = File::open(path).map_err(|error| error.to_string())?;
    let bytes = sys::files::read_bounded(file, FILE_BYTES_MAX).map_err(|error| error.to_string())?;
    *left = left.checked_sub(bytes.len()).ok_or("the files before it are too large together")?;
    Spec::parse(&bytes)
}

/// What is to be done for devices that there are, in their order: what a file says of all of its devices comes once, before
/// the first of them. Pure. Source: `Cache.InjectDevices`.
fn edits<'a>(names: &[String], known: &'a Known) -> Vec<&'a Edits> {
    let mut edits = Vec::new();
    let mut specs: Vec<*const Spec> = Vec::new();
    let mut seen = BTreeSet::new();
    for found in names.iter().filter(|name| seen.insert(*name)).filter_map(|name| known.devices.get(name)) {
        let spec = Arc::as_ptr(&found.spec);
        if !specs.contains(&spec) {
            specs.push(spec);
            edits.push(&found.spec.container_edits);
        }
        edits.extend(found.spec.devices.get(found.index).map(|device| &device.container_edits));
    }
    edits
}

fn injected(edits: &[&Edits], own_runtime: bool) -> Result<Injected, String> {
    let mut all = Injected::default();
    for edit in edits {
        if let Some(device) = edit.net_devices.first() {
            let name = &device.host_interface_name;
            return Err(format!(
                "netDevices: interface {name:?} cannot be moved: pods have their networks already"
            ));
        }
        if edit.intel_rdt.is_some() {
            return Err("intelRdt: classes of caches are not supported".to_owned());
        }
        all.env.extend(edit.env.iter().cloned());
        for device in &edit.device_nodes {
            let node = node(device)?;
            all.nodes.retain(|known| known.node.path != node.node.path);
            all.nodes.push(node);
        }
        for asked in &edit.mounts {
            let mount = mount(asked)?;
            all.mounts.retain(|(known, _)| known.target != mount.0.target);
            all.mounts.push(mount);
        }
        all.groups.extend(edit.additional_gids.iter().copied().filter(|gid| *gid != 0));
    }
    all.hooks = hooks(edits, own_runtime)?;
    Ok(all)
}

/// Source: `DeviceNode.fillMissingInfo`.
fn node(asked: &spec::DeviceNode) -> Result<Node, String> {
    let host = PathBuf::from(if asked.host_path.is_empty() { &asked.path } else { &asked.host_path });
    if asked.kind == "p" {
        return Err(format!("device {:?}: pipes are no devices here", asked.path));
    }
    let whole = !asked.kind.is_empty() && asked.major != 0;
    let seen = match std::fs::symlink_metadata(&host) {
        Ok(data) if data.file_type().is_char_device() || data.file_type().is_block_device() => Some(data),
        _ if whole => None,
        Ok(_) => return Err(format!("failed to stat CDI host device {host:?}: not a device node")),
        Err(error) => return Err(format!("failed to stat CDI host device {host:?}: {error}")),
    };
    let mode = seen.as_ref().map(|data| data.permissions().mode() & 0o7777);
    let is_character = |data: &std::fs::Metadata| data.file_type().is_char_device();
    let character = match asked.kind.as_str() {
        "" => seen.as_ref().is_some_and(is_character),
        kind => kind != "b",
    };
    if let Some(data) = seen.as_ref().filter(|data| !whole && is_character(data) != character) {
        let found = if is_character(data) { "c" } else { "b" };
        return Err(format!(
            "CDI device ({:?}, {host:?}), host type mismatch ({}, {found})",
            asked.path, asked.kind
        ));
    }
    let number = seen.as_ref().filter(|_| asked.major == 0).map(|data| data.rdev());
    let (major, minor) = number
        .map_or((asked.major, asked.minor), |number| (rustix::fs::major(number), rustix::fs::minor(number)));
    let access = match asked.permissions.as_str() {
        "" => "rwm",
        "none" => "",
        given => given,
    };
    let mode = asked.file_mode.or(mode).unwrap_or(0o666) & 0o7777;
    let node = DeviceNode { path: asked.path.clone().into(), character, major, minor, mode, uid: 0, gid: 0 };
    Ok(Node { node, uid: asked.uid, gid: asked.gid, host, access: access.to_owned() })
}

/// What the engine's own mounts are told by fields, and the other options.
fn mount(asked: &spec::Mount) -> Result<(Mount, Vec<String>), String> {
    let has = |option: &str| asked.options.iter().any(|known| known == option);
    let read_only = has("ro") || has("rro");
    let propagation = match () {
        () if has("shared") || has("rshared") => MountPropagation::Bidirectional,
        () if has("slave") || has("rslave") => MountPropagation::HostToContainer,
        () => MountPropagation::Private,
    };
    let source = match asked.kind.as_str() {
        "" | "bind" | "none" => MountSource::Bind(asked.host_path.clone().into()),
        "tmpfs" => MountSource::Tmpfs { size_bytes: 0, options: Vec::new() },
        other => {
            return Err(format!(
                "mount {:?}: file systems of type {other:?} are not mounted",
                asked.container_path
            ));
        }
    };
    const TOLD: [&str; 13] = [
        "ro",
        "rro",
        "rw",
        "bind",
        "rbind",
        "shared",
        "rshared",
        "slave",
        "rslave",
        "private",
        "rprivate",
        "unbindable",
        "runbindable",
    ];
    let others: Vec<String> =
        asked.options.iter().filter(|option| !TOLD.contains(&option.as_str())).cloned().collect();
    let (source, others) = match source {
        MountSource::Tmpfs { size_bytes, .. } => {
            (MountSource::Tmpfs { size_bytes, options: others }, Vec::new())
        }
        bind => (bind, others),
    };
    let target = asked.container_path.clone().into();
    Ok((Mount { source, target, read_only, recursive_read_only: has("rro"), propagation }, others))
}

/// Hooks as an OCI document has them.
fn hooks(edits: &[&Edits], own_runtime: bool) -> Result<Value, String> {
    let mut all = Value::Null;
    for hook in edits.iter().flat_map(|edit| &edit.hooks) {
        if own_runtime && hook.hook_name == "poststop" {
            return Err(
                "hook \"poststop\" is not run by this runtime: use a RuntimeClass of another".to_owned()
            );
        }
        let Some(name) = HOOKS.iter().find(|name| **name == hook.hook_name) else { continue };
        let seconds = hook.timeout.filter(|seconds| (1..HOOK_SECONDS_MAX).contains(seconds));
        let made = json!({
            "path": hook.path,
            "args": hook.args,
            "env": hook.env,
            "timeout": seconds.unwrap_or(HOOK_SECONDS_MAX),
        });
        match all[*name].as_array_mut() {
            Some(list) => list.push(made),
            None => all[*name] = json!([made]),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(files: &[(&str, &str)]) -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        let places = ["etc", "run"].map(|place| dir.path().join(place));
        std::fs::create_dir(&places[0]).unwrap();
        for (file, text) in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        (dir, Registry::new(places.into()))
    }

    fn spec(edits: &str, device: &str) -> String {
        format!(
            r#"{{"cdiVersion":"1.1.0","kind":"e.com/gpu","devices":[{{"name":"a","containerEdits":{device}}},
            {{"name":"b","containerEdits":{{"env":["B=1"]}}}}],"containerEdits":{edits}}}"#
        )
    }

    fn resolved(registry: &Registry, names: &[&str]) -> Result<Injected, EngineError> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        registry.resolve(&names, true)
    }

    #[test]
    fn a_device_brings_what_its_file_says_of_all_and_of_it() {
        let device = r#"{"env":["A=1"],"additionalGids":[0,7],
            "deviceNodes":[{"path":"/dev/gpu0","hostPath":"/dev/null","permissions":"rw"}],
            "mounts":[{"hostPath":"/opt","containerPath":"/usr/gpu","options":["ro","nosuid","rbind"]}],
            "hooks":[{"hookName":"createContainer","path":"/bin/true","args":["true"]}]}"#;
        let (_dir, registry) = registry(&[("etc/gpu.json", &spec(r#"{"env":["ALL=1"]}"#, device))]);
        let found = resolved(&registry, &["e.com/gpu=a", "e.com/gpu=b", "e.com/gpu=a"]).unwrap();
        assert_eq!(found.env, ["ALL=1", "A=1", "B=1"]);
        assert_eq!(found.groups, [7]);
        let node = &found.nodes[0];
        assert_eq!((node.node.major, node.node.minor, node.access.as_str()), (1, 3, "rw"));
        assert!(node.node.character && node.is_made(false) && !node.is_made(true));
        let (mount, options) = &found.mounts[0];
        assert!(mount.read_only && mount.source == MountSource::Bind("/opt".into()));
        assert_eq!(options, &["nosuid"]);
        assert_eq!(found.hooks["createContainer"][0]["timeout"], HOOK_SECONDS_MAX);
        assert!(resolved(&registry, &[]).unwrap().hooks.is_null());
    }

    #[test]
    fn who_is_not_found_is_told_with_what_does_not_count() {
        let (_dir, registry) = registry(&[("etc/gpu.yaml", "kind: x"), ("run/other.txt", "")]);
        let said = resolved(&registry, &["e.com/gpu=a"]).unwrap_err().message;
        assert!(
            said.starts_with("CDI device injection failed: unresolvable CDI devices e.com/gpu=a"),
            "{said}"
        );
        assert!(said.contains("gpu.yaml"), "{said}");
        let said = resolved(&registry, &["gpu"]).unwrap_err().message;
        assert!(said.contains("unqualified device"), "{said}");
    }

    #[test]
    fn later_directories_count_more_and_equal_ones_conflict() {
        let one = spec("{}", r#"{"env":["A=etc"]}"#);
        let two = spec("{}", r#"{"env":["A=run"]}"#);
        let (_dir, first) = registry(&[("etc/a.json", &one), ("run/a.json", &two)]);
        assert_eq!(resolved(&first, &["e.com/gpu=a"]).unwrap().env, ["A=run"]);
        let (_dir, same) = registry(&[("etc/a.json", &one), ("etc/b.json", &two)]);
        assert!(resolved(&same, &["e.com/gpu=a"]).unwrap_err().message.contains("conflicting device"));
    }

    #[test]
    fn what_the_runtime_cannot_do_is_refused_by_name() {
        for (edits, why) in [
            (r#"{"netDevices":[{"hostInterfaceName":"eth9","name":"a"}]}"#, "netDevices"),
            (r#"{"intelRdt":{"closID":"x"}}"#, "intelRdt"),
            (r#"{"hooks":[{"hookName":"poststop","path":"/bin/true"}]}"#, "poststop"),
            (r#"{"mounts":[{"hostPath":"/x","containerPath":"/x","type":"ext4"}]}"#, "ext4"),
            (r#"{"deviceNodes":[{"path":"/dev/none-such"}]}"#, "failed to stat CDI host device"),
            (r#"{"deviceNodes":[{"path":"/dev/null","type":"b"}]}"#, "host type mismatch"),
            (r#"{"deviceNodes":[{"path":"/proc/version"}]}"#, "not a device node"),
        ] {
            let (_dir, registry) = registry(&[("etc/a.json", &spec("{}", edits))]);
            let said = resolved(&registry, &["e.com/gpu=a"]).unwrap_err().message;
            assert!(said.contains(why), "{edits}: {said}");
        }
    }
}
