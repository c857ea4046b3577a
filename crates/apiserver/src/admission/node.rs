//! NodeRestriction: a node changes only its own Node and the pods that are bound to it, and of its Node nothing that
//! decides what the cluster sends there. Source: `plugin/pkg/admission/noderestriction`.

use std::collections::BTreeSet;

use api::{Object, Status};
use async_trait::async_trait;
use serde_json::Value;

use super::lifecycle::{creates_pod, forbidden, is};
use super::{Link, Operation, Review, World};
use crate::authn::{in_group, names, node_of};
use crate::authz::node as references;
use crate::tree;

/// Labels of the cluster's own domains that a node may give itself. Source: `kubelet/pkg/apis/well_known_labels.go`.
const OWN_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];
/// Domains in which all labels are the node's to give.
const OWN_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// Domains in which labels are the cluster's.
const CLUSTER_DOMAINS: [&str; 2] = ["kubernetes.io", "k8s.io"];

/// What nodes ask for in the name of pods.
const CERTIFICATES: (&str, &str) = ("certificates.k8s.io", "podcertificaterequests");

/// The link.
#[derive(Debug, Default, Clone, Copy)]
pub struct NodeRestriction;

#[async_trait]
impl Link for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    async fn validate(
        &self,
        review: &Review<'_>,
        object: Option<&Value>,
        world: &dyn World,
    ) -> Result<(), Status> {
        let Some(node) = node_of(review.user) else { return Ok(()) };
        let object = object.unwrap_or(&Value::Null);
        let why = if creates_pod(review) {
            let own = world.find("", "nodes", "", node).await?;
            new_pod(object, node, own.as_ref().map_or("", |own| own.meta().uid.as_str()))
        } else if review.operation == Operation::Create && is(review, "", "pods", "eviction") {
            let pod = world.find("", "pods", review.namespace, review.name).await?;
            let pod = pod.ok_or_else(|| Status::not_found("", "pods", review.name))?;
            let own = pod.node_name() == Some(node);
            (!own).then(|| format!("node {node} can only evict pods with spec.nodeName set to itself"))
        } else if review.operation == Operation::Create && is(review, CERTIFICATES.0, CERTIFICATES.1, "") {
            let spec = |field: &str| tree::text(object, &["spec", field]);
            let own = world.find("", "nodes", "", node).await?;
            let pod = world.find("", "pods", review.namespace, spec("podName")).await?;
            let account =
                world.find("", "serviceaccounts", review.namespace, spec("serviceAccountName")).await?;
            for_pod(object, review.namespace, node, [own.as_deref(), pod.as_deref(), account.as_deref()])
        } else {
            refusal(review, object, node)
        };
        why.map_or(Ok(()), |why| Err(forbidden(review, &why)))
    }
}

/// Why the node `node` may not write this; `None` if it may. Pure.
fn refusal(review: &Review<'_>, object: &Value, node: &str) -> Option<String> {
    let kind = (review.resource.group.as_str(), review.resource.resource.as_str());
    let subject = review.old.unwrap_or(object);
    let name = tree::text(subject, &["metadata", "name"]);
    match (kind, review.operation) {
        // What a node may connect to is authorization's to say.
        (_, Operation::Connect) => None,
        (CERTIFICATES, operation) => Some(format!("unexpected operation {}", operation.as_str())),
        (("", "pods"), operation) if tree::text(subject, &["spec", "nodeName"]) != node => {
            let what = match (operation, review.subresource) {
                (Operation::Delete, _) => "delete pods",
                (_, "status") => "update pod status for pods",
                _ => "change pods",
            };
            Some(format!("node \"{node}\" can only {what} with spec.nodeName set to itself"))
        }
        (("", "pods"), Operation::Update) if changes_claims(subject, object) => {
            Some(format!("node \"{node}\" cannot update resource claim statues"))
        }
        (("", "pods"), Operation::Update) if changes_extended_claim(subject, object) => {
            Some(format!("node \"{node}\" cannot update extended resource claim status"))
        }
        (("", "persistentvolumeclaims"), _) if review.subresource != "status" => {
            Some("may only update PVC status".to_owned())
        }
        (("", "nodes"), Operation::Create) if name != node => {
            Some(format!("node \"{node}\" is not allowed to create node \"{name}\""))
        }
        (("", "nodes"), Operation::Create) => new_node(review, object, node),
        (("", "nodes"), Operation::Update) => changed_node(subject, object, node),
        (("coordination.k8s.io", "leases"), Operation::Create) if name != node => {
            Some("can only access node lease with the same name as the requesting node".to_owned())
        }
        (("storage.k8s.io", "csinodes"), _) if name != node => {
            Some("can only access CSINode with the same name as the requesting node".to_owned())
        }
        (("resource.k8s.io", "resourceslices"), operation)
            if tree::text(subject, &["spec", "nodeName"]) != node =>
        {
            let verb = operation.as_str().to_ascii_lowercase();
            Some(format!("can only {verb} ResourceSlice with the same NodeName as the requesting node"))
        }
        _ => None,
    }
}

