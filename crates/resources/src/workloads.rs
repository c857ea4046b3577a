//! Deployments, ReplicaSets, ReplicationControllers, ControllerRevisions.

use api::selectors::{LabelSelector, LabelSelectorSpec};
use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::Strategy;
use apiserver::tree;
use serde_json::{Value, json};

use crate::pod_spec;

const IMMUTABLE: &str = "field is immutable";

/// Rolling updates.
pub(crate) struct Deployments;

impl Strategy for Deployments {
    fn default(&self, object: &mut Value) {
        let spec = tree::member(object, "spec");
        tree::set_default(spec, "replicas", 1);
        tree::set_default(spec, "revisionHistoryLimit", 10);
        tree::set_default(spec, "progressDeadlineSeconds", 600);
        let strategy = tree::member(spec, "strategy");
        tree::set_default(strategy, "type", "RollingUpdate");
        if tree::text(strategy, &["type"]) == "RollingUpdate" {
            let rolling = tree::member(strategy, "rollingUpdate");
            tree::set_default(rolling, "maxUnavailable", "25%");
            tree::set_default(rolling, "maxSurge", "25%");
        }
        pod_spec::default_template(tree::member(spec, "template"));
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        validate_scaled(object, errors);
        validate_selector(object, errors);
        let strategy = tree::at(object, &["spec", "strategy"]);
        let rolling = tree::at(strategy, &["rollingUpdate"]);
        match tree::text(strategy, &["type"]) {
            "Recreate" if !rolling.is_null() => errors.push(FieldError::forbidden(
                "spec.strategy.rollingUpdate",
                "may not be specified when strategy `type` is 'Recreate'",
            )),
            "RollingUpdate" => validate_rolling(rolling, errors),
            "Recreate" => {}
            _ => errors.push(FieldError::not_supported(
                "spec.strategy.type",
                tree::at(strategy, &["type"]),
                &["Recreate", "RollingUpdate"],
            )),
        }
        let deadline = tree::at(object, &["spec", "progressDeadlineSeconds"]).as_i64().unwrap_or(600);
        let ready = tree::at(object, &["spec", "minReadySeconds"]).as_i64().unwrap_or(0);
        if deadline <= ready {
            errors.push(FieldError::invalid(
                "spec.progressDeadlineSeconds",
                &deadline.into(),
                "must be greater than minReadySeconds",
            ));
        }
        validate_template(object, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        keep_selector(new, old, errors);
    }
}

/// Numbers of equal pods.
pub(crate) struct ReplicaSets;

impl Strategy for ReplicaSets {
    fn default(&self, object: &mut Value) {
        let spec = tree::member(object, "spec");
        tree::set_default(spec, "replicas", 1);
        pod_spec::default_template(tree::member(spec, "template"));
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        validate_scaled(object, errors);
        validate_selector(object, errors);
        validate_template(object, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        keep_selector(new, old, errors);
    }
}

/// The oldest form; its selector is a plain map.
pub(crate) struct ReplicationControllers;

impl Strategy for ReplicationControllers {
    fn default(&self, object: &mut Value) {
        let labels = tree::at(object, &["spec", "template", "metadata", "labels"]).clone();
        let spec = tree::member(object, "spec");
        tree::set_default(spec, "replicas", 1);
        if labels.is_object() {
            tree::set_default(spec, "selector", labels.clone());
        }
        pod_spec::default_template(tree::member(spec, "template"));
        let metadata = tree::member(object, "metadata");
        if labels.is_object() && tree::at(metadata, &["labels"]).is_null() {
            tree::set_default(metadata, "labels", labels);
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        validate_scaled(object, errors);
        let selector = tree::at(object, &["spec", "selector"]);
        let labels = tree::at(object, &["spec", "template", "metadata", "labels"]);
        if selector.as_object().is_none_or(serde_json::Map::is_empty) {
            errors.push(FieldError::required("spec.selector", ""));
        }
        let missing = |(key, value): (&String, &Value)| labels.get(key) != Some(value);
        if selector.as_object().into_iter().flatten().any(missing) {
            let detail = "`selector` does not match template `labels`";
            errors.push(FieldError::invalid("spec.template.metadata.labels", labels, detail));
        }
        validate_template(object, errors);
    }

    fn orphans_by_default(&self) -> bool {
        false
    }
}

/// Snapshots of a workload's template.
pub(crate) struct ControllerRevisions;

impl Strategy for ControllerRevisions {
    fn generation(&self) -> bool {
        false
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        if tree::at(new, &["data"]) != tree::at(old, &["data"]) {
            errors.push(FieldError::invalid("data", &json!("<data>"), IMMUTABLE));
        }
    }
}

fn validate_scaled(object: &Value, errors: &mut FieldErrors) {
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        let value = tree::at(object, &["spec", field]);
        if value.as_i64().is_some_and(|number| number < 0) {
            errors.push(FieldError::invalid(
                format!("spec.{field}"),
                value,
                "must be greater than or equal to 0",
            ));
        }
    }
}

fn validate_selector(object: &Value, errors: &mut FieldErrors) {
    let selector = tree::at(object, &["spec", "selector"]);
    if selector.is_null() {
        errors.push(FieldError::required("spec.selector", ""));
        return;
    }
    let spec: Result<LabelSelectorSpec, _> = serde_json::from_value(selector.clone());
    let parsed = spec.map_err(|error| error.to_string()).and_then(|spec| LabelSelector::from_spec(&spec));
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(detail) => {
            errors.push(FieldError::invalid("spec.selector", selector, &detail));
            return;
        }
    };
    if parsed.is_empty() {
        let detail = "empty selector is invalid for deployment";
        errors.push(FieldError::invalid("spec.selector", selector, detail));
        return;
    }
    let labels = tree::at(object, &["spec", "template", "metadata", "labels"]);
    let known = serde_json::from_value(labels.clone()).unwrap_or_default();
    if !parsed.matches(&known) {
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid("spec.template.metadata.labels", labels, detail));
    }
}

