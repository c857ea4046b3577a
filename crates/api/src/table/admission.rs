//! Admission webhooks and policies, and flow control.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Cell, Column, Family, NAME, at, column, number, selector, text};

pub(super) const KINDS: Family = &[
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration", WEBHOOKS),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration", WEBHOOKS),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy", VALIDATING_POLICY),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding", POLICY_BINDING),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy", MUTATING_POLICY),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding", POLICY_BINDING),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema", FLOW_SCHEMA),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", PRIORITY_LEVEL),
];

const WEBHOOKS: &[Column] = &[NAME, column("Webhooks", "integer", Cell::Count(&["webhooks"])), AGE];
const VALIDATING_POLICY: &[Column] = &[
    NAME,
    column("Validations", "integer", Cell::Count(&["spec", "validations"])),
    column("ParamKind", "string", Cell::Of(parameter_kind)),
    AGE,
];
const MUTATING_POLICY: &[Column] = &[
    NAME,
    column("Mutations", "integer", Cell::Count(&["spec", "mutations"])),
    column("ParamKind", "string", Cell::Of(parameter_kind)),
    AGE,
];
const POLICY_BINDING: &[Column] = &[
    NAME,
    column("PolicyName", "string", Cell::Text(&["spec", "policyName"])),
    column("ParamRef", "string", Cell::Of(parameters)),
    AGE,
];
const FLOW_SCHEMA: &[Column] = &[
    NAME,
    column("PriorityLevel", "string", Cell::Text(&["spec", "priorityLevelConfiguration", "name"])),
    column(
        "MatchingPrecedence",
        "string",
        Cell::Of(|object, _| json!(number(object, &["spec", "matchingPrecedence"]))),
    ),
    column("DistinguisherMethod", "string", Cell::Path(&["spec", "distinguisherMethod", "type"])),
    AGE,
    column("MissingPL", "string", Cell::Of(missing_level)),
];
const PRIORITY_LEVEL: &[Column] = &[
    NAME,
    column("Type", "string", Cell::Text(&["spec", "type"])),
    column(
        "NominalConcurrencyShares",
        "string",
        Cell::Path(&["spec", "limited", "nominalConcurrencyShares"]),
    ),
    column("Queues", "string", Cell::Path(&["spec", "limited", "limitResponse", "queuing", "queues"])),
    column("HandSize", "string", Cell::Path(&["spec", "limited", "limitResponse", "queuing", "handSize"])),
    column(
        "QueueLengthLimit",
        "string",
        Cell::Path(&["spec", "limited", "limitResponse", "queuing", "queueLengthLimit"]),
    ),
    AGE,
];

fn parameter_kind(object: &Value, _: Timestamp) -> Value {
    match at(object, &["spec", "paramKind"]) {
        Value::Null => json!("<unset>"),
        kind => json!(format!("{}/{}", text(kind, &["apiVersion"]), text(kind, &["kind"]))),
    }
}

fn parameters(object: &Value, _: Timestamp) -> Value {
    let reference = at(object, &["spec", "paramRef"]);
    match (text(reference, &["namespace"]), text(reference, &["name"])) {
        (_, "") if at(reference, &["selector"]).is_object() => selector(at(reference, &["selector"])),
        (_, "") => json!("<unset>"),
        ("", name) => json!(format!("*/{name}")),
        (namespace, name) => json!(format!("{namespace}/{name}")),
    }
}

fn missing_level(object: &Value, _: Timestamp) -> Value {
    match super::condition(object, "Dangling") {
        Some(condition) => json!(text(condition, &["status"])),
        None => json!("?"),
    }
}
