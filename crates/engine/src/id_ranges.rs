//! Ranges of the host's user and group ids for sandboxes with a user namespace: no two sandboxes have one in common, so
//! that who gets out of one is nobody to the other either. Source: KEP-127, `pkg/kubelet/userns/userns_manager.go`.
//!
//! A range that is taken is a file named by its number, with the sandbox's id in it. It is made before anything of the
//! sandbox and removed after everything of it, so that an engine that is killed in between leaves no range taken twice.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;

use engine_api::EngineError;
use shim::IdRange;

/// The ids of a sandbox, as upstream has it.
const COUNT: u32 = 65536;
/// The first id of the first range: beyond the ids of users, and of those of users' own namespaces (subuid(5)), in the
/// part that systemd leaves to containers.
const FIRST: u32 = 1 << 30;
/// How many ranges there are.
const RANGES: u32 = 8192;

/// The ranges, by the directory in which their files are.
#[derive(Debug)]
pub(crate) struct IdRanges {
    dir: PathBuf,
}

impl IdRanges {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Takes the first range that nobody has.
    pub(crate) fn take(&self, sandbox: &str) -> Result<IdRange, EngineError> {
        let failed = |error: io::Error| EngineError::internal("taking user ids", &error);
        std::fs::create_dir_all(&self.dir).map_err(failed)?;
        let taken: BTreeSet<u32> =
            self.files().map_err(failed)?.into_iter().map(|(number, _)| number).collect();
        for number in (0..RANGES).filter(|number| !taken.contains(number)) {
            let path = self.dir.join(number.to_string());
            match File::options().write(true).create_new(true).open(&path) {
                Ok(mut file) => {
                    if let Err(error) = file.write_all(sandbox.as_bytes()) {
                        // Else nobody's until the engine starts anew.
                        let _ = std::fs::remove_file(&path);
                        return Err(failed(error));
                    }
                    return Ok(IdRange { first: FIRST + number * COUNT, count: COUNT });
                }
                // Another sandbox has been faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Err(EngineError::conflict(format!("all {RANGES} ranges of user ids are taken: remove sandboxes")))
    }

    /// Gives a sandbox's range back, if it has one.
    pub(crate) fn free(&self, sandbox: &str) -> io::Result<()> {
        self.retain(|id| id != sandbox)
    }

    /// Gives back the ranges of sandboxes that are not kept. One without a sandbox was being taken when the engine ended.
    pub(crate) fn retain(&self, keep: impl Fn(&str) -> bool) -> io::Result<()> {
        for (_, path) in self.files()? {
            // Another removal may have been faster.
            let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
            let sandbox = match std::fs::read_to_string(&path) {
                Err(error) if gone(&error) => continue,
                read => read?,
            };
            if !keep(&sandbox) {
                match std::fs::remove_file(path) {
                    Err(error) if !gone(&error) => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn files(&self) -> io::Result<Vec<(u32, PathBuf)>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            if let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                files.push((number, entry.path()));
            }
        }
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_sandboxes_have_a_range_in_common() {
        let dir = tempfile::tempdir().unwrap();
        let ranges = IdRanges::new(dir.path().join("ranges"));
        ranges.free("nobody").unwrap();
        let first = |sandbox: &str| ranges.take(sandbox).unwrap().first;
        let (a, b) = (first("a"), first("b"));
        assert_eq!((a, b), (FIRST, FIRST + COUNT));
        assert!(FIRST.checked_add(RANGES * COUNT).is_some_and(|end| end < 1 << 31));
        // Another engine at the same place.
        let ranges = IdRanges::new(dir.path().join("ranges"));
        assert_eq!(ranges.take("c").unwrap().first, FIRST + 2 * COUNT);
        ranges.free("a").unwrap();
        assert_eq!(ranges.take("d").unwrap().first, a);
        // One that was being taken when the engine ended.
        std::fs::write(dir.path().join("ranges/9"), "").unwrap();
        ranges.retain(|sandbox| sandbox == "b").unwrap();
        assert_eq!(ranges.take("e").unwrap().first, FIRST);
        assert_eq!(ranges.take("f").unwrap().first, FIRST + 2 * COUNT);
        assert!(!dir.path().join("ranges/9").exists());
    }
}
