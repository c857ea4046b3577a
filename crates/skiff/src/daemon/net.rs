//! The host's part of the cluster network: ranges that fit beside its routes, bridge, table, and the DNS address.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use network::dns::{Dns, DnsConfig, upstreams};
use network::host::{self, Config, Handles};
use network::proxy::table::Fixed;
use network::ranges::load_or_choose;
use reconcile::Informers;

use super::agents::handles;
use super::host::Host;
use crate::settings::Settings;

/// The network of this node, set up.
pub(crate) struct Net {
    /// Names and ranges.
    pub(crate) config: Config,
    /// The kernel.
    pub(crate) handles: Handles,
    /// What the service proxy's table depends on.
    pub(crate) fixed: Fixed,
    resolvers: Vec<SocketAddr>,
}

impl Net {
    /// Chooses the ranges (once, at the first start) and makes what the cluster network stands on.
    pub(crate) fn set_up(settings: &Settings, host: &Host) -> Result<Self> {
        let instance = &settings.instance;
        let handles = handles()?;
        let dir = instance.data_dir.join("network");
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let taken = || host::taken(&*handles.routing, &instance.name);
        let ranges = load_or_choose(&dir, taken).context("choose address ranges")?;
        let node_pods = ranges.node_pods(0).context("the pod range has no room for a node")?;
        let config = Config {
            instance: instance.name.clone(),
            dir,
            ranges,
            node_pods,
            node: settings.node_name.clone(),
        };
        let fixed = host::set_up(&config, &handles).context("set up the node's network")?;
        let resolv_conf = std::fs::read_to_string(&host.resolv_conf).unwrap_or_default();
        let own: [IpAddr; 1] = [config.ranges.dns().into()];
        let resolvers = upstreams(&resolv_conf, &own);
        Ok(Self { config, handles, fixed, resolvers })
    }

    /// The service range as the API server takes it.
    pub(crate) fn services(&self) -> (IpAddr, u8) {
        let range = self.config.ranges.services;
        (range.network().into(), range.prefix_len())
    }

    /// Cluster DNS on its Service's address.
    pub(crate) fn dns(&self, informers: Informers) -> std::io::Result<Dns> {
        let address = SocketAddr::new(self.config.ranges.dns().into(), 53);
        let config = DnsConfig { address, domain: "cluster.local".into(), resolvers: self.resolvers.clone() };
        Dns::bind(config, informers)
    }
}

/// Takes away bridge, table, routes and sysctls of an instance; nothing is there if it never started.
pub(crate) fn purge(instance: &cli::instance::Instance) -> Result<()> {
    let dir = instance.data_dir.join("network");
    if !dir.exists() {
        return Ok(());
    }
    let handles = handles()?;
    let ranges = load_or_choose(&dir, || host::taken(&*handles.routing, &instance.name))
        .context("read address ranges")?;
    let node_pods = ranges.node_pods(0).context("the pod range has no room for a node")?;
    let config = Config { instance: instance.name.clone(), dir, ranges, node_pods, node: String::new() };
    host::purge(&config, &handles).context("remove the node's network")
}
