//! Nodes that stop reporting: their conditions become Unknown, they are tainted, and their pods are no longer ready.
//! Source: `k8s.io/kubernetes/pkg/controller/nodelifecycle`.
//!
//! A heartbeat is a change of the node's Lease or of its Ready condition. When it was seen is what counts, by this
//! process's clock: clocks of different hosts are never compared.

mod plan;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use api::{Key, Object, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use jiff::Timestamp;
use parking_lot::Mutex;
use reconcile::{
    Action, Change, EventRecorder, EventType, Informer, Involved, Queue, Reconcile, Registration, kinds,
};
use serde_json::json;

use crate::claim::ignore_missing;
use crate::context::{Ctx, decode, work};
use crate::figures::evictions::EvictionFigures;
use crate::figures::made::{Counts, Teller};
use crate::pods::Pod;

pub use plan::Node;
use plan::{GRACE, evicts, lost_conditions, ready_status, wanted_taints, zone};

const NAME: &str = "node-lifecycle-controller";
/// The namespace of the nodes' leases.
const LEASES: &str = "kube-node-lease";
/// Source: `scheduler.UpdateWorkerSize`.
const WORKERS: usize = 8;

/// The node lifecycle controller.
pub struct NodeLifecycle {
    ctx: Ctx,
}

impl NodeLifecycle {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for NodeLifecycle {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker {
            ctx: self.ctx.clone(),
            nodes: self.ctx.informers.get(kinds::NODES),
            leases: self.ctx.informers.get(kinds::LEASES),
            pods: self.ctx.informers.get(kinds::PODS),
            queue: self.ctx.queue("node_lifecycle_controller"),
            events: EventRecorder::new(
                self.ctx.client.clone(),
                self.ctx.clock.clone(),
                "node-controller",
                "",
            ),
            heartbeats: Mutex::default(),
        });
        let _registrations = worker.listen();
        let _told = self.ctx.figures.as_ref().map(|figures| worker.tell(&figures.leaving));
        work(&ctx, NAME, &[&worker.nodes, &worker.leases, &worker.pods], &worker.queue, WORKERS, &worker)
            .await
    }
}

/// Nodes by zone: all, and those of them that are ready.
type Zones = BTreeMap<String, (usize, usize)>;

fn zones(nodes: impl Iterator<Item = Node>) -> Zones {
    let mut zones = Zones::new();
    for node in nodes {
        let (all, ready) = zones.entry(zone(&node)).or_default();
        *all += 1;
        *ready += usize::from(node.is_ready());
    }
    zones
}

fn by_zone(zones: &Zones, of: fn(usize, usize) -> f64) -> Counts {
    zones.iter().map(|(zone, (all, ready))| (vec![zone.clone()], of(*all, *ready))).collect()
}

/// A heartbeat as it was seen.
struct Heartbeat {
    /// What it said: the versions of lease and Ready condition.
    lease_version: String,
    ready_beat: Option<Timestamp>,
    /// When that was new.
    seen: Timestamp,
}

struct Worker {
    ctx: Ctx,
    nodes: Informer,
    leases: Informer,
    pods: Informer,
    queue: Queue<String>,
    events: EventRecorder,
    heartbeats: Mutex<HashMap<String, Heartbeat>>,
}

impl Worker {
    /// Tells of zones as long as what it gives is held.
    fn tell(&self, figures: &EvictionFigures) -> [Arc<Teller>; 3] {
        let told = |tell: fn(&Zones) -> Counts| {
            let nodes = self.nodes.clone();
            move || {
                let nodes = nodes.list();
                tell(&zones(nodes.iter().filter_map(|node| decode::<Node>(node).ok())))
            }
        };
        [
            figures.zone_size.by(told(|zones| by_zone(zones, |all, _| all as f64))),
            figures
                .zone_health
                .by(told(|zones| by_zone(zones, |all, ready| 100.0 * ready as f64 / all as f64))),
            figures.unhealthy.by(told(|zones| by_zone(zones, |all, ready| (all - ready) as f64))),
        ]
    }

    fn listen(self: &Arc<Self>) -> [Registration; 2] {
        let weak = Arc::downgrade(self);
        let nodes = self.nodes.on_change(move |change| {
            if let Some(worker) = weak.upgrade() {
                worker.node_changed(change);
            }
        });
        let weak = Arc::downgrade(self);
        let leases = self.leases.on_change(move |change| {
            let Some(worker) = weak.upgrade().filter(|_| change.key.namespace == LEASES) else { return };
            if let Some(lease) = &change.new {
                worker.beat(&change.key.name, Some(lease.meta().resource_version.clone()), None);
            }
        });
        [nodes, leases]
    }

