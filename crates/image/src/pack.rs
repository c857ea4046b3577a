//! Packs what a snapshot holds over its layers into a layer archive: the same content gives the same bytes.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fgetxattr, flistxattr, major, minor, openat2,
    readlinkat, statat,
};
use rustix::io::Errno;
use tar::{EntryType, Header};

use crate::digest::Digest;
use crate::overlay::opaque_xattr;
use crate::root::Root;
use crate::unpack::is_portable_xattr;

/// The longest name and link target that fit a header's own field.
const FIELD_BYTES: usize = 100;
const XATTR_BYTES_MAX: usize = 64 * 1024;

/// A layer that was packed into the content store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedLayer {
    /// The archive's digest.
    pub digest: Digest,
    /// The archive's size in bytes.
    pub size_bytes: u64,
    /// The size of the files in it, in bytes.
    pub unpacked_bytes: u64,
    /// It holds nothing: no layer is needed.
    pub empty: bool,
}

/// What went into an archive.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Packed {
    pub(crate) unpacked_bytes: u64,
    pub(crate) entries: u64,
}

/// Writes the archive of an overlay's upper directory, without the empty files at `mount_points`.
pub(crate) fn pack<W: Write>(
    upper: &Root,
    mount_points: &BTreeSet<PathBuf>,
    out: W,
) -> io::Result<(Packed, W)> {
    let mut packer = Packer {
        upper,
        mount_points,
        tar: tar::Builder::new(out),
        links: HashMap::new(),
        packed: Packed::default(),
    };
    let mut waiting = Vec::new();
    packer.children(Path::new(""), &mut waiting)?;
    while let Some(path) = waiting.pop() {
        packer.entry(&path, &mut waiting)?;
    }
    Ok((packer.packed, packer.tar.into_inner()?))
}

struct Packer<'a, W: Write> {
    upper: &'a Root,
    mount_points: &'a BTreeSet<PathBuf>,
    tar: tar::Builder<W>,
    /// The first path of each file with several names.
    links: HashMap<(u64, u64), PathBuf>,
    packed: Packed,
}

