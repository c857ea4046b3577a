//! Places of the schema as patches see them: a type, and what the field that holds it says about merging.

use serde_json::Value;

use super::{Field, ListKind, Type, Typed};
use crate::patch::{Facts, ListType, Shape};

/// A place in an object: its type and the field, if any, that it is the value of.
#[derive(Clone, Copy)]
pub struct Place<'s> {
    ty: Typed<'s>,
    field: Option<&'s Field>,
}

impl<'s> Typed<'s> {
    /// The type as the root of patches; `None` where nothing is declared, so that maps merge and lists are atomic.
    pub fn place(self) -> Option<Place<'s>> {
        (!self.is_any()).then_some(Place { ty: self, field: None })
    }
}

impl<'s> Place<'s> {
    /// Its type.
    pub fn typed(self) -> Typed<'s> {
        self.ty
    }
}

impl<'s> Shape<'s> for Place<'s> {
    fn field(self, name: &str) -> Option<Self> {
        let field = self.ty.structure()?.field(name)?;
        Some(Self { ty: self.ty.of(field.ty), field: Some(field) })
    }

    fn element(self) -> Option<Self> {
        let element = match self.ty.get() {
            Type::List { item, .. } => *item,
            Type::Map { value, .. } => *value,
            _ => return None,
        };
        Some(Self { ty: self.ty.of(element), field: None })
    }

    fn facts(self) -> Facts<'s> {
        let (list_type, atomic_map) = match self.ty.get() {
            Type::List { kind: ListKind::Set, .. } => (ListType::Set, false),
            Type::List { kind: ListKind::Map(keys), .. } => (ListType::Map(keys), false),
            Type::Map { atomic, .. } => (ListType::Atomic, *atomic),
            Type::Struct(definition) => (ListType::Atomic, definition.atomic),
            // `FieldsV1` and raw extensions are one value each: nobody knows what is in them.
            _ => (ListType::Atomic, self.ty.is_any()),
        };
        Facts {
            list_type,
            atomic_map,
            patch_merge: self.field.is_some_and(Field::patch_merges),
            patch_merge_key: self.field.and_then(Field::patch_key),
        }
    }

    fn default_of(self, name: &str) -> Option<Value> {
        self.ty.structure()?.field(name)?.default().cloned()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Schema;
    use super::*;
    use crate::patch::apply::{self, Writer};
    use crate::patch::strategic;

    fn pod() -> Option<Place<'static>> {
        let schema = Schema::builtin();
        schema.named("io.k8s.api.core.v1.Pod").and_then(|id| schema.typed(id).place())
    }

    #[test]
    fn strategic_merge_follows_the_declared_keys() {
        let live = json!({"spec": {"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b"}],
            "tolerations": [{"key": "k"}]}});
        let patch =
            json!({"spec": {"containers": [{"name": "a", "args": ["y"]}], "tolerations": [{"key": "l"}]}});
        let wanted = json!({"spec": {"containers": [{"name": "a", "image": "1", "args": ["y"]}, {"name": "b"}],
            "tolerations": [{"key": "l"}]}});
        assert_eq!(strategic::apply(live, patch, pod()), Ok(wanted));
    }

    #[test]
    fn apply_records_list_items_by_key_with_their_defaults() {
        let writer = Writer {
            manager: "me".into(),
            api_version: "v1".into(),
            subresource: String::new(),
            time: "2026-01-01T00:00:00Z".into(),
        };
        let config = json!({"metadata": {"name": "x", "finalizers": ["f/x"]},
            "spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80}]}], "nodeSelector": {"a": "b"}}});
        let applied = apply::apply(&Value::Null, config, pod(), &writer, false).expect("no conflict");
        let wanted = json!({
            "f:metadata": {"f:finalizers": {"v:\"f/x\"": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {
                ".": {}, "f:name": {},
                "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
            }}, "f:nodeSelector": {}},
        });
        assert_eq!(applied["metadata"]["managedFields"][0]["fieldsV1"], wanted);
    }
}
