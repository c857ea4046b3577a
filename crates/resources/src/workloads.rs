//! Deployments, ReplicaSets, ReplicationControllers, ControllerRevisions, DaemonSets.
//! Source: `apps/validation/validation.go`, `apps/v1/defaults.go`, `core/validation/validation.go`.

use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::Strategy;
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::{At, IMMUTABLE};
use crate::{pod_spec, template};

const NO_MATCH: &str = "`selector` does not match template `labels`";

/// Rolling updates.
pub(crate) struct Deployments;

impl Strategy for Deployments {
    fn default(&self, object: &mut Value) {
        let spec = tree::member(object, "spec");
        tree::set_default(spec, "replicas", 1);
        tree::set_default(spec, "revisionHistoryLimit", 10);
        tree::set_default(spec, "progressDeadlineSeconds", 600);
        let strategy = tree::member(spec, "strategy");
        tree::set_default(strategy, "type", "RollingUpdate");
        if tree::text(strategy, &["type"]) == "RollingUpdate" {
            let rolling = tree::member(strategy, "rollingUpdate");
            tree::set_default(rolling, "maxUnavailable", "25%");
            tree::set_default(rolling, "maxSurge", "25%");
        }
        pod_spec::default_template(tree::member(spec, "template"));
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = At::object(object).get("spec");
        scaled(&spec, errors);
        selected_template(&spec, "deployment", "ReplicaSet", errors);
        let strategy = spec.get("strategy");
        let rolling = strategy.get("rollingUpdate");
        match strategy.get("type").text() {
            "Recreate" if rolling.is_set() => {
                let detail = "may not be specified when strategy `type` is 'Recreate'";
                errors.push(rolling.forbidden(detail));
            }
            "RollingUpdate" => rolling_deployment(&rolling, errors),
            "Recreate" => {}
            _ => errors.push(strategy.not_supported(&["Recreate", "RollingUpdate"])),
        }
        let deadline = spec.get("progressDeadlineSeconds");
        if deadline.is_set() {
            deadline.not_negative(errors);
            if deadline.number() <= spec.get("minReadySeconds").number() {
                errors.push(deadline.invalid("must be greater than minReadySeconds"));
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        kept(new, old, &["selector"], errors);
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let counts =
            ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas", "unavailableReplicas"];
        counted(new, old, &counts, errors);
        replicas_within(new, &["updatedReplicas", "readyReplicas", "availableReplicas"], errors);
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        template::warnings(&At::object(object).down(&["spec", "template"]))
    }
}

/// Numbers of equal pods.
pub(crate) struct ReplicaSets;

impl Strategy for ReplicaSets {
    fn default(&self, object: &mut Value) {
        let spec = tree::member(object, "spec");
        tree::set_default(spec, "replicas", 1);
        pod_spec::default_template(tree::member(spec, "template"));
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = At::object(object).get("spec");
        scaled(&spec, errors);
        selected_template(&spec, "replicaset", "ReplicaSet", errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        kept(new, old, &["selector"], errors);
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        replica_status(new, old, errors);
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        template::warnings(&At::object(object).down(&["spec", "template"]))
    }
}

/// The oldest form; its selector is a plain map.
pub(crate) struct ReplicationControllers;

impl Strategy for ReplicationControllers {
    fn default(&self, object: &mut Value) {
        let labels = tree::at(object, &["spec", "template", "metadata", "labels"]).clone();
        let spec = tree::member(object, "spec");
        tree::set_default(spec, "replicas", 1);
        if labels.is_object() {
            tree::set_default(spec, "selector", labels.clone());
        }
        pod_spec::default_template(tree::member(spec, "template"));
        let metadata = tree::member(object, "metadata");
        if labels.is_object() && tree::at(metadata, &["labels"]).is_null() {
            tree::set_default(metadata, "labels", labels);
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = At::object(object).get("spec");
        scaled(&spec, errors);
        let selector = spec.get("selector");
        if selector.is_empty() {
            errors.push(selector.required(""));
        }
        let template = spec.get("template");
        if !template.is_set() {
            errors.push(template.required(""));
            return;
        }
        let labels = template.down(&["metadata", "labels"]);
        if selector.entries().any(|(key, value)| labels.value.get(key) != Some(value.value)) {
            errors.push(labels.invalid(NO_MATCH));
        }
        template::validate(&template, errors);
        template::always(&template, "ReplicationController", errors);
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        replica_status(new, old, errors);
    }

    fn orphans_by_default(&self) -> bool {
        true
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        template::warnings(&At::object(object).down(&["spec", "template"]))
    }
}

/// Snapshots of a workload's template.
pub(crate) struct ControllerRevisions;

impl Strategy for ControllerRevisions {
    fn generation(&self) -> bool {
        false
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        At::object(object).get("revision").not_negative(errors);
    }

    fn validate_create(&self, object: &Value, errors: &mut FieldErrors) {
        let data = At::object(object).get("data");
        match data.value {
            Value::Object(_) => {}
            Value::Null => errors.push(data.required("data is mandatory")),
            _ => errors.push(data.required("data must be a valid JSON object")),
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        if tree::at(new, &["data"]) != tree::at(old, &["data"]) {
            errors.push(FieldError::invalid("data", &json!("<data>"), IMMUTABLE));
        }
    }
}

/// One pod on each node.
pub(crate) struct DaemonSets;

/// Where apps/v1 keeps what older versions had as `spec.templateGeneration`.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

impl Strategy for DaemonSets {
    fn default(&self, object: &mut Value) {
        let spec = tree::member(object, "spec");
        tree::set_default(spec, "revisionHistoryLimit", 10);
        let strategy = tree::member(spec, "updateStrategy");
        tree::set_default(strategy, "type", "RollingUpdate");
        if tree::text(strategy, &["type"]) == "RollingUpdate" {
            let rolling = tree::member(strategy, "rollingUpdate");
            tree::set_default(rolling, "maxUnavailable", 1);
            tree::set_default(rolling, "maxSurge", 0);
        }
        pod_spec::default_template(tree::member(spec, "template"));
    }

    fn prepare_create(&self, object: &mut Value) {
        let given = template_generation(object);
        set_template_generation(object, given.max(1));
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        let path = ["spec", "template"];
        let changed = tree::at(new, &path) != tree::at(old, &path);
        set_template_generation(new, template_generation(old) + i64::from(changed));
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = At::object(object).get("spec");
        selected_template(&spec, "daemonset", "DaemonSet", errors);
        spec.get("minReadySeconds").not_negative(errors);
        spec.get("revisionHistoryLimit").not_negative(errors);
        let strategy = spec.get("updateStrategy");
        match strategy.get("type").text() {
            "OnDelete" => {}
            "RollingUpdate" => rolling_daemons(&strategy.get("rollingUpdate"), errors),
            _ => errors.push(strategy.not_supported(&["RollingUpdate", "OnDelete"])),
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        kept(new, old, &["selector"], errors);
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let counts = [
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
        ];
        counted(new, old, &counts, errors);
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        template::warnings(&At::object(object).down(&["spec", "template"]))
    }
}

fn template_generation(object: &Value) -> i64 {
    tree::text(object, &["metadata", "annotations", TEMPLATE_GENERATION]).parse().unwrap_or(0)
}

fn set_template_generation(object: &mut Value, generation: i64) {
    let annotations = tree::object(tree::member(object, "metadata"), "annotations");
    annotations.insert(TEMPLATE_GENERATION.into(), generation.to_string().into());
}

fn rolling_daemons(rolling: &At<'_>, errors: &mut FieldErrors) {
    let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
    for part in [&unavailable, &surge] {
        part.int_or_percent(errors);
        part.at_most_all(errors);
    }
    match (unavailable.amount() != 0, surge.amount() != 0) {
        (true, true) => errors.push(surge.invalid("may not be set when maxUnavailable is non-zero")),
        (false, false) => errors.push(unavailable.required("cannot be 0 when maxSurge is 0")),
        _ => {}
    }
}

fn rolling_deployment(rolling: &At<'_>, errors: &mut FieldErrors) {
    if !rolling.is_set() {
        errors.push(rolling.required("this should be defaulted and never be nil"));
        return;
    }
    let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
    unavailable.int_or_percent(errors);
    surge.int_or_percent(errors);
    if unavailable.amount() == 0 && surge.amount() == 0 {
        errors.push(unavailable.invalid("may not be 0 when `maxSurge` is 0"));
    }
    unavailable.at_most_all(errors);
}

/// Counts that are not negative, of those workloads that have them.
fn scaled(spec: &At<'_>, errors: &mut FieldErrors) {
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        spec.get(field).not_negative(errors);
    }
}

/// A selector that selects the template's labels, and the template. `what` is the workload in the sentence about an
/// empty selector, `kind` the one that refuses a deadline.
pub(crate) fn selected_template(spec: &At<'_>, what: &str, kind: &str, errors: &mut FieldErrors) {
    let (selector, template) = (spec.get("selector"), spec.get("template"));
    if !selector.is_set() {
        errors.push(selector.required(""));
    } else {
        selector.selector(errors);
        if selector.selects_all() {
            errors.push(selector.invalid(&format!("empty selector is invalid for {what}")));
        }
    }
    if !template.is_set() {
        errors.push(template.required(""));
        return;
    }
    selects(&selector, &template, errors);
    template::validate(&template, errors);
    template::always(&template, kind, errors);
}

/// The selector matches the template's labels.
pub(crate) fn selects(selector: &At<'_>, template: &At<'_>, errors: &mut FieldErrors) {
    let labels = template.down(&["metadata", "labels"]);
    let known = serde_json::from_value(labels.value.clone()).unwrap_or_default();
    if let Some(parsed) = selector.parsed_selector()
        && !parsed.matches(&known)
    {
        errors.push(labels.invalid(NO_MATCH));
    }
}

/// Fields of `spec` that stay what they were.
pub(crate) fn kept(new: &Value, old: &Value, fields: &[&str], errors: &mut FieldErrors) {
    At::object(new).get("spec").keeps(&At::object(old).get("spec"), fields, errors);
}

/// Counts of a status: none is negative, and collisions only grow.
pub(crate) fn counted(new: &Value, old: &Value, counts: &[&str], errors: &mut FieldErrors) {
    let (status, before) = (At::object(new).get("status"), At::object(old).get("status"));
    for name in counts.iter().chain(&["observedGeneration", "collisionCount"]) {
        status.get(name).not_negative(errors);
    }
    let collisions = status.get("collisionCount");
    if collisions.number() < before.get("collisionCount").number() {
        errors.push(collisions.invalid_number("cannot be decremented"));
    }
}

/// Parts of a status are no more than the whole.
pub(crate) fn replicas_within(object: &Value, parts: &[&str], errors: &mut FieldErrors) {
    let status = At::object(object).get("status");
    let count = |name: &str| status.get(name).number();
    for part in parts.iter().filter(|part| count(part) > count("replicas")) {
        errors.push(status.get(part).invalid_number("cannot be greater than status.replicas"));
    }
    if count("availableReplicas") > count("readyReplicas") {
        let available = status.get("availableReplicas");
        errors.push(available.invalid_number("cannot be greater than readyReplicas"));
    }
}

fn replica_status(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let parts = ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
    counted(new, old, &["replicas", parts[0], parts[1], parts[2]], errors);
    replicas_within(new, &parts, errors);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::at::said;

    #[test]
    fn counts_that_are_absent_are_zeros() {
        let mut errors = Vec::new();
        let status = json!({ "status": { "replicas": -1, "readyReplicas": -1 } });
        Deployments.validate_status(&status, &json!({}), &mut errors);
        let more = "cannot be greater than status.replicas";
        assert_eq!(
            said(&errors),
            [
                "status.replicas: Invalid value: -1: must be greater than or equal to 0".to_owned(),
                "status.readyReplicas: Invalid value: -1: must be greater than or equal to 0".to_owned(),
                format!("status.updatedReplicas: Invalid value: 0: {more}"),
                format!("status.availableReplicas: Invalid value: 0: {more}"),
                "status.availableReplicas: Invalid value: 0: cannot be greater than readyReplicas".to_owned(),
            ]
        );
    }
}
