//! What a set's status says.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::types::{Set, SetCondition, SetStatus};
use crate::pods::Pod;
use crate::selector::is_subset;

/// A failure to make or delete pods: reason and message.
pub(super) type Failure = (&'static str, String);

/// The status of a set with these active pods.
pub(super) fn status(set: &Set, active: &[Pod], failure: Option<&Failure>, now: Timestamp) -> SetStatus {
    let labels: BTreeMap<String, String> =
        serde_json::from_value(set.spec.template["metadata"]["labels"].clone()).unwrap_or_default();
    let min_ready = set.min_ready();
    let count = |holds: &dyn Fn(&Pod) -> bool| {
        i64::try_from(active.iter().filter(|pod| holds(pod)).count()).unwrap_or(i64::MAX)
    };
    SetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: count(&|pod| is_subset(&labels, &pod.metadata.labels)),
        ready_replicas: count(&Pod::is_ready),
        available_replicas: count(&|pod| pod.is_available(min_ready, now)),
        observed_generation: set.metadata.generation,
        conditions: conditions(&set.status.conditions, failure, now),
    }
}

fn conditions(held: &[SetCondition], failure: Option<&Failure>, now: Timestamp) -> Vec<SetCondition> {
    let mut conditions: Vec<SetCondition> =
        held.iter().filter(|condition| condition.r#type != "ReplicaFailure").cloned().collect();
    if let Some((reason, message)) = failure {
        let same = held.iter().find(|condition| condition.r#type == "ReplicaFailure");
        conditions.push(match same {
            // The first failure's time and words stay: they say since when it has been failing.
            Some(same) if same.status == "True" && same.reason == *reason => same.clone(),
            _ => SetCondition {
                r#type: "ReplicaFailure".into(),
                status: "True".into(),
                last_transition_time: Some(now),
                reason: (*reason).into(),
                message: message.clone(),
            },
        });
    }
    conditions
}

/// A merge patch for the status of the object with this uid: zeros are absent, as upstream leaves them out.
pub(super) fn patch(uid: &str, status: &SetStatus) -> Value {
    let count = |count: i64| if count == 0 { Value::Null } else { count.into() };
    let conditions = if status.conditions.is_empty() { Value::Null } else { json!(status.conditions) };
    json!({ "metadata": { "uid": uid }, "status": {
        "replicas": status.replicas,
        "fullyLabeledReplicas": count(status.fully_labeled_replicas),
        "readyReplicas": count(status.ready_replicas),
        "availableReplicas": count(status.available_replicas),
        "observedGeneration": count(status.observed_generation),
        "conditions": conditions,
    }})
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pods;

    #[test]
    fn counts_and_the_failure_condition() {
        let set: Set = serde_json::from_value(json!({
            "metadata": { "generation": 4 },
            "spec": { "minReadySeconds": 10, "template": { "metadata": { "labels": { "a": "b" } } } },
        }))
        .unwrap();
        let now: Timestamp = "2024-01-01T00:00:15Z".parse().unwrap();
        let ready = |since: &str| json!([{ "type": "Ready", "status": "True", "lastTransitionTime": since }]);
        let pods: Vec<Pod> = serde_json::from_value(json!([
            { "metadata": { "labels": { "a": "b", "c": "d" } }, "status": { "conditions": ready("2024-01-01T00:00:00Z") } },
            { "status": { "conditions": ready("2024-01-01T00:00:10Z") } },
            {},
        ]))
        .unwrap();
        let failure = ("FailedCreate", "quota".to_owned());
        let status = status(&set, &pods, Some(&failure), now);
        let counts = (
            status.replicas,
            status.fully_labeled_replicas,
            status.ready_replicas,
            status.available_replicas,
        );
        assert_eq!(counts, (3, 1, 2, 1));
        assert_eq!((status.observed_generation, status.conditions[0].reason.as_str()), (4, "FailedCreate"));
        assert_eq!(pods::next_available(&pods, set.min_ready(), now), Some(Duration::from_secs(5)));
        let kept = conditions(
            &status.conditions,
            Some(&("FailedCreate", "other words".to_owned())),
            now + Duration::from_secs(9),
        );
        assert_eq!(kept, status.conditions);
        assert!(conditions(&kept, None, now).is_empty());
    }
}
