//! What becomes of a certificate signing request: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use api::ObjectMeta;
use jiff::Timestamp;
use reconcile::ports::{CertificateSubject, CertificateUse};
use serde::Deserialize;

/// Signs clients' certificates that an administrator approves.
pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Signs clients' certificates of nodes.
pub const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signs serving certificates of nodes.
pub const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";

const MASTERS: &str = "system:masters";
const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
const BOOTSTRAPPERS: &str = "system:bootstrappers";

/// What is said of what is approved. Source: `recognizers` of the approver.
const FIRST: &str = "Auto approving kubelet client certificate after SubjectAccessReview.";
const NEXT: &str = "Auto approving self kubelet client certificate after SubjectAccessReview.";
const SERVING: &str = "Auto approving the serving certificate of a node under its own name.";

const SIGNATURE: &str = "digital signature";
const ENCIPHERMENT: &str = "key encipherment";
const MORE: &str = "the request asks for more than a certificate of this signer has";

/// How long a certificate is valid at most.
const LIFE_MAX: Duration = Duration::from_secs(365 * 86_400);
/// Requests are removed so long after they were answered, or after they were made if nobody said anything.
/// Source: `k8s.io/kubernetes/pkg/controller/certificates/cleaner`.
const KEPT_ANSWERED: Duration = Duration::from_secs(3600);
const KEPT_PENDING: Duration = Duration::from_secs(86_400);

/// The fields of a CertificateSigningRequest that count.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Request {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Spec.
    pub spec: Spec,
    /// Status.
    pub status: Status,
}

/// What is asked, and by whom.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec {
    /// Base64 of the PEM of a PKCS#10 request.
    pub request: String,
    /// Who shall sign.
    pub signer_name: String,
    /// Who asked, as the API server saw it.
    pub username: String,
    /// Their uid.
    pub uid: String,
    /// Their groups.
    pub groups: Vec<String>,
    /// What else was known of them.
    pub extra: BTreeMap<String, Vec<String>>,
    /// What it shall be good for.
    pub usages: Vec<String>,
    /// How long it shall be valid.
    pub expiration_seconds: Option<u32>,
}

/// The answer so far.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Approved, Denied, Failed.
    pub conditions: Vec<Condition>,
    /// Base64 of the certificate's PEM.
    pub certificate: String,
}

