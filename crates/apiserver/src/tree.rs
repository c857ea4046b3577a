//! Small helpers over JSON trees: paths are given as keys, absent parts read as null or as empty.

use serde_json::{Map, Value};

/// The value under `path`; null where a part is absent.
pub fn at<'a>(value: &'a Value, path: &[&str]) -> &'a Value {
    const NULL: &Value = &Value::Null;
    path.iter().fold(value, |value, key| value.get(key).unwrap_or(NULL))
}

/// The text under `path`; empty where there is none.
pub fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    at(value, path).as_str().unwrap_or_default()
}

/// The items under `path`; none where there is no list.
pub fn items<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    at(value, path).as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The members under `key`, made if absent (or if something else stands there).
pub fn object<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    members(member(value, key))
}

/// The value under `key`, made (null) if absent.
pub fn member<'a>(value: &'a mut Value, key: &str) -> &'a mut Value {
    members(value).entry(key).or_insert(Value::Null)
}

/// A value's members; whatever is no object becomes an empty one.
pub fn members(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        // It was made an object just above.
        _ => unreachable!(),
    }
}

/// Sets `key` of an object to `value` if it is absent or null.
pub fn set_default(value: &mut Value, key: &str, default: impl Into<Value>) {
    let slot = member(value, key);
    if slot.is_null() {
        *slot = default.into();
    }
}

/// Puts `from`'s `key` in place of `to`'s (absent there: removed here).
pub fn copy(from: &Value, to: &mut Value, key: &str) {
    match from.get(key) {
        Some(value) => {
            members(to).insert(key.to_owned(), value.clone());
        }
        None => {
            members(to).remove(key);
        }
    }
}

/// `metadata` of an object, made if absent.
pub fn metadata(value: &mut Value) -> &mut Map<String, Value> {
    object(value, "metadata")
}
