//! HorizontalPodAutoscalers. Source: `autoscaling/validation/validation.go`, `autoscaling/v2/defaults.go`.

use apiserver::field::FieldErrors;
use apiserver::strategy::NameRule;
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::At;
use crate::compute;
use crate::simple::Simple;

const PERIOD_SECONDS_MAX: i64 = 1800;
const WINDOW_SECONDS_MAX: i64 = 3600;
/// Sources of metrics: type and field.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

/// Numbers of replicas that follow metrics.
pub(crate) const AUTOSCALERS: Simple = Simple { default, check, status, ..Simple::COUNTED };

fn default(object: &mut Value) {
    let spec = tree::member(object, "spec");
    tree::set_default(spec, "minReplicas", 1);
    if tree::items(spec, &["metrics"]).is_empty() {
        let target = json!({ "type": "Utilization", "averageUtilization": 80 });
        let metric = json!({ "type": "Resource", "resource": { "name": "cpu", "target": target } });
        tree::members(spec).insert("metrics".into(), json!([metric]));
    }
    let Some(behavior) = spec.get_mut("behavior").filter(|behavior| behavior.is_object()) else { return };
    let percent = json!({ "type": "Percent", "value": 100, "periodSeconds": 15 });
    let pods = json!({ "type": "Pods", "value": 4, "periodSeconds": 15 });
    let up = tree::member(behavior, "scaleUp");
    tree::set_default(up, "stabilizationWindowSeconds", 0);
    tree::set_default(up, "selectPolicy", "Max");
    tree::set_default(up, "policies", json!([pods, percent]));
    let down = tree::member(behavior, "scaleDown");
    tree::set_default(down, "selectPolicy", "Max");
    tree::set_default(down, "policies", json!([percent]));
}

fn check(object: &At<'_>, errors: &mut FieldErrors) {
    let spec = object.get("spec");
    let (least, most) = (spec.get("minReplicas"), spec.get("maxReplicas"));
    least.not_negative(errors);
    match most.number() {
        0 => errors.push(most.required("must be set and greater than 0")),
        ..0 => errors.push(most.invalid("must be greater than or equal to 1")),
        _ => {}
    }
    if least.is_set() && most.number() < least.number() {
        errors.push(most.invalid_number("must be greater than or equal to `minReplicas`"));
    }
    reference(&spec.get("scaleTargetRef"), errors);
    let metrics = spec.get("metrics");
    metrics.items().for_each(|metric| check_metric(&metric, errors));
    let outside = |metric: At<'_>| matches!(metric.get("type").text(), "Object" | "External");
    if least.is_set() && least.number() == 0 && !metrics.items().any(outside) {
        let detail =
            "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.push(metrics.forbidden(detail));
    }
    for direction in ["scaleUp", "scaleDown"] {
        let rules = spec.down(&["behavior", direction]);
        if rules.is_set() {
            check_rules(&rules, errors);
        }
    }
}

fn reference(reference: &At<'_>, errors: &mut FieldErrors) {
    reference.get("kind").named(NameRule::PathSegment, errors);
    reference.get("name").named(NameRule::PathSegment, errors);
    let version = reference.get("apiVersion");
    if version.text().matches('/').count() > 1 {
        let detail = format!("unexpected GroupVersion string: {}", version.text());
        errors.push(version.invalid(&detail));
    }
}

fn check_rules(rules: &At<'_>, errors: &mut FieldErrors) {
    let window = rules.get("stabilizationWindowSeconds");
    if window.number() < 0 {
        errors.push(window.invalid("must be greater than or equal to zero"));
    }
    if window.number() > WINDOW_SECONDS_MAX {
        errors.push(window.invalid("must be less than or equal to 3600"));
    }
    rules.get("selectPolicy").one_of_if_set(&["Disabled", "Max", "Min"], errors);
    let policies = rules.get("policies");
    if policies.is_empty() {
        errors.push(policies.required("must specify at least one Policy"));
    }
    for policy in policies.items() {
        policy.get("type").one_of(&["Percent", "Pods"], errors);
        for field in ["value", "periodSeconds"] {
            if policy.get(field).number() <= 0 {
                errors.push(policy.get(field).invalid_number("must be greater than zero"));
            }
        }
        if policy.get("periodSeconds").number() > PERIOD_SECONDS_MAX {
            errors.push(policy.get("periodSeconds").invalid("must be less than or equal to 1800"));
        }
    }
    rules.get("tolerance").not_negative_quantity(errors);
}

fn check_metric(metric: &At<'_>, errors: &mut FieldErrors) {
    let kind = metric.get("type");
    if kind.present("must specify a metric source type", errors) {
        kind.one_of(&SOURCES.map(|(kind, _)| kind), errors);
    }
    let given: Vec<&str> =
        SOURCES.iter().map(|(_, field)| *field).filter(|field| metric.has(field)).collect();
    let expected = SOURCES.iter().find(|(known, _)| *known == kind.text()).map(|(_, field)| *field);
    if let Some(field) = expected.filter(|field| !metric.has(field)) {
        errors.push(metric.get(field).required("must populate information for the given metric source"));
    }
    if let [field] = given.as_slice() {
        check_source(field, &metric.get(field), errors);
    } else {
        for field in given.into_iter().filter(|field| Some(*field) != expected) {
            errors.push(metric.get(field).forbidden("must populate the given metric source only"));
        }
    }
}

