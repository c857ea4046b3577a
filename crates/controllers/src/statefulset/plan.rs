//! Decides the next steps of a StatefulSet from a snapshot of it, its pods and their claims.
//! Source: `statefulset/stateful_set_control.go`.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::claims::{self, ClaimStep, Held};
use super::types::{Member, StatefulSet, StatefulSetStatus};
use super::{identity, rolling, status};
use crate::pods;

/// What is known when deciding.
pub(super) struct Snapshot<'a> {
    pub(super) set: &'a StatefulSet,
    /// The names of the current and of the update revision.
    pub(super) revisions: (&'a str, &'a str),
    pub(super) collisions: i32,
    /// The pods that belong to the set, in any order.
    pub(super) members: &'a [Member],
    /// The claims of their names.
    pub(super) claims: &'a Held,
    pub(super) now: Timestamp,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// Makes a pod, of the update revision or of the current one, and first the claims that it lacks.
    Create { ordinal: i64, updated: bool, claims: Vec<ClaimStep> },
    /// Makes claims that a pending pod lacks, and gives claims their owners.
    Claims { ordinal: i64, claims: Vec<ClaimStep> },
    /// Gives a pod its identity and its volumes, and its claims their owners.
    Update { ordinal: i64, patch: Option<Value>, claims: Vec<ClaimStep> },
    /// Deletes a pod; `rolling` if another revision is to take its place.
    Delete { ordinal: i64, uid: String, rolling: bool },
}

/// What to do. Phases are carried out one after the other; one that fails is the last.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) phases: Vec<Vec<Step>>,
    /// The status, when all is done that the plan says; see [`finished`].
    pub(super) status: StatefulSetStatus,
    /// When to look again though nothing changes.
    pub(super) again: Option<Duration>,
    /// How many pods may be missing and how many are, where pods were looked at for a rolling update.
    pub(super) bounds: Option<(i64, i64)>,
}

/// An ordinal that is wanted: its pod, or that of which revision it is to have.
#[derive(Debug, Clone, Copy)]
pub(super) enum Slot<'a> {
    Held(&'a Member),
    Missing { ordinal: i64, updated: bool },
}

impl Slot<'_> {
    pub(super) fn ordinal(&self) -> i64 {
        match self {
            Self::Held(member) => member.ordinal,
            Self::Missing { ordinal, .. } => *ordinal,
        }
    }

    /// Whether it lacks a pod that is available and stays. Source: `isUnavailable`.
    pub(super) fn is_unavailable(&self, set: &StatefulSet, now: Timestamp) -> bool {
        match self {
            Self::Held(member) => member.is_terminating() || !member.is_available(set.min_ready(), now),
            Self::Missing { .. } => true,
        }
    }
}

/// The next steps.
pub(super) fn plan(snapshot: &Snapshot<'_>) -> Plan {
    let Snapshot { set, members, now, .. } = *snapshot;
    let (slots, condemned) = sort_out(snapshot);
    let collisions = Some(snapshot.collisions);
    let mut plan = Plan {
        phases: Vec::new(),
        status: status::status(set, snapshot.revisions, collisions, members.iter(), now),
        again: pods::next_available(members.iter().map(|member| &member.pod), set.min_ready(), now),
        bounds: None,
    };
    if set.metadata.is_terminating() {
        return plan;
    }
    let (steps, mut goes_on) = keep(snapshot, &slots);
    plan.phases.push(steps);
    if goes_on {
        plan.phases.push(release_claims(snapshot, &condemned));
        let (steps, all_go) = shrink(snapshot, &condemned);
        plan.phases.push(steps);
        goes_on = all_go;
    }
    if goes_on && set.rolls() {
        let unavailable = rolling::unavailable(set, &slots, now);
        plan.bounds = Some((set.max_unavailable(), unavailable));
        plan.phases.push(rolling::replace(set, snapshot.revisions.1, &slots, unavailable, now));
    }
    plan.phases.retain(|phase| !phase.is_empty());
    plan
}

/// The status after so many pods were deleted for the rolling update.
pub(super) fn finished(set: &StatefulSet, mut status: StatefulSetStatus, replaced: i64) -> StatefulSetStatus {
    status.current_replicas = (status.current_replicas - replaced).max(0);
    status::complete(set, &mut status);
    status
}

/// The ordinals that are wanted, in order, and the pods beyond, from the highest ordinal down.
fn sort_out<'a>(snapshot: &Snapshot<'a>) -> (Vec<Slot<'a>>, Vec<&'a Member>) {
    let set = snapshot.set;
    let mut held: BTreeMap<i64, &Member> =
        snapshot.members.iter().map(|member| (member.ordinal, member)).collect();
    let slots = set
        .ordinals(&held.keys().copied().collect())
        .into_iter()
        .map(|ordinal| match held.remove(&ordinal) {
            Some(member) => Slot::Held(member),
            None => Slot::Missing { ordinal, updated: !keeps_version(set, ordinal) },
        })
        .collect();
    (slots, held.into_values().rev().collect())
}

