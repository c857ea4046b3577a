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
}

const ALL: &[&str] = &["*"];
const READ: &[&str] = &["get", "list", "watch"];
const WRITE_EVENTS: &[&str] = &["create", "update", "patch"];
const EVENTS: &[&str] = &["events"];
const EVENT_GROUPS: &[&str] = &["", "events.k8s.io"];
const COORDINATION: &[&str] = &["coordination.k8s.io"];
const ROUTED: &[&str] =
    &["services", "endpoints", "endpointslices", "pods", "nodes", "namespaces", "ingresses"];

const fn to(
    component: &'static str,
    verbs: &'static [&'static str],
    groups: &'static [&'static str],
    resources: &'static [&'static str],
) -> Grant {
    Grant { component, verbs, groups, resources }
}

const GRANTS: &[Grant] = &[
    to("skiff:controllers", ALL, ALL, ALL),
    to("skiff:scheduler", READ, ALL, ALL),
    to("skiff:scheduler", &["create"], &[""], &["pods/binding", "bindings"]),
    to("skiff:scheduler", &["update", "patch"], &[""], &["pods/status"]),
    // Claims and volumes that it brings together. Source: `system:volume-scheduler`.
    to("skiff:scheduler", &["patch"], &[""], &["persistentvolumes", "persistentvolumeclaims"]),
    // Claims of devices: their finalizer, and what they get for whom. Source: `system:kube-scheduler`.
    to(
        "skiff:scheduler",
        &["update", "patch"],
        &["resource.k8s.io"],
        &["resourceclaims", "resourceclaims/status", "resourceclaims/binding"],
    ),
    // What drivers told of devices goes with them when a claim loses them.
    to(
        "skiff:scheduler",
        &["arbitrary-node:update", "arbitrary-node:patch"],
        &["resource.k8s.io"],
        &["resourceclaims/driver"],
    ),
    // Pods that make room for more important ones.
    to("skiff:scheduler", &["delete"], &[""], &["pods"]),
    to("skiff:scheduler", WRITE_EVENTS, EVENT_GROUPS, EVENTS),
    to("skiff:scheduler", &["get", "create", "update"], COORDINATION, &["leases"]),
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
        assert!(!of_claims("delete", "") && !of_claims("patch", "driver"));
        assert!(!asks(authn::component("network"), "get", "secrets"));
        assert!(!asks(authn::component("unknown"), "get", "pods"));
        let claimed = User { name: "skiff:controllers".into(), groups: vec!["x".into()], ..User::default() };
        assert!(!asks(authn::authenticated(claimed), "delete", "pods"));
    }
}
