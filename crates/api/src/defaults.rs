//! Constant defaults, as the schema declares them. What depends on other fields is computed by a kind's strategy, before
//! this: a strategy that adds `rollingUpdate: {}` finds its fields filled in here.

use serde_json::Value;

use crate::schema::{Type, Typed};

/// Fills absent (or null) fields that have a default, everywhere below.
pub fn apply(value: &mut Value, ty: Typed<'_>) {
    match (ty.get(), value) {
        (Type::Struct(definition), Value::Object(object)) => {
            for field in &definition.fields {
                if let Some(default) = field.default()
                    && object.get(field.name.as_ref()).is_none_or(Value::is_null)
                {
                    object.insert(field.name.clone().into_owned(), default.clone());
                }
            }
            for (name, value) in object.iter_mut() {
                if let Some(field) = definition.field(name) {
                    apply(value, ty.of(field.ty));
                }
            }
        }
        (Type::Map { value: element, .. }, Value::Object(entries)) => {
            entries.values_mut().for_each(|entry| apply(entry, ty.of(*element)));
        }
        (Type::List { item, .. }, Value::Array(items)) => {
            items.iter_mut().for_each(|entry| apply(entry, ty.of(*item)));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schema;
    use serde_json::json;

    fn defaulted(definition: &str, mut object: Value) -> Value {
        let schema = Schema::builtin();
        apply(&mut object, schema.typed(schema.named(definition).expect("a definition")));
        object
    }

    #[test]
    fn a_pod_gets_upstreams_constants_and_no_second_pass_changes_it() {
        let pod = json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80}],
            "readinessProbe": {"httpGet": {"port": 80}}}], "volumes": [{"name": "c", "configMap": {"name": "x"}}]}});
        let once = defaulted("io.k8s.api.core.v1.Pod", pod);
        let spec = &once["spec"];
        assert_eq!(spec["restartPolicy"], "Always");
        assert_eq!(spec["terminationGracePeriodSeconds"], 30);
        let container = &spec["containers"][0];
        assert_eq!(container["ports"], json!([{"containerPort": 80, "protocol": "TCP"}]));
        assert_eq!(
            container["readinessProbe"]["httpGet"],
            json!({"path": "/", "port": 80, "scheme": "HTTP"})
        );
        assert_eq!(container["readinessProbe"]["failureThreshold"], 3);
        assert_eq!(spec["volumes"][0]["configMap"]["defaultMode"], 0o644);
        assert_eq!(defaulted("io.k8s.api.core.v1.Pod", once.clone()), once);
    }

    #[test]
    fn what_is_there_stays() {
        let object = json!({"spec": {"replicas": 0, "strategy": {"type": "Recreate"}}});
        let object = defaulted("io.k8s.api.apps.v1.Deployment", object);
        assert_eq!(
            (&object["spec"]["replicas"], &object["spec"]["strategy"]),
            (&json!(0), &json!({"type": "Recreate"}))
        );
        assert_eq!(object["spec"]["revisionHistoryLimit"], 10);
    }
}
