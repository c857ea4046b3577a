//! The log files of containers, read and followed: one reader for everyone who shows them.
//!
//! A runtime writes a line per entry in the CRI's format, `<RFC 3339 time> <stdout|stderr> <P|F> <text>`, where `P` marks
//! a part whose line goes on in the next entry of its stream, and moves a log that grew too long to `<log>.1`, that to
//! `<log>.2` and so on. Source: Kubernetes, design proposal "CRI: Log management for container stdout/stderr streams".
//!
//! Followed by the kernel's notice of each write (inotify) and by the container's end, never by looking again and again.

use std::collections::VecDeque;
use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream, StreamExt as _};
use inotify::{EventStream, Inotify, WatchMask};
use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

/// Read at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// A line longer than this is no entry of the format: it is passed over.
const LINE_MAX_BYTES: usize = 1024 * 1024;
/// Older files than so many are not looked for.
const ROTATED_MAX: usize = 100;

/// The stream that an entry was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output; with a terminal everything.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One entry of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// When it was written, as it stands in the file: RFC 3339 with nanoseconds.
    pub time: Bytes,
    /// The stream that it was written to.
    pub stream: LogStream,
    /// The line goes on in the next entry of the stream.
    pub partial: bool,
    /// What was written, without the line's end.
    pub text: Bytes,
}

impl LogEntry {
    /// Takes a line apart, with or without its end; `None` for what is not of the format.
    pub fn parse(line: &Bytes) -> Option<Self> {
        let bytes = line.strip_suffix(b"\n").unwrap_or(line);
        let mut parts = bytes.splitn(4, |byte| *byte == b' ');
        let time = parts.next()?;
        let stream = match parts.next()? {
            b"stdout" => LogStream::Stdout,
            b"stderr" => LogStream::Stderr,
            _ => return None,
        };
        // The tag is a list separated by colons; its first entry says whether the line is whole.
        let partial = match parts.next()?.split(|byte| *byte == b':').next()? {
            b"F" => false,
            b"P" => true,
            _ => return None,
        };
        let text = parts.next().unwrap_or_default();
        Some(Self { time: line.slice_ref(time), stream, partial, text: line.slice_ref(text) })
    }

    /// When it was written; `None` where the file does not say it well.
    pub fn at(&self) -> Option<Timestamp> {
        std::str::from_utf8(&self.time).ok()?.parse().ok()
    }
}

/// Which entries are wanted, and how. The default: all that are there now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Go on until the container has ended.
    pub follow: bool,
    /// Only the last entries, counted before anything else is left out.
    pub tail: Option<u64>,
    /// Nothing older.
    pub since: Option<Timestamp>,
    /// Nothing newer; the log ends there.
    pub until: Option<Timestamp>,
    /// Only this stream.
    pub only: Option<LogStream>,
}

/// The entries of the log at `path` and of the older files that it was rotated into, as they come; never an empty batch.
/// `ended` resolves when the container has ended: what is there then is the whole log.
///
/// Without `follow` a log that is not there is `NotFound`; with it, it is waited for.
pub fn read(
    path: PathBuf,
    query: LogQuery,
    ended: BoxFuture<'static, ()>,
) -> impl Stream<Item = io::Result<Vec<LogEntry>>> + Send + 'static {
    let reader = Reader {
        path,
        query,
        ended: Some(ended),
        watch: None,
        files: None,
        rest: BytesMut::new(),
        over: false,
    };
    futures::stream::try_unfold(reader, |mut reader| async move {
        let batch = reader.next().await?;
        Ok(batch.map(|batch| (batch, reader)))
    })
}

struct Reader {
    path: PathBuf,
    query: LogQuery,
    /// Gone once the container has ended.
    ended: Option<BoxFuture<'static, ()>>,
    watch: Option<Watch>,
    /// What is still to be read, the oldest first; `None` before the first look.
    files: Option<VecDeque<Opened>>,
    /// The beginning of a line whose end has not been read.
    rest: BytesMut,
    /// Nothing that comes is wanted any more.
    over: bool,
}

/// A file of a log, told apart from others as long as it is open.
struct Opened {
    file: File,
    identity: (u64, u64),
}

impl Reader {
    /// The next entries; `None` at the end.
    async fn next(&mut self) -> io::Result<Option<Vec<LogEntry>>> {
        loop {
            if self.over {
                return Ok(None);
            }
            if self.read_some().await? {
                let entries = self.take_entries();
                if !entries.is_empty() {
                    return Ok(Some(entries));
                }
            } else if !self.advance().await? && !self.wait().await? {
                return Ok(None);
            }
        }
    }

    /// Reads more of the oldest file; `false` at its end.
    async fn read_some(&mut self) -> io::Result<bool> {
        if self.files.is_none() {
            self.open().await?;
        }
        let Some(current) = self.files.as_mut().and_then(VecDeque::front_mut) else { return Ok(false) };
        self.rest.reserve(CHUNK_BYTES);
        Ok(current.file.read_buf(&mut self.rest).await? > 0)
    }

    /// Goes on to a newer file at the end of one; `false` if there is none.
    async fn advance(&mut self) -> io::Result<bool> {
        let Some(files) = self.files.as_mut() else { return Ok(false) };
        if files.len() > 1 {
            files.pop_front();
            // A runtime moves a log between entries only: this is the wreck of a write that failed.
            self.rest.clear();
            return Ok(true);
        }
        let newer = newer(&self.path, files.front().map(|current| current.identity)).await?;
        let found = newer.is_some();
        // What was written between the last read and the move is read before the newer file.
        files.extend(newer);
        Ok(found)
    }

