//! Priority and fairness. Source: `flowcontrol/validation/validation.go`, `flowcontrol/v1/defaults.go`.

use std::collections::HashSet;

use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::name_problems;
use apiserver::strategy::NameRule;
use apiserver::tree;
use serde_json::json;

use crate::at::At;
use crate::simple::{Simple, fill};

const PRECEDENCE_MAX: i64 = 10_000;
const QUEUES_MAX: i64 = 10_000_000;
/// How many bits of a request's hash deal its hand.
const HASH_BITS: f64 = 60.0;
const EXEMPT: &str = "exempt";
const VERBS: [&str; 9] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
/// Subjects: kind and field.
const SUBJECTS: [(&str, &str); 3] =
    [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];

/// Which requests are of which priority.
pub(crate) const SCHEMAS: Simple = Simple {
    default: |schema| fill(tree::member(schema, "spec"), "matchingPrecedence", 1000),
    check: |schema, errors| {
        let spec = schema.get("spec");
        let precedence = spec.get("matchingPrecedence");
        let number = precedence.number();
        if number <= 0 {
            errors.push(precedence.invalid_number("must be a positive value"));
        }
        if number > PRECEDENCE_MAX {
            errors.push(precedence.invalid("must not be greater than 10000"));
        }
        if number == 1 && schema.down(&["metadata", "name"]).text() != EXEMPT {
            let detail = "only the schema named 'exempt' may have matchingPrecedence 1";
            errors.push(precedence.invalid(detail));
        }
        let method = spec.get("distinguisherMethod");
        if method.is_set() && !matches!(method.get("type").text(), "ByNamespace" | "ByUser") {
            let known = ["ByNamespace", "ByUser"];
            errors.push(FieldError::not_supported(method.child("type"), method.value, &known));
        }
        let level = spec.down(&["priorityLevelConfiguration", "name"]);
        if level.present("must reference a priority level", errors) {
            level.name(NameRule::Subdomain, errors);
        }
        spec.each("rules").for_each(|rule| check_rule(&rule, errors));
    },
    status: |schema, _, errors| conditions(schema, errors),
    ..Simple::COUNTED
};

fn conditions(object: &At<'_>, errors: &mut FieldErrors) {
    let mut seen: HashSet<&str> = HashSet::new();
    for kind in object.down(&["status", "conditions"]).items().map(|condition| condition.get("type")) {
        kind.present("", errors);
        if seen.contains(&kind.text()) {
            errors.push(kind.duplicate());
        }
        seen.insert(kind.text());
    }
}

fn check_rule(rule: &At<'_>, errors: &mut FieldErrors) {
    let subjects = rule.get("subjects");
    if subjects.is_empty() {
        errors.push(subjects.required("subjects must contain at least one value"));
    }
    subjects.items().for_each(|subject| check_subject(&subject, errors));
    let (resources, others) = (rule.get("resourceRules"), rule.get("nonResourceRules"));
    if resources.is_empty() && others.is_empty() {
        let detail = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.push(rule.required(detail));
    }
    for rule in resources.items() {
        verbs(&rule.get("verbs"), errors);
        alone(
            &rule.get("apiGroups"),
            "resource rules must supply at least one api group",
            "api groups",
            errors,
        );
        alone(
            &rule.get("resources"),
            "resource rules must supply at least one resource",
            "resources",
            errors,
        );
        let namespaces = rule.get("namespaces");
        if namespaces.is_empty() && !rule.get("clusterScope").truth() {
            let detail = "resource rules that are not cluster scoped must supply at least one namespace";
            errors.push(namespaces.required(detail));
        } else if namespaces.texts().contains(&"*") {
            if namespaces.len() > 1 {
                errors.push(namespaces.invalid("if '*' is present, must not specify other namespaces"));
            }
        } else {
            for namespace in namespaces.items() {
                for detail in name_problems(NameRule::Label, namespace.text()) {
                    let intro = "each member of this list must be '*' or a DNS-1123 label; ";
                    errors.push(namespace.invalid(&format!("{intro}{detail}")));
                }
            }
        }
    }
    for rule in others.items() {
        verbs(&rule.get("verbs"), errors);
        let urls = rule.get("nonResourceURLs");
        let detail = "nonResourceURLs must contain at least one value";
        alone(&urls, detail, "non-resource URLs", errors);
        if !urls.texts().contains(&"*") {
            urls.items().for_each(|url| check_url(&url, errors));
        }
    }
}

/// A list that is not empty, and in which `*` stands alone.
fn alone(list: &At<'_>, missing: &str, what: &str, errors: &mut FieldErrors) {
    if list.is_empty() {
        errors.push(list.required(missing));
    } else if list.len() > 1 && list.texts().contains(&"*") {
        errors.push(list.invalid(&format!("if '*' is present, must not specify other {what}")));
    }
}

