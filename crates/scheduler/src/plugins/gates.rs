//! Pods that others hold back with scheduling gates.

use crate::cluster::Cluster;
use crate::framework::{Event, Plugin, Point};
use crate::types::Pod;

/// A pod with scheduling gates is not tried.
pub(super) struct Gates;

impl Plugin for Gates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreEnqueue]
    }

    fn gate(&self, pod: &Pod, _cluster: &Cluster) -> Option<String> {
        let gates = pod.gates.join(" ");
        (!pod.gates.is_empty()).then(|| format!("waiting for scheduling gates: [{gates}]"))
    }

    fn may_help(&self, _pod: &Pod, event: &Event) -> bool {
        matches!(event, Event::OwnChanged(_, new) if new.gates.is_empty())
    }
}
