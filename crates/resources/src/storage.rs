//! storage.k8s.io. Source: `storage/validation/validation.go`, `storage/v1/defaults.go`.

use std::collections::HashSet;

use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::qualified_name_problems;
use apiserver::strategy::NameRule;
use apiserver::tree;
use serde_json::json;

use crate::at::{At, IMMUTABLE};
use crate::simple::Simple;
use crate::{claims, volume_sources};

const PARAMETERS_MAX: usize = 512;
const PARAMETER_BYTES_MAX: usize = 256 * 1024;
const NODE_ID_BYTES_MAX: usize = 256;
const MESSAGE_BYTES_MAX: usize = 1024;
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;
const ALLOCATABLE_SECONDS_MIN: i64 = 10;

/// How volumes are made.
pub(crate) const CLASSES: Simple = Simple {
    default: |class| {
        tree::set_default(class, "reclaimPolicy", "Delete");
        tree::set_default(class, "volumeBindingMode", "Immediate");
    },
    check: |class, errors| {
        driver_name(&class.get("provisioner"), errors);
        parameters(&class.get("parameters"), errors);
        class.get("reclaimPolicy").one_of_if_set(&["Delete", "Retain"], errors);
        let mode = class.get("volumeBindingMode");
        if mode.is_set() {
            mode.one_of(&["Immediate", "WaitForFirstConsumer"], errors);
        } else {
            errors.push(mode.required(""));
        }
        for term in class.each("allowedTopologies") {
            topology(&term, errors);
        }
    },
    frozen: &[&["parameters"], &["provisioner"], &["reclaimPolicy"], &["volumeBindingMode"]],
    ..Simple::PLAIN
};

fn driver_name(name: &At<'_>, errors: &mut FieldErrors) {
    if name.present("", errors) {
        let lower = name.text().to_lowercase();
        for detail in qualified_name_problems(&lower) {
            errors.push(FieldError::invalid(name.path.clone(), &json!(lower), &detail));
        }
    }
}

fn parameters(parameters: &At<'_>, errors: &mut FieldErrors) {
    if parameters.len() > PARAMETERS_MAX {
        errors.push(parameters.too_long(PARAMETERS_MAX));
        return;
    }
    let mut size = 0;
    for (key, value) in parameters.entries() {
        if key.is_empty() {
            let detail = "field can not be empty.";
            errors.push(FieldError::invalid(parameters.path.clone(), &json!(key), detail));
        }
        size += key.len() + value.text().len();
    }
    if size > PARAMETER_BYTES_MAX {
        errors.push(parameters.too_long(PARAMETER_BYTES_MAX));
    }
}

fn topology(term: &At<'_>, errors: &mut FieldErrors) {
    let mut keys: HashSet<&str> = HashSet::new();
    for expression in term.each("matchLabelExpressions") {
        let (key, values) = (expression.get("key"), expression.get("values"));
        if values.is_empty() {
            errors.push(values.required(""));
        }
        let mut seen: HashSet<&str> = HashSet::new();
        for value in values.items() {
            if seen.contains(&value.text()) {
                errors.push(value.duplicate());
            }
            seen.insert(value.text());
        }
        key.label_key(errors);
        if keys.contains(&key.text()) {
            errors.push(key.duplicate());
        }
        keys.insert(key.text());
    }
}

/// Which volumes are attached where.
pub(crate) const ATTACHMENTS: Simple = Simple {
    unconditional_update: false,
    check: |attachment, errors| {
        let spec = attachment.get("spec");
        volume_sources::csi_driver(&spec.get("attacher"), errors);
        let source = spec.get("source");
        let (inline, name) = (source.get("inlineVolumeSpec"), source.get("persistentVolumeName"));
        let detail = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
        match (inline.is_set(), name.is_set()) {
            (false, false) => errors.push(source.required(detail)),
            (true, true) => errors.push(source.forbidden(detail)),
            (true, false) => claims::validate_volume(&inline, true, errors),
            (false, true) => {
                if name.present("must specify non empty persistentVolumeName", errors) {
                    name.name(NameRule::Subdomain, errors);
                }
            }
        }
        spec.get("nodeName").name(NameRule::Subdomain, errors);
        attachment_status(attachment, errors);
    },
    status: |attachment, _, errors| attachment_status(attachment, errors),
    frozen: &[&["spec"]],
    ..Simple::PLAIN
};

