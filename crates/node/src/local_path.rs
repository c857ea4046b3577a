//! Directories of this node that are volumes of their own (`reconcile::local_path`): made when a pod first uses one, removed
//! when the controller says that nobody has the volume any more. They lie beside the pods' directories, never within.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::{Key, ObjectMeta, PatchType};
use jiff::Timestamp;
use reconcile::local_path::{REMOVE, REMOVED, is_directory_of, removal, volumes};
use reconcile::{EventType, Involved, kinds};
use serde::Deserialize;
use serde_json::json;
use sys::removal::remove_tree;
use tokio::sync::Notify;

use crate::config::Config;
use crate::deps::{Deps, blocking};
use crate::volumes::ledger::Ledger;
use crate::worker::ops::REMOVE_BACKOFF;

/// What caches keep only within the object.
#[derive(Deserialize)]
struct Head {
    metadata: ObjectMeta,
}

/// Where they lie.
pub(crate) fn root(config: &Config) -> PathBuf {
    config.data_dir.join("local-path")
}

/// Removes the directories that this node is asked to remove, until it is dropped.
pub(crate) async fn keep(deps: Arc<Deps>) {
    let key = Key::new("", deps.config.node_name.clone());
    let told = Arc::new(Notify::new());
    let (own, teller) = (key.clone(), told.clone());
    let _registration = deps.caches.nodes.on_change(move |change| {
        if change.key == own {
            teller.notify_one();
        }
    });
    let mut failures = 0;
    loop {
        failures = if remove_asked(&deps, &key).await { 0 } else { failures + 1 };
        let again = deps.now().saturating_add(REMOVE_BACKOFF.delay(failures)).unwrap_or(Timestamp::MAX);
        tokio::select! {
            () = told.notified() => {}
            () = deps.clock.sleep_until(again), if failures > 0 => {}
        }
    }
}

/// Answers whether everything that was asked for is done.
async fn remove_asked(deps: &Deps, key: &Key) -> bool {
    let Some(node) = deps.caches.nodes.get(key) else { return true };
    let annotations = match node.decode::<Head>() {
        Ok(head) => head.metadata.annotations,
        Err(error) => {
            tracing::error!(%error, "this node's object is not readable");
            return true;
        }
    };
    let mut done = true;
    for volume in volumes(&annotations, REMOVE) {
        if let Err(error) = remove_and_tell(deps, key, volume).await {
            done = false;
            tracing::warn!(volume, error, "directory of a volume not removed, trying again");
            let involved = Involved::named(&kinds::PERSISTENT_VOLUMES, &Key::new("", volume), "");
            deps.recorder.event(involved, EventType::Warning, "VolumeFailedDelete", error);
        }
    }
    done
}

async fn remove_and_tell(deps: &Deps, key: &Key, volume: &str) -> Result<(), String> {
    let (data, root, name) = (deps.config.data_dir.clone(), root(&deps.config), volume.to_owned());
    let removed = blocking(move || match user_of(&data, &name)? {
        Some(pod) => Err(io::Error::other(format!("pod {pod} has the volume still"))),
        None => remove(&root, &name),
    });
    let removed = removed.await.map_err(|error| error.to_string())?;
    removed.map_err(|error| format!("failed to remove the directory of volume {volume}: {error}"))?;
    let patch = json!({ "metadata": { "annotations": { removal(volume): REMOVED } } });
    let written = deps.client.patch(&kinds::NODES.gvr(), key, "", PatchType::Merge, &patch).await;
    let written = written.map_err(|status| status.to_string())?;
    // So that the next look sees what was said.
    deps.caches.nodes.caught_up(written.revision()).await;
    Ok(())
}

/// The pod on this node that has a volume, by what is noted of pods' volumes.
fn user_of(data: &Path, volume: &str) -> io::Result<Option<String>> {
    let pods = match fs::read_dir(data.join("pods")) {
        Ok(pods) => pods,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for pod in pods {
        let pod = pod?;
        let ledger = Ledger::read(&crate::volumes::directories::ledger_in(&pod.path()))?;
        if ledger.has(volume) {
            return Ok(Some(pod.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// Removes a volume's directory, where there is one.
fn remove(root: &Path, volume: &str) -> io::Result<()> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        // No volume was ever used here.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| is_directory_of(name, volume)) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::ledger::Entry;

    #[test]
    fn only_the_directory_of_the_volume_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("local-path");
        remove(&root, "pvc-1").unwrap();
        for name in ["pvc-1_ns_c", "pvc-11_ns_c", "pvc-1"] {
            fs::create_dir_all(root.join(name).join("deep")).unwrap();
        }
        for odd in ["", ".", "..", "pvc-"] {
            remove(&root, odd).unwrap();
        }
        remove(&root, "pvc-1").unwrap();
        let mut left: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["pvc-1", "pvc-11_ns_c"]);
    }

    #[test]
    fn a_pod_that_has_the_volume_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(user_of(dir.path(), "pvc-1").unwrap(), None);
        let mut ledger = Ledger::default();
        ledger.put(Entry {
            name: "data".to_owned(),
            volume: "pvc-1".to_owned(),
            claim_uid: "u".to_owned(),
            path: "/x".into(),
            read_only: false,
            device: false,
            csi: None,
        });
        fs::create_dir_all(dir.path().join("pods/u0")).unwrap();
        ledger.write(&crate::volumes::directories::ledger_in(&dir.path().join("pods/u1"))).unwrap();
        assert_eq!(user_of(dir.path(), "pvc-1").unwrap().as_deref(), Some("u1"));
        assert_eq!(user_of(dir.path(), "pvc-2").unwrap(), None);
    }
}
