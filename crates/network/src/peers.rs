//! What the data path of every node has programmed, told to the others, so that a terminating pod is not signalled while
//! another node may still send it a connection.
//!
//! Each node writes the revision of the EndpointSlices that its data path reflects into an annotation of its own Lease
//! in `kube-node-lease`, at most once a second and only where there are other nodes. Who waits, waits for every node
//! whose Lease has not run out; how long is the caller's bound.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::clock::SharedClock;
use base::lifecycle::{Component, Context, OnFailure};
use client::Client;
use jiff::Timestamp;
use reconcile::kinds::{LEASES, NODES};
use reconcile::{Informer, Informers};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use crate::proxy::agent::View;

/// The annotation of a node's Lease: the newest revision of EndpointSlices that its data path reflects.
pub const PROGRAMMED: &str = "skiff.dev/programmed-endpoint-slices";
/// Where the nodes' Leases are.
const NAMESPACE: &str = "kube-node-lease";
/// A node reports at most this often.
const PERIOD: Duration = Duration::from_secs(1);
/// Source: upstream's `nodeLeaseDurationSeconds`, for a Lease that does not say.
const LEASE_SECONDS: i64 = 40;

/// Reports what this node's data path has programmed.
pub struct Reporter {
    revision: watch::Receiver<i64>,
    nodes: Informer,
    client: Client,
    node: String,
    clock: SharedClock,
}

impl Reporter {
    /// Reports for the node `node`, whose proxy has the view `view`; `client` may patch the node's own Lease.
    pub fn new(view: &View, informers: &Informers, client: Client, node: &str, clock: SharedClock) -> Self {
        Self {
            revision: view.revision(),
            nodes: informers.get(NODES),
            client: client.for_manager("skiff-network"),
            node: node.to_owned(),
            clock,
        }
    }

    async fn tell(&self, revision: i64) -> Result<(), BoxError> {
        let patch = json!({"metadata": {"annotations": {PROGRAMMED: revision.to_string()}}});
        let key = Key::new(NAMESPACE, self.node.clone());
        self.client.patch(&LEASES.gvr(), &key, "", PatchType::Merge, &patch).await?;
        Ok(())
    }
}

#[async_trait]
impl Component for Reporter {
    fn name(&self) -> &'static str {
        "endpoint-reports"
    }

    fn on_failure(&self) -> OnFailure {
        OnFailure::Restart
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let mut revision = self.revision.clone();
        let mut nodes = self.nodes.subscribe();
        let mut told = 0;
        ctx.ready();
        loop {
            let now = *revision.borrow_and_update();
            if now > 0 && now != told && self.nodes.len() > 1 {
                match self.tell(now).await {
                    Ok(()) => told = now,
                    // The Lease may not be there yet, or the API server away: told again after the pause.
                    Err(error) => {
                        let error = base::error::chain(&*error);
                        tracing::debug!(%error, "the other nodes are not told what is programmed");
                    }
                }
                let due = self.clock.now().saturating_add(PERIOD).unwrap_or(Timestamp::MAX);
                tokio::select! {
                    () = ctx.cancelled() => return Ok(()),
                    () = self.clock.sleep_until(due) => {}
                }
                if *revision.borrow() != told {
                    continue;
                }
            }
            tokio::select! {
                () = ctx.cancelled() => return Ok(()),
                // The proxy's view goes with the process.
                changed = revision.changed() => if changed.is_err() { return Ok(()) },
                _ = nodes.changed() => {}
            }
        }
    }
}

/// The other nodes' reports.
#[derive(Clone)]
pub struct Peers {
    leases: Informer,
    node: String,
    clock: SharedClock,
}

impl Peers {
    /// The peers of the node `node`.
    pub fn new(informers: &Informers, node: &str, clock: SharedClock) -> Self {
        Self { leases: informers.get(LEASES), node: node.to_owned(), clock }
    }

    /// Returns when every other living node has programmed `revision`.
    pub async fn programmed(&self, revision: i64) {
        let mut news = self.leases.subscribe();
        self.leases.synced().await;
        while behind(&self.leases.in_namespace(NAMESPACE), &self.node, revision, self.clock.now()) {
            news.changed().await;
        }
    }
}

/// A projection of a node's Lease.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Lease {
    metadata: LeaseMeta,
    spec: LeaseSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LeaseMeta {
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LeaseSpec {
    renew_time: Option<Timestamp>,
    lease_duration_seconds: Option<i64>,
}

/// Whether a living node other than `own` has not reported `revision` or a newer one. A node that never reported is
/// behind: it may be one that has just come and programs an older state. (Clocks of nodes are taken to agree within the
/// duration of a Lease, as everywhere.)
fn behind(leases: &[Arc<Object>], own: &str, revision: i64, now: Timestamp) -> bool {
    leases.iter().filter(|lease| lease.meta().name != own).any(|lease| {
        let Lease { metadata, spec } = lease.decode().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.unwrap_or(LEASE_SECONDS);
        let alive = spec.renew_time.is_some_and(|at| {
            at.saturating_add(jiff::SignedDuration::from_secs(seconds)).is_ok_and(|until| until >= now)
        });
        let told = metadata.annotations.get(PROGRAMMED).and_then(|told| told.parse::<i64>().ok());
        alive && told.is_none_or(|told| told < revision)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(name: &str, renewed: &str, told: Option<&str>) -> Arc<Object> {
        let annotations = told.map_or_else(|| json!({}), |told| json!({PROGRAMMED: told}));
        let lease = json!({
            "metadata": {"name": name, "namespace": NAMESPACE, "annotations": annotations},
            "spec": {"renewTime": renewed, "leaseDurationSeconds": 40},
        });
        Arc::new(Object::parse(lease.to_string().into()).unwrap())
    }

    #[test]
    fn living_nodes_are_waited_for_until_they_report() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let (fresh, old) = ("2026-01-01T00:00:30.000000Z", "2026-01-01T00:00:10.000000Z");
        for (name, renewed, told, is_behind) in [
            ("n2", fresh, Some("7"), false),
            ("n2", fresh, Some("8"), false),
            ("n2", fresh, Some("6"), true),
            ("n2", fresh, None, true),
            ("n2", fresh, Some("nonsense"), true),
            // It died, or is this node itself.
            ("n2", old, None, false),
            ("n1", fresh, None, false),
        ] {
            let leases = [lease("n3", fresh, Some("9")), lease(name, renewed, told)];
            assert_eq!(behind(&leases, "n1", 7, now), is_behind, "{name} {renewed} {told:?}");
        }
        assert!(!behind(&[], "n1", 7, now));
    }
}
