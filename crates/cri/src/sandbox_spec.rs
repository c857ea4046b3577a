//! From the interface's sandbox to the engine's.

use std::path::PathBuf;

use engine_api::{Protocol, PublishedPort, SandboxSpec};
use tonic::Status;

use crate::known::labels_of;
use crate::proto::{self, NamespaceMode, NamespaceOption, PodSandboxConfig, PortMapping};
use crate::security::check_user_namespace;

/// Where sandboxes lie whose caller names no cgroup.
const CGROUP_PARENT: &str = "cri";

/// What has to be made.
#[derive(Debug)]
pub(crate) struct SandboxPlan {
    pub(crate) spec: SandboxSpec,
    /// The host name that its containers see.
    pub(crate) hostname: String,
    /// Ports of the host that lead to it.
    pub(crate) ports: Vec<PublishedPort>,
}

/// This host, as far as sandboxes depend on it.
pub(crate) struct HostFacts<'a> {
    pub(crate) hostname: &'a str,
    pub(crate) cgroup_root: &'a str,
}

/// The namespaces that a sandbox asks for; none said is a pod's own.
pub(crate) fn namespaces(config: &PodSandboxConfig) -> NamespaceOption {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    context.and_then(|context| context.namespace_options.clone()).unwrap_or_default()
}

/// The plan of a sandbox.
pub(crate) fn plan(
    config: &PodSandboxConfig,
    handler: &str,
    id: &str,
    host: &HostFacts<'_>,
) -> Result<SandboxPlan, Status> {
    let metadata = config
        .metadata
        .as_ref()
        .ok_or_else(|| Status::invalid_argument("the sandbox's configuration has no metadata"))?;
    if !handler.is_empty() {
        return Err(Status::invalid_argument(format!(
            "no runtime for {handler:?} is configured: leave the handler empty"
        )));
    }
    let namespaces = namespaces(config);
    check_user_namespace(&namespaces)?;
    let host_network = is_hosts(namespaces.network(), "network")?;
    let host_ipc = is_hosts(namespaces.ipc(), "ipc")?;
    if namespaces.pid() == NamespaceMode::Target {
        return Err(Status::invalid_argument("pid: a sandbox has no target; use POD, CONTAINER or NODE"));
    }
    let hostname = match (host_network, config.hostname.is_empty()) {
        (false, false) => config.hostname.clone(),
        _ => host.hostname.to_owned(),
    };
    let linux = config.linux.clone().unwrap_or_default();
    let spec = SandboxSpec {
        id: id.to_owned(),
        name: format!("{}/{}", metadata.namespace, metadata.name),
        labels: labels_of(config),
        hostname: if host_network { String::new() } else { hostname.clone() },
        host_network,
        host_pid: namespaces.pid() == NamespaceMode::Node,
        host_ipc,
        share_pid: namespaces.pid() == NamespaceMode::Pod,
        sysctls: linux.sysctls.into_iter().collect(),
        cgroup_parent: cgroup_parent(&linux.cgroup_parent, host.cgroup_root),
        log_directory: PathBuf::from(&config.log_directory),
        ..SandboxSpec::default()
    };
    if !config.log_directory.is_empty() && !spec.log_directory.is_absolute() {
        let text = format!("log_directory: {:?} is no absolute path", config.log_directory);
        return Err(Status::invalid_argument(text));
    }
    let ports = if host_network { Vec::new() } else { ports(&config.port_mappings)? };
    Ok(SandboxPlan { spec, hostname, ports })
}

/// A namespace of the sandbox's is its own or the host's.
fn is_hosts(mode: NamespaceMode, what: &str) -> Result<bool, Status> {
    match mode {
        NamespaceMode::Pod => Ok(false),
        NamespaceMode::Node => Ok(true),
        NamespaceMode::Container | NamespaceMode::Target => Err(Status::invalid_argument(format!(
            "{what} namespace mode {} is not supported: use POD or NODE",
            mode.as_str_name()
        ))),
    }
}

/// Everything of this engine's lies below one group, so that a kubelet finds its pods where it expects them if its
/// `cgroupRoot` is that one.
fn cgroup_parent(asked: &str, root: &str) -> String {
    let path = asked.trim_matches('/');
    let below = match path.strip_prefix(root) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest.trim_matches('/'),
        _ => path,
    };
    if below.is_empty() { CGROUP_PARENT.to_owned() } else { below.to_owned() }
}

/// Ports that are published; those without a port of the host are only told.
pub(crate) fn ports(mappings: &[PortMapping]) -> Result<Vec<PublishedPort>, Status> {
    mappings.iter().filter(|mapping| mapping.host_port != 0).map(port).collect()
}

