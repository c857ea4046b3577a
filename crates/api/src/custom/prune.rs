//! Pruning: fields that a custom resource's schema does not name are dropped and reported.
//! Source: `apiextensions-apiserver/pkg/apiserver/schema/pruning`.

use serde_json::Value;

use super::props::Props;

/// Upstream's bound on reported fields.
const PROBLEMS_MAX: usize = 100;
/// What every object at the root, or embedded, has besides.
const OF_OBJECTS: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Drops unknown fields of an object; what was dropped, in upstream's words (`unknown field "spec.x"`).
pub(super) fn prune(object: &mut Value, schema: &Props) -> Vec<String> {
    let mut walk = Walk { path: Vec::new(), problems: Vec::new() };
    walk.value(object, schema, true);
    walk.problems
}

struct Walk {
    path: Vec<String>,
    problems: Vec<String>,
}

impl Walk {
    fn value(&mut self, value: &mut Value, schema: &Props, is_object: bool) {
        match value {
            Value::Object(fields) => {
                let keeps = |name: &str| {
                    schema.preserves()
                        || schema.child(name).is_some()
                        || (is_object && OF_OBJECTS.contains(&name))
                };
                let unknown: Vec<String> = fields.keys().filter(|name| !keeps(name)).cloned().collect();
                for name in unknown {
                    fields.remove(&name);
                    self.report(&name);
                }
                for (name, field) in fields.iter_mut() {
                    if is_object && OF_OBJECTS.contains(&name.as_str()) {
                        // That of the whole object has been read as such.
                        if name == "metadata" && schema.embedded && !self.path.is_empty() {
                            self.metadata(field);
                        }
                        continue;
                    }
                    if let Some(below) = schema.child(name) {
                        self.path.push(if self.path.is_empty() { name.clone() } else { format!(".{name}") });
                        self.value(field, below, below.embedded);
                        self.path.pop();
                    }
                }
            }
            Value::Array(items) => {
                let Some(item) = schema.item() else { return };
                for (index, entry) in items.iter_mut().enumerate() {
                    self.path.push(format!("[{index}]"));
                    self.value(entry, item, item.embedded);
                    self.path.pop();
                }
            }
            _ => {}
        }
    }

    /// An embedded object's metadata; what cannot be read stays, for validation to say so.
    fn metadata(&mut self, value: &mut Value) {
        let Ok(decoded) = super::embedded::metadata(value) else { return };
        *value = decoded.value;
        self.path.push(".metadata".to_owned());
        for problem in &decoded.problems {
            if let Some(name) =
                problem.strip_prefix("unknown field \"").and_then(|rest| rest.strip_suffix('"'))
            {
                self.report(name);
            }
        }
        self.path.pop();
    }

    fn report(&mut self, name: &str) {
        if self.problems.len() < PROBLEMS_MAX {
            let place = self.path.concat();
            let dot = if place.is_empty() { "" } else { "." };
            self.problems.push(format!("unknown field \"{place}{dot}{name}\""));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_fields_go_and_preserved_ones_stay() {
        let schema = Props::read(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "a": {"type": "string"},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"known": {"type": "object", "properties": {"x": {"type": "string"}}}}},
            "list": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}}}},
            "inner": {"type": "object", "x-kubernetes-embedded-resource": true,
                "properties": {"spec": {"type": "object"}}},
            "map": {"type": "object", "additionalProperties": {"type": "string"}},
        }}}}))
        .unwrap();
        let mut object = json!({"apiVersion": "a/v1", "kind": "K", "metadata": {"name": "n"}, "extra": 1, "spec": {
            "a": "x", "b": 1, "free": {"any": [1], "known": {"x": "1", "y": 2}}, "list": [{"k": "1", "l": 2}],
            "inner": {"kind": "I", "apiVersion": "v1", "metadata": {"name": "x", "more": 1}, "spec": {"gone": 1}, "other": 1},
            "map": {"k": "v"},
        }});
        let problems = prune(&mut object, &schema);
        assert_eq!(
            problems,
            [
                "unknown field \"extra\"",
                "unknown field \"spec.b\"",
                "unknown field \"spec.free.known.y\"",
                "unknown field \"spec.inner.other\"",
                "unknown field \"spec.inner.metadata.more\"",
                "unknown field \"spec.inner.spec.gone\"",
                "unknown field \"spec.list[0].l\"",
            ]
        );
        assert_eq!(object["spec"]["free"], json!({"any": [1], "known": {"x": "1"}}));
        assert_eq!(object["spec"]["inner"]["metadata"], json!({"name": "x"}));
    }
}