/// Why a node may not ask for this certificate: it is for a pod that it runs, and says who that is. `known`: the node, the
/// pod and the account that it names. Pure. Source: `admitPodCertificateRequest`.
fn for_pod(request: &Value, namespace: &str, node: &str, known: [Option<&Object>; 3]) -> Option<String> {
    let said = |field: &str| tree::text(request, &["spec", field]);
    let [own, pod, account] = known;
    let name = format!("{namespace}/{}", said("podName"));
    let of = |what: &str| format!("PodCertificateRequest for pod \"{name}\" {what}");
    let lacks = |kind: &str, name: &str, what: &str| {
        let missing = name.rsplit('/').next().unwrap_or_default();
        Some(format!(
            "while retrieving {kind} \"{name}\" named in the PodCertificateRequest: {what} \"{missing}\" not found"
        ))
    };
    if said("nodeName") != node {
        let named = said("nodeName");
        return Some(format!(
            "PodCertificateRequest.Spec.NodeName=\"{named}\", which is not the requesting node \"{node}\""
        ));
    }
    let Some(own) = own else { return lacks("node", node, "node") };
    let (uid, known) = (said("nodeUID"), &own.meta().uid);
    if uid != known {
        return Some(of(&format!(
            "names node UID \"{uid}\", inconsistent with the running node (\"{known}\")"
        )));
    }
    let Some(pod) = pod else { return lacks("pod", &name, "pod") };
    let (uid, known) = (said("podUID"), &pod.meta().uid);
    if uid != known {
        return Some(of(&format!("contains pod UID (\"{uid}\") which differs from running pod \"{known}\"")));
    }
    if pod.node_name() != Some(node) {
        return Some(format!(
            "pod \"{name}\" is not running on node \"{node}\" named in the PodCertificateRequest"
        ));
    }
    if pod.annotation(MIRROR).is_some() {
        return Some(format!("pod \"{name}\" is a mirror pod"));
    }
    let whole: Value = pod.decode().unwrap_or_default();
    let (named, runs_as) = (said("serviceAccountName"), tree::text(&whole, &["spec", "serviceAccountName"]));
    if named != runs_as {
        return Some(of(&format!(
            "contains serviceAccountName (\"{named}\") that differs from running pod (\"{runs_as}\")"
        )));
    }
    let Some(account) = account else {
        return lacks("service account", &format!("{namespace}/{named}"), "serviceaccount");
    };
    let (uid, known) = (said("serviceAccountUID"), &account.meta().uid);
    (uid != known).then(|| {
        of(&format!(
            "names service account UID \"{uid}\", which differs from the running service account (\"{known}\")"
        ))
    })
}

/// The annotation of pods that show what a node runs by itself.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";

