//! Making room: which pods of lower priority have to go, on which node, so that a pod fits there.
//! Source: `framework/preemption`, `plugins/defaultpreemption`.

use std::cmp::Reverse;
use std::sync::Arc;

use jiff::Timestamp;

use super::Refusal;
use super::cycle::{Filters, Turn};
use super::verdict::Reasons;
use crate::cluster::groups::Slot;
use crate::cluster::{Cluster, NodeState};
use crate::types::Pod;

const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";
const NEVER: &str = "not eligible due to preemptionPolicy=Never.";
const UNDER_WAY: &str = "not eligible due to a terminating pod on the nominated node.";

/// How many nodes are tried. Shape: `DefaultPreemptionArgs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// So many hundredths of the nodes on which it may help.
    pub percentage: usize,
    /// At least so many.
    pub absolute: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { percentage: 10, absolute: 100 }
    }
}

/// A node on which room can be made.
#[derive(Debug, Clone)]
pub struct Room {
    /// The node.
    pub node: String,
    /// Who would have to go, the most important first.
    pub victims: Vec<Arc<Pod>>,
    /// How many of them no budget lets go.
    pub violations: usize,
}

/// Who has to go.
#[derive(Debug, Clone)]
pub struct Preemption {
    /// The node.
    pub node: String,
    /// The pods, the most important first.
    pub victims: Vec<Arc<Pod>>,
    /// Less important pods that waited for room on that node, which they do no more.
    pub displaced: Vec<Arc<Pod>>,
    /// All nodes on which room can be made: extenders may leave some.
    pub rooms: Vec<Room>,
}

impl PartialEq for Preemption {
    fn eq(&self, other: &Self) -> bool {
        let uids = |pods: &[Arc<Pod>]| pods.iter().map(|pod| pod.uid.clone()).collect::<Vec<_>>();
        self.node == other.node
            && uids(&self.victims) == uids(&other.victims)
            && uids(&self.displaced) == uids(&other.displaced)
    }
}

impl Eq for Preemption {}

/// Why nobody goes.
pub(super) struct Nobody {
    pub(super) message: String,
    /// Whether the pod waits for room on no node any more.
    pub(super) ends_nomination: bool,
}

/// What is said if making room helps on no node.
pub(super) fn not_helpful(pod: &Pod, nodes: usize) -> String {
    if pod.spec.never_preempts {
        return NEVER.to_owned();
    }
    let mut reasons = Reasons::default();
    reasons.nodes(&Refusal::lasting(NOT_HELPFUL), nodes);
    reasons.message(nodes)
}

/// Who has to go so that the pod fits somewhere. `refused` are the nodes that were looked at, with their reasons.
pub(super) fn find(
    settings: &Settings,
    mut filters: Filters<'_>,
    refused: &[(Slot, Refusal)],
    turn: &mut Turn,
) -> Result<Preemption, Nobody> {
    let (pod, cluster) = (filters.pod, filters.cluster);
    eligible(&filters, refused)?;
    let potential: Vec<Slot> =
        refused.iter().filter(|(_, refusal)| refusal.resolvable).map(|(slot, _)| *slot).collect();
    let wanted = (potential.len() * settings.percentage / 100).max(settings.absolute).min(potential.len());
    let offset = turn.below(potential.len());
    let (mut gentle, mut violating): (Vec<Room>, Vec<Room>) = (Vec::new(), Vec::new());
    let mut reasons = Reasons::default();
    let mut looked_at = 0;
    for at in 0..potential.len() {
        let state = cluster.state(potential[(offset + at) % potential.len()]);
        match victims(&mut filters, state) {
            Ok(room) if room.violations == 0 => gentle.push(room),
            Ok(room) => violating.push(room),
            Err(refusal) => {
                looked_at += 1;
                reasons.node(&refusal);
            }
        }
        if !gentle.is_empty() && gentle.len() + violating.len() >= wanted {
            break;
        }
    }
    gentle.append(&mut violating);
    choose(gentle, pod, cluster).ok_or_else(|| {
        reasons.nodes(&Refusal::lasting(NOT_HELPFUL), cluster.len() - looked_at);
        Nobody { message: reasons.message(cluster.len()), ends_nomination: true }
    })
}

