//! Descriptors that an asynchronous task waits for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a non-blocking descriptor with the current runtime.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open, and the same, until the owner is dropped, which the result is.
    Ok(unsafe { AsyncFd::register(fd)? })
}

/// As [`watch`], for descriptors that can only become readable, such as a pidfd.
pub fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: as in `watch`.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? })
}
