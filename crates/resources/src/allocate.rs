//! A Service's addresses and node ports: chosen here, claimed and released in the Service's own transaction. Addresses
//! are IPAddress objects (KEP-1880), ports are keys of their own.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::Status;
use apiserver::field::{self, FieldError};
use apiserver::strategy::{Companions, View};
use apiserver::{net, rfc3339, tree};
use serde_json::{Value, json};

use crate::service_families::{self, family};
use crate::service_ranges::{self, Range};

pub(crate) const GROUP: &str = "networking.k8s.io";
const ADDRESSES: &str = "ipaddresses";
/// How often a random choice is repeated while it hits what is taken.
const CHOICES_MAX: u32 = 64;
/// The lower part of a range is left to those who ask for an address by name. Source: KEP-3070.
const STATIC_BAND_MAX: u128 = 256;

/// An update that leaves out what was allocated keeps it.
pub(crate) fn keep(new: &mut Value, old: &Value) {
    if !takes_address(new) || !takes_address(old) {
        return;
    }
    let before = tree::at(old, &["spec"]).clone();
    let spec = tree::member(new, "spec");
    if tree::text(spec, &["clusterIP"]).is_empty() {
        for field in ["clusterIP", "clusterIPs"] {
            tree::copy(&before, spec, field);
        }
    } else if spec["clusterIP"] != before["clusterIP"] && spec["clusterIPs"] == before["clusterIPs"] {
        // Who changes the one means the first of the others. Source: `NormalizeClusterIPs`.
        let address = spec["clusterIP"].clone();
        if let Some(first) = spec["clusterIPs"].as_array_mut().and_then(|all| all.first_mut()) {
            *first = address;
        }
    }
    for field in ["ipFamilies", "ipFamilyPolicy"] {
        if spec.get(field).is_none_or(Value::is_null) {
            tree::copy(&before, spec, field);
        }
    }
    if !takes_ports(spec) || !takes_ports(&before) {
        return;
    }
    let old_ports = tree::items(&before, &["ports"]).to_vec();
    for port in ports_mut(spec) {
        let same = |old: &&Value| {
            ["port", "protocol"].iter().all(|part| tree::at(old, &[part]) == tree::at(port, &[part]))
        };
        let kept = old_ports.iter().find(same).map(node_port).filter(|number| *number > 0);
        if let Some(number) = kept.filter(|_| node_port(port) == 0) {
            tree::members(port).insert("nodePort".into(), number.into());
        }
    }
}

/// What is claimed and released from `old` to `new`; `new` gets what is chosen for it. `attempt`: how often another
/// writer took what was chosen.
pub(crate) fn companions(
    view: &dyn View,
    old: Option<&Value>,
    new: Option<&mut Value>,
    attempt: u32,
) -> Result<Companions, Status> {
    let mut companions = Companions::default();
    let (old_addresses, old_ports) = old.map(held).unwrap_or_default();
    let (addresses, ports) = match new {
        Some(service) => {
            let (asked_addresses, asked_ports) = held(service);
            choose_addresses(view, service, old, &old_addresses)?;
            choose_ports(view, service, &old_ports, attempt)?;
            let held = held(service);
            for address in held.0.difference(&old_addresses) {
                let taken = asked_addresses.contains(address).then(|| address_taken(service, address));
                companions.create(GROUP, ADDRESSES, address_object(view, address, service), taken);
            }
            for port in held.1.difference(&old_ports) {
                let taken = asked_ports.contains(port).then(|| port_taken(service, *port));
                companions.claim(port_key(*port), owner(service), taken);
            }
            held
        }
        None => Default::default(),
    };
    for address in old_addresses.difference(&addresses) {
        companions.delete(GROUP, ADDRESSES, "", &address.to_string());
    }
    for port in old_ports.difference(&ports) {
        companions.release(port_key(*port));
    }
    Ok(companions)
}

fn port_key(port: u16) -> String {
    format!("/registry/nodeports/{port}")
}

fn owner(service: &Value) -> Value {
    json!({
        "namespace": tree::text(service, &["metadata", "namespace"]),
        "name": tree::text(service, &["metadata", "name"]),
    })
}

/// Whether the Service has a cluster address at all.
fn takes_address(service: &Value) -> bool {
    tree::text(service, &["spec", "type"]) != "ExternalName"
}

fn takes_ports(spec: &Value) -> bool {
    match tree::text(spec, &["type"]) {
        "NodePort" => true,
        "LoadBalancer" => spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
        _ => false,
    }
}

fn ports_mut(spec: &mut Value) -> impl Iterator<Item = &mut Value> {
    tree::members(spec).get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten()
}

fn node_port(port: &Value) -> u16 {
    tree::at(port, &["nodePort"]).as_u64().and_then(|number| u16::try_from(number).ok()).unwrap_or(0)
}

