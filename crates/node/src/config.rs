//! What a node agent is built from.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::quantity::Quantity;
use api::resources::ResourceList;
use async_trait::async_trait;
use base::BoxError;
use tokio::sync::watch;

use crate::cpus::CpuSettings;
use crate::eviction::Eviction;
use crate::images::ImagesConfig;
use crate::shutdown::ShutdownSettings;

/// The settings of one node. No defaults are hidden here: `skiff` decides them.
#[derive(Clone)]
pub struct Config {
    /// The Node object's name.
    pub node_name: String,
    /// The host's name, for the address of type `Hostname`.
    pub hostname: String,
    /// The host's addresses, the preferred family first; follows changes of the host.
    pub addresses: watch::Receiver<Vec<IpAddr>>,
    /// The range of this node's pods, where the node has it already when it registers.
    pub pod_range: Option<PodRange>,
    /// Directory of what pods write (`pods/<uid>/…`), on disk.
    pub data_dir: PathBuf,
    /// The name of that directory for plugins, which may see it elsewhere ([`crate::KNOWN_AS`]).
    pub shown_as: PathBuf,
    /// Directory of what is derived from API objects, secrets among them: in memory, gone after a reboot.
    pub run_dir: PathBuf,
    /// Directory of the containers' logs.
    pub log_dir: PathBuf,
    /// Directory of `Localhost` seccomp profiles.
    pub seccomp_dir: PathBuf,
    /// The host's resolver configuration (`/etc/resolv.conf`, or the one that systemd-resolved forwards to).
    pub resolv_conf: PathBuf,
    /// Reported as `nodeInfo.kubeletVersion`: `v1.37.0+skiff.1`.
    pub kubelet_version: String,
    /// Reported as `nodeInfo.containerRuntimeVersion`: `skiff://0.1.0`.
    pub runtime_version: String,
    /// Pods that the node takes.
    pub max_pods: u32,
    /// Processes per pod; `None` sets no limit.
    pub pod_pids_limit: Option<i64>,
    /// The longest that a container which ends again and again waits for its restart.
    pub crash_loop_max: Duration,
    /// Directory of manifests whose pods the node runs by itself; `None`: there are no such pods.
    pub static_pods: Option<PathBuf>,
    /// How images are got, guarded and given up.
    pub images: ImagesConfig,
    /// What of the host is not the pods'.
    pub reserved: Reserved,
    /// When pods have to go.
    pub eviction: Eviction,
    /// Who has CPUs for itself.
    pub cpus: CpuSettings,
    /// How pods end before the machine goes down.
    pub shutdown: ShutdownSettings,
    /// Labels of the Node object beside the well-known ones.
    pub labels: Vec<(String, String)>,
    /// The node's HTTPS server; `None`: only the in-process handler.
    pub server: Option<ServerConfig>,
}

/// What of the host is not the pods', by resource: `cpu`, `memory`, `ephemeral-storage`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reserved {
    /// For what the system runs.
    pub system: ResourceList,
    /// For the platform itself.
    pub kube: ResourceList,
}

impl Reserved {
    /// Thousandths of cores.
    pub(crate) fn milli_cpu(&self) -> i64 {
        let of = |list: &ResourceList| list.get("cpu").map_or(0, Quantity::milli_value);
        of(&self.system).saturating_add(of(&self.kube))
    }

    /// Bytes of another resource.
    pub(crate) fn bytes(&self, name: &str) -> i64 {
        let of = |list: &ResourceList| list.get(name).map_or(0, Quantity::value);
        of(&self.system).saturating_add(of(&self.kube))
    }
}

/// What a node that registers says of the range of its pods (`10.42.1.0/24`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodRange {
    /// It has the range from the configuration of the cluster, beside whose API server it runs.
    Configured(String),
    /// It was given the range before and would have it again; the cluster decides.
    Wished(String),
}

/// The node's HTTPS server.
#[derive(Clone)]
pub struct ServerConfig {
    /// Where it listens; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// Its certificate, which may change while it runs.
    pub certificates: Arc<dyn rustls::server::ResolvesServerCert>,
    /// The authorities (PEM) whose client certificates it accepts.
    pub client_ca_pem: String,
    /// The common name of the API server's client certificate.
    pub api_server_name: String,
    /// Who follows the API server where it says that it is; `None` where it is in this process.
    pub api_server: Option<Arc<dyn FollowsApiServer>>,
}

/// Follows the API server when its address changes: it tells the nodes, which could not ask it any more.
#[async_trait]
pub trait FollowsApiServer: Send + Sync {
    /// The API server says that it is at `server` (`https://host:port`).
    ///
    /// # Errors
    /// If it cannot be reached there. The node stays with the address that it has, and will be told again.
    async fn moved(&self, server: &str) -> Result<(), BoxError>;
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A node by its defaults.
    pub(crate) fn config() -> Config {
        Config {
            node_name: "n1".to_owned(),
            hostname: "n1".to_owned(),
            addresses: watch::channel(Vec::new()).1,
            pod_range: None,
            data_dir: "/d".into(),
            run_dir: "/r".into(),
            shown_as: "/d".into(),
            images: ImagesConfig::default(),
            log_dir: "/l".into(),
            seccomp_dir: "/s".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            kubelet_version: String::new(),
            runtime_version: String::new(),
            max_pods: 110,
            pod_pids_limit: None,
            crash_loop_max: Duration::from_secs(300),
            static_pods: None,
            reserved: Reserved::default(),
            eviction: Eviction::default(),
            cpus: CpuSettings::default(),
            shutdown: ShutdownSettings::default(),
            labels: Vec::new(),
            server: None,
        }
    }
}
