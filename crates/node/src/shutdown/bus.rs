//! A connection to the system's message bus. Source: the D-Bus Specification 0.43, "Authentication Protocol",
//! "Message Bus Specification".

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

use super::wire::{HEAD, Kind, MESSAGE_MAX, Message, Value, decode, encode, length};

/// Whoever does not answer for so long hangs.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Descriptors that came and that nobody has asked for.
const FDS_MAX: usize = 8;
/// Signals that came while an answer was waited for.
const WAITING_MAX: usize = 64;
const BUS: &str = "org.freedesktop.DBus";

/// A connection.
pub(super) struct Bus {
    stream: UnixStream,
    unread: Vec<u8>,
    fds: VecDeque<OwnedFd>,
    waiting: VecDeque<Message>,
    serial: u32,
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl Bus {
    /// Connects to the bus at a socket, as who this process is.
    pub(super) async fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path).await?;
        let (unread, fds, waiting) = (Vec::new(), VecDeque::new(), VecDeque::new());
        let mut bus = Self { stream, unread, fds, waiting, serial: 0 };
        tokio::time::timeout(ANSWER_MAX, bus.authenticate()).await??;
        bus.call(BUS, "/org/freedesktop/DBus", BUS, "Hello", &[]).await?;
        Ok(bus)
    }

    async fn authenticate(&mut self) -> io::Result<()> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let uid: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        for (said, wanted) in [
            (format!("\0AUTH EXTERNAL {uid}\r\n"), "OK"),
            ("NEGOTIATE_UNIX_FD\r\n".to_owned(), "AGREE_UNIX_FD"),
        ] {
            self.stream.write_all(said.as_bytes()).await?;
            let line = self.line().await?;
            if !line.starts_with(wanted) {
                return Err(wrong(format!("the message bus does not take this process: {line}")));
            }
        }
        self.stream.write_all(b"BEGIN\r\n").await
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.unread.drain(..end + 2).take(end).collect();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            self.read_more().await?;
        }
    }

    /// Asks for signals that fit.
    pub(super) async fn watch(&mut self, rule: &str) -> io::Result<()> {
        let rule = Value::Text(rule.to_owned());
        self.call(BUS, "/org/freedesktop/DBus", BUS, "AddMatch", &[rule]).await.map(drop)
    }

    /// Calls a method, and waits for its answer.
    pub(super) async fn call(
        &mut self,
        destination: &str,
        path: &str,
        interface: &str,
        member: &str,
        body: &[Value],
    ) -> io::Result<Message> {
        let call = Message {
            path: path.to_owned(),
            interface: interface.to_owned(),
            member: member.to_owned(),
            destination: destination.to_owned(),
            body: body.to_vec(),
            ..Message::default()
        };
        // Nobody has asked for those.
        self.fds.clear();
        tokio::time::timeout(ANSWER_MAX, self.ask(call)).await?
    }

    async fn ask(&mut self, call: Message) -> io::Result<Message> {
        let serial = self.send(call, false, None).await?;
        loop {
            let message = self.receive().await?;
            match message.kind {
                _ if message.answers != Some(serial) && self.waiting.len() < WAITING_MAX => {
                    self.waiting.push_back(message);
                }
                _ if message.answers != Some(serial) => {
                    return Err(wrong("the message bus answers everybody else"));
                }
                Kind::Error => {
                    let text = match message.body.into_iter().next() {
                        Some(Value::Text(text)) => text,
                        _ => String::new(),
                    };
                    return Err(io::Error::other(format!("{}: {text}", message.error)));
                }
                _ => return Ok(message),
            }
        }
    }

    /// Sends a message, perhaps with a descriptor; its serial number.
    pub(super) async fn send(
        &mut self,
        message: Message,
        variants: bool,
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<u32> {
        self.serial = self.serial.checked_add(1).ok_or_else(|| wrong("a connection has no more numbers"))?;
        let message = Message { serial: self.serial, ..message };
        let bytes = encode(&message, variants);
        let sent = self.stream.async_io(Interest::WRITABLE, || send(&self.stream, &bytes, fd)).await?;
        self.stream.write_all(bytes.get(sent..).unwrap_or_default()).await?;
        Ok(self.serial)
    }

    /// The next message that is no answer. Cancel safe.
    pub(super) async fn next(&mut self) -> io::Result<Message> {
        match self.waiting.pop_front() {
            Some(message) => Ok(message),
            None => self.receive().await,
        }
    }

    /// The descriptor that came with an answer; there is one at most in what is asked here.
    pub(super) fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop_front()
    }

    async fn receive(&mut self) -> io::Result<Message> {
        loop {
            if let Some(head) = self.unread.get(..HEAD) {
                let length = length(head)
                    .ok_or_else(|| wrong("the message bus sends no message, or a too long one"))?;
                if self.unread.len() >= length {
                    let message = decode(&self.unread[..length]);
                    self.unread.drain(..length);
                    return message.ok_or_else(|| wrong("a message of the bus cannot be read"));
                }
            }
            self.read_more().await?;
        }
    }

    /// Reads what is there, and descriptors beside it. Cancel safe.
    async fn read_more(&mut self) -> io::Result<()> {
        if self.unread.len() > MESSAGE_MAX {
            return Err(wrong("the message bus sends too much"));
        }
        let mut bytes = [0; 4096];
        let (count, fds) =
            self.stream.async_io(Interest::READABLE, || receive(&self.stream, &mut bytes)).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.unread.extend(&bytes[..count]);
        self.fds.extend(fds);
        self.fds.truncate(FDS_MAX);
        Ok(())
    }
}

fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let buffer = &mut [IoSliceMut::new(bytes)];
    let received = rustix::net::recvmsg(stream.as_fd(), buffer, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect::<Vec<_>>()),
        _ => None,
    });
    Ok((received.bytes, fds.flatten().collect()))
}

fn send(stream: &UnixStream, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(wrong("no room for a descriptor"));
    }
    Ok(rustix::net::sendmsg(stream.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}
