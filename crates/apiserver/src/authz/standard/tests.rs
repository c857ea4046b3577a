//! The whole authorizer over the default roles.

use std::sync::Arc;

use api::{Object, Status};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::*;
use crate::authn;

/// The default roles, and one pod: `default/web` on node `a`, which refers to Secret `s` and to claim `c`, to which volume
/// `v` is bound, whose driver has Secrets in `storage`. Volume `stray` says that it is bound to the same claim.
struct Fresh;

#[async_trait]
impl World for Fresh {
    async fn find(&self, _: &str, _: &str, _: &str, _: &str) -> Result<Option<Arc<Object>>, Status> {
        Ok(None)
    }

    fn all(&self, group: &str, resource: &str, namespace: &str) -> Vec<Arc<Object>> {
        let object = |value: &Value| Arc::new(Object::parse(value.to_string().into()).unwrap());
        if group == "rbac.authorization.k8s.io" {
            let items = defaults::parsed().items.into_iter().filter(|item| item.resource == resource);
            return items
                .map(|item| {
                    let mut value = item.object;
                    value["metadata"]["namespace"] = item.namespace.into();
                    object(&value)
                })
                .collect();
        }
        match (resource, namespace) {
            ("pods", "default" | "") => vec![object(&json!({
                "metadata": { "name": "web", "namespace": "default" },
                "spec": { "nodeName": "a", "serviceAccountName": "bob", "volumes": [
                    { "secret": { "secretName": "s" } }, { "persistentVolumeClaim": { "claimName": "c" } },
                ] },
            }))],
            ("persistentvolumeclaims", "default" | "") => vec![object(&json!({
                "metadata": { "name": "c", "namespace": "default" }, "spec": { "volumeName": "v" },
            }))],
            ("persistentvolumes", _) => ["v", "stray"]
                .map(|name| {
                    object(&json!({ "metadata": { "name": name }, "spec": {
                        "claimRef": { "namespace": "default", "name": "c" },
                        "csi": { "driver": "d", "volumeHandle": "h",
                            "nodeStageSecretRef": { "namespace": "storage", "name": format!("{name}-stage") },
                            "controllerExpandSecretRef": { "namespace": "storage", "name": "controllers" } },
                    } }))
                })
                .to_vec(),
            ("volumeattachments", _) => vec![object(&json!({
                "metadata": { "name": "attached" }, "spec": { "nodeName": "a" },
            }))],
            _ => Vec::new(),
        }
    }
}

fn asks(user: &User, verb: &str, resource: &str, name: &str) -> bool {
    let attributes = Attributes {
        user: user.clone(),
        verb: verb.into(),
        resource: resource.into(),
        name: name.into(),
        is_resource: true,
        ..Attributes::default()
    };
    matches!(Standard::default().authorize(&attributes, &Fresh), Decision::Allow { .. })
}

fn path(user: &User, path: &str) -> bool {
    let attributes =
        Attributes { user: user.clone(), verb: "get".into(), path: path.into(), ..Attributes::default() };
    matches!(Standard::default().authorize(&attributes, &Fresh), Decision::Allow { .. })
}

fn member(name: &str, group: &str) -> User {
    authn::authenticated(User { name: name.into(), groups: vec![group.into()], ..User::default() })
}

#[test]
fn everybody_has_what_the_default_roles_give() {
    let (account, nobody) = (authn::service_account("a", "b", "1"), authn::anonymous());
    let (root, jane) = (member("root", "system:masters"), member("jane", "x"));
    assert!(asks(&root, "delete", "secrets", "x") && path(&root, "/metrics"));
    assert!(!asks(&account, "get", "pods", "x") && !asks(&nobody, "list", "pods", ""));
    assert!(path(&nobody, "/readyz") && path(&nobody, "/version") && !path(&nobody, "/api"));
    assert!(!path(&nobody, "/readyz/etcd") && !path(&account, "/livez/ping"));
    assert!(path(&account, "/openid/v1/jwks") && !path(&jane, "/openid/v1/jwks"));
    assert!(path(&account, "/apis/apps/v1") && !path(&account, "/metrics"));
    assert!(path(&member("prometheus", "system:monitoring"), "/metrics"));
    assert!(!asks(&member("skiff:controllers", "x"), "delete", "pods", "x"));
    let rules = Standard::default().rules(&jane, "default", &Fresh);
    assert!(!rules.incomplete && rules.rules.iter().any(|rule| rule.resources == ["selfsubjectreviews"]));
}

