//! Projections of the API objects that the network looks at: only the fields that it uses.

use serde::Deserialize;

/// The label that ties a slice to its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A Service.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Spec.
    pub spec: ServiceSpec,
    /// Status.
    pub status: ServiceStatus,
}

/// A Service's spec.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `type`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The cluster IP; `None` as text for a headless Service.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// External IPs.
    #[serde(rename = "externalIPs", deserialize_with = "null_is_empty")]
    pub external_ips: Vec<String>,
    /// The name that an ExternalName Service stands for.
    pub external_name: Option<String>,
    /// The balancer's address that the user asks for.
    #[serde(rename = "loadBalancerIP")]
    pub load_balancer_ip: Option<String>,
    /// Who serves the balancer, if not the cluster's own.
    pub load_balancer_class: Option<String>,
    /// Ports.
    #[serde(deserialize_with = "null_is_empty")]
    pub ports: Vec<ServicePort>,
    /// `ClientIP` or `None`.
    pub session_affinity: Option<String>,
    /// Its configuration.
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// `Cluster` or `Local`.
    pub external_traffic_policy: Option<String>,
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: Option<String>,
    /// Whether DNS names endpoints that are not ready.
    pub publish_not_ready_addresses: bool,
}

/// Session affinity's configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct SessionAffinityConfig {
    /// For `ClientIP`.
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIp>,
}

/// Configuration of `ClientIP`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIp {
    /// How long a client keeps its endpoint.
    pub timeout_seconds: Option<u32>,
}

/// A Service's port.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Name; may be absent where there is one port only.
    pub name: Option<String>,
    /// `TCP` (default), `UDP`, `SCTP`.
    pub protocol: Option<String>,
    /// Port.
    pub port: u16,
    /// Node port.
    pub node_port: Option<u16>,
}

/// A Service's status.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// The balancer.
    pub load_balancer: LoadBalancerStatus,
}

/// A balancer's status.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    /// Its addresses.
    pub ingress: Vec<LoadBalancerIngress>,
}

/// One address of a balancer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancerIngress {
    /// The address.
    pub ip: Option<String>,
}

/// An endpoint slice.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: Option<String>,
    /// Endpoints.
    #[serde(deserialize_with = "null_is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// Ports that every endpoint has.
    #[serde(deserialize_with = "null_is_empty")]
    pub ports: Vec<EndpointPort>,
    /// The revision of the object that this was read from.
    #[serde(skip)]
    pub revision: i64,
}

/// An endpoint.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// Addresses of one kind.
    pub addresses: Vec<String>,
    /// Conditions.
    pub conditions: Conditions,
    /// Host name within a headless Service.
    pub hostname: Option<String>,
    /// The node.
    pub node_name: Option<String>,
    /// Who should use it.
    pub hints: Hints,
}

/// For whom an endpoint is meant: for all if nothing is said.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hints {
    /// For clients in these zones.
    #[serde(deserialize_with = "null_is_empty")]
    pub for_zones: Vec<Named>,
    /// For clients on these nodes.
    #[serde(deserialize_with = "null_is_empty")]
    pub for_nodes: Vec<Named>,
}

/// A zone or a node, by name.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Named {
    /// The name.
    pub name: String,
}

/// An endpoint's conditions; absent means as upstream documents: ready, serving, not terminating.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Ready.
    pub ready: Option<bool>,
    /// Serving.
    pub serving: Option<bool>,
    /// Terminating.
    pub terminating: Option<bool>,
}

/// A slice's port.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    /// Name, as the Service's port.
    pub name: Option<String>,
    /// Protocol.
    pub protocol: Option<String>,
    /// Port.
    pub port: Option<u16>,
}

/// A node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Spec.
    pub spec: NodeSpec,
    /// Status.
    pub status: NodeStatus,
}

/// A node's spec.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// The range of its pods.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<String>,
}

/// A node's status.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Addresses.
    pub addresses: Vec<NodeAddress>,
}

/// A node's address.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// `InternalIP`, `Hostname` and others.
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub address: String,
}

impl EndpointSlice {
    /// The number of the port with this name and protocol.
    pub fn port(&self, name: &str, protocol: Option<&str>) -> Option<u16> {
        let wanted = protocol.unwrap_or("TCP");
        let matching = |port: &&EndpointPort| {
            port.name.as_deref().unwrap_or_default() == name
                && port.protocol.as_deref().unwrap_or("TCP") == wanted
        };
        self.ports.iter().find(matching)?.port
    }
}

impl Endpoint {
    /// Whether it takes new connections.
    pub fn is_ready(&self) -> bool {
        self.conditions.ready.unwrap_or(true)
    }

    /// Whether it answers, also while it terminates.
    pub fn is_serving(&self) -> bool {
        self.conditions.serving.unwrap_or_else(|| self.is_ready())
    }

    /// Whether it is about to go.
    pub fn is_terminating(&self) -> bool {
        self.conditions.terminating.unwrap_or(false)
    }
}

/// Upstream's Go clients write empty lists as null.
fn null_is_empty<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Vec<T>>::deserialize(from)?.unwrap_or_default())
}
