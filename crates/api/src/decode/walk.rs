//! The walk over a value and its type at once.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::{Mode, scalar};
use crate::schema::{Scalar, Struct, Type, Typed};

/// Upstream's bound on reported problems.
const PROBLEMS_MAX: usize = 100;

/// What was noticed on the way.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) problems: Vec<String>,
    /// The first value of a wrong type.
    pub(super) mismatch: Option<String>,
    path: Vec<Step>,
    /// The innermost definitions around the present place, as Go's messages name them.
    definitions: Vec<String>,
}

enum Step {
    Field(String),
    /// A map's key, which Go's sentences leave out.
    Key(String),
    Index(usize),
}

impl Notes {
    /// The place as strict errors spell it: `spec.containers[0].name`.
    fn place(&self) -> String {
        let mut text = String::new();
        for step in &self.path {
            match step {
                Step::Field(name) | Step::Key(name) if text.is_empty() => text.push_str(name),
                Step::Field(name) | Step::Key(name) => {
                    text.push('.');
                    text.push_str(name);
                }
                Step::Index(index) => text.push_str(&format!("[{index}]")),
            }
        }
        text
    }

    fn problem(&mut self, what: &str, name: &str) {
        if self.problems.len() < PROBLEMS_MAX {
            self.path.push(Step::Field(name.to_owned()));
            let place = self.place();
            self.path.pop();
            self.problems.push(format!("{what} field \"{place}\""));
        }
    }

    /// Go's sentence for a value of a wrong type.
    fn mismatch(&mut self, found: &str, wanted: &str) {
        let fields: Vec<&str> = self
            .path
            .iter()
            .filter_map(|step| match step {
                Step::Field(name) => Some(name.as_str()),
                Step::Key(_) | Step::Index(_) => None,
            })
            .collect();
        let place = match self.definitions.last() {
            Some(definition) if !fields.is_empty() => {
                format!("struct field {definition}.{}", fields.join("."))
            }
            _ => "value".to_owned(),
        };
        self.say(format!("json: cannot unmarshal {found} into Go {place} of type {wanted}"));
    }

    fn say(&mut self, sentence: String) {
        self.mismatch.get_or_insert(sentence);
    }
}

/// A type at a place; reads the value there. `None`: the same as absent.
pub(super) struct Seed<'s, 'n> {
    ty: Typed<'s>,
    mode: Mode,
    notes: &'n mut Notes,
}

impl<'s, 'n> Seed<'s, 'n> {
    pub(super) fn root(ty: Typed<'s>, mode: Mode, notes: &'n mut Notes) -> Self {
        Self { ty, mode, notes }
    }

    fn at(&mut self, ty: Typed<'s>) -> Seed<'s, '_> {
        Seed { ty, mode: self.mode, notes: self.notes }
    }

    fn wrong<E: Error>(&mut self, found: &str) -> E {
        let wanted = go_type(self.ty);
        self.notes.mismatch(found, &wanted);
        E::custom("a value of a wrong type")
    }

    fn scalar<E: Error>(&mut self, found: scalar::Found<'_>) -> Result<Option<Value>, E> {
        let Type::Scalar(wanted) = self.ty.get() else { return Err(self.wrong(&found.describe())) };
        match scalar::take(*wanted, &found) {
            Ok(value) => Ok(Some(value)),
            Err(scalar::Wrong::Type) => Err(self.wrong(&found.describe())),
            Err(scalar::Wrong::Value(sentence)) => {
                self.notes.say(sentence);
                Err(E::custom("a value of a wrong form"))
            }
        }
    }

    fn fields<'de, A: MapAccess<'de>>(
        mut self,
        definition: &'s Struct,
        mut access: A,
    ) -> Result<Map<String, Value>, A::Error> {
        let mut object = Map::new();
        let mut seen: Vec<bool> = vec![false; definition.fields.len()];
        let name = definition.short_name();
        self.notes.definitions.push(name.to_owned());
        while let Some(key) = access.next_key::<Cow<'de, str>>()? {
            let index = definition.fields.binary_search_by(|field| field.name.as_ref().cmp(&key));
            let Some((field, seen)) =
                index.ok().and_then(|at| Some((definition.fields.get(at)?, seen.get_mut(at)?)))
            else {
                if definition.preserve_unknown {
                    if object.contains_key(key.as_ref()) {
                        self.notes.problem("duplicate", &key);
                    }
                    self.notes.path.push(Step::Field(key.clone().into_owned()));
                    let value = access.next_value_seed(Free { notes: self.notes })?;
                    self.notes.path.pop();
                    object.insert(key.into_owned(), value);
                } else {
                    access.next_value::<IgnoredAny>()?;
                    self.notes.problem("unknown", &key);
                }
                continue;
            };
            if std::mem::replace(seen, true) {
                self.notes.problem("duplicate", &key);
            }
            self.notes.path.push(Step::Field(key.into_owned()));
            let ty = self.ty.of(field.ty);
            let value = access.next_value_seed(self.at(ty))?;
            self.notes.path.pop();
            match value
                .filter(|value| field.required || self.mode == Mode::Configuration || !is_empty(ty, value))
            {
                Some(value) => object.insert(field.name.clone().into_owned(), value),
                None => object.remove(field.name.as_ref()),
            };
        }
        self.notes.definitions.pop();
        Ok(object)
    }

    fn entries<'de, A: MapAccess<'de>>(
        mut self,
        value: Typed<'s>,
        mut access: A,
    ) -> Result<Map<String, Value>, A::Error> {
        let mut object = Map::new();
        while let Some(key) = access.next_key::<Cow<'de, str>>()? {
            if object.contains_key(key.as_ref()) {
                self.notes.problem("duplicate", &key);
            }
            self.notes.path.push(Step::Key(key.clone().into_owned()));
            let read = access.next_value_seed(self.at(value))?;
            self.notes.path.pop();
            object.insert(key.into_owned(), read.unwrap_or_else(|| zero(value)));
        }
        Ok(object)
    }
}

