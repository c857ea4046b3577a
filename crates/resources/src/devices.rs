//! Devices (DRA): what drivers offer, its classes, and claims to some of it. Source: `resource/validation/validation.go`.

use std::collections::{BTreeMap, HashSet};

use apiserver::field::{FieldError, FieldErrors};
use apiserver::names;
use apiserver::strategy::NameRule;
use apiserver::{rfc3339, tree};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::at::At;
use crate::device_slices::{each_once, pool_name};
use crate::simple::{Ratcheting, Simple, fill};
use crate::{admin_access, claim_status, expressions, volume_sources};

const REQUESTS_MAX: usize = 32;
const CHOICES_MAX: usize = 8;
const CONSTRAINTS_MAX: usize = 32;
const CONFIGS_MAX: usize = 32;
const SELECTORS_MAX: usize = 32;
const TOLERATIONS_MAX: usize = 16;
/// In the status of a device or of a rule.
pub(crate) const STATUS_CONDITIONS_MAX: usize = 8;
const PARAMETERS_BYTES_MAX: usize = 10 * 1024;
const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];
const IDENTIFIER_BYTES_MAX: usize = 32;
const IDENTIFIER: &str = "a valid C identifier must start with alphabetic character or '_', followed by a string of \
                          alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for \
                          validation is '[A-Za-z_][A-Za-z0-9_]*')";
const REFERENCE: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
const ONE_KIND: &str = "exactly one of `exactly` or `firstAvailable` is required";
/// Upstream's words where neither is set, too.
const ONE_ATTRIBUTE: &str =
    "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";

/// The requests of a claim by name, with the names of their choices.
pub(crate) type Names<'v> = BTreeMap<&'v str, Vec<&'v str>>;

/// Devices that are wanted.
pub(crate) const CLAIMS: Simple = Simple {
    fresh: |claim, errors| check_claim(&claim.get("spec"), errors),
    frozen: &[&["spec"]],
    lengthy: true,
    default: |claim| default_claim(tree::member(claim, "spec")),
    prepare_status: claim_status::drop_freed,
    status: claim_status::check,
    label_needed: admin_access::of_claim,
    ..Simple::PLAIN
};

/// Claims to be made per pod.
pub(crate) const CLAIM_TEMPLATES: Simple = Simple {
    fresh: |template, errors| check_claim(&template.down(&["spec", "spec"]), errors),
    frozen: &[&["spec"]],
    lengthy: true,
    default: |template| default_claim(tree::member(tree::member(template, "spec"), "spec")),
    label_needed: admin_access::of_template,
    ..Simple::PLAIN
};

fn default_claim(spec: &mut Value) {
    let requests = spec.pointer_mut("/devices/requests").and_then(Value::as_array_mut);
    for request in requests.into_iter().flatten() {
        let own = request.get_mut("exactly").into_iter().filter(|at| at.is_object());
        own.for_each(default_request);
        let choices = request.get_mut("firstAvailable").and_then(Value::as_array_mut);
        choices.into_iter().flatten().for_each(default_request);
    }
}

fn default_request(request: &mut Value) {
    for toleration in request.get_mut("tolerations").and_then(Value::as_array_mut).into_iter().flatten() {
        fill(toleration, "operator", "Equal");
    }
    fill(request, "allocationMode", "ExactCount");
    if tree::text(request, &["allocationMode"]) == "ExactCount" {
        fill(request, "count", 1);
    }
}