/// Why a node may not create a pod: it only shows pods that it runs by itself, its own, and none that would give it a
/// right to read anything.
fn new_pod(pod: &Value, node: &str, uid: &str) -> Option<String> {
    if tree::at(pod, &["metadata", "annotations", MIRROR]).is_null() {
        return Some(format!(
            "pod does not have \"{MIRROR}\" annotation, node \"{node}\" can only create mirror pods"
        ));
    }
    if tree::text(pod, &["spec", "nodeName"]) != node {
        return Some(format!("node \"{node}\" can only create pods with spec.nodeName set to itself"));
    }
    let owners = tree::items(pod, &["metadata", "ownerReferences"]);
    let owned = |what: &str| Some(format!("node \"{node}\" can only create pods with {what} set to itself"));
    let owner = match owners {
        [owner] => owner,
        [] => return owned("an owner reference"),
        _ => return owned("a single owner reference"),
    };
    let is = |field: &str, wanted: &str| tree::text(owner, &[field]) == wanted;
    if !is("apiVersion", "v1") || !is("kind", "Node") || !is("name", node) {
        return owned("an owner reference");
    }
    if owner["controller"] != true {
        return owned("a controller owner reference");
    }
    if owner["blockOwnerDeletion"] == true {
        return Some(format!("node \"{node}\" must not set blockOwnerDeletion on an owner reference"));
    }
    let said = tree::text(owner, &["uid"]);
    if said != uid {
        return Some(format!("node {node} UID mismatch: expected {said} got {uid}"));
    }
    let referred = [
        (!tree::text(pod, &["spec", "serviceAccountName"]).is_empty(), "a service account"),
        (references::secrets(pod).next().is_some(), "secrets"),
        (references::config_maps(pod).next().is_some(), "configmaps"),
        (projects(pod, "clusterTrustBundle").next().is_some(), "clustertrustbundles"),
        (projects(pod, "podCertificate").next().is_some(), "podcertificates"),
        (references::claims(pod).next().is_some(), "persistentvolumeclaims"),
        (references::resource_claims(pod).next().is_some(), "resourceclaims"),
    ];
    let (_, what) = referred.iter().find(|(refers, _)| *refers)?;
    Some(format!("node \"{node}\" can not create pods that reference {what}"))
}

/// The sources of one kind that a pod's projected volumes have.
pub(crate) fn projects<'a>(pod: &'a Value, source: &'static str) -> impl Iterator<Item = &'a Value> {
    let volumes = tree::items(pod, &["spec", "volumes"]).iter();
    let sources = volumes.flat_map(|volume| tree::items(volume, &["projected", "sources"]));
    sources.filter_map(move |held| held.get(source)).filter(|held| !held.is_null())
}

fn changes_claims(old: &Value, new: &Value) -> bool {
    let statuses = |pod| tree::items(pod, &["status", "resourceClaimStatuses"]);
    statuses(old) != statuses(new)
}

fn changes_extended_claim(old: &Value, new: &Value) -> bool {
    let status = |pod| tree::at(pod, &["status", "extendedResourceClaimStatus"]);
    status(old) != status(new)
}

/// What a node may not say of itself when it registers. The range of its pods is routed by every host, so that it is
/// given and not taken; the node beside the API server has it from the same configuration as the cluster.
fn new_node(review: &Review<'_>, object: &Value, node: &str) -> Option<String> {
    let ranges = ["podCIDR", "podCIDRs"].iter().any(|field| !tree::at(object, &["spec", field]).is_null());
    if ranges && !in_group(review.user, names::COMPONENTS) {
        return Some(format!(
            "node \"{node}\" is not allowed to set its own spec.podCIDR: the cluster gives it"
        ));
    }
    if !tree::items(object, &["metadata", "ownerReferences"]).is_empty() {
        return Some(format!("node \"{node}\" is not allowed to set ownerReferences"));
    }
    let labels = foreign_labels(&Value::Null, object);
    (!labels.is_empty()).then(|| format!("is not allowed to set the following labels: {}", labels.join(", ")))
}

