//! Certificate signing requests, each of which says who made it, whatever its maker wrote. Source: `certificates/validation/validation.go`, `registry/certificates`.

use std::collections::HashSet;

use api::connect::User;
use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::name_problems;
use apiserver::strategy::{NameRule, Strategy};
use apiserver::{pki, tree};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::at::At;

/// The shortest life that can be asked for, in seconds.
const LIFE_MIN_SECONDS: i64 = 600;
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
/// Conditions that stay once they are there, and that are true.
const DECISIONS: [&str; 3] = ["Approved", "Denied", "Failed"];

/// Requests: what is asked never changes.
pub(crate) struct CertificateSigningRequests;

impl Strategy for CertificateSigningRequests {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn generation(&self) -> bool {
        false
    }

    fn signed(&self, user: &User, object: &mut Value) {
        let spec = tree::object(object, "spec");
        for field in ["username", "uid", "groups", "extra"] {
            spec.remove(field);
        }
        spec.insert("username".into(), user.name.clone().into());
        spec.insert("groups".into(), user.groups.clone().into());
        if !user.uid.is_empty() {
            spec.insert("uid".into(), user.uid.clone().into());
        }
        if !user.extra.is_empty() {
            let extra = user.extra.iter().map(|(name, values)| (name.clone(), json!(values)));
            spec.insert("extra".into(), Value::Object(extra.collect()));
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        tree::copy(old, new, "spec");
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = At::object(object).get("spec");
        spec.get("request").present("", errors);
        let usages = spec.get("usages");
        if usages.is_empty() {
            errors.push(usages.required(""));
        }
        let mut seen: HashSet<&str> = HashSet::new();
        for usage in usages.items() {
            usage.one_of(&USAGES, errors);
            if seen.contains(&usage.text()) {
                errors.push(usage.duplicate());
            }
            seen.insert(usage.text());
        }
        let signer = spec.get("signerName");
        if signer.text() == LEGACY_SIGNER {
            errors.push(signer.invalid("the legacy signerName is not allowed via this API version"));
        } else {
            signer_name(&signer, errors);
        }
        let life = spec.get("expirationSeconds");
        if life.is_set() && life.number() < LIFE_MIN_SECONDS {
            errors.push(life.invalid("may not specify a duration less than 600 seconds (10 minutes)"));
        }
    }

    /// What was stored before requests were looked at stays what it is.
    fn validate_create(&self, object: &Value, errors: &mut FieldErrors) {
        let request = At::object(object).down(&["spec", "request"]);
        // That it is base64 the schema says.
        let pem = STANDARD.decode(request.text()).unwrap_or_default();
        if request.text().is_empty() {
            return;
        }
        if let Err(problem) = pki::check_request(&pem) {
            errors.push(request.invalid(&problem));
        }
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        conditions(new, errors);
        kept(new, old, errors);
        for kind in ["Approved", "Denied"] {
            let (after, before) = (of_kind(new, kind), of_kind(old, kind));
            let what = match after.len().cmp(&before.len()) {
                std::cmp::Ordering::Greater => "add",
                std::cmp::Ordering::Equal if after != before => "modify",
                _ => continue,
            };
            let detail = format!("updates may not {what} a condition of type {kind:?}");
            errors.push(FieldError::forbidden("status.conditions", &detail));
        }
        let path = ["status", "certificate"];
        let before = tree::text(old, &path);
        if !before.is_empty() && tree::text(new, &path) != before {
            let detail = "updates may not modify existing certificate content";
            errors.push(FieldError::forbidden("status.certificate", detail));
        }
    }

    fn validate_part(&self, _: &str, new: &Value, old: &Value, errors: &mut FieldErrors) {
        conditions(new, errors);
        kept(new, old, errors);
    }
}

/// `example.com/path.of.labels`. Source: `ValidateSignerName`.
pub(crate) fn signer_name(signer: &At<'_>, errors: &mut FieldErrors) {
    const SHAPE: &str = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
    if !signer.present("", errors) {
        return;
    }
    let parts: Vec<&str> = signer.text().split('/').collect();
    let [domain, path] = parts.as_slice() else {
        errors.push(signer.invalid(SHAPE));
        return;
    };
    if !name_problems(NameRule::Subdomain, domain).is_empty() || domain.split('.').count() < 2 {
        errors.push(signer.invalid("should be a domain with at least two segments separated by dots"));
    }
    for detail in name_problems(NameRule::Subdomain, path) {
        errors.push(FieldError::invalid(signer.path.clone(), &json!(path), &detail));
    }
}

fn conditions(object: &Value, errors: &mut FieldErrors) {
    let list = At::object(object).down(&["status", "conditions"]);
    let mut seen: HashSet<&str> = HashSet::new();
    for condition in list.items() {
        let (kind, status) = (condition.get("type"), condition.get("status"));
        kind.present("", errors);
        if status.present("", errors) {
            let decided = DECISIONS.contains(&kind.text());
            let known: &[&str] = if decided { &["True"] } else { &["False", "True", "Unknown"] };
            status.one_of(known, errors);
        }
        let other = match kind.text() {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if seen.contains(&other) {
            let detail = "Approved and Denied conditions are mutually exclusive";
            errors.push(FieldError::invalid(list.path.clone(), kind.value, detail));
        }
        if seen.contains(&kind.text()) {
            errors.push(kind.duplicate());
        }
        seen.insert(kind.text());
    }
}

/// Decisions that were made stay.
fn kept(new: &Value, old: &Value, errors: &mut FieldErrors) {
    for kind in DECISIONS {
        if of_kind(new, kind).len() < of_kind(old, kind).len() {
            let detail = format!("updates may not remove a condition of type {kind:?}");
            errors.push(FieldError::forbidden("status.conditions", &detail));
        }
    }
}

fn of_kind<'v>(object: &'v Value, kind: &str) -> Vec<&'v Value> {
    let conditions = tree::items(object, &["status", "conditions"]).iter();
    conditions.filter(|condition| tree::text(condition, &["type"]) == kind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::at::said;

    #[test]
    fn a_request_is_one_before_it_is_stored() {
        let causes = |request: &str| {
            let mut errors = Vec::new();
            let object = json!({ "spec": { "request": request } });
            CertificateSigningRequests.validate_create(&object, &mut errors);
            said(&errors)
        };
        let wrong = "spec.request: Invalid value: \"eHhx\": PEM block type must be CERTIFICATE REQUEST";
        assert_eq!(causes("eHhx"), [wrong]);
        let identity = pki::Identity { user: "u".into(), ..pki::Identity::default() };
        let request = pki::signing_request(&identity).unwrap().request_pem;
        assert_eq!(causes(&STANDARD.encode(request)), [""; 0]);
    }

    #[test]
    fn a_decision_stays() {
        let decided = |kinds: &[&str]| {
            let all: Vec<Value> =
                kinds.iter().map(|kind| json!({ "type": kind, "status": "True" })).collect();
            json!({ "status": { "conditions": all } })
        };
        let rows: [(&[&str], &[&str], Option<&str>); 4] = [
            (&[], &["Approved"], None),
            (
                &["Approved"],
                &[],
                Some("status.conditions: Forbidden: updates may not remove a condition of type \"Approved\""),
            ),
            (
                &["Approved"],
                &["Approved", "Denied"],
                Some(
                    "status.conditions: Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive",
                ),
            ),
            (&["Denied"], &["Denied"], None),
        ];
        for (old, new, cause) in rows {
            let mut errors = Vec::new();
            CertificateSigningRequests.validate_part("approval", &decided(new), &decided(old), &mut errors);
            assert_eq!(said(&errors), cause.into_iter().collect::<Vec<_>>());
        }
        let mut errors = Vec::new();
        CertificateSigningRequests.validate_status(&decided(&["Approved"]), &decided(&[]), &mut errors);
        assert_eq!(
            said(&errors),
            ["status.conditions: Forbidden: updates may not add a condition of type \"Approved\""]
        );
    }
}
