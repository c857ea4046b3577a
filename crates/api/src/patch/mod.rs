//! The four kinds of patch, over JSON trees: RFC 6902, RFC 7386, strategic merge, and server-side apply with the
//! ownership of fields. What the schema says of a field comes in through [`Shape`].

pub mod apply;
pub mod fields;
mod json;
mod shown;
pub mod strategic;
pub mod typed;

use std::borrow::Cow;

pub use json::{Refusal, json_patch, merge_patch};
pub use shown::shown;

/// How the items of a list belong together. Source: KEP-555, `x-kubernetes-list-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListType<'s> {
    /// The list is one value.
    Atomic,
    /// Its scalar items are unique.
    Set,
    /// Its items are identified by these fields, each with the default that stands for its absence.
    Map(&'s [Cow<'static, str>]),
}

/// What patches have to know of a field.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'s> {
    /// For lists.
    pub list_type: ListType<'s>,
    /// A map or struct that is one value (`x-kubernetes-map-type: atomic`).
    pub atomic_map: bool,
    /// `patchStrategy` contains `merge`.
    pub patch_merge: bool,
    /// `patchMergeKey`.
    pub patch_merge_key: Option<&'s str>,
}

impl Facts<'_> {
    /// A field that nothing is known of: maps merge, lists are atomic.
    pub const UNKNOWN: Facts<'static> =
        Facts { list_type: ListType::Atomic, atomic_map: false, patch_merge: false, patch_merge_key: None };
}

/// A place in a schema. Cheap to copy: a reference into the table.
pub trait Shape<'s>: Copy {
    /// The declared field of a struct; `None` for maps and undeclared fields.
    fn field(self, name: &str) -> Option<Self>;
    /// What the entries of a map, or the items of a list, look like.
    fn element(self) -> Option<Self>;
    /// What is known of the place itself.
    fn facts(self) -> Facts<'s>;
    /// The default of a declared field, for list keys that were left out (`protocol: TCP`).
    fn default_of(self, name: &str) -> Option<serde_json::Value>;
}

/// What lies under `name`, in a struct or a map.
pub(crate) fn descend<'s, S: Shape<'s>>(shape: Option<S>, name: &str) -> Option<S> {
    shape.and_then(|shape| shape.field(name).or_else(|| shape.element()))
}

/// What is known of a place that may be unknown.
pub(crate) fn facts<'s, S: Shape<'s>>(shape: Option<S>) -> Facts<'s> {
    shape.map_or(Facts::UNKNOWN, Shape::facts)
}

#[cfg(test)]
pub(crate) mod testing {
    //! A tiny schema for tests of patches: a pod-like object.

    use std::borrow::Cow;

    use super::{Facts, ListType, Shape};
    use serde_json::{Value, json};
    use std::sync::LazyLock;

    static NAME: LazyLock<Vec<Cow<'static, str>>> = LazyLock::new(|| vec!["name".into()]);
    static PORT: LazyLock<Vec<Cow<'static, str>>> =
        LazyLock::new(|| vec!["containerPort".into(), "protocol".into()]);

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Place {
        Object,
        Metadata,
        StringMap,
        Finalizers,
        Spec,
        Containers,
        Container,
        Ports,
        Port,
        Args,
        Selector,
        Scalar,
    }

    impl Shape<'static> for Place {
        fn field(self, name: &str) -> Option<Self> {
            Some(match (self, name) {
                (Self::Object, "metadata") => Self::Metadata,
                (Self::Object, "spec") => Self::Spec,
                (Self::Metadata, "labels" | "annotations") => Self::StringMap,
                (Self::Metadata, "finalizers") => Self::Finalizers,
                (Self::Spec, "containers") => Self::Containers,
                (Self::Spec, "selector") => Self::Selector,
                (Self::Container, "ports") => Self::Ports,
                (Self::Container, "args") => Self::Args,
                (Self::Object | Self::Metadata | Self::Spec | Self::Container | Self::Port, _) => {
                    Self::Scalar
                }
                _ => return None,
            })
        }

        fn element(self) -> Option<Self> {
            Some(match self {
                Self::Containers => Self::Container,
                Self::Ports => Self::Port,
                Self::StringMap | Self::Finalizers | Self::Args | Self::Selector => Self::Scalar,
                _ => return None,
            })
        }

        fn facts(self) -> Facts<'static> {
            let list = |list_type, key| Facts {
                list_type,
                patch_merge: true,
                patch_merge_key: key,
                ..Facts::UNKNOWN
            };
            match self {
                Self::Containers => list(ListType::Map(&NAME), Some("name")),
                Self::Ports => list(ListType::Map(&PORT), Some("containerPort")),
                Self::Finalizers => list(ListType::Set, None),
                Self::Selector => Facts { atomic_map: true, ..Facts::UNKNOWN },
                _ => Facts::UNKNOWN,
            }
        }

        fn default_of(self, name: &str) -> Option<Value> {
            (self == Self::Port && name == "protocol").then(|| json!("TCP"))
        }
    }
}
