//! The closed default: administrators everything; Skiff's components and nodes what they need; everyone who is known
//! discovery and self-review; anonymous health and version. Rules are data, and those for users are upstream's default
//! roles: `system:public-info-viewer` (health and version) for all, `system:discovery` and `system:basic-user` for the
//! authenticated, `system:service-account-issuer-discovery` for service accounts.

use api::connect::User;

use super::{Attributes, Authorizer, Decision, Rule, node};
use crate::admission::World;
use crate::authn::{in_group, names, node_of};

/// One grant: to whom, what.
struct Grant {
    subject: Subject,
    verbs: &'static [&'static str],
    groups: &'static [&'static str],
    resources: &'static [&'static str],
    paths: &'static [&'static str],
}

enum Subject {
    Group(&'static str),
    /// A component in this process, by its user.
    User(&'static str),
}

const ALL: &[&str] = &["*"];
const READ: &[&str] = &["get", "list", "watch"];
const SELF_REVIEWS: &[&str] = &["selfsubjectaccessreviews", "selfsubjectrulesreviews"];
const CERTIFICATES: &[&str] = &["certificates.k8s.io"];
const REQUESTS: &[&str] = &["certificatesigningrequests"];
const DISCOVERY: &[&str] = &["/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*"];
const HEALTH: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/version/"];
const TOKEN_KEYS: &[&str] = &[
    "/.well-known/openid-configuration",
    "/.well-known/openid-configuration/",
    "/openid/v1/jwks",
    "/openid/v1/jwks/",
];

const fn to(
    subject: Subject,
    verbs: &'static [&'static str],
    groups: &'static [&'static str],
    resources: &'static [&'static str],
) -> Grant {
    Grant { subject, verbs, groups, resources, paths: &[] }
}

const fn paths(subject: Subject, paths: &'static [&'static str]) -> Grant {
    Grant { subject, verbs: &["get", "head"], groups: &[], resources: &[], paths }
}

use Subject::{Group, User as Named};

/// The grants. Components of this process act on behalf of the whole cluster, so that theirs are by component.
const GRANTS: &[Grant] = &[
    paths(Group(names::UNAUTHENTICATED), HEALTH),
    paths(Group(names::AUTHENTICATED), DISCOVERY),
    paths(Group(names::AUTHENTICATED), HEALTH),
    // A pod checks tokens of others by these: they are public keys.
    paths(Group(names::SERVICE_ACCOUNTS), TOKEN_KEYS),
    to(Group(names::AUTHENTICATED), &["create"], &["authorization.k8s.io"], SELF_REVIEWS),
    to(Group(names::AUTHENTICATED), &["create"], &["authentication.k8s.io"], &["selfsubjectreviews"]),
    // Nodes. Source: the rules of upstream's node authorizer and of the role system:node.
    to(Group(names::NODES), READ, &[""], &["services", "pods", "nodes"]),
    // Skiff has no static pods, so that nodes, other than upstream's, create none to mirror them.
    to(Group(names::NODES), &["delete"], &[""], &["pods"]),
    to(Group(names::NODES), &["update", "patch"], &[""], &["pods/status", "nodes", "nodes/status"]),
    to(Group(names::NODES), &["create"], &[""], &["nodes", "pods/eviction", "serviceaccounts/token"]),
    to(Group(names::NODES), READ, &[""], &["configmaps", "secrets", "endpoints", "namespaces"]),
    to(Group(names::NODES), READ, &["discovery.k8s.io"], &["endpointslices"]),
    to(Group(names::NODES), &["create", "update", "patch"], &["", "events.k8s.io"], &["events"]),
    to(
        Group(names::NODES),
        &["get", "list", "watch", "create", "update", "patch", "delete"],
        &["coordination.k8s.io"],
        &["leases"],
    ),
    to(Group(names::NODES), &["create"], &["authentication.k8s.io"], &["tokenreviews"]),
    to(Group(names::NODES), &["create"], &["authorization.k8s.io"], &["subjectaccessreviews"]),
    to(Group(names::NODES), &["create", "get", "list", "watch"], CERTIFICATES, REQUESTS),
    // Machines that join. Source: the role system:node-bootstrapper.
    to(Group(names::BOOTSTRAPPERS), &["create", "get", "list", "watch"], CERTIFICATES, REQUESTS),
    // Components of this process.
    to(Named("skiff:controllers"), ALL, ALL, ALL),
    to(Named("skiff:scheduler"), READ, ALL, ALL),
    to(Named("skiff:scheduler"), &["create"], &[""], &["pods/binding", "bindings"]),
    to(Named("skiff:scheduler"), &["update", "patch"], &[""], &["pods/status"]),
    to(Named("skiff:scheduler"), &["create", "update", "patch"], &["", "events.k8s.io"], &["events"]),
    to(Named("skiff:scheduler"), &["get", "create", "update"], &["coordination.k8s.io"], &["leases"]),
    to(
        Named("skiff:network"),
        READ,
        ALL,
        &["services", "endpoints", "endpointslices", "pods", "nodes", "namespaces", "ingresses"],
    ),
    to(Named("skiff:network"), &["update", "patch"], &[""], &["services/status", "nodes/status", "nodes"]),
    to(Named("skiff:network"), &["create", "update", "patch"], &["", "events.k8s.io"], &["events"]),
    to(Named("skiff:network"), &["get", "create", "update", "patch"], &["coordination.k8s.io"], &["leases"]),
];

