//! LimitRanges and ResourceQuotas. Source: `core/validation/validation.go`, `core/v1/defaults.go`.

use std::collections::HashSet;

use api::quantity::Quantity;
use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::qualified_name_problems;
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::At;
use crate::compute;
use crate::simple::{Simple, each_mut};

const LIMIT_TYPES: [&str; 3] = ["Pod", "Container", "PersistentVolumeClaim"];
const BOUNDS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];
const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
/// Scopes of which one excludes the other.
const EXCLUSIVE: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];
/// Names without a domain that a quota may limit, besides `count/…` and huge pages.
const QUOTA_NAMES: [&str; 19] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];

/// Bounds of single pods, containers and claims.
pub(crate) const LIMITS: Simple =
    Simple { create_on_update: true, default: default_limits, check: check_limits, ..Simple::PLAIN };

fn default_limits(object: &mut Value) {
    for item in each_mut(object, &["spec", "limits"]) {
        if tree::text(item, &["type"]) != "Container" {
            continue;
        }
        for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
            let source = tree::at(item, &[from]).as_object().cloned().unwrap_or_default();
            if source.is_empty() {
                continue;
            }
            let target = tree::object(item, to);
            for (name, amount) in source {
                target.entry(name).or_insert(amount);
            }
        }
    }
}

fn check_limits(object: &At<'_>, errors: &mut FieldErrors) {
    let mut types: HashSet<&str> = HashSet::new();
    for limit in object.down(&["spec", "limits"]).items() {
        let kind = limit.get("type");
        let problems = qualified_name_problems(kind.text());
        problems.iter().for_each(|detail| errors.push(kind.invalid_text(detail)));
        if problems.is_empty() && !kind.text().contains('/') && !LIMIT_TYPES.contains(&kind.text()) {
            errors.push(kind.invalid("must be a standard limit type or fully qualified"));
        }
        if types.contains(&kind.text()) {
            errors.push(kind.duplicate());
        }
        types.insert(kind.text());
        for bound in BOUNDS {
            let amounts = limit.get(bound);
            if kind.text() == "Pod" && bound.starts_with("default") {
                if !amounts.is_empty() {
                    errors.push(amounts.forbidden("may not be specified when `type` is 'Pod'"));
                }
                continue;
            }
            for (name, amount) in amounts.entries() {
                compute::validate_name(name, &amount.path, errors);
            }
        }
        if kind.text() == "PersistentVolumeClaim"
            && !["min", "max"].iter().any(|bound| limit.get(bound).has("storage"))
        {
            let detail = "either minimum or maximum storage value is required, but neither was provided";
            errors.push(limit.get("limits").required(detail));
        }
        compare_bounds(&limit, errors);
    }
}

/// What no amount of one bound may be above, in another: bound, the one above, and the sentence's words for both.
const ORDER: [(&str, &str, &str, &str, &str); 6] = [
    ("min", "max", "min", "min value", "max value"),
    ("min", "defaultRequest", "defaultRequest", "min value", "default request value"),
    ("defaultRequest", "max", "defaultRequest", "default request value", "max value"),
    ("defaultRequest", "default", "defaultRequest", "default request value", "default limit value"),
    ("min", "default", "default", "min value", "default value"),
    ("default", "max", "default", "default value", "max value"),
];

