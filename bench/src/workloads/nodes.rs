//! Nodes without kubelets: registered, Ready, and their leases renewed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ::api::{GroupVersionResource, Key, ListOptions, PatchType, Reason, WatchEventKind};
use anyhow::{Context, Result, anyhow, ensure};
use client::Client;
use futures::{StreamExt, TryStreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::sizes::{PODS_PER_NODE, RENEWAL};
use super::task::Task;
use crate::api::failed;

/// Failure domains that the nodes are in by turns.
pub(crate) const ZONES: usize = 10;
/// All nodes have the same value of it.
pub(crate) const EVERYWHERE: &str = "bench/everywhere";
const LEASES: &str = "kube-node-lease";
/// Renewals at once.
const RENEWING: usize = 8;

/// The nodes; their leases are renewed until this is dropped.
pub(crate) struct Nodes {
    pub(crate) count: usize,
    renewing: Vec<Task>,
}

impl Nodes {
    /// Registers so many, and returns when pods can be placed on each. The host's own node takes none from then on.
    pub(crate) async fn register(clients: &[Client], count: usize) -> Result<Self> {
        let resource = GroupVersionResource::new("", "v1", "nodes");
        let own = clients[0].list(&resource, "", ListOptions::default()).await.map_err(failed)?;
        for node in &own.items {
            let cordon = json!({ "spec": { "unschedulable": true } });
            clients[0].patch(&resource, &node.key(), "", PatchType::Merge, &cordon).await.map_err(failed)?;
        }
        let options = ListOptions { resource_version: own.revision.to_string(), ..ListOptions::default() };
        let watch = clients[0].watch(&resource, "", options).await.map_err(failed)?;
        let leases = GroupVersionResource::new("coordination.k8s.io", "v1", "leases");
        // From the first node on: registering many takes longer than a lease lasts.
        let shared = Arc::new((clients.to_vec(), Instant::now()));
        let renewing = (0..RENEWING).map(|worker| Task::begin(renew(shared.clone(), worker, count)));
        let nodes = Self { count, renewing: renewing.collect() };
        let made = (0..count).map(|number| {
            let (client, resource, leases) = (&clients[number % clients.len()], &resource, &leases);
            async move {
                client.create(leases, LEASES, &lease(number)).await?;
                client.create(resource, "", &node(number)).await?;
                // As kubelets do once they have registered.
                let (key, status) = (Key::new("", name(number)), json!({ "status": status() }));
                client.patch(resource, &key, "status", PatchType::StrategicMerge, &status).await.map(drop)
            }
        });
        let made = futures::stream::iter(made).buffer_unordered(clients.len());
        let made = async { made.try_collect::<()>().await.map_err(failed) };
        futures::future::try_join(made, open(watch, count)).await?;
        nodes.renewed()?;
        Ok(nodes)
    }

    /// No renewal has failed so far.
    pub(crate) fn renewed(&self) -> Result<()> {
        self.renewing.iter().try_for_each(|task| task.goes_on("the renewal of leases"))
    }
}

/// The node's name.
pub(crate) fn name(number: usize) -> String {
    format!("fake-{number}")
}

/// The zone of a node, by its name; `None` for nodes that are not ours.
pub(crate) fn zone(name: &str) -> Option<usize> {
    name.strip_prefix("fake-")?.parse::<usize>().ok().map(|number| number % ZONES)
}

/// Registered with a range of pod addresses, as a cloud's controller gives them out: the server's own has not enough of
/// them for so many nodes. Without an address, so that no host makes a route to it.
fn node(number: usize) -> Value {
    let name = name(number);
    let range = format!("100.{}.{}.0/24", 64 + number / 256, number % 256);
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
            "topology.kubernetes.io/zone": format!("zone-{}", number % ZONES), EVERYWHERE: "yes",
        } },
        "spec": { "podCIDR": range, "podCIDRs": [range] },
    })
}

fn status() -> Value {
    let amount = json!({
        "cpu": format!("{}m", PODS_PER_NODE * 100), "memory": "256Gi", "ephemeral-storage": "100Gi", "pods": "110",
    });
    let now = now();
    let condition = |kind: &str, status: &str| {
        json!({
            "type": kind, "status": status, "reason": "Bench", "message": "as it was registered",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        })
    };
    json!({
        "capacity": amount, "allocatable": amount,
        "conditions": [
            condition("MemoryPressure", "False"), condition("DiskPressure", "False"),
            condition("PIDPressure", "False"), condition("Ready", "True"),
        ],
    })
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn lease(number: usize) -> Value {
    let (name, now) = (name(number), jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ"));
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": name, "namespace": LEASES },
        "spec": { "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now.to_string() },
    })
}

/// Renews every so-manieth lease, each at its own time, and says why if it cannot.
async fn renew(shared: Arc<(Vec<Client>, Instant)>, worker: usize, count: usize) -> Result<()> {
    let ended = renew_each(&shared, worker, count).await;
    ended.inspect_err(|error| crate::progress(&format!("a lease is not renewed: {error}")))
}

async fn renew_each(shared: &(Vec<Client>, Instant), worker: usize, count: usize) -> Result<()> {
    let (clients, begun) = shared;
    let resource = GroupVersionResource::new("coordination.k8s.io", "v1", "leases");
    let (nodes, mut round) = (u32::try_from(count)?, 0);
    // Leases are only updated by who knows their version.
    let mut versions: HashMap<usize, String> = HashMap::new();
    loop {
        round += 1;
        for number in (worker..count).step_by(RENEWING) {
            let at = RENEWAL * round + RENEWAL / nodes * u32::try_from(number)?;
            tokio::time::sleep_until(*begun + at).await;
            let key = Key::new(LEASES, name(number));
            let client = &clients[number % clients.len()];
            let version = match versions.remove(&number) {
                Some(version) => version,
                None => match client.get(&resource, &key).await {
                    Ok(lease) => lease.meta().resource_version.clone(),
                    // It is still to be made.
                    Err(status) if status.reason == Reason::NotFound => continue,
                    Err(status) => return Err(failed(status)),
                },
            };
            let mut lease = lease(number);
            lease["metadata"]["resourceVersion"] = version.into();
            let renewed = client.update(&resource, &key, "", &lease).await.map_err(failed)?;
            versions.insert(number, renewed.meta().resource_version.clone());
        }
        // Whoever has none to renew waits all the same.
        tokio::time::sleep_until(*begun + RENEWAL * (round + 1)).await;
    }
}

#[derive(Deserialize)]
struct Node {
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
struct Spec {
    #[serde(default)]
    taints: Vec<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    allocatable: serde_json::Map<String, Value>,
    conditions: Vec<Value>,
}

/// Reads the watch until so many nodes of ours take pods.
async fn open(mut watch: ::api::WatchStream, count: usize) -> Result<()> {
    let mut open = HashSet::new();
    while open.len() < count {
        for event in watch.next().await.ok_or_else(|| anyhow!("the watch ended"))?.map_err(failed)? {
            if event.kind == WatchEventKind::Bookmark || zone(&event.object.meta().name).is_none() {
                continue;
            }
            let node: Node = event.object.decode().context("read a node")?;
            // Nobody here would make it Ready again.
            let lost = node.status.conditions.iter().any(|one| one["status"] == "Unknown");
            ensure!(!lost, "this machine is too slow to keep the leases of {count} nodes");
            if node.spec.taints.is_empty() && !node.status.allocatable.is_empty() {
                open.insert(event.object.meta().name.clone());
            } else {
                open.remove(&event.object.meta().name);
            }
        }
    }
    Ok(())
}
