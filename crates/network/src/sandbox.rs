//! Sandboxes: each has one pair of interfaces, one address with no network around it, and the gateway as its only
//! neighbour. All its traffic passes this host's IP layer, where Services are, also between two pods of the node.
//!
//! The host's sides are no ports of the bridge. Where the kernel filters bridged traffic (`bridge-nf-call-iptables`,
//! which belongs to the host's owner), a connection between two ports would be translated below the IP layer and take
//! another way than its answers.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::BoxError;
use ipnet::Ipv4Net;
use parking_lot::Mutex;
use reconcile::ports::{PublishedPort, SandboxNetworks};
use sys::net::{
    Conntrack, End, Mac, NetError, Route, RouteSocket, Routing, Target, VethPair, or_exists, or_missing,
};

use crate::Error;
use crate::host::{Config, Handles, boot_id, link, sysctl};
use crate::ipam::Ipam;
use crate::published::Published;

/// How the host's sides are called; the firewall knows them by it.
pub(crate) const PREFIX: &str = "skf";
/// The proxy programs in milliseconds; one that takes longer has failed and tries again.
const PROGRAMMED_MAX: Duration = Duration::from_secs(20);
/// The interface inside a sandbox.
const INSIDE: &str = "eth0";

/// The sandboxes of this node. Cheap to clone.
#[derive(Clone)]
pub struct Sandboxes {
    shared: Arc<Shared>,
}

struct Shared {
    routing: Arc<dyn Routing>,
    mtu: u32,
    gateway: Ipv4Addr,
    range: Ipv4Net,
    conntrack: Arc<dyn Conntrack>,
    // Held for one change of the files; the kernel's part of attaching runs without it.
    ipam: Mutex<Ipam>,
    published: Published,
}

