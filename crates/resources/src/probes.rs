//! Probes and lifecycle handlers.

use apiserver::field::{FieldError, FieldErrors};
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::{At, POSITIVE};
use crate::containers::{PodFacts, port_or_name};

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
const HANDLERS: [&str; 5] = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
const HEADER: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used \
                      for validation is '[-A-Za-z0-9]+')";

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
pub(crate) fn validate(container: &At<'_>, pod: &PodFacts<'_>, errors: &mut FieldErrors) {
    for name in PROBES {
        let probe = container.get(name);
        if !probe.is_set() {
            continue;
        }
        validate_handler(&probe, pod, errors);
        for part in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            probe.get(part).not_negative(errors);
        }
        let grace = probe.get("terminationGracePeriodSeconds");
        if grace.is_set() && grace.number() <= 0 {
            errors.push(grace.invalid(POSITIVE));
        }
        let threshold = probe.get("successThreshold");
        if name == "readinessProbe" {
            if grace.is_set() {
                errors.push(grace.invalid("must not be set for readinessProbes"));
            }
        } else if threshold.is_set() && threshold.number() != 1 {
            errors.push(threshold.invalid("must be 1"));
        }
    }
}

/// What is wrong with a container's life cycle, if set.
pub(crate) fn validate_lifecycle(lifecycle: &At<'_>, pod: &PodFacts<'_>, errors: &mut FieldErrors) {
    for hook in ["postStart", "preStop"] {
        if lifecycle.has(hook) {
            validate_handler(&lifecycle.get(hook), pod, errors);
        }
    }
    let signal = lifecycle.get("stopSignal");
    if signal.is_set() && pod.system.is_empty() {
        errors.push(signal.forbidden("may not be set for containers with empty `spec.os.name`"));
    }
}

fn validate_handler(handler: &At<'_>, pod: &PodFacts<'_>, errors: &mut FieldErrors) {
    let mut given = HANDLERS.into_iter().map(|name| (name, handler.get(name))).filter(|(_, at)| at.is_set());
    let Some((name, action)) = given.next() else {
        errors.push(handler.required("must specify a handler type"));
        return;
    };
    for (_, second) in given {
        errors.push(second.forbidden("may not specify more than 1 handler type"));
    }
    match name {
        "exec" if action.get("command").is_empty() => errors.push(action.get("command").required("")),
        "httpGet" => {
            action.get("path").present("", errors);
            port_or_name(&action.get("port"), errors);
            action.get("scheme").one_of(&["HTTP", "HTTPS"], errors);
            for header in action.each("httpHeaders") {
                let name = header.get("name").text();
                let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
                if name.is_empty() || !name.bytes().all(fits) {
                    errors.push(FieldError::invalid(action.child("httpHeaders"), &json!(name), HEADER));
                }
            }
        }
        "tcpSocket" | "grpc" => port_or_name(&action.get("port"), errors),
        "sleep" => {
            let seconds = action.get("seconds").number();
            if let Some(grace) = pod.grace.filter(|grace| !(0..=*grace).contains(&seconds)) {
                let detail =
                    format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                errors.push(FieldError::invalid(action.path, &json!(seconds), &detail));
            }
        }
        _ => {}
    }
}
