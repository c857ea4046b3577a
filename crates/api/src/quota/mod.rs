//! What a namespace's ResourceQuota counts: which resources an object uses, and which quotas it counts for. The API
//! server charges with it, the quota controller adds up with it.
//! Source: `k8s.io/apiserver/pkg/quota/v1`, `k8s.io/kubernetes/pkg/quota/v1/evaluator/core`.

mod devices;
mod pods;
mod scopes;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use crate::quantity::{Format, Quantity};
use crate::resources::{ResourceList, amounts};
use crate::status::qualified;

pub use devices::Around;
pub use pods::{is_terminating, unnamed};

/// Resources that have counted under a name of their own since before `count/…`.
const ALIASES: [&str; 4] = ["configmaps", "resourcequotas", "replicationcontrollers", "secrets"];
/// What stands between a storage class and the resource that is counted for it alone.
const BY_STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
const BY_DEVICE_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
/// How many devices a request for all of them counts as. Source: `resource/v1`, `AllocationResultsMaxSize`.
const ALL_DEVICES: i64 = 32;

/// A stored resource whose objects are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted<'a> {
    /// Its group; empty for core.
    pub group: &'a str,
    /// Its plural.
    pub resource: &'a str,
}

fn count(number: i64) -> Quantity {
    Quantity::from_units(number, Format::DecimalSi)
}

impl Counted<'_> {
    fn is(&self, group: &str, resource: &str) -> bool {
        (self.group, self.resource) == (group, resource)
    }

    /// `count/deployments.apps`
    fn counter(&self) -> String {
        format!("count/{}", qualified(self.group, self.resource))
    }

    /// Whether a quota's resource is about these objects.
    pub fn is_tracked_as(&self, name: &str) -> bool {
        if name == self.counter() {
            return true;
        }
        match (self.group, self.resource) {
            ("", "pods") => pods::tracks(name),
            ("", "services") => matches!(name, "services" | "services.loadbalancers" | "services.nodeports"),
            ("", "persistentvolumeclaims") => {
                let claims = |name| matches!(name, "persistentvolumeclaims" | "requests.storage");
                claims(name) || name.rsplit_once(BY_STORAGE_CLASS).is_some_and(|(_, rest)| claims(rest))
            }
            ("resource.k8s.io", "resourceclaims") => name.ends_with(BY_DEVICE_CLASS),
            ("", alias) => name == alias && ALIASES.contains(&alias),
            _ => false,
        }
    }

    /// The same, also where a class of devices stands for the resource.
    pub fn is_tracked_among(&self, name: &str, around: &Around<'_>) -> bool {
        self.is_tracked_as(name) || (self.is_claims() && around.tracks(name))
    }

    fn is_claims(&self) -> bool {
        self.is("resource.k8s.io", "resourceclaims")
    }

    /// Whether a quota's resource is their number, whatever is in them. Pods are not: those that have ended do not count.
    pub fn counts_objects(&self, name: &str) -> bool {
        match (self.group, self.resource) {
            ("", "persistentvolumeclaims") => name == "persistentvolumeclaims" || name == self.counter(),
            ("", "services") => name == "services" || name == self.counter(),
            ("", alias) => name == self.counter() || (name == alias && ALIASES.contains(&alias)),
            _ => name == self.counter(),
        }
    }

    /// What an object uses at this moment. Amounts of zero are told where a change of the object may raise them.
    pub fn usage(&self, object: &Value, now: Timestamp) -> ResourceList {
        let mut used = BTreeMap::from([(self.counter(), count(1))]);
        match (self.group, self.resource) {
            ("", "pods") => used.extend(pods::usage(object, now)),
            ("", "services") => used.extend(of_service(object)),
            ("", "persistentvolumeclaims") => used.extend(of_claim(object)),
            ("resource.k8s.io", "resourceclaims") => used.extend(of_device_claim(object)),
            ("", alias) if ALIASES.contains(&alias) => drop(used.insert(alias.to_owned(), count(1))),
            _ => {}
        }
        used
    }

    /// The same, also of resources for which classes of devices stand.
    pub fn usage_among(&self, object: &Value, now: Timestamp, around: &Around<'_>) -> ResourceList {
        let mut used = self.usage(object, now);
        if self.is_claims() {
            let more = around.more(object, &used, now);
            used.extend(more);
        }
        used
    }

    /// Whether an object counts for a quota by its scopes; the amounts are not looked at.
    pub fn is_in_scope(&self, quota: &Value, object: &Value) -> bool {
        scopes::of_quota(quota).all(|(scope, selector)| {
            if self.is("", "pods") {
                scopes::of_pod(scope, selector, object)
            } else if self.is("", "persistentvolumeclaims") {
                scopes::of_claim(scope, selector, object)
            } else {
                false
            }
        })
    }
}

