//! Pods of a kind spread evenly over places. Source: `podtopologyspread`.

use std::borrow::Cow;

use super::{affinity, taints};
use crate::cluster::groups::{Counts, Slot};
use crate::cluster::topology::Column;
use crate::cluster::{Cluster, NodeState};
use crate::config::args::SpreadArgs;
use crate::framework::{Check, Event, MAX_SCORE, Plugin, Point, PreFilter, Rate, Refusal};
use crate::types::{Labels, Matcher, Node, Pod, SpreadConstraint};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Topology spread constraints of pods, or the configuration's where a pod has none.
pub(super) struct Spread {
    defaults: Vec<SpreadConstraint>,
    /// The defaults are the system's: nodes need not have every label that they speak of.
    of_system: bool,
}

impl Spread {
    pub(super) fn new(args: &SpreadArgs) -> Self {
        let constraint = |topology_key: &str, max_skew| SpreadConstraint {
            max_skew,
            topology_key: topology_key.to_owned(),
            min_domains: 1,
            honors_affinity: true,
            ..SpreadConstraint::default()
        };
        let of_system = args.is_system();
        let defaults = if of_system {
            vec![constraint(HOSTNAME, 3), constraint(ZONE, 5)]
        } else {
            let given = args.default_constraints.iter().cloned();
            given.map(|source| source.read(&Labels::new())).collect()
        };
        Self { defaults, of_system }
    }

    /// The constraints of a pod that must hold, or the others.
    fn constraints(&self, pod: &Pod, cluster: &Cluster, hard: bool) -> Vec<SpreadConstraint> {
        if !pod.spec.spread.is_empty() {
            return pod.spec.spread.iter().filter(|constraint| constraint.hard == hard).cloned().collect();
        }
        let defaults: Vec<_> = self.defaults.iter().filter(|constraint| constraint.hard == hard).collect();
        if defaults.is_empty() {
            return Vec::new();
        }
        let selector = cluster.selected.like(pod);
        if selector.is_empty() {
            return Vec::new();
        }
        let with = |constraint: &SpreadConstraint| SpreadConstraint {
            selector: selector.clone(),
            ..constraint.clone()
        };
        defaults.into_iter().map(with).collect()
    }
}

fn question(constraint: &SpreadConstraint, pod: &Pod) -> [Matcher; 1] {
    [Matcher::within(&pod.key.namespace, constraint.selector.clone())]
}

/// Whether a node is a place that counts for a constraint. Source: `matchNodeInclusionPolicies`.
fn counts(constraint: &SpreadConstraint, pod: &Pod, node: &Node) -> bool {
    (!constraint.honors_affinity || affinity::allows(pod, node))
        && (!constraint.honors_taints || taints::bears(pod, node))
}

/// A constraint, and how many pods are in each place.
struct Hard<'a> {
    constraint: SpreadConstraint,
    column: Cow<'a, Column>,
    /// By value: `None` where no node counts.
    sums: Vec<Option<i64>>,
    least: i64,
    /// Whether the pod itself is one of those that are counted.
    own: i64,
}

impl Hard<'_> {
    /// So many more pods are in a place, or fewer. The places are looked through only if the least may have grown.
    fn change(&mut self, value: usize, by: i64) {
        let held = self.sums[value];
        let now = held.unwrap_or(0) + by;
        self.sums[value] = Some(now);
        if held.is_none() || (by > 0 && held == Some(self.least)) {
            self.find_least();
        } else {
            self.least = self.least.min(now);
        }
    }

    fn find_least(&mut self) {
        let domains = self.sums.iter().flatten();
        let enough = domains.clone().count() >= self.constraint.min_domains;
        self.least = if enough { domains.copied().min().unwrap_or(0) } else { 0 };
    }
}

struct Skews<'a> {
    pod: &'a Pod,
    constraints: Vec<Hard<'a>>,
}

