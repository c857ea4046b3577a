//! Values against a custom resource's schema, with upstream's messages and causes. A value that an update leaves as it was
//! is not held against the writer (KEP-4008, ratcheting). Source: `kube-openapi/pkg/validation/validate`.

use serde_json::{Number, Value, json};

use super::causes;
use super::formats;
use super::props::{Additional, Props};
use crate::status::Cause;

/// How many failures are told.
const CAUSES_MAX: usize = 200;
/// Where upstream has no path: what concerns alternatives as a whole.
const NOWHERE: &str = "<nil>";

/// What is wrong with a value; `old` is what it was before, where something was.
pub(super) fn validate(value: &Value, old: Option<&Value>, schema: &Props) -> Vec<Cause> {
    let mut walk = Walk { causes: Vec::new() };
    walk.value(value, old, schema, "");
    walk.list_types(value, old, schema, "");
    walk.causes.truncate(CAUSES_MAX);
    walk.causes
}

#[derive(Default)]
struct Walk {
    causes: Vec<Cause>,
}

impl Walk {
    fn value(&mut self, value: &Value, old: Option<&Value>, schema: &Props, path: &str) {
        if old == Some(value) || self.causes.len() > CAUSES_MAX {
            return;
        }
        if value.is_null() && schema.nullable {
            return;
        }
        self.ty(value, schema, path);
        self.alternatives(value, old, schema, path);
        match value {
            Value::String(text) => self.string(text, value, schema, path),
            Value::Number(number) => self.number(number, value, schema, path),
            Value::Array(items) => self.list(items, old, schema, path),
            Value::Object(_) => self.object(value, old, schema, path),
            _ => {}
        }
        if let Some(values) = &schema.values
            && !values.iter().any(|allowed| same(allowed, value))
        {
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let values: Vec<String> = values.iter().map(text).collect();
            self.push(causes::not_supported(place(path), value, &values));
        }
    }

    fn push(&mut self, cause: Cause) {
        self.causes.push(cause);
    }

    /// `path in body …`, as a failure of the value.
    fn says(&mut self, path: &str, value: &Value, what: &str) {
        self.push(causes::invalid(place(path), value, format!("{path} in body {what}")));
    }

    fn ty(&mut self, value: &Value, schema: &Props, path: &str) {
        let wanted = if schema.int_or_string { "integer,string" } else { schema.ty.as_str() };
        let found = kind(value);
        let fits = match wanted {
            "" => !value.is_null() || schema.preserves(),
            "integer,string" => found == "integer" || found == "string",
            "number" => found == "number" || found == "integer",
            wanted => found == wanted,
        };
        if !fits && !wanted.is_empty() {
            let detail = format!("{path} in body must be of type {wanted}: {found:?}");
            return self.push(causes::type_invalid(place(path), &json!(found), detail));
        }
        if let Value::String(text) = value
            && matches!(wanted, "" | "string")
            && !formats::fits(&schema.format, text)
        {
            let detail = format!("{path} in body must be of type {}: {text:?}", schema.format);
            self.push(causes::type_invalid(place(path), value, detail));
        }
    }

