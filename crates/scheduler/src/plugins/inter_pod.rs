//! Pods that must or would like to be with others, or not with them. Source: `interpodaffinity`.

use std::borrow::Cow;
use std::sync::Arc;

use crate::cluster::groups::Slot;
use crate::cluster::terms::Wish;
use crate::cluster::topology::Column;
use crate::cluster::{Cluster, NodeState};
use crate::config::args::InterPodArgs;
use crate::framework::{Check, Event, MAX_SCORE, Plugin, Point, PreFilter, Rate, Refusal};
use crate::types::{Matcher, Pod, Term};

/// Affinity between pods, of the pod and of those that are there.
pub(super) struct InterPod {
    hard_weight: i64,
    ignores_others: bool,
}

impl InterPod {
    pub(super) fn new(args: &InterPodArgs) -> Self {
        Self {
            hard_weight: args.hard_pod_affinity_weight.into(),
            ignores_others: args.ignore_preferred_terms_of_existing_pods,
        }
    }
}

/// Sums by the value that a node has for one label.
struct Tally<'a> {
    key: Cow<'a, str>,
    column: Cow<'a, Column>,
    sums: Vec<i64>,
    /// How many of the sums are not 0: each node asks whether any is.
    nonzero: usize,
}

impl Tally<'_> {
    fn add(&mut self, slot: Slot, amount: i64) {
        if let Some(sum) = self.column.value(slot).and_then(|value| self.sums.get_mut(value)) {
            self.nonzero -= usize::from(*sum != 0);
            *sum += amount;
            self.nonzero += usize::from(*sum != 0);
        }
    }

    /// The sum of a node's value; `None` if it lacks the label.
    fn at(&self, slot: Slot) -> Option<i64> {
        Some(self.sums.get(self.column.value(slot)?).copied().unwrap_or(0))
    }
}

/// Sums by several labels.
#[derive(Default)]
struct Tallies<'a>(Vec<Tally<'a>>);

impl<'a> Tallies<'a> {
    /// The sums of one label.
    fn of(&mut self, key: Cow<'a, str>, cluster: &'a Cluster) -> &mut Tally<'a> {
        let at = self.0.iter().position(|tally| tally.key == key).unwrap_or_else(|| {
            let column = cluster.column(&key);
            let sums = vec![0; column.bound()];
            self.0.push(Tally { key, column, sums, nonzero: 0 });
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    fn known(&mut self, key: &str) -> Option<&mut Tally<'a>> {
        self.0.iter_mut().find(|tally| tally.key == key)
    }

    fn at(&self, key: &str, slot: Slot) -> Option<i64> {
        self.0.iter().find(|tally| tally.key == key)?.at(slot)
    }
}

/// The pods that every one of these terms means.
fn question(terms: &[Arc<Term>]) -> Vec<Matcher> {
    terms.iter().map(|term| term.pods.clone()).collect()
}

fn one(term: &Term) -> &[Matcher] {
    std::slice::from_ref(&term.pods)
}

fn means(term: &Term, pod: &Pod, cluster: &Cluster) -> bool {
    term.pods.matches(&pod.key.namespace, cluster.groups.namespace(&pod.key.namespace), &pod.labels)
}

/// The terms of one pod, and what is where.
struct Terms<'a> {
    pod: &'a Pod,
    cluster: &'a Cluster,
    /// Pods that all of the pod's affinity terms mean, once for each term.
    with: Tallies<'a>,
    /// Pods that its anti-affinity terms mean.
    without: Tallies<'a>,
    /// Pods whose anti-affinity terms mean it.
    others: Tallies<'a>,
}

