//! Links, addresses and routes (IPv4) over rtnetlink. Source: `linux/rtnetlink.h`, `linux/if_link.h`.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};
use std::{fmt, io};

use ipnet::Ipv4Net;

use super::NetError;
use super::message::{Messages, attribute, attributes, text, u32_at};
use super::socket::{ACK, CREATE, DUMP, EXCLUSIVE, REPLACE, REQUEST, Socket};

const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDR: u16 = 20;
const DEL_ADDR: u16 = 21;
const GET_ADDR: u16 = 22;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_NEIGHBOUR: u16 = 28;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
/// Offset of `tx_packets` in `struct rtnl_link_stats64`.
const STATS64_TX_PACKETS: usize = 8;

const NDA_DESTINATION: u16 = 1;
const NDA_HARDWARE: u16 = 2;
const NEIGHBOUR_PERMANENT: u16 = 0x80;

const IFA_LOCAL: u16 = 2;
const IFA_ADDRESS: u16 = 1;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const RTN_UNICAST: u8 = 1;
const RTN_UNREACHABLE: u8 = 7;
const MAIN_TABLE: u8 = 254;
/// Who made a route, as `ip route` shows it: a number that no registered routing daemon has.
const PROTOCOL: u8 = 83;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const FLAG_ONLINK: u32 = 4;

const IFF_UP: u32 = 1;
const IFF_RUNNING: u32 = 0x40;
/// The multicast group of changes of links.
const GROUP_LINK: u32 = 1;
/// The kernel's work on a link takes milliseconds, and a second where it has much of it.
const RUNNING_MAX: Duration = Duration::from_secs(5);
const AF_INET: u8 = 2;

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

/// How hardware addresses begin that are made from IPv4 addresses.
const DERIVED: [u8; 2] = [0x0a, 0x58];

impl Mac {
    /// The locally administered address that belongs to an IPv4 address: whoever gets the address next has the same
    /// one, so that no neighbour holds a stale entry.
    pub fn of(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([DERIVED[0], DERIVED[1], a, b, c, d])
    }

    /// Whether it is one that [`Self::of`] gives.
    pub fn is_derived(&self) -> bool {
        self.0.starts_with(&DERIVED)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address; zeros where it has none of that length.
    pub mac: Mac,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its largest packet in bytes.
    pub mtu: u32,
    /// Packets sent through it since it was made.
    pub tx_packets: u64,
}

/// A pair of interfaces: one here, the other in another namespace.
#[derive(Debug, Clone, Copy)]
pub struct VethPair<'a> {
    /// Name of this side.
    pub name: &'a str,
    /// Hardware address of this side.
    pub mac: Mac,
    /// Name of the other side.
    pub peer_name: &'a str,
    /// Hardware address of the other side.
    pub peer_mac: Mac,
    /// The namespace of the other side.
    pub peer_netns: BorrowedFd<'a>,
    /// The largest packet in bytes, on both sides.
    pub mtu: u32,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// To hosts on a link.
    Link(u32),
    /// To a gateway that is reached over a link (0: wherever the gateway's own route leads).
    Gateway(Ipv4Addr, u32),
    /// Nowhere: the sender is told.
    Unreachable,
    /// Anything else that the host's administrator set up.
    Other,
}

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// What it is for.
    pub destination: Ipv4Net,
    /// Where it leads.
    pub target: Target,
    /// The source address that the host's own packets get.
    pub source: Option<Ipv4Addr>,
}

