//! What a DaemonSet's status says. Pure.

use serde_json::{Value, json};

use super::plan::{Snapshot, by_node};
use super::types::DaemonSetStatus;

/// The status of a set. While the controller waits to see its own writes (`acted` is false), it has not acted on the
/// present generation. Source: `updateDaemonSetStatus`.
pub(super) fn status(snapshot: &Snapshot<'_>, acted: bool) -> DaemonSetStatus {
    let Snapshot { set, now, .. } = *snapshot;
    let daemons = by_node(snapshot.daemons);
    let observed = if acted { set.metadata.generation } else { set.status.observed_generation };
    let mut status = DaemonSetStatus {
        observed_generation: observed,
        collision_count: set.status.collision_count,
        ..DaemonSetStatus::default()
    };
    for node in snapshot.nodes {
        let runs = snapshot.placement.judge(node).runs;
        let first = daemons.get(node.name.as_str()).and_then(|daemons| daemons.first());
        status.desired_number_scheduled += i64::from(runs);
        let Some(first) = first else { continue };
        if !runs {
            status.number_misscheduled += 1;
            continue;
        }
        status.current_number_scheduled += 1;
        status.number_ready += i64::from(first.pod.is_ready());
        status.number_available += i64::from(first.pod.is_available(set.min_ready(), now));
        status.updated_number_scheduled += i64::from(first.is_updated(set, snapshot.hash));
    }
    status.number_unavailable = status.desired_number_scheduled - status.number_available;
    status
}

/// A merge patch for the status of the object with this uid: zeros are absent where upstream leaves them out.
pub(super) fn patch(uid: &str, status: &DaemonSetStatus) -> Value {
    let count = |count: i64| if count == 0 { Value::Null } else { count.into() };
    json!({ "metadata": { "uid": uid }, "status": {
        "observedGeneration": count(status.observed_generation),
        "currentNumberScheduled": status.current_number_scheduled,
        "numberMisscheduled": status.number_misscheduled,
        "desiredNumberScheduled": status.desired_number_scheduled,
        "numberReady": status.number_ready,
        "updatedNumberScheduled": count(status.updated_number_scheduled),
        "numberAvailable": count(status.number_available),
        "numberUnavailable": count(status.number_unavailable),
    }})
}
