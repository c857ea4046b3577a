//! PersistentVolumes and PersistentVolumeClaims. Source: `core/validation/validation.go`, `core/v1/defaults.go`,
//! `registry/core/persistentvolume(claim)`.

use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::{NameRule, Strategy};
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::{At, POSITIVE};
use crate::{affinity, volume_sources};

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
/// The fields of a PersistentVolume's spec that are no source.
const NO_SOURCES: [&str; 10] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
    "apiVersion",
];

const EXPAND_SECRET: &str = "controllerExpandSecretRef";
/// Labels of nodes that got another name.
const RENAMED: [(&str, &str); 5] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
];
/// How far a claim's growth may be.
const RESIZES: [&str; 5] = [
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizePending",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
];

/// Storage of the cluster.
pub(crate) struct Volumes;

impl Strategy for Volumes {
    fn generation(&self) -> bool {
        false
    }

    fn default(&self, object: &mut Value) {
        let spec = tree::member(object, "spec");
        tree::set_default(spec, "persistentVolumeReclaimPolicy", "Retain");
        tree::set_default(spec, "volumeMode", "Filesystem");
        tree::set_default(tree::member(object, "status"), "phase", "Pending");
    }

    fn prepare_create(&self, object: &mut Value) {
        tree::object(object, "status").insert("phase".into(), "Pending".into());
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        validate_volume(&At::object(object).get("spec"), false, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let (spec, before) = (At::object(new).get("spec"), At::object(old).get("spec"));
        let may_come = !before.down(&["csi", EXPAND_SECRET]).is_set();
        if sources(spec.value, may_come) != sources(before.value, may_come) {
            let detail = "spec.persistentvolumesource is immutable after creation";
            errors.push(FieldError::forbidden("spec.persistentvolumesource", detail));
        }
        let mode = At::new(spec.get("volumeMode").value, "volumeMode");
        mode.unchanged(&before.get("volumeMode"), errors);
        if before.has("nodeAffinity") {
            let affinity = At::new(spec.get("nodeAffinity").value, "nodeAffinity");
            node_affinity(&affinity, before.get("nodeAffinity").value, errors);
        }
        let class = spec.get("volumeAttributesClassName");
        if !class.is_set() && before.has("volumeAttributesClassName") {
            errors.push(class.forbidden("update from non-nil value to nil is forbidden"));
        }
    }
}

/// A volume's sources, without a secret for its expansion where that may come later.
fn sources(spec: &Value, may_come: bool) -> Value {
    let mut sources = spec.clone();
    let fields = tree::members(&mut sources);
    fields.retain(|key, _| !NO_SOURCES.contains(&key.as_str()));
    if let Some(csi) = fields.get_mut("csi").and_then(Value::as_object_mut).filter(|_| may_come) {
        csi.remove(EXPAND_SECRET);
    }
    sources
}

/// What is wrong with a PersistentVolume's spec; `inline`: one that a VolumeAttachment carries.
pub(crate) fn validate_volume(spec: &At<'_>, inline: bool, errors: &mut FieldErrors) {
    if inline {
        for part in ["claimRef", "capacity", "nodeAffinity", "storageClassName"] {
            if spec.has(part) {
                let detail = "may not be specified in the context of inline volumes";
                errors.push(spec.get(part).forbidden(detail));
            }
        }
        if !spec.has("csi") {
            errors.push(spec.get("csi").required("has to be specified in the context of inline volumes"));
        }
    }
    if spec.get("accessModes").is_empty() {
        errors.push(spec.get("accessModes").required(""));
    }
    access_modes(&spec.get("accessModes"), errors);
    if !inline {
        let capacity = spec.get("capacity");
        if capacity.is_empty() {
            errors.push(capacity.required(""));
        }
        if !capacity.has("storage") || capacity.len() > 1 {
            errors.push(capacity.not_supported(&["storage"]));
        }
        capacity.entries().for_each(|(_, amount)| positive(&amount, errors));
        let known = ["Delete", "Recycle", "Retain"];
        spec.get("persistentVolumeReclaimPolicy").one_of_if_set(&known, errors);
        let required = spec.down(&["nodeAffinity", "required"]);
        if required.is_set() {
            affinity::node_selector(&required, errors);
        } else if spec.has("nodeAffinity") {
            errors.push(required.required("must specify required node constraints"));
        }
        if spec.has("local") && !required.is_set() {
            let detail = "Local volume requires node affinity";
            errors.push(spec.get("nodeAffinity").required(detail));
        }
        spec.get("storageClassName").name_if_set(NameRule::Subdomain, errors);
        spec.get("volumeMode").one_of_if_set(&VOLUME_MODES, errors);
    }
    volume_sources::validate(spec, &NO_SOURCES, true, errors);
    let policy = spec.get("persistentVolumeReclaimPolicy");
    let whole_host = spec.has("hostPath") && is_root(spec.down(&["hostPath", "path"]).text());
    if whole_host && policy.text() == "Recycle" {
        errors.push(policy.forbidden("may not be 'recycle' for a hostPath mount of '/'"));
    }
    if inline {
        inline_volume(spec, errors);
    }
    let class = spec.get("volumeAttributesClassName");
    if class.is_set() {
        if class.present("an empty string is disallowed", errors) {
            class.name(NameRule::Subdomain, errors);
        }
        if !spec.has("csi") {
            let detail = "has to be specified when using volumeAttributesClassName";
            errors.push(spec.get("csi").required(detail));
        }
    }
}

/// What an inline volume is beside its source.
fn inline_volume(spec: &At<'_>, errors: &mut FieldErrors) {
    for (field, only, words) in [
        ("persistentVolumeReclaimPolicy", "Retain", "may only be Retain"),
        ("volumeMode", "Filesystem", "may not specify volumeMode other than Filesystem"),
    ] {
        let field = spec.get(field);
        if !field.text().is_empty() && field.text() != only {
            errors.push(field.forbidden(&format!("{words} in the context of inline volumes")));
        }
    }
}

/// Whether a path leads to the root of its file system.
fn is_root(path: &str) -> bool {
    let depth = path.split('/').fold(0_usize, |depth, step| match step {
        "" | "." => depth,
        ".." => depth.saturating_sub(1),
        _ => depth + 1,
    });
    path.starts_with('/') && depth == 0
}

/// Topology under its old label may be named by the new one. Source: `validatePvNodeAffinity`.
fn node_affinity(new: &At<'_>, old: &Value, errors: &mut FieldErrors) {
    let mut before = old.clone();
    let terms = before.pointer_mut("/required/nodeSelectorTerms").and_then(Value::as_array_mut);
    let now = new.down(&["required", "nodeSelectorTerms"]);
    for (term, now) in terms.into_iter().flatten().zip(now.items()) {
        let known = term.get_mut("matchExpressions").and_then(Value::as_array_mut);
        for (known, now) in known.into_iter().flatten().zip(now.each("matchExpressions")) {
            let key = now.get("key").text();
            if RENAMED.iter().any(|(old, new)| tree::text(known, &["key"]) == *old && key == *new) {
                known["key"] = key.into();
            }
        }
    }
    new.unchanged(&At::new(&before, ""), errors);
}

fn access_modes(modes: &At<'_>, errors: &mut FieldErrors) {
    for mode in modes.items() {
        At::new(mode.value, modes.path.clone()).one_of(&ACCESS_MODES, errors);
    }
    let texts = modes.texts();
    if texts.contains(&"ReadWriteOncePod") && texts.iter().any(|mode| ACCESS_MODES[..3].contains(mode)) {
        errors.push(modes.forbidden("may not use ReadWriteOncePod with other access modes"));
    }
}

fn positive(amount: &At<'_>, errors: &mut FieldErrors) {
    if amount.quantity().is_none_or(|quantity| quantity.is_negative() || quantity.milli_value() == 0) {
        errors.push(amount.invalid(POSITIVE));
    }
}

/// Wishes for storage.
pub(crate) struct Claims;

impl Strategy for Claims {
    fn generation(&self) -> bool {
        false
    }

