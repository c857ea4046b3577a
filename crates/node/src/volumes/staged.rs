//! Volumes that drivers have staged on the node, each in a directory of its own with a record beside it, which is on disk
//! before the driver is asked. Several pods may have one. Source: `pkg/volume/csi/csi_util.go` (`vol_data.json`).

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::csi::{Noted, unique_name};
use super::directories::ledger_in;
use super::ledger::{Entry, Ledger};

const RECORD: &str = "vol_data.json";
const MOUNT: &str = "globalmount";
/// Larger ones are not the node's.
const RECORD_MAX: u64 = 64 << 10;

/// What is noted of a staged volume, under upstream's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    volume_handle: String,
    driver_name: String,
    #[serde(rename = "specVolID", default)]
    volume: String,
    /// Present where the volume had to be attached.
    #[serde(rename = "attachmentID", default)]
    attachment: String,
}

impl Record {
    pub(super) fn new(driver: &str, handle: &str, entry: &Entry) -> Self {
        let attached_as = entry.csi.as_ref().and_then(|noted| noted.attached_as.clone());
        Self {
            volume_handle: handle.to_owned(),
            driver_name: driver.to_owned(),
            volume: entry.volume.clone(),
            attachment: attached_as.unwrap_or_default(),
        }
    }

    fn noted(self, staging: PathBuf) -> Noted {
        let Self { volume_handle: handle, driver_name: driver, attachment, .. } = self;
        let attached_as = (!attachment.is_empty()).then(|| unique_name(&driver, &handle));
        Noted { driver, handle, staging: Some(staging), attached_as }
    }
}

fn drivers(root: &Path) -> PathBuf {
    root.join(crate::root::PLUGINS).join("kubernetes.io/csi")
}

/// Where a volume is staged. Source: `makeDeviceMountPath`.
pub(crate) fn global_mount(root: &Path, driver: &str, handle: &str) -> PathBuf {
    let hash = format!("{:x}", Sha256::digest(handle.as_bytes()));
    drivers(root).join(driver).join(hash).join(MOUNT)
}

/// Makes the directory and notes, on disk, what it is for. Blocks.
pub(super) fn note(staging: &Path, record: &Record) -> io::Result<()> {
    let directory = staging.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::DirBuilder::new().recursive(true).mode(0o750).create(staging)?;
    let path = directory.join(RECORD);
    let bytes = serde_json::to_vec(record).map_err(io::Error::other)?;
    if fs::read(&path).is_ok_and(|known| known == bytes) {
        return Ok(());
    }
    sys::files::write_durable(&path, &bytes)
}

/// Removes what is left of a volume that is staged no more. A driver may have said that and left its mount; what lies in
/// the directory nevertheless is somebody's data, which is never removed. Blocks.
pub(super) fn forget(staging: &Path) -> io::Result<()> {
    let gone = |done: io::Result<()>| match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    for mounted in sys::mount::MountTable::own()?.below(staging) {
        sys::mount::unmount(&mounted)?;
    }
    gone(fs::remove_dir(staging))?;
    let directory = staging.parent().ok_or(io::ErrorKind::InvalidInput)?;
    gone(fs::remove_file(directory.join(RECORD)))?;
    gone(fs::remove_dir(directory))
}

