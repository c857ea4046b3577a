//! JSON text to messages, in one pass over the text: no tree and no typed struct in between.
//!
//! Go writes zeros that JSON leaves out; whoever reads takes absent ones for the same, so they are not written. Fields
//! go out in the order of their numbers, as every generated encoder writes them.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{MAGIC, META, SCHEMA_PROPS, find, wire};
use crate::Status;
use crate::schema::{Field, Scalar, Schema, Struct, Type, Typed, Union};

/// What an object begins with, and its metadata as text.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default, borrow)]
    metadata: Option<&'a RawValue>,
}

/// An object (or a `Status`, or options) as a body.
pub fn object(schema: &Schema, json: &[u8]) -> Result<Vec<u8>, Status> {
    let head: Head<'_> = serde_json::from_slice(json).map_err(failed)?;
    let missing = || Status::internal(format!("{} {} has no protobuf form", head.api_version, head.kind));
    let ty = find(schema, &head.api_version, &head.kind).ok_or_else(missing)?;
    let mut raw = Vec::with_capacity(json.len());
    message(ty, json, &mut raw).map_err(failed)?;
    Ok(envelope(&head.api_version, &head.kind, &raw))
}

/// An object's `PartialObjectMetadata` as a body.
pub fn partial(schema: &Schema, json: &[u8]) -> Result<Vec<u8>, Status> {
    let mut raw = Vec::new();
    metadata(schema, json, &mut raw)?;
    Ok(envelope("meta.k8s.io/v1", "PartialObjectMetadata", &raw))
}

/// A watch event with its length: its word (`ADDED`) and its object's body.
pub fn event(word: &str, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(body.len() + word.len() + 16);
    wire::bytes(&mut message, 1, word.as_bytes());
    let object = wire::open(&mut message, 2);
    wire::bytes(&mut message, 1, body);
    wire::close(&mut message, object);
    // A body is bounded by the size of an object, far below 4 GiB.
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[..], &message].concat()
}

/// How the items of a list are written.
#[derive(Clone, Copy)]
pub enum Items<'s> {
    /// Whole, as objects of a type.
    Whole(Typed<'s>),
    /// As `PartialObjectMetadata`.
    Metadata(&'s Schema),
}

impl Items<'_> {
    /// Writes one item as the list's message has it. The bytes of all items stand between [`Items::head`] and
    /// [`Items::tail`].
    pub fn item(self, json: &[u8], out: &mut Vec<u8>) -> Result<(), Status> {
        let begin = wire::open(out, 2);
        match self {
            Self::Whole(ty) => message(ty, json, out).map_err(failed)?,
            Self::Metadata(schema) => metadata(schema, json, out)?,
        }
        wire::close(out, begin);
        Ok(())
    }

    /// What stands before the items of a list: the kind, the list's metadata (JSON) and the length of it all, for which
    /// that of the items has to be known.
    pub fn head(
        self,
        api_version: &str,
        list_kind: &str,
        metadata: &[u8],
        items: usize,
    ) -> Result<Vec<u8>, Status> {
        let schema = match self {
            Self::Whole(ty) => ty.schema(),
            Self::Metadata(schema) => schema,
        };
        let mut list = Vec::new();
        meta_field(schema, "ListMeta", metadata, &mut list)?;
        let mut out = type_meta(api_version, list_kind);
        wire::varint(&mut out, 2 << 3 | 2);
        wire::varint(&mut out, (list.len() + items) as u64);
        out.extend_from_slice(&list);
        Ok(out)
    }

    /// What stands after the items of a list.
    pub fn tail() -> Vec<u8> {
        let mut out = Vec::new();
        end(&mut out);
        out
    }
}

fn type_meta(api_version: &str, kind: &str) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    let begin = wire::open(&mut out, 1);
    wire::bytes(&mut out, 1, api_version.as_bytes());
    wire::bytes(&mut out, 2, kind.as_bytes());
    wire::close(&mut out, begin);
    out
}

/// Encoding and type of the content: none beyond the kind's own.
fn end(out: &mut Vec<u8>) {
    wire::bytes(out, 3, b"");
    wire::bytes(out, 4, b"");
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut out = type_meta(api_version, kind);
    out.reserve(raw.len() + 16);
    wire::bytes(&mut out, 2, raw);
    end(&mut out);
    out
}

