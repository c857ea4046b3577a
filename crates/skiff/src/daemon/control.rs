//! The control plane: store, API server, controllers and scheduler.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use apiserver::pki::{KubeconfigEntry, LEAF_LIFE, Pki, kubeconfig};
use apiserver::{Config, Pipeline, Server};
use base::clock::SharedClock;
use base::lifecycle::Supervisor;
use reconcile::Informers;
use store::{Embedded, EmbeddedConfig, Files};

use super::connect::Connector;
use super::host::Host;
use super::local;
use super::net::Net;
use crate::settings::Settings;

/// The version that clients see: upstream's, and how many times Skiff changed since.
pub(crate) const GIT_VERSION: &str = "v1.37.0+skiff.1";

/// Upstream's range of node ports.
const NODE_PORTS: (u16, u16) = (30_000, 32_767);

/// The control plane's handles.
pub(crate) struct Control {
    /// The one way in.
    pub(crate) pipeline: Arc<Pipeline>,
    /// The certificate authority.
    pub(crate) pki: Arc<Pki>,
    /// The process's caches.
    pub(crate) informers: Informers,
    /// The way to nodes.
    pub(crate) connector: Arc<Connector>,
    /// `https://address:port`.
    pub(crate) url: String,
    name: String,
}

/// Builds the control plane and hands its components to the supervisor.
pub(crate) async fn build(
    settings: &Settings,
    host: &Host,
    net: &Net,
    clock: SharedClock,
    supervisor: &mut Supervisor,
) -> Result<Control> {
    let data = &settings.instance.data_dir;
    let files = Files::open(data.join("store")).context("open the store's directory")?;
    let store = Embedded::open(Arc::new(files), EmbeddedConfig::STANDARD).context("open the store")?;
    let config = Config {
        listen: SocketAddr::new(host.any(), settings.api_port),
        addresses: vec![host.address, IpAddr::V4(Ipv4Addr::LOCALHOST)],
        pki_dir: data.join("pki"),
        service_ranges: vec![net.services()],
        node_ports: NODE_PORTS,
        dns_address: Some(net.config.ranges.dns().into()),
        git_version: GIT_VERSION.into(),
        clock: clock.clone(),
        readiness: Some(supervisor.readiness()),
        authorizer: None,
        admission: apiserver::admission::standard(),
    };
    let connector = Arc::new(Connector::default());
    let (pipeline, server) = Server::build(config, store, resources::strategies(), connector.clone()).await?;
    let pki = server.pki().clone();
    let url = format!("https://{}", SocketAddr::new(host.address, server.local_addr()?.port()));
    supervisor.add(Arc::new(server));

    let controllers = local::client(&pipeline, "skiff:controllers", &[local::COMPONENTS]);
    let informers = Informers::new(controllers.clone(), clock.clone());
    let ctx = controllers::Ctx {
        client: controllers,
        informers: informers.clone(),
        clock: clock.clone(),
        catalog: reconcile::kinds::Catalog::default(),
        root_ca_pem: pki.ca_pem().into(),
    };
    for controller in controllers::all(&ctx) {
        supervisor.add(controller);
    }
    let client = local::client(&pipeline, "skiff:scheduler", &[local::COMPONENTS]);
    supervisor.add(Arc::new(scheduler::Scheduler::new(&client, &informers, &clock)));
    Ok(Control { pipeline, pki, informers, connector, url, name: settings.instance.name.clone() })
}

impl Control {
    /// A kubeconfig of the administrator, as YAML.
    pub(crate) fn kubeconfig(&self) -> Result<String> {
        let admin = self.pki.issue_client("kubernetes-admin", &["system:masters"], LEAF_LIFE)?;
        let ca_pem = self.pki.ca_pem();
        let entry = KubeconfigEntry { name: &self.name, server: &self.url, ca_pem: &ca_pem };
        serde_yaml_ng::to_string(&kubeconfig(&entry, &admin))
            .map_err(|error| anyhow!("write kubeconfig: {error}"))
    }
}
