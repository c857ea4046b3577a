//! What Skiff's own components may do, which run in the API server's process and act on behalf of the whole cluster: a
//! table, by component, and no wider than they need.

use api::connect::User;

use super::Attributes;
use super::rbac::Rule;
use crate::authn::{in_group, names};

/// One grant: to which component, what.
struct Grant {
    component: &'static str,
    verbs: &'static [&'static str],
    groups: &'static [&'static str],
    resources: &'static [&'static str],
    /// Only objects of these names; none: of any.
    names: &'static [&'static str],
}

const ALL: &[&str] = &["*"];
const READ: &[&str] = &["get", "list", "watch"];
const WRITE_EVENTS: &[&str] = &["create", "update", "patch"];
const EVENTS: &[&str] = &["events"];
const EVENT_GROUPS: &[&str] = &["", "events.k8s.io"];
const COORDINATION: &[&str] = &["coordination.k8s.io"];
const ROUTED: &[&str] =
    &["services", "endpoints", "endpointslices", "pods", "nodes", "namespaces", "ingresses"];

const PLACED_BY: &[&str] = &[
    "nodes",
    "pods",
    "namespaces",
    "services",
    "replicationcontrollers",
    "persistentvolumeclaims",
    "persistentvolumes",
];
const STORED_BY: &[&str] =
    &["storageclasses", "csinodes", "csidrivers", "csistoragecapacities", "volumeattachments"];
const DEVICES: &[&str] =
    &["deviceclasses", "resourceclaims", "resourceclaims/status", "resourceslices", "devicetaintrules"];

const fn to(
    component: &'static str,
    verbs: &'static [&'static str],
    groups: &'static [&'static str],
    resources: &'static [&'static str],
) -> Grant {
    Grant { component, verbs, groups, resources, names: &[] }
}

const GRANTS: &[Grant] = &[
    to("skiff:controllers", ALL, ALL, ALL),
    // What it places pods by. Source, also of what follows: `system:kube-scheduler`, `system:volume-scheduler`.
    to("skiff:scheduler", READ, &[""], PLACED_BY),
    to("skiff:scheduler", READ, &["apps"], &["replicasets", "statefulsets"]),
    to("skiff:scheduler", READ, &["policy"], &["poddisruptionbudgets"]),
    to("skiff:scheduler", READ, &["storage.k8s.io"], STORED_BY),
    to("skiff:scheduler", READ, &["resource.k8s.io"], DEVICES),
    to("skiff:scheduler", &["create"], &[""], &["pods/binding", "bindings"]),
    to("skiff:scheduler", &["update", "patch"], &[""], &["pods/status"]),
    // Claims and volumes that it brings together.
    to("skiff:scheduler", &["patch"], &[""], &["persistentvolumes", "persistentvolumeclaims"]),
    // Claims of devices: their finalizer, and what they get for whom; those for extended resources it makes itself, and
    // deletes if their pod goes elsewhere.
    to(
        "skiff:scheduler",
        &["create", "update", "patch", "delete"],
        &["resource.k8s.io"],
        &["resourceclaims"],
    ),
    to(
        "skiff:scheduler",
        &["update", "patch"],
        &["resource.k8s.io"],
        &["resourceclaims/status", "resourceclaims/binding"],
    ),
    // Pods that make room for more important ones.
    to("skiff:scheduler", &["delete"], &[""], &["pods"]),
    to("skiff:scheduler", WRITE_EVENTS, EVENT_GROUPS, EVENTS),
    to("skiff:scheduler", &["create"], COORDINATION, &["leases"]),
    Grant {
        names: &["kube-scheduler"],
        ..to("skiff:scheduler", &["get", "update"], COORDINATION, &["leases"])
    },
    to("skiff:network", READ, ALL, ROUTED),
    to("skiff:network", &["update", "patch"], &[""], &["services/status", "nodes/status", "nodes"]),
    // The finalizer by which a Service stays until its balancer is gone. Source: `system:controller:service-controller`.
    to("skiff:network", &["patch"], &[""], &["services"]),
    to("skiff:network", WRITE_EVENTS, EVENT_GROUPS, EVENTS),
    to("skiff:network", &["get", "create", "update", "patch"], COORDINATION, &["leases"]),
];

/// Whether a component of this process is allowed what it asks. For users who are none: no.
pub(super) fn allow(asked: &Attributes) -> bool {
    grants(&asked.user).any(|grant| grant.rule().allows(asked))
}

/// The rules of a component.
pub(super) fn rules(user: &User) -> Vec<Rule> {
    grants(user).map(Grant::rule).collect()
}

fn grants(user: &User) -> impl Iterator<Item = &'static Grant> {
    // The name alone would let a certificate claim it.
    let ours = in_group(user, names::COMPONENTS);
    GRANTS.iter().filter(move |grant| ours && grant.component == user.name)
}

impl Grant {
    fn rule(&self) -> Rule {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Rule {
            verbs: owned(self.verbs),
            api_groups: owned(self.groups),
            resources: owned(self.resources),
            resource_names: owned(self.names),
            ..Rule::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn;

    #[test]
    fn a_component_is_one_by_name_and_group() {
        let asks = |user: User, verb: &str, resource: &str| {
            allow(&Attributes {
                user,
                verb: verb.into(),
                resource: resource.into(),
                is_resource: true,
                ..Attributes::default()
            })
        };
        assert!(asks(authn::component("controllers"), "delete", "pods"));
        assert!(asks(authn::component("scheduler"), "watch", "nodes"));
        assert!(asks(authn::component("scheduler"), "patch", "persistentvolumeclaims"));
        assert!(!asks(authn::component("scheduler"), "delete", "persistentvolumeclaims"));
        assert!(!asks(authn::component("scheduler"), "delete", "nodes"));
        let of_claims = |verb: &str, resource: &str| {
            allow(&Attributes {
                user: authn::component("scheduler"),
                verb: verb.into(),
                group: "resource.k8s.io".into(),
                resource: "resourceclaims".into(),
                subresource: resource.into(),
                is_resource: true,
                ..Attributes::default()
            })
        };
        assert!(of_claims("patch", "") && of_claims("patch", "status") && of_claims("patch", "binding"));
        assert!(of_claims("create", "") && of_claims("delete", ""));
        assert!(!of_claims("patch", "driver") && !of_claims("arbitrary-node:patch", "driver"));
        assert!(!of_claims("deletecollection", "") && !of_claims("create", "binding"));
        let of_lease = |name: &str| {
            allow(&Attributes {
                user: authn::component("scheduler"),
                verb: "update".into(),
                group: "coordination.k8s.io".into(),
                resource: "leases".into(),
                name: name.into(),
                is_resource: true,
                ..Attributes::default()
            })
        };
        assert!(of_lease("kube-scheduler") && !of_lease("kube-controller-manager"));
        assert!(!asks(authn::component("scheduler"), "get", "secrets"));
        assert!(!asks(authn::component("scheduler"), "list", "configmaps"));
        assert!(!asks(authn::component("network"), "get", "secrets"));
        assert!(!asks(authn::component("unknown"), "get", "pods"));
        let claimed = User { name: "skiff:controllers".into(), groups: vec!["x".into()], ..User::default() };
        assert!(!asks(authn::authenticated(claimed), "delete", "pods"));
    }
}
