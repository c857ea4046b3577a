//! AdmissionReview: what a webhook is asked, and what it may answer. Pure.
//! Source: `admission/plugin/webhook/request/admissionreview.go`, `webhook/errors/statuserror.go`.

use std::collections::BTreeMap;

use api::connect::User;
use api::status::{Cause, Details};
use api::{Reason, Status};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::admission::Review;
use crate::admission::rules::Matched;
use crate::tree;
use crate::words::Kind;

const GROUP: &str = "admission.k8s.io";
/// The versions that are spoken.
pub(super) const VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const PATCH_TYPE: &str = "JSONPatch";

/// The AdmissionRequest of a request that is matched as a version of its kind, without uid and objects.
pub(in crate::admission) fn request(review: &Review<'_>, matched: &Matched) -> Value {
    let kind_of = |kind: &Kind| match kind.subresource(review.subresource) {
        Some(part) => json!({ "group": part.group, "version": part.version, "kind": part.kind }),
        None => json!({ "group": kind.group, "version": kind.version, "kind": kind.kind }),
    };
    let resource_of =
        |kind: &Kind| json!({ "group": kind.group, "version": kind.version, "resource": kind.plural });
    // A namespace is in itself.
    let of_namespaces = review.resource.group.is_empty() && review.resource.resource == "namespaces";
    let mut request = json!({
        "kind": kind_of(&matched.kind), "resource": resource_of(&matched.kind),
        "requestKind": kind_of(review.asked), "requestResource": resource_of(review.asked),
        "operation": review.operation.as_str(), "userInfo": user_info(review.user),
        "dryRun": review.options.dry_run(), "options": review.options.to_json(review.operation),
    });
    for (field, text) in [
        ("subResource", review.subresource),
        ("requestSubResource", review.subresource),
        ("name", review.name),
        ("namespace", if of_namespaces { review.name } else { review.namespace }),
    ] {
        if !text.is_empty() {
            request[field] = text.into();
        }
    }
    request
}

/// `authentication.k8s.io/v1` UserInfo.
fn user_info(user: &User) -> Value {
    let mut info = json!({ "username": user.name, "groups": user.groups });
    if !user.uid.is_empty() {
        info["uid"] = user.uid.clone().into();
    }
    if !user.extra.is_empty() {
        let extra = user.extra.iter().map(|(name, values)| (name.clone(), json!(values)));
        info["extra"] = Value::Object(extra.collect());
    }
    info
}

/// The review of a request under a uid, in a version.
pub(super) fn question(version: &str, uid: &str, mut request: Value, objects: [&Value; 2]) -> Value {
    let fields = tree::members(&mut request);
    fields.insert("uid".into(), uid.into());
    for (name, object) in ["object", "oldObject"].into_iter().zip(objects) {
        fields.insert(name.into(), object.clone());
    }
    json!({ "kind": "AdmissionReview", "apiVersion": format!("{GROUP}/{version}"), "request": request })
}

/// What a webhook answered.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answer {
    /// Whether the request may go on; else why not.
    pub(super) refused: Option<Status>,
    /// What to change; empty: nothing.
    pub(super) patch: Vec<u8>,
    /// How the patch is written, if it is not a JSON patch as it has to be.
    pub(super) odd_patch: Option<String>,
    /// For the client.
    pub(super) warnings: Vec<String>,
    /// For the audit log.
    pub(super) annotations: BTreeMap<String, String>,
}

/// Reads an answer of the webhook `name` to the question of a version under a uid. What is no such answer is said in
/// upstream's words. Answers of v1beta1 are looked at less closely, as they always were.
pub(super) fn answer(
    name: &str,
    review: &Value,
    version: &str,
    uid: &str,
    mutating: bool,
) -> Result<Answer, String> {
    let response = tree::at(review, &["response"]);
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    let text = |field: &str| tree::text(response, &[field]);
    let patch =
        STANDARD.decode(text("patch")).map_err(|error| format!("response.patch is no base64: {error}"))?;
    let strict = version == "v1";
    if strict {
        if text("uid") != uid {
            return Err(format!("expected response.uid={uid:?}, got {:?}", text("uid")));
        }
        is_of(review, version)?;
        is_whole(response, &patch, mutating)?;
    }
    let kept = |given: Vec<u8>| if mutating { given } else { Vec::new() };
    let strings = |field: &str| tree::at(response, &[field]).as_object().into_iter().flatten();
    let allowed = tree::at(response, &["allowed"]).as_bool() == Some(true);
    Ok(Answer {
        refused: (!allowed).then(|| refusal(name, tree::at(response, &["status"]))),
        patch: kept(patch),
        odd_patch: Some(text("patchType")).filter(|kind| strict && *kind != PATCH_TYPE).map(str::to_owned),
        warnings: tree::items(response, &["warnings"])
            .iter()
            .filter_map(|warning| warning.as_str().map(str::to_owned))
            .collect(),
        annotations: strings("auditAnnotations")
            .filter_map(|(key, value)| Some((format!("{name}/{key}"), value.as_str()?.to_owned())))
            .collect(),
    })
}

fn is_of(review: &Value, version: &str) -> Result<(), String> {
    let (given, kind) = (tree::text(review, &["apiVersion"]), tree::text(review, &["kind"]));
    if given == format!("{GROUP}/{version}") && kind == "AdmissionReview" {
        return Ok(());
    }
    let slash = if given.contains('/') { "" } else { "/" };
    Err(format!(
        "expected webhook response of {GROUP}/{version}, Kind=AdmissionReview, got {slash}{given}, Kind={kind}"
    ))
}

