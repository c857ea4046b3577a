//! The log files of containers, read and followed: one reader for everyone who shows them.
//!
//! A runtime writes a line per entry in the CRI's format, `<RFC 3339 time> <stdout|stderr> <P|F> <text>`, where `P` marks
//! a part whose line goes on in the next entry of its stream, and moves a log that grew too long to `<log>.1`, that to
//! `<log>.2` and so on. Source: Kubernetes, design proposal "CRI: Log management for container stdout/stderr streams".
//!
//! Followed by the kernel's notice of each write (inotify) and by the container's end, never by looking again and again.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use futures::future::BoxFuture;
use jiff::Timestamp;

mod notices;

pub use notices::Notices;
use notices::Watch;

/// Read at once: little at first, since most logs that are followed grow by a few lines, and more the more there is.
const READ_LEAST: usize = 16 * 1024;
const READ_MOST: usize = 512 * 1024;
/// A tail is searched in blocks of so many bytes.
const CHUNK_BYTES: usize = 64 * 1024;
/// A line longer than this is no entry of the format: it is passed over.
const LINE_MAX_BYTES: usize = 1024 * 1024;
/// Older files than so many are not looked for.
const ROTATED_MAX: usize = 100;

/// A log is moved away beyond this size, where nothing else is asked for. Source: `containerLogMaxSize` of upstream's
/// kubelet.
pub const FILE_BYTES_MAX: u64 = 10 << 20;
/// So many files of a log there are at most, with the one that is written to. Source: `containerLogMaxFiles`.
pub const FILES_MAX: u32 = 5;

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
        LogLine::parse(line).map(|parts| Self::of(line, parts))
    }

    fn of(line: &Bytes, parts: LogLine<'_>) -> Self {
        let LogLine { time, stream, partial, text } = parts;
        Self { time: line.slice_ref(time), stream, partial, text: line.slice_ref(text) }
    }
}

fn moment(time: &[u8]) -> Option<Timestamp> {
    std::str::from_utf8(time).ok()?.parse().ok()
}

/// One entry, borrowed from the line that it stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLine<'l> {
    /// As [`LogEntry::time`]: the beginning of the line.
    pub time: &'l [u8],
    /// As [`LogEntry::stream`].
    pub stream: LogStream,
    /// As [`LogEntry::partial`].
    pub partial: bool,
    /// As [`LogEntry::text`]: the end of the line.
    pub text: &'l [u8],
}

impl<'l> LogLine<'l> {
    /// Takes a line apart, with or without its end; `None` for what is not of the format.
    pub fn parse(line: &'l [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let (time, rest) = line.split_at_checked(memchr::memchr(b' ', line)?)?;
        let (stream, rest) = match rest.split_at_checked(b" stdout ".len())? {
            (b" stdout ", rest) => (LogStream::Stdout, rest),
            (b" stderr ", rest) => (LogStream::Stderr, rest),
            _ => return None,
        };
        // What nearly every line has.
        if let [b'F', b' ', text @ ..] = rest {
            return Some(Self { time, stream, partial: false, text });
        }
        let end = memchr::memchr(b' ', rest).unwrap_or(rest.len());
        // The tag is a list separated by colons; its first entry says whether the line is whole.
        let partial = match rest[..end].split(|byte| *byte == b':').next()? {
            b"F" => false,
            b"P" => true,
            _ => return None,
        };
        Some(Self { time, stream, partial, text: rest.get(end + 1..).unwrap_or(&rest[end..]) })
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
    read_with(path, query, Notices::default(), ended)
}

/// As [`read`], for those who follow many logs: they have `notices` in common.
pub fn read_with(
    path: PathBuf,
    query: LogQuery,
    notices: Notices,
    ended: BoxFuture<'static, ()>,
) -> impl Stream<Item = io::Result<Vec<LogEntry>>> + Send + 'static {
    let reader = Reader::new(path, &query, notices, ended);
    futures::stream::try_unfold(Some((reader, query)), |state| async move {
        let Some((mut reader, query)) = state else { return Ok(None) };
        while let Some(lines) = reader.next().await? {
            let (entries, over) = query.entries(&lines.freeze());
            if !entries.is_empty() {
                return Ok(Some((entries, (!over).then_some((reader, query)))));
            }
            if over {
                break;
            }
        }
        Ok(None)
    })
}

