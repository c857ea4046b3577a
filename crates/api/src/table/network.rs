//! Services, what stands behind them, and what leads to them.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AGE, Cell, Column, Family, NAME, at, column, items, joined, labels, number, or_none, selector, shortened,
    text, wide,
};

pub(super) const KINDS: Family = &[
    ("", "Service", SERVICE),
    ("", "Endpoints", ENDPOINTS),
    ("discovery.k8s.io", "EndpointSlice", ENDPOINT_SLICE),
    ("networking.k8s.io", "Ingress", INGRESS),
    ("networking.k8s.io", "IngressClass", INGRESS_CLASS),
    ("networking.k8s.io", "NetworkPolicy", NETWORK_POLICY),
    ("networking.k8s.io", "ServiceCIDR", SERVICE_CIDR),
    ("networking.k8s.io", "IPAddress", IP_ADDRESS),
];

const SERVICE: &[Column] = &[
    NAME,
    column("Type", "string", Cell::Text(&["spec", "type"])),
    column("Cluster-IP", "string", Cell::Path(&["spec", "clusterIP"])),
    column("External-IP", "string", Cell::Of(external_ip)),
    column("Port(s)", "string", Cell::Of(service_ports)),
    AGE,
    wide("Selector", "string", Cell::Of(|object, _| labels(at(object, &["spec", "selector"])))),
];
const ENDPOINTS: &[Column] = &[NAME, column("Endpoints", "string", Cell::Of(endpoints)), AGE];
const ENDPOINT_SLICE: &[Column] = &[
    NAME,
    column("AddressType", "string", Cell::Text(&["addressType"])),
    column("Ports", "string", Cell::Of(slice_ports)),
    column("Endpoints", "string", Cell::Of(slice_endpoints)),
    AGE,
];
const INGRESS: &[Column] = &[
    NAME,
    column("Class", "string", Cell::Path(&["spec", "ingressClassName"])),
    column("Hosts", "string", Cell::Of(ingress_hosts)),
    column("Address", "string", Cell::Of(|object, _| json!(balancer(object)))),
    column(
        "Ports",
        "string",
        Cell::Of(|object, _| {
            json!(if items(object, &["spec", "tls"]).is_empty() { "80" } else { "80, 443" })
        }),
    ),
    AGE,
];
const INGRESS_CLASS: &[Column] = &[
    column("Name", "string", Cell::Of(class_name)),
    column("Controller", "string", Cell::Text(&["spec", "controller"])),
    column("Parameters", "string", Cell::Of(class_parameters)),
    AGE,
];
const NETWORK_POLICY: &[Column] = &[
    NAME,
    column("Pod-Selector", "string", Cell::Of(|object, _| selector(at(object, &["spec", "podSelector"])))),
    AGE,
];
const SERVICE_CIDR: &[Column] = &[
    NAME,
    column("CIDRs", "string", Cell::Of(|object, _| json!(joined(items(object, &["spec", "cidrs"]), ",")))),
    AGE,
];
const IP_ADDRESS: &[Column] = &[NAME, column("ParentRef", "string", Cell::Of(parent))];

/// The addresses or names of a load balancer, sorted, each once.
fn balancer(object: &Value) -> String {
    let address = |ingress: &Value| match text(ingress, &["ip"]) {
        "" => text(ingress, &["hostname"]).to_owned(),
        ip => ip.to_owned(),
    };
    let found = items(object, &["status", "loadBalancer", "ingress"]).iter().map(address);
    let found: BTreeSet<String> = found.filter(|address| !address.is_empty()).collect();
    found.into_iter().collect::<Vec<_>>().join(",")
}

fn external_ip(object: &Value, _: Timestamp) -> Value {
    let external = joined(items(object, &["spec", "externalIPs"]), ",");
    match text(object, &["spec", "type"]) {
        "ExternalName" => json!(text(object, &["spec", "externalName"])),
        "LoadBalancer" => match (balancer(object).as_str(), external.as_str()) {
            ("", "") => json!("<pending>"),
            ("", external) => json!(external),
            (address, "") => json!(address),
            (address, external) => json!(format!("{address},{external}")),
        },
        _ => or_none(external),
    }
}

fn service_ports(object: &Value, _: Timestamp) -> Value {
    let port = |port: &Value| {
        let (number, node) = (number(port, &["port"]), number(port, &["nodePort"]));
        let protocol = text(port, &["protocol"]);
        if node > 0 { format!("{number}:{node}/{protocol}") } else { format!("{number}/{protocol}") }
    };
    or_none(items(object, &["spec", "ports"]).iter().map(port).collect::<Vec<_>>().join(","))
}

