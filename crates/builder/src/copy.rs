//! Writes files into an image's root. What is written is the same for the same files: times come from the sources,
//! and directories that only gained an entry keep theirs.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use image::Owner;
use image::root::{Root, clean};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat, chownat, fchmod,
    fchown, futimens, mknodat, openat, statat, symlinkat, unlinkat, utimensat,
};

use crate::Error;
use crate::tree::{Node, Source};

/// An image's root that files are written into.
pub(crate) struct Target<'a> {
    root: &'a Root,
    owner: Owner,
    /// Files belong to whom they belong where they come from.
    keeps_owners: bool,
    mode: Option<u32>,
    /// Directories with the time that they shall have in the end.
    times: BTreeMap<PathBuf, Timespec>,
}

impl<'a> Target<'a> {
    /// `mode` replaces the permissions of files and directories copied.
    pub(crate) fn new(root: &'a Root, owner: Owner, mode: Option<u32>) -> Self {
        Self { root, owner, keeps_owners: false, mode, times: BTreeMap::new() }
    }

    /// Lets files that are copied belong to whom they belong in the source: another image's have owners of their own.
    pub(crate) fn keep_owners(self) -> Self {
        Self { keeps_owners: true, ..self }
    }

    fn owner_of(&self, node: &Node) -> Owner {
        match self.keeps_owners {
            true => Owner { uid: node.stat.st_uid, gid: node.stat.st_gid },
            false => self.owner,
        }
    }

    /// Whether a path is a directory, maybe through links.
    pub(crate) fn is_directory(&self, path: &Path) -> bool {
        self.root.directory(&clean(path)).is_ok()
    }

    /// Makes a directory and those above it.
    pub(crate) fn make_directory(&mut self, path: &Path) -> Result<(), Error> {
        let path = clean(path);
        self.remember_existing(&path);
        let (owner, times) = (self.owner, &mut self.times);
        let made = |path: &Path, parent: &OwnedFd, name: &OsStr| {
            own(parent, name, owner)?;
            times.insert(path.to_owned(), Timespec { tv_sec: 0, tv_nsec: 0 });
            io::Result::Ok(())
        };
        self.root.make_directories(&path, made).map_err(|error| failed(&path, error))
    }

    /// Copies a node to a path; directories above it are made.
    pub(crate) fn copy(&mut self, source: &Source<'_>, node: &Node, path: &Path) -> Result<(), Error> {
        let path = clean(path);
        let fail = |error| failed(&path, error);
        match node.kind {
            FileType::Directory => {
                let is_new = !self.is_directory(&path);
                self.make_directory(&path)?;
                if is_new {
                    self.finish_directory(&path, node).map_err(fail)?;
                }
                Ok(())
            }
            FileType::RegularFile => {
                let content = source.root.file(&node.path).map_err(fail)?;
                let mode = self.mode.unwrap_or(node.stat.st_mode & 0o7777);
                self.write_as(&path, content, mode, mtime(node), self.owner_of(node))
            }
            FileType::Symlink => {
                let target = node.target.clone().unwrap_or_default();
                let (parent, name) = self.place(&path)?;
                symlinkat(&target, &parent, &name).map_err(|error| fail(error.into()))?;
                own(&parent, &name, self.owner_of(node)).map_err(fail)?;
                let times = times(mtime(node));
                utimensat(&parent, &name, &times, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|error| fail(error.into()))
            }
            FileType::Fifo => {
                let (parent, name) = self.place(&path)?;
                let mode = Mode::from_raw_mode(node.stat.st_mode & 0o7777);
                mknodat(&parent, &name, FileType::Fifo, mode, 0).map_err(|error| fail(error.into()))?;
                own(&parent, &name, self.owner_of(node)).map_err(fail)
            }
            // Devices and sockets of a context have no business in an image.
            _ => Ok(()),
        }
    }

    /// Writes a file; `mode` are its permissions.
    pub(crate) fn write(
        &mut self,
        path: &Path,
        content: impl Read,
        mode: u32,
        mtime: Timespec,
    ) -> Result<(), Error> {
        self.write_as(path, content, mode, mtime, self.owner)
    }

