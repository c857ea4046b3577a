//! Values. Objects and lists of JSON stay where they are and are read as they are asked for, by their schema where they
//! have one.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, btree_map};
use std::hash::{Hash, Hasher};
use std::iter::Enumerate;
use std::net::IpAddr;
use std::ops::Deref;
use std::slice;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::semver::Semver;
use super::{Budget, CelError, Step};
use crate::custom::{Props, duration_of};
use crate::quantity::Quantity;

/// How many levels of lists, maps, objects and optionals a made value may have, so that every walk over one, its release
/// too, may recurse. JSON counts as one level: whoever reads it bounds its depth.
const DEPTH_MAX: u32 = 100;
/// What one value of JSON costs that is made of another: it takes some tens of bytes.
const JSON_COST: u64 = 8;
/// The longest texts of formats that are read anew each time they are asked for.
const TIME_BYTES_MAX: usize = 256;

/// A value. Cloning one takes little time and no memory, however large it is.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "CEL's and Kubernetes' types")]
pub enum Val<'v> {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Double(f64),
    Text(Text<'v>),
    Bytes(Arc<[u8]>),
    List(Arc<Deep<Listed<'v>>>),
    Map(Arc<Deep<Mapped<'v>>>),
    /// An object or a list, and what it looks like.
    Json(&'v Value, Option<&'v Props>),
    /// Nanoseconds.
    Duration(i64),
    Time(Timestamp),
    Type(&'static str),
    Optional(Option<Arc<Deep<Val<'v>>>>),
    Quantity(Arc<Quantity>),
    Url(Text<'v>),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    /// A named format (`dns1123Label`).
    Format(Text<'v>),
    Authz(Step<'v>),
    /// An object that an expression made, by the name of its type.
    Made(&'v str, Arc<Deep<BTreeMap<&'v str, Val<'v>>>>),
    Semver(Arc<Semver>),
}

/// A text: part of an object or of an expression, which stays where it is, or one that was made.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "as said")]
pub enum Text<'v> {
    Given(&'v str),
    Made(Arc<str>),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Given(text) => text,
            Self::Made(text) => text,
        }
    }
}

impl<'v> From<&'v str> for Text<'v> {
    fn from(text: &'v str) -> Self {
        Self::Given(text)
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Self::Made(text.into())
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Text<'_> {}

impl PartialOrd for Text<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(other)
    }
}

impl Hash for Text<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

/// The items of a list that was made, and the schema of the list of which it goes on to be one.
#[derive(Debug)]
pub struct Listed<'v> {
    items: Vec<Val<'v>>,
    schema: Option<&'v Props>,
}

impl<'v> Deref for Listed<'v> {
    type Target = Vec<Val<'v>>;

    fn deref(&self) -> &Self::Target {
        &self.items
    }
}

/// The entries of a map, and what is under every other key, if anything is: so the attributes of devices.
#[derive(Debug)]
pub struct Mapped<'v> {
    entries: BTreeMap<Key<'v>, Val<'v>>,
    missing: Option<Val<'v>>,
}

impl<'v> Mapped<'v> {
    fn under(&self, key: &Key<'v>) -> Option<&Val<'v>> {
        self.entries.get(key).or(self.missing.as_ref())
    }
}

impl<'v> Deref for Mapped<'v> {
    type Target = BTreeMap<Key<'v>, Val<'v>>;

    fn deref(&self) -> &Self::Target {
        &self.entries
    }
}

/// What holds values, and how many levels of them.
#[derive(Debug)]
pub struct Deep<T> {
    depth: u32,
    inside: T,
}

impl<T> Deep<T> {
    /// Holds values that have so many levels themselves.
    fn above(depth: u32, inside: T) -> Result<Arc<Self>, CelError> {
        if depth >= DEPTH_MAX {
            return Err(CelError::fault(format!("values may be nested {DEPTH_MAX} levels deep at most")));
        }
        Ok(Arc::new(Self { depth: depth + 1, inside }))
    }
}

impl<T> Deref for Deep<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inside
    }
}

/// The key of a map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "CEL's types")]
pub enum Key<'v> {
    Bool(bool),
    Int(i64),
    Text(Text<'v>),
}

impl<'v> Key<'v> {
    pub(super) fn of(value: &Val<'v>) -> Result<Self, CelError> {
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

    pub(super) fn value(&self) -> Val<'v> {
        match self {
            Self::Bool(value) => Val::Bool(*value),
            Self::Int(value) => Val::Int(*value),
            Self::Text(text) => Val::Text(text.clone()),
        }
    }
}

/// What there is in a list, with its place, or in a map, with its key; read as it is asked for.
pub(super) enum Walk<'r, 'v> {
    Items(Enumerate<slice::Iter<'r, Val<'v>>>),
    Array(Enumerate<slice::Iter<'v, Value>>, Option<&'v Props>),
    Entries(btree_map::Iter<'r, Key<'v>, Val<'v>>),
    Fields(serde_json::map::Iter<'v>, Option<&'v Props>),
}

impl<'v> Iterator for Walk<'_, 'v> {
    type Item = (Val<'v>, Val<'v>);

    fn next(&mut self) -> Option<Self::Item> {
        let place = |place: usize| Val::Int(i64::try_from(place).unwrap_or(i64::MAX));
        match self {
            Self::Items(items) => items.next().map(|(at, item)| (place(at), item.clone())),
            Self::Array(items, schema) => {
                items.next().map(|(at, item)| (place(at), Val::of_json(item, *schema)))
            }
            Self::Entries(entries) => entries.next().map(|(key, value)| (key.value(), value.clone())),
            Self::Fields(fields, schema) => fields.next().map(|(name, value)| {
                let below = schema.and_then(|schema| schema.child(name));
                (Val::Text(Text::Given(name)), Val::of_json(value, below))
            }),
        }
    }
}

impl<'v> Val<'v> {
    /// A copy of a text.
    pub fn text(text: &str) -> Self {
        Self::Text(Text::Made(text.into()))
    }

    pub(super) fn list(items: Vec<Self>) -> Result<Self, CelError> {
        Self::listed(items, None)
    }

    /// A list as its schema says.
    pub(super) fn listed(items: Vec<Self>, schema: Option<&'v Props>) -> Result<Self, CelError> {
        let depth = items.iter().map(Self::depth).max().unwrap_or(0);
        Deep::above(depth, Listed { items, schema }).map(Self::List)
    }

    /// The schema of a list.
    pub(super) fn list_schema(&self) -> Option<&'v Props> {
        match self {
            Self::List(items) => items.schema,
            Self::Json(Value::Array(_), schema) => *schema,
            _ => None,
        }
    }

    pub(super) fn map(entries: BTreeMap<Key<'v>, Self>) -> Result<Self, CelError> {
        Self::mapped(entries, None)
    }

    /// A map with something under every key that it does not have.
    pub(super) fn mapped(entries: BTreeMap<Key<'v>, Self>, missing: Option<Self>) -> Result<Self, CelError> {
        let depth = entries.values().chain(&missing).map(Self::depth).max().unwrap_or(0);
        Deep::above(depth, Mapped { entries, missing }).map(Self::Map)
    }

    pub(super) fn made(name: &'v str, fields: BTreeMap<&'v str, Self>) -> Result<Self, CelError> {
        let depth = fields.values().map(Self::depth).max().unwrap_or(0);
        Deep::above(depth, fields).map(|fields| Self::Made(name, fields))
    }

    pub(super) fn some(value: Self) -> Result<Self, CelError> {
        Deep::above(value.depth(), value).map(|value| Self::Optional(Some(value)))
    }

    /// An optional with a value of JSON, or without any.
    pub fn optional_json(value: Option<&'v Value>, schema: Option<&'v Props>) -> Self {
        let held = value.map(|value| Arc::new(Deep { depth: 1, inside: Self::of_json(value, schema) }));
        Self::Optional(held)
    }

    /// How many levels of values it has.
    fn depth(&self) -> u32 {
        match self {
            Self::List(items) => items.depth,
            Self::Map(entries) => entries.depth,
            Self::Made(_, fields) => fields.depth,
            Self::Optional(Some(held)) => held.depth,
            _ => 0,
        }
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

    fn of_text(text: &'v str, schema: Option<&Props>) -> Self {
        let format = schema.map_or("", |schema| schema.format.as_str());
        let special = match format {
            "byte" => {
                use base64::Engine as _;
                let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok();
                bytes.map(|bytes| Self::Bytes(bytes.into()))
            }
            _ if text.len() > TIME_BYTES_MAX => None,
            "date-time" => text.parse().ok().map(Self::Time),
            "date" => format!("{text}T00:00:00Z").parse().ok().map(Self::Time),
            "duration" => duration_of(text).map(Self::Duration),
            _ => None,
        };
        special.unwrap_or(Self::Text(Text::Given(text)))
    }

    /// Pays for having read a value: only what had to be decoded costs more than the step to it.
    pub(super) fn paid(self, budget: &mut Budget) -> Result<Self, CelError> {
        if let Self::Bytes(bytes) = &self {
            budget.spend_on(bytes.len())?;
        }
        Ok(self)
    }

    /// The value as JSON: what an expression made for an object. Others than JSON's own types are as `string()` shows
    /// them; the failure names what has no such form, or is that the budget does not suffice.
    pub fn to_json(&self, budget: &mut Budget) -> Result<Value, CelError> {
        budget.spend(JSON_COST)?;
        Ok(match self {
            Self::Null | Self::Optional(None) => Value::Null,
            Self::Optional(Some(inner)) => inner.to_json(budget)?,
            Self::Bool(value) => (*value).into(),
            Self::Int(value) => (*value).into(),
            Self::UInt(value) => (*value).into(),
            Self::Double(value) if value.fract() == 0.0 && value.abs() < 9.0e15 => (*value as i64).into(),
            Self::Double(value) => (*value).into(),
            Self::Json(value, _) => copied(value, budget)?,
            Self::List(items) => {
                items.iter().map(|item| item.to_json(budget)).collect::<Result<Vec<_>, _>>()?.into()
            }
            Self::Map(entries) => {
                let entry = |(key, value): (&Key<'v>, &Self)| match key {
                    Key::Text(name) => {
                        budget.spend_on(name.len())?;
                        Ok((name.to_string(), value.to_json(budget)?))
                    }
                    other => Err(CelError::fault(format!("map key {other:?} is not a string"))),
                };
                Value::Object(entries.iter().map(entry).collect::<Result<_, CelError>>()?)
            }
            Self::Made(_, fields) => {
                let entry = |(name, value): (&&str, &Self)| {
                    budget.spend_on(name.len())?;
                    Ok(((*name).to_owned(), value.to_json(budget)?))
                };
                Value::Object(fields.iter().map(entry).collect::<Result<_, CelError>>()?)
            }
            Self::Bytes(bytes) => {
                use base64::Engine as _;
                budget.spend_on(bytes.len() / 3 * 4)?;
                base64::engine::general_purpose::STANDARD.encode(bytes).into()
            }
            other => match super::convert::text_of(other, budget)? {
                Some(text) => text.into(),
                None => {
                    return Err(CelError::fault(format!("unable to convert to JSON: {}", other.type_name())));
                }
            },
        })
    }

    /// Whether the objects that an expression made are named by where they stand: `Object.spec` under `spec` of an
    /// `Object`. Source: `ObjectVal.CheckTypeNamesMatchFieldPathNames`.
    pub fn check_made(&self, path: &str, budget: &mut Budget) -> Result<(), CelError> {
        budget.spend_on(path.len())?;
        match self {
            Self::Made(name, fields) => {
                if **name != *path {
                    return Err(CelError::fault(format!(
                        "unexpected type name {name:?}, expected {path:?}, which matches field name path from root \
                         Object type"
                    )));
                }
                fields
                    .iter()
                    .try_for_each(|(name, value)| value.check_made(&format!("{path}.{name}"), budget))
            }
            Self::List(items) => items.iter().try_for_each(|item| item.check_made(path, budget)),
            Self::Map(entries) => entries.values().try_for_each(|value| value.check_made(path, budget)),
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

    /// How many items or entries it has, if it is a list or a map.
    pub(super) fn len(&self) -> Option<usize> {
        Some(match self {
            Self::List(items) => items.len(),
            Self::Map(entries) => entries.len(),
            Self::Json(Value::Array(items), _) => items.len(),
            Self::Json(Value::Object(fields), _) => fields.len(),
            _ => return None,
        })
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self, Self::List(_) | Self::Json(Value::Array(_), _))
    }

    /// What is in it, if it is a list or a map. Whoever walks pays for each step.
    pub(super) fn walk(&self) -> Option<Walk<'_, 'v>> {
        Some(match self {
            Self::List(items) => Walk::Items(items.iter().enumerate()),
            Self::Map(entries) => Walk::Entries(entries.iter()),
            Self::Json(Value::Array(items), schema) => {
                Walk::Array(items.iter().enumerate(), schema.and_then(Props::item))
            }
            Self::Json(Value::Object(fields), schema) => Walk::Fields(fields.iter(), *schema),
            _ => return None,
        })
    }

    /// Its items side by side, if it is a list; one of JSON is read for that, which costs as much as making it.
    pub(super) fn items(&self, budget: &mut Budget) -> Result<Option<Cow<'_, [Val<'v>]>>, CelError> {
        Ok(match self {
            Self::List(items) => Some(Cow::Borrowed(items)),
            Self::Json(Value::Array(items), schema) => {
                budget.spend_items(items.len())?;
                let item = schema.and_then(Props::item);
                let read = |value| Self::of_json(value, item).paid(budget);
                Some(Cow::Owned(items.iter().map(read).collect::<Result<_, CelError>>()?))
            }
            _ => None,
        })
    }

    /// The value of a field; `None` if it is absent. `name` is as the expression spells it.
    pub(super) fn field(&self, name: &'v str, budget: &mut Budget) -> Result<Option<Val<'v>>, CelError> {
        // A name of ordinary length costs nothing besides the step.
        budget.spend(name.len() as u64 / 100)?;
        match self {
            Self::Map(entries) => Ok(entries.under(&Key::Text(Text::Given(name))).cloned()),
            Self::Json(Value::Object(fields), schema) => {
                let declared = schema.is_some_and(|schema| !schema.properties.is_empty());
                let name = if declared { unescape(name) } else { name.into() };
                let below = schema.and_then(|schema| schema.child(&name));
                let found = fields.get(&*name).map(|value| Self::of_json(value, below));
                found.map(|value| value.paid(budget)).transpose()
            }
            Self::Authz(step) => Ok(step.field(name)),
            Self::Made(_, fields) => Ok(fields.get(name).cloned()),
            Self::Optional(None) => Ok(Some(Self::Optional(None))),
            Self::Optional(Some(inner)) => {
                Ok(Some(inner.field(name, budget)?.map_or(Ok(Self::Optional(None)), Self::some)?))
            }
            other => {
                Err(CelError::fault(format!("type '{}' does not support field selection", other.type_name())))
            }
        }
    }

    /// The value under an index or a key; `None` if there is none.
    pub(super) fn at(&self, index: &Val<'v>, budget: &mut Budget) -> Result<Option<Val<'v>>, CelError> {
        let place = || match index {
            Self::Int(at) => Ok(usize::try_from(*at).ok()),
            Self::UInt(at) => Ok(usize::try_from(*at).ok()),
            Self::Double(at) if at.fract() == 0.0 && *at >= 0.0 => Ok(Some(*at as usize)),
            other => Err(CelError::fault(format!("unsupported index type '{}' in list", other.type_name()))),
        };
        if let Self::Text(name) = index {
            budget.spend(name.len() as u64 / 100)?;
        }
        match self {
            Self::List(items) => Ok(place()?.and_then(|at| items.get(at).cloned())),
            Self::Json(Value::Array(items), schema) => {
                let item = schema.and_then(Props::item);
                let found = place()?.and_then(|at| items.get(at)).map(|value| Self::of_json(value, item));
                found.map(|value| value.paid(budget)).transpose()
            }
            Self::Map(entries) => Ok(entries.under(&Key::of(index)?).cloned()),
            Self::Json(Value::Object(fields), schema) => match index {
                Self::Text(name) => {
                    let below = schema.and_then(|schema| schema.child(name));
                    let found = fields.get(&**name).map(|value| Self::of_json(value, below));
                    found.map(|value| value.paid(budget)).transpose()
                }
                _ => Ok(None),
            },
            Self::Optional(None) => Ok(Some(Self::Optional(None))),
            Self::Optional(Some(inner)) => {
                Ok(Some(inner.at(index, budget)?.map_or(Ok(Self::Optional(None)), Self::some)?))
            }
            other => Err(CelError::fault(format!("no such overload: {}[]", other.type_name()))),
        }
    }
}

/// A copy of JSON.
fn copied(value: &Value, budget: &mut Budget) -> Result<Value, CelError> {
    budget.spend(JSON_COST)?;
    Ok(match value {
        Value::String(text) => {
            budget.spend_on(text.len())?;
            text.clone().into()
        }
        Value::Array(items) => {
            items.iter().map(|item| copied(item, budget)).collect::<Result<Vec<_>, _>>()?.into()
        }
        Value::Object(fields) => {
            let entry = |(name, value): (&String, &Value)| {
                budget.spend_on(name.len())?;
                Ok((name.clone(), copied(value, budget)?))
            };
            Value::Object(fields.iter().map(entry).collect::<Result<_, CelError>>()?)
        }
        scalar => scalar.clone(),
    })
}

/// Whether an identifier stands for a property's name. Source: `apiserver/pkg/cel.Escape`.
pub(crate) fn has_identifier(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'/');
    !name.is_empty() && !name.as_bytes()[0].is_ascii_digit() && name.bytes().all(fits)
}

/// A property's name from the identifier that stands for it. Source: `apiserver/pkg/cel.Unescape`.
pub(super) fn unescape(identifier: &str) -> Cow<'_, str> {
    if !identifier.contains("__") {
        return identifier.into();
    }
    if let Some(keyword) = identifier.strip_prefix("__").and_then(|rest| rest.strip_suffix("__"))
        && keyword.bytes().all(|letter| letter.is_ascii_lowercase())
        && !["dot", "dash", "slash", "underscores"].contains(&keyword)
    {
        return keyword.into();
    }
    let mut out = identifier.replace("__dot__", ".").replace("__dash__", "-").replace("__slash__", "/");
    out = out.replace("__underscores__", "__");
    out.into()
}
