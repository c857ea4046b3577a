//! Gives each node its range of pod addresses. Source: `k8s.io/kubernetes/pkg/controller/nodeipam`, range allocator.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::{Key, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use ipnet::Ipv4Net;
use parking_lot::Mutex;
use reconcile::{
    Action, Change, EventRecorder, EventType, Informer, Involved, Reconcile, kinds, run_workers,
};
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
        let worker = Arc::new(Worker {
            ctx: self.ctx.clone(),
            nodes,
            ranges: self.ranges.clone(),
            given: Mutex::default(),
            events,
        });
        if !ready(&ctx, &[&worker.nodes]).await {
            return Ok(());
        }
        let queue = self.ctx.queue("cidrallocator_node");
        let (listener, waking) = (worker.clone(), queue.clone());
        let _registration = worker.nodes.on_change(move |change| {
            listener.given.lock().see(change);
            waking.add(change.key.clone());
        });
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

impl Node {
    fn range(&self) -> Option<Ipv4Net> {
        self.spec.pod_cidr.parse().ok()
    }
}

/// Which node has which range: read off a node when it changes, and not off all of them for each that needs one.
#[derive(Default)]
struct Given {
    by_node: HashMap<String, Ipv4Net>,
    /// How many nodes have each.
    nodes: BTreeMap<Ipv4Net, usize>,
}

impl Given {
    fn see(&mut self, change: &Change) {
        let node = change.new.as_ref().and_then(|node| decode::<Node>(node).ok());
        let range = node.and_then(|node| node.range());
        // A node never loses its range: one that has none yet may be about to get one.
        if range.is_some() || change.new.is_none() {
            self.set(&change.key.name, range);
        }
    }

    /// Sets a range apart for a node, before anybody hears of it: the one that is set apart already, the one that is
    /// wished, or the first that is free.
    fn reserve(&mut self, node: &str, ranges: &[Ipv4Net], wished: Option<Ipv4Net>) -> Option<Ipv4Net> {
        let range = self.by_node.get(node).copied().or_else(|| free(ranges, &self.nodes, wished))?;
        self.set(node, Some(range));
        Some(range)
    }

    fn set(&mut self, node: &str, range: Option<Ipv4Net>) {
        if self.by_node.get(node).copied() == range {
            return;
        }
        if let Some(range) = range {
            *self.nodes.entry(range).or_default() += 1;
        }
        let former = match range {
            Some(range) => self.by_node.insert(node.to_owned(), range),
            None => self.by_node.remove(node),
        };
        let Some(former) = former else { return };
        if let Some(count) = self.nodes.get_mut(&former) {
            *count -= 1;
            if *count == 0 {
                self.nodes.remove(&former);
            }
        }
    }
}

struct Worker {
    ctx: Ctx,
    nodes: Informer,
    ranges: Arc<[Ipv4Net]>,
    given: Mutex<Given>,
    events: EventRecorder,
}

