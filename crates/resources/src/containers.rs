//! Containers: image pull policy, ports, environment, resources, mounts.

use api::quantity::Quantity;
use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::wrong_name;
use apiserver::strategy::NameRule;
use apiserver::tree;
use serde_json::{Value, json};

use crate::probes;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];

/// Defaults that depend on other fields, and the constant ones that every client expects to see.
pub(crate) fn default(container: &mut Value, host_network: bool) {
    tree::set_default(container, "terminationMessagePath", "/dev/termination-log");
    tree::set_default(container, "terminationMessagePolicy", "File");
    tree::set_default(container, "resources", json!({}));
    let policy = pull_policy(tree::text(container, &["image"]));
    if tree::text(container, &["imagePullPolicy"]).is_empty() {
        tree::members(container).insert("imagePullPolicy".into(), policy.into());
    }
    if let Some(ports) = tree::members(container).get_mut("ports").and_then(Value::as_array_mut) {
        for port in ports {
            tree::set_default(port, "protocol", "TCP");
            if host_network && tree::at(port, &["hostPort"]).as_i64().unwrap_or(0) == 0 {
                let number = tree::at(port, &["containerPort"]).clone();
                tree::members(port).insert("hostPort".into(), number);
            }
        }
    }
    if let Some(env) = tree::members(container).get_mut("env").and_then(Value::as_array_mut) {
        for variable in env {
            if let Some(reference) = variable.pointer_mut("/valueFrom/fieldRef") {
                tree::set_default(reference, "apiVersion", "v1");
            }
        }
    }
    default_requests(container);
    probes::default(container);
}

/// A limit without a request is a request too.
fn default_requests(container: &mut Value) {
    let limits = tree::at(container, &["resources", "limits"]).as_object().cloned().unwrap_or_default();
    for (name, limit) in limits {
        let resources = tree::member(container, "resources");
        let requests = tree::object(resources, "requests");
        requests.entry(name).or_insert(limit);
    }
}

/// `Always` for the tag `latest` (also when it goes without saying), else `IfNotPresent`.
pub(crate) fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let name = image.rsplit('/').next().unwrap_or_default();
    match name.rsplit_once(':') {
        Some((_, tag)) if tag != "latest" => "IfNotPresent",
        _ => "Always",
    }
}

/// What is wrong with a container; `volumes` are the pod's.
pub(crate) fn validate(
    container: &Value,
    field: &str,
    volumes: &[String],
    init: bool,
    errors: &mut FieldErrors,
) {
    let name = tree::text(container, &["name"]);
    if name.is_empty() {
        errors.push(FieldError::required(format!("{field}.name"), ""));
    } else if let Some(detail) = wrong_name(NameRule::Label, name) {
        errors.push(FieldError::invalid(format!("{field}.name"), &name.into(), &detail));
    }
    let image = tree::text(container, &["image"]);
    if image.is_empty() {
        errors.push(FieldError::required(format!("{field}.image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(format!("{field}.image"), &image.into(), detail));
    }
    let policy = tree::at(container, &["imagePullPolicy"]);
    if !policy.as_str().is_some_and(|text| PULL_POLICIES.contains(&text)) {
        errors.push(FieldError::not_supported(format!("{field}.imagePullPolicy"), policy, &PULL_POLICIES));
    }
    validate_ports(container, field, errors);
    validate_env(container, field, errors);
    validate_mounts(container, field, volumes, errors);
    validate_resources(container, field, errors);
    let sidecar = tree::text(container, &["restartPolicy"]) == "Always";
    if init && !sidecar {
        for probe in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
            if !tree::at(container, &[probe]).is_null() {
                let detail = "may not be set for init containers without restartPolicy=Always";
                errors.push(FieldError::forbidden(format!("{field}.{probe}"), detail));
            }
        }
    }
    probes::validate(container, field, errors);
}

fn validate_ports(container: &Value, field: &str, errors: &mut FieldErrors) {
    let mut names: Vec<&str> = Vec::new();
    for (index, port) in tree::items(container, &["ports"]).iter().enumerate() {
        let field = format!("{field}.ports[{index}]");
        let name = tree::text(port, &["name"]);
        if !name.is_empty() {
            if let Some(detail) = wrong_port_name(name) {
                errors.push(FieldError::invalid(format!("{field}.name"), &name.into(), detail));
            } else if names.contains(&name) {
                errors.push(FieldError::duplicate(format!("{field}.name"), &name.into()));
            }
            names.push(name);
        }
        let number = tree::at(port, &["containerPort"]);
        match number.as_i64() {
            None | Some(0) => errors.push(FieldError::required(format!("{field}.containerPort"), "")),
            Some(port) if !(1..=65535).contains(&port) => {
                let detail = "must be between 1 and 65535, inclusive";
                errors.push(FieldError::invalid(format!("{field}.containerPort"), number, detail));
            }
            Some(_) => {}
        }
        let host = tree::at(port, &["hostPort"]);
        if host.as_i64().is_some_and(|port| port != 0 && !(1..=65535).contains(&port)) {
            let detail = "must be between 1 and 65535, inclusive";
            errors.push(FieldError::invalid(format!("{field}.hostPort"), host, detail));
        }
        let protocol = tree::at(port, &["protocol"]);
        if !protocol.as_str().is_some_and(|text| PROTOCOLS.contains(&text)) {
            errors.push(FieldError::not_supported(format!("{field}.protocol"), protocol, &PROTOCOLS));
        }
    }
}

/// IANA service names: at most 15 of lower-case letters, digits and single hyphens inside, with a letter.
pub(crate) fn wrong_port_name(name: &str) -> Option<&'static str> {
    if name.len() > 15 {
        return Some("must be no more than 15 characters");
    }
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !name.bytes().all(fits) {
        return Some("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !name.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Some("must contain at least one letter (a-z)");
    }
    if name.contains("--") {
        return Some("must not contain consecutive hyphens");
    }
    (name.starts_with('-') || name.ends_with('-')).then_some("must not begin or end with a hyphen")
}

fn validate_env(container: &Value, field: &str, errors: &mut FieldErrors) {
    for (index, variable) in tree::items(container, &["env"]).iter().enumerate() {
        let field = format!("{field}.env[{index}]");
        let name = tree::text(variable, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(format!("{field}.name"), ""));
        } else if name.contains('=') || !name.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            let detail = "a valid environment variable name must consist only of printable ASCII characters other than '='";
            errors.push(FieldError::invalid(format!("{field}.name"), &name.into(), detail));
        }
        let source = tree::at(variable, &["valueFrom"]);
        if source.is_null() {
            continue;
        }
        if !tree::text(variable, &["value"]).is_empty() {
            let detail = "may not be specified when `value` is not empty";
            errors.push(FieldError::invalid(format!("{field}.valueFrom"), &json!(""), detail));
        }
        for (kind, part) in [
            ("fieldRef", "fieldPath"),
            ("resourceFieldRef", "resource"),
            ("configMapKeyRef", "key"),
            ("secretKeyRef", "key"),
        ] {
            let reference = tree::at(source, &[kind]);
            if !reference.is_null() && tree::text(reference, &[part]).is_empty() {
                errors.push(FieldError::required(format!("{field}.valueFrom.{kind}.{part}"), ""));
            }
        }
    }
}

