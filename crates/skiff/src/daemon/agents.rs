//! What works on this host: engine, network, cluster DNS, the node agent, the Container Runtime Interface and the Docker
//! Engine API.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use apiserver::pki::HotResolver;
use async_trait::async_trait;
use base::BoxError;
use base::clock::SharedClock;
use base::lifecycle::{Component, Context as Running, Supervisor};
use cli::instance::DEFAULT_NAME;
use client::Client;
use engine::{Engine, EngineConfig, ImageService};
use engine_api::{EngineError, Images, Runtime, SandboxNetwork, SandboxState};
use network::drain::{DataPath, PAUSE};
use network::host::Handles;
use network::peers::{Peers, Reporter};
use network::proxy::agent::Proxy;
use network::sandbox::Sandboxes;
use node::{FollowsApiServer, NodeServer, PodRange};
use reconcile::ports::{ClusterDns, PublishedPort, SandboxNetworks};
use reconcile::{EventRecorder, Informers};
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::control::GIT_VERSION;
use super::host::Host;
use super::net::Net;
use super::runtime_socket::RuntimeSocket;
use crate::rootless::ports::Ports;
use crate::settings::Settings;

/// The domain of cluster names.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// Pods that a node takes, as upstream's default.
const MAX_PODS: u32 = 110;

/// How others reach this node: what changes with the host's address and in time.
pub(crate) struct Reach {
    /// The host's addresses.
    pub(crate) addresses: watch::Receiver<Vec<IpAddr>>,
    /// The certificate of the node's server.
    pub(crate) serving: Arc<HotResolver>,
    /// Who is told where the API server is; `None` where it is in this process.
    pub(crate) api_server: Option<Arc<dyn FollowsApiServer>>,
}

/// The node's way to the cluster.
pub(crate) struct Cluster {
    /// Speaks as this node.
    pub(crate) client: Client,
    /// The process's caches.
    pub(crate) informers: Informers,
    /// The cluster's certificate authority, PEM.
    pub(crate) ca_pem: String,
    /// Whether this host has the cluster's configuration, and so the range of its pods by itself.
    pub(crate) is_ours: bool,
}

