//! What the schema alone can say against an object: required fields of the desired state, enumerations and immutable
//! fields, in upstream's words. Source: `k8s.io/apimachinery/pkg/util/validation/field`.

use std::fmt;

use serde_json::Value;

use crate::schema::{Field, Scalar, Struct, Type, Typed};
use crate::status::Cause;

/// Fields that the API's documents call required (as their types in Go leave nothing out) and that upstream's servers take
/// empty, or tell of where another field stands. An absent number is zero and an absent truth is false, which is judged by
/// whoever knows the kind.
const NOT_ENFORCED: [(&str, &[&str]); 16] = [
    ("core.v1.ContainerResizePolicy", &["resourceName", "restartPolicy"]),
    ("core.v1.DownwardAPIVolumeFile", &["path"]),
    ("core.v1.HTTPHeader", &["value"]),
    ("core.v1.LimitRangeSpec", &["limits"]),
    ("core.v1.ObjectFieldSelector", &["fieldPath"]),
    ("core.v1.PersistentVolumeClaimTemplate", &["spec"]),
    ("core.v1.PodSchedulingGate", &["name"]),
    ("core.v1.PreferredSchedulingTerm", &["preference"]),
    ("core.v1.ResourceFieldSelector", &["resource"]),
    ("core.v1.ScaleIOPersistentVolumeSource", &["secretRef"]),
    ("core.v1.ScaleIOVolumeSource", &["secretRef"]),
    ("core.v1.ServiceAccountTokenProjection", &["path"]),
    ("core.v1.Sysctl", &["value"]),
    ("core.v1.WeightedPodAffinityTerm", &["podAffinityTerm"]),
    ("storage.v1.CSINodeSpec", &["drivers"]),
    ("storage.v1.TokenRequest", &["audience"]),
];
/// Definitions (by the beginning of their names) that others judge whole: those whose errors tell the names of upstream's
/// internal version, and resources by group, since the core group has no name.
const JUDGED_ELSEWHERE: [&str; 2] =
    ["io.k8s.apiextensions-apiserver.", "io.k8s.apimachinery.pkg.apis.meta.v1.GroupResource"];

/// Required fields that are absent below `spec` (statuses are written by components, piece by piece) and values outside
/// an enumeration, anywhere.
pub fn object(value: &Value, ty: Typed<'_>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let Some(definition) = ty.structure() else { return causes };
    for field in &definition.fields {
        if let Some(below) = value.get(field.name.as_ref()) {
            let mut walk = Walk { required: field.name == "spec", causes: &mut causes };
            walk.field(below, field, ty, &Path::Field(None, &field.name));
        }
    }
    causes
}

/// Where a value lies. It is written out only where something is to be said: most values are as they should be.
enum Path<'p> {
    Field(Option<&'p Path<'p>>, &'p str),
    Item(&'p Path<'p>, usize),
    Entry(&'p Path<'p>, &'p str),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(None, name) => f.write_str(name),
            Self::Field(Some(above), name) => write!(f, "{above}.{name}"),
            Self::Item(above, index) => write!(f, "{above}[{index}]"),
            Self::Entry(above, key) => write!(f, "{above}[{key}]"),
        }
    }
}

struct Walk<'c> {
    required: bool,
    causes: &'c mut Vec<Cause>,
}

impl Walk<'_> {
    fn field(&mut self, value: &Value, field: &Field, ty: Typed<'_>, path: &Path<'_>) {
        if !field.values().is_empty() {
            match value {
                Value::String(text) => self.enumerated(text, field, path),
                Value::Array(items) => {
                    for (index, text) in
                        items.iter().enumerate().filter_map(|(n, item)| Some((n, item.as_str()?)))
                    {
                        self.enumerated(text, field, &Path::Item(path, index));
                    }
                }
                _ => {}
            }
        }
        self.value(value, ty.of(field.ty), path);
    }

    fn enumerated(&mut self, text: &str, field: &Field, path: &Path<'_>) {
        if text.is_empty() || field.values().iter().any(|allowed| allowed == text) {
            return;
        }
        let allowed: Vec<String> = field.values().iter().map(|value| format!("\"{value}\"")).collect();
        let message = format!("Unsupported value: \"{text}\": supported values: {}", allowed.join(", "));
        self.push("FieldValueNotSupported", path, message);
    }

    fn value(&mut self, value: &Value, ty: Typed<'_>, path: &Path<'_>) {
        match (ty.get(), value) {
            (Type::Struct(definition), Value::Object(object)) => {
                for field in &definition.fields {
                    let path = Path::Field(Some(path), &field.name);
                    match object.get(field.name.as_ref()) {
                        Some(below) if !is_missing(below) || !field.required => {
                            self.field(below, field, ty, &path)
                        }
                        _ if field.required && self.required && is_enforced(definition, field, ty) => {
                            self.push("FieldValueRequired", &path, "Required value".into());
                        }
                        _ => {}
                    }
                }
            }
            (Type::List { item, .. }, Value::Array(items)) => {
                for (index, below) in items.iter().enumerate() {
                    self.value(below, ty.of(*item), &Path::Item(path, index));
                }
            }
            (Type::Map { value: element, .. }, Value::Object(entries)) => {
                for (name, below) in entries {
                    self.value(below, ty.of(*element), &Path::Entry(path, name));
                }
            }
            _ => {}
        }
    }

    fn push(&mut self, reason: &str, field: &Path<'_>, message: String) {
        self.causes.push(Cause { reason: reason.into(), message, field: field.to_string() });
    }
}

