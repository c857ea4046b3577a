//! Taints and tolerations.

use reconcile::taints::Taint;

use crate::cache::NodeState;
use crate::framework::{Event, Plugin, normalize_to_max};
use crate::types::{Node, Pod};

/// Nodes with a taint take only pods that tolerate it; those with fewer soft taints are better.
pub(super) struct TaintToleration;

fn untolerated<'a>(pod: &Pod, node: &'a Node, effects: &[&str]) -> impl Iterator<Item = &'a Taint> {
    node.taints.iter().filter(move |taint| {
        effects.contains(&taint.effect.as_str())
            && !pod.tolerations.iter().any(|toleration| toleration.covers(taint))
    })
}

const HARD: [&str; 2] = ["NoSchedule", "NoExecute"];

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn filter(&self, pod: &Pod, node: &Node, _state: &NodeState) -> Vec<String> {
        let first = untolerated(pod, node, &HARD).next();
        first.map(|_| "node(s) had untolerated taint(s)".to_owned()).into_iter().collect()
    }

    fn score(&self, pod: &Pod, node: &Node, _state: &NodeState) -> Option<i64> {
        i64::try_from(untolerated(pod, node, &["PreferNoSchedule"]).count()).ok()
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize_to_max(scores, true);
    }

    fn weight(&self) -> i64 {
        3
    }

    fn may_help(&self, pod: &Pod, event: &Event) -> bool {
        let fits = |node: &Node| untolerated(pod, node, &HARD).next().is_none();
        match event {
            Event::NodeAdded(node) => fits(node),
            Event::NodeChanged(old, new) => fits(new) && !fits(old),
            Event::PodLeft(_) => false,
        }
    }
}
