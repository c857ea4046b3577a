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
        if i128::try_from(state.pods.len()).is_ok_and(|pods| pods + 1 > pods_max) {
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
        let free = |used: Usage| if used.is_over() { 0 } else { MAX_SCORE - used.percent() };
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
        // The standard deviation of two values is half their distance.
        Some(MAX_SCORE - (cpu.percent() - memory.percent()).abs() / 2)
    }
}

/// How much of one resource of a node is used.
#[derive(Clone, Copy)]
struct Usage {
    used: i128,
    total: i128,
}

impl Usage {
    fn is_over(self) -> bool {
        self.total <= 0 || self.used > self.total
    }

    /// The used part, rounded up, in hundredths: 0 to [`MAX_SCORE`].
    fn percent(self) -> i64 {
        if self.is_over() {
            return MAX_SCORE;
        }
        let hundredths = self.used.max(0).saturating_mul(MAX_SCORE.into());
        let rounded_up = hundredths / self.total + i128::from(hundredths % self.total != 0);
        i64::try_from(rounded_up).unwrap_or(MAX_SCORE)
    }
}

/// Usage of cpu and memory with the pod on the node.
fn usage(pod: &Pod, node: &Node, state: &NodeState) -> [Usage; 2] {
    let (cpu, memory) = pod.requests.for_scoring();
    [
        Usage { used: state.scored.0 + cpu, total: node.allocatable.get("cpu") },
        Usage { used: state.scored.1 + memory, total: node.allocatable.get("memory") },
    ]
}
