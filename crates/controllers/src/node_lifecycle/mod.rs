//! Nodes that stop reporting: their conditions become Unknown, they are tainted, and their pods are no longer ready. How
//! fast they are tainted so that pods leave them depends on how many of their zone still report.
//! Source: `k8s.io/kubernetes/pkg/controller/nodelifecycle`.
//!
//! A heartbeat is a change of the node's Lease or of its Ready condition. When it was seen is what counts, by this
//! process's clock: clocks of different hosts are never compared.

mod plan;
mod zones;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
use plan::{Execution, execution, grace, health, lost_conditions, ready_status, wanted_taints, zone};
use zones::{Permit, Zones};

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
            zones: Mutex::default(),
        });
        let _registrations = worker.listen();
        let _told = self.ctx.figures.as_ref().map(|figures| worker.tell(&figures.leaving));
        work(&ctx, NAME, &[&worker.nodes, &worker.leases, &worker.pods], &worker.queue, WORKERS, &worker)
            .await
    }
}

/// Nodes by zone: all, and those of them that are ready.
type Census = BTreeMap<String, (usize, usize)>;

fn census(nodes: impl Iterator<Item = Node>) -> Census {
    let mut zones = Census::new();
    for node in nodes {
        let (all, ready) = zones.entry(zone(&node)).or_default();
        *all += 1;
        *ready += usize::from(node.is_ready());
    }
    zones
}

fn by_zone(zones: &Census, of: fn(usize, usize) -> f64) -> Counts {
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
    zones: Mutex<Zones>,
}

impl Worker {
    /// Tells of zones as long as what it gives is held.
    fn tell(&self, figures: &EvictionFigures) -> [Arc<Teller>; 3] {
        let told = |tell: fn(&Census) -> Counts| {
            let nodes = self.nodes.clone();
            move || {
                let nodes = nodes.list();
                tell(&census(nodes.iter().filter_map(|node| decode::<Node>(node).ok())))
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
            match &change.new {
                Some(lease) => {
                    worker.beat(&change.key.name, Some(lease.meta().resource_version.clone()), None);
                }
                None => worker.lease_gone(&change.key.name),
            }
        });
        [nodes, leases]
    }

    fn node_changed(&self, change: &Change) {
        let name = &change.key.name;
        let now = self.ctx.clock.now();
        match &change.new {
            None => {
                self.heartbeats.lock().remove(name);
                let next = self.zones.lock().forget(name, now);
                next.into_iter().for_each(|next| self.queue.add(next));
            }
            Some(new) => {
                if let Ok(node) = decode::<Node>(new) {
                    let beat = node.condition("Ready").and_then(|ready| ready.last_heartbeat_time);
                    self.beat(name, None, beat);
                    let next = self.zones.lock().see(name, health(&node), now);
                    next.into_iter().for_each(|next| self.queue.add(next));
                }
            }
        }
        self.announce(change);
        self.queue.add(name.clone());
    }

    /// Tells that a node has come or gone. Source: `monitorNodeHealth`, `controllerutil.RecordNodeEvent`.
    fn announce(&self, change: &Change) {
        let name = &change.key.name;
        let (object, reason, what) = match (&change.old, &change.new) {
            (None, Some(new)) => (new, "RegisteredNode", format!("Registered Node {name} in Controller")),
            (Some(old), None) => (old, "RemovingNode", format!("Removing Node {name} from Controller")),
            _ => return,
        };
        let involved = Involved::object(&kinds::NODES, object);
        self.events.event(involved, EventType::Normal, reason, format!("Node {name} event: {what}"));
    }

