//! Host ports: one user per address, protocol and port; the wildcard address conflicts with all.

use crate::cluster::{Cluster, NodeState};
use crate::framework::{Check, Event, Plugin, Point, PreFilter, Refusal};
use crate::types::{HostPort, Pod};

/// A pod's host ports have to be free.
pub(super) struct Ports;

struct Free<'a>(&'a [HostPort]);

fn conflict(wanted: &[HostPort], taken: &[HostPort]) -> bool {
    taken.iter().any(|taken| wanted.iter().any(|wanted| wanted.conflicts(taken)))
}

impl Check for Free<'_> {
    fn refusal(&self, state: &NodeState) -> Option<Refusal> {
        let taken = conflict(self.0, &state.ports);
        taken.then(|| Refusal::resolvable("node(s) didn't have free ports for the requested pod ports"))
    }
}

impl Plugin for Ports {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn filter<'a>(&'a self, pod: &'a Pod, _cluster: &'a Cluster) -> PreFilter<'a> {
        if pod.spec.ports.is_empty() {
            return PreFilter::Skip;
        }
        PreFilter::Check(Box::new(Free(&pod.spec.ports)))
    }

    fn heeds(&self, event: &Event) -> bool {
        matches!(event, Event::NodeAdded(_) | Event::PodLeft(_))
    }

    fn may_help(&self, pod: &Pod, event: &Event) -> bool {
        match event {
            Event::NodeAdded(_) => true,
            Event::PodLeft(left) => conflict(&pod.spec.ports, &left.spec.ports),
            _ => false,
        }
    }
}
