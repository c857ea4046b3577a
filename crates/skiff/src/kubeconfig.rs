//! The user's kubeconfig: Skiff's context is merged in and taken out without touching anything else.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_yaml_ng::{Mapping, Value};

/// Merges the cluster, user and context of `ours` (a kubeconfig of one of each, all named `name`) into the file at
/// `path`. The current context is set only where there is none, or where it is ours already.
pub(crate) fn merge(path: &Path, name: &str, ours: &str) -> Result<()> {
    let mut file = read(path)?;
    let ours: Mapping = serde_yaml_ng::from_str(ours).context("own kubeconfig")?;
    for list in ["clusters", "users", "contexts"] {
        let entry = ours.get(list).and_then(|entries| entries.get(0)).cloned();
        let entry = entry.with_context(|| format!("own kubeconfig has no {list}"))?;
        let entries = list_of(&mut file, list, path)?;
        entries.retain(|known| known.get("name").and_then(Value::as_str) != Some(name));
        entries.push(entry);
    }
    let current = file.get("current-context").and_then(Value::as_str).unwrap_or_default();
    if current.is_empty() {
        file.insert("current-context".into(), name.into());
    }
    write(path, &file)
}

/// Takes the cluster, user and context `name` out again. A file in which nothing is left goes as well.
pub(crate) fn remove(path: &Path, name: &str) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let mut file = read(path)?;
    let before = file.clone();
    for list in ["clusters", "users", "contexts"] {
        list_of(&mut file, list, path)?
            .retain(|known| known.get("name").and_then(Value::as_str) != Some(name));
    }
    if file.get("current-context").and_then(Value::as_str) == Some(name) {
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

/// Writes beside the file and renames: a crash leaves the old or the new one. It holds a private key, so 0600.
fn write(path: &Path, file: &Mapping) -> Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    // A link (dotfiles kept elsewhere) is followed, not replaced.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mode = fs::metadata(&target).map_or(0o600, |metadata| metadata.permissions().mode() & 0o777);
    let temporary = target.with_extension(format!("skiff-{}", std::process::id()));
    let mut out =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    out.write_all(serde_yaml_ng::to_string(file)?.as_bytes())?;
    out.set_permissions(fs::Permissions::from_mode(mode))?;
    out.sync_all()?;
    fs::rename(&temporary, &target).with_context(|| format!("write {}", target.display()))
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
}
