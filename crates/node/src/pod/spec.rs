//! What the engine is asked to make for a pod: the specifications of its sandbox and containers.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use engine_api::{ContainerSpec, Device, Mount, NamespaceSharing, Resources, SandboxSpec};
use k8s_openapi::api::core::v1::Container;

use super::PodView;
use super::env::expand;
use super::hash::container_hash;
use super::record::label;
use super::resources::{pod_group, qos_class};
use super::security::{check_isolation, security, sysctls, user};
use crate::cpus::limits::{container_resources, pod_resources};
use crate::hooks::kept;

/// Upstream's limits of termination messages name this path where the container does not.
const DEFAULT_MESSAGE_PATH: &str = "/dev/termination-log";

/// Facts about the node that go into specifications.
#[derive(Debug, Clone)]
pub(crate) struct NodeFacts {
    pub(crate) memory_bytes: i64,
    /// Processes per pod.
    pub(crate) pod_pids_limit: Option<i64>,
    /// Where `Localhost` seccomp profiles lie.
    pub(crate) seccomp_profiles: PathBuf,
    /// Directory of all pods' logs.
    pub(crate) log_root: PathBuf,
}

/// `<namespace>_<name>_<uid>`, as log collectors expect it.
pub(crate) fn log_directory(root: &Path, namespace: &str, name: &str, uid: &str) -> PathBuf {
    root.join(format!("{namespace}_{name}_{uid}"))
}

fn pod_labels(pod: &PodView, attempt: u32) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for (key, value) in [
        (label::POD_NAME, pod.metadata.name.clone()),
        (label::POD_NAMESPACE, pod.metadata.namespace.clone()),
        (label::POD_UID, pod.metadata.uid.clone()),
        (label::ATTEMPT, attempt.to_string()),
    ] {
        labels.insert(key.to_owned(), value);
    }
    labels
}

/// The sandbox of a pod. `domain`: the cluster's; `runtime_handler`: the OCI runtime that the pod's RuntimeClass names.
pub(crate) fn sandbox_spec(
    pod: &PodView,
    attempt: u32,
    facts: &NodeFacts,
    domain: &str,
    runtime_handler: String,
) -> Result<SandboxSpec, String> {
    check_isolation(&pod.spec)?;
    let host_network = pod.host_network();
    let mut labels = pod_labels(pod, attempt);
    labels.insert(label::GRACE.to_owned(), pod.spec_grace_seconds().to_string());
    Ok(SandboxSpec {
        id: base::id::hex64(),
        name: pod.key().to_string(),
        labels,
        hostname: if host_network { String::new() } else { pod.kernel_hostname(domain)? },
        host_network,
        host_pid: pod.spec.host_pid.unwrap_or(false),
        host_ipc: pod.spec.host_ipc.unwrap_or(false),
        share_pid: pod.spec.share_process_namespace.unwrap_or(false),
        // A pod that wants more mounts an emptyDir of memory there.
        shared_memory_bytes: 0,
        sysctls: sysctls(&pod.spec)?.into_iter().collect(),
        cgroup_parent: pod_group(qos_class(&pod.spec), pod.uid()),
        resources: Resources::default(),
        parent_resources: Some(pod_resources(pod, facts.pod_pids_limit)),
        log_directory: log_directory(&facts.log_root, &pod.metadata.namespace, &pod.metadata.name, pod.uid()),
        runtime_handler,
        own_users: pod.spec.host_users == Some(false),
    })
}

/// One run of one container.
pub(crate) struct Run<'a> {
    pub(crate) pod: &'a PodView,
    pub(crate) container: &'a Container,
    pub(crate) attempt: u32,
    pub(crate) failures: u32,
    /// How often the pod was asked to begin anew.
    pub(crate) epoch: u32,
    pub(crate) sandbox_id: &'a str,
    pub(crate) image_id: &'a str,
    /// `KEY=value`.
    pub(crate) env: Vec<String>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) devices: Vec<Device>,
    /// Names of devices that the runtime knows more of (CDI).
    pub(crate) cdi_devices: Vec<String>,
    /// Host path of the termination message file.
    pub(crate) message_file: PathBuf,
    /// The pod's address.
    pub(crate) address: Option<std::net::IpAddr>,
    /// The container whose processes it sees.
    pub(crate) pid_of: Option<String>,
}

/// Where a container's termination message is, inside.
pub(crate) fn message_path(container: &Container) -> &str {
    match container.termination_message_path.as_deref() {
        None | Some("") => DEFAULT_MESSAGE_PATH,
        Some(path) => path,
    }
}