fn check_claim(spec: &At<'_>, errors: &mut FieldErrors) {
    let devices = spec.get("devices");
    let requests = devices.get("requests");
    at_most(&requests, REQUESTS_MAX, errors);
    let names = names_of(&requests);
    let mut seen: HashSet<&str> = HashSet::new();
    for request in requests.items() {
        let name = request.get("name");
        name.named(NameRule::Label, errors);
        if !seen.insert(name.text()) {
            errors.push(FieldError::duplicate(request.path.clone(), name.value));
        }
        check_kind(&request, errors);
    }
    let (constraints, configs) = (devices.get("constraints"), devices.get("config"));
    at_most(&constraints, CONSTRAINTS_MAX, errors);
    for constraint in constraints.items() {
        check_references(&constraint.get("requests"), &names, errors);
        let (same, other) = (constraint.get("matchAttribute"), constraint.get("distinctAttribute"));
        match (same.is_set(), other.is_set()) {
            (false, false) => errors.push(constraint.required(ONE_ATTRIBUTE)),
            (true, _) => attribute(&same, errors),
            _ => attribute(&other, errors),
        }
    }
    at_most(&configs, CONFIGS_MAX, errors);
    for config in configs.items() {
        check_references(&config.get("requests"), &names, errors);
        check_config(&config, errors);
    }
}

/// The names by which a claim's requests are referred to.
pub(crate) fn names_of<'v>(requests: &At<'v>) -> Names<'v> {
    let parts =
        |request: &At<'v>| request.each("firstAvailable").map(|choice| choice.get("name").text()).collect();
    requests.items().map(|request| (request.get("name").text(), parts(&request))).collect()
}

pub(crate) fn at_most(list: &At<'_>, most: usize, errors: &mut FieldErrors) {
    if list.len() > most {
        errors.push(list.too_many(most));
    }
}

/// One kind of device, or a choice of several.
fn check_kind(request: &At<'_>, errors: &mut FieldErrors) {
    let (exactly, choices) = (request.get("exactly"), request.get("firstAvailable"));
    match (exactly.is_set(), !choices.is_empty()) {
        (true, true) => {
            let detail = format!("{ONE_KIND}, but multiple fields are set");
            errors.push(FieldError::invalid(request.path.clone(), &Value::Null, &detail));
        }
        (false, false) => errors.push(request.required(ONE_KIND)),
        (true, false) => check_request(&exactly, errors),
        (false, true) => {
            each_once(
                &choices,
                CHOICES_MAX,
                "name",
                |choice, errors| {
                    choice.get("name").named(NameRule::Label, errors);
                    check_request(choice, errors);
                },
                errors,
            );
        }
    }
}

/// References to requests, each once.
pub(crate) fn check_references(references: &At<'_>, names: &Names<'_>, errors: &mut FieldErrors) {
    let check = |one: &At<'_>, errors: &mut FieldErrors| reference(one, names, errors);
    each_once(references, REQUESTS_MAX, "", check, errors);
}

/// The name of a request, or of a request and one of its choices. Source: `validateRequestNameRef`.
pub(crate) fn reference(reference: &At<'_>, names: &Names<'_>, errors: &mut FieldErrors) {
    let parts: Vec<&str> = reference.text().split('/').collect();
    let is_known = match parts.as_slice() {
        [name] => names.contains_key(name),
        [name, choice] => names.get(name).is_some_and(|parts| parts.contains(choice)),
        _ => return errors.push(reference.invalid_text(REFERENCE)),
    };
    for part in parts {
        At::new(&json!(part), reference.path.clone()).name(NameRule::Label, errors);
    }
    if !is_known {
        errors.push(reference.invalid_text(REFERENCE));
    }
}

/// A device's attribute: `domain/identifier`. Source: `validateFullyQualifiedName`.
fn attribute(name: &At<'_>, errors: &mut FieldErrors) {
    qualified_name(name.text(), &name.path, errors);
    if !name.text().contains('/') {
        let detail = "a fully qualified name must be a domain and a name separated by a slash";
        errors.push(name.invalid(detail));
    }
}

