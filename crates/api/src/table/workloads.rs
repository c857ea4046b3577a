//! What runs pods, and what says how many.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AGE, Cell, Column, Family, NAME, age, at, column, has, human_duration, items, labels, number, or_none,
    pod, text, wide,
};

pub(super) const KINDS: Family = &[
    ("", "Pod", POD),
    ("", "PodTemplate", POD_TEMPLATE),
    ("", "ReplicationController", REPLICA_SET),
    ("apps", "ReplicaSet", REPLICA_SET),
    ("apps", "Deployment", DEPLOYMENT),
    ("apps", "DaemonSet", DAEMON_SET),
    ("apps", "StatefulSet", STATEFUL_SET),
    ("apps", "ControllerRevision", CONTROLLER_REVISION),
    ("batch", "Job", JOB),
    ("batch", "CronJob", CRON_JOB),
    ("policy", "PodDisruptionBudget", DISRUPTION_BUDGET),
    ("autoscaling", "HorizontalPodAutoscaler", AUTOSCALER),
    ("autoscaling", "Scale", SCALE),
];

const CONTAINERS: Column = wide("Containers", "string", Cell::Of(containers));
const IMAGES: Column = wide("Images", "string", Cell::Of(images));
const SELECTOR: Column = wide("Selector", "string", Cell::Of(selector));

const POD: &[Column] = &[
    NAME,
    column("Ready", "string", Cell::Of(pod::ready)),
    column("Status", "string", Cell::Of(pod::status)),
    column("Restarts", "string", Cell::Of(pod::restarts)),
    AGE,
    wide("IP", "string", Cell::Path(&["status", "podIP"])),
    wide("Node", "string", Cell::Path(&["spec", "nodeName"])),
    wide("Nominated Node", "string", Cell::Path(&["status", "nominatedNodeName"])),
    wide("Readiness Gates", "string", Cell::Of(pod::readiness_gates)),
];

const POD_TEMPLATE: &[Column] = &[
    NAME,
    column("Containers", "string", Cell::Of(|object, _| of_containers(at(object, &["template"]), "name"))),
    column("Images", "string", Cell::Of(|object, _| of_containers(at(object, &["template"]), "image"))),
    column(
        "Pod Labels",
        "string",
        Cell::Of(|object, _| labels(at(object, &["template", "metadata", "labels"]))),
    ),
];

