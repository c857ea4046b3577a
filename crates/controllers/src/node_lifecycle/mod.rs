//! Nodes that stop reporting: their conditions become Unknown, they are tainted, and their pods are no longer ready.
//! Source: `k8s.io/kubernetes/pkg/controller/nodelifecycle`.
//!
//! A heartbeat is a change of the node's Lease or of its Ready condition. When it was seen is what counts, by this
//! process's clock: clocks of different hosts are never compared.

mod plan;
mod zones;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use jiff::Timestamp;
use parking_lot::Mutex;
use reconcile::{
    Action, Change, EventRecorder, EventType, Informer, Involved, Queue, Reconcile, Registration, kinds,
};
use serde_json::{Value, json};

use crate::claim::ignore_missing;
use crate::context::{Ctx, decode, work};
use crate::pods::Pod;

pub use plan::Node;
use plan::{Execution, counted_in, evicts, grace, lost_conditions, needs_turn, wanted_taints, zone};
use zones::{Admission, Turn, Zones};

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
        work(&ctx, NAME, &[&worker.nodes, &worker.leases, &worker.pods], &worker.queue, WORKERS, &worker)
            .await
    }
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
            let name = &change.key.name;
            match &change.new {
                Some(lease) => worker.beat(name, Some(lease.meta().resource_version.clone()), None),
                // One that outlived its node.
                None if worker.nodes.get(&Key::new("", name.as_str())).is_none() => {
                    worker.heartbeats.lock().remove(name);
                }
                None => {}
            }
        });
        [nodes, leases]
    }

    fn node_changed(&self, change: &Change) {
        let name = &change.key.name;
        self.tell_of(change);
        let Some(new) = &change.new else {
            self.heartbeats.lock().remove(name);
            let turn = self.zones.lock().see(name, None, false);
            self.turned(turn);
            return;
        };
        if let Ok(node) = decode::<Node>(new) {
            let beat = node.condition("Ready").and_then(|ready| ready.last_heartbeat_time);
            self.beat(name, None, beat);
            let turn = self.zones.lock().see(name, counted_in(&node), node.is_ready());
            self.turned(turn);
        }
        self.queue.add(name.clone());
    }

    /// Nodes that come and go are told of. Source: `RecordNodeEvent` in `monitorNodeHealth`.
    fn tell_of(&self, change: &Change) {
        let (reason, what, node) = match (&change.old, &change.new) {
            (None, Some(new)) => ("RegisteredNode", "Registered Node NAME in Controller", new),
            (Some(old), None) => ("RemovingNode", "Removing Node NAME from Controller", old),
            _ => return,
        };
        let name = &change.key.name;
        let message = format!("Node {name} event: {}", what.replace("NAME", name));
        let involved = Involved::named(&kinds::NODES, &change.key, &node.meta().uid);
        self.events.event(involved, EventType::Normal, reason, message);
    }

    /// What a change of one node means for the others.
    fn turned(&self, turn: Turn) {
        match turn {
            Turn::Same => {}
            Turn::Look(nodes) => nodes.into_iter().for_each(|node| self.queue.add(node)),
            Turn::Stopped => {
                tracing::info!("no node is ready: pods stay where they are until one is");
                self.look_at_all();
            }
            Turn::Resumed => {
                tracing::info!("a node is ready again: those that stay silent from now on lose their pods");
                let now = self.ctx.clock.now();
                self.heartbeats.lock().values_mut().for_each(|held| held.seen = now);
                self.look_at_all();
            }
        }
    }

    fn look_at_all(&self) {
        self.nodes.list().iter().for_each(|node| self.queue.add(node.meta().name.clone()));
    }

    /// Whether the node's pods may be told to leave it now, and when to ask again otherwise.
    fn execution(&self, node: &Node, now: Timestamp) -> (Execution, Option<Duration>) {
        let name = &node.metadata.name;
        let mut zones = self.zones.lock();
        if zones.is_stopped() {
            return (Execution::Stopped, None);
        }
        if !needs_turn(node) {
            zones.leave(name).into_iter().for_each(|next| self.queue.add(next));
            return (Execution::Waits, None);
        }
        match zones.admit(name, &zone(node), now) {
            Admission::Now(next) => {
                if let Some((next, pause)) = next {
                    self.queue.add_after(next, pause);
                }
                (Execution::Allowed, None)
            }
            Admission::After(wait) => (Execution::Waits, Some(wait)),
            Admission::Waits => (Execution::Waits, None),
            Admission::Stopped => (Execution::Stopped, None),
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

    fn last_seen(&self, node: &str) -> Timestamp {
        self.heartbeats.lock().get(node).map_or_else(|| self.ctx.clock.now(), |held| held.seen)
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

    async fn write_lost(&self, object: &Object, node: &Node, lost: &[Value]) -> Result<(), BoxError> {
        let patch = json!({ "metadata": { "uid": node.metadata.uid }, "status": { "conditions": lost } });
        let kind = PatchType::StrategicMerge;
        let written =
            self.ctx.client.patch(&kinds::NODES.gvr(), &object.key(), "status", kind, &patch).await?;
        self.ctx.caught_up(&self.nodes, written.revision()).await;
        if !node.is_ready() {
            return Ok(());
        }
        let message = format!("Node {} status is now: NodeNotReady", node.metadata.name);
        self.events.event(
            Involved::object(&kinds::NODES, object),
            EventType::Normal,
            "NodeNotReady",
            message,
        );
        Ok(())
    }
}

#[async_trait]
impl Reconcile<String> for Worker {
    async fn reconcile(&self, name: &String) -> Result<Action, BoxError> {
        let key = Key::new("", name.as_str());
        let Some(object) = self.nodes.get(&key) else { return Ok(Action::Done) };
        let node: Node = decode(&object)?;
        let now = self.ctx.clock.now();
        let silent = Duration::try_from(now.duration_since(self.last_seen(name))).unwrap_or_default();
        let lost = if silent > grace(&node) { lost_conditions(&node, now) } else { Vec::new() };
        if !lost.is_empty() {
            // The change that this is brings the node back here.
            self.write_lost(&object, &node, &lost).await?;
            return Ok(Action::Done);
        }
        let (execution, wait) = self.execution(&node, now);
        if let Some(taints) = wanted_taints(&node, execution, now) {
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
        // What a node says of itself, its agent says of its pods as well.
        if node.condition("Ready").is_some_and(|ready| ready.status == "Unknown") {
            self.mark_pods_not_ready(name).await?;
        }
        let left = Some(grace(&node).saturating_sub(silent)).filter(|left| !left.is_zero());
        let left = left.map(|left| left + Duration::from_millis(1));
        Ok(Action::after(left.into_iter().chain(wait)))
    }
}