/// `identifier` or `domain/identifier`. Source: `validateQualifiedName`.
pub(crate) fn qualified_name(name: &str, path: &str, errors: &mut FieldErrors) {
    let wrong = |shown: &str, detail: &str| FieldError::invalid(path, &json!(shown), detail);
    match name.split('/').collect::<Vec<_>>().as_slice() {
        [id] => identifier(id, path, errors),
        [domain, id] => {
            if domain.is_empty() {
                errors.push(wrong("", "the domain must not be empty"));
            } else {
                volume_sources::csi_driver(&At::new(&json!(domain), path), errors);
            }
            if id.is_empty() {
                errors.push(wrong("", "the name must not be empty"));
            } else {
                identifier(id, path, errors);
            }
        }
        _ => errors.push(wrong(name, "must not contain more than one slash")),
    }
}

fn identifier(id: &str, path: &str, errors: &mut FieldErrors) {
    if id.len() > IDENTIFIER_BYTES_MAX {
        errors.push(FieldError::too_long(path, IDENTIFIER_BYTES_MAX));
    }
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if !id.bytes().all(word) || id.as_bytes().first().is_none_or(u8::is_ascii_digit) {
        errors.push(FieldError::invalid(path, &json!(id), IDENTIFIER));
    }
}

/// What a driver is told.
pub(crate) fn check_config(config: &At<'_>, errors: &mut FieldErrors) {
    let opaque = config.get("opaque");
    if !opaque.is_set() {
        errors.push(opaque.required(""));
        return;
    }
    volume_sources::csi_driver(&opaque.get("driver"), errors);
    let parameters = opaque.get("parameters");
    if parameters.is_set() {
        free_object(&parameters, errors);
    } else {
        errors.push(parameters.required(""));
    }
}

/// An object of the driver's own kind. Source: `validateRawExtension`.
pub(crate) fn free_object(object: &At<'_>, errors: &mut FieldErrors) {
    if object.value.to_string().len() > PARAMETERS_BYTES_MAX {
        errors.push(object.too_long(PARAMETERS_BYTES_MAX));
    } else if !object.value.is_object() {
        let detail = "must be a valid JSON object";
        errors.push(FieldError::invalid(object.path.clone(), &json!("<value omitted>"), detail));
    }
}

fn check_request(request: &At<'_>, errors: &mut FieldErrors) {
    request.get("deviceClassName").named(NameRule::Subdomain, errors);
    selectors(&request.get("selectors"), errors);
    let (mode, count) = (request.get("allocationMode"), request.get("count"));
    match mode.text() {
        "All" if count.number() != 0 => {
            errors.push(count.invalid("must not be specified when allocationMode is 'All'"));
        }
        "ExactCount" if count.number() <= 0 => {
            errors.push(count.invalid_number("must be greater than zero"));
        }
        "All" | "ExactCount" => {}
        _ => errors.push(mode.not_supported(&["All", "ExactCount"])),
    }
    tolerations(&request.get("tolerations"), errors);
    // Upstream takes negative amounts too; of a device that is shared they would make room for others.
    for (_, amount) in request.down(&["capacity", "requests"]).entries() {
        amount.not_negative_quantity(errors);
    }
}

/// What a request puts up with.
pub(crate) fn tolerations(tolerations: &At<'_>, errors: &mut FieldErrors) {
    at_most(tolerations, TOLERATIONS_MAX, errors);
    tolerations.items().for_each(|one| toleration(&one, errors));
}

/// What keeps claims from a device.
pub(crate) fn taint(taint: &At<'_>, errors: &mut FieldErrors) {
    taint.get("key").label_key(errors);
    if !taint.get("value").text().is_empty() {
        taint.get("value").label_value(errors);
    }
    let effect = taint.get("effect");
    if effect.present("", errors) {
        effect.one_of(&EFFECTS, errors);
    }
}

