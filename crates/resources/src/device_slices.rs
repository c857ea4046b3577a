//! ResourceSlices (DRA): what drivers offer on which nodes, with counters that devices share.
//! Source: `resource/validation/validation.go`.

use std::collections::HashSet;

use api::quantity::Quantity;
use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::NameRule;
use serde_json::{Value, json};

use crate::at::{At, NOT_NEGATIVE};
use crate::devices::{at_most, date_taint, qualified_name, taint};
use crate::simple::{Ratcheting, each_mut};
use crate::{affinity, volume_sources};

const DEVICES_MAX: usize = 128;
/// Where devices have taints or consume counters.
const ADVANCED_DEVICES_MAX: usize = 64;
const COUNTER_SETS_MAX: usize = 8;
const COUNTERS_MAX: usize = 32;
const CONSUMPTIONS_MAX: usize = 2;
const ATTRIBUTES_MAX: usize = 32;
const TAINTS_MAX: usize = 16;
const CONDITIONS_MAX: usize = 4;
const OPTIONS_MAX: usize = 10;
const TEXT_BYTES_MAX: usize = 64;
const POOL_BYTES_MAX: usize = 253;
const TOO_LARGE: &str = "must not be larger than 9223372036854775807";
const ONE_PLACE: &str =
    "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
const ONE_PLACE_EACH: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when \
                              `perDeviceNodeSelection` is set to true in the ResourceSlice spec";

/// What drivers offer.
pub(crate) const SLICES: Ratcheting = Ratcheting {
    date: |slice, now| {
        for device in each_mut(slice, &["spec", "devices"]) {
            each_mut(device, &["taints"]).for_each(|taint| date_taint(taint, now));
        }
    },
    check: |slice, old, errors| {
        let before = old.map(|old| old.get("spec"));
        check_spec(&slice.get("spec"), before.as_ref(), errors);
    },
    frozen: &[&["spec", "pool", "name"], &["spec", "driver"], &["spec", "nodeName"]],
    lengthy: false,
};

fn check_spec(spec: &At<'_>, before: Option<&At<'_>>, errors: &mut FieldErrors) {
    volume_sources::csi_driver(&spec.get("driver"), errors);
    check_pool(&spec.get("pool"), errors);
    let mut set = places(spec, "must be either unset or set to a non-empty string", errors);
    let terms = spec.down(&["nodeSelector", "nodeSelectorTerms"]);
    if spec.has("nodeSelector") && terms.len() != 1 {
        errors.push(terms.invalid("must have exactly one node selector term"));
    }
    let each = spec.get("perDeviceNodeSelection");
    if each.is_set() && !each.truth() {
        errors.push(each.invalid("must be either unset or set to true"));
    } else if each.is_set() {
        set.push("`perDeviceNodeSelection`");
    }
    one_place(spec, &set, ONE_PLACE, &format!("{ONE_PLACE}, but multiple fields are set"), errors);
    if spec.has("sharedCounters") && spec.has("devices") {
        let detail = "only one of `sharedCounters` or `devices` is allowed";
        errors.push(FieldError::invalid(spec.path.clone(), &json!(""), detail));
    }
    let devices = spec.get("devices");
    let advanced =
        |device: At<'_>| !device.get("taints").is_empty() || !device.get("consumesCounters").is_empty();
    let most = if devices.items().any(advanced) { ADVANCED_DEVICES_MAX } else { DEVICES_MAX };
    let known = |device: &At<'_>| {
        let name = device.get("name").text();
        before?.each("devices").find(|known| known.get("name").text() == name)
    };
    let check = |device: &At<'_>, errors: &mut FieldErrors| {
        check_device(device, known(device).as_ref(), each.truth(), errors);
    };
    each_once(&devices, most, "name", check, errors);
    counter_sets(&spec.get("sharedCounters"), COUNTER_SETS_MAX, "name", errors);
}

/// Checks sets of counters, each with its name in the field `name`.
fn counter_sets(list: &At<'_>, most: usize, name: &str, errors: &mut FieldErrors) {
    let check = |set: &At<'_>, errors: &mut FieldErrors| {
        set.get(name).named(NameRule::Label, errors);
        counters(&set.get("counters"), errors);
    };
    each_once(list, most, name, check, errors);
}

