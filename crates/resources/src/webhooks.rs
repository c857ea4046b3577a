//! admissionregistration.k8s.io: webhooks and policies.
//! Source: `admissionregistration/validation/validation.go`, `admissionregistration/v1/defaults.go`.

use std::collections::HashSet;

use api::cel::{Environment, Type};
use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::name_problems;
use apiserver::strategy::NameRule;
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::At;
use crate::expressions::{self, check as expression};
use crate::simple::{Simple, each_mut};

const VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const FAILURES: [&str; 2] = ["Fail", "Ignore"];
const MATCHES: [&str; 2] = ["Equivalent", "Exact"];
const SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const MUTATING_OPERATIONS: [&str; 4] = ["*", "CONNECT", "CREATE", "UPDATE"];
const REASONS: [&str; 3] = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
const CONDITIONS_MAX: usize = 64;
const ANNOTATIONS_MAX: usize = 20;

/// Webhooks that may change objects.
pub(crate) const MUTATING: Simple = Simple {
    default: |object| {
        default_hooks(object);
        for hook in each_mut(object, &["webhooks"]) {
            tree::set_default(hook, "reinvocationPolicy", "Never");
        }
    },
    ..VALIDATING
};
/// Webhooks that may refuse them.
pub(crate) const VALIDATING: Simple = Simple {
    default: default_hooks,
    check: check_hooks,
    // Who had side effects may keep them. Source: `hasNoSideEffects`.
    compare: |new, old, errors| {
        let has = |hook: &At<'_>| !SIDE_EFFECTS.contains(&hook.get("sideEffects").text());
        if old.each("webhooks").any(|hook| has(&hook)) {
            errors.retain(|error| !is_of_side_effects(error));
        }
        expressions::forgive_stored(new, old, &expressions::of_webhook(), errors);
    },
    lengthy: true,
    forgives: |version, error| version == "v1beta1" && is_of_side_effects(error),
    ..Simple::VERSIONED
};

/// Whether an error is that a webhook has side effects, which v1 refuses.
fn is_of_side_effects(error: &FieldError) -> bool {
    error.field.ends_with(".sideEffects") && error.reason == "FieldValueNotSupported"
}

fn default_hooks(object: &mut Value) {
    for hook in each_mut(object, &["webhooks"]) {
        tree::set_default(hook, "failurePolicy", "Fail");
        tree::set_default(hook, "matchPolicy", "Equivalent");
        tree::set_default(hook, "namespaceSelector", json!({}));
        tree::set_default(hook, "objectSelector", json!({}));
        tree::set_default(hook, "timeoutSeconds", 10);
        default_rules(hook, "rules");
        if let Some(service) = hook.pointer_mut("/clientConfig/service").filter(|at| at.is_object()) {
            tree::set_default(service, "port", 443);
        }
    }
}

fn default_rules(parent: &mut Value, list: &str) {
    each_mut(parent, &[list]).for_each(|rule| tree::set_default(rule, "scope", "*"));
}

fn check_hooks(object: &At<'_>, errors: &mut FieldErrors) {
    let known = expressions::of_webhook();
    let mut names: HashSet<&str> = HashSet::new();
    for hook in object.each("webhooks") {
        let name = hook.get("name");
        qualified(&name, errors);
        hook.each("rules").for_each(|rule| check_rule(&rule, &OPERATIONS, errors));
        hook.get("failurePolicy").one_of_if_set(&FAILURES, errors);
        hook.get("matchPolicy").one_of_if_set(&MATCHES, errors);
        let effects = hook.get("sideEffects");
        if effects.is_set() {
            effects.one_of(&SIDE_EFFECTS, errors);
        } else {
            errors.push(effects.required("must specify one of None, NoneOnDryRun"));
        }
        let timeout = hook.get("timeoutSeconds");
        if timeout.is_set() && !(1..=30).contains(&timeout.number()) {
            errors.push(timeout.invalid("the timeout value must be between 1 and 30 seconds"));
        }
        hook.get("namespaceSelector").selector(errors);
        hook.get("objectSelector").selector(errors);
        hook.get("reinvocationPolicy").one_of_if_set(&["IfNeeded", "Never"], errors);
        check_client(&hook.get("clientConfig"), errors);
        check_conditions(&hook.get("matchConditions"), &known, errors);
        review_versions(&hook.get("admissionReviewVersions"), errors);
        if names.contains(&name.text()) {
            errors.push(name.duplicate());
        }
        names.insert(name.text());
    }
}

