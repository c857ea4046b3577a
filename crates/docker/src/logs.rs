//! `GET /containers/{id}/logs`: the engine's log files, read and followed.
//!
//! The files have the format of the CRI: `<RFC 3339 time> <stdout|stderr> <P|F> <content>`, `P` for a line that goes on.
//! Followed by the kernel's notice of each write (inotify), never by looking again and again.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use engine_api::ContainerState;
use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::mpsc;

use crate::answer::{Answer, Failure, streamed};
use crate::hijack::{STDERR, STDOUT, Wants, frame};
use crate::inspect::tail;
use crate::server::{Call, Shared};

/// The longest line that is read in one piece; the engine writes shorter ones.
const LINE_BYTES_MAX: usize = 256 * 1024;
const CHUNKS_WAITING: usize = 64;

/// What a client wants to see.
struct Selection {
    wants: Wants,
    timestamps: bool,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    tail: Option<usize>,
    follow: bool,
}

pub(crate) async fn logs(call: &Call, name: &str) -> Answer {
    let found = call.shared.find(name).await?;
    let query = &call.query;
    let selection = Selection {
        wants: Wants {
            stdin: false,
            stdout: query.flag("stdout"),
            stderr: query.flag("stderr"),
            terminal: found.container.spec.terminal,
        },
        timestamps: query.flag("timestamps"),
        since: time(query.text("since"))?,
        until: time(query.text("until"))?,
        tail: tail(query.text("tail"))?,
        follow: query.flag("follow") && !matches!(found.container.state, ContainerState::Exited { .. }),
    };
    if !selection.wants.stdout && !selection.wants.stderr {
        return Err(Failure::bad_request("Bad parameters: you must choose at least one stream"));
    }
    let content_type = selection.wants.content_type(call.version);
    let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
    let (shared, id, path) = (call.shared.clone(), found.id().to_owned(), found.container.log_path);
    call.ctx.spawn(async move {
        let log = Log { shared, id, selection, sender };
        if let Err(error) = log.send(&path).await {
            let _ = log.sender.send(Err(error)).await;
        }
    });
    Ok(streamed(content_type, tokio_stream::wrappers::ReceiverStream::new(receiver)))
}

