//! Labels the Node beside an API server with the role by which clients know it (`kubectl get nodes` prints it). A node may
//! not say so of itself. Source: kubeadm's `markcontrolplane`.

use std::sync::Arc;

use api::{Key, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::{Action, Informer, Queue, Reconcile, kinds, run_workers};
use serde_json::json;

use crate::claim::ignore_missing;
use crate::context::Ctx;

const NAME: &str = "node-role-controller";
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// The controller.
pub struct NodeRole {
    ctx: Ctx,
    node: Key,
}

impl NodeRole {
    /// Labels the node with this name, which runs a control plane.
    pub fn new(ctx: &Ctx, node: &str) -> Self {
        Self { ctx: ctx.named(NAME), node: Key::new("", node) }
    }
}

#[async_trait]
impl Component for NodeRole {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let nodes = self.ctx.informers.get(kinds::NODES);
        let queue: Queue<Key> = self.ctx.queue("node_role");
        let (listener, own) = (queue.clone(), self.node.clone());
        let _registration = nodes.on_change(move |change| {
            if change.key == own {
                listener.add(own.clone());
            }
        });
        ctx.ready();
        let worker = Arc::new(Worker { ctx: self.ctx.clone(), nodes });
        run_workers(&ctx, NAME, &queue, 1, worker).await;
        Ok(())
    }
}

struct Worker {
    ctx: Ctx,
    nodes: Informer,
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let lacks = |node: &Arc<api::Object>| !node.meta().labels.contains_key(CONTROL_PLANE);
        if self.nodes.get(key).as_ref().is_some_and(lacks) {
            let patch = json!({ "metadata": { "labels": { CONTROL_PLANE: "" } } });
            let resource = kinds::NODES.gvr();
            ignore_missing(self.ctx.client.patch(&resource, key, "", PatchType::Merge, &patch).await)?;
        }
        Ok(Action::Done)
    }
}