    fn default(&self, object: &mut Value) {
        default(object);
        tree::set_default(tree::member(object, "status"), "phase", "Pending");
    }

    fn prepare_create(&self, object: &mut Value) {
        tree::object(object, "status").insert("phase".into(), "Pending".into());
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        validate_spec(&At::object(object).get("spec"), errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        update(new, old, errors);
    }

    fn validate_status(&self, new: &Value, _: &Value, errors: &mut FieldErrors) {
        for (_, amount) in At::object(new).down(&["status", "capacity"]).entries() {
            amount.not_negative_quantity(errors);
        }
        let status = At::object(new).get("status");
        for (resource, state) in status.get("allocatedResourceStatuses").entries() {
            if !RESIZES.contains(&state.text()) {
                // Upstream shows the resource, and the field by another name.
                let mut known = RESIZES;
                known.sort_unstable();
                let field = "status.allocatedResourceStatus";
                errors.push(FieldError::not_supported(field, &json!(resource), &known));
            }
        }
        for (_, amount) in status.get("allocatedResources").entries() {
            amount.not_negative_quantity(errors);
        }
    }
}

/// Defaults of a claim, also of one in a template.
pub(crate) fn default(claim: &mut Value) {
    let spec = tree::member(claim, "spec");
    tree::set_default(spec, "volumeMode", "Filesystem");
    // The old and the new name of where the content comes from are kept in step.
    let (source, reference) =
        (tree::at(spec, &["dataSource"]).clone(), tree::at(spec, &["dataSourceRef"]).clone());
    if source.is_null() && !reference.is_null() && tree::text(&reference, &["namespace"]).is_empty() {
        let mut source = reference;
        tree::members(&mut source).remove("namespace");
        tree::members(spec).insert("dataSource".into(), source);
    } else if !source.is_null() && reference.is_null() {
        tree::members(spec).insert("dataSourceRef".into(), source);
    }
}

/// What is wrong with a claim's spec.
pub(crate) fn validate_spec(spec: &At<'_>, errors: &mut FieldErrors) {
    if spec.get("accessModes").is_empty() {
        errors.push(spec.get("accessModes").required("at least 1 access mode is required"));
    }
    spec.get("selector").selector(errors);
    access_modes(&spec.get("accessModes"), errors);
    let amount =
        At::new(spec.down(&["resources", "requests", "storage"]).value, spec.child("resources[storage]"));
    if amount.is_set() {
        positive(&amount, errors);
    } else {
        errors.push(amount.required(""));
    }
    spec.get("storageClassName").name_if_set(NameRule::Subdomain, errors);
    spec.get("volumeMode").one_of_if_set(&VOLUME_MODES, errors);
    let (source, reference) = (spec.get("dataSource"), spec.get("dataSourceRef"));
    for one in [&source, &reference].into_iter().filter(|one| one.is_set()) {
        one.get("name").present("", errors);
        one.get("kind").present("", errors);
        let kind = one.get("kind").text();
        if one.get("apiGroup").text().is_empty() && kind != "PersistentVolumeClaim" {
            let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            errors.push(FieldError::invalid(one.path.clone(), &json!(kind), detail));
        }
        one.get("apiGroup").name_if_set(NameRule::Subdomain, errors);
        one.get("namespace").name_if_set(NameRule::Label, errors);
    }
    if source.is_set() && reference.is_set() {
        let path = json!(source.path);
        if !reference.get("namespace").text().is_empty() {
            let detail = "may not be specified when dataSourceRef.namespace is specified";
            errors.push(FieldError::invalid(spec.path.clone(), &path, detail));
        } else if ["apiGroup", "kind", "name"]
            .iter()
            .any(|part| source.get(part).value != reference.get(part).value)
        {
            errors.push(FieldError::invalid(spec.path.clone(), &path, "must match dataSourceRef"));
        }
    }
    spec.get("volumeAttributesClassName").name_if_set(NameRule::Subdomain, errors);
}

/// A claim is what it was; a bound one may grow and change its class of attributes.
fn update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (claim, before) = (At::object(new), At::object(old));
    let mut allowed = tree::at(old, &["spec"]).clone();
    let spec = claim.get("spec");
    if before.down(&["spec", "volumeName"]).text().is_empty() {
        tree::copy(spec.value, &mut allowed, "volumeName");
    }
    let annotation =
        |object: &At<'_>| object.down(&["metadata", "annotations", CLASS_ANNOTATION]).text().to_owned();
    let (class, said) = (spec.get("storageClassName").text(), annotation(&before));
    if !before.down(&["spec", "storageClassName"]).is_set() && (said.is_empty() || said == class) {
        tree::copy(spec.value, &mut allowed, "storageClassName");
    }
    if annotation(&claim) != said && !(annotation(&claim).is_empty() && class == said) {
        let field = format!("metadata.annotations.{CLASS_ANNOTATION}");
        errors.push(FieldError::invalid(field, &json!(annotation(&claim)), crate::at::IMMUTABLE));
    }
    if before.down(&["status", "phase"]).text() == "Bound" {
        tree::copy(spec.value, &mut allowed, "volumeAttributesClassName");
        let requests = tree::object(tree::member(&mut allowed, "resources"), "requests");
        requests.insert("storage".into(), spec.down(&["resources", "requests", "storage"]).value.clone());
    }
    if allowed != *spec.value {
        let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound \
                      claims";
        errors.push(FieldError::forbidden("spec", detail));
    }
    let size = spec.down(&["resources", "requests", "storage"]);
    let was = before.down(&["spec", "resources", "requests", "storage"]);
    let has = before.down(&["status", "capacity", "storage"]);
    if let (Some(now), Some(then)) = (size.quantity(), was.quantity())
        && now < then
        && has.quantity().is_none_or(|capacity| now <= capacity)
    {
        errors.push(size.forbidden("field can not be less than status.capacity"));
    }
    let mode = At::new(spec.get("volumeMode").value, "volumeMode");
    mode.unchanged(&before.down(&["spec", "volumeMode"]), errors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::at::said;

    fn claim(storage: &str, class: &str, phase: &str) -> Value {
        let mut claim = json!({ "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": { "requests": { "storage": storage } } },
            "status": { "phase": phase, "capacity": { "storage": "1Gi" } } });
        Claims.default(&mut claim);
        claim
    }

