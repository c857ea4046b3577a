//! One module per controller: a pure `plan` that decides and an `apply` that acts.

pub mod attach_detach;
pub mod bootstrap_signer;
pub mod certificates;
pub mod context;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod devices;
pub mod disruption;
pub mod endpoints;
pub mod ephemeral_volume;
pub mod expansion;
pub mod figures;
pub mod garbage;
pub mod horizontal;
pub mod ip_repair;
pub mod job;
pub mod legacy_tokens;
pub mod local_path;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod node_role;
pub mod node_ttl;
pub mod per_namespace;
pub mod persistent_volume;
pub mod pod_certificates;
pub mod pod_gc;
pub mod pods;
pub mod policy_status;
pub mod quota;
pub mod replicaset;
pub mod role_aggregation;
mod selecting;
pub mod selector;
pub mod service_account_tokens;
pub mod service_cidrs;
pub mod statefulset;
pub mod storage_migration;
pub mod storage_protection;
pub mod taint_eviction;
pub mod token_cleaner;
pub mod trust_bundle;
pub mod ttl_after_finished;

mod amount;
mod claim;
mod claim_users;
mod followed;
mod history;
mod pod_control;
mod scale;
mod template;

use std::sync::Arc;

use base::lifecycle::Component;

pub use context::Ctx;

/// Every controller that needs nothing but the API, to be added to the supervisor.
pub fn all(ctx: &Ctx) -> Vec<Arc<dyn Component>> {
    vec![
        Arc::new(attach_detach::AttachDetach::new(ctx)),
        Arc::new(bootstrap_signer::BootstrapSigner::new(ctx)),
        Arc::new(cronjob::CronJobs::new(ctx)),
        Arc::new(daemonset::DaemonSets::new(ctx)),
        Arc::new(deployment::Deployments::new(ctx)),
        Arc::new(devices::claims::ResourceClaims::new(ctx)),
        Arc::new(devices::eviction::DeviceTaintEviction::new(ctx)),
        Arc::new(disruption::Disruptions::new(ctx)),
        Arc::new(endpoints::EndpointSlices::new(ctx)),
        Arc::new(endpoints::EndpointsController::new(ctx)),
        Arc::new(endpoints::EndpointSliceMirroring::new(ctx)),
        Arc::new(ephemeral_volume::EphemeralVolumes::new(ctx)),
        Arc::new(expansion::Expansion::new(ctx)),
        Arc::new(garbage::GarbageCollector::new(ctx)),
        Arc::new(horizontal::Autoscalers::new(ctx)),
        Arc::new(ip_repair::IpRepair::new(ctx)),
        Arc::new(job::Jobs::new(ctx)),
        Arc::new(legacy_tokens::LegacyTokens::new(ctx)),
        Arc::new(namespace::Namespaces::new(ctx)),
        Arc::new(node_lifecycle::NodeLifecycle::new(ctx)),
        Arc::new(node_ttl::NodeTtl::new(ctx)),
        Arc::new(per_namespace::PerNamespace::new(ctx, per_namespace::Kept::ServiceAccount)),
        Arc::new(per_namespace::PerNamespace::new(ctx, per_namespace::Kept::RootCa)),
        Arc::new(persistent_volume::PersistentVolumes::new(ctx)),
        Arc::new(pod_certificates::PodCertificates::new(ctx)),
        Arc::new(pod_gc::PodGc::new(ctx)),
        Arc::new(policy_status::PolicyStatus::new(ctx)),
        Arc::new(quota::Quotas::new(ctx)),
        Arc::new(replicaset::ReplicaSets::new(ctx, &replicaset::REPLICA_SET)),
        Arc::new(replicaset::ReplicaSets::new(ctx, &replicaset::REPLICATION_CONTROLLER)),
        Arc::new(role_aggregation::RoleAggregation::new(ctx)),
        Arc::new(service_cidrs::ServiceCidrs::new(ctx)),
        Arc::new(statefulset::StatefulSets::new(ctx)),
        Arc::new(storage_migration::StorageMigrations::new(ctx)),
        Arc::new(storage_protection::StorageProtection::new(ctx)),
        Arc::new(taint_eviction::TaintEviction::new(ctx)),
        Arc::new(token_cleaner::TokenCleaner::new(ctx)),
        Arc::new(trust_bundle::TrustBundle::new(ctx)),
        Arc::new(ttl_after_finished::TtlAfterFinished::new(ctx)),
    ]
}
