//! News of the host's links, addresses and routes (IPv4), over the multicast groups of rtnetlink.
//! Source: `linux/rtnetlink.h`.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::io::unix::AsyncFd;

use super::NetError;
use super::socket::Socket;

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV4_ROUTE`. A link that goes down takes its routes along without a
/// word about them, so links are listened to as well.
const GROUPS: [u32; 3] = [1, 5, 7];
/// What is read at once. The content does not matter, so longer messages may be cut.
const BUFFER: usize = 4096;

/// Tells that links, addresses or routes of a network namespace changed, not what: whoever needs to know looks.
#[derive(Debug)]
pub struct HostEvents {
    fd: AsyncFd<OwnedFd>,
}

impl HostEvents {
    /// Listens from now on, in the network namespace of the calling thread. Called within a tokio runtime.
    pub fn open() -> Result<Self, NetError> {
        let failed = |error: io::Error| NetError::new("listen to changes of the host's network", error);
        let socket = Socket::open(None)?;
        for group in GROUPS {
            socket.join_group(group).map_err(failed)?;
        }
        Ok(Self { fd: crate::watch::watch_readable(socket.into_fd()).map_err(failed)? })
    }

    /// Returns once something changed since the last call. Cancel safe.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.try_io(|fd| take_all(fd.get_ref())) {
                Ok(result) => return result,
                // Nothing was there after all.
                Err(_) => continue,
            }
        }
    }
}

/// Takes every message that has arrived; `WouldBlock` if there was none.
fn take_all(fd: &OwnedFd) -> io::Result<()> {
    let mut buffer = [0; BUFFER];
    let mut any = false;
    loop {
        match rustix::net::recv(fd, &mut buffer[..], RecvFlags::empty()) {
            // News that was lost is news as well.
            Ok(_) | Err(Errno::NOBUFS) => any = true,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if any => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}
