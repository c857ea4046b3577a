//! From Docker's create request to the engine's sandbox and container.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine_api::{
    ContainerSpec, Image, Mount, MountPropagation, MountSource, Resources, SandboxSpec, SeccompProfile,
    Security, User,
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::answer::Failure;

/// Marks sandboxes made here.
pub(crate) const OWNER_LABEL: &str = "skiff.owner";
pub(crate) const OWNER: &str = "docker";
/// The create request, as JSON: what Docker wants to hear again and the engine does not know.
pub(crate) const REQUEST_LABEL: &str = "skiff.docker.request";
/// Docker's default for a process's share of the CPU when it is given as a number of CPUs.
const CPU_PERIOD_US: u64 = 100_000;

/// Who made a container.
#[derive(Debug, Clone)]
pub(crate) enum Owner {
    /// This server, for this request.
    Docker(Box<CreateRequest>),
    /// Somebody else: a Kubernetes pod.
    Other,
}

/// `POST /containers/create`: the fields that are acted on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct CreateRequest {
    #[serde(deserialize_with = "or_default")]
    pub(crate) hostname: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) user: String,
    pub(crate) tty: bool,
    pub(crate) open_stdin: bool,
    pub(crate) stdin_once: bool,
    #[serde(deserialize_with = "or_default")]
    pub(crate) env: Vec<String>,
    #[serde(deserialize_with = "text_or_list")]
    pub(crate) cmd: Vec<String>,
    #[serde(deserialize_with = "text_or_list")]
    pub(crate) entrypoint: Vec<String>,
    pub(crate) image: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) working_dir: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) stop_signal: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) volumes: BTreeMap<String, Value>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) exposed_ports: BTreeMap<String, Value>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) host_config: HostConfig,
}

/// Its `HostConfig`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct HostConfig {
    #[serde(deserialize_with = "or_default")]
    pub(crate) binds: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) network_mode: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) port_bindings: BTreeMap<String, Value>,
    pub(crate) publish_all_ports: bool,
    #[serde(deserialize_with = "or_default")]
    pub(crate) restart_policy: RestartPolicy,
    pub(crate) auto_remove: bool,
    #[serde(deserialize_with = "or_default")]
    pub(crate) cap_add: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) cap_drop: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) dns: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) dns_search: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) dns_options: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) extra_hosts: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) ipc_mode: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) pid_mode: String,
    pub(crate) oom_score_adj: i32,
    pub(crate) privileged: bool,
    pub(crate) readonly_rootfs: bool,
    #[serde(deserialize_with = "or_default")]
    pub(crate) security_opt: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) tmpfs: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) mounts: Vec<MountRequest>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) sysctls: BTreeMap<String, String>,
    pub(crate) cpu_shares: u64,
    pub(crate) memory: i64,
    pub(crate) memory_swap: i64,
    pub(crate) nano_cpus: u64,
    pub(crate) cpu_period: u64,
    pub(crate) cpu_quota: i64,
    /// Rows and columns of the client's terminal.
    #[serde(deserialize_with = "or_default")]
    pub(crate) console_size: [u16; 2],
    #[serde(deserialize_with = "or_default")]
    pub(crate) cpuset_cpus: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) pids_limit: i64,
}

/// `--restart`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RestartPolicy {
    pub(crate) name: String,
}

/// `--mount`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct MountRequest {
    #[serde(rename = "Type")]
    pub(crate) kind: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) read_only: bool,
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(input: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(input)?.unwrap_or_default())
}

/// Commands come as lists, from old clients as one text.
fn text_or_list<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        List(Vec<String>),
    }
    Ok(match Option::<Either>::deserialize(input)? {
        None => Vec::new(),
        Some(Either::Text(text)) => vec![text],
        Some(Either::List(list)) => list,
    })
}

/// What a container is made from, decided.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) sandbox: SandboxSpec,
    pub(crate) container: ContainerSpec,
    /// Named volumes that have to exist, by directory.
    pub(crate) volumes: Vec<PathBuf>,
    /// Whether the sandbox gets an interface of its own.
    pub(crate) connected: bool,
}

/// Where the container's files of the host are.
pub(crate) struct Directories {
    /// One directory per named volume.
    pub(crate) volumes: PathBuf,
    /// `hosts`, `hostname`, `resolv.conf` of this container.
    pub(crate) files: PathBuf,
}

