//! What drivers say of this node, written where the scheduler and the drivers' controllers read it: the CSINode, and
//! labels and an annotation of the Node. Source: `pkg/volume/csi/nodeinfomanager`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object, PatchType, Reason, Status};
use base::backoff::Policy;
use jiff::Timestamp;
use reconcile::kinds;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::Notify;

use super::driver::NodeInfo;
use super::in_use::key;
use crate::deps::Deps;

/// What drivers call the node, as JSON by driver.
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";
/// Somebody else may have written meanwhile.
const TRIES: usize = 5;
const WRITE_BACKOFF: Policy = Policy { first: Duration::from_millis(200), max: Duration::from_secs(10) };

#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    metadata: api::ObjectMeta,
}

/// Writes what a driver says of the node.
pub(super) async fn install(deps: &Deps, driver: &str, info: &NodeInfo) -> Result<(), String> {
    let of_node = |error| format!("error updating Node object with CSI driver node info: {error}");
    tell_node(deps, driver, Some(info)).await.map_err(of_node)?;
    let of_csi_node = |error| format!("error updating CSINode object with CSI driver node info: {error}");
    tell_csi_node(deps, driver, Some(info)).await.map_err(of_csi_node)
}

/// Writes what drivers have said into a Node that somebody has made anew, until it is dropped: the drivers do not know of it.
pub(crate) async fn keep(deps: Arc<Deps>) {
    let (own, due) = (key(&deps), Arc::new(Notify::new()));
    let waker = due.clone();
    let _registration = deps.caches.nodes.on_change(move |change| {
        if change.key == own {
            waker.notify_one();
        }
    });
    let (mut told, mut failures) = (None, 0);
    loop {
        let node = deps.caches.nodes.get(&key(&deps)).map(|node| node.meta().uid.clone());
        if node.is_some() && node != told {
            match tell_all(&deps).await {
                Ok(()) => (told, failures) = (node, 0),
                Err(error) => {
                    tracing::warn!(error, "what drivers say of this node is not written, trying again");
                    failures += 1;
                }
            }
        }
        let again = deps.now().saturating_add(WRITE_BACKOFF.delay(failures)).unwrap_or(Timestamp::MAX);
        tokio::select! {
            () = due.notified() => {}
            () = deps.clock.sleep_until(again), if failures > 0 => {}
        }
    }
}

async fn tell_all(deps: &Deps) -> Result<(), String> {
    let _alone = deps.plugins.objects.lock().await;
    let mut failed = Ok(());
    for (driver, info) in deps.plugins.nodes() {
        // One that cannot be told keeps no other.
        failed = failed.and(install(deps, &driver, &info).await);
    }
    failed
}

/// Takes a driver's words back. Labels stay, as upstream's do: volumes may have been placed by them.
pub(super) async fn uninstall(deps: &Deps, driver: &str) -> Result<(), String> {
    let failed = |error| format!("error uninstalling CSI driver from CSINode object {error}");
    tell_csi_node(deps, driver, None).await.map_err(failed)?;
    tell_node(deps, driver, None).await
}

async fn tell_node(deps: &Deps, driver: &str, info: Option<&NodeInfo>) -> Result<(), String> {
    let nodes = kinds::NODES.gvr();
    let node = match deps.client.get(&nodes, &key(deps)).await {
        Ok(node) => node,
        // A driver's words have gone with it.
        Err(Status { reason: Reason::NotFound, .. }) if info.is_none() => return Ok(()),
        Err(status) => return Err(status.to_string()),
    };
    let head: Head = node.decode().map_err(|error| error.to_string())?;
    let Some(patch) = node_patch(&head.metadata.labels, &head.metadata.annotations, driver, info)? else {
        return Ok(());
    };
    let written = deps.client.patch(&nodes, &key(deps), "", PatchType::Merge, &patch).await;
    written.map(drop).map_err(|status| status.to_string())
}

