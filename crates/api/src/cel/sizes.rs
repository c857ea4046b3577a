//! How large the values are that expressions see, by what declares them: schemas of custom resources, and devices.
//! Source: `k8s.io/apiserver/pkg/cel/common/schemas.go` and `types.go`, `pkg/cel/limits.go`,
//! `apiextensions-apiserver/pkg/apiserver/schema/cel/model`, `k8s.io/dynamic-resource-allocation/cel`.

use super::value::unescape;
use crate::custom::Props;

/// The largest object that a request brings, in bytes. Source: `MaxRequestSizeBytes`.
const REQUEST_BYTES_MAX: u64 = 3 << 20;
/// A text that nothing bounds, without its quotes.
const TEXT_MAX: u64 = REQUEST_BYTES_MAX - 2;
/// How long names of objects may be. Source: `DNS1123SubdomainMaxLength`.
const NAME_MAX: u64 = 253;

/// How many values of a schema fit into one request, where nothing else bounds them. Source: `maxCardinality`.
pub(crate) fn max_count(schema: &Props) -> u64 {
    REQUEST_BYTES_MAX / (min_bytes(schema) + 1)
}

/// The declaration of a value.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Decl<'p> {
    /// A schema's, and whether of a whole object, which always has `apiVersion`, `kind` and `metadata`.
    Schema(&'p Props, bool),
    /// The metadata of a whole object.
    Metadata(&'p Props),
    /// One that is always the same.
    Fixed(&'static Fixed),
    /// A text of at most so many bytes.
    Text(u64),
}

/// A declaration that is part of the program.
#[derive(Debug)]
pub(crate) struct Fixed {
    /// How many items, entries or bytes there may be.
    size: u64,
    fields: &'static [(&'static str, &'static Fixed)],
    key: Option<&'static Fixed>,
    item: Option<&'static Fixed>,
    /// Whether the items may be named like fields.
    named: bool,
}

impl Fixed {
    const fn sized(size: u64) -> Self {
        Self { size, fields: &[], key: None, item: None, named: false }
    }

    const fn map(key: &'static Self, item: &'static Self, named: bool) -> Self {
        Self { size: ATTRIBUTES_MAX, fields: &[], key: Some(key), item: Some(item), named }
    }
}

/// Source: `ResourceSliceMaxAttributesAndCapacitiesPerDevice`.
const ATTRIBUTES_MAX: u64 = 32;
static ZERO: Fixed = Fixed::sized(0);
static ONE: Fixed = Fixed::sized(1);
/// Source: `DriverNameMaxLength`, `DeviceMaxDomainLength`, `DeviceMaxIDLength`, `DeviceAttributeMaxValueLength`.
static DOMAIN: Fixed = Fixed::sized(63);
static ID: Fixed = Fixed::sized(32);
static ATTRIBUTE: Fixed = Fixed::sized(64);
static ATTRIBUTES_OF_ONE: Fixed = Fixed::map(&ID, &ATTRIBUTE, true);
static ATTRIBUTES: Fixed = Fixed::map(&DOMAIN, &ATTRIBUTES_OF_ONE, false);
static CAPACITIES_OF_ONE: Fixed = Fixed::map(&ID, &ZERO, false);
static CAPACITIES: Fixed = Fixed::map(&DOMAIN, &CAPACITIES_OF_ONE, false);
static DEVICE: Fixed = Fixed {
    size: 0,
    fields: &[
        ("driver", &DOMAIN),
        ("attributes", &ATTRIBUTES),
        ("capacity", &CAPACITIES),
        ("allowMultipleAllocations", &ONE),
    ],
    key: None,
    item: None,
    named: false,
};

impl<'p> Decl<'p> {
    /// The declaration of `device`.
    pub(crate) fn device() -> Self {
        Self::Fixed(&DEVICE)
    }

    /// Whether a path begins with it that begins with this name, or with none: a schema stands for whatever there is.
    pub(super) fn begins(self, name: Option<&str>) -> bool {
        match self {
            Self::Fixed(_) => name == Some("device"),
            _ => true,
        }
    }

    /// What a schema declares, if expressions see it at all.
    fn of(schema: &'p Props) -> Option<Self> {
        seen(schema).then_some(Self::Schema(schema, schema.embedded))
    }

    /// How many items, entries or bytes there are at most; of other values nothing counts.
    pub(super) fn size(self) -> u64 {
        match self {
            Self::Schema(schema, _) => size_of(schema),
            Self::Metadata(_) => 0,
            Self::Fixed(fixed) => fixed.size,
            Self::Text(size) => size,
        }
    }

    /// The items of a list, or the values of a map.
    pub(super) fn item(self) -> Option<Self> {
        match self {
            Self::Schema(schema, _) => match schema.ty.as_str() {
                _ if schema.int_or_string => None,
                "array" => Self::of(schema.item()?),
                "object" => Self::of(schema.additional()?),
                _ => None,
            },
            Self::Fixed(fixed) => fixed.item.map(Self::Fixed),
            Self::Metadata(_) | Self::Text(_) => None,
        }
    }

    /// The keys of a map: that a schema's are texts says nothing of their length, which counts as none.
    pub(super) fn key(self) -> Option<Self> {
        match self {
            Self::Schema(schema, _) if !schema.int_or_string && schema.ty == "object" => {
                schema.additional().map(|_| Self::Text(0))
            }
            Self::Fixed(fixed) => fixed.key.map(Self::Fixed),
            _ => None,
        }
    }

    /// A field, by the name that expressions use.
    pub(super) fn field(self, name: &str) -> Option<Self> {
        match self {
            Self::Schema(schema, whole) => {
                if schema.int_or_string || schema.ty != "object" {
                    return None;
                }
                match name {
                    "apiVersion" | "kind" if whole && !is_complete(schema) => Some(Self::Text(TEXT_MAX)),
                    "metadata" if whole && !is_complete(schema) => Some(Self::Metadata(schema)),
                    _ if schema.additional().is_some() => None,
                    _ => Self::of(schema.properties.get(&*unescape(name))?),
                }
            }
            Self::Metadata(schema) => {
                let least = match name {
                    "name" => NAME_MAX,
                    "generateName" => NAME_MAX - 1,
                    _ => return None,
                };
                let metadata = schema.properties.get("metadata");
                let said = metadata.and_then(|metadata| metadata.properties.get(name)?.max_length);
                Some(Self::Text(said.map_or(least, |said| said.min(least)).saturating_mul(4)))
            }
            Self::Fixed(fixed) => {
                let known = fixed.fields.iter().find(|(known, _)| *known == name).map(|(_, field)| *field);
                known.or(fixed.item.filter(|_| fixed.named)).map(Self::Fixed)
            }
            Self::Text(_) => None,
        }
    }
}

/// Whether a schema declares all that every object has.
fn is_complete(schema: &Props) -> bool {
    let is =
        |schema: &Props, name: &str, ty: &str| schema.properties.get(name).is_some_and(|one| one.ty == ty);
    let names = |metadata: &Props| is(metadata, "name", "string") && is(metadata, "generateName", "string");
    is(schema, "kind", "string")
        && is(schema, "apiVersion", "string")
        && is(schema, "metadata", "object")
        && schema.properties.get("metadata").is_some_and(names)
}

/// Whether expressions see what a schema declares: not what may be anything.
pub(crate) fn seen(schema: &Props) -> bool {
    if schema.int_or_string {
        return true;
    }
    match schema.ty.as_str() {
        "array" => schema.item().is_some_and(seen),
        "object" => schema.additional().is_none_or(seen),
        "string" | "boolean" | "number" | "integer" => true,
        _ => false,
    }
}

/// How large a value of a schema may be: bytes of a text, items of a list, entries of a map.
fn size_of(schema: &Props) -> u64 {
    let text = || schema.max_length.map(|length| length.saturating_mul(4));
    if schema.int_or_string {
        return text().unwrap_or(TEXT_MAX);
    }
    match schema.ty.as_str() {
        "array" => schema.max_items.unwrap_or_else(|| TEXT_MAX / (schema.item().map_or(2, min_bytes) + 1)),
        "object" => match schema.additional() {
            Some(below) => schema.max_properties.unwrap_or_else(|| TEXT_MAX / (min_bytes(below) + 6)),
            None => 0,
        },
        "string" => match schema.format.as_str() {
            "duration" | "date-time" => 32,
            "date" => 12,
            "byte" => schema.max_length.unwrap_or(TEXT_MAX),
            _ => text().unwrap_or_else(|| longest(schema)),
        },
        _ => 0,
    }
}

/// The longest of the values that a text may have.
fn longest(schema: &Props) -> u64 {
    match &schema.values {
        Some(values) if !values.is_empty() => {
            let lengths = values.iter().filter_map(|value| value.as_str().map(str::len));
            lengths.max().unwrap_or(0) as u64
        }
        _ => TEXT_MAX,
    }
}

/// How few bytes of JSON a value of a schema may take.
fn min_bytes(schema: &Props) -> u64 {
    if schema.int_or_string {
        return 1;
    }
    match (schema.ty.as_str(), schema.format.as_str()) {
        ("boolean", _) => 4,
        ("integer" | "number", _) => 1,
        ("string", "duration") => 3,
        ("string", "date") => 12,
        ("string", "date-time") => 21,
        ("object", _) if schema.additional().is_none() => {
            let needed = schema.properties.iter().filter(|(name, below)| {
                schema.required.contains(name) && below.default.is_none() && seen(below)
            });
            needed.fold(2, |bytes, (name, below)| bytes + name.len() as u64 + min_bytes(below) + 4)
        }
        _ => 2,
    }
}