    #[test]
    fn claims_name_their_mode_and_size() {
        let causes = |spec: Value| {
            let mut errors = Vec::new();
            Claims.validate(&json!({ "spec": spec }), &mut errors);
            said(&errors)
        };
        assert_eq!(
            causes(json!({})),
            [
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value",
            ]
        );
        assert_eq!(
            causes(json!({ "accessModes": ["Any"], "resources": { "requests": { "storage": "0" } } })),
            [
                "spec.accessModes: Unsupported value: \"Any\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \
                 \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                "spec.resources[storage]: Invalid value: \"0\": must be greater than 0",
            ]
        );
    }

    #[test]
    fn a_volume_stays_where_it_is() {
        let volume = |key: &str, values: &[&str]| {
            let condition = json!({ "key": key, "operator": "In", "values": values });
            json!({ "spec": { "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [condition] }] } } } })
        };
        let fields = |new: Value, old: &Value| {
            let mut errors = Vec::new();
            Volumes.validate_update(&new, old, &mut errors);
            errors.into_iter().map(|error| error.field).collect::<Vec<_>>()
        };
        let (old, new) = ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone");
        assert_eq!(fields(volume(new, &["a"]), &volume(old, &["a"])), [""; 0]);
        assert_eq!(fields(volume(new, &["a"]), &json!({ "spec": {} })), [""; 0]);
        assert_eq!(fields(volume(new, &["b"]), &volume(old, &["a"])), ["nodeAffinity"]);
        assert_eq!(fields(volume(old, &["a"]), &volume(new, &["a"])), ["nodeAffinity"]);
        assert_eq!(fields(json!({ "spec": {} }), &volume(new, &["a"])), ["nodeAffinity"]);
    }

    #[test]
    fn only_bound_claims_grow() {
        let fields = |new: Value, old: Value| {
            let mut errors = Vec::new();
            Claims.validate_update(&new, &old, &mut errors);
            errors.into_iter().map(|error| error.field).collect::<Vec<_>>()
        };
        assert!(fields(claim("2Gi", "a", "Bound"), claim("1Gi", "a", "Bound")).is_empty());
        assert_eq!(fields(claim("2Gi", "a", "Pending"), claim("1Gi", "a", "Pending")), ["spec"]);
        assert_eq!(fields(claim("1Gi", "b", "Bound"), claim("1Gi", "a", "Bound")), ["spec"]);
        assert_eq!(
            fields(claim("1Gi", "a", "Bound"), claim("2Gi", "a", "Bound")),
            ["spec.resources.requests.storage"]
        );
    }

    #[test]
    fn volumes_have_one_source() {
        let causes = |source: Value| {
            let mut spec = json!({ "accessModes": ["ReadWriteOnce"], "capacity": { "storage": "1Gi" } });
            spec.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
            let mut errors = Vec::new();
            Volumes.validate(&json!({ "spec": spec }), &mut errors);
            said(&errors)
        };
        assert!(causes(json!({ "hostPath": { "path": "/a" } })).is_empty());
        assert_eq!(causes(json!({})), ["spec: Required value: must specify a volume type"]);
        assert_eq!(
            causes(json!({ "csi": { "driver": "a" }, "nfs": {} })),
            [
                "spec.nfs: Forbidden: may not specify more than 1 volume type",
                "spec.csi.volumeHandle: Required value",
            ]
        );
        assert_eq!(
            causes(json!({ "local": { "path": "/a" } })),
            ["spec.nodeAffinity: Required value: Local volume requires node affinity"]
        );
    }
}
