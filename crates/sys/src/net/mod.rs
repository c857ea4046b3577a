//! The kernel's network: links, addresses, routes, nftables and connection tracking, all by netlink and each behind a
//! trait ([`Routing`], [`Nftables`], [`Conntrack`]) so that planning can be tested without a kernel.
//!
//! The encoder is our own and small: one transaction of the service proxy may hold a hundred thousand set elements, and
//! the socket's send buffer has to follow its size. A request is carried out by the kernel within the call that sends
//! it, so these calls block for as long as the kernel works and never wait for anybody else.

mod conntrack;
mod message;
mod news;
pub mod nft;
mod nft_wire;
mod route;
mod socket;

use std::io;

pub use conntrack::{Conntrack, ConntrackEvents, ConntrackSocket, End, Flow, FlowChange, TcpState};
pub use news::HostEvents;
pub use nft::{Nftables, NftablesSocket};
pub use route::{Link, Mac, Route, RouteSocket, Routing, Target, VethPair};

/// A netlink request that failed.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}{}{detail}", if detail.is_empty() { "" } else { ": " })]
pub struct NetError {
    /// What was tried.
    pub what: String,
    /// The kernel's explanation (extended acknowledgement); often empty.
    pub detail: String,
    /// The error number.
    pub source: io::Error,
}

impl NetError {
    pub(crate) fn new(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { what: what.into(), detail: String::new(), source: source.into() }
    }

    /// Whether the object is there already.
    pub fn is_exists(&self) -> bool {
        self.source.raw_os_error() == Some(libc::EEXIST)
    }

    /// Whether the object does not exist (any more).
    pub fn is_missing(&self) -> bool {
        matches!(
            self.source.raw_os_error(),
            Some(libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL)
        )
    }
}

/// Takes "it is there already" as success.
pub fn or_exists(result: Result<(), NetError>) -> Result<(), NetError> {
    match result {
        Err(error) if error.is_exists() => Ok(()),
        other => other,
    }
}

/// Takes "it is not there" as success.
pub fn or_missing(result: Result<(), NetError>) -> Result<(), NetError> {
    match result {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}
