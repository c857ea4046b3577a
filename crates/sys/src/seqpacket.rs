//! Unix datagrams with a connection (`SOCK_SEQPACKET`) that carry file descriptors: one send is one message.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// The most descriptors in one message.
pub const MAX_FDS: usize = 8;

/// A listening socket at the path `name` inside the directory `dir`, non-blocking. The name is reached through the
/// directory's descriptor, so that the kernel's limit of 108 bytes does not bind the directory's path.
pub fn listen(dir: &Path, name: &str) -> io::Result<OwnedFd> {
    let socket = socket()?;
    let (_dir, address) = address(dir, name)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 16)?;
    Ok(socket)
}

/// Connects to a socket that [`listen`] made. The connection is non-blocking.
pub fn connect(dir: &Path, name: &str) -> io::Result<OwnedFd> {
    let socket = socket()?;
    let (_dir, address) = address(dir, name)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// Accepts a connection, which is non-blocking; `None` where none waits.
pub fn accept(listener: impl AsFd) -> io::Result<Option<OwnedFd>> {
    match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(socket) => Ok(Some(socket)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A connected pair of blocking sockets.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message with descriptors (at most [`MAX_FDS`]). `WouldBlock` where the peer does not read.
pub fn send(socket: impl AsFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    rustix::net::sendmsg(socket, &[io::IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message into `buffer` and answers its length and descriptors. A length of 0 is the end of the
/// connection. A message that does not fit is an error: nothing is ever cut silently.
pub fn recv(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [io::IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message is larger than the receiver's buffer",
        ));
    }
    Ok((received.bytes, fds))
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// The address of `name` through a descriptor of `dir`, which has to stay open while the address is used.
fn address(dir: &Path, name: &str) -> io::Result<(std::fs::File, SocketAddrUnix)> {
    let dir = std::fs::File::open(dir)?;
    let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    let address = SocketAddrUnix::new(path)?;
    Ok((dir, address))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_message_carries_descriptors_and_its_bounds() {
        let (left, right) = pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(&left, b"one", &[writer.as_fd()]).unwrap();
        send(&left, b"two", &[]).unwrap();
        drop(writer);
        let mut buffer = [0; 16];
        let (length, mut fds) = recv(&right, &mut buffer).unwrap();
        assert_eq!((&buffer[..length], fds.len()), (&b"one"[..], 1));
        std::fs::File::from(fds.remove(0)).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert!(recv(&right, &mut [0; 2]).is_err(), "a cut message must be an error");
        drop(left);
        assert_eq!(recv(&right, &mut buffer).unwrap().0, 0);
    }

    #[test]
    fn long_directories_can_be_bound() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let listener = listen(&deep, "sock").unwrap();
        assert!(accept(&listener).unwrap().is_none());
        let _client = connect(&deep, "sock").unwrap();
        assert!(accept(&listener).unwrap().is_some());
    }
}
