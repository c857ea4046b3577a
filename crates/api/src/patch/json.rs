//! RFC 6902 and RFC 7386, by the json-patch library, within bounds.

use serde_json::{Map, Value};

use crate::decode::{NESTING_MAX, nests_within, syntax_error};
use crate::{Reason, Status};

/// Upstream's bound on the operations of one patch.
const OPERATIONS_MAX: usize = 10_000;

/// Bound on what `copy` operations may add together, as upstream's request limit.
const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Why a JSON patch was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is no list of operations.
    #[error("{0}")]
    Malformed(String),
    /// It, or what it makes, is beyond a bound.
    #[error("{0}")]
    TooLarge(String),
    /// One of its operations is none, or cannot be done.
    #[error("{0}")]
    Inapplicable(String),
}

impl From<Refusal> for Status {
    /// What clients are told. Source: `applyJSPatch` in `handlers/patch.go`, `NewGenericServerResponse`: of what does
    /// not apply nothing is said but that.
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed(problem) => Self::bad_request(format!("error decoding patch: {problem}")),
            Refusal::TooLarge(problem) => Self::new(Reason::RequestEntityTooLarge, problem),
            Refusal::Inapplicable(_) => {
                Self::new(Reason::Invalid, "the server rejected our request due to an error in our request")
            }
        }
    }
}

/// Applies a JSON patch.
pub fn json_patch(object: &mut Value, patch: &[u8]) -> Result<(), Refusal> {
    let operations = decode(patch)?;
    if operations.len() > OPERATIONS_MAX {
        let count = operations.len();
        return Err(Refusal::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {count}"
        )));
    }
    let mut copied = 0;
    for operation in operations {
        let Some(operation) = operation_of(operation, object)? else { continue };
        check_depth(object, &operation)?;
        if let json_patch::PatchOperation::Copy(copy) = &operation {
            copied += object.pointer(&copy.from.to_string()).map_or(0, |value| value.to_string().len());
            if copied > COPIED_BYTES_MAX {
                return Err(Refusal::TooLarge(format!(
                    "the copy operations of the JSON patch add more than {COPIED_BYTES_MAX} bytes"
                )));
            }
        }
        json_patch::patch(object, std::slice::from_ref(&operation))
            .map_err(|error| Refusal::Inapplicable(error.to_string()))?;
    }
    Ok(())
}

/// The operations as upstream decodes them: any objects whose parts are texts; what they mean is found out when they are
/// applied.
fn decode(patch: &[u8]) -> Result<Vec<Map<String, Value>>, Refusal> {
    let wrong = |found: &Value, place: &str| {
        Refusal::Malformed(format!("json: cannot unmarshal {} into Go {place}", go_kind(found)))
    };
    let patch = read(patch).map_err(Refusal::Malformed)?;
    let operations = match patch {
        Value::Array(operations) => operations,
        Value::Null => Vec::new(),
        other => return Err(wrong(&other, "value of type []handlers.jsonPatchOp")),
    };
    let each = operations.into_iter().map(|operation| match operation {
        Value::Object(parts) => {
            let texts = ["op", "path", "from"].into_iter().filter_map(|name| Some((name, parts.get(name)?)));
            match texts.into_iter().find(|(_, part)| !part.is_string() && !part.is_null()) {
                Some((name, part)) => {
                    Err(wrong(part, &format!("struct field jsonPatchOp.{name} of type string")))
                }
                None => Ok(parts),
            }
        }
        Value::Null => Ok(Map::new()),
        other => Err(wrong(&other, "value of type handlers.jsonPatchOp")),
    });
    each.collect()
}

/// Reads JSON; the failure is Go's, where Go fails.
fn read(text: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(text).map_err(|error| syntax_error(text).unwrap_or_else(|| error.to_string()))
}

/// A value as Go's decoder calls it.
fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// What an operation does, with upstream's liberties: a value that is left out is null, and a test for null passes where
/// nothing is (`None`: there is nothing to do). The whole object is no place that operations reach.
/// Source: `gopkg.in/evanphx/json-patch.v4`, `patch.go`.
fn operation_of(
    mut operation: Map<String, Value>,
    object: &Value,
) -> Result<Option<json_patch::PatchOperation>, Refusal> {
    let text = |name: &str| operation.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (op, path) = (text("op"), text("path"));
    if path.is_empty() {
        return Err(Refusal::Inapplicable(format!("{op} operation does not apply: it has no path")));
    }
    let value = operation.entry("value").or_insert(Value::Null);
    if op == "test" && value.is_null() && object.pointer(&path).is_none() {
        return Ok(None);
    }
    let operation = serde_json::from_value(Value::Object(operation));
    operation.map(Some).map_err(|error| Refusal::Inapplicable(error.to_string()))
}

/// Refuses an operation that would make the object deeper than any that is decoded: whatever walks it would otherwise go
/// deeper than a stack.
fn check_depth(object: &Value, operation: &json_patch::PatchOperation) -> Result<(), Refusal> {
    use json_patch::PatchOperation::{Add, Copy, Move, Remove, Replace, Test};
    let steps = |path: &dyn std::fmt::Display| path.to_string().matches('/').count();
    let (above, value) = match operation {
        Add(add) => (steps(&add.path), Some(&add.value)),
        Replace(replace) => (steps(&replace.path), Some(&replace.value)),
        Copy(copy) => (steps(&copy.path), object.pointer(&copy.from.to_string())),
        Move(moved) => (steps(&moved.path), object.pointer(&moved.from.to_string())),
        Remove(_) | Test(_) => return Ok(()),
    };
    let left = NESTING_MAX.checked_sub(above);
    let fits = left.is_some_and(|left| value.is_none_or(|value| nests_within(value, left)));
    let message = || format!("the JSON patch makes an object that nests more than {NESTING_MAX} levels deep");
    fits.then_some(()).ok_or_else(|| Refusal::TooLarge(message()))
}

