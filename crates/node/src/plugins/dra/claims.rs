//! Which claims a pod has, whether they are fit to be used, and which of their devices a container gets: decisions without
//! effects. Source: `k8s.io/dynamic-resource-allocation/resourceclaim`, `cm/dra/manager.go`.

use std::collections::BTreeSet;

use api::ObjectMeta;
use k8s_openapi::api::core::v1::Container;
use serde::Deserialize;

use super::book::Entry;
use crate::pod::PodView;

/// More drivers no claim has: its allocation has 32 devices.
const DRIVERS_MAX: usize = 64;

/// A claim that a pod has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The object's name.
    pub(super) name: String,
    /// It was made from a template, for this pod alone.
    pub(super) is_own: bool,
}

/// A projection of `resource.k8s.io/v1.ResourceClaim`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct ClaimView {
    pub(super) metadata: ObjectMeta,
    status: ClaimStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClaimStatus {
    allocation: Option<Allocation>,
    reserved_for: Vec<Consumer>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Allocation {
    devices: Devices,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Devices {
    results: Vec<Allocated>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Allocated {
    driver: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Consumer {
    uid: String,
}

/// The name of the claim that is meant by a name within the pod; none where the pod needs none. Source: `resourceclaim.Name`.
pub(super) fn named(pod: &PodView, within: &str) -> Result<Option<Wanted>, String> {
    let shown = || format!("pod \"{}/{}\"", pod.metadata.namespace, pod.metadata.name);
    let Some(claim) = pod.spec.resource_claims.iter().flatten().find(|claim| claim.name == within) else {
        return Ok(None);
    };
    if let Some(name) = &claim.resource_claim_name {
        return Ok(Some(Wanted { name: name.clone(), is_own: false }));
    }
    if claim.resource_claim_template_name.is_none() {
        return Err(format!(
            "{}, spec.resourceClaim {within:?}: none of the supported fields are set",
            shown()
        ));
    }
    let made = pod.status.resource_claim_statuses.iter().flatten().find(|made| made.name == within);
    let made = made.ok_or_else(|| format!("{}: ResourceClaim not created yet", shown()))?;
    Ok(made.resource_claim_name.clone().map(|name| Wanted { name, is_own: true }))
}

/// The claim that the scheduler has made for extended resources of a pod.
fn of_extended(pod: &PodView) -> Option<&str> {
    let made = pod.status.extended_resource_claim_status.as_ref()?;
    Some(made.resource_claim_name.as_str()).filter(|name| !name.is_empty())
}

/// The claims of a pod, each once.
pub(super) fn wanted(pod: &PodView) -> Result<Vec<Wanted>, String> {
    let mut all: Vec<Wanted> = Vec::new();
    for claim in pod.spec.resource_claims.iter().flatten() {
        all.extend(named(pod, &claim.name)?.filter(|new| all.iter().all(|known| known.name != new.name)));
    }
    all.extend(of_extended(pod).map(|name| Wanted { name: name.to_owned(), is_own: false }));
    Ok(all)
}

/// Whether a pod has claims at all.
pub(super) fn has_some(pod: &PodView) -> bool {
    pod.spec.resource_claims.iter().flatten().next().is_some() || of_extended(pod).is_some()
}

/// What there is to prepare of a claim, if the pod may use it.
pub(super) fn check(pod: &PodView, wanted: &Wanted, claim: &ClaimView) -> Result<Entry, String> {
    let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
    let ClaimView { metadata, status } = claim;
    if wanted.is_own && metadata.controller().is_none_or(|owner| owner.uid != pod.uid()) {
        return Err(format!(
            "ResourceClaim {}/{} was not created for Pod {namespace}/{name} (Pod is not owner)",
            metadata.namespace, metadata.name
        ));
    }
    if status.reserved_for.iter().all(|consumer| consumer.uid != pod.uid()) {
        return Err(format!(
            "pod {name} ({}) is not allowed to use ResourceClaim {} ({})",
            pod.uid(),
            wanted.name,
            metadata.uid
        ));
    }
    let allocated = status.allocation.as_ref();
    let allocated = allocated.ok_or_else(|| format!("ResourceClaim {}: not allocated", metadata.name))?;
    let drivers: BTreeSet<&str> =
        allocated.devices.results.iter().map(|result| result.driver.as_str()).collect();
    if drivers.len() > DRIVERS_MAX {
        return Err(format!(
            "ResourceClaim {}: it has devices of more than {DRIVERS_MAX} drivers",
            metadata.name
        ));
    }
    Ok(Entry {
        namespace: namespace.clone(),
        name: wanted.name.clone(),
        uid: metadata.uid.clone(),
        pods: BTreeSet::new(),
        drivers: drivers.into_iter().map(|driver| (driver.to_owned(), Vec::new())).collect(),
        prepared: false,
    })
}

/// The claims of a container, with the request that it names of each; an empty one means all of it.
pub(super) fn asked(pod: &PodView, container: &Container) -> Result<Vec<(String, String)>, String> {
    let mut all = Vec::new();
    let resources = container.resources.as_ref();
    for claim in resources.iter().flat_map(|resources| resources.claims.iter().flatten()) {
        let wanted = named(pod, &claim.name)?;
        all.extend(wanted.map(|wanted| (wanted.name, claim.request.clone().unwrap_or_default())));
    }
    let (Some(name), Some(made)) = (of_extended(pod), &pod.status.extended_resource_claim_status) else {
        return Ok(all);
    };
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let asks = |resource: &str| {
        let amount = requests.and_then(|requests| requests.get(resource));
        amount.is_some_and(|amount| crate::pod::quantity::value(amount) > 0)
    };
    let own = made.request_mappings.iter();
    let own = own.filter(|of| of.container_name == container.name && asks(&of.resource_name));
    all.extend(own.map(|of| (name.to_owned(), of.request_name.clone())));
    Ok(all)
}

/// Whether a device is of a request. Of subrequests (`request/subrequest`) the request itself counts: what was allocated is
/// one of them. Source: `cdiDevicesAsList`, `BaseRequestRef`.
pub(super) fn is_of(requests: &[String], asked: &str) -> bool {
    let base = |name: &str| name.split('/').next().unwrap_or_default().to_owned();
    asked.is_empty() || requests.is_empty() || requests.iter().any(|name| base(name) == base(asked))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::pod;

    fn claiming() -> PodView {
        let mut pod = pod(json!({
            "resourceClaims": [{"name": "a", "resourceClaimName": "one"},
                {"name": "b", "resourceClaimTemplateName": "t"}, {"name": "c", "resourceClaimTemplateName": "t"}],
            "containers": [{"name": "main", "resources": {"claims": [{"name": "a"}, {"name": "b", "request": "r/s"}],
                "requests": {"example.com/gpu": "1"}}}]}));
        pod.status = serde_json::from_value(json!({
            "resourceClaimStatuses": [{"name": "b", "resourceClaimName": "web-b-x"}, {"name": "c"}],
            "extendedResourceClaimStatus": {"resourceClaimName": "web-extended", "requestMappings": [
                {"containerName": "main", "resourceName": "example.com/gpu", "requestName": "container-0"},
                {"containerName": "main", "resourceName": "example.com/none", "requestName": "container-1"},
                {"containerName": "other", "resourceName": "example.com/gpu", "requestName": "container-2"}]}}))
        .unwrap();
        pod
    }

    #[test]
    fn claims_are_named_or_made_or_not_needed() {
        let mut pod = claiming();
        let names: Vec<(String, bool)> =
            wanted(&pod).unwrap().into_iter().map(|wanted| (wanted.name, wanted.is_own)).collect();
        let wanted_names = [("one", false), ("web-b-x", true), ("web-extended", false)];
        assert_eq!(names, wanted_names.map(|(name, own)| (name.to_owned(), own)));
        let asked = asked(&pod, &pod.spec.containers[0]).unwrap();
        let wanted_requests = [("one", ""), ("web-b-x", "r/s"), ("web-extended", "container-0")];
        assert_eq!(asked, wanted_requests.map(|(claim, request)| (claim.to_owned(), request.to_owned())));
        pod.status.resource_claim_statuses = None;
        let missing = wanted(&pod).unwrap_err();
        assert_eq!(missing, "pod \"default/web\": ResourceClaim not created yet");
    }

    #[test]
    fn only_who_it_is_reserved_for_uses_a_claim() {
        let pod = claiming();
        let claim = |status: Value, owner: &str| -> ClaimView {
            let owners =
                json!([{"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": owner, "controller": true}]);
            let metadata =
                json!({"name": "c", "namespace": "default", "uid": "cu", "ownerReferences": owners});
            serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
        };
        let allocated = json!({"allocation": {"devices": {"results": [
            {"driver": "d.example"}, {"driver": "d.example"}, {"driver": "e.example"}]}},
            "reservedFor": [{"resource": "pods", "name": "web", "uid": "u1"}]});
        let of = |is_own: bool| Wanted { name: "c".into(), is_own };
        let entry = check(&pod, &of(true), &claim(allocated.clone(), "u1")).unwrap();
        assert_eq!(entry.drivers.keys().collect::<Vec<_>>(), ["d.example", "e.example"]);
        let said = check(&pod, &of(true), &claim(allocated.clone(), "other")).unwrap_err();
        assert!(said.ends_with("was not created for Pod default/web (Pod is not owner)"), "{said}");
        assert!(check(&pod, &of(false), &claim(allocated.clone(), "other")).is_ok());
        let mut others = allocated.clone();
        others["reservedFor"] = json!([]);
        let said = check(&pod, &of(true), &claim(others, "u1")).unwrap_err();
        assert_eq!(said, "pod web (u1) is not allowed to use ResourceClaim c (cu)");
        let mut none = allocated;
        none["allocation"] = Value::Null;
        assert_eq!(check(&pod, &of(true), &claim(none, "u1")).unwrap_err(), "ResourceClaim c: not allocated");
    }

    #[test]
    fn devices_are_of_their_requests() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(is_of(&names(&["a"]), "") && is_of(&[], "a") && is_of(&names(&["a", "b"]), "b"));
        assert!(is_of(&names(&["a"]), "a/s") && is_of(&names(&["a/s"]), "a"));
        assert!(!is_of(&names(&["a"]), "b"));
    }
}