fn toleration(toleration: &At<'_>, errors: &mut FieldErrors) {
    let (key, operator) = (toleration.get("key"), toleration.get("operator"));
    let (value, effect) = (toleration.get("value"), toleration.get("effect"));
    if !key.text().is_empty() {
        key.label_key(errors);
    }
    match operator.text() {
        "Exists" if !value.text().is_empty() => {
            errors.push(value.invalid("must be empty for operator `Exists`"));
        }
        "Exists" => {}
        "Equal" => value.label_value(errors),
        "" => errors.push(operator.required("")),
        _ => errors.push(operator.not_supported(&["Equal", "Exists"])),
    }
    if !effect.text().is_empty() {
        effect.one_of(&EFFECTS, errors);
    }
}

fn selectors(selectors: &At<'_>, errors: &mut FieldErrors) {
    if selectors.len() > SELECTORS_MAX {
        errors.push(selectors.too_many(SELECTORS_MAX));
        return;
    }
    for selector in selectors.items() {
        if !selector.has("cel") {
            errors.push(selector.get("cel").required(""));
            continue;
        }
        let expression = selector.down(&["cel", "expression"]);
        if expression.present("", errors) {
            expressions::check_selector(&expression, errors);
        }
    }
}

/// Kinds of devices.
pub(crate) const DEVICE_CLASSES: Ratcheting = Ratcheting {
    date: |_, _| {},
    check: |class, old, errors| {
        let spec = class.get("spec");
        let is_new =
            |field: &str| old.is_none_or(|old| old.get("spec").get(field).value != spec.get(field).value);
        if is_new("selectors") {
            selectors(&spec.get("selectors"), errors);
        }
        if is_new("config") {
            at_most(&spec.get("config"), CONFIGS_MAX, errors);
            spec.each("config").for_each(|config| check_config(&config, errors));
        }
        let name = spec.get("extendedResourceName");
        if name.is_set() && is_new("extendedResourceName") {
            extended_resource(&name, errors);
        }
    },
    frozen: &[],
    lengthy: true,
};

/// The name of a resource that pods may request as they do those of device plugins. Source:
/// `k8s.io/apimachinery/pkg/api/validate.ExtendedResourceName`.
fn extended_resource(name: &At<'_>, errors: &mut FieldErrors) {
    const OWN: &str = "kubernetes.io/";
    const REQUESTS: &str = "requests.";
    if !name.text().contains('/') {
        errors
            .push(name.invalid_text("a name must be a domain-prefixed path, such as 'example.com/my-prop'"));
    } else if name.text().contains(OWN) {
        errors.push(name.invalid_text(&format!("must not have {OWN:?} domain")));
    }
    if name.text().starts_with(REQUESTS) {
        errors.push(name.invalid_text(&format!("must not have {REQUESTS:?} prefix")));
    }
    // Quotas know it by this name.
    for detail in names::qualified_name_problems(&format!("{REQUESTS}{}", name.text())) {
        errors.push(name.invalid_text(&detail));
    }
}

/// A taint came now unless it says when. Source: `SetDefaults_DeviceTaint`.
pub(crate) fn date_taint(taint: &mut Value, now: Timestamp) {
    if taint.get("timeAdded").is_none_or(Value::is_null) {
        tree::members(taint).insert("timeAdded".to_owned(), rfc3339(now).into());
    }
}

/// The same for that of a rule; and one that has another effect from now on came now: what counts is since when pods have
/// had to leave. Source: `deviceTaintRuleStrategy.PrepareForUpdate`.
fn date_rule(rule: &mut Value, old: Option<&Value>, now: Timestamp) {
    let Some(taint) = rule.pointer_mut("/spec/taint").filter(|taint| taint.is_object()) else { return };
    let said = |taint: &Value, field: &str| tree::at(taint, &[field]).clone();
    let before = old.map(|old| tree::at(old, &["spec", "taint"]));
    let is_another = before.is_some_and(|before| {
        said(before, "effect") != said(taint, "effect")
            && said(before, "timeAdded") == said(taint, "timeAdded")
    });
    if is_another {
        tree::members(taint).remove("timeAdded");
    }
    date_taint(taint, now);
}

