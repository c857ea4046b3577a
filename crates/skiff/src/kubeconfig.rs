//! The user's kubeconfig: Skiff's context is merged in and taken out without touching anything else.
//!
//! What Skiff put there carries an extension that says so, as kubeconfigs provide for it; an entry of the same name
//! without it is somebody else's, and stays.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, fchown};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_yaml_ng::{Mapping, Value};

/// The lists of a kubeconfig, and where the content of each one's entries is.
const LISTS: [(&str, &str); 3] = [("clusters", "cluster"), ("users", "user"), ("contexts", "context")];

/// The name of the extension in what is Skiff's.
const OWN: &str = "skiff";

/// Whether the context `name` can be merged into the file at `path`: it is a kubeconfig, and holds nobody else's
/// entry of that name. Touches nothing.
pub(crate) fn check(path: &Path, name: &str) -> Result<()> {
    let mut file = read(path)?;
    for (list, kind) in LISTS {
        let mut entries = list_of(&mut file, list, path)?.iter();
        if entries.any(|entry| is_named(entry, name) && !is_own(entry, kind)) {
            bail!(
                "{} has a {kind} {name:?} that is not Skiff's; choose another --name or --kubeconfig",
                path.display()
            );
        }
    }
    Ok(())
}

/// Merges the cluster, user and context of `ours` (a kubeconfig of one of each, all named `name`) into the file at
/// `path`. The current context is set only where there is none, or where it is ours already.
pub(crate) fn merge(path: &Path, name: &str, ours: &str) -> Result<()> {
    check(path, name)?;
    let mut file = read(path)?;
    let mut ours: Mapping = serde_yaml_ng::from_str(ours).context("own kubeconfig")?;
    for (list, kind) in LISTS {
        let entry = ours.get_mut(list).and_then(|entries| entries.get_mut(0));
        let mut entry = entry.with_context(|| format!("own kubeconfig has no {list}"))?.clone();
        let content = entry.get_mut(kind).and_then(Value::as_mapping_mut);
        content
            .with_context(|| format!("own kubeconfig has no {kind}"))?
            .insert("extensions".into(), own_mark());
        let entries = list_of(&mut file, list, path)?;
        entries.retain(|known| !is_named(known, name));
        entries.push(entry);
    }
    let current = file.get("current-context").and_then(Value::as_str).unwrap_or_default();
    if current.is_empty() {
        file.insert("current-context".into(), name.into());
    }
    write(path, &file)
}

/// Takes our cluster, user and context `name` out again. A file in which nothing is left goes as well.
pub(crate) fn remove(path: &Path, name: &str) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let mut file = read(path)?;
    let before = file.clone();
    for (list, kind) in LISTS {
        list_of(&mut file, list, path)?.retain(|known| !(is_named(known, name) && is_own(known, kind)));
    }
    let is_context = |entry: &Value| is_named(entry, name);
    let gone = !list_of(&mut file, "contexts", path)?.iter().any(is_context);
    if gone && file.get("current-context").and_then(Value::as_str) == Some(name) {
        file.insert("current-context".into(), "".into());
    }
    if file == before {
        return Ok(());
    }
    if says_nothing(&file) {
        return fs::remove_file(path).with_context(|| format!("remove {}", path.display()));
    }
    write(path, &file)
}

fn is_named(entry: &Value, name: &str) -> bool {
    entry.get("name").and_then(Value::as_str) == Some(name)
}

/// Whether an entry carries Skiff's mark.
fn is_own(entry: &Value, kind: &str) -> bool {
    let extensions =
        entry.get(kind).and_then(|content| content.get("extensions")).and_then(Value::as_sequence);
    extensions.is_some_and(|extensions| extensions.iter().any(|extension| is_named(extension, OWN)))
}

/// The extensions of what is Skiff's. Source: `NamedExtension` of client-go's `clientcmd/api/v1`.
fn own_mark() -> Value {
    let said = Mapping::from_iter([("provider".into(), OWN.into())]);
    let named = Mapping::from_iter([("name".into(), OWN.into()), ("extension".into(), said.into())]);
    Value::Sequence(vec![named.into()])
}

/// Whether a kubeconfig holds nothing beside what every one has.
fn says_nothing(file: &Mapping) -> bool {
    file.iter().all(|(key, value)| match (key.as_str(), value) {
        (Some("apiVersion" | "kind"), _) | (_, Value::Null) => true,
        (_, Value::String(text)) => text.is_empty(),
        (_, Value::Sequence(entries)) => entries.is_empty(),
        (_, Value::Mapping(entries)) => entries.is_empty(),
        _ => false,
    })
}

fn read(path: &Path) -> Result<Mapping> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let mut file =
        match serde_yaml_ng::from_str(&text).with_context(|| format!("{} is not YAML", path.display()))? {
            Value::Null => Mapping::new(),
            Value::Mapping(mapping) => mapping,
            _ => bail!(
                "{} is not a kubeconfig; move it away or choose another file with --kubeconfig",
                path.display()
            ),
        };
    file.entry("apiVersion".into()).or_insert_with(|| "v1".into());
    file.entry("kind".into()).or_insert_with(|| "Config".into());
    Ok(file)
}

fn list_of<'a>(file: &'a mut Mapping, list: &str, path: &Path) -> Result<&'a mut Vec<Value>> {
    let value = file.entry(list.into()).or_insert_with(|| Value::Sequence(Vec::new()));
    if value.is_null() {
        *value = Value::Sequence(Vec::new());
    }
    value.as_sequence_mut().with_context(|| format!("{}: {list} is not a list", path.display()))
}