/// The field `metadata` of an object, which is the first of every message that has it.
fn metadata(schema: &Schema, json: &[u8], out: &mut Vec<u8>) -> Result<(), Status> {
    let head: Head<'_> = serde_json::from_slice(json).map_err(failed)?;
    meta_field(schema, "ObjectMeta", head.metadata.map_or("{}", RawValue::get).as_bytes(), out)
}

fn meta_field(schema: &Schema, name: &str, json: &[u8], out: &mut Vec<u8>) -> Result<(), Status> {
    let ty = schema.named(&format!("{META}.{name}"));
    let ty = ty.ok_or_else(|| Status::internal(format!("the schema has no {name}")))?;
    let begin = wire::open(out, 1);
    message(schema.typed(ty), json, out).map_err(failed)?;
    wire::close(out, begin);
    Ok(())
}

fn failed(error: serde_json::Error) -> Status {
    Status::internal(format!("the object has no protobuf form: {error}"))
}

/// The message of a type with fields.
fn message(ty: Typed<'_>, json: &[u8], out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    Message { ty, out }.deserialize(&mut deserializer)
}

/// Writes the fields of an object.
struct Message<'s, 'o> {
    ty: Typed<'s>,
    out: &'o mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Message<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Message<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<(), A::Error> {
        match self.ty.structure() {
            Some(definition) => fields(self.ty, definition, access, self.out),
            None => Err(A::Error::custom("a type without fields")),
        }
    }
}

/// A field that was written, and where it ends.
struct Mark<'s> {
    field: &'s Field,
    end: usize,
}

fn fields<'de, 's, A: MapAccess<'de>>(
    ty: Typed<'s>,
    definition: &'s Struct,
    mut access: A,
    out: &mut Vec<u8>,
) -> Result<(), A::Error> {
    let begin = out.len();
    let mut marks: Vec<Mark<'s>> = Vec::new();
    while let Some(field) = access.next_key_seed(FieldName(definition))? {
        let Some(field) = field.filter(|field| field.number > 0) else {
            access.next_value::<IgnoredAny>()?;
            continue;
        };
        let seed = Slot { ty: ty.of(field.ty), number: field.number, item: false, union: field.union(), out };
        access.next_value_seed(seed)?;
        marks.push(Mark { field, end: out.len() });
    }
    arrange(out, begin, &marks);
    Ok(())
}

/// Brings fields, which stand in the order of the text, into that of their numbers, and those of embedded messages into
/// these.
fn arrange(out: &mut Vec<u8>, begin: usize, marks: &[Mark<'_>]) {
    let own = marks.iter().all(|mark| mark.field.within.is_empty());
    if own && marks.is_sorted_by_key(|mark| mark.field.number) {
        return;
    }
    let written = out.split_off(begin);
    let mut from = 0;
    let mut parts = Vec::with_capacity(marks.len());
    for mark in marks {
        let to = mark.end - begin;
        let bytes = written.get(from..to).unwrap_or_default();
        parts.extend((!bytes.is_empty()).then_some(Part { field: mark.field, bytes }));
        from = to;
    }
    if own {
        parts.sort_by_key(|part| part.field.number);
        parts.iter().for_each(|part| out.extend_from_slice(part.bytes));
        return;
    }
    parts.sort_by(|one, other| one.path().cmp(other.path()));
    nest(&parts, 0, out);
}

/// A field's bytes.
struct Part<'a> {
    field: &'a Field,
    bytes: &'a [u8],
}

impl Part<'_> {
    fn path(&self) -> impl Iterator<Item = u32> {
        self.field.within.iter().copied().chain([self.field.number])
    }
}

/// Writes sorted parts, those that share an embedded message at `depth` in it.
fn nest(mut parts: &[Part<'_>], depth: usize, out: &mut Vec<u8>) {
    while let Some((first, rest)) = parts.split_first() {
        let Some(number) = first.field.within.get(depth) else {
            out.extend_from_slice(first.bytes);
            parts = rest;
            continue;
        };
        let together = parts.iter().take_while(|part| part.field.within.get(depth) == Some(number)).count();
        let (inner, rest) = parts.split_at(together);
        let begin = wire::open(out, *number);
        nest(inner, depth + 1, out);
        wire::close(out, begin);
        parts = rest;
    }
}

/// Finds a field by its name, without a copy of it.
struct FieldName<'s>(&'s Struct);

