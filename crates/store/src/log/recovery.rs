//! Opening the log: what is durable is replayed, an unfinished end is cut off, and damage is refused.

use std::sync::Arc;

use super::backend::Backend;
use super::base::{BASE_PREFIX, SEGMENT_PREFIX, UNFINISHED, base_name, remove_superseded};
use super::frame::{BadHeader, FILE_HEADER, FileHeader, FileKind, frame_at, later_frame};
use super::record::{Record, Records};
use super::{Closed, Log, OpenError, Sizes, parse_name, segment_name};
use crate::Revision;

/// The state that records are replayed into.
pub(crate) trait Replay {
    /// Takes the next record; `Err` says why it cannot follow those before it.
    fn replay(&mut self, record: Record) -> Result<(), String>;
}

/// The revision that the first transaction of an empty store gets.
const FIRST_REVISION: Revision = 2;

/// A segment that was read.
struct Segment {
    header: FileHeader,
    /// The checksum of its last frame.
    last: u64,
    /// Where its data ends.
    end: usize,
    /// Whether there was more, to be cut off.
    unfinished: bool,
}

impl Log {
    /// Replays base and segments into `state`, oldest first, and returns the log ready for the next frame.
    ///
    /// On return everything replayed is on disk: what a process that was killed had only handed to the kernel would
    /// otherwise be read here, shown to others, and lost in a power failure.
    pub(crate) fn open(
        backend: Arc<dyn Backend>,
        sizes: Sizes,
        state: &mut dyn Replay,
    ) -> Result<Self, OpenError> {
        let names = backend.list().map_err(OpenError::io("list the store's files"))?;
        let base = names.iter().filter_map(|name| parse_name(name, BASE_PREFIX)).max().map(u64::cast_signed);
        if let Some(revision) = base {
            read_base(&*backend, revision, state)?;
        }
        let mut numbers: Vec<_> = names.iter().filter_map(|name| parse_name(name, SEGMENT_PREFIX)).collect();
        numbers.sort_unstable();
        drop_unborn(&*backend, &mut numbers)?;
        let first = first_needed(&*backend, &numbers, base)?;
        numbers.retain(|number| *number >= first);
        let log = match replay_segments(&*backend, &numbers, state)? {
            Some((segment, closed)) => resume(&backend, sizes, &segment, closed)?,
            None => Self::start(&backend, sizes, 1, FIRST_REVISION, 0)
                .map_err(OpenError::io("create the store's first segment"))?,
        };
        clean_up(&*backend, &names, base, first)
            .map_err(OpenError::io("remove files that are no longer needed"))?;
        Ok(log)
    }
}

/// Removes what a crash left of bases and of segments before `first`.
fn clean_up(
    backend: &dyn Backend,
    names: &[String],
    base: Option<Revision>,
    first: u64,
) -> std::io::Result<()> {
    match base {
        Some(revision) => remove_superseded(backend, revision, first),
        None => {
            names.iter().filter(|name| name.ends_with(UNFINISHED)).try_for_each(|name| backend.remove(name))
        }
    }
}

/// Removes the last segment if its creation was not finished, so that nothing was ever written to it.
fn drop_unborn(backend: &dyn Backend, numbers: &mut Vec<u64>) -> Result<(), OpenError> {
    let Some(number) = numbers.last() else { return Ok(()) };
    let name = segment_name(*number);
    let bytes = read(backend, &name)?;
    // Creation writes and syncs the header alone: more than that, if not zeros, is damage.
    let more = bytes.get(FILE_HEADER..).is_some_and(|rest| rest.iter().any(|byte| *byte != 0));
    if !more && FileHeader::decode(FileKind::Segment, &bytes) == Err(BadHeader::Torn) {
        backend.remove(&name).map_err(OpenError::io(format!("remove {name}")))?;
        backend.sync_dir().map_err(OpenError::io("sync the store's directory"))?;
        numbers.pop();
    }
    Ok(())
}

/// The number of the first segment that has to be replayed on top of the base.
fn first_needed(backend: &dyn Backend, numbers: &[u64], base: Option<Revision>) -> Result<u64, OpenError> {
    let needed = base.map_or(FIRST_REVISION, |revision| revision + 1);
    for number in numbers.iter().rev() {
        let name = segment_name(*number);
        let start = backend.read(&name, FILE_HEADER as u64).map_err(OpenError::io(format!("read {name}")))?;
        let (header, _) = header(&name, FileKind::Segment, &start)?;
        if header.revision <= needed {
            return Ok(*number);
        }
    }
    match (numbers.is_empty(), base) {
        (true, None) => Ok(1),
        _ => Err(OpenError::damaged(&segment_name(1), 0, format!("no segment holds revision {needed}"))),
    }
}

