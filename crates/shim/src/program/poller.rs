//! The one place where the shim waits: an epoll instance and what each of its descriptors stands for.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use super::streams::Stream;

/// What a descriptor stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The socket where daemons connect.
    Listener,
    /// Children have ended.
    Children,
    /// A daemon's connection.
    Peer(u64),
    /// The launcher of a process.
    Launcher(u64),
    /// A process has ended.
    Process(u32),
    /// A container writes.
    Output(u64, Stream),
    /// A container reads again.
    Input(u64),
    /// An attached client reads again, or is gone.
    Sink(u64, u64),
    /// An attached client writes.
    Feed(u64, u64),
}

/// A registration; given back to [`Poller::remove`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Token(u64);

/// An epoll instance, level-triggered.
pub(crate) struct Poller {
    epoll: OwnedFd,
    sources: HashMap<u64, Source>,
    next: u64,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, sources: HashMap::new(), next: 0 })
    }

    /// A number that was not given before: for names of things.
    pub(crate) fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn readable(&mut self, fd: impl AsFd, source: Source) -> io::Result<Token> {
        self.add(fd, source, epoll::EventFlags::IN)
    }

    pub(crate) fn writable(&mut self, fd: impl AsFd, source: Source) -> io::Result<Token> {
        self.add(fd, source, epoll::EventFlags::OUT)
    }

    /// Only errors and hang-ups are told.
    pub(crate) fn broken(&mut self, fd: impl AsFd, source: Source) -> io::Result<Token> {
        self.add(fd, source, epoll::EventFlags::empty())
    }

    fn add(&mut self, fd: impl AsFd, source: Source, flags: epoll::EventFlags) -> io::Result<Token> {
        let token = self.fresh();
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags)?;
        self.sources.insert(token, source);
        Ok(Token(token))
    }

    /// Before the descriptor is closed: a duplicate elsewhere would keep the registration alive.
    pub(crate) fn remove(&mut self, fd: impl AsFd, token: Token) {
        self.sources.remove(&token.0);
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for events, until `deadline` at most. A source that was removed since its event came is left out by
    /// [`Poller::is_live`].
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<Vec<(u64, Source)>> {
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut events = [const { std::mem::MaybeUninit::<epoll::Event>::uninit() }; 16];
        match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((events, _)) => Ok(events
                .iter()
                .filter_map(|event| {
                    let token = event.data.u64();
                    Some((token, *self.sources.get(&token)?))
                })
                .collect()),
            Err(rustix::io::Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a registration that an event named still stands.
    pub(crate) fn is_live(&self, token: u64) -> bool {
        self.sources.contains_key(&token)
    }
}