fn verbs(list: &At<'_>, errors: &mut FieldErrors) {
    alone(list, "verbs must contain at least one value", "verbs", errors);
    let given = list.texts();
    if !given.contains(&"*") && given.iter().any(|verb| !VERBS.contains(verb)) {
        errors.push(FieldError::not_supported(list.path.clone(), list.value, &VERBS));
    }
}

fn check_url(url: &At<'_>, errors: &mut FieldErrors) {
    let text = url.text();
    let stars = text.matches('*').count();
    let detail = if text.is_empty() {
        "must not be empty"
    } else if !text.starts_with('/') {
        "must start with slash"
    } else if text.contains(' ') {
        "must not contain white-space"
    } else if text.contains("//") {
        "must not contain double slash"
    } else if stars > 1 || (stars == 1 && !text.ends_with("/*")) {
        "wildcard can only do suffix matching"
    } else {
        return;
    };
    errors.push(url.invalid_text(detail));
}

fn check_subject(subject: &At<'_>, errors: &mut FieldErrors) {
    let kind = subject.get("kind").text();
    let Some((_, own)) = SUBJECTS.iter().find(|(known, _)| *known == kind) else {
        errors.push(subject.get("kind").not_supported(&SUBJECTS.map(|(kind, _)| kind)));
        return;
    };
    let body = subject.get(own);
    if !body.is_set() {
        errors.push(body.required(&format!("{own} is required when subject kind is '{kind}'")));
    } else if body.get("name").present("", errors)
        && *own == "serviceAccount"
        && body.get("name").text() != "*"
    {
        body.get("name").name(NameRule::Subdomain, errors);
    }
    if body.is_set()
        && *own == "serviceAccount"
        && body.get("namespace").present("must specify namespace for service account", errors)
    {
        body.get("namespace").name(NameRule::Label, errors);
    }
    for (other, field) in SUBJECTS.iter().filter(|(other, field)| *other != kind && subject.has(field)) {
        let detail = format!("{field} is forbidden when subject kind is not '{other}'");
        errors.push(subject.get(field).forbidden(&detail));
    }
}

/// What a priority gets of the server.
pub(crate) const LEVELS: Simple = Simple {
    default: |level| {
        let spec = tree::member(level, "spec");
        if let Some(exempt) = spec.get_mut("exempt").filter(|at| at.is_object()) {
            tree::set_default(exempt, "nominalConcurrencyShares", 0);
            tree::set_default(exempt, "lendablePercent", 0);
        }
        if let Some(limited) = spec.get_mut("limited").filter(|at| at.is_object()) {
            tree::set_default(limited, "nominalConcurrencyShares", 30);
            tree::set_default(limited, "lendablePercent", 0);
            if let Some(queues) = limited.pointer_mut("/limitResponse/queuing").filter(|at| at.is_object()) {
                fill(queues, "handSize", 8);
                fill(queues, "queues", 64);
                fill(queues, "queueLengthLimit", 50);
            }
        }
    },
    check: |level, errors| {
        let spec = level.get("spec");
        let kind = spec.get("type");
        let exempt = level.down(&["metadata", "name"]).text() == EXEMPT;
        if exempt != (kind.text() == "Exempt") {
            errors.push(kind.invalid_text("must be 'Exempt' if and only if `name` is 'exempt'"));
        }
        let (free, limited) = (spec.get("exempt"), spec.get("limited"));
        match kind.text() {
            "Exempt" => {
                if limited.is_set() {
                    errors.push(limited.forbidden("must be nil if the type is not Limited"));
                }
                shares(&free, errors);
            }
            "Limited" => {
                if free.is_set() {
                    errors.push(free.forbidden("must be nil if the type is Limited"));
                }
                if limited.is_set() {
                    check_limited(&limited, errors);
                } else {
                    errors.push(limited.required("must not be empty when type is Limited"));
                }
            }
            "" => errors.push(kind.required("")),
            _ => errors.push(kind.not_supported(&["Exempt", "Limited"])),
        }
    },
    status: |level, _, errors| conditions(level, errors),
    ..Simple::COUNTED
};

fn shares(part: &At<'_>, errors: &mut FieldErrors) {
    let shares = part.get("nominalConcurrencyShares");
    if shares.number() < 0 {
        errors.push(shares.invalid("must be a non-negative integer"));
    }
    part.get("lendablePercent").between(0, 100, errors);
}

