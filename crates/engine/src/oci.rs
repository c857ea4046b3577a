//! A container as an OCI runtime document: a pure function of specification, image and host facts.
//!
//! Source: OCI Runtime Specification 1.2, `config.md` and `config-linux.md`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use engine_api::{
    ContainerSpec, Device, EngineError, ExecSpec, Identity, ImageConfig, Mount, MountPropagation,
    MountSource, Rlimit, SandboxSpec, SeccompProfile,
};
use serde_json::{Value, json};
use shim::IdRange;
use sys::host::DeviceNode;

use crate::cdi::Injected;
use crate::labels::Labels;
use crate::user::ResolvedUser;

/// The search path of a container whose image has none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Kernel interfaces that tell about or change the host: hidden.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Kernel interfaces that may be read.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The largest profile of system calls that is read.
const PROFILE_MAX_BYTES: u64 = 4 << 20;

/// What a document is made from, beside the specification.
pub(crate) struct Surroundings<'a> {
    pub(crate) sandbox: &'a SandboxSpec,
    pub(crate) image: &'a ImageConfig,
    pub(crate) user: &'a ResolvedUser,
    pub(crate) capabilities: &'a BTreeSet<String>,
    pub(crate) seccomp: Option<Value>,
    pub(crate) labels: &'a Labels,
    pub(crate) rootfs: &'a Path,
    pub(crate) run_sandbox: &'a Path,
    pub(crate) cgroup_path: &'a str,
    /// The user namespace to join, with its ids.
    pub(crate) users: Option<(PathBuf, IdRange)>,
    /// The PID namespace to join; `None` makes one (or uses the host's, as the sandbox says).
    pub(crate) pid_namespace: Option<PathBuf>,
    /// The container's own group in each cgroup version 1 hierarchy, by the name under which it is shown.
    pub(crate) cgroup_directories: &'a [(String, PathBuf)],
    /// Devices of a privileged container.
    pub(crate) devices: &'a [DeviceNode],
    /// Devices that were asked for by name, which are mounts as well.
    pub(crate) given: &'a [(DeviceNode, Device)],
    /// What comes with devices that vendors describe, but for environment and mounts.
    pub(crate) injected: &'a Injected,
    /// Device rules are set (cgroup version 1).
    pub(crate) device_rules: bool,
    /// What the kernel lets this process set.
    pub(crate) oom_score_adj: Option<i32>,
    /// The host's process namespace is not this process's to mount: its /proc is shown as it is (a user without root).
    pub(crate) shows_host_proc: bool,
    /// Terminals belong to group `tty`; a user without ranges of ids has no such group.
    pub(crate) has_tty_group: bool,
}

/// The whole document. `options`: further ones of the specification's mounts, in their order.
pub(crate) fn document(
    spec: &ContainerSpec,
    options: &[Vec<String>],
    around: &Surroundings<'_>,
) -> Result<Value, EngineError> {
    let privileged = spec.security.privileged;
    let mut linux = json!({
        "cgroupsPath": format!("/{}", around.cgroup_path),
        "namespaces": namespaces(around),
        "uidMappings": ids(around),
        "gidMappings": ids(around),
        "rootfsPropagation": propagation_of_root(&spec.mounts),
        "seccomp": around.seccomp,
        "mountLabel": around.labels.selinux.as_ref().map(|(_, mounts)| mounts),
        "maskedPaths": closed(spec, &MASKED, &spec.security.masked_paths),
        "readonlyPaths": closed(spec, &READ_ONLY, &spec.security.read_only_paths),
        "devices": devices(around),
    });
    // Another runtime writes a filter of its own from them, whatever the cgroups' version.
    if around.device_rules || !around.sandbox.runtime_handler.is_empty() {
        let all = json!({"allow": privileged, "access": "rwm"});
        let given = around.given.iter().map(|(node, device)| rule(node, &device.access));
        let injected = around.injected.nodes.iter().filter(|of| !of.access.is_empty());
        let injected = injected.map(|of| rule(&of.node, &of.access));
        let rules: Vec<Value> = std::iter::once(all).chain(given).chain(injected).collect();
        linux["resources"] = json!({"devices": rules});
    }
    Ok(strip_nulls(json!({
        "ociVersion": "1.2.0",
        "root": {"path": around.rootfs, "readonly": spec.security.read_only_rootfs},
        "process": process(spec, around)?,
        "mounts": mounts(spec, options, around),
        "linux": strip_nulls(linux),
        "hooks": around.injected.hooks,
    })))
}

