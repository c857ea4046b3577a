//! PodDisruptionBudgets. Source: `policy/validation/validation.go`, `registry/policy/poddisruptionbudget`.

use apiserver::field::FieldErrors;
use apiserver::strategy::Strategy;
use serde_json::Value;

use crate::at::At;

/// How many pods may be missing by choice.
pub(crate) struct PodDisruptionBudgets;

impl Strategy for PodDisruptionBudgets {
    fn unconditional_update(&self) -> bool {
        false
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = At::object(object).get("spec");
        let bounds = ["minAvailable", "maxUnavailable"];
        if bounds.iter().all(|bound| spec.has(bound)) {
            errors.push(spec.invalid("minAvailable and maxUnavailable cannot be both set"));
        }
        for bound in bounds.iter().filter(|bound| spec.has(bound)) {
            spec.get(bound).int_or_percent(errors);
            spec.get(bound).at_most_all(errors);
        }
        spec.get("selector").selector(errors);
        spec.get("unhealthyPodEvictionPolicy").one_of_if_set(&["AlwaysAllow", "IfHealthyBudget"], errors);
    }

    fn validate_status(&self, new: &Value, _: &Value, errors: &mut FieldErrors) {
        let status = At::object(new).get("status");
        status.get("conditions").conditions(errors);
        for count in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
            status.get(count).not_negative(errors);
        }
    }
}
