//! The network of a node and of the cluster: addresses of pods, Services as nftables maps, cluster DNS, load balancer
//! addresses, routes between nodes, and the orderly release of terminating pods.
//!
//! IPv4 only so far. What this crate leaves on a host: one bridge with its ports, one nftables table of the family
//! `ip`, routes to the cluster's ranges, and the sysctls of the bridge ([`host`]); [`host::purge`] takes them away.

pub mod balancer;
pub mod catalog;
pub mod dns;
pub mod drain;
pub mod host;
pub mod ipam;
pub mod objects;
pub mod peers;
pub mod proxy;
pub mod published;
pub mod ranges;
pub mod routes;
pub mod sandbox;

use std::io;

use base::published::PublishedPort;
use ipnet::Ipv4Net;

/// What can go wrong with the network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error(transparent)]
    Net(#[from] sys::net::NetError),
    /// A file could not be read or written.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// No room for the cluster's ranges beside the host's routes.
    #[error(
        "the host's routes leave no private range free for pods and Services: remove one, or set the ranges by hand"
    )]
    NoRange,
    /// Every address of the node is in use.
    #[error("all pod addresses of {0} are in use: remove pods, or add a node")]
    RangeFull(Ipv4Net),
    /// A port of the host cannot be published.
    #[error("{}", unpublished(port, cause))]
    Port {
        /// Which.
        port: PublishedPort,
        /// Why; said in the message.
        cause: io::Error,
    },
    /// A link that belongs to another has the name of the instance's bridge.
    #[error("interface {0} is there and not Skiff's: choose another --name, or remove it")]
    ForeignLink(String),
    /// A link that has to be there is not.
    #[error("interface {0} is not there: it was removed from outside; restart Skiff to make it anew")]
    NoLink(String),
}

fn unpublished(port: &PublishedPort, cause: &io::Error) -> String {
    let at = port.host_ip.map(|ip| format!(" at {ip}")).unwrap_or_default();
    let PublishedPort { host_port, protocol, .. } = port;
    match cause.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "port {host_port}/{protocol} of this host{at} is in use: end who has it, or publish another port"
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("port {host_port}/{protocol} cannot be published{at}: this host has no such address")
        }
        _ => format!("port {host_port}/{protocol} cannot be published{at}: {cause}"),
    }
}

impl Error {
    fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }
}
