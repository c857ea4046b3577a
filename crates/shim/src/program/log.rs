//! A container's log in the CRI format, rotated by size.
//!
//! Format: `<RFC 3339 time with nanoseconds> <stdout|stderr> <F|P> <text>`, a line each; `P` marks a part of a line that
//! goes on in the next entry of its stream. Source: Kubernetes, design proposal "CRI log format".

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::streams::Stream;

/// The longest text of one entry, as container runtimes have it.
const MAX_TEXT: usize = 16 * 1024;

/// A disk may be full and not full with every line: so often it is told at most.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// An open log.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    max_bytes: u64,
    kept: u32,
    /// What each stream wrote after its last line end.
    partial: [Vec<u8>; 2],
    /// The rest of an entry of which a part has been written: it comes before anything else.
    owed: Vec<u8>,
    /// Bytes that were lost since the log could not be written; `None` while it can.
    lost: Option<u64>,
    /// When a loss was told last, and whether it is the one that lasts.
    told: Option<(Instant, bool)>,
    /// What is to be told of that.
    news: Option<String>,
}

impl Log {
    /// A log at `path`; the file and the directories above it are made by the first [`Log::open`].
    pub(crate) fn new(path: &Path, max_bytes: u64, kept: u32) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
            size: 0,
            max_bytes,
            kept,
            partial: [Vec::new(), Vec::new()],
            owed: Vec::new(),
            lost: None,
            told: None,
            news: None,
        }
    }

    /// What is to be told of a log that could not be written, once.
    pub(crate) fn take_news(&mut self) -> Option<String> {
        self.news.take()
    }

    /// Opens the file, again if it is open: after it was moved.
    pub(crate) fn open(&mut self) -> io::Result<()> {
        if let Some(parent) = self.path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let file = open(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Takes what a stream wrote. A log that cannot be written must not stop the container: the text is lost then.
    pub(crate) fn write(&mut self, stream: Stream, mut text: &[u8], now: Timestamp) {
        let mut entries = Vec::with_capacity(text.len() + 64);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = text.split_at(end);
            self.take(stream, line, now, &mut entries);
            let line = std::mem::take(&mut self.partial[stream.index()]);
            entry(&mut entries, stream, 'F', &line, now);
            text = &rest[1..];
        }
        self.take(stream, text, now, &mut entries);
        self.append(&entries);
    }

    /// Writes what a stream left without a line end, as a part: readers then add no line end either.
    pub(crate) fn end(&mut self, stream: Stream, now: Timestamp) {
        let partial = std::mem::take(&mut self.partial[stream.index()]);
        if !partial.is_empty() {
            let mut entries = Vec::new();
            entry(&mut entries, stream, 'P', &partial, now);
            self.append(&entries);
        }
    }

    /// Adds text without line ends to the stream's open line, writing parts where it grows too long.
    fn take(&mut self, stream: Stream, mut text: &[u8], now: Timestamp, entries: &mut Vec<u8>) {
        let partial = &mut self.partial[stream.index()];
        while partial.len() + text.len() > MAX_TEXT {
            let (head, rest) = text.split_at(MAX_TEXT - partial.len());
            partial.extend_from_slice(head);
            entry(entries, stream, 'P', partial, now);
            partial.clear();
            text = rest;
        }
        partial.extend_from_slice(text);
    }

    fn append(&mut self, entries: &[u8]) {
        if entries.is_empty() {
            return;
        }
        let rotates = self.size > 0 && self.size + entries.len() as u64 > self.max_bytes;
        if rotates && self.owed.is_empty() {
            self.rotate();
        }
        let mut text = std::mem::take(&mut self.owed);
        let begun = !text.is_empty();
        text.extend_from_slice(entries);
        let Some(file) = &mut self.file else { return };
        let (written, result) = write_most(file, &text);
        self.size += written as u64;
        match result {
            Ok(()) => self.is_written(),
            Err(error) => {
                let rest = &text[written..];
                // Readers may have seen the first part of an entry: it is completed before anything else comes.
                let within = if written == 0 { begun } else { text[written - 1] != b'\n' };
                let end = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |end| end + 1);
                self.owed = if within { rest[..end].to_vec() } else { Vec::new() };
                self.is_lost((rest.len() - self.owed.len()) as u64, &error);
            }
        }
    }

    fn is_lost(&mut self, bytes: u64, error: &io::Error) {
        if self.told.is_none_or(|(told, lasts)| !lasts && told.elapsed() >= TOLD_EVERY) {
            self.told = Some((Instant::now(), true));
            let path = self.path.display();
            self.news = Some(format!(
                "the log {path} cannot be written ({error}): what the container writes is lost"
            ));
        }
        self.lost = Some(self.lost.unwrap_or(0) + bytes);
    }

    fn is_written(&mut self) {
        let Some(bytes) = self.lost.take() else { return };
        if let Some((_, lasts @ true)) = &mut self.told {
            *lasts = false;
            let path = self.path.display();
            self.news = Some(format!("the log {path} is written again: about {bytes} bytes were lost"));
        }
    }

    /// Moves `log` to `log.1`, that to `log.2` and so on; the oldest goes. Where that fails, the same file goes on: longer
    /// than asked for, but nothing is lost.
    fn rotate(&mut self) {
        self.size = 0;
        let beside = |suffix: &str| {
            let mut name = self.path.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        };
        let numbered = |number: u32| beside(&format!(".{number}"));
        // The next file is there before anything is moved: on a full disk there may be none.
        let next = beside(".new");
        let Ok(file) = open(&next) else { return };
        for number in (1..self.kept).rev() {
            let _ = std::fs::rename(numbered(number), numbered(number + 1));
        }
        let moved = if self.kept > 0 { std::fs::rename(&self.path, numbered(1)) } else { Ok(()) };
        match moved.and_then(|()| std::fs::rename(&next, &self.path)) {
            Ok(()) => self.file = Some(file),
            Err(_) => drop(std::fs::remove_file(&next)),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().append(true).create(true).mode(0o640).open(path)
}

/// Writes as much as there is room for; answers how much that was.
fn write_most(file: &mut File, text: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < text.len() {
        match file.write(&text[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(length) => written += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

fn entry(entries: &mut Vec<u8>, stream: Stream, tag: char, text: &[u8], now: Timestamp) {
    // Writing into memory cannot fail.
    let _ = write!(entries, "{now:.9} {} {tag} ", stream.name());
    entries.extend_from_slice(text);
    entries.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(max_bytes: u64) -> (PathBuf, Log) {
        let name = format!("skiff-log-{}-{max_bytes}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&dir);
        let mut log = Log::new(&dir.join("0.log"), max_bytes, 2);
        log.open().unwrap();
        (dir, log)
    }

    #[test]
    fn entries_are_lines_with_time_stream_and_tag() {
        let (dir, mut log) = fresh(1 << 20);
        let now = Timestamp::UNIX_EPOCH;
        log.write(Stream::Stdout, b"one\ntw", now);
        log.write(Stream::Stderr, b"bad\n", now);
        log.write(Stream::Stdout, b"o\n\nrest", now);
        log.end(Stream::Stdout, now);
        let text = std::fs::read_to_string(dir.join("0.log")).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let time = "1970-01-01T00:00:00.000000000Z";
        let expected = ["stdout F one", "stderr F bad", "stdout F two", "stdout F ", "stdout P rest"];
        assert_eq!(text, expected.map(|line| format!("{time} {line}\n")).concat());
    }

    #[test]
    fn what_has_no_room_is_told_and_no_entry_is_torn() {
        let (dir, mut log) = fresh(1 << 21);
        // A pipe that nobody empties stands for the full disk: it takes as much as it holds.
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        log.file = Some(File::from(std::os::fd::OwnedFd::from(writer)));
        let now = Timestamp::UNIX_EPOCH;
        let line = [vec![b'x'; 99], vec![b'\n']].concat();
        while log.lost.is_none() {
            log.write(Stream::Stdout, &line.repeat(300), now);
        }
        assert!(log.take_news().unwrap().contains("is lost"));
        log.write(Stream::Stdout, &line, now);
        assert_eq!(log.take_news(), None, "it is told once");
        let mut text = vec![0; 1 << 20];
        let length = io::Read::read(&mut reader, &mut text).unwrap();
        text.truncate(length);
        log.write(Stream::Stdout, b"after\n", now);
        assert!(log.take_news().unwrap().contains("is written again"));
        log.file = None;
        io::Read::read_to_end(&mut reader, &mut text).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let text = String::from_utf8(text).unwrap();
        let whole = |line: &str| line.ends_with(&"x".repeat(99)) && line.len() == 99 + 40;
        let lines: Vec<&str> = text.lines().collect();
        let (last, first) = lines.split_last().unwrap();
        assert!(last.ends_with("stdout F after"), "{last}");
        assert!(first.iter().all(|line| whole(line)), "{first:?}");
    }

    #[test]
    fn long_lines_are_parts_and_logs_rotate() {
        let (dir, mut log) = fresh(40_000);
        log.write(Stream::Stdout, &vec![b'x'; 2 * MAX_TEXT + 5], Timestamp::UNIX_EPOCH);
        log.write(Stream::Stdout, b"\n", Timestamp::UNIX_EPOCH);
        for _ in 0..6 {
            log.write(Stream::Stdout, &vec![b'y'; MAX_TEXT - 1], Timestamp::UNIX_EPOCH);
            log.write(Stream::Stdout, b"\n", Timestamp::UNIX_EPOCH);
        }
        let mut names: Vec<_> = std::fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let sizes: Vec<u64> =
            names.iter().map(|name| std::fs::metadata(dir.join(name)).unwrap().len()).collect();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(names, ["0.log", "0.log.1", "0.log.2"]);
        assert!(sizes.iter().all(|size| *size <= 40_000), "{sizes:?}");
    }
}
