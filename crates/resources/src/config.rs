//! Kinds with little of their own: ConfigMap, Secret, Lease, PriorityClass, ServiceAccount.

use std::time::Duration;

use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::{NameRule, Strategy};
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::At;
use crate::containers::config_key_problems;

/// All values of a ConfigMap or Secret together. Source: `MaxSecretSize`.
const DATA_BYTES_MAX: usize = 1024 * 1024;
/// No generation, and nothing else of their own.
pub(crate) struct Plain;

impl Strategy for Plain {
    fn generation(&self) -> bool {
        false
    }
}

/// Where nodes renew their leases. Source: `v1.NamespaceNodeLease`.
const NODE_LEASES: &str = "kube-node-lease";
/// For how long a heartbeat may wait for others: with thousands of nodes, this makes a tenth of the waits for the disk.
const HEARTBEAT_PATIENCE: Duration = Duration::from_millis(20);

/// Leases: heartbeats and elections.
pub(crate) struct Leases;

impl Strategy for Leases {
    fn generation(&self) -> bool {
        false
    }
    fn create_on_update(&self) -> bool {
        true
    }
    // An election is lost and won by version: overwriting blindly would break it.
    fn unconditional_update(&self) -> bool {
        false
    }
    fn patience(&self, namespace: &str) -> Duration {
        // Every node renews its lease each ten seconds, and is late after forty.
        if namespace == NODE_LEASES { HEARTBEAT_PATIENCE } else { Duration::ZERO }
    }
    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let duration = tree::at(object, &["spec", "leaseDurationSeconds"]);
        if duration.as_i64().is_some_and(|seconds| seconds <= 0) {
            errors.push(FieldError::invalid("spec.leaseDurationSeconds", duration, "must be greater than 0"));
        }
        At::object(object).down(&["spec", "leaseTransitions"]).not_negative(errors);
    }
}

/// Configuration.
pub(crate) struct ConfigMaps;

impl Strategy for ConfigMaps {
    fn generation(&self) -> bool {
        false
    }
    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let mut size = 0;
        for field in ["data", "binaryData"] {
            for (key, value) in tree::at(object, &[field]).as_object().into_iter().flatten() {
                check_key(key, &format!("{field}[{key}]"), errors);
                let other = if field == "data" { "binaryData" } else { "data" };
                if field == "data" && !tree::at(object, &[other, key]).is_null() {
                    errors.push(FieldError::invalid(
                        format!("{field}[{key}]"),
                        &json!(key),
                        "duplicate of key present in binaryData",
                    ));
                }
                let text = value.as_str().unwrap_or_default();
                size += if field == "data" { text.len() } else { bytes_of(text) };
            }
        }
        if size > DATA_BYTES_MAX {
            errors.push(FieldError::too_long("[]", DATA_BYTES_MAX));
        }
    }
    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        check_frozen(new, old, &["data", "binaryData"], errors);
    }
}

/// Secrets.
pub(crate) struct Secrets;

impl Strategy for Secrets {
    fn generation(&self) -> bool {
        false
    }

