//! Taints and tolerations.

use reconcile::taints::{Taint, Toleration};

use crate::cluster::{Cluster, NodeState};
use crate::framework::{Check, Event, Plugin, Point, PreFilter, Rate, Refusal, normalize_to_max};
use crate::types::{Node, Pod};

/// Nodes with a taint take only pods that tolerate it; those with fewer soft taints are better.
pub(super) struct TaintToleration;

const HARD: [&str; 2] = ["NoSchedule", "NoExecute"];
const SOFT: &str = "PreferNoSchedule";

fn untolerated<'a>(
    tolerations: &'a [Toleration],
    node: &'a Node,
    effects: &'a [&str],
) -> impl Iterator<Item = &'a Taint> {
    let counts = |taint: &&Taint| effects.contains(&taint.effect.as_str());
    let borne = |taint: &Taint| tolerations.iter().any(|toleration| toleration.covers(taint));
    node.taints.iter().filter(counts).filter(move |taint| !borne(taint))
}

/// Whether a pod bears every taint that keeps pods away.
pub(super) fn bears(pod: &Pod, node: &Node) -> bool {
    untolerated(&pod.spec.tolerations, node, &HARD).next().is_none()
}

struct Bears<'a>(&'a Pod);

impl Check for Bears<'_> {
    fn refusal(&self, state: &NodeState) -> Option<Refusal> {
        (!bears(self.0, state.node())).then(|| Refusal::lasting("node(s) had untolerated taint(s)"))
    }
}

/// The tolerations that count for soft taints: those of that effect, or of any.
struct SoftTaints(Vec<Toleration>);

impl Rate for SoftTaints {
    fn score(&self, state: &NodeState) -> i64 {
        i64::try_from(untolerated(&self.0, state.node(), &[SOFT]).count()).unwrap_or(i64::MAX)
    }

    fn normalize(&self, scores: &mut [i64], _nodes: &[&NodeState]) {
        normalize_to_max(scores, true);
    }
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Filter, Point::PreScore, Point::Score]
    }

    fn filter<'a>(&'a self, pod: &'a Pod, _cluster: &'a Cluster) -> PreFilter<'a> {
        PreFilter::Check(Box::new(Bears(pod)))
    }

    fn rate<'a>(
        &'a self,
        pod: &'a Pod,
        _cluster: &'a Cluster,
        _nodes: &[&'a NodeState],
    ) -> Option<Box<dyn Rate + 'a>> {
        let soft = |toleration: &&Toleration| toleration.effect.is_empty() || toleration.effect == SOFT;
        Some(Box::new(SoftTaints(pod.spec.tolerations.iter().filter(soft).cloned().collect())))
    }

    fn heeds(&self, event: &Event) -> bool {
        matches!(event, Event::NodeAdded(_) | Event::NodeChanged(..) | Event::OwnChanged(..))
    }

    fn may_help(&self, pod: &Pod, event: &Event) -> bool {
        match event {
            Event::NodeAdded(node) => bears(pod, node),
            Event::NodeChanged(old, new) => bears(pod, new) && !bears(pod, old),
            Event::OwnChanged(old, new) => old.spec.tolerations != new.spec.tolerations,
            _ => false,
        }
    }
}
