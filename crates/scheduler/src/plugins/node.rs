//! Cordoned nodes, and pods that name their node.

use reconcile::taints::Taint;

use crate::cluster::{Cluster, NodeState};
use crate::framework::{Check, Event, Plugin, Point, PreFilter, Refusal};
use crate::types::Pod;

/// Cordoned nodes take nobody, except pods that tolerate the cordon's taint.
pub(super) struct Unschedulable;

fn bears_cordon(pod: &Pod) -> bool {
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    pod.spec.tolerations.iter().any(|toleration| toleration.covers(&taint))
}

struct NotCordoned;

impl Check for NotCordoned {
    fn refusal(&self, state: &NodeState) -> Option<Refusal> {
        state.node().unschedulable.then(|| Refusal::lasting("node(s) were unschedulable"))
    }
}

impl Plugin for Unschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Filter]
    }

    fn filter<'a>(&'a self, pod: &'a Pod, _cluster: &'a Cluster) -> PreFilter<'a> {
        if bears_cordon(pod) { PreFilter::Skip } else { PreFilter::Check(Box::new(NotCordoned)) }
    }

    fn heeds(&self, event: &Event) -> bool {
        matches!(event, Event::NodeAdded(_) | Event::NodeChanged(..) | Event::OwnChanged(..))
    }

    fn may_help(&self, _pod: &Pod, event: &Event) -> bool {
        match event {
            Event::NodeAdded(node) => !node.unschedulable,
            Event::NodeChanged(old, new) => old.unschedulable && !new.unschedulable,
            Event::OwnChanged(_, new) => bears_cordon(new),
            _ => false,
        }
    }
}

/// A pod that names its node goes there only. The field is set by the binding, so this holds for pods that were made with
/// it and are tried all the same.
pub(super) struct Name;

struct Named<'a>(&'a str);

impl Check for Named<'_> {
    fn refusal(&self, state: &NodeState) -> Option<Refusal> {
        let other = state.node().name != self.0;
        other.then(|| Refusal::lasting("node(s) didn't match the requested node name"))
    }
}

impl Plugin for Name {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Filter]
    }

    fn filter<'a>(&'a self, pod: &'a Pod, _cluster: &'a Cluster) -> PreFilter<'a> {
        if pod.node.is_empty() { PreFilter::Skip } else { PreFilter::Check(Box::new(Named(&pod.node))) }
    }

    fn heeds(&self, event: &Event) -> bool {
        matches!(event, Event::NodeAdded(_))
    }

    fn may_help(&self, pod: &Pod, event: &Event) -> bool {
        matches!(event, Event::NodeAdded(node) if *node.name == *pod.node)
    }
}