/// Whether a typed object cannot tell the value from an absent one.
fn is_empty(ty: Typed<'_>, value: &Value) -> bool {
    match (ty.get(), value) {
        (Type::List { .. }, Value::Array(items)) => items.is_empty(),
        (Type::Map { .. }, Value::Object(entries)) => entries.is_empty(),
        _ => false,
    }
}

/// What null is inside a list or a map.
fn zero(ty: Typed<'_>) -> Value {
    match ty.get() {
        Type::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::IntOrString) => Value::from(0),
        Type::Scalar(Scalar::Double) => Value::from(0.0),
        Type::Scalar(Scalar::Bool) => Value::Bool(false),
        Type::Scalar(Scalar::Quantity) => Value::from("0"),
        Type::Scalar(Scalar::String | Scalar::Bytes) => Value::from(""),
        Type::Scalar(Scalar::Any | Scalar::Time | Scalar::MicroTime) => Value::Null,
        Type::List { .. } => Value::Array(Vec::new()),
        Type::Map { .. } | Type::Struct(_) => Value::Object(Map::new()),
    }
}

/// A type as Go's messages spell it.
fn go_type(ty: Typed<'_>) -> String {
    match ty.get() {
        Type::Scalar(scalar) => match scalar {
            Scalar::String | Scalar::Quantity | Scalar::Time | Scalar::MicroTime => "string",
            Scalar::Int32 | Scalar::IntOrString => "int32",
            Scalar::Int64 => "int64",
            Scalar::Double => "float64",
            Scalar::Bool => "bool",
            Scalar::Bytes => "[]uint8",
            Scalar::Any => "interface {}",
        }
        .to_owned(),
        Type::List { item, .. } => format!("[]{}", go_type(ty.of(*item))),
        Type::Map { value, .. } => format!("map[string]{}", go_type(ty.of(*value))),
        Type::Struct(definition) => {
            // `io.k8s.api.core.v1.Pod` is `v1.Pod`.
            let mut parts = definition.name.rsplitn(3, '.');
            match (parts.next(), parts.next()) {
                (Some(name), Some(package)) => format!("{package}.{name}"),
                _ => "object".to_owned(),
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        if self.ty.is_any() {
            let value: Value = serde::Deserialize::deserialize(deserializer)?;
            return Ok((!value.is_null()).then_some(value));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&go_type(self.ty))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E: Error>(mut self, value: bool) -> Result<Self::Value, E> {
        self.scalar(scalar::Found::Bool(value))
    }

    fn visit_i64<E: Error>(mut self, value: i64) -> Result<Self::Value, E> {
        self.scalar(scalar::Found::Number(value.into()))
    }

    fn visit_u64<E: Error>(mut self, value: u64) -> Result<Self::Value, E> {
        self.scalar(scalar::Found::Number(value.into()))
    }

    fn visit_f64<E: Error>(mut self, value: f64) -> Result<Self::Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number that is not finite"))?;
        self.scalar(scalar::Found::Number(number))
    }

    fn visit_str<E: Error>(mut self, value: &str) -> Result<Self::Value, E> {
        self.scalar(scalar::Found::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut access: A) -> Result<Self::Value, A::Error> {
        let Type::List { item, .. } = self.ty.get() else { return Err(self.wrong("array")) };
        let item = self.ty.of(*item);
        let mut items = Vec::new();
        loop {
            self.notes.path.push(Step::Index(items.len()));
            let next = access.next_element_seed(self.at(item))?;
            self.notes.path.pop();
            match next {
                Some(value) => items.push(value.unwrap_or_else(|| zero(item))),
                None => return Ok(Some(Value::Array(items))),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, access: A) -> Result<Self::Value, A::Error> {
        let object = match self.ty.get() {
            Type::Struct(definition) => self.fields(definition, access)?,
            Type::Map { value, .. } => {
                let value = self.ty.of(*value);
                self.entries(value, access)?
            }
            _ => return Err(self.wrong("object")),
        };
        Ok(Some(Value::Object(object)))
    }
}

/// A value that is taken as it comes; repeated fields are reported.
struct Free<'n> {
    notes: &'n mut Notes,
}

impl<'de> DeserializeSeed<'de> for Free<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Free<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(scalar::number(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            self.notes.path.push(Step::Index(items.len()));
            let next = access.next_element_seed(Free { notes: self.notes })?;
            self.notes.path.pop();
            match next {
                Some(value) => items.push(value),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = access.next_key::<Cow<'de, str>>()? {
            if object.contains_key(key.as_ref()) {
                self.notes.problem("duplicate", &key);
            }
            self.notes.path.push(Step::Field(key.clone().into_owned()));
            let value = access.next_value_seed(Free { notes: self.notes })?;
            self.notes.path.pop();
            object.insert(key.into_owned(), value);
        }
        Ok(Value::Object(object))
    }
}
