//! Roles, bindings, certificates and trust.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AGE, CREATED, Cell, Column, Family, NAME, at, column, human_duration, items, labels, text, wide,
};

pub(super) const KINDS: Family = &[
    ("rbac.authorization.k8s.io", "Role", CREATED),
    ("rbac.authorization.k8s.io", "ClusterRole", CREATED),
    ("rbac.authorization.k8s.io", "RoleBinding", BINDING),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding", BINDING),
    ("certificates.k8s.io", "CertificateSigningRequest", REQUEST),
    ("certificates.k8s.io", "ClusterTrustBundle", TRUST_BUNDLE),
    ("certificates.k8s.io", "PodCertificateRequest", POD_REQUEST),
];

const BINDING: &[Column] = &[
    NAME,
    column("Role", "string", Cell::Of(role)),
    AGE,
    wide("Users", "string", Cell::Of(|object, _| subjects(object, "User"))),
    wide("Groups", "string", Cell::Of(|object, _| subjects(object, "Group"))),
    wide("ServiceAccounts", "string", Cell::Of(|object, _| subjects(object, "ServiceAccount"))),
];
const REQUEST: &[Column] = &[
    NAME,
    AGE,
    column("SignerName", "string", Cell::Path(&["spec", "signerName"])),
    column("Requestor", "string", Cell::Text(&["spec", "username"])),
    column("RequestedDuration", "string", Cell::Of(requested_duration)),
    column("Condition", "string", Cell::Of(request_condition)),
];
const TRUST_BUNDLE: &[Column] = &[NAME, column("SignerName", "string", Cell::Path(&["spec", "signerName"]))];
const POD_REQUEST: &[Column] = &[
    NAME,
    column("PodName", "string", Cell::Text(&["spec", "podName"])),
    column("ServiceAccountName", "string", Cell::Text(&["spec", "serviceAccountName"])),
    column("NodeName", "string", Cell::Text(&["spec", "nodeName"])),
    column("SignerName", "string", Cell::Text(&["spec", "signerName"])),
    column("State", "string", Cell::Of(pod_request_state)),
    column(
        "UnverifiedUserAnnotations",
        "string",
        Cell::Of(|object, _| labels(at(object, &["spec", "unverifiedUserAnnotations"]))),
    ),
];

fn role(object: &Value, _: Timestamp) -> Value {
    let role = at(object, &["roleRef"]);
    json!(format!("{}/{}", text(role, &["kind"]), text(role, &["name"])))
}

fn subjects(object: &Value, kind: &str) -> Value {
    let subjects = items(object, &["subjects"]).iter().filter(|subject| text(subject, &["kind"]) == kind);
    let names = subjects.map(|subject| match (kind, text(subject, &["name"])) {
        ("ServiceAccount", name) => format!("{}/{name}", text(subject, &["namespace"])),
        (_, name) => name.to_owned(),
    });
    json!(names.collect::<Vec<_>>().join(", "))
}

fn requested_duration(object: &Value, _: Timestamp) -> Value {
    match at(object, &["spec", "expirationSeconds"]).as_i64() {
        Some(seconds) => json!(human_duration(seconds)),
        None => json!("<none>"),
    }
}

/// What became of a request, whether the signer failed, and whether it was issued.
fn request_condition(object: &Value, _: Timestamp) -> Value {
    let said = |kind: &str| super::condition(object, kind).is_some();
    let mut words = vec![match (said("Denied"), said("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    }];
    if said("Failed") {
        words.push("Failed");
    }
    if !text(object, &["status", "certificate"]).is_empty() {
        words.push("Issued");
    }
    json!(words.join(","))
}

fn pod_request_state(object: &Value, _: Timestamp) -> Value {
    let mut kinds =
        items(object, &["status", "conditions"]).iter().map(|condition| text(condition, &["type"]));
    let last = kinds.rfind(|kind| matches!(*kind, "Issued" | "Denied" | "Failed"));
    json!(last.unwrap_or("Pending"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{cells, columns_of};

    fn row(group: &str, kind: &str, object: &Value) -> Vec<Value> {
        cells(columns_of(group, kind), object, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn bindings_and_requests() {
        let binding = json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "User", "name": "ann"}, {"kind": "User", "name": "bob"},
                {"kind": "ServiceAccount", "namespace": "n", "name": "s"}]});
        let cells = row("rbac.authorization.k8s.io", "RoleBinding", &binding);
        assert_eq!(cells[1], "ClusterRole/view");
        assert_eq!(cells[3..], [json!("ann, bob"), json!(""), json!("n/s")]);
        let request = json!({"metadata": {"name": "r"}, "spec": {"expirationSeconds": 86400},
            "status": {"certificate": "eA==", "conditions": [{"type": "Approved"}]}});
        let cells = row("certificates.k8s.io", "CertificateSigningRequest", &request);
        assert_eq!(cells[2..], [json!("<none>"), json!(""), json!("24h"), json!("Approved,Issued")]);
    }
}
