//! A netlink socket: requests with acknowledgements, dumps, multicast.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink,
};

use super::NetError;
use super::message::{HEADER, Messages, Received, attribute, messages, text, u32_at};

pub(super) const ACK: u16 = libc::NLM_F_ACK as u16;
pub(super) const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
pub(super) const DUMP: u16 = libc::NLM_F_DUMP as u16;
pub(super) const CREATE: u16 = libc::NLM_F_CREATE as u16;
pub(super) const EXCLUSIVE: u16 = libc::NLM_F_EXCL as u16;
pub(super) const REPLACE: u16 = libc::NLM_F_REPLACE as u16;
pub(super) const APPEND: u16 = libc::NLM_F_APPEND as u16;

/// Attribute of an extended acknowledgement that holds the kernel's words.
const EXTACK_MESSAGE: u16 = 1;
/// Flag of an answer that carries extended acknowledgement attributes, and of one without the request's body.
const ACK_TLVS: u16 = 0x200;
const CAPPED: u16 = 0x100;
/// What one answer can be at most: the kernel fills dumps in pages of 32 KiB.
const DATAGRAM_MAX: usize = 64 << 10;
/// Room for the answers of one request. Answers beyond it would be lost with ENOBUFS.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A socket of one netlink family in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    // One request at a time: its answers are read before the next is sent.
    turn: Mutex<()>,
}

