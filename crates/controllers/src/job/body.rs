//! The pods that a Job's template stands for.

use api::ObjectMeta;
use reconcile::kinds;
use serde_json::{Value, json};

use super::plan::NewPod;
use super::types::{FAILURES, IGNORED_FAILURES, INDEX, Job, TRACKING};
use crate::template;

/// Tells a container its index.
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// The server puts five characters behind a prefix, and cuts it so that a name has 63 at most.
const PREFIX_MAX: usize = 58;

/// What all pods of a Job have in common.
pub(super) fn template(job: &Job) -> Value {
    let mut pod = template::pod(&job.spec.template, &kinds::JOBS, &job.metadata);
    let finalizers = &mut pod["metadata"]["finalizers"];
    if !finalizers.is_array() {
        *finalizers = json!([]);
    }
    if let Some(finalizers) = finalizers.as_array_mut().filter(|held| !held.contains(&TRACKING.into())) {
        finalizers.push(TRACKING.into());
    }
    if job.is_indexed() {
        for list in ["initContainers", "containers"] {
            for container in pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                tell_index(container);
            }
        }
    }
    pod
}

/// Puts the variable with the index into a container that has none of this name.
fn tell_index(container: &mut Value) {
    let Some(container) = container.as_object_mut() else { return };
    let variables = container.entry("env").or_insert_with(|| json!([]));
    if variables.is_null() {
        *variables = json!([]);
    }
    let Some(variables) = variables.as_array_mut() else { return };
    if variables.iter().all(|variable| variable["name"] != INDEX_VARIABLE) {
        let path = format!("metadata.labels['{INDEX}']");
        variables.push(json!({ "name": INDEX_VARIABLE, "valueFrom": { "fieldRef": { "fieldPath": path } } }));
    }
}

/// One pod.
pub(super) fn pod(template: &Value, job: &ObjectMeta, new: &NewPod) -> Value {
    let mut pod = template.clone();
    let Some(index) = new.index else { return pod };
    let text = index.to_string();
    let metadata = &mut pod["metadata"];
    metadata["generateName"] = prefix(&job.name, index).into();
    metadata["labels"][INDEX] = text.as_str().into();
    metadata["annotations"][INDEX] = text.as_str().into();
    if let Some((counted, ignored)) = new.failures {
        metadata["annotations"][FAILURES] = counted.to_string().into();
        if ignored > 0 {
            metadata["annotations"][IGNORED_FAILURES] = ignored.to_string().into();
        }
    }
    pod["spec"]["hostname"] = format!("{}-{index}", job.name).into();
    pod
}

/// The beginning of a pod's name. The index is never what is cut off.
fn prefix(job: &str, index: i64) -> String {
    let end = format!("-{index}-");
    let room = PREFIX_MAX.saturating_sub(end.len());
    let cut = (0..=room.min(job.len())).rev().find(|at| job.is_char_boundary(*at)).unwrap_or(0);
    format!("{}{end}", &job[..cut])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(mode: &str) -> Job {
        serde_json::from_value(json!({
            "metadata": { "name": "sum", "namespace": "ns", "uid": "u" },
            "spec": { "completionMode": mode, "template": {
                "metadata": { "labels": { "job-name": "sum" }, "finalizers": ["mine"], "creationTimestamp": null },
                "spec": { "future": 1, "initContainers": [{ "name": "first" }], "containers": [
                    { "name": "main", "env": [{ "name": "JOB_COMPLETION_INDEX", "value": "own" }] }] } } },
        }))
        .unwrap()
    }

    #[test]
    fn pods_keep_what_the_template_says() {
        let job = job("NonIndexed");
        let pod = pod(&template(&job), &job.metadata, &NewPod::default());
        assert_eq!(
            pod["metadata"],
            json!({
                "generateName": "sum-", "namespace": "ns", "labels": { "job-name": "sum" },
                "finalizers": ["mine", "batch.kubernetes.io/job-tracking"],
                "ownerReferences": [{ "apiVersion": "batch/v1", "kind": "Job", "name": "sum", "uid": "u",
                    "controller": true, "blockOwnerDeletion": true }],
            })
        );
        assert_eq!(pod["spec"], job.spec.template["spec"]);
    }

    #[test]
    fn pods_know_their_index() {
        let job = job("Indexed");
        let new = NewPod { index: Some(7), failures: Some((2, 0)) };
        let body = pod(&template(&job), &job.metadata, &new);
        assert_eq!(body["metadata"]["generateName"], "sum-7-");
        assert_eq!(body["spec"]["hostname"], "sum-7");
        assert_eq!(body["metadata"]["labels"], json!({ "job-name": "sum", INDEX: "7" }));
        assert_eq!(body["metadata"]["annotations"], json!({ INDEX: "7", FAILURES: "2" }));
        let path = "metadata.labels['batch.kubernetes.io/job-completion-index']";
        let told = json!([{ "name": INDEX_VARIABLE, "valueFrom": { "fieldRef": { "fieldPath": path } } }]);
        assert_eq!(body["spec"]["initContainers"][0]["env"], told);
        assert_eq!(body["spec"]["containers"][0]["env"][0]["value"], "own");
        assert_eq!(body["spec"]["containers"][0]["env"].as_array().unwrap().len(), 1);
        let ignored = pod(&template(&job), &job.metadata, &NewPod { index: Some(0), failures: Some((0, 3)) });
        assert_eq!(
            ignored["metadata"]["annotations"],
            json!({ INDEX: "0", FAILURES: "0", IGNORED_FAILURES: "3" })
        );
        assert_eq!(prefix(&"a".repeat(60), 12), format!("{}-12-", "a".repeat(54)));
    }
}
