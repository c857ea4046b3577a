//! `status.volumesInUse` of the Node: what is attached and may be mounted here. The controller that detaches believes it,
//! so that it is written before a driver is asked to mount, and shortened after one has unmounted. Source:
//! `GetVolumesInUse`, `nodestatus.VolumesInUse`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::{Key, PatchType};
use base::backoff::Policy;
use jiff::Timestamp;
use parking_lot::Mutex;
use reconcile::kinds;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Notify, watch};

use crate::deps::Deps;

const WRITE_BACKOFF: Policy = Policy { first: Duration::from_millis(200), max: Duration::from_secs(10) };

/// What is in use, and what the API was told of it.
pub(crate) struct InUse {
    wanted: Mutex<BTreeSet<String>>,
    due: Notify,
    written: watch::Sender<BTreeSet<String>>,
}

impl Default for InUse {
    fn default() -> Self {
        Self { wanted: Mutex::default(), due: Notify::new(), written: watch::Sender::new(BTreeSet::new()) }
    }
}

impl InUse {
    /// Returns when the Node says that a volume is in use.
    pub(super) async fn add(&self, name: &str) -> Result<(), String> {
        let mut written = self.written.subscribe();
        if self.wanted.lock().insert(name.to_owned()) {
            self.due.notify_one();
        }
        let said = written.wait_for(|written| written.contains(name)).await;
        said.map(drop).map_err(|_| "the node's status is written no more".to_owned())
    }

    pub(super) fn remove(&self, name: &str) {
        if self.wanted.lock().remove(name) {
            self.due.notify_one();
        }
    }

    /// What is to be written next. What is withdrawn by that counts as said no more before it is: nobody who comes
    /// meanwhile believes in it.
    fn next(&self) -> BTreeSet<String> {
        let wanted = self.wanted.lock();
        self.written.send_if_modified(|written| {
            let before = written.len();
            written.retain(|name| wanted.contains(name));
            written.len() != before
        });
        wanted.clone()
    }

    /// What earlier runs of the node have left in use.
    pub(super) fn begin(&self, names: impl IntoIterator<Item = String>) {
        self.wanted.lock().extend(names);
        self.due.notify_one();
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeView {
    status: StatusView,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StatusView {
    volumes_in_use: BTreeSet<String>,
    volumes_attached: Vec<Attached>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Attached {
    name: String,
}

/// The node's key.
pub(super) fn key(deps: &Deps) -> Key {
    Key::new("", &*deps.config.node_name)
}

fn status(deps: &Deps) -> Option<StatusView> {
    let node = deps.caches.nodes.get(&key(deps))?;
    node.decode::<NodeView>().ok().map(|node| node.status)
}

/// What the Node says that it uses.
pub(super) fn said(deps: &Deps) -> BTreeSet<String> {
    status(deps).map(|status| status.volumes_in_use).unwrap_or_default()
}

/// Whether the Node says that a volume is attached.
pub(super) fn is_attached(deps: &Deps, name: &str) -> bool {
    status(deps).is_some_and(|status| status.volumes_attached.iter().any(|known| known.name == name))
}

/// Keeps the Node's list in line until it is dropped, also where somebody else has made the Node anew.
pub(crate) async fn keep(deps: Arc<Deps>) {
    let own = key(&deps);
    let waker = Arc::downgrade(&deps);
    let _registration = deps.caches.nodes.on_change(move |change| {
        if let Some(deps) = waker.upgrade().filter(|_| change.key == own) {
            deps.plugins.in_use.due.notify_one();
        }
    });
    let mut failures = 0;
    loop {
        failures = match write(&deps).await {
            Ok(()) => 0,
            Err(error) => {
                tracing::warn!(%error, "the volumes that are in use are not written, trying again");
                failures + 1
            }
        };
        let again = deps.now().saturating_add(WRITE_BACKOFF.delay(failures)).unwrap_or(Timestamp::MAX);
        tokio::select! {
            () = deps.plugins.in_use.due.notified() => {}
            () = deps.clock.sleep_until(again), if failures > 0 => {}
        }
    }
}

async fn write(deps: &Deps) -> Result<(), api::Status> {
    let in_use = &deps.plugins.in_use;
    let wanted = in_use.next();
    // Without a Node there is nobody to tell; its making is a change.
    let Some(shown) = status(deps) else { return Ok(()) };
    if shown.volumes_in_use != wanted {
        let patch = json!({ "status": { "volumesInUse": wanted } });
        let nodes = kinds::NODES.gvr();
        let written = deps.client.patch(&nodes, &key(deps), "status", PatchType::Merge, &patch).await?;
        // So that the next look sees what was said.
        deps.caches.nodes.caught_up(written.revision()).await;
    }
    in_use.written.send_replace(wanted);
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn a_list_that_is_being_withdrawn_is_not_believed() {
        let in_use = InUse::default();
        assert!(in_use.add("v").now_or_never().is_none());
        in_use.written.send_replace(in_use.next());
        assert!(in_use.add("v").now_or_never().is_some());
        in_use.remove("v");
        let without = in_use.next();
        assert!(in_use.add("v").now_or_never().is_none(), "the list without it is on its way");
        in_use.written.send_replace(without);
        assert!(in_use.add("v").now_or_never().is_none());
        in_use.written.send_replace(in_use.next());
        assert!(in_use.add("v").now_or_never().is_some());
    }
}