fn attachment_status(attachment: &At<'_>, errors: &mut FieldErrors) {
    for failure in ["attachError", "detachError"] {
        let failure = attachment.down(&["status", failure]);
        if failure.get("message").text().len() > MESSAGE_BYTES_MAX {
            errors.push(failure.get("message").too_long(MESSAGE_BYTES_MAX));
        }
        failure.get("errorCode").between(0, i64::from(i32::MAX), errors);
    }
}

/// The CSI drivers of a node.
pub(crate) const NODES: Simple = Simple {
    unconditional_update: false,
    check: |node, errors| {
        let mut names: HashSet<&str> = HashSet::new();
        for driver in node.down(&["spec", "drivers"]).items() {
            let (name, id) = (driver.get("name"), driver.get("nodeID"));
            volume_sources::csi_driver(&name, errors);
            id.present("", errors);
            if id.text().len() > NODE_ID_BYTES_MAX {
                errors.push(id.invalid("must be 256 characters or less"));
            }
            driver.down(&["allocatable", "count"]).not_negative(errors);
            if names.contains(&name.text()) {
                errors.push(name.duplicate());
            }
            names.insert(name.text());
            let mut keys: HashSet<&str> = HashSet::new();
            for key in driver.each("topologyKeys") {
                let key = At::new(key.value, driver.path.clone());
                key.present("", errors);
                if keys.contains(&key.text()) {
                    errors.push(key.duplicate());
                }
                keys.insert(key.text());
                key.label_key(errors);
            }
        }
    },
    compare: |node, before, errors| {
        let settled = |driver: &At<'_>| {
            let mut driver = driver.value.clone();
            tree::members(&mut driver).remove("allocatable");
            driver
        };
        let drivers = node.down(&["spec", "drivers"]);
        for old in before.down(&["spec", "drivers"]).items() {
            let same = |new: &At<'_>| new.get("name").text() == old.get("name").text();
            if let Some(new) = drivers.items().find(same).filter(|new| settled(new) != settled(&old)) {
                errors.push(FieldError::invalid(drivers.path.clone(), new.value, IMMUTABLE));
            }
        }
    },
    ..Simple::PLAIN
};