    async fn open(&mut self) -> io::Result<()> {
        if self.query.follow {
            // The watch comes first: nothing that is written from now on goes unnoticed.
            self.watch = Some(Watch::new(&self.path)?);
        }
        let mut files = VecDeque::new();
        let mut missing = self.query.tail;
        for mut opened in all(&self.path).await? {
            if let Some(lines) = missing {
                missing = Some(lines - seek_tail(&mut opened.file, lines).await?);
            }
            files.push_front(opened);
            if missing == Some(0) {
                break;
            }
        }
        if files.is_empty() && !self.query.follow {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("no log {}", self.path.display())));
        }
        self.files = Some(files);
        Ok(())
    }

    /// Waits until a file may have grown or the container has ended; `false` if neither can be.
    async fn wait(&mut self) -> io::Result<bool> {
        let (Some(watch), Some(ended)) = (self.watch.as_mut(), self.ended.as_mut()) else { return Ok(false) };
        tokio::select! {
            changed = watch.changed() => changed?,
            () = ended => self.ended = None,
        }
        Ok(true)
    }

    /// The wanted ones of all whole entries that have been read.
    fn take_entries(&mut self) -> Vec<LogEntry> {
        let mut entries = Vec::new();
        if let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') {
            let mut lines = self.rest.split_to(end + 1).freeze();
            while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
                let Some(entry) = LogEntry::parse(&lines.split_to(end + 1)) else { continue };
                match self.query.judge(&entry) {
                    Verdict::Wanted => entries.push(entry),
                    Verdict::Unwanted => {}
                    Verdict::TooNew => {
                        self.over = true;
                        break;
                    }
                }
            }
        }
        if self.rest.len() > LINE_MAX_BYTES {
            self.rest.clear();
        }
        entries
    }
}

enum Verdict {
    Wanted,
    Unwanted,
    TooNew,
}

impl LogQuery {
    fn judge(&self, entry: &LogEntry) -> Verdict {
        let timed = self.since.is_some() || self.until.is_some();
        let at = if timed { entry.at() } else { None };
        if at.zip(self.until).is_some_and(|(at, until)| at > until) {
            return Verdict::TooNew;
        }
        let early = at.zip(self.since).is_some_and(|(at, since)| at < since);
        let other = self.only.is_some_and(|only| only != entry.stream);
        if early || other { Verdict::Unwanted } else { Verdict::Wanted }
    }
}

/// The names that a log's files can have, the newest first.
fn names(path: &Path) -> impl Iterator<Item = PathBuf> {
    let rotated = (1..=ROTATED_MAX).map(|number| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    });
    std::iter::once(path.to_owned()).chain(rotated)
}

/// The files of a log, the newest first.
async fn all(path: &Path) -> io::Result<Vec<Opened>> {
    let mut found: Vec<Opened> = Vec::new();
    for (index, name) in names(path).enumerate() {
        match opened(&name).await? {
            // Moved on while it was looked for: it is here already.
            Some(file) if found.last().is_some_and(|last| last.identity == file.identity) => {}
            Some(file) => found.push(file),
            // Between the move of the newest and its successor the first name is free.
            None if index == 0 => {}
            None => break,
        }
    }
    Ok(found)
}

/// The file that follows the one with this identity: the next newer one, or the oldest if it has been removed.
async fn newer(path: &Path, than: Option<(u64, u64)>) -> io::Result<Option<Opened>> {
    let mut newer = None;
    for (index, name) in names(path).enumerate() {
        match opened(&name).await? {
            Some(file) if Some(file.identity) == than => break,
            Some(file) => newer = Some(file),
            None if index == 0 => {}
            None => break,
        }
    }
    Ok(newer)
}

async fn opened(path: &Path) -> io::Result<Option<Opened>> {
    match File::open(path).await {
        Ok(file) => {
            let metadata = file.metadata().await?;
            Ok(Some(Opened { file, identity: (metadata.dev(), metadata.ino()) }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Goes to where the last `lines` lines of a file begin, searched from its end block by block; answers how many there are,
/// at most `lines`.
async fn seek_tail(file: &mut File, lines: u64) -> io::Result<u64> {
    let length = file.metadata().await?.len();
    let mut end = if lines == 0 { 0 } else { length };
    let mut start_of_last = length;
    let mut found = 0;
    let mut block = vec![0; CHUNK_BYTES];
    while end > 0 && found < lines {
        let start = end.saturating_sub(CHUNK_BYTES as u64);
        let size = usize::try_from(end - start).unwrap_or(CHUNK_BYTES);
        file.seek(SeekFrom::Start(start)).await?;
        file.read_exact(&mut block[..size]).await?;
        for (index, byte) in block[..size].iter().enumerate().rev() {
            let at = start + index as u64;
            // The end of the last line begins nothing.
            if *byte == b'\n' && at + 1 < length {
                found += 1;
                start_of_last = at + 1;
                if found == lines {
                    break;
                }
            }
        }
        end = start;
    }
    if found < lines && length > 0 {
        found += 1;
        start_of_last = 0;
    }
    file.seek(SeekFrom::Start(start_of_last)).await?;
    Ok(found)
}

/// The kernel's word that something in the log's directory changed.
struct Watch {
    events: EventStream<[u8; 4096]>,
}

impl Watch {
    fn new(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init().map_err(|error| {
            let remedy = "if too many logs are followed, raise fs.inotify.max_user_instances";
            io::Error::new(error.kind(), format!("following a log: {error}; {remedy}"))
        })?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let what = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO;
        inotify.watches().add(directory, what)?;
        Ok(Self { events: inotify.into_event_stream([0; 4096])? })
    }

    /// Returns when something changed since the last call.
    async fn changed(&mut self) -> io::Result<()> {
        let Some(first) = self.events.next().await else { return std::future::pending().await };
        first?;
        // Many writes in a row are one change.
        while let Some(Some(event)) = self.events.next().now_or_never() {
            event?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
