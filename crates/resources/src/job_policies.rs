//! When a Job has failed and when it has succeeded, beyond counting. Source: `batch/validation/validation.go`, KEP-3329,
//! KEP-3998.

use std::collections::HashSet;

use apiserver::field::{FieldError, FieldErrors};
use serde_json::json;

use crate::at::At;

const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
const STATUSES: [&str; 3] = ["False", "True", "Unknown"];
const OPERATORS: [&str; 2] = ["In", "NotIn"];
const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const CONDITIONS_MAX: usize = 20;
const INDEXES_BYTES_MAX: usize = 64 * 1024;

/// What is wrong with `podFailurePolicy`.
pub(crate) fn pod_failure(spec: &At<'_>, errors: &mut FieldErrors) {
    let policy = spec.get("podFailurePolicy");
    if !policy.is_set() {
        return;
    }
    let rules = policy.get("rules");
    if rules.len() > RULES_MAX {
        errors.push(rules.too_many(RULES_MAX));
    }
    let pod = spec.down(&["template", "spec"]);
    let containers: HashSet<&str> =
        pod.each("containers").chain(pod.each("initContainers")).map(|one| one.get("name").text()).collect();
    for rule in rules.items() {
        let action = rule.get("action");
        match action.text() {
            "" => errors.push(action.required(&choices(&ACTIONS))),
            "FailIndex" if !spec.has("backoffLimitPerIndex") => {
                errors.push(action.invalid("requires the backoffLimitPerIndex to be set"));
            }
            _ => action.one_of(&ACTIONS, errors),
        }
        let (codes, conditions) = (rule.get("onExitCodes"), rule.get("onPodConditions"));
        if codes.is_set() {
            exit_codes(&codes, &containers, errors);
        }
        if conditions.len() > CONDITIONS_MAX {
            errors.push(conditions.too_many(CONDITIONS_MAX));
        }
        for pattern in conditions.items() {
            pattern.get("type").label_key(errors);
            let status = pattern.get("status");
            if status.present(&choices(&STATUSES), errors) {
                status.one_of(&STATUSES, errors);
            }
        }
        match (codes.is_set(), !conditions.is_empty()) {
            (true, true) => {
                errors.push(rule.wrong("specifying both OnExitCodes and OnPodConditions is not supported"));
            }
            (false, false) => {
                errors.push(rule.wrong("specifying one of OnExitCodes and OnPodConditions is required"));
            }
            _ => {}
        }
    }
}

/// `valid values: ["A" "B"]`, as Go prints a list.
fn choices(known: &[&str]) -> String {
    let quoted: Vec<String> = known.iter().map(|one| format!("\"{one}\"")).collect();
    format!("valid values: [{}]", quoted.join(" "))
}

fn exit_codes(codes: &At<'_>, containers: &HashSet<&str>, errors: &mut FieldErrors) {
    let operator = codes.get("operator");
    if operator.present(&choices(&OPERATORS), errors) {
        operator.one_of(&OPERATORS, errors);
    }
    let name = codes.get("containerName");
    if name.is_set() && !containers.contains(name.text()) {
        let detail = "must be one of the container or initContainer names in the pod template";
        errors.push(name.invalid(detail));
    }
    let values = codes.get("values");
    if values.is_empty() {
        errors.push(values.invalid("at least one value is required"));
    } else if values.len() > EXIT_CODES_MAX {
        errors.push(values.too_many(EXIT_CODES_MAX));
    }
    let mut seen: HashSet<i64> = HashSet::new();
    let (mut ordered, mut last) = (true, i64::MIN);
    for value in values.items() {
        let code = value.number();
        if operator.text() == "In" && code == 0 {
            errors.push(value.invalid("must not be 0 for the In operator"));
        }
        if !seen.insert(code) {
            errors.push(value.duplicate());
        }
        ordered &= last <= code;
        last = code;
    }
    if !ordered {
        errors.push(values.invalid("must be ordered"));
    }
}