fn validate_mounts(container: &Value, field: &str, volumes: &[String], errors: &mut FieldErrors) {
    let mut paths: Vec<&str> = Vec::new();
    for (index, mount) in tree::items(container, &["volumeMounts"]).iter().enumerate() {
        let field = format!("{field}.volumeMounts[{index}]");
        let name = tree::text(mount, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(format!("{field}.name"), ""));
        } else if !volumes.iter().any(|known| known == name) {
            errors.push(FieldError::not_found(format!("{field}.name"), &name.into()));
        }
        let path = tree::text(mount, &["mountPath"]);
        if path.is_empty() {
            errors.push(FieldError::required(format!("{field}.mountPath"), ""));
        } else if paths.contains(&path) {
            errors.push(FieldError::invalid(format!("{field}.mountPath"), &path.into(), "must be unique"));
        }
        paths.push(path);
        let below = tree::text(mount, &["subPath"]);
        if below.starts_with('/') {
            errors.push(FieldError::invalid(
                format!("{field}.subPath"),
                &below.into(),
                "must be a relative path",
            ));
        } else if below.split('/').any(|part| part == "..") {
            errors.push(FieldError::invalid(
                format!("{field}.subPath"),
                &below.into(),
                "must not contain '..'",
            ));
        }
    }
}

fn validate_resources(container: &Value, field: &str, errors: &mut FieldErrors) {
    let resources = tree::at(container, &["resources"]);
    let quantity = |value: &Value| -> Option<Quantity> {
        match value {
            Value::String(text) => text.parse().ok(),
            Value::Number(number) => number.to_string().parse().ok(),
            _ => None,
        }
    };
    for list in ["limits", "requests"] {
        for (name, value) in tree::at(resources, &[list]).as_object().into_iter().flatten() {
            let field = format!("{field}.resources.{list}[{name}]");
            match quantity(value) {
                None => {
                    let detail = "quantities must match the regular expression \
                                  '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
                    errors.push(FieldError::invalid(field, value, detail));
                    continue;
                }
                Some(amount) if amount.is_negative() => {
                    errors.push(FieldError::invalid(field, value, "must be greater than or equal to 0"));
                    continue;
                }
                Some(amount) if list == "requests" => {
                    let limit = tree::at(resources, &["limits", name]);
                    if quantity(limit).is_some_and(|limit| amount.milli_value() > limit.milli_value()) {
                        let shown = limit.as_str().map_or_else(|| limit.to_string(), str::to_owned);
                        let detail = format!("must be less than or equal to {name} limit of {shown}");
                        let field = field.replace(&format!("[{name}]"), "");
                        errors.push(FieldError::invalid(field, value, &detail));
                    }
                }
                Some(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/a/nginx:green", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn failures_name_their_fields() {
        let mut errors = Vec::new();
        let container = json!({
            "name": "A", "image": "", "imagePullPolicy": "Always", "ports": [{ "containerPort": 70000, "hostPort": 70000, "protocol": "TCP" }, { "containerPort": 1, "hostPort": -1, "protocol": "TCP" }],
            "volumeMounts": [{ "name": "gone", "mountPath": "/x" }],
            "resources": { "limits": { "cpu": "1" }, "requests": { "cpu": "1500m" } },
            "livenessProbe": {},
        });
        validate(&container, "spec.containers[0]", &[], false, &mut errors);
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.containers[0].name",
                "spec.containers[0].image",
                "spec.containers[0].ports[0].containerPort",
                "spec.containers[0].ports[0].hostPort",
                "spec.containers[0].ports[1].hostPort",
                "spec.containers[0].volumeMounts[0].name",
                "spec.containers[0].resources.requests",
                "spec.containers[0].livenessProbe",
            ]
        );
    }
}
