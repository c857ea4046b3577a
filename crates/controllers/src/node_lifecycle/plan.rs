//! Decides what a node's conditions and taints should be.

use std::time::Duration;

use api::ObjectMeta;
use jiff::Timestamp;
use reconcile::taints::Taint;
use serde::Deserialize;
use serde_json::{Value, json};

/// How long a node may be silent. Source: `--node-monitor-grace-period`.
const GRACE: Duration = Duration::from_secs(50);
/// The same of a node that has not said anything yet. Source: `--node-startup-grace-period`.
const STARTUP_GRACE: Duration = Duration::from_secs(60);
/// Nodes with this label tell nothing about their zone. Source: `LabelNodeDisruptionExclusion`.
const UNCOUNTED: &str = "node.kubernetes.io/exclude-disruption";

/// A projection of `core/v1.Node`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Desired state.
    pub spec: NodeSpec,
    /// Observed state.
    pub status: NodeStatus,
}

/// The part of `core/v1.NodeSpec` that counts here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// Taints.
    pub taints: Vec<Taint>,
    /// Whether it is cordoned.
    pub unschedulable: bool,
}

/// The part of `core/v1.NodeStatus` that counts here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Conditions.
    pub conditions: Vec<NodeCondition>,
}

/// `core/v1.NodeCondition`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCondition {
    /// `Ready`, `MemoryPressure`, ….
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// When the node last said so.
    pub last_heartbeat_time: Option<Timestamp>,
}

impl Node {
    /// Source: `nodeutil.IsNodeReady`.
    pub(crate) fn is_ready(&self) -> bool {
        self.condition("Ready").is_some_and(|held| held.status == "True")
    }

    pub(crate) fn condition(&self, kind: &str) -> Option<&NodeCondition> {
        self.status.conditions.iter().find(|held| held.r#type == kind)
    }
}

/// How long a node may be silent.
pub(super) fn grace(node: &Node) -> Duration {
    if node.condition("Ready").is_some() { GRACE } else { STARTUP_GRACE }
}

/// The conditions of a node that has fallen silent: everything that it said is unknown now.
pub(super) fn lost_conditions(node: &Node, now: Timestamp) -> Vec<Value> {
    ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"]
        .into_iter()
        .filter(|kind| node.condition(kind).is_none_or(|held| held.status != "Unknown"))
        .map(|kind| {
            let (reason, message) = match node.condition(kind) {
                Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
            };
            let mut lost = json!({
                "type": kind, "status": "Unknown", "reason": reason, "message": message,
                "lastTransitionTime": reconcile::time::seconds(now),
            });
            if node.condition(kind).is_none() {
                lost["lastHeartbeatTime"] =
                    json!(node.metadata.creation_timestamp.map(reconcile::time::seconds));
            }
            lost
        })
        .collect()
}

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Taints that follow conditions: condition, its status, taint. Source: `nodeConditionToTaintKeyStatusMap`.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Whether a node may have the taint by which its pods leave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Execution {
    /// It may have it now.
    Allowed,
    /// Not yet; one that it has stays.
    Waits,
    /// No pod leaves any node.
    Stopped,
}

/// The taint by which a node's pods leave it, if it should have one.
fn executing(node: &Node) -> Option<&'static str> {
    let said = |(kind, status, _): &&(&str, &str, &str)| {
        *kind == "Ready" && node.condition(kind).is_some_and(|held| held.status == *status)
    };
    BY_CONDITION.iter().find(said).map(|(_, _, key)| *key)
}

fn executes(taint: &Taint) -> bool {
    taint.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&taint.key.as_str())
}

/// Whether a node's turn has to come before its pods leave it: one that has either taint already changes it for the other
/// at once. Source: `processTaintBaseEviction`.
pub(super) fn needs_turn(node: &Node) -> bool {
    executing(node).is_some() && !node.spec.taints.iter().any(executes)
}