/// What is wrong with `successPolicy`.
pub(crate) fn success(spec: &At<'_>, indexed: bool, errors: &mut FieldErrors) {
    let policy = spec.get("successPolicy");
    if !policy.is_set() {
        return;
    }
    if !indexed {
        errors.push(policy.invalid("requires indexed completion mode"));
        return;
    }
    let rules = policy.get("rules");
    if rules.is_empty() {
        let detail = "at least one rules must be specified when the successPolicy is specified";
        errors.push(rules.required(detail));
    }
    if rules.len() > RULES_MAX {
        errors.push(rules.too_many(RULES_MAX));
    }
    let completions = spec.get("completions").number();
    rules.items().for_each(|rule| success_rule(&rule, completions, errors));
}

fn success_rule(rule: &At<'_>, completions: i64, errors: &mut FieldErrors) {
    let (count, list) = (rule.get("succeededCount"), rule.get("succeededIndexes"));
    if !count.is_set() && !list.is_set() {
        let detail = "at least one of succeededCount or succeededIndexes must be specified";
        errors.push(rule.required(detail));
    }
    let mut total = 0;
    if list.is_set() {
        if list.text().len() > INDEXES_BYTES_MAX {
            errors.push(list.too_long(INDEXES_BYTES_MAX));
        }
        match indexes(list.text(), completions) {
            Ok(number) => total = number,
            Err(why) => errors.push(list.invalid(&format!("error parsing succeededIndexes: {why}"))),
        }
    }
    if count.is_set() {
        count.not_negative(errors);
        let number = count.number();
        let mut limit = |most: i64, what: &str| {
            if number > most {
                let detail = format!("must be less than or equal to {most} (the number of {what})");
                errors.push(FieldError::invalid(count.path.clone(), &json!(number), &detail));
            }
        };
        limit(completions, "specified completions");
        if list.is_set() {
            limit(total, "indexes in the specified succeededIndexes field");
        }
    }
}

/// How many indexes a list such as `0,3-5` names, each below `completions`, in increasing order.
pub(crate) fn indexes(list: &str, completions: i64) -> Result<i64, String> {
    if list.is_empty() {
        return Ok(0);
    }
    let (mut total, mut last) = (0, None);
    for interval in list.split(',') {
        let (first, end) = interval_of(interval, completions)?;
        if let Some(previous) = last.filter(|previous| *previous >= first) {
            return Err(format!("non-increasing order, previous: {previous}, current: {first}"));
        }
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}

fn interval_of(text: &str, completions: i64) -> Result<(i64, i64), String> {
    let parts: Vec<&str> = text.split('-').collect();
    if parts.len() > 2 {
        return Err(format!(
            "the fragment {text:?} violates the requirement that an index interval can have at most two parts separated \
             by '-'"
        ));
    }
    let number = |part: &str| {
        let index: i64 =
            part.parse().map_err(|_| format!("cannot convert string to integer for index: {part:?}"))?;
        if index >= completions { Err(format!("too large index: {part:?}")) } else { Ok(index) }
    };
    let first = number(parts[0])?;
    let Some(end) = parts.get(1) else { return Ok((first, first)) };
    let end = number(end)?;
    if first >= end {
        return Err(format!("non-increasing order, previous: {first}, current: {end}"));
    }
    Ok((first, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_indexes() {
        for (list, result) in [
            ("", Ok(0)),
            ("0,3-5", Ok(4)),
            ("5-3", Err("non-increasing order, previous: 5, current: 3")),
            ("9", Err("too large index: \"9\"")),
            ("3,1", Err("non-increasing order, previous: 3, current: 1")),
            ("a", Err("cannot convert string to integer for index: \"a\"")),
        ] {
            assert_eq!(indexes(list, 9), result.map_err(str::to_owned), "{list}");
        }
    }
}
