//! Pods leave nodes with NoExecute taints that they do not tolerate, at once or when their toleration ends.
//! Source: `k8s.io/kubernetes/pkg/controller/tainteviction`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, Object, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use jiff::Timestamp;
use parking_lot::Mutex;
use reconcile::taints::Taint;
use reconcile::{
    Action, Change, EventRecorder, EventType, Informer, Involved, Queue, Reconcile, kinds, run_workers,
};
use serde_json::json;

use crate::claim::{ignore_gone, ignore_missing};
use crate::context::{Ctx, decode, ready};
use crate::node_lifecycle::Node;
use crate::pods::{Condition, Pod};

const NAME: &str = "taint-eviction-controller";
/// Source: `UpdateWorkerSize`.
const WORKERS: usize = 8;

/// The taint eviction controller.
pub struct TaintEviction {
    ctx: Ctx,
}

impl TaintEviction {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for TaintEviction {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let nodes = self.ctx.informers.get(kinds::NODES);
        let pods = self.ctx.informers.get(kinds::PODS);
        let worker = Arc::new(Worker {
            queue: self.ctx.queue("noexec_taint_pod"),
            events: EventRecorder::new(self.ctx.client.clone(), self.ctx.clock.clone(), NAME, ""),
            ctx: self.ctx.clone(),
            seen: Mutex::default(),
            doomed: Mutex::default(),
            nodes,
            pods,
        });
        let (by_pods, by_nodes) = (worker.clone(), worker.clone());
        let _registrations = [
            worker.pods.on_change(move |change| by_pods.pod_changed(change)),
            worker.nodes.on_change(move |change| by_nodes.node_changed(change)),
        ];
        if !ready(&ctx, &[&worker.nodes, &worker.pods]).await {
            return Ok(());
        }
        run_workers(&ctx, NAME, &worker.queue, WORKERS, worker.clone()).await;
        Ok(())
    }
}

struct Worker {
    ctx: Ctx,
    nodes: Informer,
    pods: Informer,
    queue: Queue<Key>,
    events: EventRecorder,
    /// Since when a node has which taints, by name. Few say it themselves: `kubectl taint` does not.
    seen: Mutex<HashMap<String, Vec<Taint>>>,
    /// The uids of pods that have to leave in a while.
    doomed: Mutex<HashMap<Key, String>>,
}

/// A node's NoExecute taints.
fn executing(node: &Node) -> Vec<Taint> {
    node.spec.taints.iter().filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

/// These taints, each with the moment at which it came: as it says, as it was known before, or now.
fn dated(taints: Vec<Taint>, known: &[Taint], now: Timestamp) -> Vec<Taint> {
    let same = |a: &Taint, b: &Taint| a.key == b.key && a.value == b.value;
    let date = |taint: Taint| {
        let before = || known.iter().find(|held| same(held, &taint)).and_then(|held| held.time_added);
        let time_added = taint.time_added.or_else(before).or(Some(now));
        Taint { time_added, ..taint }
    };
    taints.into_iter().map(date).collect()
}

/// Since when a pod is on its node: one that waited for long has its time there all the same.
fn placed_at(pod: &Pod) -> Option<Timestamp> {
    let placed = |held: &&Condition| held.r#type == "PodScheduled" && held.status == "True";
    let scheduled = pod.status.conditions.iter().find(placed).and_then(|held| held.last_transition_time);
    scheduled.max(pod.metadata.creation_timestamp)
}

/// When a pod has to leave: `None` never. Tolerations run from when the taint came, or the pod if that was later; of
/// several for one taint the first counts. Source: `v1helper.GetMatchingTolerations`, `getMinTolerationTime`.
fn leaves_at(pod: &Pod, taints: &[Taint], now: Timestamp) -> Option<Timestamp> {
    // By a clock that has gone back it is not there yet.
    let placed = placed_at(pod).filter(|placed| *placed <= now);
    let mut earliest: Option<Timestamp> = None;
    for taint in taints {
        let Some(toleration) = pod.spec.tolerations.iter().find(|toleration| toleration.covers(taint)) else {
            return Some(now);
        };
        let Some(seconds) = toleration.toleration_seconds else { continue };
        let since = taint.time_added.max(placed).unwrap_or(now);
        let wait = jiff::SignedDuration::from_secs(seconds.max(0));
        let deadline = since.saturating_add(wait).unwrap_or(Timestamp::MAX);
        earliest = Some(earliest.map_or(deadline, |earliest| earliest.min(deadline)));
    }
    earliest
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let now = self.ctx.clock.now();
        let found = self.pods.get(key).filter(|pod| !pod.meta().is_terminating());
        let Some((object, taints)) =
            found.and_then(|pod| Some((pod.clone(), self.taints(pod.node_name()?, now)?)))
        else {
            self.spare(key);
            return Ok(Action::Done);
        };
        let pod: Pod = decode(&object)?;
        match leaves_at(&pod, &taints, now) {
            None => self.spare(key),
            Some(deadline) if deadline > now => {
                self.doomed.lock().insert(key.clone(), pod.metadata.uid);
                let wait = Duration::try_from(deadline.duration_since(now)).unwrap_or_default();
                return Ok(Action::After(wait));
            }
            Some(deadline) => {
                self.evict(key, &pod).await?;
                self.doomed.lock().remove(key);
                if let Some(figures) = &self.ctx.figures {
                    let late = self.ctx.clock.now().duration_since(deadline);
                    figures.leaving.tainted.deleted(late.try_into().unwrap_or_default());
                }
            }
        }
        Ok(Action::Done)
    }
}

