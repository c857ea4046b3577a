//! Certificates that nodes ask for in the name of pods. That a certificate begins near the present moment is left to its
//! signer. Source: `ValidatePodCertificateRequestCreate`, `ValidatePodCertificateRequestStatusUpdate`, KEP-4317.

use apiserver::field::FieldErrors;
use apiserver::names;
use apiserver::pki;
use apiserver::strategy::NameRule;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use crate::at::At;
use crate::certificates::signer_name;
use crate::simple::Simple;

/// Whatever becomes of a request, it is said once.
const OUTCOMES: [&str; 3] = ["Issued", "Denied", "Failed"];
/// The lives that can be asked for, in seconds; signers of Kubernetes itself give no more than a day.
const LIFE_MIN: i64 = 3600;
const LIFE_MAX: i64 = 91 * 24 * 3600;
const LIFE_MAX_OWN: i64 = 24 * 3600;
const UID_MAX: usize = 128;
const REQUEST_MAX: usize = 10 << 10;
const CHAIN_MAX: usize = 100 << 10;
/// A certificate is renewed so long after its begin at the earliest, and before its end at the latest, in seconds.
const MARGIN: i64 = 600;

/// Requests: what is asked never changes, nor does what became of it.
pub(crate) const POD_CERTIFICATES: Simple = Simple {
    unconditional_update: false,
    check: |request, errors| signer_name(&request.down(&["spec", "signerName"]), errors),
    fresh: asked,
    status: |request, before, errors| became(request, before, errors),
    frozen: &[&["spec"]],
    ..Simple::PLAIN
};

fn asked(request: &At<'_>, errors: &mut FieldErrors) {
    let spec = request.get("spec");
    user_annotations(&spec.get("unverifiedUserAnnotations"), errors);
    for name in ["podName", "serviceAccountName", "nodeName"] {
        spec.get(name).name(NameRule::Subdomain, errors);
    }
    for uid in ["podUID", "serviceAccountUID", "nodeUID"] {
        let uid = spec.get(uid);
        if uid.text().is_empty() {
            errors.push(uid.invalid_text("must not be empty"));
        }
        if uid.text().len() > UID_MAX {
            errors.push(uid.too_long(UID_MAX));
        }
    }
    let wanted = spec.get("maxExpirationSeconds");
    if !wanted.is_set() {
        errors.push(wanted.required("must be set"));
        return;
    }
    life(&spec.get("signerName"), &wanted, errors);
    let stub = spec.get("stubPKCS10Request");
    let der = STANDARD.decode(stub.text()).unwrap_or_default();
    if der.len() > REQUEST_MAX {
        errors.push(stub.too_long(REQUEST_MAX));
    } else if let Err(problem) = pki::requested_key(&der) {
        errors.push(stub.wrong(&problem));
    }
}

/// A life in seconds that may be asked of a signer.
pub(crate) fn life(signer: &At<'_>, life: &At<'_>, errors: &mut FieldErrors) {
    let domain = signer.text().split('/').next().unwrap_or_default();
    let of_kubernetes = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    let most = if of_kubernetes { LIFE_MAX_OWN } else { LIFE_MAX };
    if !(LIFE_MIN..=most).contains(&life.number()) {
        errors.push(life.invalid(&format!("must be in the range [{LIFE_MIN}, {most}]")));
    }
}

/// What a pod has its signer told: annotations whose keys say of which domain they are.
pub(crate) fn user_annotations(annotations: &At<'_>, errors: &mut FieldErrors) {
    names::check_annotations(annotations.value, &annotations.path, errors);
    annotations.entries().for_each(|(key, value)| {
        if !key.contains('/') {
            errors.push(value.invalid("key must be domain-prefixed"));
        }
    });
}

/// The outcome that a status tells.
fn outcome<'v>(request: &At<'v>) -> Option<&'v str> {
    let conditions = request.down(&["status", "conditions"]);
    conditions.items().map(|condition| condition.get("type").text()).find(|kind| OUTCOMES.contains(kind))
}

fn became(request: &At<'_>, before: &At<'_>, errors: &mut FieldErrors) {
    let status = request.get("status");
    let known = errors.len();
    let mut count = 0;
    for condition in status.each("conditions") {
        let kind = condition.get("type");
        if !OUTCOMES.contains(&kind.text()) {
            errors.push(kind.not_supported(&OUTCOMES));
            continue;
        }
        count += 1;
        if count > 1 {
            let detail = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
            errors.push(kind.invalid(detail));
        }
        condition.get("status").one_of(&["True"], errors);
    }
    status.get("conditions").conditions(errors);
    if errors.len() > known {
        return;
    }
    if outcome(before).is_some() {
        if status.value != before.get("status").value {
            errors.push(status.wrong("immutable after PodCertificateRequest is issued, denied, or failed"));
        }
        return;
    }
    let told = ["certificateChain", "notBefore", "beginRefreshAt", "notAfter"];
    match outcome(request) {
        Some("Issued") => issued(request, errors),
        Some(_) if told.iter().any(|field| status.has(field)) => errors.push(status.wrong(
            "non-condition status fields must be empty when denying or failing the PodCertificateRequest",
        )),
        None if told.iter().any(|field| status.has(field)) => {
            errors.push(status.wrong("non-condition status fields must be empty"));
        }
        _ => {}
    }
}