/// The addresses and node ports that a Service holds.
fn held(service: &Value) -> (BTreeSet<IpAddr>, BTreeSet<u16>) {
    let spec = tree::at(service, &["spec"]);
    let addresses = tree::items(spec, &["clusterIPs"])
        .iter()
        .filter(|_| takes_address(service))
        .filter_map(|address| address.as_str()?.parse().ok())
        .collect();
    let exposed = matches!(tree::text(spec, &["type"]), "NodePort" | "LoadBalancer");
    let mut ports: BTreeSet<u16> = tree::items(spec, &["ports"])
        .iter()
        .filter(|_| exposed)
        .map(node_port)
        .filter(|number| *number > 0)
        .collect();
    let health = tree::at(spec, &["healthCheckNodePort"]).as_u64().unwrap_or(0);
    ports.extend(u16::try_from(health).ok().filter(|number| *number > 0 && exposed));
    (addresses, ports)
}

/// Fills `clusterIP(s)`, `ipFamilies` and `ipFamilyPolicy`.
fn choose_addresses(
    view: &dyn View,
    service: &mut Value,
    old: Option<&Value>,
    held: &BTreeSet<IpAddr>,
) -> Result<(), Status> {
    if !takes_address(service) {
        let spec = tree::object(service, "spec");
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            spec.remove(field);
        }
        return Ok(());
    }
    let mut own: Vec<&str> = Vec::new();
    for (base, _) in &view.settings().service_ranges {
        if !own.contains(&family(base)) {
            own.push(family(base));
        }
    }
    let mut errors = Vec::new();
    service_families::settle(service, old, &own, &mut errors);
    field::check("", "Service", tree::text(service, &["metadata", "name"]), &errors)?;
    let mut addresses: Vec<String> = Vec::new();
    if tree::text(service, &["spec", "clusterIP"]) == "None" {
        addresses.push("None".to_owned());
    } else {
        let open = service_ranges::open(view);
        let asked = tree::items(service, &["spec", "clusterIPs"]).to_vec();
        let families = tree::items(service, &["spec", "ipFamilies"]).iter().filter_map(Value::as_str);
        for (index, name) in families.enumerate() {
            let ranges: Vec<Range> = open.iter().filter(|(base, _)| family(base) == name).copied().collect();
            let address = match asked.get(index).and_then(Value::as_str).filter(|text| !text.is_empty()) {
                Some(text) => explicit(service, text, &ranges, held)?,
                None => any_address(view, name, &ranges)?,
            };
            addresses.push(address.to_string());
        }
    }
    let spec = tree::object(service, "spec");
    let first = addresses.first().cloned().unwrap_or_default();
    spec.insert("clusterIP".into(), first.into());
    spec.insert("clusterIPs".into(), addresses.into());
    Ok(())
}

/// An address that the Service asks for by name.
fn explicit(service: &Value, text: &str, ranges: &[Range], old: &BTreeSet<IpAddr>) -> Result<IpAddr, Status> {
    let refused = |detail: &str| invalid(service, "spec.clusterIPs", text, detail);
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err(refused("must be a valid IP address").unwrap_or_else(|| Status::bad_request(text)));
    };
    if !old.contains(&address) && !ranges.iter().any(|range| net::gives(*range, address)) {
        let detail = format!(
            "failed to allocate IP {text}: the provided IP ({text}) is not in the valid range. The range of valid IPs \
             is {}",
            service_ranges::shown(ranges)
        );
        return Err(refused(&detail).unwrap_or_else(|| Status::bad_request(detail)));
    }
    Ok(address)
}

fn random() -> u128 {
    u128::from_str_radix(&base::id::hex64()[..32], 16).unwrap_or(0)
}

/// A free address of the first range that has one.
fn any_address(view: &dyn View, name: &str, ranges: &[Range]) -> Result<IpAddr, Status> {
    ranges.iter().find_map(|range| random_address(view, *range)).ok_or_else(|| {
        let why = if ranges.is_empty() {
            format!("no ServiceCIDR for {name} is Ready; create one")
        } else {
            format!("range {} is full; delete unused Services", service_ranges::shown(ranges))
        };
        Status::internal(format!("failed to allocate a serviceIP: {why}"))
    })
}

fn random_address(view: &dyn View, range: Range) -> Option<IpAddr> {
    let usable = net::usable(range);
    let band = (usable / 16).clamp(16.min(usable / 2), STATIC_BAND_MAX);
    let free = |address: &IpAddr| view.peek(GROUP, ADDRESSES, "", &address.to_string()).is_none();
    let chosen = (0..CHOICES_MAX).find_map(|_| {
        let offset = band + 1 + random() % (usable - band).max(1);
        Some(net::nth(range.0, offset.min(usable))).filter(free)
    });
    // A crowded range is searched through, from anywhere on, so that writers at the same time do not all find the same.
    let from_anywhere = |first: u128, count: u128| {
        let start = random() % count.max(1);
        (0..count).map(move |step| net::nth(range.0, first + (start + step) % count))
    };
    let all = || from_anywhere(band + 1, usable - band).chain(from_anywhere(1, band));
    chosen.or_else(|| all().find(free))
}