/// Decides what to make. `raw` is the request as it came.
pub(crate) fn plan(
    request: &CreateRequest,
    raw: &Value,
    image: &Image,
    id: &str,
    name: &str,
    directories: &Directories,
) -> Result<Plan, Failure> {
    refuse_unsupported(request)?;
    crate::ports::asked(request, &image.config.exposed_ports)?;
    let host = &request.host_config;
    if request.cmd.is_empty()
        && request.entrypoint.is_empty()
        && image.config.entrypoint.is_empty()
        && image.config.cmd.is_empty()
    {
        return Err(Failure::bad_request("no command specified"));
    }
    let host_network = host.network_mode == "host";
    let (mut mounts, volumes) = user_mounts(request, image, directories)?;
    for name in ["hosts", "hostname", "resolv.conf"] {
        let target = format!("/etc/{name}");
        if !mounts.iter().any(|mount| mount.target == Path::new(&target)) {
            mounts.push(bind(directories.files.join(name), &target, false));
        }
    }
    let hostname = if request.hostname.is_empty() { id[..12].to_owned() } else { request.hostname.clone() };
    let labels = BTreeMap::from([
        (OWNER_LABEL.to_owned(), OWNER.to_owned()),
        (REQUEST_LABEL.to_owned(), raw.to_string()),
    ]);
    let sandbox = SandboxSpec {
        id: id.to_owned(),
        name: name.to_owned(),
        labels,
        hostname,
        host_network,
        host_pid: host.pid_mode == "host",
        host_ipc: host.ipc_mode == "host",
        sysctls: host.sysctls.clone(),
        ..SandboxSpec::default()
    };
    let mut user_labels = image.config.labels.clone();
    user_labels.extend(request.labels.clone());
    let container = ContainerSpec {
        id: id.to_owned(),
        sandbox_id: id.to_owned(),
        name: name.to_owned(),
        labels: user_labels,
        image: request.image.clone(),
        image_id: image.id.clone(),
        // An entry point of one empty word takes the image's away.
        entrypoint: request.entrypoint.iter().filter(|word| !word.is_empty()).cloned().collect(),
        args: request.cmd.clone(),
        env: environment(request),
        working_dir: request.working_dir.clone(),
        user: User { spec: request.user.clone(), ..User::default() },
        mounts,
        resources: resources(host),
        security: security(host)?,
        terminal: request.tty,
        stdin: request.open_stdin,
        stdin_once: request.stdin_once,
        stop_signal: request.stop_signal.clone(),
        ..ContainerSpec::default()
    };
    Ok(Plan { sandbox, container, volumes, connected: is_connected(host) })
}

/// Whether the container has a network of its own.
pub(crate) fn is_connected(host: &HostConfig) -> bool {
    !matches!(host.network_mode.as_str(), "host" | "none")
}

/// What would silently be less than was asked for is refused.
fn refuse_unsupported(request: &CreateRequest) -> Result<(), Failure> {
    let host = &request.host_config;
    let refused =
        |what: &str| Err(Failure::bad_request(format!("{what} is not supported yet by skiff's engine")));
    if !matches!(host.restart_policy.name.as_str(), "" | "no") {
        return refused(&format!("--restart {}", host.restart_policy.name));
    }
    match host.network_mode.as_str() {
        "" | "default" | "bridge" | "host" | "none" => {}
        other => return refused(&format!("--network {other}")),
    }
    for (option, mode) in [("--pid", &host.pid_mode), ("--ipc", &host.ipc_mode)] {
        if !matches!(mode.as_str(), "" | "host" | "private" | "shareable") {
            return refused(&format!("{option} {mode}"));
        }
    }
    Ok(())
}

