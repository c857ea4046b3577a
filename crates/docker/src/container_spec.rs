//! From Docker's create request to the engine's sandbox and container.

use std::collections::BTreeMap;
use std::path::PathBuf;

use engine_api::{ContainerSpec, Image, Resources, Rlimit, SandboxSpec, SeccompProfile, Security, User};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::answer::Failure;
use crate::mounts;

/// Marks sandboxes made here.
pub(crate) use engine_api::OWNER_LABEL;
pub(crate) const OWNER: &str = "docker";
/// The create request, as JSON: what Docker wants to hear again and the engine does not know.
pub(crate) const REQUEST_LABEL: &str = "skiff.docker.request";
/// Docker's default for a process's share of the CPU when it is given as a number of CPUs.
const CPU_PERIOD_US: u64 = 100_000;
/// The limits of processes that `--ulimit` knows. Source: getrlimit(2).
const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

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
    /// Seconds.
    pub(crate) stop_timeout: Option<i64>,
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
    #[serde(deserialize_with = "or_default")]
    pub(crate) group_add: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) ulimits: Vec<Ulimit>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) shm_size: u64,
    #[serde(deserialize_with = "or_default")]
    pub(crate) init: bool,
    /// Empty lists, in place of none, hide nothing: `--security-opt systempaths=unconfined`.
    pub(crate) masked_paths: Option<Vec<String>>,
    pub(crate) readonly_paths: Option<Vec<String>>,
}

/// `--ulimit`; -1 is no limit.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Ulimit {
    pub(crate) name: String,
    pub(crate) soft: i64,
    pub(crate) hard: i64,
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
    #[serde(deserialize_with = "or_default")]
    pub(crate) bind_options: BindOptions,
    #[serde(deserialize_with = "or_default")]
    pub(crate) tmpfs_options: TmpfsOptions,
}

/// `bind-propagation=`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct BindOptions {
    #[serde(deserialize_with = "or_default")]
    pub(crate) propagation: String,
}

/// `tmpfs-size=`, `tmpfs-mode=`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct TmpfsOptions {
    #[serde(deserialize_with = "or_default")]
    pub(crate) size_bytes: u64,
    #[serde(deserialize_with = "or_default")]
    pub(crate) mode: u32,
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
    /// What becomes a directory where nothing is: volumes and the sources of binds.
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
    crate::unsupported::refuse(raw)?;
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
    let (mounts, volumes) = mounts::all(request, image, directories)?;
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
        // Skiff's init reaps what is left over and lives as long as the sandbox.
        share_pid: host.init,
        shared_memory_bytes: host.shm_size,
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
        user: User { spec: request.user.clone(), groups: host.group_add.clone(), ..User::default() },
        mounts,
        resources: resources(host),
        rlimits: rlimits(&host.ulimits)?,
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
    if host.memory_swap > 0 && host.memory <= 0 {
        return Err(Failure::bad_request("--memory-swap needs --memory: it is the sum of both"));
    }
    if host.init && host.pid_mode == "host" {
        return refused("--init together with --pid host");
    }
    for paths in [&host.masked_paths, &host.readonly_paths].into_iter().flatten() {
        if !paths.is_empty() {
            return refused("a list of paths to hide (MaskedPaths, ReadonlyPaths)");
        }
    }
    if host.extra_hosts.iter().any(|entry| entry.ends_with("host-gateway")) {
        return refused("--add-host with host-gateway: give the host's address");
    }
    Ok(())
}

fn rlimits(asked: &[Ulimit]) -> Result<Vec<Rlimit>, Failure> {
    let limit = |limit: &Ulimit| {
        if !ULIMITS.contains(&limit.name.as_str()) {
            return Err(Failure::bad_request(format!("invalid ulimit type: {}", limit.name)));
        }
        // Negative is without a limit.
        let number = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
        let (soft, hard) = (number(limit.soft), number(limit.hard));
        if soft > hard {
            let message =
                format!("ulimit soft limit must be less than or equal to hard limit: {}", limit.name);
            return Err(Failure::bad_request(message));
        }
        Ok(Rlimit { name: limit.name.clone(), soft, hard })
    };
    asked.iter().map(limit).collect()
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
        ..Resources::default()
    }
}

fn security(host: &HostConfig) -> Result<Security, Failure> {
    let mut security = Security {
        privileged: host.privileged,
        add_capabilities: capabilities(&host.cap_add),
        drop_capabilities: capabilities(&host.cap_drop),
        read_only_rootfs: host.readonly_rootfs,
        unmask_proc: host.privileged || host.masked_paths.as_ref().is_some_and(Vec::is_empty),
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
        assert_eq!(plan.volumes, [PathBuf::from("/v/v1"), PathBuf::from("/ctx")]);
        assert_eq!(plan.container.labels["x"], "y");
        assert_eq!(plan.container.env, ["TERM=xterm"]);
        let kept: CreateRequest = serde_json::from_str(&plan.sandbox.labels[REQUEST_LABEL]).unwrap();
        assert!(kept.host_config.auto_remove);
    }

    #[test]
    fn options_reach_the_engine() {
        let host = json!({"GroupAdd": ["audio", "7"], "ShmSize": 1024, "Init": true, "MaskedPaths": [],
            "Ulimits": [{"Name": "nofile", "Soft": 5, "Hard": -1}]});
        let plan = planned(&json!({"Image": "x", "StopTimeout": 3, "HostConfig": host})).unwrap();
        assert_eq!(plan.container.user.groups, ["audio", "7"]);
        assert_eq!((plan.sandbox.shared_memory_bytes, plan.sandbox.share_pid), (1024, true));
        assert!(plan.container.security.unmask_proc);
        let nofile = Rlimit { name: "nofile".to_owned(), soft: 5, hard: u64::MAX };
        assert_eq!(plan.container.rlimits, [nofile]);
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
            json!({"Init": true, "PidMode": "host"}),
            json!({"MemorySwap": 5}),
            json!({"ExtraHosts": ["gate:host-gateway"]}),
            json!({"MaskedPaths": ["/proc/kcore"]}),
            json!({"Ulimits": [{"Name": "none", "Soft": 1, "Hard": 1}]}),
            json!({"Ulimits": [{"Name": "nofile", "Soft": -1, "Hard": 1}]}),
        ] {
            assert!(planned(&json!({"Image": "x", "HostConfig": host})).is_err(), "{host}");
        }
    }
}