/// Checks the items of a list that is not too long, and that no two have the same name, or, where `name` is empty, are the
/// same text.
pub(crate) fn each_once(
    list: &At<'_>,
    most: usize,
    name: &str,
    check: impl Fn(&At<'_>, &mut FieldErrors),
    errors: &mut FieldErrors,
) {
    if list.len() > most {
        errors.push(list.too_many(most));
        return;
    }
    list.items().for_each(|item| check(&item, errors));
    let mut seen: HashSet<&str> = HashSet::new();
    for item in list.items() {
        let key = if name.is_empty() { item.text() } else { item.get(name).text() };
        if seen.contains(&key) {
            errors.push(FieldError::duplicate(item.path, &json!(key)));
        }
        seen.insert(key);
    }
}

fn check_pool(pool: &At<'_>, errors: &mut FieldErrors) {
    pool_name(&pool.get("name"), errors);
    let (count, generation) = (pool.get("resourceSliceCount"), pool.get("generation"));
    if count.number() <= 0 {
        errors.push(count.invalid_number("must be greater than zero"));
    }
    if generation.number() < 0 {
        errors.push(generation.invalid_number("must be greater than or equal to zero"));
    }
}

/// The name of a pool: subdomains behind each other.
pub(crate) fn pool_name(name: &At<'_>, errors: &mut FieldErrors) {
    if !name.present("", errors) {
        return;
    }
    if name.text().len() > POOL_BYTES_MAX {
        errors.push(name.too_long(POOL_BYTES_MAX));
    }
    for part in name.text().split('/') {
        At::new(&json!(part), name.path.clone()).name(NameRule::Subdomain, errors);
    }
}

/// By what nodes are named, and what is wrong with that.
fn places(of: &At<'_>, empty: &str, errors: &mut FieldErrors) -> Vec<&'static str> {
    let (node, selector, all) = (of.get("nodeName"), of.get("nodeSelector"), of.get("allNodes"));
    let mut set = Vec::new();
    if node.is_set() && node.text().is_empty() {
        errors.push(node.invalid(empty));
    } else if node.is_set() {
        set.push("`nodeName`");
        node.name(NameRule::Subdomain, errors);
    }
    if selector.is_set() {
        set.push("`nodeSelector`");
        affinity::node_selector(&selector, errors);
    }
    if all.is_set() && !all.truth() {
        errors.push(all.invalid("must be either unset or set to true"));
    } else if all.is_set() {
        set.push("`allNodes`");
    }
    set
}

fn one_place(of: &At<'_>, set: &[&str], none: &str, several: &str, errors: &mut FieldErrors) {
    match set {
        [] => errors.push(of.required(none)),
        [_] => {}
        set => {
            let shown = json!(format!("{{{}}}", set.join(", ")));
            errors.push(FieldError::invalid(of.path.clone(), &shown, several));
        }
    }
}

/// A device, which was another one before (absent: it is new). Capacities and taints that were stored when more was allowed
/// may stay.
fn check_device(device: &At<'_>, before: Option<&At<'_>>, own_place: bool, errors: &mut FieldErrors) {
    device.get("name").named(NameRule::Label, errors);
    let (attributes, capacity) = (device.get("attributes"), device.get("capacity"));
    let count = attributes.entries().count() + capacity.entries().count();
    if count > ATTRIBUTES_MAX {
        let detail =
            format!("the total number of attributes and capacities must not exceed {ATTRIBUTES_MAX}");
        errors.push(FieldError::invalid(device.path.clone(), &json!(count), &detail));
    }
    for (name, attribute) in attributes.entries() {
        qualified_name(name, &attributes.path, errors);
        check_attribute(&attribute, errors);
    }
    let is_new = |field: &str| before.is_none_or(|before| before.get(field).value != device.get(field).value);
    if is_new("capacity") {
        check_capacity(&capacity, device.get("allowMultipleAllocations").truth(), errors);
    }
    if is_new("taints") {
        check_taints(&device.get("taints"), errors);
    }
    counter_sets(&device.get("consumesCounters"), CONSUMPTIONS_MAX, "counterSet", errors);
    if own_place {
        let set = places(device, "must not be empty", errors);
        one_place(device, &set, ONE_PLACE_EACH, ONE_PLACE_EACH, errors);
    } else if ["nodeName", "nodeSelector", "allNodes"].iter().any(|field| device.has(field)) {
        let detail = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to \
                      true in the ResourceSlice spec";
        errors.push(FieldError::invalid(device.path.clone(), &Value::Null, detail));
    }
    binding_conditions(device, errors);
}

fn check_capacity(capacity: &At<'_>, shared: bool, errors: &mut FieldErrors) {
    for (name, amount) in capacity.entries() {
        qualified_name(name, &capacity.path, errors);
        let policy = amount.get("requestPolicy");
        match policy.is_set() {
            true if shared => check_policy(&policy, &amount.get("value"), errors),
            true => errors.push(policy.forbidden("allowMultipleAllocations must be true")),
            false => {}
        }
    }
}

fn check_taints(taints: &At<'_>, errors: &mut FieldErrors) {
    if taints.len() > TAINTS_MAX {
        errors.push(taints.too_many(TAINTS_MAX));
    } else {
        taints.items().for_each(|one| taint(&one, errors));
    }
}

fn counters(counters: &At<'_>, errors: &mut FieldErrors) {
    let count = counters.entries().count();
    if count == 0 {
        errors.push(counters.required(""));
    }
    if count > COUNTERS_MAX {
        errors.push(FieldError::too_many(counters.path.clone(), count, COUNTERS_MAX));
        return;
    }
    for (name, _) in counters.entries() {
        At::new(&json!(name), counters.path.clone()).name(NameRule::Label, errors);
    }
}

/// A device's attribute: one value.
fn check_attribute(attribute: &At<'_>, errors: &mut FieldErrors) {
    let (text, version) = (attribute.get("string"), attribute.get("version"));
    if text.text().len() > TEXT_BYTES_MAX {
        errors.push(text.too_long(TEXT_BYTES_MAX));
    }
    if version.is_set() {
        if api::cel::Semver::parse(version.text(), false).is_err() {
            errors.push(version.invalid("must be a string compatible with semver.org spec 2.0.0"));
        }
        if version.text().len() > TEXT_BYTES_MAX {
            errors.push(version.too_long(TEXT_BYTES_MAX));
        }
    }
    let set = ["bool", "int", "string", "version"].iter().filter(|field| attribute.has(field)).count();
    if set != 1 {
        let shown = if set == 0 { json!("") } else { attribute.value.clone() };
        let detail = "exactly one value must be specified";
        errors.push(FieldError::invalid(attribute.path.clone(), &shown, detail));
    }
}

/// How much of a capacity requests may ask for, which is `whole`.
fn check_policy(policy: &At<'_>, whole: &At<'_>, errors: &mut FieldErrors) {
    let (values, range, default) =
        (policy.get("validValues"), policy.get("validRange"), policy.get("default"));
    if !values.is_empty() && range.is_set() {
        let detail = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same \
                      time";
        errors.push(policy.forbidden(detail));
        return;
    }
    let Some(whole) = whole.quantity() else { return };
    match default.quantity() {
        None if !values.is_empty() => errors.push(default.required("required when validValues is defined")),
        None if range.is_set() => errors.push(default.required("required when validRange is defined")),
        Some(default) if !values.is_empty() => check_values(&values, default, whole, errors),
        Some(_) if range.is_set() => check_range(&range, &default, whole, errors),
        _ => {}
    }
}

fn check_values(values: &At<'_>, default: Quantity, whole: Quantity, errors: &mut FieldErrors) {
    let amounts: Vec<(At<'_>, Quantity)> =
        values.items().filter_map(|value| value.quantity().map(|amount| (value, amount))).collect();
    for pair in amounts.windows(2) {
        if pair[0].1 > pair[1].1 {
            errors.push(pair[1].0.invalid("values must be sorted in ascending order"));
        }
    }
    if amounts.len() > OPTIONS_MAX {
        errors.push(values.too_many(OPTIONS_MAX));
    } else {
        for (value, amount) in &amounts {
            if *amount > whole {
                errors.push(value.invalid(&format!("option is larger than capacity value: {whole}")));
            }
        }
        for (place, (value, amount)) in amounts.iter().enumerate() {
            // Amounts are the same that are so many whole units.
            if amounts[..place].iter().any(|(_, before)| before.whole() == amount.whole()) {
                errors.push(value.duplicate());
            }
        }
    }
    if !amounts.iter().any(|(_, amount)| *amount == default) {
        let detail = "default value is not valid according to the requestPolicy";
        errors.push(FieldError::invalid(values.path.clone(), &json!(default.to_string()), detail));
    }
}

fn check_range(range: &At<'_>, given: &At<'_>, whole: Quantity, errors: &mut FieldErrors) {
    let Some(default) = given.quantity() else { return };
    let (least, most, step) = (range.get("min"), range.get("max"), range.get("step"));
    let Some(min) = least.quantity() else {
        errors.push(least.required("required when validRange is defined"));
        return;
    };
    let wrong = |field: &str, shown: Quantity, detail: String| {
        FieldError::invalid(range.child(field), &json!(shown.to_string()), &detail)
    };
    if min > whole {
        errors.push(wrong("min", min, format!("min is larger than capacity value: {whole}")));
    }
    if default < min {
        errors.push(wrong("default", default, format!("default is less than min: {min}")));
    }
    let max = most.quantity();
    if let Some(max) = max {
        if min > max {
            errors.push(wrong("max", min, format!("min is larger than max: {max}")));
        }
        if max > whole {
            errors.push(wrong("max", max, format!("max is larger than capacity value: {whole}")));
        }
        if default > max {
            errors.push(wrong("default", default, format!("default is more than max: {max}")));
        }
    }
    let Some(by) = step.quantity() else { return };
    if by.is_negative() || by.is_zero() {
        errors.push(wrong("step", by, "must be greater than zero".to_owned()));
        return;
    }
    if min.plus(by) > whole {
        let one = min.plus(by);
        errors.push(wrong("step", by, format!("one step {one} is larger than capacity value: {whole}")));
    }
    let known = [("default", given), ("min", &least), ("max", &most), ("step", &step)];
    let odd: Vec<FieldError> = known
        .into_iter()
        .filter_map(|(field, amount)| {
            Some(FieldError::invalid(range.child(field), amount.value, beyond(amount)?))
        })
        .collect();
    if !odd.is_empty() {
        errors.extend(odd);
        return;
    }
    for value in [Some(default), max].into_iter().flatten() {
        // Amounts are counted in whole units.
        if (value.whole() - min.whole()) % by.whole().max(1) != 0 {
            errors.push(wrong(
                "step",
                value,
                format!("value is not a multiple of a given step ({by}) from ({min})"),
            ));
        }
    }
}

/// What is wrong with an amount that cannot be counted in whole units.
fn beyond(amount: &At<'_>) -> Option<&'static str> {
    let read = amount.quantity()?;
    if read.is_negative() {
        return Some(NOT_NEGATIVE);
    }
    // 2^63 - 1 has 19 digits: what is read as that and has fewer was more, and upstream cuts only binary ones so.
    let digits = amount.text().bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.');
    let is_short = digits.filter(|byte| *byte != b'.').count() < 19;
    let is_more = read.value() == i64::MAX && is_short && !amount.text().ends_with('i');
    is_more.then_some(TOO_LARGE)
}

/// Conditions that have to hold before a pod is bound, and those that mean that it cannot be.
pub(crate) fn binding_conditions(of: &At<'_>, errors: &mut FieldErrors) {
    let (wanted, failed) = (of.get("bindingConditions"), of.get("bindingFailureConditions"));
    for list in [&wanted, &failed] {
        at_most(list, CONDITIONS_MAX, errors);
        if list.len() <= CONDITIONS_MAX {
            list.items().for_each(|condition| condition.label_key(errors));
        }
    }
    let texts: HashSet<&str> = wanted.texts().into_iter().collect();
    for list in [&wanted, &failed] {
        let mut seen: HashSet<&str> = HashSet::new();
        for condition in list.items() {
            if !seen.insert(condition.text()) {
                errors.push(condition.duplicate());
            }
            if std::ptr::eq(list, &failed) && texts.contains(condition.text()) {
                let detail = "bindingFailureConditions must not overlap with bindingConditions";
                errors.push(condition.invalid(detail));
            }
        }
    }
    match (wanted.is_empty(), failed.is_empty()) {
        (true, false) => {
            errors.push(wanted.invalid("bindingConditions are required to use bindingFailureConditions"));
        }
        (false, true) => {
            errors.push(failed.invalid("bindingFailureConditions are required to use bindingConditions"));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use apiserver::strategy::Strategy;

    use super::*;
    use crate::at::said;

    fn causes(change: Value) -> Vec<String> {
        let mut spec = json!({ "driver": "gpu.example.com", "nodeName": "n",
            "pool": { "name": "p/q", "resourceSliceCount": 1, "generation": 1 } });
        for (field, value) in change.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        let mut errors = Vec::new();
        check_spec(&At::new(&spec, "spec"), None, &mut errors);
        said(&errors)
    }

    fn of_device(change: Value) -> Vec<String> {
        let mut device = json!({ "name": "d", "attributes": { "model": { "string": "a" },
            "other.example.com/v": { "version": "1.2.3" } }, "capacity": { "memory": { "value": "8Gi" } } });
        for (field, value) in change.as_object().into_iter().flatten() {
            device[field] = value.clone();
        }
        causes(json!({ "devices": [device] }))
    }

    #[test]
    fn slices_say_where_their_devices_are() {
        for (change, expected) in [
            (json!({}), vec![]),
            (json!({ "nodeName": null, "allNodes": true }), vec![]),
            (json!({ "nodeName": null }), vec![format!("spec: Required value: {ONE_PLACE}")]),
            (
                json!({ "allNodes": true }),
                vec![format!(
                    "spec: Invalid value: \"{{`nodeName`, `allNodes`}}\": {ONE_PLACE}, but multiple fields are set"
                )],
            ),
            (
                json!({ "allNodes": false }),
                vec!["spec.allNodes: Invalid value: false: must be either unset or set to true".to_owned()],
            ),
            (
                json!({ "pool": { "name": "p", "resourceSliceCount": 0, "generation": -1 } }),
                vec![
                    "spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero".to_owned(),
                    "spec.pool.generation: Invalid value: -1: must be greater than or equal to zero"
                        .to_owned(),
                ],
            ),
            (
                json!({ "devices": [{ "name": "d" }, { "name": "d" }] }),
                vec!["spec.devices[1]: Duplicate value: \"d\"".to_owned()],
            ),
            (
                json!({ "devices": vec![json!({ "name": "d" }); 129] }),
                vec!["spec.devices: Too many: 129: must have at most 128 items".to_owned()],
            ),
            (
                json!({ "sharedCounters": [{ "name": "s", "counters": { "c": { "value": "1" } } }, { "name": "s" }] }),
                vec![
                    "spec.sharedCounters[1].counters: Required value".to_owned(),
                    "spec.sharedCounters[1]: Duplicate value: \"s\"".to_owned(),
                ],
            ),
        ] {
            assert_eq!(causes(change.clone()), expected, "{change}");
        }
    }

    #[test]
    fn devices_have_attributes_capacities_and_conditions() {
        let at = "spec.devices[0]";
        for (change, expected) in [
            (json!({}), vec![]),
            (
                json!({ "attributes": { "a": {}, "b": { "version": "1.x" }, "c/d/e": { "int": 1 } } }),
                vec![
                    format!("{at}.attributes[a]: Invalid value: \"\": exactly one value must be specified"),
                    format!(
                        "{at}.attributes[b].version: Invalid value: \"1.x\": must be a string compatible with semver.org \
                         spec 2.0.0"
                    ),
                    format!(
                        "{at}.attributes: Invalid value: \"c/d/e\": must not contain more than one slash"
                    ),
                ],
            ),
            (
                json!({ "nodeName": "n" }),
                vec![format!(
                    "{at}: Invalid value: null: `nodeName`, `nodeSelector` and `allNodes` can only be set if \
                     `perDeviceNodeSelection` is set to true in the ResourceSlice spec"
                )],
            ),
            (
                json!({ "bindingConditions": ["a"] }),
                vec![format!(
                    "{at}.bindingFailureConditions: Invalid value: null: bindingFailureConditions are required to use \
                     bindingConditions"
                )],
            ),
            (
                json!({ "bindingConditions": ["a", "a"], "bindingFailureConditions": ["a"] }),
                vec![
                    format!("{at}.bindingConditions[1]: Duplicate value: \"a\""),
                    format!(
                        "{at}.bindingFailureConditions[0]: Invalid value: \"a\": bindingFailureConditions must not overlap \
                         with bindingConditions"
                    ),
                ],
            ),
            (
                json!({ "taints": [{ "key": "a", "effect": "Never" }] }),
                vec![format!(
                    "{at}.taints[0].effect: Unsupported value: \"Never\": supported values: \"NoExecute\", \
                     \"NoSchedule\", \"None\""
                )],
            ),
        ] {
            assert_eq!(of_device(change.clone()), expected, "{change}");
        }
    }

    #[test]
    fn requests_of_a_capacity_follow_its_policy() {
        let at = "spec.devices[0].capacity[memory].requestPolicy";
        let policy = |policy: Value, shared: bool| {
            of_device(json!({ "allowMultipleAllocations": shared,
                "capacity": { "memory": { "value": "8Gi", "requestPolicy": policy } } }))
        };
        for (change, expected) in [
            (
                json!({ "default": "1Gi", "validRange": { "min": "1Gi", "max": "4Gi", "step": "1Gi" } }),
                vec![],
            ),
            (json!({ "default": "1Gi", "validValues": ["1Gi", "2Gi"] }), vec![]),
            // Amounts are whole ones, however large.
            (json!({ "default": "1500m", "validRange": { "min": "1", "max": "4", "step": "1" } }), vec![]),
            (
                json!({ "default": "2", "validValues": ["1500m", "2"] }),
                vec![format!("{at}.validValues[1]: Duplicate value: \"2\"")],
            ),
            (
                json!({ "default": "3Gi", "validValues": ["2Gi", "1Gi", "9Gi"] }),
                vec![
                    format!(
                        "{at}.validValues[1]: Invalid value: \"1Gi\": values must be sorted in ascending order"
                    ),
                    format!(
                        "{at}.validValues[2]: Invalid value: \"9Gi\": option is larger than capacity value: 8Gi"
                    ),
                    format!(
                        "{at}.validValues: Invalid value: \"3Gi\": default value is not valid according to the requestPolicy"
                    ),
                ],
            ),
            (
                json!({ "validRange": { "min": "1Gi" } }),
                vec![format!("{at}.default: Required value: required when validRange is defined")],
            ),
            (
                json!({ "default": "1Gi", "validRange": { "min": "2Gi", "max": "9Gi", "step": "3Gi" } }),
                vec![
                    format!("{at}.validRange.default: Invalid value: \"1Gi\": default is less than min: 2Gi"),
                    format!(
                        "{at}.validRange.max: Invalid value: \"9Gi\": max is larger than capacity value: 8Gi"
                    ),
                    format!(
                        "{at}.validRange.step: Invalid value: \"1Gi\": value is not a multiple of a given step (3Gi) from \
                         (2Gi)"
                    ),
                    format!(
                        "{at}.validRange.step: Invalid value: \"9Gi\": value is not a multiple of a given step (3Gi) from \
                         (2Gi)"
                    ),
                ],
            ),
        ] {
            assert_eq!(policy(change.clone(), true), expected, "{change}");
        }
        let large = of_device(
            json!({ "allowMultipleAllocations": true, "capacity": { "memory": { "value": "7E",
            "requestPolicy": { "default": "6E", "validRange": { "min": "1", "max": "5E", "step": "2" } } } } }),
        );
        let odd = |amount: &str| {
            format!(
                "{at}.validRange.step: Invalid value: \"{amount}\": value is not a multiple of a given step (2) from (1)"
            )
        };
        let more = format!("{at}.validRange.default: Invalid value: \"6E\": default is more than max: 5E");
        assert_eq!(large, [more, odd("6E"), odd("5E")]);
        let huge = of_device(
            json!({ "allowMultipleAllocations": true, "capacity": { "memory": { "value": "100E",
            "requestPolicy": { "default": "-1", "validRange": { "min": "-1", "max": "20E", "step": "10E" } } } } }),
        );
        let beyond = |field: &str, amount: &str, detail: &str| {
            format!("{at}.validRange.{field}: Invalid value: \"{amount}\": {detail}")
        };
        assert_eq!(
            huge,
            [
                beyond("default", "-1", NOT_NEGATIVE),
                beyond("min", "-1", NOT_NEGATIVE),
                beyond("max", "20E", TOO_LARGE),
                beyond("step", "10E", TOO_LARGE),
            ]
        );
        let refused = policy(json!({ "default": "1Gi" }), false);
        assert_eq!(refused, [format!("{at}: Forbidden: allowMultipleAllocations must be true")]);
    }

    #[test]
    fn taints_came_now_unless_they_say_when() {
        use jiff::Timestamp;

        let taints = json!([{ "key": "a" }, { "key": "b", "timeAdded": "2025-01-01T00:00:00Z" }, { "timeAdded": null }]);
        let mut slice =
            json!({ "spec": { "devices": [{ "name": "d", "taints": taints }, { "name": "e" }, null] } });
        SLICES.date(&mut slice, None, "2026-01-01T00:00:00.7Z".parse().unwrap());
        let [now, then] = ["2026-01-01T00:00:00Z", "2025-01-01T00:00:00Z"];
        let said = json!([{ "key": "a", "timeAdded": now }, { "key": "b", "timeAdded": then }, { "timeAdded": now }]);
        assert_eq!(slice["spec"]["devices"], json!([{ "name": "d", "taints": said }, { "name": "e" }, null]));
        let bare = json!({ "spec": {} });
        let mut same = bare.clone();
        SLICES.date(&mut same, None, Timestamp::UNIX_EPOCH);
        assert_eq!(same, bare);
    }

    #[test]
    fn what_is_stored_of_a_device_may_stay() {
        let slice = |taint: &str, policy: Value, model: &str| {
            json!({ "spec": { "driver": "gpu.example.com", "nodeName": "n",
                "pool": { "name": "p", "resourceSliceCount": 1, "generation": 1 },
                "devices": [{ "name": "d", "attributes": { "model": { "string": model } },
                    "taints": [{ "key": "a", "effect": taint }],
                    "capacity": { "memory": { "value": "1Gi", "requestPolicy": policy } } }] } })
        };
        let changes = |old: &Value, new: &Value| {
            let mut errors = Vec::new();
            SLICES.validate_update(new, old, &mut errors);
            said(&errors)
        };
        let old = slice("Odd", json!({ "default": "1" }), "a");
        assert_eq!(changes(&old, &slice("Odd", json!({ "default": "1" }), "b")), [""; 0]);
        let unknown = "spec.devices[0].taints[0].effect: Unsupported value: \"Other\": supported values: \"NoExecute\", \
                       \"NoSchedule\", \"None\"";
        let unshared = "spec.devices[0].capacity[memory].requestPolicy: Forbidden: allowMultipleAllocations must be true";
        assert_eq!(changes(&old, &slice("Other", json!({ "default": "2" }), "a")), [unshared, unknown]);
        let mut renamed = old.clone();
        renamed["spec"]["devices"][0]["name"] = "e".into();
        assert_eq!(changes(&old, &renamed).len(), 2);
        let mut moved = old.clone();
        moved["spec"]["nodeName"] = "m".into();
        assert_eq!(changes(&old, &moved), ["spec.nodeName: Invalid value: \"m\": field is immutable"]);
    }
}
