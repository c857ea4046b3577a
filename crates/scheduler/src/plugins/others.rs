//! Plugins whose work is the queue's, the binding's and the framework's own.

use crate::framework::{Event, Plugin, Point, PreemptionSettings};
use crate::types::Pod;

/// Pods of higher priority first, then those that wait longer: the queue's order.
pub(super) struct PrioritySort;

impl Plugin for PrioritySort {
    fn name(&self) -> &'static str {
        "PrioritySort"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::QueueSort]
    }
}

/// The binding is written to the API server.
pub(super) struct DefaultBinder;

impl Plugin for DefaultBinder {
    fn name(&self) -> &'static str {
        "DefaultBinder"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Bind]
    }
}

/// Pods of lower priority go where that lets a pod in.
pub(super) struct DefaultPreemption(PreemptionSettings);

impl DefaultPreemption {
    pub(super) fn new(settings: &PreemptionSettings) -> Self {
        Self(settings.clone())
    }
}

impl Plugin for DefaultPreemption {
    fn name(&self) -> &'static str {
        "DefaultPreemption"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreEnqueue, Point::PostFilter]
    }

    fn preemption(&self) -> Option<&PreemptionSettings> {
        Some(&self.0)
    }

    fn heeds(&self, _event: &Event) -> bool {
        false
    }

    fn may_help(&self, _pod: &Pod, _event: &Event) -> bool {
        false
    }
}
