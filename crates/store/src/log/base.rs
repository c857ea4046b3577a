//! A base: the whole state at one compacted revision, in a file of its own. Once it is durable, the segments that hold
//! only revisions up to it are removed.

use std::io;
use std::sync::Arc;

use super::backend::{Backend, LogFile};
use super::frame::{FileHeader, FileKind, FrameBuf};
use super::{parse_name, segment_name};
use crate::Revision;

/// A frame of a base is written when it has grown to this many bytes.
const FRAME_BYTES: usize = 1 << 20;

pub(super) const BASE_PREFIX: &str = "base-";
pub(super) const SEGMENT_PREFIX: &str = "log-";
pub(super) const UNFINISHED: &str = ".new";

/// The name of the base at `revision`.
pub(super) fn base_name(revision: Revision) -> String {
    format!("{BASE_PREFIX}{:016x}", revision.cast_unsigned())
}

/// Writes a base under a temporary name; only [`BaseWriter::finish`] makes it count.
pub(crate) struct BaseWriter {
    backend: Arc<dyn Backend>,
    revision: Revision,
    file: Box<dyn LogFile>,
    salt: u64,
    previous: u64,
    position: u64,
    frame: FrameBuf,
}

impl BaseWriter {
    /// Starts the base at `revision`.
    pub(crate) fn create(backend: Arc<dyn Backend>, revision: Revision) -> io::Result<Self> {
        let salt = uuid::Uuid::new_v4().as_u64_pair().0;
        let header = FileHeader { kind: FileKind::Base, number: 0, revision, previous: 0, salt };
        let (bytes, previous) = header.encode();
        let mut file = backend.create(&unfinished(revision))?;
        file.write_at(0, &bytes)?;
        let position = bytes.len() as u64;
        Ok(Self { backend, revision, file, salt, previous, position, frame: FrameBuf::new() })
    }

    /// Appends records: `put` writes them to the buffer that it is given.
    pub(crate) fn put(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        put(self.frame.records());
        if self.frame.len() < FRAME_BYTES { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> io::Result<()> {
        let (bytes, checksum) = self.frame.seal(self.salt, self.previous);
        self.file.write_at(self.position, bytes)?;
        self.position += bytes.len() as u64;
        self.previous = checksum;
        self.frame.clear();
        Ok(())
    }

    /// Makes the base durable and valid, then removes what it replaces: all segments before `first_segment`, and other
    /// bases. Returns its size in bytes.
    pub(crate) fn finish(mut self, first_segment: u64) -> io::Result<u64> {
        self.flush()?;
        self.file.sync()?;
        self.backend.rename(&unfinished(self.revision), &base_name(self.revision))?;
        self.backend.sync_dir()?;
        remove_superseded(&*self.backend, self.revision, first_segment)?;
        Ok(self.position)
    }

    /// Gives up: the history moved on while the base was written.
    pub(crate) fn abandon(self) -> io::Result<()> {
        abandon(&*self.backend, self.revision)
    }
}

/// Removes what was written of a base that does not count.
pub(crate) fn abandon(backend: &dyn Backend, revision: Revision) -> io::Result<()> {
    backend.remove(&unfinished(revision))
}

fn unfinished(revision: Revision) -> String {
    base_name(revision) + UNFINISHED
}

/// Removes the segments before `first_segment` and every base but the one at `revision`.
pub(super) fn remove_superseded(
    backend: &dyn Backend,
    revision: Revision,
    first_segment: u64,
) -> io::Result<()> {
    let keep = base_name(revision);
    for name in backend.list()? {
        let old_segment = parse_name(&name, SEGMENT_PREFIX).is_some_and(|number| number < first_segment);
        let old_base = name.starts_with(BASE_PREFIX) && name != keep;
        debug_assert!(!old_segment || name < segment_name(first_segment));
        if old_segment || old_base {
            backend.remove(&name)?;
        }
    }
    Ok(())
}
