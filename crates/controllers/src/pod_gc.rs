//! Pods that nobody else ends: those on nodes that are gone or out of service, those deleted before they had a node, and
//! finished ones beyond a number. Source: `k8s.io/kubernetes/pkg/controller/podgc`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, Object, PatchType, Reason};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use jiff::Timestamp;
use parking_lot::Mutex;
use reconcile::{Action, Change, Informer, Queue, Reconcile, Registration, kinds};
use serde_json::json;

use crate::claim::ignore_gone;
use crate::context::{Ctx, decode, work};
use crate::node_lifecycle::Node;
use crate::pods::Pod;

const NAME: &str = "pod-garbage-collector-controller";
/// So many deletions are under way at once. Upstream sends all of a round together.
const WORKERS: usize = 8;
/// Finished pods beyond this number go, the oldest first. Source: `--terminated-pod-gc-threshold`.
const FINISHED_MAX: usize = 12_500;
/// A node may be made anew under its name: its pods wait so long. Source: `quarantineTime`.
const QUARANTINE: Duration = Duration::from_secs(40);
/// An administrator says by this taint that a node is off: its pods run no more. Source: `v1.TaintNodeOutOfService`.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Why pods are ended. Source: `podgc/metrics`.
const TERMINATED: &str = "terminated";
const OFF: &str = "out-of-service";
const ORPHANED: &str = "orphaned";
const UNSCHEDULED: &str = "unscheduled";

/// The pod garbage collector.
pub struct PodGc {
    ctx: Ctx,
}

impl PodGc {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for PodGc {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker {
            ctx: self.ctx.clone(),
            pods: self.ctx.informers.get(kinds::PODS),
            nodes: self.ctx.informers.get(kinds::NODES),
            queue: self.ctx.queue("orphaned_pods_nodes"),
            finished: Mutex::new(Finished::new(FINISHED_MAX)),
        });
        // Without the nodes every pod would look lost.
        tokio::select! {
            () = ctx.cancelled() => return Ok(()),
            () = worker.nodes.synced() => {}
        }
        let _registrations = worker.listen();
        work(&ctx, NAME, &[&worker.pods], &worker.queue, WORKERS, &worker).await
    }
}

/// Who goes first among finished pods: what was evicted, then by age and name. Source: `byEvictionAndCreationTimestamp`.
type Rank = (bool, Option<Timestamp>, String, String);

/// A pod's rank if it is finished. One that is on its way out already is not counted: it makes room for nobody however
/// often it is deleted, if a finalizer holds it.
fn rank(pod: &Object) -> Option<Rank> {
    let meta = pod.meta();
    let status = pod.decode::<Pod>().ok().filter(Pod::is_finished)?.status;
    let evicted = status.phase == "Failed" && status.reason == "Evicted";
    (!meta.is_terminating())
        .then(|| (!evicted, meta.creation_timestamp, meta.name.clone(), meta.namespace.clone()))
}

/// The finished pods: so many may stay, and all others rank before them.
struct Finished {
    most: usize,
    stay: BTreeSet<Rank>,
    surplus: BTreeSet<Rank>,
    /// As each was counted: what is told when one goes may say something else.
    ranks: HashMap<Key, Rank>,
}

impl Finished {
    fn new(most: usize) -> Self {
        Self { most, stay: BTreeSet::new(), surplus: BTreeSet::new(), ranks: HashMap::new() }
    }

    /// Counts a pod by its rank, or no more if it has none; gives the one that is too many then.
    fn count(&mut self, key: &Key, rank: Option<Rank>) -> Option<Key> {
        if self.ranks.get(key) == rank.as_ref() {
            return None;
        }
        if let Some(held) = self.ranks.remove(key) {
            self.remove(&held);
        }
        let rank = rank?;
        self.ranks.insert(key.clone(), rank.clone());
        self.stay.insert(rank);
        let first = if self.stay.len() > self.most { self.stay.pop_first() } else { None }?;
        let key = Key::new(first.3.as_str(), first.2.as_str());
        self.surplus.insert(first);
        Some(key)
    }

    /// The room is for the last of those that were too many.
    fn remove(&mut self, rank: &Rank) {
        if self.stay.remove(rank) {
            self.stay.extend(self.surplus.pop_last());
        } else {
            self.surplus.remove(rank);
        }
    }