/// A condition.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Condition {
    /// `Approved`, `Denied` or `Failed`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Since when.
    pub last_update_time: Option<Timestamp>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Somebody else's, or an administrator's to decide; looked at again when it has become old.
    Wait(Duration),
    /// It is old.
    Remove,
    /// It is what a node may have, for this reason.
    Approve(&'static str),
    /// It must not be.
    Deny(&'static str, String),
    /// It is approved: issue this for so long.
    Sign(CertificateUse, Duration),
    /// It is approved and cannot be issued.
    Fail(String),
}

impl Request {
    fn is_issued(&self) -> bool {
        !self.status.certificate.is_empty()
    }

    fn is(&self, condition: &str) -> bool {
        self.status.conditions.iter().any(|known| known.kind == condition)
    }
}

/// Decides. `asked` is what the request says, or why it cannot be read; `ready_nodes` are the nodes that are Ready.
pub fn plan(
    request: &Request,
    asked: &Result<CertificateSubject, String>,
    is_ready_node: impl Fn(&str) -> bool,
    now: Timestamp,
) -> Plan {
    let left = left(request, now);
    if left.is_zero() {
        return Plan::Remove;
    }
    let wait = Plan::Wait(left);
    let answered = request.is_issued() || request.is("Denied") || request.is("Failed");
    let Some(good_for) = good_for(&request.spec.signer_name).filter(|_| !answered) else { return wait };
    let asked = match asked {
        Ok(asked) => asked,
        Err(error) if request.is("Approved") => return Plan::Fail(error.clone()),
        Err(error) => return Plan::Deny("Unreadable", error.clone()),
    };
    if request.spec.signer_name == CLIENT && asked.groups.iter().any(|group| group == MASTERS) {
        // Source: the admission link CertificateSubjectRestriction.
        let why = format!("use of {CLIENT} signer with {MASTERS} group is not allowed");
        return if request.is("Approved") { Plan::Fail(why) } else { Plan::Deny("Forbidden", why) };
    }
    if request.is("Approved") {
        return match unfit(request, good_for, asked) {
            Some(why) => Plan::Fail(why),
            None => Plan::Sign(good_for, life(request)),
        };
    }
    approval(request, good_for, asked, is_ready_node).unwrap_or(wait)
}

/// As what a request for a node's certificate is known that roles may have approved: the subresource that whoever asked
/// has to be allowed to create, and what is said then. Source: `recognizers` of the approver.
pub(super) fn recognized(
    request: &Request,
    asked: &Result<CertificateSubject, String>,
) -> Option<(&'static str, &'static str)> {
    let answered = request.is_issued() || !request.status.conditions.is_empty();
    let asked = asked.as_ref().ok().filter(|_| request.spec.signer_name == NODE_CLIENT && !answered)?;
    if unfit(request, CertificateUse::Client, asked).is_some() {
        return None;
    }
    let is_itself = request.spec.username == asked.user;
    Some(if is_itself { ("selfnodeclient", NEXT) } else { ("nodeclient", FIRST) })
}

/// How long a request is still kept, as far as can be said now: one that is approved and waits for its signer stays.
fn left(request: &Request, now: Timestamp) -> Duration {
    let conditions = &request.status.conditions;
    let settles = |condition: &&Condition| match condition.kind.as_str() {
        "Denied" | "Failed" => true,
        "Approved" => request.is_issued(),
        _ => false,
    };
    let settled =
        conditions.iter().filter(settles).map(|condition| (condition.last_update_time, KEPT_ANSWERED));
    let pending = conditions.is_empty().then_some((request.metadata.creation_timestamp, KEPT_PENDING));
    let left = settled.chain(pending).filter_map(|(since, kept)| {
        let age = now.duration_since(since?).try_into().unwrap_or_default();
        Some(kept.saturating_sub(age))
    });
    left.min().unwrap_or(KEPT_PENDING)
}

fn good_for(signer: &str) -> Option<CertificateUse> {
    match signer {
        CLIENT | NODE_CLIENT => Some(CertificateUse::Client),
        NODE_SERVING => Some(CertificateUse::Server),
        _ => None,
    }
}

fn life(request: &Request) -> Duration {
    let asked = request.spec.expiration_seconds.map(|seconds| Duration::from_secs(seconds.into()));
    asked.unwrap_or(LIFE_MAX).min(LIFE_MAX)
}

/// Why the signer does not issue this, whoever approved it, in upstream's words.
/// Source: `k8s.io/kubernetes/pkg/apis/certificates/helpers.go`, `validAPIServerClientUsages`.
fn unfit(request: &Request, good_for: CertificateUse, asked: &CertificateSubject) -> Option<String> {
    if request.spec.signer_name == CLIENT {
        return unfit_client(request, asked);
    }
    let (own, serves) = match good_for {
        CertificateUse::Client => ("client auth", false),
        CertificateUse::Server => ("server auth", true),
    };
    let named = !asked.names.is_empty() || !asked.addresses.is_empty();
    let is_node = asked.user.strip_prefix(NODE_PREFIX).is_some_and(|name| !name.is_empty());
    let usages: BTreeSet<&str> = request.spec.usages.iter().map(String::as_str).collect();
    let required = BTreeSet::from([own, SIGNATURE, ENCIPHERMENT]);
    let why = if asked.groups != [NODES] {
        "subject organization is not system:nodes"
    } else if serves && !named {
        "DNS or IP subjectAltName is required"
    } else if !serves && !asked.names.is_empty() {
        "DNS subjectAltNames are not allowed"
    } else if !serves && named {
        "IP subjectAltNames are not allowed"
    } else if asked.more {
        MORE
    } else if usages != required && usages != BTreeSet::from([own, SIGNATURE]) {
        let required: Vec<&str> = required.into_iter().collect();
        return Some(format!("usages did not match [{}]", required.join(" ")));
    } else if !is_node {
        "subject common name does not begin with system:node:"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// The same of a client that is no node.
fn unfit_client(request: &Request, asked: &CertificateSubject) -> Option<String> {
    const OWN: &str = "client auth";
    let usages = &request.spec.usages;
    let strange = usages.iter().find(|usage| ![OWN, SIGNATURE, ENCIPHERMENT].contains(&usage.as_str()));
    if let Some(usage) = strange {
        Some(format!("invalid usage for client certificate: {usage}"))
    } else if !usages.iter().any(|usage| usage == OWN) {
        Some(format!("missing required usage for client certificate: {OWN}"))
    } else {
        asked.more.then(|| MORE.to_owned())
    }
}

/// Names that the cluster itself answers to: a node that had one of them could pass for it.
fn is_reserved(name: &str) -> bool {
    let ends = [".svc", ".local", ".localhost"].iter().any(|end| name.ends_with(end));
    let is_address = name.parse::<IpAddr>().is_ok();
    ends || is_address || matches!(name, "localhost" | "kubernetes" | "kubernetes.default")
}

/// What is decided without an administrator: a joining node's first certificate, a node's next one, and the serving
/// certificate of a node under its own name (an address would prove too little: a node states its addresses itself).
fn approval(
    request: &Request,
    good_for: CertificateUse,
    asked: &CertificateSubject,
    is_ready_node: impl Fn(&str) -> bool,
) -> Option<Plan> {
    if request.spec.signer_name == CLIENT || unfit(request, good_for, asked).is_some() {
        return None;
    }
    let node = asked.user.strip_prefix(NODE_PREFIX)?;
    let asker = &request.spec;
    let is_in = |group: &str| asker.groups.iter().any(|known| known == group);
    let is_itself = asker.username == asked.user && is_in(NODES);
    if is_reserved(node) {
        let why = format!("{node:?} is a name of the cluster itself; choose another one with --node-name");
        return Some(Plan::Deny("Reserved", why));
    }
    match good_for {
        CertificateUse::Client if is_itself => Some(Plan::Approve(NEXT)),
        CertificateUse::Client if is_in(BOOTSTRAPPERS) && is_ready_node(node) => {
            let why = format!(
                "a node {node:?} is in the cluster and Ready; choose another name with --node-name, or delete that node"
            );
            Some(Plan::Deny("NodeExists", why))
        }
        CertificateUse::Client if is_in(BOOTSTRAPPERS) => Some(Plan::Approve(FIRST)),
        CertificateUse::Server if is_itself && asked.names == [node] && asked.addresses.is_empty() => {
            Some(Plan::Approve(SERVING))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(signer: &str, user: &str, group: &str, usage: &str) -> Request {
        Request {
            spec: Spec {
                signer_name: signer.into(),
                username: user.into(),
                groups: vec![group.into(), "system:authenticated".into()],
                usages: vec!["digital signature".into(), usage.into()],
                ..Spec::default()
            },
            ..Request::default()
        }
    }

    fn asked(node: &str, names: &[&str]) -> Result<CertificateSubject, String> {
        Ok(CertificateSubject {
            user: format!("system:node:{node}"),
            groups: vec!["system:nodes".into()],
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..CertificateSubject::default()
        })
    }

    fn condition(kind: &str, since: Option<Timestamp>) -> Condition {
        Condition { kind: kind.into(), last_update_time: since }
    }

    fn decide(request: &Request, asked: &Result<CertificateSubject, String>) -> Plan {
        plan(request, asked, |node| node == "n1", Timestamp::UNIX_EPOCH)
    }

    fn joining() -> Request {
        request(NODE_CLIENT, "system:bootstrap:abcdef", BOOTSTRAPPERS, "client auth")
    }

    #[test]
    fn a_joining_node_gets_a_name_that_nobody_has() {
        assert_eq!(decide(&joining(), &asked("n2", &[])), Plan::Approve(FIRST));
        let next = request(NODE_CLIENT, "system:node:n2", NODES, "client auth");
        assert_eq!(decide(&next, &asked("n2", &[])), Plan::Approve(NEXT));
        assert!(matches!(decide(&joining(), &asked("n1", &[])), Plan::Deny("NodeExists", _)));
        assert!(matches!(
            decide(&joining(), &asked("kubernetes.default.svc", &[])),
            Plan::Deny("Reserved", _)
        ));
        assert!(matches!(decide(&joining(), &Err("no".into())), Plan::Deny("Unreadable", _)));
    }

    #[test]
    fn strangers_other_nodes_and_other_subjects_wait_for_an_administrator() {
        let stranger =
            request(NODE_CLIENT, "system:serviceaccount:a:b", "system:serviceaccounts", "client auth");
        let other = request(NODE_SERVING, "system:node:n3", NODES, "server auth");
        let masters =
            Ok(CertificateSubject { groups: vec!["system:masters".into()], ..asked("n2", &[]).unwrap() });
        for (request, asked) in [
            (&stranger, asked("n2", &[])),
            (&other, asked("n2", &["n2"])),
            (&request(NODE_SERVING, "system:node:n2", NODES, "server auth"), asked("n2", &["n2", "n1"])),
            (&request(NODE_CLIENT, "system:node:n2", NODES, "server auth"), asked("n2", &[])),
            (&request("example.com/mine", "system:node:n2", NODES, "client auth"), asked("n2", &[])),
            (&joining(), masters),
        ] {
            assert!(matches!(decide(request, &asked), Plan::Wait(_)), "{request:?}");
        }
    }

    #[test]
    fn roles_may_let_others_have_nodes_certificates() {
        let account =
            |user: &str, signer: &str| request(signer, user, "system:serviceaccounts", "client auth");
        let known = |user: &str, signer: &str| {
            recognized(&account(user, signer), &asked("n2", &[])).map(|(subresource, _)| subresource)
        };
        assert_eq!(known("system:serviceaccount:a:b", NODE_CLIENT), Some("nodeclient"));
        assert_eq!(known("system:node:n2", NODE_CLIENT), Some("selfnodeclient"));
        assert_eq!(known("jane", CLIENT), None);
        assert_eq!(recognized(&account("jane", NODE_CLIENT), &asked("n2", &["n2"])), None);
        let mut denied = account("jane", NODE_CLIENT);
        denied.status.conditions.push(condition("Denied", None));
        assert_eq!(recognized(&denied, &asked("n2", &[])), None);
    }

    #[test]
    fn a_persons_certificate_is_the_administrators_to_approve() {
        let mut request = request(CLIENT, "kubernetes-admin", "system:masters", "client auth");
        let person = |groups: &[&str]| {
            let groups = groups.iter().map(|group| (*group).to_owned()).collect();
            Ok(CertificateSubject { user: "jane".into(), groups, ..CertificateSubject::default() })
        };
        assert!(matches!(decide(&request, &person(&["dev"])), Plan::Wait(_)));
        assert!(matches!(decide(&request, &person(&["dev", MASTERS])), Plan::Deny("Forbidden", _)));
        request.status.conditions.push(condition("Approved", None));
        assert_eq!(decide(&request, &person(&["dev"])), Plan::Sign(CertificateUse::Client, LIFE_MAX));
        assert!(matches!(decide(&request, &person(&[MASTERS])), Plan::Fail(_)));
        for (usages, why) in [
            (&["server auth"][..], "invalid usage for client certificate: server auth"),
            (&["digital signature"], "missing required usage for client certificate: client auth"),
        ] {
            request.spec.usages = usages.iter().map(|usage| (*usage).to_owned()).collect();
            assert_eq!(decide(&request, &person(&["dev"])), Plan::Fail(why.into()));
        }
    }

    #[test]
    fn what_is_approved_is_signed_if_it_fits_and_goes_when_it_is_old() {
        let mut approved = request(NODE_SERVING, "system:node:n2", NODES, "server auth");
        approved.status.conditions.push(condition("Approved", Some(Timestamp::UNIX_EPOCH)));
        approved.spec.expiration_seconds = Some(3600);
        let hour = Duration::from_secs(3600);
        assert_eq!(decide(&approved, &asked("n2", &["n2"])), Plan::Sign(CertificateUse::Server, hour));
        let failed = |request: &Request, asked| match decide(request, &asked) {
            Plan::Fail(why) => why,
            other => format!("{other:?}"),
        };
        assert_eq!(failed(&approved, asked("n2", &[])), "DNS or IP subjectAltName is required");
        let others = Ok(CertificateSubject { groups: Vec::new(), ..asked("n2", &["n2"]).unwrap() });
        assert_eq!(failed(&approved, others), "subject organization is not system:nodes");
        let nobody = Ok(CertificateSubject { user: "n2".into(), ..asked("n2", &["n2"]).unwrap() });
        assert_eq!(failed(&approved, nobody), "subject common name does not begin with system:node:");
        let mut client = Request {
            spec: Spec { signer_name: NODE_CLIENT.into(), ..approved.spec.clone() },
            ..approved.clone()
        };
        assert_eq!(failed(&client, asked("n2", &["n2"])), "DNS subjectAltNames are not allowed");
        let usages = "usages did not match [client auth digital signature key encipherment]";
        assert_eq!(failed(&client, asked("n2", &[])), usages);
        client.spec.usages = vec!["client auth".into()];
        assert_eq!(failed(&client, asked("n2", &[])), usages);
        approved.status.certificate = "x".into();
        assert_eq!(decide(&approved, &asked("n2", &["n2"])), Plan::Wait(hour));
    }

    #[test]
    fn requests_go_a_while_after_they_were_decided() {
        let (hour, start) = (Duration::from_secs(3600), Timestamp::UNIX_EPOCH);
        let decided = Some(start + 10 * hour);
        let goes_after = |kind: Option<&str>, since: Option<Timestamp>, certificate: &str| {
            let mut request = request("example.com/mine", "jane", "dev", "client auth");
            request.metadata.creation_timestamp = Some(start);
            request.status.conditions.extend(kind.map(|kind| condition(kind, since)));
            request.status.certificate = certificate.into();
            let goes = |hours: u32| {
                plan(&request, &asked("n2", &[]), |_| true, start + hours * hour) == Plan::Remove
            };
            (0..100).find(|hours| goes(*hours))
        };
        assert_eq!(goes_after(None, None, ""), Some(24));
        // Its signer may still come, and what others say decides nothing.
        assert_eq!(goes_after(Some("Approved"), decided, ""), None);
        assert_eq!(goes_after(Some("Reviewing"), decided, ""), None);
        assert_eq!(goes_after(Some("Approved"), decided, "x"), Some(11));
        assert_eq!(goes_after(Some("Denied"), decided, ""), Some(11));
        assert_eq!(goes_after(Some("Failed"), decided, ""), Some(11));
        assert_eq!(goes_after(Some("Denied"), None, ""), None);
    }
}
