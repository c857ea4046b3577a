//! One module per controller: a pure `plan` that decides and an `apply` that acts.

pub mod context;
pub mod deployment;
pub mod endpoints;
pub mod namespace;
pub mod per_namespace;
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
        Arc::new(endpoints::EndpointSlices::new(ctx)),
        Arc::new(endpoints::EndpointsController::new(ctx)),
        Arc::new(namespace::Namespaces::new(ctx)),
        Arc::new(per_namespace::PerNamespace::new(ctx, per_namespace::Kept::ServiceAccount)),
        Arc::new(per_namespace::PerNamespace::new(ctx, per_namespace::Kept::RootCa)),
        Arc::new(replicaset::ReplicaSets::new(ctx, &replicaset::REPLICA_SET)),
        Arc::new(replicaset::ReplicaSets::new(ctx, &replicaset::REPLICATION_CONTROLLER)),
    ]
}