impl Socket {
    /// `None` is rtnetlink, whose number is 0.
    pub(super) fn open(protocol: Option<Protocol>) -> Result<Self, NetError> {
        let what = || "open a netlink socket".to_owned();
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            protocol,
        )
        .map_err(|errno| NetError::new(what(), errno))?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0))
            .map_err(|errno| NetError::new(what(), errno))?;
        // Both options only better the errors; the buffer's size is raised for whoever has the right to.
        let _ = set_option(&fd, libc::NETLINK_EXT_ACK);
        let _ = set_option(&fd, libc::NETLINK_CAP_ACK);
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&fd, RECEIVE_BUFFER);
        Ok(Self { fd, turn: Mutex::new(()) })
    }

    /// The descriptor alone, for a listener that waits in a task.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Receives what is sent to a multicast group.
    pub(super) fn join_group(&self, group: u32) -> io::Result<()> {
        let value = libc::c_int::try_from(group).map_err(io::Error::other)?;
        set_option_value(&self.fd, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, value)
    }

    /// Lets nothing through to the reader: the socket counts as a listener and never wakes anybody.
    pub(super) fn drop_everything(&self) -> io::Result<()> {
        // A classic BPF program of one instruction: return 0, which keeps no byte of the message.
        let mut code = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
        let program = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
        let len = libc::socklen_t::try_from(size_of_val(&program)).map_err(io::Error::other)?;
        // SAFETY: `program` and the instruction that it points to live across the call, which copies both; the
        // descriptor is open.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                len,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Sends one or more messages and reads all their answers; the first error is the result.
    pub(super) fn request(&self, out: &Messages, what: &str) -> Result<(), NetError> {
        self.request_batch(out, out.count(), what)
    }

    /// As [`Socket::request`], where the message with the sequence number `last` is the last one that is acknowledged.
    pub(super) fn request_batch(&self, out: &Messages, last: u32, what: &str) -> Result<(), NetError> {
        let _turn = self.turn.lock();
        self.send(out, what)?;
        let mut first = None;
        let mut seen_last = false;
        self.receive(what, |message| {
            if message.kind == libc::NLMSG_ERROR as u16 {
                seen_last |= message.sequence == last;
                if let Some(error) = failure(message, what) {
                    first.get_or_insert(error);
                }
            }
            true
        })?;
        match first {
            Some(error) => Err(error),
            None if seen_last => Ok(()),
            None => Err(NetError::new(what, io::Error::other("the kernel did not answer the request"))),
        }
    }

    /// Sends one request and hands on the body of every answer that comes before its acknowledgement.
    pub(super) fn ask(
        &self,
        out: &Messages,
        what: &str,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), NetError> {
        let _turn = self.turn.lock();
        self.send(out, what)?;
        let mut outcome = Err(NetError::new(what, io::Error::other("the kernel did not answer the request")));
        self.receive(what, |message| {
            if message.kind == libc::NLMSG_ERROR as u16 {
                outcome = failure(message, what).map_or(Ok(()), Err);
            } else {
                each(message.body);
            }
            true
        })?;
        outcome
    }

    /// Waits until there is something to [`Socket::receive`]; false when there was nothing until `deadline`.
    pub(super) fn wait_until(&self, deadline: Instant) -> io::Result<bool> {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))
            .map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        loop {
            match rustix::event::poll(&mut fds, Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends a dump request and hands on the body of every answer.
    pub(super) fn dump(
        &self,
        out: &Messages,
        what: &str,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), NetError> {
        let _turn = self.turn.lock();
        self.send(out, what)?;
        let mut done = false;
        let mut error = None;
        // The kernel makes the next part of a dump while the present one is read, so nothing is ever waited for.
        self.receive(what, |message| {
            match i32::from(message.kind) {
                libc::NLMSG_DONE => done = true,
                libc::NLMSG_ERROR => error = failure(message, what),
                _ => each(message.body),
            }
            !done && error.is_none()
        })?;
        match error {
            Some(error) => Err(error),
            None if done => Ok(()),
            None => Err(NetError::new(what, io::Error::other("the kernel's list ended early"))),
        }
    }

    /// Reads the messages that have arrived, if any.
    pub(super) fn receive(
        &self,
        what: &str,
        mut each: impl FnMut(Received<'_>) -> bool,
    ) -> Result<(), NetError> {
        let mut buffer = vec![0; DATAGRAM_MAX];
        loop {
            let (len, _) = match rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::TRUNC) {
                Ok(received) => received,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(NetError::new(what, errno)),
            };
            if len > buffer.len() {
                return Err(NetError::new(what, Errno::MSGSIZE));
            }
            if !messages(&buffer[..len]).all(&mut each) {
                return Ok(());
            }
        }
    }

    fn send(&self, out: &Messages, what: &str) -> Result<(), NetError> {
        let bytes = out.as_bytes();
        // A message larger than the send buffer is refused with EMSGSIZE. The kernel doubles what it is told, for its
        // own book-keeping, so this is enough; it stays as large for the next one.
        let wanted = bytes.len() + (64 << 10);
        if wanted > rustix::net::sockopt::socket_send_buffer_size(&self.fd).unwrap_or(0) / 2 {
            rustix::net::sockopt::set_socket_send_buffer_size_force(&self.fd, wanted)
                .map_err(|errno| NetError::new(what, errno))?;
        }
        // Whatever an earlier call left unread would be taken for an answer to this one.
        self.receive(what, |_| true)?;
        loop {
            match rustix::net::send(&self.fd, bytes, SendFlags::empty()) {
                Ok(sent) if sent == bytes.len() => return Ok(()),
                Ok(_) => return Err(NetError::new(what, io::Error::from(io::ErrorKind::WriteZero))),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(NetError::new(what, errno)),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The failure that an answer tells, if it does: `struct nlmsgerr` holds the negative error number, the request's
/// header, and perhaps attributes.
fn failure(message: Received<'_>, what: &str) -> Option<NetError> {
    let code = i32::from_ne_bytes(message.body.get(..4)?.try_into().ok()?);
    if code == 0 {
        return None;
    }
    let mut error = NetError::new(what, io::Error::from_raw_os_error(code.saturating_neg()));
    if message.flags & ACK_TLVS != 0 {
        let request =
            if message.flags & CAPPED == 0 { u32_at(message.body, 4).unwrap_or(0) as usize } else { HEADER };
        let attributes = message.body.get(4 + request.next_multiple_of(4)..).unwrap_or_default();
        error.detail = attribute(attributes, EXTACK_MESSAGE).map(text).unwrap_or_default();
    }
    Some(error)
}

fn set_option(fd: &OwnedFd, option: libc::c_int) -> io::Result<()> {
    set_option_value(fd, libc::SOL_NETLINK, option, 1)
}

fn set_option_value(
    fd: &OwnedFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: `value` is a plain integer that lives across the call, `len` is its size, and the descriptor is open.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