    fn write_as(
        &mut self,
        path: &Path,
        mut content: impl Read,
        mode: u32,
        mtime: Timespec,
        owner: Owner,
    ) -> Result<(), Error> {
        let path = clean(path);
        let (parent, name) = self.place(&path)?;
        let mut write = || -> io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(openat(&parent, &name, flags, Mode::from_raw_mode(0o600))?);
            io::copy(&mut content, &mut file)?;
            fchown(&file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
            fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?;
            Ok(futimens(&file, &times(mtime))?)
        };
        write().map_err(|error| failed(&path, error))
    }

    /// Gives directories their times; call it when everything is written.
    pub(crate) fn finish(self) -> Result<(), Error> {
        for (path, mtime) in self.times.iter().rev() {
            let set = || -> io::Result<()> {
                let directory = self.root.directory(path)?;
                Ok(utimensat(&directory, ".", &times(*mtime), AtFlags::empty())?)
            };
            set().map_err(|error| failed(path, error))?;
        }
        Ok(())
    }

    /// The directory and name to make something under, with whatever was there gone.
    fn place(&mut self, path: &Path) -> Result<(OwnedFd, std::ffi::OsString), Error> {
        let above = path.parent().unwrap_or(Path::new("")).to_owned();
        self.make_directory(&above)?;
        let fail = |error: io::Error| failed(path, error);
        let (parent, name) = self
            .root
            .parent(path)
            .map_err(fail)?
            .ok_or_else(|| Error::invalid("cannot copy a file over the root directory"))?;
        match statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
                return Err(Error::invalid(format!(
                    "cannot copy to non-directory: /{} is a directory",
                    path.display()
                )));
            }
            Ok(_) => unlinkat(&parent, &name, AtFlags::empty()).map_err(|error| fail(error.into()))?,
            Err(_) => {}
        }
        Ok((parent, name))
    }

    /// Notes the time of the innermost directory that exists on a path: it is about to gain an entry.
    fn remember_existing(&mut self, path: &Path) {
        for above in path.ancestors() {
            if self.times.contains_key(above) {
                return;
            }
            if let Ok(stat) = self.root.stat(above) {
                self.times.insert(above.to_owned(), modified(&stat));
                return;
            }
        }
    }

    fn finish_directory(&mut self, path: &Path, node: &Node) -> io::Result<()> {
        if let Some((parent, name)) = self.root.parent(path)? {
            let mode = self.mode.unwrap_or(node.stat.st_mode & 0o7777);
            own(&parent, &name, self.owner_of(node))?;
            chmodat(&parent, &name, Mode::from_raw_mode(mode), AtFlags::empty())?;
            self.times.insert(path.to_owned(), mtime(node));
        }
        Ok(())
    }
}

fn own(parent: &OwnedFd, name: &OsStr, owner: Owner) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    Ok(chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn mtime(node: &Node) -> Timespec {
    modified(&node.stat)
}

fn modified(stat: &rustix::fs::Stat) -> Timespec {
    Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}

fn times(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ }, last_modification: mtime }
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::io(format!("write /{}", path.display()), error)
}

/// `user[:group]` of `--chown`, by number or by name in the image's own files. A user without a group has the group
/// of the same number.
pub(crate) fn owner(root: &Root, text: &str) -> Result<Owner, Error> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let uid = id(root, "etc/passwd", user, "user")?;
    let gid = match group {
        None | Some("") => uid,
        Some(group) => id(root, "etc/group", group, "group")?,
    };
    Ok(Owner { uid, gid })
}

fn id(root: &Root, file: &str, name: &str, kind: &str) -> Result<u32, Error> {
    const FILE_BYTES_MAX: u64 = 1 << 20;
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let mut text = String::new();
    let read =
        root.file(Path::new(file)).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    let line = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found =
        line.filter(|fields| fields.first() == Some(&name)).find_map(|fields| fields.get(2)?.parse().ok());
    found
        .filter(|_| read.is_ok())
        .ok_or_else(|| Error::invalid(format!("unable to find {kind} {name} in the image's /{file}")))
}
