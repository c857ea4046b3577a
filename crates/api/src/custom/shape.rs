//! A custom resource's schema as types of [`Schema`]: what server-side apply, selectors and decoding of metadata read.

use std::collections::BTreeMap;

use crate::schema::{Field, ListKind, Name, Scalar, Schema, Struct, Type, TypeId, Typed};

use super::props::Props;

/// The types of a version.
pub(super) struct Types {
    /// The kind.
    pub(super) root: TypeId,
    /// The kind as it is decoded: only what every object has is typed, the rest is taken as it comes.
    pub(super) envelope: TypeId,
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Adds the types of a version to a schema.
pub(super) fn build(schema: &mut Schema, props: &Props, name: String, kind: [Name; 3]) -> Types {
    let metadata = object_meta(schema);
    let text = schema.add(Type::Scalar(Scalar::String));
    let of_objects = || {
        [("apiVersion", text), ("kind", text), ("metadata", metadata)].map(|(name, ty)| (name.to_owned(), ty))
    };
    let mut fields: BTreeMap<String, Field> = of_properties(schema, props);
    fields.extend(of_objects().map(|(name, ty)| (name.clone(), Field::new(name.into(), ty))));
    let root = schema.add(Type::Struct(Box::new(Struct {
        name: name.into(),
        fields: fields.into_values().collect(),
        preserve_unknown: props.preserves(),
        kind: Some(kind),
        ..Struct::default()
    })));
    let fields = of_objects().map(|(name, ty)| Field::new(name.into(), ty)).to_vec();
    let envelope =
        schema.add(Type::Struct(Box::new(Struct { fields, preserve_unknown: true, ..Struct::default() })));
    Types { root, envelope }
}

fn of_properties(schema: &mut Schema, props: &Props) -> BTreeMap<String, Field> {
    let mut fields = BTreeMap::new();
    for (name, property) in &props.properties {
        let mut field = Field::new(name.clone().into(), value(schema, property));
        field.required = props.required.contains(name);
        field.set_default(property.default.clone());
        fields.insert(name.clone(), field);
    }
    fields
}

fn value(schema: &mut Schema, props: &Props) -> TypeId {
    let atomic = props.map_type.as_deref() == Some("atomic");
    let ty = match props.ty.as_str() {
        _ if props.int_or_string => Type::Scalar(Scalar::IntOrString),
        "string" => Type::Scalar(Scalar::String),
        "boolean" => Type::Scalar(Scalar::Bool),
        "integer" => Type::Scalar(Scalar::Int64),
        "number" => Type::Scalar(Scalar::Double),
        "array" => {
            let item = match props.item() {
                Some(item) => value(schema, item),
                None => schema.add(Type::Scalar(Scalar::Any)),
            };
            let kind = match props.list_type.as_deref() {
                Some("set") => ListKind::Set,
                Some("map") => ListKind::Map(props.list_keys.iter().cloned().map(Name::Owned).collect()),
                _ => ListKind::Atomic,
            };
            Type::List { item, kind, declared: props.list_type.is_some() }
        }
        _ if props.properties.is_empty() && props.additional().is_some() => {
            let element = props.additional().map(|element| value(schema, element));
            match element {
                Some(value) => Type::Map { value, atomic },
                None => Type::Scalar(Scalar::Any),
            }
        }
        _ => {
            let mut fields = of_properties(schema, props);
            if props.embedded {
                let metadata = object_meta(schema);
                fields.insert("metadata".into(), Field::new("metadata".into(), metadata));
            }
            Type::Struct(Box::new(Struct {
                fields: fields.into_values().collect(),
                atomic,
                preserve_unknown: props.preserves(),
                ..Struct::default()
            }))
        }
    };
    schema.add(ty)
}

/// The built-in `ObjectMeta` in another schema.
fn object_meta(schema: &mut Schema) -> TypeId {
    if let Some(known) = schema.named(META) {
        return known;
    }
    let builtin = Schema::builtin();
    match builtin.named(META) {
        Some(id) => imported(schema, builtin.typed(id)),
        None => schema.add(Type::Scalar(Scalar::Any)),
    }
}

/// A copy of a type in another schema. Metadata does not refer to itself, so this ends.
fn imported(schema: &mut Schema, ty: Typed<'_>) -> TypeId {
    let copy = match ty.get() {
        Type::Scalar(scalar) => Type::Scalar(*scalar),
        Type::List { item, kind, declared } => {
            Type::List { item: imported(schema, ty.of(*item)), kind: kind.clone(), declared: *declared }
        }
        Type::Map { value, atomic } => Type::Map { value: imported(schema, ty.of(*value)), atomic: *atomic },
        Type::Struct(definition) => {
            let mut copy = definition.clone();
            for field in &mut copy.fields {
                field.ty = imported(schema, ty.of(field.ty));
            }
            Type::Struct(copy)
        }
    };
    schema.add(copy)
}
