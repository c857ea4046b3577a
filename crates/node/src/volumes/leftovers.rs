//! Directories of pods on this node, found by their names: those of pods that are known nowhere else have to go.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// What there is of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leftover {
    pub(crate) uid: String,
    /// Directories of its logs.
    pub(crate) logs: Vec<PathBuf>,
}

/// Every pod that has directories below `roots`, or logs. Blocks. What cannot be read is left alone.
pub(crate) fn find(roots: &[PathBuf], logs: &Path) -> Vec<Leftover> {
    let mut found: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in roots.iter().flat_map(|root| directories(&root.join("pods"))) {
        if let Some(uid) = path.file_name().and_then(OsStr::to_str) {
            found.entry(uid.to_owned()).or_default();
        }
    }
    for path in directories(logs) {
        if let Some(uid) = path.file_name().and_then(OsStr::to_str).and_then(of_logs) {
            found.entry(uid.to_owned()).or_default().push(path.clone());
        }
    }
    found.into_iter().map(|(uid, logs)| Leftover { uid, logs }).collect()
}

/// The uid in the name of a pod's logs: `NAMESPACE_NAME_UID`.
fn of_logs(name: &str) -> Option<&str> {
    let mut parts = name.split('_');
    let uid = parts.nth(2)?;
    (parts.next().is_none() && !uid.is_empty()).then_some(uid)
}

fn directories(above: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(above).into_iter().flatten().flatten();
    // Links are nobody's pods.
    let own = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    own.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_found_by_their_directories_and_logs() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in
            ["data/pods/u1", "run/pods/u2", "logs/ns_web_u1", "logs/ns_db_u3", "logs/other", "logs/a_b_c_d"]
        {
            std::fs::create_dir_all(path(name)).unwrap();
        }
        std::fs::write(path("data/pods/file"), "").unwrap();
        std::os::unix::fs::symlink("/etc", path("data/pods/link")).unwrap();
        let found = find(&[path("data"), path("run")], &path("logs"));
        let wanted =
            [("u1", vec![path("logs/ns_web_u1")]), ("u2", vec![]), ("u3", vec![path("logs/ns_db_u3")])];
        let wanted = wanted.map(|(uid, logs)| Leftover { uid: uid.to_owned(), logs });
        assert_eq!(found, wanted);
        assert_eq!(find(&[path("none")], &path("none")), []);
    }
}