/// Patch and type come together, and only from those who may change objects.
fn is_whole(response: &Value, patch: &[u8], mutating: bool) -> Result<(), String> {
    let kind = tree::at(response, &["patchType"]);
    let wrong = match (mutating, patch.is_empty(), kind) {
        (true, false, Value::Null) => "webhook returned response.patch but not response.patchType",
        (true, true, kind) if !kind.is_null() => "webhook returned response.patchType but not response.patch",
        (true, false, kind) if kind == "" => "webhook returned invalid response.patchType of \"\"",
        (false, false, _) => "validating webhook may not return response.patch",
        (false, true, kind) if !kind.is_null() => "validating webhook may not return response.patchType",
        _ => return Ok(()),
    };
    Err(wrong.to_owned())
}

/// The failure that a client gets of a webhook that refused: what the webhook says, under its name.
fn refusal(name: &str, status: &Value) -> Status {
    let denied = format!("admission webhook {name:?} denied the request");
    let (message, reason) = (tree::text(status, &["message"]), tree::text(status, &["reason"]));
    let message = match (message, reason) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    let reason = serde_json::from_value(json!(reason)).unwrap_or(Reason::Unknown);
    let details: Details = serde_json::from_value(tree::at(status, &["details"]).clone()).unwrap_or_default();
    let code = tree::at(status, &["code"]).as_u64().and_then(|code| u16::try_from(code).ok());
    let code = code.filter(|code| (400..600).contains(code)).unwrap_or(400);
    Status { code, reason, message, details: Box::new(details) }
}

/// 500: a webhook could not be asked.
pub(super) fn failure(name: &str, why: &str) -> Status {
    let message = format!("failed calling webhook {name:?}: {why}");
    internal(message)
}

/// A fault of the server, as upstream tells it. Source: `apierrors.NewInternalError`.
pub(super) fn internal(message: String) -> Status {
    let mut status = Status::internal(format!("Internal error occurred: {message}"));
    status.details.causes.push(Cause { message, ..Cause::default() });
    status
}

/// 400: a webhook that may have side effects is not asked about a dry run.
pub(super) fn no_dry_run(name: &str) -> Status {
    Status::bad_request(format!("admission webhook {name:?} does not support dry run"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(response: Value, mutating: bool) -> Result<Answer, String> {
        let review =
            json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response });
        answer("a.b.c", &review, "v1", "u", mutating)
    }

    #[test]
    fn a_refusal_says_who_refused_and_why() {
        let said = |status: Value| {
            let read = read(json!({ "uid": "u", "allowed": false, "status": status }), false);
            let refused = read.unwrap().refused.unwrap();
            (refused.code, refused.reason, refused.message)
        };
        let denied = "admission webhook \"a.b.c\" denied the request";
        assert_eq!(said(json!(null)), (400, Reason::Unknown, format!("{denied} without explanation")));
        assert_eq!(said(json!({ "reason": "no way" })), (400, Reason::Unknown, format!("{denied}: no way")));
        let whole = json!({ "code": 403, "message": "never", "reason": "Forbidden" });
        assert_eq!(said(whole), (403, Reason::Forbidden, format!("{denied}: never")));
        assert_eq!(said(json!({ "code": 200, "message": "x" })).0, 400);
    }

    #[test]
    fn what_is_no_answer_is_told_as_upstream_tells_it() {
        for (response, mutating, wanted) in [
            (json!(null), true, "webhook response was absent"),
            (json!({ "uid": "x", "allowed": true }), true, "expected response.uid=\"u\", got \"x\""),
            (
                json!({ "uid": "u", "patch": "W10=" }),
                true,
                "webhook returned response.patch but not response.patchType",
            ),
            (
                json!({ "uid": "u", "patchType": "JSONPatch" }),
                true,
                "webhook returned response.patchType but not response.patch",
            ),
            (
                json!({ "uid": "u", "patchType": "JSONPatch", "patch": "W10=" }),
                false,
                "validating webhook may not return response.patch",
            ),
            (
                json!({ "uid": "u", "patchType": "JSONPatch" }),
                false,
                "validating webhook may not return response.patchType",
            ),
        ] {
            assert_eq!(read(response, mutating).unwrap_err(), wanted);
        }
        let bare = json!({ "response": { "uid": "u", "allowed": true } });
        assert_eq!(
            answer("a", &bare, "v1", "u", true).unwrap_err(),
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /, Kind="
        );
        // The older version never looked at either.
        let old = json!({ "response": { "allowed": true, "patch": "W10=" } });
        assert_eq!(answer("a", &old, "v1beta1", "u", true).unwrap().patch, b"[]");
        assert_eq!(answer("a", &old, "v1beta1", "u", false).unwrap().patch, b"");
    }

    #[test]
    fn notes_are_read_under_the_webhooks_name() {
        let said = read(
            json!({ "uid": "u", "allowed": true, "warnings": ["w"], "auditAnnotations": { "k": "v" } }),
            false,
        );
        let said = said.unwrap();
        assert_eq!((said.refused, said.warnings), (None, vec!["w".to_owned()]));
        assert_eq!(said.annotations, BTreeMap::from([("a.b.c/k".to_owned(), "v".to_owned())]));
    }
}
