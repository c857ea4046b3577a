//! The schema: every definition and field of the API as data. Decoding, defaulting, patches, OpenAPI and protobuf read
//! it; a CustomResourceDefinition's schema is built into the same form.

mod describe;
mod parse;
mod place;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use serde_json::Value;

pub use describe::Descriptions;
pub use parse::TableError;
pub use place::Place;

/// A name that is mostly part of the embedded table.
pub type Name = Cow<'static, str>;

/// Index of a type within its [`Schema`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(u32);

/// A leaf of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scalar {
    /// UTF-8 text.
    String,
    /// 32-bit integer.
    Int32,
    /// 64-bit integer.
    Int64,
    /// IEEE 754 double.
    Double,
    /// `true` or `false`.
    Bool,
    /// Bytes, base64 in JSON.
    Bytes,
    /// RFC 3339 to the second, `meta/v1.Time`.
    Time,
    /// RFC 3339 to the microsecond, `meta/v1.MicroTime`.
    MicroTime,
    /// `resource.Quantity`: a string or a number.
    Quantity,
    /// `intstr.IntOrString`: a 32-bit integer or a string.
    IntOrString,
    /// Arbitrary JSON that is kept as it is (`RawExtension`, `FieldsV1`, preserved fields of custom resources).
    Any,
}

/// How the items of a list are told apart when several managers write it. Source: KEP-555 (server-side apply).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListKind {
    /// The list is one value.
    Atomic,
    /// Items are unique values.
    Set,
    /// Items are objects with these keys.
    Map(Vec<Name>),
}

/// The type of a value.
#[derive(Debug, Clone, PartialEq)]
pub enum Type {
    /// A leaf.
    Scalar(Scalar),
    /// A list of items.
    List {
        /// Type of an item.
        item: TypeId,
        /// How items are told apart.
        kind: ListKind,
        /// Whether the declaration said so (else the kind is the rule's `Atomic`): OpenAPI repeats what was said.
        declared: bool,
    },
    /// String keys to values.
    Map {
        /// Type of a value.
        value: TypeId,
        /// Whether the map is one value for server-side apply.
        atomic: bool,
    },
    /// An object with known fields.
    Struct(Box<Struct>),
}

/// A definition with fields.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Struct {
    /// `io.k8s.api.core.v1.Pod`; custom resources have none.
    pub name: Name,
    /// Fields by name, sorted.
    pub fields: Vec<Field>,
    /// Whether it is one value for server-side apply.
    pub atomic: bool,
    /// Whether unknown fields are kept (custom resources only).
    pub preserve_unknown: bool,
    /// Group, version and kind, if it is a kind.
    pub kind: Option<[Name; 3]>,
}

impl Struct {
    /// The field with a name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        let index = self.fields.binary_search_by(|field| field.name.as_ref().cmp(name)).ok()?;
        self.fields.get(index)
    }

    /// Its name without the package, as Go's messages spell types: `Pod`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit_once('.').map_or(self.name.as_ref(), |(_, short)| short)
    }
}

/// A field of a definition.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Name in JSON.
    pub name: Name,
    /// Type.
    pub ty: TypeId,
    /// Protobuf field number; 0: none known.
    pub number: u32,
    /// Numbers, from the outside in, of the messages in which the field stands on the wire, where upstream's Go type
    /// embeds them (`Volume` its `VolumeSource`) and JSON does not show it; empty: it stands in its definition's own.
    pub within: Box<[u32]>,
    /// Whether JSON shows the field also where it is zero: upstream's Go type has a pointer, or no `omitempty`.
    pub shows_zero: bool,
    /// Whether upstream's description lists it as required.
    pub required: bool,
    /// Whether it may not change after creation.
    pub immutable: bool,
    /// Facts that few fields have.
    extra: Option<Box<Extra>>,
}

/// Facts that few fields have.
#[derive(Debug, Clone, PartialEq, Default)]
struct Extra {
    default: Option<Value>,
    values: Vec<Name>,
    patch_merge: bool,
    patch_retain_keys: bool,
    patch_key: Option<Name>,
    since: Option<Name>,
    union: Option<Union>,
}

/// JSON forms that protobuf spells out, of `apiextensions`' schemas. Source: `types_jsonschema.go`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Union {
    /// `JSONSchemaPropsOrBool`: allows 1, schema 2.
    SchemaOrBool,
    /// `JSONSchemaPropsOrArray`: schema 1, several 2.
    SchemaOrArray,
    /// `JSONSchemaPropsOrStringArray`, by property: schema 1, names 2.
    SchemaOrStrings,
}

impl Field {
    /// An optional field without facts besides its type; for schemas built at run time.
    pub fn new(name: Name, ty: TypeId) -> Self {
        Self {
            name,
            ty,
            number: 0,
            within: Box::default(),
            shows_zero: false,
            required: false,
            immutable: false,
            extra: None,
        }
    }

    /// Sets the value of the field where it is absent.
    pub fn set_default(&mut self, default: Option<Value>) {
        if default.is_some() {
            self.extra.get_or_insert_default().default = default;
        }
    }

    /// The value of a field that is absent.
    pub fn default(&self) -> Option<&Value> {
        self.extra.as_ref()?.default.as_ref()
    }

