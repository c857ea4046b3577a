//! Gives each node its range of pod addresses. Source: `k8s.io/kubernetes/pkg/controller/nodeipam`, range allocator.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::{Key, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use ipnet::Ipv4Net;
use reconcile::{Action, EventRecorder, EventType, Informer, Involved, Reconcile, kinds, run_workers};
use serde::Deserialize;
use serde_json::json;

use crate::context::{Ctx, decode, ready};

const NAME: &str = "node-ipam-controller";

/// The controller.
pub struct NodeIpam {
    ctx: Ctx,
    ranges: Arc<[Ipv4Net]>,
}

impl NodeIpam {
    /// Gives `ranges` out, the first free one first.
    pub fn new(ctx: &Ctx, ranges: impl IntoIterator<Item = Ipv4Net>) -> Self {
        Self { ctx: ctx.named(NAME), ranges: ranges.into_iter().collect() }
    }
}

#[async_trait]
impl Component for NodeIpam {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let events = EventRecorder::new(self.ctx.client.clone(), self.ctx.clock.clone(), "cidrAllocator", "");
        let nodes = self.ctx.informers.get(kinds::NODES);
        let worker = Arc::new(Worker { ctx: self.ctx.clone(), nodes, ranges: self.ranges.clone(), events });
        if !ready(&ctx, &[&worker.nodes]).await {
            return Ok(());
        }
        let queue = self.ctx.queue("cidrallocator_node");
        let listener = queue.clone();
        let _registration = worker.nodes.on_change(move |change| listener.add(change.key.clone()));
        // One worker: two at once could give the same range out.
        run_workers(&ctx, NAME, &queue, 1, worker).await;
        Ok(())
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Node {
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: String,
}

struct Worker {
    ctx: Ctx,
    nodes: Informer,
    ranges: Arc<[Ipv4Net]>,
    events: EventRecorder,
}

/// The range that is wished, if it is one of them and no node has it; else the first that no node has.
fn free(ranges: &[Ipv4Net], used: &BTreeSet<Ipv4Net>, wished: Option<Ipv4Net>) -> Option<Ipv4Net> {
    let is_free = |range: &&Ipv4Net| !used.contains(range);
    let again = ranges.iter().filter(is_free).find(|range| Some(**range) == wished);
    again.or_else(|| ranges.iter().find(is_free)).copied()
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.nodes.get(key) else { return Ok(Action::Done) };
        let node: Node = decode(&object)?;
        if !node.spec.pod_cidr.is_empty() || object.meta().is_terminating() {
            return Ok(Action::Done);
        }
        let mut used = BTreeSet::new();
        for other in self.nodes.list() {
            let other: Node = decode(&other)?;
            used.extend(other.spec.pod_cidr.parse::<Ipv4Net>());
        }
        let wished = object.annotation(kinds::WISHED_POD_RANGE).and_then(|range| range.parse().ok());
        let Some(range) = free(&self.ranges, &used, wished) else {
            let message = "no range of pod addresses is left for this node: delete nodes that are gone";
            let involved = Involved::object(&kinds::NODES, &object);
            self.events.event(involved, EventType::Warning, "CIDRNotAvailable", message);
            return Err(message.into());
        };
        let range = range.to_string();
        let patch = json!({
            "metadata": { "uid": object.meta().uid },
            "spec": { "podCIDR": range, "podCIDRs": [range] },
        });
        let written = self.ctx.client.patch(&kinds::NODES.gvr(), key, "", PatchType::Merge, &patch).await?;
        // The next node is decided over a cache that shows this one.
        self.ctx.caught_up(&self.nodes, written.revision()).await;
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_given_once_and_again_when_free() {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<Ipv4Net>>();
        let ranges = nets(&["10.42.0.0/24", "10.42.1.0/24"]);
        let used = |list: &[&str]| nets(list).into_iter().collect::<BTreeSet<_>>();
        assert_eq!(free(&ranges, &used(&[]), None), Some(ranges[0]));
        assert_eq!(free(&ranges, &used(&["10.42.0.0/24"]), None), Some(ranges[1]));
        assert_eq!(free(&ranges, &used(&["10.42.1.0/24"]), None), Some(ranges[0]));
        assert_eq!(free(&ranges, &used(&["10.42.0.0/24", "10.42.1.0/24"]), None), None);
    }

    #[test]
    fn a_node_gets_its_old_range_again_unless_another_has_it() {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<Ipv4Net>>();
        let ranges = nets(&["10.42.0.0/24", "10.42.1.0/24"]);
        let used = |list: &[&str]| nets(list).into_iter().collect::<BTreeSet<_>>();
        assert_eq!(free(&ranges, &used(&[]), Some(ranges[1])), Some(ranges[1]));
        assert_eq!(free(&ranges, &used(&["10.42.1.0/24"]), Some(ranges[1])), Some(ranges[0]));
        for strange in nets(&["0.0.0.0/0", "10.42.0.0/23", "192.0.2.0/24"]) {
            assert_eq!(free(&ranges, &used(&[]), Some(strange)), Some(ranges[0]));
        }
    }
}
