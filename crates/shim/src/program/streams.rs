//! A container's standard streams: to the log and to attached clients, and from them.
//!
//! Nothing is dropped for a client that reads slowly: while one is behind, the container's stream is not read, so that
//! the kernel's pipe holds the container back. A client that takes nothing for [`STUCK`] is let go.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::io::Errno;

use super::log::Log;
use super::poller::{Poller, Source, Token};

/// How long a client may take nothing while the container waits for it.
const STUCK: Duration = Duration::from_secs(10);
/// How much is read at once.
const CHUNK: usize = 32 * 1024;

/// An output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The container's end of an output stream. Without a token it is not read now.
struct Output {
    fd: OwnedFd,
    token: Option<Token>,
}

/// An attached client's end of an output stream.
struct Sink {
    stream: Stream,
    fd: OwnedFd,
    token: Option<Token>,
    /// What it did not take yet, and since when it has taken nothing.
    pending: VecDeque<u8>,
    since: Instant,
}

/// An attached client's end of standard input.
struct Feed {
    fd: OwnedFd,
    token: Option<Token>,
}

/// The container's end of standard input, with what it did not take yet.
struct Input {
    fd: OwnedFd,
    token: Option<Token>,
    pending: VecDeque<u8>,
}

/// All streams of one container.
pub(crate) struct Streams {
    slot: u64,
    log: Log,
    outputs: [Option<Output>; 2],
    sinks: BTreeMap<u64, Sink>,
    feeds: BTreeMap<u64, Feed>,
    input: Option<Input>,
    stdin_once: bool,
}

impl Streams {
    /// Streams of the container `slot` that are not connected yet.
    pub(crate) fn new(slot: u64, log: Log, stdin_once: bool) -> Self {
        Self {
            slot,
            log,
            outputs: [None, None],
            sinks: BTreeMap::new(),
            feeds: BTreeMap::new(),
            input: None,
            stdin_once,
        }
    }

    pub(crate) fn log(&mut self) -> &mut Log {
        &mut self.log
    }

