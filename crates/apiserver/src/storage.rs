//! How objects lie in the store: `/registry/<group>/<resource>/[<namespace>/]<name>` holds the JSON of one storage
//! version, with `apiVersion`, `kind` and `metadata` first and without `metadata.resourceVersion`, which is the
//! store's revision and is inserted when the value is read.

use api::Object;
use api::decode::Mode;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::tree;
use crate::words::Kind;

/// What precedes the slot for the resourceVersion; the first occurrence, as only two short strings stand before it.
const METADATA: &[u8] = b"\"metadata\":{";

/// A value in the store that is not an object of ours.
#[derive(Debug, Clone, thiserror::Error)]
#[error("stored value of {key} cannot be read: {cause}; it was not written by this API server")]
pub struct Unreadable {
    key: String,
    cause: String,
}

/// The prefix under which a resource lies; group and resource are those of its storage version.
pub fn prefix(group: &str, resource: &str) -> String {
    let group = if group.is_empty() { "core" } else { group };
    ["/registry/", group, "/", resource, "/"].concat()
}

/// An object's key below its resource's prefix: `namespace/name`, or `name`. Its byte order is the order of lists.
pub fn suffix(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { [namespace, "/", name].concat() }
}

/// Encodes an object for the store.
pub fn encode(object: &Value) -> Result<Bytes, serde_json::Error> {
    let empty = Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    let mut out = Vec::with_capacity(1024);
    out.push(b'{');
    for name in ["apiVersion", "kind"] {
        write_field(&mut out, name, fields.get(name).unwrap_or(&Value::Null))?;
    }
    write_name(&mut out, "metadata")?;
    out.push(b'{');
    for (name, value) in fields.get("metadata").and_then(Value::as_object).into_iter().flatten() {
        if !matches!(name.as_str(), "resourceVersion" | "selfLink") {
            write_field(&mut out, name, value)?;
        }
    }
    out.push(b'}');
    for (name, value) in fields {
        if !matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            write_field(&mut out, name, value)?;
        }
    }
    out.push(b'}');
    Ok(Bytes::from(out))
}

fn write_field(out: &mut Vec<u8>, name: &str, value: &Value) -> Result<(), serde_json::Error> {
    write_name(out, name)?;
    serde_json::to_writer(&mut *out, value)
}

/// The name of a member, after a comma where it is not the first.
fn write_name(out: &mut Vec<u8>, name: &str) -> Result<(), serde_json::Error> {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    serde_json::to_writer(&mut *out, name)?;
    out.push(b':');
    Ok(())
}

/// The annotation of an object whose stored value cannot be read: why.
const UNREADABLE: &str = "skiff.dev/unreadable";

/// Reads a stored value back, whatever it is: what was stored is never out of sight. A value of wrong types takes those
/// of the schema, as if it were written now; of one that is no object at all there is only its name, and an annotation
/// that says why, so that it can be seen and deleted. `None`: the key is none of the kind's.
pub fn read(kind: &Kind, key: &[u8], value: &[u8], revision: i64) -> Option<Object> {
    match decode(key, filled(kind, value).as_deref().unwrap_or(value), revision) {
        Ok(object) => Some(object),
        Err(error) => {
            tracing::error!(%error, "stored value read as far as possible");
            mended(kind, key, value, revision, &error)
        }
    }
}

/// A stored custom resource with the defaults that its version has got since it was written.
fn filled(kind: &Kind, value: &[u8]) -> Option<Bytes> {
    let custom = kind.custom.as_ref().filter(|custom| custom.has_defaults())?;
    let before: Value = serde_json::from_slice(value).ok()?;
    if before["apiVersion"] != kind.api_version() {
        return None;
    }
    let mut object = before.clone();
    custom.default(&mut object);
    if object == before { None } else { encode(&object).ok() }
}

fn mended(kind: &Kind, key: &[u8], value: &[u8], revision: i64, error: &Unreadable) -> Option<Object> {
    let prefix = prefix(&kind.group, &kind.plural);
    let suffix = std::str::from_utf8(key).ok()?.strip_prefix(prefix.as_str())?;
    let (namespace, name) = suffix.split_once('/').unwrap_or(("", suffix));
    let tree = serde_json::from_slice(value).ok();
    let ty = kind.custom.as_ref().map_or(kind.typed(), |custom| custom.envelope(&kind.schema));
    let fitted = tree.and_then(|tree| api::decode::value(tree, ty, Mode::Object).ok());
    let mut object = match fitted.map(|decoded| decoded.value) {
        Some(object) if object.is_object() => object,
        _ => json!({ "metadata": { "annotations": { UNREADABLE: error.to_string() } } }),
    };
    let fields = tree::members(&mut object);
    fields.insert("apiVersion".into(), kind.api_version().into());
    fields.insert("kind".into(), kind.kind.as_ref().into());
    let metadata = tree::metadata(&mut object);
    metadata.insert("name".into(), name.into());
    if !namespace.is_empty() {
        metadata.insert("namespace".into(), namespace.into());
    }
    metadata.remove("resourceVersion");
    decode(key, &encode(&object).ok()?, revision).ok()
}

