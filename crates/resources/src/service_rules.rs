//! What is wrong with a Service. Source: `validateService` in `core/validation/validation.go`.

use std::collections::HashSet;
use std::net::IpAddr;

use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::NameRule;
use apiserver::tree;
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::at::{At, IMMUTABLE};
use crate::containers::port_or_name;
use crate::pod_spec::{address, ordinary_address};

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const KUBELET_PORT: i64 = 10_250;
const RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const AFFINITY_SECONDS_MAX: i64 = 86_400;
const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// What is wrong with a Service; its addresses are judged where they are allocated.
pub(crate) fn validate(object: &Value, errors: &mut FieldErrors) {
    let spec = At::object(object).get("spec");
    let kind = spec.get("type").text();
    let headless = spec.get("clusterIP").text() == "None";
    let ports = spec.get("ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.push(ports.required(""));
    }
    for port in ports.items().filter(|_| kind == "LoadBalancer") {
        if port.get("port").number() == KUBELET_PORT {
            let detail = "may not expose port 10250 externally since it is used by kubelet";
            errors.push(FieldError::invalid(port.path, &json!(KUBELET_PORT), detail));
        }
    }
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.push(FieldError::invalid("spec.clusterIPs[0]", &json!("None"), &detail));
    }
    if kind == "ExternalName" {
        external_name(&spec, errors);
    }
    let mut names: HashSet<&str> = HashSet::new();
    for port in ports.items() {
        check_port(&port, ports.len() > 1, &mut names, errors);
    }
    spec.get("selector").labels(errors);
    affinity(&spec, errors);
    for ip in spec.each("externalIPs") {
        address(&ip, errors);
        ordinary_address(&ip, errors);
    }
    if spec.get("type").present("", errors) {
        spec.get("type").one_of(&TYPES, errors);
    }
    taken_twice(&ports, kind, errors);
    annotated_ranges(&At::object(object), kind, errors);
    balancer(&spec, kind, errors);
    traffic(&spec, kind, errors);
}

fn external_name(spec: &At<'_>, errors: &mut FieldErrors) {
    for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let part = spec.get(field);
        if part.is_set() && !(part.value.is_array() && part.is_empty()) {
            errors.push(part.forbidden("may not be set for ExternalName services"));
        }
    }
    let name = spec.get("externalName");
    if name.present("", errors) {
        let plain = json!(name.text().strip_suffix('.').unwrap_or(name.text()));
        At::new(&plain, name.path).name(NameRule::Subdomain, errors);
    }
}

fn check_port<'v>(port: &At<'v>, named: bool, names: &mut HashSet<&'v str>, errors: &mut FieldErrors) {
    let name = port.get("name");
    if name.text().is_empty() {
        if named {
            errors.push(name.required(""));
        }
    } else {
        name.name(NameRule::Label, errors);
        if !names.insert(name.text()) {
            errors.push(name.duplicate());
        }
    }
    port.get("port").port(errors);
    if port.get("protocol").present("", errors) {
        port.get("protocol").one_of(&PROTOCOLS, errors);
    }
    port_or_name(&port.get("targetPort"), errors);
    if port.has("appProtocol") {
        port.get("appProtocol").label_key(errors);
    }
}

fn affinity(spec: &At<'_>, errors: &mut FieldErrors) {
    let (affinity, config) = (spec.get("sessionAffinity"), spec.get("sessionAffinityConfig"));
    if affinity.present("", errors) {
        affinity.one_of(&["ClientIP", "None"], errors);
    }
    match affinity.text() {
        "ClientIP" => {
            let timeout = config.down(&["clientIP", "timeoutSeconds"]);
            if !timeout.is_set() {
                errors.push(timeout.required("when session affinity type is ClientIP"));
            } else if !(1..=AFFINITY_SECONDS_MAX).contains(&timeout.number()) {
                errors.push(timeout.invalid("must be greater than 0 and less than 86400"));
            }
        }
        "None" if config.is_set() => {
            errors.push(config.forbidden("must not be set when session affinity is None"));
        }
        _ => {}
    }
}

fn taken_twice(ports: &At<'_>, kind: &str, errors: &mut FieldErrors) {
    let mut on_nodes: HashSet<(i64, &str)> = HashSet::new();
    let mut own: HashSet<(i64, &str)> = HashSet::new();
    for port in ports.items() {
        let (node, protocol) = (port.get("nodePort"), port.get("protocol").text());
        if node.number() != 0 {
            if kind == "ClusterIP" {
                errors.push(node.forbidden("may not be used when `type` is 'ClusterIP'"));
            }
            if on_nodes.contains(&(node.number(), protocol)) {
                errors.push(node.duplicate());
            }
            on_nodes.insert((node.number(), protocol));
        }
        let key = (port.get("port").number(), protocol);
        if own.contains(&key) {
            errors.push(twice(&port.path, key));
        }
        own.insert(key);
    }
}