/// Writes beside the file and renames: a crash leaves the old or the new one. It holds a private key, so a new one is
/// its owner's alone. Whoever had the file, or has the directory of a new one, has it afterwards: root may be running
/// this with a user's home directory.
fn write(path: &Path, file: &Mapping) -> Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_directory(directory).with_context(|| format!("create {}", directory.display()))?;
    // A link (dotfiles kept elsewhere) is followed, not replaced.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let text = serde_yaml_ng::to_string(file)?;
    let replace = || -> std::io::Result<()> {
        let beside = target.parent().unwrap_or(directory);
        let (owner, mode) = match fs::metadata(&target) {
            Ok(old) => (old.clone(), old.permissions().mode() & 0o777),
            Err(_) => (fs::metadata(beside)?, 0o600),
        };
        // Made anew under a name that nobody can foresee, readable by its owner alone.
        let mut out = tempfile::Builder::new().prefix(".skiff-").tempfile_in(beside)?;
        out.write_all(text.as_bytes())?;
        fchown(out.as_file(), Some(owner.uid()), Some(owner.gid()))?;
        out.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
        out.as_file().sync_all()?;
        out.persist(&target)?;
        Ok(())
    };
    replace().with_context(|| format!("write {}", target.display()))
}

/// Makes the directories that are missing; they belong to whom the first one belongs that is there.
fn make_directory(directory: &Path) -> std::io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
        return fs::create_dir(directory);
    };
    make_directory(parent)?;
    let owner = fs::metadata(parent)?;
    fs::create_dir(directory)?;
    chown(directory, Some(owner.uid()), Some(owner.gid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "apiVersion: v1\nkind: Config\nclusters:\n- name: skiff\n  cluster: {server: 'https://1.2.3.4:6443'}\nusers:\n- name: skiff\n  user: {}\ncontexts:\n- name: skiff\n  context: {cluster: skiff, user: skiff}\ncurrent-context: skiff\n";

    #[test]
    fn what_is_there_stays_and_what_is_ours_goes_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sub/config");
        let foreign = "apiVersion: v1\nkind: Config\nclusters:\n- name: work\n  cluster: {server: 'https://work'}\nusers: null\ncontexts: []\ncurrent-context: work\npreferences: {colors: true}\n";
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, foreign).unwrap();
        merge(&path, "skiff", OURS).unwrap();
        merge(&path, "skiff", OURS).unwrap();
        let merged = read(&path).unwrap();
        assert_eq!(merged["clusters"].as_sequence().unwrap().len(), 2);
        assert_eq!(merged["current-context"], Value::from("work"));
        assert_eq!(merged["preferences"]["colors"], Value::from(true));
        remove(&path, "skiff").unwrap();
        let left = read(&path).unwrap();
        assert_eq!(left["clusters"].as_sequence().unwrap().len(), 1);
        assert_eq!(left["current-context"], Value::from("work"));
    }

    #[test]
    fn a_new_file_is_private_and_selects_us() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        merge(&path, "skiff", OURS).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap()["current-context"], Value::from("skiff"));
        remove(&path, "skiff").unwrap();
        assert!(!path.exists(), "it was made for this context only");
    }

    #[test]
    fn something_else_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        fs::write(&path, "- a\n- b\n").unwrap();
        assert!(merge(&path, "skiff", OURS).unwrap_err().to_string().contains("--kubeconfig"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "- a\n- b\n");
    }

    const FOREIGN: &str = "clusters: [{name: skiff, cluster: {server: 'https://theirs'}}]\nusers: [{name: skiff, user: {token: t}}]\ncontexts: [{name: skiff, context: {cluster: skiff, user: skiff}}]\ncurrent-context: skiff\n";

    #[test]
    fn another_ones_context_of_the_same_name_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        fs::write(&path, FOREIGN).unwrap();
        for refused in [check(&path, "skiff").unwrap_err(), merge(&path, "skiff", OURS).unwrap_err()] {
            assert!(refused.to_string().contains("choose another --name or --kubeconfig"), "{refused}");
        }
        remove(&path, "skiff").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), FOREIGN);
        // Beside it another name has room, and what was merged may be merged again.
        let other = OURS.replace("skiff", "other");
        merge(&path, "other", &other).unwrap();
        check(&path, "other").unwrap();
        remove(&path, "other").unwrap();
        assert_eq!(read(&path).unwrap()["users"].as_sequence().unwrap().len(), 1);
        assert_eq!(read(&path).unwrap()["current-context"], Value::from("skiff"));
    }

    #[test]
    fn a_users_file_and_directory_stay_the_users() {
        let home = tempfile::tempdir().unwrap();
        chown(home.path(), Some(1234), Some(1235)).expect("tests run as root");
        let owner = |path: &Path| fs::metadata(path).map(|found| (found.uid(), found.gid())).unwrap();
        let path = home.path().join(".kube/config");
        merge(&path, "skiff", OURS).unwrap();
        assert_eq!((owner(path.parent().unwrap()), owner(&path)), ((1234, 1235), (1234, 1235)));
        chown(&path, Some(4321), Some(4322)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        merge(&path, "skiff", OURS).unwrap();
        assert_eq!(owner(&path), (4321, 4322));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let left = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 1, "nothing is left beside it");
    }
}
