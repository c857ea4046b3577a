//! The columns of each kind.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::pod;
use super::workloads as work;
use super::{Cell, Column, age, at, column, items, labels, number, or_none, text, wide};

const NAME: Column = column("Name", "string", Cell::Name);
const AGE: Column = column("Age", "string", Cell::Age);

const DEFAULT: &[Column] = &[NAME, AGE];

const POD: &[Column] = &[
    NAME,
    column("Ready", "string", Cell::Of(pod::ready)),
    column("Status", "string", Cell::Of(pod::status)),
    column("Restarts", "string", Cell::Of(pod::restarts)),
    AGE,
    wide("IP", "string", Cell::Path(&["status", "podIP"])),
    wide("Node", "string", Cell::Path(&["spec", "nodeName"])),
    wide("Nominated Node", "string", Cell::Path(&["status", "nominatedNodeName"])),
    wide("Readiness Gates", "string", Cell::Of(pod::readiness_gates)),
];

const SERVICE: &[Column] = &[
    NAME,
    column("Type", "string", Cell::Path(&["spec", "type"])),
    column("Cluster-IP", "string", Cell::Path(&["spec", "clusterIP"])),
    column("External-IP", "string", Cell::Of(external_ip)),
    column("Port(s)", "string", Cell::Of(service_ports)),
    AGE,
    wide("Selector", "string", Cell::Of(|object, _| labels(at(object, &["spec", "selector"])))),
];

const DEPLOYMENT: &[Column] = &[
    NAME,
    column("Ready", "string", Cell::Of(work::ready)),
    column("Up-to-date", "integer", Cell::Path(&["status", "updatedReplicas"])),
    column("Available", "integer", Cell::Path(&["status", "availableReplicas"])),
    AGE,
    wide("Containers", "string", Cell::Of(work::containers)),
    wide("Images", "string", Cell::Of(work::images)),
    wide("Selector", "string", Cell::Of(work::selector)),
];

const REPLICA_SET: &[Column] = &[
    NAME,
    column("Desired", "integer", Cell::Path(&["spec", "replicas"])),
    column("Current", "integer", Cell::Path(&["status", "replicas"])),
    column("Ready", "integer", Cell::Path(&["status", "readyReplicas"])),
    AGE,
    wide("Containers", "string", Cell::Of(work::containers)),
    wide("Images", "string", Cell::Of(work::images)),
    wide("Selector", "string", Cell::Of(work::selector)),
];

const NODE: &[Column] = &[
    NAME,
    column("Status", "string", Cell::Of(node_status)),
    column("Roles", "string", Cell::Of(node_roles)),
    AGE,
    column("Version", "string", Cell::Path(&["status", "nodeInfo", "kubeletVersion"])),
    wide("Internal-IP", "string", Cell::Of(|object, _| node_address(object, "InternalIP"))),
    wide("External-IP", "string", Cell::Of(|object, _| node_address(object, "ExternalIP"))),
    wide("OS-Image", "string", Cell::Path(&["status", "nodeInfo", "osImage"])),
    wide("Kernel-Version", "string", Cell::Path(&["status", "nodeInfo", "kernelVersion"])),
    wide("Container-Runtime", "string", Cell::Path(&["status", "nodeInfo", "containerRuntimeVersion"])),
];

