//! Where pods may, should and should not run: affinity, spreading, tolerations.
//! Source: `core/validation/validation.go`.

use std::collections::{HashMap, HashSet};

use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::label_value_problems;
use apiserver::strategy::NameRule;
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::{At, POSITIVE};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
/// Effects of taints.
pub(crate) const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// What is wrong with `affinity`.
pub(crate) fn validate(affinity: &At<'_>, errors: &mut FieldErrors) {
    let node = affinity.get("nodeAffinity");
    if node.has(REQUIRED) {
        node_selector(&node.get(REQUIRED), errors);
    }
    for term in node.each(PREFERRED) {
        weight(&term, errors);
        node_term(&term.get("preference"), false, errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = affinity.get(kind);
        pods.each(REQUIRED).for_each(|term| pod_term(&term, errors));
        for term in pods.each(PREFERRED) {
            weight(&term, errors);
            pod_term(&term.get("podAffinityTerm"), errors);
        }
    }
}

fn weight(term: &At<'_>, errors: &mut FieldErrors) {
    let weight = term.get("weight");
    if !(1..=100).contains(&weight.number()) {
        errors.push(weight.invalid_number("must be in the range 1-100"));
    }
}

/// A `NodeSelector`: at least one term.
pub(crate) fn node_selector(selector: &At<'_>, errors: &mut FieldErrors) {
    let terms = selector.get("nodeSelectorTerms");
    if terms.is_empty() {
        errors.push(terms.required("must have at least one node selector term"));
    }
    terms.items().for_each(|term| node_term(&term, true, errors));
}

fn node_term(term: &At<'_>, values: bool, errors: &mut FieldErrors) {
    for expression in term.each("matchExpressions") {
        let (operator, given) = (expression.get("operator"), expression.get("values"));
        match operator.text() {
            "In" | "NotIn" if given.is_empty() => {
                errors.push(given.required("must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if !given.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(given.forbidden(detail));
            }
            "Gt" | "Lt" if given.len() != 1 => {
                let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.push(given.required(detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => errors.push(operator.invalid_text("not a valid selector operator")),
        }
        expression.get("key").label_key(errors);
        if values {
            given.items().for_each(|value| value.label_value(errors));
        }
    }
    for field in term.each("matchFields") {
        let (operator, values) = (field.get("operator"), field.get("values"));
        match operator.text() {
            "In" | "NotIn" if values.len() != 1 => {
                let detail =
                    "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.push(values.required(detail));
            }
            "In" | "NotIn" => {}
            _ => errors.push(operator.invalid_text("not a valid selector operator")),
        }
        if field.get("key").text() == "metadata.name" {
            values.items().for_each(|value| value.name(NameRule::Subdomain, errors));
        } else {
            errors.push(field.get("key").invalid_text("not a valid field selector key"));
        }
    }
}

fn pod_term(term: &At<'_>, errors: &mut FieldErrors) {
    term.get("labelSelector").selector(errors);
    term.get("namespaceSelector").selector(errors);
    for name in term.each("namespaces") {
        At::new(name.value, term.child("namespace")).name(NameRule::Label, errors);
    }
    label_keys(term, &["matchLabelKeys", "mismatchLabelKeys"], errors);
    let key = term.get("topologyKey");
    key.present("can not be empty", errors);
    key.label_key(errors);
}

/// Keys of labels whose values come from the pod itself.
fn label_keys(term: &At<'_>, lists: &[&str], errors: &mut FieldErrors) {
    for list in lists.iter().map(|list| term.get(list)).filter(|list| !list.is_empty()) {
        if !term.has("labelSelector") {
            errors.push(list.forbidden("must not be specified when labelSelector is not set"));
            continue;
        }
        list.items().for_each(|key| key.label_key(errors));
    }
    let own: HashMap<&str, usize> = term.get("matchLabelKeys").texts().into_iter().zip(0..).collect();
    let selector = term.get("labelSelector");
    let mut asked: HashSet<&str> = selector.get("matchLabels").entries().map(|(key, _)| key).collect();
    for expression in selector.each("matchExpressions") {
        let key = expression.get("key");
        // The values of the pod's own labels are among the expressions by now: a second one is the user's.
        if let Some(at) = own.get(key.text()).filter(|_| asked.contains(key.text())) {
            let field = format!("{}[{at}]", term.path);
            let detail = "exists in both matchLabelKeys and labelSelector";
            errors.push(FieldError::invalid(field, key.value, detail));
        }
        asked.insert(key.text());
    }
    let mismatched: HashSet<&str> = term.get("mismatchLabelKeys").texts().into_iter().collect();
    for key in term.each("matchLabelKeys").filter(|key| mismatched.contains(key.text())) {
        errors.push(key.invalid("exists in both matchLabelKeys and mismatchLabelKeys"));
    }
}

/// Writes what `matchLabelKeys` and `mismatchLabelKeys` of a new pod's affinity and spreading mean into the selectors
/// beside them: the values of the pod's own labels. Source: `mutatePodAffinity`, `mutateTopologySpreadConstraints`.
pub(crate) fn merge_label_keys(pod: &mut Value) {
    let labels = tree::at(pod, &["metadata", "labels"]).clone();
    let spec = tree::member(pod, "spec");
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = spec.get_mut("affinity").and_then(|affinity| affinity.get_mut(kind)) else {
            continue;
        };
        let preferred = elements(pods, PREFERRED).filter_map(|term| term.get_mut("podAffinityTerm"));
        preferred.for_each(|term| merge_keys(term, &labels));
        elements(pods, REQUIRED).for_each(|term| merge_keys(term, &labels));
    }
    elements(spec, "topologySpreadConstraints").for_each(|constraint| merge_keys(constraint, &labels));
}

fn elements<'a>(value: &'a mut Value, list: &str) -> impl Iterator<Item = &'a mut Value> {
    value.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten()
}

/// A term without a selector means no pod, whatever else it asks for.
fn merge_keys(term: &mut Value, labels: &Value) {
    let mut expressions = Vec::new();
    for (list, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        let own = tree::items(term, &[list]).iter().filter_map(Value::as_str);
        for (key, value) in own.filter_map(|key| Some((key, labels.get(key)?))) {
            expressions.push(json!({ "key": key, "operator": operator, "values": [value] }));
        }
    }
    let selector = term.get_mut("labelSelector").and_then(Value::as_object_mut);
    let Some(selector) = selector.filter(|_| !expressions.is_empty()) else { return };
    match selector.get_mut("matchExpressions").and_then(Value::as_array_mut) {
        Some(held) => held.append(&mut expressions),
        None => drop(selector.insert("matchExpressions".into(), expressions.into())),
    }
}

/// What is wrong with `topologySpreadConstraints`.
pub(crate) fn spreading(constraints: &At<'_>, errors: &mut FieldErrors) {
    let mut seen: HashSet<(&str, &str)> = HashSet::new();
    for constraint in constraints.items() {
        let (skew, domains) = (constraint.get("maxSkew"), constraint.get("minDomains"));
        if skew.number() <= 0 {
            errors.push(skew.invalid_number(POSITIVE));
        }
        let (key, action) = (constraint.get("topologyKey"), constraint.get("whenUnsatisfiable"));
        key.present("can not be empty", errors);
        action.one_of(&["DoNotSchedule", "ScheduleAnyway"], errors);
        let pair = (key.text(), action.text());
        if seen.contains(&pair) {
            let field = constraint.child("{topologyKey, whenUnsatisfiable}");
            errors.push(FieldError::duplicate(field, &json!(format!("{{{}, {}}}", pair.0, pair.1))));
        }
        seen.insert(pair);
        if domains.is_set() {
            if domains.number() <= 0 {
                errors.push(domains.invalid(POSITIVE));
            }
            if action.text() != "DoNotSchedule" {
                let detail = format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}",
                    action.text()
                );
                errors.push(domains.invalid(&detail));
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            constraint.get(policy).one_of_if_set(&["Honor", "Ignore"], errors);
        }
        label_keys(&constraint, &["matchLabelKeys"], errors);
        constraint.get("labelSelector").selector(errors);
    }
}

/// What is wrong with `tolerations`.
pub(crate) fn tolerations(tolerations: &At<'_>, errors: &mut FieldErrors) {
    for toleration in tolerations.items() {
        let (key, operator) = (toleration.get("key"), toleration.get("operator"));
        let (value, effect) = (toleration.get("value").text(), toleration.get("effect"));
        if !key.text().is_empty() {
            key.label_key(errors);
        } else if operator.text() != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(operator.invalid_text(detail));
        }
        if toleration.has("tolerationSeconds") && effect.text() != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(effect.invalid_text(detail));
        }
        match operator.text() {
            "" | "Equal" => {
                let problems = label_value_problems(value);
                if !problems.is_empty() {
                    errors.push(FieldError::invalid(operator.path, &json!(value), &problems.join(";")));
                }
            }
            "Exists" if !value.is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(operator.path, &json!(value), detail));
            }
            "Exists" => {}
            "Lt" | "Gt" => errors.push(operator.not_supported(&["Equal", "Exists", "Lt", "Gt"])),
            _ => errors.push(operator.not_supported(&["Equal", "Exists"])),
        }
        if !effect.text().is_empty() {
            effect.one_of(&EFFECTS, errors);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_own_labels_are_written_into_selectors() {
        let term = |labels: Value| {
            json!({ "topologyKey": "zone", "labelSelector": labels, "matchLabelKeys": ["hash", "absent"],
                "mismatchLabelKeys": ["tenant"] })
        };
        let mut pod = json!({
            "metadata": { "labels": { "hash": "1", "tenant": "t" } },
            "spec": {
                "affinity": {
                    "podAffinity": { REQUIRED: [term(json!({ "matchLabels": { "app": "a" } })), term(json!(null))] },
                    "podAntiAffinity": { PREFERRED: [{ "weight": 1, "podAffinityTerm": term(json!({})) }] },
                },
                "topologySpreadConstraints": [
                    { "labelSelector": {}, "matchLabelKeys": ["hash"] },
                    { "labelSelector": {} },
                ],
            },
        });
        merge_label_keys(&mut pod);
        let own = json!({ "key": "hash", "operator": "In", "values": ["1"] });
        let other = json!({ "key": "tenant", "operator": "NotIn", "values": ["t"] });
        let affinity = &pod["spec"]["affinity"];
        let with = &affinity["podAffinity"][REQUIRED];
        assert_eq!(
            with[0]["labelSelector"],
            json!({ "matchLabels": { "app": "a" }, "matchExpressions": [own, other] })
        );
        assert_eq!(with[1]["labelSelector"], json!(null));
        let without = &affinity["podAntiAffinity"][PREFERRED][0]["podAffinityTerm"];
        assert_eq!(without["labelSelector"], json!({ "matchExpressions": [own, other] }));
        let spread = &pod["spec"]["topologySpreadConstraints"];
        assert_eq!(spread[0]["labelSelector"], json!({ "matchExpressions": [own] }));
        assert_eq!(spread[1]["labelSelector"], json!({}));
    }

    #[test]
    fn a_key_is_asked_for_once() {
        let problems = |selector: Value| {
            let mut pod = json!({ "metadata": { "labels": { "hash": "1" } }, "spec": {
                "topologySpreadConstraints": [{ "maxSkew": 1, "topologyKey": "zone", "matchLabelKeys": ["hash"],
                    "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector }] } });
            merge_label_keys(&mut pod);
            let mut errors = FieldErrors::new();
            let at = At::object(&pod).down(&["spec", "topologySpreadConstraints"]);
            spreading(&at, &mut errors);
            errors.into_iter().map(|error| format!("{}: {}", error.field, error.message)).collect::<Vec<_>>()
        };
        assert!(problems(json!({ "matchLabels": { "app": "a" } })).is_empty());
        let says = "spec.topologySpreadConstraints[0][0]: Invalid value: \"hash\": exists in both matchLabelKeys and \
                    labelSelector";
        assert_eq!(problems(json!({ "matchLabels": { "hash": "1" } })), [says]);
        assert_eq!(
            problems(json!({ "matchExpressions": [{ "key": "hash", "operator": "Exists" }] })),
            [says]
        );
    }
}