/// A domain of at least three segments.
fn qualified(name: &At<'_>, errors: &mut FieldErrors) {
    if !name.present("", errors) {
        return;
    }
    let problems = name_problems(NameRule::Subdomain, name.text());
    if !problems.is_empty() {
        errors.push(name.invalid(&problems.join(",")));
    } else if name.text().split('.').count() < 3 {
        errors.push(name.invalid("should be a domain with at least three segments separated by dots"));
    }
}

fn check_rule(rule: &At<'_>, operations: &[&str], errors: &mut FieldErrors) {
    let list = |name: &str, what: &str, errors: &mut FieldErrors| {
        let list = rule.get(name);
        if list.is_empty() {
            errors.push(list.required(""));
        }
        if list.len() > 1 && list.texts().contains(&"*") {
            errors.push(list.invalid(&format!("if '*' is present, must not specify other {what}")));
        }
        list
    };
    let given = list("operations", "operations", errors);
    given.items().for_each(|operation| operation.one_of(operations, errors));
    list("apiGroups", "API groups", errors);
    for version in list("apiVersions", "API versions", errors).items() {
        version.present("", errors);
    }
    let resources = rule.get("resources");
    if resources.is_empty() {
        errors.push(resources.required(""));
    }
    check_resources(&resources, errors);
    rule.get("scope").one_of_if_set(&["*", "Cluster", "Namespaced"], errors);
}

fn check_resources(resources: &At<'_>, errors: &mut FieldErrors) {
    let (mut parts_of, mut part_of_all): (Vec<&str>, Vec<&str>) = Default::default();
    for resource in resources.items() {
        if !resource.present("", errors) {
            continue;
        }
        let Some((whole, part)) = resource.text().split_once('/') else { continue };
        if parts_of.contains(&whole) {
            let detail = format!("if '{whole}/*' is present, must not specify {}", resource.text());
            errors.push(resource.invalid(&detail));
        }
        if part_of_all.contains(&part) {
            let detail = format!("if '*/{part}' is present, must not specify {}", resource.text());
            errors.push(resource.invalid(&detail));
        }
        if part == "*" {
            parts_of.push(whole);
        }
        if whole == "*" {
            part_of_all.push(part);
        }
    }
    let given = resources.texts();
    if given.len() > 1 && given.contains(&"*/*") {
        errors.push(resources.invalid("if '*/*' is present, must not specify other resources"));
    }
    let plain = given.iter().any(|resource| *resource != "*" && !resource.contains('/'));
    if given.contains(&"*") && plain {
        let detail = "if '*' is present, must not specify other resources without subresources";
        errors.push(resources.invalid(detail));
    }
}

fn check_client(client: &At<'_>, errors: &mut FieldErrors) {
    let (url, service) = (client.get("url"), client.get("service"));
    match (url.is_set(), service.is_set()) {
        (true, false) => check_url(&url, errors),
        (false, true) => check_service(&service, errors),
        _ => errors.push(client.required("exactly one of url or service is required")),
    }
}

/// A URL that the server calls. Source: `webhook.ValidateWebhookURL`.
pub(crate) fn check_url(url: &At<'_>, errors: &mut FieldErrors) {
    let parts = Url::of(url.text());
    let form = "desired format: https://host[/path]";
    let mut wrong =
        |part: &str, detail: &str| errors.push(FieldError::invalid(url.path.clone(), &json!(part), detail));
    if !parts.scheme.eq_ignore_ascii_case("https") {
        wrong(parts.scheme, &format!("'https' is the only allowed URL scheme; {form}"));
    }
    if parts.host.is_empty() {
        wrong("", &format!("host must be specified; {form}"));
    }
    for (part, what) in [
        (parts.user, "user information is"),
        (parts.fragment, "fragments are"),
        (parts.query, "query parameters are"),
    ] {
        if !part.is_empty() {
            wrong(part, &format!("{what} not permitted in the URL"));
        }
    }
}

/// The parts of a URL that webhooks' URLs are judged by; what is absent is empty.
struct Url<'t> {
    scheme: &'t str,
    user: &'t str,
    host: &'t str,
    query: &'t str,
    fragment: &'t str,
}