/// The default authorizer.
#[derive(Debug, Default, Clone, Copy)]
pub struct Closed;

impl Authorizer for Closed {
    fn authorize(&self, attributes: &Attributes, world: &dyn World) -> Decision {
        if in_group(&attributes.user, names::MASTERS) {
            return Decision::Allow { reason: String::new() };
        }
        if let Some(node) = node_of(&attributes.user) {
            if !stays_on_itself(attributes, node) {
                return Decision::Deny { reason: "a node may change only what is its own".into() };
            }
            if let Err(reason) = node::check(attributes, node, world) {
                return Decision::Deny { reason };
            }
        }
        let granted =
            GRANTS.iter().any(|grant| holds(&grant.subject, &attributes.user) && covers(grant, attributes));
        if granted { Decision::Allow { reason: String::new() } } else { Decision::NoOpinion }
    }

    fn rules(&self, user: &User, _namespace: &str) -> Vec<Rule> {
        if in_group(user, names::MASTERS) {
            let all = || vec!["*".to_owned()];
            return vec![
                Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() },
                Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() },
            ];
        }
        GRANTS
            .iter()
            .filter(|grant| holds(&grant.subject, user))
            .map(|grant| Rule {
                verbs: strings(grant.verbs),
                api_groups: strings(grant.groups),
                resources: strings(grant.resources),
                non_resource_urls: strings(grant.paths),
            })
            .collect()
    }
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn holds(subject: &Subject, user: &User) -> bool {
    match subject {
        Group(group) => in_group(user, group),
        // The name alone would let a certificate claim it.
        Named(name) => user.name == *name && in_group(user, names::COMPONENTS),
    }
}

fn covers(grant: &Grant, attributes: &Attributes) -> bool {
    if !any(grant.verbs, &attributes.verb) {
        return false;
    }
    if !attributes.is_resource {
        return grant.paths.iter().any(|path| match path.strip_suffix('*') {
            Some(prefix) => attributes.path.starts_with(prefix),
            None => attributes.path == *path,
        });
    }
    let resource = if attributes.subresource.is_empty() {
        attributes.resource.clone()
    } else {
        format!("{}/{}", attributes.resource, attributes.subresource)
    };
    any(grant.groups, &attributes.group) && any(grant.resources, &resource)
}

fn any(allowed: &[&str], asked: &str) -> bool {
    allowed.iter().any(|known| *known == "*" || *known == asked)
}