/// What is known of a CSI driver.
pub(crate) const DRIVERS: Simple = Simple {
    unconditional_update: false,
    default: |driver| {
        let spec = tree::member(driver, "spec");
        tree::set_default(spec, "attachRequired", true);
        tree::set_default(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        if tree::items(spec, &["volumeLifecycleModes"]).is_empty() {
            tree::members(spec).insert("volumeLifecycleModes".into(), json!(["Persistent"]));
        }
        for flag in [
            "podInfoOnMount",
            "storageCapacity",
            "requiresRepublish",
            "seLinuxMount",
            "preventPodSchedulingIfMissing",
        ] {
            tree::set_default(spec, flag, false);
        }
    },
    check: |driver, errors| {
        let spec = driver.get("spec");
        spec.get("fsGroupPolicy").one_of_if_set(&["File", "None", "ReadWriteOnceWithFSType"], errors);
        let mut audiences: HashSet<&str> = HashSet::new();
        for request in spec.each("tokenRequests") {
            let (audience, life) = (request.get("audience"), request.get("expirationSeconds"));
            if audiences.contains(&audience.text()) {
                errors.push(FieldError::duplicate(audience.path.clone(), &json!(audience.text())));
                continue;
            }
            audiences.insert(audience.text());
            if life.is_set() && life.number() < TOKEN_SECONDS_MIN {
                errors.push(life.invalid("may not specify a duration less than 10 minutes"));
            }
            if life.number() > TOKEN_SECONDS_MAX {
                errors.push(life.invalid("may not specify a duration larger than 2^32 seconds"));
            }
        }
        for mode in spec.each("volumeLifecycleModes") {
            At::new(mode.value, spec.child("volumeLifecycleModes"))
                .one_of(&["Persistent", "Ephemeral"], errors);
        }
        let period = spec.get("nodeAllocatableUpdatePeriodSeconds");
        if period.is_set() && period.number() < ALLOCATABLE_SECONDS_MIN {
            errors.push(period.invalid("must be greater than or equal to 10 seconds"));
        }
        let secrets = spec.get("serviceAccountTokenInSecrets");
        if secrets.is_set() && spec.get("tokenRequests").is_empty() {
            let detail = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
            errors.push(secrets.invalid(detail));
        }
    },
    compare: |driver, before, errors| {
        // Upstream's path differs from the field's name.
        let attach = driver.down(&["spec", "attachRequired"]);
        At::new(attach.value, "spec.attachedRequired")
            .unchanged(&before.down(&["spec", "attachRequired"]), errors);
    },
    frozen: &[&["spec", "volumeLifecycleModes"]],
    ..Simple::PLAIN
};

/// What is left to be had of a class.
pub(crate) const CAPACITIES: Simple = Simple {
    unconditional_update: false,
    check: |capacity, errors| {
        capacity.get("nodeTopology").selector(errors);
        capacity.get("storageClassName").name(NameRule::Subdomain, errors);
        capacity.get("capacity").not_negative_quantity(errors);
    },
    frozen: &[&["nodeTopology"], &["storageClassName"]],
    ..Simple::PLAIN
};

/// What may be changed in a volume.
pub(crate) const ATTRIBUTES: Simple = Simple {
    check: |class, errors| {
        driver_name(&class.get("driverName"), errors);
        parameters(&class.get("parameters"), errors);
        if class.get("parameters").is_empty() {
            let detail = "must contain at least one key/value pair";
            errors.push(class.get("parameters").required(detail));
        }
    },
    compare: |class, before, errors| {
        for field in ["driverName", "parameters"] {
            if class.get(field).value != before.get(field).value {
                let detail = format!("updates to {field} are forbidden.");
                errors.push(class.get(field).forbidden(&detail));
            }
        }
    },
    ..Simple::PLAIN
};

#[cfg(test)]
mod tests {
    use apiserver::strategy::Strategy;
    use serde_json::Value;

    use super::*;
    use crate::at::said;

    fn causes(strategy: Simple, mut object: Value, old: Option<Value>) -> Vec<String> {
        let mut errors = Vec::new();
        strategy.default(&mut object);
        strategy.validate(&object, &mut errors);
        if let Some(mut old) = old {
            strategy.default(&mut old);
            strategy.validate_update(&object, &old, &mut errors);
        }
        said(&errors)
    }

    #[test]
    fn failures_are_upstreams() {
        let class = |provisioner: &str| json!({ "provisioner": provisioner });
        let rows = [
            (CLASSES, class("a.b/c"), None, vec![]),
            (CLASSES, class(""), None, vec!["provisioner: Required value"]),
            (
                CLASSES,
                class("a"),
                Some(class("b")),
                vec!["provisioner: Invalid value: \"a\": field is immutable"],
            ),
            (
                ATTACHMENTS,
                json!({ "spec": { "attacher": "a.b", "nodeName": "n", "source": {} } }),
                None,
                vec![
                    "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName",
                ],
            ),
            (
                DRIVERS,
                json!({ "spec": { "attachRequired": false } }),
                Some(json!({ "spec": {} })),
                vec!["spec.attachedRequired: Invalid value: false: field is immutable"],
            ),
            (
                ATTRIBUTES,
                json!({ "driverName": "a" }),
                None,
                vec!["parameters: Required value: must contain at least one key/value pair"],
            ),
            (
                NODES,
                json!({ "spec": { "drivers": [{ "name": "a", "nodeID": "x" }] } }),
                Some(json!({ "spec": { "drivers": [{ "name": "a", "nodeID": "y" }] } })),
                vec!["spec.drivers: Invalid value: {\"name\":\"a\",\"nodeID\":\"x\"}: field is immutable"],
            ),
        ];
        for (strategy, object, old, expected) in rows {
            assert_eq!(causes(strategy, object.clone(), old), expected, "{object}");
        }
    }
}
