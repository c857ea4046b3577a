//! Projections of Services and of what is written for them, and how a pod becomes an endpoint.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::pods::Pod;

/// The label that says of which Service a slice is.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that says who keeps a slice.
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The label on slices and Endpoints of headless Services.
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";

/// The families of addresses, as slices name them.
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// A projection of `core/v1.Service`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Service {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: ServiceSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    pub(super) cluster_ip: String,
    pub(super) ip_families: Vec<String>,
    pub(super) ports: Vec<ServicePort>,
    pub(super) selector: BTreeMap<String, String>,
    pub(super) r#type: String,
    pub(super) publish_not_ready_addresses: bool,
    pub(super) traffic_distribution: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ServicePort {
    pub(super) name: String,
    pub(super) protocol: String,
    pub(super) port: i32,
    pub(super) target_port: Value,
    pub(super) app_protocol: Option<String>,
}

/// A port of endpoints. Shape: `discovery/v1.EndpointPort`; order as in the Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) port: i32,
    pub(super) protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) app_protocol: Option<String>,
}

/// `discovery/v1.Endpoint`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Endpoint {
    pub(super) addresses: Vec<String>,
    pub(super) conditions: Conditions,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) target_ref: Option<TargetRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hints: Option<Hints>,
}

/// `discovery/v1.EndpointConditions`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Conditions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ready: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) serving: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) terminating: Option<bool>,
}

/// Who should use an endpoint. Shape: `discovery/v1.EndpointHints`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Hints {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) for_zones: Vec<Named>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) for_nodes: Vec<Named>,
}

/// A zone or node by its name. Shape: `discovery/v1.ForZone`, `ForNode`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Named {
    pub(super) name: String,
}

/// What tells endpoints of a Service apart: addresses, host name, namespace and name of the pod. Everything else of an
/// endpoint may change where it stands. Source: `hashEndpoint`.
pub(super) type Identity = (Vec<String>, String, String, String);

impl Endpoint {
    /// What tells it apart.
    pub(super) fn identity(&self) -> Identity {
        let mut addresses = self.addresses.clone();
        addresses.sort();
        let (namespace, name) = self
            .target_ref
            .as_ref()
            .map_or_else(Default::default, |target| (target.namespace.clone(), target.name.clone()));
        (addresses, self.hostname.clone().unwrap_or_default(), namespace, name)
    }

    /// Whether another one says the same, hints aside: those are decided later. Source: `EndpointsEqualBeyondHash`.
    pub(super) fn says_as(&self, other: &Self) -> bool {
        self.node_name == other.node_name
            && self.zone == other.zone
            && self.conditions == other.conditions
            && unversioned(self.target_ref.as_ref()) == unversioned(other.target_ref.as_ref())
    }

    /// Whether it says that it takes connections.
    pub(super) fn is_ready(&self) -> bool {
        self.conditions.ready == Some(true)
    }
}

/// The pod behind an endpoint.
/// Shape: `core/v1.ObjectReference`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct TargetRef {
    pub(super) kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) namespace: String,
    pub(super) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    field_path: String,
}

/// A reference without the version of what it refers to, by which nobody's endpoint becomes another one.
fn unversioned(target: Option<&TargetRef>) -> Option<TargetRef> {
    target.map(|target| TargetRef { resource_version: String::new(), ..target.clone() })
}

/// A projection of `discovery/v1.EndpointSlice`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Slice {
    pub(super) metadata: ObjectMeta,
    pub(super) address_type: String,
    pub(super) ports: Vec<Port>,
    pub(super) endpoints: Vec<Endpoint>,
}

impl Service {
    pub(super) fn is_headless(&self) -> bool {
        self.spec.cluster_ip == "None"
    }

    /// Whether this controller keeps its endpoints: others (no selector, or an alias) are kept by whoever made them.
    pub(super) fn is_ours(&self) -> bool {
        !self.spec.selector.is_empty() && self.spec.r#type != "ExternalName"
    }