/// Reads a stored value back: the object at `revision`.
pub fn decode(key: &[u8], value: &[u8], revision: i64) -> Result<Object, Unreadable> {
    let unreadable = |cause: String| Unreadable { key: String::from_utf8_lossy(key).into_owned(), cause };
    let slot = find(value, METADATA).ok_or_else(|| unreadable("no metadata".into()))?;
    let bytes = splice(value, slot, slot, format!("\"resourceVersion\":\"{revision}\"").as_bytes());
    Object::parse(bytes).map_err(|error| unreadable(error.to_string()))
}

/// The same object as of another revision: what a deletion shows.
pub fn with_revision(object: &Object, revision: i64) -> Option<Object> {
    let old = format!("\"resourceVersion\":\"{}\"", object.revision());
    let slot = find(object.bytes(), METADATA)?;
    if !object.bytes()[slot..].starts_with(old.as_bytes()) {
        return None;
    }
    let end = slot + old.len();
    let new = format!("\"resourceVersion\":\"{revision}\"");
    // The separator stays where it is when a revision takes another's place.
    let bytes = [&object.bytes()[..slot], new.as_bytes(), &object.bytes()[end..]].concat();
    Object::parse(Bytes::from(bytes)).ok()
}

/// Where the text after the first `needle` begins.
fn find(value: &[u8], needle: &[u8]) -> Option<usize> {
    value.windows(needle.len()).position(|window| window == needle).map(|at| at + needle.len())
}

/// `value` with `inserted` in place of `from..to`, followed by a comma where another member follows.
fn splice(value: &[u8], from: usize, to: usize, inserted: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(value.len() + inserted.len() + 1);
    out.extend_from_slice(&value[..from]);
    out.extend_from_slice(inserted);
    if value.get(to) != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(&value[to..]);
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::Catalog;

    #[test]
    fn the_revision_is_inserted_at_the_objects_own_metadata() {
        let object = json!({
            "data": { "metadata": { "resourceVersion": "7" } }, "kind": "ControllerRevision", "apiVersion": "apps/v1",
            "metadata": { "name": "a", "resourceVersion": "3" },
        });
        let stored = encode(&object).unwrap();
        assert!(
            stored.starts_with(
                br#"{"apiVersion":"apps/v1","kind":"ControllerRevision","metadata":{"name":"a"}"#
            )
        );
        let read = decode(b"k", &stored, 12).unwrap();
        assert_eq!(read.revision(), 12);
        let gone = with_revision(&read, 99).unwrap();
        let tree: Value = gone.decode().unwrap();
        assert_eq!(tree["metadata"]["resourceVersion"], "99");
        assert_eq!(tree["data"]["metadata"]["resourceVersion"], "7");
    }

    #[test]
    fn an_empty_metadata_stays_valid() {
        let stored = encode(&json!({ "metadata": {} })).unwrap();
        assert_eq!(decode(b"k", &stored, 5).unwrap().revision(), 5);
        assert!(decode(b"k", b"garbage", 5).is_err());
    }
    #[test]
    fn what_cannot_be_read_is_still_seen() {
        let kind = Catalog::builtin().storage_of("", "configmaps").unwrap();
        let key = b"/registry/core/configmaps/default/a";
        let odd = br#"{"metadata":{"name":"a","labels":{"x":null},"uid":"u"},"data":{"k":null}}"#;
        let mended = read(&kind, key, odd, 7).unwrap();
        assert_eq!((mended.revision(), mended.meta().uid.as_str()), (7, "u"));
        assert_eq!(mended.decode::<Value>().unwrap()["data"], json!({ "k": "" }));
        for garbage in [&b"garbage"[..], b"[]", b"{}", br#"{"metadata":{"labels":3}}"#] {
            let stub = read(&kind, key, garbage, 7).unwrap();
            assert_eq!(stub.key(), api::Key::new("default", "a"));
            let tree: Value = stub.decode().unwrap();
            assert_eq!(
                (&tree["kind"], &tree["metadata"]["resourceVersion"]),
                (&json!("ConfigMap"), &json!("7"))
            );
        }
        let garbage = read(&kind, key, b"garbage", 7).unwrap().decode::<Value>().unwrap();
        assert!(garbage["metadata"]["annotations"][UNREADABLE].is_string());
        assert!(read(&kind, b"/registry/core/pods/default/a", b"garbage", 7).is_none());
    }
}