fn keep_selector(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (after, before) = (tree::at(new, &["spec", "selector"]), tree::at(old, &["spec", "selector"]));
    if after != before {
        errors.push(FieldError::invalid("spec.selector", after, IMMUTABLE));
    }
}

fn validate_rolling(rolling: &Value, errors: &mut FieldErrors) {
    let mut zero = 0;
    for field in ["maxUnavailable", "maxSurge"] {
        let value = tree::at(rolling, &[field]);
        let field = format!("spec.strategy.rollingUpdate.{field}");
        match value {
            Value::Number(number) => {
                let number = number.as_i64().unwrap_or(-1);
                zero += usize::from(number == 0);
                if number < 0 {
                    errors.push(FieldError::invalid(field, value, "must be greater than or equal to 0"));
                }
            }
            Value::String(text) => {
                let percent = text.strip_suffix('%').and_then(|number| number.parse::<u32>().ok());
                zero += usize::from(percent == Some(0));
                if percent.is_none() {
                    let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. \
                                  '1%',  or '93%', regex used for validation is '[0-9]+%')";
                    errors.push(FieldError::invalid(field, value, detail));
                } else if field.ends_with("maxUnavailable") && percent > Some(100) {
                    errors.push(FieldError::invalid(field, value, "must not be greater than 100%"));
                }
            }
            _ => {}
        }
    }
    if zero == 2 {
        errors.push(FieldError::invalid(
            "spec.strategy.rollingUpdate.maxUnavailable",
            tree::at(rolling, &["maxUnavailable"]),
            "may not be 0 when `maxSurge` is 0",
        ));
    }
}

fn validate_template(object: &Value, errors: &mut FieldErrors) {
    let template = tree::at(object, &["spec", "template"]);
    if template.is_null() {
        errors.push(FieldError::required("spec.template", ""));
        return;
    }
    let labels = tree::at(template, &["metadata", "labels"]);
    apiserver::names::check_labels(labels, "spec.template.metadata.labels", errors);
    let spec = tree::at(template, &["spec"]);
    pod_spec::validate(spec, "spec.template.spec", errors);
    let restart = tree::at(spec, &["restartPolicy"]);
    if restart != "Always" {
        let field = "spec.template.spec.restartPolicy";
        errors.push(FieldError::not_supported(field, restart, &["Always"]));
    }
}