/// Links, addresses and routes of one network namespace.
pub trait Routing: Send + Sync + 'static {
    /// All links.
    fn links(&self) -> Result<Vec<Link>, NetError>;
    /// Makes a bridge, up, with this hardware address.
    fn add_bridge(&self, name: &str, mac: Mac, mtu: u32) -> Result<(), NetError>;
    /// Makes a pair of interfaces; this side is up.
    fn add_veth(&self, pair: &VethPair<'_>) -> Result<(), NetError>;
    /// Brings a link up.
    fn set_up(&self, link: u32) -> Result<(), NetError>;
    /// Returns when a link that is up on both sides carries packets; gives up after some seconds. The kernel begins a
    /// moment after the second side came up, and until then drops what is sent, silently. Called by a thread in the
    /// link's namespace.
    fn wait_running(&self, link: u32) -> Result<(), NetError>;
    /// Removes a link by name.
    fn delete_link(&self, name: &str) -> Result<(), NetError>;
    /// The addresses of the namespace, each with its link's index and its network.
    fn addresses(&self) -> Result<Vec<(u32, Ipv4Net)>, NetError>;
    /// Gives a link an address.
    fn add_address(&self, link: u32, address: Ipv4Net) -> Result<(), NetError>;
    /// Takes an address from a link.
    fn delete_address(&self, link: u32, address: Ipv4Net) -> Result<(), NetError>;
    /// The routes of the main table.
    fn routes(&self) -> Result<Vec<Route>, NetError>;
    /// Sets a route, also where another to the same destination is there.
    fn replace_route(&self, route: &Route) -> Result<(), NetError>;
    /// Removes a route.
    fn delete_route(&self, route: &Route) -> Result<(), NetError>;
    /// Tells the hardware address of a neighbour for good: nobody asks for it.
    fn set_neighbour(&self, link: u32, address: Ipv4Addr, mac: Mac) -> Result<(), NetError>;
}

/// [`Routing`] by the kernel.
#[derive(Debug)]
pub struct RouteSocket {
    socket: Socket,
}

impl RouteSocket {
    /// A handle on the network namespace of the calling thread, wherever it is used later.
    pub fn open() -> Result<Self, NetError> {
        Ok(Self { socket: Socket::open(None)? })
    }

    fn simple(
        &self,
        kind: u16,
        flags: u16,
        body: &[u8],
        what: &str,
        fill: impl FnOnce(&mut Messages),
    ) -> Result<(), NetError> {
        let mut out = Messages::default();
        out.begin(kind, REQUEST | ACK | flags, body);
        fill(&mut out);
        out.end();
        self.socket.request(&out, what)
    }

    fn dump(&self, kind: u16, body: &[u8], what: &str, each: impl FnMut(&[u8])) -> Result<(), NetError> {
        let mut out = Messages::default();
        out.begin(kind, REQUEST | DUMP, body);
        out.end();
        self.socket.dump(&out, what, each)
    }
}

impl Routing for RouteSocket {
    fn links(&self) -> Result<Vec<Link>, NetError> {
        let mut links = Vec::new();
        self.dump(GET_LINK, &link_header(0, 0, 0), "list links", |body| links.extend(parse_link(body)))?;
        Ok(links)
    }

    fn add_bridge(&self, name: &str, mac: Mac, mtu: u32) -> Result<(), NetError> {
        let header = link_header(0, IFF_UP, IFF_UP);
        self.simple(NEW_LINK, CREATE | EXCLUSIVE, &header, &format!("make bridge {name}"), |out| {
            out.string(IFLA_IFNAME, name).attr(IFLA_ADDRESS, &mac.0).u32(IFLA_MTU, mtu);
            out.nest(IFLA_LINKINFO, |info| {
                info.string(IFLA_INFO_KIND, "bridge");
            });
        })
    }

    fn add_veth(&self, pair: &VethPair<'_>) -> Result<(), NetError> {
        let what = format!("make interface {}", pair.name);
        let netns = u32::try_from(pair.peer_netns.as_raw_fd())
            .map_err(|_| NetError::new(&*what, rustix::io::Errno::BADF))?;
        let header = link_header(0, IFF_UP, IFF_UP);
        self.simple(NEW_LINK, CREATE | EXCLUSIVE, &header, &what, |out| {
            out.string(IFLA_IFNAME, pair.name).attr(IFLA_ADDRESS, &pair.mac.0).u32(IFLA_MTU, pair.mtu);
            out.nest(IFLA_LINKINFO, |info| {
                info.string(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |data| {
                    data.nest(VETH_INFO_PEER, |peer| {
                        peer.raw(&link_header(0, 0, 0)).string(IFLA_IFNAME, pair.peer_name);
                        peer.attr(IFLA_ADDRESS, &pair.peer_mac.0).u32(IFLA_MTU, pair.mtu);
                        peer.u32(IFLA_NET_NS_FD, netns);
                    });
                });
            });
        })
    }