    /// The container writes here.
    pub(crate) fn connect_output(
        &mut self,
        poller: &mut Poller,
        stream: Stream,
        fd: OwnedFd,
    ) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let token = Some(poller.readable(&fd, Source::Output(self.slot, stream))?);
        self.outputs[stream.index()] = Some(Output { fd, token });
        Ok(())
    }

    /// The container reads here.
    pub(crate) fn connect_input(&mut self, poller: &mut Poller, fd: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        self.input = Some(Input { fd, token: None, pending: VecDeque::new() });
        self.resume_feeds(poller)
    }

    /// The terminal's master, where there is one.
    pub(crate) fn terminal(&self) -> Option<&OwnedFd> {
        Some(&self.outputs[Stream::Stdout.index()].as_ref()?.fd)
    }

    /// A client reads a stream from now on.
    pub(crate) fn attach_sink(&mut self, poller: &mut Poller, stream: Stream, fd: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let id = poller.fresh();
        let token = Some(poller.broken(&fd, Source::Sink(self.slot, id))?);
        self.sinks.insert(id, Sink { stream, fd, token, pending: VecDeque::new(), since: Instant::now() });
        Ok(())
    }

    /// A client writes standard input from now on.
    pub(crate) fn attach_feed(&mut self, poller: &mut Poller, fd: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let id = poller.fresh();
        self.feeds.insert(id, Feed { fd, token: None });
        self.resume_feeds(poller)
    }

    /// The container wrote.
    pub(crate) fn on_output(&mut self, poller: &mut Poller, stream: Stream, now: Timestamp) {
        if !self.copy_output(poller, stream, now) {
            self.close_output(poller, stream, now);
        }
    }

    /// Reads a chunk; `false` at the end of the stream.
    fn copy_output(&mut self, poller: &mut Poller, stream: Stream, now: Timestamp) -> bool {
        let Some(output) = &self.outputs[stream.index()] else { return true };
        let mut buffer = [0; CHUNK];
        let length = match rustix::io::read(&output.fd, &mut buffer) {
            Ok(0) => return false,
            Ok(length) => length,
            Err(Errno::AGAIN | Errno::INTR) => return true,
            // A terminal answers EIO when its last user is gone.
            Err(_) => return false,
        };
        self.log.write(stream, &buffer[..length], now);
        let readers: Vec<u64> =
            self.sinks.iter().filter(|(_, sink)| sink.stream == stream).map(|(id, _)| *id).collect();
        for id in readers {
            if let Some(sink) = self.sinks.get_mut(&id) {
                if sink.pending.is_empty() {
                    sink.since = Instant::now();
                }
                sink.pending.extend(&buffer[..length]);
            }
            self.flush_sink(poller, id);
        }
        true
    }

    /// A client reads again, or is gone.
    pub(crate) fn on_sink(&mut self, poller: &mut Poller, id: u64) {
        let idle = self.sinks.get(&id).is_some_and(|sink| sink.pending.is_empty());
        // Nothing was asked of an idle sink's descriptor: only its end can have been told.
        if idle { self.drop_sink(poller, id) } else { self.flush_sink(poller, id) }
    }

    /// Gives a client what it takes, and holds the container's stream back while it is behind.
    fn flush_sink(&mut self, poller: &mut Poller, id: u64) {
        let Some(sink) = self.sinks.get_mut(&id) else { return };
        let before = sink.pending.len();
        if drain_into(&sink.fd, &mut sink.pending).is_err() {
            return self.drop_sink(poller, id);
        }
        if sink.pending.len() < before {
            sink.since = Instant::now();
        }
        let stream = sink.stream;
        let source = Source::Sink(self.slot, id);
        if let Some(token) = sink.token.take() {
            poller.remove(&sink.fd, token);
        }
        let behind = !sink.pending.is_empty();
        let token = if behind { poller.writable(&sink.fd, source) } else { poller.broken(&sink.fd, source) };
        sink.token = token.ok();
        if behind {
            self.pause_output(poller, stream);
        } else if self.outputs[stream.index()].is_none() {
            self.drop_sink(poller, id);
        } else {
            self.resume_output(poller, stream);
        }
    }

    fn drop_sink(&mut self, poller: &mut Poller, id: u64) {
        let Some(mut sink) = self.sinks.remove(&id) else { return };
        if let Some(token) = sink.token.take() {
            poller.remove(&sink.fd, token);
        }
        self.resume_output(poller, sink.stream);
    }

    fn pause_output(&mut self, poller: &mut Poller, stream: Stream) {
        if let Some(output) = &mut self.outputs[stream.index()]
            && let Some(token) = output.token.take()
        {
            poller.remove(&output.fd, token);
        }
    }

    /// Reads a stream again once no client is behind.
    fn resume_output(&mut self, poller: &mut Poller, stream: Stream) {
        if self.sinks.values().any(|sink| sink.stream == stream && !sink.pending.is_empty()) {
            return;
        }
        if let Some(output) = &mut self.outputs[stream.index()]
            && output.token.is_none()
        {
            output.token = poller.readable(&output.fd, Source::Output(self.slot, stream)).ok();
        }
    }

    fn close_output(&mut self, poller: &mut Poller, stream: Stream, now: Timestamp) {
        self.pause_output(poller, stream);
        self.outputs[stream.index()] = None;
        self.log.end(stream, now);
        let done: Vec<u64> = self
            .sinks
            .iter()
            .filter(|(_, sink)| sink.stream == stream && sink.pending.is_empty())
            .map(|(id, _)| *id)
            .collect();
        for id in done {
            self.drop_sink(poller, id);
        }
    }

    /// A client wrote.
    pub(crate) fn on_feed(&mut self, poller: &mut Poller, id: u64) {
        let (Some(feed), Some(input)) = (self.feeds.get(&id), &mut self.input) else { return };
        let mut buffer = [0; CHUNK];
        match rustix::io::read(&feed.fd, &mut buffer) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(length) if length > 0 => {
                input.pending.extend(&buffer[..length]);
                self.flush_input(poller);
            }
            _ => {
                self.drop_feed(poller, id);
                if self.stdin_once {
                    self.close_input(poller);
                }
            }
        }
    }

    /// The container reads again.
    pub(crate) fn on_input(&mut self, poller: &mut Poller) {
        self.flush_input(poller);
    }

    fn flush_input(&mut self, poller: &mut Poller) {
        let slot = self.slot;
        let Some(input) = &mut self.input else { return };
        if drain_into(&input.fd, &mut input.pending).is_err() {
            return self.close_input(poller);
        }
        if let Some(token) = input.token.take() {
            poller.remove(&input.fd, token);
        }
        if input.pending.is_empty() {
            let _ = self.resume_feeds(poller);
        } else {
            input.token = poller.writable(&input.fd, Source::Input(slot)).ok();
            self.pause_feeds(poller);
        }
    }

    fn close_input(&mut self, poller: &mut Poller) {
        if let Some(mut input) = self.input.take()
            && let Some(token) = input.token.take()
        {
            poller.remove(&input.fd, token);
        }
        let feeds: Vec<u64> = self.feeds.keys().copied().collect();
        for id in feeds {
            self.drop_feed(poller, id);
        }
    }

    fn pause_feeds(&mut self, poller: &mut Poller) {
        for feed in self.feeds.values_mut() {
            if let Some(token) = feed.token.take() {
                poller.remove(&feed.fd, token);
            }
        }
    }

    fn resume_feeds(&mut self, poller: &mut Poller) -> io::Result<()> {
        if self.input.as_ref().is_none_or(|input| !input.pending.is_empty()) {
            return Ok(());
        }
        for (id, feed) in &mut self.feeds {
            if feed.token.is_none() {
                feed.token = Some(poller.readable(&feed.fd, Source::Feed(self.slot, *id))?);
            }
        }
        Ok(())
    }

    fn drop_feed(&mut self, poller: &mut Poller, id: u64) {
        if let Some(mut feed) = self.feeds.remove(&id)
            && let Some(token) = feed.token.take()
        {
            poller.remove(&feed.fd, token);
        }
    }

    /// The container has ended: takes what it left in its streams, which is at most what their kernel buffers hold,
    /// and closes them. Clients that are behind still get their rest.
    pub(crate) fn finish(&mut self, poller: &mut Poller, now: Timestamp) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut ready = true;
            while ready {
                ready = self.has_output(stream) && self.copy_output(poller, stream, now);
            }
            self.close_output(poller, stream, now);
        }
        self.close_input(poller);
    }

    fn has_output(&self, stream: Stream) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec};
        let Some(output) = &self.outputs[stream.index()] else { return false };
        let mut poll = [PollFd::new(&output.fd, PollFlags::IN)];
        rustix::event::poll(&mut poll, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }

    /// When the first client that is behind counts as stuck.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.sinks.values().filter(|sink| !sink.pending.is_empty()).map(|sink| sink.since + STUCK).min()
    }

    /// Lets go of clients that are stuck.
    pub(crate) fn on_deadline(&mut self, poller: &mut Poller, now: Instant) {
        let stuck: Vec<u64> = self
            .sinks
            .iter()
            .filter(|(_, sink)| !sink.pending.is_empty() && sink.since + STUCK <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in stuck {
            self.drop_sink(poller, id);
        }
    }

    /// Whether nobody needs these streams any more.
    pub(crate) fn is_drained(&self) -> bool {
        self.outputs.iter().all(Option::is_none) && self.sinks.is_empty()
    }
}

/// Writes what the other side takes now. An error is its end.
fn drain_into(fd: impl AsFd, pending: &mut VecDeque<u8>) -> io::Result<()> {
    while !pending.is_empty() {
        match rustix::io::write(fd.as_fd(), pending.as_slices().0) {
            Ok(length) => drop(pending.drain(..length)),
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // An idle shim keeps no buffers.
    *pending = VecDeque::new();
    Ok(())
}
