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
    use crate::generate::Generator;
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
    fn defaulting_twice_is_defaulting_once_for_every_kind() {
        let schema = Schema::builtin();
        for (name, id) in schema.definitions() {
            let Some([group, version, kind]) =
                schema.structure(id).and_then(|definition| definition.kind.as_ref())
            else {
                continue;
            };
            for seed in 0..4 {
                let api_version = crate::catalog::group_version(group, version);
                let object = Generator::new(seed).object(schema.typed(id), &api_version, kind);
                let once = defaulted(name, object.clone());
                assert_eq!(defaulted(name, once.clone()), once, "{name}, seed {seed}");
                assert!(kept(&object, &once), "{name}, seed {seed}: a value was replaced");
            }
        }
    }

    /// Whether everything that one value says is in the other.
    fn kept(before: &Value, after: &Value) -> bool {
        match (before, after) {
            (Value::Object(before), Value::Object(after)) => {
                before.iter().all(|(name, value)| after.get(name).is_some_and(|after| kept(value, after)))
            }
            (Value::Array(before), Value::Array(after)) => {
                before.len() == after.len() && before.iter().zip(after).all(|(one, other)| kept(one, other))
            }
            _ => before == after,
        }
    }

    #[test]
    fn constants_of_every_group() {
        let claim =
            defaulted("io.k8s.api.core.v1.PersistentVolume", json!({"spec": {"rbd": {"image": "i"}}}));
        assert_eq!(claim["spec"]["persistentVolumeReclaimPolicy"], "Retain");
        assert_eq!(claim["spec"]["rbd"]["pool"], "rbd");
        assert_eq!(claim["status"], json!({"phase": "Pending"}));
        let scaler = json!({"spec": {"maxReplicas": 3, "behavior": {"scaleUp": {"policies": []}}}});
        let scaler = defaulted("io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler", scaler);
        assert_eq!(scaler["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert_eq!(scaler["spec"]["behavior"]["scaleUp"]["selectPolicy"], "Max");
        assert_eq!(scaler["spec"]["behavior"]["scaleDown"]["policies"][0]["periodSeconds"], 15);
        let set = defaulted("io.k8s.api.apps.v1.DaemonSet", json!({"spec": {}}));
        assert_eq!(set["spec"]["updateStrategy"], json!({"type": "RollingUpdate"}));
        assert_eq!(set["status"]["numberReady"], 0);
        let hook = json!({"webhooks": [{"clientConfig": {"service": {"name": "s"}}, "rules": [{}]}]});
        let hook = defaulted("io.k8s.api.admissionregistration.v1.MutatingWebhookConfiguration", hook);
        assert_eq!(hook["webhooks"][0]["clientConfig"]["service"]["port"], 443);
        assert_eq!(hook["webhooks"][0]["rules"][0]["scope"], "*");
        assert_eq!(hook["webhooks"][0]["failurePolicy"], "Fail");
        let level = json!({"spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {}}}}});
        let level = defaulted("io.k8s.api.flowcontrol.v1.PriorityLevelConfiguration", level);
        assert_eq!(level["spec"]["limited"]["nominalConcurrencyShares"], 30);
        assert_eq!(level["spec"]["limited"]["limitResponse"]["queuing"]["handSize"], 8);
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