/// Node ports are counted by what is asked for: they are not chosen yet.
fn of_service(service: &Value) -> ResourceList {
    let spec = &service["spec"];
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named = ports.iter().filter(|port| port["nodePort"].as_i64().is_some_and(|port| port != 0)).count();
    let (balancers, nodes) = match spec["type"].as_str() {
        Some("NodePort") => (0, ports.len()),
        Some("LoadBalancer") if spec["allocateLoadBalancerNodePorts"] == false => (1, named),
        Some("LoadBalancer") => (1, ports.len()),
        _ => (0, 0),
    };
    let nodes = i64::try_from(nodes).unwrap_or(i64::MAX);
    [("services", 1), ("services.loadbalancers", balancers), ("services.nodeports", nodes)]
        .map(|(name, number)| (name.to_owned(), count(number)))
        .into()
}

fn of_claim(claim: &Value) -> ResourceList {
    let mut used = ResourceList::from([("persistentvolumeclaims".to_owned(), count(1))]);
    let asked = amounts(&claim["spec"]["resources"]["requests"]).get("storage").copied();
    let given = amounts(&claim["status"]["allocatedResources"]).get("storage").copied();
    // A claim that shrinks again after a failed expansion counts as large as it was made.
    if let Some(storage) = asked.max(given) {
        used.insert("requests.storage".into(), storage);
    }
    let annotated = &claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    let class = annotated.as_str().or_else(|| claim["spec"]["storageClassName"].as_str());
    if let Some(class) = class.filter(|class| !class.is_empty()) {
        let of_class = |(name, amount)| (format!("{class}{BY_STORAGE_CLASS}{name}"), amount);
        let more: Vec<_> = used.clone().into_iter().map(of_class).collect();
        used.extend(more);
    }
    used
}

/// Devices by class: of alternatives the most that one of them takes. Source: `evaluator/core/resource_claims.go`.
fn of_device_claim(claim: &Value) -> ResourceList {
    let mut used: BTreeMap<String, i64> = BTreeMap::new();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let devices = |request: &Value| {
        let class = request["deviceClassName"].as_str()?.to_owned();
        let number = match request["allocationMode"].as_str() {
            Some("All") => ALL_DEVICES,
            _ => request["count"].as_i64().unwrap_or(1),
        };
        Some((class, number))
    };
    for request in list(&claim["spec"]["devices"]["requests"]) {
        let mut most: BTreeMap<String, i64> = devices(&request["exactly"]).into_iter().collect();
        for (class, number) in list(&request["firstAvailable"]).iter().filter_map(devices) {
            let known = most.entry(class).or_insert(0);
            *known = number.max(*known);
        }
        for (class, number) in most {
            let known = used.entry(class).or_insert(0);
            *known = known.saturating_add(number);
        }
    }
    used.into_iter().map(|(class, number)| (format!("{class}{BY_DEVICE_CLASS}"), count(number))).collect()
}

/// Only the amounts with these names.
#[must_use]
pub fn masked(list: &ResourceList, keep: impl Fn(&str) -> bool) -> ResourceList {
    list.iter().filter(|(name, _)| keep(name)).map(|(name, amount)| (name.clone(), *amount)).collect()
}

#[cfg(test)]
mod tests;