/// Nodes that the runtime makes: of a privileged container every one of the host's, and those that vendors describe.
fn devices(around: &Surroundings<'_>) -> Vec<Value> {
    let user = around.user;
    let described = around.injected.nodes.iter().filter(|of| of.is_made(around.users.is_some()));
    let described: Vec<DeviceNode> = described.map(|of| of.owned(user.uid, user.gid)).collect();
    let others = around.devices.iter().filter(|node| described.iter().all(|other| other.path != node.path));
    others.chain(&described).map(device).collect()
}

/// Paths that are closed to a container: the engine's own and those that were asked for beside them.
fn closed<'a>(spec: &'a ContainerSpec, own: &[&'a str], asked: &'a [String]) -> Vec<&'a str> {
    let security = &spec.security;
    if security.privileged {
        return Vec::new();
    }
    let own = if security.unmask_proc { &[] } else { own };
    let more = asked.iter().map(String::as_str).filter(|path| !own.contains(path));
    own.iter().copied().chain(more).collect()
}

fn process(spec: &ContainerSpec, around: &Surroundings<'_>) -> Result<Value, EngineError> {
    let mut base = vec![DEFAULT_PATH.to_owned()];
    if !around.sandbox.hostname.is_empty() {
        base.push(format!("HOSTNAME={}", around.sandbox.hostname));
    }
    if spec.terminal {
        base.push("TERM=xterm".to_owned());
    }
    base.extend(around.user.home.iter().filter(|home| !home.is_empty()).map(|home| format!("HOME={home}")));
    Ok(strip_nulls(json!({
        "terminal": spec.terminal,
        "user": user(around.user, &[&*spec.user.supplemental_groups, &around.injected.groups].concat()),
        "args": command(spec, around.image)?,
        "env": merge_env(&[&base, &around.image.env, &spec.env]),
        "cwd": working_dir(spec, around.image),
        "capabilities": capability_sets(around.capabilities),
        // Absent where it is off: the library loads the filter while it still may.
        "noNewPrivileges": spec.security.no_new_privileges.then_some(true),
        "oomScoreAdj": around.oom_score_adj,
        "apparmorProfile": around.labels.app_armor,
        "selinuxLabel": around.labels.selinux.as_ref().map(|(process, _)| process),
        "rlimits": (!spec.rlimits.is_empty()).then(|| spec.rlimits.iter().map(rlimit).collect::<Vec<_>>()),
    })))
}

/// A further process of a container, from the first one's.
pub(crate) fn exec_process(
    first: &Value,
    exec: &ExecSpec,
    user_of_it: Option<&ResolvedUser>,
    capabilities: Option<&BTreeSet<String>>,
) -> Result<Value, EngineError> {
    if exec.command.is_empty() {
        return Err(EngineError::invalid("no command to execute"));
    }
    let mut process = first.clone();
    process["args"] = json!(exec.command);
    process["terminal"] = json!(exec.terminal);
    let inherited: Vec<String> = serde_json::from_value(first["env"].clone()).unwrap_or_default();
    let term = if exec.terminal { vec!["TERM=xterm".to_owned()] } else { Vec::new() };
    let home: Vec<String> = user_of_it
        .and_then(|user| user.home.as_ref())
        .map(|home| format!("HOME={home}"))
        .into_iter()
        .collect();
    process["env"] = json!(merge_env(&[&term, &inherited, &home, &exec.env]));
    if !exec.working_dir.is_empty() {
        process["cwd"] = json!(absolute(&exec.working_dir));
    }
    if let Some(it) = user_of_it {
        process["user"] = user(it, &[]);
    }
    if let Some(capabilities) = capabilities {
        process["capabilities"] = capability_sets(capabilities);
    }
    if let Some(fields) = process.as_object_mut() {
        fields.remove("oomScoreAdj");
    }
    Ok(process)
}