/// Seconds since 1970 with an optional fraction; Docker's clients send nothing else.
fn time(text: &str) -> Result<Option<Timestamp>, Failure> {
    if matches!(text, "" | "0") {
        return Ok(None);
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let nanoseconds = format!("{fraction:0<9}");
    let parsed = seconds.parse().ok().zip(nanoseconds.get(..9).and_then(|digits| digits.parse().ok()));
    let time = parsed.and_then(|(seconds, nanoseconds)| Timestamp::new(seconds, nanoseconds).ok());
    time.map(Some).ok_or_else(|| Failure::bad_request(format!("not a time in seconds: {text:?}")))
}

struct Log {
    shared: Arc<Shared>,
    id: String,
    selection: Selection,
    sender: mpsc::Sender<io::Result<Bytes>>,
}

impl Log {
    async fn send(&self, path: &Path) -> io::Result<()> {
        // Watched before it is read, so that no write falls in between.
        let mut watch = if self.selection.follow { Some(Watch::new(path)?) } else { None };
        let mut last = VecDeque::new();
        let mut partial = Vec::new();
        for older in rotated(path).await {
            if let Some(file) = opened(&older).await? {
                self.read(&mut reader(file), &mut partial, &mut last).await?;
            }
        }
        // Before the start nothing is logged, maybe not even the file is there.
        let Some(file) = self.open(path, watch.as_mut()).await? else { return self.give_all(last).await };
        let mut current = reader(file);
        self.read(&mut current, &mut partial, &mut last).await?;
        self.give_all(last).await?;
        match watch {
            Some(watch) => self.follow(path, watch, current, partial).await,
            None => Ok(()),
        }
    }

    /// Reads what is there: given at once, or kept in `last` where only the end is wanted.
    async fn read(
        &self,
        reader: &mut BufReader<File>,
        partial: &mut Vec<u8>,
        last: &mut VecDeque<Bytes>,
    ) -> io::Result<()> {
        while let Some(line) = read_line(reader, partial).await? {
            let Some(chunk) = self.selection.show(&line) else { continue };
            match self.selection.tail {
                None => self.give(chunk).await?,
                Some(0) => {}
                Some(tail) => {
                    last.push_back(chunk);
                    if last.len() > tail {
                        last.pop_front();
                    }
                }
            }
        }
        Ok(())
    }

    async fn give_all(&self, chunks: VecDeque<Bytes>) -> io::Result<()> {
        for chunk in chunks {
            self.give(chunk).await?;
        }
        Ok(())
    }

    /// Opens the log; one that is followed is waited for until the container has ended.
    async fn open(&self, path: &Path, watch: Option<&mut Watch>) -> io::Result<Option<File>> {
        let Some(watch) = watch else { return opened(path).await };
        let ended = self.shared.runtime.wait_container(&self.id);
        tokio::pin!(ended);
        loop {
            if let Some(file) = opened(path).await? {
                watch.add(path)?;
                return Ok(Some(file));
            }
            tokio::select! {
                changed = watch.changed() => changed?,
                _ = &mut ended => return opened(path).await,
                () = self.sender.closed() => return Ok(None),
            }
        }
    }

    async fn follow(
        &self,
        path: &Path,
        mut watch: Watch,
        mut current: BufReader<File>,
        mut partial: Vec<u8>,
    ) -> io::Result<()> {
        let ended = self.shared.runtime.wait_container(&self.id);
        tokio::pin!(ended);
        let mut over = false;
        loop {
            // Asked before the rest is read: what is written to a log after it was moved away is nothing.
            let moved = !is_at(current.get_ref(), path).await?;
            while let Some(line) = read_line(&mut current, &mut partial).await? {
                if let Some(chunk) = self.selection.show(&line) {
                    self.give(chunk).await?;
                }
            }
            if moved && let Some(file) = opened(path).await? {
                watch.add(path)?;
                current = reader(file);
                continue;
            }
            if over {
                return Ok(());
            }
            tokio::select! {
                changed = watch.changed() => changed?,
                _ = &mut ended => over = true,
                () = self.sender.closed() => return Ok(()),
            }
        }
    }

    async fn give(&self, chunk: Bytes) -> io::Result<()> {
        let sent = self.sender.send(Ok(chunk)).await;
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client went away"))
    }
}

fn reader(file: File) -> BufReader<File> {
    BufReader::with_capacity(64 * 1024, file)
}

/// The older files of a log, the oldest first: the engine moves `log` to `log.1`, that to `log.2` and so on.
async fn rotated(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for number in 1.. {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        if !tokio::fs::try_exists(&name).await.unwrap_or(false) {
            break;
        }
        found.push(PathBuf::from(name));
    }
    found.reverse();
    found
}

/// Whether a path still means this open file.
async fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let here = file.metadata().await?;
    match tokio::fs::metadata(path).await {
        Ok(there) => Ok((here.dev(), here.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

async fn opened(path: &Path) -> io::Result<Option<File>> {
    match File::open(path).await {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The next whole line without its end; what has no end yet stays in `partial`.
async fn read_line(reader: &mut BufReader<File>, partial: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return Ok(None);
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(available.len());
        partial.extend_from_slice(&available[..taken]);
        let consumed = taken + usize::from(end.is_some());
        reader.consume(consumed);
        if end.is_some() || partial.len() > LINE_BYTES_MAX {
            return Ok(Some(std::mem::take(partial)));
        }
    }
}

impl Selection {
    /// A log line as the client sees it, if it wants it.
    fn show(&self, line: &[u8]) -> Option<Bytes> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (time, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
        let content = parts.next().unwrap_or_default();
        let tagged = if stream == b"stderr" { STDERR } else { STDOUT };
        let wanted = if tagged == STDERR { self.wants.stderr } else { self.wants.stdout };
        let at: Timestamp = std::str::from_utf8(time).ok()?.parse().ok()?;
        let early = self.since.is_some_and(|since| at < since);
        let late = self.until.is_some_and(|until| at > until);
        if !wanted || early || late {
            return None;
        }
        let mut out = Vec::with_capacity(line.len() + 1);
        if self.timestamps {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(content);
        if tag.starts_with(b"F") {
            out.push(b'\n');
        }
        Some(if self.wants.terminal { Bytes::from(out) } else { frame(tagged, &out) })
    }
}

/// The kernel's notices about one log.
struct Watch {
    events: EventStream<[u8; 4096]>,
}

impl Watch {
    fn new(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        // The directory tells of a log that is made or made anew.
        let directory = path.parent().unwrap_or(Path::new("/"));
        inotify.watches().add(directory, WatchMask::CREATE | WatchMask::MOVED_TO)?;
        let watch = Self { events: inotify.into_event_stream([0; 4096])? };
        match watch.add(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(watch),
        }
    }

    fn add(&self, path: &Path) -> io::Result<()> {
        let what = WatchMask::MODIFY | WatchMask::MOVE_SELF;
        self.events.watches().add(path, what).map(drop)
    }

    /// Returns when something was written since the last call.
    async fn changed(&mut self) -> io::Result<()> {
        match self.events.next().await {
            Some(event) => event.map(drop),
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection() -> Selection {
        Selection {
            wants: Wants { stdin: false, stdout: true, stderr: true, terminal: true },
            timestamps: false,
            since: None,
            until: None,
            tail: None,
            follow: false,
        }
    }

    #[test]
    fn lines_are_shown_as_asked() {
        let full = b"2024-01-01T00:00:05.5Z stdout F hello world";
        let show = |selection: Selection, line: &[u8]| selection.show(line).map(|chunk| chunk.to_vec());
        assert_eq!(show(selection(), full).unwrap(), b"hello world\n");
        assert_eq!(show(selection(), b"2024-01-01T00:00:05Z stdout P part").unwrap(), b"part");
        assert_eq!(show(selection(), b"2024-01-01T00:00:05Z stdout F ").unwrap(), b"\n");
        let stamped = Selection { timestamps: true, ..selection() };
        assert_eq!(show(stamped, full).unwrap(), b"2024-01-01T00:00:05.5Z hello world\n");
        let since = |text: &str| Selection { since: time(text).unwrap(), ..selection() };
        assert!(show(since("1704067205"), full).is_some());
        assert!(show(since("1704067206"), full).is_none());
        let only_errors = Selection { wants: Wants { stdout: false, ..selection().wants }, ..selection() };
        assert!(show(only_errors, full).is_none());
        let framed = Selection { wants: Wants { terminal: false, ..selection().wants }, ..selection() };
        let error = b"2024-01-01T00:00:05Z stderr F e";
        assert_eq!(show(framed, error).unwrap(), frame(STDERR, b"e\n"));
        assert!(show(selection(), b"no log line").is_none());
    }

    #[test]
    fn times_are_seconds_with_fractions() {
        assert_eq!(time("5.25").unwrap().unwrap(), Timestamp::new(5, 250_000_000).unwrap());
        assert_eq!(time("").unwrap(), None);
        assert!(time("yesterday").is_err());
        assert!(time("1.\u{e9}").is_err());
    }

    #[tokio::test]
    async fn a_watched_file_tells_of_each_write() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut watch = Watch::new(file.path()).unwrap();
        std::io::Write::write_all(&mut file.as_file(), b"x").unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(5), watch.changed()).await.unwrap().unwrap();
    }
}
