//! Whole objects inside custom resources (`x-kubernetes-embedded-resource`): they say what they are, and their metadata is
//! typed, pruned and checked as every object's. Source: `apiextensions-apiserver/pkg/apiserver/schema/objectmeta`.

use serde_json::{Value, json};

use super::causes;
use crate::decode::{self, Decoded, Mode};
use crate::names;
use crate::schema::Schema;
use crate::status::Cause;

/// Metadata as its type reads it, and the fields that are not its own; the failure is Go's sentence.
pub(super) fn metadata(value: &Value) -> Result<Decoded, String> {
    let schema = Schema::builtin();
    match schema.named("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") {
        Some(ty) => decode::value(value.clone(), schema.typed(ty), Mode::Object),
        None => Ok(Decoded { value: value.clone(), problems: Vec::new() }),
    }
}

/// What is wrong with an embedded object at a path.
pub(super) fn check(object: &Value, path: &str) -> Vec<Cause> {
    let mut found = Vec::new();
    let version = |text: &str| match text.split('/').count() {
        0..=2 => Vec::new(),
        _ => vec![format!("unexpected GroupVersion string: {text}")],
    };
    let kind = |text: &str| {
        let problems = names::label_1035_problems(&text.to_lowercase());
        let problem = |text| format!("may have mixed case, but should otherwise match: {text}");
        if problems.is_empty() { problems } else { vec![problem(problems.join(","))] }
    };
    found.extend(named(object, path, "apiVersion", version));
    found.extend(named(object, path, "kind", kind));
    if let Some(value) = object.get("metadata") {
        let path = format!("{path}.metadata");
        match metadata(value) {
            Ok(decoded) => found.extend(of_metadata(&decoded.value, &path)),
            Err(wrong) => found.push(causes::invalid(&path, value, wrong)),
        }
    }
    found
}

/// What is wrong with a text that an object has to have.
fn named(object: &Value, path: &str, name: &str, problems: impl Fn(&str) -> Vec<String>) -> Vec<Cause> {
    let path = format!("{path}.{name}");
    match object.get(name) {
        None => vec![causes::required(&path, "")],
        Some(Value::String(text)) if text.is_empty() => {
            vec![causes::invalid(&path, &json!(text), "must not be empty")]
        }
        Some(Value::String(text)) => {
            problems(text).iter().map(|detail| causes::invalid(&path, &json!(text), detail)).collect()
        }
        Some(other) => vec![causes::invalid(&path, other, "must be a string")],
    }
}

fn of_metadata(metadata: &Value, path: &str) -> Vec<Cause> {
    let mut found = Vec::new();
    let name = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
    for detail in names::path_segment_problems(name) {
        found.push(causes::invalid(&format!("{path}.name"), &json!(name), detail));
    }
    let entries = |field: &str| metadata.get(field).and_then(Value::as_object).into_iter().flatten();
    for (key, value) in entries("labels") {
        let place = format!("{path}.labels");
        let of_key = names::qualified_name_problems(key).into_iter().map(|detail| (json!(key), detail));
        let problems = names::label_value_problems(value.as_str().unwrap_or_default());
        let of_value = problems.into_iter().map(|detail| (value.clone(), detail));
        found.extend(of_key.chain(of_value).map(|(value, detail)| causes::invalid(&place, &value, detail)));
    }
    for (key, _) in entries("annotations") {
        for detail in names::qualified_name_problems(&key.to_lowercase()) {
            found.push(causes::invalid(&format!("{path}.annotations"), &json!(key), detail));
        }
    }
    found
}