fn port(mapping: &PortMapping) -> Result<PublishedPort, Status> {
    let number = |number: i32, what: &str| {
        let number = u16::try_from(number).ok().filter(|number| *number > 0);
        number
            .ok_or_else(|| Status::invalid_argument(format!("port mapping: invalid {what}: use 1 to 65535")))
    };
    let host_ip = match mapping.host_ip.as_str() {
        "" | "0.0.0.0" | "::" => None,
        text => Some(text.parse().map_err(|_| {
            Status::invalid_argument(format!("port mapping: {text:?} is no IPv4 address of the host"))
        })?),
    };
    Ok(PublishedPort {
        host_ip,
        host_port: number(mapping.host_port, "host_port")?,
        port: number(mapping.container_port, "container_port")?,
        protocol: match mapping.protocol() {
            proto::Protocol::Tcp => Protocol::Tcp,
            proto::Protocol::Udp => Protocol::Udp,
            proto::Protocol::Sctp => Protocol::Sctp,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext, PodSandboxMetadata};

    const HOST: HostFacts<'_> = HostFacts { hostname: "host", cgroup_root: "skiff" };

    fn config(network: NamespaceMode, pid: NamespaceMode) -> PodSandboxConfig {
        let namespace_options =
            NamespaceOption { network: network as i32, pid: pid as i32, ..NamespaceOption::default() };
        let context = LinuxSandboxSecurityContext {
            namespace_options: Some(namespace_options),
            ..LinuxSandboxSecurityContext::default()
        };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "p".into(),
                namespace: "n".into(),
                ..Default::default()
            }),
            hostname: "own".into(),
            port_mappings: vec![
                PortMapping { container_port: 80, host_port: 8080, ..PortMapping::default() },
                PortMapping { container_port: 81, ..PortMapping::default() },
            ],
            linux: Some(LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() }),
            ..PodSandboxConfig::default()
        }
    }

    #[test]
    fn namespaces_and_ports_follow_the_configuration() {
        let own = plan(&config(NamespaceMode::Pod, NamespaceMode::Container), "", "1", &HOST).unwrap();
        assert_eq!((own.spec.name.as_str(), own.spec.hostname.as_str()), ("n/p", "own"));
        assert!(!own.spec.share_pid && !own.spec.host_network);
        assert_eq!(own.ports.len(), 1);
        let hosts = plan(&config(NamespaceMode::Node, NamespaceMode::Node), "", "1", &HOST).unwrap();
        assert!(hosts.spec.host_network && hosts.spec.host_pid && hosts.ports.is_empty());
        assert_eq!((hosts.spec.hostname.as_str(), hosts.hostname.as_str()), ("", "host"));
        let shared = plan(&config(NamespaceMode::Pod, NamespaceMode::Pod), "", "1", &HOST).unwrap();
        assert!(shared.spec.share_pid);
    }

    #[test]
    fn what_is_wrong_or_impossible_is_refused() {
        let good = || config(NamespaceMode::Pod, NamespaceMode::Pod);
        let code =
            |config: &PodSandboxConfig, handler: &str| plan(config, handler, "1", &HOST).unwrap_err().code();
        assert_eq!(code(&PodSandboxConfig::default(), ""), tonic::Code::InvalidArgument);
        assert_eq!(code(&good(), "kata"), tonic::Code::InvalidArgument);
        assert_eq!(
            code(&config(NamespaceMode::Container, NamespaceMode::Pod), ""),
            tonic::Code::InvalidArgument
        );
        assert_eq!(
            code(&config(NamespaceMode::Pod, NamespaceMode::Target), ""),
            tonic::Code::InvalidArgument
        );
        let mut port = good();
        port.port_mappings[0].host_port = 70_000;
        assert_eq!(code(&port, ""), tonic::Code::InvalidArgument);
        let relative = PodSandboxConfig { log_directory: "logs".into(), ..good() };
        assert_eq!(code(&relative, ""), tonic::Code::InvalidArgument);
    }

    #[test]
    fn groups_lie_below_the_engines_own() {
        for (asked, below) in [
            ("", "cri"),
            ("/skiff", "cri"),
            ("/skiff/kubepods/pod1", "kubepods/pod1"),
            ("/kubepods/pod1", "kubepods/pod1"),
            ("/skiffy/pod1", "skiffy/pod1"),
        ] {
            assert_eq!(cgroup_parent(asked, "skiff"), below, "{asked}");
        }
    }
}