/// The ranges of a node's pods; the first may stand in one field or in both.
fn ranges(node: &Value) -> Vec<&Value> {
    match tree::items(node, &["spec", "podCIDRs"]) {
        [] => vec![tree::at(node, &["spec", "podCIDR"])],
        all => all.iter().collect(),
    }
}

/// What a node may not change about itself afterwards: all by which it would draw pods or traffic to itself.
fn changed_node(old: &Value, new: &Value, node: &str) -> Option<String> {
    if ranges(old) != ranges(new) {
        return Some(format!("node \"{node}\" is not allowed to modify spec.podCIDR"));
    }
    let kept: [(&[&str], &str); 2] =
        [(&["spec", "taints"], "taints"), (&["metadata", "ownerReferences"], "ownerReferences")];
    if let Some((_, what)) = kept.iter().find(|(path, _)| tree::at(old, path) != tree::at(new, path)) {
        return Some(format!("node \"{node}\" is not allowed to modify {what}"));
    }
    let labels = foreign_labels(old, new);
    (!labels.is_empty()).then(|| format!("is not allowed to modify labels: {}", labels.join(", ")))
}

/// The labels that differ and are not the node's to give, sorted.
fn foreign_labels(old: &Value, new: &Value) -> Vec<String> {
    let labels = |object| tree::at(object, &["metadata", "labels"]);
    let (before, after) = (labels(old), labels(new));
    let keys: BTreeSet<&String> = [before, after]
        .iter()
        .flat_map(|labels| labels.as_object())
        .flat_map(|labels| labels.keys())
        .collect();
    let foreign = |key: &&String| before.get(*key) != after.get(*key) && is_foreign(key);
    keys.into_iter().filter(foreign).cloned().collect()
}