/// A port that is taken twice, as upstream shows it: by the names that it has in the program.
fn twice(path: &str, (port, protocol): (i64, &str)) -> FieldError {
    let message = format!(
        "Duplicate value: {{\"Name\":\"\",\"Protocol\":{},\"AppProtocol\":null,\"Port\":{port},\"TargetPort\":0,\"NodePort\":0}}",
        json!(protocol)
    );
    FieldError { reason: "FieldValueDuplicate".into(), field: path.to_owned(), message }
}

/// The ranges that an annotation names, where the field names none.
fn annotated_ranges(object: &At<'_>, kind: &str, errors: &mut FieldErrors) {
    let said = object.down(&["metadata", "annotations", RANGES]);
    if !said.is_set() || !object.down(&["spec", "loadBalancerSourceRanges"]).is_empty() {
        return;
    }
    let field = format!("metadata.annotations[{RANGES}]");
    if kind != "LoadBalancer" {
        let detail = "may only be used when `type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden(field.as_str(), detail));
    }
    let text = said.text().trim();
    for range in text.split(',').map(str::trim).filter(|_| !text.is_empty()) {
        if range.parse::<IpNet>().is_err() {
            errors.push(FieldError::invalid(field.as_str(), &json!(range), CIDR));
        }
    }
}

fn balancer(spec: &At<'_>, kind: &str, errors: &mut FieldErrors) {
    let balanced = kind == "LoadBalancer";
    let ranges = At::new(spec.get("loadBalancerSourceRanges").value, "spec.LoadBalancerSourceRanges");
    if !ranges.is_empty() && !balanced {
        errors.push(ranges.forbidden("may only be used when `type` is 'LoadBalancer'"));
    }
    for range in ranges.items() {
        let text = range.text().trim();
        if text.parse::<IpNet>().is_err() {
            errors.push(FieldError::invalid(range.path.clone(), &json!(text), CIDR));
        }
    }
    let (nodes, class) = (spec.get("allocateLoadBalancerNodePorts"), spec.get("loadBalancerClass"));
    if nodes.is_set() && !balanced {
        errors.push(nodes.forbidden("may only be used when `type` is 'LoadBalancer'"));
    }
    if class.is_set() {
        if !balanced {
            errors.push(class.forbidden("may only be used when `type` is 'LoadBalancer'"));
        }
        class.label_key(errors);
    }
}

/// Whether a Service is reached from outside. Source: `ExternallyAccessible` in `pkg/api/service/util.go`.
pub(crate) fn is_reachable(spec: &Value) -> bool {
    match tree::text(spec, &["type"]) {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !tree::items(spec, &["externalIPs"]).is_empty(),
        _ => false,
    }
}

/// Whether nodes answer for a Service's health.
fn is_checked(spec: &Value) -> bool {
    tree::text(spec, &["type"]) == "LoadBalancer" && tree::text(spec, &["externalTrafficPolicy"]) == "Local"
}

fn traffic(spec: &At<'_>, kind: &str, errors: &mut FieldErrors) {
    let (external, health) = (spec.get("externalTrafficPolicy"), spec.get("healthCheckNodePort"));
    if !is_reachable(spec.value) {
        if !external.text().is_empty() {
            errors.push(external.invalid("may only be set for externally-accessible services"));
        }
    } else if external.present("", errors) {
        external.one_of(&["Cluster", "Local"], errors);
    }
    if health.number() != 0 {
        if is_checked(spec.value) {
            health.port(errors);
        } else {
            let detail =
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.push(health.invalid(detail));
        }
    }
    let internal = spec.get("internalTrafficPolicy");
    if internal.is_set() {
        internal.one_of(&["Cluster", "Local"], errors);
    } else if matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer") {
        errors.push(internal.required(""));
    }
    let known = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    spec.get("trafficDistribution").one_of_if_set(&known, errors);
}

