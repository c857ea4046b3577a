//! Nodes.

use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::label_value_problems;
use apiserver::strategy::Strategy;
use serde_json::Value;

use crate::affinity::EFFECTS;
use crate::at::At;
use crate::compute;

pub(crate) struct Nodes;

impl Strategy for Nodes {
    fn generation(&self) -> bool {
        false
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let node = At::object(object);
        let mut seen: Vec<(&str, &str)> = Vec::new();
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
            seen.push(pair);
        }
        for list in ["capacity", "allocatable"] {
            for (name, amount) in node.down(&["status", list]).entries() {
                compute::validate_amount(name, &amount, errors);
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let (spec, before) = (At::object(new).get("spec"), At::object(old).get("spec"));
        let held = before.get("podCIDR").text();
        if !held.is_empty() && spec.get("podCIDR").text() != held {
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