/// Builds the agents and hands them to the supervisor; gives the node's server.
pub(crate) async fn build(
    settings: &Settings,
    host: &Host,
    net: &Net,
    cluster: Cluster,
    reach: Reach,
    clock: SharedClock,
    supervisor: &mut Supervisor,
) -> Result<Arc<NodeServer>> {
    let instance = &settings.instance;
    let store = image::Store::open(&instance.data_dir.join("images")).context("open the image store")?;
    let store = store.with_registries(settings.images.registries.clone());
    let config = EngineConfig {
        data_dir: instance.data_dir.join("engine"),
        run_dir: instance.run_dir.join("engine"),
        cgroup_root: instance.name.clone(),
        runtimes: settings.oci_runtimes.clone(),
        cdi_directories: engine::CDI_DIRECTORIES.map(PathBuf::from).to_vec(),
    };
    let runtime: Arc<dyn Runtime> = Engine::open(config, store.clone()).await.context("open the engine")?;
    let images: Arc<dyn Images> = Arc::new(ImageService::new(store.clone()));

    let Cluster { client, informers, ca_pem, is_ours } = cluster;
    let range = net.config.node_pods.to_string();
    let range = if is_ours { PodRange::Configured(range) } else { PodRange::Wished(range) };
    let sandboxes = Arc::new(Sandboxes::open(&net.config, &net.handles).context("open the pods' addresses")?);
    release_unused(&*runtime, &sandboxes).await.context("release addresses that nobody has any more")?;
    let (name, published) = (&settings.node_name, sandboxes.published().clone());
    let proxy = Proxy::new(&informers, net.handles.clone(), net.fixed.clone(), published, name);
    let peers = Peers::new(&informers, name, clock.clone());
    let drain = DataPath::new(proxy.view(), net.handles.clone(), peers, net.fixed.clone(), PAUSE);
    let drain = Arc::new(drain.context("listen to connections")?);
    let reporter = Reporter::new(&proxy.view(), &informers, client.clone(), name, clock.clone());
    supervisor.add(Arc::new(reporter));
    let recorder = || EventRecorder::new(client.clone(), clock.clone(), "kubelet", name);
    if let Some(ports) = Ports::of(settings, proxy.view(), recorder) {
        supervisor.add(Arc::new(ports));
    }
    supervisor.add(Arc::new(proxy));
    let dns = net.dns(informers.clone()).context("serve cluster DNS")?;
    supervisor.add(Arc::new(dns));

    let root = instance.data_dir.join("node");
    if let Err(error) = node::share_root(&root) {
        let remedy =
            "volumes of drivers in pods reach no other pod; give a data directory that can be mounted on";
        tracing::warn!(directory = %root.display(), %error, "the node's directory is no shared mount: {remedy}");
    }
    let handles = node::Handles {
        client,
        informers,
        clock,
        runtime: runtime.clone(),
        images: images.clone(),
        networks: sandboxes.clone(),
        drain,
        dns: Arc::new(Resolver(net.config.ranges.dns().into())),
    };
    let agent = node::Agent::build(node_config(settings, host, range, ca_pem, reach), handles)
        .await
        .map_err(|error| anyhow!(error))?;
    let node_server = agent.server();
    supervisor.add(agent);

    let builder = builder::Builder::new(store, runtime.clone(), builder::Host::detect());
    builder.recover().await.context("clear up after interrupted builds")?;
    let config = docker::Config {
        version: env!("CARGO_PKG_VERSION").into(),
        data_dir: instance.data_dir.join("docker"),
        node_name: settings.node_name.clone(),
    };
    let networks: Arc<dyn engine_api::SandboxNetworks> = Arc::new(Networks(sandboxes));
    let interface = RuntimeSocket::bind(instance, runtime.clone(), images.clone(), networks.clone()).await?;
    supervisor.add(Arc::new(interface));
    let server = docker::Server::new(runtime, images, Arc::new(builder), networks, config);
    supervisor.add(Arc::new(EngineSocket::bind(server, &instance.docker_socket())?));
    Ok(node_server)
}

/// Addresses and interfaces of sandboxes that ended while no daemon watched.
async fn release_unused(runtime: &dyn Runtime, sandboxes: &Sandboxes) -> Result<()> {
    let alive = runtime.sandboxes().await?.into_iter().filter(|sandbox| sandbox.state == SandboxState::Ready);
    Ok(sandboxes.retain_blocking(&alive.map(|sandbox| sandbox.spec.id).collect())?)
}

fn node_config(
    settings: &Settings,
    host: &Host,
    range: PodRange,
    ca_pem: String,
    reach: Reach,
) -> node::Config {
    let instance = &settings.instance;
    let name = &settings.node_name;
    node::Config {
        node_name: name.clone(),
        hostname: name.clone(),
        addresses: reach.addresses,
        pod_range: Some(range),
        data_dir: instance.data_dir.join("node"),
        shown_as: shown_as(&instance.name, &instance.data_dir.join("node")),
        run_dir: instance.run_dir.join("node"),
        log_dir: instance.data_dir.join("logs"),
        seccomp_dir: instance.data_dir.join("seccomp"),
        resolv_conf: host.resolv_conf.clone(),
        kubelet_version: GIT_VERSION.into(),
        runtime_version: concat!("skiff://", env!("CARGO_PKG_VERSION")).into(),
        max_pods: settings.kubelet.max_pods.unwrap_or(MAX_PODS),
        pod_pids_limit: settings.kubelet.pod_pids_limit.filter(|limit| *limit > 0),
        crash_loop_max: settings.restart_period(),
        static_pods: settings.static_pods().cloned(),
        images: settings.images.node.clone(),
        reserved: settings.kubelet.reserved.clone(),
        eviction: settings.kubelet.eviction.clone(),
        cpus: settings.kubelet.cpus.clone(),
        shutdown: settings.kubelet.shutdown.clone(),
        labels: Vec::new(),
        server: Some(node::ServerConfig {
            listen: SocketAddr::new(host.any(), settings.node_port),
            certificates: reach.serving,
            client_ca_pem: ca_pem,
            api_server_name: apiserver::nodes::CLIENT_NAME.into(),
            api_server: reach.api_server,
        }),
    }
}

