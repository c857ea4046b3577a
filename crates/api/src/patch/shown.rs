//! Values as Go's `%v` writes them: upstream's messages about strategic merges show patches so.

use serde_json::Value;

/// `map[spec:map[replicas:x]]`, with the keys in order.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::Bool(truth) => truth.to_string(),
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => float.to_string(),
            None => number.to_string(),
        },
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", words(items.iter().map(shown))),
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(key, _)| *key);
            let members = members.into_iter().map(|(key, value)| format!("{key}:{}", shown(value)));
            format!("map[{}]", words(members))
        }
    }
}

/// The Go type that a decoded value has, as its messages name it.
pub(super) fn go_type(value: &Value) -> &'static str {
    match value {
        // What `%s` makes of no type at all.
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn words(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::shown;

    #[test]
    fn values_are_shown_as_go_shows_them() {
        for (value, wanted) in [
            (json!({ "spec": { "replicas": "x" } }), "map[spec:map[replicas:x]]"),
            (json!({ "b": null, "a": [1, true, "t"] }), "map[a:[1 true t] b:<nil>]"),
            (json!([1.5, 2.0, {}, []]), "[1.5 2 map[] []]"),
        ] {
            assert_eq!(shown(&value), wanted);
        }
    }
}
