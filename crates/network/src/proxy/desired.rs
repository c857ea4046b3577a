//! What the API says about a Service, turned into what the data path has to do. Pure.
//!
//! Sources: the Service and EndpointSlice API, KEP-1669 (terminating endpoints serve while no other is ready),
//! KEP-2086 (internal traffic policy), KEP-2433 and KEP-3015 (hints).

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::objects::{Endpoint, EndpointSlice, Named, Service, ServicePort};

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

/// Where the clients are whose connections are balanced here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// This node's name.
    pub node: &'a str,
    /// Its zone; empty if it is in none.
    pub zone: &'a str,
}

/// The groups of a Service on a node. None for a Service that has no cluster IP.
pub fn groups(service: &Service, slices: &[EndpointSlice], place: Place<'_>) -> Vec<Group> {
    let spec = &service.spec;
    let Some(cluster_ip) = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<Ipv4Addr>().ok()) else {
        return Vec::new();
    };
    if spec.kind.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    spec.ports.iter().flat_map(|port| port_groups(service, cluster_ip, port, slices, place)).collect()
}

fn port_groups(
    service: &Service,
    cluster_ip: Ipv4Addr,
    port: &ServicePort,
    slices: &[EndpointSlice],
    place: Place<'_>,
) -> Vec<Group> {
    let spec = &service.spec;
    let protocol = protocol(port.protocol.as_deref());
    let known = endpoints(slices, port);
    let all = choose(&known, nearness(&known, place));
    let local = choose(&known, Nearness::Here(place.node));
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

/// Which endpoints those are that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nearness<'a> {
    /// All of them.
    Any,
    /// Those that are meant for clients on this node.
    ForNode(&'a str),
    /// Those that are meant for clients in this zone.
    ForZone(&'a str),
    /// Those on this node, whomever they are meant for.
    Here(&'a str),
}

impl Nearness<'_> {
    fn includes(self, endpoint: &Endpoint) -> bool {
        let meant_for = |named: &[Named], name: &str| named.iter().any(|held| held.name == name);
        match self {
            Self::Any => true,
            Self::ForNode(node) => meant_for(&endpoint.hints.for_nodes, node),
            Self::ForZone(zone) => meant_for(&endpoint.hints.for_zones, zone),
            Self::Here(node) => endpoint.node_name.as_deref() == Some(node),
        }
    }
}

/// Whose hints are heeded: where every endpoint that is ready says for which nodes it is, and one is for this node,
/// those of the node; else likewise those of its zone; else nobody's. Source: upstream's `topologyModeFromHints`.
fn nearness<'a>(known: &[(SocketAddrV4, &Endpoint)], place: Place<'a>) -> Nearness<'a> {
    let ready = || known.iter().map(|(_, endpoint)| *endpoint).filter(|endpoint| endpoint.is_ready());
    let holds = |named: fn(&Endpoint) -> &[Named], near: Nearness<'_>| {
        ready().all(|endpoint| !named(endpoint).is_empty()) && ready().any(|endpoint| near.includes(endpoint))
    };
    let (node, zone) = (Nearness::ForNode(place.node), Nearness::ForZone(place.zone));
    if holds(|endpoint| &endpoint.hints.for_nodes, node) {
        node
    } else if holds(|endpoint| &endpoint.hints.for_zones, zone) {
        zone
    } else {
        Nearness::Any
    }
}

/// The endpoints of a port, where they are reached.
fn endpoints<'a>(slices: &'a [EndpointSlice], port: &ServicePort) -> Vec<(SocketAddrV4, &'a Endpoint)> {
    let name = port.name.as_deref().unwrap_or_default();
    let family = |slice: &&EndpointSlice| slice.address_type.as_deref().unwrap_or("IPv4") == "IPv4";
    let targets = slices.iter().filter(family).filter_map(|slice| {
        let target = slice.port(name, port.protocol.as_deref())?;
        Some((target, &slice.endpoints))
    });
    let of_slice = |(target, endpoints): (u16, &'a Vec<Endpoint>)| {
        endpoints.iter().filter_map(move |endpoint| {
            // All addresses of an endpoint are the same endpoint; upstream uses the first.
            let address = endpoint.addresses.first()?.parse().ok()?;
            Some((SocketAddrV4::new(address, target), endpoint))
        })
    };
    targets.flat_map(of_slice).collect()
}

