//! Where a proxied request goes: pure decisions over pods, Services, their endpoints and nodes. Source: the
//! `ResourceLocation` functions of `pkg/registry/core/{pod,service,node}`.

use std::net::{IpAddr, SocketAddr};

use api::{Reason, Status};
use serde_json::Value;

use crate::tree;

/// What the name in a proxy's path says: `[scheme:]name[:port]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Named<'a> {
    /// Whether it is `https`; plain HTTP otherwise.
    pub(crate) tls: bool,
    pub(crate) name: &'a str,
    /// A number or a name; empty where none is given.
    pub(crate) port: &'a str,
}

/// Reads the name of a proxy's path; `what` is `pod`, `service` or `node`. Source: `utilnet.SplitSchemeNamePort`.
pub(crate) fn named<'a>(id: &'a str, what: &str) -> Result<Named<'a>, Status> {
    let parts: Vec<&str> = id.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => ("?", "", ""),
    };
    if name.is_empty() || !matches!(scheme, "" | "http" | "https") {
        return Err(Status::bad_request(format!("invalid {what} request {id:?}")));
    }
    Ok(Named { tls: scheme == "https", name, port })
}

impl Named<'_> {
    /// The port of the scheme.
    fn default_port(&self) -> u16 {
        if self.tls { 443 } else { 80 }
    }
}

/// The failure for addresses that the API server does not connect to for others. Source: `proxyutil.ErrAddressNotAllowed`.
pub(crate) fn not_allowed() -> Status {
    Status::bad_request("address not allowed")
}

/// Whether the API server may be made to connect to an address: not to itself or to what only its own host reaches.
/// Source: Go's `IP.IsGlobalUnicast`.
pub(crate) fn is_proxyable(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    let local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !special && !local
}

/// Where a pod is reached.
pub(crate) fn pod(asked: &Named<'_>, pod: &Value) -> Result<SocketAddr, Status> {
    let address = pod_addresses(pod).next().filter(|address| is_proxyable(*address));
    let address = address.ok_or_else(not_allowed)?;
    let ports = || {
        tree::items(pod, &["spec", "containers"])
            .iter()
            .flat_map(|container| tree::items(container, &["ports"]))
    };
    let number = |port: &Value| tree::at(port, &["containerPort"]).as_u64();
    let port = match asked.port {
        "" => ports().find_map(number).unwrap_or(asked.default_port().into()),
        given => match given.parse::<u16>() {
            Ok(port) => port.into(),
            Err(_) => ports()
                .find(|port| tree::text(port, &["name"]) == given)
                .and_then(number)
                .ok_or_else(|| Status::bad_request(format!("pod {} has no port {given:?}", asked.name)))?,
        },
    };
    let port = u16::try_from(port).map_err(|_| Status::bad_request(format!("{port} is no port")))?;
    Ok(SocketAddr::new(address, port))
}

/// A pod's own addresses, the first first.
pub(crate) fn pod_addresses(pod: &Value) -> impl Iterator<Item = IpAddr> {
    let all = tree::items(pod, &["status", "podIPs"]).iter().map(|entry| tree::text(entry, &["ip"]));
    all.chain([tree::text(pod, &["status", "podIP"])]).filter_map(|text| text.parse().ok())
}

/// An endpoint of a Service that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// The pod behind it: namespace and name.
    pub(crate) pod: Option<(String, String)>,
}

/// The name of the Service's port that a request asks for, by number or by name.
pub(crate) fn service_port<'a>(service: &'a Value, name: &str, port: &'a str) -> Result<&'a str, Status> {
    let Ok(number) = port.parse::<i64>() else { return Ok(port) };
    tree::items(service, &["spec", "ports"])
        .iter()
        .find(|known| tree::at(known, &["port"]).as_i64() == Some(number))
        .map(|known| tree::text(known, &["name"]))
        .ok_or_else(|| {
            let message = format!("no service port {number} found for service {name:?}");
            Status::new(Reason::ServiceUnavailable, message)
        })
}

/// The failure where nobody serves.
pub(crate) fn no_endpoints(service: &str) -> Status {
    Status::new(Reason::ServiceUnavailable, format!("no endpoints available for service {service:?}"))
}

/// The ready endpoints of an EndpointSlice for a port.
pub(crate) fn of_slice(slice: &Value, port: &str) -> Vec<Endpoint> {
    let Some(number) = port_number(tree::items(slice, &["ports"]), port) else { return Vec::new() };
    let ready = tree::items(slice, &["endpoints"])
        .iter()
        .filter(|endpoint| tree::at(endpoint, &["conditions", "ready"]).as_bool() != Some(false));
    ready
        .filter_map(|entry| {
            let address = tree::items(entry, &["addresses"]).first()?.as_str()?;
            endpoint(address, number, tree::at(entry, &["targetRef"]))
        })
        .collect()
}

