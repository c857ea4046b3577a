//! Leaves: what each accepts, and the form in which it is kept.

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::{Number, Value};

use crate::quantity::Quantity;
use crate::schema::Scalar;

/// A leaf as it was found.
pub(super) enum Found<'a> {
    Bool(bool),
    Number(Number),
    String(&'a str),
}

/// Why a leaf does not fit.
pub(super) enum Wrong {
    /// It is of another type.
    Type,
    /// It is of the right type and malformed; the sentence says how.
    Value(String),
}

impl Found<'_> {
    /// As Go's messages call it.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Bool(_) => "bool".to_owned(),
            Self::Number(number) if number.is_f64() => format!("number {number}"),
            Self::Number(_) => "number".to_owned(),
            Self::String(_) => "string".to_owned(),
        }
    }
}

/// The value as it is kept.
pub(super) fn take(wanted: Scalar, found: &Found<'_>) -> Result<Value, Wrong> {
    match (wanted, found) {
        (Scalar::String, Found::String(text)) => Ok(Value::from(*text)),
        (Scalar::Bool, Found::Bool(value)) => Ok(Value::Bool(*value)),
        (Scalar::Int32 | Scalar::IntOrString, Found::Number(number)) => {
            let narrow = number.as_i64().and_then(|value| i32::try_from(value).ok());
            narrow.map(Value::from).ok_or(Wrong::Type)
        }
        (Scalar::IntOrString, Found::String(text)) => Ok(Value::from(*text)),
        (Scalar::Int64, Found::Number(number)) => number.as_i64().map(Value::from).ok_or(Wrong::Type),
        (Scalar::Double, Found::Number(number)) => Ok(Value::Number(number.clone())),
        (Scalar::Bytes, Found::String(text)) => bytes(text),
        (Scalar::Quantity, Found::String(text)) => quantity(text),
        (Scalar::Quantity, Found::Number(number)) => quantity(&number.to_string()),
        (Scalar::Time, Found::String(text)) => time(text, "%Y-%m-%dT%H:%M:%SZ"),
        (Scalar::MicroTime, Found::String(text)) => time(text, "%Y-%m-%dT%H:%M:%S.%6fZ"),
        _ => Err(Wrong::Type),
    }
}

/// A number as Go writes it again: whole ones without a point, so that they can be read as integers.
pub(super) fn number(value: f64) -> Option<Number> {
    let whole = value as i64;
    // Neither side of the range is a whole number that a cast saturates to.
    let is_whole = whole as f64 == value && whole != i64::MAX && whole != i64::MIN;
    if is_whole { Some(whole.into()) } else { Number::from_f64(value) }
}

/// Base64 as Go takes it: line ends do not count.
fn bytes(text: &str) -> Result<Value, Wrong> {
    let plain: String = text.chars().filter(|letter| !matches!(letter, '\r' | '\n')).collect();
    match base64::engine::general_purpose::STANDARD.decode(&plain) {
        Ok(_) => Ok(Value::from(plain)),
        Err(base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _)) => {
            Err(Wrong::Value(format!("illegal base64 data at input byte {at}")))
        }
        Err(_) => Err(Wrong::Value(format!("illegal base64 data at input byte {}", plain.len()))),
    }
}

fn quantity(text: &str) -> Result<Value, Wrong> {
    let quantity: Quantity = text.trim().parse().map_err(|error| Wrong::Value(format!("{error}")))?;
    Ok(Value::from(quantity.to_string()))
}

fn time(text: &str, format: &str) -> Result<Value, Wrong> {
    let time: Timestamp = text.parse().map_err(|error| {
        Wrong::Value(format!(
            "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": {error} (expected RFC 3339)"
        ))
    })?;
    Ok(Value::from(time.strftime(format).to_string()))
}
