//! Registers the Node and keeps it alive: a Lease every ten seconds, the status every five minutes and whenever it
//! changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object, PatchType, Reason, Status};
use base::BoxError;
use base::backoff::Policy;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::NodeStatus;
use reconcile::{EventType, Involved, kinds, time};
use serde::Deserialize;
use serde_json::{Value, json};

use super::facts::HostInfo;
use super::object::{ListedImage, NodeInput, annotations, labels, new_node, status};
use crate::deps::Deps;

/// Source: upstream's `nodeLeaseDurationSeconds`, a renewal each quarter of it, and `nodeStatusReportFrequency`.
pub(crate) const LEASE_SECONDS: u32 = 40;
pub(crate) const LEASE_PERIOD: Duration = Duration::from_secs(10);
pub(crate) const STATUS_PERIOD: Duration = Duration::from_secs(300);
const RETRY: Policy = Policy { first: Duration::from_millis(200), max: Duration::from_secs(7) };
const LEASE_NAMESPACE: &str = "kube-node-lease";

#[derive(Deserialize)]
struct NodeView {
    #[serde(default)]
    metadata: api::ObjectMeta,
    #[serde(default)]
    status: NodeStatus,
}

fn key(deps: &Deps) -> Key {
    Key::new("", deps.config.node_name.clone())
}

/// Makes the Node, or brings the labels and the status of the one that is there up to date. The revision in which it is.
pub(crate) async fn register(deps: &Deps, info: &HostInfo, port: u16) -> Result<i64, BoxError> {
    let gvr = kinds::NODES.gvr();
    let existing = match deps.client.create(&gvr, "", &new_node(&deps.config)).await {
        Ok(object) => object,
        Err(Status { reason: Reason::AlreadyExists, .. }) => {
            let patch = json!({ "metadata": { "labels": labels(&deps.config), "annotations": annotations(&deps.config) } });
            deps.client.patch(&gvr, &key(deps), "", PatchType::Merge, &patch).await?
        }
        Err(status) => return Err(status.into()),
    };
    let revision = report(deps, info, port, &existing).await?;
    let involved = Involved::named(&kinds::NODES, &key(deps), &existing.meta().uid);
    deps.recorder.event(involved, EventType::Normal, "Starting", "Starting kubelet.");
    Ok(revision)
}

/// Writes the status as it is now. The revision in which it is.
async fn report(deps: &Deps, info: &HostInfo, port: u16, known: &Object) -> Result<i64, BoxError> {
    let view: NodeView = known.decode()?;
    let images = deps.images.list().await.unwrap_or_default();
    let images: Vec<ListedImage> = images
        .into_iter()
        .map(|image| ListedImage {
            names: image.repo_digests.into_iter().chain(image.tags.into_keys()).collect(),
            size_bytes: image.size_bytes,
        })
        .filter(|image| !image.names.is_empty())
        .collect();
    let since: BTreeMap<String, (String, String)> = view
        .status
        .conditions
        .into_iter()
        .flatten()
        .filter_map(|known| {
            let since = known.last_transition_time.map(|at| time::seconds(at.0))?;
            Some((known.type_, (known.status, since)))
        })
        .collect();
    let addresses = deps.addresses();
    let input = NodeInput {
        config: &deps.config,
        info,
        hardware: &deps.hardware,
        addresses: &addresses,
        server_port: port,
        images: &images,
        pressure: deps.pressure.current(),
        going_down: deps.shutdown.is_under_way(),
        handlers: &deps.runtime.handlers(),
        since: &since,
        now: deps.now(),
    };
    // Addresses are merged by their type, which would keep the old of several: the list is replaced as a whole.
    let mut wanted = status(&input);
    if let Some(Value::Array(list)) = wanted.get_mut("addresses") {
        list.insert(0, json!({ "$patch": "replace" }));
    }
    let patch = json!({ "metadata": { "uid": view.metadata.uid }, "status": wanted });
    let (nodes, key) = (kinds::NODES.gvr(), key(deps));
    let written = deps.client.patch(&nodes, &key, "status", PatchType::StrategicMerge, &patch).await?;
    Ok(written.revision())
}

/// Keeps the status current until it is dropped.
pub(crate) async fn keep_status(deps: Arc<Deps>, info: HostInfo, port: u16) {
    let mut addresses = deps.config.addresses.clone();
    addresses.mark_unchanged();
    let mut pressure = deps.pressure.subscribe();
    let mut shutdown = deps.shutdown.subscribe();
    let mut failures = 0;
    loop {
        let pause = if failures == 0 { STATUS_PERIOD } else { RETRY.delay(failures) };
        let due = deps.now().saturating_add(pause).unwrap_or(Timestamp::MAX);
        tokio::select! {
            () = deps.clock.sleep_until(due) => {}
            () = pressure.changed() => {}
            // The sender is the node's own.
            _ = shutdown.changed() => {}
            changed = addresses.changed() => {
                if changed.is_err() {
                    // Nobody reports addresses any more: the timer goes on alone.
                    deps.clock.sleep_until(due).await;
                }
            }
        }
        let done = match deps.client.get(&kinds::NODES.gvr(), &key(&deps)).await {
            Ok(node) => report(&deps, &info, port, &node).await,
            // Someone deleted it: the node is still here.
            Err(Status { reason: Reason::NotFound, .. }) => register(&deps, &info, port).await,
            Err(status) => Err(status.into()),
        };
        match done {
            Ok(_) => failures = 0,
            Err(error) => {
                failures += 1;
                tracing::warn!(error = %base::error::chain(&*error), "node status not written, trying again");
            }
        }
    }
}

/// Renews the node's lease until it is dropped.
pub(crate) async fn keep_lease(deps: Arc<Deps>) {
    let mut failures = 0;
    loop {
        match renew(&deps).await {
            Ok(()) => failures = 0,
            Err(error) => {
                failures += 1;
                tracing::warn!(error = %base::error::chain(&*error), "node lease not renewed, trying again");
            }
        }
        let pause = if failures == 0 { LEASE_PERIOD } else { RETRY.delay(failures) };
        deps.clock.sleep_until(deps.now().saturating_add(pause).unwrap_or(Timestamp::MAX)).await;
    }
}

async fn renew(deps: &Deps) -> Result<(), BoxError> {
    let gvr = kinds::LEASES.gvr();
    let name = &deps.config.node_name;
    let lease_key = Key::new(LEASE_NAMESPACE, name.clone());
    let spec = json!({
        "holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": time::micros(deps.now()),
    });
    let patch = json!({ "spec": spec });
    match deps.client.patch(&gvr, &lease_key, "", PatchType::Merge, &patch).await {
        Ok(_) => Ok(()),
        Err(Status { reason: Reason::NotFound, .. }) => {
            let node = deps.client.get(&kinds::NODES.gvr(), &key(deps)).await?;
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {
                    "name": name, "namespace": LEASE_NAMESPACE,
                    // The lease goes with its node.
                    "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": name, "uid": node.meta().uid }],
                },
                "spec": spec,
            });
            deps.client.create(&gvr, LEASE_NAMESPACE, &lease).await?;
            Ok(())
        }
        Err(status) => Err(status.into()),
    }
}