impl Worker {
    fn pod_changed(&self, change: &Change) {
        let placed =
            |pod: &Option<Arc<Object>>| pod.as_ref().and_then(|pod| pod.node_name().map(str::to_owned));
        let changed = match (&change.old, &change.new) {
            (Some(old), Some(new)) => old.meta().generation != new.meta().generation,
            _ => true,
        };
        if changed || placed(&change.old) != placed(&change.new) {
            self.queue.add(change.key.clone());
        }
    }

    fn node_changed(&self, change: &Change) {
        let name = &change.key.name;
        let read = |node: &Option<Arc<Object>>| {
            node.as_ref().and_then(|node| decode::<Node>(node).ok()).map(|node| executing(&node))
        };
        let (old, new) = (read(&change.old).unwrap_or_default(), read(&change.new).unwrap_or_default());
        if old == new {
            return;
        }
        self.note(name, new);
        for pod in self.pods.on_node(name) {
            self.queue.add(pod.key());
        }
    }

    /// Remembers since when a node has its taints.
    fn note(&self, node: &str, taints: Vec<Taint>) {
        let mut seen = self.seen.lock();
        if taints.is_empty() {
            seen.remove(node);
            return;
        }
        let known = seen.get(node).map_or(&[][..], Vec::as_slice);
        let taints = dated(taints, known, self.ctx.clock.now());
        seen.insert(node.to_owned(), taints);
    }

    /// The taints by which pods leave a node, each with its moment; nothing where there are none. What came later than now
    /// did so by a clock that has gone back: it came now, else pods would stay until the clock is where it was.
    fn taints(&self, node: &str, now: Timestamp) -> Option<Vec<Taint>> {
        let mut seen = self.seen.lock();
        let taints = seen.get_mut(node)?;
        taints.iter_mut().for_each(|taint| taint.time_added = taint.time_added.min(Some(now)));
        Some(taints.clone())
    }

    /// A pod that was to leave stays, or is gone already.
    fn spare(&self, key: &Key) {
        let Some(uid) = self.doomed.lock().remove(key) else { return };
        let involved = Involved::named(&kinds::PODS, key, &uid);
        let message = format!("Cancelling deletion of Pod {key}");
        self.events.event(involved, EventType::Normal, "TaintManagerEviction", message);
    }

