//! Nodes.

use std::collections::HashSet;

use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::label_value_problems;
use apiserver::strategy::Strategy;
use apiserver::tree;
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::affinity::EFFECTS;
use crate::at::At;
use crate::compute;

const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

pub(crate) struct Nodes;

impl Strategy for Nodes {
    fn generation(&self) -> bool {
        false
    }

    /// Who registers a node tells of it at once. Source: `nodeStrategy.PrepareForCreate`.
    fn created_with_status(&self) -> bool {
        true
    }

    /// `podCIDR` is the first of `podCIDRs`; where they differ it is the one that counts.
    /// Source: `Convert_v1_NodeSpec_To_core_NodeSpec`.
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) else { return };
        let ranges = ranges(spec);
        if let Some(first) = ranges.first().cloned() {
            let spec = tree::members(spec);
            spec.insert("podCIDR".into(), first);
            spec.insert("podCIDRs".into(), ranges.into());
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let node = At::object(object);
        check_ranges(&node.down(&["spec", "podCIDRs"]), errors);
        let mut seen: HashSet<(&str, &str)> = HashSet::new();
        for taint in node.down(&["spec", "taints"]).items() {
            // Upstream reports taints below metadata.
            let field = taint.path.replacen("spec.", "metadata.", 1);
            let taint = At::new(taint.value, field);
            let (key, value, effect) = (taint.get("key"), taint.get("value"), taint.get("effect"));
            key.label_key(errors);
            let problems = label_value_problems(value.text());
            if !problems.is_empty() {
                errors.push(value.invalid(&problems.join(";")));
            }
            if effect.present("", errors) {
                effect.one_of(&EFFECTS, errors);
            }
            let pair = (key.text(), effect.text());
            if seen.contains(&pair) {
                errors.push(taint.duplicate());
            }
            seen.insert(pair);
        }
        resources(&node, errors);
    }

    fn validate_status(&self, new: &Value, _: &Value, errors: &mut FieldErrors) {
        let node = At::object(new);
        resources(&node, errors);
        let mut seen: HashSet<(&str, &str)> = HashSet::new();
        for address in node.down(&["status", "addresses"]).items() {
            let (kind, text) = (address.get("type").text(), address.get("address").text());
            if !seen.insert((kind, text)) {
                // Upstream shows it by the names that it has in the program.
                let shown = format!("{{\"Type\":{},\"Address\":{}}}", json!(kind), json!(text));
                let message = format!("Duplicate value: {shown}");
                let reason = "FieldValueDuplicate".into();
                errors.push(FieldError { reason, field: address.path, message });
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let (spec, before) = (At::object(new).get("spec"), At::object(old).get("spec"));
        let held = ranges(before.value);
        if !held.is_empty() && ranges(spec.value) != held {
            let detail = "node updates may not change podCIDR except from \"\" to valid";
            errors.push(FieldError::forbidden("spec.podCIDRs", detail));
        }
        let (provider, held) = (spec.get("providerID"), before.get("providerID").text());
        if !held.is_empty() && provider.text() != held {
            let what = if provider.text().is_empty() { "cleared" } else { "modified" };
            let detail = format!("field cannot be {what} once set");
            errors.push(FieldError::invalid(provider.path, &Value::Null, &detail));
        }
    }
}

fn resources(node: &At<'_>, errors: &mut FieldErrors) {
    for list in ["capacity", "allocatable"] {
        for (name, amount) in node.down(&["status", list]).entries() {
            compute::validate_amount(name, &amount, errors);
        }
    }
}

/// The ranges of a Node's pods.
fn ranges(spec: &Value) -> Vec<Value> {
    let (one, all) = (tree::text(spec, &["podCIDR"]), tree::items(spec, &["podCIDRs"]));
    if one.is_empty() || all.first().and_then(Value::as_str) == Some(one) {
        return all.to_vec();
    }
    vec![one.into()]
}

/// At most one range of each family. Source: `ValidateNode`.
fn check_ranges(ranges: &At<'_>, errors: &mut FieldErrors) {
    let mut families = Vec::new();
    for range in ranges.items() {
        match range.text().parse::<IpNet>() {
            Ok(parsed) => families.push(parsed.addr().is_ipv4()),
            Err(_) => errors.push(range.invalid(CIDR)),
        }
    }
    let both = matches!(families.as_slice(), [one, other] if one != other);
    if ranges.len() > 1 && !(both && ranges.len() == 2) {
        errors.push(ranges.invalid("may specify no more than one CIDR for each IP family"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::at::said;

    fn node(spec: Value) -> Value {
        let mut node = json!({ "spec": spec });
        Nodes.default(&mut node);
        node
    }

    #[test]
    fn an_address_is_told_once() {
        let address = json!({ "type": "InternalIP", "address": "10.0.0.1" });
        let mut errors = Vec::new();
        let node = json!({ "status": { "addresses": [address, address], "capacity": { "cpu": "-1" } } });
        Nodes.validate_status(&node, &node, &mut errors);
        assert_eq!(
            said(&errors),
            [
                "status.capacity[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
                "status.addresses[1]: Duplicate value: {\"Type\":\"InternalIP\",\"Address\":\"10.0.0.1\"}",
            ]
        );
    }

    #[test]
    fn one_range_is_the_first_of_all() {
        let both = json!({ "podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"] });
        for spec in [
            json!({ "podCIDR": "10.1.0.0/24" }),
            json!({ "podCIDRs": ["10.1.0.0/24"] }),
            json!({ "podCIDR": "10.1.0.0/24", "podCIDRs": ["10.2.0.0/24"] }),
        ] {
            assert_eq!(node(spec)["spec"], both);
        }
        assert_eq!(node(json!({ "unschedulable": true }))["spec"], json!({ "unschedulable": true }));
    }

    #[test]
    fn ranges_are_one_of_each_family_and_stay() {
        let one = "may specify no more than one CIDR for each IP family";
        for (list, wanted) in [
            (json!(["10.1.0.0/24", "fd00::/64"]), vec![]),
            (json!(["x"]), vec![format!("spec.podCIDRs[0]: Invalid value: \"x\": {CIDR}")]),
            (
                json!(["10.1.0.0/24", "10.2.0.0/24"]),
                vec![format!("spec.podCIDRs: Invalid value: [\"10.1.0.0/24\",\"10.2.0.0/24\"]: {one}")],
            ),
        ] {
            let mut errors = Vec::new();
            Nodes.validate(&node(json!({ "podCIDRs": list })), &mut errors);
            assert_eq!(said(&errors), wanted, "{list}");
        }
        let (old, new) =
            (node(json!({ "podCIDR": "10.1.0.0/24" })), node(json!({ "podCIDR": "10.2.0.0/24" })));
        let change = |old: &Value, new: &Value| {
            let mut errors = Vec::new();
            Nodes.validate_update(new, old, &mut errors);
            errors.len()
        };
        assert_eq!((change(&old, &new), change(&old, &old), change(&node(json!({})), &new)), (1, 0, 0));
    }
}
