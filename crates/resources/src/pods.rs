//! Pods: what may change after creation, quality of service, grace.

use api::DeleteOptions;
use api::quantity::Quantity;
use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::Strategy;
use apiserver::tree;
use serde_json::Value;

use crate::{pod_spec, pod_update};

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
        pod_update::validate(tree::at(new, &["spec"]), tree::at(old, &["spec"]), errors);
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
