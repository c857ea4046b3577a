//! NetworkPolicies and IngressClasses. Source: `networking/validation/validation.go`, `networking/v1/defaults.go`.

use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::NameRule;
use apiserver::tree;
use ipnet::IpNet;
use serde_json::json;

use crate::at::{At, in_range};
use crate::containers::port_name_problems;
use crate::simple::{Simple, each_mut};

const CONTROLLER_BYTES_MAX: usize = 250;
const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// Who may talk to whom.
pub(crate) const POLICIES: Simple = Simple {
    default: |policy| {
        let spec = tree::member(policy, "spec");
        if tree::items(spec, &["policyTypes"]).is_empty() {
            let egress = !tree::items(spec, &["egress"]).is_empty();
            let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
            tree::members(spec).insert("policyTypes".into(), types);
        }
        for direction in ["ingress", "egress"] {
            for rule in each_mut(spec, &[direction]) {
                each_mut(rule, &["ports"]).for_each(|port| tree::set_default(port, "protocol", "TCP"));
            }
        }
    },
    check: |policy, errors| {
        let spec = policy.get("spec");
        spec.get("podSelector").selector(errors);
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for rule in spec.each(direction) {
                rule.each("ports").for_each(|port| policy_port(&port, errors));
                rule.each(peers).for_each(|peer| policy_peer(&peer, errors));
            }
        }
        let types = spec.get("policyTypes");
        if types.len() > 2 {
            errors.push(types.invalid("may not specify more than two policyTypes"));
            return;
        }
        types.items().for_each(|kind| kind.one_of(&["Ingress", "Egress"], errors));
    },
    ..Simple::COUNTED
};

fn policy_port(port: &At<'_>, errors: &mut FieldErrors) {
    port.get("protocol").one_of_if_set(&["TCP", "UDP", "SCTP"], errors);
    let (number, end) = (port.get("port"), port.get("endPort"));
    if !number.is_set() {
        if end.is_set() {
            errors.push(end.invalid("may not be specified when `port` is not specified"));
        }
        return;
    }
    if let Some(name) = number.value.as_str() {
        if end.is_set() {
            errors.push(end.invalid("may not be specified when `port` is non-numeric"));
        }
        port_name_problems(name).into_iter().for_each(|detail| errors.push(number.invalid(detail)));
        return;
    }
    number.port(errors);
    if end.is_set() {
        if end.number() < number.number() {
            errors.push(end.invalid("must be greater than or equal to `port`"));
        }
        if !(1..=65535).contains(&end.number()) {
            errors.push(end.invalid(&in_range(1, 65535)));
        }
    }
}

fn policy_peer(peer: &At<'_>, errors: &mut FieldErrors) {
    let (block, mut peers) = (peer.get("ipBlock"), 0);
    for selector in ["podSelector", "namespaceSelector"] {
        if peer.has(selector) {
            peers += 1;
            peer.get(selector).selector(errors);
        }
    }
    if block.is_set() {
        ip_block(&block, errors);
        if peers > 0 {
            errors.push(peer.forbidden("may not specify both ipBlock and another peer"));
        }
    } else if peers == 0 {
        errors.push(peer.required("must specify a peer"));
    }
}

fn ip_block(block: &At<'_>, errors: &mut FieldErrors) {
    let cidr = block.get("cidr");
    if !cidr.present("", errors) {
        return;
    }
    let Ok(whole) = cidr.text().parse::<IpNet>() else {
        errors.push(cidr.invalid(CIDR));
        return;
    };
    for except in block.each("except") {
        match except.text().parse::<IpNet>() {
            Err(_) => errors.push(except.invalid(CIDR)),
            Ok(part) if !whole.contains(&part.addr()) || whole.prefix_len() >= part.prefix_len() => {
                errors.push(except.invalid("must be a strict subset of `cidr`"));
            }
            Ok(_) => {}
        }
    }
}

