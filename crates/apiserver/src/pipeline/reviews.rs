//! Reviews: questions in the shape of objects that are created and never stored.

use api::connect::User;
use api::{Call, Request, Response, Status};
use serde_json::{Value, json};

use super::Pipeline;
use super::write::unsaved;
use crate::authz::{Attributes, Decision};
use crate::tree;
use crate::words::{self, Kind};

impl Pipeline {
    /// Answers a review; `None` if the request is none.
    pub(super) async fn review(
        &self,
        user: &User,
        kind: &Kind,
        request: &Request,
    ) -> Option<Result<Response, Status>> {
        if !matches!(kind.group.as_ref(), "authentication.k8s.io" | "authorization.k8s.io") {
            return None;
        }
        let Call::Create { body, options } = &request.call else {
            return Some(Err(Status::internal("a review is created and nothing else")));
        };
        let read = words::decode(kind, body, options.field_validation);
        Some(match read {
            Ok((review, warnings)) => self.answer(user, kind, &request.namespace, review, warnings).await,
            Err(status) => Err(status),
        })
    }

    async fn answer(
        &self,
        user: &User,
        kind: &Kind,
        namespace: &str,
        mut review: Value,
        warnings: Vec<String>,
    ) -> Result<Response, Status> {
        let status = match kind.kind.as_ref() {
            "TokenReview" => self.token_review(&review).await?,
            "SelfSubjectReview" => json!({ "userInfo": user_info(user) }),
            "SelfSubjectAccessReview" => self.access(user.clone(), &review, ""),
            "SubjectAccessReview" => self.access(subject(&review), &review, ""),
            "LocalSubjectAccessReview" => self.access(subject(&review), &review, namespace),
            "SelfSubjectRulesReview" => self.rules(user, tree::text(&review, &["spec", "namespace"])),
            other => return Err(Status::internal(format!("no answer to a {other}"))),
        };
        let fields = tree::members(&mut review);
        fields.insert("apiVersion".into(), kind.api_version().into());
        fields.insert("kind".into(), kind.kind.as_ref().into());
        fields.entry("metadata").or_insert_with(|| json!({ "creationTimestamp": null }));
        fields.insert("status".into(), status);
        Ok(Response::Object { object: unsaved(&review)?, created: true, warnings })
    }

    async fn token_review(&self, review: &Value) -> Result<Value, Status> {
        let audiences: Vec<String> = tree::items(review, &["spec", "audiences"])
            .iter()
            .filter_map(|audience| audience.as_str().map(str::to_owned))
            .collect();
        let token = tree::text(review, &["spec", "token"]);
        Ok(match self.authenticate_token(token, &audiences).await? {
            Some((user, held)) => {
                json!({ "authenticated": true, "user": user_info(&user), "audiences": held })
            }
            None => json!({ "user": {}, "error": "[invalid bearer token]" }),
        })
    }

    fn access(&self, user: User, review: &Value, namespace: &str) -> Value {
        match self.parts.authorizer.authorize(&review_attributes(user, review, namespace), self) {
            Decision::Allow { reason } => json!({ "allowed": true, "reason": reason }),
            Decision::Deny { reason } => json!({ "allowed": false, "denied": true, "reason": reason }),
            Decision::NoOpinion => json!({ "allowed": false }),
        }
    }

    fn rules(&self, user: &User, namespace: &str) -> Value {
        let rules = self.parts.authorizer.rules(user, namespace);
        let (paths, resources): (Vec<_>, Vec<_>) =
            rules.iter().partition(|rule| !rule.non_resource_urls.is_empty());
        let resources: Vec<_> = resources
            .iter()
            .map(|rule| json!({ "verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources }))
            .collect();
        let paths: Vec<_> = paths
            .iter()
            .map(|rule| json!({ "verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls }))
            .collect();
        json!({ "resourceRules": resources, "nonResourceRules": paths, "incomplete": false })
    }
}

fn user_info(user: &User) -> Value {
    let mut info = json!({ "username": user.name, "groups": user.groups });
    if !user.uid.is_empty() {
        info["uid"] = user.uid.clone().into();
    }
    if !user.extra.is_empty() {
        let extra: serde_json::Map<String, Value> =
            user.extra.iter().map(|(name, values)| (name.clone(), json!(values))).collect();
        info["extra"] = Value::Object(extra);
    }
    info
}

/// The user that a SubjectAccessReview asks about.
fn subject(review: &Value) -> User {
    let spec = tree::at(review, &["spec"]);
    User {
        name: tree::text(spec, &["user"]).into(),
        uid: tree::text(spec, &["uid"]).into(),
        groups: tree::items(spec, &["groups"])
            .iter()
            .filter_map(|group| group.as_str().map(str::to_owned))
            .collect(),
        extra: Vec::new(),
    }
}

fn review_attributes(user: User, review: &Value, namespace: &str) -> Attributes {
    let spec = tree::at(review, &["spec"]);
    let resource = tree::at(spec, &["resourceAttributes"]);
    if resource.is_null() {
        let path = tree::at(spec, &["nonResourceAttributes"]);
        return Attributes {
            user,
            verb: tree::text(path, &["verb"]).into(),
            path: tree::text(path, &["path"]).into(),
            ..Attributes::default()
        };
    }
    let text = |field: &str| tree::text(resource, &[field]).to_owned();
    Attributes {
        user,
        verb: text("verb"),
        namespace: if namespace.is_empty() { text("namespace") } else { namespace.to_owned() },
        group: text("group"),
        version: text("version"),
        resource: text("resource"),
        subresource: text("subresource"),
        name: text("name"),
        is_resource: true,
        ..Attributes::default()
    }
}