fn is_foreign(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let within = |parents: &[&str]| {
        parents.iter().any(|parent| {
            domain.strip_suffix(parent).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    };
    within(&CLUSTER_DOMAINS) && !OWN_LABELS.contains(&label) && !within(&OWN_DOMAINS)
}

#[cfg(test)]
mod tests {
    use api::connect::User;
    use api::{GroupVersionResource, WriteOptions};
    use serde_json::json;

    use super::*;
    use crate::admission::{Notes, Options};
    use crate::authn;
    use crate::words::Catalog;

    /// What node `a` is told when it writes.
    fn asked(resource: &str, operation: Operation, old: Option<&Value>, object: &Value) -> Option<String> {
        let user =
            User { name: "system:node:a".into(), groups: vec![names::NODES.into()], ..User::default() };
        asked_as(&authn::authenticated(user), resource, operation, old, object)
    }

    fn asked_as(
        user: &User,
        resource: &str,
        operation: Operation,
        old: Option<&Value>,
        object: &Value,
    ) -> Option<String> {
        let group = if resource == "leases" { "coordination.k8s.io" } else { "" };
        let resource = GroupVersionResource::new(group, "v1", resource);
        let kind = Catalog::builtin().find(&resource).unwrap();
        let given = WriteOptions::default();
        let review = Review {
            user,
            operation,
            options: Options::Write(&given),
            asked: &kind,
            kind: &kind,
            resource: &resource,
            subresource: "",
            namespace: "",
            name: "",
            prefix: "",
            old,
            notes: &Notes::default(),
            rounds: Default::default(),
        };
        refusal(&review, object, "a")
    }

    #[test]
    fn certificates_are_asked_for_in_the_name_of_pods_that_the_node_runs() {
        let object = |name: &str, uid: &str, more: Value| {
            let mut whole =
                json!({ "apiVersion": "v1", "kind": "X", "metadata": { "name": name, "uid": uid } });
            whole["spec"] = more;
            Object::parse(whole.to_string().into()).unwrap()
        };
        let own = object("a", "node-uid", json!({}));
        let pod = object("web", "pod-uid", json!({ "nodeName": "a", "serviceAccountName": "sa" }));
        let elsewhere = object("web", "pod-uid", json!({ "nodeName": "b", "serviceAccountName": "sa" }));
        let account = object("sa", "sa-uid", json!({}));
        let all = [Some(&own), Some(&pod), Some(&account)];
        let asks = |field: &str, value: &str, known: [Option<&Object>; 3]| {
            let mut request = json!({ "spec": { "nodeName": "a", "nodeUID": "node-uid", "podName": "web",
                "podUID": "pod-uid", "serviceAccountName": "sa", "serviceAccountUID": "sa-uid" } });
            request["spec"][field] = value.into();
            for_pod(&request, "ns", "a", known).unwrap_or_default()
        };
        assert_eq!(asks("podName", "web", all), "");
        for (field, value, known, told) in [
            (
                "nodeName",
                "b",
                all,
                "PodCertificateRequest.Spec.NodeName=\"b\", which is not the requesting node \"a\"",
            ),
            (
                "nodeUID",
                "x",
                all,
                "PodCertificateRequest for pod \"ns/web\" names node UID \"x\", inconsistent with the running node \
                 (\"node-uid\")",
            ),
            (
                "podName",
                "web",
                [Some(&own), None, Some(&account)],
                "while retrieving pod \"ns/web\" named in the PodCertificateRequest: pod \"web\" not found",
            ),
            (
                "podUID",
                "x",
                all,
                "PodCertificateRequest for pod \"ns/web\" contains pod UID (\"x\") which differs from running pod \
                 \"pod-uid\"",
            ),
            (
                "podName",
                "web",
                [Some(&own), Some(&elsewhere), Some(&account)],
                "pod \"ns/web\" is not running on node \"a\" named in the PodCertificateRequest",
            ),
            (
                "serviceAccountName",
                "x",
                all,
                "PodCertificateRequest for pod \"ns/web\" contains serviceAccountName (\"x\") that differs from running \
                 pod (\"sa\")",
            ),
            (
                "serviceAccountUID",
                "x",
                all,
                "PodCertificateRequest for pod \"ns/web\" names service account UID \"x\", which differs from the running \
                 service account (\"sa-uid\")",
            ),
        ] {
            assert_eq!(asks(field, value, known), told);
        }
    }

    fn node(spec: Value, labels: Value) -> Value {
        json!({ "metadata": { "name": "a", "labels": labels }, "spec": spec })
    }

    #[test]
    fn a_node_shows_its_own_pods_and_none_that_give_it_rights() {
        let owner =
            json!({ "apiVersion": "v1", "kind": "Node", "name": "a", "uid": "u", "controller": true });
        let mirror = json!({
            "metadata": { "name": "x", "annotations": { MIRROR: "y" }, "ownerReferences": [owner] },
            "spec": { "nodeName": "a" },
        });
        assert_eq!(new_pod(&mirror, "a", "u"), None);
        let refused = |change: &dyn Fn(&mut Value), expected: &str| {
            let mut pod = mirror.clone();
            change(&mut pod);
            assert_eq!(new_pod(&pod, "a", "u").as_deref(), Some(expected));
        };
        refused(
            &|pod| pod["metadata"]["annotations"] = json!({}),
            "pod does not have \"kubernetes.io/config.mirror\" annotation, node \"a\" can only create mirror pods",
        );
        refused(
            &|pod| pod["spec"]["nodeName"] = "b".into(),
            "node \"a\" can only create pods with spec.nodeName set to itself",
        );
        refused(
            &|pod| pod["metadata"]["ownerReferences"] = json!([]),
            "node \"a\" can only create pods with an owner reference set to itself",
        );
        refused(
            &|pod| pod["metadata"]["ownerReferences"][0]["uid"] = "v".into(),
            "node a UID mismatch: expected v got u",
        );
        refused(
            &|pod| pod["spec"]["volumes"] = json!([{ "name": "v", "secret": { "secretName": "s" } }]),
            "node \"a\" can not create pods that reference secrets",
        );
        refused(
            &|pod| pod["spec"]["serviceAccountName"] = "default".into(),
            "node \"a\" can not create pods that reference a service account",
        );
        assert_eq!(asked("pods", Operation::Update, Some(&mirror), &mirror), None);
        for (field, told, expected) in [
            (
                "resourceClaimStatuses",
                json!([{ "name": "c" }]),
                "node \"a\" cannot update resource claim statues",
            ),
            (
                "extendedResourceClaimStatus",
                json!({ "resourceClaimName": "c" }),
                "node \"a\" cannot update extended resource claim status",
            ),
            ("phase", json!("Running"), ""),
        ] {
            let mut told_of = mirror.clone();
            told_of["status"] = json!({ field: told });
            let said = asked("pods", Operation::Update, Some(&mirror), &told_of).unwrap_or_default();
            assert_eq!(said, expected, "{field}");
        }
        let other = json!({ "metadata": { "name": "x" }, "spec": { "nodeName": "b" } });
        assert!(asked("pods", Operation::Delete, Some(&other), &Value::Null).is_some());
        let lease = |name: &str| json!({ "metadata": { "name": name } });
        assert_eq!(asked("leases", Operation::Create, None, &lease("a")), None);
        assert!(asked("leases", Operation::Create, None, &lease("b")).is_some());
    }

    #[test]
    fn a_node_takes_no_range_and_keeps_its_taints() {
        let taint = json!({ "taints": [{ "key": "k", "effect": "NoSchedule" }] });
        let plain = node(taint.clone(), json!({ "kubernetes.io/hostname": "a", "example.com/x": "y" }));
        assert_eq!(asked("nodes", Operation::Create, None, &plain), None);
        for spec in [json!({ "podCIDR": "0.0.0.0/0" }), json!({ "podCIDRs": ["10.42.0.0/24"] })] {
            let claims = node(spec.clone(), json!({}));
            assert!(asked("nodes", Operation::Create, None, &claims).is_some(), "{spec}");
            assert!(asked("nodes", Operation::Update, Some(&plain), &claims).is_some(), "{spec}");
        }
        let ranged = node(json!({ "podCIDR": "10.42.0.0/24" }), json!({}));
        let local =
            User { name: "system:node:a".into(), groups: vec![names::NODES.into()], ..User::default() };
        let local = authn::in_process(&local);
        assert_eq!(asked_as(&local, "nodes", Operation::Create, None, &ranged), None);
        let bare = node(json!({}), tree::at(&plain, &["metadata", "labels"]).clone());
        let told = asked("nodes", Operation::Update, Some(&plain), &bare).unwrap();
        assert_eq!(told, "node \"a\" is not allowed to modify taints");
        let mut cordoned = plain.clone();
        cordoned["spec"]["unschedulable"] = true.into();
        assert_eq!(asked("nodes", Operation::Update, Some(&plain), &cordoned), None);
    }

    #[test]
    fn labels_of_the_cluster_are_not_a_nodes_to_give() {
        for own in [
            "app",
            "example.com/x",
            "node.kubernetes.io/x",
            "a.kubelet.kubernetes.io/x",
            "notkubernetes.io/x",
        ] {
            assert!(!is_foreign(own), "{own}");
        }
        for foreign in [
            "kubernetes.io/role",
            "k8s.io/x",
            "node-role.kubernetes.io/control-plane",
            "node-restriction.kubernetes.io/secure",
        ] {
            assert!(is_foreign(foreign), "{foreign}");
        }
        let old = node(json!({}), json!({ "node-role.kubernetes.io/x": "" }));
        assert_eq!(asked("nodes", Operation::Update, Some(&old), &old), None);
        assert!(asked("nodes", Operation::Update, Some(&old), &node(json!({}), json!({}))).is_some());
    }
}