/// Who serves Ingresses.
pub(crate) const CLASSES: Simple = Simple {
    default: |class| {
        let parameters = class.pointer_mut("/spec/parameters").filter(|value| value.is_object());
        if let Some(parameters) = parameters {
            tree::set_default(parameters, "scope", "Cluster");
        }
    },
    check: |class, errors| {
        let spec = class.get("spec");
        let controller = spec.get("controller");
        if controller.text().len() > CONTROLLER_BYTES_MAX {
            errors.push(controller.too_long(CONTROLLER_BYTES_MAX));
        }
        controller.domain_path(errors);
        let parameters = spec.get("parameters");
        if parameters.is_set() {
            class_parameters(&parameters, errors);
        }
    },
    frozen: &[&["spec", "controller"]],
    ..Simple::COUNTED
};

/// A reference to an object of any kind, in no namespace or in the same one.
pub(crate) fn local_reference(reference: &At<'_>, errors: &mut FieldErrors) {
    if reference.has("apiGroup") {
        reference.get("apiGroup").name(NameRule::Subdomain, errors);
    }
    reference.get("kind").named(NameRule::PathSegment, errors);
    reference.get("name").named(NameRule::PathSegment, errors);
}

fn class_parameters(parameters: &At<'_>, errors: &mut FieldErrors) {
    local_reference(parameters, errors);
    let (scope, namespace) = (parameters.get("scope"), parameters.get("namespace"));
    match scope.text() {
        "Namespace" if !namespace.is_set() => {
            errors.push(namespace.required("`parameters.scope` is set to 'Namespace'"));
        }
        "Namespace" => namespace.name(NameRule::Label, errors),
        "Cluster" if namespace.is_set() => {
            let detail = "`parameters.scope` is set to 'Cluster'";
            errors.push(FieldError::forbidden(namespace.path, detail));
        }
        "Cluster" => {}
        _ => errors.push(scope.not_supported(&["Cluster", "Namespace"])),
    }
}

#[cfg(test)]
mod tests {
    use apiserver::strategy::Strategy;
    use serde_json::Value;

    use super::*;
    use crate::at::said;

    fn causes(strategy: Simple, spec: Value) -> Vec<String> {
        let mut object = json!({ "spec": spec });
        strategy.default(&mut object);
        let mut errors = Vec::new();
        strategy.validate(&object, &mut errors);
        said(&errors)
    }

    #[test]
    fn failures_are_upstreams() {
        let from = |peer: Value| json!({ "ingress": [{ "from": [peer] }] });
        let port = |port: Value| json!({ "egress": [{ "ports": [port] }] });
        let rows = [
            (POLICIES, json!({}), vec![]),
            (POLICIES, from(json!({})), vec!["spec.ingress[0].from[0]: Required value: must specify a peer"]),
            (
                POLICIES,
                from(json!({ "podSelector": {}, "ipBlock": { "cidr": "10.0.0.0/8" } })),
                vec!["spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer"],
            ),
            (
                POLICIES,
                from(json!({ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["11.0.0.0/9"] } })),
                vec![
                    "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/9\": must be a strict subset of \
                     `cidr`",
                ],
            ),
            (
                POLICIES,
                port(json!({ "port": 80, "endPort": 79 })),
                vec![
                    "spec.egress[0].ports[0].endPort: Invalid value: 79: must be greater than or equal to `port`",
                ],
            ),
            (
                CLASSES,
                json!({ "controller": "nginx" }),
                vec![
                    "spec.controller: Invalid value: \"nginx\": must be a domain-prefixed path (such as \"acme.io/foo\")",
                ],
            ),
            (
                CLASSES,
                json!({ "controller": "a.b/c", "parameters": { "kind": "X", "name": "y", "scope": "Namespace" } }),
                vec!["spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'"],
            ),
        ];
        for (strategy, spec, expected) in rows {
            assert_eq!(causes(strategy, spec.clone()), expected, "{spec}");
        }
    }

    #[test]
    fn a_policy_with_egress_rules_is_of_both_kinds() {
        let mut policy = json!({ "spec": { "egress": [{}] } });
        POLICIES.default(&mut policy);
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    }
}
