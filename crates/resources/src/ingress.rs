//! Ingresses. Source: `networking/validation.go`.

use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::wrong_name;
use apiserver::strategy::{NameRule, Strategy};
use apiserver::tree;
use serde_json::Value;

pub(crate) struct Ingresses;

const PATH_TYPES: [&str; 3] = ["Exact", "ImplementationSpecific", "Prefix"];

impl Strategy for Ingresses {
    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = tree::at(object, &["spec"]);
        let rules = tree::items(spec, &["rules"]);
        let default = tree::at(spec, &["defaultBackend"]);
        if rules.is_empty() && default.is_null() {
            errors.push(FieldError::invalid(
                "spec",
                &Value::String("<omitted>".into()),
                "either `defaultBackend` or `rules` must be specified",
            ));
        }
        if !default.is_null() {
            check_backend("spec.defaultBackend", default, errors);
        }
        for (index, rule) in rules.iter().enumerate() {
            let host = tree::text(rule, &["host"]);
            let plain = host.strip_prefix("*.").unwrap_or(host);
            if !host.is_empty()
                && let Some(detail) = wrong_name(NameRule::Subdomain, plain)
            {
                errors.push(FieldError::invalid(format!("spec.rules[{index}].host"), &host.into(), &detail));
            }
            for (at, path) in tree::items(rule, &["http", "paths"]).iter().enumerate() {
                check_path(&format!("spec.rules[{index}].http.paths[{at}]"), path, errors);
            }
        }
    }
}

fn check_path(field: &str, path: &Value, errors: &mut FieldErrors) {
    let kind = tree::at(path, &["pathType"]);
    match kind.as_str() {
        None => errors.push(FieldError::required(format!("{field}.pathType"), "pathType must be specified")),
        Some(text) if !PATH_TYPES.contains(&text) => {
            errors.push(FieldError::not_supported(format!("{field}.pathType"), kind, &PATH_TYPES));
        }
        Some(text) => {
            let value = tree::at(path, &["path"]);
            let needed = text != "ImplementationSpecific" || !value.is_null();
            if needed && !value.as_str().unwrap_or_default().starts_with('/') {
                errors.push(FieldError::invalid(format!("{field}.path"), value, "must be an absolute path"));
            }
        }
    }
    check_backend(&format!("{field}.backend"), tree::at(path, &["backend"]), errors);
}

fn check_backend(field: &str, backend: &Value, errors: &mut FieldErrors) {
    let service = tree::at(backend, &["service"]);
    if !tree::at(backend, &["resource"]).is_null() {
        if !service.is_null() {
            let detail = "cannot set both resource and service backends";
            errors.push(FieldError::invalid(field, &Value::String(String::new()), detail));
        }
        return;
    }
    let name = tree::text(service, &["name"]);
    if name.is_empty() {
        errors.push(FieldError::required(format!("{field}.service.name"), ""));
    } else if let Some(detail) = wrong_name(NameRule::Label1035, name) {
        errors.push(FieldError::invalid(format!("{field}.service.name"), &name.into(), &detail));
    }
    let (port, number) = (tree::text(service, &["port", "name"]), tree::at(service, &["port", "number"]));
    match (port.is_empty(), number.as_i64()) {
        (true, None) => {
            let detail = "port name or number is required";
            errors.push(FieldError::required(format!("{field}.service.port"), detail));
        }
        (true, Some(number)) if !(1..=65535).contains(&number) => {
            let detail = "must be between 1 and 65535, inclusive";
            let field = format!("{field}.service.port.number");
            errors.push(FieldError::invalid(field, &number.into(), detail));
        }
        (false, Some(_)) => {
            let detail = "cannot set both port name & port number";
            errors.push(FieldError::invalid(format!("{field}.service.port"), &port.into(), detail));
        }
        _ => {}
    }
}
