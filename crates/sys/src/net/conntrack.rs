//! Tracked connections (IPv4) over ctnetlink: listed, forgotten, and followed until they end.
//! Source: `linux/netfilter/nfnetlink_conntrack.h`.

use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use super::NetError;
use super::message::{Messages, attribute};
use super::route::ipv4;
use super::socket::{ACK, DUMP, REQUEST, Socket};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const FAMILY_IPV4: u8 = 2;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const PROTO_INFO: u16 = 4;
const PROTO_INFO_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_SOURCE: u16 = 1;
const IP_DESTINATION: u16 = 2;
const PROTO_NUMBER: u16 = 1;
const PROTO_SOURCE_PORT: u16 = 2;
const PROTO_DESTINATION_PORT: u16 = 3;

const GROUP_NEW: u32 = 1;
const GROUP_UPDATE: u32 = 2;
const GROUP_DESTROY: u32 = 3;

/// State of a tracked TCP connection. Source: `linux/netfilter/nf_conntrack_tcp.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpState {
    /// Opening, open, or closing with data still under way.
    Alive,
    /// Both sides are done (`TIME_WAIT`, `CLOSE`): only the tracker remembers it.
    Over,
}

/// A tracked connection, as both ends see it: `reply` differs from the mirror of `original` where it was translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Transport protocol: 6 TCP, 17 UDP.
    pub protocol: u8,
    /// Who opened it.
    pub source: SocketAddrV4,
    /// Whom it was addressed to: of a Service, before translation.
    pub destination: SocketAddrV4,
    /// Who answers: of a Service, the endpoint.
    pub answered_by: SocketAddrV4,
    /// Whom the answers are addressed to.
    pub answered_to: SocketAddrV4,
}

impl Flow {
    /// Whether the destination was translated: it came through a Service or a published port.
    pub fn is_translated(&self) -> bool {
        self.destination != self.answered_by
    }
}

/// An end of a tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Who opened it.
    Client,
    /// Who answers.
    Server,
}

/// News of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowChange {
    /// It is there, in this state (`None`: not TCP, or not told).
    Is(Flow, Option<TcpState>),
    /// It is forgotten.
    Gone(Flow),
}

/// Connection tracking of one network namespace.
pub trait Conntrack: Send + Sync + 'static {
    /// Hands on every tracked connection.
    fn each(&self, found: &mut dyn FnMut(Flow, Option<TcpState>)) -> Result<(), NetError>;
    /// Forgets a connection: its next packet is looked at anew. It is named as `end` sees it, so that a connection
    /// which took over what the other end sees in the meantime (a client that uses its port again and is sent
    /// elsewhere) is another one, and stays.
    fn forget(&self, flow: &Flow, end: End) -> Result<(), NetError>;
}

/// [`Conntrack`] by the kernel.
#[derive(Debug)]
pub struct ConntrackSocket {
    socket: Socket,
}

impl ConntrackSocket {
    /// A handle on the network namespace of the calling thread, wherever it is used later.
    pub fn open() -> Result<Self, NetError> {
        Ok(Self { socket: Socket::open(Some(rustix::net::netlink::NETFILTER))? })
    }
}

impl Conntrack for ConntrackSocket {
    fn each(&self, found: &mut dyn FnMut(Flow, Option<TcpState>)) -> Result<(), NetError> {
        let mut out = Messages::default();
        out.begin(SUBSYSTEM << 8 | GET, REQUEST | DUMP, &[FAMILY_IPV4, 0, 0, 0]);
        out.end();
        self.socket.dump(&out, "list connections", |body| {
            if let Some((flow, state)) = parse(body) {
                found(flow, state);
            }
        })
    }