    fn is_surplus(&self, key: &Key) -> bool {
        self.ranks.get(key).is_some_and(|rank| self.surplus.contains(rank))
    }
}

/// Whether nobody will say of a node's pods that they have ended. Source: `gcTerminating`.
fn is_out_of_service(node: &Object) -> bool {
    let off =
        |node: Node| !node.is_ready() && node.spec.taints.iter().any(|taint| taint.key == OUT_OF_SERVICE);
    node.decode().is_ok_and(off)
}

struct Worker {
    ctx: Ctx,
    pods: Informer,
    nodes: Informer,
    queue: Queue<Key>,
    finished: Mutex<Finished>,
}

impl Worker {
    fn listen(self: &Arc<Self>) -> [Registration; 2] {
        let weak = Arc::downgrade(self);
        let pods = self.pods.on_change(move |change| {
            if let Some(worker) = weak.upgrade() {
                worker.pod_changed(change);
            }
        });
        let weak = Arc::downgrade(self);
        let nodes = self.nodes.on_change(move |change| {
            if let Some(worker) = weak.upgrade() {
                worker.node_changed(change);
            }
        });
        [pods, nodes]
    }

    fn node_changed(&self, change: &Change) {
        let name = &change.key.name;
        let Some(node) = &change.new else {
            return self
                .pods
                .on_node(name)
                .iter()
                .for_each(|pod| self.queue.add_after(pod.key(), QUARANTINE));
        };
        if is_out_of_service(node) && !change.old.as_ref().is_some_and(|old| is_out_of_service(old)) {
            let terminating = self.pods.on_node(name).into_iter().filter(|pod| pod.meta().is_terminating());
            terminating.for_each(|pod| self.queue.add(pod.key()));
        }
    }

    fn node(&self, name: &str) -> Option<Arc<Object>> {
        self.nodes.get(&Key::new("", name))
    }

    fn pod_changed(&self, change: &Change) {
        let surplus = self.finished.lock().count(&change.key, change.new.as_deref().and_then(rank));
        surplus.into_iter().for_each(|pod| self.queue.add(pod));
        let Some(new) = &change.new else { return };
        let terminating = new.meta().is_terminating();
        match new.node_name().map(|name| self.node(name)) {
            None if terminating => self.queue.add(change.key.clone()),
            Some(None) => self.queue.add_after(change.key.clone(), QUARANTINE),
            Some(Some(node)) if terminating && is_out_of_service(&node) => {
                self.queue.add(change.key.clone());
            }
            _ => {}
        }
    }

    /// Whether a node is truly gone: the cache says so, and the server too.
    async fn node_is_gone(&self, name: &str) -> Result<bool, BoxError> {
        if self.node(name).is_some() {
            return Ok(false);
        }
        match self.ctx.client.get(&kinds::NODES.gvr(), &Key::new("", name)).await {
            Ok(_) => Ok(false),
            Err(status) if status.reason == Reason::NotFound => Ok(true),
            Err(status) => Err(status.into()),
        }
    }

    /// Ends a pod at once: nobody waits for what it still does. Why, in upstream's words.
    async fn end(&self, object: &Object, why: &str) -> Result<(), BoxError> {
        let done = self.end_now(object, why == ORPHANED).await;
        if let Some(figures) = &self.ctx.figures {
            figures.leaving.ended(&object.meta().namespace, why, done.is_ok());
        }
        done
    }

    async fn end_now(&self, object: &Object, disrupted: bool) -> Result<(), BoxError> {
        self.mark_failed(object, disrupted).await?;
        let options = DeleteOptions {
            grace_period_seconds: Some(0),
            precondition_uid: Some(object.meta().uid.clone()),
            ..DeleteOptions::default()
        };
        ignore_gone(self.ctx.client.delete(&kinds::PODS.gvr(), &object.key(), options).await)?;
        Ok(())
    }

