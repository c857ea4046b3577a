//! What the API says about a Service, turned into what the data path has to do. Pure.
//!
//! Sources: the Service and EndpointSlice API, KEP-1669 (terminating endpoints serve while no other is ready),
//! KEP-2086 (internal traffic policy).

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::objects::{EndpointSlice, Service, ServicePort};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
/// Upstream's default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_DEFAULT_S: u32 = 10_800;

/// Where clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// The address; `None` is any address of the node (a node port).
    pub address: Option<Ipv4Addr>,
    /// Transport protocol.
    pub protocol: u8,
    /// Port.
    pub port: u16,
    /// Only for clients outside the cluster.
    pub external: bool,
}

/// What a client is told when nobody serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfEmpty {
    /// That the port is unreachable.
    Reject,
    /// Nothing: there are endpoints, but not on this node.
    Drop,
}

/// Frontends that share their endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name, unique within the Service and stable as long as it means the same.
    pub name: String,
    /// Where clients connect to.
    pub frontends: Vec<Frontend>,
    /// Who serves them, sorted.
    pub endpoints: Vec<SocketAddrV4>,
    /// Those of them that terminate: they are sent connections for want of others, or because the Service publishes
    /// whoever is there.
    pub leaving: BTreeSet<SocketAddrV4>,
    /// How long a client keeps its endpoint, in seconds.
    pub affinity_s: Option<u32>,
    /// What happens without endpoints.
    pub if_empty: IfEmpty,
}

/// The groups of a Service on the node `node`. None for a Service that has no cluster IP.
pub fn groups(service: &Service, slices: &[EndpointSlice], node: &str) -> Vec<Group> {
    let spec = &service.spec;
    let Some(cluster_ip) = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<Ipv4Addr>().ok()) else {
        return Vec::new();
    };
    if spec.kind.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    spec.ports.iter().flat_map(|port| port_groups(service, cluster_ip, port, slices, node)).collect()
}

fn port_groups(
    service: &Service,
    cluster_ip: Ipv4Addr,
    port: &ServicePort,
    slices: &[EndpointSlice],
    node: &str,
) -> Vec<Group> {
    let spec = &service.spec;
    let protocol = protocol(port.protocol.as_deref());
    let all = endpoints(slices, port, None);
    let local = endpoints(slices, port, Some(node));
    let frontend = |address, port, external| Frontend { address, protocol, port, external };
    let affinity_s = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let configured = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        configured.and_then(|client| client.timeout_seconds).unwrap_or(AFFINITY_DEFAULT_S).max(1)
    });
    let name = format!("{}/{protocol}/{}", port.name.as_deref().unwrap_or_default(), port.port);
    let group = |suffix: &str, frontends: Vec<Frontend>, chosen: &Chosen, if_empty| Group {
        name: format!("{name}{suffix}"),
        frontends,
        endpoints: chosen.endpoints.iter().copied().collect(),
        leaving: chosen.leaving.clone(),
        affinity_s,
        if_empty,
    };
    // Without any endpoint both policies tell the client; with some elsewhere, `Local` stays silent.
    let if_not_local = if all.endpoints.is_empty() { IfEmpty::Reject } else { IfEmpty::Drop };

    let published = published(service).into_iter().map(Some).map(|address| (address, port.port));
    let node_port = port.node_port.filter(|port| *port != 0).map(|port| (None, port));
    let outer: Vec<_> = published.chain(node_port).collect();
    let mut cluster: Vec<_> = outer.iter().map(|(address, port)| frontend(*address, *port, false)).collect();
    let inner = frontend(Some(cluster_ip), port.port, false);
    let mut groups = Vec::new();
    if spec.internal_traffic_policy.as_deref() == Some("Local") {
        groups.push(group("/internal-local", vec![inner], &local, if_not_local));
    } else {
        cluster.insert(0, inner);
    }
    if !cluster.is_empty() {
        groups.push(group("", cluster, &all, IfEmpty::Reject));
    }
    if spec.external_traffic_policy.as_deref() == Some("Local") && !outer.is_empty() {
        let external = outer.iter().map(|(address, port)| frontend(*address, *port, true)).collect();
        groups.push(group("/external-local", external, &local, if_not_local));
    }
    groups
}

/// Addresses beside the cluster IP: of load balancers and `externalIPs`.
fn published(service: &Service) -> BTreeSet<Ipv4Addr> {
    let balancers = service.status.load_balancer.ingress.iter().filter_map(|ingress| ingress.ip.as_deref());
    let external = service.spec.external_ips.iter().map(String::as_str);
    balancers.chain(external).filter_map(|ip| ip.parse().ok()).collect()
}

/// The endpoints that new connections go to, and those of them that terminate.
#[derive(Default)]
struct Chosen {
    endpoints: BTreeSet<SocketAddrV4>,
    leaving: BTreeSet<SocketAddrV4>,
}

