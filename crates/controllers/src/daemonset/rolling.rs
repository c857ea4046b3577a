//! The rolling update of a DaemonSet. Without surge, old pods are deleted and each node gets its new one by itself; with
//! surge, new pods are made beside old ones, which go once the new ones are available. Source: `daemon/update.go`.

use std::collections::BTreeSet;

use super::plan::{ByNode, Plan, Snapshot};
use super::types::Daemon;

/// The pods of a node that are not on their way out: at most a new and an old one, else the node is left to `manage`.
enum OnNode<'a> {
    Excess,
    Pods { new: Option<&'a Daemon>, old: Option<&'a Daemon> },
}

/// Source: `findUpdatedPodsOnNode`.
fn on_node<'a>(snapshot: &Snapshot<'_>, daemons: &[&'a Daemon]) -> OnNode<'a> {
    let alive = daemons.iter().copied().filter(|daemon| !daemon.is_terminating());
    let (new, old): (Vec<_>, Vec<_>) =
        alive.partition(|daemon| daemon.is_updated(snapshot.set, snapshot.hash));
    if new.len() > 1 || old.len() > 1 {
        return OnNode::Excess;
    }
    OnNode::Pods { new: new.first().copied(), old: old.first().copied() }
}

/// Adds what the update does now. `daemons` are the pods by node.
pub(super) fn replace<'a>(snapshot: &Snapshot<'a>, mut daemons: ByNode<'a>, plan: &mut Plan) {
    let runs = snapshot.nodes.iter().filter(|node| snapshot.placement.judge(node).runs);
    let desired: BTreeSet<&str> = runs.map(|node| node.name.as_str()).collect();
    for node in &desired {
        daemons.entry(node).or_default();
    }
    let bounds = snapshot.set.bounds(desired.len());
    if bounds.surge == 0 {
        delete_old(snapshot, &daemons, bounds.unavailable, plan);
    } else {
        surge(snapshot, &daemons, &desired, bounds.surge, plan);
    }
}

fn is_available(snapshot: &Snapshot<'_>, daemon: &Daemon) -> bool {
    daemon.pod.is_available(snapshot.set.min_ready(), snapshot.now)
}

/// Old pods that are not available go at once; others as many as may be missing.
fn delete_old(snapshot: &Snapshot<'_>, daemons: &ByNode<'_>, allowed: usize, plan: &mut Plan) {
    let (mut unavailable, mut candidates) = (0, Vec::new());
    for daemons in daemons.values() {
        match on_node(snapshot, daemons) {
            OnNode::Pods { new: Some(new), old: None } => {
                unavailable += usize::from(!is_available(snapshot, new));
            }
            OnNode::Pods { new: None, old: Some(old) } if is_available(snapshot, old) => candidates.push(old),
            OnNode::Pods { new: None, old: Some(old) } => {
                plan.delete(old);
                unavailable += 1;
            }
            OnNode::Excess | OnNode::Pods { .. } => unavailable += 1,
        }
    }
    candidates.into_iter().take(allowed.saturating_sub(unavailable)).for_each(|old| plan.delete(old));
}

/// New pods come where the old one is not available, and elsewhere as many as may be too many. Old pods go where the new
/// one is available; on nodes that are to have none any more, once all others are served.
fn surge(
    snapshot: &Snapshot<'_>,
    daemons: &ByNode<'_>,
    desired: &BTreeSet<&str>,
    allowed: usize,
    plan: &mut Plan,
) {
    let (mut surging, mut available) = (0, 0);
    let (mut candidates, mut leaving) = (Vec::new(), Vec::new());
    for (node, daemons) in daemons {
        let OnNode::Pods { new, old } = on_node(snapshot, daemons) else {
            surging += 1;
            continue;
        };
        available += usize::from(old.or(new).is_some_and(|daemon| is_available(snapshot, daemon)));
        let Some(old) = old else { continue };
        match new {
            Some(new) if is_available(snapshot, new) => plan.delete(old),
            Some(_) => surging += 1,
            None => match (is_available(snapshot, old), desired.contains(node)) {
                (false, false) => plan.delete(old),
                (false, true) => plan.create.push((*node).to_owned()),
                (true, false) => leaving.push(old),
                (true, true) => candidates.push(*node),
            },
        }
    }
    leaving.into_iter().take(available.saturating_sub(desired.len())).for_each(|old| plan.delete(old));
    let more = candidates.into_iter().take(allowed.saturating_sub(surging));
    plan.create.extend(more.map(str::to_owned));
}