/// How the Node is to change, if at all. Pure. Source: `updateNodeIDInNode`, `updateTopologyLabels`.
fn node_patch(
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
    driver: &str,
    info: Option<&NodeInfo>,
) -> Result<Option<Value>, String> {
    let known = annotations.get(NODE_IDS);
    let mut ids: Map<String, Value> =
        known.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    match info {
        Some(info) => drop(ids.insert(driver.to_owned(), info.id.as_str().into())),
        None => drop(ids.remove(driver)),
    }
    let text = (!ids.is_empty()).then(|| Value::Object(ids).to_string());
    let mut fresh = Map::new();
    for (label, value) in info.map(|info| info.topology.as_slice()).unwrap_or_default() {
        match labels.get(label) {
            Some(known) if known == value => {}
            Some(known) => {
                return Err(format!(
                    "detected topology value collision: driver reported {label:?}:{value:?} but existing label is {label:?}:{known:?}"
                ));
            }
            None => drop(fresh.insert(label.clone(), value.as_str().into())),
        }
    }
    if fresh.is_empty() && text.as_ref() == known {
        return Ok(None);
    }
    Ok(Some(json!({ "metadata": { "labels": fresh, "annotations": { NODE_IDS: text } } })))
}

async fn tell_csi_node(deps: &Deps, driver: &str, info: Option<&NodeInfo>) -> Result<(), String> {
    let gvr = kinds::CSI_NODES.gvr();
    // Who takes a driver's words back needs none: the Node may be gone already.
    let owner = match info {
        Some(_) => Some(owner(deps).await.map_err(|status| status.to_string())?),
        None => None,
    };
    for _ in 0..TRIES {
        let known = match deps.client.get(&gvr, &key(deps)).await {
            Ok(known) => known,
            Err(Status { reason: Reason::NotFound, .. }) => {
                let Some(owner) = &owner else { return Ok(()) };
                match make(deps, owner).await {
                    Ok(made) => made,
                    Err(Status { reason: Reason::AlreadyExists, .. }) => continue,
                    Err(status) => return Err(status.to_string()),
                }
            }
            Err(status) => return Err(status.to_string()),
        };
        let whole: Value = known.decode().map_err(|error| error.to_string())?;
        let list = whole["spec"]["drivers"].as_array().cloned().unwrap_or_default();
        let metadata = &whole["metadata"];
        let owners = metadata["ownerReferences"].as_array().cloned().unwrap_or_default();
        let is_owned =
            owner.as_ref().is_none_or(|owner| owners.iter().any(|known| known["uid"] == owner["uid"]));
        let list = match drivers(list.clone(), driver, info) {
            Some(list) => list,
            None if is_owned => return Ok(()),
            None => list,
        };
        let mut patch = json!({
            "metadata": { "resourceVersion": metadata["resourceVersion"] },
            "spec": { "drivers": list },
        });
        if let Some(owner) = &owner {
            // It may be of a Node that is no more, and would go with that.
            patch["metadata"]["ownerReferences"] = json!([owner]);
        }
        match deps.client.patch(&gvr, &key(deps), "", PatchType::Merge, &patch).await {
            Ok(_) => return Ok(()),
            Err(Status { reason: Reason::Conflict | Reason::NotFound, .. }) => {}
            Err(status) => return Err(status.to_string()),
        }
    }
    Err("others write it all the time".to_owned())
}

/// The Node, as its CSINode names it.
async fn owner(deps: &Deps) -> Result<Value, Status> {
    let Key { name, .. } = key(deps);
    let node = deps.client.get(&kinds::NODES.gvr(), &key(deps)).await?;
    Ok(json!({ "apiVersion": "v1", "kind": "Node", "name": name, "uid": node.meta().uid }))
}