    /// `anyOf`, `oneOf`, `allOf` and `not`.
    fn alternatives(&mut self, value: &Value, old: Option<&Value>, schema: &Props, path: &str) {
        let failures = |schema: &Props| {
            let mut walk = Walk::default();
            walk.value(value, old, schema, path);
            walk.causes
        };
        let best = |all: Vec<Vec<Cause>>| all.into_iter().min_by_key(Vec::len).unwrap_or_default();
        if !schema.any_of.is_empty() {
            let all: Vec<Vec<Cause>> = schema.any_of.iter().map(failures).collect();
            if all.iter().all(|causes| !causes.is_empty()) {
                self.whole(format!("{path:?} must validate at least one schema (anyOf)"));
                self.causes.extend(best(all));
            }
        }
        if !schema.one_of.is_empty() {
            let all: Vec<Vec<Cause>> = schema.one_of.iter().map(failures).collect();
            let valid = all.iter().filter(|causes| causes.is_empty()).count();
            if valid != 1 {
                let found = match valid {
                    0 => "Found none valid".to_owned(),
                    valid => format!("Found {valid} valid alternatives"),
                };
                self.whole(format!("{path:?} must validate one and only one schema (oneOf). {found}"));
                self.causes.extend(best(all));
            }
        }
        if !schema.all_of.is_empty() {
            let all: Vec<Vec<Cause>> = schema.all_of.iter().map(failures).collect();
            let valid = all.iter().filter(|causes| causes.is_empty()).count();
            self.causes.extend(all.into_iter().flatten());
            if valid != schema.all_of.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                self.whole(format!("{path:?} must validate all the schemas (allOf){none}"));
            }
        }
        if schema.not.as_ref().is_some_and(|not| failures(not).is_empty()) {
            self.whole(format!("{path:?} must not validate the schema (not)"));
        }
    }

    fn whole(&mut self, detail: String) {
        self.push(causes::invalid(NOWHERE, &json!(""), detail));
    }

    fn string(&mut self, text: &str, value: &Value, schema: &Props, path: &str) {
        let length = text.chars().count() as u64;
        if let Some(max) = schema.max_length.filter(|max| length > *max) {
            self.push(causes::too_long(place(path), max));
        }
        if let Some(min) = schema.min_length.filter(|min| length < *min) {
            self.says(path, value, &format!("should be at least {min} chars long"));
        }
        if schema.compiled.as_ref().is_some_and(|pattern| !pattern.is_match(text)) {
            self.says(path, value, &format!("should match '{}'", schema.pattern));
        }
    }

    fn number(&mut self, number: &Number, value: &Value, schema: &Props, path: &str) {
        if !is_within_format(number, schema) {
            let (ty, format) = (&schema.ty, &schema.format);
            let format = if format.is_empty() {
                "(default format)".to_owned()
            } else {
                format!("with format {format}")
            };
            self.whole(format!("Checked value must be of type {ty} {format} in {path}"));
        }
        if let Some(multiple) = &schema.multiple_of
            && !is_multiple(number, multiple)
        {
            self.says(path, value, &format!("should be a multiple of {}", shown(multiple)));
        }
        if let Some(max) = &schema.maximum {
            let order = compare(number, max);
            if order.is_gt() || (schema.exclusive_maximum && order.is_eq()) {
                let or_equal = if schema.exclusive_maximum { "" } else { "or equal to " };
                self.says(path, value, &format!("should be less than {or_equal}{}", shown(max)));
            }
        }
        if let Some(min) = &schema.minimum {
            let order = compare(number, min);
            if order.is_lt() || (schema.exclusive_minimum && order.is_eq()) {
                let or_equal = if schema.exclusive_minimum { "" } else { "or equal to " };
                self.says(path, value, &format!("should be greater than {or_equal}{}", shown(min)));
            }
        }
    }

    fn list(&mut self, items: &[Value], old: Option<&Value>, schema: &Props, path: &str) {
        if let Some(item) = schema.item() {
            for (index, entry) in items.iter().enumerate() {
                self.value(entry, before(schema, entry, old), item, &format!("{path}[{index}]"));
            }
        }
        if let Some(max) = schema.max_items.filter(|max| items.len() as u64 > *max) {
            self.push(causes::too_many(place(path), items.len(), max));
        }
        if let Some(min) = schema.min_items.filter(|min| (items.len() as u64) < *min) {
            let value = json!(items.len());
            self.says(path, &value, &format!("should have at least {min} items"));
        }
    }

    fn object(&mut self, value: &Value, old: Option<&Value>, schema: &Props, path: &str) {
        let Value::Object(fields) = value else { return };
        if schema.embedded {
            self.causes.extend(super::embedded::check(value, path));
        }
        if let Some(min) = schema.min_properties.filter(|min| (fields.len() as u64) < *min) {
            self.says(path, &json!(fields.len()), &format!("should have at least {min} properties"));
        }
        if let Some(max) = schema.max_properties.filter(|max| fields.len() as u64 > *max) {
            self.push(causes::too_many(place(path), fields.len(), max));
        }
        for name in schema.required.iter().filter(|name| !fields.contains_key(*name)) {
            self.push(causes::required(&join(path, name), ""));
        }
        let closed = matches!(schema.additional_properties, Some(Additional::Allowed(false)));
        for (name, field) in fields {
            if closed && !schema.properties.contains_key(name) {
                self.says(path, &json!(""), &format!("{name} is a forbidden property"));
            }
            if let Some(below) = schema.child(name) {
                self.value(field, old.and_then(|old| old.get(name)), below, &join(path, name));
            }
        }
    }

    /// Items of sets and keyed lists that are there twice. Source: `apiserver/schema/listtype`.
    fn list_types(&mut self, value: &Value, old: Option<&Value>, schema: &Props, path: &str) {
        if old == Some(value) {
            return;
        }
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    if let Some(below) = schema.child(name) {
                        self.list_types(field, old.and_then(|old| old.get(name)), below, &join(path, name));
                    }
                }
            }
            Value::Array(items) => {
                let mut seen = std::collections::HashSet::new();
                for (index, entry) in items.iter().enumerate() {
                    let at = format!("{path}[{index}]");
                    let twice = match schema.list_type.as_deref() {
                        Some("set") => (!seen.insert(entry.to_string())).then(|| entry.clone()),
                        Some("map") => {
                            let keys = schema.keys_of(entry);
                            let shown = || {
                                let known =
                                    schema.list_keys.iter().zip(&keys).filter(|(_, value)| !value.is_null());
                                known.map(|(key, value)| (key.clone(), (*value).clone())).collect::<Value>()
                            };
                            (!seen.insert(json!(keys).to_string())).then(shown)
                        }
                        _ => None,
                    };
                    if let Some(twice) = twice {
                        self.push(causes::duplicate(&at, &twice));
                    }
                    if let Some(item) = schema.item() {
                        self.list_types(entry, before(schema, entry, old), item, &at);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The item of the old list that an item was: only the items of keyed lists can be told apart.
pub(super) fn before<'o>(schema: &Props, entry: &Value, old: Option<&'o Value>) -> Option<&'o Value> {
    if !schema.is_keyed() {
        return None;
    }
    let keys = schema.keys_of(entry);
    old?.as_array()?.iter().find(|one| schema.keys_of(one) == keys)
}

fn place(path: &str) -> &str {
    if path.is_empty() { NOWHERE } else { path }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// A value's type as messages name it.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if is_whole(number) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_whole(number: &Number) -> bool {
    !number.is_f64() || number.as_f64().is_some_and(|value| value.fract() == 0.0)
}

/// Whether a number can be what its type and format say. Source: `IsValueValidAgainstRange`.
fn is_within_format(number: &Number, schema: &Props) -> bool {
    if schema.ty != "integer" {
        let is_single = matches!(schema.format.as_str(), "float" | "float32");
        return !is_single || number.as_f64().is_none_or(|value| value.abs() <= f64::from(f32::MAX));
    }
    let whole = match (number.as_i64(), number.as_u64(), number.as_f64()) {
        (Some(whole), ..) => i128::from(whole),
        (_, Some(whole), _) => i128::from(whole),
        // Beyond what any format holds the conversion saturates.
        (.., float) => float.unwrap_or_default() as i128,
    };
    match schema.format.as_str() {
        "int32" => i32::try_from(whole).is_ok(),
        "uint32" => u32::try_from(whole).is_ok(),
        "uint64" => u64::try_from(whole).is_ok(),
        _ => i64::try_from(whole).is_ok(),
    }
}

/// Equality of an enumerated value: 1 and 1.0 are the same.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => compare(one, other).is_eq(),
        _ => one == other,
    }
}