impl<'a> Skews<'a> {
    fn new(constraints: Vec<SpreadConstraint>, pod: &'a Pod, cluster: &'a Cluster) -> Self {
        let mut skews = Self { pod, constraints: Vec::new() };
        for constraint in constraints {
            let column = cluster.column(&constraint.topology_key);
            let own = i64::from(constraint.selector.matches(&pod.labels));
            let sums = vec![None; column.bound()];
            skews.constraints.push(Hard { constraint, column, sums, least: 0, own });
        }
        let counted = |hard: &Hard<'_>| cluster.counts(&question(&hard.constraint, pod));
        let found: Vec<Cow<'_, Counts>> = skews.constraints.iter().map(counted).collect();
        for state in cluster.states() {
            if !has_all(&skews.constraints, state.slot) {
                continue;
            }
            for (hard, found) in skews.constraints.iter_mut().zip(&found) {
                let Some(value) = hard.column.value(state.slot) else { continue };
                if counts(&hard.constraint, pod, state.node()) {
                    let pods = found.get(&state.slot).map_or(0, |count| count.staying);
                    *hard.sums[value].get_or_insert(0) += pods;
                }
            }
        }
        skews.constraints.iter_mut().for_each(Hard::find_least);
        skews
    }

    fn change(&mut self, other: &Pod, state: &NodeState, by: i64) {
        let apart = other.key.namespace != self.pod.key.namespace;
        if apart || other.terminating || !has_all(&self.constraints, state.slot) {
            return;
        }
        for hard in &mut self.constraints {
            let Some(value) = hard.column.value(state.slot) else { continue };
            let meant = hard.constraint.selector.matches(&other.labels);
            if meant && counts(&hard.constraint, self.pod, state.node()) {
                hard.change(value, by);
            }
        }
    }
}

fn has_all(constraints: &[Hard<'_>], slot: Slot) -> bool {
    constraints.iter().all(|hard| hard.column.value(slot).is_some())
}

impl Check for Skews<'_> {
    fn refusal(&self, state: &NodeState) -> Option<Refusal> {
        for hard in &self.constraints {
            let Some(value) = hard.column.value(state.slot) else {
                return Some(Refusal::lasting(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let held = hard.sums.get(value).copied().flatten().unwrap_or(0);
            if held + hard.own - hard.least > hard.constraint.max_skew {
                return Some(Refusal::resolvable("node(s) didn't match pod topology spread constraints"));
            }
        }
        None
    }

    fn add(&mut self, pod: &Pod, state: &NodeState) {
        self.change(pod, state, 1);
    }

    fn remove(&mut self, pod: &Pod, state: &NodeState) {
        self.change(pod, state, -1);
    }
}

/// A constraint that is better held, and how many pods are in each place.
struct Soft<'a> {
    constraint: SpreadConstraint,
    column: Cow<'a, Column>,
    found: Cow<'a, Counts>,
    /// By value, 0 for nodes without; empty if each node is a place of its own.
    sums: Vec<i64>,
    weight: f64,
}

struct Evenness<'a> {
    constraints: Vec<Soft<'a>>,
    /// Only nodes with all labels take part.
    all_labels: bool,
}

impl<'a> Evenness<'a> {
    fn leaves_out(&self, slot: Slot) -> bool {
        self.all_labels && self.constraints.iter().any(|soft| soft.column.value(slot).is_none())
    }

    /// Which values the nodes have, and with it how much a pod counts: the fewer places, the more.
    #[allow(clippy::cast_precision_loss, reason = "numbers of nodes")]
    fn count(&mut self, pod: &Pod, cluster: &Cluster, nodes: &[&'a NodeState]) {
        let partaking: Vec<Slot> =
            nodes.iter().map(|state| state.slot).filter(|slot| !self.leaves_out(*slot)).collect();
        for at in 0..self.constraints.len() {
            let soft = &self.constraints[at];
            if soft.constraint.topology_key == HOSTNAME {
                self.constraints[at].weight = ((partaking.len() + 2) as f64).ln();
                continue;
            }
            let mut present = vec![false; soft.column.bound()];
            for slot in &partaking {
                present[soft.column.value(*slot).unwrap_or(0)] = true;
            }
            let mut sums = vec![0; present.len()];
            for (slot, count) in soft.found.iter() {
                let value = soft.column.value(*slot).unwrap_or(0);
                let state = cluster.state(*slot);
                let there = cluster.node(&state.node().name).is_some();
                if there
                    && present[value]
                    && !self.leaves_out(*slot)
                    && counts(&soft.constraint, pod, state.node())
                {
                    sums[value] += count.staying;
                }
            }
            let places = present.into_iter().filter(|present| *present).count();
            let soft = &mut self.constraints[at];
            soft.weight = ((places + 2) as f64).ln();
            soft.sums = sums;
        }
    }
}

impl Rate for Evenness<'_> {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "upstream computes in doubles"
    )]
    fn score(&self, state: &NodeState) -> i64 {
        if self.leaves_out(state.slot) {
            return 0;
        }
        let mut score = 0.0;
        for soft in &self.constraints {
            let Some(value) = soft.column.value(state.slot) else { continue };
            let pods = if soft.constraint.topology_key == HOSTNAME {
                soft.found.get(&state.slot).map_or(0, |count| count.staying)
            } else {
                soft.sums.get(value).copied().unwrap_or(0)
            };
            score += pods as f64 * soft.weight + (soft.constraint.max_skew - 1) as f64;
        }
        score.round() as i64
    }

    fn normalize(&self, scores: &mut [i64], nodes: &[&NodeState]) {
        let out: Vec<bool> = nodes.iter().map(|state| self.leaves_out(state.slot)).collect();
        let partaking = || scores.iter().zip(&out).filter(|(_, out)| !**out).map(|(score, _)| *score);
        let (least, most) = (partaking().min().unwrap_or(0), partaking().max().unwrap_or(0).max(0));
        for (score, out) in scores.iter_mut().zip(out) {
            *score = match (out, most) {
                (true, _) => 0,
                (_, 0) => MAX_SCORE,
                _ => MAX_SCORE.saturating_mul(most + least - *score) / most,
            };
        }
    }
}

