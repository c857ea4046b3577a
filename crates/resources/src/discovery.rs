//! Endpoints and EndpointSlices. Source: `discovery/validation/validation.go`, `validateEndpointSubsets`. Addresses of the
//! loopback are taken, which upstream refuses: a server that runs alone has no other.

use std::net::IpAddr;

use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::{NameRule, Strategy};
use serde_json::{Value, json};

use crate::at::At;
use crate::pod_spec::address;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 20_000;
const HINTS_MAX: usize = 8;

/// The old form.
pub(crate) struct Endpoints;

impl Strategy for Endpoints {
    fn generation(&self) -> bool {
        false
    }

    fn create_on_update(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        for subset in At::object(object).each("subsets") {
            let lists = ["addresses", "notReadyAddresses"];
            if lists.iter().all(|list| subset.get(list).is_empty()) {
                errors.push(subset.required("must specify `addresses` or `notReadyAddresses`"));
            }
            for point in lists.iter().flat_map(|list| subset.each(list)) {
                address(&point.get("ip"), errors);
                point.get("hostname").name_if_set(NameRule::Label, errors);
                point.get("nodeName").name_if_set(NameRule::Subdomain, errors);
            }
            let ports = subset.get("ports");
            for port in ports.items() {
                let name = port.get("name");
                if name.text().is_empty() && ports.len() > 1 {
                    errors.push(name.required(""));
                }
                name.name_if_set(NameRule::Label, errors);
                port.get("port").port(errors);
                protocol(&port, errors);
            }
        }
    }
}

/// The form that everyone reads.
pub(crate) struct EndpointSlices;

impl Strategy for EndpointSlices {
    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let slice = At::object(object);
        let family = slice.get("addressType");
        if family.present("", errors) {
            family.one_of(&["FQDN", "IPv4", "IPv6"], errors);
        }
        let (ports, endpoints) = (slice.get("ports"), slice.get("endpoints"));
        if ports.len() > PORTS_MAX {
            errors.push(ports.too_many(PORTS_MAX));
        } else {
            check_ports(&ports, errors);
        }
        if endpoints.len() > ENDPOINTS_MAX {
            errors.push(endpoints.too_many(ENDPOINTS_MAX));
            return;
        }
        for endpoint in endpoints.items() {
            check_endpoint(&endpoint, family.text(), errors);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        At::object(new).keeps(&At::object(old), &["addressType"], errors);
    }
}

fn protocol(port: &At<'_>, errors: &mut FieldErrors) {
    if port.get("protocol").present("", errors) {
        port.get("protocol").one_of(&PROTOCOLS, errors);
    }
    if port.has("appProtocol") {
        port.get("appProtocol").label_key(errors);
    }
}

fn check_ports(ports: &At<'_>, errors: &mut FieldErrors) {
    let mut names: Vec<&str> = Vec::new();
    for port in ports.items() {
        let name = port.get("name");
        name.name_if_set(NameRule::Label, errors);
        if names.contains(&name.text()) {
            errors.push(FieldError::duplicate(name.path.clone(), &json!(name.text())));
        }
        names.push(name.text());
        protocol(&port, errors);
    }
}

fn check_endpoint(endpoint: &At<'_>, family: &str, errors: &mut FieldErrors) {
    let addresses = endpoint.get("addresses");
    if addresses.is_empty() {
        errors.push(addresses.required("must contain at least 1 address"));
    } else if addresses.len() > ADDRESSES_MAX {
        errors.push(addresses.too_many(ADDRESSES_MAX));
    }
    for one in addresses.items() {
        let parsed = one.text().parse::<IpAddr>();
        match (family, parsed) {
            ("FQDN", _) => one.name(NameRule::Subdomain, errors),
            ("IPv4", Ok(ip)) if !ip.is_ipv4() => {
                errors.push(FieldError::invalid(
                    addresses.path.clone(),
                    one.value,
                    "must be an IPv4 address",
                ));
            }
            ("IPv6", Ok(ip)) if !ip.is_ipv6() => {
                errors.push(FieldError::invalid(
                    addresses.path.clone(),
                    one.value,
                    "must be an IPv6 address",
                ));
            }
            (_, Ok(_)) => {}
            (_, Err(_)) => address(&one, errors),
        }
    }
    endpoint.get("nodeName").name_if_set(NameRule::Subdomain, errors);
    endpoint.get("hostname").name_if_set(NameRule::Label, errors);
    endpoint.get("deprecatedTopology").labels(errors);
    let hints = endpoint.get("hints");
    for list in ["forZones", "forNodes"].map(|list| hints.get(list)) {
        if list.len() > HINTS_MAX {
            errors.push(list.too_many(HINTS_MAX));
            continue;
        }
        let mut seen: Vec<&str> = Vec::new();
        for name in list.items().map(|hint| hint.get("name")) {
            if seen.contains(&name.text()) {
                errors.push(name.duplicate());
            }
            seen.push(name.text());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::at::said;

    #[test]
    fn failures_are_upstreams() {
        let causes = |patch: Value| {
            let mut slice = json!({ "addressType": "IPv4" });
            slice.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
            let mut errors = Vec::new();
            EndpointSlices.validate(&slice, &mut errors);
            said(&errors)
        };
        let rows = [
            (json!({ "endpoints": [{ "addresses": ["10.0.0.1"] }] }), vec![]),
            (
                json!({ "endpoints": [{ "addresses": ["::1"] }, {}] }),
                vec![
                    "endpoints[0].addresses: Invalid value: \"::1\": must be an IPv4 address",
                    "endpoints[1].addresses: Required value: must contain at least 1 address",
                ],
            ),
            (
                json!({ "ports": [{ "protocol": "TCP" }, { "protocol": "TCP" }] }),
                vec!["ports[1].name: Duplicate value: \"\""],
            ),
            (
                json!({ "addressType": "IPX" }),
                vec![
                    "addressType: Unsupported value: \"IPX\": supported values: \"FQDN\", \"IPv4\", \"IPv6\"",
                ],
            ),
        ];
        for (patch, expected) in rows {
            assert_eq!(causes(patch.clone()), expected, "{patch}");
        }
        let mut errors = Vec::new();
        Endpoints.validate(&json!({ "subsets": [{ "addresses": [{ "ip": "x" }] }] }), &mut errors);
        assert_eq!(errors.len(), 1);
    }
}
