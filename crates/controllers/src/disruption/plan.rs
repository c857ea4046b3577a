//! What the status of a budget is to say. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::types::{Budget, BudgetSpec, BudgetStatus, Condition};
use crate::amount;
use crate::pods::Pod;

/// A pod whose eviction was allowed has to be on its way out within this time, else it counts again.
/// Source: `DeletionTimeout`.
const DELETION_TIMEOUT: Duration = Duration::from_secs(120);
/// A pod that is said to be disrupted and is not deleted within this time is not disrupted after all.
/// Source: `stalePodDisruptionTimeout`.
const STALE_AFTER: Duration = Duration::from_secs(120);
/// The type of a budget's one condition.
const ALLOWED: &str = "DisruptionAllowed";

/// What one look at a budget and its pods says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The status.
    pub(super) status: BudgetStatus,
    /// When the next allowed eviction expires that has not begun.
    pub(super) recheck: Option<Duration>,
    /// Pods whose eviction was allowed and did not happen.
    pub(super) not_deleted: Vec<String>,
}

/// Looks at a budget and its pods; `scale` is the sum over the pods' controllers, where the budget asks for it.
pub(super) fn plan(budget: &Budget, pods: &[Pod], scale: i32, now: Timestamp) -> Outcome {
    let count = i32::try_from(pods.len()).unwrap_or(i32::MAX);
    let (expected, desired) = wanted(&budget.spec, count, scale);
    let mut outcome = Outcome { status: budget.status.clone(), recheck: None, not_deleted: Vec::new() };
    let disrupted = still_disrupted(budget, pods, now, &mut outcome);
    let healthy = pods.iter().filter(|pod| {
        !pod.metadata.is_terminating() && !disrupted.contains_key(&pod.metadata.name) && pod.is_ready()
    });
    let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
    // Nothing may go where nothing is expected: the first pods of a set appear before its budget has counted them.
    let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
    let status = &mut outcome.status;
    status.observed_generation = budget.metadata.generation;
    status.disrupted_pods = disrupted;
    status.disruptions_allowed = allowed;
    status.current_healthy = healthy;
    status.desired_healthy = desired;
    status.expected_pods = expected;
    let (verdict, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    set_condition(status, verdict, reason, String::new(), now);
    outcome
}

/// Expected and desired pods. Source: `getExpectedPodCount`.
fn wanted(spec: &BudgetSpec, count: i32, scale: i32) -> (i32, i32) {
    if let Some(most) = &spec.max_unavailable {
        return (scale, (scale - resolve(most, scale)).max(0));
    }
    match &spec.min_available {
        None => (0, 0),
        Some(least) if least.is_string() => (scale, resolve(least, scale)),
        Some(least) => (count, resolve(least, count)),
    }
}

/// A number as it is, or a percentage of `total`, rounded up.
fn resolve(value: &Value, total: i32) -> i32 {
    i32::try_from(amount::resolve(value, total.into(), true)).unwrap_or(i32::MAX)
}

/// The pods whose eviction was allowed and is still awaited. Source: `buildDisruptedPodMap`.
fn still_disrupted(
    budget: &Budget,
    pods: &[Pod],
    now: Timestamp,
    outcome: &mut Outcome,
) -> BTreeMap<String, Timestamp> {
    let mut kept = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !pod.metadata.is_terminating()) {
        let name = &pod.metadata.name;
        let Some(since) = budget.status.disrupted_pods.get(name) else { continue };
        match left(*since, DELETION_TIMEOUT, now) {
            None => outcome.not_deleted.push(name.clone()),
            Some(left) => {
                outcome.recheck = Some(outcome.recheck.map_or(left, |next| next.min(left)));
                kept.insert(name.clone(), *since);
            }
        }
    }
    kept
}

/// What is left of `period` since a moment; `None` once it is over.
fn left(since: Timestamp, period: Duration, now: Timestamp) -> Option<Duration> {
    let end = since.saturating_add(period).ok()?;
    Duration::try_from(end.duration_since(now)).ok().filter(|left| !left.is_zero())
}

/// The status after the pods could not be counted: nothing may be evicted then. Source: `failSafe`.
pub(super) fn failed(budget: &Budget, why: String, now: Timestamp) -> BudgetStatus {
    let mut status = budget.status.clone();
    status.disruptions_allowed = 0;
    set_condition(&mut status, "False", "SyncFailed", why, now);
    status
}

/// Source: `meta.SetStatusCondition`.
fn set_condition(status: &mut BudgetStatus, verdict: &str, reason: &str, message: String, now: Timestamp) {
    let held = status.conditions.iter().position(|held| held.r#type == ALLOWED);
    let since = held.map(|at| &status.conditions[at]).filter(|held| held.status == verdict);
    let condition = Condition {
        r#type: ALLOWED.into(),
        status: verdict.into(),
        observed_generation: status.observed_generation,
        last_transition_time: since.and_then(|held| held.last_transition_time).or(Some(now)),
        reason: reason.into(),
        message,
    };
    match held {
        Some(at) => status.conditions[at] = condition,
        None => status.conditions.push(condition),
    }
}

/// After which time a pod that says that it is disrupted, and is not being deleted, has to take that back; `None` if it
/// does not say so. What the kubelet says stands: its pods may take long to go.
pub(super) fn stale_in(pod: &Pod, now: Timestamp) -> Option<Duration> {
    if pod.metadata.is_terminating() || pod.is_finished() {
        return None;
    }
    let held = pod.status.conditions.iter().find(|held| held.r#type == "DisruptionTarget")?;
    if held.status != "True" || held.reason == "TerminationByKubelet" {
        return None;
    }
    let since = held.last_transition_time.unwrap_or(Timestamp::UNIX_EPOCH);
    Some(left(since, STALE_AFTER, now).unwrap_or_default())
}