/// The first of equal variables that the engine reads is the user's.
fn environment(request: &CreateRequest) -> Vec<String> {
    let mut env = request.env.clone();
    if request.tty && !env.iter().any(|line| line.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    env
}

fn resources(host: &HostConfig) -> Resources {
    let from_cpus = || i64::try_from(host.nano_cpus.saturating_mul(CPU_PERIOD_US) / 1_000_000_000).ok();
    let (quota, period) = match (host.nano_cpus, host.cpu_quota) {
        (0, 0) => (None, None),
        (0, quota) => (Some(quota), Some(if host.cpu_period == 0 { CPU_PERIOD_US } else { host.cpu_period })),
        _ => (from_cpus(), Some(CPU_PERIOD_US)),
    };
    Resources {
        cpu_shares: (host.cpu_shares > 0).then_some(host.cpu_shares),
        cpu_quota_us: quota,
        cpu_period_us: period,
        memory_limit_bytes: (host.memory > 0).then_some(host.memory),
        // Docker's default: as much swap as memory. `memory_swap` is the sum of both, -1 no limit.
        swap_limit_bytes: (host.memory > 0).then_some(match host.memory_swap {
            0 => host.memory,
            sum if sum < 0 => -1,
            sum => sum.saturating_sub(host.memory).max(0),
        }),
        pids_limit: (host.pids_limit > 0).then_some(host.pids_limit),
        cpuset_cpus: (!host.cpuset_cpus.is_empty()).then(|| host.cpuset_cpus.clone()),
        oom_score_adj: (host.oom_score_adj != 0).then_some(host.oom_score_adj),
    }
}

fn security(host: &HostConfig) -> Result<Security, Failure> {
    let mut security = Security {
        privileged: host.privileged,
        add_capabilities: capabilities(&host.cap_add),
        drop_capabilities: capabilities(&host.cap_drop),
        read_only_rootfs: host.readonly_rootfs,
        unmask_proc: host.privileged,
        ..Security::default()
    };
    for option in &host.security_opt {
        match option.replacen(':', "=", 1).as_str() {
            "no-new-privileges" | "no-new-privileges=true" => security.no_new_privileges = true,
            "no-new-privileges=false" | "label=disable" => {}
            "seccomp=unconfined" => security.seccomp = SeccompProfile::Unconfined,
            "systempaths=unconfined" => security.unmask_proc = true,
            other => {
                let message = format!("--security-opt {other} is not supported yet by skiff's engine");
                return Err(Failure::bad_request(message));
            }
        }
    }
    Ok(security)
}

/// The engine's names have no prefix.
fn capabilities(names: &[String]) -> Vec<String> {
    let plain = |name: &String| name.to_ascii_uppercase().trim_start_matches("CAP_").to_owned();
    names.iter().map(plain).collect()
}

fn bind(source: PathBuf, target: &str, read_only: bool) -> Mount {
    Mount {
        source: MountSource::Bind(source),
        target: PathBuf::from(target),
        read_only,
        propagation: MountPropagation::Private,
    }
}

/// Binds, mounts, tmpfs and the image's volumes; the named volumes among them.
fn user_mounts(
    request: &CreateRequest,
    image: &Image,
    directories: &Directories,
) -> Result<(Vec<Mount>, Vec<PathBuf>), Failure> {
    let mut mounts = Vec::new();
    let mut volumes = Vec::new();
    let mut add = |source: &str, target: &str, read_only: bool| -> Result<(), Failure> {
        absolute(target)?;
        let source = if source.starts_with('/') {
            PathBuf::from(source)
        } else {
            let volume = directories.volumes.join(volume_name(source)?);
            volumes.push(volume.clone());
            volume
        };
        mounts.push(bind(source, target, read_only));
        Ok(())
    };
    for text in &request.host_config.binds {
        let parts: Vec<&str> = text.splitn(3, ':').collect();
        let (source, target, options) = match parts.as_slice() {
            [source, target] => (*source, *target, ""),
            [source, target, options] => (*source, *target, *options),
            _ => return Err(Failure::bad_request(format!("invalid volume specification: '{text}'"))),
        };
        add(source, target, options.split(',').any(|option| option == "ro"))?;
    }
    let mut tmpfs: Vec<&str> = request.host_config.tmpfs.keys().map(String::as_str).collect();
    for mount in &request.host_config.mounts {
        match mount.kind.as_str() {
            "bind" if mount.source.starts_with('/') => add(&mount.source, &mount.target, mount.read_only)?,
            "volume" if mount.source.is_empty() => add(&anonymous(), &mount.target, mount.read_only)?,
            "volume" => add(&mount.source, &mount.target, mount.read_only)?,
            "tmpfs" => tmpfs.push(&mount.target),
            other => {
                return Err(Failure::bad_request(format!(
                    "invalid mount of type {other:?} at {}",
                    mount.target
                )));
            }
        }
    }
    let anonymous_targets = image.config.volumes.iter().chain(request.volumes.keys());
    let taken: Vec<PathBuf> = request
        .host_config
        .binds
        .iter()
        .filter_map(|text| text.split(':').nth(1).map(PathBuf::from))
        .chain(request.host_config.mounts.iter().map(|mount| PathBuf::from(&mount.target)))
        .collect();
    for target in anonymous_targets.filter(|target| !taken.contains(&PathBuf::from(target))) {
        add(&anonymous(), target, false)?;
    }
    for target in tmpfs {
        absolute(target)?;
        mounts.push(Mount {
            source: MountSource::Tmpfs { size_bytes: 0 },
            target: PathBuf::from(target),
            read_only: false,
            propagation: MountPropagation::Private,
        });
    }
    Ok((mounts, volumes))
}

fn anonymous() -> String {
    base::id::hex64()
}

fn absolute(target: &str) -> Result<(), Failure> {
    match target.starts_with('/') && target != "/" {
        true => Ok(()),
        false => Err(Failure::bad_request(format!(
            "invalid mount path: '{target}' must be absolute and not the root"
        ))),
    }
}

/// A volume's name is a directory's name and nothing more.
fn volume_name(name: &str) -> Result<&str, Failure> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let good =
        name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(fits) && name.len() <= 255;
    good.then_some(name).ok_or_else(|| {
        Failure::bad_request(format!(
            "{name:?} is neither an absolute path nor a volume name ([a-zA-Z0-9][a-zA-Z0-9_.-]*)"
        ))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn image() -> Image {
        let mut image = Image {
            id: "sha256:1".to_owned(),
            manifest_digest: String::new(),
            tags: BTreeMap::new(),
            repo_digests: Vec::new(),
            size_bytes: 0,
            created: None,
            architecture: String::new(),
            config: engine_api::ImageConfig::default(),
            config_json: String::new(),
            diff_ids: Vec::new(),
            layer_bytes: Vec::new(),
        };
        image.config.cmd = vec!["sh".to_owned()];
        image
    }

    fn planned(raw: &Value) -> Result<Plan, Failure> {
        let request: CreateRequest = serde_json::from_value(raw.clone()).unwrap();
        let directories = Directories { volumes: PathBuf::from("/v"), files: PathBuf::from("/f") };
        plan(&request, raw, &image(), &"a".repeat(64), "name", &directories)
    }

    #[test]
    fn a_request_of_the_real_client_is_understood() {
        let raw = json!({
            "Hostname": "", "User": "", "Tty": true, "OpenStdin": true, "StdinOnce": true, "Env": null, "Cmd": ["sh"],
            "Image": "busybox:eng", "Volumes": {}, "WorkingDir": "", "Entrypoint": null, "OnBuild": null,
            "Labels": {"x": "y"},
            "HostConfig": {"Binds": ["v1:/data", "/ctx:/ctx:ro"], "NetworkMode": "default", "PortBindings": {},
                "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": true, "CapAdd": ["CAP_NET_ADMIN"],
                "Memory": 67108864, "NanoCpus": 500000000, "Mounts": [{"Type": "tmpfs", "Target": "/t"}],
                "PidsLimit": null, "SecurityOpt": null, "MemorySwappiness": -1, "Ulimits": []},
            "NetworkingConfig": {"EndpointsConfig": {}}
        });
        let plan = planned(&raw).unwrap();
        assert!(plan.connected && plan.container.terminal && plan.container.stdin_once);
        assert_eq!(plan.container.resources.cpu_quota_us, Some(50_000));
        assert_eq!(plan.container.resources.memory_limit_bytes, Some(64 << 20));
        assert_eq!(plan.container.security.add_capabilities, ["NET_ADMIN"]);
        let targets: Vec<_> =
            plan.container.mounts.iter().map(|mount| mount.target.to_str().unwrap()).collect();
        assert_eq!(targets, ["/data", "/ctx", "/t", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"]);
        assert!(plan.container.mounts[1].read_only);
        assert_eq!(plan.volumes, [PathBuf::from("/v/v1")]);
        assert_eq!(plan.container.labels["x"], "y");
        assert_eq!(plan.container.env, ["TERM=xterm"]);
        let kept: CreateRequest = serde_json::from_str(&plan.sandbox.labels[REQUEST_LABEL]).unwrap();
        assert!(kept.host_config.auto_remove);
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for host in [
            json!({"PortBindings": {"80/tcp": [{"HostPort": "http"}]}}),
            json!({"RestartPolicy": {"Name": "always"}}),
            json!({"NetworkMode": "mine"}),
            json!({"Binds": ["../x:/y"]}),
            json!({"Binds": ["/x:y"]}),
            json!({"Binds": ["/x:/"]}),
            json!({"Binds": ["x"]}),
            json!({"Mounts": [{"Type": "bind", "Source": "relative", "Target": "/x"}]}),
            json!({"SecurityOpt": ["apparmor=x"]}),
            json!({"PidMode": "container:x"}),
        ] {
            assert!(planned(&json!({"Image": "x", "HostConfig": host})).is_err(), "{host}");
        }
    }
}