fn issued(request: &At<'_>, errors: &mut FieldErrors) {
    let (status, spec) = (request.get("status"), request.get("spec"));
    let chain = status.get("certificateChain");
    if chain.text().len() > CHAIN_MAX {
        errors.push(chain.too_long(CHAIN_MAX));
        return;
    }
    let leaf = match pki::leaf(chain.text()) {
        Ok(leaf) => leaf,
        Err(problem) => return errors.push(chain.wrong(&problem)),
    };
    for name in &leaf.names {
        let wrong = [
            (name.is_empty(), "leaf certificate should not contain empty DNSName"),
            (name.contains(".."), "leaf certificate's DNSName should not contain '..'"),
            (
                name.starts_with('.') || name.ends_with('.'),
                "leaf certificate's DNSName should not start or end with '.'",
            ),
        ];
        wrong.iter().filter(|(is, _)| *is).for_each(|(_, detail)| errors.push(chain.wrong(detail)));
    }
    let stub = STANDARD.decode(spec.get("stubPKCS10Request").text()).unwrap_or_default();
    if pki::requested_key(&stub).as_ref() != Ok(&leaf.key) {
        return errors.push(chain.wrong("leaf certificate was not issued to the requested public key"));
    }
    let moment = |name: &str| status.get(name).text().parse::<Timestamp>().ok().map(Timestamp::as_second);
    let times = ["notBefore", "notAfter", "beginRefreshAt"].map(moment);
    let [Some(not_before), Some(not_after), Some(refresh)] = times else {
        for (name, detail) in [
            ("notBefore", "must be present and consistent with the issued certificate"),
            ("notAfter", "must be present and consistent with the issued certificate"),
            ("beginRefreshAt", "must be present and in the range [notbefore+10min, notafter-10min]"),
        ] {
            if moment(name).is_none() {
                errors.push(status.get(name).required(detail));
            }
        }
        return;
    };
    let life = leaf.not_after - leaf.not_before;
    let most = spec.get("maxExpirationSeconds").number();
    let too_long = format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({most})");
    let rules = [
        (
            not_before == leaf.not_before,
            "notBefore",
            "must be set to the NotBefore time encoded in the leaf certificate",
        ),
        (
            not_after == leaf.not_after,
            "notAfter",
            "must be set to the NotAfter time encoded in the leaf certificate",
        ),
        (life >= LIFE_MIN, "certificateChain", "leaf certificate lifetime must be >= 1 hour"),
        (life <= most, "certificateChain", too_long.as_str()),
        (
            refresh >= not_before + MARGIN,
            "beginRefreshAt",
            "must be at least 10 minutes after status.notBefore",
        ),
        (
            refresh <= not_after - MARGIN,
            "beginRefreshAt",
            "must be at least 10 minutes before status.notAfter",
        ),
    ];
    if let Some((_, field, detail)) = rules.iter().find(|(holds, _, _)| !holds) {
        errors.push(status.get(field).wrong(detail));
    }
}

#[cfg(test)]
mod tests {
    use apiserver::strategy::Strategy as _;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
    use serde_json::{Value, json};

    use super::*;
    use crate::at::said;

