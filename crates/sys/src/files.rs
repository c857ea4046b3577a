//! Files: whole or not at all, and inside a container's root without a way out of it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};

/// Writes a file whole: under another name in the same directory, then renamed. Not synced: for state that a crash of
/// the machine may lose. Only its owner may read it.
pub fn write_atomic(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(name);
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(contents).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Writes a file whole, and so that it is on disk afterwards, also if the machine loses its power then: under another name
/// in the same directory, synced, renamed, and the directory synced. Only its owner may read it.
pub fn write_durable(path: &Path, contents: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = path.with_extension("new");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    let written = file.write_all(contents).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| std::fs::rename(&beside, path)) {
        let _ = std::fs::remove_file(&beside);
        return Err(error);
    }
    File::open(directory)?.sync_all()
}

/// A file of at most `max_bytes`; larger ones are an error.
pub fn read_bounded(file: File, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > max_bytes {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("larger than {max_bytes} bytes")));
    }
    Ok(contents)
}

/// Opens `path` for reading as a process would whose root is `root`: symbolic links and `..` lead nowhere outside
/// (openat2(2), `RESOLVE_IN_ROOT`).
pub fn open_in_root(root: &Path, path: &Path) -> io::Result<File> {
    let root = open_dir(root)?;
    let relative = path.strip_prefix("/").unwrap_or(path);
    // Not blocking: a pipe in the place of a file must not hold the caller.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::openat2(
        &root,
        relative,
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?;
    let file = File::from(file);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// Makes the directory `path` and those above it inside `root`, owned by `owner` where they are new, never outside.
pub fn create_dir_in_root(root: &Path, path: &Path, owner: (u32, u32)) -> io::Result<()> {
    let root = open_dir(root)?;
    let mut made = PathBuf::from(".");
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => continue,
            Component::Normal(name) => made.push(name),
            Component::ParentDir | Component::Prefix(_) => return Err(io::ErrorKind::InvalidInput.into()),
        }
        if open_path_in(&root, &made).is_ok() {
            continue;
        }
        let (Some(parent), Some(name)) = (made.parent(), made.file_name()) else { continue };
        let parent = open_path_in(&root, parent)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
                rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn open_path_in(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leads_out_of_a_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        std::fs::write(root.join("secret"), "inside").unwrap();
        std::os::unix::fs::symlink("../../../secret", root.join("etc/passwd")).unwrap();
        let file = open_in_root(&root, Path::new("/etc/passwd")).unwrap();
        assert_eq!(read_bounded(file, 100).unwrap(), b"inside");
        assert!(open_in_root(&root, Path::new("/etc")).is_err());
        std::os::unix::fs::symlink(dir.path().join("away"), root.join("link")).unwrap();
        assert!(create_dir_in_root(&root, Path::new("/link/x"), (0, 0)).is_err());
        assert!(!dir.path().join("away").exists());
        create_dir_in_root(&root, Path::new("/srv/a/b"), (7, 8)).unwrap();
        use std::os::unix::fs::MetadataExt;
        let made = std::fs::metadata(root.join("srv/a/b")).unwrap();
        assert_eq!((made.uid(), made.gid()), (7, 8));
    }

    #[test]
    fn bounds_hold() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_atomic(&path, b"1").unwrap();
        write_durable(&path, b"12345").unwrap();
        assert!(read_bounded(File::open(&path).unwrap(), 4).is_err());
        assert_eq!(read_bounded(File::open(&path).unwrap(), 5).unwrap(), b"12345");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let taken = dir.path().join("taken");
        std::fs::create_dir_all(taken.join("x")).unwrap();
        assert!(write_durable(&taken, b"1").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left beside it");
    }
}
