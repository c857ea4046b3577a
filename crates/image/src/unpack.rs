//! Unpacks layers (into overlay form) and plain archives, never outside their root.
//!
//! Source: OCI image specification, "Image Layer Filesystem Changeset"; kernel documentation of overlayfs for the
//! form of whiteouts and opaque directories.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmodat,
    chownat, fchmod, fchown, fsetxattr, linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;
use sys::users::Ids;
use tar::EntryType;

use crate::Error;
use crate::entries::{Entries, Entry};
use crate::error::During;
use crate::overlay::opaque_xattr;
use crate::root::{Root, archive_path};

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
const PAX_XATTR: &str = "SCHILY.xattr.";

/// Who owns a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Unpacks one archive.
pub struct Unpack<'a> {
    root: &'a Root,
    /// Where in the root the archive's own root lies.
    base: PathBuf,
    /// The layers below, the topmost first, for the attributes of directories that the archive does not describe;
    /// `None` for a plain archive.
    below: Option<&'a [Root]>,
    owner: Option<Owner>,
    /// The ids that there are; others' files become root's.
    ids: Ids,
    /// Device nodes are not made in a user namespace, which may not; containerd leaves them out too.
    makes_devices: bool,
    directory_times: Vec<(PathBuf, Timespec)>,
    last_parent: Option<(PathBuf, OwnedFd)>,
    size_bytes: u64,
}

impl<'a> Unpack<'a> {
    /// A layer over those `below`, the topmost first.
    pub(crate) fn layer(root: &'a Root, below: &'a [Root]) -> Self {
        Self::new(root, PathBuf::new(), Some(below), None)
    }

    /// A plain archive into the directory `base`, which must exist; `owner` replaces those of the archive.
    pub fn archive(root: &'a Root, base: &Path, owner: Option<Owner>) -> Self {
        Self::new(root, crate::root::clean(base), None, owner)
    }

    fn new(root: &'a Root, base: PathBuf, below: Option<&'a [Root]>, owner: Option<Owner>) -> Self {
        let makes_devices = !sys::entrance::in_user_namespace();
        Self {
            root,
            base,
            below,
            owner,
            ids: Ids::own(),
            makes_devices,
            directory_times: Vec::new(),
            last_parent: None,
            size_bytes: 0,
        }
    }

    /// Unpacks an uncompressed archive. Answers the size of its files in bytes.
    pub fn run(mut self, archive: impl Read) -> Result<u64, Error> {
        let mut entries = Entries::new(archive);
        while let Some(entry) = entries.next().map_err(bad_archive)? {
            self.entry(&entry, entries.content())?;
        }
        // Last, because every change inside a directory moves its time. The innermost come last in an archive.
        for (path, mtime) in std::mem::take(&mut self.directory_times).iter().rev() {
            let directory = self.root.directory(path).during_on("open", path)?;
            utimensat(&directory, ".", &times(*mtime), AtFlags::empty())
                .during_on("set the time of", path)?;
        }
        Ok(self.size_bytes)
    }

    fn entry(&mut self, entry: &Entry, content: impl Read) -> Result<(), Error> {
        let attributes = Attributes::read(entry, self.owner, &self.ids)?;
        let path = archive_path(&entry.path).ok_or_else(|| outside(&entry.path))?;
        let Some(name) = path.file_name() else { return self.root_entry(&attributes) };
        let name = Path::new(name);
        let parent_path = self.base.join(path.parent().unwrap_or(Path::new("")));
        let path = self.base.join(&path);
        let parent = self.enter(&parent_path)?;
        if self.below.is_some() && name.as_os_str().as_bytes().starts_with(WHITEOUT) {
            let result = self.whiteout(&parent_path, &parent, name.as_os_str().as_bytes());
            self.last_parent = Some((parent_path, parent));
            return result.during_on("make a whiteout at", &path);
        }
        let kind = entry.kind();
        clear_way(&parent, name, kind == EntryType::Directory).during_on("replace", &path)?;
        match kind {
            EntryType::Directory => {
                self.directory(&parent, name, &path, &attributes).during_on("make", &path)?
            }
            EntryType::Char | EntryType::Block if !self.makes_devices => {}
            EntryType::Link => self.hard_link(entry, &parent, name)?,
            EntryType::Regular | EntryType::Continuous => {
                self.size_bytes +=
                    write_file(content, &parent, name, &attributes).during_on("write", &path)?;
            }
            _ => make_special(entry, &parent, name, &attributes).during_on("make", &path)?,
        }
        self.last_parent = Some((parent_path, parent));
        Ok(())
    }

    fn root_entry(&mut self, attributes: &Attributes) -> Result<(), Error> {
        let directory = self.root.directory(&self.base).during("open the root")?;
        attributes.apply_to_directory(&directory, Path::new(".")).during("set the root's attributes")?;
        self.directory_times.push((self.base.clone(), attributes.mtime));
        Ok(())
    }

