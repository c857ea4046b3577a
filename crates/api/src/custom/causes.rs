//! Failures of fields, in upstream's words. Source: `k8s.io/apimachinery/pkg/util/validation/field`.

use serde_json::Value;

use crate::status::Cause;

fn cause(reason: &str, field: &str, message: String) -> Cause {
    Cause { reason: reason.into(), message, field: field.into() }
}

pub(super) fn invalid(field: &str, value: &Value, detail: impl AsRef<str>) -> Cause {
    cause("FieldValueInvalid", field, format!("Invalid value: {value}: {}", detail.as_ref()))
}

/// Of a value that upstream does not show as JSON.
pub(super) fn invalid_shown(field: &str, shown: &str, detail: impl AsRef<str>) -> Cause {
    cause("FieldValueInvalid", field, format!("Invalid value: {shown}: {}", detail.as_ref()))
}

/// Of a value that is too large to be told.
pub(super) fn invalid_one(field: &str, detail: impl AsRef<str>) -> Cause {
    cause("FieldValueInvalid", field, format!("Invalid value: {}", detail.as_ref()))
}

pub(super) fn type_invalid(field: &str, value: &Value, detail: impl AsRef<str>) -> Cause {
    cause("FieldValueTypeInvalid", field, format!("Invalid value: {value}: {}", detail.as_ref()))
}

pub(super) fn required(field: &str, detail: &str) -> Cause {
    let message =
        if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
    cause("FieldValueRequired", field, message)
}

pub(super) fn forbidden(field: &str, detail: impl AsRef<str>) -> Cause {
    cause("FieldValueForbidden", field, format!("Forbidden: {}", detail.as_ref()))
}

pub(super) fn duplicate(field: &str, value: &Value) -> Cause {
    cause("FieldValueDuplicate", field, format!("Duplicate value: {value}"))
}

/// Of a value that is too large to be told.
pub(super) fn duplicate_one(field: &str) -> Cause {
    cause("FieldValueDuplicate", field, "Duplicate value".to_owned())
}

pub(super) fn not_supported(field: &str, value: &Value, supported: &[String]) -> Cause {
    let supported: Vec<String> = supported.iter().map(|text| format!("{text:?}")).collect();
    let message = format!("Unsupported value: {value}: supported values: {}", supported.join(", "));
    cause("FieldValueNotSupported", field, message)
}

pub(super) fn too_long(field: &str, max: u64) -> Cause {
    cause("FieldValueTooLong", field, format!("Too long: may not be more than {max} bytes"))
}

pub(super) fn too_many(field: &str, actual: usize, max: u64) -> Cause {
    cause("FieldValueTooMany", field, format!("Too many: {actual}: must have at most {max} items"))
}
