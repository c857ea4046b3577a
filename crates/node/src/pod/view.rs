//! The projection of a Pod that the node works with, decoded once per revision.

use std::collections::BTreeSet;

use api::{Key, Object, ObjectMeta};
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ContainerStatus, EphemeralContainer, Lifecycle, PodSpec, PodStatus, Probe,
};
use reconcile::ports::{PodRef, PublishedPort};
use serde::Deserialize;

use crate::static_pods::{FILE, MIRROR, SOURCE, is_of_a_file};

/// Longer names the kernel does not take. Source: `HOST_NAME_MAX` of Linux.
const KERNEL_NAME_MAX: usize = 64;

/// A Pod without managedFields.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "Decoded")]
pub(crate) struct PodView {
    /// Metadata, with annotations.
    pub(crate) metadata: ObjectMeta,
    /// What is wanted, but for `ephemeralContainers`.
    pub(crate) spec: PodSpec,
    /// What the API server last heard.
    pub(crate) status: PodStatus,
    /// Containers that were added to see what the others do, in their order.
    pub(crate) ephemeral: Vec<Ephemeral>,
    /// Those of its containers that this node has given CPUs for themselves. The API does not say.
    pub(crate) own_cpus: BTreeSet<String>,
}

/// A Pod as its object spells it.
#[derive(Deserialize)]
struct Decoded {
    metadata: ObjectMeta,
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

/// An ephemeral container, which is a container in all but its way in.
#[derive(Debug, Clone)]
pub(crate) struct Ephemeral {
    pub(crate) container: Container,
    /// The container whose processes it sees.
    pub(crate) target: Option<String>,
}

impl From<Decoded> for PodView {
    fn from(Decoded { metadata, mut spec, status }: Decoded) -> Self {
        let ephemeral = spec.ephemeral_containers.take().unwrap_or_default();
        let ephemeral = ephemeral.into_iter().map(Ephemeral::from).collect();
        Self { metadata, spec, status, ephemeral, own_cpus: BTreeSet::new() }
    }
}

impl From<EphemeralContainer> for Ephemeral {
    fn from(own: EphemeralContainer) -> Self {
        let container = Container {
            args: own.args,
            command: own.command,
            env: own.env,
            env_from: own.env_from,
            image: own.image,
            image_pull_policy: own.image_pull_policy,
            name: own.name,
            security_context: own.security_context,
            stdin: own.stdin,
            stdin_once: own.stdin_once,
            termination_message_path: own.termination_message_path,
            termination_message_policy: own.termination_message_policy,
            tty: own.tty,
            volume_devices: own.volume_devices,
            volume_mounts: own.volume_mounts,
            working_dir: own.working_dir,
            // The API allows none of the other fields: it has no ports, probes, hooks, resources and restarts.
            ..Container::default()
        };
        Self { container, target: own.target_container_name.filter(|name| !name.is_empty()) }
    }
}

/// `spec.restartPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    /// The policy of a name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "Always" => Some(Self::Always),
            "OnFailure" => Some(Self::OnFailure),
            "Never" => Some(Self::Never),
            _ => None,
        }
    }
}

/// Which part a container has in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ContainerKind {
    /// Runs to completion before the application containers.
    Init,
    /// An init container with `restartPolicy: Always` (KEP-753): starts in order, then keeps running.
    Sidecar,
    /// An application container.
    App,
    /// One that was added to a pod that runs (`kubectl debug`): runs once.
    Ephemeral,
}

impl PodView {
    /// Decodes a Pod object.
    pub(crate) fn decode(object: &Object) -> Result<Self, serde_json::Error> {
        object.decode()
    }

    pub(crate) fn key(&self) -> Key {
        Key::new(self.metadata.namespace.clone(), self.metadata.name.clone())
    }

    pub(crate) fn uid(&self) -> &str {
        &self.metadata.uid
    }

    /// Whether a file of this node says that there is this pod, and not the API. Source: `kubetypes.IsStaticPod`. Anybody
    /// may annotate a pod of the API so, but nobody chooses its uid.
    pub(crate) fn is_of_a_file(&self) -> bool {
        let annotations = &self.metadata.annotations;
        is_of_a_file(self.uid())
            && annotations.get(SOURCE).is_some_and(|source| source == FILE)
            && !annotations.contains_key(MIRROR)
    }

    /// `name_namespace(uid)`, as upstream names a pod in messages.
    pub(crate) fn described(&self) -> String {
        format!("{}_{}({})", self.metadata.name, self.metadata.namespace, self.metadata.uid)
    }

    /// How the ports of `reconcile` name the pod.
    pub(crate) fn pod_ref(&self, addresses: &[std::net::IpAddr]) -> PodRef {
        PodRef {
            namespace: self.metadata.namespace.clone(),
            name: self.metadata.name.clone(),
            uid: self.metadata.uid.clone(),
            addresses: addresses.to_vec(),
        }
    }

    pub(crate) fn restart_policy(&self) -> RestartPolicy {
        self.spec.restart_policy.as_deref().and_then(RestartPolicy::named).unwrap_or(RestartPolicy::Always)
    }

    pub(crate) fn host_network(&self) -> bool {
        self.spec.host_network.unwrap_or(false)
    }

    /// Init containers and sidecars, in the order in which they start.
    pub(crate) fn init_containers(&self) -> &[Container] {
        self.spec.init_containers.as_deref().unwrap_or_default()
    }

