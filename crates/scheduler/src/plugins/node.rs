//! Plugins that look at the node itself: cordons, names, selectors and affinity, host ports.

use reconcile::taints::Taint;

use crate::cache::NodeState;
use crate::framework::{Event, Plugin, normalize_to_max};
use crate::types::{Node, Pod};

/// Cordoned nodes take nobody, except pods that tolerate the cordon's taint.
pub(super) struct Unschedulable;

impl Plugin for Unschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn filter(&self, pod: &Pod, node: &Node, _state: &NodeState) -> Vec<String> {
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        if !node.unschedulable || pod.tolerations.iter().any(|toleration| toleration.covers(&taint)) {
            return Vec::new();
        }
        vec!["node(s) were unschedulable".into()]
    }

    fn may_help(&self, _pod: &Pod, event: &Event) -> bool {
        match event {
            Event::NodeAdded(node) => !node.unschedulable,
            Event::NodeChanged(old, new) => old.unschedulable && !new.unschedulable,
            Event::PodLeft(_) => false,
        }
    }
}

/// A pod that names its node goes there only. The field is set by the binding, so this holds for pods that were made with
/// it and are re-queued.
pub(super) struct Name;

impl Plugin for Name {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn filter(&self, pod: &Pod, node: &Node, _state: &NodeState) -> Vec<String> {
        if pod.node.is_empty() || pod.node == node.name {
            return Vec::new();
        }
        vec!["node(s) didn't match the requested node name".into()]
    }

    fn may_help(&self, pod: &Pod, event: &Event) -> bool {
        matches!(event, Event::NodeAdded(node) if node.name == pod.node)
    }
}

/// `spec.nodeSelector` and node affinity.
pub(super) struct Affinity;

fn allows(pod: &Pod, node: &Node) -> bool {
    pod.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
        && pod
            .affinity
            .required
            .as_ref()
            .is_none_or(|required| required.node_selector_terms.iter().any(|term| term.matches(node)))
}

impl Plugin for Affinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn filter(&self, pod: &Pod, node: &Node, _state: &NodeState) -> Vec<String> {
        if allows(pod, node) {
            return Vec::new();
        }
        vec!["node(s) didn't match Pod's node affinity/selector".into()]
    }

    fn score(&self, pod: &Pod, node: &Node, _state: &NodeState) -> Option<i64> {
        if pod.affinity.preferred.is_empty() {
            return None;
        }
        let terms = pod.affinity.preferred.iter().filter(|term| term.preference.matches(node));
        Some(terms.map(|term| term.weight).fold(0, i64::saturating_add))
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize_to_max(scores, false);
    }

    fn weight(&self) -> i64 {
        2
    }

    fn may_help(&self, pod: &Pod, event: &Event) -> bool {
        match event {
            Event::NodeAdded(node) => allows(pod, node),
            Event::NodeChanged(old, new) => allows(pod, new) && !allows(pod, old),
            Event::PodLeft(_) => false,
        }
    }
}

/// Host ports: one user per address, protocol and port; the wildcard address conflicts with all.
pub(super) struct Ports;

fn conflict(a: &(String, String, u16), b: &(String, String, u16)) -> bool {
    let any = "0.0.0.0";
    a.1 == b.1 && a.2 == b.2 && (a.0 == b.0 || a.0 == any || b.0 == any)
}

impl Plugin for Ports {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn filter(&self, pod: &Pod, _node: &Node, state: &NodeState) -> Vec<String> {
        // Most pods use no host port: no walk over a node's pods for them.
        let taken = !pod.ports.is_empty()
            && state
                .pods
                .values()
                .flat_map(|other| &other.ports)
                .any(|used| pod.ports.iter().any(|wanted| conflict(wanted, used)));
        if taken {
            vec!["node(s) didn't have free ports for the requested pod ports".into()]
        } else {
            Vec::new()
        }
    }

    fn yields_to_preemption(&self, _pod: &Pod, _node: &Node) -> bool {
        true
    }

    fn may_help(&self, pod: &Pod, event: &Event) -> bool {
        match event {
            Event::NodeAdded(_) => true,
            Event::NodeChanged(..) => false,
            Event::PodLeft(left) => {
                left.ports.iter().any(|used| pod.ports.iter().any(|wanted| conflict(wanted, used)))
            }
        }
    }
}