/// Makes the CSINode, which goes with its Node.
async fn make(deps: &Deps, owner: &Value) -> Result<Arc<Object>, Status> {
    let Key { name, .. } = key(deps);
    let object = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "CSINode",
        "metadata": { "name": name, "ownerReferences": [owner] }, "spec": { "drivers": [] },
    });
    deps.client.create(&kinds::CSI_NODES.gvr(), "", &object).await
}

/// The list with a driver as it is now, or without it; `None` where nothing changes. Pure. Source: `installDriverToCSINode`.
fn drivers(mut list: Vec<Value>, driver: &str, info: Option<&NodeInfo>) -> Option<Vec<Value>> {
    let wanted = info.map(|info| {
        let keys: Vec<&String> = info.topology.iter().map(|(key, _)| key).collect();
        let mut entry = json!({ "name": driver, "nodeID": info.id, "topologyKeys": keys });
        if let Some(count) = info.volumes_max {
            entry["allocatable"] = json!({ "count": count.min(i64::from(i32::MAX)) });
        }
        entry
    });
    let known = list.iter().find(|entry| entry["name"] == driver);
    let same = match (known, &wanted) {
        (None, None) => true,
        (Some(known), Some(wanted)) => {
            let topology = |entry: &Value| entry["topologyKeys"].as_array().cloned().unwrap_or_default();
            known["nodeID"] == wanted["nodeID"]
                && known["allocatable"] == wanted["allocatable"]
                && topology(known) == topology(wanted)
        }
        _ => false,
    };
    if same {
        return None;
    }
    list.retain(|entry| entry["name"] != driver);
    list.extend(wanted);
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(id: &str, most: Option<i64>, topology: &[(&str, &str)]) -> NodeInfo {
        let topology = topology.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        NodeInfo { id: id.to_owned(), volumes_max: most, topology }
    }

    #[test]
    fn drivers_come_change_and_go() {
        let first = info("i-1", Some(5), &[("zone", "a")]);
        let list = drivers(Vec::new(), "d", Some(&first)).unwrap();
        let entry =
            json!({ "name": "d", "nodeID": "i-1", "topologyKeys": ["zone"], "allocatable": { "count": 5 } });
        assert_eq!(list, [entry]);
        assert_eq!(drivers(list.clone(), "d", Some(&first)), None);
        let other = drivers(list.clone(), "e", Some(&info("n", None, &[]))).unwrap();
        assert_eq!(other.len(), 2);
        assert_eq!(other[1], json!({ "name": "e", "nodeID": "n", "topologyKeys": [] }));
        let changed = drivers(list.clone(), "d", Some(&info("i-1", Some(6), &[("zone", "a")]))).unwrap();
        assert_eq!(changed[0]["allocatable"]["count"], 6);
        assert_eq!(drivers(list, "d", None), Some(Vec::new()));
        assert_eq!(drivers(Vec::new(), "d", None), None);
    }

    #[test]
    fn a_drivers_place_becomes_labels_that_nobody_overwrites() {
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        let ids = BTreeMap::from([(NODE_IDS.to_owned(), r#"{"e":"x"}"#.to_owned())]);
        let patch = |info: Option<&NodeInfo>| node_patch(&labels, &ids, "d", info);
        let here = patch(Some(&info("i-1", None, &[("zone", "a"), ("rack", "7")]))).unwrap().unwrap();
        assert_eq!(here["metadata"]["labels"], json!({ "rack": "7" }));
        assert_eq!(here["metadata"]["annotations"][NODE_IDS], r#"{"d":"i-1","e":"x"}"#);
        let error = patch(Some(&info("i-1", None, &[("zone", "b")]))).unwrap_err();
        assert!(error.starts_with("detected topology value collision"), "{error}");
        assert_eq!(patch(None).unwrap(), None);
        let only = BTreeMap::from([(NODE_IDS.to_owned(), r#"{"d":"i-1"}"#.to_owned())]);
        let gone = node_patch(&labels, &only, "d", None).unwrap().unwrap();
        assert!(gone["metadata"]["annotations"][NODE_IDS].is_null());
    }
}