/// Fills `nodePort` and `healthCheckNodePort`.
fn choose_ports(
    view: &dyn View,
    service: &mut Value,
    old: &BTreeSet<u16>,
    attempt: u32,
) -> Result<(), Status> {
    let range = view.settings().node_ports;
    let health = tree::text(service, &["spec", "type"]) == "LoadBalancer"
        && tree::text(service, &["spec", "externalTrafficPolicy"]) == "Local";
    let shown = service.clone();
    let spec = tree::member(service, "spec");
    let exposed = matches!(tree::text(spec, &["type"]), "NodePort" | "LoadBalancer");
    let allocates = takes_ports(spec);
    let mut used: BTreeSet<u16> = tree::items(spec, &["ports"]).iter().map(node_port).collect();
    // Chance finds a free port in a range that is not crowded; only where it did not, all Services are looked at.
    if attempt > 0 {
        used.extend(ports_of_all(view));
    }
    for (index, port) in ports_mut(spec).enumerate() {
        let number = node_port(port);
        let asked = tree::at(port, &["nodePort"]).as_i64().unwrap_or(0);
        if !exposed {
            tree::members(port).remove("nodePort");
        } else if asked == 0 && allocates {
            let number = free_port(range, &used)?;
            used.insert(number);
            tree::members(port).insert("nodePort".into(), number.into());
        } else if asked != 0 && !old.contains(&number) && !(range.0..=range.1).contains(&number) {
            let detail = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                range.0, range.1
            );
            let field = format!("spec.ports[{index}].nodePort");
            return Err(
                invalid(&shown, &field, asked, &detail).unwrap_or_else(|| Status::bad_request(detail))
            );
        }
    }
    let present = tree::at(spec, &["healthCheckNodePort"]).as_u64().unwrap_or(0);
    if !health {
        tree::members(spec).remove("healthCheckNodePort");
    } else if present == 0 {
        tree::members(spec).insert("healthCheckNodePort".into(), free_port(range, &used)?.into());
    }
    Ok(())
}

/// The node ports of all Services.
fn ports_of_all(view: &dyn View) -> BTreeSet<u16> {
    let services = view.objects("", "services").into_iter();
    services
        .filter_map(|service| service.decode::<Value>().ok())
        .flat_map(|service| held(&service).1)
        .collect()
}

/// Any port of the range but the `used`; that nobody else takes it, the transaction finds out.
fn free_port((first, last): (u16, u16), used: &BTreeSet<u16>) -> Result<u16, Status> {
    let free: Vec<u16> = (first..=last).filter(|port| !used.contains(port)).collect();
    let chosen = random() % u128::try_from(free.len().max(1)).unwrap_or(1);
    usize::try_from(chosen).ok().and_then(|index| free.get(index)).copied().ok_or_else(|| {
        Status::internal(format!(
            "failed to allocate a nodePort: range {first}-{last} is full; delete unused Services"
        ))
    })
}

fn address_object(view: &dyn View, address: &IpAddr, service: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {
            "name": address.to_string(), "uid": base::id::uuid(), "creationTimestamp": rfc3339(view.now()),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": family(address),
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": { "parentRef": {
            "group": "", "resource": "services",
            "namespace": tree::text(service, &["metadata", "namespace"]),
            "name": tree::text(service, &["metadata", "name"]),
        }},
    })
}

/// Where a Service says a node port.
fn place_of(service: &Value, port: u16) -> String {
    let ports = tree::items(service, &["spec", "ports"]);
    match ports.iter().position(|known| node_port(known) == port) {
        Some(index) => format!("spec.ports[{index}].nodePort"),
        None => "spec.healthCheckNodePort".to_owned(),
    }
}

fn port_taken(service: &Value, port: u16) -> Status {
    let detail = "provided port is already allocated";
    invalid(service, &place_of(service, port), port, detail).unwrap_or_else(|| Status::bad_request(detail))
}

fn address_taken(service: &Value, address: &IpAddr) -> Status {
    let detail = format!("failed to allocate IP {address}: provided IP is already allocated");
    invalid(service, "spec.clusterIPs", address.to_string(), &detail)
        .unwrap_or_else(|| Status::bad_request(detail))
}

fn invalid(service: &Value, path: &str, value: impl Into<Value>, detail: &str) -> Option<Status> {
    let errors = [FieldError::invalid(path, &value.into(), detail)];
    field::check("", "Service", tree::text(service, &["metadata", "name"]), &errors).err()
}
