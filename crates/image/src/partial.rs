//! Content that has come in part: kept on disk by its digest, so that a download goes on where it ended, also in another
//! process.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedMutexGuard;

use crate::Error;
use crate::digest::Digest;
use crate::error::During;

/// What nobody has gone on with for so long is given up.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// So many are kept; older ones are given up.
const KEPT_MAX: usize = 64;
/// So many bytes are kept, and no more than a tenth of the disk; the oldest are given up first.
const KEPT_BYTES_MAX: u64 = 10 << 30;
const BUFFER_BYTES: usize = 256 * 1024;

/// The directory of content that has come in part, and who is at work on which.
#[derive(Debug)]
pub(crate) struct Partials {
    directory: PathBuf,
    bytes_max: u64,
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// The right to bring a piece of content from a registry: one at a time has it. Of each registry for itself: one that is
/// slow, or names content that is not its own, holds up nobody who asks another.
#[derive(Debug)]
pub(crate) struct Turn {
    /// The file's name.
    name: String,
    _held: OwnedMutexGuard<()>,
}

impl Partials {
    /// Opens the directory. Blocks.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        let directory = root.join("partial");
        fs::create_dir_all(&directory).during_on("create", &directory)?;
        let disk =
            rustix::fs::statvfs(&directory).map_err(io::Error::from).during_on("look at", &directory)?;
        let bytes_max = KEPT_BYTES_MAX.min(disk.f_blocks.saturating_mul(disk.f_frsize) / 10);
        let partials = Self { directory, bytes_max, turns: Mutex::default() };
        partials.sweep(SystemTime::now())?;
        Ok(partials)
    }

    /// Waits until nobody else brings this content from this registry.
    pub(crate) async fn turn(&self, registry: &str, digest: &Digest) -> Turn {
        let name = name(registry, digest);
        let turn = {
            let mut turns = self.turns.lock();
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(name.clone()).or_default().clone()
        };
        Turn { name, _held: turn.lock_owned().await }
    }

    /// What is there of a piece of content, which may be nothing. Blocks, as long as it takes to read that.
    pub(crate) fn begin(&self, turn: Turn) -> Result<Partial, Error> {
        self.sweep(SystemTime::now())?;
        let path = self.directory.join(&turn.name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut partial = Partial {
            file: file.during_on("open", &path)?,
            path: path.clone(),
            hash: Sha256::new(),
            bytes: 0,
            _turn: turn,
        };
        partial.read_on().during_on("read", &path)?;
        Ok(partial)
    }

    /// Gives up what is old or too much and that nobody works on.
    fn sweep(&self, now: SystemTime) -> Result<(), Error> {
        let mut idle = Vec::new();
        for entry in fs::read_dir(&self.directory).during_on("read", &self.directory)? {
            let entry = entry.during_on("read", &self.directory)?;
            let data = entry.metadata();
            let modified = data.as_ref().ok().and_then(|data| data.modified().ok());
            let bytes = data.map_or(0, |data| data.len());
            idle.push((modified.unwrap_or(SystemTime::UNIX_EPOCH), entry.path(), bytes));
        }
        idle.sort();
        let surplus = idle.len().saturating_sub(KEPT_MAX);
        let mut kept: u64 = idle.iter().map(|(_, _, bytes)| *bytes).sum();
        for (position, (modified, path, bytes)) in idle.into_iter().enumerate() {
            let old = now.duration_since(modified).is_ok_and(|age| age > AGE_MAX);
            if (old || position < surplus || kept > self.bytes_max) && !self.is_at_work(&path) {
                kept = kept.saturating_sub(bytes);
                match fs::remove_file(&path) {
                    // Somebody else has been faster.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => removed.during_on("remove", &path)?,
                }
            }
        }
        Ok(())
    }

    fn is_at_work(&self, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default();
        let turns = self.turns.lock();
        turns.iter().any(|(known, turn)| name == known.as_str() && Arc::strong_count(turn) > 1)
    }
}

/// The name of the file with what a registry has sent of a piece of content.
pub(crate) fn name(registry: &str, digest: &Digest) -> String {
    format!("{}-{}", digest.hex(), &Digest::of(registry.as_bytes()).hex()[..16])
}

/// Content that has come in part, and its running hash. Dropped, it stays on disk.
#[derive(Debug)]
pub(crate) struct Partial {
    file: File,
    path: PathBuf,
    hash: Sha256,
    bytes: u64,
    _turn: Turn,
}

impl Partial {
    /// How much has come.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes what the file holds into the hash: only what can be read back counts.
    fn read_on(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match self.file.read(&mut buffer)? {
                0 => return Ok(()),
                read => {
                    self.hash.update(&buffer[..read]);
                    self.bytes += read as u64;
                }
            }
        }
    }