/// Fields that only some Services have, and whether one has them, told by its spec.
type Dependent = (&'static [&'static str], fn(&Value) -> bool);
const DEPENDENT: [Dependent; 4] = [
    (&["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"], |spec| {
        tree::text(spec, &["type"]) != "ExternalName"
    }),
    (&["allocateLoadBalancerNodePorts", "loadBalancerClass"], |spec| {
        tree::text(spec, &["type"]) == "LoadBalancer"
    }),
    (&["healthCheckNodePort"], is_checked),
    (&["externalTrafficPolicy"], is_reachable),
];

/// A change takes away what only the old Service had, unless the writer says otherwise. Nothing is taken from a new one:
/// what does not belong there is refused.
/// Source: `dropTypeDependentFields` in `registry/core/service/strategy.go`.
pub(crate) fn drop_dependent(new: &mut Value, old: &Value) {
    let before = tree::at(old, &["spec"]);
    let (now, then) = (tree::text(new, &["spec", "type"]).to_owned(), tree::text(before, &["type"]));
    // What a Service has is told before anything is taken.
    let wanted = tree::at(new, &["spec"]).clone();
    let spec = tree::object(new, "spec");
    for (fields, _) in DEPENDENT.iter().filter(|(_, has)| has(before) && !has(&wanted)) {
        for field in *fields {
            if spec.get(*field) == before.get(field) {
                spec.remove(*field);
            }
        }
    }
    let on_nodes = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    if !on_nodes(then) || on_nodes(&now) {
        return;
    }
    let held: Vec<&Value> =
        tree::items(before, &["ports"]).iter().map(|port| tree::at(port, &["nodePort"])).collect();
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if held.contains(&tree::at(port, &["nodePort"])) {
            tree::members(port).remove("nodePort");
        }
    }
}

/// What may not change: the class of a load balancer, and the port that says whether a node has endpoints.
pub(crate) fn update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (spec, before) = (At::object(new).get("spec"), At::object(old).get("spec"));
    let balanced = |spec: &At<'_>| spec.get("type").text() == "LoadBalancer";
    let class = spec.get("loadBalancerClass");
    if balanced(&spec) && balanced(&before) && class.value != before.get("loadBalancerClass").value {
        errors.push(class.invalid("may not change once set"));
    }
    let health = spec.get("healthCheckNodePort");
    let held = before.get("healthCheckNodePort");
    if is_checked(spec.value) && is_checked(before.value) && held.number() != 0 && health.value != held.value
    {
        errors.push(health.forbidden(IMMUTABLE));
    }
}

/// What is wrong with the addresses that a load balancer gave.
pub(crate) fn load_balancer(object: &Value, errors: &mut FieldErrors) {
    let status = At::object(object).down(&["status", "loadBalancer"]);
    let ingress = status.get("ingress");
    if !ingress.is_empty() && At::object(object).down(&["spec", "type"]).text() != "LoadBalancer" {
        return errors.push(ingress.forbidden("may only be used when `spec.type` is 'LoadBalancer'"));
    }
    for point in ingress.items() {
        let (ip, mode, host) = (point.get("ip"), point.get("ipMode"), point.get("hostname"));
        if !ip.text().is_empty() {
            address(&ip, errors);
        } else if mode.is_set() {
            errors.push(mode.forbidden("may not be specified when `ip` is not set"));
        }
        mode.one_of_if_set(&["Proxy", "VIP"], errors);
        host.name_if_set(NameRule::Subdomain, errors);
        if host.text().parse::<IpAddr>().is_ok() {
            errors.push(host.invalid("must be a DNS name, not an IP address"));
        }
    }
}

