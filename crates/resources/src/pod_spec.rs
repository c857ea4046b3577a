//! `PodSpec`: computed defaults and validation, shared by pods and the templates of workloads.
//! Source: `core/v1/defaults.go`, `core/validation/validation.go`.

use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::wrong_name;
use apiserver::strategy::NameRule;
use apiserver::tree;
use serde_json::{Value, json};

use crate::containers;

/// Defaults of a workload's template.
pub(crate) fn default_template(template: &mut Value) {
    if template.is_object() {
        default(tree::member(template, "spec"));
    }
}

/// Defaults that depend on other fields, and the constant ones that every client expects to see.
pub(crate) fn default(spec: &mut Value) {
    tree::set_default(spec, "dnsPolicy", "ClusterFirst");
    tree::set_default(spec, "restartPolicy", "Always");
    tree::set_default(spec, "schedulerName", "default-scheduler");
    tree::set_default(spec, "securityContext", json!({}));
    tree::set_default(spec, "terminationGracePeriodSeconds", 30);
    sync_account(spec);
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers"] {
        if let Some(items) = tree::members(spec).get_mut(list).and_then(Value::as_array_mut) {
            items.iter_mut().for_each(|container| containers::default(container, host_network));
        }
    }
    if let Some(volumes) = tree::members(spec).get_mut("volumes").and_then(Value::as_array_mut) {
        volumes.iter_mut().for_each(default_volume);
    }
}

/// The old name of the field is kept in step for old clients.
fn sync_account(spec: &mut Value) {
    let new = tree::text(spec, &["serviceAccountName"]).to_owned();
    let old = tree::text(spec, &["serviceAccount"]).to_owned();
    let account = if new.is_empty() { old } else { new };
    if !account.is_empty() {
        tree::members(spec).insert("serviceAccountName".into(), account.clone().into());
        tree::members(spec).insert("serviceAccount".into(), account.into());
    }
}

/// A volume without a source is an empty directory.
fn default_volume(volume: &mut Value) {
    let sources = volume.as_object().map_or(0, |fields| fields.keys().filter(|key| *key != "name").count());
    if sources == 0 {
        tree::members(volume).insert("emptyDir".into(), json!({}));
    }
}

/// What is wrong with a pod's spec.
pub(crate) fn validate(spec: &Value, field: &str, errors: &mut FieldErrors) {
    let volumes = validate_volumes(spec, field, errors);
    let list = tree::items(spec, &["containers"]);
    if list.is_empty() {
        errors.push(FieldError::required(format!("{field}.containers"), ""));
    }
    let mut names: Vec<&str> = Vec::new();
    for group in ["initContainers", "containers"] {
        for (index, container) in tree::items(spec, &[group]).iter().enumerate() {
            let field = format!("{field}.{group}[{index}]");
            containers::validate(container, &field, &volumes, group == "initContainers", errors);
            let name = tree::text(container, &["name"]);
            if names.contains(&name) && !name.is_empty() {
                errors.push(FieldError::duplicate(format!("{field}.name"), &name.into()));
            }
            names.push(name);
        }
    }
    check_choice(spec, field, "restartPolicy", &["Always", "OnFailure", "Never"], errors);
    check_choice(
        spec,
        field,
        "dnsPolicy",
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
        errors,
    );
    for name in ["terminationGracePeriodSeconds", "activeDeadlineSeconds"] {
        let value = tree::at(spec, &[name]);
        let least = i64::from(name == "activeDeadlineSeconds");
        if value.as_i64().is_some_and(|seconds| seconds < least) {
            let detail = if least == 1 {
                "must be between 1 and 2147483647, inclusive"
            } else {
                "must be greater than or equal to 0"
            };
            errors.push(FieldError::invalid(format!("{field}.{name}"), value, detail));
        }
    }
    for (name, rule) in [
        ("nodeName", NameRule::Subdomain),
        ("serviceAccountName", NameRule::Subdomain),
        ("hostname", NameRule::Label),
        ("subdomain", NameRule::Label),
    ] {
        let text = tree::text(spec, &[name]);
        if !text.is_empty()
            && let Some(detail) = wrong_name(rule, text)
        {
            errors.push(FieldError::invalid(format!("{field}.{name}"), &text.into(), &detail));
        }
    }
    validate_tolerations(spec, field, errors);
}

fn check_choice(spec: &Value, field: &str, name: &str, known: &[&str], errors: &mut FieldErrors) {
    let value = tree::at(spec, &[name]);
    if !value.as_str().is_some_and(|text| known.contains(&text)) {
        errors.push(FieldError::not_supported(format!("{field}.{name}"), value, known));
    }
}

/// Checks volumes and gives their names.
fn validate_volumes(spec: &Value, field: &str, errors: &mut FieldErrors) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (index, volume) in tree::items(spec, &["volumes"]).iter().enumerate() {
        let field = format!("{field}.volumes[{index}]");
        let name = tree::text(volume, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(format!("{field}.name"), ""));
        } else if let Some(detail) = wrong_name(NameRule::Label, name) {
            errors.push(FieldError::invalid(format!("{field}.name"), &name.into(), &detail));
        } else if names.iter().any(|known| known == name) {
            errors.push(FieldError::duplicate(format!("{field}.name"), &name.into()));
        }
        names.push(name.to_owned());
        let sources: Vec<&String> = volume
            .as_object()
            .into_iter()
            .flat_map(|fields| fields.keys())
            .filter(|key| *key != "name")
            .collect();
        if sources.len() > 1 {
            let detail = "may not specify more than 1 volume type";
            errors.push(FieldError::forbidden(format!("{field}.{}", sources[1]), detail));
        }
        let required = [
            ("hostPath", "path"),
            ("configMap", "name"),
            ("secret", "secretName"),
            ("persistentVolumeClaim", "claimName"),
        ];
        for (source, key) in required {
            if volume.get(source).is_some() && tree::text(volume, &[source, key]).is_empty() {
                errors.push(FieldError::required(format!("{field}.{source}.{key}"), ""));
            }
        }
    }
    names
}

fn validate_tolerations(spec: &Value, field: &str, errors: &mut FieldErrors) {
    for (index, toleration) in tree::items(spec, &["tolerations"]).iter().enumerate() {
        let field = format!("{field}.tolerations[{index}]");
        let (operator, value) = (tree::text(toleration, &["operator"]), tree::text(toleration, &["value"]));
        if operator == "Exists" && !value.is_empty() {
            let detail = "value must be empty when `operator` is 'Exists'";
            errors.push(FieldError::invalid(format!("{field}.operator"), &json!(value), detail));
        }
        if !matches!(operator, "" | "Equal" | "Exists") {
            let operator = tree::at(toleration, &["operator"]);
            errors.push(FieldError::not_supported(
                format!("{field}.operator"),
                operator,
                &["Equal", "Exists"],
            ));
        }
        if tree::text(toleration, &["key"]).is_empty() && operator != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(format!("{field}.operator"), &json!(operator), detail));
        }
        let effect = tree::text(toleration, &["effect"]);
        if !tree::at(toleration, &["tolerationSeconds"]).is_null() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(format!("{field}.effect"), &json!(effect), detail));
        }
    }
}
