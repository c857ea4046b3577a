//! Decides what a node's conditions and taints should be.

use std::time::Duration;

use api::ObjectMeta;
use jiff::Timestamp;
use reconcile::taints::Taint;
use serde::Deserialize;
use serde_json::{Value, json};

use super::zones::Health;

/// How long a node may be silent. Source: `--node-monitor-grace-period`.
const GRACE: Duration = Duration::from_secs(50);
/// The same for one that has yet to say how it is. Source: `--node-startup-grace-period`.
const STARTUP_GRACE: Duration = Duration::from_secs(60);
/// A node with this label does not count for how its zone is. Source: `labelNodeDisruptionExclusion`.
const EXCLUDED: &str = "node.kubernetes.io/exclude-disruption";

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

/// The status of the condition Ready; `Unknown` if there is none.
pub(super) fn ready_status(node: &Node) -> &str {
    node.condition("Ready").map_or("Unknown", |ready| ready.status.as_str())
}

/// How long this node may be silent.
pub(super) fn grace(node: &Node) -> Duration {
    if node.condition("Ready").is_some() { GRACE } else { STARTUP_GRACE }
}

/// What its zone counts of a node.
pub(super) fn health(node: &Node) -> Health {
    let counts = !node.metadata.labels.contains_key(EXCLUDED);
    Health { zone: zone(node), ready: node.is_ready(), counts }
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
            json!({
                "type": kind, "status": "Unknown", "reason": reason, "message": message,
                "lastTransitionTime": reconcile::time::seconds(now),
            })
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

/// Whether pods have to leave a node.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Execution {
    /// They do not.
    None,
    /// They do already.
    Stays,
    /// They should, when its zone allows it.
    Ask,
}

/// Decides it; `stopped`: no node answers. A node that changes from one taint to the other asks nobody.
/// Source: `processTaintBaseEviction`.
pub(super) fn execution(node: &Node, stopped: bool) -> Execution {
    let held =
        |taint: &Taint| taint.effect == "NoExecute" && matches!(taint.key.as_str(), NOT_READY | UNREACHABLE);
    match node.condition("Ready") {
        None => Execution::None,
        Some(ready) if ready.status == "True" || stopped => Execution::None,
        Some(_) if node.spec.taints.iter().any(held) => Execution::Stays,
        Some(_) => Execution::Ask,
    }
}

/// The taints that a node should have, if they are not what it has; `executes`: also one by which pods leave it. Taints of
/// others stay.
pub(super) fn wanted_taints(node: &Node, now: Timestamp, executes: bool) -> Option<Vec<Taint>> {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, status, key) in BY_CONDITION {
        // A node that has never said whether it is ready is not unreachable, it is new.
        if node.condition(kind).is_some_and(|held| held.status == status) {
            wanted.push((key, "NoSchedule"));
            if kind == "Ready" && executes {
                wanted.push((key, "NoExecute"));
            }
        }
    }
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
            taints.push(Taint {
                key: key.into(),
                value: String::new(),
                effect: effect.into(),
                time_added: (effect == "NoExecute").then_some(now),
            });
        }
    }
    (taints.len() != kept || kept != node.spec.taints.len()).then_some(taints)
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
        assert_eq!(wanted_taints(&node("True", own.clone()), now, true), None);
        let lost = wanted_taints(&node("Unknown", own), now, true).unwrap();
        assert_eq!(
            named(&lost),
            [
                "dedicated:NoSchedule",
                "node.kubernetes.io/unreachable:NoSchedule",
                "node.kubernetes.io/unreachable:NoExecute"
            ]
        );
        assert_eq!(lost[2].time_added, Some(now));
        let back = wanted_taints(&node("True", json!(lost)), now, true).unwrap();
        assert_eq!(named(&back), ["dedicated:NoSchedule"]);
        let cordoned =
            Node { spec: NodeSpec { unschedulable: true, ..NodeSpec::default() }, ..node("True", json!([])) };
        assert_eq!(
            named(&wanted_taints(&cordoned, now, true).unwrap()),
            ["node.kubernetes.io/unschedulable:NoSchedule"]
        );
    }

    #[test]
    fn pods_leave_when_the_zone_allows_it() {
        let now = Timestamp::UNIX_EPOCH;
        let silent = node("Unknown", json!([]));
        assert_eq!(execution(&silent, false), Execution::Ask);
        assert_eq!(execution(&silent, true), Execution::None);
        assert_eq!(
            named(&wanted_taints(&silent, now, false).unwrap()),
            ["node.kubernetes.io/unreachable:NoSchedule"]
        );
        let lost = node("False", json!(wanted_taints(&silent, now, true).unwrap()));
        assert_eq!(execution(&lost, false), Execution::Stays);
        let swapped = named(&wanted_taints(&lost, now, true).unwrap());
        assert_eq!(
            swapped,
            ["node.kubernetes.io/not-ready:NoSchedule", "node.kubernetes.io/not-ready:NoExecute"]
        );
        assert_eq!(
            named(&wanted_taints(&lost, now, false).unwrap()),
            ["node.kubernetes.io/not-ready:NoSchedule"]
        );
        assert_eq!(execution(&node("True", json!([])), false), Execution::None);
    }

    #[test]
    fn a_new_node_keeps_the_taint_it_came_with() {
        let mut new =
            node("True", json!([{ "key": "node.kubernetes.io/not-ready", "effect": "NoSchedule" }]));
        assert_eq!(wanted_taints(&new, Timestamp::UNIX_EPOCH, true), Some(Vec::new()));
        new.status.conditions.clear();
        assert_eq!(wanted_taints(&new, Timestamp::UNIX_EPOCH, true), None);
    }
}
