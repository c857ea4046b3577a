//! What the network makes on the host: a bridge that holds the host's own addresses in the cluster and its routes to
//! the cluster's ranges (it has no ports: any host has bridges, few have dummy interfaces), and sysctls. And how all of
//! it is taken away again.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::Ipv4Net;
use reconcile::ports::ClusterDns;
use sys::net::nft::{Op, Transaction};
use sys::net::{
    Conntrack, ConntrackSocket, Link, Mac, Nftables, NftablesSocket, Route, RouteSocket, Routing, Target,
    or_exists, or_missing,
};

use crate::Error;
use crate::proxy::table::Fixed;
use crate::ranges::{Ranges, nth};

/// Longest name of an interface.
const NAME_MAX: usize = 15;
/// The largest packet where the host does not say otherwise.
const MTU: u32 = 1500;

/// Handles on the kernel's network, in the namespace where they were opened.
#[derive(Clone)]
pub struct Handles {
    /// Links, addresses and routes.
    pub routing: Arc<dyn Routing>,
    /// nftables.
    pub nftables: Arc<dyn Nftables>,
    /// Tracked connections.
    pub conntrack: Arc<dyn Conntrack>,
}

impl Handles {
    /// Opens them in the network namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            routing: Arc::new(RouteSocket::open()?),
            nftables: Arc::new(NftablesSocket::open()?),
            conntrack: Arc::new(ConntrackSocket::open()?),
        })
    }
}

/// What the network of this node is to be.
#[derive(Debug, Clone)]
pub struct Config {
    /// The instance's name: the bridge and the nftables table are named after it.
    pub instance: String,
    /// Where the network keeps its files.
    pub dir: PathBuf,
    /// The cluster's ranges.
    pub ranges: Ranges,
    /// The range of this node's pods.
    pub node_pods: Ipv4Net,
    /// This node's name.
    pub node: String,
}

impl Config {
    /// The bridge's name.
    pub fn bridge(&self) -> String {
        bridge_name(&self.instance)
    }

    /// The gateway of this node's pods, an address of the bridge.
    pub fn gateway(&self) -> Ipv4Addr {
        nth(self.node_pods, 1)
    }
}

/// What pods are told about cluster DNS.
#[derive(Debug, Clone)]
pub struct DnsFacts {
    /// The address of DNS: [`Ranges::dns`].
    pub address: Ipv4Addr,
    /// The cluster's domain.
    pub domain: String,
}

impl ClusterDns for DnsFacts {
    fn nameservers(&self) -> Vec<IpAddr> {
        vec![self.address.into()]
    }

    fn domain(&self) -> String {
        self.domain.clone()
    }
}

/// The bridge of an instance: its name and a zero, cut to what the kernel takes.
pub fn bridge_name(instance: &str) -> String {
    let mut name: String = instance.chars().take(NAME_MAX - 1).collect();
    name.push('0');
    name
}

/// The nftables table of an instance. Others have tables named `nat` or `filter`.
pub fn table_name(instance: &str) -> String {
    if instance == "skiff" { instance.to_owned() } else { format!("skiff-{instance}") }
}

/// The instance's bridge, if it is there. Another's link of that name is an error: an instance `eth` does not take over
/// `eth0`.
fn own_bridge(routing: &dyn Routing, instance: &str) -> Result<Option<Link>, Error> {
    match link(routing, &bridge_name(instance))? {
        Some(link) if !link.mac.is_derived() => Err(Error::ForeignLink(link.name)),
        found => Ok(found),
    }
}

/// The destinations of the host's routes, for [`crate::ranges::choose`]; those of the instance's own bridge aside.
pub fn taken(routing: &dyn Routing, instance: &str) -> Result<Vec<Ipv4Net>, Error> {
    let bridge = link(routing, &bridge_name(instance))?.map(|link| link.index);
    let own = |route: &Route| matches!(route.target, Target::Link(link) if Some(link) == bridge);
    let routes = routing.routes()?;
    let addresses = routing.addresses()?;
    let of_addresses = addresses.iter().filter(|(link, _)| Some(*link) != bridge).map(|(_, net)| net.trunc());
    Ok(routes.iter().filter(|route| !own(route)).map(|route| route.destination).chain(of_addresses).collect())
}

pub(crate) fn link(routing: &dyn Routing, name: &str) -> Result<Option<Link>, Error> {
    Ok(routing.links()?.into_iter().find(|link| link.name == name))
}

/// The indexes of the links that instances of Skiff made: the bridge of this one, and the host's sides of sandboxes.
pub fn own_links(routing: &dyn Routing, instance: &str) -> Result<Vec<u32>, Error> {
    let bridge = bridge_name(instance);
    let own = |link: &Link| link.name == bridge || link.name.starts_with(crate::sandbox::PREFIX);
    Ok(routing.links()?.iter().filter(|link| own(link)).map(|link| link.index).collect())
}

