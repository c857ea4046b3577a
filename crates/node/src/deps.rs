//! What every part of the agent works with: handles that were given to it, and the caches that they share.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use base::BoxError;
use base::clock::SharedClock;
use client::Client;
use engine_api::logs::Notices;
use engine_api::{Images, Runtime};
use jiff::Timestamp;
use reconcile::ports::{ClusterDns, Drain, SandboxNetworks};
use reconcile::{EventRecorder, EventType, Informer, Involved, kinds};

use crate::config::Config;
use crate::cpus::Cpus;
use crate::eviction::pressure::WatchedPressure;
use crate::figures::Figures;
use crate::groups::Groups;
use crate::images::Puller;
use crate::images::gc::Garbage;
use crate::plugins::Plugins;
use crate::pod::fields::FieldContext;
use crate::pod::spec::NodeFacts;
use crate::pod::{ContainerKind, PodView};
use crate::registration::allocatable::for_requests;
use crate::runtime_state::RuntimeState;
use crate::shutdown::Shutdown;
use crate::static_pods::StaticPods;
use crate::traces::Traces;
use crate::volumes::PodDirectories;
use crate::volumes::threads::Threads;
use crate::watched::Watched;

/// The shared informers that the node reads.
pub(crate) struct Caches {
    pub(crate) pods: Informer,
    pub(crate) nodes: Informer,
    pub(crate) services: Informer,
}

/// The hardware, as it was at start.
#[derive(Debug, Clone)]
pub(crate) struct Hardware {
    pub(crate) milli_cpu: i64,
    pub(crate) memory_bytes: i64,
    pub(crate) disk_bytes: i64,
    /// Huge pages in bytes, by the size of one in bytes.
    pub(crate) huge_pages: BTreeMap<u64, u64>,
}

/// Handles and caches.
pub(crate) struct Deps {
    pub(crate) config: Config,
    pub(crate) client: Client,
    pub(crate) clock: SharedClock,
    pub(crate) recorder: EventRecorder,
    pub(crate) caches: Caches,
    /// ConfigMaps, Secrets and claims of this node's pods.
    pub(crate) watched: Watched,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) images: Arc<dyn Images>,
    pub(crate) puller: Puller,
    /// Which images may go.
    pub(crate) garbage: Garbage,
    pub(crate) networks: Arc<dyn SandboxNetworks>,
    pub(crate) drain: Arc<dyn Drain>,
    pub(crate) dns: Arc<dyn ClusterDns>,
    pub(crate) state: RuntimeState,
    /// What starting pods took.
    pub(crate) traces: Traces,
    pub(crate) hardware: Hardware,
    pub(crate) facts: NodeFacts,
    /// Pods that the node has from files.
    pub(crate) static_pods: StaticPods,
    pub(crate) figures: Figures,
    /// Who has CPUs for itself.
    pub(crate) cpus: Cpus,
    /// Whether the machine goes down.
    pub(crate) shutdown: Shutdown,
    /// What the groups above those of pods are set by.
    pub(crate) groups: Groups,
    /// Of the logs that are followed.
    pub(crate) notices: Notices,
    /// What the host is short of.
    pub(crate) pressure: WatchedPressure,
    /// Programs that do something for the node.
    pub(crate) plugins: Plugins,
    /// Where what may block for ever is done for volumes.
    pub(crate) threads: Threads,
}

impl Deps {
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The host's addresses, the preferred family first.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.config.addresses.borrow().clone()
    }

    pub(crate) fn directories(&self, uid: &str) -> PodDirectories {
        PodDirectories::new(&self.config.data_dir, &self.config.run_dir, uid)
    }

    /// The uid under which the node runs what the API shows as this pod.
    pub(crate) fn runs_as(&self, pod: &PodView) -> String {
        self.static_pods.runs_as(pod).unwrap_or_else(|| pod.uid().to_owned())
    }

    /// What `fieldRef` and `resourceFieldRef` can refer to.
    pub(crate) fn field_context(&self, pod_addresses: &[IpAddr]) -> FieldContext {
        let node = for_requests(&self.hardware, &self.config);
        FieldContext {
            pod_addresses: pod_addresses.to_vec(),
            host_addresses: self.addresses(),
            node_milli_cpu: node.milli_cpu,
            node_memory_bytes: node.memory_bytes,
            node_disk_bytes: node.disk_bytes,
        }
    }

    /// Records an event about a pod, or about one of its containers.
    pub(crate) fn event(
        &self,
        pod: &PodView,
        container: Option<&str>,
        event_type: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let mut involved = Involved::named(&kinds::PODS, &pod.key(), pod.uid());
        involved.resource_version.clone_from(&pod.metadata.resource_version);
        if let Some(name) = container {
            let list = match pod.container(name) {
                Some((ContainerKind::Init | ContainerKind::Sidecar, _)) => "initContainers",
                Some((ContainerKind::Ephemeral, _)) => "ephemeralContainers",
                _ => "containers",
            };
            involved = involved.field(format!("spec.{list}{{{name}}}"));
        }
        self.recorder.event(involved, event_type, reason, message);
    }

    pub(crate) fn normal(&self, pod: &PodView, container: &str, reason: &str, message: impl Into<String>) {
        self.event(pod, Some(container), EventType::Normal, reason, message);
    }

    pub(crate) fn warning(&self, pod: &PodView, container: &str, reason: &str, message: impl Into<String>) {
        self.event(pod, Some(container), EventType::Warning, reason, message);
    }
}

/// Runs file system work on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, BoxError> {
    tokio::task::spawn_blocking(work).await.map_err(Into::into)
}