    /// The address families that it serves, as slices name them. One without families has that of its address, and a
    /// headless one both. Source: `getAddressTypesForService`.
    pub(super) fn families(&self) -> Vec<&'static str> {
        let serves = |family: &&'static str| self.spec.ip_families.iter().any(|held| held == family);
        let known: Vec<&'static str> = FAMILIES.into_iter().filter(serves).collect();
        match (known.is_empty(), self.has_address()) {
            (false, _) => known,
            (true, true) => vec![if self.spec.cluster_ip.contains(':') { "IPv6" } else { "IPv4" }],
            (true, false) => FAMILIES.to_vec(),
        }
    }

    /// The family of its first address, of which its Endpoints are. Source: `podToEndpointAddressForService`.
    pub(super) fn first_family(&self) -> &str {
        let told = self.spec.ip_families.first().map(String::as_str);
        told.or_else(|| self.families().first().copied()).unwrap_or("IPv4")
    }

    /// Whether it has an address of its own. Source: `isServiceIPSet`.
    pub(super) fn has_address(&self) -> bool {
        !matches!(self.spec.cluster_ip.as_str(), "" | "None")
    }

    /// The ports at which a pod serves it. A named port that the pod does not have is left out.
    pub(super) fn ports_of(&self, pod: &Pod) -> Vec<Port> {
        let port = |wanted: &ServicePort| {
            Some(Port {
                name: wanted.name.clone(),
                port: wanted.resolve(pod)?,
                protocol: wanted.protocol().to_owned(),
                app_protocol: wanted.app_protocol.clone(),
            })
        };
        self.spec.ports.iter().filter_map(port).collect()
    }

    /// Whether a pod's own host name is published.
    pub(super) fn hostname_of(&self, pod: &Pod) -> Option<String> {
        let named = !pod.spec.hostname.is_empty()
            && pod.spec.subdomain == self.metadata.name
            && pod.metadata.namespace == self.metadata.namespace;
        named.then(|| pod.spec.hostname.clone())
    }
}

impl ServicePort {
    fn protocol(&self) -> &str {
        if self.protocol.is_empty() { "TCP" } else { &self.protocol }
    }

    /// The pod's port for a number or a name; those of init containers count where they run beside the others.
    /// Source: `podutil.FindPort`.
    fn resolve(&self, pod: &Pod) -> Option<i32> {
        let beside = pod.spec.init_containers.iter().filter(|container| container.restart_policy == "Always");
        let mains = pod.spec.containers.iter().flat_map(|container| &container.ports);
        match &self.target_port {
            Value::String(name) => mains
                .chain(beside.flat_map(|container| &container.ports))
                .find(|port| {
                    let protocol = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
                    port.name == *name && protocol == self.protocol()
                })
                .map(|port| port.container_port),
            Value::Number(number) => number
                .as_i64()
                .and_then(|port| i32::try_from(port).ok())
                .filter(|port| *port > 0)
                .or(Some(self.port)),
            _ => Some(self.port),
        }
    }
}

/// The pod's address of a family.
pub(super) fn address(pod: &Pod, family: &str) -> Option<String> {
    let fits = |text: &&str| match text.parse::<IpAddr>() {
        // On a machine without a network, pods on the host's own are at its loopback address: that is nobody else's way.
        Ok(address) => address.is_ipv6() == (family == "IPv6") && !address.is_loopback(),
        Err(_) => false,
    };
    let all = pod.status.pod_ips.iter().map(|held| held.ip.as_str());
    all.chain([pod.status.pod_ip.as_str()]).find(fits).map(str::to_owned)
}

/// Ports as they are compared: their order says nothing.
pub(super) fn sorted(ports: &[Port]) -> Vec<Port> {
    let mut ports = ports.to_vec();
    ports.sort();
    ports
}

/// The reference to a pod.
pub(super) fn target_ref(pod: &Pod) -> TargetRef {
    TargetRef {
        kind: "Pod".into(),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..TargetRef::default()
    }
}