/// Applies a merge patch.
pub fn merge_patch(object: &mut Value, patch: &[u8]) -> Result<(), Status> {
    let patch =
        read(patch).map_err(|problem| Status::bad_request(format!("error decoding patch: {problem}")))?;
    if patch.is_null() {
        return Err(Status::bad_request("Invalid JSON Patch"));
    }
    if !patch.is_object() {
        return Err(Status::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            go_kind(&patch)
        )));
    }
    json_patch::merge(object, &patch);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_rfcs_apply() {
        let mut object = json!({"a": {"b": 1}, "l": [1, 2]});
        json_patch(
            &mut object,
            br#"[{"op":"test","path":"/a/b","value":1},{"op":"add","path":"/l/-","value":3}]"#,
        )
        .unwrap();
        merge_patch(&mut object, br#"{"a":{"b":null,"c":2}}"#).unwrap();
        assert_eq!(object, json!({"a": {"c": 2}, "l": [1, 2, 3]}));
    }

    #[test]
    fn what_a_patch_makes_can_be_read_again() {
        let put = |lists: usize| {
            let value = "[".repeat(lists) + &"]".repeat(lists);
            let mut object = json!({ "spec": { "a": {} } });
            json_patch(
                &mut object,
                format!(r#"[{{"op":"add","path":"/spec/a/b","value":{value}}}]"#).as_bytes(),
            )
            .map(|()| serde_json::from_str::<Value>(&object.to_string()).is_ok())
            .map_err(|refused| Status::from(refused).code)
        };
        // Within the object, `spec` and `a`.
        assert_eq!((put(NESTING_MAX - 3), put(NESTING_MAX - 2)), (Ok(true), Err(413)));
    }

    #[test]
    fn failures_are_clients_faults_and_copies_cannot_explode() {
        assert_eq!(merge_patch(&mut json!({}), b"[]").unwrap_err().code, 400);
        // Each copy of the whole into its own depth doubles it.
        let (mut object, mut depth) = (json!({ "x": {} }), 1);
        let refused = loop {
            let into = format!("/x{}", "/a".repeat(depth));
            let double = format!(
                r#"[{{"op":"copy","from":"/x","path":"/y"}},{{"op":"move","from":"/y","path":"{into}"}}]"#
            );
            match json_patch(&mut object, double.as_bytes()) {
                Ok(()) => depth *= 2,
                Err(refused) => break refused,
            }
        };
        assert_eq!((Status::from(refused).code, depth), (413, 64));
        let mut object = json!({"a": ["x".repeat(1000)]});
        let double = r#"{"op":"copy","from":"/a","path":"/a/-"}"#;
        let bomb = format!("[{}]", [double; 60].join(","));
        assert_eq!(Status::from(json_patch(&mut object, bomb.as_bytes()).unwrap_err()).code, 413);
    }

    #[test]
    fn what_is_no_patch_is_refused_and_what_does_not_apply_is_invalid() {
        let refused = |patch: &str| {
            let refusal = json_patch(&mut json!({ "a": 1, "l": [1] }), patch.as_bytes()).unwrap_err();
            let status = Status::from(refusal);
            (status.code, status.message)
        };
        let invalid = (422, "the server rejected our request due to an error in our request".to_owned());
        for patch in [
            r#"[{"op":"test","path":"/a","value":2}]"#,
            r#"[{"op":"test","path":"/a"}]"#,
            r#"[{"op":"foo","path":"/a"}]"#,
            r#"[{"path":"/a"}]"#,
            r#"[null]"#,
            r#"[{"op":"remove","path":"/none"}]"#,
            r#"[{"op":"replace","path":"/none/below","value":1}]"#,
            r#"[{"op":"add","path":"/l/7","value":1}]"#,
            r#"[{"op":"add","value":1}]"#,
            r#"[{"op":"replace","path":"","value":{}}]"#,
            r#"[{"op":"move","path":"/b"}]"#,
            r#"[{"op":"copy","from":"/none","path":"/b"}]"#,
        ] {
            assert_eq!(refused(patch), invalid, "{patch}");
        }
        let go = "error decoding patch: json: cannot unmarshal";
        for (patch, wanted) in [
            (r#"{"op":"add"}"#, "object into Go value of type []handlers.jsonPatchOp"),
            (r#"["add"]"#, "string into Go value of type handlers.jsonPatchOp"),
            (r#"[{"op":"add","path":1}]"#, "number into Go struct field jsonPatchOp.path of type string"),
        ] {
            assert_eq!(refused(patch), (400, format!("{go} {wanted}")), "{patch}");
        }
        assert_eq!(refused("{"), (400, "error decoding patch: unexpected end of JSON input".to_owned()));
    }

    #[test]
    fn what_is_left_out_of_an_operation_is_null() {
        let mut object = json!({ "a": 1 });
        let patch =
            br#"[{"op":"test","path":"/b","value":null},{"op":"add","path":"/b"},{"op":"test","path":"/b"}]"#;
        assert_eq!(json_patch(&mut object, patch), Ok(()));
        assert_eq!(object, json!({ "a": 1, "b": null }));
        assert_eq!(json_patch(&mut object, b"null"), Ok(()));
    }
}
