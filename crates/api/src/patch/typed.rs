//! Whether what somebody applies fits the schema: unlike in other bodies, an unknown field or an item that is there twice
//! is refused whatever the request's field validation says, for nobody could own it.
//! Source: `sigs.k8s.io/structured-merge-diff/v6/typed/validate.go`.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::schema::{ListKind, Scalar, Struct, Type, Typed};

/// So many failures are told.
const FAILURES_MAX: usize = 100;

/// What does not fit, in upstream's words (`.spec.foo: field not declared in schema`).
pub fn check(value: &Value, ty: Typed<'_>) -> Result<(), String> {
    let mut walk = Walk { path: Vec::new(), failures: Vec::new() };
    walk.value(value, ty);
    match walk.failures.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        several => Err(format!("errors:\n  {}", several.join("\n  "))),
    }
}

struct Walk {
    path: Vec<String>,
    failures: Vec<String>,
}

impl Walk {
    fn fail(&mut self, cause: &str) {
        if self.failures.len() < FAILURES_MAX {
            let path = self.path.concat();
            self.failures.push(if path.is_empty() { cause.to_owned() } else { format!("{path}: {cause}") });
        }
    }

    fn below(&mut self, step: String, work: impl FnOnce(&mut Self)) {
        self.path.push(step);
        work(self);
        self.path.pop();
    }

    fn value(&mut self, value: &Value, ty: Typed<'_>) {
        match (ty.get(), value) {
            (_, Value::Null) => {}
            (Type::Scalar(scalar), value) => self.scalar(*scalar, value),
            (Type::List { item, kind, .. }, Value::Array(items)) => self.list(items, ty.of(*item), kind),
            (Type::List { .. }, other) => self.fail(&format!("expected list, got &{{{}}}", go(other))),
            (Type::Map { value: entry, .. }, Value::Object(fields)) => {
                for (name, field) in fields {
                    self.below(format!(".{name}"), |walk| walk.value(field, ty.of(*entry)));
                }
            }
            (Type::Struct(definition), Value::Object(fields)) => self.fields(fields, definition, ty),
            (Type::Map { .. } | Type::Struct(_), other) => {
                self.fail(&format!("expected map, got &{{{}}}", go(other)));
            }
        }
    }

    fn scalar(&mut self, wanted: Scalar, value: &Value) {
        let is_scalar = !value.is_object() && !value.is_array();
        let cause = match wanted {
            Scalar::Any => return,
            Scalar::String | Scalar::Bytes if !value.is_string() => {
                format!("expected string, got &value.valueUnstructured{{Value:{}}}", go(value))
            }
            Scalar::Int32 | Scalar::Int64 | Scalar::Double if !value.is_number() => {
                format!("expected numeric (int or float), got {}", go_type(value))
            }
            Scalar::Bool if !value.is_boolean() => format!("expected boolean, got &{{{}}}", go(value)),
            _ if !is_scalar => format!("expected any scalar, got &{{{}}}", go(value)),
            _ => return,
        };
        self.fail(&cause);
    }

    fn fields(&mut self, fields: &Map<String, Value>, definition: &Struct, ty: Typed<'_>) {
        for (name, field) in fields {
            self.below(format!(".{name}"), |walk| match definition.field(name) {
                Some(known) => walk.value(field, ty.of(known.ty)),
                None if definition.preserve_unknown => {}
                None => walk.fail("field not declared in schema"),
            });
        }
    }

    fn list(&mut self, items: &[Value], item: Typed<'_>, kind: &ListKind) {
        let mut seen = HashSet::new();
        for (at, entry) in items.iter().enumerate() {
            let step = match kind {
                ListKind::Atomic => Ok(format!("[{at}]")),
                ListKind::Set => of_set(entry),
                ListKind::Map(keys) => {
                    let names: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
                    of_keys(entry, item, &names)
                }
            };
            let step = match step {
                Ok(step) => step,
                Err(cause) => return self.fail(&format!("element {at}: {cause}")),
            };
            if !matches!(kind, ListKind::Atomic) && !seen.insert(step.clone()) {
                self.fail(&format!("duplicate entries for key {step}"));
            }
            self.below(step, |walk| walk.value(entry, item));
        }
    }
}

