//! How much lies in the volumes of pods: directories walked without leaving them, as far as a bound. What a walk has found
//! counts for a minute, as upstream's period has it (`volumeStatsAggPeriod`); who asks at once with others may walk as
//! well. Blocks.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};

/// A walk counts for so long.
const FRESH: SignedDuration = SignedDuration::from_secs(60);
/// What has more files, or deeper directories, is not told of: pods decide how many there are.
const FILES_MAX: u64 = 100_000;
const DEPTH_MAX: u32 = 64;

/// What files take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Used {
    /// Blocks of the disk.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl Used {
    pub(crate) fn add(&mut self, more: Self) {
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.inodes = self.inodes.saturating_add(more.inodes);
    }
}

/// What walks have found.
#[derive(Default)]
pub(crate) struct Walks(Mutex<HashMap<String, Walk>>);

struct Walk {
    at: Timestamp,
    found: Option<Used>,
    asked: Timestamp,
}

impl Walks {
    /// What lies in a directory; `None` where that cannot be told. `who` is whose directory it is.
    pub(crate) fn used(&self, who: &str, directory: &Path, now: Timestamp) -> Option<Used> {
        if let Some(known) = self.0.lock().get_mut(who)
            && now.duration_since(known.at).abs() < FRESH
        {
            known.asked = now;
            return known.found;
        }
        // Not while others wait for the lock.
        let found = walk(directory);
        self.0.lock().insert(who.to_owned(), Walk { at: now, found, asked: now });
        found
    }

    /// Forgets those that nobody asked for at this moment: they are gone.
    pub(crate) fn keep(&self, now: Timestamp) {
        self.0.lock().retain(|_, known| known.asked == now);
    }
}

/// Everything in a directory and it itself, of its own file system only.
pub(crate) fn walk(directory: &Path) -> Option<Used> {
    let root = open(CWD, directory).ok()?;
    let stat = rustix::fs::fstat(&root).ok()?;
    let mut used = Used { bytes: blocks(&stat), inodes: 1 };
    add(&root, stat.st_dev, 0, &mut used)?;
    Some(used)
}

/// A directory and no link to one: whoever writes in it may put a link anywhere, at any time.
fn open(at: BorrowedFd<'_>, name: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

fn add(directory: &OwnedFd, device: u64, depth: u32, used: &mut Used) -> Option<()> {
    if depth > DEPTH_MAX {
        return None;
    }
    for entry in Dir::read_from(directory).ok()? {
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        // Gone meanwhile.
        let Ok(stat) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if stat.st_dev != device {
            continue;
        }
        used.inodes += 1;
        used.bytes = used.bytes.saturating_add(blocks(&stat));
        if used.inodes > FILES_MAX {
            return None;
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            use std::os::unix::ffi::OsStrExt as _;
            let name = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
            if let Ok(below) = open(directory.as_fd(), name) {
                add(&below, device, depth + 1, used)?;
            }
        }
    }
    Some(())
}

fn blocks(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_stays_in_its_directory_and_its_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("v");
        std::fs::create_dir_all(inside.join("a/b")).unwrap();
        std::fs::write(inside.join("a/b/file"), vec![1; 10_000]).unwrap();
        std::fs::write(dir.path().join("outside"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink(dir.path(), inside.join("link")).unwrap();
        let used = walk(&inside).unwrap();
        assert_eq!(used.inodes, 5);
        assert!((10_000..1 << 20).contains(&used.bytes), "{used:?}");
        assert_eq!(walk(&inside.join("link")), None);
        assert_eq!(walk(&inside.join("none")), None);
        let deep = (0..=DEPTH_MAX).fold(inside.join("deep"), |path, _| path.join("d"));
        std::fs::create_dir_all(deep).unwrap();
        assert_eq!(walk(&inside), None);
    }

    #[test]
    fn a_walk_counts_for_a_minute() {
        let dir = tempfile::tempdir().unwrap();
        let (walks, at) = (Walks::default(), |seconds| Timestamp::from_second(seconds).unwrap());
        let inodes = |second| walks.used("v", dir.path(), at(second)).unwrap().inodes;
        assert_eq!(inodes(0), 1);
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!((inodes(59), inodes(60)), (1, 2));
        walks.keep(at(61));
        assert!(walks.0.lock().is_empty());
    }
}
