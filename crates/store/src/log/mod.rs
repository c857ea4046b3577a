//! The write-ahead log: numbered segments of frames, and a base that replaces the oldest of them.
//!
//! One writer appends a frame, waits until it is durable, and only then appends the next. So whatever is not whole at
//! the end of the last segment was never acknowledged and is cut off; damage anywhere else is reported and never
//! skipped. `docs/store-format.md` describes the bytes.

pub(crate) mod backend;
mod base;
mod frame;
pub(crate) mod record;
mod recovery;

use std::io;
use std::sync::Arc;

pub(crate) use base::{BaseWriter, abandon};
pub(crate) use frame::FrameBuf;
pub(crate) use recovery::Replay;

use crate::Revision;
use backend::{Backend, LogFile};
use frame::{FileHeader, FileKind};

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file operation failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Data that was once durable is missing or damaged.
    #[error(
        "the store's file {file} is damaged at byte {offset}: {why}. Acknowledged data may be lost: restore the \
         directory from a backup, or move it away to start empty"
    )]
    Damaged {
        /// The file.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// Written by another version of Skiff.
    #[error(
        "the store's file {file} has format {found}, this Skiff knows {known}: use the version that wrote it"
    )]
    Format {
        /// The file.
        file: String,
        /// Its format.
        found: u32,
        /// The format of this version.
        known: u32,
    },
}

impl OpenError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    fn damaged(file: &str, offset: usize, why: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_owned(), offset: offset as u64, why: why.into() }
    }
}

/// Sizes of the log, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// A segment that has reached this size is followed by a new one.
    pub(crate) segment: u64,
    /// Zeros are written so far ahead of the data: a sync that changes no file size costs half.
    pub(crate) ahead: u64,
}

/// A segment that is no longer written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Closed {
    number: u64,
    /// The first revision that the *next* segment may hold: all of this segment's are below.
    next_revision: Revision,
    bytes: u64,
}

/// The open log.
pub(crate) struct Log {
    backend: Arc<dyn Backend>,
    sizes: Sizes,
    file: Box<dyn LogFile>,
    number: u64,
    salt: u64,
    /// The checksum of the last frame or header.
    previous: u64,
    /// Where the next frame goes.
    position: u64,
    /// Up to here the file has been written, with zeros from `position` on.
    written: u64,
    closed: Vec<Closed>,
}

impl Log {
    /// Writes a frame and returns when it is durable. `revision` is the first one that the frame may hold.
    ///
    /// After an error it is unknown what of it reached the disk. Nothing but the same frame may be tried again: it is then
    /// written over all that may be there of it.
    pub(crate) fn append(&mut self, frame: &mut FrameBuf, revision: Revision) -> io::Result<()> {
        if self.position >= self.sizes.segment {
            self.roll(revision)?;
        }
        let unsealed = frame.len();
        let written = self.write(frame);
        if written.is_err() {
            frame.unseal(unsealed);
        }
        written
    }

    fn write(&mut self, frame: &mut FrameBuf) -> io::Result<()> {
        let (bytes, checksum) = frame.seal(self.salt, self.previous);
        let end = self.position + bytes.len() as u64;
        let grows = end > self.written;
        if grows {
            bytes.resize(bytes.len() + usize::try_from(self.sizes.ahead).unwrap_or(0), 0);
        }
        self.file.write_at(self.position, bytes)?;
        self.file.sync()?;
        if grows {
            self.written = end + self.sizes.ahead;
        }
        self.position = end;
        self.previous = checksum;
        Ok(())
    }

    /// Starts the next segment. The one before is wholly durable by now.
    fn roll(&mut self, revision: Revision) -> io::Result<()> {
        self.file.truncate(self.position)?;
        self.file.sync()?;
        let fresh = Self::start(&self.backend, self.sizes, self.number + 1, revision, self.previous)?;
        let mut closed = std::mem::take(&mut self.closed);
        closed.push(Closed { number: self.number, next_revision: revision, bytes: self.position });
        *self = Self { closed, ..fresh };
        Ok(())
    }

    /// Creates a segment; it is durable on return.
    fn start(
        backend: &Arc<dyn Backend>,
        sizes: Sizes,
        number: u64,
        revision: Revision,
        previous: u64,
    ) -> io::Result<Self> {
        let salt = uuid::Uuid::new_v4().as_u64_pair().0;
        let header = FileHeader { kind: FileKind::Segment, number, revision, previous, salt };
        let (bytes, checksum) = header.encode();
        let mut file = backend.create(&segment_name(number))?;
        file.write_at(0, &bytes)?;
        file.sync()?;
        backend.sync_dir()?;
        let position = bytes.len() as u64;
        Ok(Self {
            backend: backend.clone(),
            sizes,
            file,
            number,
            salt,
            previous: checksum,
            position,
            written: position,
            closed: Vec::new(),
        })
    }

    /// The bytes of the segments that a base at `revision` would make superfluous.
    pub(crate) fn superseded_bytes(&self, revision: Revision) -> u64 {
        self.superseded(revision).map(|segment| segment.bytes).sum()
    }

    /// The number of the first segment that has to stay beside a base at `revision`. Those before are forgotten here:
    /// whoever writes the base removes them.
    pub(crate) fn split_off(&mut self, revision: Revision) -> u64 {
        let gone = self.superseded(revision).count();
        self.closed.drain(..gone);
        self.closed.first().map_or(self.number, |segment| segment.number)
    }

    fn superseded(&self, revision: Revision) -> impl Iterator<Item = &Closed> {
        self.closed.iter().take_while(move |segment| segment.next_revision <= revision + 1)
    }

    /// Where the log's files live.
    pub(crate) fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }
}

fn segment_name(number: u64) -> String {
    format!("log-{number:016x}")
}

/// The number of a segment or the revision of a base, from its name.
fn parse_name(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    // Only names as this module writes them.
    (format!("{number:016x}") == digits).then_some(number)
}
