//! What is special about each kind: strategies with their computed defaults and validation. One line per kind here, one
//! small file per family.

mod admin_access;
mod affinity;
mod allocate;
mod at;
mod autoscaling;
mod certificates;
mod claim_status;
mod claims;
mod compute;
mod config;
mod containers;
mod definitions;
mod device_slices;
mod devices;
mod discovery;
mod drivers;
mod events;
mod expressions;
mod field_refs;
mod flow;
mod ingress;
mod job_policies;
mod job_status;
mod jobs;
mod namespaces;
mod network;
mod nodes;
mod others;
mod pod_certificates;
mod pod_parts;
mod pod_spec;
mod pod_update;
mod pod_warnings;
mod pods;
mod policy;
mod probes;
mod quota;
mod rbac;
mod security;
mod service_families;
mod service_ranges;
mod service_rules;
mod services;
mod simple;
mod stateful;
mod storage;
mod systems;
mod template;
mod volume_sources;
mod webhooks;
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
    all.add("", "events", events::Events);
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
    all.add("", "limitranges", quota::LIMITS);
    all.add("", "resourcequotas", quota::QUOTAS);
    all.add("autoscaling", "horizontalpodautoscalers", autoscaling::AUTOSCALERS);
    all.add("networking.k8s.io", "networkpolicies", network::POLICIES);
    all.add("networking.k8s.io", "ingressclasses", network::CLASSES);
    all.add("storage.k8s.io", "storageclasses", storage::CLASSES);
    all.add("storage.k8s.io", "volumeattachments", storage::ATTACHMENTS);
    all.add("storage.k8s.io", "csinodes", storage::NODES);
    all.add("storage.k8s.io", "csidrivers", storage::DRIVERS);
    all.add("storage.k8s.io", "csistoragecapacities", storage::CAPACITIES);
    all.add("storage.k8s.io", "volumeattributesclasses", storage::ATTRIBUTES);
    all.add("", "podtemplates", others::POD_TEMPLATES);
    all.add("node.k8s.io", "runtimeclasses", others::RUNTIME_CLASSES);
    all.add("coordination.k8s.io", "leasecandidates", others::LEASE_CANDIDATES);
    all.add("apiregistration.k8s.io", "apiservices", others::ApiServices);
    all.add("storagemigration.k8s.io", "storageversionmigrations", others::MIGRATIONS);
    all.add("certificates.k8s.io", "clustertrustbundles", others::TRUST_BUNDLES);
    all.add("certificates.k8s.io", "podcertificaterequests", pod_certificates::POD_CERTIFICATES);
    all.add("resource.k8s.io", "resourceclaims", devices::CLAIMS);
    all.add("resource.k8s.io", "resourceclaimtemplates", devices::CLAIM_TEMPLATES);
    all.add("resource.k8s.io", "deviceclasses", devices::DEVICE_CLASSES);
    all.add("resource.k8s.io", "resourceslices", device_slices::SLICES);
    all.add("resource.k8s.io", "devicetaintrules", devices::TAINT_RULES);
    all.add("scheduling.k8s.io", "podgroups", others::POD_GROUPS);
    all.add("scheduling.k8s.io", "workloads", others::POD_GROUPS);
    all.add("flowcontrol.apiserver.k8s.io", "flowschemas", flow::SCHEMAS);
    all.add("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations", flow::LEVELS);
    let admission = "admissionregistration.k8s.io";
    all.add(admission, "mutatingwebhookconfigurations", webhooks::MUTATING);
    all.add(admission, "validatingwebhookconfigurations", webhooks::VALIDATING);
    all.add(admission, "validatingadmissionpolicies", webhooks::VALIDATING_POLICIES);
    all.add(admission, "mutatingadmissionpolicies", webhooks::MUTATING_POLICIES);
    all.add(admission, "validatingadmissionpolicybindings", webhooks::VALIDATING_BINDINGS);
    all.add(admission, "mutatingadmissionpolicybindings", webhooks::BINDINGS);
    all.add("coordination.k8s.io", "leases", config::Leases);
    all.add("scheduling.k8s.io", "priorityclasses", config::PriorityClasses);
    all.add("certificates.k8s.io", "certificatesigningrequests", certificates::CertificateSigningRequests);
    all.add("apiextensions.k8s.io", "customresourcedefinitions", definitions::Definitions);
    all.add("networking.k8s.io", "ingresses", ingress::Ingresses);
    all.add("networking.k8s.io", "ipaddresses", service_ranges::IpAddresses);
    all.add("networking.k8s.io", "servicecidrs", service_ranges::ServiceCidrs);
    all
}

#[cfg(test)]
mod tests {
    use super::strategies;

    /// The kinds whose changes upstream counts. Source: `Generation = 1` in `pkg/registry`.
    const COUNTED: [&str; 28] = [
        "cronjobs",
        "customresourcedefinitions",
        "daemonsets",
        "deployments",
        "deviceclasses",
        "devicetaintrules",
        "endpointslices",
        "flowschemas",
        "horizontalpodautoscalers",
        "ingressclasses",
        "ingresses",
        "jobs",
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicybindings",
        "mutatingwebhookconfigurations",
        "networkpolicies",
        "poddisruptionbudgets",
        "pods",
        "podtemplates",
        "priorityclasses",
        "prioritylevelconfigurations",
        "replicasets",
        "replicationcontrollers",
        "resourceslices",
        "statefulsets",
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
        "validatingwebhookconfigurations",
    ];
    /// Stored kinds that are ordinary on purpose.
    const ORDINARY: [&str; 1] = ["customresourcedefinitions"];

    #[test]
    fn every_stored_kind_has_rules_and_counts_as_upstream_does() {
        let all = strategies();
        let catalog = api::catalog::Catalog::builtin();
        for row in catalog.rows().filter(|row| row.is_stored() && row.is_storage_version()) {
            let (group, plural) = (row.group.as_ref(), row.plural.as_ref());
            assert!(all.has(group, plural) || ORDINARY.contains(&plural), "{plural}.{group} has no strategy");
            let counts = all.of(group, plural).generation();
            assert_eq!(counts, COUNTED.contains(&plural), "{plural}.{group}");
        }
    }
}