    /// The directory that an entry goes to; made like that of the layers below where the archive has none.
    fn enter(&mut self, path: &Path) -> Result<OwnedFd, Error> {
        if let Some((last, fd)) = self.last_parent.take()
            && last == path
        {
            return Ok(fd);
        }
        if let Ok(fd) = self.root.directory(path) {
            return Ok(fd);
        }
        let below = self.below.unwrap_or_default();
        let owner = self.owner;
        let made = |path: &Path, parent: &OwnedFd, name: &std::ffi::OsStr| {
            let like = below.iter().find_map(|layer| {
                layer.stat_itself(path).ok().filter(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())
            });
            let (uid, gid, mode) = match (like, owner) {
                (Some(stat), _) => (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777),
                (None, Some(owner)) => (owner.uid, owner.gid, 0o755),
                (None, None) => (0, 0, 0o755),
            };
            chownat(
                parent,
                name,
                Some(Uid::from_raw(uid)),
                Some(Gid::from_raw(gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
            chmodat(parent, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
            io::Result::Ok(())
        };
        self.root.make_directories(path, made).during_on("make", path)?;
        self.root.directory(path).during_on("open", path)
    }

    /// Source: OCI image specification, "Whiteouts". They hide what lies below, never what this archive holds.
    fn whiteout(&self, parent_path: &Path, parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
        if name == WHITEOUT_OPAQUE {
            return make_opaque(&self.root.read_directory(parent_path)?);
        }
        if name.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        let hidden = Path::new(std::ffi::OsStr::from_bytes(&name[WHITEOUT.len()..]));
        if hidden.as_os_str().is_empty() || hidden == Path::new(".") || hidden == Path::new("..") {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a whiteout without a name"));
        }
        match statat(parent, hidden, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
                make_opaque(&self.root.read_directory(&parent_path.join(hidden))?)
            }
            Ok(_) => Ok(()),
            Err(_) => Ok(mknodat(
                parent,
                hidden,
                FileType::CharacterDevice,
                Mode::from_raw_mode(0o600),
                makedev(0, 0),
            )?),
        }
    }

    fn directory(
        &mut self,
        parent: &OwnedFd,
        name: &Path,
        path: &Path,
        attributes: &Attributes,
    ) -> io::Result<()> {
        match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            Err(error) if error != Errno::EXIST => return Err(error.into()),
            _ => {}
        }
        attributes.apply_to_directory(parent, name)?;
        self.directory_times.push((path.to_owned(), attributes.mtime));
        Ok(())
    }

    fn hard_link(&self, entry: &Entry, parent: &OwnedFd, name: &Path) -> Result<(), Error> {
        let raw = entry.link.as_deref().ok_or_else(|| bad("a hard link without a target"))?;
        let target = archive_path(raw).ok_or_else(|| outside(raw))?;
        let target = self.base.join(target);
        let (from, target_name) = self
            .root
            .parent(&target)
            .during_on("find the link target", &target)?
            .ok_or_else(|| bad("a hard link to the root"))?;
        linkat(&from, &target_name, parent, name, AtFlags::empty()).during_on("link to", &target)
    }
}

/// Takes an earlier entry of the same name away; directories stay for directories.
fn clear_way(parent: &OwnedFd, name: &Path, directory: bool) -> io::Result<()> {
    let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    match (FileType::from_raw_mode(stat.st_mode).is_dir(), directory) {
        (true, true) => Ok(()),
        (false, _) => Ok(unlinkat(parent, name, AtFlags::empty())?),
        (true, false) => std::fs::remove_dir_all(through(parent, name)),
    }
}

/// A path of the host to a name in an open directory.
fn through(directory: &OwnedFd, name: &Path) -> PathBuf {
    use std::os::fd::AsRawFd;
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name)
}

fn write_file(
    mut content: impl Read,
    parent: &OwnedFd,
    name: &Path,
    attributes: &Attributes,
) -> io::Result<u64> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(parent, name, flags, Mode::from_raw_mode(0o600))?);
    let written = io::copy(&mut content, &mut file)?;
    // The order matters: a change of owner clears set-id bits and capabilities.
    fchown(&file, Some(attributes.uid), Some(attributes.gid))?;
    fchmod(&file, attributes.mode)?;
    attributes.set_xattrs(&file)?;
    rustix::fs::futimens(&file, &times(attributes.mtime))?;
    Ok(written)
}