    /// What is known of a lease goes with it, unless it is a node's that is there.
    fn lease_gone(&self, name: &str) {
        if self.nodes.get(&Key::new("", name)).is_none() {
            self.heartbeats.lock().remove(name);
        }
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

    /// For how long nothing was heard of a node. Where the clock has gone back that begins anew: else nobody would miss the
    /// node until the clock is where it was.
    fn silence(&self, node: &str, now: Timestamp) -> Duration {
        let mut heartbeats = self.heartbeats.lock();
        let Some(held) = heartbeats.get_mut(node) else { return Duration::ZERO };
        held.seen = held.seen.min(now);
        Duration::try_from(now.duration_since(held.seen)).unwrap_or_default()
    }

    /// What follows for others from how the zones are now.
    fn turn(&self, now: Timestamp) {
        let turn = self.zones.lock().turn(now);
        if turn.resumed {
            self.heartbeats.lock().values_mut().for_each(|held| held.seen = now);
        }
        turn.wake.into_iter().for_each(|node| self.queue.add(node));
    }

    /// Whether a node is to have the taint that makes pods leave; how long it is until it is worth asking again.
    fn may_execute(&self, name: &str, node: &Node, now: Timestamp) -> (bool, Option<Duration>) {
        let mut zones = self.zones.lock();
        let executes = match execution(node, zones.is_stopped()) {
            Execution::Ask => match zones.ask(name, now) {
                Permit::Now => return (true, None),
                Permit::In(wait) => return (false, Some(wait)),
                Permit::Later => return (false, None),
            },
            Execution::Stays => true,
            Execution::None => false,
        };
        zones.leave(name).into_iter().for_each(|next| self.queue.add(next));
        (executes, None)
    }

    /// Pods on a node that does not answer take no traffic, whatever they last said.
    async fn mark_pods_not_ready(&self, node: &str) -> Result<(), BoxError> {
        let mut revision = 0;
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
            let written = self.ctx.client.patch(&resource, &object.key(), "status", kind, &patch).await;
            let Some(written) = ignore_missing(written)? else { continue };
            revision = written.revision();
            let involved = Involved::object(&kinds::PODS, &object);
            self.events.event(involved, EventType::Warning, "NodeNotReady", "Node is not ready");
        }
        // The next look shall not tell it again.
        self.ctx.caught_up(&self.pods, revision).await;
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
        if node.is_ready() {
            let message = format!("Node {} status is now: NodeNotReady", node.metadata.name);
            let involved = Involved::object(&kinds::NODES, object);
            self.events.event(involved, EventType::Normal, "NodeNotReady", message);
        }
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
        let now = self.ctx.clock.now();
        self.turn(now);
        let Some(object) = self.nodes.get(&key) else { return Ok(Action::Done) };
        let node: Node = decode(&object)?;
        let (silent, grace) = (self.silence(name, now), grace(&node));
        let is_lost = node.condition("Ready").is_some_and(|ready| ready.status == "Unknown");
        if silent > grace && !is_lost {
            self.write_lost(&object, &node, now).await?;
            // The change that this is brings the node back here.
            return Ok(Action::Done);
        }
        let (executes, wait) = self.may_execute(name, &node, now);
        if let Some(taints) = wanted_taints(&node, now, executes) {
            let patch = json!({
                "metadata": { "resourceVersion": node.metadata.resource_version },
                "spec": { "taints": taints },
            });
            let written =
                self.ctx.client.patch(&kinds::NODES.gvr(), &key, "", PatchType::Merge, &patch).await?;
            self.ctx.caught_up(&self.nodes, written.revision()).await;
            let evicts = executes && execution(&node, false) == Execution::Ask;
            if let Some(figures) = self.ctx.figures.as_ref().filter(|_| evicts) {
                figures.evicted(&zone(&node));
            }
        }
        // A node that was never ready has no ready pods, and one that says itself that it is not may well have some.
        if ready_status(&node) == "Unknown" {
            self.mark_pods_not_ready(name).await?;
        }
        let left = Some(grace.saturating_sub(silent)).filter(|left| !left.is_zero());
        let next = left.map(|left| left + Duration::from_millis(1)).into_iter().chain(wait).min();
        Ok(next.map_or(Action::Done, Action::After))
    }
}