    /// Nobody will report for a pod without a node, or whose node is gone (`disrupted`): it has failed. Whoever holds it
    /// with a finalizer until it has ended, as Jobs do, would wait for ever.
    async fn mark_failed(&self, object: &Object, disrupted: bool) -> Result<(), BoxError> {
        let pod: Pod = decode(object)?;
        if pod.is_finished() {
            return Ok(());
        }
        let mut patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "phase": "Failed" } });
        if disrupted {
            patch["status"]["conditions"] = json!([{
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                "message": "PodGC: node no longer exists",
                "lastTransitionTime": reconcile::time::seconds(self.ctx.clock.now()),
            }]);
        }
        let resource = kinds::PODS.gvr();
        let kind = PatchType::StrategicMerge;
        // A conflict is tried again: the pod may be the same one, and must not go before it says that it has failed.
        match self.ctx.client.patch(&resource, &object.key(), "status", kind, &patch).await {
            Err(status) if status.reason != Reason::NotFound => Err(status.into()),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.pods.get(key) else { return Ok(Action::Done) };
        let terminating = object.meta().is_terminating();
        let off = |name: &str| self.node(name).is_some_and(|node| is_out_of_service(&node));
        match object.node_name() {
            None if terminating => self.end(&object, UNSCHEDULED).await?,
            Some(node) if terminating && off(node) => self.end(&object, OFF).await?,
            Some(node) if self.node_is_gone(node).await? => self.end(&object, ORPHANED).await?,
            _ if self.finished.lock().is_surplus(key) => self.end(&object, TERMINATED).await?,
            _ => {}
        }
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn pod(name: &str, created: i64, status: Value, deleted: bool) -> Object {
        let at = |second: i64| Timestamp::from_second(second).unwrap().to_string();
        let body = json!({ "metadata": { "name": name, "namespace": "ns", "uid": name,
            "creationTimestamp": at(created), "deletionTimestamp": deleted.then(|| at(created)) },
            "status": status });
        Object::parse(serde_json::to_vec(&body).unwrap().into()).unwrap()
    }

    fn ended(name: &str, created: i64) -> Rank {
        rank(&pod(name, created, json!({ "phase": "Succeeded" }), false)).unwrap()
    }

    #[test]
    fn what_was_evicted_goes_first_and_then_the_oldest() {
        let evicted = rank(&pod("evicted", 9, json!({ "phase": "Failed", "reason": "Evicted" }), false));
        let mut all = [ended("young", 3), ended("b", 2), ended("a", 2), evicted.unwrap()];
        all.sort();
        let names: Vec<&str> = all.iter().map(|rank| rank.2.as_str()).collect();
        assert_eq!(names, ["evicted", "a", "b", "young"]);
        assert_eq!(rank(&pod("runs", 1, json!({ "phase": "Running" }), false)), None);
        assert_eq!(rank(&pod("stuck", 1, json!({ "phase": "Failed" }), true)), None);
    }

    #[test]
    fn all_that_are_too_many_are_told_and_none_when_there_is_room() {
        let mut finished = Finished::new(2);
        let mut count = |name: &str, rank: Option<Rank>| {
            let surplus = finished.count(&Key::new("ns", name), rank).map(|key| key.name);
            let names = |ranks: &BTreeSet<Rank>| ranks.iter().map(|rank| rank.2.clone()).collect::<Vec<_>>();
            (surplus.unwrap_or_default(), names(&finished.stay), names(&finished.surplus))
        };
        let told: Vec<String> = (1..=5)
            .map(|age| format!("p{age}"))
            .zip(1..)
            .map(|(name, age)| count(&name, Some(ended(&name, age))).0)
            .collect();
        assert_eq!(told, ["", "", "p1", "p2", "p3"]);
        // An older one that comes late is too many itself; the same once more is no news.
        assert_eq!(count("p0", Some(ended("p0", 0))).0, "p0");
        assert_eq!(count("p0", Some(ended("p0", 0))).0, "");
        assert_eq!(count("p5", None).1, ["p3", "p4"]);
        assert_eq!(count("p0", None).2, ["p1", "p2"]);
    }

    #[test]
    fn a_node_is_off_if_it_is_not_ready_and_somebody_says_so() {
        let off = |ready: &str, taints: Value| {
            let node = json!({ "metadata": { "name": "n", "uid": "n" }, "spec": { "taints": taints },
                "status": { "conditions": [{ "type": "Ready", "status": ready }] } });
            is_out_of_service(&Object::parse(serde_json::to_vec(&node).unwrap().into()).unwrap())
        };
        let taint = json!([{ "key": OUT_OF_SERVICE, "value": "nodeshutdown", "effect": "NoExecute" }]);
        assert!(off("Unknown", taint.clone()) && off("False", taint.clone()));
        assert!(!off("True", taint) && !off("Unknown", json!([])));
    }
}
