//! Reads the schema's text form: `definition TAB attributes`, below it `TAB field TAB type TAB number TAB attributes`.

use std::collections::HashMap;

use super::{Extra, Field, ListKind, Name, Scalar, Schema, Struct, Type, TypeId, Union};

/// A line of the table that is wrong.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("schema table, line {line}: {problem}")]
pub struct TableError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: String,
}

/// Reads a table.
pub(super) fn table(text: &'static str) -> Result<Schema, TableError> {
    let mut reader = Reader::default();
    reader.declare(text);
    for (index, line) in text.lines().enumerate() {
        let read = match line.strip_prefix('\t') {
            _ if line.is_empty() || line.starts_with('#') => Ok(()),
            Some(field) => reader.field(field),
            None => reader.definition(line),
        };
        read.map_err(|problem| TableError { line: index + 1, problem })?;
    }
    Ok(reader.schema)
}

#[derive(Default)]
struct Reader {
    schema: Schema,
    current: Option<TypeId>,
    /// Lists, maps and scalars that were made, so that equal ones are one.
    shapes: HashMap<Shape, TypeId>,
}

#[derive(PartialEq, Eq, Hash)]
enum Shape {
    Scalar(Scalar),
    List(TypeId, ListKind, bool),
    Map(TypeId, bool),
    /// A definition that one field declares atomic, or granular, against its own rule.
    Override(TypeId, bool),
}

type Problem = String;

impl Reader {
    /// Gives every definition its place first: fields refer to definitions before and after them.
    fn declare(&mut self, text: &'static str) {
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with(['\t', '#'])) {
            let (name, attributes) = line.split_once('\t').unwrap_or((line, ""));
            let alias = attributes.split('\t').find_map(|attribute| attribute.strip_prefix("alias="));
            match alias.and_then(scalar) {
                // Documents name it; all others are equal to their scalar.
                Some(Scalar::Any) => self.schema.add_alias(Name::Borrowed(name)),
                Some(scalar) => {
                    let id = self.shape(Shape::Scalar(scalar));
                    self.schema.by_name.insert(Name::Borrowed(name), id);
                }
                None => {
                    let definition = Struct { name: Name::Borrowed(name), ..Struct::default() };
                    self.schema.add(Type::Struct(Box::new(definition)));
                }
            }
        }
    }

    fn definition(&mut self, line: &'static str) -> Result<(), Problem> {
        let mut parts = line.split('\t');
        let name = parts.next().unwrap_or_default();
        let id = self.schema.named(name).ok_or("a definition that was not declared")?;
        self.current = Some(id);
        let Type::Struct(definition) = &mut self.schema.types[id.0 as usize] else { return Ok(()) };
        for attribute in parts {
            if attribute == "map=atomic" {
                definition.atomic = true;
            } else if let Some(kind) = attribute.strip_prefix("kind=") {
                let kind: Vec<&str> = kind.split('/').collect();
                let [group, version, kind] = kind[..] else { return Err(format!("bad kind {kind:?}")) };
                let kind = [group.into(), version.into(), kind.into()];
                definition.kind = Some(kind.clone());
                self.schema.by_kind.insert(kind, id);
            }
        }
        Ok(())
    }

    fn field(&mut self, line: &'static str) -> Result<(), Problem> {
        let mut parts = line.split('\t');
        let (Some(name), Some(ty), Some(number)) = (parts.next(), parts.next(), parts.next()) else {
            return Err("a field has name, type and number".into());
        };
        let number = number.parse().map_err(|_| format!("bad number {number}"))?;
        let mut field = Field {
            name: name.into(),
            ty: TypeId(0),
            number,
            within: Box::default(),
            shows_zero: false,
            required: false,
            immutable: false,
            extra: None,
        };
        let (mut list, mut map) = (None, None);
        for attribute in parts {
            let (key, value) = attribute.split_once('=').unwrap_or((attribute, ""));
            match key {
                "list" => list = Some(list_kind(value)),
                "map" => map = Some(value == "atomic"),
                _ => field_attribute(&mut field, key, value)?,
            }
        }
        field.ty = self.resolve(ty, list.as_ref(), map)?;
        let current = self.current.ok_or("a field without a definition")?;
        let Type::Struct(definition) = &mut self.schema.types[current.0 as usize] else {
            return Err("a field below an alias".into());
        };
        if definition.fields.last().is_some_and(|last| last.name >= field.name) {
            return Err("fields are not in order".into());
        }
        definition.fields.push(field);
        Ok(())
    }

    fn resolve(
        &mut self,
        ty: &'static str,
        list: Option<&ListKind>,
        map: Option<bool>,
    ) -> Result<TypeId, Problem> {
        if let Some(item) = ty.strip_prefix("[]") {
            let item = self.resolve(item, None, None)?;
            let kind = list.cloned().unwrap_or(ListKind::Atomic);
            return Ok(self.shape(Shape::List(item, kind, list.is_some())));
        }
        if let Some(value) = ty.strip_prefix("map[").and_then(|rest| rest.strip_suffix(']')) {
            let value = self.resolve(value, None, None)?;
            return Ok(self.shape(Shape::Map(value, map == Some(true))));
        }
        if let Some(scalar) = scalar(ty) {
            return Ok(self.shape(Shape::Scalar(scalar)));
        }
        let id = self.schema.named(ty).ok_or_else(|| format!("unknown type {ty}"))?;
        Ok(match map {
            Some(atomic) => self.shape(Shape::Override(id, atomic)),
            None => id,
        })
    }

    fn shape(&mut self, shape: Shape) -> TypeId {
        if let Some(id) = self.shapes.get(&shape) {
            return *id;
        }
        let ty = match &shape {
            Shape::Scalar(scalar) => Type::Scalar(*scalar),
            Shape::List(item, kind, declared) => {
                Type::List { item: *item, kind: kind.clone(), declared: *declared }
            }
            Shape::Map(value, atomic) => Type::Map { value: *value, atomic: *atomic },
            Shape::Override(id, atomic) => self.overridden(*id, *atomic),
        };
        // Pushed, not added: an override shares its definition's name, which stays that of the original.
        let id = TypeId(u32::try_from(self.schema.types.len()).unwrap_or(u32::MAX));
        self.schema.types.push(ty);
        self.shapes.insert(shape, id);
        id
    }

    /// A copy of a definition with its own atomicity. The original may not have its fields yet, so only definitions
    /// that precede their use can be overridden; the table's order makes that a property its tests check.
    fn overridden(&self, id: TypeId, atomic: bool) -> Type {
        match self.schema.get(id) {
            Type::Struct(definition) => Type::Struct(Box::new(Struct { atomic, ..(**definition).clone() })),
            other => other.clone(),
        }
    }
}