fn check_limited(limited: &At<'_>, errors: &mut FieldErrors) {
    shares(limited, errors);
    let borrowed = limited.get("borrowingLimitPercent");
    if borrowed.number() < 0 {
        errors.push(borrowed.invalid("if specified, must be a non-negative integer"));
    }
    let response = limited.get("limitResponse");
    let (kind, queuing) = (response.get("type"), response.get("queuing"));
    match kind.text() {
        "Reject" if queuing.is_set() => {
            let detail = "must be nil if limited.limitResponse.type is not Limited";
            errors.push(queuing.forbidden(detail));
        }
        "Reject" => {}
        "Queue" if !queuing.is_set() => {
            let detail = "must not be empty if limited.limitResponse.type is Limited";
            errors.push(queuing.required(detail));
        }
        "Queue" => check_queues(&queuing, errors),
        "" => errors.push(kind.required("")),
        _ => errors.push(kind.not_supported(&["Queue", "Reject"])),
    }
}

fn check_queues(queuing: &At<'_>, errors: &mut FieldErrors) {
    let (limit, queues, hand) =
        (queuing.get("queueLengthLimit"), queuing.get("queues"), queuing.get("handSize"));
    for part in [&limit, &queues, &hand].into_iter().filter(|part| part.number() <= 0) {
        errors.push(part.invalid_number("must be positive"));
    }
    if queues.number() > QUEUES_MAX {
        errors.push(queues.invalid("must not be greater than 10000000"));
    }
    let (deck, cards) = (queues.number(), hand.number());
    if cards > deck {
        errors.push(hand.invalid(&format!("should not be greater than queues ({deck})")));
    } else if cards > 0 && entropy_bits(deck, cards) > HASH_BITS {
        let detail = format!(
            "required entropy bits of deckSize {deck} and handSize {cards} should not be greater than 60"
        );
        errors.push(FieldError::invalid(hand.path, &json!(cards), &detail));
    }
}

/// The bits that it takes to deal a hand of `cards` from `deck`. Source: `shufflesharding.RequiredEntropyBits`.
fn entropy_bits(deck: i64, cards: i64) -> f64 {
    // A hand is never larger than what 60 bits can deal; beyond that the answer does not change.
    let bits = |cards: i64| f64::log2(f64::from(u32::try_from(deck - cards).unwrap_or(u32::MAX)));
    (0..cards.min(64)).map(bits).sum::<f64>().ceil()
}

#[cfg(test)]
mod tests {
    use apiserver::strategy::Strategy;

    use super::*;
    use crate::at::said;

    #[test]
    fn failures_are_upstreams() {
        let causes = |strategy: Simple, spec: serde_json::Value| {
            let mut object = json!({ "metadata": { "name": "a" }, "spec": spec });
            strategy.default(&mut object);
            let mut errors = Vec::new();
            strategy.validate(&object, &mut errors);
            said(&errors)
        };
        let schema = |rule: serde_json::Value| json!({ "priorityLevelConfiguration": { "name": "x" }, "rules": [rule] });
        let queues = |deck: i64, cards: i64| {
            json!({ "type": "Limited", "limited": { "limitResponse": {
            "type": "Queue", "queuing": { "queues": deck, "handSize": cards } } } })
        };
        let rows = [
            (
                SCHEMAS,
                json!({}),
                vec!["spec.priorityLevelConfiguration.name: Required value: must reference a priority level"],
            ),
            (
                SCHEMAS,
                schema(json!({ "subjects": [{ "kind": "User", "user": { "name": "*" } }] })),
                vec![
                    "spec.rules[0]: Required value: at least one of resourceRules and nonResourceRules has to be non-empty",
                ],
            ),
            (
                SCHEMAS,
                schema(
                    json!({ "subjects": [{ "kind": "User" }], "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["a"] }] }),
                ),
                vec![
                    "spec.rules[0].subjects[0].user: Required value: user is required when subject kind is 'User'",
                    "spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"a\": must start with slash",
                ],
            ),
            (LEVELS, queues(64, 8), vec![]),
            (
                LEVELS,
                queues(4, 5),
                vec![
                    "spec.limited.limitResponse.queuing.handSize: Invalid value: 5: should not be greater than queues (4)",
                ],
            ),
            (
                LEVELS,
                queues(512, 8),
                vec![
                    "spec.limited.limitResponse.queuing.handSize: Invalid value: 8: required entropy bits of deckSize 512 \
                     and handSize 8 should not be greater than 60",
                ],
            ),
            (
                LEVELS,
                json!({ "type": "Exempt" }),
                vec![
                    "spec.type: Invalid value: \"Exempt\": must be 'Exempt' if and only if `name` is 'exempt'",
                ],
            ),
        ];
        for (strategy, spec, expected) in rows {
            assert_eq!(causes(strategy, spec.clone()), expected, "{spec}");
        }
    }
}