fn make_special(entry: &Entry, parent: &OwnedFd, name: &Path, attributes: &Attributes) -> io::Result<()> {
    let header = &entry.header;
    let device = || {
        let major = header.device_major()?.unwrap_or_default();
        io::Result::Ok(makedev(major, header.device_minor()?.unwrap_or_default()))
    };
    let private = Mode::from_raw_mode(0o600);
    match header.entry_type() {
        EntryType::Symlink => {
            let target = entry.link.as_deref().unwrap_or_default();
            symlinkat(Path::new(std::ffi::OsStr::from_bytes(target)), parent, name)?;
        }
        EntryType::Char => mknodat(parent, name, FileType::CharacterDevice, private, device()?)?,
        EntryType::Block => mknodat(parent, name, FileType::BlockDevice, private, device()?)?,
        EntryType::Fifo => mknodat(parent, name, FileType::Fifo, private, 0)?,
        other => {
            let message = format!("the archive holds an entry of unknown type {other:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
    }
    chownat(parent, name, Some(attributes.uid), Some(attributes.gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if header.entry_type() != EntryType::Symlink {
        chmodat(parent, name, attributes.mode, AtFlags::empty())?;
    }
    Ok(utimensat(parent, name, &times(attributes.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn make_opaque(directory: &OwnedFd) -> io::Result<()> {
    Ok(fsetxattr(directory, opaque_xattr(), b"y", XattrFlags::empty())?)
}

fn times(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ }, last_modification: mtime }
}

/// What an entry says about its file beside the content.
struct Attributes {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    mtime: Timespec,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Attributes {
    fn read(entry: &Entry, owner: Option<Owner>, ids: &Ids) -> Result<Self, Error> {
        let header = &entry.header;
        let fields = header.as_old();
        let mut uid = number(header.uid(), &fields.uid)?;
        let mut gid = number(header.gid(), &fields.gid)?;
        let mode = number(header.mode().map(u64::from), &fields.mode)? as u32 & 0o7777;
        let seconds = number(header.mtime(), &fields.mtime)?;
        let mut mtime = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 };
        let mut xattrs = Vec::new();
        for (key, value) in &entry.extensions {
            let Ok(key) = std::str::from_utf8(key) else { continue };
            let text = std::str::from_utf8(value).ok();
            match key {
                "uid" => uid = text.and_then(|text| text.parse().ok()).unwrap_or(uid),
                "gid" => gid = text.and_then(|text| text.parse().ok()).unwrap_or(gid),
                "mtime" => mtime = text.and_then(pax_time).unwrap_or(mtime),
                _ => {
                    if let Some(name) = key.strip_prefix(PAX_XATTR).filter(|name| is_portable_xattr(name)) {
                        xattrs.push((name.to_owned(), value.clone()));
                    }
                }
            }
        }
        let id = |id: u64| {
            u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| bad("a bad owner id"))
        };
        let owner = match owner {
            Some(owner) => owner,
            None => Owner { uid: id(uid)?, gid: id(gid)? },
        };
        let uid = Uid::from_raw(ids.user_or_root(owner.uid));
        let gid = Gid::from_raw(ids.group_or_root(owner.gid));
        Ok(Self { uid, gid, mode: Mode::from_raw_mode(mode), mtime, xattrs })
    }

    fn apply_to_directory(&self, parent: &OwnedFd, name: &Path) -> io::Result<()> {
        chownat(parent, name, Some(self.uid), Some(self.gid), AtFlags::SYMLINK_NOFOLLOW)?;
        chmodat(parent, name, self.mode, AtFlags::empty())?;
        if self.xattrs.is_empty() {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.set_xattrs(&openat(parent, name, flags, Mode::empty())?)
    }

    fn set_xattrs(&self, file: &impl AsFd) -> io::Result<()> {
        for (name, value) in &self.xattrs {
            match fsetxattr(file.as_fd(), name.as_str(), value, XattrFlags::empty()) {
                // Only capabilities change what a program may do; a file system may lack the rest.
                Err(Errno::NOTSUP) if name != "security.capability" => {}
                other => other?,
            }
        }
        Ok(())
    }
}

/// Attributes that belong to a file's meaning and not to the host: overlayfs's own would let an archive redirect
/// lookups, SELinux's name the host's policy.
pub(crate) fn is_portable_xattr(name: &str) -> bool {
    name == "security.capability" || (name.starts_with("user.") && !name.starts_with("user.overlay."))
}

/// A header's number; some writers leave fields blank where they mean zero.
fn number(parsed: io::Result<u64>, field: &[u8]) -> Result<u64, Error> {
    match parsed {
        Err(_) if field.iter().all(|byte| matches!(byte, 0 | b' ')) => Ok(0),
        other => other.map_err(bad_archive),
    }
}

/// A PAX time: seconds with an optional fraction.
fn pax_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut nanoseconds = 0;
    for place in 0..9 {
        let digit = fraction.as_bytes().get(place).copied().unwrap_or(b'0');
        nanoseconds = nanoseconds * 10 + i64::from(char::from(digit).to_digit(10)?);
    }
    let seconds: i64 = seconds.parse().ok()?;
    // A fraction counts away from zero, a nanosecond count upwards.
    match text.starts_with('-') && nanoseconds > 0 {
        true => Some(Timespec { tv_sec: seconds.checked_sub(1)?, tv_nsec: 1_000_000_000 - nanoseconds }),
        false => Some(Timespec { tv_sec: seconds, tv_nsec: nanoseconds }),
    }
}

fn bad(what: &str) -> Error {
    Error::Invalid(format!("the archive holds {what}"))
}

fn bad_archive(error: io::Error) -> Error {
    Error::io("read the archive", error)
}

fn outside(path: &[u8]) -> Error {
    Error::Invalid(format!("the archive's path {:?} leads out of it", String::from_utf8_lossy(path)))
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