/// Devices that claims had better not get.
pub(crate) const TAINT_RULES: Simple = Simple {
    date: date_rule,
    check: |rule, errors| {
        let selector = rule.down(&["spec", "deviceSelector"]);
        let named = |field: &str| Some(selector.get(field)).filter(At::is_set);
        named("driver").inspect(|driver| volume_sources::csi_driver(driver, errors));
        named("pool").inspect(|pool| pool_name(pool, errors));
        named("device").inspect(|device| device.name(NameRule::Label, errors));
        taint(&rule.down(&["spec", "taint"]), errors);
    },
    status: |rule, _, errors| {
        let conditions = rule.down(&["status", "conditions"]);
        conditions.conditions(errors);
        at_most(&conditions, STATUS_CONDITIONS_MAX, errors);
    },
    ..Simple::COUNTED
};

#[cfg(test)]
mod tests {
    use apiserver::strategy::Strategy;

    use super::*;
    use crate::at::said;

    fn causes(strategy: &dyn Strategy, mut object: Value) -> Vec<String> {
        strategy.default(&mut object);
        let mut errors = Vec::new();
        strategy.validate(&object, &mut errors);
        strategy.validate_create(&object, &mut errors);
        said(&errors)
    }

    fn claim(request: Value) -> Value {
        json!({ "spec": { "devices": { "requests": [request] } } })
    }

    fn request() -> Value {
        json!({ "name": "r", "exactly": { "deviceClassName": "gpu" } })
    }

    #[test]
    fn requests_are_of_one_kind() {
        let rows: [(Value, Vec<&str>); 5] = [
            (request(), vec![]),
            (
                json!({ "name": "r", "exactly": { "deviceClassName": "gpu",
                    "capacity": { "requests": { "cores": "0", "memory": "-1Gi" } } } }),
                vec![
                    "spec.devices.requests[0].exactly.capacity.requests[memory]: Invalid value: \"-1Gi\": must be \
                     greater than or equal to 0",
                ],
            ),
            (
                json!({ "name": "r", "exactly": { "deviceClassName": "gpu", "allocationMode": "Some" } }),
                vec![
                    "spec.devices.requests[0].exactly.allocationMode: Unsupported value: \"Some\": supported values: \
                     \"All\", \"ExactCount\"",
                ],
            ),
            (
                json!({ "name": "r", "exactly": { "deviceClassName": "gpu" },
                    "firstAvailable": [{ "name": "a", "deviceClassName": "gpu" }] }),
                vec![
                    "spec.devices.requests[0]: Invalid value: null: exactly one of `exactly` or `firstAvailable` is \
                     required, but multiple fields are set",
                ],
            ),
            (
                json!({ "name": "r", "exactly": { "deviceClassName": "gpu",
                    "selectors": [{ "cel": { "expression": "1" } }, {}] } }),
                vec![
                    "spec.devices.requests[0].exactly.selectors[0].cel.expression: Invalid value: \"1\": must evaluate \
                     to bool or the unknown type, not int",
                    "spec.devices.requests[0].exactly.selectors[1].cel: Required value",
                ],
            ),
        ];
        for (request, expected) in rows {
            assert_eq!(causes(&CLAIMS, claim(request.clone())), expected, "{request}");
        }
    }