impl<'t> Url<'t> {
    fn of(text: &'t str) -> Self {
        let (text, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (text, query) = text.split_once('?').unwrap_or((text, ""));
        let is_scheme = |scheme: &&str| {
            scheme.starts_with(|first: char| first.is_ascii_alphabetic())
                && scheme.chars().all(|char| char.is_ascii_alphanumeric() || "+-.".contains(char))
        };
        let scheme = text.split_once(':').map(|(scheme, _)| scheme).filter(is_scheme).unwrap_or_default();
        let rest = if scheme.is_empty() { text } else { &text[scheme.len() + 1..] };
        let authority = rest.strip_prefix("//").unwrap_or_default();
        let authority = authority.split_once('/').map_or(authority, |(authority, _)| authority);
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        Self { scheme, user, host, query, fragment }
    }
}

/// A reference to a Service that the server calls. Source: `webhook.ValidateWebhookService`, whose callers give it name and
/// namespace the other way round: of an absent one, the other is said to be required.
pub(crate) fn check_service(service: &At<'_>, errors: &mut FieldErrors) {
    for (absent, told) in [("namespace", "name"), ("name", "namespace")] {
        if service.get(absent).text().is_empty() {
            errors.push(service.get(told).required(""));
        }
    }
    let port = service.get("port");
    if port.is_set() && !(1..=65535).contains(&port.number()) {
        errors.push(port.invalid("port is not valid: must be between 1 and 65535, inclusive"));
    }
    check_path(&service.get("path"), errors);
}

fn check_path(path: &At<'_>, errors: &mut FieldErrors) {
    let text = path.text();
    match text {
        "" | "/" => return,
        "//" => return errors.push(path.invalid("segment[0] may not be empty")),
        _ if !text.starts_with('/') => errors.push(path.invalid("must start with a '/'")),
        _ => {}
    }
    let steps = text.char_indices().nth(1).map_or("", |(second, _)| &text[second..]);
    for (index, step) in steps.strip_suffix('/').unwrap_or(steps).split('/').enumerate() {
        if step.is_empty() {
            errors.push(path.invalid(&format!("segment[{index}] may not be empty")));
            continue;
        }
        for detail in name_problems(NameRule::Subdomain, step) {
            errors.push(path.invalid(&format!("segment[{index}]: {detail}")));
        }
    }
}

fn check_conditions(conditions: &At<'_>, known: &Environment, errors: &mut FieldErrors) {
    if conditions.len() > CONDITIONS_MAX {
        errors.push(conditions.too_many(CONDITIONS_MAX));
    }
    let mut names: HashSet<&str> = HashSet::new();
    for condition in conditions.items() {
        let name = condition.get("name");
        expression(&condition.get("expression"), "", known, &[Type::Bool], errors);
        if name.present("", errors) {
            name.label_key(errors);
            if names.contains(&name.text()) {
                errors.push(name.duplicate());
            }
        }
        names.insert(name.text());
    }
}

fn review_versions(versions: &At<'_>, errors: &mut FieldErrors) {
    if versions.is_empty() {
        errors.push(versions.required("must specify one of v1, v1beta1"));
        return;
    }
    check_versions(versions, errors);
}

/// Versions of reviews that a webhook understands, of which the server speaks one.
pub(crate) fn check_versions(versions: &At<'_>, errors: &mut FieldErrors) {
    let mut seen: HashSet<&str> = HashSet::new();
    for version in versions.items() {
        if seen.contains(&version.text()) {
            errors.push(version.invalid("duplicate version"));
            continue;
        }
        seen.insert(version.text());
        version.name(NameRule::Label1035, errors);
    }
    if !seen.iter().any(|version| VERSIONS.contains(version)) {
        errors.push(versions.invalid("must include at least one of v1, v1beta1"));
    }
}

/// Policies that refuse.
pub(crate) const VALIDATING_POLICIES: Simple = Simple {
    default: default_policy,
    check: |policy, errors| {
        let spec = policy.get("spec");
        check_policy(&spec, &OPERATIONS, errors);
        let (validations, annotations) = (spec.get("validations"), spec.get("auditAnnotations"));
        if validations.is_empty() && annotations.is_empty() {
            let detail = "validations or auditAnnotations must contain at least one item";
            errors.push(validations.required(detail));
            errors.push(annotations.required(detail));
        }
        let deciding = expressions::of_policy(&spec, true);
        let telling = expressions::of_policy(&spec, false);
        validations.items().for_each(|one| check_validation(&one, &deciding, &telling, errors));
        if annotations.len() > ANNOTATIONS_MAX {
            errors.push(annotations.invalid("must not have more than 20 auditAnnotations"));
        }
        let mut keys: HashSet<&str> = HashSet::new();
        for annotation in annotations.items() {
            let key = annotation.get("key");
            key.present("", errors);
            let value = annotation.get("valueExpression");
            let types = [Type::Text, Type::Null];
            expression(&value, "valueExpression is not specified", &telling, &types, errors);
            if keys.contains(&key.text()) {
                errors.push(key.duplicate());
            }
            keys.insert(key.text());
        }
    },
    compare: |new, old, errors| {
        expressions::forgive_stored(new, old, &expressions::of_policy(&new.get("spec"), true), errors);
    },
    lengthy: true,
    ..Simple::VERSIONED
};

/// Policies that change.
pub(crate) const MUTATING_POLICIES: Simple = Simple {
    default: default_policy,
    check: |policy, errors| {
        let spec = policy.get("spec");
        check_policy(&spec, &MUTATING_OPERATIONS, errors);
        let mutations = spec.get("mutations");
        if mutations.is_empty() {
            errors.push(mutations.required("mutations must contain at least one item"));
        }
        let making = expressions::of_policy(&spec, true).patching();
        for mutation in mutations.items() {
            let kind = mutation.get("patchType");
            if kind.present("", errors) {
                kind.one_of(&["ApplyConfiguration", "JSONPatch"], errors);
            }
            let (field, made) = match kind.text() {
                "JSONPatch" => ("jsonPatch", Type::list(Type::named("JSONPatch"))),
                _ => ("applyConfiguration", Type::named("Object")),
            };
            let body = mutation.get(field);
            if body.is_set() {
                let source = body.get("expression");
                expression(&source, "expression is not specified", &making, &[made], errors);
            } else {
                let detail = format!("must be specified when patchType is {}", kind.text());
                errors.push(body.required(&detail));
            }
        }
    },
    compare: |new, old, errors| {
        let known = expressions::of_policy(&new.get("spec"), true).patching();
        expressions::forgive_stored(new, old, &known, errors);
    },
    lengthy: true,
    ..Simple::VERSIONED
};

fn default_policy(object: &mut Value) {
    let spec = tree::member(object, "spec");
    tree::set_default(spec, "failurePolicy", "Fail");
    if let Some(constraints) = spec.get_mut("matchConstraints").filter(|at| at.is_object()) {
        default_matches(constraints);
    }
}

fn default_matches(constraints: &mut Value) {
    tree::set_default(constraints, "matchPolicy", "Equivalent");
    tree::set_default(constraints, "namespaceSelector", json!({}));
    tree::set_default(constraints, "objectSelector", json!({}));
    default_rules(constraints, "resourceRules");
    default_rules(constraints, "excludeResourceRules");
}

fn check_policy(spec: &At<'_>, operations: &[&str], errors: &mut FieldErrors) {
    let failure = spec.get("failurePolicy");
    if failure.present("", errors) {
        failure.one_of(&FAILURES, errors);
    }
    let parameters = spec.get("paramKind");
    if parameters.is_set() {
        parameters.get("apiVersion").present("", errors);
        parameters.get("kind").present("", errors);
    }
    let constraints = spec.get("matchConstraints");
    if constraints.is_set() {
        check_matches(&constraints, operations, errors);
        if constraints.get("resourceRules").is_empty() {
            errors.push(constraints.get("resourceRules").required(""));
        }
    } else {
        errors.push(constraints.required(""));
    }
    expressions::check_variables(spec, errors);
    check_conditions(&spec.get("matchConditions"), &expressions::of_policy(spec, true), errors);
}

fn check_matches(constraints: &At<'_>, operations: &[&str], errors: &mut FieldErrors) {
    constraints.get("matchPolicy").one_of_if_set(&MATCHES, errors);
    constraints.get("namespaceSelector").selector(errors);
    constraints.get("objectSelector").selector(errors);
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in constraints.each(list) {
            let mut names: HashSet<&str> = HashSet::new();
            for name in rule.each("resourceNames") {
                name.name(NameRule::PathSegment, errors);
                if names.contains(&name.text()) {
                    errors.push(name.duplicate());
                }
                names.insert(name.text());
            }
            check_rule(&rule, operations, errors);
        }
    }
}