/// Where plugins see the node's directory: charts name the kubelet's, which the default instance shows where there is none.
fn shown_as(instance: &str, root: &Path) -> PathBuf {
    let known = Path::new(node::KNOWN_AS);
    if instance != DEFAULT_NAME {
        return root.to_owned();
    }
    match node::show_root(root, known) {
        Ok(true) => known.to_owned(),
        Ok(false) => root.to_owned(),
        Err(error) => {
            tracing::warn!(directory = %known.display(), %error, "the node's directory is not shown there: charts have to be told of {}", root.display());
            root.to_owned()
        }
    }
}

/// What pods' resolver configuration points to.
struct Resolver(IpAddr);

impl ClusterDns for Resolver {
    fn nameservers(&self) -> Vec<IpAddr> {
        vec![self.0]
    }

    fn domain(&self) -> String {
        CLUSTER_DOMAIN.into()
    }
}

/// The network agent in the words of the engine's API, for containers of `docker run`.
struct Networks(Arc<Sandboxes>);

#[async_trait]
impl engine_api::SandboxNetworks for Networks {
    async fn attach(&self, sandbox_id: &str, netns_path: &str) -> Result<SandboxNetwork, EngineError> {
        let failed = |error: BoxError| EngineError::internal("connect the container's network", &*error);
        let addresses = self.0.attach(sandbox_id, netns_path).await.map_err(failed)?;
        let host_interface = self.0.address(sandbox_id).map(Sandboxes::host_interface).unwrap_or_default();
        Ok(SandboxNetwork { addresses, host_interface })
    }

    async fn publish(
        &self,
        sandbox_id: &str,
        ports: &[PublishedPort],
    ) -> Result<Vec<PublishedPort>, EngineError> {
        let failed = |error: BoxError| EngineError::conflict(base::error::chain(&*error));
        self.0.publish(sandbox_id, ports).await.map_err(failed)
    }

    fn published(&self, sandbox_id: &str) -> Vec<PublishedPort> {
        self.0.published().of(sandbox_id)
    }

    async fn detach(&self, sandbox_id: &str) -> Result<(), EngineError> {
        self.0
            .detach(sandbox_id)
            .await
            .map_err(|error| EngineError::internal("release the container's network", &*error))
    }
}

/// The Docker Engine API on its socket.
struct EngineSocket {
    server: docker::Server,
    listener: std::sync::Mutex<Option<UnixListener>>,
}

impl EngineSocket {
    fn bind(server: docker::Server, path: &std::path::Path) -> Result<Self> {
        // What a killed daemon left; the lock on the data directory says that no other one listens.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context("remove the old socket");
            }
            _ => {}
        }
        let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
        Ok(Self { server, listener: std::sync::Mutex::new(Some(listener)) })
    }
}

#[async_trait]
impl Component for EngineSocket {
    fn name(&self) -> &'static str {
        "docker"
    }

    async fn run(&self, ctx: Running) -> Result<(), BoxError> {
        let listener = self.listener.lock().map_err(|_| "the listener's lock is poisoned")?.take();
        let listener = listener.ok_or("the socket was served before")?;
        ctx.ready();
        self.server.serve(listener, &ctx).await
    }
}

/// Handles of the kernel's network, for whoever sets it up.
pub(crate) fn handles() -> Result<Handles> {
    Handles::open().context("open the kernel's network interfaces")
}