/// Whether a pod on the node, other than `but`, has a volume, by what is noted of pods' volumes. Blocks.
pub(super) fn is_used(root: &Path, of: &Noted, but: &str) -> io::Result<bool> {
    let same = |noted: &Noted| noted.driver == of.driver && noted.handle == of.handle;
    for (uid, ledger) in ledgers(root)? {
        // Whose is unreadable may have it.
        if ledger?.entries().filter_map(|entry| entry.csi.as_ref()).any(same) && uid != but {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What is noted of the volumes of each pod. Blocks.
fn ledgers(root: &Path) -> io::Result<Vec<(String, io::Result<Ledger>)>> {
    let of = |pod: fs::DirEntry| {
        let uid = pod.file_name().to_string_lossy().into_owned();
        match Ledger::read(&ledger_in(&pod.path())) {
            // No pod has a file in place of its directory.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => (uid, Ok(Ledger::default())),
            read => (uid, read),
        }
    };
    Ok(entries(&root.join("pods"))?.into_iter().map(of).collect())
}

/// The volumes of drivers that pods have, and whether these are all: what cannot be read is told of, and keeps none of
/// the others. Blocks.
pub(crate) fn noted(root: &Path) -> io::Result<(Vec<Noted>, bool)> {
    let (mut found, mut whole) = (Vec::new(), true);
    for (uid, ledger) in ledgers(root)? {
        match ledger {
            Ok(ledger) => found.extend(ledger.entries().filter_map(|entry| entry.csi.clone())),
            Err(error) => {
                tracing::error!(uid, %error, "which volumes a pod has is not known");
                whole = false;
            }
        }
    }
    Ok((found, whole))
}

/// What is staged, by the records beside it, and whether that is all: what cannot be read is told of, and keeps none of
/// the others. Blocks.
pub(crate) fn staged(root: &Path) -> (Vec<Noted>, bool) {
    let (mut found, mut whole) = (Vec::new(), true);
    let mut unreadable = |path: &Path, error: io::Error| {
        tracing::warn!(path = %path.display(), %error, "which volumes are staged there is not known");
        whole = false;
    };
    let mut listed = |directory: &Path| {
        entries(directory).unwrap_or_else(|error| {
            unreadable(directory, error);
            Vec::new()
        })
    };
    let places = listed(&drivers(root));
    let places: Vec<PathBuf> =
        places.iter().flat_map(|driver| listed(&driver.path())).map(|volume| volume.path()).collect();
    for place in places {
        match read(&place) {
            Ok(record) => found.extend(record.map(|record| record.noted(place.join(MOUNT)))),
            Err(error) => unreadable(&place, error),
        }
    }
    (found, whole)
}

/// The record of what is staged at a place; nothing is, before there is one.
fn read(place: &Path) -> io::Result<Option<Record>> {
    let file = match fs::File::open(place.join(RECORD)) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        file => file?,
    };
    let bytes = sys::files::read_bounded(file, RECORD_MAX)?;
    serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other)
}

fn entries(directory: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.collect(),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_that_is_unreadable_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let pods = dir.path().join("pods");
        let of = Noted { driver: "d".into(), handle: "h".into(), ..Noted::default() };
        let ledger = json!({ "version": 1, "volumes": [{ "name": "data", "volume": "pv", "claim_uid": "cu",
            "path": "/x", "read_only": false, "csi": of }] });
        fs::create_dir_all(pods.join("u1")).unwrap();
        fs::write(ledger_in(&pods.join("u1")), ledger.to_string()).unwrap();
        fs::write(pods.join("file"), "").unwrap();
        assert_eq!(noted(dir.path()).unwrap(), (vec![of.clone()], true));
        assert!(is_used(dir.path(), &of, "u2").unwrap() && !is_used(dir.path(), &of, "u1").unwrap());
        fs::create_dir_all(pods.join("u2")).unwrap();
        fs::write(ledger_in(&pods.join("u2")), "{").unwrap();
        assert_eq!(noted(dir.path()).unwrap(), (vec![of.clone()], false));
        assert!(is_used(dir.path(), &of, "u1").is_err(), "it may be the other's");
    }

    fn entry() -> Entry {
        let entry =
            json!({ "name": "data", "volume": "pv", "claim_uid": "cu", "path": "/x", "read_only": false });
        serde_json::from_value(entry).unwrap()
    }

    #[test]
    fn a_record_that_is_unreadable_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let place = |handle: &str| global_mount(dir.path(), "d", handle);
        note(&place("good"), &Record::new("d", "good", &entry())).unwrap();
        let (found, whole) = staged(dir.path());
        assert_eq!((found.len(), whole), (1, true));
        let record = |handle: &str| place(handle).with_file_name(RECORD);
        for handle in ["cut", "large", "directory"] {
            fs::create_dir_all(place(handle)).unwrap();
        }
        fs::write(record("cut"), "{").unwrap();
        fs::write(record("large"), vec![b' '; 1 << 20]).unwrap();
        fs::create_dir(record("directory")).unwrap();
        assert_eq!(staged(dir.path()), (found.clone(), false));
        assert_eq!(found[0].handle, "good");
    }

    #[test]
    fn what_a_driver_has_left_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let place = global_mount(dir.path(), "d", "h");
        note(&place, &Record::new("d", "h", &entry())).unwrap();
        fs::write(place.join("db"), "kept").unwrap();
        assert!(forget(&place).is_err());
        assert_eq!(fs::read_to_string(place.join("db")).unwrap(), "kept");
        assert_eq!(staged(dir.path()).0.len(), 1, "it is still known");
        fs::remove_file(place.join("db")).unwrap();
        forget(&place).unwrap();
        forget(&place).unwrap();
        assert_eq!(staged(dir.path()), (Vec::new(), true));
    }
}