fn compare(one: &Number, other: &Number) -> std::cmp::Ordering {
    match (one.as_i64(), other.as_i64()) {
        (Some(one), Some(other)) => one.cmp(&other),
        _ => {
            let (one, other) = (one.as_f64().unwrap_or(0.0), other.as_f64().unwrap_or(0.0));
            one.partial_cmp(&other).unwrap_or(std::cmp::Ordering::Equal)
        }
    }
}

fn is_multiple(number: &Number, multiple: &Number) -> bool {
    match (number.as_i64(), multiple.as_i64()) {
        (Some(number), Some(multiple)) if multiple > 0 => number % multiple == 0,
        _ => {
            let ratio = number.as_f64().unwrap_or(0.0) / multiple.as_f64().unwrap_or(1.0);
            ratio.fract() == 0.0
        }
    }
}

/// A bound as Go prints a float of it.
fn shown(number: &Number) -> String {
    if is_whole(number) && number.is_f64() {
        return number.as_f64().map_or_else(|| number.to_string(), |value| format!("{value}"));
    }
    number.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(schema: Value, value: Value, old: Option<Value>) -> Vec<String> {
        let schema = Props::read(&schema).unwrap();
        let causes = validate(&value, old.as_ref(), &schema);
        causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    #[test]
    fn numbers_fit_their_format() {
        let schema = |ty: &str, format: &str| json!({"type": "object", "properties": {"n": {"type": ty, "format": format}}});
        let beyond =
            |ty: &str, format: &str, number: Value| said(schema(ty, format), json!({"n": number}), None);
        assert_eq!(
            beyond("integer", "int32", json!(5_000_000_000_i64)),
            ["<nil>: Invalid value: \"\": Checked value must be of type integer with format int32 in n"]
        );
        assert_eq!(
            beyond("integer", "", json!(1e20)),
            ["<nil>: Invalid value: \"\": Checked value must be of type integer (default format) in n"]
        );
        assert_eq!(beyond("integer", "uint32", json!(-1)).len(), 1);
        assert_eq!(beyond("number", "float", json!(1e39)).len(), 1);
        for (ty, format, number) in [
            ("integer", "int64", json!(i64::MIN)),
            ("integer", "uint64", json!(u64::MAX)),
            ("number", "float", json!(1e38)),
            ("number", "", json!(1e300)),
        ] {
            assert!(beyond(ty, format, number).is_empty(), "{ty} {format}");
        }
    }

    #[test]
    fn embedded_objects_are_objects() {
        let schema = json!({"type": "object", "properties": {"e": {"type": "object",
            "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}});
        let about = |embedded: Value| said(schema.clone(), json!({"e": embedded}), None);
        assert_eq!(about(json!({})), ["e.apiVersion: Required value", "e.kind: Required value"]);
        let pod = |metadata: Value| about(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata}));
        assert!(pod(json!({"name": "a", "labels": {"a": "b"}})).is_empty());
        assert!(
            pod(json!({"name": 5}))[0]
                .starts_with("e.metadata: Invalid value: {\"name\":5}: json: cannot unmarshal")
        );
        let wrong = pod(json!({"name": "a/b", "labels": {"a b": "x"}, "annotations": {"/": ""}}));
        assert!(
            wrong[0].starts_with("e.metadata.name: Invalid value: \"a/b\": may not contain '/'"),
            "{wrong:?}"
        );
        assert!(wrong[1].starts_with("e.metadata.labels: Invalid value: \"a b\": name part"), "{wrong:?}");
        assert!(wrong[2].starts_with("e.metadata.annotations: "), "{wrong:?}");
        let odd = about(json!({"apiVersion": "a/b/c", "kind": "-"}));
        assert_eq!(odd[0], "e.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c");
        assert!(odd[1].contains("may have mixed case"), "{odd:?}");
    }

    #[test]
    fn messages_are_upstreams() {
        let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object",
        "required": ["name"], "properties": {
            "replicas": {"type": "integer", "minimum": 1, "maximum": 10},
            "name": {"type": "string", "minLength": 3, "maxLength": 5, "pattern": "^[a-z]+$"},
            "mode": {"type": "string", "enum": ["a", "b"]},
            "list": {"type": "array", "maxItems": 1, "items": {"type": "string"}},
            "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "port": {"x-kubernetes-int-or-string": true},
            "when": {"type": "string", "format": "date-time"},
            "one": {"type": "object", "properties": {"x": {"type": "string"}, "y": {"type": "string"}},
                "oneOf": [{"required": ["x"]}, {"required": ["y"]}]},
        }}}});
        let wrong = json!({"spec": {"replicas": 11, "name": "A", "mode": "c", "list": ["a", "b"], "set": ["x", "x"],
            "port": true, "when": "today", "one": {}}});
        assert_eq!(
            said(schema.clone(), wrong, None),
            [
                "spec.list: Too many: 2: must have at most 1 items",
                "spec.mode: Unsupported value: \"c\": supported values: \"a\", \"b\"",
                "spec.name: Invalid value: \"A\": spec.name in body should be at least 3 chars long",
                "spec.name: Invalid value: \"A\": spec.name in body should match '^[a-z]+$'",
                "<nil>: Invalid value: \"\": \"spec.one\" must validate one and only one schema (oneOf). Found none valid",
                "spec.one.x: Required value",
                "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
                "spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10",
                "spec.when: Invalid value: \"today\": spec.when in body must be of type date-time: \"today\"",
                "spec.set[1]: Duplicate value: \"x\"",
            ]
        );
        assert_eq!(said(schema.clone(), json!({}), None), ["spec: Required value"]);
        let text = json!({"spec": {"name": "abc", "replicas": "3"}});
        assert_eq!(
            said(schema.clone(), text, None),
            [
                "spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\""
            ]
        );
        assert!(
            said(schema, json!({"spec": {"name": "abcd", "port": "x", "one": {"x": "1"}}}), None).is_empty()
        );
    }

    #[test]
    fn what_was_wrong_before_and_stays_is_let_pass() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "maximum": 3},
            "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer", "maximum": 3}}}}}});
        let old = json!({"a": 9, "l": [{"k": "x", "v": 9}]});
        let new = json!({"a": 9, "l": [{"k": "y", "v": 8}, {"k": "x", "v": 9}]});
        assert_eq!(
            said(schema, new, Some(old)),
            ["l[0].v: Invalid value: 8: l[0].v in body should be less than or equal to 3"]
        );
    }
}