/// Makes room on the best of these nodes, if there is one.
pub fn choose(rooms: Vec<Room>, pod: &Pod, cluster: &Cluster) -> Option<Preemption> {
    let Room { node, victims, .. } = best(&rooms)?.clone();
    let displaced = cluster.nominated.on(&node).iter();
    let displaced = displaced.filter(|other| other.priority() < pod.priority()).cloned().collect();
    Some(Preemption { node, victims, displaced, rooms })
}

/// Whether the pod may have others evicted now. Source: `PodEligibleToPreemptOthers`.
fn eligible(filters: &Filters<'_>, refused: &[(Slot, Refusal)]) -> Result<(), Nobody> {
    let (pod, cluster) = (filters.pod, filters.cluster);
    let none = |message: &str| Err(Nobody { message: message.to_owned(), ends_nomination: false });
    if pod.spec.never_preempts {
        return none(NEVER);
    }
    let node = cluster.nominated.node_of(&pod.uid).unwrap_or(&pod.nominated);
    let Some(state) = cluster.named(node) else { return Ok(()) };
    let refusal = refused.iter().find(|(slot, _)| *slot == state.slot);
    // A node that was not looked at is refused for good as well.
    if refusal.is_none_or(|(_, refusal)| !refusal.resolvable) {
        return Ok(());
    }
    let leaves = |other: &Pod| other.priority() < pod.priority() && other.terminating && other.preempted;
    if state.pods.iter().any(|placed| leaves(&placed.pod)) {
        return none(UNDER_WAY);
    }
    Ok(())
}

/// The more important pod first: by priority, then who has run longer. Source: `util.MoreImportantPod`.
fn importance(pod: &Pod) -> (Reverse<i64>, Timestamp) {
    (Reverse(pod.priority()), pod.started.unwrap_or(Timestamp::MAX))
}

/// The fewest pods of a node that have to go. Source: `SelectVictimsOnNode`.
fn victims(filters: &mut Filters<'_>, state: &NodeState) -> Result<Room, Refusal> {
    let pod = filters.pod;
    let less = state.pods.iter().map(|placed| &placed.pod);
    let mut potential: Vec<Arc<Pod>> =
        less.filter(|other| other.priority() < pod.priority()).cloned().collect();
    if potential.is_empty() {
        return Err(Refusal::lasting(NO_VICTIMS));
    }
    let mut imagined = state.clone();
    for other in &potential {
        filters.remove(other, &mut imagined);
    }
    let mut gone = Vec::new();
    let refusal = filters.refusal_beside_nominated(&imagined);
    let violations = if refusal.is_none() {
        potential.sort_by_key(|other| importance(other));
        let violated = filters.cluster.budgets.violated(&potential);
        let mut violations = 0;
        // Who is protected by a budget is spared first.
        for protected in [true, false] {
            let of_kind = potential.iter().zip(&violated).filter(|(_, violated)| **violated == protected);
            for (other, _) in of_kind {
                filters.add(other, &mut imagined);
                if filters.refusal_beside_nominated(&imagined).is_some() {
                    filters.remove(other, &mut imagined);
                    gone.push(other.clone());
                    violations += usize::from(protected);
                }
            }
        }
        violations
    } else {
        gone.clone_from(&potential);
        0
    };
    // The filters see the node as it is again.
    for other in &gone {
        filters.add(other, &mut imagined);
    }
    if let Some((_, refusal)) = refusal {
        return Err(refusal);
    }
    gone.sort_by_key(|other| importance(other));
    Ok(Room { node: state.node().name.clone(), victims: gone, violations })
}

/// The best node: the fewest violated budgets, the least important victims, the fewest of them, those that have run the
/// shortest. Source: `pickOneNodeForPreemption`.
fn best(rooms: &[Room]) -> Option<&Room> {
    let cost = |room: &Room| {
        let highest = room.victims.first().map_or(i64::MIN, |victim| victim.priority());
        // Each victim counts, also one of negative priority.
        let above_zero = i64::from(i32::MAX) + 1;
        let sum: i64 = room.victims.iter().map(|victim| victim.priority() + above_zero).sum();
        let of_highest = room.victims.iter().filter(|victim| victim.priority() == highest);
        let earliest = of_highest.map(|victim| victim.started.unwrap_or(Timestamp::MAX)).min();
        (room.violations, highest, sum, room.victims.len(), Reverse(earliest))
    };
    rooms
        .iter()
        .filter(|room| !room.victims.is_empty())
        .reduce(|held, next| if cost(next) < cost(held) { next } else { held })
}