    async fn evict(&self, key: &Key, pod: &Pod) -> Result<(), BoxError> {
        let uid = &pod.metadata.uid;
        let message = format!("Marking for deletion Pod {key}");
        let involved = Involved::named(&kinds::PODS, key, uid);
        self.events.event(involved, EventType::Normal, "TaintManagerEviction", message);
        let message = "Taint manager: deleting due to NoExecute taint";
        evict(&self.ctx, key, uid, "DeletionByTaintManager", message).await
    }
}

/// Says of a pod why it is disrupted, and deletes it, if it is still this one.
pub(crate) async fn evict(
    ctx: &Ctx,
    key: &Key,
    uid: &str,
    reason: &str,
    message: &str,
) -> Result<(), BoxError> {
    let resource = kinds::PODS.gvr();
    let patch = json!({
        "metadata": { "uid": uid },
        "status": { "conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": reconcile::time::seconds(ctx.clock.now()),
        }] },
    });
    // A conflict is tried again: the pod may be the same one, and must not go before it says why.
    ignore_missing(ctx.client.patch(&resource, key, "status", PatchType::StrategicMerge, &patch).await)?;
    let options = DeleteOptions { precondition_uid: Some(uid.to_owned()), ..DeleteOptions::default() };
    ignore_gone(ctx.client.delete(&resource, key, options).await)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_toleration_counts_from_the_taint() {
        let start: Timestamp = "2024-01-01T00:00:00Z".parse().unwrap();
        let taint = |key: &str| Taint {
            key: key.into(),
            effect: "NoExecute".into(),
            time_added: Some(start),
            ..Taint::default()
        };
        let pod = |tolerations: serde_json::Value| -> Pod {
            serde_json::from_value(json!({ "spec": { "tolerations": tolerations } })).unwrap()
        };
        let now = start + Duration::from_secs(5);
        let both = [taint("a"), taint("b")];
        assert_eq!(leaves_at(&pod(json!([{ "key": "a", "operator": "Exists" }])), &both, now), Some(now));
        let some = pod(json!([
            { "key": "a", "operator": "Exists", "tolerationSeconds": 300 },
            { "key": "b", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60 },
        ]));
        assert_eq!(leaves_at(&some, &both, now), Some(start + Duration::from_secs(60)));
        assert_eq!(leaves_at(&pod(json!([{ "operator": "Exists" }])), &both, now), None);
    }

    #[test]
    fn a_pod_has_its_time_wherever_the_taint_and_the_pod_come_from() {
        let at = |seconds: u64| Timestamp::UNIX_EPOCH + Duration::from_secs(seconds);
        let bare = Taint { key: "a".into(), effect: "NoExecute".into(), ..Taint::default() };
        // One that says no moment came when it was seen first, and is as old after each look.
        let first = dated(vec![bare.clone()], &[], at(5000));
        let again = dated(vec![bare], &first, at(5100));
        assert_eq!(again[0].time_added, Some(at(5000)));
        let pod = |tolerations: serde_json::Value, placed: serde_json::Value| -> Pod {
            serde_json::from_value(json!({
                "metadata": { "creationTimestamp": "1970-01-01T00:00:10Z" }, "spec": { "tolerations": tolerations },
                "status": { "conditions": [
                    { "type": "PodScheduled", "status": "True", "lastTransitionTime": placed }] },
            }))
            .unwrap()
        };
        let brief = json!([{ "key": "a", "operator": "Exists", "tolerationSeconds": 60 }]);
        let old = pod(brief.clone(), json!("1970-01-01T00:00:20Z"));
        assert_eq!(leaves_at(&old, &again, at(5001)), Some(at(5060)));
        let late = pod(brief, json!("1970-01-01T02:00:00Z"));
        assert_eq!(leaves_at(&late, &again, at(7200)), Some(at(7260)));
        // Of several that cover a taint the first counts.
        let both =
            json!([{ "operator": "Exists" }, { "key": "a", "operator": "Exists", "tolerationSeconds": 1 }]);
        assert_eq!(leaves_at(&pod(both, json!(null)), &again, at(9000)), None);
    }
}
