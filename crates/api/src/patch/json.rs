//! RFC 6902 and RFC 7386, by the json-patch library, within bounds.

use serde_json::Value;

use crate::decode::{NESTING_MAX, nests_within};
use crate::{Reason, Status};

/// Upstream's bound on the operations of one patch.
const OPERATIONS_MAX: usize = 10_000;

/// Bound on what `copy` operations may add together, as upstream's request limit.
const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Applies a JSON patch.
pub fn json_patch(object: &mut Value, patch: &[u8]) -> Result<(), Status> {
    let patch: json_patch::Patch = serde_json::from_slice(patch)
        .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    if patch.0.len() > OPERATIONS_MAX {
        let message = format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            patch.0.len()
        );
        return Err(Status::new(Reason::RequestEntityTooLarge, message));
    }
    let mut copied = 0;
    for operation in &patch.0 {
        check_depth(object, operation)?;
        if let json_patch::PatchOperation::Copy(copy) = operation {
            copied += object.pointer(&copy.from.to_string()).map_or(0, |value| value.to_string().len());
            if copied > COPIED_BYTES_MAX {
                return Err(Status::new(
                    Reason::RequestEntityTooLarge,
                    format!("the copy operations of the JSON patch add more than {COPIED_BYTES_MAX} bytes"),
                ));
            }
        }
        json_patch::patch(object, std::slice::from_ref(operation)).map_err(|error| {
            Status::new(
                Reason::Invalid,
                format!("the server rejected our request due to an error in our request: {error}"),
            )
        })?;
    }
    Ok(())
}

/// Refuses an operation that would make the object deeper than any that is decoded: whatever walks it would otherwise go
/// deeper than a stack.
fn check_depth(object: &Value, operation: &json_patch::PatchOperation) -> Result<(), Status> {
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
    fits.then_some(()).ok_or_else(|| Status::new(Reason::RequestEntityTooLarge, message()))
}

/// Applies a merge patch.
pub fn merge_patch(object: &mut Value, patch: &[u8]) -> Result<(), Status> {
    let patch: Value = serde_json::from_slice(patch)
        .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    if !patch.is_object() {
        return Err(Status::bad_request("error decoding patch: a merge patch of an object is an object"));
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
            .map_err(|refused| refused.code)
        };
        // Within the object, `spec` and `a`.
        assert_eq!((put(NESTING_MAX - 3), put(NESTING_MAX - 2)), (Ok(true), Err(413)));
    }

    #[test]
    fn failures_are_clients_faults_and_copies_cannot_explode() {
        let mut object = json!({"a": 1});
        assert_eq!(
            json_patch(&mut object, br#"[{"op":"test","path":"/a","value":2}]"#).unwrap_err().code,
            422
        );
        assert_eq!(json_patch(&mut object, b"{").unwrap_err().code, 400);
        assert_eq!(merge_patch(&mut object, b"[]").unwrap_err().code, 400);
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
        assert_eq!((refused.code, depth), (413, 64));
        let mut object = json!({"a": ["x".repeat(1000)]});
        let double = r#"{"op":"copy","from":"/a","path":"/a/-"}"#;
        let bomb = format!("[{}]", [double; 60].join(","));
        assert_eq!(json_patch(&mut object, bomb.as_bytes()).unwrap_err().code, 413);
    }
}