    fn set_up(&self, link: u32) -> Result<(), NetError> {
        self.simple(NEW_LINK, 0, &link_header(link, IFF_UP, IFF_UP), "bring a link up", |_| {})
    }

    fn wait_running(&self, link: u32) -> Result<(), NetError> {
        let what = "wait for a link";
        let running = |body: &[u8]| {
            u32_at(body, 4) == Some(link) && u32_at(body, 8).is_some_and(|flags| flags & IFF_RUNNING != 0)
        };
        let mut is_running = false;
        // Listened to before it is asked for: what happens in between is told. Newer kernels (6.8) bring their own
        // work on the link to its end before they answer.
        let news = Socket::open(None)?;
        news.join_group(GROUP_LINK).map_err(|error| NetError::new(what, error))?;
        let mut out = Messages::default();
        out.begin(GET_LINK, REQUEST | ACK, &link_header(link, 0, 0));
        out.end();
        self.socket.ask(&out, what, |body| is_running |= running(body))?;
        let deadline = Instant::now() + RUNNING_MAX;
        while !is_running {
            if !news.wait_until(deadline).map_err(|error| NetError::new(what, error))? {
                return Err(NetError::new(what, io::Error::from(io::ErrorKind::TimedOut)));
            }
            news.receive(what, |message| {
                is_running |= message.kind == NEW_LINK && running(message.body);
                true
            })?;
        }
        Ok(())
    }

    fn delete_link(&self, name: &str) -> Result<(), NetError> {
        self.simple(DEL_LINK, 0, &link_header(0, 0, 0), &format!("remove interface {name}"), |out| {
            out.string(IFLA_IFNAME, name);
        })
    }

    fn addresses(&self) -> Result<Vec<(u32, Ipv4Net)>, NetError> {
        let mut found = Vec::new();
        self.dump(GET_ADDR, &address_header(0, 0), "list addresses", |body| {
            found.extend(parse_address(body))
        })?;
        Ok(found)
    }

    fn add_address(&self, link: u32, address: Ipv4Net) -> Result<(), NetError> {
        let header = address_header(address.prefix_len(), link);
        self.simple(NEW_ADDR, CREATE | EXCLUSIVE, &header, &format!("add address {address}"), |out| {
            out.attr(IFA_LOCAL, &address.addr().octets()).attr(IFA_ADDRESS, &address.addr().octets());
        })
    }

    fn delete_address(&self, link: u32, address: Ipv4Net) -> Result<(), NetError> {
        let header = address_header(address.prefix_len(), link);
        self.simple(DEL_ADDR, 0, &header, &format!("remove address {address}"), |out| {
            out.attr(IFA_LOCAL, &address.addr().octets());
        })
    }

    fn routes(&self) -> Result<Vec<Route>, NetError> {
        let mut found = Vec::new();
        let mut header = [0; 12];
        header[0] = AF_INET;
        self.dump(GET_ROUTE, &header, "list routes", |body| found.extend(parse_route(body)))?;
        Ok(found)
    }

    fn replace_route(&self, route: &Route) -> Result<(), NetError> {
        let what = format!("set route {}", route.destination);
        self.simple(NEW_ROUTE, CREATE | REPLACE, &route_header(route), &what, |out| {
            route_attributes(out, route)
        })
    }

    fn delete_route(&self, route: &Route) -> Result<(), NetError> {
        let what = format!("remove route {}", route.destination);
        self.simple(DEL_ROUTE, 0, &route_header(route), &what, |out| route_attributes(out, route))
    }

    fn set_neighbour(&self, link: u32, address: Ipv4Addr, mac: Mac) -> Result<(), NetError> {
        let what = format!("set neighbour {address}");
        self.simple(NEW_NEIGHBOUR, CREATE | REPLACE, &neighbour_header(link), &what, |out| {
            out.attr(NDA_DESTINATION, &address.octets()).attr(NDA_HARDWARE, &mac.0);
        })
    }
}