/// As [`read`], but the whole lines as they stand in the files, also such as are not of the format; of the query only
/// `follow` and `tail` count. For those who take many lines apart at once, where they lie, and follow many logs, for which
/// they have `notices` in common.
pub fn read_lines(
    path: PathBuf,
    query: &LogQuery,
    notices: Notices,
    ended: BoxFuture<'static, ()>,
) -> impl Stream<Item = io::Result<BytesMut>> + Send + use<> {
    let reader = Reader::new(path, query, notices, ended);
    futures::stream::try_unfold(reader, |mut reader| async move {
        let lines = reader.next().await?;
        Ok(lines.map(|lines| (lines, reader)))
    })
}

struct Reader {
    path: PathBuf,
    follow: bool,
    tail: Option<u64>,
    /// Gone once the container has ended.
    ended: Option<BoxFuture<'static, ()>>,
    notices: Notices,
    watch: Option<Watch>,
    /// What is still to be read, the oldest first; `None` before the first look.
    files: Option<VecDeque<Opened>>,
    /// The beginning of a line whose end has not been read.
    rest: BytesMut,
    /// Bytes to be read next.
    size: usize,
}

/// A file of a log, told apart from others as long as it is open.
struct Opened {
    file: Arc<File>,
    identity: (u64, u64),
}

impl Reader {
    fn new(path: PathBuf, query: &LogQuery, notices: Notices, ended: BoxFuture<'static, ()>) -> Self {
        let LogQuery { follow, tail, .. } = *query;
        let (rest, size) = (BytesMut::new(), READ_LEAST);
        Self { path, follow, tail, ended: Some(ended), notices, watch: None, files: None, rest, size }
    }

    /// The next whole lines; `None` at the end.
    async fn next(&mut self) -> io::Result<Option<BytesMut>> {
        loop {
            if let Some(fresh) = self.read_some().await? {
                if let Some(lines) = self.take_lines(fresh) {
                    return Ok(Some(lines));
                }
                continue;
            }
            if self.advance().await? {
                continue;
            }
            // Whoever only waits has no memory for what may come.
            self.size = READ_LEAST;
            self.rest = BytesMut::from(&self.rest[..]);
            if !self.wait().await? {
                return Ok(None);
            }
        }
    }

    /// Reads more of the oldest file and answers where that begins; `None` at its end.
    async fn read_some(&mut self) -> io::Result<Option<usize>> {
        if self.files.is_none() {
            self.open().await?;
        }
        let Some(current) = self.files.as_ref().and_then(VecDeque::front) else { return Ok(None) };
        let (file, size, mut buffer) = (current.file.clone(), self.size, std::mem::take(&mut self.rest));
        let known = buffer.len();
        let (buffer, read) = blocking(move || {
            buffer.resize(known + size, 0);
            let read = loop {
                match (&*file).read(&mut buffer[known..]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    read => break read?,
                }
            };
            buffer.truncate(known + read);
            Ok((buffer, read))
        })
        .await?;
        self.rest = buffer;
        if read == size {
            self.size = (size * 2).min(READ_MOST);
        }
        Ok((read > 0).then_some(known))
    }

    /// The whole lines of what has been read, of which everything from `fresh` on is new.
    fn take_lines(&mut self, fresh: usize) -> Option<BytesMut> {
        let end = self.rest.get(fresh..).and_then(|new| memchr::memrchr(b'\n', new));
        let lines = end.map(|end| self.rest.split_to(fresh + end + 1));
        if self.rest.len() > LINE_MAX_BYTES {
            self.rest.clear();
        }
        lines
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
        let (path, current) = (self.path.clone(), files.front().map(|current| current.identity));
        let newer = blocking(move || newer(&path, current)).await?;
        let found = newer.is_some();
        // What was written between the last read and the move is read before the newer file.
        files.extend(newer);
        Ok(found)
    }