impl Plugin for Spread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score]
    }

    fn prepare(&self, pod: &Pod, cluster: &mut Cluster) {
        for hard in [true, false] {
            let constraints = self.constraints(pod, cluster, hard);
            cluster.tell_places(constraints.iter().map(|constraint| constraint.topology_key.as_str()));
            for constraint in &constraints {
                cluster.count(&question(constraint, pod));
            }
        }
    }

    fn filter<'a>(&'a self, pod: &'a Pod, cluster: &'a Cluster) -> PreFilter<'a> {
        let constraints = self.constraints(pod, cluster, true);
        if constraints.is_empty() {
            return PreFilter::Skip;
        }
        PreFilter::Check(Box::new(Skews::new(constraints, pod, cluster)))
    }

    fn rate<'a>(
        &'a self,
        pod: &'a Pod,
        cluster: &'a Cluster,
        nodes: &[&'a NodeState],
    ) -> Option<Box<dyn Rate + 'a>> {
        let constraints = self.constraints(pod, cluster, false).into_iter().map(|constraint| {
            let column = cluster.column(&constraint.topology_key);
            let found = cluster.counts(&question(&constraint, pod));
            Soft { constraint, column, found, sums: Vec::new(), weight: 0.0 }
        });
        let all_labels = !pod.spec.spread.is_empty() || !self.of_system;
        let mut evenness = Evenness { constraints: constraints.collect(), all_labels };
        if evenness.constraints.is_empty() {
            return None;
        }
        evenness.count(pod, cluster, nodes);
        Some(Box::new(evenness))
    }

    fn heeds(&self, event: &Event) -> bool {
        use Event::{NodeAdded, NodeChanged, NodeGone, OwnChanged, PodChanged, PodLeft, PodPlaced};
        let of_pods = matches!(event, PodPlaced(_) | PodChanged(..) | PodLeft(_) | OwnChanged(..));
        of_pods || matches!(event, NodeAdded(_) | NodeChanged(..) | NodeGone(_))
    }

    fn may_help(&self, pod: &Pod, event: &Event) -> bool {
        let own = &pod.spec.spread;
        let meant = |other: &Pod| {
            let any = |constraint: &SpreadConstraint| constraint.selector.matches(&other.labels);
            other.key.namespace == pod.key.namespace && (own.is_empty() || own.iter().any(any))
        };
        let placed = |node: &Node| {
            own.iter()
                .filter(|constraint| constraint.hard)
                .all(|constraint| node.labels.contains_key(&constraint.topology_key))
        };
        match event {
            Event::NodeAdded(node) | Event::NodeGone(node) => placed(node),
            Event::NodeChanged(old, new) => {
                let labels = old.labels != new.labels && (placed(old) || placed(new));
                labels || old.taints != new.taints
            }
            Event::PodPlaced(other) | Event::PodLeft(other) => meant(other),
            Event::PodChanged(old, new) => {
                (old.labels != new.labels || old.terminating != new.terminating) && (meant(old) || meant(new))
            }
            Event::OwnChanged(old, new) => old.labels != new.labels,
            _ => false,
        }
    }
}
