//! Which claims were prepared on this node, by whom and for whom: on disk, and synced, before a driver is asked for
//! anything. Source: `cm/dra/claiminfo.go` and `cm/dra/state`, whose file has another form.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Larger ones are not the node's.
const MAX_BYTES: u64 = 64 << 20;
const VERSION: u32 = 1;

/// A device that a driver has prepared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Given {
    /// Of which requests; none: of all.
    pub(crate) requests: Vec<String>,
    pub(crate) pool: String,
    pub(crate) device: String,
    /// How the runtime knows it.
    pub(crate) cdi: Vec<String>,
    /// Of a device that several have a share in.
    pub(crate) share: Option<String>,
}

/// A claim that is used here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Entry {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// Uids of the pods that use it.
    pub(crate) pods: BTreeSet<String>,
    /// What each driver has prepared.
    pub(crate) drivers: BTreeMap<String, Vec<Given>>,
    /// Every driver has, since the node began: a host that was down has lost what drivers tell the runtime.
    #[serde(skip)]
    pub(crate) prepared: bool,
}

impl Entry {
    pub(super) fn key(&self) -> ClaimKey {
        (self.namespace.clone(), self.name.clone())
    }
}

/// Namespace and name.
pub(super) type ClaimKey = (String, String);

/// Every claim that is used here.
#[derive(Debug, Default)]
pub(super) struct Book {
    claims: BTreeMap<ClaimKey, Entry>,
}

#[derive(Serialize, Deserialize)]
struct Checkpoint {
    version: u32,
    claims: Vec<Entry>,
}

impl Book {
    /// A pod is to use a claim. Answers it as it is known.
    pub(super) fn uses(&mut self, claim: &Entry, pod: &str) -> Result<Entry, String> {
        let known = self.claims.entry(claim.key()).or_insert_with(|| claim.clone());
        if known.uid != claim.uid {
            return Err(format!(
                "old ResourceClaim with same name {} and different UID {} still exists (previous pod force-deleted?!)",
                claim.name, known.uid
            ));
        }
        known.pods.insert(pod.to_owned());
        Ok(known.clone())
    }

    /// What drivers have prepared of a claim.
    pub(super) fn prepared(&mut self, key: &ClaimKey, drivers: BTreeMap<String, Vec<Given>>) {
        if let Some(known) = self.claims.get_mut(key) {
            known.drivers = drivers;
            known.prepared = true;
        }
    }

    /// Drivers are about to take a claim back, and not all of them may: who uses it next has it prepared again.
    pub(super) fn doubt(&mut self, key: &ClaimKey) {
        if let Some(known) = self.claims.get_mut(key) {
            known.prepared = false;
        }
    }

    pub(super) fn get(&self, key: &ClaimKey) -> Option<&Entry> {
        self.claims.get(key)
    }

    /// The claims that a pod uses.
    pub(super) fn of_pod(&self, uid: &str) -> Vec<Entry> {
        self.claims.values().filter(|claim| claim.pods.contains(uid)).cloned().collect()
    }

    /// Whether a pod uses claims.
    pub(super) fn holds(&self, uid: &str) -> bool {
        self.claims.values().any(|claim| claim.pods.contains(uid))
    }

    /// The pods that use claims.
    pub(super) fn pods(&self) -> BTreeSet<String> {
        self.claims.values().flat_map(|claim| claim.pods.iter().cloned()).collect()
    }

    /// The pods that use claims of a driver.
    pub(super) fn pods_of(&self, driver: &str) -> BTreeSet<String> {
        let of_driver = self.claims.values().filter(|claim| claim.drivers.contains_key(driver));
        of_driver.flat_map(|claim| claim.pods.iter().cloned()).collect()
    }

    /// A pod uses a claim no more; nobody's claim is forgotten.
    pub(super) fn leaves(&mut self, key: &ClaimKey, pod: &str) {
        if let Some(known) = self.claims.get_mut(key) {
            known.pods.remove(pod);
            if known.pods.is_empty() {
                self.claims.remove(key);
            }
        }
    }

    /// The book as it stands, to be written.
    pub(super) fn as_bytes(&self) -> io::Result<Vec<u8>> {
        let claims = self.claims.values().cloned().collect();
        serde_json::to_vec(&Checkpoint { version: VERSION, claims }).map_err(io::Error::other)
    }

    /// There need not be a file.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let bytes = sys::files::read_bounded(file, MAX_BYTES)?;
        let read: Checkpoint = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
        if read.version != VERSION {
            return Err(io::Error::other("it is of another version of Skiff"));
        }
        Ok(Self { claims: read.claims.into_iter().map(|claim| (claim.key(), claim)).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(uid: &str) -> Entry {
        let drivers = [("d".to_owned(), Vec::new())].into();
        Entry { namespace: "ns".into(), name: "c".into(), uid: uid.into(), drivers, ..Entry::default() }
    }

    #[test]
    fn a_claim_is_known_as_long_as_a_pod_uses_it() {
        let mut book = Book::default();
        let key = entry("u").key();
        assert!(!book.uses(&entry("u"), "p1").unwrap().prepared);
        let given = Given { device: "gpu0".into(), cdi: vec!["d/c=0".into()], ..Given::default() };
        book.prepared(&key, [("d".to_owned(), vec![given.clone()])].into());
        assert!(book.uses(&entry("u"), "p2").unwrap().prepared);
        assert!(book.uses(&entry("other"), "p3").unwrap_err().contains("different UID u still exists"));
        assert_eq!(book.pods_of("d"), ["p1".to_owned(), "p2".to_owned()].into());
        assert!(book.pods_of("e").is_empty());

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("claims");
        sys::files::write_durable(&path, &book.as_bytes().unwrap()).unwrap();
        let read = Book::read(&path).unwrap();
        let known = read.get(&key).unwrap();
        assert_eq!((known.prepared, &known.drivers["d"][0]), (false, &given), "drivers are asked again");
        fs::write(&path, "{").unwrap();
        assert!(Book::read(&path).is_err());
        assert!(Book::read(&dir.path().join("none")).unwrap().pods().is_empty());

        book.leaves(&key, "p1");
        assert_eq!(book.of_pod("p2").len(), 1);
        book.doubt(&key);
        let again = book.uses(&entry("u"), "p4").unwrap();
        assert_eq!((again.prepared, &again.drivers["d"][0]), (false, &given));
        book.leaves(&key, "p4");
        book.leaves(&key, "p2");
        assert!(book.get(&key).is_none() && book.pods().is_empty());
    }
}
