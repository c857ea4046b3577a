//! An object as it is held and passed around in the process: its bytes, and the few parsed facts that dispatch needs.

use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::meta::ObjectMeta;

/// Namespace and name of an object within its resource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// The key of an object in a namespace (empty: cluster-scoped).
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// One revision of one object: JSON bytes with `apiVersion`, `kind` and `metadata.resourceVersion` in them. Immutable
/// and shared behind an `Arc` by the watch cache, every informer and every watcher of the process.
#[derive(Clone)]
pub struct Object {
    bytes: Bytes,
    meta: ObjectMeta,
    node_name: Option<Box<str>>,
    revision: i64,
}

/// What [`Object::parse`] looks at.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Option<SpecHead>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecHead {
    #[serde(default)]
    node_name: Option<Box<str>>,
}

impl Object {
    /// Parses the head of an object's JSON.
    pub fn parse(bytes: Bytes) -> Result<Self, serde_json::Error> {
        let mut head: Head = serde_json::from_slice(&bytes)?;
        // Configuration that managers keep in annotations (kubectl's last-applied) is as large as the object: nobody
        // dispatches on it, and whoever wants it decodes the bytes.
        head.metadata.annotations = Default::default();
        let revision = head.metadata.resource_version.parse().unwrap_or(0);
        Ok(Self {
            bytes,
            meta: head.metadata,
            node_name: head.spec.and_then(|spec| spec.node_name),
            revision,
        })
    }

    /// The whole object as JSON.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Its metadata without annotations and managedFields.
    pub fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    /// One of its annotations, decoded anew.
    pub fn annotation(&self, name: &str) -> Option<String> {
        let mut head: Head = self.decode().ok()?;
        head.metadata.annotations.remove(name)
    }

    /// Its key within its resource.
    pub fn key(&self) -> Key {
        Key::new(self.meta.namespace.clone(), self.meta.name.clone())
    }

    /// The store's revision of this version.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// `spec.nodeName`, where the object has one: node agents watch by it.
    pub fn node_name(&self) -> Option<&str> {
        self.node_name.as_deref().filter(|name| !name.is_empty())
    }

    /// Decodes the fields that `T` declares: a projection. Transient by design; keep `T`, not the generic tree.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.bytes)
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the content: objects include Secrets.
        f.debug_struct("Object")
            .field("key", &self.key().to_string())
            .field("revision", &self.revision)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_annotation_is_found_although_the_head_has_none() {
        let json = r#"{"metadata":{"name":"a","annotations":{"example.com/x":"y"}}}"#;
        let object = Object::parse(Bytes::from_static(json.as_bytes())).unwrap();
        assert!(object.meta().annotations.is_empty());
        assert_eq!(object.annotation("example.com/x").as_deref(), Some("y"));
        assert_eq!(object.annotation("z"), None);
    }
}
