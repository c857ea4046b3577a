//! Pods: what may change after creation, quality of service, grace.

use std::collections::HashSet;
use std::net::IpAddr;

use api::DeleteOptions;
use api::quantity::Quantity;
use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::{NameRule, Strategy};
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::At;
use crate::{affinity, pod_parts, pod_spec, pod_update, pod_warnings};

const MIRROR: &str = "kubernetes.io/config.mirror";
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
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
        pod_spec::validate_pod(&At::object(object), errors);
        annotations(&At::object(object), errors);
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
        let (status, before) = (At::object(new).get("status"), At::object(old).get("status"));
        let nominated = status.get("nominatedNodeName");
        if nominated.value != before.get("nominatedNodeName").value {
            nominated.name_if_set(NameRule::Subdomain, errors);
        }
        for field in ["podIPs", "hostIPs"] {
            addresses(&status.get(field), errors);
        }
        let first = status.get("hostIPs").items().next().map(|first| first.get("ip"));
        if let Some(first) = first.filter(|first| first.text() != status.get("hostIP").text()) {
            errors.push(first.invalid("must be equal to `hostIP`"));
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

/// What is wrong with annotations that mean something of a pod. Source: `ValidatePodSpecificAnnotations`.
fn annotations(pod: &At<'_>, errors: &mut FieldErrors) {
    let (all, spec) = (pod.down(&["metadata", "annotations"]), pod.get("spec"));
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    let containers = || lists.into_iter().flat_map(|list| spec.each(list));
    let names: HashSet<&str> = containers().map(|container| container.get("name").text()).collect();
    for (key, value) in all.entries() {
        let wrong = |shown: &str, detail: &str| {
            FieldError::invalid(format!("{}[{key}]", all.path), &shown.into(), detail)
        };
        if key == MIRROR && spec.get("nodeName").text().is_empty() {
            errors.push(wrong(value.text(), "must set spec.nodeName if mirror pod annotation is set"));
        }
        let Some(container) = key.strip_prefix(APPARMOR) else { continue };
        if !names.contains(container) {
            errors.push(wrong(container, "container not found"));
        }
        let profile = value.text();
        let known =
            matches!(profile, "" | "runtime/default" | "unconfined") || profile.starts_with("localhost/");
        if !known {
            errors.push(wrong(profile, &format!("invalid AppArmor profile name: {profile:?}")));
        }
    }
}

/// Addresses of a status: of each family one. Source: `validatePodIPs`, `validateHostIPs`.
fn addresses(list: &At<'_>, errors: &mut FieldErrors) {
    let ips = || list.items().map(|item| item.get("ip"));
    for (ip, item) in ips().zip(list.items()) {
        pod_spec::address(&At::new(ip.value, item.path), errors);
    }
    if list.len() < 2 {
        return;
    }
    let families: Vec<bool> =
        ips().filter_map(|ip| Some(ip.text().parse::<IpAddr>().ok()?.is_ipv4())).collect();
    if list.len() > 2 || !families.contains(&true) || !families.contains(&false) {
        errors.push(list.invalid("may specify no more than one IP for each IP family"));
    }
    let mut seen: HashSet<&str> = HashSet::new();
    for item in list.items() {
        if !seen.insert(tree::text(item.value, &["ip"])) {
            errors.push(item.duplicate());
        }
    }
}

fn has_own_resources(spec: &Value) -> bool {
    let of_pods = |name: &String| matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-");
    let side = |side: &str| tree::at(spec, &["resources", side]).as_object();
    ["requests", "limits"].into_iter().filter_map(side).any(|amounts| amounts.keys().any(of_pods))
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
    // What a pod says as a whole takes the place of what its containers say. Source: KEP-2837.
    let whole = tree::at(pod, &["spec"]);
    let parts: Vec<&Value> = if has_own_resources(whole) {
        vec![whole]
    } else {
        ["containers", "initContainers"].iter().flat_map(|list| tree::items(whole, &[list])).collect()
    };
    for part in parts {
        for resource in ["cpu", "memory"] {
            let limit = positive(tree::at(part, &["resources", "limits", resource]));
            let request = positive(tree::at(part, &["resources", "requests", resource]));
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request == limit;
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

    fn told(mut pod: Value, in_template: bool) -> Vec<String> {
        let mut errors = Vec::new();
        pod_spec::default_pod(&mut pod["spec"]);
        if in_template {
            pod_spec::validate(&At::object(&pod).get("spec"), &mut errors);
        } else {
            Pods.validate(&pod, &mut errors);
        }
        crate::at::said(&errors)
    }

    #[test]
    fn pods_are_held_to_more_than_templates() {
        let mut padded = pod(json!({}));
        padded["spec"]["containers"][0]["image"] = " b:1".into();
        padded["spec"]["volumes"] = json!([{ "name": "i", "image": {} }]);
        assert_eq!(told(padded.clone(), true), [""; 0]);
        assert_eq!(
            told(padded, false),
            [
                "spec.containers[0].image: Invalid value: \" b:1\": must not have leading or trailing whitespace",
                "spec.volumes[0].image.reference: Required value",
            ]
        );
        let mut annotated = pod(json!({}));
        annotated["metadata"] = json!({ "name": "p", "annotations": { MIRROR: "x",
            "container.apparmor.security.beta.kubernetes.io/b": "y" } });
        assert_eq!(
            told(annotated, false),
            [
                "metadata.annotations[container.apparmor.security.beta.kubernetes.io/b]: Invalid value: \"b\": container not \
                 found",
                "metadata.annotations[container.apparmor.security.beta.kubernetes.io/b]: Invalid value: \"y\": invalid \
                 AppArmor profile name: \"y\"",
                "metadata.annotations[kubernetes.io/config.mirror]: Invalid value: \"x\": must set spec.nodeName if mirror \
                 pod annotation is set",
            ]
        );
    }

    #[test]
    fn a_pod_with_resources_of_its_own_has_what_its_containers_need() {
        let mut whole = pod(json!({ "requests": { "cpu": "2" } }));
        whole["spec"]["resources"] = json!({ "limits": { "cpu": "3", "memory": "1Gi" } });
        pod_spec::default_pod(&mut whole["spec"]);
        assert_eq!(whole["spec"]["resources"]["requests"], json!({ "cpu": "2", "memory": "1Gi" }));
        assert_eq!(qos_class(&whole), "Burstable");
        whole["spec"]["resources"]["requests"]["cpu"] = "3".into();
        assert_eq!(qos_class(&whole), "Guaranteed");
        whole["spec"]["resources"]["requests"]["cpu"] = "1".into();
        whole["spec"]["containers"][0]["resources"]["limits"] = json!({ "cpu": "4" });
        assert_eq!(
            told(whole, false),
            [
                "spec.resources.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate container \
                 requests of 2",
                "spec.resources.containers[0][cpu].limits: Invalid value: \"4\": must be less than or equal to pod limits of 3",
            ]
        );
    }

    #[test]
    fn searches_are_names_that_may_have_underscores() {
        let mut searching = pod(json!({}));
        searching["spec"]["dnsConfig"] = json!({ "searches": ["a.b.", ".", "_sip._tcp.x", "A"] });
        let told = told(searching, false);
        assert!(
            told.len() == 1
                && told[0].starts_with("spec.dnsConfig.searches[3]: Invalid value: \"A\": a lowercase")
        );
    }

    #[test]
    fn a_status_has_an_address_of_each_family() {
        let causes = |status: Value| {
            let mut errors = Vec::new();
            Pods.validate_status(&json!({ "status": status }), &json!({}), &mut errors);
            crate::at::said(&errors)
        };
        let ips = |ips: &[&str]| ips.iter().map(|ip| json!({ "ip": ip })).collect::<Vec<_>>();
        assert_eq!(causes(json!({ "podIPs": ips(&["10.0.0.1", "fd00::1"]) })), [""; 0]);
        let two = causes(json!({ "podIPs": ips(&["10.0.0.1", "10.0.0.2"]) }));
        assert!(
            two.len() == 1 && two[0].ends_with("may specify no more than one IP for each IP family"),
            "{two:?}"
        );
        assert_eq!(
            causes(json!({ "hostIPs": ips(&["10.0.0.1"]), "hostIP": "10.0.0.2", "nominatedNodeName": "A" }))
                .len(),
            2
        );
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
