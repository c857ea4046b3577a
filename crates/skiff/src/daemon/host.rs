//! What the daemon has to know of this host before it starts.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sys::net::RouteSocket;

use super::address;
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
        let routing = RouteSocket::open().context("open the kernel's network interfaces")?;
        let found = || address::current(&routing, &settings.instance.name);
        let address = settings.address.or_else(found).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
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