fn check_validation(
    validation: &At<'_>,
    deciding: &Environment,
    telling: &Environment,
    errors: &mut FieldErrors,
) {
    let source = validation.get("expression");
    expression(&source, "expression is not specified", deciding, &[Type::Bool], errors);
    let message = validation.get("messageExpression");
    if !message.text().trim().is_empty() {
        expression(&message, "", telling, &[Type::Text], errors);
    }
    for field in ["messageExpression", "message"] {
        let text = validation.get(field);
        if !text.text().is_empty() && text.text().trim().is_empty() {
            errors.push(text.invalid("must be non-empty if specified"));
        }
    }
    if validation.get("message").text().trim().contains('\n') {
        errors.push(validation.get("message").invalid("must not contain line breaks"));
    }
    validation.get("reason").one_of_if_set(&REASONS, errors);
}

/// Where a policy holds.
pub(crate) const BINDINGS: Simple = Simple {
    default: |object| {
        let spec = tree::member(object, "spec");
        if let Some(matches) = spec.get_mut("matchResources").filter(|at| at.is_object()) {
            default_matches(matches);
        }
    },
    check: |binding, errors| check_binding(binding, &OPERATIONS, errors),
    ..Simple::VERSIONED
};

/// Where a validating policy holds, and what then happens.
pub(crate) const VALIDATING_BINDINGS: Simple = Simple {
    check: |binding, errors| {
        check_binding(binding, &OPERATIONS, errors);
        let actions = binding.down(&["spec", "validationActions"]);
        let mut seen: HashSet<&str> = HashSet::new();
        for action in actions.items() {
            action.one_of(&["Audit", "Deny", "Warn"], errors);
            if seen.contains(&action.text()) {
                errors.push(action.duplicate());
            }
            seen.insert(action.text());
        }
        if seen.contains(&"Deny") && seen.contains(&"Warn") {
            let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the \
                          API response and headers serves no purpose)";
            errors.push(actions.invalid(detail));
        }
        if seen.is_empty() {
            errors.push(actions.required("at least one validation action is required"));
        }
    },
    ..BINDINGS
};

