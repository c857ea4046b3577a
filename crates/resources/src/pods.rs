//! Pods: what may change after creation, quality of service, grace.

use api::DeleteOptions;
use api::quantity::Quantity;
use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::Strategy;
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::At;
use crate::{affinity, pod_parts, pod_spec, pod_update, pod_warnings};

/// How dear a pod's deletion is to its ReplicaSet. Source: KEP-2255.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub(crate) struct Pods;

impl Strategy for Pods {
    fn default(&self, object: &mut Value) {
        pod_spec::default_pod(tree::member(object, "spec"));
    }

    fn complete(&self, object: &mut Value) {
        affinity::merge_label_keys(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        let class = qos_class(object);
        let gated = gated_condition(object);
        let status = tree::object(object, "status");
        status.insert("phase".into(), "Pending".into());
        status.insert("qosClass".into(), class.into());
        if let Some(condition) = gated {
            status.insert("conditions".into(), json!([condition]));
        }
    }

    fn prepare_status(&self, new: &mut Value, old: &Value) {
        let class = tree::at(old, &["status", "qosClass"]).clone();
        if class.is_string() {
            tree::object(new, "status").insert("qosClass".into(), class);
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = At::object(object).get("spec");
        pod_spec::validate(&spec, errors);
        spec.get("terminationGracePeriodSeconds").not_negative(errors);
        if spec.get("serviceAccountName").text().is_empty() {
            for source in spec.each("volumes").flat_map(|volume| volume.get("projected").each("sources")) {
                if source.has("serviceAccountToken") {
                    let detail = "must not be specified when serviceAccountName is not set";
                    errors.push(source.get("serviceAccountToken").forbidden(detail));
                }
            }
        }
        let cost = At::object(object).down(&["metadata", "annotations", DELETION_COST]);
        if cost.is_set() && cost.text().parse::<i32>().is_err() {
            let field = format!("metadata.annotations[{DELETION_COST}]");
            errors.push(FieldError::invalid(field, cost.value, "must be a 32bit integer"));
        }
    }

    fn validate_create(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = At::object(object).get("spec");
        if !spec.get("ephemeralContainers").is_empty() {
            errors.push(spec.get("ephemeralContainers").forbidden("cannot be set on create"));
        }
        if !spec.get("nodeName").text().is_empty() && !spec.get("schedulingGates").is_empty() {
            let detail = "cannot be set until all schedulingGates have been cleared";
            errors.push(spec.get("nodeName").forbidden(detail));
        }
    }

    fn take_part(&self, subresource: &str, wanted: &Value, new: &mut Value) {
        match subresource {
            "ephemeralcontainers" => {
                tree::copy(tree::at(wanted, &["spec"]), tree::member(new, "spec"), "ephemeralContainers");
            }
            "resize" => pod_parts::take_resources(wanted, new),
            _ => {}
        }
    }

    fn validate_part(&self, subresource: &str, new: &Value, old: &Value, errors: &mut FieldErrors) {
        match subresource {
            "ephemeralcontainers" => {
                self.validate(new, errors);
                pod_parts::ephemeral_containers(new, old, errors);
            }
            "resize" => {
                self.validate(new, errors);
                pod_parts::resize(new, old, errors);
            }
            _ => {}
        }
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let pod = At::object(object);
        pod_warnings::warnings(&pod.get("spec"), &pod.get("metadata"))
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        pod_update::validate(tree::at(new, &["spec"]), tree::at(old, &["spec"]), errors);
        pod_update::annotations(new, old, errors);
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

/// The condition of a pod that scheduling gates hold back, from its creation. Source: `applySchedulingGatedCondition`.
fn gated_condition(pod: &Value) -> Option<Value> {
    let gated = !tree::items(pod, &["spec", "schedulingGates"]).is_empty();
    gated.then(|| {
        json!({
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastProbeTime": null,
            "lastTransitionTime": tree::at(pod, &["metadata", "creationTimestamp"]),
        })
    })
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
    fn a_gated_pod_says_so_from_its_creation() {
        let mut gated = json!({ "metadata": { "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "schedulingGates": [{ "name": "example.com/wait" }] } });
        Pods.prepare_create(&mut gated);
        let conditions = &gated["status"]["conditions"];
        assert_eq!(
            *conditions,
            json!([{ "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates", "lastProbeTime": null,
                "lastTransitionTime": "2026-01-01T00:00:00Z" }])
        );
        let mut plain = pod(json!({}));
        Pods.prepare_create(&mut plain);
        assert!(plain["status"].get("conditions").is_none());
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