/// Whether a pod that is missing is made of the current revision: those below the partition are, and without bounds
/// those that had not been replaced yet. Source: `newVersionedStatefulSetPod`, but for parallel pods without bounds: they are
/// not replaced in order, so that upstream would make broken ones of the current revision and delete them again for ever.
fn keeps_version(set: &StatefulSet, ordinal: i64) -> bool {
    let kept = match &set.spec.update_strategy.rolling_update {
        Some(_) => set.partition(),
        None if set.rolls() && set.is_ordered() => set.status.current_replicas,
        None => 0,
    };
    ordinal < set.start().saturating_add(kept)
}

/// Brings each wanted pod to where it should be; with ordered pods, up to the first that has to be waited for. Also gives
/// whether anything else may be done. Source: `processReplica`.
fn keep(snapshot: &Snapshot<'_>, slots: &[Slot<'_>]) -> (Vec<Step>, bool) {
    let mut steps = Vec::new();
    for slot in slots {
        let goes_on = match slot {
            Slot::Held(member) => keep_held(snapshot, member, &mut steps),
            Slot::Missing { ordinal, updated } => {
                if !claims::stale(snapshot.set, *ordinal, snapshot.claims) {
                    let claims = claims::missing(snapshot.set, *ordinal, snapshot.claims);
                    steps.push(Step::Create { ordinal: *ordinal, updated: *updated, claims });
                }
                false
            }
        };
        if !goes_on && snapshot.set.is_ordered() {
            return (steps, false);
        }
    }
    (steps, true)
}

/// One pod that is there; gives whether the next one may follow.
fn keep_held(snapshot: &Snapshot<'_>, member: &Member, steps: &mut Vec<Step>) -> bool {
    let Snapshot { set, claims: held, now, .. } = *snapshot;
    let ordinal = member.ordinal;
    // Also one that succeeded is replaced: what ended a pod from outside may have let it exit with 0.
    if member.pod.is_finished() {
        if !member.is_terminating() {
            steps.push(delete(member, false));
        }
        return false;
    }
    let meta = &member.pod.metadata;
    if member.is_pending() {
        let mut claims = claims::missing(set, ordinal, held);
        claims.extend(claims::owned_wrongly(set, ordinal, meta, held));
        if !claims.is_empty() {
            steps.push(Step::Claims { ordinal, claims });
        }
    }
    let waits = member.is_terminating()
        || !member.is_running_and_ready()
        || !member.is_available(set.min_ready(), now);
    if waits && set.is_ordered() {
        return false;
    }
    let patch = identity::correction(set, member);
    let mut claims = Vec::new();
    if patch.as_ref().is_some_and(|patch| patch.get("spec").is_some()) {
        claims = claims::missing(set, ordinal, held);
    }
    if !member.is_pending() {
        claims.extend(claims::owned_wrongly(set, ordinal, meta, held));
    }
    if patch.is_some() || !claims.is_empty() {
        steps.push(Step::Update { ordinal, patch, claims });
    }
    true
}

/// The claims of pods that are too many go with them, where the policy says so.
fn release_claims(snapshot: &Snapshot<'_>, condemned: &[&Member]) -> Vec<Step> {
    condemned
        .iter()
        .filter_map(|member| {
            let (set, ordinal) = (snapshot.set, member.ordinal);
            let claims = claims::owned_wrongly(set, ordinal, &member.pod.metadata, snapshot.claims);
            (!claims.is_empty()).then_some(Step::Claims { ordinal, claims })
        })
        .collect()
}

/// Deletes pods that are too many: all, or with ordered pods the one with the highest ordinal, once every other one is
/// well. Also gives whether a rolling update may go on. Source: `processCondemned`.
fn shrink(snapshot: &Snapshot<'_>, condemned: &[&Member]) -> (Vec<Step>, bool) {
    let Snapshot { set, now, .. } = *snapshot;
    if !set.is_ordered() {
        let going = condemned.iter().filter(|member| !member.is_terminating());
        return (going.map(|member| delete(member, false)).collect(), true);
    }
    let Some(last) = condemned.first() else { return (Vec::new(), true) };
    // All that are wanted are well. Of the others, the lowest that is not may go, so that one which never comes up does not
    // stand in its own way.
    let unwell = |member: &&&Member| Slot::Held(member).is_unavailable(set, now);
    let first_unwell = condemned.iter().rev().find(unwell).map(|member| member.ordinal);
    let well = last.is_running_and_ready() && last.is_available(set.min_ready(), now);
    if last.is_terminating() || (!well && first_unwell != Some(last.ordinal)) {
        return (Vec::new(), false);
    }
    (vec![delete(last, false)], false)
}

/// Deletes just this pod.
pub(super) fn delete(member: &Member, rolling: bool) -> Step {
    Step::Delete { ordinal: member.ordinal, uid: member.pod.metadata.uid.clone(), rolling }
}
