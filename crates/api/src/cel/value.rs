//! Values. Objects and lists of JSON stay where they are and are read as they are asked for, by their schema where they
//! have one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::semver::Semver;
use super::{Budget, CelError, Step};
use crate::custom::{Props, duration_of};
use crate::quantity::Quantity;

/// A value.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "CEL's and Kubernetes' types")]
pub enum Val<'v> {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Double(f64),
    Text(Arc<str>),
    Bytes(Arc<[u8]>),
    List(Arc<Vec<Val<'v>>>),
    Map(Arc<BTreeMap<Key, Val<'v>>>),
    /// An object or a list, and what it looks like.
    Json(&'v Value, Option<&'v Props>),
    /// Nanoseconds.
    Duration(i64),
    Time(Timestamp),
    Type(&'static str),
    Optional(Option<Arc<Val<'v>>>),
    Quantity(Quantity),
    Url(Arc<str>),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    /// A named format (`dns1123Label`).
    Format(Arc<str>),
    Authz(Step<'v>),
    /// An object that an expression made, by the name of its type.
    Made(Arc<str>, Arc<BTreeMap<Arc<str>, Val<'v>>>),
    Semver(Arc<Semver>),
}

/// The key of a map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "CEL's types")]
pub enum Key {
    Bool(bool),
    Int(i64),
    Text(Arc<str>),
}

impl Key {
    pub(super) fn of(value: &Val<'_>) -> Result<Self, CelError> {
        match value {
            Val::Bool(value) => Ok(Self::Bool(*value)),
            Val::Int(value) => Ok(Self::Int(*value)),
            Val::UInt(value) => {
                i64::try_from(*value).map(Self::Int).map_err(|_| CelError::fault("unsupported key type"))
            }
            Val::Text(text) => Ok(Self::Text(text.clone())),
            _ => Err(CelError::fault("unsupported key type")),
        }
    }

    pub(super) fn value<'v>(&self) -> Val<'v> {
        match self {
            Self::Bool(value) => Val::Bool(*value),
            Self::Int(value) => Val::Int(*value),
            Self::Text(text) => Val::Text(text.clone()),
        }
    }
}

impl<'v> Val<'v> {
    /// A text.
    pub fn text(text: &str) -> Self {
        Self::Text(text.into())
    }

    pub(super) fn list(items: Vec<Self>) -> Self {
        Self::List(Arc::new(items))
    }

    pub(super) fn some(value: Self) -> Self {
        Self::Optional(Some(Arc::new(value)))
    }

    /// A JSON value, read as its schema says: `number` is a double, a `date-time` a time stamp.
    pub fn of_json(value: &'v Value, schema: Option<&'v Props>) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(number) => match (number.as_i64(), schema.map(|schema| schema.ty.as_str())) {
                (Some(whole), None | Some("integer" | "")) => Self::Int(whole),
                (None, Some("integer")) => Self::Int(number.as_f64().unwrap_or(0.0) as i64),
                _ => Self::Double(number.as_f64().unwrap_or(0.0)),
            },
            Value::String(text) => Self::of_text(text, schema),
            Value::Array(_) | Value::Object(_) => Self::Json(value, schema),
        }
    }

    fn of_text(text: &str, schema: Option<&Props>) -> Self {
        let format = schema.map_or("", |schema| schema.format.as_str());
        let special = match format {
            "date-time" | "datetime" => text.parse().ok().map(Self::Time),
            "date" => format!("{text}T00:00:00Z").parse().ok().map(Self::Time),
            "duration" => duration_of(text).map(Self::Duration),
            "byte" => {
                use base64::Engine as _;
                let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok();
                bytes.map(|bytes| Self::Bytes(bytes.into()))
            }
            _ => None,
        };
        special.unwrap_or_else(|| Self::text(text))
    }

    /// The value as JSON: what an expression made for an object. Others than JSON's own types are as `string()` shows
    /// them; the failure names what has no such form.
    pub fn to_json(&self) -> Result<Value, String> {
        Ok(match self {
            Self::Null | Self::Optional(None) => Value::Null,
            Self::Optional(Some(inner)) => inner.to_json()?,
            Self::Bool(value) => (*value).into(),
            Self::Int(value) => (*value).into(),
            Self::UInt(value) => (*value).into(),
            Self::Double(value) if value.fract() == 0.0 && value.abs() < 9.0e15 => (*value as i64).into(),
            Self::Double(value) => (*value).into(),
            Self::Json(value, _) => (*value).clone(),
            Self::List(items) => items.iter().map(Self::to_json).collect::<Result<Vec<_>, _>>()?.into(),
            Self::Map(entries) => {
                let entry = |(key, value): (&Key, &Self)| match key {
                    Key::Text(name) => Ok((name.to_string(), value.to_json()?)),
                    other => Err(format!("map key {other:?} is not a string")),
                };
                Value::Object(entries.iter().map(entry).collect::<Result<_, String>>()?)
            }
            Self::Made(_, fields) => {
                let entry = |(name, value): (&Arc<str>, &Self)| Ok((name.to_string(), value.to_json()?));
                Value::Object(fields.iter().map(entry).collect::<Result<_, String>>()?)
            }
            Self::Bytes(bytes) => {
                use base64::Engine as _;
                base64::engine::general_purpose::STANDARD.encode(bytes).into()
            }
            other => match super::convert::text_of(other) {
                Some(text) => text.into(),
                None => return Err(format!("unable to convert to JSON: {}", other.type_name())),
            },
        })
    }

    /// Whether the objects that an expression made are named by where they stand: `Object.spec` under `spec` of an
    /// `Object`. Source: `ObjectVal.CheckTypeNamesMatchFieldPathNames`.
    pub fn check_made(&self, path: &str) -> Result<(), String> {
        match self {
            Self::Made(name, fields) => {
                if **name != *path {
                    return Err(format!(
                        "unexpected type name {name:?}, expected {path:?}, which matches field name path from root \
                         Object type"
                    ));
                }
                fields.iter().try_for_each(|(name, value)| value.check_made(&format!("{path}.{name}")))
            }
            Self::List(items) => items.iter().try_for_each(|item| item.check_made(path)),
            Self::Map(entries) => entries.values().try_for_each(|value| value.check_made(path)),
            _ => Ok(()),
        }
    }

    /// The name of its type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::UInt(_) => "uint",
            Self::Double(_) => "double",
            Self::Text(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) | Self::Json(Value::Array(_), _) => "list",
            Self::Map(_) | Self::Json(..) => "map",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Time(_) => "google.protobuf.Timestamp",
            Self::Type(_) => "type",
            Self::Optional(_) => "optional_type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Url(_) => "kubernetes.URL",
            Self::Ip(_) => "net.IP",
            Self::Cidr(..) => "net.CIDR",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Authz(step) => step.type_name(),
            Self::Made(..) => "object",
            Self::Semver(_) => "kubernetes.Semver",
        }
    }

    /// Its items, if it is a list.
    pub(super) fn items(&self, budget: &mut Budget) -> Result<Option<Arc<Vec<Val<'v>>>>, CelError> {
        Ok(match self {
            Self::List(items) => Some(items.clone()),
            Self::Json(Value::Array(items), schema) => {
                budget.spend(items.len() as u64)?;
                let item = schema.and_then(Props::item);
                Some(Arc::new(items.iter().map(|value| Self::of_json(value, item)).collect()))
            }
            _ => None,
        })
    }

    /// Its keys, if it is a map or an object.
    pub(super) fn keys(&self, budget: &mut Budget) -> Result<Option<Vec<Val<'v>>>, CelError> {
        Ok(match self {
            Self::Map(entries) => {
                budget.spend(entries.len() as u64)?;
                Some(entries.keys().map(Key::value).collect())
            }
            Self::Json(Value::Object(fields), _) => {
                budget.spend(fields.len() as u64)?;
                Some(fields.keys().map(|name| Self::text(name)).collect())
            }
            _ => None,
        })
    }

    /// The value of a field; `None` if it is absent. `name` is as the expression spells it.
    pub(super) fn field(&self, name: &str) -> Result<Option<Val<'v>>, CelError> {
        match self {
            Self::Map(entries) => Ok(entries.get(&Key::Text(name.into())).cloned()),
            Self::Json(Value::Object(fields), schema) => {
                let plain;
                let declared = schema.is_some_and(|schema| !schema.properties.is_empty());
                let name = if declared {
                    plain = unescape(name);
                    plain.as_str()
                } else {
                    name
                };
                let below = schema.and_then(|schema| schema.child(name));
                Ok(fields.get(name).map(|value| Self::of_json(value, below)))
            }
            Self::Authz(step) => Ok(step.field(name)),
            Self::Made(_, fields) => Ok(fields.get(name).cloned()),
            Self::Optional(None) => Ok(Some(Self::Optional(None))),
            Self::Optional(Some(inner)) => {
                Ok(Some(inner.field(name)?.map_or(Self::Optional(None), Self::some)))
            }
            other => {
                Err(CelError::fault(format!("type '{}' does not support field selection", other.type_name())))
            }
        }
    }

    /// The value under an index or a key; `None` if there is none.
    pub(super) fn at(&self, index: &Val<'v>) -> Result<Option<Val<'v>>, CelError> {
        let place = || match index {
            Self::Int(at) => Ok(usize::try_from(*at).ok()),
            Self::UInt(at) => Ok(usize::try_from(*at).ok()),
            Self::Double(at) if at.fract() == 0.0 && *at >= 0.0 => Ok(Some(*at as usize)),
            other => Err(CelError::fault(format!("unsupported index type '{}' in list", other.type_name()))),
        };
        match self {
            Self::List(items) => Ok(place()?.and_then(|at| items.get(at).cloned())),
            Self::Json(Value::Array(items), schema) => {
                let item = schema.and_then(Props::item);
                Ok(place()?.and_then(|at| items.get(at)).map(|value| Self::of_json(value, item)))
            }
            Self::Map(entries) => Ok(entries.get(&Key::of(index)?).cloned()),
            Self::Json(Value::Object(fields), schema) => match index {
                Self::Text(name) => {
                    let below = schema.and_then(|schema| schema.child(name));
                    Ok(fields.get(&**name).map(|value| Self::of_json(value, below)))
                }
                _ => Ok(None),
            },
            Self::Optional(None) => Ok(Some(Self::Optional(None))),
            Self::Optional(Some(inner)) => {
                Ok(Some(inner.at(index)?.map_or(Self::Optional(None), Self::some)))
            }
            other => Err(CelError::fault(format!("no such overload: {}[]", other.type_name()))),
        }
    }
}

/// A property's name from the identifier that stands for it. Source: `apiserver/pkg/cel.Unescape`.
pub(super) fn unescape(identifier: &str) -> String {
    if !identifier.contains("__") {
        return identifier.to_owned();
    }
    if let Some(keyword) = identifier.strip_prefix("__").and_then(|rest| rest.strip_suffix("__"))
        && keyword.bytes().all(|letter| letter.is_ascii_lowercase())
        && !["dot", "dash", "slash", "underscores"].contains(&keyword)
    {
        return keyword.to_owned();
    }
    let mut out = identifier.replace("__dot__", ".").replace("__dash__", "-").replace("__slash__", "/");
    out = out.replace("__underscores__", "__");
    out
}