    fn node_changed(&self, change: &Change) {
        let name = &change.key.name;
        let Some(new) = &change.new else {
            self.heartbeats.lock().remove(name);
            return;
        };
        if let Ok(node) = decode::<Node>(new) {
            let beat = node.condition("Ready").and_then(|ready| ready.last_heartbeat_time);
            self.beat(name, None, beat);
        }
        self.queue.add(name.clone());
    }

    /// Notes a heartbeat if it is a new one.
    fn beat(&self, node: &str, lease_version: Option<String>, ready_beat: Option<Timestamp>) {
        let now = self.ctx.clock.now();
        let mut heartbeats = self.heartbeats.lock();
        let held = heartbeats.entry(node.to_owned()).or_insert_with(|| Heartbeat {
            lease_version: String::new(),
            ready_beat: None,
            seen: now,
        });
        if let Some(version) = lease_version.filter(|version| *version != held.lease_version) {
            held.lease_version = version;
            held.seen = now;
        }
        if ready_beat.is_some() && ready_beat != held.ready_beat {
            held.ready_beat = ready_beat;
            held.seen = now;
        }
    }

    fn last_seen(&self, node: &str) -> Timestamp {
        self.heartbeats.lock().get(node).map_or_else(|| self.ctx.clock.now(), |held| held.seen)
    }

    /// Pods on a node that does not answer take no traffic, whatever they last said.
    async fn mark_pods_not_ready(&self, node: &str) -> Result<(), BoxError> {
        for object in self.pods.on_node(node) {
            let pod: Pod = decode(&object)?;
            if !pod.is_ready() {
                continue;
            }
            let since = reconcile::time::seconds(self.ctx.clock.now());
            let patch = json!({
                "metadata": { "uid": pod.metadata.uid },
                "status": { "conditions": [{ "type": "Ready", "status": "False", "lastTransitionTime": since }] },
            });
            let kind = PatchType::StrategicMerge;
            let resource = kinds::PODS.gvr();
            ignore_missing(self.ctx.client.patch(&resource, &object.key(), "status", kind, &patch).await)?;
            let involved = Involved::object(&kinds::PODS, &object);
            self.events.event(involved, EventType::Warning, "NodeNotReady", "Node is not ready");
        }
        Ok(())
    }

    async fn write_lost(&self, object: &Object, node: &Node, now: Timestamp) -> Result<(), BoxError> {
        let conditions = lost_conditions(node, now);
        if conditions.is_empty() {
            return Ok(());
        }
        let patch =
            json!({ "metadata": { "uid": node.metadata.uid }, "status": { "conditions": conditions } });
        let kind = PatchType::StrategicMerge;
        let written =
            self.ctx.client.patch(&kinds::NODES.gvr(), &object.key(), "status", kind, &patch).await?;
        let message = format!("Node {} status is now: NodeNotReady", node.metadata.name);
        self.events.event(
            Involved::object(&kinds::NODES, object),
            EventType::Normal,
            "NodeNotReady",
            message,
        );
        self.ctx.caught_up(&self.nodes, written.revision()).await;
        Ok(())
    }
}

#[async_trait]
impl Reconcile<String> for Worker {
    async fn reconcile(&self, name: &String) -> Result<Action, BoxError> {
        let begun = Instant::now();
        let done = self.look(name).await;
        self.ctx.figures.iter().for_each(|figures| figures.leaving.looked_at_node(begun.elapsed()));
        done
    }
}

impl Worker {
    async fn look(&self, name: &str) -> Result<Action, BoxError> {
        let key = Key::new("", name);
        let Some(object) = self.nodes.get(&key) else { return Ok(Action::Done) };
        let node: Node = decode(&object)?;
        let now = self.ctx.clock.now();
        let silent =
            std::time::Duration::try_from(now.duration_since(self.last_seen(name))).unwrap_or_default();
        if silent > GRACE && ready_status(&node) != "Unknown" {
            self.write_lost(&object, &node, now).await?;
            // The change that this is brings the node back here.
            return Ok(Action::Done);
        }
        if let Some(taints) = wanted_taints(&node, now) {
            let patch = json!({
                "metadata": { "resourceVersion": node.metadata.resource_version },
                "spec": { "taints": taints },
            });
            let written =
                self.ctx.client.patch(&kinds::NODES.gvr(), &key, "", PatchType::Merge, &patch).await?;
            self.ctx.caught_up(&self.nodes, written.revision()).await;
            if let Some(figures) = self.ctx.figures.as_ref().filter(|_| evicts(&node, &taints)) {
                figures.evicted(&zone(&node));
            }
        }
        // A node that was never ready has no ready pods.
        if ready_status(&node) != "True" {
            self.mark_pods_not_ready(name).await?;
        }
        let left = GRACE.saturating_sub(silent);
        Ok(if left.is_zero() {
            Action::Done
        } else {
            Action::After(left + std::time::Duration::from_millis(1))
        })
    }
}