fn compare_bounds(limit: &At<'_>, errors: &mut FieldErrors) {
    for (lower, upper, reported, one, other) in ORDER {
        for (name, low) in limit.get(lower).entries() {
            let (Some(low), Some(high)) = (low.quantity(), limit.get(upper).get(name).quantity()) else {
                continue;
            };
            if low > high {
                let field = format!("{}[{name}]", limit.child(reported));
                let shown = limit.get(reported).get(name).value;
                let detail = format!("{one} {low} is greater than {other} {high}");
                errors.push(FieldError::invalid(field, shown, &detail));
            }
        }
    }
    for (name, ratio) in limit.get("maxLimitRequestRatio").entries() {
        let Some(amount) = ratio.quantity() else { continue };
        if amount < Quantity::from_milli(1000) {
            errors.push(ratio.invalid(&format!("ratio {amount} is less than 1")));
        }
        let [least, most] = ["min", "max"].map(|bound| limit.get(bound).get(name).quantity());
        let (Some(least), Some(most)) = (least, most) else { continue };
        let reach = most.milli_value() as f64 / least.milli_value() as f64;
        if amount.milli_value() as f64 / 1000.0 > reach {
            errors.push(ratio.invalid(&format!("ratio {amount} is greater than max/min = {reach:.6}")));
        }
    }
    for (name, asked) in limit.get("defaultRequest").entries().filter(|(name, _)| !compute::overcommits(name))
    {
        let (Some(wanted), Some(most)) = (asked.quantity(), limit.get("default").get(name).quantity()) else {
            continue;
        };
        if wanted != most {
            let detail =
                format!("default value {most} must equal to defaultRequest value {wanted} in {name}");
            errors.push(asked.invalid(&detail));
        }
    }
}

/// Bounds of whole namespaces.
pub(crate) const QUOTAS: Simple = Simple {
    check: |quota, errors| {
        let spec = quota.get("spec");
        amounts(&spec.get("hard"), errors);
        scopes(&spec, errors);
        selector(&spec, errors);
    },
    compare: |quota, before, errors| {
        let sorted = |quota: &At<'_>| {
            let mut scopes = quota.down(&["spec", "scopes"]).texts();
            scopes.sort_unstable();
            scopes.join(",")
        };
        if sorted(quota) != sorted(before) {
            errors.push(quota.down(&["spec", "scopes"]).invalid(crate::at::IMMUTABLE));
        }
    },
    status: |quota, _, errors| {
        amounts(&quota.down(&["status", "hard"]), errors);
        amounts(&quota.down(&["status", "used"]), errors);
    },
    ..Simple::PLAIN
};

fn amounts(list: &At<'_>, errors: &mut FieldErrors) {
    for (name, amount) in list.entries() {
        let known = QUOTA_NAMES.contains(&name)
            || name.contains('/')
            || name.starts_with("hugepages-")
            || name.starts_with("requests.hugepages-");
        let problems = qualified_name_problems(name);
        for detail in &problems {
            errors.push(FieldError::invalid(amount.path.clone(), &json!(name), detail));
        }
        if problems.is_empty() && !known {
            if !compute::is_standard(name) {
                let detail = "must be a standard resource type or fully qualified";
                errors.push(FieldError::invalid(amount.path.clone(), &json!(name), detail));
            }
            let detail = "must be a standard resource for quota";
            errors.push(FieldError::invalid(amount.path.clone(), &json!(name), detail));
        }
        compute::validate_amount(name, &amount, errors);
    }
}

/// Whether a scope means something for a resource.
fn applies(scope: &str, name: &str) -> bool {
    match scope {
        "BestEffort" => name == "pods",
        "Terminating"
        | "NotTerminating"
        | "NotBestEffort"
        | "PriorityClass"
        | "CrossNamespacePodAffinity" => {
            matches!(
                name,
                "pods"
                    | "cpu"
                    | "memory"
                    | "requests.cpu"
                    | "requests.memory"
                    | "limits.cpu"
                    | "limits.memory"
            )
        }
        "VolumeAttributesClass" => matches!(name, "persistentvolumeclaims" | "requests.storage"),
        _ => true,
    }
}

fn unsuited(spec: &At<'_>, scope: &str) -> usize {
    let standard = |name: &&str| QUOTA_NAMES.contains(name);
    let names = spec.get("hard").entries().map(|(name, _)| name).collect::<Vec<_>>();
    names.iter().filter(|name| standard(name) && !applies(scope, name)).count()
}

fn scopes(spec: &At<'_>, errors: &mut FieldErrors) {
    let list = spec.get("scopes");
    let given = list.texts();
    for scope in &given {
        if !SCOPES.contains(scope) {
            errors.push(list.invalid("unsupported scope"));
        }
        for _ in 0..unsuited(spec, scope) {
            errors.push(list.invalid("unsupported scope applied to resource"));
        }
    }
    if EXCLUSIVE.iter().any(|pair| pair.iter().all(|scope| given.contains(scope))) {
        errors.push(list.invalid("conflicting scopes"));
    }
}

