//! What an update may change in a pod's spec. Source: `ValidatePodUpdate` in `core/validation/validation.go`.

use std::collections::HashSet;

use apiserver::field::{FieldError, FieldErrors};
use apiserver::tree;
use serde_json::Value;

const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
                       `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions \
                       to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it \
                       was previously negative)";
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";

/// Annotations that a pod keeps, and upstream's words for each.
const KEPT: [(&str, &str); 2] = [
    ("container.apparmor.security.beta.kubernetes.io/", "AppArmor annotations"),
    ("kubernetes.io/config.mirror", "mirror pod annotation"),
];

/// What is wrong with a change of a pod's annotations.
pub(crate) fn annotations(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let path = ["metadata", "annotations"];
    let (after, before) = (tree::at(new, &path), tree::at(old, &path));
    let forbid = |key: &String, verb: &str, errors: &mut FieldErrors| {
        for (_, what) in KEPT.iter().filter(|(prefix, _)| key.starts_with(prefix)) {
            let detail = format!("may not {verb} {what}");
            errors.push(FieldError::forbidden(format!("metadata.annotations[{key}]"), &detail));
        }
    };
    for (key, value) in before.as_object().into_iter().flatten() {
        if after.get(key) != Some(value) {
            forbid(key, "remove or update", errors);
        }
    }
    for (key, _) in after.as_object().into_iter().flatten() {
        if before.get(key).is_none() {
            forbid(key, "add", errors);
        }
    }
}

/// What is wrong with a change of a pod's spec.
pub(crate) fn validate(after: &Value, before: &Value, errors: &mut FieldErrors) {
    for list in ["containers", "initContainers"] {
        if tree::items(after, &[list]).len() != tree::items(before, &[list]).len() {
            let detail = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(format!("spec.{list}"), detail));
            return;
        }
    }
    deadline(after, before, errors);
    tolerations(after, before, errors);
    gates(after, before, errors);
    let mut rest = after.clone();
    take_mutable(&mut rest, before);
    // A pod that no scheduler looks at yet may still be narrowed down. Source: KEP-3838.
    if !tree::items(before, &["schedulingGates"]).is_empty() {
        node_selector(after, before, errors);
        node_affinity(after, before, errors);
        tree::copy(before, &mut rest, "nodeSelector");
        take_node_affinity(&mut rest, before);
    }
    if rest != *before {
        errors.push(FieldError::forbidden("spec", MUTABLE));
    }
}

/// Takes over from `before` what may change freely or is judged by itself.
fn take_mutable(rest: &mut Value, before: &Value) {
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        tree::copy(before, rest, field);
    }
    let grace = |spec: &Value| tree::at(spec, &["terminationGracePeriodSeconds"]).as_i64();
    if grace(rest) == Some(1) && grace(before).is_some_and(|seconds| seconds < 0) {
        tree::copy(before, rest, "terminationGracePeriodSeconds");
    }
    for list in ["containers", "initContainers"] {
        let new = tree::members(rest).get_mut(list).and_then(Value::as_array_mut);
        for (container, old) in new.into_iter().flatten().zip(tree::items(before, &[list])) {
            tree::copy(old, container, "image");
        }
    }
}

/// A deadline comes or gets shorter; it does not go.
fn deadline(after: &Value, before: &Value, errors: &mut FieldErrors) {
    let field = "spec.activeDeadlineSeconds";
    let (new, old) =
        (tree::at(after, &["activeDeadlineSeconds"]), tree::at(before, &["activeDeadlineSeconds"]));
    match (new.as_i64(), old.as_i64()) {
        (None, Some(_)) => {
            let detail = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(field, new, detail));
        }
        (Some(now), Some(then)) if then < now => {
            errors.push(FieldError::invalid(field, new, "must be less than or equal to previous value"));
        }
        _ => {}
    }
}

/// Every toleration stays, but for how long it lasts.
fn tolerations(after: &Value, before: &Value, errors: &mut FieldErrors) {
    let lasting = |toleration: &Value| {
        ["key", "operator", "value", "effect"].map(|field| tree::text(toleration, &[field]).to_owned())
    };
    let kept: HashSet<[String; 4]> = tree::items(after, &["tolerations"]).iter().map(lasting).collect();
    if tree::items(before, &["tolerations"]).iter().any(|toleration| !kept.contains(&lasting(toleration))) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", detail));
    }
}

/// Gates only go.
fn gates(after: &Value, before: &Value, errors: &mut FieldErrors) {
    let name_of = |gate| tree::text(gate, &["name"]);
    let old: HashSet<&str> = tree::items(before, &["schedulingGates"]).iter().map(name_of).collect();
    for (index, gate) in tree::items(after, &["schedulingGates"]).iter().enumerate() {
        let name = name_of(gate);
        if !old.contains(name) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.push(FieldError::forbidden(format!("spec.schedulingGates[{index}].name"), &detail));
        }
    }
}

fn node_selector(after: &Value, before: &Value, errors: &mut FieldErrors) {
    let new = tree::at(after, &["nodeSelector"]);
    let old = tree::at(before, &["nodeSelector"]).as_object();
    if old.into_iter().flatten().any(|(key, value)| new.get(key) != Some(value)) {
        let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.push(FieldError::invalid("spec.nodeSelector", new, detail));
    }
}

/// Required terms get more conditions only; preferences may change freely.
fn node_affinity(after: &Value, before: &Value, errors: &mut FieldErrors) {
    let path = ["affinity", "nodeAffinity", REQUIRED, "nodeSelectorTerms"];
    let field = format!("spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms");
    let (new, old) = (tree::items(after, &path), tree::items(before, &path));
    if old.is_empty() {
        return;
    }
    if new.len() != old.len() {
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errors.push(FieldError::invalid(field, tree::at(after, &path), detail));
        return;
    }
    for (index, (new, old)) in new.iter().zip(old).enumerate() {
        let parts = ["matchExpressions", "matchFields"];
        // An empty term matches nothing: a condition in it would widen the pod's choice.
        let was_empty = parts.iter().all(|part| tree::items(old, &[part]).is_empty());
        let narrowed =
            parts.iter().all(|part| tree::items(new, &[part]).starts_with(tree::items(old, &[part])));
        if !narrowed || (was_empty && new != old) {
            let detail = "only additions are allowed (no mutations or deletions)";
            errors.push(FieldError::invalid(format!("{field}[{index}]"), new, detail));
        }
    }
}

/// Takes the node affinity of `before`, without leaving an empty affinity that was not there.
fn take_node_affinity(rest: &mut Value, before: &Value) {
    match before.get("affinity").and_then(|affinity| affinity.get("nodeAffinity")) {
        Some(old) => {
            tree::object(rest, "affinity").insert("nodeAffinity".into(), old.clone());
        }
        None => {
            let Some(affinity) = rest.get_mut("affinity").and_then(Value::as_object_mut) else { return };
            affinity.remove("nodeAffinity");
            if affinity.is_empty() && before.get("affinity").is_none() {
                tree::members(rest).remove("affinity");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changed(before: Value, patch: Value) -> Vec<String> {
        let mut base =
            json!({ "terminationGracePeriodSeconds": 30, "containers": [{ "name": "a", "image": "b:1" }] });
        base.as_object_mut().unwrap().extend(before.as_object().unwrap().clone());
        let mut after = base.clone();
        for (key, value) in patch.as_object().unwrap() {
            match value {
                Value::Null => drop(after.as_object_mut().unwrap().remove(key)),
                value => after[key] = value.clone(),
            }
        }
        let mut errors = Vec::new();
        validate(&after, &base, &mut errors);
        errors.into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn only_images_and_a_few_others_change() {
        let image = json!({ "containers": [{ "name": "a", "image": "b:2" }] });
        let name = json!({ "containers": [{ "name": "x", "image": "b:1" }] });
        let more = json!({ "containers": [{ "name": "a", "image": "b:1" }, { "name": "c", "image": "d" }] });
        assert_eq!(changed(json!({}), image), Vec::<String>::new());
        assert_eq!(changed(json!({}), name), ["spec"]);
        assert_eq!(changed(json!({}), more), ["spec.containers"]);
    }

    #[test]
    fn a_mirror_stays_a_mirror() {
        let pod =
            |value: &str| json!({ "metadata": { "annotations": { "kubernetes.io/config.mirror": value } } });
        let said = |new: &Value, old: &Value| {
            let mut errors = Vec::new();
            annotations(new, old, &mut errors);
            errors.into_iter().map(|error| error.message).collect::<Vec<_>>()
        };
        assert!(said(&pod("a"), &pod("a")).is_empty());
        assert_eq!(said(&pod("b"), &pod("a")), ["Forbidden: may not remove or update mirror pod annotation"]);
        assert_eq!(said(&pod("a"), &json!({})), ["Forbidden: may not add mirror pod annotation"]);
    }

    #[test]
    fn the_grace_period_stays() {
        assert_eq!(changed(json!({}), json!({ "terminationGracePeriodSeconds": 1 })), ["spec"]);
        assert_eq!(changed(json!({}), json!({ "terminationGracePeriodSeconds": 3600 })), ["spec"]);
        let negative = json!({ "terminationGracePeriodSeconds": -5 });
        assert!(changed(negative, json!({ "terminationGracePeriodSeconds": 1 })).is_empty());
    }

    #[test]
    fn a_deadline_only_gets_shorter() {
        let deadline = |seconds: Value| json!({ "activeDeadlineSeconds": seconds });
        assert!(changed(json!({}), deadline(json!(60))).is_empty());
        assert!(changed(deadline(json!(60)), deadline(json!(5))).is_empty());
        assert_eq!(changed(deadline(json!(60)), deadline(json!(61))), ["spec.activeDeadlineSeconds"]);
        assert_eq!(changed(deadline(json!(60)), deadline(Value::Null)), ["spec.activeDeadlineSeconds"]);
    }

    #[test]
    fn tolerations_come_and_last_longer_but_do_not_go() {
        let with = |seconds: i64| json!({ "tolerations": [{ "key": "a", "effect": "NoExecute", "tolerationSeconds": seconds }] });
        assert!(changed(with(5), with(9)).is_empty());
        assert_eq!(changed(with(5), json!({ "tolerations": [] })), ["spec.tolerations"]);
    }

    #[test]
    fn gates_only_go_and_a_gated_pod_is_narrowed_down() {
        let gated = |names: &[&str]| json!({ "schedulingGates": names.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>() });
        assert!(changed(gated(&["a", "b"]), gated(&["b"])).is_empty());
        assert!(changed(gated(&["a"]), gated(&[])).is_empty());
        assert_eq!(changed(gated(&["a"]), gated(&["a", "c"])), ["spec.schedulingGates[1].name"]);
        assert_eq!(changed(json!({}), gated(&["a"])), ["spec.schedulingGates[0].name"]);

        let selector = json!({ "nodeSelector": { "disk": "ssd" } });
        assert!(changed(gated(&["a"]), selector.clone()).is_empty());
        assert_eq!(changed(json!({}), selector.clone()), ["spec"]);
        let mut held = gated(&["a"]);
        held["nodeSelector"] = json!({ "disk": "hdd" });
        assert_eq!(changed(held, selector), ["spec.nodeSelector"]);

        let wants = |keys: &[&str]| {
            let all: Vec<Value> =
                keys.iter().map(|key| json!({ "key": key, "operator": "Exists" })).collect();
            json!({ "nodeAffinity": { REQUIRED: { "nodeSelectorTerms": [{ "matchExpressions": all }] } } })
        };
        assert!(changed(gated(&["a"]), json!({ "affinity": wants(&["x"]) })).is_empty());
        let mut held = gated(&["a"]);
        held["affinity"] = wants(&["x"]);
        assert!(changed(held.clone(), json!({ "affinity": wants(&["x", "y"]) })).is_empty());
        let term = format!("spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms[0]");
        assert_eq!(changed(held, json!({ "affinity": wants(&["y"]) })), [term]);
    }
}
