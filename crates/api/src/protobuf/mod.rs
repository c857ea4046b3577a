//! Protobuf bodies, between JSON and the wire, driven by the schema's field numbers; no type per kind.
//!
//! A body is `k8s\0` followed by a `runtime.Unknown` message: the kind (1), the object's message (2), and two texts that
//! are empty (3, 4). A watch event is a bare `meta/v1.WatchEvent` whose object is such a body, after its length in four
//! bytes. Source: `k8s.io/apimachinery/pkg/runtime/serializer/protobuf`.

mod decode;
mod encode;
mod wire;

use crate::schema::{Schema, Struct, Typed};

pub use decode::decode;
pub use encode::{Items, event, object, partial};

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";
/// Messages within messages; the API's own types stay far below.
const DEPTH_MAX: u32 = 64;
const SCHEMA_PROPS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// The type of a kind; options (`DeleteOptions`) and `Status` go under any group.
fn find<'s>(schema: &'s Schema, api_version: &str, kind: &str) -> Option<Typed<'s>> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let id = schema.of_kind(group, version, kind).or_else(|| schema.named(&format!("{META}.{kind}")))?;
    Some(schema.typed(id))
}

/// Whether objects of a type have a form on the wire: those of custom resources have none.
pub fn speaks(ty: Typed<'_>) -> bool {
    ty.structure().is_some_and(|definition: &Struct| definition.fields.iter().any(|field| field.number > 0))
}

#[cfg(test)]
mod tests;
