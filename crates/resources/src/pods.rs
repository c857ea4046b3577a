//! Pods: what may change after creation, quality of service, grace.

use api::DeleteOptions;
use api::quantity::Quantity;
use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::Strategy;
use apiserver::tree;
use serde_json::Value;

use crate::pod_spec;

pub(crate) struct Pods;

impl Strategy for Pods {
    fn default(&self, object: &mut Value) {
        let spec = tree::member(object, "spec");
        tree::set_default(spec, "enableServiceLinks", true);
        pod_spec::default(spec);
    }

    fn prepare_create(&self, object: &mut Value) {
        let class = qos_class(object);
        let status = tree::object(object, "status");
        status.insert("phase".into(), "Pending".into());
        status.insert("qosClass".into(), class.into());
    }

    fn prepare_status(&self, new: &mut Value, old: &Value) {
        let class = tree::at(old, &["status", "qosClass"]).clone();
        if class.is_string() {
            tree::object(new, "status").insert("qosClass".into(), class);
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        pod_spec::validate(tree::at(object, &["spec"]), "spec", errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let (after, before) = (tree::at(new, &["spec"]), tree::at(old, &["spec"]));
        if with_mutable_of(after, before) != *before {
            errors.push(FieldError::forbidden(
                "spec",
                "pod updates may not change fields other than `spec.containers[*].image`,\
                 `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
                 existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
                 previously negative)",
            ));
        }
        let kept = tree::items(after, &["tolerations"]);
        if tree::items(before, &["tolerations"]).iter().any(|toleration| !kept.contains(toleration)) {
            let detail = "existing toleration can not be modified except its tolerationSeconds";
            errors.push(FieldError::forbidden("spec.tolerations", detail));
        }
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let (after, before) = (tree::at(new, &["spec", "nodeName"]), tree::at(old, &["spec", "nodeName"]));
        if after != before {
            let detail = "may not be changed directly";
            errors.push(FieldError::forbidden("spec.nodeName", detail));
        }
    }

    fn grace_seconds(&self, object: &Value, options: &DeleteOptions) -> Option<i64> {
        let own = tree::at(object, &["spec", "terminationGracePeriodSeconds"]).as_i64().unwrap_or(30);
        let grace = options.grace_period_seconds.unwrap_or(own);
        let grace = if grace < 0 { 1 } else { grace };
        // Nobody has to stop what never ran or has ended.
        let unbound = tree::text(object, &["spec", "nodeName"]).is_empty();
        let ended = matches!(tree::text(object, &["status", "phase"]), "Succeeded" | "Failed");
        Some(if unbound || ended { 0 } else { grace })
    }
}

/// `after` with everything that may change taken from `before`: equal to `before` if only that changed.
fn with_mutable_of(after: &Value, before: &Value) -> Value {
    let mut munged = after.clone();
    for field in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates"]
    {
        tree::copy(before, &mut munged, field);
    }
    for list in ["containers", "initContainers"] {
        let old = tree::items(before, &[list]);
        let Some(new) = tree::members(&mut munged).get_mut(list).and_then(Value::as_array_mut) else {
            continue;
        };
        if new.len() == old.len() {
            for (container, old) in new.iter_mut().zip(old) {
                tree::copy(old, container, "image");
            }
        }
    }
    munged
}

/// `Guaranteed` if every container's limits for CPU and memory are set and equal its requests, `BestEffort` if none sets
/// anything, else `Burstable`. Source: `helper/qos/qos.go`.
pub(crate) fn qos_class(pod: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    let positive = |value: &Value| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.parse::<Quantity>().ok().map(|quantity| quantity.milli_value()).filter(|milli| *milli > 0)
    };
    for list in ["containers", "initContainers"] {
        for container in tree::items(pod, &["spec", list]) {
            for resource in ["cpu", "memory"] {
                let limit = positive(tree::at(container, &["resources", "limits", resource]));
                let request = positive(tree::at(container, &["resources", "requests", resource]));
                any |= limit.is_some() || request.is_some();
                guaranteed &= limit.is_some() && request == limit;
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(resources: Value) -> Value {
        json!({ "spec": { "containers": [{ "name": "a", "image": "b:1", "resources": resources }] } })
    }

    #[test]
    fn quality_of_service_follows_resources() {
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        let both = json!({ "cpu": "1", "memory": "1Gi" });
        assert_eq!(qos_class(&pod(json!({ "limits": both, "requests": both }))), "Guaranteed");
        assert_eq!(qos_class(&pod(json!({ "requests": { "cpu": "1" } }))), "Burstable");
    }

    #[test]
    fn only_images_and_a_few_others_change() {
        let old = pod(json!({}));
        let mut image = old.clone();
        image["spec"]["containers"][0]["image"] = "b:2".into();
        let mut errors = Vec::new();
        Pods.validate_update(&image, &old, &mut errors);
        assert_eq!(errors, []);
        let mut name = old.clone();
        name["spec"]["containers"][0]["name"] = "c".into();
        Pods.validate_update(&name, &old, &mut errors);
        assert_eq!(errors[0].field, "spec");
    }

    #[test]
    fn unbound_pods_have_no_grace() {
        let options = DeleteOptions::default();
        let mut pod = pod(json!({}));
        assert_eq!(Pods.grace_seconds(&pod, &options), Some(0));
        pod["spec"]["nodeName"] = "n".into();
        assert_eq!(Pods.grace_seconds(&pod, &options), Some(30));
        pod["status"]["phase"] = "Failed".into();
        assert_eq!(Pods.grace_seconds(&pod, &options), Some(0));
    }
}