    /// A key, and a request for it.
    fn request() -> (KeyPair, Value) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let stub = CertificateParams::default().serialize_request(&key).unwrap();
        let request = json!({ "metadata": { "name": "r" }, "spec": { "signerName": "example.com/s", "podName": "web",
            "podUID": "u", "serviceAccountName": "sa", "serviceAccountUID": "u", "nodeName": "n", "nodeUID": "u",
            "maxExpirationSeconds": 86400, "stubPKCS10Request": STANDARD.encode(stub.der()) } });
        (key, request)
    }

    fn created(field: &str, value: Value) -> Vec<String> {
        let (_, mut request) = request();
        request["spec"][field] = value;
        let mut errors = Vec::new();
        POD_CERTIFICATES.validate_create(&request, &mut errors);
        said(&errors)
    }

    #[test]
    fn what_is_asked_is_looked_at() {
        assert_eq!(created("podName", "web".into()), [""; 0]);
        for (field, value, told) in [
            ("podUID", json!(""), "spec.podUID: Invalid value: \"\": must not be empty"),
            (
                "maxExpirationSeconds",
                json!(60),
                "spec.maxExpirationSeconds: Invalid value: 60: must be in the range [3600, 7862400]",
            ),
            (
                "stubPKCS10Request",
                json!("AAAA"),
                "spec.stubPKCS10Request: Invalid value: must be a valid PKCS#10 request",
            ),
            (
                "unverifiedUserAnnotations",
                json!({ "example.com/a": "x".repeat(256 << 10) }),
                "spec.unverifiedUserAnnotations: Too long: may not be more than 262144 bytes",
            ),
            (
                "unverifiedUserAnnotations",
                json!({ "a": "x" }),
                "spec.unverifiedUserAnnotations[a]: Invalid value: \"x\": key must be domain-prefixed",
            ),
        ] {
            assert_eq!(created(field, value), [told]);
        }
        let (_, mut own) = request();
        own["spec"]["signerName"] = "kubernetes.io/x".into();
        own["spec"]["maxExpirationSeconds"] = 90000.into();
        let mut errors = Vec::new();
        POD_CERTIFICATES.validate_create(&own, &mut errors);
        let told = "spec.maxExpirationSeconds: Invalid value: 90000: must be in the range [3600, 86400]";
        assert_eq!(said(&errors), [told]);
    }

    fn condition(kind: &str) -> Value {
        json!({ "type": kind, "status": "True", "reason": "r", "message": "m",
            "lastTransitionTime": "2027-01-15T08:00:00Z" })
    }

    fn changed(old: &Value, status: Value) -> Vec<String> {
        let (mut new, mut errors) = (old.clone(), Vec::new());
        new["status"] = status;
        POD_CERTIFICATES.validate_status(&new, old, &mut errors);
        said(&errors)
    }

    /// A status with a certificate of that key, which lives so many seconds.
    fn signed(key: &KeyPair, seconds: i64) -> Value {
        let begin = Timestamp::from_second(1_800_000_000).unwrap();
        let at = |after: i64| Timestamp::from_second(1_800_000_000 + after).unwrap().to_string();
        let mut params = CertificateParams::new(["web.example".to_owned()]).unwrap();
        let date = |after: i64| {
            let at = Timestamp::from_second(1_800_000_000 + after).unwrap().to_zoned(jiff::tz::TimeZone::UTC);
            rcgen::date_time_ymd(at.year().into(), at.month().unsigned_abs(), at.day().unsigned_abs())
        };
        // Whole days: the library's dates have no hours.
        let midnight = begin.as_second() % 86400;
        (params.not_before, params.not_after) = (date(0), date(seconds));
        let chain = params.self_signed(key).unwrap().pem();
        json!({ "conditions": [condition("Issued")], "certificateChain": chain, "notBefore": at(-midnight),
            "notAfter": at(seconds - midnight), "beginRefreshAt": at(3600 - midnight) })
    }

    #[test]
    fn what_became_of_it_is_said_once() {
        let (key, old) = request();
        let day = signed(&key, 86400);
        assert_eq!(changed(&old, day.clone()), [""; 0]);
        assert_eq!(changed(&old, json!({ "conditions": [condition("Denied")] })), [""; 0]);
        let with = |field: &str, value: Value| {
            let mut status = day.clone();
            status[field] = value;
            changed(&old, status)
        };
        let (another, _) = request();
        for (errors, told) in [
            (
                with("conditions", json!([condition("Other")])),
                "status.conditions[0].type: Unsupported value: \"Other\": supported values: \"Issued\", \"Denied\", \"Failed\"",
            ),
            (
                with("conditions", json!([condition("Failed")])),
                "status: Invalid value: non-condition status fields must be empty when denying or failing the \
                 PodCertificateRequest",
            ),
            (
                changed(&old, signed(&another, 86400)),
                "status.certificateChain: Invalid value: leaf certificate was not issued to the requested public key",
            ),
            (
                changed(&old, signed(&key, 2 * 86400)),
                "status.certificateChain: Invalid value: leaf certificate lifetime must be <= spec.maxExpirationSeconds \
                 (86400)",
            ),
            (
                with("notAfter", "2027-01-01T00:00:00Z".into()),
                "status.notAfter: Invalid value: must be set to the NotAfter time encoded in the leaf certificate",
            ),
            (
                with("beginRefreshAt", day["notBefore"].clone()),
                "status.beginRefreshAt: Invalid value: must be at least 10 minutes after status.notBefore",
            ),
            (
                with("beginRefreshAt", Value::Null),
                "status.beginRefreshAt: Required value: must be present and in the range [notbefore+10min, notafter-10min]",
            ),
        ] {
            assert_eq!(errors, [told]);
        }
        let mut over = old;
        over["status"] = day;
        let told =
            "status: Invalid value: immutable after PodCertificateRequest is issued, denied, or failed";
        assert_eq!(changed(&over, json!({ "conditions": [condition("Failed")] })), [told]);
        assert_eq!(changed(&over, over["status"].clone()), [""; 0]);
    }
}