/// The step to an item of a set.
fn of_set(entry: &Value) -> Result<String, String> {
    match entry {
        Value::Object(_) => Err("associative list without keys has an element that's a map type".into()),
        Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
        Value::Null => Err("associative list without keys has an element that's an explicit null".into()),
        plain => Ok(format!("[={plain}]")),
    }
}

/// The step to an item of a list by its keys; those left out have their defaults.
fn of_keys(entry: &Value, item: Typed<'_>, keys: &[&str]) -> Result<String, String> {
    let fields = match entry {
        Value::Object(fields) => fields,
        Value::Null => return Err("associative list with keys may not have a null element".into()),
        _ => return Err("associative list with keys may not have non-map elements".into()),
    };
    let definition = item.structure();
    let value = |key: &str| {
        fields.get(key).or_else(|| definition.and_then(|definition| definition.field(key)?.default()))
    };
    let mut parts: Vec<_> = keys.iter().filter_map(|key| Some(format!("{key}={}", value(key)?))).collect();
    if parts.is_empty() {
        let names: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
        return Err(format!(
            "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values \
             for any key fields)",
            names.join(" ")
        ));
    }
    parts.sort();
    Ok(format!("[{}]", parts.join(",")))
}

/// A value as Go prints it.
fn go(value: &Value) -> String {
    let all = |items: Vec<String>| items.join(" ");
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", all(items.iter().map(go).collect())),
        Value::Object(fields) => {
            let entry = |(name, field): (&String, &Value)| format!("{name}:{}", go(field));
            format!("map[{}]", all(fields.iter().map(entry).collect()))
        }
        plain => plain.to_string(),
    }
}

/// A value's type in Go.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::Schema;

    fn said(spec: Value) -> String {
        let schema = Schema::builtin();
        let pod = schema.named("io.k8s.api.core.v1.Pod").unwrap();
        let pod = schema.typed(pod);
        check(&json!({ "metadata": { "name": "a", "creationTimestamp": null }, "spec": spec }), pod)
            .err()
            .unwrap_or_default()
    }

    #[test]
    fn what_is_applied_fits_the_schema() {
        let container = |more: Value| {
            let mut container =
                json!({ "name": "x", "resources": { "limits": { "cpu": 1, "memory": "1Gi" } } });
            container.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
            json!({ "containers": [container] })
        };
        let ports = json!({ "ports": [{ "containerPort": 80 }, { "containerPort": 80, "protocol": "UDP" }] });
        assert_eq!(said(container(ports)), "");
        let twice = json!({ "ports": [{ "containerPort": 80 }, { "containerPort": 80, "protocol": "TCP" }] });
        assert_eq!(
            said(container(twice)),
            ".spec.containers[name=\"x\"].ports: duplicate entries for key [containerPort=80,protocol=\"TCP\"]"
        );
        assert_eq!(
            said(container(json!({ "foo": 1 }))),
            ".spec.containers[name=\"x\"].foo: field not declared in schema"
        );
        assert_eq!(
            said(json!({ "containers": [{ "image": "i" }] })),
            ".spec.containers: element 0: associative list with keys has an element that omits all key fields [\"name\"] \
             (and doesn't have default values for any key fields)"
        );
        assert_eq!(
            said(json!({ "hostNetwork": "yes", "nodeName": 5, "priority": "high" })),
            "errors:\n  .spec.hostNetwork: expected boolean, got &{yes}\n  .spec.nodeName: expected string, got \
             &value.valueUnstructured{Value:5}\n  .spec.priority: expected numeric (int or float), got string"
        );
        assert_eq!(
            said(json!({ "containers": { "a": [1] } })),
            ".spec.containers: expected list, got &{map[a:[1]]}"
        );
    }
}