impl Sandboxes {
    /// The sandboxes as the files of `config` have them, on the host that [`crate::host::set_up`] prepared.
    pub fn open(config: &Config, handles: &Handles) -> Result<Self, Error> {
        let name = config.bridge();
        let bridge = link(&*handles.routing, &name)?.ok_or(Error::NoLink(name))?;
        let ipam = Ipam::open(&config.dir.join("addresses"), &boot_id()?, config.node_pods)?;
        let published = Published::open(&config.dir.join("published"), |sandbox| ipam.get(sandbox))?;
        let shared = Shared {
            routing: handles.routing.clone(),
            conntrack: handles.conntrack.clone(),
            published,
            mtu: bridge.mtu,
            gateway: config.gateway(),
            range: config.node_pods,
            ipam: Mutex::new(ipam),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Connects the network namespace at `netns` and gives its address. Blocks for some milliseconds.
    pub fn attach_blocking(&self, sandbox: &str, netns: &std::path::Path) -> Result<Ipv4Addr, Error> {
        let address = self.shared.ipam.lock().allocate(sandbox)?;
        self.shared.connect(address, netns)?;
        Ok(address)
    }

    /// Takes a sandbox's interface and address away.
    pub fn detach_blocking(&self, sandbox: &str) -> Result<(), Error> {
        let Some(address) = self.shared.ipam.lock().get(sandbox) else { return Ok(()) };
        self.shared.published.withdraw(sandbox)?;
        // Its route and neighbour go with it.
        or_missing(self.shared.routing.delete_link(&interface(address)))?;
        self.shared.forget_flows(address)?;
        // Freed last: until then nobody else gets it.
        self.shared.ipam.lock().release(sandbox)?;
        Ok(())
    }

    /// Takes a sandbox's ports back, and frees them once the data path does not know them any more.
    async fn withdraw(&self, sandbox: &str) -> Result<(), Error> {
        if let Some((change, held)) = self.shared.published.withdraw(sandbox)? {
            // Where the proxy fails, it makes everything anew, and then without them.
            let _ = tokio::time::timeout(PROGRAMMED_MAX, self.shared.published.programmed(change)).await;
            drop(held);
        }
        Ok(())
    }

    /// Takes away every sandbox that is not in `known`: those that ended while nobody watched.
    pub fn retain_blocking(&self, known: &HashSet<String>) -> Result<(), Error> {
        let all: Vec<_> =
            self.shared.ipam.lock().sandboxes().map(|(id, address)| (id.to_owned(), address)).collect();
        for (sandbox, _) in all.iter().filter(|(sandbox, _)| !known.contains(sandbox)) {
            self.detach_blocking(sandbox)?;
        }
        let kept: HashSet<_> =
            all.iter().filter(|(id, _)| known.contains(id)).map(|(_, at)| interface(*at)).collect();
        for name in interfaces(&*self.shared.routing, self.shared.range)? {
            if !kept.contains(&name) {
                or_missing(self.shared.routing.delete_link(&name))?;
            }
        }
        Ok(())
    }

    /// The ports of the host that lead to sandboxes.
    pub fn published(&self) -> &Published {
        &self.shared.published
    }

    /// The address of a sandbox.
    pub fn address(&self, sandbox: &str) -> Option<Ipv4Addr> {
        self.shared.ipam.lock().get(sandbox)
    }

    /// The host's side of the interface of the sandbox with this address.
    pub fn host_interface(address: Ipv4Addr) -> String {
        interface(address)
    }
}

/// The name of the host's side: no two sandboxes of a host share an address, whatever the instance.
fn interface(address: Ipv4Addr) -> String {
    format!("{PREFIX}{:08x}", u32::from(address))
}

/// The host's sides of all sandboxes with an address of `range`.
pub(crate) fn interfaces(routing: &dyn Routing, range: Ipv4Net) -> Result<Vec<String>, Error> {
    let of_range = |name: &String| {
        let address = name.strip_prefix(PREFIX).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        address.is_some_and(|address| range.contains(&Ipv4Addr::from(address)))
    };
    Ok(routing.links()?.into_iter().map(|link| link.name).filter(of_range).collect())
}

impl Shared {
    /// Forgets the connections of an address that is gone: a client that uses its port again shall not be sent there,
    /// nor to whoever has the address next.
    fn forget_flows(&self, address: Ipv4Addr) -> Result<(), Error> {
        let mut flows = Vec::new();
        self.conntrack.each(&mut |flow, _| {
            if *flow.answered_by.ip() == address {
                flows.push((flow, End::Server));
            } else if *flow.source.ip() == address {
                flows.push((flow, End::Client));
            }
        })?;
        for (flow, end) in flows {
            or_missing(self.conntrack.forget(&flow, end))?;
        }
        Ok(())
    }

    fn connect(&self, address: Ipv4Addr, netns: &std::path::Path) -> Result<(), Error> {
        let what = || format!("open network namespace {}", netns.display());
        let namespace = File::open(netns).map_err(|error| Error::io(what(), error))?;
        let name = interface(address);
        let pair = VethPair {
            name: &name,
            mac: Mac::of(self.gateway),
            peer_name: INSIDE,
            peer_mac: Mac::of(address),
            peer_netns: namespace.as_fd(),
            mtu: self.mtu,
        };
        let gateway = self.gateway;
        let inside = || {
            sys::ns::run_in_netns(netns, move || configure_inside(address, gateway))
                .map_err(|error| Error::io(format!("set up {INSIDE} in {}", netns.display()), error))
        };
        match self.routing.add_veth(&pair) {
            // It was attached before, or its namespace was replaced and the kernel has yet to remove the old pair.
            Err(error) if error.is_exists() => {
                if inside().is_err() {
                    or_missing(self.routing.delete_link(&name))?;
                    self.routing.add_veth(&pair)?;
                    inside()?;
                }
            }
            other => {
                other?;
                inside()?;
            }
        }
        // Answers to this host's loopback address come back this way (a node port on localhost). The firewall drops what
        // the sandbox itself tries to send there.
        sysctl(&format!("/net/ipv4/conf/{name}/route_localnet"), "1")?;
        let _ = sysctl(&format!("/net/ipv6/conf/{name}/disable_ipv6"), "1");
        let link = link(&*self.routing, &name)?.ok_or_else(|| Error::NoLink(name.clone()))?.index;
        self.routing.wait_running(link)?;
        self.routing.set_neighbour(link, address, Mac::of(address))?;
        let route =
            Route { destination: address.into(), target: Target::Link(link), source: Some(self.gateway) };
        self.routing.replace_route(&route)?;
        Ok(())
    }
}

/// Runs inside the sandbox's namespace. Repeating it changes nothing.
fn configure_inside(address: Ipv4Addr, gateway: Ipv4Addr) -> io::Result<()> {
    let to_io = |error: NetError| io::Error::other(error);
    let routing = RouteSocket::open().map_err(to_io)?;
    sys::ns::loopback_up()?;
    let links = routing.links().map_err(to_io)?;
    let link = links.iter().find(|link| link.name == INSIDE).ok_or(io::ErrorKind::NotFound)?.index;
    // Whatever a router says about a shorter way, pods reach each other through the gateway only.
    sysctl("/net/ipv4/conf/all/accept_redirects", "0").map_err(io::Error::other)?;
    sysctl(&format!("/net/ipv4/conf/{INSIDE}/accept_redirects"), "0").map_err(io::Error::other)?;
    // A kernel without IPv6 has no such parameter, and then nothing to turn off.
    let _ = sysctl(&format!("/net/ipv6/conf/{INSIDE}/disable_ipv6"), "1");
    or_exists(routing.add_address(link, address.into())).map_err(to_io)?;
    routing.set_up(link).map_err(to_io)?;
    // What a pod sends first is often a question to DNS: lost, it would be asked again after five seconds.
    routing.wait_running(link).map_err(to_io)?;
    routing.set_neighbour(link, gateway, Mac::of(gateway)).map_err(to_io)?;
    let to_gateway = Route { destination: gateway.into(), target: Target::Link(link), source: None };
    routing.replace_route(&to_gateway).map_err(to_io)?;
    let default =
        Route { destination: Ipv4Net::default(), target: Target::Gateway(gateway, link), source: None };
    routing.replace_route(&default).map_err(to_io)
}

#[async_trait]
impl SandboxNetworks for Sandboxes {
    async fn attach(&self, sandbox_id: &str, netns_path: &str) -> Result<Vec<IpAddr>, BoxError> {
        let (this, sandbox, netns) = (self.clone(), sandbox_id.to_owned(), PathBuf::from(netns_path));
        let address = tokio::task::spawn_blocking(move || this.attach_blocking(&sandbox, &netns)).await??;
        Ok(vec![address.into()])
    }

    async fn publish(
        &self,
        sandbox_id: &str,
        ports: &[PublishedPort],
    ) -> Result<Vec<PublishedPort>, BoxError> {
        if ports.is_empty() {
            self.withdraw(sandbox_id).await?;
            return Ok(Vec::new());
        }
        let address = self.address(sandbox_id).ok_or("the sandbox has no address to publish ports of")?;
        let (ports, change) = self.shared.published.publish(sandbox_id, address, ports)?;
        let programmed = self.shared.published.programmed(change);
        if tokio::time::timeout(PROGRAMMED_MAX, programmed).await.is_err() {
            // All or none: what nobody can reach is not published.
            drop(self.shared.published.withdraw(sandbox_id)?);
            return Err(
                "the service proxy does not publish ports: see the daemon's log for its failure".into()
            );
        }
        Ok(ports)
    }

    async fn detach(&self, sandbox_id: &str) -> Result<(), BoxError> {
        self.withdraw(sandbox_id).await?;
        let (this, sandbox) = (self.clone(), sandbox_id.to_owned());
        Ok(tokio::task::spawn_blocking(move || this.detach_blocking(&sandbox)).await??)
    }
}