impl<'de, 's> DeserializeSeed<'de> for FieldName<'s> {
    type Value = Option<&'s Field>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'s> Visitor<'_> for FieldName<'s> {
    type Value = Option<&'s Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.field(name))
    }
}

/// Begins an entry of a map with its key; gives where its message begins.
struct Key<'o> {
    number: u32,
    out: &'o mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<usize, E> {
        let begin = wire::open(self.out, self.number);
        wire::bytes(self.out, 1, key.as_bytes());
        Ok(begin)
    }
}

/// A place on the wire: a number in a message. Writes the value, with its key, or nothing for null.
struct Slot<'s, 'o> {
    ty: Typed<'s>,
    number: u32,
    /// It is an item of a list or the value of an entry: null is zero, and a list is a message of its own.
    item: bool,
    union: Option<Union>,
    out: &'o mut Vec<u8>,
}

impl<'s> Slot<'s, '_> {
    fn scalar<E: Error>(&self) -> Result<Scalar, E> {
        match self.ty.get() {
            Type::Scalar(scalar) => Ok(*scalar),
            _ => Err(E::custom("a leaf where the schema has none")),
        }
    }

    fn inner(&mut self, ty: Typed<'s>, number: u32) -> Slot<'s, '_> {
        Slot { ty, number, item: true, union: None, out: self.out }
    }

    fn one_text(&mut self, number: u32, text: &str) {
        let begin = wire::open(self.out, self.number);
        wire::bytes(self.out, number, text.as_bytes());
        wire::close(self.out, begin);
    }

    fn whole<E: Error>(self, value: i64) -> Result<(), E> {
        match self.scalar()? {
            // Negative numbers are sign-extended to 64 bits on the wire.
            Scalar::Int32 | Scalar::Int64 => wire::number(self.out, self.number, value.cast_unsigned()),
            Scalar::IntOrString => {
                let begin = wire::open(self.out, self.number);
                wire::number(self.out, 1, 0);
                wire::number(self.out, 2, value.cast_unsigned());
                wire::close(self.out, begin);
            }
            #[allow(clippy::cast_precision_loss, reason = "JSON has no other numbers than doubles")]
            Scalar::Double => wire::double(self.out, self.number, value as f64),
            Scalar::Quantity => {
                let mut slot = self;
                slot.one_text(1, &value.to_string());
            }
            _ => return Err(E::custom("a number where the schema has none")),
        }
        Ok(())
    }

    fn time<E: Error>(self, text: &str) -> Result<(), E> {
        let time: Timestamp = text.parse().map_err(E::custom)?;
        let begin = wire::open(self.out, self.number);
        wire::number(self.out, 1, time.as_second().cast_unsigned());
        wire::number(self.out, 2, i64::from(time.subsec_nanosecond()).cast_unsigned());
        wire::close(self.out, begin);
        Ok(())
    }

    /// Arbitrary JSON is kept as its text.
    fn raw<'de, D: Deserializer<'de>>(mut self, deserializer: D) -> Result<(), D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?.get();
        match self.union.take() {
            _ if raw == "null" && !self.item => Ok(()),
            None => {
                self.one_text(1, raw);
                Ok(())
            }
            Some(union) => self.one_of(union, raw).map_err(D::Error::custom),
        }
    }

    /// Spells out which form a union has.
    fn one_of(&mut self, union: Union, raw: &str) -> Result<(), serde_json::Error> {
        if union == Union::SchemaOrStrings {
            let entries: std::collections::BTreeMap<String, &RawValue> = serde_json::from_str(raw)?;
            for (key, value) in entries {
                let begin = wire::open(self.out, self.number);
                wire::bytes(self.out, 1, key.as_bytes());
                let inner = wire::open(self.out, 2);
                self.form(union, value.get())?;
                wire::close(self.out, inner);
                wire::close(self.out, begin);
            }
            return Ok(());
        }
        let begin = wire::open(self.out, self.number);
        self.form(union, raw)?;
        wire::close(self.out, begin);
        Ok(())
    }

    fn form(&mut self, union: Union, raw: &str) -> Result<(), serde_json::Error> {
        let schema = self.ty.schema();
        let Some(props) = schema.named(SCHEMA_PROPS).map(|id| schema.typed(id)) else { return Ok(()) };
        match (union, raw.as_bytes().first()) {
            (Union::SchemaOrBool, Some(b'{')) => {
                wire::number(self.out, 1, 1);
                self.schema(props, 2, raw)
            }
            (Union::SchemaOrBool, _) => {
                wire::number(self.out, 1, u64::from(raw == "true"));
                Ok(())
            }
            (_, Some(b'{')) => self.schema(props, 1, raw),
            (Union::SchemaOrArray, _) => {
                let schemas: Vec<&RawValue> = serde_json::from_str(raw)?;
                schemas.into_iter().try_for_each(|one| self.schema(props, 2, one.get()))
            }
            (Union::SchemaOrStrings, _) => {
                let names: Vec<String> = serde_json::from_str(raw)?;
                names.iter().for_each(|name| wire::bytes(self.out, 2, name.as_bytes()));
                Ok(())
            }
        }
    }

    fn schema(&mut self, props: Typed<'_>, number: u32, raw: &str) -> Result<(), serde_json::Error> {
        let begin = wire::open(self.out, number);
        message(props, raw.as_bytes(), self.out)?;
        wire::close(self.out, begin);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Slot<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.union.is_some() || self.ty.is_any() {
            return self.raw(deserializer);
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Slot<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of the schema's type")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        if self.item {
            // What is empty has the length 0, also where it is a number: nobody writes those as null.
            let begin = wire::open(self.out, self.number);
            wire::close(self.out, begin);
        }
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        match self.scalar()? {
            Scalar::Bool => wire::number(self.out, self.number, u64::from(value)),
            _ => return Err(E::custom("a boolean where the schema has none")),
        }
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.whole(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.whole(i64::try_from(value).map_err(E::custom)?)
    }

    fn visit_f64<E: Error>(mut self, value: f64) -> Result<(), E> {
        match self.scalar()? {
            Scalar::Double => wire::double(self.out, self.number, value),
            Scalar::Quantity => self.one_text(1, &value.to_string()),
            _ => return Err(E::custom("a fraction where the schema has none")),
        }
        Ok(())
    }

    fn visit_str<E: Error>(mut self, text: &str) -> Result<(), E> {
        match self.scalar()? {
            Scalar::String => wire::bytes(self.out, self.number, text.as_bytes()),
            Scalar::Bytes => {
                let begin = wire::open(self.out, self.number);
                STANDARD.decode_vec(text, self.out).map_err(E::custom)?;
                wire::close(self.out, begin);
            }
            Scalar::Time | Scalar::MicroTime => return self.time(text),
            Scalar::Quantity => self.one_text(1, text),
            Scalar::IntOrString => {
                let begin = wire::open(self.out, self.number);
                wire::number(self.out, 1, 1);
                wire::bytes(self.out, 3, text.as_bytes());
                wire::close(self.out, begin);
            }
            _ => return Err(E::custom("text where the schema has none")),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut access: A) -> Result<(), A::Error> {
        let Type::List { item, .. } = self.ty.get() else {
            return Err(A::Error::custom("a list where the schema has none"));
        };
        let item = self.ty.of(*item);
        // A list within a list or map is a message whose first field repeats (`ExtraValue`).
        let own = self.item.then(|| wire::open(self.out, self.number));
        let number = if own.is_some() { 1 } else { self.number };
        while access.next_element_seed(self.inner(item, number))?.is_some() {}
        if let Some(begin) = own {
            wire::close(self.out, begin);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<(), A::Error> {
        match self.ty.get() {
            Type::Struct(definition) => {
                let begin = wire::open(self.out, self.number);
                fields(self.ty, definition, access, self.out)?;
                wire::close(self.out, begin);
            }
            Type::Map { value, .. } => {
                let value = self.ty.of(*value);
                while let Some(begin) = access.next_key_seed(Key { number: self.number, out: self.out })? {
                    access.next_value_seed(self.inner(value, 2))?;
                    wire::close(self.out, begin);
                }
            }
            _ => return Err(A::Error::custom("an object where the schema has none")),
        }
        Ok(())
    }
}