/// The taints that a node should have, if they are not what it has. Taints of others stay.
pub(super) fn wanted_taints(node: &Node, execution: Execution, now: Timestamp) -> Option<Vec<Taint>> {
    let said = |(kind, status, _): &&(&str, &str, &str)| {
        // A node that has never said whether it is ready is not unreachable, it is new.
        node.condition(kind).is_some_and(|held| held.status == *status)
    };
    let mut wanted: Vec<(&str, &str)> =
        BY_CONDITION.iter().filter(said).map(|(_, _, key)| (*key, "NoSchedule")).collect();
    let may_execute = match execution {
        Execution::Allowed => true,
        Execution::Waits => !needs_turn(node),
        Execution::Stopped => false,
    };
    wanted.extend(executing(node).filter(|_| may_execute).map(|key| (key, "NoExecute")));
    if node.spec.unschedulable {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let never_said = node.condition("Ready").is_none();
    let is_ours = |taint: &Taint| {
        let known = taint.key == UNSCHEDULABLE || BY_CONDITION.iter().any(|(_, _, key)| *key == taint.key);
        // The taint with which a node registers stays until it has said that it is ready.
        known && taint.effect != "PreferNoSchedule" && !(never_said && taint.key == NOT_READY)
    };
    let is_wanted =
        |taint: &Taint| wanted.iter().any(|(key, effect)| taint.key == *key && taint.effect == *effect);
    let mut taints: Vec<Taint> =
        node.spec.taints.iter().filter(|taint| !is_ours(taint) || is_wanted(taint)).cloned().collect();
    let kept = taints.len();
    for (key, effect) in wanted {
        if !taints.iter().any(|held| held.key == key && held.effect == effect) {
            // Whatever the effect. Source: `SwapNodeControllerTaint`.
            let time_added = Some(now);
            taints.push(Taint { key: key.into(), value: String::new(), effect: effect.into(), time_added });
        }
    }
    (taints.len() != kept || kept != node.spec.taints.len()).then_some(taints)
}

/// Whether these taints make pods leave a node that was not so tainted before.
pub(super) fn evicts(node: &Node, taints: &[Taint]) -> bool {
    taints.iter().any(executes) && !node.spec.taints.iter().any(executes)
}

/// The zone in which a node counts, if it does.
pub(super) fn counted_in(node: &Node) -> Option<String> {
    (!node.metadata.labels.contains_key(UNCOUNTED)).then(|| zone(node))
}

/// The zone of a node as it is counted; empty where it has none. Source: `component-helpers/node/topology.GetZoneKey`.
pub(super) fn zone(node: &Node) -> String {
    let label = |name: &str| node.metadata.labels.get(name).map_or("", String::as_str);
    match (label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone")) {
        ("", "") => String::new(),
        (region, zone) => format!("{region}:\0:{zone}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, taints: Value) -> Node {
        serde_json::from_value(json!({
            "metadata": { "name": "n" }, "spec": { "taints": taints },
            "status": { "conditions": [{ "type": "Ready", "status": ready }, { "type": "DiskPressure", "status": "False" }] },
        }))
        .unwrap()
    }

    fn named(taints: &[Taint]) -> Vec<String> {
        taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect()
    }

    #[test]
    fn silence_makes_everything_unknown() {
        let now = Timestamp::UNIX_EPOCH;
        let lost = lost_conditions(&node("True", json!([])), now);
        assert_eq!(lost.len(), 4);
        assert_eq!((&lost[0]["type"], &lost[0]["reason"]), (&json!("Ready"), &json!("NodeStatusUnknown")));
        assert_eq!(lost[1]["reason"], "NodeStatusNeverUpdated");
    }

    #[test]
    fn taints_follow_readiness_and_others_stay() {
        let now = Timestamp::UNIX_EPOCH;
        let own = json!([{ "key": "dedicated", "value": "x", "effect": "NoSchedule" }]);
        let wanted_taints = |node: &Node, now| super::wanted_taints(node, Execution::Allowed, now);
        assert_eq!(wanted_taints(&node("True", own.clone()), now), None);
        let lost = wanted_taints(&node("Unknown", own), now).unwrap();
        assert_eq!(
            named(&lost),
            [
                "dedicated:NoSchedule",
                "node.kubernetes.io/unreachable:NoSchedule",
                "node.kubernetes.io/unreachable:NoExecute"
            ]
        );
        assert_eq!((lost[1].time_added, lost[2].time_added), (Some(now), Some(now)));
        let back = wanted_taints(&node("True", json!(lost)), now).unwrap();
        assert_eq!(named(&back), ["dedicated:NoSchedule"]);
        let cordoned =
            Node { spec: NodeSpec { unschedulable: true, ..NodeSpec::default() }, ..node("True", json!([])) };
        assert_eq!(
            named(&wanted_taints(&cordoned, now).unwrap()),
            ["node.kubernetes.io/unschedulable:NoSchedule"]
        );
    }

    #[test]
    fn a_new_node_keeps_the_taint_it_came_with() {
        let mut new =
            node("True", json!([{ "key": "node.kubernetes.io/not-ready", "effect": "NoSchedule" }]));
        let wanted = |node: &Node| wanted_taints(node, Execution::Allowed, Timestamp::UNIX_EPOCH);
        assert_eq!(wanted(&new), Some(Vec::new()));
        new.status.conditions.clear();
        assert_eq!(wanted(&new), None);
        assert_eq!((grace(&new), grace(&node("True", json!([])))), (STARTUP_GRACE, GRACE));
    }

    #[test]
    fn pods_are_told_to_leave_when_it_is_their_nodes_turn() {
        let now = Timestamp::UNIX_EPOCH;
        let taint = |key: &str, effect: &str| json!({ "key": key, "effect": effect });
        let lost = node("Unknown", json!([taint(UNREACHABLE, "NoSchedule")]));
        assert!(needs_turn(&lost) && !needs_turn(&node("True", json!([]))));
        for (execution, told) in
            [(Execution::Allowed, true), (Execution::Waits, false), (Execution::Stopped, false)]
        {
            let wanted = wanted_taints(&lost, execution, now);
            assert_eq!(wanted.is_some_and(|taints| evicts(&lost, &taints)), told, "{execution:?}");
        }
        // What says already that they leave changes its name at once, …
        let both = json!([taint(NOT_READY, "NoSchedule"), taint(NOT_READY, "NoExecute")]);
        let was_not_ready = node("Unknown", both);
        assert!(!needs_turn(&was_not_ready));
        let changed = wanted_taints(&was_not_ready, Execution::Waits, now).unwrap();
        let unreachable = [format!("{UNREACHABLE}:NoSchedule"), format!("{UNREACHABLE}:NoExecute")];
        assert_eq!(named(&changed), unreachable);
        assert!(!evicts(&was_not_ready, &changed));
        // … and is taken back where the whole cluster is disrupted.
        let stopped = wanted_taints(&node("Unknown", json!(changed)), Execution::Stopped, now).unwrap();
        assert_eq!(named(&stopped), unreachable[..1]);
    }
}