    async fn open(&mut self) -> io::Result<()> {
        if self.follow {
            // The watch comes first: nothing that is written from now on goes unnoticed.
            self.watch = Some(self.notices.watch(&self.path)?);
        }
        let (path, tail) = (self.path.clone(), self.tail);
        let files = blocking(move || open(&path, tail)).await?;
        if files.is_empty() && !self.follow {
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
}

/// Works with files on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// The files to be read, the oldest first, each where its part of the tail begins.
fn open(path: &Path, tail: Option<u64>) -> io::Result<VecDeque<Opened>> {
    let mut files = VecDeque::new();
    let mut missing = tail;
    for opened in all(path)? {
        if let Some(lines) = missing {
            missing = Some(lines - seek_tail(&opened.file, lines)?);
        }
        files.push_front(opened);
        if missing == Some(0) {
            break;
        }
    }
    Ok(files)
}

/// What a query says of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is shown.
    Wanted,
    /// It is left out.
    Unwanted,
    /// It is left out, and so is all that follows.
    TooNew,
}

impl LogQuery {
    /// The wanted ones of all entries in whole lines, and whether nothing that follows is wanted.
    fn entries(&self, lines: &Bytes) -> (Vec<LogEntry>, bool) {
        let mut entries = Vec::new();
        let mut begin = 0;
        for end in memchr::memchr_iter(b'\n', lines) {
            let line = lines.slice(begin..=end);
            begin = end + 1;
            let Some(parts) = LogLine::parse(&line) else { continue };
            match self.judge(&parts) {
                Verdict::Wanted => entries.push(LogEntry::of(&line, parts)),
                Verdict::Unwanted => {}
                Verdict::TooNew => return (entries, true),
            }
        }
        (entries, false)
    }

    /// Whether an entry is wanted, whatever the tail.
    pub fn judge(&self, entry: &LogLine<'_>) -> Verdict {
        let timed = self.since.is_some() || self.until.is_some();
        let at = if timed { moment(entry.time) } else { None };
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

/// How many bytes the log at `path` has, with the files that it was rotated into. Blocks.
pub fn bytes(path: &Path) -> u64 {
    // While the log is moved on, one of the names is free, and only one.
    let mut gaps = 0;
    let files = names(path).map(std::fs::metadata).take_while(|file| {
        gaps += u32::from(file.is_err());
        gaps < 2
    });
    let lengths = files.flatten();
    lengths.map(|file| file.len()).sum()
}

/// The files of a log, the newest first.
fn all(path: &Path) -> io::Result<Vec<Opened>> {
    let mut found: Vec<Opened> = Vec::new();
    for (index, name) in names(path).enumerate() {
        match opened(&name)? {
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
fn newer(path: &Path, than: Option<(u64, u64)>) -> io::Result<Option<Opened>> {
    let mut newer = None;
    for (index, name) in names(path).enumerate() {
        match opened(&name)? {
            Some(file) if Some(file.identity) == than => break,
            Some(file) => newer = Some(file),
            None if index == 0 => {}
            None => break,
        }
    }
    Ok(newer)
}

fn opened(path: &Path) -> io::Result<Option<Opened>> {
    match File::open(path) {
        Ok(file) => {
            let metadata = file.metadata()?;
            Ok(Some(Opened { file: Arc::new(file), identity: (metadata.dev(), metadata.ino()) }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Goes to where the last `lines` lines of a file begin, searched from its end block by block; answers how many there are,
/// at most `lines`.
fn seek_tail(mut file: &File, lines: u64) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut end = if lines == 0 { 0 } else { length };
    let mut start_of_last = length;
    let mut found = 0;
    let mut block = vec![0; CHUNK_BYTES];
    while end > 0 && found < lines {
        let start = end.saturating_sub(CHUNK_BYTES as u64);
        let size = usize::try_from(end - start).unwrap_or(CHUNK_BYTES);
        file.read_exact_at(&mut block[..size], start)?;
        for index in memchr::memrchr_iter(b'\n', &block[..size]) {
            let at = start + index as u64;
            // The end of the last line begins nothing.
            if at + 1 < length {
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
    file.seek(SeekFrom::Start(start_of_last))?;
    Ok(found)
}

#[cfg(test)]
mod tests;