fn rlimit(limit: &Rlimit) -> Value {
    let name = format!("RLIMIT_{}", limit.name.to_ascii_uppercase());
    json!({"type": name, "soft": limit.soft, "hard": limit.hard})
}

/// The primary group is among the others too: a process that takes another one with a program of that group's would leave
/// it, and with it what files keep from its members. Source: CVE-2022-36109.
fn user(user: &ResolvedUser, supplemental: &[u32]) -> Value {
    let others = user.additional_gids.iter().chain(supplemental).chain([&user.gid]);
    let mut gids: Vec<u32> = others.copied().collect();
    gids.sort_unstable();
    gids.dedup();
    json!({"uid": user.uid, "gid": user.gid, "additionalGids": gids})
}

/// Leaves a process the groups that it has: where a user namespace has one group only, nobody in it may set others.
/// Source: user_namespaces(7), `setgroups`.
pub(crate) fn leave_groups(process: &mut Value) {
    if let Some(user) = process["user"].as_object_mut() {
        user.remove("additionalGids");
    }
}

/// Who the first process of a document is.
pub(crate) fn identity(document: &Value) -> Identity {
    let user = &document["process"]["user"];
    let number = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let gid = number(&user["gid"]).unwrap_or_default();
    let others = user["additionalGids"].as_array().into_iter().flatten().filter_map(number);
    let groups: BTreeSet<u32> = others.chain([gid]).collect();
    let uid = number(&user["uid"]).unwrap_or_default();
    Identity { uid, gid, groups: groups.into_iter().collect() }
}

/// Nothing is inheritable or ambient: a program gets rights by running as uid 0 or by its file.
fn capability_sets(capabilities: &BTreeSet<String>) -> Value {
    json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities, "inheritable": [], "ambient": []})
}

/// Entry point and arguments: the specification's over the image's. A given entry point takes the image's command
/// away (Kubernetes: "define a command and arguments for a container"; Docker's `--entrypoint` likewise).
fn command(spec: &ContainerSpec, image: &ImageConfig) -> Result<Vec<String>, EngineError> {
    let words: Vec<String> = match (spec.entrypoint.is_empty(), spec.args.is_empty()) {
        (false, _) => spec.entrypoint.iter().chain(&spec.args).cloned().collect(),
        (true, false) => image.entrypoint.iter().chain(&spec.args).cloned().collect(),
        (true, true) => image.entrypoint.iter().chain(&image.cmd).cloned().collect(),
    };
    if words.is_empty() {
        return Err(EngineError::invalid(format!("image {} has no command: give one", spec.image)));
    }
    Ok(words)
}

/// Environments, the later over the earlier, in the order in which names first appear.
fn merge_env(layers: &[&[String]]) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut merged: Vec<String> = Vec::new();
    for entry in layers.iter().flat_map(|layer| layer.iter()) {
        match merged.iter_mut().find(|known| name(known) == name(entry)) {
            Some(known) => known.clone_from(entry),
            None => merged.push(entry.clone()),
        }
    }
    merged
}

/// The absolute working directory.
pub(crate) fn working_dir(spec: &ContainerSpec, image: &ImageConfig) -> PathBuf {
    let given = [&spec.working_dir, &image.working_dir].into_iter().find(|dir| !dir.is_empty());
    given.map_or_else(|| PathBuf::from("/"), |dir| absolute(dir))
}

