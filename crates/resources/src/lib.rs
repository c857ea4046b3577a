//! What is special about each kind: strategies with their computed defaults and validation. One line per kind here, one
//! small file per family.

mod allocate;
mod certificates;
mod config;
mod containers;
mod discovery;
mod ingress;
mod namespaces;
mod nodes;
mod pod_spec;
mod pod_update;
mod pods;
mod probes;
mod service_ranges;
mod services;
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
    all.add("coordination.k8s.io", "leases", config::Leases);
    all.add("scheduling.k8s.io", "priorityclasses", config::PriorityClasses);
    all.add("certificates.k8s.io", "certificatesigningrequests", certificates::CertificateSigningRequests);
    all.add("networking.k8s.io", "ingresses", ingress::Ingresses);
    all.add("networking.k8s.io", "ipaddresses", service_ranges::IpAddresses);
    all.add("networking.k8s.io", "servicecidrs", service_ranges::ServiceCidrs);
    all
}
