//! How much lies in the volumes of pods: directories walked without leaving them, as far as a bound: who has more has at
//! least that. What a walk has found
//! counts for a minute, as upstream's period has it (`volumeStatsAggPeriod`); who asks at once with others may walk as
//! well. Blocks.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// A walk counts for so long.
const FRESH: SignedDuration = SignedDuration::from_secs(60);
/// How far a walk goes: pods decide how many files there are, and how deep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    files: u64,
    depth: u32,
}

impl Bounds {
    /// For who wants to show how much there is.
    const SHOWN: Self = Self { files: 100_000, depth: 64 };
    /// For who enforces limits: nobody gets around them by having many files, nor deep ones, as long as not more
    /// directories lie too deep than are held open ([`DEFERRED_MAX`]). Each level takes two descriptors.
    pub(crate) const ENFORCED: Self = Self { files: 1_000_000, depth: 64 };
}

impl Default for Bounds {
    fn default() -> Self {
        Self::SHOWN
    }
}

/// Directories that lie too deep to be walked at once: each is held open, and walked by itself afterwards. Where there are
/// more, not all is counted.
const DEFERRED_MAX: usize = 128;

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

/// What was counted, and whether that is all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) used: Used,
    whole: bool,
}

impl Counted {
    /// Everything; `None` where there is more than was counted.
    pub(crate) fn whole(self) -> Option<Used> {
        self.whole.then_some(self.used)
    }
}

/// What walks have found.
#[derive(Default)]
pub(crate) struct Walks {
    known: Mutex<HashMap<String, Walk>>,
    bounds: Bounds,
}

struct Walk {
    at: Timestamp,
    found: Option<Counted>,
    asked: Timestamp,
}

impl Walks {
    pub(crate) fn within(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// What lies in a directory; `None` where that cannot be told. `who` is whose directory it is.
    pub(crate) fn used(&self, who: &str, directory: &Path, now: Timestamp) -> Option<Counted> {
        if let Some(known) = self.known.lock().get_mut(who)
            && now.duration_since(known.at).abs() < FRESH
        {
            known.asked = now;
            return known.found;
        }
        // Not while others wait for the lock.
        let found = walk(directory, self.bounds);
        self.known.lock().insert(who.to_owned(), Walk { at: now, found, asked: now });
        found
    }

    /// Forgets those that nobody asked for at this moment: they are gone.
    pub(crate) fn keep(&self, now: Timestamp) {
        self.known.lock().retain(|_, known| known.asked == now);
    }
}

/// Everything in a directory and it itself, of its own file system only.
fn walk(directory: &Path, bounds: Bounds) -> Option<Counted> {
    let root = open(CWD, directory).ok()?;
    let stat = rustix::fs::fstat(&root).ok()?;
    let mut counted = Counted { used: Used { bytes: blocks(&stat), inodes: 1 }, whole: true };
    let mut deferred = vec![root];
    while let Some(next) = deferred.pop() {
        // What was not looked into may have been counted in part.
        if add(&next, stat.st_dev, bounds, &mut counted, &mut deferred).is_none() {
            counted.whole = false;
            break;
        }
    }
    Some(counted)
}

/// A directory and no link to one: whoever writes in it may put a link anywhere, at any time.
fn open(at: BorrowedFd<'_>, name: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

/// `None` once there are too many files; what lies too deep is left for later.
fn add(
    directory: &OwnedFd,
    device: u64,
    bounds: Bounds,
    counted: &mut Counted,
    deferred: &mut Vec<OwnedFd>,
) -> Option<()> {
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
        counted.used.add(Used { bytes: blocks(&stat), inodes: 1 });
        if counted.used.inodes > bounds.files {
            return None;
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            use std::os::unix::ffi::OsStrExt as _;
            let name = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
            match (bounds.depth.checked_sub(1), open(directory.as_fd(), name)) {
                // Gone meanwhile, or something else by now.
                (_, Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => {}
                (Some(depth), Ok(below)) => {
                    add(&below, device, Bounds { depth, ..bounds }, counted, deferred)?;
                }
                (None, Ok(below)) if deferred.len() < DEFERRED_MAX => deferred.push(below),
                (_, Err(_)) | (None, Ok(_)) => counted.whole = false,
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
        let walk = |path: &Path| super::walk(path, Bounds::SHOWN);
        let used = walk(&inside).unwrap().whole().unwrap();
        assert_eq!(used.inodes, 5);
        assert!((10_000..1 << 20).contains(&used.bytes), "{used:?}");
        assert_eq!(walk(&inside.join("link")), None);
        assert_eq!(walk(&inside.join("none")), None);
        let deep = (0..=Bounds::SHOWN.depth).fold(inside.join("deep"), |path, _| path.join("d"));
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("file"), vec![1; 10_000]).unwrap();
        let all = walk(&inside).and_then(Counted::whole).unwrap();
        assert!(
            all.bytes >= 20_000 && all.inodes == used.inodes + u64::from(Bounds::SHOWN.depth) + 3,
            "{all:?}"
        );
        assert_eq!(super::walk(&inside, Bounds::ENFORCED).and_then(Counted::whole), Some(all));
    }

    #[test]
    fn nobody_hides_files_by_having_them_deep() {
        let dir = tempfile::tempdir().unwrap();
        let bounds = Bounds { files: 10_000, depth: 1 };
        let deep = ["a", "b"].map(|branch| (0..10).fold(dir.path().join(branch), |path, _| path.join("d")));
        for deep in &deep {
            std::fs::create_dir_all(deep).unwrap();
            std::fs::write(deep.join("file"), vec![1; 10_000]).unwrap();
        }
        let used = walk(dir.path(), bounds).and_then(Counted::whole).unwrap();
        assert!(used.bytes >= 20_000 && used.inodes == 25, "{used:?}");
        // More than is held open at once: at least that is there.
        for number in 0..=DEFERRED_MAX {
            std::fs::create_dir(dir.path().join("a").join(number.to_string())).unwrap();
        }
        assert_eq!(walk(dir.path(), bounds).unwrap().whole(), None);
    }

    #[test]
    fn who_has_too_many_files_has_at_least_what_was_counted() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..10 {
            std::fs::write(dir.path().join(number.to_string()), vec![1; 4096]).unwrap();
        }
        let counted = walk(dir.path(), Bounds { files: 5, depth: 1 }).unwrap();
        assert_eq!((counted.whole(), counted.used.inodes), (None, 6));
        assert!(counted.used.bytes >= 5 * 4096, "{counted:?}");
        assert!(walk(dir.path(), Bounds { files: 11, depth: 1 }).and_then(Counted::whole).is_some());
    }

    #[test]
    fn a_walk_counts_for_a_minute() {
        let dir = tempfile::tempdir().unwrap();
        let (walks, at) = (Walks::default(), |seconds| Timestamp::from_second(seconds).unwrap());
        let inodes = |second| walks.used("v", dir.path(), at(second)).unwrap().used.inodes;
        assert_eq!(inodes(0), 1);
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!((inodes(59), inodes(60)), (1, 2));
        walks.keep(at(61));
        assert!(walks.known.lock().is_empty());
    }
}