/// A path from the root, without dots.
fn absolute(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            std::path::Component::Normal(name) => clean.push(name),
            std::path::Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}

fn namespaces(around: &Surroundings<'_>) -> Vec<Value> {
    // Network, IPC and UTS are the shim's own: inherited, not joined.
    let mut list = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    list.extend(around.users.as_ref().map(|(path, _)| json!({"type": "user", "path": path})));
    match (&around.pid_namespace, around.sandbox.host_pid) {
        (Some(path), _) => list.push(json!({"type": "pid", "path": path})),
        (None, false) => list.push(json!({"type": "pid"})),
        (None, true) => {}
    }
    list
}

/// A hierarchy by its name, and by each of its controllers' where it has several (`cpu,cpuacct`).
fn names_of((name, directory): &(String, PathBuf)) -> impl Iterator<Item = (&str, &PathBuf)> {
    let each = name.split(',').filter(move |part| *part != name);
    std::iter::once(name.as_str()).chain(each).map(move |name| (name, directory))
}

/// Runtimes want the ids of a user namespace told, also of one that has them already.
fn ids(around: &Surroundings<'_>) -> Option<Value> {
    let (_, IdRange { first, count }) = around.users.as_ref()?;
    Some(json!([{"containerID": 0, "hostID": first, "size": count}]))
}

