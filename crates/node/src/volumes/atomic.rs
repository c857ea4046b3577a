//! Writes a volume's files so that a reader sees either all of the old or all of the new: the files lie in a directory
//! named for the moment, `..data` points to it and is replaced by a rename, and the names that users see point through
//! `..data`. The layout is upstream's `AtomicWriter`, on which programs that watch such volumes rely.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

use super::payload::Payload;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Makes `target` hold exactly `payload`. Tells whether anything changed. `own` is applied to the new files before
/// anyone can see them.
pub(crate) fn write(
    target: &Path,
    payload: &Payload,
    now: Timestamp,
    own: &dyn Fn(&Path) -> io::Result<()>,
) -> io::Result<bool> {
    check(payload)?;
    let old = fs::read_link(target.join(DATA)).ok();
    let names: BTreeSet<String> = payload.keys().filter_map(|path| first(path)).collect();
    if let Some(old) = &old
        && holds(&target.join(old), payload)?
        && visible(target)? == names
    {
        return Ok(false);
    }
    let fresh = fresh_directory(target, now)?;
    fill(&fresh, payload)?;
    own(&fresh)?;
    let name = fresh.file_name().ok_or_else(|| io::Error::other("no name for the new files"))?;
    remove_if_there(&target.join(NEW_DATA))?;
    symlink(name, target.join(NEW_DATA))?;
    fs::rename(target.join(NEW_DATA), target.join(DATA))?;
    for name in &names {
        let link = target.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for name in visible(target)?.difference(&names) {
        remove_if_there(&target.join(name))?;
    }
    if let Some(old) = old.filter(|old| old.as_os_str() != name) {
        fs::remove_dir_all(target.join(old)).or_else(ignore_missing)?;
    }
    Ok(true)
}

/// Paths stay inside, and leave the names alone that the layout itself needs.
fn check(payload: &Payload) -> io::Result<()> {
    for path in payload.keys() {
        let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if path.is_empty() || path.starts_with("..") || !plain {
            let message = format!("invalid path \"{path}\": it must be relative and must not contain '..'");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
    }
    Ok(())
}

fn first(path: &str) -> Option<String> {
    path.split('/').next().map(str::to_owned)
}

/// The names that users see.
fn visible(target: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(target)? {
        if let Ok(name) = entry?.file_name().into_string()
            && !name.starts_with("..")
        {
            names.insert(name);
        }
    }
    Ok(names)
}

/// Whether a directory holds exactly the payload.
fn holds(directory: &Path, payload: &Payload) -> io::Result<bool> {
    let mut found = 0;
    let mut open = vec![PathBuf::new()];
    while let Some(relative) = open.pop() {
        let entries = match fs::read_dir(directory.join(&relative)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let path = relative.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                open.push(path);
                continue;
            }
            let Some(file) = path.to_str().and_then(|path| payload.get(path)) else { return Ok(false) };
            if fs::read(directory.join(&path))? != file.data {
                return Ok(false);
            }
            found += 1;
        }
    }
    Ok(found == payload.len())
}

fn fresh_directory(target: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let stamp = now.strftime("..%Y_%m_%d_%H_%M_%S.");
    for serial in 0..1000_u32 {
        let number = now.subsec_nanosecond().unsigned_abs().wrapping_add(serial);
        let path = target.join(format!("{stamp}{number}"));
        match fs::create_dir(&path) {
            Ok(()) => {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
                return Ok(path);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("no free name for the volume's new files"))
}

fn fill(directory: &Path, payload: &Payload) -> io::Result<()> {
    for (path, file) in payload {
        let path = directory.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(file.mode).open(&path)?;
        out.write_all(&file.data)?;
        // The mode at creation was cut by the umask.
        out.set_permissions(fs::Permissions::from_mode(file.mode))?;
        if let Some(uid) = file.uid {
            std::os::unix::fs::chown(&path, Some(uid), None)?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    fs::remove_file(path).or_else(ignore_missing)
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::super::payload::File;
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, text)| {
                ((*path).to_owned(), File { data: text.as_bytes().to_vec(), mode: 0o640, uid: None })
            })
            .collect()
    }

    fn put(target: &Path, files: &[(&str, &str)]) -> io::Result<bool> {
        write(target, &payload(files), Timestamp::now(), &|_| Ok(()))
    }

    #[test]
    fn files_appear_change_and_go_through_one_rename() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path();
        assert!(put(target, &[("a", "1"), ("d/b", "2")]).unwrap());
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(target.join("d/b")).unwrap(), "2");
        assert_eq!(fs::metadata(target.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_link(target.join("a")).unwrap(), Path::new("..data/a"));
        let before = fs::read_link(target.join(DATA)).unwrap();

        assert!(!put(target, &[("a", "1"), ("d/b", "2")]).unwrap(), "nothing to do");
        assert_eq!(fs::read_link(target.join(DATA)).unwrap(), before);

        // A file that is open keeps its content; a new reader sees the new one.
        let open = fs::File::open(target.join("a")).unwrap();
        assert!(put(target, &[("a", "3"), ("c", "4")]).unwrap());
        assert_eq!(io::read_to_string(open).unwrap(), "1");
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "3");
        assert!(!target.join("d").exists());
        assert!(!target.join(before).exists(), "old files are gone");
    }

    #[test]
    fn paths_cannot_leave_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/etc/x", "a/../../x", "..data", "", "a/./../b"] {
            assert!(put(dir.path(), &[(path, "1")]).is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_lost_link_is_repaired() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), &[("a", "1")]).unwrap();
        fs::remove_file(dir.path().join("a")).unwrap();
        assert!(put(dir.path(), &[("a", "1")]).unwrap());
        assert!(dir.path().join("a").exists());
    }
}