impl<'a> Terms<'a> {
    fn new(pod: &'a Pod, cluster: &'a Cluster) -> Self {
        let mut terms = Self {
            pod,
            cluster,
            with: Tallies::default(),
            without: Tallies::default(),
            others: Tallies::default(),
        };
        let spec = &pod.spec;
        if !spec.affinity.is_empty() {
            let meant = cluster.counts(&question(&spec.affinity));
            for term in &spec.affinity {
                let tally = terms.with.of(term.topology_key.as_str().into(), cluster);
                meant.iter().for_each(|(slot, count)| tally.add(*slot, count.all));
            }
        }
        for term in &spec.anti_affinity {
            let tally = terms.without.of(term.topology_key.as_str().into(), cluster);
            cluster.counts(one(term)).iter().for_each(|(slot, count)| tally.add(*slot, count.all));
        }
        for (term, standing) in cluster.terms.anti(&pod.labels).filter(|(term, _)| means(term, pod, cluster))
        {
            let tally = terms.others.of(term.topology_key.as_str().into(), cluster);
            standing.iter().for_each(|(slot, count)| tally.add(*slot, *count));
        }
        terms
    }

    fn has_none(&self) -> bool {
        let spec = &self.pod.spec;
        spec.affinity.is_empty() && spec.anti_affinity.is_empty() && self.others.0.is_empty()
    }

    fn with_others(&self, slot: Slot) -> bool {
        let terms = &self.pod.spec.affinity;
        let mut all = true;
        for term in terms {
            match self.with.at(&term.topology_key, slot) {
                None => return false,
                Some(count) => all &= count > 0,
            }
        }
        // The first of a series that wants to be together is with itself.
        all || (self.with.0.iter().all(|tally| tally.nonzero == 0)
            && terms.iter().all(|term| means(term, self.pod, self.cluster)))
    }

    /// A pod came to a node (`by` is 1) or left it (−1).
    fn change(&mut self, other: &Pod, slot: Slot, by: i64) {
        let (pod, cluster) = (self.pod, self.cluster);
        let spec = &pod.spec;
        if !spec.affinity.is_empty() && spec.affinity.iter().all(|term| means(term, other, cluster)) {
            for term in &spec.affinity {
                self.with.known(&term.topology_key).into_iter().for_each(|tally| tally.add(slot, by));
            }
        }
        for term in spec.anti_affinity.iter().filter(|term| means(term, other, cluster)) {
            self.without.known(&term.topology_key).into_iter().for_each(|tally| tally.add(slot, by));
        }
        for term in other.spec.anti_affinity.iter().filter(|term| means(term, pod, cluster)) {
            // A pod that waits for room may bring a label that no pod on a node speaks of.
            let tally = match self.others.known(&term.topology_key) {
                Some(tally) => tally,
                None => self.others.of(term.topology_key.clone().into(), cluster),
            };
            tally.add(slot, by);
        }
    }
}

impl Check for Terms<'_> {
    fn refusal(&self, state: &NodeState) -> Option<Refusal> {
        if !self.with_others(state.slot) {
            return Some(Refusal::lasting("node(s) didn't match pod affinity rules"));
        }
        let any = |tallies: &Tallies<'_>| {
            tallies.0.iter().any(|tally| tally.at(state.slot).is_some_and(|count| count > 0))
        };
        if any(&self.without) {
            return Some(Refusal::resolvable("node(s) didn't match pod anti-affinity rules"));
        }
        any(&self.others)
            .then(|| Refusal::resolvable("node(s) didn't satisfy existing pods anti-affinity rules"))
    }

    fn add(&mut self, pod: &Pod, state: &NodeState) {
        self.change(pod, state.slot, 1);
    }

    fn remove(&mut self, pod: &Pod, state: &NodeState) {
        self.change(pod, state.slot, -1);
    }
}

/// What the pod wishes and what others wish of it, by place.
struct Wishes<'a>(Tallies<'a>);

impl Rate for Wishes<'_> {
    fn score(&self, state: &NodeState) -> i64 {
        self.0.0.iter().filter_map(|tally| tally.at(state.slot)).sum()
    }

    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "upstream computes in doubles"
    )]
    fn normalize(&self, scores: &mut [i64], _nodes: &[&NodeState]) {
        let (Some(least), Some(most)) = (scores.iter().min().copied(), scores.iter().max().copied()) else {
            return;
        };
        for score in scores {
            let above = (*score - least) as f64;
            *score =
                if most > least { (MAX_SCORE as f64 * (above / (most - least) as f64)) as i64 } else { 0 };
        }
    }
}