const DEPLOYMENT: &[Column] = &[
    NAME,
    column("Ready", "string", Cell::Of(ready)),
    column(
        "Up-to-date",
        "string",
        Cell::Of(|object, _| json!(number(object, &["status", "updatedReplicas"]))),
    ),
    column(
        "Available",
        "string",
        Cell::Of(|object, _| json!(number(object, &["status", "availableReplicas"]))),
    ),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

const REPLICA_SET: &[Column] = &[
    NAME,
    column("Desired", "integer", Cell::Path(&["spec", "replicas"])),
    column("Current", "integer", Cell::Path(&["status", "replicas"])),
    column("Ready", "integer", Cell::Path(&["status", "readyReplicas"])),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

const DAEMON_SET: &[Column] = &[
    NAME,
    column("Desired", "integer", Cell::Path(&["status", "desiredNumberScheduled"])),
    column("Current", "integer", Cell::Path(&["status", "currentNumberScheduled"])),
    column("Ready", "integer", Cell::Path(&["status", "numberReady"])),
    column("Up-to-date", "integer", Cell::Path(&["status", "updatedNumberScheduled"])),
    column("Available", "integer", Cell::Path(&["status", "numberAvailable"])),
    column(
        "Node Selector",
        "string",
        Cell::Of(|object, _| labels(at(object, &["spec", "template", "spec", "nodeSelector"]))),
    ),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

const SCALE: &[Column] = &[
    NAME,
    column("Desired", "integer", Cell::Of(|object, _| json!(number(object, &["spec", "replicas"])))),
    column("Available", "integer", Cell::Of(|object, _| json!(number(object, &["status", "replicas"])))),
    AGE,
];

const STATEFUL_SET: &[Column] = &[NAME, column("Ready", "string", Cell::Of(ready)), AGE, CONTAINERS, IMAGES];

const CONTROLLER_REVISION: &[Column] = &[
    NAME,
    column("Controller", "string", Cell::Of(owner)),
    column("Revision", "string", Cell::Of(|object, _| json!(number(object, &["revision"])))),
    AGE,
];

const JOB: &[Column] = &[
    NAME,
    column("Status", "string", Cell::Of(job_status)),
    column("Completions", "string", Cell::Of(job_completions)),
    column("Duration", "string", Cell::Of(job_duration)),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

const CRON_JOB: &[Column] = &[
    NAME,
    column("Schedule", "string", Cell::Text(&["spec", "schedule"])),
    column("Timezone", "string", Cell::Path(&["spec", "timeZone"])),
    column("Suspend", "boolean", Cell::Of(suspended)),
    column("Active", "integer", Cell::Count(&["status", "active"])),
    column("Last Schedule", "string", Cell::Of(last_schedule)),
    AGE,
    wide("Containers", "string", Cell::Of(|object, now| containers(job_template(object), now))),
    wide("Images", "string", Cell::Of(|object, now| images(job_template(object), now))),
    wide("Selector", "string", Cell::Of(|object, now| selector(job_template(object), now))),
];

const DISRUPTION_BUDGET: &[Column] = &[
    NAME,
    column(
        "Min Available",
        "string",
        Cell::Of(|object, _| or_not_applicable(at(object, &["spec", "minAvailable"]))),
    ),
    column(
        "Max Unavailable",
        "string",
        Cell::Of(|object, _| or_not_applicable(at(object, &["spec", "maxUnavailable"]))),
    ),
    column("Allowed Disruptions", "integer", Cell::Path(&["status", "disruptionsAllowed"])),
    AGE,
];

const AUTOSCALER: &[Column] = &[
    NAME,
    column("Reference", "string", Cell::Of(scaled)),
    column("Targets", "string", Cell::Of(metrics)),
    column("MinPods", "string", Cell::Optional(&["spec", "minReplicas"])),
    column("MaxPods", "string", Cell::Of(|object, _| json!(number(object, &["spec", "maxReplicas"])))),
    column("Replicas", "string", Cell::Of(|object, _| json!(number(object, &["status", "currentReplicas"])))),
    AGE,
];

/// `ready/desired`.
fn ready(object: &Value, _: Timestamp) -> Value {
    json!(format!(
        "{}/{}",
        number(object, &["status", "readyReplicas"]),
        number(object, &["spec", "replicas"])
    ))
}

fn of_containers(template: &Value, field: &str) -> Value {
    let containers = items(template, &["spec", "containers"]);
    json!(containers.iter().map(|container| text(container, &[field])).collect::<Vec<_>>().join(","))
}

/// The names of the template's containers.
fn containers(object: &Value, _: Timestamp) -> Value {
    of_containers(at(object, &["spec", "template"]), "name")
}

/// The images of the template's containers.
fn images(object: &Value, _: Timestamp) -> Value {
    of_containers(at(object, &["spec", "template"]), "image")
}

/// The selector: an object's, or the plain labels of a ReplicationController.
fn selector(object: &Value, _: Timestamp) -> Value {
    let selector = at(object, &["spec", "selector"]);
    let is_object = selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some();
    if is_object { super::selector(selector) } else { super::labels(selector) }
}

fn owner(object: &Value, _: Timestamp) -> Value {
    let owners = items(object, &["metadata", "ownerReferences"]);
    let controller = owners.iter().find(|owner| at(owner, &["controller"]) == true);
    or_none(controller.map_or_else(String::new, |owner| {
        let group = text(owner, &["apiVersion"]).split_once('/').map_or("", |(group, _)| group);
        let kind = text(owner, &["kind"]).to_ascii_lowercase();
        format!("{}/{}", crate::status::qualified(group, &kind), text(owner, &["name"]))
    }))
}

fn job_status(object: &Value, _: Timestamp) -> Value {
    let deleted = !at(object, &["metadata", "deletionTimestamp"]).is_null();
    json!(match () {
        () if has(object, "Complete") => "Complete",
        () if has(object, "Failed") => "Failed",
        () if deleted => "Terminating",
        () if has(object, "Suspended") => "Suspended",
        () if has(object, "FailureTarget") => "FailureTarget",
        () if has(object, "SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    })
}

fn job_completions(object: &Value, _: Timestamp) -> Value {
    let succeeded = number(object, &["status", "succeeded"]);
    let parallelism = number(object, &["spec", "parallelism"]);
    json!(match at(object, &["spec", "completions"]).as_i64() {
        Some(wanted) => format!("{succeeded}/{wanted}"),
        None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        None => format!("{succeeded}/1"),
    })
}

fn job_duration(object: &Value, now: Timestamp) -> Value {
    let time = |name: &str| text(object, &["status", name]).parse::<Timestamp>().ok();
    let Some(start) = time("startTime") else { return json!("") };
    let end = time("completionTime").unwrap_or(now);
    json!(human_duration(end.duration_since(start).as_secs()))
}

fn job_template(object: &Value) -> &Value {
    at(object, &["spec", "jobTemplate"])
}

/// A word, as upstream writes it into a column of truth values.
fn suspended(object: &Value, _: Timestamp) -> Value {
    json!(match at(object, &["spec", "suspend"]).as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    })
}

fn last_schedule(object: &Value, now: Timestamp) -> Value {
    match at(object, &["status", "lastScheduleTime"]) {
        Value::Null => json!("<none>"),
        time => json!(age(time, now)),
    }
}

fn or_not_applicable(value: &Value) -> Value {
    match value {
        Value::Null => json!("N/A"),
        Value::Number(number) => json!(number.to_string()),
        other => other.clone(),
    }
}

fn scaled(object: &Value, _: Timestamp) -> Value {
    let target = at(object, &["spec", "scaleTargetRef"]);
    json!(format!("{}/{}", text(target, &["kind"]), text(target, &["name"])))
}

/// `current/target` of each metric, at most two.
fn metrics(object: &Value, _: Timestamp) -> Value {
    let current = items(object, &["status", "currentMetrics"]);
    let specs = items(object, &["spec", "metrics"]).iter().enumerate();
    let words: Vec<String> =
        specs.map(|(index, spec)| metric(spec, current.get(index).unwrap_or(&Value::Null))).collect();
    or_none(super::shortened(&words, 2, ", "))
}

fn metric(spec: &Value, status: &Value) -> String {
    let (source, is_resource) = match text(spec, &["type"]) {
        "External" => ("external", false),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        _ => return "<unknown type>".into(),
    };
    let (target, current) = (at(spec, &[source, "target"]), at(status, &[source, "current"]));
    let quantity = |of: &Value, field: &str, none: &str| match text(of, &[field]) {
        "" => none.to_owned(),
        text => text.to_owned(),
    };
    let share = |of: &Value, none: &str| match at(of, &["averageUtilization"]).as_i64() {
        Some(percent) => format!("{percent}%"),
        None => none.to_owned(),
    };
    let average = !at(target, &["averageValue"]).is_null();
    let field = if average || source == "pods" { "averageValue" } else { "value" };
    let pair = match is_resource && !average {
        true => format!("{}/{}", share(current, "<unknown>"), share(target, "<auto>")),
        false => format!("{}/{}", quantity(current, field, "<unknown>"), quantity(target, field, "0")),
    };
    match (is_resource, average && source != "pods") {
        (true, _) => format!("{}: {pair}", text(spec, &[source, "name"])),
        (false, true) => format!("{pair} (avg)"),
        (false, false) => pair,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{cells, columns_of};

    #[test]
    fn jobs_and_autoscalers() {
        let job = json!({"metadata": {"name": "j"}, "spec": {"completions": 3, "parallelism": 2},
            "status": {"succeeded": 3, "startTime": "1970-01-01T00:00:00Z", "completionTime": "1970-01-01T00:00:40Z",
                "conditions": [{"type": "Complete", "status": "True"}]}});
        let row = cells(columns_of("batch", "Job"), &job, Timestamp::UNIX_EPOCH);
        assert_eq!(row[1..4], [json!("Complete"), json!("3/3"), json!("40s")]);
        let resource = |name: &str, target: Value| json!({"type": "Resource", "resource": {"name": name, "target": target}});
        let scaler = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 5, "minReplicas": 1,
            "scaleTargetRef": {"kind": "Deployment", "name": "web"}, "metrics": [
                resource("cpu", json!({"averageUtilization": 80})), resource("memory", json!({"averageValue": "1Gi"})),
                {"type": "External", "external": {"target": {"averageValue": "3"}}}]},
            "status": {"currentMetrics": [{"resource": {"current": {"averageUtilization": 5}}}]}});
        let row = cells(columns_of("autoscaling", "HorizontalPodAutoscaler"), &scaler, Timestamp::UNIX_EPOCH);
        assert_eq!(row[1], "Deployment/web");
        assert_eq!(row[2], "cpu: 5%/80%, memory: <unknown>/1Gi + 1 more...");
        assert_eq!(row[3..6], [json!(1), json!(5), json!(0)]);
        let external = metric(&scaler["spec"]["metrics"][2], &Value::Null);
        assert_eq!(external, "<unknown>/3 (avg)");
    }
}
