//! How many devices the node has, and how many work: `status.capacity` and `allocatable` of the Node. Other numbers there
//! are others' to write. Source: `devicemanager.GetCapacity`, `nodestatus.MachineInfo`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::PatchType;
use base::backoff::Policy;
use jiff::Timestamp;
use reconcile::kinds;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::in_use::key;
use crate::deps::Deps;

/// Numbers are written no more often: a plugin may think otherwise of its devices all the time.
const PACE: Duration = Duration::from_secs(1);
const WRITE_BACKOFF: Policy = Policy { first: Duration::from_millis(200), max: Duration::from_secs(10) };

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeView {
    status: StatusView,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StatusView {
    capacity: BTreeMap<String, Value>,
    allocatable: BTreeMap<String, Value>,
}

/// How the Node's status is to change, if at all. Pure.
fn patch(shown: &StatusView, amounts: &BTreeMap<String, (usize, usize)>) -> Option<Value> {
    let mut fresh = [Map::new(), Map::new()];
    for (name, (all, healthy)) in amounts {
        for (list, shown, count) in [(0, &shown.capacity, all), (1, &shown.allocatable, healthy)] {
            let count = Value::from(count.to_string());
            if shown.get(name) != Some(&count) {
                fresh[list].insert(name.clone(), count);
            }
        }
    }
    let [capacity, allocatable] = fresh;
    let news = !capacity.is_empty() || !allocatable.is_empty();
    news.then(|| json!({ "status": { "capacity": capacity, "allocatable": allocatable } }))
}

/// Keeps the Node's numbers in line until it is dropped, also where somebody else has made the Node anew.
pub(crate) async fn keep(deps: Arc<Deps>) {
    let own = key(&deps);
    let waker = Arc::downgrade(&deps);
    let _registration = deps.caches.nodes.on_change(move |change| {
        if let Some(deps) = waker.upgrade().filter(|_| change.key == own) {
            deps.plugins.devices.due.notify_one();
        }
    });
    let mut failures = 0;
    loop {
        failures = match write(&deps).await {
            Ok(false) => 0,
            Ok(true) => {
                // What comes meanwhile is written together.
                tokio::time::sleep(PACE).await;
                0
            }
            Err(error) => {
                tracing::warn!(%error, "the numbers of devices are not written, trying again");
                failures + 1
            }
        };
        let again = deps.now().saturating_add(WRITE_BACKOFF.delay(failures)).unwrap_or(Timestamp::MAX);
        tokio::select! {
            () = deps.plugins.devices.due.notified() => {}
            () = deps.clock.sleep_until(again), if failures > 0 => {}
        }
    }
}

/// Tells whether there was anything to write.
async fn write(deps: &Deps) -> Result<bool, api::Status> {
    let amounts = deps.plugins.devices.book.lock().amounts();
    let Some(node) = deps.caches.nodes.get(&key(deps)) else { return Ok(false) };
    let Ok(NodeView { status }) = node.decode() else { return Ok(false) };
    let Some(patch) = patch(&status, &amounts) else { return Ok(false) };
    let nodes = kinds::NODES.gvr();
    let written = deps.client.patch(&nodes, &key(deps), "status", PatchType::Merge, &patch).await?;
    // So that the next look sees what was said.
    deps.caches.nodes.caught_up(written.revision()).await;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_other_is_written() {
        let shown = |all: &str, healthy: &str| StatusView {
            capacity: [("e/x".to_owned(), all.into()), ("cpu".to_owned(), "2".into())].into(),
            allocatable: [("e/x".to_owned(), healthy.into())].into(),
        };
        let amounts = BTreeMap::from([("e/x".to_owned(), (4, 3))]);
        assert_eq!(patch(&shown("4", "3"), &amounts), None);
        let wanted = json!({ "status": { "capacity": {}, "allocatable": { "e/x": "3" } } });
        assert_eq!(patch(&shown("4", "4"), &amounts), Some(wanted));
        let first = patch(&StatusView::default(), &amounts).unwrap();
        assert_eq!(first["status"]["capacity"]["e/x"], "4");
    }
}
