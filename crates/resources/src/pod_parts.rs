//! What requests to `pods/ephemeralcontainers` and `pods/resize` may change.
//! Source: `ValidatePodEphemeralContainersUpdate`, `ValidatePodResize`, `registry/core/pod/strategy.go`.

use apiserver::field::{FieldError, FieldErrors};
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::At;
use crate::pods::qos_class;

const MIRROR: &str = "kubernetes.io/config.mirror";
/// The resources that can change while a container runs.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];
const LISTS: [&str; 2] = ["containers", "initContainers"];

/// Puts the resources that are wanted into the pod. Containers that do not fit together stay as they are wanted, so that
/// validation sees them.
pub(crate) fn take_resources(wanted: &Value, pod: &mut Value) {
    let spec = tree::member(pod, "spec");
    tree::copy(tree::at(wanted, &["spec"]), spec, "resources");
    for list in LISTS {
        let new = tree::items(wanted, &["spec", list]);
        let names = |items: &[Value]| -> Vec<Value> {
            items.iter().map(|item| tree::at(item, &["name"]).clone()).collect()
        };
        let Some(old) = spec.get_mut(list).and_then(Value::as_array_mut) else { continue };
        if names(old) != names(new) {
            *old = new.to_vec();
            continue;
        }
        for (container, new) in old.iter_mut().zip(new) {
            tree::copy(new, container, "resources");
            tree::copy(new, container, "resizePolicy");
        }
    }
}

fn is_mirror(pod: &Value) -> bool {
    !tree::at(pod, &["metadata", "annotations", MIRROR]).is_null()
}

/// Ephemeral containers come; none goes and none changes.
pub(crate) fn ephemeral_containers(new: &Value, old: &Value, errors: &mut FieldErrors) {
    if is_mirror(old) {
        errors.push(FieldError::forbidden("", "static pods do not support ephemeral containers"));
        return;
    }
    let path = ["spec", "ephemeralContainers"];
    let field = path.join(".");
    for before in tree::items(old, &path) {
        let name = tree::text(before, &["name"]);
        let same = |after: &&Value| tree::text(after, &["name"]) == name;
        match tree::items(new, &path).iter().find(same) {
            None => {
                let detail = format!("existing ephemeral containers {name:?} may not be removed\n");
                errors.push(FieldError::forbidden(field.clone(), &detail));
            }
            Some(after) if after != before => {
                let detail = format!("existing ephemeral containers {name:?} may not be changed\n");
                errors.push(FieldError::forbidden(field.clone(), &detail));
            }
            Some(_) => {}
        }
    }
}

/// Only CPU and memory change, and none of them goes.
pub(crate) fn resize(new: &Value, old: &Value, errors: &mut FieldErrors) {
    if is_mirror(old) {
        errors.push(FieldError::forbidden("", "static pods cannot be resized"));
        return;
    }
    let (spec, before) = (At::object(new).get("spec"), At::object(old).get("spec"));
    if qos_class(new) != qos_class(old) {
        let class = tree::at(new, &["status", "qosClass"]).clone();
        let detail = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid("spec", &class, detail));
    }
    if !node_resizes(old) {
        errors.push(spec.forbidden("Pod running on node without support for resize"));
    }
    if !same_containers(&spec, &before, errors) {
        return;
    }
    for list in LISTS {
        for (container, before) in spec.each(list).zip(before.each(list)) {
            let (resources, held) = (container.get("resources"), before.get("resources"));
            for (part, what) in [("requests", "resource requests"), ("limits", "resource limits")] {
                if held.get(part).entries().any(|(name, _)| !resources.get(part).has(name)) {
                    let detail = format!("{what} cannot be removed");
                    errors.push(resources.get(part).forbidden(&detail));
                }
            }
            if fixed(resources.value) != fixed(held.value) {
                errors.push(spec.forbidden("only cpu and memory resources are mutable"));
            }
        }
    }
}