fn endpoints(object: &Value, _: Timestamp) -> Value {
    let mut found = Vec::new();
    for subset in items(object, &["subsets"]) {
        let addresses = items(subset, &["addresses"]).iter().map(|address| text(address, &["ip"]));
        let ports = items(subset, &["ports"]);
        if ports.is_empty() {
            found.extend(addresses.map(str::to_owned));
            continue;
        }
        for port in ports.iter().map(|port| number(port, &["port"])) {
            found.extend(addresses.clone().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{port}"),
                false => format!("{ip}:{port}"),
            }));
        }
    }
    or_none(shortened(&found, 3, ","))
}

fn or_unset(text: String) -> Value {
    if text.is_empty() { json!("<unset>") } else { json!(text) }
}

fn slice_ports(object: &Value, _: Timestamp) -> Value {
    let port = |port: &Value| match (at(port, &["port"]).as_i64(), at(port, &["name"]).as_str()) {
        (Some(number), _) => number.to_string(),
        (None, Some(name)) => name.to_owned(),
        (None, None) => "*".to_owned(),
    };
    let ports: Vec<String> = items(object, &["ports"]).iter().map(port).collect();
    or_unset(shortened(&ports, 3, ","))
}

fn slice_endpoints(object: &Value, _: Timestamp) -> Value {
    let addresses = items(object, &["endpoints"]).iter().flat_map(|endpoint| items(endpoint, &["addresses"]));
    let addresses: Vec<String> = addresses.filter_map(Value::as_str).map(str::to_owned).collect();
    or_unset(shortened(&addresses, 3, ","))
}

/// At most three hosts; what is left over counts the rules, as upstream's does.
fn ingress_hosts(object: &Value, _: Timestamp) -> Value {
    let rules = items(object, &["spec", "rules"]);
    let hosts = rules.iter().map(|rule| text(rule, &["host"])).filter(|host| !host.is_empty());
    let hosts: Vec<&str> = hosts.collect();
    match hosts.len() {
        0 => json!("*"),
        1..=3 => json!(hosts.join(",")),
        _ => json!(format!("{} + {} more...", hosts[..3].join(","), rules.len() - 3)),
    }
}

fn class_name(object: &Value, _: Timestamp) -> Value {
    let name = text(object, &["metadata", "name"]);
    match text(object, &["metadata", "annotations", "ingressclass.kubernetes.io/is-default-class"]) {
        "true" => json!(format!("{name} (default)")),
        _ => json!(name),
    }
}

fn class_parameters(object: &Value, _: Timestamp) -> Value {
    let parameters = at(object, &["spec", "parameters"]);
    if parameters.is_null() {
        return json!("<none>");
    }
    let (kind, name) = (text(parameters, &["kind"]), text(parameters, &["name"]));
    match text(parameters, &["apiGroup"]) {
        "" => json!(format!("{kind}/{name}")),
        group => json!(format!("{kind}.{group}/{name}")),
    }
}

fn parent(object: &Value, _: Timestamp) -> Value {
    let reference = at(object, &["spec", "parentRef"]);
    if reference.is_null() {
        return json!("<none>");
    }
    let resource = crate::status::qualified(text(reference, &["group"]), text(reference, &["resource"]));
    let name = text(reference, &["name"]);
    match text(reference, &["namespace"]) {
        "" => json!(format!("{resource}/{name}")),
        namespace => json!(format!("{resource}/{namespace}/{name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{cells, columns_of};

    fn row(group: &str, kind: &str, object: &Value) -> Vec<Value> {
        cells(columns_of(group, kind), object, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_balanced_service_shows_addresses_and_ports() {
        let mut service = json!({
            "metadata": {"name": "lb", "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.1", "ports": [{"port": 80, "nodePort": 30708, "protocol": "TCP"}], "selector": {"app": "x"}},
        });
        assert_eq!(row("", "Service", &service)[3], "<pending>");
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}});
        let cells = row("", "Service", &service);
        assert_eq!(
            cells[1..],
            [
                json!("LoadBalancer"),
                json!("10.0.0.1"),
                json!("192.0.2.9"),
                json!("80:30708/TCP"),
                json!("0s"),
                json!("app=x")
            ]
        );
    }

    #[test]
    fn long_lists_are_shortened() {
        let addresses: Vec<Value> = (1..=5).map(|n| json!({"ip": format!("10.0.0.{n}")})).collect();
        let object = json!({"metadata": {"name": "e"}, "subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]});
        assert_eq!(row("", "Endpoints", &object)[1], "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...");
    }
}
