//! Reviews: questions in the shape of objects that are created and never stored.

use api::connect::User;
use api::{Call, Response, Status};
use serde_json::{Value, json};

use super::write::unsaved;
use super::{Asked, Pipeline, meta};
use crate::authz::{Attributes, Decision};
use crate::field::{FieldError, FieldErrors};
use crate::tree;
use crate::words::{self, Kind};

impl Pipeline {
    /// Answers a review, which is admitted like everything that is created.
    pub(super) async fn review(&self, asked: &Asked<'_>, call: &Call) -> Result<Response, Status> {
        let Call::Create { body, options } = call else {
            return Err(Status::internal("a review is created and nothing else"));
        };
        let (kind, user, namespace) = (&asked.kind, asked.user, asked.namespace);
        let (mut review, warnings) = words::decode(kind, body, options.field_validation)?;
        meta::fit_to_request(asked, &mut review)?;
        let mut review = self.admit_part(asked, review, options).await?;
        if kind.kind.ends_with("SubjectAccessReview") {
            check_access(kind, &review, namespace)?;
        }
        let status = match kind.kind.as_ref() {
            "TokenReview" => self.token_review(&review).await?,
            "SelfSubjectReview" => json!({ "userInfo": user_info(user) }),
            "SelfSubjectAccessReview" => self.access(user.clone(), &review, "").await,
            "SubjectAccessReview" => self.access(subject(&review), &review, "").await,
            "LocalSubjectAccessReview" => self.access(subject(&review), &review, namespace).await,
            "SelfSubjectRulesReview" => self.rules(user, tree::text(&review, &["spec", "namespace"]))?,
            other => return Err(Status::internal(format!("no answer to a {other}"))),
        };
        let fields = tree::members(&mut review);
        fields.insert("apiVersion".into(), kind.api_version().into());
        fields.insert("kind".into(), kind.kind.as_ref().into());
        fields.insert("status".into(), status);
        tree::metadata(&mut review).entry("creationTimestamp").or_insert(Value::Null);
        Ok(Response::Object { object: unsaved(&review)?, created: true, warnings })
    }

    async fn token_review(&self, review: &Value) -> Result<Value, Status> {
        let audiences: Vec<String> = tree::items(review, &["spec", "audiences"])
            .iter()
            .filter_map(|audience| audience.as_str().map(str::to_owned))
            .collect();
        let token = tree::text(review, &["spec", "token"]);
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        Ok(match self.authenticate_token(token, &audiences).await? {
            Some((user, held)) => {
                json!({ "authenticated": true, "user": user_info(&user), "audiences": held })
            }
            None => json!({ "user": {}, "error": "[invalid bearer token]" }),
        })
    }

    async fn access(&self, user: User, review: &Value, namespace: &str) -> Value {
        let (allowed, denied, reason) = match self.decide(&review_attributes(user, review, namespace)).await {
            Decision::Allow { reason } => (true, false, reason),
            Decision::Deny { reason } => (false, true, reason),
            Decision::NoOpinion { reason } => (false, false, reason),
        };
        let mut status = json!({ "allowed": allowed });
        if denied {
            status["denied"] = true.into();
        }
        if !reason.is_empty() {
            status["reason"] = reason.into();
        }
        status
    }

    fn rules(&self, user: &User, namespace: &str) -> Result<Value, Status> {
        if namespace.is_empty() {
            return Err(Status::bad_request("no namespace on request"));
        }
        let mut found = self.parts.authorizer.rules(user, namespace, self);
        if self.parts.webhook.is_some() {
            found.lacks("webhook authorizer does not support user rule resolution");
        }
        let (paths, resources): (Vec<_>, Vec<_>) =
            found.rules.into_iter().partition(|rule| !rule.non_resource_urls.is_empty());
        let mut status = json!({
            "resourceRules": resources, "nonResourceRules": paths, "incomplete": found.incomplete,
        });
        if !found.error.is_empty() {
            status["evaluationError"] = found.error.into();
        }
        Ok(status)
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
        groups: texts(tree::at(spec, &["groups"])),
        extra: tree::at(spec, &["extra"])
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, values)| (key.clone(), texts(values)))
            .collect(),
    }
}

fn texts(values: &Value) -> Vec<String> {
    tree::items(values, &[]).iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
}