/// Whether the pod's node says what its containers have: one that does not cannot change it either.
fn node_resizes(pod: &Value) -> bool {
    let statuses = tree::items(pod, &["status", "containerStatuses"]);
    let running = statuses.iter().find(|status| !tree::at(status, &["state", "running"]).is_null());
    running.is_none_or(|status| !tree::at(status, &["resources"]).is_null())
}

fn same_containers(spec: &At<'_>, before: &At<'_>, errors: &mut FieldErrors) -> bool {
    let known = errors.len();
    for list in LISTS {
        if spec.get(list).len() != before.get(list).len() {
            let detail = format!("{list} may not be added or removed on resize");
            errors.push(spec.get(list).forbidden(&detail));
            continue;
        }
        for (container, before) in spec.each(list).zip(before.each(list)) {
            if container.get("name").text() != before.get("name").text() {
                let detail = format!("{list} may not be renamed or reordered on resize");
                errors.push(container.get("name").forbidden(&detail));
            }
        }
    }
    errors.len() == known
}

/// Resources without those that can change.
fn fixed(resources: &Value) -> Value {
    let rest = |part: &str| {
        let mut amounts = tree::at(resources, &[part]).as_object().cloned().unwrap_or_default();
        amounts.retain(|name, _| !RESIZABLE.contains(&name.as_str()));
        Value::Object(amounts)
    };
    json!([rest("requests"), rest("limits")])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::at::said;

    fn pod(containers: Value) -> Value {
        json!({ "spec": { "containers": containers }, "status": { "qosClass": "Burstable" } })
    }

    #[test]
    fn ephemeral_containers_only_come() {
        let with = |containers: Value| json!({ "spec": { "ephemeralContainers": containers } });
        let rows = [
            (json!([]), json!([{ "name": "a" }]), None),
            (json!([{ "name": "a" }]), json!([{ "name": "a" }, { "name": "b" }]), None),
            (
                json!([{ "name": "a" }]),
                json!([]),
                Some("existing ephemeral containers \"a\" may not be removed\n"),
            ),
            (
                json!([{ "name": "a" }]),
                json!([{ "name": "a", "image": "b" }]),
                Some("existing ephemeral containers \"a\" may not be changed\n"),
            ),
        ];
        for (old, new, detail) in rows {
            let mut errors = Vec::new();
            ephemeral_containers(&with(new), &with(old), &mut errors);
            let expected: Vec<String> = detail
                .iter()
                .map(|detail| format!("spec.ephemeralContainers: Forbidden: {detail}"))
                .collect();
            assert_eq!(said(&errors), expected);
        }
    }

    #[test]
    fn only_amounts_change_and_none_goes() {
        let with = |resources: Value| pod(json!([{ "name": "a", "resources": resources }]));
        let old = with(json!({ "requests": { "cpu": "1", "disk": "1" } }));
        let rows = [
            (with(json!({ "requests": { "cpu": "2", "disk": "1" } })), vec![]),
            (
                with(json!({ "requests": { "cpu": "1" } })),
                vec![
                    "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed",
                    "spec: Forbidden: only cpu and memory resources are mutable",
                ],
            ),
            (
                pod(json!([{ "name": "b", "resources": { "requests": { "cpu": "1", "disk": "1" } } }])),
                vec![
                    "spec.containers[0].name: Forbidden: containers may not be renamed or reordered on resize",
                ],
            ),
        ];
        for (new, expected) in rows {
            let mut errors = Vec::new();
            resize(&new, &old, &mut errors);
            assert_eq!(said(&errors), expected);
        }
    }

    #[test]
    fn a_resize_takes_nothing_but_resources() {
        let mut present = pod(json!([{ "name": "a", "image": "x", "resources": {} }]));
        let wanted = pod(json!([{ "name": "a", "image": "y", "resources": { "limits": { "cpu": "1" } } }]));
        take_resources(&wanted, &mut present);
        assert_eq!(
            present["spec"]["containers"],
            json!([{ "name": "a", "image": "x", "resources": { "limits": { "cpu": "1" } } }])
        );
    }
}
