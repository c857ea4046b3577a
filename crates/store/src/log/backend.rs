//! Where the log's files live: a small trait, and its implementation over a real directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base::lock::FileLock;

/// The unit of `st_blocks`, whatever the file system's own is (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// A flat directory of files. Names are plain file names made by the log itself.
///
/// What a crash may do is what a disk may do: until [`LogFile::sync`] returns, any part of what was written to that
/// file may be missing; until [`Backend::sync_dir`] returns, any file created, renamed or removed may be as before.
pub trait Backend: Send + Sync + 'static {
    /// The names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// The first `limit` bytes of a file, or all of a shorter one.
    fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>>;
    /// Creates an empty file for writing; one of that name is emptied.
    fn create(&self, name: &str) -> io::Result<Box<dyn LogFile>>;
    /// Opens an existing file for writing.
    fn open(&self, name: &str) -> io::Result<Box<dyn LogFile>>;
    /// Renames a file, replacing one of the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// The bytes that the files take on the disk.
    fn size(&self) -> io::Result<u64>;
    /// Makes every creation, renaming and removal so far durable.
    fn sync_dir(&self) -> io::Result<()>;
}

/// A file open for writing.
pub trait LogFile: Send {
    /// Writes all of `data` at `offset` (bytes), beyond the end too.
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Cuts the file to `len` bytes.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
    /// Makes everything written so far durable, with the metadata needed to read it back.
    fn sync(&mut self) -> io::Result<()>;
}

/// Real files in one directory, locked against a second process for as long as this value lives.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
    /// Held for its lock.
    _lock: FileLock,
}

impl Files {
    /// The file whose lock says that the directory is in use. It holds no data.
    const LOCK: &str = "LOCK";

    /// Opens the directory, creating it (mode 0700) where it is missing.
    pub fn open(dir: impl AsRef<Path>) -> io::Result<Self> {
        let dir = dir.as_ref().to_owned();
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", dir.display()));
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(at)?;
        let lock = writable().create(true).truncate(false).open(dir.join(Self::LOCK)).map_err(at)?;
        let lock = FileLock::take(lock).map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => io::Error::new(
                error.kind(),
                format!("{} is in use by another process: stop it first", dir.display()),
            ),
            _ => at(error),
        })?;
        Ok(Self { dir, _lock: lock })
    }
}

/// How every file is opened: for writing, and readable by its owner only, as it holds Secrets.
fn writable() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

impl Backend for Files {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            // The log's own names are ASCII; anything else is not the log's.
            if let Some(name) = name.to_str().filter(|name| *name != Self::LOCK) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let file = File::open(self.dir.join(name))?;
        let len = file.metadata()?.len().min(limit);
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn LogFile>> {
        Ok(Box::new(writable().create(true).truncate(true).open(self.dir.join(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn LogFile>> {
        Ok(Box::new(writable().open(self.dir.join(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(name))
    }

    fn size(&self) -> io::Result<u64> {
        let mut size = 0;
        for entry in std::fs::read_dir(&self.dir)? {
            match entry?.metadata() {
                Ok(file) => size += file.blocks() * BLOCK_BYTES,
                // It went in this moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(size)
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

impl LogFile for File {
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}
