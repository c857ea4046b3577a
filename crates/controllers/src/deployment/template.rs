//! Comparing and naming pod templates.

use serde_json::Value;

use super::types::POD_TEMPLATE_HASH;
use crate::template;

/// A template without what does not make a difference, the hash label among it.
pub(super) fn normalized(template: &Value) -> Value {
    template::normalized(template, &[POD_TEMPLATE_HASH])
}

/// Whether two templates make the same pods. Source: `EqualIgnoreHash`.
pub(super) fn equal(a: &Value, b: &Value) -> bool {
    normalized(a) == normalized(b)
}

/// The value of the hash label, and the suffix of the set's name.
pub(super) fn hash(template: &Value, collisions: Option<i32>) -> String {
    template::hash(&normalized(template), collisions)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_real_differences_count() {
        let plain =
            json!({ "metadata": { "labels": { "app": "a" } }, "spec": { "containers": [{ "name": "c" }] } });
        let hashed = json!({ "metadata": { "creationTimestamp": null, "labels": { "pod-template-hash": "x", "app": "a" } },
            "spec": { "containers": [{ "name": "c", "command": null }] } });
        let other =
            json!({ "metadata": { "labels": { "app": "a" } }, "spec": { "containers": [{ "name": "d" }] } });
        assert!(equal(&plain, &hashed) && !equal(&plain, &other));
        assert_eq!(hash(&plain, None), hash(&hashed, None));
        assert_ne!(hash(&plain, None), hash(&other, None));
        assert_ne!(hash(&plain, None), hash(&plain, Some(1)));
    }
}