fn check_binding(binding: &At<'_>, operations: &[&str], errors: &mut FieldErrors) {
    let spec = binding.get("spec");
    let policy = spec.get("policyName");
    if policy.present("", errors) {
        policy.name(NameRule::Subdomain, errors);
    }
    let parameters = spec.get("paramRef");
    if parameters.is_set() {
        match (parameters.get("name").text().is_empty(), parameters.has("selector")) {
            (true, false) => {
                errors.push(parameters.required("one of name or selector must be specified"));
            }
            (false, true) => {
                let detail = "name and selector are mutually exclusive";
                errors.push(parameters.get("name").forbidden(detail));
            }
            _ => {}
        }
        let action = parameters.get("parameterNotFoundAction");
        if action.is_set() {
            action.one_of(&["Deny", "Allow"], errors);
        } else {
            errors.push(action.required(""));
        }
    }
    check_matches(&spec.get("matchResources"), operations, errors);
}

#[cfg(test)]
mod tests {
    use apiserver::strategy::Strategy;

    use super::*;
    use crate::at::said;

    #[test]
    fn webhooks_are_called_by_one_way_and_have_no_side_effects() {
        let causes = |patch: Value| {
            let mut hook = json!({ "name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": { "url": "https://a/b" } });
            hook.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
            let mut object = json!({ "webhooks": [hook] });
            MUTATING.default(&mut object);
            let mut errors = Vec::new();
            MUTATING.validate(&object, &mut errors);
            said(&errors)
        };
        let rule = |resources: Value| json!({ "rules": [{ "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": resources }] });
        let rows = [
            (json!({}), vec![]),
            (
                json!({ "name": "short" }),
                vec![
                    "webhooks[0].name: Invalid value: \"short\": should be a domain with at least three segments separated \
                     by dots",
                ],
            ),
            (
                json!({ "sideEffects": "Some" }),
                vec![
                    "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
                ],
            ),
            (
                json!({ "clientConfig": {} }),
                vec!["webhooks[0].clientConfig: Required value: exactly one of url or service is required"],
            ),
            (
                json!({ "admissionReviewVersions": ["v9"] }),
                vec![
                    "webhooks[0].admissionReviewVersions: Invalid value: [\"v9\"]: must include at least one of v1, v1beta1",
                ],
            ),
            (
                rule(json!(["*", "pods"])),
                vec![
                    "webhooks[0].rules[0].resources: Invalid value: [\"*\",\"pods\"]: if '*' is present, must not specify \
                     other resources without subresources",
                ],
            ),
            (
                json!({ "timeoutSeconds": 31 }),
                vec![
                    "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
                ],
            ),
        ];
        for (patch, expected) in rows {
            assert_eq!(causes(patch.clone()), expected, "{patch}");
        }
    }

    #[test]
    fn policies_say_what_they_are_about() {
        let mut errors = Vec::new();
        let mut policy = json!({ "spec": {} });
        VALIDATING_POLICIES.default(&mut policy);
        VALIDATING_POLICIES.validate(&policy, &mut errors);
        assert_eq!(
            said(&errors),
            [
                "spec.matchConstraints: Required value",
                "spec.validations: Required value: validations or auditAnnotations must contain at least one item",
                "spec.auditAnnotations: Required value: validations or auditAnnotations must contain at least one item",
            ]
        );
        errors.clear();
        let binding = json!({ "spec": { "policyName": "p", "validationActions": ["Deny", "Warn"] } });
        VALIDATING_BINDINGS.validate(&binding, &mut errors);
        assert_eq!(errors.len(), 1);
    }
}