fn selector(spec: &At<'_>, errors: &mut FieldErrors) {
    let selector = spec.get("scopeSelector");
    let at = selector.child("matchExpressions");
    for requirement in selector.each("matchExpressions") {
        // Upstream reports all of them at the list.
        let requirement = At::new(requirement.value, at.clone());
        let (scope, operator) = (requirement.get("scopeName"), requirement.get("operator"));
        let values = requirement.get("values");
        if !SCOPES.contains(&scope.text()) {
            errors.push(scope.invalid_text("unsupported scope"));
        }
        for _ in 0..unsuited(spec, scope.text()) {
            let detail = "unsupported scope applied to resource";
            errors.push(FieldError::invalid(at.clone(), selector.value, detail));
        }
        let valued = matches!(scope.text(), "PriorityClass" | "VolumeAttributesClass");
        if SCOPES.contains(&scope.text()) && !valued && operator.text() != "Exists" {
            let detail = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, \
                          ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                          ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.push(operator.invalid_text(detail));
        }
        match operator.text() {
            "In" | "NotIn" if values.is_empty() => {
                let detail =
                    "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.push(values.required(detail));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail =
                    "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errors.push(values.invalid(detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.push(operator.invalid_text("not a valid selector operator")),
        }
    }
}

#[cfg(test)]
mod tests {
    use apiserver::strategy::Strategy;

    use super::*;
    use crate::at::said;

    fn causes(strategy: Simple, spec: Value) -> Vec<String> {
        let mut object = json!({ "spec": spec });
        strategy.default(&mut object);
        let mut errors = Vec::new();
        strategy.validate(&object, &mut errors);
        said(&errors)
    }

    #[test]
    fn failures_are_upstreams() {
        let limit = |item: Value| json!({ "limits": [item] });
        let rows = [
            (LIMITS, limit(json!({ "type": "Container", "max": { "cpu": "1" } })), vec![]),
            (
                LIMITS,
                limit(json!({ "type": "Container", "max": { "cpu": "1" }, "min": { "cpu": "2" } })),
                vec![
                    "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
                    "spec.limits[0].defaultRequest[cpu]: Invalid value: \"1\": min value 2 is greater than default request \
                     value 1",
                    "spec.limits[0].default[cpu]: Invalid value: \"1\": min value 2 is greater than default value 1",
                ],
            ),
            (
                LIMITS,
                limit(json!({ "type": "Pod", "default": { "cpu": "1" } })),
                vec!["spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'"],
            ),
            (
                LIMITS,
                limit(json!({ "type": "PersistentVolumeClaim" })),
                vec![
                    "spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but \
                     neither was provided",
                ],
            ),
            (QUOTAS, json!({ "hard": { "pods": "3", "count/jobs.batch": "1" } }), vec![]),
            (
                QUOTAS,
                json!({ "hard": { "pods": "-1" } }),
                vec!["spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0"],
            ),
            (
                QUOTAS,
                json!({ "hard": { "cpu": "1" }, "scopes": ["BestEffort", "NotBestEffort"] }),
                vec![
                    "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\"]: unsupported scope applied to resource",
                    "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\"]: conflicting scopes",
                ],
            ),
        ];
        for (strategy, spec, expected) in rows {
            assert_eq!(causes(strategy, spec.clone()), expected, "{spec}");
        }
    }

    #[test]
    fn a_containers_maximum_is_its_default() {
        let mut range = json!({ "spec": { "limits": [{ "type": "Container", "max": { "cpu": "2" }, "min": { "memory": "1Mi" } }] } });
        LIMITS.default(&mut range);
        let limit = &range["spec"]["limits"][0];
        assert_eq!(limit["default"], json!({ "cpu": "2" }));
        assert_eq!(limit["defaultRequest"], json!({ "cpu": "2", "memory": "1Mi" }));
    }
}
