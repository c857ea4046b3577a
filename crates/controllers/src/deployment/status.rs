//! What a Deployment's status says, and when to look at it again.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::plan::Planner;
use super::types::{Deployment, DeploymentCondition, DeploymentStatus};
use crate::replicaset::Set;

pub(super) const TIMED_OUT: &str = "ProgressDeadlineExceeded";
pub(super) const PAUSED: &str = "DeploymentPaused";
pub(super) const RESUMED: &str = "DeploymentResumed";
const AVAILABLE: &str = "NewReplicaSetAvailable";

/// A condition that begins now.
pub(super) fn condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        r#type: kind.into(),
        status: status.into(),
        last_update_time: Some(now),
        last_transition_time: Some(now),
        reason: reason.into(),
        message: message.into(),
    }
}

/// The numbers of the status, without conditions.
pub(super) fn counts(planner: &Planner) -> DeploymentStatus {
    let sum = |count: &dyn Fn(&Set) -> i64| planner.all().map(count).sum::<i64>();
    let available = sum(&|set| set.status.available_replicas);
    DeploymentStatus {
        observed_generation: planner.deployment.metadata.generation,
        replicas: sum(&|set| set.status.replicas),
        updated_replicas: planner.new.as_ref().map_or(0, |new| new.status.replicas),
        ready_replicas: sum(&|set| set.status.ready_replicas),
        available_replicas: available,
        unavailable_replicas: (sum(&Set::replicas) - available).max(0),
        terminating_replicas: leaving(planner.all()),
        collision_count: planner.deployment.status.collision_count,
        conditions: Vec::new(),
    }
}

/// How many pods of all sets are leaving; nothing if one does not say it. What has no status yet has no pods.
/// Source: `GetTerminatingReplicaCountForReplicaSets`.
fn leaving<'a>(mut sets: impl Iterator<Item = &'a Set>) -> Option<i64> {
    sets.try_fold(0, |sum: i64, set| match set.status.terminating_replicas {
        None if set.status.observed_generation == 0 => Some(sum),
        told => Some(sum.saturating_add(told?)),
    })
}

/// Whether a rollout is done: every wanted pod is new and available, and no other is left.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = deployment.replicas();
    status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn progresses(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    new.updated_replicas > old.updated_replicas
        || new.replicas - new.updated_replicas < old.replicas - old.updated_replicas
        || new.ready_replicas > old.ready_replicas
        || new.available_replicas > old.available_replicas
}

/// When the progress deadline passes, counted from the last progress.
fn deadline(deployment: &Deployment) -> Option<Timestamp> {
    let seconds = deployment.deadline_s()?;
    let since = deployment.condition("Progressing")?.last_update_time?;
    since.saturating_add(jiff::SignedDuration::from_secs(seconds)).ok()
}

fn timed_out(deployment: &Deployment, now: Timestamp) -> bool {
    match deployment.condition("Progressing") {
        Some(held) if held.reason == AVAILABLE => false,
        Some(held) if held.reason == TIMED_OUT => true,
        _ => deadline(deployment).is_some_and(|deadline| deadline < now),
    }
}

/// Keeps the conditions Progressing and ReplicaFailure. Source: `syncRolloutStatus`.
pub(super) fn note_progress(planner: &mut Planner, counts: &DeploymentStatus) {
    if planner.deployment.deadline_s().is_none() {
        planner.deployment.status.conditions.retain(|held| held.r#type != "Progressing");
    } else {
        let current = planner.deployment.condition("Progressing").cloned();
        let settled = counts.replicas == counts.updated_replicas
            && current.as_ref().is_some_and(|held| held.reason == AVAILABLE);
        if !settled {
            note_rollout(planner, counts, current.as_ref());
        }
    }
    let failure = planner
        .new
        .iter()
        .chain(&planner.old)
        .flat_map(|set| &set.status.conditions)
        .find(|held| held.r#type == "ReplicaFailure")
        .cloned();
    match failure {
        // It has been so since the set says it.
        Some(failure) => planner.set_condition(DeploymentCondition {
            r#type: failure.r#type,
            status: failure.status,
            last_update_time: failure.last_transition_time,
            last_transition_time: failure.last_transition_time,
            reason: failure.reason,
            message: failure.message,
        }),
        None => planner.deployment.status.conditions.retain(|held| held.r#type != "ReplicaFailure"),
    }
}

fn note_rollout(planner: &mut Planner, counts: &DeploymentStatus, current: Option<&DeploymentCondition>) {
    let now = planner.now;
    let subject = match &planner.new {
        Some(new) => format!("ReplicaSet {:?}", new.metadata.name),
        None => format!("Deployment {:?}", planner.deployment.metadata.name),
    };
    if is_complete(&planner.deployment, counts) {
        let message = format!("{subject} has successfully progressed.");
        planner.set_condition(condition("Progressing", "True", AVAILABLE, &message, now));
    } else if progresses(&planner.deployment.status, counts) {
        let message = format!("{subject} is progressing.");
        let mut next = condition("Progressing", "True", "ReplicaSetUpdated", &message, now);
        if let Some(current) = current.filter(|current| current.status == "True") {
            next.last_transition_time = current.last_transition_time;
        }
        // Also with the same reason it is written anew: its time is that of the last progress.
        planner.deployment.status.conditions.retain(|held| held.r#type != "Progressing");
        planner.set_condition(next);
    } else if timed_out(&planner.deployment, now) {
        let message = format!("{subject} has timed out progressing.");
        planner.set_condition(condition("Progressing", "False", TIMED_OUT, &message, now));
    }
}

/// The condition Available.
pub(super) fn availability(
    deployment: &Deployment,
    counts: &DeploymentStatus,
    now: Timestamp,
) -> DeploymentCondition {
    if counts.available_replicas >= deployment.replicas() - deployment.max_unavailable() {
        let message = "Deployment has minimum availability.";
        condition("Available", "True", "MinimumReplicasAvailable", message, now)
    } else {
        let message = "Deployment does not have minimum availability.";
        condition("Available", "False", "MinimumReplicasUnavailable", message, now)
    }
}

/// When a rollout that stands still has to be looked at again. Source: `requeueStuckDeployment`.
pub(super) fn next_check(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let progressing = deployment.condition("Progressing")?;
    // No deadline runs for what was done once and has lost pods since: waiting would begin anew every second.
    if is_complete(deployment, status) || [TIMED_OUT, AVAILABLE].contains(&progressing.reason.as_str()) {
        return None;
    }
    let left = Duration::try_from(deadline(deployment)?.duration_since(now)).unwrap_or_default();
    Some(left + Duration::from_secs(1))
}

/// A merge patch for the status: zeros are absent, as upstream leaves them out.
pub(super) fn patch(status: &DeploymentStatus) -> Value {
    let count = |count: i64| if count == 0 { Value::Null } else { count.into() };
    json!({ "status": {
        "observedGeneration": count(status.observed_generation),
        "replicas": count(status.replicas),
        "updatedReplicas": count(status.updated_replicas),
        "readyReplicas": count(status.ready_replicas),
        "availableReplicas": count(status.available_replicas),
        "unavailableReplicas": count(status.unavailable_replicas),
        "terminatingReplicas": status.terminating_replicas,
        "collisionCount": status.collision_count,
        "conditions": status.conditions,
    }})
}
