//! Roles and their bindings. Who may grant what is the business of authorization. Source: `rbac/validation`,
//! `rbac/v1/defaults.go`.

use apiserver::field::FieldErrors;
use apiserver::strategy::{NameRule, Strategy};
use apiserver::tree;
use serde_json::Value;

use crate::at::At;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Roles: of a namespace, or of the cluster.
pub(crate) struct Roles {
    pub(crate) namespaced: bool,
}

impl Strategy for Roles {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn generation(&self) -> bool {
        false
    }

    fn create_on_update(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let role = At::object(object);
        role.each("rules").for_each(|rule| policy_rule(&rule, self.namespaced, errors));
        let aggregation = role.get("aggregationRule");
        if self.namespaced || !aggregation.is_set() {
            return;
        }
        let selectors = aggregation.get("clusterRoleSelectors");
        if selectors.is_empty() {
            let detail = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            errors.push(selectors.required(detail));
        }
        for selector in selectors.items() {
            selector.selector(errors);
            if selector.parsed_selector().is_none() {
                errors.push(selector.invalid("invalid label selector."));
            }
        }
    }
}

fn policy_rule(rule: &At<'_>, namespaced: bool, errors: &mut FieldErrors) {
    if rule.get("verbs").is_empty() {
        errors.push(rule.get("verbs").required("verbs must contain at least one value"));
    }
    let urls = rule.get("nonResourceURLs");
    let regular = ["apiGroups", "resources", "resourceNames"];
    if !urls.is_empty() {
        if namespaced {
            errors.push(urls.invalid("namespaced rules cannot apply to non-resource URLs"));
        }
        if regular.iter().any(|part| !rule.get(part).is_empty()) {
            let detail = "rules cannot apply to both regular resources and non-resource URLs";
            errors.push(urls.invalid(detail));
        }
        return;
    }
    for (part, detail) in [
        ("apiGroups", "resource rules must supply at least one api group"),
        ("resources", "resource rules must supply at least one resource"),
    ] {
        if rule.get(part).is_empty() {
            errors.push(rule.get(part).required(detail));
        }
    }
}

/// Bindings of roles to subjects: in a namespace, or in the cluster.
pub(crate) struct Bindings {
    pub(crate) namespaced: bool,
}

impl Strategy for Bindings {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn generation(&self) -> bool {
        false
    }

    fn create_on_update(&self) -> bool {
        true
    }

    fn default(&self, object: &mut Value) {
        let role = tree::member(object, "roleRef");
        if tree::text(role, &["apiGroup"]).is_empty() {
            tree::members(role).insert("apiGroup".into(), GROUP.into());
        }
        let subjects = tree::members(object).get_mut("subjects").and_then(Value::as_array_mut);
        for subject in subjects.into_iter().flatten() {
            let known = matches!(tree::text(subject, &["kind"]), "User" | "Group");
            if known && tree::text(subject, &["apiGroup"]).is_empty() {
                tree::members(subject).insert("apiGroup".into(), GROUP.into());
            }
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let role = At::object(object).get("roleRef");
        role.get("apiGroup").one_of(&[GROUP], errors);
        let kinds: &[&str] = if self.namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
        role.get("kind").one_of(kinds, errors);
        role.get("name").named(NameRule::PathSegment, errors);
        for subject in At::object(object).each("subjects") {
            validate_subject(&subject, self.namespaced, errors);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        // Tools look for this sentence to know that a binding has to be made anew.
        let (role, before) = (At::object(new).get("roleRef"), At::object(old).get("roleRef"));
        if role.value != before.value {
            errors.push(role.invalid("cannot change roleRef"));
        }
    }
}

fn validate_subject(subject: &At<'_>, namespaced: bool, errors: &mut FieldErrors) {
    let (name, group) = (subject.get("name"), subject.get("apiGroup"));
    name.present("", errors);
    match subject.get("kind").text() {
        "ServiceAccount" => {
            name.name_if_set(NameRule::Subdomain, errors);
            if !group.text().is_empty() {
                errors.push(group.not_supported(&[""]));
            }
            if !namespaced {
                subject.get("namespace").present("", errors);
            }
        }
        "User" | "Group" => group.one_of(&[GROUP], errors),
        _ => errors.push(subject.get("kind").not_supported(&["ServiceAccount", "User", "Group"])),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::at::said;

    #[test]
    fn rules_are_of_resources_or_of_paths() {
        let rows = [
            (true, json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"] }), vec![]),
            (
                true,
                json!({ "verbs": ["get"], "nonResourceURLs": ["/x"] }),
                vec![
                    "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
                ],
            ),
            (
                false,
                json!({}),
                vec![
                    "rules[0].verbs: Required value: verbs must contain at least one value",
                    "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                    "rules[0].resources: Required value: resource rules must supply at least one resource",
                ],
            ),
        ];
        for (namespaced, rule, causes) in rows {
            let mut errors = Vec::new();
            Roles { namespaced }.validate(&json!({ "rules": [rule] }), &mut errors);
            assert_eq!(said(&errors), causes);
        }
    }

    #[test]
    fn bindings_keep_their_role() {
        let mut binding = json!({ "roleRef": { "kind": "ClusterRole", "name": "a" }, "subjects": [
            { "kind": "User", "name": "u" }, { "kind": "ServiceAccount", "name": "s" } ] });
        let strategy = Bindings { namespaced: false };
        strategy.default(&mut binding);
        let mut errors = Vec::new();
        strategy.validate(&binding, &mut errors);
        assert_eq!(said(&errors), ["subjects[1].namespace: Required value"]);
        let mut other = binding.clone();
        other["roleRef"]["name"] = json!("b");
        errors.clear();
        strategy.validate_update(&other, &binding, &mut errors);
        assert_eq!(
            said(&errors),
            [
                "roleRef: Invalid value: {\"apiGroup\":\"rbac.authorization.k8s.io\",\"kind\":\"ClusterRole\",\"name\":\"b\"}: \
                 cannot change roleRef"
            ]
        );
    }
}
