//! Types as OpenAPI schemas.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::Dialect;
use super::operations::capital;
use crate::schema::{Descriptions, Field, ListKind, Scalar, Schema, Struct, Type, Typed};

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
/// Definitions of whose fields one is set, the one that the discriminator names; which of them are a union's members is
/// in no other source. Source: the `+union` markers of `k8s.io/api`.
const UNIONS: [(&str, Option<&str>, &[&str]); 6] = [
    ("io.k8s.api.core.v1.AppArmorProfile", Some("type"), &["localhostProfile"]),
    ("io.k8s.api.core.v1.PodSchedulingGroup", None, &["podGroupName"]),
    ("io.k8s.api.core.v1.SeccompProfile", Some("type"), &["localhostProfile"]),
    ("io.k8s.api.flowcontrol.v1.LimitResponse", Some("type"), &["queuing"]),
    ("io.k8s.api.flowcontrol.v1.PriorityLevelConfigurationSpec", Some("type"), &["exempt", "limited"]),
    ("io.k8s.api.flowcontrol.v1.Subject", Some("kind"), &["group", "serviceAccount", "user"]),
];
/// Kinds of the meta group that belong to every group and version. Source: `metav1.AddToGroupVersion`.
const IN_ALL_GROUPS: [&str; 2] = ["DeleteOptions", "WatchEvent"];

/// The definitions of a document, as they come to be referred to.
pub(super) struct Definitions<'d> {
    dialect: Dialect,
    /// The groups and versions that the document is about, and the core group's; sorted.
    versions: BTreeSet<[&'d str; 2]>,
    descriptions: &'d Descriptions,
    known: BTreeSet<String>,
    done: Map<String, Value>,
}

