//! Validation failures by field, in upstream's words. Source: `k8s.io/apimachinery/pkg/util/validation/field`.

use std::borrow::Cow;
use std::collections::HashSet;

use api::status::Cause;
use api::{Reason, Status};
use serde_json::Value;

/// One failure of one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Upstream's machine-readable reason.
    pub reason: Cow<'static, str>,
    /// The field's path.
    pub field: String,
    /// Everything after `path: `.
    pub message: String,
}

/// The failures of one object, in the order found.
pub type FieldErrors = Vec<FieldError>;

/// A value as messages show it: strings quoted, the rest as JSON.
fn shown(value: &Value) -> String {
    value.to_string()
}

impl FieldError {
    fn new(reason: &'static str, field: impl Into<String>, message: String) -> Self {
        Self { reason: reason.into(), field: field.into(), message }
    }

    /// `Required value: detail`
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let message =
            if detail.is_empty() { "Required value".into() } else { format!("Required value: {detail}") };
        Self::new("FieldValueRequired", field, message)
    }

    /// `Invalid value: value: detail`
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::new("FieldValueInvalid", field, format!("Invalid value: {}: {detail}", shown(value)))
    }

    /// `Invalid value: detail`, where upstream leaves the value out.
    pub fn invalid_unshown(field: impl Into<String>, detail: &str) -> Self {
        Self::new("FieldValueInvalid", field, format!("Invalid value: {detail}"))
    }

    /// `Too many: n: must have at most m items`
    pub fn too_many(field: impl Into<String>, count: usize, most: usize) -> Self {
        let items = if most == 1 { "item" } else { "items" };
        let message = format!("Too many: {count}: must have at most {most} {items}");
        Self::new("FieldValueTooMany", field, message)
    }

    /// `Unsupported value: value: supported values: …`, in the order given.
    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let supported: Vec<String> = supported.iter().map(|text| format!("\"{text}\"")).collect();
        let message =
            format!("Unsupported value: {}: supported values: {}", shown(value), supported.join(", "));
        Self::new("FieldValueNotSupported", field, message)
    }

    /// `Duplicate value: value`
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::new("FieldValueDuplicate", field, format!("Duplicate value: {}", shown(value)))
    }

    /// `Forbidden: detail`
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::new("FieldValueForbidden", field, format!("Forbidden: {detail}"))
    }

    /// `Too long: may not be more than n bytes`
    pub fn too_long(field: impl Into<String>, bytes_max: usize) -> Self {
        Self::new("FieldValueTooLong", field, format!("Too long: may not be more than {bytes_max} bytes"))
    }

    /// `Internal error: detail`: it could not be found out whether the field is right.
    pub fn internal(field: impl Into<String>, detail: &str) -> Self {
        Self::new("InternalError", field, format!("Internal error: {detail}"))
    }

    /// `Not found: value`
    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self::new("FieldValueNotFound", field, format!("Not found: {}", shown(value)))
    }
}

impl From<Cause> for FieldError {
    fn from(cause: Cause) -> Self {
        Self { reason: cause.reason.into(), field: cause.field, message: cause.message }
    }
}

/// Failures in one sentence: `path: message`, several in brackets.
pub fn joined<'e>(errors: impl IntoIterator<Item = &'e FieldError>) -> String {
    let lines: Vec<String> =
        errors.into_iter().map(|error| format!("{}: {}", error.field, error.message)).collect();
    if let [one] = lines.as_slice() { one.clone() } else { format!("[{}]", lines.join(", ")) }
}

/// The 422 that failures make; `Ok` if there are none.
pub fn check(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Result<(), Status> {
    if errors.is_empty() {
        return Ok(());
    }
    let mut seen = HashSet::new();
    let errors: Vec<&FieldError> =
        errors.iter().filter(|error| seen.insert((&error.field, &error.message))).collect();
    let what = joined(errors.iter().copied());
    let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
    let mut status = Status::new(Reason::Invalid, format!("{qualified} \"{name}\" is invalid: {what}"))
        .about(group, kind, name);
    status.details.causes = errors
        .iter()
        .map(|error| Cause {
            reason: error.reason.to_string(),
            message: error.message.clone(),
            field: error.field.clone(),
        })
        .collect();
    Err(status)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_are_upstreams() {
        let errors = [
            FieldError::required("spec.a", ""),
            FieldError::invalid("spec.b", &json!("x"), "field is immutable"),
            FieldError::not_supported("spec.c", &json!("x"), &["Z", "Y"]),
        ];
        let status = check("apps", "Deployment", "web", &errors).unwrap_err();
        assert_eq!(
            status.message,
            "Deployment.apps \"web\" is invalid: [spec.a: Required value, spec.b: Invalid value: \"x\": field is \
             immutable, spec.c: Unsupported value: \"x\": supported values: \"Z\", \"Y\"]"
        );
        assert_eq!(status.details.causes[1].field, "spec.b");
        assert!(check("", "Pod", "a", &[]).is_ok());
    }
}
