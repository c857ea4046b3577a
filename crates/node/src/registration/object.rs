//! The contents of the Node object: pure functions.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::quantity::{Format, Quantity};
use engine_api::RuntimeHandler;
use jiff::Timestamp;
use reconcile::{kinds, time};
use serde_json::{Value, json};

use super::allocatable::allocatable;
use super::facts::{HostInfo, architecture};
use crate::config::{Config, PodRange};
use crate::deps::Hardware;
use crate::eviction::pressure::Pressure;
use crate::shutdown::GOING_DOWN;

/// Images that are reported at most. Source: upstream's `nodeStatusMaxImages`.
pub(crate) const IMAGES_MAX: usize = 50;

/// An image as the status lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListedImage {
    pub(crate) names: Vec<String>,
    pub(crate) size_bytes: u64,
}

/// Everything that the status is made from.
pub(crate) struct NodeInput<'a> {
    pub(crate) config: &'a Config,
    pub(crate) info: &'a HostInfo,
    pub(crate) hardware: &'a Hardware,
    pub(crate) addresses: &'a [IpAddr],
    pub(crate) server_port: u16,
    pub(crate) images: &'a [ListedImage],
    pub(crate) pressure: Pressure,
    /// The machine goes down.
    pub(crate) going_down: bool,
    /// The OCI runtimes that pods can ask for.
    pub(crate) handlers: &'a [RuntimeHandler],
    /// Transition times of the conditions that the API server has.
    pub(crate) since: &'a BTreeMap<String, (String, String)>,
    pub(crate) now: Timestamp,
}

/// Labels that every node has.
pub(crate) fn labels(config: &Config) -> BTreeMap<String, String> {
    let arch = architecture();
    let known = [
        ("kubernetes.io/hostname", config.hostname.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ];
    let known = known.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    known.chain(config.labels.iter().cloned()).collect()
}

/// Annotations that the node keeps current.
pub(crate) fn annotations(config: &Config) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("volumes.kubernetes.io/controller-managed-attach-detach", "true".to_owned()),
        (reconcile::local_path::ROOT, crate::local_path::root(config).display().to_string()),
    ])
}

/// `status.capacity`: what the host has.
pub(crate) fn capacity(hardware: &Hardware, max_pods: u32) -> Value {
    let mut amounts = json!({
        "cpu": (hardware.milli_cpu / 1000).to_string(),
        "memory": format!("{}Ki", hardware.memory_bytes / 1024),
        "ephemeral-storage": format!("{}Ki", hardware.disk_bytes / 1024),
        "pods": max_pods.to_string(),
    });
    let bytes = |bytes: &u64| binary(i64::try_from(*bytes).unwrap_or(i64::MAX));
    for (size, pages) in &hardware.huge_pages {
        amounts[format!("hugepages-{}", bytes(size))] = bytes(pages).to_string().into();
    }
    amounts
}

/// Bytes as upstream writes them.
pub(crate) fn binary(bytes: i64) -> Quantity {
    Quantity::from_units(bytes, Format::BinarySi)
}

fn condition(input: &NodeInput<'_>, kind: &str, status: &str, reason: &str, message: &str) -> Value {
    let known = input.since.get(kind).filter(|(known, _)| known == status);
    let since = known.map_or_else(|| time::seconds(input.now), |(_, since)| since.clone());
    json!({
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastHeartbeatTime": time::seconds(input.now), "lastTransitionTime": since,
    })
}

/// An OCI runtime with what it can do. Source: KEP-3857, `NodeRuntimeHandler`.
fn runtime_handler(handler: &RuntimeHandler) -> Value {
    json!({
        "name": handler.name,
        "features": {
            "recursiveReadOnlyMounts": handler.recursive_read_only_mounts,
            "userNamespaces": handler.user_namespaces,
        },
    })
}