fn field_attribute(field: &mut Field, key: &str, value: &'static str) -> Result<(), Problem> {
    match key {
        "required" => {
            field.required = true;
            return Ok(());
        }
        "immutable" => {
            field.immutable = true;
            return Ok(());
        }
        "in" => {
            let path: Result<_, _> = value.split('.').map(str::parse).collect();
            field.within = path.map_err(|_| format!("bad numbers {value}"))?;
            return Ok(());
        }
        "zero" => {
            field.shows_zero = true;
            return Ok(());
        }
        _ => {}
    }
    let extra: &mut Extra = field.extra.get_or_insert_default();
    match key {
        "default" => {
            let default = serde_json::from_str(value).map_err(|error| format!("default: {error}"))?;
            extra.default = Some(default);
        }
        "enum" => extra.values = value.split(',').map(Name::Borrowed).collect(),
        "patch" => {
            extra.patch_merge = value.split(',').any(|part| part == "merge");
            extra.patch_retain_keys = value.split(',').any(|part| part == "retainKeys");
        }
        "key" => extra.patch_key = Some(value.into()),
        "since" => extra.since = Some(value.into()),
        "wire" => extra.union = Some(union(value).ok_or_else(|| format!("unknown union {value}"))?),
        _ => return Err(format!("unknown attribute {key}")),
    }
    Ok(())
}

fn union(name: &str) -> Option<Union> {
    Some(match name {
        "schemaOrBool" => Union::SchemaOrBool,
        "schemaOrArray" => Union::SchemaOrArray,
        "schemaOrStrings" => Union::SchemaOrStrings,
        _ => return None,
    })
}

fn list_kind(value: &'static str) -> ListKind {
    match value.strip_prefix("map:") {
        Some(keys) => ListKind::Map(keys.split(',').map(Name::Borrowed).collect()),
        None if value == "set" => ListKind::Set,
        None => ListKind::Atomic,
    }
}

fn scalar(name: &str) -> Option<Scalar> {
    Some(match name {
        "string" => Scalar::String,
        "int32" => Scalar::Int32,
        "int64" => Scalar::Int64,
        "double" => Scalar::Double,
        "bool" => Scalar::Bool,
        "bytes" => Scalar::Bytes,
        "time" => Scalar::Time,
        "microtime" => Scalar::MicroTime,
        "quantity" => Scalar::Quantity,
        "intstr" => Scalar::IntOrString,
        "any" => Scalar::Any,
        _ => return None,
    })
}
