//! The log file: lines are appended; a file that is full is put aside under the time at which that happened, and old ones
//! go by age and number. Source: upstream's `--audit-log-*`, gopkg.in/natefinch/lumberjack (names of old files).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base::clock::SharedClock;
use jiff::{Timestamp, ToSpan};

use crate::protection::Audit;

const MEGABYTE: u64 = 1024 * 1024;
/// Megabytes of a file where nothing is said. Source: lumberjack's default.
const MEGABYTES: u32 = 100;
/// Of the names of old files, in UTC: upstream's are in local time only if asked.
const STAMP: &str = "%Y-%m-%dT%H-%M-%S.%3f";

/// A log.
pub(super) struct Log {
    out: Out,
    clock: SharedClock,
}

enum Out {
    Stdout,
    File(Rotated),
}

struct Rotated {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
    bytes_max: u64,
    days_max: u32,
    files_max: usize,
}

impl Log {
    /// Opens a log, to see at once whether it can be written.
    pub(super) fn open(path: &Path, options: &Audit, clock: SharedClock) -> io::Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self { out: Out::Stdout, clock });
        }
        let megabytes = if options.log_maxsize == 0 { MEGABYTES } else { options.log_maxsize };
        let mut rotated = Rotated {
            path: path.to_owned(),
            file: None,
            bytes: 0,
            bytes_max: u64::from(megabytes) * MEGABYTE,
            days_max: options.log_maxage,
            files_max: usize::try_from(options.log_maxbackup).unwrap_or(usize::MAX),
        };
        rotated.file()?;
        Ok(Self { out: Out::File(rotated), clock })
    }

    /// Appends whole lines. Blocks.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        match &mut self.out {
            Out::Stdout => io::stdout().lock().write_all(lines),
            Out::File(file) => file.append(lines, self.clock.now()),
        }
    }
}

impl Rotated {
    fn file(&mut self) -> io::Result<&mut File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                if let Some(parent) = self.path.parent() {
                    std::fs::create_dir_all(parent)?;
                }
                let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?;
                self.bytes = file.metadata()?.len();
                file
            }
        };
        Ok(self.file.insert(file))
    }

    fn append(&mut self, lines: &[u8], now: Timestamp) -> io::Result<()> {
        self.file()?;
        let more = lines.len() as u64;
        if self.bytes > 0
            && self.bytes.saturating_add(more) > self.bytes_max
            && let Err(error) = self.put_aside(now)
        {
            // A file that is too long is better than events that are nowhere.
            let path = self.path.display().to_string();
            tracing::error!(%error, path, "the audit log is not put aside and grows; is its directory writable?");
        }
        // A file that was taken away or a moment without room: opened anew and tried once more.
        self.write(lines).or_else(|_| {
            self.file = None;
            self.write(lines)
        })
    }

    /// Appends all or nothing.
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let file = self.file()?;
        let written = file.write_all(lines);
        let length = file.metadata().map(|file| file.len());
        match (written, length) {
            (Ok(()), length) => {
                self.bytes = length.unwrap_or(self.bytes + lines.len() as u64);
                Ok(())
            }
            (Err(error), _) => {
                let before = self.bytes;
                // What was begun goes; where it cannot, a reader meets half a line.
                let _ = self.file()?.set_len(before);
                Err(error)
            }
        }
    }

    fn put_aside(&mut self, now: Timestamp) -> io::Result<()> {
        self.file = None;
        let (stem, extension) = self.name();
        let stamp = now.strftime(STAMP);
        std::fs::rename(&self.path, self.path.with_file_name(format!("{stem}-{stamp}{extension}")))?;
        for old in self.surplus(now)? {
            std::fs::remove_file(old)?;
        }
        Ok(())
    }

    /// `audit` and `.log`.
    fn name(&self) -> (String, String) {
        let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let extension = self.path.extension().map(|extension| format!(".{}", extension.to_string_lossy()));
        (text(self.path.file_stem()), extension.unwrap_or_default())
    }

    /// The old files that are to go: those beyond the number, and those that are too old.
    fn surplus(&self, now: Timestamp) -> io::Result<Vec<PathBuf>> {
        let (stem, extension) = self.name();
        let directory =
            self.path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        let mut old: Vec<(String, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let stamp = name.strip_prefix(&format!("{stem}-")).and_then(|rest| rest.strip_suffix(&extension));
            let Some(stamp) = stamp else { continue };
            if jiff::civil::DateTime::strptime(STAMP, stamp).is_ok() {
                old.push((stamp.to_owned(), entry.path()));
            }
        }
        // The form of the stamps is such that their order is that of time.
        old.sort_by(|one, other| other.0.cmp(&one.0));
        let oldest = now.checked_sub((i64::from(self.days_max) * 24).hours());
        let oldest =
            oldest.ok().filter(|_| self.days_max > 0).map(|oldest| oldest.strftime(STAMP).to_string());
        let files_max = if self.files_max == 0 { usize::MAX } else { self.files_max };
        let goes = |(at, (stamp, _)): &(usize, (String, PathBuf))| {
            *at >= files_max || oldest.as_ref().is_some_and(|oldest| stamp < oldest)
        };
        Ok(old.into_iter().enumerate().filter(goes).map(|(_, (_, path))| path).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use base::clock::VirtualClock;

    use super::*;

    #[test]
    fn what_cannot_be_put_aside_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let clock = VirtualClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let options = Audit { log_maxsize: 1, ..Audit::default() };
        let mut log = Log::open(&path, &options, Arc::new(clock.clone())).unwrap();
        // Something is in the way of the old file's name.
        std::fs::create_dir_all(dir.path().join("audit-2026-01-01T00-00-00.000.log/x")).unwrap();
        let line = [vec![b'x'; 600 * 1024], vec![b'\n']].concat();
        for _ in 0..3 {
            log.append(&line).unwrap();
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 * line.len() as u64, "nothing is lost");
        clock.advance(Duration::from_secs(1));
        log.append(&line).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), line.len() as u64, "put aside when it can be");
    }

    #[test]
    fn full_files_are_put_aside_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/audit.log");
        let clock = VirtualClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let options = Audit { log_maxsize: 1, log_maxbackup: 3, log_maxage: 2, ..Audit::default() };
        let mut log = Log::open(&path, &options, Arc::new(clock.clone())).unwrap();
        std::fs::write(dir.path().join("logs/audit-notes.log"), "mine").unwrap();
        let line = [vec![b'x'; 600 * 1024], vec![b'\n']].concat();
        let files = || {
            let mut names: Vec<String> = std::fs::read_dir(dir.path().join("logs"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        for _ in 0..3 {
            log.append(&line).unwrap();
            clock.advance(Duration::from_secs(3600));
        }
        assert_eq!(
            files(),
            [
                "audit-2026-01-01T01-00-00.000.log",
                "audit-2026-01-01T02-00-00.000.log",
                "audit-notes.log",
                "audit.log"
            ]
        );
        for _ in 0..3 {
            log.append(&line).unwrap();
            clock.advance(Duration::from_secs(3600));
        }
        assert_eq!(files().len(), 5, "three old ones, the notes and the log: {:?}", files());
        clock.advance(Duration::from_secs(49 * 3600));
        log.append(&line).unwrap();
        assert_eq!(files().len(), 3, "the others were too old: {:?}", files());
        // A log that is there is gone on with.
        drop(log);
        let mut log = Log::open(&path, &options, Arc::new(clock)).unwrap();
        log.append(b"{}\n").unwrap();
        let length = std::fs::metadata(&path).unwrap().len();
        assert_eq!(length, line.len() as u64 + 3);
    }
}
