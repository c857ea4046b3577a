//! Devices for pods: their claims, and what happens to pods whose devices are not to be used any more.
//! Source: `k8s.io/dynamic-resource-allocation/resourceclaim`.

pub mod claims;
pub mod eviction;

mod links;
mod rules;
mod taints;

use api::{Key, Object, ObjectMeta};
use reconcile::taints::Toleration;
use serde::Deserialize;

/// Which claim in its pod's list a generated claim is for. Source: `podResourceClaimAnnotation`.
const POD_CLAIM_NAME: &str = "resource.kubernetes.io/pod-claim-name";
/// Keeps a claim whose devices are allocated. Source: `resource/v1.Finalizer`.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

/// The part of `core/v1.Pod` that is about claims.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Pod {
    metadata: ObjectMeta,
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: String,
    resource_claims: Vec<PodClaim>,
}

/// `core/v1.PodResourceClaim`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodClaim {
    name: String,
    resource_claim_name: Option<String>,
    resource_claim_template_name: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: String,
    resource_claim_statuses: Vec<PodClaimStatus>,
    extended_resource_claim_status: Option<ExtendedClaimStatus>,
}

/// `core/v1.PodResourceClaimStatus`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodClaimStatus {
    name: String,
    /// Absent: it was found that the pod needs none.
    resource_claim_name: Option<String>,
}

/// `core/v1.PodExtendedResourceClaimStatus`: the claim that the scheduler made for extended resources.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ExtendedClaimStatus {
    resource_claim_name: String,
}

/// What a pod's list says about one claim. Source: `resourceclaim.Name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named<'p> {
    /// A claim that the pod's user made.
    Shared(&'p str),
    /// A claim that was made for the pod, of which it has to be the owner.
    Own(&'p str),
    /// One that is still to be made from this template.
    Pending(&'p str),
    /// None is needed.
    Unneeded,
    /// Nothing that is known here.
    Unknown,
}

impl<'p> Named<'p> {
    /// The claim's name, once there is one.
    fn claim(self) -> Option<&'p str> {
        match self {
            Named::Shared(name) | Named::Own(name) => Some(name),
            Named::Pending(_) | Named::Unneeded | Named::Unknown => None,
        }
    }
}

impl Pod {
    fn named<'p>(&'p self, claim: &'p PodClaim) -> Named<'p> {
        if let Some(name) = &claim.resource_claim_name {
            return Named::Shared(name);
        }
        let Some(template) = &claim.resource_claim_template_name else { return Named::Unknown };
        let Some(known) = self.status.resource_claim_statuses.iter().find(|held| held.name == claim.name)
        else {
            return Named::Pending(template);
        };
        known.resource_claim_name.as_deref().map_or(Named::Unneeded, Named::Own)
    }

    /// The names of its claims, as far as they are known.
    fn claim_names(&self) -> impl Iterator<Item = &str> {
        let extended = self.status.extended_resource_claim_status.iter();
        let listed = self.spec.resource_claims.iter().filter_map(|claim| self.named(claim).claim());
        listed.chain(extended.map(|status| status.resource_claim_name.as_str()))
    }

    /// Whether none of its containers runs, and none ever will. Source: `isPodDone`.
    fn is_done(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
            || (self.metadata.is_terminating() && self.spec.node_name.is_empty())
    }
}

/// A glance at the bytes: few pods have claims. It is what `resourceClaims` and `extendedResourceClaimStatus` share.
fn has_claims(pod: &Object) -> bool {
    std::str::from_utf8(pod.bytes()).is_ok_and(|text| text.contains("esourceClaim"))
}

/// The part of `resource/v1.ResourceClaim` that is about its users and devices.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Claim {
    metadata: ObjectMeta,
    status: ClaimStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClaimStatus {
    allocation: Option<Allocation>,
    reserved_for: Vec<Consumer>,
}

/// The part of `resource/v1.AllocationResult` that names devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Allocation {
    devices: AllocatedDevices,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct AllocatedDevices {
    results: Vec<Allocated>,
}

/// The part of `resource/v1.DeviceRequestAllocationResult` that says which device, and what of it is borne.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Allocated {
    #[serde(flatten)]
    device: Device,
    /// `resource/v1.DeviceToleration` has the fields of that of nodes' taints.
    tolerations: Vec<Toleration>,
}

/// By which a device is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(default)]
struct Device {
    driver: String,
    pool: String,
    device: String,
}

/// `resource/v1.ResourceClaimConsumerReference`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Consumer {
    api_group: String,
    resource: String,
    name: String,
    uid: String,
}

impl Consumer {
    fn is_pod(&self) -> bool {
        self.api_group.is_empty() && self.resource == "pods"
    }
}

impl Claim {
    /// Its devices, once it has some.
    fn devices(&self) -> impl Iterator<Item = &Allocated> {
        self.status.allocation.iter().flat_map(|allocation| &allocation.devices.results)
    }

    /// Whether a pod may use it already. Source: `resourceclaim.IsReservedForPod`.
    fn is_reserved_for(&self, pod: &ObjectMeta) -> bool {
        self.status.reserved_for.iter().any(|user| user.uid == pod.uid)
    }
}

/// Why a claim that was made for a pod is not this pod's. Source: `resourceclaim.IsForPod`.
fn stranger(pod: &ObjectMeta, claim: &ObjectMeta) -> Option<String> {
    let owned = claim.controller().is_some_and(|owner| owner.uid == pod.uid);
    (!owned).then(|| {
        format!(
            "ResourceClaim {}/{} was not created for Pod {}/{} (Pod is not owner)",
            claim.namespace, claim.name, pod.namespace, pod.name
        )
    })
}

/// The key of a claim in a pod's namespace.
fn claim_key(pod: &ObjectMeta, name: &str) -> Key {
    Key::new(pod.namespace.as_str(), name)
}
