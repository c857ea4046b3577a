//! Failures of fields, in upstream's words. Source: `k8s.io/apimachinery/pkg/util/validation/field`.

use std::fmt;

use serde_json::Value;

use crate::status::Cause;

/// How many failures are told.
pub(super) const CAUSES_MAX: usize = 100;
/// How long they may be together, after which no more are gathered.
const CAUSES_BYTES_MAX: usize = 1 << 20;

/// Failures, no more than are told.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    causes: Vec<Cause>,
    bytes: usize,
}

impl Gathered {
    /// Whether no more are gathered, so that whoever looks for them may stop.
    pub(super) fn is_full(&self) -> bool {
        self.causes.len() >= CAUSES_MAX || self.bytes >= CAUSES_BYTES_MAX
    }

    pub(super) fn push(&mut self, cause: Cause) {
        if !self.is_full() {
            self.bytes += cause.field.len() + cause.message.len();
            self.causes.push(cause);
        }
    }

    /// All of them in order.
    pub(super) fn told(mut self) -> Vec<Cause> {
        self.causes.sort_by(|one, other| (&one.field, &one.message).cmp(&(&other.field, &other.message)));
        self.causes.dedup();
        self.causes
    }
}

/// The way to a part of a schema. It becomes a text only where it is told: names may be as long as a request.
#[derive(Debug)]
pub(super) struct Trail<'p> {
    up: Option<&'p Trail<'p>>,
    step: Step<'p>,
}

/// A step on it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step<'p> {
    /// As it is written.
    Plain(&'p str),
    Property(&'p str),
    Rule(usize),
}

pub(super) const ITEMS: Step<'static> = Step::Plain("items");
pub(super) const ADDITIONAL: Step<'static> = Step::Plain("additionalProperties");

impl<'p> Trail<'p> {
    pub(super) fn root(path: &'p str) -> Self {
        Self { up: None, step: Step::Plain(path) }
    }

    pub(super) fn is_root(&self) -> bool {
        self.up.is_none()
    }

    pub(super) fn below(&'p self, step: Step<'p>) -> Self {
        Self { up: Some(self), step }
    }
}

impl fmt::Display for Trail<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(up) = self.up {
            write!(out, "{up}.")?;
        }
        match self.step {
            Step::Plain(name) => out.write_str(name),
            Step::Property(name) => write!(out, "properties[{name}]"),
            Step::Rule(index) => write!(out, "x-kubernetes-validations[{index}]"),
        }
    }
}

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

pub(super) fn internal(field: &str, detail: &str) -> Cause {
    cause("InternalError", field, format!("Internal error: {detail}"))
}

pub(super) fn too_long(field: &str, max: u64) -> Cause {
    cause("FieldValueTooLong", field, format!("Too long: may not be more than {max} bytes"))
}

pub(super) fn too_many(field: &str, actual: usize, max: u64) -> Cause {
    cause("FieldValueTooMany", field, format!("Too many: {actual}: must have at most {max} items"))
}