    /// The allowed values, where they are enumerated.
    pub fn values(&self) -> &[Name] {
        self.extra.as_ref().map_or(&[], |extra| &extra.values)
    }

    /// Whether a strategic merge patch merges the list by item instead of replacing it.
    pub fn patch_merges(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.patch_merge)
    }

    /// Whether a strategic merge patch may name the keys that stay (`$retainKeys`).
    pub fn patch_retains_keys(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.patch_retain_keys)
    }

    /// The key by which a strategic merge patch finds items.
    pub fn patch_key(&self) -> Option<&str> {
        self.extra.as_ref()?.patch_key.as_deref()
    }

    /// The forms that protobuf spells out where JSON holds one of several.
    pub fn union(&self) -> Option<Union> {
        self.extra.as_ref()?.union
    }

    /// The release that added the field, where it is known.
    pub fn since(&self) -> Option<&str> {
        self.extra.as_ref()?.since.as_deref()
    }
}

/// A set of types that refer to each other.
#[derive(Debug, Clone, Default)]
pub struct Schema {
    types: Vec<Type>,
    by_name: HashMap<Name, TypeId>,
    by_kind: HashMap<[Name; 3], TypeId>,
    /// Leaves that hold any JSON and have a name of their own (`RawExtension`).
    aliases: HashMap<TypeId, Name>,
}

impl Schema {
    /// The schema of the built-in API; read on first use.
    pub fn builtin() -> &'static Arc<Self> {
        static BUILTIN: LazyLock<Arc<Schema>> = LazyLock::new(|| {
            let table = include_str!("../../schema/kubernetes.tsv");
            #[allow(
                clippy::expect_used,
                reason = "a part of the program, read by its tests: no input reaches it"
            )]
            Arc::new(parse::table(table).expect("the embedded schema table is well-formed"))
        });
        &BUILTIN
    }

    /// The type with an index.
    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    /// The type with a definition's name.
    pub fn named(&self, name: &str) -> Option<TypeId> {
        self.by_name.get(name).copied()
    }

    /// The type of a kind.
    pub fn of_kind(&self, group: &str, version: &str, kind: &str) -> Option<TypeId> {
        self.by_kind.get(&[group, version, kind].map(|part| Name::Owned(part.to_owned()))).copied()
    }

    /// Adds a leaf that holds any JSON under a name of its own.
    fn add_alias(&mut self, name: Name) {
        let id = self.add(Type::Scalar(Scalar::Any));
        self.by_name.insert(name.clone(), id);
        self.aliases.insert(id, name);
    }

    /// The definition of a type, if it has fields.
    pub fn structure(&self, id: TypeId) -> Option<&Struct> {
        match self.get(id) {
            Type::Struct(definition) => Some(definition),
            _ => None,
        }
    }

    /// All definitions with their names, in no order.
    pub fn definitions(&self) -> impl Iterator<Item = (&str, TypeId)> {
        self.by_name.iter().map(|(name, id)| (name.as_ref(), *id))
    }

    /// Adds a type; for schemas built at run time.
    pub fn add(&mut self, ty: Type) -> TypeId {
        // A schema is bounded by the size of a request or of the embedded table, far below 2^32 types.
        let id = TypeId(u32::try_from(self.types.len()).unwrap_or(u32::MAX));
        if let Type::Struct(definition) = &ty
            && !definition.name.is_empty()
        {
            self.by_name.insert(definition.name.clone(), id);
        }
        if let Type::Struct(definition) = &ty
            && let Some(kind) = &definition.kind
        {
            self.by_kind.insert(kind.clone(), id);
        }
        self.types.push(ty);
        id
    }

    /// A type with its schema.
    pub fn typed(&self, id: TypeId) -> Typed<'_> {
        Typed { schema: self, id }
    }
}

/// A type together with the schema that it refers into: what every walk over a value takes along.
#[derive(Clone, Copy)]
pub struct Typed<'s> {
    schema: &'s Schema,
    id: TypeId,
}

impl<'s> Typed<'s> {
    /// The type.
    pub fn get(self) -> &'s Type {
        self.schema.get(self.id)
    }

    /// Its index.
    pub fn id(self) -> TypeId {
        self.id
    }

    /// The name of a leaf that holds any JSON (`io.k8s.apimachinery.pkg.runtime.RawExtension`), if it has one.
    pub fn alias(self) -> Option<&'s str> {
        self.schema.aliases.get(&self.id).map(AsRef::as_ref)
    }

    /// Its schema.
    pub fn schema(self) -> &'s Schema {
        self.schema
    }

    /// Another type of the same schema.
    pub fn of(self, id: TypeId) -> Self {
        Self { schema: self.schema, id }
    }

    /// The type of a field or of a map's value.
    pub fn child(self, name: &str) -> Option<Self> {
        match self.get() {
            Type::Struct(definition) => definition.field(name).map(|field| self.of(field.ty)),
            Type::Map { value, .. } => Some(self.of(*value)),
            _ => None,
        }
    }

    /// The definition, if it has fields.
    pub fn structure(self) -> Option<&'s Struct> {
        self.schema.structure(self.id)
    }

    /// Whether anything may stand here.
    pub fn is_any(self) -> bool {
        matches!(self.get(), Type::Scalar(Scalar::Any))
    }
}

#[cfg(test)]
mod tests;