    /// `stringData` is for writing only: it goes into `data`.
    fn default(&self, object: &mut Value) {
        let Some(Value::Object(texts)) = tree::members(object).remove("stringData") else { return };
        for (key, text) in texts {
            let encoded = base64(text.as_str().unwrap_or_default().as_bytes());
            tree::object(object, "data").insert(key, encoded.into());
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let mut size = 0;
        for (key, value) in tree::at(object, &["data"]).as_object().into_iter().flatten() {
            check_key(key, &format!("data[{key}]"), errors);
            size += value.as_str().map_or(0, bytes_of);
        }
        if size > DATA_BYTES_MAX {
            errors.push(FieldError::too_long("data", DATA_BYTES_MAX));
        }
        check_kind(object, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let (after, before) = (tree::at(new, &["type"]), tree::at(old, &["type"]));
        if after != before {
            errors.push(FieldError::invalid("type", after, "field is immutable"));
        }
        check_frozen(new, old, &["data"], errors);
    }
}

/// How many bytes a text in base64 stands for.
fn bytes_of(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

/// Standard base64 of bytes.
fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Account that a token is of, by annotation.
const ACCOUNT: &str = "kubernetes.io/service-account.name";

/// What a Secret of a known type cannot do without.
fn check_kind(object: &Value, errors: &mut FieldErrors) {
    let data = At::object(object).get("data");
    let named = |key: &str| At::new(tree::at(data.value, &[key]), format!("data[{key}]"));
    let wanted: &[&str] = match tree::text(object, &["type"]) {
        "kubernetes.io/service-account-token" => {
            let account = tree::text(object, &["metadata", "annotations", ACCOUNT]);
            if account.is_empty() {
                errors.push(FieldError::required(format!("metadata.annotations[{ACCOUNT}]"), ""));
            }
            return;
        }
        "kubernetes.io/basic-auth" if data.has("username") || data.has("password") => return,
        "kubernetes.io/basic-auth" => &["username", "password"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => return,
    };
    for value in wanted.iter().map(|key| named(key)) {
        if !value.is_set() {
            errors.push(value.required(""));
        } else if value.path.starts_with("data[.docker")
            && let Some(problem) = no_object(value.text())
        {
            let shown = json!("<secret contents redacted>");
            errors.push(FieldError::invalid(value.path, &shown, &problem));
        }
    }
}

/// Why Go cannot read a value as a map; null is none to it.
fn no_object(encoded: &str) -> Option<String> {
    use base64::Engine;
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap_or_default();
    if let Some(problem) = api::decode::syntax_error(&decoded) {
        return Some(problem);
    }
    let found = match decoded.trim_ascii_start().first()? {
        b'{' | b'n' => return None,
        b'[' => "array",
        b'"' => "string",
        b't' | b'f' => "bool",
        _ => "number",
    };
    Some(format!("json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"))
}

fn check_key(key: &str, field: &str, errors: &mut FieldErrors) {
    for detail in config_key_problems(key) {
        errors.push(FieldError::invalid(field, &json!(key), &detail));
    }
}

/// What is declared immutable stays as it is.
fn check_frozen(new: &Value, old: &Value, fields: &[&str], errors: &mut FieldErrors) {
    if old.get("immutable") != Some(&Value::Bool(true)) {
        return;
    }
    if new.get("immutable") != Some(&Value::Bool(true)) {
        errors.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for field in fields {
        if tree::at(new, &[field]) != tree::at(old, &[field]) {
            errors.push(FieldError::forbidden(*field, "field is immutable when `immutable` is set"));
        }
    }
}

/// The classes that every cluster has, with their values.
const SYSTEM_CLASSES: [(&str, i64); 2] =
    [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

/// Whether a class is one of the system's own, as it must be. Source: `IsKnownSystemPriorityClass`.
fn known_system_class(class: &Value, name: &str, value: i64) -> Result<(), String> {
    let Some((_, wanted)) = SYSTEM_CLASSES.iter().find(|(known, _)| *known == name) else {
        return Err(format!("{name} is not a known system priority class"));
    };
    if value != *wanted {
        return Err(format!("value of {name} PriorityClass must be {wanted}"));
    }
    if tree::at(class, &["globalDefault"]) == &Value::Bool(true) {
        return Err(format!("globalDefault of {name} PriorityClass must be false"));
    }
    Ok(())
}

/// Priorities of pods.
pub(crate) struct PriorityClasses;

/// The largest value that users may give. Source: `scheduling.HighestUserDefinablePriority`.
const PRIORITY_MAX: i64 = 1_000_000_000;

impl Strategy for PriorityClasses {
    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }
    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let name = tree::text(object, &["metadata", "name"]);
        let value = tree::at(object, &["value"]).as_i64().unwrap_or(0);
        if name.starts_with("system-") {
            if let Err(why) = known_system_class(object, name, value) {
                let detail = format!(
                    "priority class names with 'system-' prefix are reserved for system use only. error: {why}"
                );
                errors.push(FieldError::forbidden("metadata.name", &detail));
            }
        } else if value > PRIORITY_MAX {
            let detail = format!("maximum allowed value of a user defined priority is {PRIORITY_MAX}");
            errors.push(FieldError::forbidden("value", &detail));
        }
        let policy = At::object(object).get("preemptionPolicy");
        policy.one_of_if_set(&["PreemptLowerPriority", "Never"], errors);
    }
    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        if tree::at(new, &["value"]) != tree::at(old, &["value"]) {
            errors.push(FieldError::forbidden("value", "may not be changed in an update."));
        }
        At::object(new).keeps(&At::object(old), &["preemptionPolicy"], errors);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::at::said;

    #[test]
    fn what_a_registry_is_entered_with_is_json() {
        for (text, wanted) in [
            (r#"{"auths":{}}"#, None),
            ("x", Some("invalid character 'x' looking for beginning of value")),
            ("", Some("unexpected end of JSON input")),
            ("[]", Some("json: cannot unmarshal array into Go value of type map[string]interface {}")),
        ] {
            let secret = json!({ "type": "kubernetes.io/dockerconfigjson",
                "data": { ".dockerconfigjson": base64(text.as_bytes()) } });
            let mut errors = Vec::new();
            Secrets.validate(&secret, &mut errors);
            let wanted: Vec<String> = wanted
                .iter()
                .map(|why| {
                    format!("data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": {why}")
                })
                .collect();
            assert_eq!(said(&errors), wanted, "{text}");
        }
    }

    #[test]
    fn the_systems_priority_classes_are_its_own() {
        let prefix = "priority class names with 'system-' prefix are reserved for system use only. error: ";
        for (name, value, global, wanted) in [
            ("own", 1, true, None),
            ("system-node-critical", 2_000_001_000, false, None),
            ("system-x", 1, false, Some("system-x is not a known system priority class")),
            (
                "system-node-critical",
                1,
                false,
                Some("value of system-node-critical PriorityClass must be 2000001000"),
            ),
            (
                "system-cluster-critical",
                2_000_000_000,
                true,
                Some("globalDefault of system-cluster-critical PriorityClass must be false"),
            ),
        ] {
            let class = json!({ "metadata": { "name": name }, "value": value, "globalDefault": global });
            let mut errors = Vec::new();
            PriorityClasses.validate(&class, &mut errors);
            let wanted: Vec<String> =
                wanted.iter().map(|why| format!("metadata.name: Forbidden: {prefix}{why}")).collect();
            assert_eq!(said(&errors), wanted);
        }
    }
}
