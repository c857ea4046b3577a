//! Resources: whether a pod fits, and which node it leaves in the best shape.

use crate::cache::NodeState;
use crate::framework::{Event, MAX_SCORE, Plugin};
use crate::types::{Node, Pod};

/// Requests fit into what a node offers and its pods leave; nodes with more left are better.
pub(super) struct Fit;

impl Plugin for Fit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn filter(&self, pod: &Pod, node: &Node, state: &NodeState) -> Vec<String> {
        let mut reasons = Vec::new();
        let pods_max = node.allocatable.get("pods");
        if i64::try_from(state.pods.len()).is_ok_and(|pods| pods + 1 > pods_max) {
            reasons.push("Too many pods".to_owned());
        }
        for (name, wanted) in pod.requests.iter().filter(|(_, wanted)| *wanted > 0) {
            if wanted > node.allocatable.get(name) - state.requested.get(name) {
                reasons.push(format!("Insufficient {name}"));
            }
        }
        reasons
    }

    fn yields_to_preemption(&self, pod: &Pod, node: &Node) -> bool {
        let wanted = pod.requests.iter().filter(|(_, wanted)| *wanted > 0);
        node.allocatable.get("pods") > 0
            && wanted.into_iter().all(|(name, wanted)| wanted <= node.allocatable.get(name))
    }

    fn score(&self, pod: &Pod, node: &Node, state: &NodeState) -> Option<i64> {
        let [cpu, memory] = usage(pod, node, state);
        let free = |(used, total): (i64, i64)| {
            if total <= 0 || used > total { 0 } else { (total - used) * MAX_SCORE / total }
        };
        Some((free(cpu) + free(memory)) / 2)
    }

    fn may_help(&self, pod: &Pod, event: &Event) -> bool {
        match event {
            Event::NodeAdded(_) => true,
            Event::NodeChanged(old, new) => {
                let grew = |name: &str| new.allocatable.get(name) > old.allocatable.get(name);
                grew("pods") || pod.requests.iter().any(|(name, _)| grew(name))
            }
            Event::PodLeft(_) => true,
        }
    }
}

/// Nodes where cpu and memory would be used in like proportion are better.
pub(super) struct Balanced;

impl Plugin for Balanced {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn score(&self, pod: &Pod, node: &Node, state: &NodeState) -> Option<i64> {
        let [cpu, memory] = usage(pod, node, state);
        let share = |(used, total): (i64, i64)| {
            if total <= 0 { MAX_SCORE } else { (used.saturating_mul(MAX_SCORE) / total).min(MAX_SCORE) }
        };
        // The standard deviation of two values is half their distance.
        Some(MAX_SCORE - (share(cpu) - share(memory)).abs() / 2)
    }
}

/// `(used, total)` of cpu and memory with the pod on the node.
fn usage(pod: &Pod, node: &Node, state: &NodeState) -> [(i64, i64); 2] {
    let (cpu, memory) = pod.requests.for_scoring();
    [
        (state.scored.0 + cpu, node.allocatable.get("cpu")),
        (state.scored.1 + memory, node.allocatable.get("memory")),
    ]
}
