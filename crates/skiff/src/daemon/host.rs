//! What the daemon has to know of this host before it starts.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::settings::Settings;

/// The host.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// The address by which others reach it.
    pub(crate) address: IpAddr,
    /// The resolver configuration that names real resolvers.
    pub(crate) resolv_conf: PathBuf,
}

impl Host {
    /// Looks at the host, as the settings say.
    pub(crate) fn of(settings: &Settings) -> Result<Self> {
        let address = settings.address.or_else(preferred_address).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        // systemd-resolved's stub listens on this host's loopback, which pods cannot reach.
        let resolved = Path::new("/run/systemd/resolve/resolv.conf");
        let resolv_conf = if resolved.exists() { resolved } else { Path::new("/etc/resolv.conf") };
        Ok(Self { address, resolv_conf: resolv_conf.to_owned() })
    }

    /// The address on which servers listen: every one of the host.
    pub(crate) fn any(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    }
}

/// The source address that the kernel would choose towards the outside. Connecting a UDP socket asks its routing table
/// and sends nothing. `None` without a default route.
fn preferred_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // 192.0.2.1 is documentation's (RFC 5737): it stands for "anywhere outside".
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified()).then_some(address)
}
