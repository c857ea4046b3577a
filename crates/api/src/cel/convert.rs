//! Conversions between types, and values as text.

use jiff::Timestamp;

use super::eval::no_overload;
use super::operators::length;
use super::{Budget, CelError, Val};

type Result<T> = std::result::Result<T, CelError>;

const CONVERSIONS: [&str; 8] = ["int", "uint", "double", "bool", "bytes", "string", "duration", "timestamp"];

/// `int(x)`, `string(x)`, …; `None`: the name is no type's.
pub(super) fn convert<'v>(name: &str, value: &Val<'v>, budget: &mut Budget) -> Result<Option<Val<'v>>> {
    match name {
        "dyn" => return Ok(Some(value.clone())),
        "type" => return Ok(Some(Val::Type(value.type_name()))),
        name if !CONVERSIONS.contains(&name) => return Ok(None),
        _ => {}
    }
    budget.spend(length(value) as u64 / 10)?;
    let wrong = || no_overload(name, std::slice::from_ref(value));
    let range = || CelError::fault("range error converting to integer");
    Ok(Some(match (name, value) {
        ("int", Val::Int(_)) | ("uint", Val::UInt(_)) | ("double", Val::Double(_)) => value.clone(),
        ("bool", Val::Bool(_)) | ("bytes", Val::Bytes(_)) => value.clone(),
        ("int", Val::UInt(value)) => Val::Int(i64::try_from(*value).map_err(|_| range())?),
        ("int", Val::Double(value)) if value.abs() < 9.2e18 => Val::Int(*value as i64),
        ("int", Val::Double(_)) => return Err(range()),
        ("int", Val::Text(text)) => Val::Int(text.parse().map_err(|_| type_error("int"))?),
        ("int", Val::Time(time)) => Val::Int(time.as_second()),
        ("int", Val::Duration(nanoseconds)) => Val::Int(*nanoseconds),
        ("uint", Val::Int(value)) => Val::UInt(u64::try_from(*value).map_err(|_| range())?),
        ("uint", Val::Double(value)) if (0.0..1.8e19).contains(value) => Val::UInt(*value as u64),
        ("uint", Val::Double(_)) => return Err(range()),
        ("uint", Val::Text(text)) => Val::UInt(text.parse().map_err(|_| type_error("uint"))?),
        ("double", Val::Int(value)) => Val::Double(*value as f64),
        ("double", Val::UInt(value)) => Val::Double(*value as f64),
        ("double", Val::Text(text)) => Val::Double(text.parse().map_err(|_| type_error("double"))?),
        ("bool", Val::Text(text)) => Val::Bool(match &**text {
            "true" | "True" | "TRUE" | "t" | "1" => true,
            "false" | "False" | "FALSE" | "f" | "0" => false,
            _ => return Err(type_error("bool")),
        }),
        ("bytes", Val::Text(text)) => Val::Bytes(text.as_bytes().into()),
        ("string", Val::Text(_)) => value.clone(),
        ("string", value) => Val::Text(text_of(value, budget)?.ok_or_else(wrong)?.into()),
        ("duration", Val::Duration(_)) | ("timestamp", Val::Time(_)) => value.clone(),
        ("duration", Val::Text(text)) => Val::Duration(
            base::go_duration::parse(text).ok_or_else(|| type_error("google.protobuf.Duration"))?,
        ),
        ("timestamp", Val::Text(text)) => {
            Val::Time(text.parse().map_err(|_| type_error("google.protobuf.Timestamp"))?)
        }
        ("timestamp", Val::Int(seconds)) => {
            Val::Time(Timestamp::from_second(*seconds).map_err(|_| type_error("google.protobuf.Timestamp"))?)
        }
        ("int" | "uint" | "double" | "bool" | "bytes" | "duration" | "timestamp", _) => return Err(wrong()),
        _ => return Ok(None),
    }))
}

fn type_error(wanted: &str) -> CelError {
    CelError::fault(format!("type conversion error from 'string' to '{wanted}'"))
}

/// A value as text, where it has one.
pub(super) fn text_of(value: &Val<'_>, budget: &mut Budget) -> Result<Option<String>> {
    budget.spend(length(value) as u64 / 10)?;
    Ok(Some(match value {
        Val::Text(text) | Val::Url(text) => text.to_string(),
        Val::Bool(value) => value.to_string(),
        Val::Int(value) => value.to_string(),
        Val::UInt(value) => value.to_string(),
        Val::Double(value) => double_text(*value),
        Val::Bytes(bytes) => return Ok(std::str::from_utf8(bytes).ok().map(str::to_owned)),
        Val::Time(time) => time.to_string(),
        Val::Duration(nanoseconds) => duration_text(*nanoseconds),
        Val::Quantity(quantity) => quantity.to_string(),
        Val::Ip(address) => address.to_string(),
        Val::Cidr(address, length) => format!("{address}/{length}"),
        Val::Type(name) => (*name).to_owned(),
        Val::Semver(version) => version.to_string(),
        _ => return Ok(None),
    }))
}

/// A double as Go's `%g` writes it: with an exponent where it is large or small. Source: `strconv.FormatFloat`.
fn double_text(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    match scientific.split_once('e').map(|(digits, exponent)| (digits, exponent.parse::<i32>())) {
        Some((digits, Ok(exponent))) if !(-4..6).contains(&exponent) => format!("{digits}e{exponent:+03}"),
        _ => value.to_string(),
    }
}

/// Seconds with their fraction, as protobuf writes durations: `1.5s`.
fn duration_text(nanoseconds: i64) -> String {
    let (seconds, rest) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    if rest == 0 {
        return format!("{seconds}s");
    }
    let sign = if nanoseconds < 0 && seconds == 0 { "-" } else { "" };
    let fraction = format!("{:09}", rest.unsigned_abs());
    format!("{sign}{seconds}.{}s", fraction.trim_end_matches('0'))
}