/// The specification of a run.
pub(crate) fn container_spec(run: Run<'_>, facts: &NodeFacts) -> Result<ContainerSpec, String> {
    let Run { pod, container, .. } = run;
    let values: HashMap<&str, &str> = run.env.iter().filter_map(|line| line.split_once('=')).collect();
    let expanded = |words: &Option<Vec<String>>| -> Vec<String> {
        let lookup = |name: &str| values.get(name).map(|value| (*value).to_owned());
        words.iter().flatten().map(|word| expand(word, lookup)).collect()
    };
    let (entrypoint, args) = (expanded(&container.command), expanded(&container.args));
    Ok(ContainerSpec {
        id: base::id::hex64(),
        sandbox_id: run.sandbox_id.to_owned(),
        name: container.name.clone(),
        labels: container_labels(&run),
        image: container.image.clone().unwrap_or_default(),
        image_id: run.image_id.to_owned(),
        entrypoint,
        args,
        env: run.env,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        user: user(&pod.spec, container),
        mounts: run.mounts,
        devices: run.devices,
        cdi_devices: run.cdi_devices,
        resources: container_resources(pod, container, facts.memory_bytes),
        rlimits: Vec::new(),
        security: security(&pod.spec, container, &facts.seccomp_profiles)?,
        terminal: container.tty.unwrap_or(false),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        stop_signal: container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.stop_signal.clone())
            .unwrap_or_default(),
        log_path: Path::new(&container.name).join(format!("{}.log", run.attempt)),
        log_max_bytes: 0,
        namespaces: NamespaceSharing { pid_of: run.pid_of },
    })
}

fn container_labels(run: &Run<'_>) -> BTreeMap<String, String> {
    let container = run.container;
    let mut labels = pod_labels(run.pod, run.attempt);
    let policy = container.termination_message_policy.clone().unwrap_or_else(|| "File".to_owned());
    for (key, value) in [
        (label::CONTAINER_NAME, container.name.clone()),
        (label::HASH, container_hash(container)),
        (label::FAILURES, run.failures.to_string()),
        (label::MESSAGE_FILE, run.message_file.display().to_string()),
        (label::MESSAGE_POLICY, policy),
    ] {
        labels.insert(key.to_owned(), value);
    }
    if run.epoch > 0 {
        labels.insert(label::EPOCH.to_owned(), run.epoch.to_string());
    }
    labels.extend(kept(container, run.address).map(|value| (label::PRE_STOP.to_owned(), value)));
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    fn facts() -> NodeFacts {
        NodeFacts {
            memory_bytes: 8 << 30,
            pod_pids_limit: None,
            seccomp_profiles: "/p".into(),
            log_root: "/var/log/pods".into(),
        }
    }

    #[test]
    fn the_sandbox_names_its_pod() {
        let pod = pod(serde_json::json!({"containers": [{"name": "main"}], "shareProcessNamespace": true}));
        let spec = sandbox_spec(&pod, 2, &facts(), "cluster.local", "runc".into()).unwrap();
        assert_eq!(spec.cgroup_parent, "kubepods/besteffort/podu1");
        // The pod's own group outlives its sandboxes: limits of all of them together are set there.
        assert_eq!(
            (spec.resources, spec.parent_resources.unwrap().cpu_shares),
            (Resources::default(), Some(2))
        );
        assert_eq!(spec.log_directory, Path::new("/var/log/pods/default_web_u1"));
        assert_eq!((spec.hostname.as_str(), spec.share_pid), ("web", true));
        assert_eq!(spec.labels[label::ATTEMPT], "2");
        assert_eq!(spec.runtime_handler, "runc");
    }

    #[test]
    fn the_kernel_knows_the_whole_name_where_it_is_asked_for() {
        let named = |hostname: &str, more: serde_json::Value| {
            let mut spec = serde_json::json!({"containers": [{"name": "main"}], "hostname": hostname,
                "subdomain": "db", "setHostnameAsFQDN": true});
            spec.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
            sandbox_spec(&pod(spec), 0, &facts(), "cluster.local", String::new()).map(|spec| spec.hostname)
        };
        let whole = "db-0.db.default.svc.cluster.local";
        assert_eq!(named("db-0", serde_json::json!({})), Ok(whole.to_owned()));
        for other in [
            serde_json::json!({"setHostnameAsFQDN": false}),
            serde_json::json!({"subdomain": null}),
            serde_json::json!({"hostnameOverride": "db-0"}),
        ] {
            assert_eq!(named("db-0", other.clone()), Ok("db-0".to_owned()), "{other}");
        }
        assert_eq!(named("db-0", serde_json::json!({"hostNetwork": true})), Ok(String::new()));
        let longest = "a".repeat(64 - ".db.default.svc.cluster.local".len());
        assert_eq!(named(&longest, serde_json::json!({})).unwrap().len(), 64);
        let error = named(&format!("{longest}a"), serde_json::json!({})).unwrap_err();
        assert!(
            error.ends_with("is too long (64 characters is the max, 65 characters requested)"),
            "{error}"
        );
    }

    #[test]
    fn commands_see_the_containers_variables() {
        let pod = pod(serde_json::json!({"containers": [{"name": "main", "image": "x",
            "command": ["sh", "-c", "echo $(A) $(B) $$(A)"], "args": ["$(A)"]}]}));
        let run = Run {
            pod: &pod,
            container: &pod.spec.containers[0],
            attempt: 3,
            failures: 1,
            epoch: 0,
            sandbox_id: "s",
            image_id: "sha256:1",
            env: vec!["A=1=2".to_owned()],
            mounts: Vec::new(),
            devices: Vec::new(),
            cdi_devices: Vec::new(),
            message_file: "/m".into(),
            address: None,
            pid_of: None,
        };
        let spec = container_spec(run, &facts()).unwrap();
        assert_eq!(spec.entrypoint, ["sh", "-c", "echo 1=2 $(B) $(A)"]);
        assert_eq!(spec.args, ["1=2"]);
        assert_eq!(spec.log_path, Path::new("main/3.log"));
        assert_eq!(spec.labels[label::FAILURES], "1");
    }
}