fn mounts(spec: &ContainerSpec, options: &[Vec<String>], around: &Surroundings<'_>) -> Vec<Value> {
    let system = |target: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": source, "options": options});
    let sys_mode = if spec.security.privileged { "rw" } else { "ro" };
    let proc = match around.shows_host_proc && around.sandbox.host_pid {
        true => system("/proc", "bind", "/proc", &["rbind", "nosuid", "noexec", "nodev"]),
        false => system("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    };
    let mut of_terminals = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    of_terminals.extend(around.has_tty_group.then_some("gid=5"));
    let mut list = vec![
        proc,
        system("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        system("/dev/pts", "devpts", "devpts", &of_terminals),
        system("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        system("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys_mode]),
    ];
    if !around.cgroup_directories.is_empty() {
        // The library would mount hierarchies of version 1 so that root may lift its own limits, and where the container
        // joins a PID namespace, look its cgroups up by a number that is another process's. So it is not asked to.
        let of_tmpfs = ["nosuid", "noexec", "nodev", "mode=755"];
        list.push(system("/sys/fs/cgroup", "tmpfs", "tmpfs", &of_tmpfs));
        for (name, directory) in around.cgroup_directories.iter().flat_map(names_of) {
            let options = ["bind", "nosuid", "noexec", "nodev", sys_mode];
            let target = format!("/sys/fs/cgroup/{name}");
            list.push(system(&target, "bind", &directory.to_string_lossy(), &options));
        }
    } else {
        let options = ["nosuid", "noexec", "nodev", "relatime", sys_mode];
        list.push(system("/sys/fs/cgroup", "cgroup", "cgroup", &options));
    }
    let shm = match around.sandbox.host_ipc {
        true => PathBuf::from("/dev/shm"),
        false => crate::layout::shared_memory(around.run_sandbox),
    };
    list.push(json!({"destination": "/dev/shm", "type": "bind", "source": shm, "options": ["rbind", "rprivate", "rw"]}));
    // What the specification mounts over a system mount takes its place.
    list.retain(|known| spec.mounts.iter().all(|mount| known["destination"] != json!(mount.target)));
    let none = Vec::new();
    let options = options.iter().chain(std::iter::repeat(&none));
    list.extend(spec.mounts.iter().zip(options).map(|(asked, more)| with_options(mount(asked), more)));
    // What lies in another mount comes after it, as other engines have it; else the order stays.
    list.sort_by_key(|mount| mount["destination"].as_str().map(|path| Path::new(path).components().count()));
    list
}

/// A mount with further options.
fn with_options(mut mount: Value, more: &[String]) -> Value {
    if let Some(options) = mount["options"].as_array_mut() {
        options.extend(more.iter().map(|option| json!(option)));
    }
    mount
}

fn mount(mount: &Mount) -> Value {
    let mode = match (mount.read_only, mount.recursive_read_only) {
        (false, _) => "rw",
        (true, false) => "ro",
        (true, true) => "rro",
    };
    match &mount.source {
        MountSource::Bind(source) => {
            let propagation = match mount.propagation {
                MountPropagation::Private => "rprivate",
                MountPropagation::HostToContainer => "rslave",
                MountPropagation::Bidirectional => "rshared",
            };
            json!({"destination": mount.target, "type": "bind", "source": source, "options": ["rbind", propagation, mode]})
        }
        MountSource::Tmpfs { size_bytes, options: asked } => {
            let replaced = |default: &str| {
                let key = default.split('=').next();
                asked.iter().any(|option| {
                    default.strip_prefix("no") == Some(option) || option.split('=').next() == key
                })
            };
            let mut options: Vec<String> = ["nosuid", "nodev", "mode=1777"]
                .into_iter()
                .filter(|default| !replaced(default))
                .chain([mode])
                .map(str::to_owned)
                .collect();
            if *size_bytes > 0 {
                options.push(format!("size={size_bytes}"));
            }
            options.extend(asked.iter().cloned());
            json!({"destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options})
        }
    }
}

/// Mounts can only travel to the host where the root lets them. To the container they travel where nothing is said: runtimes
/// then have a slave of the host's, with all that is mounted in it. Source: OCI runtime-spec, `rootfsPropagation`.
fn propagation_of_root(mounts: &[Mount]) -> Option<&'static str> {
    let outwards = |mount: &Mount| mount.propagation == MountPropagation::Bidirectional;
    mounts.iter().any(outwards).then_some("shared")
}

fn device(node: &DeviceNode) -> Value {
    json!({
        "path": node.path,
        "type": if node.character { "c" } else { "b" },
        "major": node.major,
        "minor": node.minor,
        "fileMode": node.mode,
        "uid": node.uid,
        "gid": node.gid,
    })
}

/// What may be done with a device, in the words of the version 1 controller.
fn rule(node: &DeviceNode, access: &str) -> Value {
    let kind = if node.character { "c" } else { "b" };
    json!({"allow": true, "type": kind, "major": node.major, "minor": node.minor, "access": access})
}

/// Fields that are null left out: some readers take null for a wrong type.
fn strip_nulls(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, field| !field.is_null());
    }
    value
}

/// An error without its number, as other languages tell it.
fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// The filter that a container runs under.
pub(crate) fn seccomp(
    spec: &ContainerSpec,
    capabilities: &BTreeSet<String>,
) -> Result<Option<Value>, EngineError> {
    match &spec.security.seccomp {
        _ if spec.security.privileged => Ok(None),
        SeccompProfile::Unconfined => Ok(None),
        SeccompProfile::RuntimeDefault => crate::seccomp::default_profile(capabilities).map(Some),
        SeccompProfile::Localhost(path) => {
            // containerd's words.
            let shown = path.display();
            let unusable =
                |why: String| EngineError::invalid(format!("cannot load seccomp profile \"{shown}\": {why}"));
            let bytes = std::fs::File::open(path)
                .and_then(|file| sys::files::read_bounded(file, PROFILE_MAX_BYTES))
                .map_err(|error| unusable(format!("open {shown}: {}", reason(&error))))?;
            let decoded = serde_json::from_slice(&bytes);
            decoded.map(Some).map_err(|error| unusable(format!("decoding seccomp profile failed: {error}")))
        }
    }
}

#[cfg(test)]
#[path = "oci_tests.rs"]
mod tests;
