//! What is special about each kind: strategies with their computed defaults and validation. One line per kind here, one
//! small file per family.

mod affinity;
mod allocate;
mod at;
mod certificates;
mod claims;
mod compute;
mod config;
mod containers;
mod discovery;
mod field_refs;
mod ingress;
mod job_policies;
mod job_status;
mod jobs;
mod namespaces;
mod nodes;
mod pod_parts;
mod pod_spec;
mod pod_update;
mod pod_warnings;
mod pods;
mod policy;
mod probes;
mod rbac;
mod security;
mod service_ranges;
mod services;
mod stateful;
mod template;
mod volume_sources;
mod workloads;

use apiserver::strategy::Strategies;

/// The strategies of the built-in kinds. Kinds without a line here are ordinary.
pub fn strategies() -> Strategies {
    let mut all = Strategies::default();
    all.add("", "pods", pods::Pods);
    all.add("", "namespaces", namespaces::Namespaces);
    all.add("", "nodes", nodes::Nodes);
    all.add("", "services", services::Services);
    all.add("", "configmaps", config::ConfigMaps);
    all.add("", "secrets", config::Secrets);
    all.add("", "serviceaccounts", config::Plain);
    all.add("", "events", config::Events);
    all.add("", "endpoints", discovery::Endpoints);
    all.add("discovery.k8s.io", "endpointslices", discovery::EndpointSlices);
    all.add("", "replicationcontrollers", workloads::ReplicationControllers);
    all.add("apps", "replicasets", workloads::ReplicaSets);
    all.add("apps", "deployments", workloads::Deployments);
    all.add("apps", "controllerrevisions", workloads::ControllerRevisions);
    all.add("apps", "daemonsets", workloads::DaemonSets);
    all.add("apps", "statefulsets", stateful::StatefulSets);
    all.add("batch", "jobs", jobs::Jobs);
    all.add("batch", "cronjobs", jobs::CronJobs);
    all.add("", "persistentvolumes", claims::Volumes);
    all.add("", "persistentvolumeclaims", claims::Claims);
    all.add("policy", "poddisruptionbudgets", policy::PodDisruptionBudgets);
    all.add("rbac.authorization.k8s.io", "roles", rbac::Roles { namespaced: true });
    all.add("rbac.authorization.k8s.io", "clusterroles", rbac::Roles { namespaced: false });
    all.add("rbac.authorization.k8s.io", "rolebindings", rbac::Bindings { namespaced: true });
    all.add("rbac.authorization.k8s.io", "clusterrolebindings", rbac::Bindings { namespaced: false });
    all.add("coordination.k8s.io", "leases", config::Leases);
    all.add("scheduling.k8s.io", "priorityclasses", config::PriorityClasses);
    all.add("certificates.k8s.io", "certificatesigningrequests", certificates::CertificateSigningRequests);
    all.add("networking.k8s.io", "ingresses", ingress::Ingresses);
    all.add("networking.k8s.io", "ipaddresses", service_ranges::IpAddresses);
    all.add("networking.k8s.io", "servicecidrs", service_ranges::ServiceCidrs);
    all
}