/// The endpoints that new connections go to: those that are ready and near; if there is none, those that terminate and
/// still serve. Those count wherever they are meant for: hints are only heeded where somebody ready is near.
/// Source: upstream's `CategorizeEndpoints`.
fn choose(known: &[(SocketAddrV4, &Endpoint)], near: Nearness<'_>) -> Chosen {
    let mut ready = Chosen::default();
    let mut terminating = BTreeSet::new();
    for (at, endpoint) in known.iter().filter(|(_, endpoint)| near.includes(endpoint)) {
        match (endpoint.is_ready(), endpoint.is_serving(), endpoint.is_terminating()) {
            (true, _, terminates) => {
                ready.endpoints.insert(*at);
                ready.leaving.extend(terminates.then_some(*at));
            }
            (false, true, true) => drop(terminating.insert(*at)),
            _ => {}
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

    fn on(node: &str) -> Place<'_> {
        Place { node, zone: "" }
    }

    #[test]
    fn a_terminating_endpoint_serves_only_while_no_other_is_ready() {
        let service = service(json!({"clusterIP": "10.43.0.7", "ports": [{"name": "http", "port": 80}]}));
        let both =
            slice(json!([named("10.42.0.2", "n1", false, true), named("10.42.0.3", "n1", true, false)]));
        let found = groups(&service, &[both], on("n1"));
        assert_eq!(found[0].endpoints, ["10.42.0.3:8080".parse().unwrap()]);
        assert!(found[0].leaving.is_empty());
        let last = slice(json!([named("10.42.0.2", "n1", false, true)]));
        let found = groups(&service, &[last], on("n1"));
        assert_eq!(found[0].endpoints, ["10.42.0.2:8080".parse().unwrap()]);
        assert_eq!(found[0].leaving.len(), 1);
        // `publishNotReadyAddresses`: ready whatever happens, and leaving all the same.
        let published =
            slice(json!([named("10.42.0.2", "n1", true, true), named("10.42.0.3", "n1", true, false)]));
        let found = groups(&service, &[published], on("n1"));
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
        let found = groups(&service, std::slice::from_ref(&slice), on("n1"));
        assert_eq!(found[0].frontends.len(), 3);
        assert_eq!(found[0].endpoints.len(), 2);
        assert_eq!(found[1].frontends.iter().filter(|frontend| frontend.external).count(), 2);
        assert_eq!(found[1].endpoints, ["10.42.0.2:8080".parse().unwrap()]);
        assert_eq!(groups(&service, &[slice], on("n3"))[1].if_empty, IfEmpty::Drop);
        assert_eq!(groups(&service, &[], on("n3"))[1].if_empty, IfEmpty::Reject);
    }

    /// An endpoint as a word: its number, `@` its node, then the zones and nodes that it is for; `-` before it: it is not
    /// ready, `~`: it terminates.
    fn hinted(word: &str) -> serde_json::Value {
        let mut parts = word.split(' ');
        let (first, hints) = (parts.next().unwrap(), parts.next().unwrap_or_default());
        let state = first.chars().next().unwrap();
        let (number, node) = first.trim_start_matches(['-', '~']).split_once('@').unwrap();
        let for_kind = |kind: char| -> Vec<_> {
            let named = hints.split(',').filter(|name| name.starts_with(kind));
            named.map(|name| json!({ "name": name })).collect()
        };
        json!({
            "addresses": [format!("10.42.0.{number}")], "nodeName": node,
            "hints": { "forZones": for_kind('z'), "forNodes": for_kind('n') },
            "conditions": {
                "ready": state.is_ascii_digit(), "serving": state != '-', "terminating": state == '~',
            },
        })
    }

    /// Upstream's cases of `TestCategorizeEndpoints`: who serves the cluster, and who serves locally, on node n1 in a
    /// zone.
    #[test]
    fn endpoints_are_near_as_their_hints_say() {
        let zones = ["3@n2 za", "4@n2 zb", "5@n3 zc", "6@n3 za"];
        let nodes = ["3@n1 za,n1", "4@n2 zb,n2", "5@n3 zc,n3", "6@n4 za,n4"];
        let elsewhere = ["4@n2 zb,n2", "5@n3 zc,n3", "6@n4 za,n4"];
        type Case<'a> = (&'a str, &'a str, &'a [&'a str], &'a [u8], &'a [u8]);
        let cases: &[Case<'_>] = &[
            ("all have hints, and some are for this zone", "za", &zones, &[3, 6], &[]),
            ("the node has no zone", "", &["3@n2 za"], &[3], &[]),
            ("nobody is for this zone", "zb", &["3@n2 za", "5@n2 zc"], &[3, 5], &[]),
            ("one of this zone is not ready", "za", &["3@n2 za", "4@n2 zb", "-6@n2 za"], &[3], &[]),
            ("nobody of this zone is ready", "za", &["-3@n2 za", "4@n2 zb", "5@n2 zc"], &[4, 5], &[]),
            ("one that is not ready has no hint", "za", &["3@n2 za", "4@n2 zb", "-6@n2"], &[3], &[]),
            ("one has no hint", "za", &["3@n2 za", "4@n2 zb", "5@n2"], &[3, 4, 5], &[]),
            ("several zones", "zc", &["3@n2 za,zb,zc", "4@n2 zb,zc", "5@n2 zb,zd"], &[3, 4], &[]),
            ("local ones are so whomever they are for", "za", &["3@n1 zb", "4@n2 za"], &[4], &[3]),
            ("some are for this node", "za", &nodes, &[3], &[3]),
            ("some for a node, some not", "za", &["3@n1 za,n1", "4@n2", "6@n4 za,n4"], &[3, 4, 6], &[3]),
            ("nobody is for this node, some are for its zone", "za", &elsewhere, &[6], &[]),
            ("nobody is for this node or its zone", "zd", &elsewhere, &[4, 5, 6], &[]),
            (
                "some have hints of nodes, all of zones",
                "za",
                &["3@n1 za,n1", "4@n2 za", "5@n3 zb"],
                &[3, 4],
                &[3],
            ),
            ("nobody is ready, some terminate", "za", &["~3@n2 zb", "~4@n1 za", "-5@n1 za"], &[3, 4], &[4]),
            ("some terminate here, others are ready", "za", &["~3@n1 za", "4@n2 za", "5@n2 zb"], &[4], &[3]),
            ("some terminate near, others are ready afar", "za", &["~3@n2 za", "5@n2 zb"], &[5], &[]),
            ("nobody serves", "za", &["-3@n1 za"], &[], &[]),
        ];
        for (name, zone, endpoints, cluster, local) in cases {
            let endpoints: Vec<_> = endpoints.iter().map(|word| hinted(word)).collect();
            let slices = [slice(json!(endpoints))];
            let place = Place { node: "n1", zone };
            let served = |policies: serde_json::Value, which: usize| {
                let mut spec = json!({ "clusterIP": "10.43.0.7", "ports": [{ "name": "http", "port": 80 }] });
                spec.as_object_mut().unwrap().extend(policies.as_object().unwrap().clone());
                let found = groups(&service(spec), &slices, place);
                found[which].endpoints.iter().map(|at| at.ip().octets()[3]).collect::<Vec<_>>()
            };
            assert_eq!(served(json!({}), 0), *cluster, "{name}: cluster");
            assert_eq!(served(json!({ "internalTrafficPolicy": "Local" }), 0), *local, "{name}: inside");
            assert_eq!(served(json!({ "externalTrafficPolicy": "Local" }), 1), *local, "{name}: outside");
            assert_eq!(served(json!({ "internalTrafficPolicy": "Local" }), 1), *cluster, "{name}: outside");
        }
    }

    #[test]
    fn headless_and_external_name_have_no_data_path() {
        for spec in [
            json!({"clusterIP": "None", "ports": [{"port": 80}]}),
            json!({"type": "ExternalName", "externalName": "example.com", "ports": [{"port": 80}]}),
        ] {
            assert!(groups(&service(spec), &[], on("n1")).is_empty());
        }
    }
}