/// Replays consecutive segments. `None` without any.
fn replay_segments(
    backend: &dyn Backend,
    numbers: &[u64],
    state: &mut dyn Replay,
) -> Result<Option<(Segment, Vec<Closed>)>, OpenError> {
    let mut closed = Vec::new();
    let mut last: Option<Segment> = None;
    for number in numbers {
        let name = segment_name(*number);
        let segment = read_segment(&name, &read(backend, &name)?, state)?;
        if let Some(before) = last {
            if before.header.number + 1 != *number || before.last != segment.header.previous {
                let why = "the segment before it is missing or cut";
                return Err(OpenError::damaged(&name, 0, why));
            }
            closed.push(Closed {
                number: before.header.number,
                next_revision: segment.header.revision,
                bytes: before.end as u64,
            });
        }
        last = Some(segment);
    }
    Ok(last.map(|segment| (segment, closed)))
}

fn read(backend: &dyn Backend, name: &str) -> Result<Vec<u8>, OpenError> {
    backend.read(name, u64::MAX).map_err(OpenError::io(format!("read {name}")))
}

fn header(name: &str, kind: FileKind, bytes: &[u8]) -> Result<(FileHeader, u64), OpenError> {
    FileHeader::decode(kind, bytes).map_err(|bad| match bad {
        BadHeader::Torn => OpenError::damaged(name, 0, "its header is not whole"),
        BadHeader::Version(found) => OpenError::Format { file: name.to_owned(), found, known: 1 },
    })
}

/// Replays every whole frame of a file, up to the first place without one.
fn read_frames(
    name: &str,
    bytes: &[u8],
    salt: u64,
    start: u64,
    state: &mut dyn Replay,
) -> Result<(u64, usize), OpenError> {
    let (mut previous, mut end) = (start, FILE_HEADER);
    while let Some(frame) = frame_at(bytes, end, salt) {
        if frame.previous != previous {
            return Err(OpenError::damaged(name, end, "a frame does not follow the one before it"));
        }
        for record in Records::new(frame.payload) {
            let record = record.map_err(|_| OpenError::damaged(name, end, "a record has an unknown form"))?;
            state.replay(record).map_err(|why| OpenError::damaged(name, end, why))?;
        }
        (previous, end) = (frame.checksum, frame.end);
    }
    Ok((previous, end))
}

fn read_segment(name: &str, bytes: &[u8], state: &mut dyn Replay) -> Result<Segment, OpenError> {
    let (header, checksum) = header(name, FileKind::Segment, bytes)?;
    if segment_name(header.number) != name {
        return Err(OpenError::damaged(
            name,
            0,
            format!("it is segment {} under a wrong name", header.number),
        ));
    }
    let (last, end) = read_frames(name, bytes, header.salt, checksum, state)?;
    if let Some(later) = later_frame(bytes, end, header.salt) {
        let why = format!("a frame is damaged, as a whole one follows at byte {later}");
        return Err(OpenError::damaged(name, end, why));
    }
    let unfinished = bytes.get(end..).is_some_and(|rest| rest.iter().any(|byte| *byte != 0));
    Ok(Segment { header, last, end, unfinished })
}

fn read_base(backend: &dyn Backend, revision: Revision, state: &mut dyn Replay) -> Result<(), OpenError> {
    let name = base_name(revision);
    let bytes = read(backend, &name)?;
    let (header, checksum) = header(&name, FileKind::Base, &bytes)?;
    let mut checked = Base { state, revision, keys: 0, ended: false };
    let (_, end) = read_frames(&name, &bytes, header.salt, checksum, &mut checked)?;
    if end < bytes.len() || !checked.ended || header.revision != revision {
        return Err(OpenError::damaged(&name, end, "it does not end as a base does"));
    }
    Ok(())
}

/// Replays a base: tells the state its revision at the end and checks that nothing is missing.
struct Base<'a> {
    state: &'a mut dyn Replay,
    revision: Revision,
    keys: u64,
    ended: bool,
}

impl Replay for Base<'_> {
    fn replay(&mut self, record: Record) -> Result<(), String> {
        match &record {
            Record::Key(_) => self.keys += 1,
            Record::End { keys, revision } => {
                if (*keys, *revision) != (self.keys, self.revision) {
                    return Err(format!("it ends after {} keys, not {keys}", self.keys));
                }
                self.ended = true;
            }
            Record::Grant { .. } | Record::Touched { .. } => {}
            _ => return Err("a base holds a record of the log".to_owned()),
        }
        self.state.replay(record)
    }
}

/// Makes the last segment ready to be appended to.
fn resume(
    backend: &Arc<dyn Backend>,
    sizes: Sizes,
    segment: &Segment,
    closed: Vec<Closed>,
) -> Result<Log, OpenError> {
    let name = segment_name(segment.header.number);
    let prepare = || {
        let mut file = backend.open(&name)?;
        if segment.unfinished {
            file.truncate(segment.end as u64)?;
        }
        file.sync()?;
        backend.sync_dir()?;
        Ok(file)
    };
    let file = prepare().map_err(OpenError::io(format!("prepare {name} for writing")))?;
    let position = segment.end as u64;
    Ok(Log {
        backend: backend.clone(),
        sizes,
        file,
        number: segment.header.number,
        salt: segment.header.salt,
        previous: segment.last,
        position,
        written: position,
        closed,
    })
}
