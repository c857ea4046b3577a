//! A backend in memory that records every operation: for tests, and for stores that need not outlive the process.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::{Backend, LogFile};

/// What identifies a file whatever its name, as an inode number does.
pub type FileId = usize;

/// One recorded operation, in the order in which they were done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// A name was given to a new, empty file.
    Create {
        /// The name.
        name: String,
        /// The new file.
        file: FileId,
    },
    /// Bytes were written.
    Write {
        /// The file.
        file: FileId,
        /// Where, in bytes.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
    /// A file was cut.
    Truncate {
        /// The file.
        file: FileId,
        /// Its new length in bytes.
        len: u64,
    },
    /// A file's content became durable.
    Sync {
        /// The file.
        file: FileId,
    },
    /// A file was renamed.
    Rename {
        /// Its old name.
        from: String,
        /// Its new name.
        to: String,
    },
    /// A name was removed.
    Remove {
        /// The name.
        name: String,
    },
    /// The names became durable.
    SyncDir,
}

/// The files, by name and content.
#[derive(Debug, Default)]
struct Disk {
    names: BTreeMap<String, FileId>,
    contents: Vec<Vec<u8>>,
    /// `None` where nobody wants to know.
    recorded: Option<Vec<Operation>>,
    /// After so many more operations that change something, every one fails, like this.
    fails_after: Option<(usize, io::ErrorKind)>,
}

/// A directory in memory. Clones share it, so that a store can be opened on it again.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    disk: Arc<Mutex<Disk>>,
}

impl Memory {
    /// An empty directory that keeps no record.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty directory that records what is done to it.
    pub fn recording() -> Self {
        let memory = Self::default();
        memory.disk.lock().recorded = Some(Vec::new());
        memory
    }

    /// A directory with these files, numbered in their order from 0, that records what is done to it.
    pub fn with_files(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let memory = Self::recording();
        {
            let mut disk = memory.disk.lock();
            for (name, content) in files {
                let file = disk.contents.len();
                disk.contents.push(content);
                disk.names.insert(name, file);
            }
        }
        memory
    }

    /// The files and their content.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let disk = self.disk.lock();
        disk.names.iter().map(|(name, file)| (name.clone(), disk.contents[*file].clone())).collect()
    }

    /// What was recorded so far.
    pub fn operations(&self) -> Vec<Operation> {
        self.disk.lock().recorded.clone().unwrap_or_default()
    }

    /// How many operations were recorded so far.
    pub fn recorded(&self) -> usize {
        self.disk.lock().recorded.as_ref().map_or(0, Vec::len)
    }

    /// Lets every operation that changes something fail, after `operations` more of them; `None` mends the disk.
    pub fn fail_after(&self, operations: Option<usize>) {
        self.disk.lock().fails_after = operations.map(|operations| (operations, io::ErrorKind::Other));
    }

    /// As [`Memory::fail_after`], for want of room.
    pub fn fill_after(&self, operations: Option<usize>) {
        self.disk.lock().fails_after = operations.map(|operations| (operations, io::ErrorKind::StorageFull));
    }
}

impl Disk {
    fn file(&self, name: &str) -> io::Result<FileId> {
        self.names.get(name).copied().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, name.to_owned()))
    }

    /// Does and records one operation.
    fn apply(&mut self, operation: Operation) -> io::Result<()> {
        match &mut self.fails_after {
            Some((0, kind)) => return Err(io::Error::new(*kind, "it fails (as the test asked)")),
            Some((left, _)) => *left -= 1,
            None => {}
        }
        match &operation {
            Operation::Create { name, file } => {
                self.contents.push(Vec::new());
                self.names.insert(name.clone(), *file);
            }
            Operation::Write { file, offset, data } => write_at(&mut self.contents[*file], *offset, data),
            Operation::Truncate { file, len } => {
                self.contents[*file].resize(usize::try_from(*len).unwrap_or(usize::MAX), 0);
            }
            Operation::Rename { from, to } => {
                let file = self.file(from)?;
                self.names.remove(from);
                self.names.insert(to.clone(), file);
            }
            Operation::Remove { name } => {
                self.file(name)?;
                self.names.remove(name);
            }
            Operation::Sync { .. } | Operation::SyncDir => {}
        }
        if let Some(recorded) = &mut self.recorded {
            recorded.push(operation);
        }
        Ok(())
    }
}

fn write_at(content: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let end = start.saturating_add(data.len());
    if content.len() < end {
        content.resize(end, 0);
    }
    content[start..end].copy_from_slice(data);
}

impl Backend for Memory {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.disk.lock().names.keys().cloned().collect())
    }

    fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let disk = self.disk.lock();
        let content = &disk.contents[disk.file(name)?];
        let len = content.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(content[..len].to_vec())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn LogFile>> {
        let mut disk = self.disk.lock();
        let file = disk.contents.len();
        disk.apply(Operation::Create { name: name.to_owned(), file })?;
        Ok(Box::new(Open { disk: self.disk.clone(), file }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn LogFile>> {
        let file = self.disk.lock().file(name)?;
        Ok(Box::new(Open { disk: self.disk.clone(), file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.lock().apply(Operation::Rename { from: from.to_owned(), to: to.to_owned() })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.lock().apply(Operation::Remove { name: name.to_owned() })
    }

    fn size(&self) -> io::Result<u64> {
        let disk = self.disk.lock();
        Ok(disk.names.values().map(|file| disk.contents[*file].len() as u64).sum())
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.disk.lock().apply(Operation::SyncDir)
    }
}

/// An open file.
struct Open {
    disk: Arc<Mutex<Disk>>,
    file: FileId,
}

impl LogFile for Open {
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.lock().apply(Operation::Write { file: self.file, offset, data: data.to_vec() })
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.disk.lock().apply(Operation::Truncate { file: self.file, len })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.lock().apply(Operation::Sync { file: self.file })
    }
}
