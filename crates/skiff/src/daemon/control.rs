//! The control plane: API server, controllers and scheduler. Of several over one store, one runs the controllers and one
//! the scheduler.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use api::Key;
use apiserver::authn::token::SecretClaims;
use apiserver::{Config, Pipeline, Server};
use async_trait::async_trait;
use base::BoxError;
use base::clock::SharedClock;
use base::lifecycle::{Component, Supervisor};
use client::Client;
use network::routes::NodeRoutes;
use reconcile::elected::Elected;
use reconcile::kinds::Catalog;
use reconcile::leader::Election;
use reconcile::ports::SecretTokens;
use reconcile::{EventRecorder, Informers};
use store::Store;

use super::address::Follower;
use super::calls::Calls;
use super::certificates::Authority;
use super::cluster::ClusterConfig;
use super::connect::{self, Connector};
use super::host::Host;
use super::local;
use super::net::Net;
use super::served::{self, ServedKinds};
use super::shared;
use crate::settings::Settings;

/// The version that clients see: upstream's, and how many times Skiff changed since.
pub(crate) const GIT_VERSION: &str = "v1.37.0+skiff.1";

/// Upstream's range of node ports.
const NODE_PORTS: (u16, u16) = (30_000, 32_767);

/// The control plane's handles.
pub(crate) struct Control {
    /// The one way in.
    pub(crate) pipeline: Arc<Pipeline>,
    /// The API server.
    pub(crate) server: Arc<Server>,
    /// What this process's requests to it are counted by.
    pub(crate) calls: Arc<Calls>,
    /// The process's caches.
    pub(crate) informers: Informers,
    /// The way to nodes.
    pub(crate) connector: Arc<Connector>,
    /// Where the API server listens.
    pub(crate) port: u16,
}

/// Builds the control plane and hands its components to the supervisor.
pub(crate) async fn build(
    settings: &Settings,
    host: &Host,
    (net, store): (&Net, Arc<dyn Store>),
    clock: SharedClock,
    supervisor: &mut Supervisor,
) -> Result<Control> {
    let pki_dir = settings.instance.data_dir.join("pki");
    let config = Config {
        listen: SocketAddr::new(host.any(), settings.api_port),
        addresses: vec![host.address, connect::LOOPBACK],
        pki_dir: pki_dir.clone(),
        service_ranges: vec![net.services()],
        node_ports: NODE_PORTS,
        dns_address: Some(net.config.ranges.dns().into()),
        git_version: GIT_VERSION.into(),
        clock: clock.clone(),
        shared: settings.etcd.is_some(),
        readiness: Some(supervisor.readiness()),
        access: settings.access.clone(),
        protection: settings.protection.clone(),
        authorizer: None,
        egress: None,
        admission: apiserver::admission::standard(),
    };
    let connector = Arc::new(Connector::default());
    let (pipeline, server) =
        Server::build(config, store.clone(), resources::strategies(), connector.clone()).await?;
    if settings.etcd.is_some() {
        shared::publish_keys(&store, &pki_dir).await?;
    }
    let port = server.local_addr()?.port();
    let server = Arc::new(server);
    supervisor.add(server.clone());
    supervisor.add(Arc::new(server.start()));

    let calls = Arc::new(Calls::new(server.front().figures(), format!("127.0.0.1:{port}"))?);
    let controllers = local::client(&pipeline, &calls, "skiff:controllers", &[local::COMPONENTS]);
    let informers = Informers::new(controllers.clone(), clock.clone());
    let remote = pipeline.clone();
    let catalog = Catalog::new(pipeline.catalog().rows()).incomplete();
    let ctx = controllers::Ctx {
        client: controllers,
        informers: informers.clone(),
        clock: clock.clone(),
        catalog: catalog.extended(move || served::extensions(&remote.extensions())),
        queues: server.front().queues().clone(),
        figures: Some(Arc::new(controllers::figures::Figures::new(server.front().figures())?)),
        root_ca_pem: server.pki().ca_renewals(),
    };
    let authority = Arc::new(Authority(server.pki().clone()));
    let ranges: Vec<_> = match settings.etcd {
        Some(_) => shared::member_pods(&net.config.ranges),
        None => (0..).map_while(|number| net.config.ranges.node_pods(number)).collect(),
    };
    let mut managed = controllers::all(&ctx);
    managed.push(Arc::new(controllers::certificates::Certificates::new(&ctx, authority)));
    managed.push(Arc::new(controllers::local_path::LocalPaths::new(&ctx)));
    let tokens = Arc::new(Signer(pipeline.clone()));
    managed.push(Arc::new(controllers::service_account_tokens::ServiceAccountTokens::new(&ctx, tokens)));
    managed.push(Arc::new(controllers::node_ipam::NodeIpam::new(&ctx, ranges)));
    managed.push(Arc::new(network::balancer::Balancers::new(
        &informers,
        local::client(&pipeline, &calls, "skiff:network", &[local::COMPONENTS]),
        net.config.ranges.balancers,
        clock.clone(),
    )));
    let client = local::client(&pipeline, &calls, "skiff:scheduler", &[local::COMPONENTS]);
    let mut placing =
        scheduler::Scheduler::new(&client, &informers, &clock).counted(server.front().figures())?;
    if let Some(path) = &settings.scheduler_config {
        let config = scheduler::Config::read(path).map_err(|error| anyhow::anyhow!(error))?;
        placing = placing.configured(config);
    }
    let placing: Arc<dyn Component> = Arc::new(placing);
    if settings.etcd.is_some() {
        let identity = format!("{}_{}", settings.node_name, base::id::uuid());
        // Under which name upstream's tell that they lead differs from the Lease's for the scheduler.
        let election =
            |client: &Client, lease, source| {
                let key = Key::new("kube-system", lease);
                Election::new(client.clone(), clock.clone(), key, identity.clone())
                    .telling(EventRecorder::new(client.clone(), clock.clone(), source, ""))
            };
        let (controllers, scheduler) = ("kube-controller-manager", "kube-scheduler");
        let leads = election(&ctx.client, controllers, controllers);
        supervisor.add(Arc::new(Elected::new(controllers, leads, managed)));
        let leads = election(&client, scheduler, "default-scheduler");
        supervisor.add(Arc::new(Elected::new(scheduler, leads, vec![placing])));
    } else {
        managed.into_iter().chain([placing]).for_each(|component| supervisor.add(component));
    }
    supervisor.add(Arc::new(ServedKinds::new(&pipeline, server.start(), &ctx.catalog)));
    supervisor.add(Arc::new(controllers::node_role::NodeRole::new(&ctx, &settings.node_name)));
    supervisor.add(Arc::new(ClusterConfig::new(&ctx.client, net.config.ranges)));
    connector.set_authority(server.pki().clone());
    supervisor.add(Arc::new(NodeRoutes::new(&informers, net.handles.clone(), &net.config)));
    Ok(Control { pipeline, server, calls, informers, connector, port })
}

/// Signs the tokens that lie in Secrets.
struct Signer(Arc<Pipeline>);

impl SecretTokens for Signer {
    fn sign(&self, namespace: &str, account: (&str, &str), secret: &str) -> Result<String, BoxError> {
        Ok(self.0.tokens().sign_for_secret(&SecretClaims::new(namespace, account, secret))?)
    }
}

/// The API server follows the host's address: its certificate, and the endpoints of Service `default/kubernetes`.
#[async_trait]
impl Follower for Server {
    async fn follow(&self, address: IpAddr) -> Result<(), BoxError> {
        self.set_addresses(vec![address, connect::LOOPBACK]).await
    }
}
