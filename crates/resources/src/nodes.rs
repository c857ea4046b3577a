//! Nodes.

use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::Strategy;
use apiserver::tree;
use serde_json::Value;

pub(crate) struct Nodes;

impl Strategy for Nodes {
    fn generation(&self) -> bool {
        false
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        for (index, taint) in tree::items(object, &["spec", "taints"]).iter().enumerate() {
            let field = format!("spec.taints[{index}]");
            let key = tree::text(taint, &["key"]);
            if let Some(detail) = apiserver::names::wrong_qualified_name(key) {
                errors.push(FieldError::invalid(format!("{field}.key"), &key.into(), &detail));
            }
            let effect = tree::at(taint, &["effect"]);
            if !matches!(effect.as_str(), Some("NoSchedule" | "PreferNoSchedule" | "NoExecute")) {
                let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
                errors.push(FieldError::not_supported(format!("{field}.effect"), effect, &known));
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let path = ["spec", "podCIDR"];
        let (after, before) = (tree::text(new, &path), tree::text(old, &path));
        if !before.is_empty() && after != before {
            let detail = "node updates may not change podCIDR except from \"\" to valid";
            errors.push(FieldError::forbidden("spec.podCIDRs", detail));
        }
    }
}
