//! Extended resources that are had as devices: a class stands for the resource, and a claim that the scheduler makes
//! itself asks for as many of its devices as the pod's containers ask for of the resource.
//! Source: `dynamicresources/extendeddynamicresources.go`, KEP-5004.

use std::collections::BTreeSet;

use api::Key;
use serde_json::{Value, json};

use super::Devices;
use super::types::{Ask, Claim, Request};
use crate::storage::types::Version;
use crate::types::{Asking, Node, Pod};

/// Marks the claim. Source: `resource/v1.ExtendedResourceClaimAnnotation`.
pub const ANNOTATION: &str = "resource.kubernetes.io/extended-resource-claim";
/// What the claim is called as long as there is none: no name of a claim. Source: `specialClaimInMemName`.
const UNMADE: &str = "<extended-resources>";

/// Which request of the claim a container's resource is had by. Shape: `core/v1.ContainerExtendedResourceRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    container: String,
    resource: String,
    request: String,
}

impl Mapping {
    /// As a pod's status says it.
    pub fn to_json(&self) -> Value {
        json!({ "containerName": self.container, "resourceName": self.resource, "requestName": self.request })
    }
}

/// A request of the claim.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    name: String,
    class: String,
    count: i64,
}

/// What of a pod's resources a node does not offer, so that they have to be had as devices; `None`: what no class stands
/// for either, so that the pod cannot go there. Source: `filterExtendedResources`.
pub fn lacking<'p>(pod: &'p Pod, node: &Node, devices: &Devices) -> Option<Vec<&'p str>> {
    let asked = pod.spec.requests.scalars().filter(|(name, amount)| *amount != 0 && is_had_by_devices(name));
    let mut lacking = Vec::new();
    for (name, _) in asked {
        let offered = node.allocatable.scalar(name);
        if offered.unwrap_or(0) == 0 && devices.class_for(name).is_some() {
            lacking.push(name);
        } else if offered.is_none() {
            return None;
        }
    }
    Some(lacking)
}

/// Whether a resource is one that a class may stand for. Source: `schedutil.IsDRAExtendedResourceName`.
pub fn is_had_by_devices(name: &str) -> bool {
    crate::resources::is_extended(name) || name.starts_with(super::IMPLICIT)
}

/// Whether a pod asks for a resource for which a class stands. Source: `hasDeviceClassMappedExtendedResource`.
pub fn asks(pod: &Pod, devices: &Devices) -> bool {
    let mut asked = pod.spec.requests.scalars().filter(|(_, amount)| *amount != 0);
    !pod.spec.extended.is_empty() && asked.any(|(name, _)| devices.class_for(name).is_some())
}

/// The claim that a pod needs for these resources, which is not made yet, with what its requests are for.
/// Source: `createRequestsAndMappings`.
pub fn claim(pod: &Pod, resources: &[&str], devices: &Devices) -> (Claim, Vec<Mapping>) {
    let (mut wanted, mut mappings) = (Vec::new(), Vec::new());
    for resource in resources {
        let Some(class) = devices.class_for(resource) else { continue };
        of_resource(&pod.spec.extended, resource, &class.name, &mut wanted, &mut mappings);
    }
    wanted.sort_by(|one, other| one.name.cmp(&other.name));
    let requests = wanted.into_iter().map(Wanted::request).collect();
    let version = Version { key: Key::new(pod.key.namespace.as_str(), UNMADE), ..Version::default() };
    (Claim { version, requests, owner: pod.uid.to_string(), ..Claim::default() }, mappings)
}

impl Wanted {
    fn request(self) -> Request {
        let (name, class, count) = (self.name.clone(), self.class, self.count);
        let ask = Ask { name, class, count, mode: "ExactCount".to_owned(), ..Ask::default() };
        Request { name: self.name, ordered: false, asks: vec![ask] }
    }
}

/// The requests for one resource. Init containers that run to their end before others begin use what those get that begin
/// later, and beyond that one request together, as large as the largest of them needs.
fn of_resource(
    containers: &[Asking],
    resource: &str,
    class: &str,
    wanted: &mut Vec<Wanted>,
    mappings: &mut Vec<Mapping>,
) {
    let asking = |brief: bool| containers.iter().filter(move |container| container.brief == brief);
    // By the place of the container in the pod.
    let lasting: Vec<(usize, Wanted)> = asking(false)
        .filter_map(|container| {
            let own = of_container(container, resource, class, &[], mappings);
            Some((container.place, own?))
        })
        .collect();
    let (mut brief, mut most, mut names) = (Vec::new(), None::<Wanted>, BTreeSet::new());
    for container in asking(true) {
        let later: Vec<&Wanted> =
            lasting.iter().filter(|(place, _)| *place >= container.place).map(|(_, wanted)| wanted).collect();
        if let Some(own) = of_container(container, resource, class, &later, &mut brief) {
            names.insert(own.name.clone());
            if most.as_ref().is_none_or(|most| most.count < own.count) {
                most = Some(own);
            }
        }
    }
    if let Some(most) = &most {
        let shares = |mapping: &&mut Mapping| names.contains(&mapping.request);
        brief.iter_mut().filter(shares).for_each(|mapping| mapping.request.clone_from(&most.name));
    }
    wanted.extend(most);
    wanted.extend(lasting.into_iter().map(|(_, wanted)| wanted));
    mappings.extend(brief);
}

/// What a container needs of a resource beyond what it may use of others, if it needs something.
/// Source: `createResourceRequestAndMappings`.
fn of_container(
    container: &Asking,
    resource: &str,
    class: &str,
    usable: &[&Wanted],
    mappings: &mut Vec<Mapping>,
) -> Option<Wanted> {
    let asked = container.resources.iter().find(|asked| asked.resource == resource)?;
    let mut map = |request: &str| {
        let (container, resource) = (container.name.clone(), resource.to_owned());
        mappings.push(Mapping { container, resource, request: request.to_owned() });
    };
    let mut had: i64 = 0;
    for other in usable {
        had = had.saturating_add(other.count);
        map(&other.name);
        if had >= asked.count {
            return None;
        }
    }
    let name = format!("container-{}-request-{}", container.place, asked.place);
    map(&name);
    Some(Wanted { name, class: class.to_owned(), count: asked.count.saturating_sub(had) })
}

/// The claim as it is made.
pub fn body(pod: &Pod, claim: &Claim) -> Value {
    let exactly =
        |ask: &Ask| json!({ "deviceClassName": ask.class, "allocationMode": ask.mode, "count": ask.count });
    let request =
        |request: &Request| json!({ "name": request.name, "exactly": request.asks.first().map(exactly) });
    let requests: Vec<Value> = claim.requests.iter().map(request).collect();
    let owner = json!({ "apiVersion": "v1", "kind": "Pod", "name": pod.key.name, "uid": &*pod.uid, "controller": true });
    let resource = reconcile::kinds::RESOURCE_CLAIMS;
    json!({
        "apiVersion": resource.api_version(), "kind": resource.kind,
        "metadata": {
            "generateName": format!("{}-extended-resources-", pod.key.name), "namespace": pod.key.namespace,
            "annotations": { ANNOTATION: "true" }, "ownerReferences": [owner],
        },
        "spec": { "devices": { "requests": requests } },
    })
}
