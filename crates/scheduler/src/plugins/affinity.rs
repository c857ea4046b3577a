//! `spec.nodeSelector` and node affinity, of the pod and of the configuration.

use std::collections::BTreeSet;

use crate::cluster::{Cluster, NodeState};
use crate::framework::{Check, Event, Plugin, Point, PreFilter, Rate, Refusal, normalize_to_max};
use crate::types::{Node, NodeAffinity, Pod};

/// A pod goes where its node selector and node affinity let it.
#[derive(Default)]
pub(super) struct Affinity {
    /// What the configuration asks of every pod.
    added: NodeAffinity,
}

impl Affinity {
    pub(super) fn new(added: Option<NodeAffinity>) -> Self {
        Self { added: added.unwrap_or_default() }
    }

    fn allows(&self, pod: &Pod, node: &Node) -> bool {
        self.added.required.as_ref().is_none_or(|added| added.matches(&node.name, &node.labels))
            && allows(pod, node)
    }
}

/// Whether a pod may be on a node for all that its own selector and affinity say.
pub(super) fn allows(pod: &Pod, node: &Node) -> bool {
    let selector = &pod.spec.node_selector;
    selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
        && pod
            .spec
            .node_affinity
            .required
            .as_ref()
            .is_none_or(|required| required.matches(&node.name, &node.labels))
}

/// The nodes that a pod's affinity names: each alternative has to name some. Source: `NodeAffinity.PreFilter`.
fn named(pod: &Pod) -> Option<BTreeSet<String>> {
    let required = pod.spec.node_affinity.required.as_ref()?;
    let mut all = BTreeSet::new();
    for term in &required.node_selector_terms {
        all.extend(term.named()?.into_iter().map(str::to_owned));
    }
    (!required.node_selector_terms.is_empty()).then_some(all)
}

struct Allowed<'a>(&'a Affinity, &'a Pod);

impl Check for Allowed<'_> {
    fn refusal(&self, state: &NodeState) -> Option<Refusal> {
        let node = state.node();
        if self.0.added.required.as_ref().is_some_and(|added| !added.matches(&node.name, &node.labels)) {
            return Some(Refusal::lasting("node(s) didn't match scheduler-enforced node affinity"));
        }
        (!allows(self.1, node)).then(|| Refusal::lasting("node(s) didn't match Pod's node affinity/selector"))
    }
}

struct Preferred<'a>(&'a NodeAffinity, &'a NodeAffinity);

impl Rate for Preferred<'_> {
    fn score(&self, state: &NodeState) -> i64 {
        let terms = self.0.preferred.iter().chain(&self.1.preferred);
        let matching = terms.filter(|term| {
            term.weight != 0 && term.preference.matches(&state.node().name, &state.node().labels)
        });
        matching.map(|term| term.weight).fold(0, i64::saturating_add)
    }

    fn normalize(&self, scores: &mut [i64], _nodes: &[&NodeState]) {
        normalize_to_max(scores, false);
    }
}

impl Plugin for Affinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score]
    }

    fn filter<'a>(&'a self, pod: &'a Pod, _cluster: &'a Cluster) -> PreFilter<'a> {
        let asks = !pod.spec.node_selector.is_empty() || pod.spec.node_affinity.required.is_some();
        if !asks && self.added.required.is_none() {
            return PreFilter::Skip;
        }
        match named(pod) {
            Some(names) if names.is_empty() => {
                PreFilter::Refuse(Refusal::lasting("pod affinity terms conflict"))
            }
            Some(names) => PreFilter::Only(names, Box::new(Allowed(self, pod))),
            None => PreFilter::Check(Box::new(Allowed(self, pod))),
        }
    }

    fn rate<'a>(
        &'a self,
        pod: &'a Pod,
        _cluster: &'a Cluster,
        _nodes: &[&'a NodeState],
    ) -> Option<Box<dyn Rate + 'a>> {
        let own = &pod.spec.node_affinity;
        let any = !own.preferred.is_empty() || !self.added.preferred.is_empty();
        any.then(|| Box::new(Preferred(&self.added, own)) as Box<dyn Rate>)
    }

    fn heeds(&self, event: &Event) -> bool {
        matches!(event, Event::NodeAdded(_) | Event::NodeChanged(..) | Event::OwnChanged(..))
    }

    fn may_help(&self, pod: &Pod, event: &Event) -> bool {
        match event {
            Event::NodeAdded(node) => self.allows(pod, node),
            Event::NodeChanged(old, new) => self.allows(pod, new) && !self.allows(pod, old),
            Event::OwnChanged(old, new) => {
                old.spec.node_affinity != new.spec.node_affinity
                    || old.spec.node_selector != new.spec.node_selector
            }
            _ => false,
        }
    }
}
