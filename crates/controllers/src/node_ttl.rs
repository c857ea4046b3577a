//! How long a node may use Secrets and ConfigMaps before it asks for them again: the more nodes there are, the longer.
//! It is told to them by an annotation. Source: `k8s.io/kubernetes/pkg/controller/ttl`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use api::{Key, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::{Action, Informer, Queue, Reconcile, kinds};
use serde_json::json;

use crate::claim::ignore_missing;
use crate::context::{Ctx, work};

const NAME: &str = "ttl-controller";
const WORKERS: usize = 2;
const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";
/// From and up to how many nodes how many seconds hold. They overlap, so that a node more or less does not change all.
/// Source: `ttlBoundaries`.
const STEPS: [(usize, usize, u32); 5] =
    [(0, 100, 0), (90, 500, 15), (450, 1000, 30), (900, 2000, 60), (1800, usize::MAX, 300)];

/// The controller.
pub struct NodeTtl {
    ctx: Ctx,
}

impl NodeTtl {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

/// The step for so many nodes, coming from another one. Pure.
fn next(mut step: usize, nodes: usize) -> usize {
    while nodes > STEPS[step].1 {
        step += 1;
    }
    while nodes < STEPS[step].0 {
        step -= 1;
    }
    step
}

struct Worker {
    ctx: Ctx,
    nodes: Informer,
    step: AtomicUsize,
}

#[async_trait]
impl Component for NodeTtl {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let nodes = self.ctx.informers.get(kinds::NODES);
        let worker = Arc::new(Worker { ctx: self.ctx.clone(), nodes, step: AtomicUsize::new(0) });
        let queue: Queue<Key> = self.ctx.queue("ttlcontroller");
        let (listener, keys) = (worker.clone(), queue.clone());
        let _registration = worker.nodes.on_change(move |change| {
            keys.add(change.key.clone());
            if change.old.is_some() && change.new.is_some() {
                return;
            }
            let held = listener.step.load(Ordering::Relaxed);
            let step = next(held, listener.nodes.len());
            if step != held {
                listener.step.store(step, Ordering::Relaxed);
                listener.nodes.list().iter().for_each(|node| keys.add(node.key()));
            }
        });
        work(&ctx, NAME, &[&worker.nodes], &queue, WORKERS, &worker).await
    }
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(node) = self.nodes.get(key) else { return Ok(Action::Done) };
        let seconds = STEPS[self.step.load(Ordering::Relaxed)].2;
        if node.annotation(ANNOTATION).and_then(|text| text.parse().ok()) == Some(seconds) {
            return Ok(Action::Done);
        }
        let meta = json!({ "uid": node.meta().uid, "annotations": { ANNOTATION: seconds.to_string() } });
        let (patch, kind) = (json!({ "metadata": meta }), PatchType::StrategicMerge);
        ignore_missing(self.ctx.client.patch(&kinds::NODES.gvr(), key, "", kind, &patch).await)?;
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_overlap() {
        let seconds = |step: usize, nodes| STEPS[next(step, nodes)].2;
        assert_eq!([seconds(0, 1), seconds(0, 100), seconds(0, 101)], [0, 0, 15]);
        // Coming down, fifteen seconds hold until there are clearly fewer.
        assert_eq!([seconds(1, 95), seconds(1, 89)], [15, 0]);
        assert_eq!([seconds(0, 5000), seconds(4, 0), seconds(4, 1799)], [300, 0, 60]);
    }
}
