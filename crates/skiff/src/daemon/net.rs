//! The host's part of the cluster network: ranges that fit beside its routes, bridge, table, and the DNS address.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use network::dns::{Dns, DnsConfig, Resolvers};
use network::host::{self, Config, Handles};
use network::proxy::table::Fixed;
use network::ranges::{Ranges, keep, load_or_choose};
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
    resolv_conf: PathBuf,
}

/// The file with the range of this node's pods, where it is not the first of the cluster.
const NODE_PODS: &str = "node-pods";

impl Net {
    /// Of a host with a cluster of its own: chooses the ranges (once, at the first start) and makes what the cluster
    /// network stands on.
    pub(crate) fn set_up(settings: &Settings, host: &Host) -> Result<Self> {
        let handles = handles()?;
        let dir = directory(settings)?;
        let taken = || host::taken(&*handles.routing, &settings.instance.name);
        let ranges = load_or_choose(&dir, most_pods(settings), taken).context("choose address ranges")?;
        let node_pods = ranges.node_pods(0).context("the pod range has no room for a node")?;
        Self::make(settings, host, handles, ranges, node_pods)
    }

    /// Of one of several servers over a shared store: with what was agreed on there.
    pub(crate) fn shared(
        settings: &Settings,
        host: &Host,
        ranges: Ranges,
        node_pods: Ipv4Net,
    ) -> Result<Self> {
        let Some(kept) = Self::kept(settings, host)? else {
            return Self::joined(settings, host, ranges, node_pods);
        };
        if kept.config.ranges != ranges || kept.config.node_pods != node_pods {
            bail!(
                "this host's network was set up for another cluster than the one in the shared store; remove it with \
                 skiff down --purge"
            );
        }
        Ok(kept)
    }

    /// The ranges that a cluster which begins on this host would have.
    pub(crate) fn choose(settings: &Settings) -> Result<Ranges> {
        let taken = host::taken(&*handles()?.routing, &settings.instance.name)?;
        network::ranges::choose(&taken, most_pods(settings))
            .ok_or(network::Error::NoRange)
            .context("choose address ranges")
    }

    /// Of a host that has joined a cluster and knows its ranges; `None` if it has yet to ask.
    pub(crate) fn kept(settings: &Settings, host: &Host) -> Result<Option<Self>> {
        let dir = directory(settings)?;
        let Some(node_pods) = kept_node_pods(&dir)? else { return Ok(None) };
        let none = || Err(network::Error::NoRange);
        let ranges = load_or_choose(&dir, 0, none).context("read address ranges")?;
        Self::make(settings, host, handles()?, ranges, node_pods).map(Some)
    }

    /// Of a host that joins a cluster: keeps the ranges that it was told.
    pub(crate) fn joined(
        settings: &Settings,
        host: &Host,
        ranges: Ranges,
        node_pods: Ipv4Net,
    ) -> Result<Self> {
        let handles = handles()?;
        let dir = directory(settings)?;
        let taken = host::taken(&*handles.routing, &settings.instance.name)?;
        if let Some(route) = ranges.overlapping(&taken) {
            bail!(
                "this host has a route to {route}, which is within the cluster's ranges ({}, {}, {}): remove the route",
                ranges.pods,
                ranges.services,
                ranges.balancers
            );
        }
        keep(&dir, &ranges).context("keep address ranges")?;
        let path = dir.join(NODE_PODS);
        std::fs::write(&path, node_pods.to_string()).with_context(|| format!("write {}", path.display()))?;
        Self::make(settings, host, handles, ranges, node_pods)
    }

    fn make(
        settings: &Settings,
        host: &Host,
        handles: Handles,
        ranges: Ranges,
        node_pods: Ipv4Net,
    ) -> Result<Self> {
        let instance = &settings.instance;
        let config = Config {
            instance: instance.name.clone(),
            dir: instance.data_dir.join("network"),
            ranges,
            node_pods,
            node: settings.node_name.clone(),
        };
        let fixed = host::set_up(&config, &handles).context("set up the node's network")?;
        Ok(Self { config, handles, fixed, resolv_conf: host.resolv_conf.clone() })
    }

    /// The service range as the API server takes it.
    pub(crate) fn services(&self) -> (IpAddr, u8) {
        let range = self.config.ranges.services;
        (range.network().into(), range.prefix_len())
    }

    /// Cluster DNS on its Service's address.
    pub(crate) fn dns(&self, informers: Informers) -> std::io::Result<Dns> {
        let address = SocketAddr::new(self.config.ranges.dns().into(), 53);
        let resolvers = Resolvers::of(self.resolv_conf.clone(), vec![address.ip()]);
        let config = DnsConfig { address, domain: "cluster.local".into(), resolvers };
        Dns::bind(config, informers)
    }
}

/// Where the network keeps its files.
fn directory(settings: &Settings) -> Result<PathBuf> {
    let dir = settings.instance.data_dir.join("network");
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

/// How many pods the node of this host takes, where that is said: the cluster's nodes have ranges of that size.
fn most_pods(settings: &Settings) -> u32 {
    settings.kubelet.max_pods.unwrap_or(0)
}

fn kept_node_pods(dir: &Path) -> Result<Option<Ipv4Net>> {
    let path = dir.join(NODE_PODS);
    match std::fs::read_to_string(&path) {
        Ok(text) => text.parse().map(Some).with_context(|| format!("read {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Takes away bridge, table, routes and sysctls of an instance by `how`; nothing is there if it never started.
pub(crate) fn take_away(
    instance: &cli::instance::Instance,
    how: impl Fn(&Config, &Handles) -> Result<(), network::Error>,
) -> Result<()> {
    let dir = instance.data_dir.join("network");
    if !dir.exists() {
        return Ok(());
    }
    let handles = handles()?;
    let ranges = load_or_choose(&dir, 0, || host::taken(&*handles.routing, &instance.name))
        .context("read address ranges")?;
    let node_pods = match kept_node_pods(&dir)? {
        Some(kept) => kept,
        None => ranges.node_pods(0).context("the pod range has no room for a node")?,
    };
    let config = Config { instance: instance.name.clone(), dir, ranges, node_pods, node: String::new() };
    how(&config, &handles).context("remove the node's network")
}