/// What an access review asks; a review that asks nothing, or two things, is the client's mistake.
/// Source: `pkg/apis/authorization/validation`.
fn check_access(kind: &Kind, review: &Value, namespace: &str) -> Result<(), Status> {
    let spec = tree::at(review, &["spec"]);
    let resource = tree::at(spec, &["resourceAttributes"]);
    let mut errors = FieldErrors::new();
    let path = tree::at(spec, &["nonResourceAttributes"]);
    if resource.is_null() == path.is_null() {
        let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.push(FieldError::invalid("spec.resourceAttributes", resource, detail));
    }
    let of_others = kind.kind != "SelfSubjectAccessReview";
    if of_others && tree::text(spec, &["user"]).is_empty() && tree::items(spec, &["groups"]).is_empty() {
        let detail = "at least one of user or group must be specified";
        errors.push(FieldError::invalid("spec.user", &"".into(), detail));
    }
    let asked = tree::at(resource, &["namespace"]);
    if !namespace.is_empty() && (resource.is_null() || asked.as_str() != Some(namespace)) {
        let detail = format!("must match metadata.namespace: {namespace}");
        errors.push(FieldError::invalid("spec.resourceAttributes.namespace", asked, &detail));
    }
    for name in ["fieldSelector", "labelSelector"] {
        let selector = tree::at(resource, &[name]);
        let field = format!("spec.resourceAttributes.{name}");
        let raw = tree::at(selector, &["rawSelector"]);
        let requirements = tree::items(selector, &["requirements"]);
        if selector.is_null() {
        } else if raw.is_null() && requirements.is_empty() {
            let detail = format!("when {name} is specified, requirements or rawSelector is required");
            errors.push(FieldError::required(format!("{field}.requirements"), &detail));
        } else if !raw.is_null() && !requirements.is_empty() {
            let detail = "may not specified at the same time as requirements";
            errors.push(FieldError::invalid(format!("{field}.rawSelector"), raw, detail));
        }
    }
    crate::field::check(&kind.group, &kind.kind, "", &errors)
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
        path: String::new(),
        field_selector: selector_of(tree::at(resource, &["fieldSelector"]), field_term),
        label_selector: selector_of(tree::at(resource, &["labelSelector"]), label_term),
    }
}

/// A review's selector as a request would spell it. What cannot be said is left out: a request for more is then judged.
/// Source: KEP-4601.
fn selector_of(selector: &Value, term: fn(&str, &str, &[&str]) -> Option<String>) -> String {
    if let Some(raw) = tree::at(selector, &["rawSelector"]).as_str() {
        return raw.to_owned();
    }
    let terms = tree::items(selector, &["requirements"]).iter().filter_map(|requirement| {
        let values: Vec<&str> =
            tree::items(requirement, &["values"]).iter().filter_map(Value::as_str).collect();
        term(tree::text(requirement, &["key"]), tree::text(requirement, &["operator"]), &values)
    });
    terms.collect::<Vec<_>>().join(",")
}

fn field_term(key: &str, operator: &str, values: &[&str]) -> Option<String> {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
    match (operator, values) {
        ("In", [one]) => Some(format!("{key}={}", escaped(one))),
        ("NotIn", [_, ..]) => Some(
            values.iter().map(|value| format!("{key}!={}", escaped(value))).collect::<Vec<_>>().join(","),
        ),
        _ => None,
    }
}

fn label_term(key: &str, operator: &str, values: &[&str]) -> Option<String> {
    match operator {
        "In" => Some(format!("{key} in ({})", values.join(","))),
        "NotIn" => Some(format!("{key} notin ({})", values.join(","))),
        "Exists" => Some(key.to_owned()),
        "DoesNotExist" => Some(format!("!{key}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_asks_with_its_selectors() {
        let asked = |selectors: Value| {
            let mut review =
                json!({ "spec": { "resourceAttributes": { "verb": "list", "resource": "pods" } } });
            for (name, selector) in selectors.as_object().unwrap() {
                review["spec"]["resourceAttributes"][name] = selector.clone();
            }
            let attributes = review_attributes(User::default(), &review, "");
            (attributes.field_selector, attributes.label_selector)
        };
        let texts = |field: &str, label: &str| (field.to_owned(), label.to_owned());
        let raw = json!({ "fieldSelector": { "rawSelector": "a=b" }, "labelSelector": { "rawSelector": "c in (d)" } });
        assert_eq!(asked(raw), texts("a=b", "c in (d)"));
        let requirements = json!({
            "fieldSelector": { "requirements": [
                { "key": "spec.nodeName", "operator": "In", "values": ["n,1"] },
                { "key": "x", "operator": "NotIn", "values": ["y", "z"] },
                { "key": "unsayable", "operator": "In", "values": ["y", "z"] },
            ] },
            "labelSelector": { "requirements": [
                { "key": "a", "operator": "In", "values": ["b", "c"] }, { "key": "d", "operator": "DoesNotExist" },
            ] },
        });
        assert_eq!(asked(requirements), texts("spec.nodeName=n\\,1,x!=y,x!=z", "a in (b,c),!d"));
        assert_eq!(asked(json!({})), texts("", ""));
    }
}