/// `struct ndmsg`.
fn neighbour_header(link: u32) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = AF_INET;
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..10].copy_from_slice(&NEIGHBOUR_PERMANENT.to_ne_bytes());
    header
}

/// `struct ifinfomsg`.
fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// `struct ifaddrmsg`.
fn address_header(prefix_len: u8, link: u32) -> [u8; 8] {
    let mut header = [AF_INET, prefix_len, 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header
}

/// `struct rtmsg`.
fn route_header(route: &Route) -> [u8; 12] {
    let (kind, scope, flags) = match route.target {
        Target::Link(_) | Target::Other => (RTN_UNICAST, SCOPE_LINK, 0),
        // The gateway may be outside every network of the link: a sandbox holds its address alone.
        Target::Gateway(_, link) => (RTN_UNICAST, SCOPE_UNIVERSE, if link == 0 { 0 } else { FLAG_ONLINK }),
        Target::Unreachable => (RTN_UNREACHABLE, SCOPE_UNIVERSE, 0),
    };
    let mut header =
        [AF_INET, route.destination.prefix_len(), 0, 0, MAIN_TABLE, PROTOCOL, scope, kind, 0, 0, 0, 0];
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header
}

fn route_attributes(out: &mut Messages, route: &Route) {
    out.attr(RTA_DST, &route.destination.network().octets());
    match route.target {
        Target::Link(link) => {
            out.u32(RTA_OIF, link);
        }
        Target::Gateway(address, link) => {
            out.attr(RTA_GATEWAY, &address.octets());
            if link != 0 {
                out.u32(RTA_OIF, link);
            }
        }
        Target::Unreachable | Target::Other => {}
    }
    if let Some(source) = route.source {
        out.attr(RTA_PREFSRC, &source.octets());
    }
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let flags = u32_at(body, 8)?;
    let mut link = Link {
        index: u32_at(body, 4)?,
        name: String::new(),
        mac: Mac([0; 6]),
        up: flags & IFF_UP != 0,
        mtu: 0,
        tx_packets: 0,
    };
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_ADDRESS => link.mac = value.try_into().map_or(link.mac, Mac),
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            IFLA_STATS64 => {
                let count = value.get(STATS64_TX_PACKETS..STATS64_TX_PACKETS + 8)?;
                link.tx_packets = u64::from_ne_bytes(count.try_into().ok()?);
            }
            _ => {}
        }
    }
    Some(link)
}

fn parse_address(body: &[u8]) -> Option<(u32, Ipv4Net)> {
    if *body.first()? != AF_INET {
        return None;
    }
    let local = ipv4(attribute(body.get(8..)?, IFA_LOCAL)?)?;
    Some((u32_at(body, 4)?, Ipv4Net::new(local, *body.get(1)?).ok()?))
}

fn parse_route(body: &[u8]) -> Option<Route> {
    let (family, prefix, table, kind) = (*body.first()?, *body.get(1)?, *body.get(4)?, *body.get(7)?);
    let attrs = body.get(12..)?;
    let table = attribute(attrs, RTA_TABLE).and_then(|value| u32_at(value, 0)).unwrap_or(u32::from(table));
    if family != AF_INET || table != u32::from(MAIN_TABLE) {
        return None;
    }
    let address = attribute(attrs, RTA_DST).map_or(Some(Ipv4Addr::UNSPECIFIED), ipv4)?;
    let link = attribute(attrs, RTA_OIF).and_then(|value| u32_at(value, 0));
    let gateway = attribute(attrs, RTA_GATEWAY).and_then(ipv4);
    let target = match (kind, gateway, link) {
        (RTN_UNREACHABLE, _, _) => Target::Unreachable,
        (RTN_UNICAST, Some(gateway), link) => Target::Gateway(gateway, link.unwrap_or(0)),
        (RTN_UNICAST, None, Some(link)) => Target::Link(link),
        _ => Target::Other,
    };
    let source = attribute(attrs, RTA_PREFSRC).and_then(ipv4);
    Some(Route { destination: Ipv4Net::new(address, prefix).ok()?, target, source })
}

pub(super) fn ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}