/// Whether a required field's value counts as none: Go cannot tell an empty list or string from an absent one.
fn is_missing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Whether upstream refuses an object without a field.
fn is_enforced(definition: &Struct, field: &Field, ty: Typed<'_>) -> bool {
    let zero = matches!(
        ty.of(field.ty).get(),
        Type::Scalar(Scalar::Bool | Scalar::Int32 | Scalar::Int64 | Scalar::Double)
    );
    let of = |name: &str| definition.name.strip_prefix("io.k8s.api.") == Some(name);
    let free = |(name, fields): &(&str, &[&str])| of(name) && fields.contains(&field.name.as_ref());
    let elsewhere = JUDGED_ELSEWHERE.iter().any(|beginning| definition.name.starts_with(beginning));
    !zero && !elsewhere && !NOT_ENFORCED.iter().any(free)
}

/// Immutable fields that a change touched.
pub fn change(old: &Value, new: &Value, ty: Typed<'_>) -> Vec<Cause> {
    let mut causes = Vec::new();
    compare(old, new, ty, "", &mut causes);
    causes
}

/// Follows structs only: nothing inside a list or a map is declared immutable.
fn compare(old: &Value, new: &Value, ty: Typed<'_>, path: &str, causes: &mut Vec<Cause>) {
    let Some(definition) = ty.structure() else { return };
    for field in &definition.fields {
        let (before, after) = (&old[field.name.as_ref()], &new[field.name.as_ref()]);
        if before == after {
            continue;
        }
        let path = if path.is_empty() { field.name.to_string() } else { format!("{path}.{}", field.name) };
        if field.immutable {
            let message = format!("Invalid value: {after}: field is immutable");
            causes.push(Cause { reason: "FieldValueInvalid".into(), message, field: path });
        } else if before.is_object() && after.is_object() {
            compare(before, after, ty.of(field.ty), &path, causes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schema;
    use serde_json::json;

    fn typed(definition: &str) -> Typed<'static> {
        let schema = Schema::builtin();
        schema.typed(schema.named(definition).expect("a definition"))
    }

    fn said(causes: &[Cause]) -> Vec<String> {
        causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    #[test]
    fn required_fields_and_enumerations() {
        let pod = json!({"spec": {"restartPolicy": "Sometimes", "containers": [{"image": "x"}]},
            "status": {"containerStatuses": [{"name": "a"}]}});
        assert_eq!(
            said(&object(&pod, typed("io.k8s.api.core.v1.Pod"))),
            [
                "spec.containers[0].name: Required value",
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
            ]
        );
        let volume = json!({"spec": {"accessModes": ["ReadWriteOnce", "Sometimes"]}});
        assert!(
            said(&object(&volume, typed("io.k8s.api.core.v1.PersistentVolume")))[0]
                .starts_with("spec.accessModes[1]: Unsupported value: \"Sometimes\"")
        );
        // What documents call required, and servers do not.
        for (spec, kind) in [
            (json!({"drivers": []}), "io.k8s.api.storage.v1.CSINode"),
            (json!({"tokenRequests": [{"audience": ""}]}), "io.k8s.api.storage.v1.CSIDriver"),
            (json!({"limits": null}), "io.k8s.api.core.v1.LimitRange"),
            (
                json!({"resource": {"group": "", "resource": "secrets"}}),
                "io.k8s.api.storagemigration.v1.StorageVersionMigration",
            ),
            (
                json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"port": 1, "httpHeaders": [{"name": "a"}]}}}],
                    "volumes": [{"name": "a", "iscsi": {"targetPortal": "a", "iqn": "b"}}]}),
                "io.k8s.api.core.v1.Pod",
            ),
        ] {
            assert_eq!(said(&object(&json!({ "spec": spec }), typed(kind))), [""; 0], "{kind}");
        }
        let empty = json!({"spec": {"containers": []}});
        assert_eq!(
            said(&object(&empty, typed("io.k8s.api.core.v1.Pod"))),
            ["spec.containers: Required value"]
        );
    }

    #[test]
    fn immutable_fields() {
        let deployment =
            |app: &str| json!({"spec": {"replicas": app.len(), "selector": {"matchLabels": {"app": app}}}});
        let ty = typed("io.k8s.api.apps.v1.Deployment");
        assert_eq!(
            said(&change(&deployment("a"), &deployment("bb"), ty)),
            ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"bb\"}}: field is immutable",]
        );
        assert!(change(&deployment("a"), &deployment("a"), ty).is_empty());
    }
}
