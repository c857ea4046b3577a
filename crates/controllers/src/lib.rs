//! One module per controller: a pure `plan` that decides and an `apply` that acts.

pub mod context;
pub mod deployment;
pub mod pods;
pub mod replicaset;
pub mod selector;

mod claim;

use std::sync::Arc;

use base::lifecycle::Component;

pub use context::Ctx;

/// Every controller, to be added to the supervisor.
pub fn all(ctx: &Ctx) -> Vec<Arc<dyn Component>> {
    vec![
        Arc::new(deployment::Deployments::new(ctx)),
        Arc::new(replicaset::ReplicaSets::new(ctx, &replicaset::REPLICA_SET)),
        Arc::new(replicaset::ReplicaSets::new(ctx, &replicaset::REPLICATION_CONTROLLER)),
    ]
}