    /// Adds what has come.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Begins anew.
    pub(crate) fn restart(&mut self) -> Result<(), Error> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.during_on("empty", &self.path)?;
        self.hash = Sha256::new();
        self.bytes = 0;
        Ok(())
    }

    /// Gives it up.
    pub(crate) fn discard(self) -> Result<(), Error> {
        fs::remove_file(&self.path).during_on("remove", &self.path)
    }

    /// The digest of what has come.
    pub(crate) fn digest(&self) -> Digest {
        Digest::from_hash(self.hash.clone())
    }

    /// The complete content, if it is the one that was asked for: its file, synced. What is another one is gone. Nobody
    /// else gets to the file as long as this is held.
    pub(crate) fn finish(&self, expected: &Digest) -> Result<&Path, Error> {
        let actual = self.digest();
        if actual != *expected {
            fs::remove_file(&self.path).during_on("remove", &self.path)?;
            return Err(Error::Digest { expected: expected.to_string(), actual: actual.to_string() });
        }
        self.file.sync_data().during("sync content")?;
        Ok(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_has_come_is_gone_on_with_and_what_is_wrong_is_dropped() {
        let root = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"hello world");
        let open = async || {
            let partials = Partials::open(root.path()).unwrap();
            let turn = partials.turn("registry.example", &digest).await;
            partials.begin(turn).unwrap()
        };
        open().await.append(b"hello ").unwrap();
        let mut partial = open().await;
        assert_eq!(partial.bytes(), 6);
        partial.append(b"world").unwrap();
        let path = partial.finish(&digest).unwrap().to_owned();
        drop(partial);
        assert_eq!(fs::read(&path).unwrap(), b"hello world");
        fs::write(&path, b"hello w0rld").unwrap();
        assert!(matches!(open().await.finish(&digest), Err(Error::Digest { .. })));
        assert!(!path.exists());
        let mut partial = open().await;
        partial.append(b"x").unwrap();
        partial.restart().unwrap();
        partial.append(b"hello world").unwrap();
        partial.finish(&digest).unwrap();
    }

    #[tokio::test]
    async fn what_takes_too_much_room_is_given_up_the_oldest_first() {
        let root = tempfile::tempdir().unwrap();
        let mut partials = Partials::open(root.path()).unwrap();
        assert!((1..=KEPT_BYTES_MAX).contains(&partials.bytes_max));
        partials.bytes_max = 100;
        let now = SystemTime::now();
        for (name, bytes, age) in [("a", 60, 3), ("b", 60, 2), ("c", 60, 1)] {
            let path = root.path().join("partial").join(name);
            fs::write(&path, vec![0; bytes]).unwrap();
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_modified(now - Duration::from_secs(age * 60)).unwrap();
        }
        let left = || {
            let entries = fs::read_dir(root.path().join("partial")).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        // When a further one is begun, which is none of those that go.
        let turn = partials.turn("registry.example", &Digest::of(b"x")).await;
        let mut held = partials.begin(turn).unwrap();
        assert_eq!((left().len(), left().contains(&"c".into())), (2, true));
        held.append(&[0; 200]).unwrap();
        partials.sweep(now).unwrap();
        assert_eq!(left().len(), 1, "what somebody works on stays");
    }

    #[tokio::test]
    async fn what_is_old_or_too_much_is_given_up_but_not_what_somebody_works_on() {
        let root = tempfile::tempdir().unwrap();
        let partials = Partials::open(root.path()).unwrap();
        let digest = Digest::of(b"x");
        let turn = partials.turn("registry.example", &digest).await;
        // Who asks another registry waits for nobody.
        drop(partials.turn("other.example", &digest).await);
        let mut held = partials.begin(turn).unwrap();
        held.append(b"x").unwrap();
        let count = || fs::read_dir(root.path().join("partial")).unwrap().count();
        for number in 0..KEPT_MAX + 5 {
            let name = Digest::of(number.to_string().as_bytes());
            fs::write(root.path().join("partial").join(name.hex()), b"").unwrap();
        }
        partials.sweep(SystemTime::now()).unwrap();
        assert!((KEPT_MAX..=KEPT_MAX + 1).contains(&count()), "{}", count());
        partials.sweep(SystemTime::now() + AGE_MAX + Duration::from_secs(3600)).unwrap();
        assert_eq!(count(), 1);
        drop(held);
        partials.sweep(SystemTime::now() + AGE_MAX + Duration::from_secs(3600)).unwrap();
        assert_eq!(count(), 0);
    }
}