const NAMESPACE: &[Column] = &[NAME, column("Status", "string", Cell::Path(&["status", "phase"])), AGE];
const CONFIG_MAP: &[Column] = &[NAME, column("Data", "integer", Cell::Of(config_entries)), AGE];
const SECRET: &[Column] = &[
    NAME,
    column("Type", "string", Cell::Path(&["type"])),
    column("Data", "integer", Cell::Count(&["data"])),
    AGE,
];
const SERVICE_ACCOUNT: &[Column] = &[NAME, column("Secrets", "integer", Cell::Count(&["secrets"])), AGE];
const ENDPOINTS: &[Column] = &[NAME, column("Endpoints", "string", Cell::Of(endpoints)), AGE];
const ENDPOINT_SLICE: &[Column] = &[
    NAME,
    column("AddressType", "string", Cell::Path(&["addressType"])),
    column("Ports", "string", Cell::Of(slice_ports)),
    column("Endpoints", "string", Cell::Of(slice_endpoints)),
    AGE,
];
const EVENT: &[Column] = &[
    column("Last Seen", "string", Cell::Of(|object, now| json!(age(last_seen(object), now)))),
    column("Type", "string", Cell::Of(|object, _| json!(text(object, &["type"])))),
    column("Reason", "string", Cell::Of(|object, _| json!(text(object, &["reason"])))),
    column("Object", "string", Cell::Of(involved)),
    wide("Subobject", "string", Cell::Of(|object, _| json!(text(object, &["involvedObject", "fieldPath"])))),
    wide("Source", "string", Cell::Of(event_source)),
    column("Message", "string", Cell::Of(|object, _| json!(text(object, &["message"]).trim()))),
    wide("First Seen", "string", Cell::Of(|object, now| json!(age(first_seen(object), now)))),
    wide("Count", "string", Cell::Of(|object, _| json!(number(object, &["count"]).max(1)))),
    wide("Name", "string", Cell::Name),
];
const LEASE: &[Column] = &[NAME, column("Holder", "string", Cell::Path(&["spec", "holderIdentity"])), AGE];
const PRIORITY_CLASS: &[Column] = &[
    NAME,
    column("Value", "integer", Cell::Path(&["value"])),
    column("Global-Default", "boolean", Cell::Of(|object, _| json!(at(object, &["globalDefault"]) == true))),
    AGE,
    column("PreemptionPolicy", "string", Cell::Path(&["preemptionPolicy"])),
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
    NAME,
    column("Controller", "string", Cell::Path(&["spec", "controller"])),
    column(
        "Parameters",
        "string",
        Cell::Of(|object, _| or_none(text(object, &["spec", "parameters", "name"]).to_owned())),
    ),
    AGE,
];
const CONTROLLER_REVISION: &[Column] = &[
    NAME,
    column("Controller", "string", Cell::Of(owner)),
    column("Revision", "integer", Cell::Path(&["revision"])),
    AGE,
];
const SERVICE_CIDR: &[Column] = &[
    NAME,
    column("CIDRs", "string", Cell::Of(|object, _| or_none(joined(items(object, &["spec", "cidrs"]), ",")))),
    AGE,
];
const IP_ADDRESS: &[Column] = &[NAME, column("ParentRef", "string", Cell::Of(parent)), AGE];

const CERTIFICATE_SIGNING_REQUEST: &[Column] = &[
    NAME,
    AGE,
    column("SignerName", "string", Cell::Path(&["spec", "signerName"])),
    column("Requestor", "string", Cell::Path(&["spec", "username"])),
    column("Condition", "string", Cell::Of(request_condition)),
];

/// What became of a request: `Pending`, or its conditions, and whether it was issued.
fn request_condition(object: &Value, _: Timestamp) -> Value {
    let mut words: Vec<&str> =
        items(object, &["status", "conditions"]).iter().map(|condition| text(condition, &["type"])).collect();
    if words.is_empty() {
        words.push("Pending");
    }
    if !text(object, &["status", "certificate"]).is_empty() {
        words.push("Issued");
    }
    json!(words.join(","))
}