/// The range that is wished, if it is one of them and no node has it; else the first that no node has.
fn free(ranges: &[Ipv4Net], used: &BTreeMap<Ipv4Net, usize>, wished: Option<Ipv4Net>) -> Option<Ipv4Net> {
    let is_free = |range: &Ipv4Net| !used.contains_key(range);
    let again = wished.filter(|range| is_free(range) && ranges.contains(range));
    again.or_else(|| ranges.iter().copied().find(is_free))
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.nodes.get(key) else { return Ok(Action::Done) };
        let node: Node = decode(&object)?;
        if !node.spec.pod_cidr.is_empty() || object.meta().is_terminating() {
            return Ok(Action::Done);
        }
        let wished = object.annotation(kinds::WISHED_POD_RANGE).and_then(|range| range.parse().ok());
        let range = self.given.lock().reserve(&key.name, &self.ranges, wished);
        let Some(range) = range else {
            // Source: `RecordNodeStatusChange`.
            let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
            let involved = Involved::object(&kinds::NODES, &object);
            self.events.event(involved, EventType::Normal, "CIDRNotAvailable", message);
            return Err("no range of pod addresses is left for this node: delete nodes that are gone".into());
        };
        let text = range.to_string();
        let patch = json!({
            "metadata": { "uid": object.meta().uid },
            "spec": { "podCIDR": text, "podCIDRs": [text] },
        });
        let written = self.ctx.client.patch(&kinds::NODES.gvr(), key, "", PatchType::Merge, &patch).await;
        if let Err(status) = &written
            && (400..500).contains(&status.code)
        {
            // It was refused. After any other failure the node may have it all the same, and it stays set apart.
            self.given.lock().set(&key.name, None);
        }
        written?;
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
        let used = |list: &[&str]| nets(list).into_iter().map(|range| (range, 1)).collect::<BTreeMap<_, _>>();
        assert_eq!(free(&ranges, &used(&[]), None), Some(ranges[0]));
        assert_eq!(free(&ranges, &used(&["10.42.0.0/24"]), None), Some(ranges[1]));
        assert_eq!(free(&ranges, &used(&["10.42.1.0/24"]), None), Some(ranges[0]));
        assert_eq!(free(&ranges, &used(&["10.42.0.0/24", "10.42.1.0/24"]), None), None);
    }

    #[test]
    fn a_range_that_is_set_apart_stays_so_until_the_node_is_gone() {
        let net: Ipv4Net = "10.42.0.0/24".parse().unwrap();
        let node = |spec: serde_json::Value| {
            let node = json!({ "metadata": { "name": "a", "uid": "u" }, "spec": spec });
            Some(Arc::new(api::Object::parse(serde_json::to_vec(&node).unwrap().into()).unwrap()))
        };
        let change = |new| Change { key: Key::new("", "a"), old: None, new };
        let mut given = Given::default();
        assert_eq!(given.reserve("a", &[net], None), Some(net));
        // What the node was before it was told comes late.
        given.see(&change(node(json!({}))));
        assert_eq!((given.reserve("b", &[net], None), given.reserve("a", &[net], None)), (None, Some(net)));
        given.see(&change(node(json!({ "podCIDR": "10.42.0.0/24" }))));
        assert_eq!(given.reserve("b", &[net], None), None);
        given.see(&change(None));
        assert_eq!(given.reserve("b", &[net], None), Some(net));
    }

    #[test]
    fn a_range_is_free_when_the_last_node_that_has_it_is_gone() {
        let net: Ipv4Net = "10.42.0.0/24".parse().unwrap();
        let mut given = Given::default();
        for _ in 0..2 {
            given.set("a", Some(net));
            given.set("b", Some(net));
        }
        assert_eq!(given.nodes, BTreeMap::from([(net, 2)]));
        given.set("a", None);
        assert_eq!(free(&[net], &given.nodes, None), None);
        given.set("b", Some("10.42.1.0/24".parse().unwrap()));
        assert_eq!(free(&[net], &given.nodes, None), Some(net));
    }

    #[test]
    fn a_node_gets_its_old_range_again_unless_another_has_it() {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<Ipv4Net>>();
        let ranges = nets(&["10.42.0.0/24", "10.42.1.0/24"]);
        let used = |list: &[&str]| nets(list).into_iter().map(|range| (range, 1)).collect::<BTreeMap<_, _>>();
        assert_eq!(free(&ranges, &used(&[]), Some(ranges[1])), Some(ranges[1]));
        assert_eq!(free(&ranges, &used(&["10.42.1.0/24"]), Some(ranges[1])), Some(ranges[0]));
        for strange in nets(&["0.0.0.0/0", "10.42.0.0/23", "192.0.2.0/24"]) {
            assert_eq!(free(&ranges, &used(&[]), Some(strange)), Some(ranges[0]));
        }
    }
}
