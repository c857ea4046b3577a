//! RFC 6902 and RFC 7386, by the json-patch library, within bounds.

use serde_json::Value;

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
    fn failures_are_clients_faults_and_copies_cannot_explode() {
        let mut object = json!({"a": 1});
        assert_eq!(
            json_patch(&mut object, br#"[{"op":"test","path":"/a","value":2}]"#).unwrap_err().code,
            422
        );
        assert_eq!(json_patch(&mut object, b"{").unwrap_err().code, 400);
        assert_eq!(merge_patch(&mut object, b"[]").unwrap_err().code, 400);
        let mut object = json!({"a": ["x".repeat(1000)]});
        let double = r#"{"op":"copy","from":"/a","path":"/a/-"}"#;
        let bomb = format!("[{}]", [double; 60].join(","));
        assert_eq!(json_patch(&mut object, bomb.as_bytes()).unwrap_err().code, 413);
    }
}
