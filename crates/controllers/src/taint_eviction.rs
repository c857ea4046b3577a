//! Pods leave nodes with NoExecute taints that they do not tolerate, at once or when their toleration ends.
//! Source: `k8s.io/kubernetes/pkg/controller/tainteviction`.

use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use jiff::Timestamp;
use reconcile::taints::Taint;
use reconcile::{Action, EventRecorder, EventType, Informer, Involved, Queue, Reconcile, kinds, run_workers};
use serde_json::json;

use crate::claim::ignore_gone;
use crate::context::{Ctx, decode, ready};
use crate::node_lifecycle::Node;
use crate::pods::Pod;

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
        let queue: Queue<Key> = self.ctx.queue("noexec_taint_pod");
        let (from_pods, from_nodes, all_pods) = (queue.clone(), queue.clone(), pods.clone());
        let _registrations = [
            pods.on_change(move |change| {
                let placed = |pod: &Option<Arc<api::Object>>| {
                    pod.as_ref().and_then(|pod| pod.node_name().map(str::to_owned))
                };
                let changed = match (&change.old, &change.new) {
                    (Some(old), Some(new)) => old.meta().generation != new.meta().generation,
                    _ => true,
                };
                if changed || placed(&change.old) != placed(&change.new) {
                    from_pods.add(change.key.clone());
                }
            }),
            nodes.on_change(move |change| {
                let taints = |node: &Option<Arc<api::Object>>| {
                    node.as_ref().and_then(|node| node.decode::<Node>().ok()).map(|node| executing(&node))
                };
                if taints(&change.old).unwrap_or_default() != taints(&change.new).unwrap_or_default() {
                    for pod in all_pods.on_node(&change.key.name) {
                        from_nodes.add(pod.key());
                    }
                }
            }),
        ];
        if !ready(&ctx, &[&nodes, &pods]).await {
            return Ok(());
        }
        let events = EventRecorder::new(self.ctx.client.clone(), self.ctx.clock.clone(), NAME, "");
        let worker = Arc::new(Worker { ctx: self.ctx.clone(), nodes, pods, events });
        run_workers(&ctx, NAME, &queue, WORKERS, worker).await;
        Ok(())
    }
}

struct Worker {
    ctx: Ctx,
    nodes: Informer,
    pods: Informer,
    events: EventRecorder,
}

/// A node's NoExecute taints.
fn executing(node: &Node) -> Vec<Taint> {
    node.spec.taints.iter().filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

/// When a pod has to leave: `None` never. Tolerations run from when the taint came, or the pod if that was later.
fn leaves_at(pod: &Pod, taints: &[Taint], now: Timestamp) -> Option<Timestamp> {
    let mut earliest: Option<Timestamp> = None;
    for taint in taints {
        let tolerations: Vec<_> =
            pod.spec.tolerations.iter().filter(|toleration| toleration.covers(taint)).collect();
        if tolerations.is_empty() {
            return Some(now);
        }
        let Some(seconds) = tolerations.iter().filter_map(|toleration| toleration.toleration_seconds).min()
        else {
            continue;
        };
        let since = taint.time_added.max(pod.metadata.creation_timestamp).unwrap_or(now);
        let wait = jiff::SignedDuration::from_secs(seconds.max(0));
        let deadline = since.saturating_add(wait).unwrap_or(Timestamp::MAX);
        earliest = Some(earliest.map_or(deadline, |earliest| earliest.min(deadline)));
    }
    earliest
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.pods.get(key) else { return Ok(Action::Done) };
        let Some(node) = object.node_name().and_then(|node| self.nodes.get(&Key::new("", node))) else {
            return Ok(Action::Done);
        };
        let taints = executing(&decode(&node)?);
        if taints.is_empty() || object.meta().is_terminating() {
            return Ok(Action::Done);
        }
        let pod: Pod = decode(&object)?;
        let now = self.ctx.clock.now();
        match leaves_at(&pod, &taints, now) {
            None => Ok(Action::Done),
            Some(deadline) if deadline > now => {
                Ok(Action::After(Duration::try_from(deadline.duration_since(now)).unwrap_or_default()))
            }
            Some(deadline) => {
                self.evict(key, &pod).await?;
                if let Some(figures) = &self.ctx.figures {
                    let late = self.ctx.clock.now().duration_since(deadline);
                    figures.leaving.tainted.deleted(late.try_into().unwrap_or_default());
                }
                Ok(Action::Done)
            }
        }
    }
}

impl Worker {
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
    ignore_gone(ctx.client.patch(&resource, key, "status", PatchType::StrategicMerge, &patch).await)?;
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
}