/// The endpoints of a port that new connections go to: those that are ready; if none is, those that terminate and
/// still serve. With `node`, of that node only.
fn endpoints(slices: &[EndpointSlice], port: &ServicePort, node: Option<&str>) -> Chosen {
    let mut ready = Chosen::default();
    let mut terminating = BTreeSet::new();
    for slice in slices.iter().filter(|slice| slice.address_type.as_deref().unwrap_or("IPv4") == "IPv4") {
        let Some(target) = slice.port(port.name.as_deref().unwrap_or_default(), port.protocol.as_deref())
        else {
            continue;
        };
        for endpoint in &slice.endpoints {
            if node.is_some() && endpoint.node_name.as_deref() != node {
                continue;
            }
            let into = match (endpoint.is_ready(), endpoint.is_serving(), endpoint.is_terminating()) {
                (true, ..) => &mut ready.endpoints,
                (false, true, true) => &mut terminating,
                _ => continue,
            };
            // All addresses of an endpoint are the same endpoint; upstream uses the first.
            let Some(address) = endpoint.addresses.first().and_then(|address| address.parse().ok()) else {
                continue;
            };
            let at = SocketAddrV4::new(address, target);
            into.insert(at);
            if endpoint.is_ready() && endpoint.is_terminating() {
                ready.leaving.insert(at);
            }
        }
    }
    if ready.endpoints.is_empty() {
        Chosen { leaving: terminating.clone(), endpoints: terminating }
    } else {
        ready
    }
}

fn protocol(name: Option<&str>) -> u8 {
    match name {
        Some("UDP") => UDP,
        Some("SCTP") => SCTP,
        _ => TCP,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default"}, "spec": spec,
            "status": {"loadBalancer": {"ingress": [{"ip": "10.44.0.1"}]}},
        }))
        .unwrap()
    }

    fn slice(endpoints: serde_json::Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn named(address: &str, node: &str, ready: bool, terminating: bool) -> serde_json::Value {
        json!({"addresses": [address], "nodeName": node,
            "conditions": {"ready": ready, "serving": true, "terminating": terminating}})
    }

    #[test]
    fn a_terminating_endpoint_serves_only_while_no_other_is_ready() {
        let service = service(json!({"clusterIP": "10.43.0.7", "ports": [{"name": "http", "port": 80}]}));
        let both =
            slice(json!([named("10.42.0.2", "n1", false, true), named("10.42.0.3", "n1", true, false)]));
        let found = groups(&service, &[both], "n1");
        assert_eq!(found[0].endpoints, ["10.42.0.3:8080".parse().unwrap()]);
        assert!(found[0].leaving.is_empty());
        let last = slice(json!([named("10.42.0.2", "n1", false, true)]));
        let found = groups(&service, &[last], "n1");
        assert_eq!(found[0].endpoints, ["10.42.0.2:8080".parse().unwrap()]);
        assert_eq!(found[0].leaving.len(), 1);
        // `publishNotReadyAddresses`: ready whatever happens, and leaving all the same.
        let published =
            slice(json!([named("10.42.0.2", "n1", true, true), named("10.42.0.3", "n1", true, false)]));
        let found = groups(&service, &[published], "n1");
        assert_eq!(found[0].endpoints.len(), 2);
        assert_eq!(found[0].leaving, ["10.42.0.2:8080".parse().unwrap()].into());
    }

    #[test]
    fn local_policies_use_the_endpoints_of_this_node() {
        let service = service(json!({
            "clusterIP": "10.43.0.7", "type": "LoadBalancer", "externalTrafficPolicy": "Local",
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
        }));
        let slice =
            slice(json!([named("10.42.0.2", "n1", true, false), named("10.42.1.2", "n2", true, false)]));
        let found = groups(&service, std::slice::from_ref(&slice), "n1");
        assert_eq!(found[0].frontends.len(), 3);
        assert_eq!(found[0].endpoints.len(), 2);
        assert_eq!(found[1].frontends.iter().filter(|frontend| frontend.external).count(), 2);
        assert_eq!(found[1].endpoints, ["10.42.0.2:8080".parse().unwrap()]);
        assert_eq!(groups(&service, &[slice], "n3")[1].if_empty, IfEmpty::Drop);
        assert_eq!(groups(&service, &[], "n3")[1].if_empty, IfEmpty::Reject);
    }

    #[test]
    fn headless_and_external_name_have_no_data_path() {
        for spec in [
            json!({"clusterIP": "None", "ports": [{"port": 80}]}),
            json!({"type": "ExternalName", "externalName": "example.com", "ports": [{"port": 80}]}),
        ] {
            assert!(groups(&service(spec), &[], "n1").is_empty());
        }
    }
}