/// The columns of a kind; name and age where nothing else is known.
pub fn columns_of(group: &str, kind: &str) -> &'static [Column] {
    match (group, kind) {
        ("", "Pod") => POD,
        ("", "Service") => SERVICE,
        ("apps" | "extensions", "Deployment") => DEPLOYMENT,
        ("apps" | "extensions", "ReplicaSet") | ("", "ReplicationController") => REPLICA_SET,
        ("", "Node") => NODE,
        ("", "Namespace") => NAMESPACE,
        ("", "ConfigMap") => CONFIG_MAP,
        ("", "Secret") => SECRET,
        ("", "ServiceAccount") => SERVICE_ACCOUNT,
        ("", "Endpoints") => ENDPOINTS,
        ("discovery.k8s.io", "EndpointSlice") => ENDPOINT_SLICE,
        ("" | "events.k8s.io", "Event") => EVENT,
        ("coordination.k8s.io", "Lease") => LEASE,
        ("scheduling.k8s.io", "PriorityClass") => PRIORITY_CLASS,
        ("networking.k8s.io" | "extensions", "Ingress") => INGRESS,
        ("networking.k8s.io", "IngressClass") => INGRESS_CLASS,
        ("apps", "ControllerRevision") => CONTROLLER_REVISION,
        ("networking.k8s.io", "ServiceCIDR") => SERVICE_CIDR,
        ("networking.k8s.io", "IPAddress") => IP_ADDRESS,
        ("certificates.k8s.io", "CertificateSigningRequest") => CERTIFICATE_SIGNING_REQUEST,
        _ => DEFAULT,
    }
}

fn joined(values: &[Value], separator: &str) -> String {
    values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(separator)
}

fn balancer(object: &Value) -> String {
    let address = |ingress: &Value| match text(ingress, &["ip"]) {
        "" => text(ingress, &["hostname"]).to_owned(),
        ip => ip.to_owned(),
    };
    items(object, &["status", "loadBalancer", "ingress"]).iter().map(address).collect::<Vec<_>>().join(",")
}