#[test]
fn a_node_sees_its_own_pods_and_what_they_refer_to() {
    let decision = |node: &str, namespace: &str, verb: &str, resource: &str, name: &str, selector: &str| {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (group, resource) = match resource {
            "leases" => ("coordination.k8s.io", resource),
            "csinodes" | "csidrivers" | "volumeattachments" => ("storage.k8s.io", resource),
            "runtimeclasses" => ("node.k8s.io", resource),
            _ => ("", resource),
        };
        let attributes = Attributes {
            user: member(&format!("system:node:{node}"), "system:nodes"),
            verb: verb.into(),
            namespace: namespace.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            name: name.into(),
            is_resource: true,
            field_selector: selector.into(),
            ..Attributes::default()
        };
        Standard::default().authorize(&attributes, &Fresh)
    };
    let cases = [
        ("a", "default", "get", "secrets", "s", "", true),
        ("b", "default", "get", "secrets", "s", "", false),
        ("a", "default", "get", "secrets", "t", "", false),
        ("a", "other", "get", "secrets", "s", "", false),
        ("a", "", "list", "secrets", "s", "metadata.name=s", false),
        ("a", "default", "list", "secrets", "", "", false),
        ("a", "default", "update", "secrets", "s", "", false),
        ("a", "default", "get", "configmaps", "s", "", false),
        ("b", "kube-system", "get", "configmaps", "skiff-cluster", "", true),
        ("a", "default", "get", "persistentvolumeclaims", "c", "", true),
        ("a", "default", "list", "persistentvolumeclaims", "c", "", false),
        ("b", "default", "get", "persistentvolumeclaims", "c", "", false),
        ("a", "", "get", "persistentvolumes", "v", "", true),
        ("b", "", "get", "persistentvolumes", "v", "", false),
        ("a", "default", "watch", "persistentvolumeclaims", "c", "metadata.name=c", true),
        ("a", "default", "watch", "persistentvolumeclaims", "other", "metadata.name=other", false),
        ("a", "", "watch", "persistentvolumeclaims", "c", "metadata.name=c", false),
        ("b", "default", "watch", "persistentvolumeclaims", "c", "metadata.name=c", false),
        ("a", "default", "delete", "persistentvolumeclaims", "c", "", false),
        ("a", "default", "patch", "persistentvolumeclaims/status", "c", "", true),
        ("a", "", "list", "persistentvolumes", "v", "metadata.name=v", true),
        ("a", "", "list", "persistentvolumes", "", "", false),
        ("b", "", "list", "persistentvolumes", "v", "metadata.name=v", false),
        ("a", "", "patch", "persistentvolumes", "v", "", false),
        ("a", "", "watch", "volumeattachments", "attached", "metadata.name=attached", true),
        ("b", "", "watch", "volumeattachments", "attached", "metadata.name=attached", false),
        ("a", "", "watch", "volumeattachments", "", "", false),
        ("a", "", "watch", "csidrivers", "d", "metadata.name=d", true),
        ("a", "", "watch", "runtimeclasses", "r", "metadata.name=r", true),
        ("a", "storage", "get", "secrets", "v-stage", "", true),
        ("b", "storage", "get", "secrets", "v-stage", "", false),
        ("a", "default", "get", "secrets", "v-stage", "", false),
        ("a", "storage", "get", "secrets", "controllers", "", false),
        ("a", "storage", "get", "secrets", "stray-stage", "", false),
        ("a", "default", "create", "serviceaccounts/token", "bob", "", true),
        ("b", "default", "create", "serviceaccounts/token", "bob", "", false),
        ("a", "default", "get", "pods", "web", "", true),
        ("b", "default", "get", "pods", "web", "", false),
        ("a", "default", "watch", "pods", "", "spec.nodeName=a", true),
        ("a", "default", "watch", "pods", "", "spec.nodeName=b", false),
        ("a", "default", "list", "pods", "", "", false),
        // Of its own and mirrors only, as admission sees to.
        ("a", "default", "create", "pods", "", "", true),
        ("a", "default", "delete", "pods", "web", "", true),
        ("a", "default", "update", "pods/status", "web", "", true),
        ("a", "", "update", "nodes", "a", "", true),
        ("a", "", "update", "nodes", "b", "", false),
        ("a", "", "list", "nodes", "", "", true),
        ("a", "kube-node-lease", "update", "leases", "a", "", true),
        ("a", "kube-node-lease", "update", "leases", "b", "", false),
        ("a", "kube-node-lease", "watch", "leases", "", "", true),
        ("a", "kube-system", "update", "leases", "a", "", false),
        ("a", "", "patch", "csinodes", "a", "", true),
        ("a", "", "patch", "csinodes", "b", "", false),
    ];
    for (node, namespace, verb, resource, name, selector, allowed) in cases {
        let decision = decision(node, namespace, verb, resource, name, selector);
        let says = matches!(decision, Decision::Allow { .. });
        assert_eq!(says, allowed, "{node} {verb} {resource} {namespace}/{name}: {decision:?}");
    }
    let reason = "no relationship found between node 'b' and this object".to_owned();
    assert_eq!(decision("b", "default", "get", "secrets", "s", ""), Decision::NoOpinion { reason });
}