/// `status` of the Node.
pub(crate) fn status(input: &NodeInput<'_>) -> Value {
    let mut addresses: Vec<Value> = input
        .addresses
        .iter()
        .map(|address| json!({ "type": "InternalIP", "address": address.to_string() }))
        .collect();
    addresses.push(json!({ "type": "Hostname", "address": input.config.hostname }));
    let mut images = input.images.to_vec();
    images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.names.cmp(&b.names)));
    let images: Vec<Value> = images
        .iter()
        .take(IMAGES_MAX)
        .map(|image| json!({ "names": image.names, "sizeBytes": image.size_bytes }))
        .collect();
    json!({
        "capacity": capacity(input.hardware, input.config.max_pods),
        "allocatable": allocatable(input.hardware, input.config),
        // What of a container's groups its image may not add is enforced.
        "features": { "supplementalGroupsPolicy": true },
        "runtimeHandlers": input.handlers.iter().map(runtime_handler).collect::<Vec<_>>(),
        // Pods that need one of these are placed on nodes that declare it (KEP-5328).
        "declaredFeatures": [
            "InPlacePodLevelResourcesVerticalScaling",
            "InPlacePodVerticalScalingInitContainers",
            "RestartAllContainersOnContainerExits",
        ],
        "addresses": addresses,
        "daemonEndpoints": { "kubeletEndpoint": { "Port": input.server_port } },
        "images": images,
        "nodeInfo": {
            "machineID": input.info.machine_id,
            "systemUUID": input.info.system_uuid,
            "bootID": input.info.boot_id,
            "kernelVersion": input.info.kernel_version,
            "osImage": input.info.os_image,
            "containerRuntimeVersion": input.config.runtime_version,
            "kubeletVersion": input.config.kubelet_version,
            // Gone from the kubelet, still required by clients.
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": architecture(),
        },
        "conditions": [
            match input.pressure.memory {
                false => condition(input, "MemoryPressure", "False", "KubeletHasSufficientMemory",
                    "kubelet has sufficient memory available"),
                true => condition(input, "MemoryPressure", "True", "KubeletHasInsufficientMemory",
                    "kubelet has insufficient memory available"),
            },
            match input.pressure.disk {
                false => condition(input, "DiskPressure", "False", "KubeletHasNoDiskPressure",
                    "kubelet has no disk pressure"),
                true => condition(input, "DiskPressure", "True", "KubeletHasDiskPressure", "kubelet has disk pressure"),
            },
            match input.pressure.pids {
                false => condition(input, "PIDPressure", "False", "KubeletHasSufficientPID",
                    "kubelet has sufficient PID available"),
                true => condition(input, "PIDPressure", "True", "KubeletHasInsufficientPID",
                    "kubelet has insufficient PID available"),
            },
            match input.going_down {
                false => condition(input, "Ready", "True", "KubeletReady", "kubelet is posting ready status"),
                true => condition(input, "Ready", "False", "KubeletNotReady", GOING_DOWN),
            },
        ],
    })
}

/// The Node as it is first made.
pub(crate) fn new_node(config: &Config) -> Value {
    let mut node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": config.node_name,
            "labels": labels(config),
            "annotations": annotations(config),
        },
        "spec": {},
    });
    match &config.pod_range {
        Some(PodRange::Configured(range)) => node["spec"] = json!({ "podCIDR": range, "podCIDRs": [range] }),
        Some(PodRange::Wished(range)) => {
            node["metadata"]["annotations"][kinds::WISHED_POD_RANGE] = range.as_str().into();
        }
        None => {}
    }
    node
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_those_of_the_kernel() {
        let huge_pages = BTreeMap::from([(2 << 20, 6 << 20), (1 << 30, 0)]);
        let hardware = Hardware { milli_cpu: 2000, memory_bytes: 1 << 30, disk_bytes: 1 << 30, huge_pages };
        let shown = capacity(&hardware, 110);
        assert_eq!((&shown["hugepages-2Mi"], &shown["hugepages-1Gi"]), (&json!("6Mi"), &json!("0")));
        assert_eq!((&shown["cpu"], &shown["memory"]), (&json!("2"), &json!("1048576Ki")));
    }
}