fn external_ip(object: &Value, _: Timestamp) -> Value {
    let external = joined(items(object, &["spec", "externalIPs"]), ",");
    match text(object, &["spec", "type"]) {
        "ExternalName" => or_none(text(object, &["spec", "externalName"]).to_owned()),
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

fn node_status(object: &Value, _: Timestamp) -> Value {
    let ready = items(object, &["status", "conditions"])
        .iter()
        .find(|condition| text(condition, &["type"]) == "Ready");
    let mut status = match ready.map(|condition| text(condition, &["status"])) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if at(object, &["spec", "unschedulable"]) == true {
        status.push_str(",SchedulingDisabled");
    }
    json!(status)
}

fn node_roles(object: &Value, _: Timestamp) -> Value {
    let labels = at(object, &["metadata", "labels"]).as_object();
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    or_none(roles.join(","))
}

fn node_address(object: &Value, kind: &str) -> Value {
    let address =
        items(object, &["status", "addresses"]).iter().find(|address| text(address, &["type"]) == kind);
    or_none(address.map(|address| text(address, &["address"]).to_owned()).unwrap_or_default())
}

fn config_entries(object: &Value, _: Timestamp) -> Value {
    let count = |name| at(object, &[name]).as_object().map_or(0, serde_json::Map::len);
    json!(count("data") + count("binaryData"))
}

/// At most three addresses, then how many more, as upstream shortens.
fn shortened(addresses: &[String]) -> Value {
    match addresses.len() {
        0 => json!("<none>"),
        1..=3 => json!(addresses.join(",")),
        more => json!(format!("{} + {} more...", addresses[..3].join(","), more - 3)),
    }
}

fn endpoints(object: &Value, _: Timestamp) -> Value {
    let mut found = Vec::new();
    for subset in items(object, &["subsets"]) {
        let ports = items(subset, &["ports"]);
        for address in items(subset, &["addresses"]) {
            let ip = text(address, &["ip"]);
            if ports.is_empty() {
                found.push(ip.to_owned());
            }
            found.extend(ports.iter().map(|port| format!("{ip}:{}", number(port, &["port"]))));
        }
    }
    shortened(&found)
}

fn slice_ports(object: &Value, _: Timestamp) -> Value {
    let ports = items(object, &["ports"]).iter();
    let ports: Vec<String> = ports.map(|port| number(port, &["port"]).to_string()).collect();
    if ports.is_empty() { json!("<unset>") } else { shortened(&ports) }
}

fn slice_endpoints(object: &Value, _: Timestamp) -> Value {
    let addresses = items(object, &["endpoints"]).iter().flat_map(|endpoint| items(endpoint, &["addresses"]));
    let addresses: Vec<String> = addresses.filter_map(Value::as_str).map(str::to_owned).collect();
    if addresses.is_empty() { json!("<unset>") } else { shortened(&addresses) }
}

fn last_seen(object: &Value) -> &Value {
    let candidates = [
        &["series", "lastObservedTime"][..],
        &["lastTimestamp"],
        &["eventTime"],
        &["metadata", "creationTimestamp"],
    ];
    candidates.iter().map(|path| at(object, path)).find(|value| !value.is_null()).unwrap_or(&Value::Null)
}

fn first_seen(object: &Value) -> &Value {
    let candidates = [&["firstTimestamp"][..], &["eventTime"], &["metadata", "creationTimestamp"]];
    candidates.iter().map(|path| at(object, path)).find(|value| !value.is_null()).unwrap_or(&Value::Null)
}

fn involved(object: &Value, _: Timestamp) -> Value {
    let about = "involvedObject";
    let kind = text(object, &[about, "kind"]).to_ascii_lowercase();
    json!(format!("{kind}/{}", text(object, &[about, "name"])))
}

fn event_source(object: &Value, _: Timestamp) -> Value {
    let component = match text(object, &["source", "component"]) {
        "" => text(object, &["reportingComponent"]),
        component => component,
    };
    match text(object, &["source", "host"]) {
        "" => json!(component),
        host => json!(format!("{component}, {host}")),
    }
}

fn ingress_hosts(object: &Value, _: Timestamp) -> Value {
    let hosts: Vec<&str> = items(object, &["spec", "rules"])
        .iter()
        .map(|rule| text(rule, &["host"]))
        .filter(|host| !host.is_empty())
        .collect();
    match hosts.len() {
        0 => json!("*"),
        1..=3 => json!(hosts.join(",")),
        more => json!(format!("{} + {} more...", hosts[..3].join(","), more - 3)),
    }
}

fn owner(object: &Value, _: Timestamp) -> Value {
    let owners = items(object, &["metadata", "ownerReferences"]);
    let controller = owners.iter().find(|owner| at(owner, &["controller"]) == true);
    or_none(controller.map_or_else(String::new, |owner| {
        let group = text(owner, &["apiVersion"]).split_once('/').map_or("", |(group, _)| group);
        let kind = text(owner, &["kind"]).to_ascii_lowercase();
        format!("{}/{}", crate::status::qualified(group, &kind), text(owner, &["name"]))
    }))
}

fn parent(object: &Value, _: Timestamp) -> Value {
    let reference = at(object, &["spec", "parentRef"]);
    let resource = crate::status::qualified(text(reference, &["group"]), text(reference, &["resource"]));
    json!(format!("{resource}/{}/{}", text(reference, &["namespace"]), text(reference, &["name"])))
}

#[cfg(test)]
mod tests {
    use super::super::cells;
    use super::*;

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
    fn a_cordoned_node_says_so() {
        let node = json!({
            "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        });
        let cells = row("", "Node", &node);
        assert_eq!(
            cells[1..4],
            [json!("Ready,SchedulingDisabled"), json!("control-plane"), json!("<unknown>")]
        );
        assert_eq!(cells[5], "192.0.2.1");
    }

    #[test]
    fn long_lists_are_shortened() {
        let addresses: Vec<Value> = (1..=5).map(|n| json!({"ip": format!("10.0.0.{n}")})).collect();
        let object = json!({"metadata": {"name": "e"}, "subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]});
        assert_eq!(row("", "Endpoints", &object)[1], "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...");
    }
}