    fn forget(&self, flow: &Flow, end: End) -> Result<(), NetError> {
        let (tuple, source, destination) = match end {
            End::Client => (TUPLE_ORIGINAL, flow.source, flow.destination),
            End::Server => (TUPLE_REPLY, flow.answered_by, flow.answered_to),
        };
        let mut out = Messages::default();
        out.begin(SUBSYSTEM << 8 | DELETE, REQUEST | ACK, &[FAMILY_IPV4, 0, 0, 0]);
        out.nest(tuple, |out| {
            out.nest(TUPLE_IP, |out| {
                out.attr(IP_SOURCE, &source.ip().octets());
                out.attr(IP_DESTINATION, &destination.ip().octets());
            });
            out.nest(TUPLE_PROTO, |out| {
                out.attr(PROTO_NUMBER, &[flow.protocol]);
                out.attr(PROTO_SOURCE_PORT, &source.port().to_be_bytes());
                out.attr(PROTO_DESTINATION_PORT, &destination.port().to_be_bytes());
            });
        });
        out.end();
        self.socket.request(&out, "forget a connection")
    }
}

/// News of connections as they happen. Readable (as a descriptor) when there is some.
///
/// The kernel keeps what it needs to tell the news of a connection only if somebody listened when the connection began
/// (`nf_conntrack_events` = 2), so a process that will follow connections holds a [`ConntrackEvents::keep_open`] from
/// its start.
#[derive(Debug)]
pub struct ConntrackEvents {
    socket: Socket,
}

impl ConntrackEvents {
    /// Listens from now on, in the network namespace of the calling thread.
    pub fn open() -> Result<Self, NetError> {
        let socket = Socket::open(Some(rustix::net::netlink::NETFILTER))?;
        for group in [GROUP_NEW, GROUP_UPDATE, GROUP_DESTROY] {
            socket.join_group(group).map_err(|error| NetError::new("listen to connections", error))?;
        }
        Ok(Self { socket })
    }

    /// A listener that is never woken: while it is held, the kernel prepares every new connection for being followed.
    pub fn keep_open() -> Result<Self, NetError> {
        let what = "keep connection events on";
        let socket = Socket::open(Some(rustix::net::netlink::NETFILTER))?;
        socket.drop_everything().map_err(|error| NetError::new(what, error))?;
        socket.join_group(GROUP_DESTROY).map_err(|error| NetError::new(what, error))?;
        Ok(Self { socket })
    }

    /// The news that has arrived; ENOBUFS where some was lost.
    pub fn read(&self, mut each: impl FnMut(FlowChange)) -> Result<(), NetError> {
        self.socket.receive("read connection events", |message| {
            if message.kind >> 8 == SUBSYSTEM
                && let Some((flow, state)) = parse(message.body)
            {
                let gone = message.kind & 0xff == DELETE;
                each(if gone { FlowChange::Gone(flow) } else { FlowChange::Is(flow, state) });
            }
            true
        })
    }
}

impl AsFd for ConntrackEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for ConntrackEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

fn parse(body: &[u8]) -> Option<(Flow, Option<TcpState>)> {
    let attrs = body.get(4..)?;
    let (protocol, source, destination) = tuple(attribute(attrs, TUPLE_ORIGINAL)?)?;
    let (_, answered_by, answered_to) = tuple(attribute(attrs, TUPLE_REPLY)?)?;
    let state = attribute(attrs, PROTO_INFO)
        .and_then(|info| attribute(info, PROTO_INFO_TCP))
        .and_then(|tcp| attribute(tcp, TCP_STATE))
        .and_then(<[u8]>::first)
        .map(|state| if matches!(state, 7 | 8) { TcpState::Over } else { TcpState::Alive });
    Some((Flow { protocol, source, destination, answered_by, answered_to }, state))
}

fn tuple(bytes: &[u8]) -> Option<(u8, SocketAddrV4, SocketAddrV4)> {
    let ip = attribute(bytes, TUPLE_IP)?;
    let proto = attribute(bytes, TUPLE_PROTO)?;
    // ICMP has no ports.
    let port = |kind| {
        let value = attribute(proto, kind).and_then(|value| <[u8; 2]>::try_from(value).ok());
        value.map_or(0, u16::from_be_bytes)
    };
    Some((
        *attribute(proto, PROTO_NUMBER)?.first()?,
        SocketAddrV4::new(ipv4(attribute(ip, IP_SOURCE)?)?, port(PROTO_SOURCE_PORT)),
        SocketAddrV4::new(ipv4(attribute(ip, IP_DESTINATION)?)?, port(PROTO_DESTINATION_PORT)),
    ))
}
