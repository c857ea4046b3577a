//! Decides which pods of a DaemonSet are made and deleted. Source: `daemon/daemon_controller.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reconcile::EventType;

use super::backoff::Failures;
use super::placement::{Placement, Verdict};
use super::rolling;
use super::types::{Daemon, DaemonSet, Node};
use crate::pods;

/// What is known when deciding.
pub(super) struct Snapshot<'a> {
    pub(super) set: &'a DaemonSet,
    pub(super) placement: &'a Placement,
    pub(super) nodes: &'a [Arc<Node>],
    /// The pods that belong to the set, in any order.
    pub(super) daemons: &'a [Daemon],
    /// The hash of the newest revision.
    pub(super) hash: &'a str,
    pub(super) now: Timestamp,
}

/// Something to tell about the set.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Note {
    pub(super) event_type: EventType,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// What to do.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Nodes that get a pod.
    pub(super) create: Vec<String>,
    /// Pods that are deleted: name and uid.
    pub(super) delete: Vec<(String, String)>,
    pub(super) notes: Vec<Note>,
    /// When to look again though nothing changes.
    pub(super) again: Option<Duration>,
}

impl Plan {
    pub(super) fn delete(&mut self, daemon: &Daemon) {
        let meta = &daemon.pod.metadata;
        self.delete.push((meta.name.clone(), meta.uid.clone()));
    }

    fn look_again(&mut self, after: Duration) {
        self.again = Some(self.again.map_or(after, |held| held.min(after)));
    }
}

/// The pods of each node.
pub(super) type ByNode<'a> = BTreeMap<&'a str, Vec<&'a Daemon>>;

/// The pods by node, the oldest first. Those that have ended and are on their way out are nobody's any more, and what
/// says no node is left alone. Source: `getNodesToDaemonPods`.
pub(super) fn by_node(daemons: &[Daemon]) -> ByNode<'_> {
    let mut nodes = ByNode::new();
    for daemon in daemons {
        let ended = daemon.pod.is_finished() && daemon.is_terminating();
        if !daemon.node.is_empty() && !ended {
            nodes.entry(&daemon.node).or_default().push(daemon);
        }
    }
    for daemons in nodes.values_mut() {
        daemons.sort_by_key(|daemon| {
            let meta = &daemon.pod.metadata;
            (daemon.pod.spec.node_name.is_empty(), meta.creation_timestamp, meta.name.as_str())
        });
    }
    nodes
}

/// The next steps: every node gets what it is to have, and only when that is so the rolling update goes on.
pub(super) fn plan(snapshot: &Snapshot<'_>, failures: &mut Failures) -> Plan {
    let daemons = by_node(snapshot.daemons);
    let mut plan = Plan::default();
    for node in snapshot.nodes {
        let verdict = snapshot.placement.judge(node);
        let held = daemons.get(node.name.as_str()).map(Vec::as_slice);
        manage(snapshot, failures, verdict, &node.name, held, &mut plan);
    }
    delete_of_absent_nodes(snapshot, &daemons, &mut plan);
    if snapshot.set.rolls() && plan.create.is_empty() && plan.delete.is_empty() {
        rolling::replace(snapshot, daemons, &mut plan);
    }
    let pods = snapshot.daemons.iter().map(|daemon| &daemon.pod);
    if let Some(after) = pods::next_available(pods, snapshot.set.min_ready(), snapshot.now) {
        plan.look_again(after);
    }
    plan
}

/// One node. Source: `podsShouldBeOnNode`.
fn manage(
    snapshot: &Snapshot<'_>,
    failures: &mut Failures,
    verdict: Verdict,
    node: &str,
    held: Option<&[&Daemon]>,
    plan: &mut Plan,
) {
    let Some(held) = held else {
        if verdict.runs {
            plan.create.push(node.to_owned());
        }
        return;
    };
    let alive = held.iter().copied().filter(|daemon| !daemon.is_terminating());
    if !verdict.stays {
        alive.for_each(|daemon| plan.delete(daemon));
        return;
    }
    let mut running = Vec::new();
    for daemon in alive {
        if daemon.pod.is_finished() {
            delete_finished(snapshot, failures, node, daemon, plan);
        } else {
            running.push(daemon);
        }
    }
    if !snapshot.set.surges() {
        // The oldest stays.
        running.iter().skip(1).for_each(|daemon| plan.delete(daemon));
    } else if running.is_empty() && verdict.runs {
        // The one that is leaving is not waited for.
        plan.create.push(node.to_owned());
    } else {
        prune_surge(snapshot, &running, plan);
    }
}

/// With surge, an old pod runs beside a new one as long as the old one is ready and the new one is not available.
fn prune_surge(snapshot: &Snapshot<'_>, running: &[&Daemon], plan: &mut Plan) {
    if running.len() <= 1 {
        return;
    }
    let (new, old): (Vec<_>, Vec<_>) =
        running.iter().copied().partition(|daemon| daemon.hash() == snapshot.hash);
    new.iter().skip(1).chain(old.iter().skip(1)).for_each(|daemon| plan.delete(daemon));
    if let (Some(new), Some(old)) = (new.first(), old.first())
        && (!old.pod.is_ready() || new.pod.is_available(snapshot.set.min_ready(), snapshot.now))
    {
        plan.delete(old);
    }
}

/// A pod that has ended is deleted, so that another can come; one that failed not too often in a row.
fn delete_finished(
    snapshot: &Snapshot<'_>,
    failures: &mut Failures,
    node: &str,
    daemon: &Daemon,
    plan: &mut Plan,
) {
    let meta = &daemon.pod.metadata;
    let note = if daemon.pod.status.phase == "Failed" {
        let set = snapshot.set;
        let place = (set.metadata.uid.clone(), set.status.observed_generation, node.to_owned());
        if let Some(wait) = failures.wait(place, snapshot.now) {
            plan.look_again(wait);
            return;
        }
        Note {
            event_type: EventType::Warning,
            reason: "FailedDaemonPod",
            message: format!(
                "Found failed daemon pod {}/{} on node {node}, will try to kill it",
                meta.namespace, meta.name
            ),
        }
    } else {
        Note {
            event_type: EventType::Normal,
            reason: "SucceededDaemonPod",
            message: format!(
                "Found succeeded daemon pod {}/{} on node {node}, will try to delete it",
                meta.namespace, meta.name
            ),
        }
    };
    plan.notes.push(note);
    plan.delete(daemon);
}

/// Pods that wait for a node which is not there would wait for ever. Source: `getUnscheduledPodsWithoutNode`.
fn delete_of_absent_nodes(snapshot: &Snapshot<'_>, daemons: &ByNode<'_>, plan: &mut Plan) {
    let there: BTreeSet<&str> = snapshot.nodes.iter().map(|node| node.name.as_str()).collect();
    let absent = daemons.iter().filter(|(node, _)| !there.contains(**node));
    let waiting = |daemon: &&&Daemon| daemon.pod.spec.node_name.is_empty() && !daemon.is_terminating();
    absent.flat_map(|(_, daemons)| daemons).filter(waiting).for_each(|daemon| plan.delete(daemon));
}
