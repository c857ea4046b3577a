//! Endpoints and EndpointSlices. Source: `discovery/validation/validation.go`, `validateEndpointSubsets`. Whoever may write
//! them sends other people's traffic somewhere: not to the sender's own loopback, nor to the metadata service of a cloud.

use std::collections::HashSet;
use std::net::IpAddr;

use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::{NameRule, Strategy};
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::At;
use crate::pod_spec::{address, ordinary_address};

/// Where a subset has its addresses.
const LISTS: [&str; 2] = ["addresses", "notReadyAddresses"];
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
            if LISTS.iter().all(|list| subset.get(list).is_empty()) {
                errors.push(subset.required("must specify `addresses` or `notReadyAddresses`"));
            }
            for point in LISTS.iter().flat_map(|list| subset.each(list)) {
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

    fn validate_foreign(&self, object: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
        if is_as_before("subsets", object, old) {
            return;
        }
        for subset in At::object(object).each("subsets") {
            for point in LISTS.iter().flat_map(|list| subset.each(list)) {
                ordinary_address(&point.get("ip"), errors);
            }
        }
    }
}

/// What was written when more was allowed may stay as it is.
fn is_as_before(field: &str, object: &Value, old: Option<&Value>) -> bool {
    old.is_some_and(|old| tree::at(old, &[field]) == tree::at(object, &[field]))
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

    fn validate_foreign(&self, object: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
        let slice = At::object(object);
        if slice.get("addressType").text() == "FQDN" || is_as_before("endpoints", object, old) {
            return;
        }
        // More are refused anyway.
        let endpoints = slice.each("endpoints").take(ENDPOINTS_MAX);
        for address in endpoints.flat_map(|endpoint| endpoint.each("addresses").take(ADDRESSES_MAX)) {
            ordinary_address(&address, errors);
        }
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
    let mut names: HashSet<&str> = HashSet::new();
    for port in ports.items() {
        let name = port.get("name");
        name.name_if_set(NameRule::Label, errors);
        if names.contains(&name.text()) {
            errors.push(FieldError::duplicate(name.path.clone(), &json!(name.text())));
        }
        names.insert(name.text());
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
        let parsed = one.text().parse::<IpAddr>().map(|ip| ip.to_canonical());
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
        let mut seen: HashSet<&str> = HashSet::new();
        for name in list.items().map(|hint| hint.get("name")) {
            if seen.contains(&name.text()) {
                errors.push(name.duplicate());
            }
            seen.insert(name.text());
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

    #[test]
    fn addresses_do_not_lead_to_the_sender_itself() {
        const LOOPBACK: &str = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
        const LINK: &str = "may not be in the link-local range (169.254.0.0/16, fe80::/10)";
        const MULTICAST: &str = "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)";
        for (address, wrong) in [
            ("10.0.0.1", None),
            ("192.0.2.1", None),
            ("fd00::1", None),
            ("127.8.8.8", Some(LOOPBACK)),
            ("::1", Some(LOOPBACK)),
            ("::ffff:127.0.0.1", Some(LOOPBACK)),
            ("169.254.169.254", Some(LINK)),
            ("fe80::1", Some(LINK)),
            ("224.0.0.1", Some(MULTICAST)),
            ("ff02::1", Some(MULTICAST)),
            ("0.0.0.0", Some("may not be unspecified (0.0.0.0)")),
            ("::", Some("may not be unspecified (::)")),
        ] {
            let causes = |strategy: &dyn Strategy, object: &Value, old: Option<&Value>| {
                let mut errors = Vec::new();
                strategy.validate_foreign(object, old, &mut errors);
                said(&errors)
            };
            let cause = |field: &str| -> Vec<String> {
                wrong.iter().map(|why| format!("{field}: Invalid value: {address:?}: {why}")).collect()
            };
            let old_form = json!({ "subsets": [{ "notReadyAddresses": [{ "ip": address }] }] });
            assert_eq!(causes(&Endpoints, &old_form, None), cause("subsets[0].notReadyAddresses[0].ip"));
            let slice =
                json!({ "addressType": "IPv4", "endpoints": [{ "addresses": ["10.0.0.1", address] }] });
            assert_eq!(causes(&EndpointSlices, &slice, None), cause("endpoints[0].addresses[1]"));
            // What was there before this rule may stay, and only that.
            assert!(causes(&EndpointSlices, &slice, Some(&slice)).is_empty());
            let other = json!({ "addressType": "IPv4", "endpoints": [{ "addresses": ["10.0.0.1"] }] });
            assert_eq!(causes(&EndpointSlices, &slice, Some(&other)), cause("endpoints[0].addresses[1]"));
        }
    }
}
