//! What not every node can do. Source: `plugins/nodedeclaredfeatures`.

use crate::cluster::{Cluster, NodeState};
use crate::framework::{Check, Event, Plugin, Point, PreFilter, Refusal};
use crate::types::Pod;

/// Nodes declare the features that a pod needs.
pub(super) struct DeclaredFeatures;

struct Declared<'a>(&'a [&'static str]);

impl Check for Declared<'_> {
    fn refusal(&self, state: &NodeState) -> Option<Refusal> {
        let declared = |feature: &&str| state.node().features.iter().any(|held| held == feature);
        let all = self.0.iter().all(declared);
        (!all).then(|| Refusal::lasting("node(s) didn't match Pod's required features"))
    }
}

impl Plugin for DeclaredFeatures {
    fn name(&self) -> &'static str {
        "NodeDeclaredFeatures"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn filter<'a>(&'a self, pod: &'a Pod, _cluster: &'a Cluster) -> PreFilter<'a> {
        if pod.spec.features.is_empty() {
            return PreFilter::Skip;
        }
        PreFilter::Check(Box::new(Declared(&pod.spec.features)))
    }

    fn heeds(&self, event: &Event) -> bool {
        matches!(event, Event::NodeAdded(_) | Event::NodeChanged(..) | Event::OwnChanged(..))
    }

    fn may_help(&self, _pod: &Pod, event: &Event) -> bool {
        match event {
            Event::NodeAdded(_) => true,
            Event::NodeChanged(old, new) => old.features != new.features,
            Event::OwnChanged(old, new) => old.spec.features != new.spec.features,
            _ => false,
        }
    }
}
