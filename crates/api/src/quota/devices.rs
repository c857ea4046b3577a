//! Extended resources that claims of devices use of a quota: what a class stands for counts as the resource, too, unless it
//! counts already with the pod that the claim was made for. Source: `evaluator/core/resource_claims.go`, KEP-5004.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use serde_json::Value;

use super::{BY_DEVICE_CLASS, pods};
use crate::Object;
use crate::resources::ResourceList;

/// By this and its name every class stands for a resource. Source: `resource/v1.ResourceDeviceClassPrefix`.
pub(super) const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";
const REQUESTS: &str = "requests.";
/// Marks a claim that was made for the extended resources of a pod. Source: `ExtendedResourceClaimAnnotation`.
const ANNOTATION: &str = "resource.kubernetes.io/extended-resource-claim";

type Objects<'a> = &'a (dyn Fn() -> Vec<Arc<Object>> + Sync);

/// What claims of one namespace are counted by, beside themselves; it is asked for when it matters.
pub struct Around<'a> {
    /// All classes of devices.
    classes: Objects<'a>,
    /// A pod of the namespace.
    pod: &'a (dyn Fn(&str) -> Option<Arc<Object>> + Sync),
    /// The claims of the namespace.
    claims: Objects<'a>,
    /// The resources that classes stand for, if by more than their names.
    known: OnceLock<BTreeMap<String, Option<String>>>,
}

impl<'a> Around<'a> {
    /// What classes there are, and pods (by name) and claims of the namespace.
    pub fn new(
        classes: Objects<'a>,
        pod: &'a (dyn Fn(&str) -> Option<Arc<Object>> + Sync),
        claims: Objects<'a>,
    ) -> Self {
        Self { classes, pod, claims, known: OnceLock::new() }
    }

    fn classes(&self) -> &BTreeMap<String, Option<String>> {
        self.known.get_or_init(|| {
            let read = |class: &Arc<Object>| {
                let spec = &tree(class)["spec"];
                let resource = spec["extendedResourceName"].as_str().filter(|name| !name.is_empty());
                (class.meta().name.clone(), resource.map(str::to_owned))
            };
            (self.classes)().iter().map(read).collect()
        })
    }

    /// Whether a quota's resource is about claims because a class stands for it.
    pub(super) fn tracks(&self, name: &str) -> bool {
        let Some(resource) = name.strip_prefix(REQUESTS) else { return false };
        match resource.strip_prefix(IMPLICIT) {
            Some(class) => self.classes().contains_key(class),
            None => {
                !pods::is_native(resource)
                    && self.classes().values().any(|stands| stands.as_deref() == Some(resource))
            }
        }
    }

    /// What a claim that uses so many devices uses of the resources that their classes stand for.
    pub(super) fn more(&self, claim: &Value, used: &ResourceList, now: Timestamp) -> ResourceList {
        let mut more = ResourceList::new();
        let by_class =
            used.iter().filter_map(|(name, amount)| Some((name.strip_suffix(BY_DEVICE_CLASS)?, amount)));
        for (class, amount) in by_class.filter(|(class, _)| !class.is_empty()) {
            more.insert(format!("{REQUESTS}{IMPLICIT}{class}"), *amount);
            if let Some(Some(resource)) = self.classes().get(class) {
                more.insert(format!("{REQUESTS}{resource}"), *amount);
            }
        }
        let of_pod = if more.is_empty() { None } else { self.pod_of(claim) };
        let counted = of_pod.map(|pod| pods::usage(&pod, now)).unwrap_or_default();
        for (name, amount) in &mut more {
            if let Some(held) = counted.get(name) {
                *amount = amount.minus(*held);
            }
        }
        more.retain(|_, amount| !amount.is_zero() && !amount.is_negative());
        more
    }

    /// The pod that a claim was made for, if it is the one claim of that pod. Anybody may say so of a claim.
    /// Source: `getVerifiedPodUsage`.
    fn pod_of(&self, claim: &Value) -> Option<Value> {
        let owner = owner(claim)?;
        let held = (self.pod)(owner["name"].as_str()?)?;
        let pod = tree(&held);
        if pod["metadata"]["uid"] != owner["uid"] {
            return None;
        }
        let named = &pod["status"]["extendedResourceClaimStatus"]["resourceClaimName"];
        let own =
            if named.is_null() { self.is_first(claim, owner) } else { *named == claim["metadata"]["name"] };
        own.then_some(pod)
    }

    /// Whether no other claim was made for the same pod before.
    fn is_first(&self, claim: &Value, by: &Value) -> bool {
        let since = |claim: &Value| {
            let meta = &claim["metadata"];
            let text = |field: &str| meta[field].as_str().unwrap_or_default().to_owned();
            (text("creationTimestamp"), text("name"))
        };
        let own = since(claim);
        !(self.claims)().iter().map(|other| tree(other)).any(|other| {
            let same = owner(&other).is_some_and(|owner| owner["uid"] == by["uid"]);
            same && since(&other) < own
        })
    }
}

/// A tree; what cannot be read is nothing.
fn tree(object: &Object) -> Value {
    object.decode().unwrap_or_default()
}

/// The pod for whose extended resources a claim was made, as the claim says.
fn owner(claim: &Value) -> Option<&Value> {
    let meta = &claim["metadata"];
    if meta["annotations"][ANNOTATION] != "true" {
        return None;
    }
    let owner = meta["ownerReferences"].as_array()?.iter().find(|owner| owner["controller"] == true)?;
    (owner["kind"] == "Pod" && owner["apiVersion"] == "v1").then_some(owner)
}