    /// Every container with its kind: those that the pod began with in the order in which they start, then the
    /// ephemeral ones.
    pub(crate) fn containers(&self) -> impl Iterator<Item = (ContainerKind, &Container)> {
        let init = self.init_containers().iter().map(|container| (init_kind(container), container));
        let apps = self.spec.containers.iter().map(|container| (ContainerKind::App, container));
        let ephemeral = self.ephemeral.iter().map(|own| (ContainerKind::Ephemeral, &own.container));
        init.chain(apps).chain(ephemeral)
    }

    /// What was last told of a container.
    pub(crate) fn reported(&self, name: &str) -> Option<&ContainerStatus> {
        reported(&self.status, name)
    }

    /// The ports of the host that the pod's long-running containers ask for, none where the pod is on the host's own
    /// network. An error names the container and the port.
    pub(crate) fn host_ports(&self) -> Result<Vec<PublishedPort>, String> {
        if self.host_network() {
            return Ok(Vec::new());
        }
        let running = self.containers().filter(|(kind, _)| *kind != ContainerKind::Init);
        let asked = running.flat_map(|(_, container)| {
            let ports =
                container.ports.iter().flatten().filter(|port| port.host_port.is_some_and(|port| port > 0));
            ports
                .map(|port| host_port(port).map_err(|error| format!("container {}: {error}", container.name)))
        });
        asked.collect()
    }

    /// A container by its name.
    pub(crate) fn container(&self, name: &str) -> Option<(ContainerKind, &Container)> {
        self.containers().find(|(_, container)| container.name == name)
    }

    /// Whether the API says that the pod's life is over.
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// Seconds between the stop signal and the kill for a pod that nobody deleted.
    pub(crate) fn spec_grace_seconds(&self) -> i64 {
        self.spec.termination_grace_period_seconds.unwrap_or(30)
    }

    /// The domain in which other pods find this one by its host name, below that of the cluster: `<subdomain>.<namespace>.svc`.
    /// Source: `GeneratePodHostNameAndDomain` in `pkg/kubelet`.
    pub(crate) fn host_domain(&self, cluster: &str) -> Option<String> {
        let subdomain = self.spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty())?;
        let named_otherwise = self.spec.hostname_override.as_deref().is_some_and(|name| !name.is_empty());
        (!named_otherwise).then(|| format!("{subdomain}.{}.svc.{cluster}", self.metadata.namespace))
    }

    /// The name that the kernel has for the pod's host: with its domain if the pod asks for that.
    /// Source: `GetNodenameForKernel` in `pkg/kubelet/util`.
    pub(crate) fn kernel_hostname(&self, cluster: &str) -> Result<String, String> {
        let hostname = self.hostname();
        let Some(domain) = self.host_domain(cluster).filter(|_| self.spec.set_hostname_as_fqdn == Some(true))
        else {
            return Ok(hostname);
        };
        let name = format!("{hostname}.{domain}");
        if name.len() > KERNEL_NAME_MAX {
            let asked = name.len();
            return Err(format!(
                "failed to construct FQDN from pod hostname and cluster domain, FQDN {name} is too long \
                 ({KERNEL_NAME_MAX} characters is the max, {asked} characters requested)"
            ));
        }
        Ok(name)
    }

    /// The host name inside: `spec.hostname`, or the pod's name cut to what the kernel takes.
    pub(crate) fn hostname(&self) -> String {
        let name = match (&self.spec.hostname_override, &self.spec.hostname) {
            (Some(name), _) | (None, Some(name)) if !name.is_empty() => name,
            _ => &self.metadata.name,
        };
        // Linux: HOST_NAME_MAX is 64; upstream cuts to 63 and takes trailing separators away.
        let cut: String = name.chars().take(63).collect();
        cut.trim_end_matches(['-', '.']).to_owned()
    }
}

/// What a status says of a container, of whatever kind.
pub(crate) fn reported<'s>(status: &'s PodStatus, name: &str) -> Option<&'s ContainerStatus> {
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|known| known.name == name)
}

fn host_port(port: &ContainerPort) -> Result<PublishedPort, String> {
    let number = |port: i32| u16::try_from(port).map_err(|_| format!("{port} is no port"));
    let host_ip = match port.host_ip.as_deref() {
        None | Some("" | "0.0.0.0" | "::") => None,
        Some(ip) => Some(ip.parse().map_err(|_| format!("hostIP {ip} is no IPv4 address of this host"))?),
    };
    Ok(PublishedPort {
        host_ip,
        host_port: number(port.host_port.unwrap_or(0))?,
        port: number(port.container_port)?,
        protocol: port.protocol.as_deref().unwrap_or("TCP").parse().map_err(|error| format!("{error}"))?,
    })
}

/// Whether an init container is a sidecar.
pub(crate) fn init_kind(container: &Container) -> ContainerKind {
    if container.restart_policy.as_deref() == Some("Always") {
        ContainerKind::Sidecar
    } else {
        ContainerKind::Init
    }
}

/// The probe of a container by its type.
pub(crate) fn probe_of(container: &Container, which: crate::probes::ProbeType) -> Option<&Probe> {
    match which {
        crate::probes::ProbeType::Startup => container.startup_probe.as_ref(),
        crate::probes::ProbeType::Liveness => container.liveness_probe.as_ref(),
        crate::probes::ProbeType::Readiness => container.readiness_probe.as_ref(),
    }
}

/// The `preStop` hook of a container.
pub(crate) fn pre_stop(container: &Container) -> Option<&k8s_openapi::api::core::v1::LifecycleHandler> {
    container.lifecycle.as_ref().and_then(|Lifecycle { pre_stop, .. }| pre_stop.as_ref())
}
