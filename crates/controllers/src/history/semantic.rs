//! What a pod template means, however it is written: a revision that was kept before a field had its default, or whose
//! amounts are written differently, is still the same template. Pure. Source: the feature
//! `StatefulSetSemanticRevisionComparison`, `apiequality.Semantic`, `core/v1/defaults.go`.

use api::quantity::Quantity;
use api::schema::{Field, Scalar, Schema, Type, Typed};
use serde_json::{Map, Value, json};

const TEMPLATE: &str = "io.k8s.api.core.v1.PodTemplateSpec";
const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// The form in which two templates are the same if they mean the same.
pub(super) fn meaning(template: &Value) -> Value {
    let mut template = template.clone();
    let schema = Schema::builtin();
    if let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) {
        default_spec(spec);
    }
    if let Some(id) = schema.named(TEMPLATE) {
        let ty = schema.typed(id);
        api::defaults::apply(&mut template, ty);
        reduce(&mut template, ty);
    }
    template
}

/// Defaults that the schema does not tell of.
fn default_spec(spec: &mut Map<String, Value>) {
    spec.entry("securityContext").or_insert_with(|| json!({}));
    // Two names of one field.
    let named = |spec: &Map<String, Value>, field: &str| spec.get(field).filter(|held| *held != "").cloned();
    if let Some(account) = named(spec, "serviceAccountName").or_else(|| named(spec, "serviceAccount")) {
        spec.insert("serviceAccountName".to_owned(), account.clone());
        spec.insert("serviceAccount".to_owned(), account);
    }
    let shares_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in CONTAINERS {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for container in containers.filter_map(Value::as_object_mut) {
            default_container(container, shares_network);
        }
    }
}

fn default_container(container: &mut Map<String, Value>, shares_network: bool) {
    container.entry("resources").or_insert_with(|| json!({}));
    let policy = pull_policy(container.get("image").and_then(Value::as_str).unwrap_or_default());
    container.entry("imagePullPolicy").or_insert_with(|| policy.into());
    let ports = container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten();
    for port in ports.filter_map(Value::as_object_mut).filter(|_| shares_network) {
        let own = port.get("containerPort").cloned().unwrap_or_default();
        port.entry("hostPort").or_insert(own);
    }
}

/// When an image is pulled that says nothing of it: one that may be another one tomorrow, always.
fn pull_policy(image: &str) -> &'static str {
    let name = image.rsplit('/').next().unwrap_or_default();
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    if tag == "latest" && !image.contains('@') { "Always" } else { "IfNotPresent" }
}

/// Takes away what says nothing, and writes amounts in one way. An empty object with fields of its own says that it is
/// there.
fn reduce(value: &mut Value, ty: Typed<'_>) {
    match (ty.get(), &mut *value) {
        (Type::Struct(definition), Value::Object(object)) => {
            for (name, value) in object.iter_mut() {
                if let Some(field) = definition.field(name) {
                    reduce(value, ty.of(field.ty));
                }
            }
            object.retain(|name, value| definition.field(name).is_none_or(|field| says(field, ty, value)));
        }
        (Type::Map { value: element, .. }, Value::Object(entries)) => {
            entries.values_mut().for_each(|entry| reduce(entry, ty.of(*element)));
        }
        (Type::List { item, .. }, Value::Array(items)) => {
            items.iter_mut().for_each(|entry| reduce(entry, ty.of(*item)));
        }
        (Type::Scalar(Scalar::Quantity), _) => {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if let Ok(amount) = text.parse::<Quantity>() {
                // In one format: the same amount in another unit is the same.
                *value = Quantity::ONE.plus(amount).to_string().into();
            }
        }
        _ => {}
    }
}

/// Whether a field with this value is told from one that is not there: a zero is by the fields that show it, an empty list
/// or map by none.
fn says(field: &Field, owner: Typed<'_>, value: &Value) -> bool {
    match owner.of(field.ty).get() {
        Type::List { .. } => !value.as_array().is_some_and(Vec::is_empty),
        Type::Map { .. } => !value.as_object().is_some_and(Map::is_empty),
        Type::Scalar(_) if !field.shows_zero => {
            !(value.is_null() || *value == false || *value == "" || value.as_f64() == Some(0.0))
        }
        _ => !value.is_null(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(container: Value, spec: Value) -> Value {
        let mut spec = spec;
        let mut held = json!({ "name": "c", "image": "web:1" });
        held.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
        spec["containers"] = json!([held]);
        json!({ "metadata": { "labels": { "app": "web" } }, "spec": spec })
    }

    #[test]
    fn defaults_units_and_what_is_empty_make_no_difference() {
        let plain = template(json!({}), json!({}));
        let full = template(
            json!({ "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent", "resources": {}, "env": [], "tty": false, "workingDir": "" }),
            json!({ "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "securityContext": {},
                "schedulerName": "default-scheduler", "terminationGracePeriodSeconds": 30, "nodeSelector": {},
                "hostNetwork": false, "priorityClassName": "" }),
        );
        assert_eq!(meaning(&plain), meaning(&full));
        let amounts = |cpu: Value, memory: &str| {
            meaning(&template(
                json!({ "resources": { "requests": { "cpu": cpu, "memory": memory } } }),
                json!({}),
            ))
        };
        assert_eq!(amounts(json!("1000m"), "1Gi"), amounts(json!(1), "1024Mi"));
        assert_eq!(amounts(json!("1"), "1Gi"), amounts(json!("1"), "1073741824"));
        assert_ne!(amounts(json!("1"), "1Gi"), amounts(json!("2"), "1Gi"));
        let account = |field: &str| meaning(&template(json!({}), json!({ field: "robot" })));
        assert_eq!(account("serviceAccount"), account("serviceAccountName"));
        let ported =
            |port: Value| meaning(&template(json!({ "ports": [port] }), json!({ "hostNetwork": true })));
        assert_eq!(
            ported(json!({ "containerPort": 80 })),
            ported(json!({ "containerPort": 80, "hostPort": 80, "protocol": "TCP" }))
        );
    }

    #[test]
    fn what_makes_another_pod_makes_a_difference() {
        let plain = meaning(&template(json!({}), json!({})));
        for other in [
            template(json!({ "image": "web:2" }), json!({})),
            template(json!({ "imagePullPolicy": "Always" }), json!({})),
            template(json!({}), json!({ "restartPolicy": "Never" })),
            template(json!({}), json!({ "volumes": [{ "name": "v", "emptyDir": {} }] })),
            template(json!({ "securityContext": {} }), json!({})),
            template(json!({ "tty": true }), json!({})),
            // A zero behind a pointer is one that was asked for.
            template(json!({}), json!({ "automountServiceAccountToken": false })),
            template(json!({}), json!({ "terminationGracePeriodSeconds": 0 })),
        ] {
            assert_ne!(meaning(&other), plain, "{other}");
        }
        for (image, policy) in [
            ("web", "Always"),
            ("web:latest", "Always"),
            ("host:5000/web", "Always"),
            ("host:5000/web:1", "IfNotPresent"),
            ("web@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