/// Makes the bridge, its addresses, the routes and the sysctls, or completes what is there. Gives what the nftables
/// table depends on.
pub fn set_up(config: &Config, handles: &Handles) -> Result<Fixed, Error> {
    let routing = &*handles.routing;
    let name = config.bridge();
    let gateway = config.gateway();
    let found = own_bridge(routing, &config.instance)?;
    if found.is_none() {
        routing.add_bridge(&name, Mac::of(gateway), mtu(routing)?)?;
    }
    let bridge = found.or(link(routing, &name)?).ok_or_else(|| Error::NoLink(name.clone()))?.index;
    routing.set_up(bridge)?;
    let wanted = [gateway, config.ranges.dns()].map(Ipv4Net::from);
    for (_, address) in routing.addresses()?.into_iter().filter(|(link, _)| *link == bridge) {
        if !wanted.contains(&address) {
            or_missing(routing.delete_address(bridge, address))?;
        }
    }
    for address in wanted {
        or_exists(routing.add_address(bridge, address))?;
    }
    // A packet to an address of these ranges always has a way, also on a host without a default route. What serves it
    // is a more special route or a translation; nftables turns away what takes this one.
    for destination in [config.ranges.pods, config.ranges.services, config.ranges.balancers] {
        routing.replace_route(&Route { destination, target: Target::Link(bridge), source: Some(gateway) })?;
    }
    bridge_sysctls(&name)?;
    let guard_forwarding = turn_on_forwarding(&config.dir)?;
    Ok(Fixed {
        table: table_name(&config.instance),
        bridge: name,
        gateway,
        ranges: config.ranges,
        node_pods: config.node_pods,
        guard_forwarding,
    })
}

/// The largest packet of the link that the default route leads over.
fn mtu(routing: &dyn Routing) -> Result<u32, Error> {
    let default = routing.routes()?.into_iter().find_map(|route| match route.target {
        Target::Gateway(_, link) | Target::Link(link) if route.destination.prefix_len() == 0 => Some(link),
        _ => None,
    });
    let links = routing.links()?;
    Ok(links.iter().find(|link| Some(link.index) == default).map_or(MTU, |link| link.mtu.min(MTU)))
}

fn bridge_sysctls(bridge: &str) -> Result<(), Error> {
    // No IPv6 is given out; this spares its multicast. A kernel without IPv6 has no such parameter.
    match sysctl(&format!("/net/ipv6/conf/{bridge}/disable_ipv6"), "1") {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Sets a parameter of the calling thread's network namespace unless it has the value.
pub(crate) fn sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path = Path::new("/proc/sys").join(name.trim_start_matches('/'));
    if std::fs::read_to_string(&path).is_ok_and(|held| held.trim() == value) {
        return Ok(());
    }
    sys::ns::set_sysctl(name.trim_start_matches('/'), value)
        .map_err(|error| Error::io(format!("set the kernel parameter {name} to {value}"), error))
}

const FORWARDING: &str = "/net/ipv4/ip_forward";
/// Marks that forwarding was off before Skiff, with the id of the boot in which that was so.
const FORWARDING_MARK: &str = "forwarding-was-off";

/// Forwarding is needed for pods. Answers whether it was off before: then the host was no router for others and must
/// not become one.
fn turn_on_forwarding(dir: &Path) -> Result<bool, Error> {
    let mark = dir.join(FORWARDING_MARK);
    let boot = boot_id()?;
    let what = || format!("keep {}", mark.display());
    let is_on = std::fs::read_to_string(format!("/proc/sys{FORWARDING}"))
        .map_err(|error| Error::io("read the kernel parameter ip_forward", error))?
        .trim()
        == "1";
    if is_on {
        return Ok(std::fs::read_to_string(&mark).is_ok_and(|held| held == boot));
    }
    std::fs::create_dir_all(dir).map_err(|error| Error::io(what(), error))?;
    std::fs::write(&mark, &boot).map_err(|error| Error::io(what(), error))?;
    sysctl(FORWARDING, "1")?;
    Ok(true)
}

pub(crate) fn boot_id() -> Result<String, Error> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(|error| Error::io("read the boot id", error))?;
    Ok(id.trim().to_owned())
}

/// Takes everything away that [`set_up`], sandboxes and the proxy made on the host. The network's files stay: the next
/// start has the same ranges.
pub fn take_down(config: &Config, handles: &Handles) -> Result<(), Error> {
    let table = Transaction { table: table_name(&config.instance), ops: vec![Op::AddTable, Op::DeleteTable] };
    handles.nftables.apply(&table)?;
    let routing = &*handles.routing;
    for name in crate::sandbox::interfaces(routing, config.node_pods)? {
        or_missing(routing.delete_link(&name))?;
    }
    if let Ok(Some(bridge)) = own_bridge(routing, &config.instance) {
        or_missing(routing.delete_link(&bridge.name))?;
    }
    crate::routes::purge(routing, config.ranges.pods)?;
    if std::fs::read_to_string(config.dir.join(FORWARDING_MARK))
        .is_ok_and(|held| Ok(held) == boot_id().map_err(drop))
    {
        sysctl(FORWARDING, "0")?;
    }
    Ok(())
}

/// As [`take_down`], and the network's files go too.
pub fn purge(config: &Config, handles: &Handles) -> Result<(), Error> {
    take_down(config, handles)?;
    match std::fs::remove_dir_all(&config.dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", config.dir.display()), error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridges_have_names_that_the_kernel_takes() {
        assert_eq!(bridge_name("skiff"), "skiff0");
        assert_eq!(bridge_name("a-very-long-instance-name"), "a-very-long-in0");
    }
}
