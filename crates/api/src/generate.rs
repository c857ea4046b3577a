//! Objects made from the schema, for tests that hold for every kind.

use serde_json::{Map, Value, json};

use crate::schema::{Field, Scalar, Type, Typed};

/// Makes values; equal seeds make equal values.
pub(crate) struct Generator {
    state: u64,
}

impl Generator {
    /// A generator with a seed of its own.
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1 }
    }

    /// A number below a bound. Source: Marsaglia, "Xorshift RNGs".
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % bound
    }

    /// An object of a kind: sensible metadata, anything that the schema allows below it.
    pub(crate) fn object(&mut self, ty: Typed<'_>, api_version: &str, kind: &str) -> Value {
        let mut object = self.value(ty, 0);
        object["apiVersion"] = json!(api_version);
        object["kind"] = json!(kind);
        let mut metadata = json!({"name": self.word(), "labels": {"app": self.word()}});
        if self.below(2) == 0 {
            metadata["annotations"] = json!({"example.com/note": self.word()});
        }
        object["metadata"] = metadata;
        object
    }

    /// A value of a type. Fields are there or not; the deeper, the fewer.
    pub(crate) fn value(&mut self, ty: Typed<'_>, depth: u64) -> Value {
        match ty.get() {
            Type::Scalar(scalar) => self.scalar(*scalar),
            Type::List { item, .. } => {
                (0..=self.below(2)).map(|_| self.value(ty.of(*item), depth + 1)).collect()
            }
            Type::Map { value, .. } => {
                let key = format!("example.com/{}", self.word());
                json!({ key: self.value(ty.of(*value), depth + 1) })
            }
            Type::Struct(definition) => {
                let mut object = Map::new();
                for field in &definition.fields {
                    if self.below(depth + 2) < 2 && depth < 8 || field.required && depth < 12 {
                        object.insert(field.name.to_string(), self.field(ty, field, depth));
                    }
                }
                Value::Object(object)
            }
        }
    }

    fn field(&mut self, ty: Typed<'_>, field: &Field, depth: u64) -> Value {
        let choices = field.values();
        let chosen = match choices.len() as u64 {
            0 => return self.value(ty.of(field.ty), depth + 1),
            length => json!(choices[self.below(length) as usize]),
        };
        if matches!(ty.of(field.ty).get(), Type::List { .. }) { json!([chosen]) } else { chosen }
    }

    fn word(&mut self) -> String {
        (0..4).map(|_| char::from(b'a' + self.below(26) as u8)).collect()
    }

    fn scalar(&mut self, scalar: Scalar) -> Value {
        match scalar {
            Scalar::String => json!(self.word()),
            Scalar::Int32 | Scalar::Int64 => json!(self.below(1000) + 1),
            Scalar::Double => json!(self.below(1000) as f64 + 0.5),
            Scalar::Bool => json!(self.below(2) == 0),
            Scalar::Bytes => json!("c2tpZmY="),
            Scalar::Time => json!("2026-01-02T03:04:05Z"),
            Scalar::MicroTime => json!("2026-01-02T03:04:05.000006Z"),
            Scalar::Quantity => json!(format!("{}m", self.below(999) + 1)),
            Scalar::IntOrString if self.below(2) == 0 => json!(self.below(100)),
            Scalar::IntOrString => json!(format!("{}%", self.below(100))),
            Scalar::Any => json!({ "any": self.word() }),
        }
    }
}