impl Plugin for InterPod {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score]
    }

    fn prepare(&self, pod: &Pod, cluster: &mut Cluster) {
        let spec = &pod.spec;
        let preferred = spec.preferred.iter().map(|(_, term)| term);
        let all = spec.affinity.iter().chain(&spec.anti_affinity).chain(preferred.clone());
        cluster.tell_places(all.map(|term| term.topology_key.as_str()));
        if !spec.affinity.is_empty() {
            cluster.count(&question(&spec.affinity));
        }
        for term in spec.anti_affinity.iter().chain(preferred) {
            cluster.count(one(term));
        }
    }

    fn filter<'a>(&'a self, pod: &'a Pod, cluster: &'a Cluster) -> PreFilter<'a> {
        let terms = Terms::new(pod, cluster);
        // Pods that wait for room are taken into account too, and may have terms of their own.
        if terms.has_none() && !cluster.nominated.has_anti_affinity() {
            return PreFilter::Skip;
        }
        PreFilter::Check(Box::new(terms))
    }

    fn rate<'a>(
        &'a self,
        pod: &'a Pod,
        cluster: &'a Cluster,
        _nodes: &[&'a NodeState],
    ) -> Option<Box<dyn Rate + 'a>> {
        let mut tallies = Tallies::default();
        for (weight, term) in &pod.spec.preferred {
            let counts = cluster.counts(one(term));
            if counts.is_empty() {
                continue;
            }
            let tally = tallies.of(term.topology_key.as_str().into(), cluster);
            counts.iter().for_each(|(slot, count)| tally.add(*slot, weight * count.all));
        }
        if !(self.ignores_others && pod.spec.preferred.is_empty()) {
            for ((term, wish), standing) in cluster.terms.wishes(&pod.labels) {
                let weight = match wish {
                    Wish::Required => self.hard_weight,
                    Wish::Weight(weight) => *weight,
                };
                if weight == 0 || !means(term, pod, cluster) {
                    continue;
                }
                let tally = tallies.of(term.topology_key.as_str().into(), cluster);
                standing.iter().for_each(|(slot, count)| tally.add(*slot, weight * count));
            }
        }
        (!tallies.0.is_empty()).then(|| Box::new(Wishes(tallies)) as Box<dyn Rate>)
    }

    fn heeds(&self, event: &Event) -> bool {
        use Event::{NamespaceChanged, NodeAdded, NodeChanged, OwnChanged, PodChanged, PodLeft, PodPlaced};
        let of_pods = matches!(event, PodPlaced(_) | PodChanged(..) | PodLeft(_) | OwnChanged(..));
        of_pods || matches!(event, NodeAdded(_) | NodeChanged(..) | NamespaceChanged)
    }

    fn may_help(&self, pod: &Pod, event: &Event) -> bool {
        let spec = &pod.spec;
        // Labels of namespaces are not at hand here: a selector of them may match.
        let may_mean = |term: &Term, other: &Pod| {
            let named = term.pods.namespaces.contains(&other.key.namespace);
            (named || term.pods.namespace_selector.is_some()) && term.pods.selector.matches(&other.labels)
        };
        let wanted = |other: &Pod| spec.affinity.iter().all(|term| may_mean(term, other));
        let unwanted = |other: &Pod| spec.anti_affinity.iter().any(|term| may_mean(term, other));
        // Once the last of those whom it has to be with has gone, it is the first of its series, and may go anywhere.
        let was_with = |other: &Pod| !spec.affinity.is_empty() && wanted(other) && wanted(pod);
        let unwants = |other: &Pod| other.spec.anti_affinity.iter().any(|term| may_mean(term, pod));
        match event {
            Event::NodeAdded(_) | Event::NamespaceChanged => true,
            Event::NodeChanged(old, new) => old.labels != new.labels,
            Event::PodPlaced(other) => !spec.affinity.is_empty() && wanted(other),
            Event::PodLeft(other) => unwanted(other) || unwants(other) || was_with(other),
            Event::PodChanged(old, new) => {
                (!spec.affinity.is_empty() && wanted(new) && !wanted(old))
                    || (unwanted(old) && !unwanted(new))
                    || (was_with(old) && !was_with(new))
            }
            Event::OwnChanged(old, new) => old.labels != new.labels,
            _ => false,
        }
    }
}
