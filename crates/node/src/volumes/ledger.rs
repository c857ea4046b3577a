//! What the node has begun with a pod's volumes that its own directories do not tell: written to disk, and synced, before
//! the first of them is set up. Whoever comes after a crash of the node, or of the machine, finds in it which volumes of
//! others the pod has, where they lie, and what there is to undo. A pod whose volumes are all its own has none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::csi::Noted;

/// Larger ones are not the node's.
const MAX_BYTES: u64 = 4 << 20;
const VERSION: u32 = 1;

/// The volumes of a pod that outlive it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ledger {
    version: u32,
    volumes: Vec<Entry>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Its name in the pod.
    pub(crate) name: String,
    /// The PersistentVolume.
    pub(crate) volume: String,
    /// The uid of the claim through which the pod has it.
    pub(crate) claim_uid: String,
    /// Where it lies on the host: within the pod's directories only what is mounted there, and is taken away first.
    pub(crate) path: PathBuf,
    /// The pod only reads it.
    pub(crate) read_only: bool,
    /// Containers use it as a device.
    #[serde(default)]
    pub(crate) device: bool,
    /// The driver that mounts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) csi: Option<Noted>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { version: VERSION, volumes: Vec::new() }
    }
}

impl Ledger {
    /// Reads a pod's ledger; there need not be one.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let bytes = sys::files::read_bounded(file, MAX_BYTES)?;
        let ledger: Self =
            serde_json::from_slice(&bytes).map_err(|error| unreadable(path, &error.to_string()))?;
        if ledger.version != VERSION {
            return Err(unreadable(path, "it is of another version of Skiff"));
        }
        Ok(ledger)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        self.volumes.iter().find(|entry| entry.name == name)
    }

    /// Whether a PersistentVolume is among them.
    pub(crate) fn has(&self, volume: &str) -> bool {
        self.volumes.iter().any(|entry| entry.volume == volume)
    }

    /// Notes a volume, in place of what was known under its name. Tells whether that is new.
    pub(crate) fn put(&mut self, entry: Entry) -> bool {
        match self.volumes.iter_mut().find(|known| known.name == entry.name) {
            Some(known) if *known == entry => false,
            Some(known) => {
                *known = entry;
                true
            }
            None => {
                self.volumes.push(entry);
                true
            }
        }
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.volumes.iter()
    }

    /// Forgets a volume. Tells whether it was known.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        let before = self.volumes.len();
        self.volumes.retain(|entry| entry.name != name);
        self.volumes.len() != before
    }

    /// Writes it whole: after this it is on disk, also if the machine loses its power.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        fs::create_dir_all(directory)?;
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        sys::files::write_durable(path, &bytes)?;
        // The name of the pod's directory may be new as well.
        directory.parent().map_or(Ok(()), |above| fs::File::open(above)?.sync_all())
    }
}

fn unreadable(path: &Path, why: &str) -> io::Error {
    let message = format!("{} cannot be read: {why}", path.display());
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, path: &str) -> Entry {
        Entry {
            name: name.to_owned(),
            volume: "pv".to_owned(),
            claim_uid: "u".to_owned(),
            path: path.into(),
            read_only: false,
            device: false,
            csi: None,
        }
    }

    #[test]
    fn what_was_written_is_read_and_half_of_it_never() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods/u1/volumes.json");
        assert_eq!(Ledger::read(&path).unwrap(), Ledger::default());
        let mut ledger = Ledger::default();
        assert!(ledger.put(entry("a", "/x")) && ledger.put(entry("b", "/y")));
        assert!(!ledger.put(entry("a", "/x")) && ledger.put(entry("a", "/z")));
        ledger.write(&path).unwrap();
        // A crash before the rename leaves the file aside.
        fs::write(path.with_extension("new"), "{").unwrap();
        let read = Ledger::read(&path).unwrap();
        assert_eq!(read, ledger);
        assert_eq!(read.get("a").unwrap().path, Path::new("/z"));
        for broken in ["", "{", r#"{"version":2,"volumes":[]}"#] {
            fs::write(&path, broken).unwrap();
            assert!(Ledger::read(&path).is_err(), "{broken}");
        }
    }
}
