//! Pods of one owner go to different nodes where they can.

use crate::cache::NodeState;
use crate::framework::{Plugin, normalize_to_max};
use crate::types::{Node, Pod};

/// Nodes with fewer pods of the same owner are better. Upstream gets this from the default constraints of
/// PodTopologySpread, with the same weight.
pub(super) struct OwnerSpread;

impl Plugin for OwnerSpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn score(&self, pod: &Pod, _node: &Node, state: &NodeState) -> Option<i64> {
        if pod.owner.is_empty() {
            return None;
        }
        let siblings = state.pods.values().filter(|other| other.owner == pod.owner && !other.terminating);
        i64::try_from(siblings.count()).ok()
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize_to_max(scores, true);
    }

    fn weight(&self) -> i64 {
        2
    }
}