    #[test]
    fn constraints_name_requests_and_an_attribute() {
        let at = "spec.devices.constraints[0]";
        for (constraint, expected) in [
            (json!({ "requests": ["r"], "matchAttribute": "a.example.com/id" }), vec![]),
            (json!({}), vec![format!("{at}: Required value: {ONE_ATTRIBUTE}")]),
            (
                json!({ "requests": ["x", "x"], "distinctAttribute": "id" }),
                vec![
                    format!("{at}.requests[0]: Invalid value: \"x\": {REFERENCE}"),
                    format!("{at}.requests[1]: Invalid value: \"x\": {REFERENCE}"),
                    format!("{at}.requests[1]: Duplicate value: \"x\""),
                    format!(
                        "{at}.distinctAttribute: Invalid value: \"id\": a fully qualified name must be a domain and a name \
                         separated by a slash"
                    ),
                ],
            ),
            (
                json!({ "matchAttribute": "a.example.com/1d" }),
                vec![format!("{at}.matchAttribute: Invalid value: \"1d\": {IDENTIFIER}")],
            ),
        ] {
            let mut claim = claim(request());
            claim["spec"]["devices"]["constraints"] = json!([constraint]);
            assert_eq!(causes(&CLAIMS, claim), expected, "{constraint}");
        }
    }

    #[test]
    fn what_is_stored_may_stay_and_what_is_new_has_to_compile() {
        let class = |source: &str| json!({ "spec": { "selectors": [{ "cel": { "expression": source } }] } });
        assert_eq!(causes(&DEVICE_CLASSES, class("device.driver == 'a'")), [""; 0]);
        assert_eq!(causes(&DEVICE_CLASSES, class("foo")).len(), 1);
        let changes = |old: &str, new: &str| {
            let mut errors = Vec::new();
            DEVICE_CLASSES.validate_update(&class(new), &class(old), &mut errors);
            errors.len()
        };
        assert_eq!((changes("foo", "foo"), changes("foo", "bar"), changes("foo", "true")), (0, 1, 0));
        let mut configured = class("foo");
        configured["spec"]["config"] = json!([{ "opaque": { "driver": "a.example.com", "parameters": {} } }]);
        let mut errors = Vec::new();
        DEVICE_CLASSES.validate_update(&configured, &class("foo"), &mut errors);
        assert_eq!(said(&errors), [""; 0]);
    }

    #[test]
    fn the_taint_of_a_rule_came_when_it_got_its_effect() {
        let rule = |effect: &str, since: Option<&str>| json!({ "spec": { "taint": { "effect": effect, "timeAdded": since } } });
        let (then, other, now) = ("2025-01-01T00:00:00Z", "2025-06-01T00:00:00Z", "2026-01-01T00:00:00Z");
        for (old, new, wanted) in [
            (None, rule("None", None), now),
            (None, rule("None", Some(then)), then),
            (Some(rule("None", Some(then))), rule("None", Some(then)), then),
            (Some(rule("None", Some(then))), rule("NoExecute", Some(then)), now),
            (Some(rule("None", Some(then))), rule("NoExecute", Some(other)), other),
            (Some(rule("None", Some(then))), rule("None", None), now),
        ] {
            let mut dated = new.clone();
            TAINT_RULES.date(&mut dated, old.as_ref(), now.parse().unwrap());
            assert_eq!(dated["spec"]["taint"]["timeAdded"], wanted, "{old:?} {new}");
        }
        let mut none = json!({ "spec": {} });
        TAINT_RULES.date(&mut none, None, Timestamp::UNIX_EPOCH);
        assert_eq!(none, json!({ "spec": {} }));
    }

    #[test]
    fn a_class_stands_for_an_extended_resource() {
        let at = "spec.extendedResourceName: Invalid value";
        for (name, expected) in [
            ("example.com/gpu", vec![]),
            (
                "gpu",
                vec![format!(
                    "{at}: \"gpu\": a name must be a domain-prefixed path, such as 'example.com/my-prop'"
                )],
            ),
            (
                "requests.kubernetes.io/gpu",
                vec![
                    format!("{at}: \"requests.kubernetes.io/gpu\": must not have \"kubernetes.io/\" domain"),
                    format!("{at}: \"requests.kubernetes.io/gpu\": must not have \"requests.\" prefix"),
                ],
            ),
        ] {
            let class = json!({ "spec": { "extendedResourceName": name } });
            assert_eq!(causes(&DEVICE_CLASSES, class), expected, "{name}");
        }
    }
}