/// What the writer should know. Source: `pkg/api/service/warnings.go`.
pub(crate) fn warnings(object: &Value) -> Vec<String> {
    let spec = At::object(object).get("spec");
    let mut all = Vec::new();
    let ip = spec.get("clusterIP").text() == "None";
    if ip && !spec.get("loadBalancerIP").text().is_empty() {
        all.push("spec.loadBalancerIP is ignored when spec.clusterIP is \"None\"".to_owned());
    }
    if ip && !spec.get("externalIPs").is_empty() {
        all.push("spec.externalIPs is ignored when spec.clusterIP is \"None\"".to_owned());
    }
    if ip && spec.get("sessionAffinity").text() == "ClientIP" {
        all.push("spec.SessionAffinity is ignored for headless services".to_owned());
    }
    if spec.get("trafficDistribution").text() == "PreferClose" {
        let what = "deprecated; use \"PreferSameZone\" instead";
        all.push(format!("spec.trafficDistribution: {what}"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::at::said;

    #[test]
    fn what_only_the_old_type_had_goes_with_it() {
        let old = json!({ "spec": { "type": "LoadBalancer", "clusterIP": "10.0.0.1", "allocateLoadBalancerNodePorts": true,
            "ports": [{ "port": 80, "nodePort": 30000 }] } });
        let mut new = old.clone();
        new["spec"]["type"] = json!("ClusterIP");
        drop_dependent(&mut new, &old);
        assert_eq!(
            new["spec"],
            json!({ "type": "ClusterIP", "clusterIP": "10.0.0.1", "ports": [{ "port": 80 }] })
        );
        // A policy of traffic from outside, and the port for a node's health, go where they mean nothing; a changed one
        // is left to be refused.
        let local = json!({ "spec": { "type": "LoadBalancer", "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 30001 } });
        for (change, left) in [
            (json!({ "type": "ClusterIP" }), json!({ "type": "ClusterIP" })),
            (
                json!({ "type": "ClusterIP", "externalTrafficPolicy": "Cluster" }),
                json!({ "type": "ClusterIP", "externalTrafficPolicy": "Cluster" }),
            ),
            (json!({ "type": "NodePort" }), json!({ "type": "NodePort", "externalTrafficPolicy": "Local" })),
            (
                json!({ "externalTrafficPolicy": "Cluster" }),
                json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Cluster" }),
            ),
        ] {
            let mut new = local.clone();
            new["spec"].as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            drop_dependent(&mut new, &local);
            assert_eq!(new["spec"], left, "{change}");
        }
    }

    #[test]
    fn ranges_are_annotated_where_the_field_has_none() {
        let causes = |kind: &str, text: &str| {
            let mut errors = Vec::new();
            let object = json!({ "metadata": { "annotations": { RANGES: text } }, "spec": {} });
            annotated_ranges(&At::object(&object), kind, &mut errors);
            said(&errors)
        };
        assert_eq!(causes("LoadBalancer", " 10.0.0.0/8, 10.1.0.0/16"), [""; 0]);
        let field = format!("metadata.annotations[{RANGES}]");
        assert_eq!(
            causes("LoadBalancer", "10.0.0.0/8,x"),
            [format!("{field}: Invalid value: \"x\": {CIDR}")]
        );
        let detail = "Forbidden: may only be used when `type` is 'LoadBalancer'";
        assert_eq!(causes("ClusterIP", ""), [format!("{field}: {detail}")]);
    }

    #[test]
    fn failures_are_upstreams() {
        let causes = |patch: Value| {
            let mut spec = json!({ "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80 }] });
            spec.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
            let mut errors = Vec::new();
            validate(&json!({ "spec": spec }), &mut errors);
            said(&errors)
        };
        let rows = [
            (json!({}), vec![]),
            (json!({ "ports": [] }), vec!["spec.ports: Required value"]),
            (
                json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Cluster",
                    "ports": [{ "port": 10250, "protocol": "TCP", "targetPort": 80 }] }),
                vec![
                    "spec.ports[0]: Invalid value: 10250: may not expose port 10250 externally since it is used by kubelet",
                ],
            ),
            (
                json!({ "type": "ExternalName", "externalName": "" }),
                vec!["spec.externalName: Required value"],
            ),
            (
                json!({ "externalIPs": ["127.0.0.1"], "externalTrafficPolicy": "Cluster" }),
                vec![
                    "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, \
                     ::1/128)",
                ],
            ),
            (
                json!({ "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80, "nodePort": 30000 }] }),
                vec!["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
            ),
            (
                json!({ "loadBalancerSourceRanges": ["10.0.0.0/8"] }),
                vec![
                    "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
                ],
            ),
            (
                json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 90000 } } }),
                vec![
                    "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 90000: must be greater than 0 and \
                     less than 86400",
                ],
            ),
            (
                json!({ "ports": [{ "port": 80, "protocol": "TCP", "targetPort": "a_b" }, { "port": 80, "protocol": "TCP", "targetPort": 1, "name": "b" }] }),
                vec![
                    "spec.ports[0].name: Required value",
                    "spec.ports[0].targetPort: Invalid value: \"a_b\": must contain only alpha-numeric characters (a-z, \
                     0-9), and hyphens (-)",
                    "spec.ports[1]: Duplicate value: {\"Name\":\"\",\"Protocol\":\"TCP\",\"AppProtocol\":null,\"Port\":80,\
                     \"TargetPort\":0,\"NodePort\":0}",
                ],
            ),
        ];
        for (patch, expected) in rows {
            assert_eq!(causes(patch.clone()), expected, "{patch}");
        }
    }
}
