//! Authorization that a webhook gives where nobody here does: it is asked by SubjectAccessReview.
//! Source: `apiserver/plugin/pkg/authorizer/webhook`.

use std::path::Path;
use std::time::Duration;

use base::clock::SharedClock;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Attributes, Decision};
use crate::expiring::Expiring;
use crate::remote::{FileError, Service};
use crate::tree;

/// How long answers are believed. Source: upstream's `--authorization-webhook-cache-authorized-ttl` and
/// `--authorization-webhook-cache-unauthorized-ttl`.
const YES_BELIEVED: Duration = Duration::from_secs(300);
const NO_BELIEVED: Duration = Duration::from_secs(30);
/// So many answers are kept at most.
const ANSWERS_MAX: usize = 4096;

/// The authorizer.
pub(crate) struct Webhook {
    service: Service,
    answers: Expiring<[u8; 32], Decision>,
}

impl Webhook {
    /// A webhook that a file in kubeconfig format names.
    pub(crate) fn new(config: &Path, clock: SharedClock) -> Result<Self, FileError> {
        let service = Service::from_kubeconfig(config)?;
        Ok(Self { service, answers: Expiring::new(clock, ANSWERS_MAX) })
    }

    /// Asks. A webhook that does not answer allows nothing.
    pub(crate) async fn decide(&self, asked: &Attributes) -> Decision {
        let review = review(asked);
        let question: [u8; 32] = Sha256::digest(review.to_string()).into();
        if let Some(decision) = self.answers.get(&question) {
            return decision;
        }
        match self.service.ask(&review).await {
            Ok(answer) => {
                let decision = decision(&answer);
                let allowed = matches!(decision, Decision::Allow { .. });
                let believed = if allowed { YES_BELIEVED } else { NO_BELIEVED };
                self.answers.put(question, decision.clone(), believed);
                decision
            }
            Err(error) => {
                tracing::warn!(%error, "the authorization webhook does not answer");
                Decision::NoOpinion { reason: String::new() }
            }
        }
    }
}

/// What is asked, as authorization/v1 says it. Pure.
fn review(asked: &Attributes) -> Value {
    let mut spec = Map::new();
    let put = |fields: &mut Map<String, Value>, name: &str, value: &str| {
        if !value.is_empty() {
            fields.insert(name.to_owned(), value.into());
        }
    };
    let mut attributes = Map::new();
    let kind = if asked.is_resource {
        for (name, value) in [
            ("namespace", &asked.namespace),
            ("verb", &asked.verb),
            ("group", &asked.group),
            ("version", &asked.version),
            ("resource", &asked.resource),
            ("subresource", &asked.subresource),
            ("name", &asked.name),
        ] {
            put(&mut attributes, name, value);
        }
        for (name, selector) in
            [("fieldSelector", &asked.field_selector), ("labelSelector", &asked.label_selector)]
        {
            if !selector.is_empty() {
                attributes.insert(name.to_owned(), json!({ "rawSelector": selector }));
            }
        }
        "resourceAttributes"
    } else {
        put(&mut attributes, "path", &asked.path);
        put(&mut attributes, "verb", &asked.verb);
        "nonResourceAttributes"
    };
    spec.insert(kind.to_owned(), attributes.into());
    let user = &asked.user;
    put(&mut spec, "user", &user.name);
    put(&mut spec, "uid", &user.uid);
    if !user.groups.is_empty() {
        spec.insert("groups".into(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        let extra: Map<String, Value> =
            user.extra.iter().map(|(name, values)| (name.clone(), json!(values))).collect();
        spec.insert("extra".into(), extra.into());
    }
    json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "metadata": { "creationTimestamp": null }, "spec": spec,
    })
}

/// What a webhook's answer says. Pure.
fn decision(answer: &Value) -> Decision {
    let status = tree::at(answer, &["status"]);
    let says = |field: &str| tree::at(status, &[field]).as_bool() == Some(true);
    let reason = tree::text(status, &["reason"]).to_owned();
    match (says("allowed"), says("denied")) {
        (true, true) => {
            let reason = "webhook subject access review returned both allow and deny response".to_owned();
            Decision::Deny { reason }
        }
        (true, false) => Decision::Allow { reason },
        (false, true) => Decision::Deny { reason },
        (false, false) => Decision::NoOpinion { reason },
    }
}

#[cfg(test)]
mod tests {
    use api::connect::User;

    use super::*;

    #[test]
    fn a_question_is_a_review() {
        let user = User { name: "jane".into(), groups: vec!["staff".into()], ..User::default() };
        let asked = Attributes {
            user: user.clone(),
            verb: "list".into(),
            resource: "pods".into(),
            is_resource: true,
            field_selector: "spec.nodeName=a".into(),
            ..Attributes::default()
        };
        let spec = json!({
            "user": "jane", "groups": ["staff"],
            "resourceAttributes": {
                "verb": "list", "resource": "pods", "fieldSelector": { "rawSelector": "spec.nodeName=a" },
            },
        });
        assert_eq!(review(&asked)["spec"], spec);
        let path = Attributes { user, verb: "get".into(), path: "/metrics".into(), ..Attributes::default() };
        assert_eq!(
            review(&path)["spec"]["nonResourceAttributes"],
            json!({ "path": "/metrics", "verb": "get" })
        );
    }

    #[test]
    fn an_answer_is_a_decision() {
        let answer = |status: Value| decision(&json!({ "status": status }));
        let because = |reason: &str| reason.to_owned();
        let allow = Decision::Allow { reason: because("so") };
        assert_eq!(answer(json!({ "allowed": true, "reason": "so" })), allow);
        let deny = Decision::Deny { reason: because("no") };
        assert_eq!(answer(json!({ "allowed": false, "denied": true, "reason": "no" })), deny);
        assert_eq!(answer(json!({ "allowed": false })), Decision::NoOpinion { reason: String::new() });
        assert!(matches!(answer(json!({ "allowed": true, "denied": true })), Decision::Deny { .. }));
    }
}