/// A node's user may write its own Node and Lease only; other objects are checked where they are known (admission).
fn stays_on_itself(attributes: &Attributes, node: &str) -> bool {
    let own = attributes.is_resource && matches!(attributes.resource.as_str(), "nodes" | "leases");
    let writes = !matches!(attributes.verb.as_str(), "get" | "list" | "watch" | "create");
    !(own && writes) || attributes.name == node
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use api::{Object, Status};
    use async_trait::async_trait;
    use serde_json::json;

    use super::*;
    use crate::authn;

    /// One pod: `default/web` on node `a`, which refers to Secret `s`.
    struct OnePod;

    #[async_trait]
    impl World for OnePod {
        async fn find(&self, _: &str, _: &str, _: &str, _: &str) -> Result<Option<Arc<Object>>, Status> {
            Ok(None)
        }

        fn all(&self, _: &str, resource: &str, namespace: &str) -> Vec<Arc<Object>> {
            if (resource, namespace) != ("pods", "default") {
                return Vec::new();
            }
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "web", "namespace": "default" },
                "spec": { "nodeName": "a", "volumes": [{ "secret": { "secretName": "s" } }] },
            });
            vec![Arc::new(Object::parse(serde_json::to_vec(&pod).unwrap().into()).unwrap())]
        }
    }

    fn asks(user: User, verb: &str, resource: &str, name: &str) -> bool {
        let attributes = Attributes {
            user,
            verb: verb.into(),
            resource: resource.into(),
            name: name.into(),
            is_resource: true,
            ..Attributes::default()
        };
        matches!(Closed.authorize(&attributes, &OnePod), Decision::Allow { .. })
    }

    fn path(user: User, path: &str) -> bool {
        let attributes = Attributes { user, verb: "get".into(), path: path.into(), ..Attributes::default() };
        matches!(Closed.authorize(&attributes, &OnePod), Decision::Allow { .. })
    }

    fn member(name: &str, group: &str) -> User {
        authn::authenticated(User { name: name.into(), groups: vec![group.into()], ..User::default() })
    }

    #[test]
    fn the_default_is_closed() {
        let account = || authn::service_account("a", "b", "1");
        assert!(asks(member("root", "system:masters"), "delete", "secrets", "x"));
        assert!(!asks(account(), "get", "pods", "x"));
        assert!(!asks(authn::anonymous(), "list", "pods", ""));
        assert!(path(authn::anonymous(), "/readyz") && !path(authn::anonymous(), "/api"));
        assert!(!path(authn::anonymous(), "/readyz/etcd") && !path(account(), "/livez/ping"));
        assert!(path(account(), "/openid/v1/jwks") && !path(member("jane", "x"), "/openid/v1/jwks"));
        assert!(path(account(), "/apis/apps/v1") && !path(account(), "/metrics"));
        assert!(asks(member("system:node:a", "system:nodes"), "update", "nodes", "a"));
        assert!(!asks(member("system:node:a", "system:nodes"), "update", "nodes", "b"));
        assert!(!asks(member("system:node:a", "system:nodes"), "create", "pods", ""));
        assert!(asks(authn::component("controllers"), "delete", "pods", "x"));
        assert!(!asks(member("skiff:controllers", "x"), "delete", "pods", "x"));
    }

    #[test]
    fn a_node_sees_its_own_pods_and_what_they_refer_to() {
        let allowed = |node: &str, verb: &str, resource: &str, name: &str, selector: &str| {
            let attributes = Attributes {
                user: member(&format!("system:node:{node}"), "system:nodes"),
                verb: verb.into(),
                namespace: "default".into(),
                resource: resource.into(),
                name: name.into(),
                is_resource: true,
                field_selector: selector.into(),
                ..Attributes::default()
            };
            matches!(Closed.authorize(&attributes, &OnePod), Decision::Allow { .. })
        };
        assert!(
            allowed("a", "get", "secrets", "s", "")
                && allowed("a", "watch", "secrets", "", "metadata.name=s")
        );
        assert!(!allowed("b", "get", "secrets", "s", ""));
        assert!(!allowed("a", "get", "secrets", "t", "") && !allowed("a", "list", "secrets", "", ""));
        assert!(!allowed("a", "get", "configmaps", "s", "") && !allowed("a", "update", "secrets", "s", ""));
        assert!(allowed("a", "get", "pods", "web", "") && !allowed("b", "get", "pods", "web", ""));
        assert!(allowed("a", "watch", "pods", "", "spec.nodeName=a"));
        assert!(
            !allowed("a", "watch", "pods", "", "spec.nodeName=b") && !allowed("a", "list", "pods", "", "")
        );
    }
}