/// The ready endpoints of an Endpoints object for a port.
pub(crate) fn of_endpoints(endpoints: &Value, port: &str) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for subset in tree::items(endpoints, &["subsets"]) {
        let Some(number) = port_number(tree::items(subset, &["ports"]), port) else { continue };
        found.extend(tree::items(subset, &["addresses"]).iter().filter_map(|entry| {
            endpoint(tree::text(entry, &["ip"]), number, tree::at(entry, &["targetRef"]))
        }));
    }
    found
}

fn port_number(ports: &[Value], name: &str) -> Option<u16> {
    let port = ports.iter().find(|port| tree::text(port, &["name"]) == name)?;
    tree::at(port, &["port"]).as_u64()?.try_into().ok()
}

fn endpoint(address: &str, port: u16, target: &Value) -> Option<Endpoint> {
    let pod = (tree::text(target, &["kind"]) == "Pod" || target.get("kind").is_none())
        .then(|| (tree::text(target, &["namespace"]).to_owned(), tree::text(target, &["name"]).to_owned()))
        .filter(|(_, name)| !name.is_empty());
    Some(Endpoint { address: SocketAddr::new(address.parse().ok()?, port), pod })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_carry_scheme_and_port() {
        let read = |id| named(id, "service").map(|named| (named.tls, named.name, named.port));
        assert_eq!(read("web"), Ok((false, "web", "")));
        assert_eq!(read("web:http"), Ok((false, "web", "http")));
        assert_eq!(read("https:web:443"), Ok((true, "web", "443")));
        for wrong in ["ftp:web:1", "a:b:c:d", ":80", "https::1"] {
            assert_eq!(
                named(wrong, "service").unwrap_err().message,
                format!("invalid service request {wrong:?}")
            );
        }
    }

    #[test]
    fn what_only_the_host_itself_reaches_is_not_reached_for_others() {
        let allowed = |text: &str| is_proxyable(text.parse().unwrap());
        for text in ["10.0.0.1", "192.168.0.1", "8.8.8.8", "fd00::1", "2001:db8::1"] {
            assert!(allowed(text), "{text}");
        }
        for text in [
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
        ] {
            assert!(!allowed(text), "{text}");
        }
    }

    #[test]
    fn a_pod_is_reached_at_the_port_asked_for_or_at_its_first() {
        let object = json!({
            "spec": { "containers": [{}, { "ports": [{ "containerPort": 8080, "name": "web" }, { "containerPort": 9, "name": "b" }] }] },
            "status": { "podIP": "10.1.0.7", "podIPs": [{ "ip": "10.1.0.7" }] },
        });
        let at = |id| pod(&named(id, "pod").unwrap(), &object).map(|address| address.to_string());
        assert_eq!(at("p"), Ok("10.1.0.7:8080".into()));
        assert_eq!(at("p:99"), Ok("10.1.0.7:99".into()));
        assert_eq!(at("http:p:b"), Ok("10.1.0.7:9".into()));
        assert!(at("p:nothing").is_err());
        let without = json!({ "status": { "podIP": "127.0.0.1" } });
        assert_eq!(pod(&named("p", "pod").unwrap(), &without).unwrap_err().message, "address not allowed");
        assert!(pod(&named("p", "pod").unwrap(), &json!({})).is_err());
    }

    #[test]
    fn ready_endpoints_serve_the_port_of_that_name() {
        let service =
            json!({ "spec": { "ports": [{ "name": "web", "port": 80 }, { "name": "tls", "port": 443 }] } });
        assert_eq!(service_port(&service, "s", "443"), Ok("tls"));
        assert_eq!(service_port(&service, "s", "web"), Ok("web"));
        assert_eq!(
            service_port(&service, "s", "81").unwrap_err().message,
            "no service port 81 found for service \"s\""
        );
        let slice = json!({
            "ports": [{ "name": "web", "port": 8080 }],
            "endpoints": [
                { "addresses": ["10.1.0.1"], "conditions": { "ready": false } },
                { "addresses": ["10.1.0.2"], "conditions": {}, "targetRef": { "kind": "Pod", "namespace": "n", "name": "p" } },
            ],
        });
        let pod = Some(("n".to_owned(), "p".to_owned()));
        let found = |address: &str, pod: &Option<(String, String)>| Endpoint {
            address: address.parse().unwrap(),
            pod: pod.clone(),
        };
        assert_eq!(of_slice(&slice, "web"), [found("10.1.0.2:8080", &pod)]);
        assert_eq!(of_slice(&slice, "tls"), []);
        let endpoints = json!({ "subsets": [{
            "addresses": [{ "ip": "10.1.0.3" }], "notReadyAddresses": [{ "ip": "10.1.0.4" }],
            "ports": [{ "port": 1 }, { "name": "web", "port": 2 }],
        }] });
        assert_eq!(of_endpoints(&endpoints, ""), [found("10.1.0.3:1", &None)]);
    }
}