impl<W: Write> Packer<'_, W> {
    /// Opens what a path is, following nothing: what runs in the container may change it while it is packed.
    fn open(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let strict = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat2(self.upper.as_fd(), path, flags, Mode::empty(), strict)?)
    }

    /// Adds a directory's entries to those that wait, so that the first by name comes next.
    fn children(&self, path: &Path, waiting: &mut Vec<PathBuf>) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in Dir::read_from(self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(std::ffi::OsString::from_vec(entry.file_name().to_bytes().to_vec()));
            }
        }
        names.sort_unstable();
        waiting.extend(names.into_iter().rev().map(|name| path.join(name)));
        Ok(())
    }

    fn entry(&mut self, path: &Path, waiting: &mut Vec<PathBuf>) -> io::Result<()> {
        let fd = match self.open(path, OFlags::PATH) {
            // It went away while we were busy.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let stat = statat(&fd, "", AtFlags::EMPTY_PATH)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if let (FileType::RegularFile, true) = (kind, stat.st_nlink > 1) {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)).cloned() {
                return self.append(
                    path,
                    &stat,
                    EntryType::Link,
                    Some(first.as_os_str().as_bytes()),
                    &[],
                    None,
                );
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        match kind {
            FileType::Directory => {
                let directory = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
                let xattrs = xattrs(&directory)?;
                self.append(path, &stat, EntryType::Directory, None, &xattrs, None)?;
                if is_opaque(&directory)? {
                    self.whiteout(&path.join(".wh..wh..opq"))?;
                }
                self.children(path, waiting)
            }
            FileType::RegularFile if stat.st_size == 0 && self.mount_points.contains(path) => Ok(()),
            FileType::RegularFile => {
                let file = File::from(self.open(path, OFlags::RDONLY | OFlags::NONBLOCK)?);
                let xattrs = xattrs(&file)?;
                self.packed.unpacked_bytes += u64::try_from(stat.st_size).unwrap_or_default();
                self.append(path, &stat, EntryType::Regular, None, &xattrs, Some(file))
            }
            FileType::Symlink => {
                let target = readlinkat(&fd, "", Vec::new())?;
                self.append(path, &stat, EntryType::Symlink, Some(target.to_bytes()), &[], None)
            }
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                let name = path.file_name().unwrap_or_default();
                let mut hidden = std::ffi::OsString::from(".wh.");
                hidden.push(name);
                self.whiteout(&path.with_file_name(hidden))
            }
            FileType::CharacterDevice => self.append(path, &stat, EntryType::Char, None, &[], None),
            FileType::BlockDevice => self.append(path, &stat, EntryType::Block, None, &[], None),
            FileType::Fifo => self.append(path, &stat, EntryType::Fifo, None, &[], None),
            // Sockets have no meaning without the process that listens.
            FileType::Socket | FileType::Unknown => Ok(()),
        }
    }

    fn whiteout(&mut self, path: &Path) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_mode(0o600);
        header.set_size(0);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_entry_type(EntryType::Regular);
        self.write(path, header, None, Vec::new(), io::empty())
    }

    fn append(
        &mut self,
        path: &Path,
        stat: &Stat,
        kind: EntryType,
        target: Option<&[u8]>,
        xattrs: &[(String, Vec<u8>)],
        content: Option<File>,
    ) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or_default());
        let size = if content.is_some() { u64::try_from(stat.st_size).unwrap_or_default() } else { 0 };
        header.set_size(size);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(major(stat.st_rdev))?;
            header.set_device_minor(minor(stat.st_rdev))?;
        }
        let extensions =
            xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone())).collect();
        match content {
            // A file that shrinks meanwhile is filled up: the header has promised its size.
            Some(file) => {
                let padded = io::Read::take(io::Read::chain(file, io::repeat(0)), size);
                self.write(path, header, target, extensions, padded)
            }
            None => self.write(path, header, target, extensions, io::empty()),
        }
    }

    /// Writes one entry; what does not fit its header goes into PAX records before it.
    fn write(
        &mut self,
        path: &Path,
        mut header: Header,
        target: Option<&[u8]>,
        mut extensions: Vec<(String, Vec<u8>)>,
        content: impl io::Read,
    ) -> io::Result<()> {
        let mut name = path.as_os_str().as_bytes().to_vec();
        if header.entry_type() == EntryType::Directory {
            name.push(b'/');
        }
        set_field(&mut header.as_old_mut().name, "path", &name, &mut extensions);
        if let Some(target) = target {
            set_field(&mut header.as_old_mut().linkname, "linkpath", target, &mut extensions);
        }
        header.set_cksum();
        if !extensions.is_empty() {
            extensions.sort();
            self.tar.append_pax_extensions(
                extensions.iter().map(|(key, value)| (key.as_str(), value.as_slice())),
            )?;
        }
        self.packed.entries += 1;
        self.tar.append(&header, content)
    }
}

fn set_field(
    field: &mut [u8; FIELD_BYTES],
    key: &str,
    value: &[u8],
    extensions: &mut Vec<(String, Vec<u8>)>,
) {
    if value.len() > FIELD_BYTES || !value.is_ascii() {
        extensions.push((key.to_owned(), value.to_vec()));
    }
    let fits = value.len().min(FIELD_BYTES);
    field[..fits].copy_from_slice(&value[..fits]);
}

fn is_opaque(directory: &impl AsFd) -> io::Result<bool> {
    let mut value = [0; 8];
    match fgetxattr(directory, opaque_xattr(), &mut value[..]) {
        Ok(length) => Ok(value[..length] == *b"y"),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The attributes that belong into a layer, sorted by name.
fn xattrs(file: &impl AsFd) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = vec![0; XATTR_BYTES_MAX];
    let length = match flistxattr(file, &mut names[..]) {
        Err(Errno::NOTSUP) => 0,
        other => other?,
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0) {
        let Some(name) = std::str::from_utf8(name).ok().filter(|name| is_portable_xattr(name)) else {
            continue;
        };
        let mut value = vec![0; XATTR_BYTES_MAX];
        match fgetxattr(file, name, &mut value[..]) {
            Ok(length) => found.push((name.to_owned(), value[..length].to_vec())),
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    found.sort();
    Ok(found)
}