impl<'d> Definitions<'d> {
    pub(super) fn new(
        dialect: Dialect,
        mut versions: BTreeSet<[&'d str; 2]>,
        descriptions: &'d Descriptions,
    ) -> Self {
        versions.insert(["", "v1"]);
        Self { dialect, versions, descriptions, known: BTreeSet::new(), done: Map::new() }
    }

    /// Adds a definition as it is written.
    pub(super) fn publish(&mut self, name: &str, schema: &Value) {
        self.known.insert(name.to_owned());
        self.done.insert(name.to_owned(), schema.clone());
    }

    /// Adds a definition of the built-in schema by its name.
    pub(super) fn builtin(&mut self, name: &str) {
        let schema = Schema::builtin();
        if let Some(id) = schema.named(name) {
            self.schema(schema.typed(id));
        }
    }

    /// All definitions that were referred to.
    pub(super) fn finish(self) -> Value {
        Value::Object(self.done)
    }

    /// The schema of a type: a reference where it has a name.
    pub(super) fn schema(&mut self, ty: Typed<'_>) -> Value {
        match ty.get() {
            Type::Scalar(Scalar::Any) => match ty.alias() {
                Some(name) => self.named(name, anything(name)),
                None => self.scalar(Scalar::Any),
            },
            Type::Scalar(scalar) => self.scalar(*scalar),
            Type::List { item, kind, declared } => {
                let mut schema = json!({"type": "array", "items": self.schema(ty.of(*item))});
                if *declared {
                    schema["x-kubernetes-list-type"] = list_type(kind).into();
                }
                if let ListKind::Map(keys) = kind {
                    schema["x-kubernetes-list-map-keys"] = json!(keys);
                }
                schema
            }
            Type::Map { value, atomic } => {
                let mut schema =
                    json!({"type": "object", "additionalProperties": self.schema(ty.of(*value))});
                if *atomic {
                    schema["x-kubernetes-map-type"] = "atomic".into();
                }
                schema
            }
            Type::Struct(definition) if definition.name.is_empty() => self.structure(definition, ty),
            Type::Struct(definition) => {
                let own = ty.schema().named(&definition.name).map_or(ty, |id| ty.of(id));
                let rule = own.structure().unwrap_or(definition);
                if self.known.insert(definition.name.to_string()) {
                    let body = self.structure(rule, own);
                    self.done.insert(definition.name.to_string(), body);
                }
                let mut schema = self.dialect.reference(&definition.name);
                if rule.atomic != definition.atomic {
                    let kind = if definition.atomic { "atomic" } else { "granular" };
                    schema["x-kubernetes-map-type"] = kind.into();
                }
                schema
            }
        }
    }

    fn scalar(&mut self, scalar: Scalar) -> Value {
        match scalar {
            Scalar::String => json!({"type": "string"}),
            Scalar::Int32 => json!({"type": "integer", "format": "int32"}),
            Scalar::Int64 => json!({"type": "integer", "format": "int64"}),
            Scalar::Double => json!({"type": "number", "format": "double"}),
            Scalar::Bool => json!({"type": "boolean"}),
            Scalar::Bytes => json!({"type": "string", "format": "byte"}),
            Scalar::Any => json!({"type": "object"}),
            Scalar::Time => self.named(TIME, json!({"type": "string", "format": "date-time"})),
            Scalar::MicroTime => self.named(MICRO_TIME, json!({"type": "string", "format": "date-time"})),
            Scalar::Quantity => {
                let schema = match self.dialect {
                    Dialect::V2 => json!({"type": "string"}),
                    Dialect::V3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
                };
                self.named(QUANTITY, schema)
            }
            Scalar::IntOrString => {
                let schema = match self.dialect {
                    Dialect::V2 => json!({"type": "string", "format": "int-or-string"}),
                    Dialect::V3 => {
                        json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
                    }
                };
                self.named(INT_OR_STRING, schema)
            }
        }
    }

    /// A leaf that has a definition of its own.
    fn named(&mut self, name: &str, mut schema: Value) -> Value {
        if self.known.insert(name.to_owned()) {
            if let Some(description) = self.descriptions.definition(name) {
                schema["description"] = description.into();
            }
            self.done.insert(name.to_owned(), schema);
        }
        self.dialect.reference(name)
    }

    fn structure(&mut self, definition: &Struct, ty: Typed<'_>) -> Value {
        let mut schema = json!({"type": "object"});
        if let Some(description) = self.descriptions.definition(&definition.name) {
            schema["description"] = description.into();
        }
        let properties: Map<String, Value> = definition
            .fields
            .iter()
            .map(|field| (field.name.to_string(), self.property(definition, field, ty)))
            .collect();
        if !properties.is_empty() {
            schema["properties"] = Value::Object(properties);
        }
        let required: Vec<&str> = definition
            .fields
            .iter()
            .filter(|field| field.required)
            .map(|field| field.name.as_ref())
            .collect();
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if definition.atomic {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        if definition.preserve_unknown {
            schema["x-kubernetes-preserve-unknown-fields"] = true.into();
        }
        if let Some((_, discriminator, members)) = UNIONS.iter().find(|(name, ..)| definition.name == *name) {
            let members: Map<String, Value> =
                members.iter().map(|name| ((*name).to_owned(), capital(name).into())).collect();
            let mut union = json!({"fields-to-discriminateBy": members});
            if let Some(discriminator) = discriminator {
                union["discriminator"] = (*discriminator).into();
            }
            schema["x-kubernetes-unions"] = json!([union]);
        }
        if let Some([group, version, kind]) = &definition.kind {
            schema["x-kubernetes-group-version-kind"] =
                json!([{"group": group, "version": version, "kind": kind}]);
        }
        if let Some(kind) = definition.name.strip_prefix(META).filter(|kind| IN_ALL_GROUPS.contains(kind)) {
            let kinds = self
                .versions
                .iter()
                .map(|[group, version]| json!({"group": group, "version": version, "kind": kind}));
            schema["x-kubernetes-group-version-kind"] = kinds.collect();
        }
        schema
    }

    fn property(&mut self, definition: &Struct, field: &Field, ty: Typed<'_>) -> Value {
        let mut schema = self.schema(ty.of(field.ty));
        let v3 = self.dialect == Dialect::V3;
        // In version 3 nothing may stand beside a reference.
        if v3 && let Some(reference) = schema.as_object_mut().and_then(|schema| schema.remove("$ref")) {
            schema["allOf"] = json!([{"$ref": reference}]);
        }
        if let Some(description) = self.descriptions.field(&definition.name, &field.name) {
            schema["description"] = description.into();
        }
        if v3 && let Some(default) = field.default() {
            schema["default"] = default.clone();
        }
        if v3 && !field.values().is_empty() {
            schema["enum"] = json!(field.values());
        }
        let strategy = match (field.patch_merges(), field.patch_retains_keys()) {
            (true, true) => Some("merge,retainKeys"),
            (true, false) => Some("merge"),
            (false, true) => Some("retainKeys"),
            (false, false) => None,
        };
        if let Some(strategy) = strategy {
            schema["x-kubernetes-patch-strategy"] = strategy.into();
        }
        if let Some(key) = field.patch_key() {
            schema["x-kubernetes-patch-merge-key"] = key.into();
        }
        schema
    }
}

/// A definition that holds any JSON: where it may be something else than an object, it does not say what.
fn anything(name: &str) -> Value {
    let free = name.rsplit_once('.').is_some_and(|(_, name)| name.starts_with("JSON"));
    if free { json!({}) } else { json!({"type": "object"}) }
}

fn list_type(kind: &ListKind) -> &'static str {
    match kind {
        ListKind::Atomic => "atomic",
        ListKind::Set => "set",
        ListKind::Map(_) => "map",
    }
}
