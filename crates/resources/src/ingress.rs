//! Ingresses. Source: `networking/validation/validation.go`.

use std::net::IpAddr;

use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::name_problems;
use apiserver::strategy::{NameRule, Strategy};
use serde_json::{Value, json};

use crate::at::{At, in_range};
use crate::containers::port_name_problems;
use crate::network::local_reference;
use crate::pod_spec::address;

/// What serves plain and encrypted HTTP by names.
pub(crate) struct Ingresses;

const PATH_TYPES: [&str; 3] = ["Exact", "ImplementationSpecific", "Prefix"];
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const WRONG_INSIDE: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];
const WRONG_AT_THE_END: [&str; 2] = ["/..", "/."];
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must \
                        consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character \
                        (e.g. '*.example.com', regex used for validation is \
                        '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

impl Strategy for Ingresses {
    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = At::object(object).get("spec");
        let (rules, backend) = (spec.get("rules"), spec.get("defaultBackend"));
        if rules.is_empty() && !backend.is_set() {
            let detail = "either `defaultBackend` or `rules` must be specified";
            errors.push(FieldError::invalid("spec", rules.value, detail));
        }
        if backend.is_set() {
            check_backend(&backend, errors);
        }
        for rule in rules.items() {
            let host = rule.get("host");
            if host.text().parse::<IpAddr>().is_ok() {
                errors.push(host.invalid("must be a DNS name, not an IP address"));
            }
            check_host(&host, errors);
            let http = rule.get("http");
            if http.is_set() && http.get("paths").is_empty() {
                errors.push(http.get("paths").required(""));
            }
            http.each("paths").for_each(|path| check_path(&path, errors));
        }
        for tls in spec.each("tls") {
            tls.each("hosts").for_each(|host| check_host(&host, errors));
            tls.get("secretName").name_if_set(NameRule::Subdomain, errors);
        }
        if spec.has("ingressClassName") {
            spec.get("ingressClassName").name(NameRule::Subdomain, errors);
        }
    }

    fn validate_create(&self, object: &Value, errors: &mut FieldErrors) {
        let ingress = At::object(object);
        let old = ingress.down(&["metadata", "annotations", CLASS_ANNOTATION]);
        let class = ingress.down(&["spec", "ingressClassName"]);
        if old.is_set() && class.is_set() && old.value != class.value {
            let detail = "must match `ingressClassName` when both are specified";
            errors.push(FieldError::invalid(format!("annotations.{CLASS_ANNOTATION}"), old.value, detail));
        }
    }

    fn validate_status(&self, new: &Value, _: &Value, errors: &mut FieldErrors) {
        for point in At::object(new).down(&["status", "loadBalancer", "ingress"]).items() {
            let (ip, host) = (point.get("ip"), point.get("hostname"));
            if !ip.text().is_empty() {
                address(&ip, errors);
            }
            host.name_if_set(NameRule::Subdomain, errors);
            if host.text().parse::<IpAddr>().is_ok() {
                errors.push(host.invalid("must be a DNS name, not an IP address"));
            }
        }
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let old = At::object(object).down(&["metadata", "annotations", CLASS_ANNOTATION]);
        let what = format!(
            "annotation \"{CLASS_ANNOTATION}\" is deprecated, please use 'spec.ingressClassName' instead"
        );
        if old.is_set() { vec![what] } else { Vec::new() }
    }
}

/// A name, or all names below one.
fn check_host(host: &At<'_>, errors: &mut FieldErrors) {
    if !host.text().contains('*') {
        host.name_if_set(NameRule::Subdomain, errors);
        return;
    }
    let below = host.text().strip_prefix("*.");
    if below.is_none_or(|name| !name_problems(NameRule::Subdomain, name).is_empty()) {
        errors.push(host.invalid(WILDCARD));
    }
}

fn check_path(path: &At<'_>, errors: &mut FieldErrors) {
    let (kind, value) = (path.get("pathType"), path.get("path"));
    if !kind.is_set() {
        errors.push(kind.required("pathType must be specified"));
        return;
    }
    let text = value.text();
    match kind.text() {
        "Exact" | "Prefix" => {
            if !text.starts_with('/') {
                errors.push(value.invalid_text("must be an absolute path"));
            }
            for part in WRONG_INSIDE.iter().filter(|part| text.contains(**part)) {
                errors.push(value.invalid(&format!("must not contain '{part}'")));
            }
            for part in WRONG_AT_THE_END.iter().filter(|part| text.ends_with(**part)) {
                errors.push(value.invalid(&format!("cannot end with '{part}'")));
            }
        }
        "ImplementationSpecific" if !text.is_empty() && !text.starts_with('/') => {
            errors.push(value.invalid("must be an absolute path"));
        }
        "ImplementationSpecific" => {}
        _ => errors.push(kind.not_supported(&PATH_TYPES)),
    }
    check_backend(&path.get("backend"), errors);
}

fn check_backend(backend: &At<'_>, errors: &mut FieldErrors) {
    let whole = |detail: &str| FieldError::invalid(backend.path.clone(), &json!(""), detail);
    let (service, resource) = (backend.get("service"), backend.get("resource"));
    match (service.is_set(), resource.is_set()) {
        (true, true) => {
            errors.push(whole("cannot set both resource and service backends"));
            return;
        }
        (false, true) => return local_reference(&resource, errors),
        (false, false) => {
            errors.push(whole("resource or service backend is required"));
            return;
        }
        (true, false) => {}
    }
    service.get("name").named(NameRule::Label, errors);
    let (name, number) = (service.down(&["port", "name"]), service.down(&["port", "number"]));
    match (name.text().is_empty(), number.number()) {
        (true, 0) => errors.push(backend.required("port name or number is required")),
        (true, port) if !(1..=65535).contains(&port) => errors.push(number.invalid(&in_range(1, 65535))),
        (true, _) => {}
        (false, 0) => {
            port_name_problems(name.text()).into_iter().for_each(|detail| errors.push(name.invalid(detail)));
        }
        (false, _) => errors.push(whole("cannot set both port name & port number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::at::said;

    #[test]
    fn failures_are_upstreams() {
        let causes = |spec: Value| {
            let mut errors = Vec::new();
            Ingresses.validate(&json!({ "spec": spec }), &mut errors);
            said(&errors)
        };
        let path = |path: &str, kind: &str, service: Value| json!({ "rules": [{ "http": { "paths": [{ "path": path, "pathType": kind, "backend": { "service": service } }] } }] });
        let web = json!({ "name": "web", "port": { "number": 80 } });
        let rows = [
            (
                json!({}),
                vec!["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"],
            ),
            (path("/", "Prefix", web.clone()), vec![]),
            (
                path("/a/../b", "Exact", web.clone()),
                vec!["spec.rules[0].http.paths[0].path: Invalid value: \"/a/../b\": must not contain '/../'"],
            ),
            (
                path("/", "Any", web),
                vec![
                    "spec.rules[0].http.paths[0].pathType: Unsupported value: \"Any\": supported values: \"Exact\", \
                     \"ImplementationSpecific\", \"Prefix\"",
                ],
            ),
            (
                path("/", "Exact", json!({ "name": "web" })),
                vec!["spec.rules[0].http.paths[0].backend: Required value: port name or number is required"],
            ),
            (
                json!({ "rules": [{ "host": "1.2.3.4" }], "defaultBackend": {} }),
                vec![
                    "spec.defaultBackend: Invalid value: \"\": resource or service backend is required",
                    "spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
                ],
            ),
        ];
        for (spec, expected) in rows {
            assert_eq!(causes(spec.clone()), expected, "{spec}");
        }
    }
}
