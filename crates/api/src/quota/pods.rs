//! What pods use of a quota. Source: `pkg/quota/v1/evaluator/core/pods.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::count;
use super::devices::IMPLICIT;
use crate::resources::{Counting, ResourceList, Side, amounts, of_pod};

/// Resources of pods that have names of their own in a quota: `cpu`, `requests.cpu` and `limits.cpu`.
const COMPUTE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
/// What every container has to name where a quota limits it.
const MANDATORY: [&str; 6] =
    ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

/// Whether a name belongs to no domain, or to Kubernetes' own.
pub(super) fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether a name is that of an extended resource, also of one that a class of devices stands for by its name.
/// Source: `schedutil.IsDRAExtendedResourceName`.
fn is_extended(name: &str) -> bool {
    !is_native(name) || name.starts_with(IMPLICIT)
}

/// Whether a quota's resource is about pods.
pub(super) fn tracks(name: &str) -> bool {
    let bare = name.strip_prefix("requests.").or_else(|| name.strip_prefix("limits.")).unwrap_or(name);
    name == "pods"
        || COMPUTE.contains(&bare)
        || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
        || (name.starts_with("requests.") && is_extended(bare))
}

pub(super) fn usage(pod: &Value, now: Timestamp) -> ResourceList {
    if has_ended(pod, now) {
        return ResourceList::new();
    }
    let counting = Counting { overhead: true, status: true };
    let (requests, limits) = (of_pod(pod, Side::Requests, counting), of_pod(pod, Side::Limits, counting));
    let mut used = named(&requests, &limits);
    used.insert("pods".into(), count(1));
    used
}

/// Requests and limits under a quota's names.
fn named(requests: &ResourceList, limits: &ResourceList) -> ResourceList {
    let mut used = ResourceList::new();
    for (name, amount) in requests {
        let huge = name.starts_with("hugepages-");
        if huge || COMPUTE.contains(&name.as_str()) {
            used.insert(name.clone(), *amount);
        }
        if huge || COMPUTE.contains(&name.as_str()) || is_extended(name) {
            used.insert(format!("requests.{name}"), *amount);
        }
    }
    let limited = limits.iter().filter(|(name, _)| COMPUTE.contains(&name.as_str()));
    used.extend(limited.map(|(name, amount)| (format!("limits.{name}"), *amount)));
    used
}

/// Whether a pod has run to its end, or should have: a lost node's pods do not keep others from starting.
fn has_ended(pod: &Value, now: Timestamp) -> bool {
    if matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded")) {
        return true;
    }
    let metadata = &pod["metadata"];
    let ends: Option<Timestamp> = metadata["deletionTimestamp"].as_str().and_then(|at| at.parse().ok());
    let grace = metadata["deletionGracePeriodSeconds"].as_u64();
    let (Some(ends), Some(grace)) = (ends, grace) else { return false };
    ends.saturating_add(Duration::from_secs(grace)).is_ok_and(|last| now > last)
}

/// Whether a pod ends by itself. Source: `IsTerminating`.
pub fn is_terminating(pod: &Value) -> bool {
    pod["spec"]["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0)
}

/// Whether nothing is set aside for a pod. Source: `qos.GetPodQOS`.
pub(super) fn is_best_effort(pod: &Value) -> bool {
    let spec = &pod["spec"];
    let containers = ["containers", "initContainers"];
    let each = containers.iter().flat_map(|list| spec[*list].as_array().into_iter().flatten());
    let asks = |resources: &Value| {
        let lists = [amounts(&resources["requests"]), amounts(&resources["limits"])];
        lists.iter().any(|list| {
            ["cpu", "memory"].iter().any(|name| list.get(*name).is_some_and(|amount| !amount.is_zero()))
        })
    };
    !asks(&spec["resources"]) && !each.map(|container| &container["resources"]).any(asks)
}

/// What containers do not name although a quota limits it, as `must specify cpu for: a,b; memory for: a`; `None` where
/// nothing is missing.
pub fn unnamed<'a>(pod: &Value, limited: impl Iterator<Item = &'a str>) -> Option<String> {
    let spec = &pod["spec"];
    let whole = &spec["resources"];
    if !amounts(&whole["requests"]).is_empty() || !amounts(&whole["limits"]).is_empty() {
        return None;
    }
    let required: Vec<&str> = limited.filter(|name| MANDATORY.contains(name)).collect();
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array().into_iter().flatten() {
            let resources = &container["resources"];
            let given = named(&amounts(&resources["requests"]), &amounts(&resources["limits"]));
            for name in required.iter().filter(|name| !given.contains_key(**name)) {
                missing.entry(name).or_default().insert(container["name"].as_str().unwrap_or_default());
            }
        }
    }
    let parts: Vec<String> = missing
        .into_iter()
        .map(|(name, containers)| {
            let containers: Vec<&str> = containers.into_iter().collect();
            format!("{name} for: {}", containers.join(","))
        })
        .collect();
    (!parts.is_empty()).then(|| format!("must specify {}", parts.join("; ")))
}