fn check_source(kind: &str, source: &At<'_>, errors: &mut FieldErrors) {
    let target = source.get("target");
    match kind {
        "object" => reference(&source.get("describedObject"), errors),
        "resource" | "containerResource" => {
            let name = source.get("name");
            if name.present("must specify a resource name", errors) && kind == "containerResource" {
                compute::validate_name(name.text(), &name.path, errors);
            }
        }
        _ => {}
    }
    if kind == "containerResource" && source.get("container").present("must specify a container", errors) {
        source.get("container").name(NameRule::Label, errors);
    }
    if matches!(kind, "object" | "external" | "pods") {
        let name = source.down(&["metric", "name"]);
        if name.present("must specify a metric name", errors) {
            name.name(NameRule::PathSegment, errors);
        }
    }
    check_target(&target, errors);
    let (value, average) = (target.has("value"), target.has("averageValue"));
    let utilization = target.has("averageUtilization");
    let (missing, field) = match kind {
        "object" => (!value && !average, "averageValue"),
        "external" => (!value && !average, "averageValue"),
        "pods" => (!average, "averageValue"),
        _ => (!utilization && !average, "averageUtilization"),
    };
    if missing {
        errors.push(target.get(field).required(match kind {
            "object" => "must set either a target value or averageValue",
            "external" => "must set either a target value for metric or a per-pod target",
            "pods" => "must specify a positive target averageValue",
            _ => "must set either a target raw value or a target utilization",
        }));
    }
    if kind == "external" && value && average {
        let detail = "may not set both a target value for metric and a per-pod target";
        errors.push(target.get("value").forbidden(detail));
    }
    if field == "averageUtilization" && utilization && average {
        let detail = "may not set both a target raw value and a target utilization";
        errors.push(target.get("averageValue").forbidden(detail));
    }
}

fn check_target(target: &At<'_>, errors: &mut FieldErrors) {
    let kind = target.get("type");
    kind.present("must specify a metric target type", errors);
    if !matches!(kind.text(), "Utilization" | "Value" | "AverageValue") {
        errors.push(kind.invalid_text("must be either Utilization, Value, or AverageValue"));
    }
    for field in ["value", "averageValue"] {
        let amount = target.get(field);
        if amount.quantity().is_some_and(|amount| amount.is_negative() || amount.milli_value() == 0) {
            errors.push(amount.invalid("must be positive"));
        }
    }
    let utilization = target.get("averageUtilization");
    if utilization.is_set() && utilization.number() < 1 {
        errors.push(utilization.invalid("must be greater than 0"));
    }
}

fn status(object: &At<'_>, _: &At<'_>, errors: &mut FieldErrors) {
    for count in ["currentReplicas", "desiredReplicas"] {
        object.down(&["status", count]).not_negative(errors);
    }
}

#[cfg(test)]
mod tests {
    use apiserver::strategy::Strategy;

    use super::*;
    use crate::at::said;

    #[test]
    fn failures_are_upstreams() {
        let target = json!({ "kind": "Deployment", "name": "web", "apiVersion": "apps/v1" });
        let causes = |patch: Value| {
            let mut spec = json!({ "scaleTargetRef": target, "maxReplicas": 3 });
            spec.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
            let mut object = json!({ "spec": spec });
            AUTOSCALERS.default(&mut object);
            let mut errors = Vec::new();
            AUTOSCALERS.validate(&object, &mut errors);
            said(&errors)
        };
        let rows = [
            (json!({}), vec![]),
            (
                json!({ "maxReplicas": 0 }),
                vec![
                    "spec.maxReplicas: Required value: must be set and greater than 0",
                    "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`",
                ],
            ),
            (
                json!({ "minReplicas": 0 }),
                vec![
                    "spec.metrics: Forbidden: must specify at least one Object or External metric to support scaling to \
                     zero replicas",
                ],
            ),
            (
                json!({ "metrics": [{ "type": "Pods" }] }),
                vec![
                    "spec.metrics[0].pods: Required value: must populate information for the given metric source",
                ],
            ),
            (
                json!({ "metrics": [{ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization" } } }] }),
                vec![
                    "spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw \
                     value or a target utilization",
                ],
            ),
            (
                json!({ "behavior": { "scaleUp": { "policies": [{ "type": "Pods", "value": 0, "periodSeconds": 9999 }] } } }),
                vec![
                    "spec.behavior.scaleUp.policies[0].value: Invalid value: 0: must be greater than zero",
                    "spec.behavior.scaleUp.policies[0].periodSeconds: Invalid value: 9999: must be less than or equal to \
                     1800",
                ],
            ),
        ];
        for (patch, expected) in rows {
            assert_eq!(causes(patch.clone()), expected, "{patch}");
        }
    }
}
