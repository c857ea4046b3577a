//! Pods that nobody else ends: those on nodes that are gone, those deleted before they had a node, and finished ones
//! beyond a number. Source: `k8s.io/kubernetes/pkg/controller/podgc`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, Object, PatchType, Reason};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use jiff::Timestamp;
use parking_lot::Mutex;
use reconcile::{Action, Change, Informer, Queue, Reconcile, Registration, kinds, run_workers};
use serde_json::json;

use crate::claim::ignore_gone;
use crate::context::{Ctx, decode};
use crate::pods::Pod;

const NAME: &str = "pod-garbage-collector-controller";
/// Finished pods beyond this number go, the oldest first. Source: `--terminated-pod-gc-threshold`.
const FINISHED_MAX: usize = 12_500;
/// A node may be made anew under its name: its pods wait so long. Source: `quarantineTime`.
const QUARANTINE: Duration = Duration::from_secs(40);

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
            queue: Queue::new(self.ctx.clock.clone()),
            finished: Mutex::default(),
        });
        // Without the nodes every pod would look lost.
        tokio::select! {
            () = ctx.cancelled() => return Ok(()),
            () = worker.nodes.synced() => {}
        }
        let _registrations = worker.listen();
        tokio::select! {
            () = ctx.cancelled() => return Ok(()),
            () = worker.pods.synced() => {}
        }
        ctx.ready();
        run_workers(&ctx, NAME, &worker.queue, 1, worker.clone()).await;
        Ok(())
    }
}

struct Worker {
    ctx: Ctx,
    pods: Informer,
    nodes: Informer,
    queue: Queue<Key>,
    /// Finished pods, oldest first.
    finished: Mutex<BTreeSet<(Option<Timestamp>, Key)>>,
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
            let Some(worker) = weak.upgrade().filter(|_| change.new.is_none()) else { return };
            for pod in worker.pods.on_node(&change.key.name) {
                worker.queue.add_after(pod.key(), QUARANTINE);
            }
        });
        [pods, nodes]
    }

    fn has_node(&self, name: &str) -> bool {
        self.nodes.get(&Key::new("", name)).is_some()
    }

    fn pod_changed(&self, change: &Change) {
        if let Some(old) = &change.old {
            self.finished.lock().remove(&(old.meta().creation_timestamp, change.key.clone()));
        }
        let Some(new) = &change.new else { return };
        match new.node_name() {
            None if new.meta().is_terminating() => self.queue.add(change.key.clone()),
            Some(node) if !self.has_node(node) => self.queue.add_after(change.key.clone(), QUARANTINE),
            _ => {}
        }
        if new.decode::<Pod>().is_ok_and(|pod| pod.is_finished()) {
            let mut finished = self.finished.lock();
            finished.insert((new.meta().creation_timestamp, change.key.clone()));
            if finished.len() > FINISHED_MAX
                && let Some((_, oldest)) = finished.first()
            {
                self.queue.add(oldest.clone());
            }
        }
    }

    /// Whether a finished pod is one of those that are too many.
    fn is_surplus(&self, key: &Key) -> bool {
        let finished = self.finished.lock();
        let surplus = finished.len().saturating_sub(FINISHED_MAX);
        finished.iter().take(surplus).any(|(_, held)| held == key)
    }

    /// Whether a node is truly gone: the cache says so, and the server too.
    async fn node_is_gone(&self, name: &str) -> Result<bool, BoxError> {
        if self.has_node(name) {
            return Ok(false);
        }
        match self.ctx.client.get(&kinds::NODES.gvr(), &Key::new("", name)).await {
            Ok(_) => Ok(false),
            Err(status) if status.reason == Reason::NotFound => Ok(true),
            Err(status) => Err(status.into()),
        }
    }

    async fn delete(&self, object: &Object, grace_period_seconds: Option<i64>) -> Result<(), BoxError> {
        let options = DeleteOptions {
            grace_period_seconds,
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
        ignore_gone(self.ctx.client.patch(&resource, &object.key(), "status", kind, &patch).await)?;
        Ok(())
    }
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.pods.get(key) else { return Ok(Action::Done) };
        match object.node_name() {
            None if object.meta().is_terminating() => {
                self.mark_failed(&object, false).await?;
                self.delete(&object, Some(0)).await?;
            }
            Some(node) if self.node_is_gone(node).await? => {
                self.mark_failed(&object, true).await?;
                self.delete(&object, Some(0)).await?;
            }
            _ if self.is_surplus(key) => self.delete(&object, None).await?,
            _ => {}
        }
        Ok(Action::Done)
    }
}
