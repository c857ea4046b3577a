//! Who has which devices, on disk before the first container is started with them: a plugin is asked once for a pod, and
//! a node that comes back gives the same to a container that starts again. Source: `devicemanager/checkpoint`, whose file
//! has another form.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::book::OfPod;

/// Larger ones are not the node's.
const MAX_BYTES: u64 = 64 << 20;
const VERSION: u32 = 1;

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    version: u32,
    pub(super) resources: Vec<String>,
    pub(super) given: BTreeMap<String, OfPod>,
}

impl Checkpoint {
    pub(super) fn new(resources: Vec<String>, given: BTreeMap<String, OfPod>) -> Self {
        Self { version: VERSION, resources, given }
    }

    /// There need not be one.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let bytes = sys::files::read_bounded(file, MAX_BYTES)?;
        let read: Self = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
        if read.version == VERSION {
            Ok(read)
        } else {
            Err(io::Error::other("it is of another version of Skiff"))
        }
    }

    /// Writes it whole and on disk.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        sys::files::write_durable(path, &serde_json::to_vec(self).map_err(io::Error::other)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::book::Given;
    use super::*;

    #[test]
    fn what_was_given_is_known_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint");
        assert_eq!(Checkpoint::read(&path).unwrap(), Checkpoint::default());
        let given = Given { ids: ["a".to_owned()].into(), ..Given::default() };
        let of_pod: OfPod = [("main".to_owned(), [("e/x".to_owned(), given)].into())].into();
        let written = Checkpoint::new(vec!["e/x".to_owned()], [("u1".to_owned(), of_pod)].into());
        written.write(&path).unwrap();
        assert_eq!(Checkpoint::read(&path).unwrap(), written);
        fs::write(&path, "{").unwrap();
        assert!(Checkpoint::read(&path).is_err());
    }
}
