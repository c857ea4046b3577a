//! What a StatefulSet's status says. Pure.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::types::{Member, StatefulSet, StatefulSetStatus};

/// The status of a set with these pods, of which those that are being replaced count as current still.
/// Source: `computeReplicaStatus`.
pub(super) fn status<'a>(
    set: &StatefulSet,
    (current, update): (&str, &str),
    collisions: Option<i32>,
    members: impl Iterator<Item = &'a Member> + Clone,
    now: Timestamp,
) -> StatefulSetStatus {
    let count = |holds: &dyn Fn(&Member) -> bool| {
        i64::try_from(members.clone().filter(|member| holds(member)).count()).unwrap_or(i64::MAX)
    };
    let of = |member: &Member, revision: &str| {
        member.is_created() && !member.is_terminating() && member.revision() == revision
    };
    StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas: count(&Member::is_created),
        ready_replicas: count(&Member::is_running_and_ready),
        available_replicas: count(&|member| {
            member.is_running_and_ready() && member.is_available(set.min_ready(), now)
        }),
        current_replicas: count(&|member| of(member, current)),
        updated_replicas: count(&|member| of(member, update)),
        current_revision: current.to_owned(),
        update_revision: update.to_owned(),
        collision_count: collisions,
    }
}

/// Ends an update whose last pod is ready, whoever deleted the earlier ones: the revision that it went to is the current
/// one. Source: `completeRollingUpdate`, which since v1.37 ends those of `OnDelete` too.
pub(super) fn complete(set: &StatefulSet, status: &mut StatefulSetStatus) {
    let counts = [status.updated_replicas, status.ready_replicas, status.replicas];
    if counts.iter().all(|count| *count == set.replicas()) {
        status.current_replicas = status.updated_replicas;
        status.current_revision.clone_from(&status.update_revision);
    }
}

/// A merge patch for the status of the object with this uid: zeros are absent where upstream leaves them out.
pub(super) fn patch(uid: &str, status: &StatefulSetStatus) -> Value {
    let count = |count: i64| if count == 0 { Value::Null } else { count.into() };
    let name = |name: &str| if name.is_empty() { Value::Null } else { name.into() };
    json!({ "metadata": { "uid": uid }, "status": {
        "observedGeneration": count(status.observed_generation),
        "replicas": status.replicas,
        "readyReplicas": count(status.ready_replicas),
        "availableReplicas": status.available_replicas,
        "currentReplicas": count(status.current_replicas),
        "updatedReplicas": count(status.updated_replicas),
        "currentRevision": name(&status.current_revision),
        "updateRevision": name(&status.update_revision),
        "collisionCount": status.collision_count,
    }})
}
