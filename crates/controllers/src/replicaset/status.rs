//! What a set's status says.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::members::Member;
use super::types::{Set, SetCondition, SetStatus};
use crate::pods;
use crate::selector::is_subset;

/// A failure to make or delete pods: reason and message.
pub(super) type Failure = (&'static str, String);

/// The status of a set with these active pods, and so many that are leaving where that is told.
pub(super) fn status(
    set: &Set,
    active: &[Member],
    leaving: Option<i64>,
    failure: Option<&Failure>,
    now: Timestamp,
) -> SetStatus {
    let labels: BTreeMap<String, String> =
        serde_json::from_value(set.spec.template["metadata"]["labels"].clone()).unwrap_or_default();
    let min_ready = set.min_ready();
    let count = |holds: &dyn Fn(&Member) -> bool| {
        i64::try_from(active.iter().filter(|member| holds(member)).count()).unwrap_or(i64::MAX)
    };
    SetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: count(&|member| is_subset(&labels, &member.pod.meta().labels)),
        ready_replicas: count(&|member| member.standing.is_ready()),
        available_replicas: count(&|member| member.standing.is_available(min_ready, now)),
        terminating_replicas: leaving,
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

/// When the next ready pod becomes available.
pub(super) fn next_available(set: &Set, active: &[Member], now: Timestamp) -> Option<Duration> {
    let min_ready = set.min_ready();
    let moments = active.iter().filter_map(|member| member.standing.available_at(min_ready));
    pods::next_moment(moments, min_ready, now)
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
    use std::sync::Arc;

    use api::Object;

    use super::super::members::Standings;
    use super::*;

    #[test]
    fn counts_and_the_failure_condition() {
        let set: Set = serde_json::from_value(json!({
            "metadata": { "generation": 4 },
            "spec": { "minReadySeconds": 10, "template": { "metadata": { "labels": { "a": "b" } } } },
        }))
        .unwrap();
        let now: Timestamp = "2024-01-01T00:00:15Z".parse().unwrap();
        let ready = |since: &str| json!([{ "type": "Ready", "status": "True", "lastTransitionTime": since }]);
        let member = |pod: &Value| {
            let pod = Arc::new(Object::parse(serde_json::to_vec(pod).unwrap().into()).unwrap());
            Member { standing: Standings::default().of(&pod).unwrap(), pod }
        };
        let pods = [
            json!({ "metadata": { "labels": { "a": "b", "c": "d" } }, "status": { "conditions": ready("2024-01-01T00:00:00Z") } }),
            json!({ "status": { "conditions": ready("2024-01-01T00:00:10Z") } }),
            json!({}),
        ];
        let pods = pods.each_ref().map(member);
        let failure = ("FailedCreate", "quota".to_owned());
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
        assert_eq!(next_available(&set, &pods, now), Some(Duration::from_secs(5)));
        let kept = conditions(
            &status.conditions,
            Some(&("FailedCreate", "other words".to_owned())),
            now + Duration::from_secs(9),
        );
        assert_eq!(kept, status.conditions);
        assert!(conditions(&kept, None, now).is_empty());
    }
}
