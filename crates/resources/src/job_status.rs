//! What a Job's status may become: who has ended stays so, and counts fit together.
//! Source: `ValidateJobStatusUpdate` in `batch/validation/validation.go`.

use apiserver::field::FieldErrors;
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::{At, IMMUTABLE};
use crate::job_policies;

/// Whether a condition is true.
pub(crate) fn holds(job: &Value, condition: &str) -> bool {
    let of_kind = |known: &&Value| tree::text(known, &["type"]) == condition;
    let found = tree::items(job, &["status", "conditions"]).iter().find(of_kind);
    found.is_some_and(|known| tree::text(known, &["status"]) == "True")
}

/// Conditions that exclude each other.
const EXCLUSIVE: [(&str, &str, &str); 4] = [
    ("Complete", "Failed", "cannot set Complete=True and Failed=true conditions"),
    ("Complete", "FailureTarget", "cannot set Complete=True and FailureTarget=true conditions"),
    ("SuccessCriteriaMet", "Failed", "cannot set SuccessCriteriaMet=True and Failed=true conditions"),
    (
        "SuccessCriteriaMet",
        "FailureTarget",
        "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions",
    ),
];

/// Conditions that need another one.
const NEEDS: [(&str, &str, &str); 2] = [
    ("Failed", "FailureTarget", "cannot set Failed=True condition without the FailureTarget=true condition"),
    (
        "Complete",
        "SuccessCriteriaMet",
        "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
    ),
];

/// What is wrong with a change of a Job's status.
pub(crate) fn validate(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (status, before) = (At::object(new).get("status"), At::object(old).get("status"));
    for count in ["active", "succeeded", "failed", "ready", "terminating"] {
        status.get(count).not_negative(errors);
    }
    let conditions = status.get("conditions");
    for (one, other, detail) in EXCLUSIVE {
        if holds(new, one) && holds(new, other) {
            errors.push(conditions.wrong(detail));
        }
    }
    for (one, other, detail) in NEEDS {
        if holds(new, one) && !holds(new, other) && !holds(old, one) {
            errors.push(conditions.wrong(detail));
        }
    }
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if holds(old, kind) && !holds(new, kind) {
            errors.push(conditions.wrong(&format!("cannot disable the terminal {kind}=True condition")));
        }
    }
    if holds(old, "SuccessCriteriaMet") && !holds(new, "SuccessCriteriaMet") {
        errors.push(conditions.wrong("cannot disable the SuccessCriteriaMet=True condition"));
    }
    times(new, old, errors);
    counts(new, &status, &before, errors);
    completed_indexes(new, &status, &before, errors);
}

fn times(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (status, before) = (At::object(new).get("status"), At::object(old).get("status"));
    let (ended, begun) = (status.get("completionTime"), status.get("startTime"));
    let complete = holds(new, "Complete");
    let news = complete != holds(old, "Complete") || ended.value != before.get("completionTime").value;
    if news && ended.is_set() && !complete {
        let detail = "cannot set completionTime when there is no Complete=True condition";
        errors.push(ended.invalid(detail));
    }
    if news && !ended.is_set() && complete {
        errors.push(ended.required("completionTime is required for Complete jobs"));
    }
    if ended.is_set() && before.has("completionTime") && ended.value != before.get("completionTime").value {
        errors.push(ended.invalid(IMMUTABLE));
    }
    let moment = |at: &At<'_>| at.text().parse::<jiff::Timestamp>().ok();
    if let (Some(end), Some(begin)) = (moment(&ended), moment(&begun))
        && end < begin
    {
        errors.push(ended.invalid("must be equal to or after `startTime`"));
    }
    let finished = |job: &Value| holds(job, "Complete") || holds(job, "Failed");
    let empty = tree::at(new, &["spec", "suspend"]) == true && tree::at(new, &["spec", "completions"]) == 0;
    let ends = finished(new) != finished(old) || begun.value != before.get("startTime").value;
    if ends && !empty && finished(new) && !begun.is_set() {
        errors.push(begun.required("startTime is required for finished job"));
    }
    let resumes = holds(old, "Suspended") && !holds(new, "Suspended");
    let suspended = tree::at(new, &["spec", "suspend"]) == true;
    let started = before.get("startTime");
    if started.is_set() && started.value != begun.value && !suspended && !resumes {
        errors.push(begun.invalid("field is immutable for unsuspended job once set"));
    }
}

fn counts(new: &Value, status: &At<'_>, before: &At<'_>, errors: &mut FieldErrors) {
    let finished = holds(new, "Complete") || holds(new, "Failed");
    for (count, detail) in [
        ("active", "active>0 is invalid for finished job"),
        ("terminating", "terminating>0 is invalid for finished job"),
    ] {
        if finished && status.get(count).number() > 0 {
            errors.push(status.get(count).invalid(detail));
        }
    }
    let uncounted = status.get("uncountedTerminatedPods");
    if finished && (!uncounted.get("failed").is_empty() || !uncounted.get("succeeded").is_empty()) {
        errors.push(uncounted.invalid("must be empty for finished job"));
    }
    let spec = At::object(new).get("spec");
    let elastic = spec.get("completionMode").text() == "Indexed"
        && spec.get("completions").value == spec.get("parallelism").value;
    for (count, kept) in [("failed", true), ("succeeded", !elastic)] {
        let number = status.get(count);
        if kept && number.number() < before.get(count).number() {
            errors.push(number.invalid_number(&format!("cannot decrease the {count} counter")));
        }
    }
    let ready = status.get("ready");
    if ready.number() > status.get("active").number() && ready.value != before.get("ready").value {
        errors.push(ready.invalid("cannot set more ready pods than active"));
    }
}

fn completed_indexes(new: &Value, status: &At<'_>, before: &At<'_>, errors: &mut FieldErrors) {
    let spec = At::object(new).get("spec");
    let completions = spec.get("completions");
    for name in ["completedIndexes", "failedIndexes"] {
        let list = status.get(name);
        if list.value == before.get(name).value || !completions.is_set() || list.text().is_empty() {
            continue;
        }
        if let Err(why) = job_policies::indexes(list.text(), completions.number()) {
            errors.push(list.invalid(&format!("error parsing {name}: {why}")));
        }
        if name == "completedIndexes" && spec.get("completionMode").value != &json!("Indexed") {
            errors
                .push(list.invalid("cannot set non-empty completedIndexes when non-indexed completion mode"));
        }
        if name == "failedIndexes" && !spec.has("backoffLimitPerIndex") {
            let detail = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
            errors.push(list.invalid(detail));
        }
    }
}
