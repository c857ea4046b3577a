//! What a set's status says.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::roster::Count;
use super::types::{Set, SetCondition, SetStatus};

/// A failure to make or delete pods: reason and message.
pub(super) type Failure = (&'static str, String);

/// The status of a set with so many pods; `leaving` are told where they are counted.
pub(super) fn status(
    set: &Set,
    pods: &Count,
    leaving: Option<usize>,
    failure: Option<&Failure>,
    now: Timestamp,
) -> SetStatus {
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    SetStatus {
        replicas: number(pods.active),
        fully_labeled_replicas: number(pods.labelled),
        ready_replicas: number(pods.ready),
        available_replicas: number(pods.available),
        terminating_replicas: leaving.map(number),
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
    let mut patch = json!({ "metadata": { "uid": uid }, "status": {
        "replicas": status.replicas,
        "fullyLabeledReplicas": count(status.fully_labeled_replicas),
        "readyReplicas": count(status.ready_replicas),
        "availableReplicas": count(status.available_replicas),
        "observedGeneration": count(status.observed_generation),
        "conditions": conditions,
    }});
    if let Some(leaving) = status.terminating_replicas {
        patch["status"]["terminatingReplicas"] = leaving.into();
    }
    patch
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn counts_and_the_failure_condition() {
        let set: Set = serde_json::from_value(json!({ "metadata": { "generation": 4 } })).unwrap();
        let now: Timestamp = "2024-01-01T00:00:15Z".parse().unwrap();
        let failure = ("FailedCreate", "quota".to_owned());
        let pods = Count { active: 3, labelled: 1, ready: 2, available: 1, leaving: 2, next_available: None };
        let status = status(&set, &pods, Some(2), Some(&failure), now);
        assert_eq!(patch("u", &status)["status"]["terminatingReplicas"], 2);
        let untold = super::status(&set, &pods, None, None, now);
        assert_eq!(patch("u", &untold)["status"].get("terminatingReplicas"), None);
        let counts = (
            status.replicas,
            status.fully_labeled_replicas,
            status.ready_replicas,
            status.available_replicas,
        );
        assert_eq!(counts, (3, 1, 2, 1));
        assert_eq!((status.observed_generation, status.conditions[0].reason.as_str()), (4, "FailedCreate"));
        let kept = conditions(
            &status.conditions,
            Some(&("FailedCreate", "other words".to_owned())),
            now + Duration::from_secs(9),
        );
        assert_eq!(kept, status.conditions);
        assert!(conditions(&kept, None, now).is_empty());
    }
}
