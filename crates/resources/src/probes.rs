//! Probes and lifecycle handlers.

use apiserver::field::{FieldError, FieldErrors};
use apiserver::tree;
use serde_json::Value;

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
const HANDLERS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "grpc"];

/// Defaults of a container's probes.
pub(crate) fn default(container: &mut Value) {
    for name in PROBES {
        let Some(probe) = tree::members(container).get_mut(name).filter(|probe| probe.is_object()) else {
            continue;
        };
        for (field, value) in
            [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
        {
            let slot = tree::member(probe, field);
            // Zero counts as unset, as upstream's fields are no pointers.
            if slot.is_null() || *slot == 0 {
                *slot = value.into();
            }
        }
        default_http(probe);
    }
    if let Some(lifecycle) = tree::members(container).get_mut("lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(handler) = tree::members(lifecycle).get_mut(hook) {
                default_http(handler);
            }
        }
    }
}

fn default_http(handler: &mut Value) {
    if let Some(get) = tree::members(handler).get_mut("httpGet").filter(|get| get.is_object()) {
        tree::set_default(get, "path", "/");
        tree::set_default(get, "scheme", "HTTP");
    }
}

/// What is wrong with a container's probes.
pub(crate) fn validate(container: &Value, field: &str, errors: &mut FieldErrors) {
    for name in PROBES {
        let probe = tree::at(container, &[name]);
        if probe.is_null() {
            continue;
        }
        let field = format!("{field}.{name}");
        validate_handler(probe, &field, errors);
        for part in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            let value = tree::at(probe, &[part]);
            if value.as_i64().is_some_and(|number| number < 0) {
                let detail = "must be greater than or equal to 0";
                errors.push(FieldError::invalid(format!("{field}.{part}"), value, detail));
            }
        }
        let threshold = tree::at(probe, &["successThreshold"]);
        if name != "readinessProbe" && threshold.as_i64().is_some_and(|number| number != 1) {
            errors.push(FieldError::invalid(format!("{field}.successThreshold"), threshold, "must be 1"));
        }
    }
}

fn validate_handler(handler: &Value, field: &str, errors: &mut FieldErrors) {
    let given: Vec<&str> =
        HANDLERS.into_iter().filter(|name| !tree::at(handler, &[name]).is_null()).collect();
    match given.as_slice() {
        [] => errors.push(FieldError::required(field, "must specify a handler type")),
        [_] => {}
        [_, second, ..] => errors.push(FieldError::forbidden(
            format!("{field}.{second}"),
            "may not specify more than 1 handler type",
        )),
    }
    if given.contains(&"exec") && tree::items(handler, &["exec", "command"]).is_empty() {
        errors.push(FieldError::required(format!("{field}.exec.command"), ""));
    }
    for name in ["httpGet", "tcpSocket"] {
        if given.contains(&name) {
            let port = tree::at(handler, &[name, "port"]);
            let fits = match port {
                Value::Number(number) => number.as_i64().is_some_and(|port| (1..=65535).contains(&port)),
                Value::String(text) => !text.is_empty() && text.len() <= 15,
                _ => false,
            };
            if !fits {
                let detail = "must be between 1 and 65535, inclusive";
                errors.push(FieldError::invalid(format!("{field}.{name}.port"), port, detail));
            }
        }
    }
}
