//! A slow and plain scheduler over a list of nodes and a list of pods, which the real one is compared with: no index, no
//! cache, every sum is made anew by looking at everything.

use std::collections::BTreeMap;

use reconcile::taints::Taint;

use crate::framework::MAX_SCORE;
use crate::types::{Labels, Node, NodeAffinity, Pod, SpreadConstraint, Term};

/// How good nodes are by what is used of them.
pub(crate) enum Strategy {
    Least,
    Most,
    /// Points of how much is used and the score there, both in hundredths.
    Ratio(Vec<(i64, i64)>),
}

/// What a configuration says, as far as it is not what upstream's defaults say.
pub(crate) struct Settings {
    /// Of taints, node affinity, room, spreading, neighbours, balance and images.
    pub(crate) weights: [i64; 7],
    pub(crate) strategy: Strategy,
    pub(crate) compared: Vec<(&'static str, i64)>,
    pub(crate) balanced: Vec<&'static str>,
    pub(crate) ignored: Vec<&'static str>,
    pub(crate) hard_weight: i64,
    pub(crate) ignores_others: bool,
    /// For pods without constraints of their own; `None`: the system's.
    pub(crate) spreading: Option<Vec<SpreadConstraint>>,
    /// Asked of every pod.
    pub(crate) added: NodeAffinity,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            weights: [3, 2, 1, 2, 2, 1, 1],
            strategy: Strategy::Least,
            compared: vec![("cpu", 1), ("memory", 1)],
            balanced: vec!["cpu", "memory"],
            ignored: Vec::new(),
            hard_weight: 1,
            ignores_others: false,
            spreading: None,
            added: NodeAffinity::default(),
        }
    }
}

/// What there is.
pub(crate) struct World<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) nodes: Vec<&'a Node>,
    pub(crate) pods: Vec<&'a Pod>,
    pub(crate) namespaces: &'a BTreeMap<String, Labels>,
    /// Selectors of Services by namespace.
    pub(crate) services: &'a [(String, Labels)],
    /// How many devices nodes have of the class that stands for [`DEVICES`]; `None`: no class does.
    pub(crate) devices: Option<&'a BTreeMap<String, i128>>,
}

/// An extended resource that may be had as devices.
pub(crate) const DEVICES: &str = "example.com/npu";

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

fn affinity_allows(pod: &Pod, node: &Node) -> bool {
    let spec = &pod.spec;
    spec.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
        && spec.node_affinity.required.as_ref().is_none_or(|required| {
            required.node_selector_terms.iter().any(|term| term.matches(&node.name, &node.labels))
        })
}

fn bears_taints(pod: &Pod, node: &Node) -> bool {
    node.taints
        .iter()
        .filter(|taint| taint.effect != "PreferNoSchedule")
        .all(|taint| pod.spec.tolerations.iter().any(|toleration| toleration.covers(taint)))
}

impl World<'_> {
    fn on(&self, node: &Node) -> Vec<&Pod> {
        self.pods.iter().copied().filter(|pod| *pod.node == *node.name).collect()
    }

    fn node_of(&self, pod: &Pod) -> Option<&Node> {
        self.nodes.iter().copied().find(|node| *node.name == *pod.node)
    }

    fn means(&self, term: &Term, pod: &Pod) -> bool {
        term.pods.matches(&pod.key.namespace, self.namespaces.get(&pod.key.namespace), &pod.labels)
    }

    /// The pods on nodes that share the value of a label with a node, which has it.
    fn beside(&self, node: &Node, key: &str) -> Vec<&Pod> {
        let Some(value) = node.labels.get(key) else { return Vec::new() };
        let shares = |pod: &&Pod| self.node_of(pod).is_some_and(|other| other.labels.get(key) == Some(value));
        self.pods.iter().copied().filter(shares).collect()
    }

    /// Why a pod cannot go to a node: the reasons of the first that refuses.
    pub(crate) fn refusal(&self, pod: &Pod, node: &Node) -> Vec<String> {
        let one = |text: &str| vec![text.to_owned()];
        let cordon = Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        if node.unschedulable && !pod.spec.tolerations.iter().any(|held| held.covers(&cordon)) {
            return one("node(s) were unschedulable");
        }
        if !bears_taints(pod, node) {
            return one("node(s) had untolerated taint(s)");
        }
        let added = &self.settings.added.required;
        if !added.as_ref().is_none_or(|added| {
            added.node_selector_terms.iter().any(|term| term.matches(&node.name, &node.labels))
        }) {
            return one("node(s) didn't match scheduler-enforced node affinity");
        }
        if !affinity_allows(pod, node) {
            return one("node(s) didn't match Pod's node affinity/selector");
        }
        let on = self.on(node);
        let taken = |port| on.iter().flat_map(|other| &other.spec.ports).any(|held| held.conflicts(port));
        if pod.spec.ports.iter().any(taken) {
            return one("node(s) didn't have free ports for the requested pod ports");
        }
        let mut lacks = Vec::new();
        if on.len() as i128 + 1 > node.pods_max {
            lacks.push("Too many pods".to_owned());
        }
        for (name, asked) in pod.spec.requests.iter() {
            let used: i128 = on.iter().map(|other| other.spec.requests.get(name)).sum();
            let counts = asked > 0 && !self.settings.ignored.contains(&name) && !self.delegates(name, node);
            if counts && asked > node.allocatable.get(name) - used {
                lacks.push(format!("Insufficient {name}"));
            }
        }
        if !lacks.is_empty() {
            return lacks;
        }
        let spread = self.spread_refusal(pod, node);
        let neighbours = if spread.is_empty() { self.neighbours_refusal(pod, node) } else { spread };
        let asked = pod.spec.requests.get(DEVICES);
        let has = self.devices.and_then(|devices| devices.get(&node.name)).copied().unwrap_or(0);
        if neighbours.is_empty() && self.delegates(DEVICES, node) && asked > has {
            return one("cannot allocate all claims");
        }
        neighbours
    }

    /// Whether a resource is had as devices on a node.
    fn delegates(&self, name: &str, node: &Node) -> bool {
        name == DEVICES && self.devices.is_some() && node.allocatable.get(name) == 0
    }

    fn spread_refusal(&self, pod: &Pod, node: &Node) -> Vec<String> {
        let own = self.constraints(pod);
        let hard: Vec<&SpreadConstraint> = own.iter().filter(|held| held.hard).collect();
        for constraint in &hard {
            let key = &constraint.topology_key;
            let Some(value) = node.labels.get(key) else {
                return vec![
                    "node(s) didn't match pod topology spread constraints (missing required label)".into(),
                ];
            };
            let mut domains: BTreeMap<&String, i64> = BTreeMap::new();
            for other in &self.nodes {
                let all = hard.iter().all(|held| other.labels.contains_key(&held.topology_key));
                if all && self.counts(constraint, pod, other) {
                    *domains.entry(&other.labels[key]).or_default() += self.like(constraint, pod, other);
                }
            }
            let least = match domains.len() < constraint.min_domains {
                true => 0,
                false => domains.values().copied().min().unwrap_or(0),
            };
            let own = i64::from(constraint.selector.matches(&pod.labels));
            if domains.get(value).copied().unwrap_or(0) + own - least > constraint.max_skew {
                return vec!["node(s) didn't match pod topology spread constraints".into()];
            }
        }
        Vec::new()
    }

    /// The constraints of a pod, or those that the configuration has for pods that a Service selects.
    fn constraints(&self, pod: &Pod) -> Vec<SpreadConstraint> {
        if !pod.spec.spread.is_empty() {
            return pod.spec.spread.clone();
        }
        let mut labels = Labels::new();
        for (namespace, selector) in self.services {
            let selects = selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
            if *namespace == pod.key.namespace && selects {
                labels.extend(selector.clone());
            }
        }
        if labels.is_empty() {
            return Vec::new();
        }
        let system = || {
            let of = |(key, max_skew): (&str, i64)| SpreadConstraint {
                max_skew,
                topology_key: key.into(),
                honors_affinity: true,
                min_domains: 1,
                ..SpreadConstraint::default()
            };
            [(HOST, 3), (ZONE, 5)].map(of).into()
        };
        let selector = crate::types::Selector::of_labels(&labels);
        let mut constraints: Vec<SpreadConstraint> = self.settings.spreading.clone().unwrap_or_else(system);
        constraints.iter_mut().for_each(|held| held.selector = selector.clone());
        constraints
    }

    fn counts(&self, constraint: &SpreadConstraint, pod: &Pod, node: &Node) -> bool {
        (!constraint.honors_affinity || affinity_allows(pod, node))
            && (!constraint.honors_taints || bears_taints(pod, node))
    }

    fn like(&self, constraint: &SpreadConstraint, pod: &Pod, node: &Node) -> i64 {
        let like = |other: &&&Pod| {
            other.key.namespace == pod.key.namespace
                && !other.terminating
                && constraint.selector.matches(&other.labels)
        };
        self.on(node).iter().filter(like).count() as i64
    }

    fn neighbours_refusal(&self, pod: &Pod, node: &Node) -> Vec<String> {
        let spec = &pod.spec;
        let wanted = |other: &Pod| spec.affinity.iter().all(|term| self.means(term, other));
        let lacks = spec.affinity.iter().any(|term| !node.labels.contains_key(&term.topology_key));
        let alone =
            spec.affinity.iter().any(|term| !self.beside(node, &term.topology_key).into_iter().any(wanted));
        let anywhere = self.pods.iter().copied().filter(|other| wanted(other)).any(|other| {
            let labels = self.node_of(other).map(|node| &node.labels);
            labels.is_some_and(|labels| {
                spec.affinity.iter().any(|term| labels.contains_key(&term.topology_key))
            })
        });
        if lacks || (alone && (anywhere || !wanted(pod))) {
            return vec!["node(s) didn't match pod affinity rules".into()];
        }
        let meets = |term: &Term| {
            self.beside(node, &term.topology_key).into_iter().any(|other| self.means(term, other))
        };
        if spec.anti_affinity.iter().any(|term| meets(term)) {
            return vec!["node(s) didn't match pod anti-affinity rules".into()];
        }
        let refuses = |other: &&Pod| {
            other.spec.anti_affinity.iter().any(|term| {
                let theirs = self.node_of(other).and_then(|held| held.labels.get(&term.topology_key));
                theirs.is_some() && theirs == node.labels.get(&term.topology_key) && self.means(term, pod)
            })
        };
        if self.pods.iter().any(refuses) {
            return vec!["node(s) didn't satisfy existing pods anti-affinity rules".into()];
        }
        Vec::new()
    }

    /// The weighted scores of some nodes.
    pub(crate) fn scores(&self, pod: &Pod, nodes: &[&Node]) -> Vec<i64> {
        let each = |score: &dyn Fn(&Node) -> i64| nodes.iter().map(|node| score(node)).collect::<Vec<i64>>();
        let soft = each(&|node| {
            let borne = |taint| pod.spec.tolerations.iter().any(|held| held.covers(taint));
            node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule" && !borne(taint)).count()
                as i64
        });
        let preferred = each(&|node| {
            let terms = pod.spec.node_affinity.preferred.iter().chain(&self.settings.added.preferred);
            terms
                .filter(|term| term.preference.matches(&node.name, &node.labels))
                .map(|term| term.weight)
                .sum()
        });
        let wishes = each(&|node| self.wishes(pod, node));
        let (least, most) = (wishes.iter().min().copied(), wishes.iter().max().copied());
        let between = |score: i64| match (least, most) {
            (Some(least), Some(most)) if most > least => {
                (MAX_SCORE as f64 * ((score - least) as f64 / (most - least) as f64)) as i64
            }
            _ => 0,
        };
        let even = self.evenness(pod, nodes);
        (0..nodes.len())
            .map(|at| {
                let scores = [
                    MAX_SCORE - to_max(&soft, at),
                    to_max(&preferred, at),
                    self.left(pod, nodes[at]),
                    even[at],
                    between(wishes[at]),
                    self.balance(pod, nodes[at]),
                    self.images(pod, nodes[at]),
                ];
                scores.iter().zip(self.settings.weights).map(|(score, weight)| score * weight).sum()
            })
            .collect()
    }

    fn wishes(&self, pod: &Pod, node: &Node) -> i64 {
        let mut sum = 0;
        if self.settings.ignores_others && pod.spec.preferred.is_empty() {
            return 0;
        }
        for other in &self.pods {
            let Some(theirs) = self.node_of(other) else { continue };
            let together =
                |key: &str| node.labels.get(key).is_some_and(|value| theirs.labels.get(key) == Some(value));
            let mine = pod.spec.preferred.iter();
            sum += mine
                .filter(|(_, term)| together(&term.topology_key) && self.means(term, other))
                .map(|(weight, _)| weight)
                .sum::<i64>();
            let required = other.spec.affinity.iter().map(|term| (self.settings.hard_weight, term));
            let their_wishes = other.spec.preferred.iter().map(|(weight, term)| (*weight, term));
            sum += required
                .chain(their_wishes)
                .filter(|(_, term)| together(&term.topology_key) && self.means(term, pod))
                .map(|(weight, _)| weight)
                .sum::<i64>();
        }
        sum
    }

    fn left(&self, pod: &Pod, node: &Node) -> i64 {
        let (mut sum, mut weights) = (0, 0);
        for (name, weight) in &self.settings.compared {
            let part = |pod: &Pod| match *name {
                "cpu" => pod.spec.compared.0,
                "memory" => pod.spec.compared.1,
                name => pod.spec.requests.get(name),
            };
            let used = self.on(node).into_iter().map(part).sum::<i128>() + part(pod);
            let Some(score) = self.scored(name, used, pod, node) else { continue };
            sum += score * weight;
            weights += weight;
        }
        match (weights, &self.settings.strategy) {
            (0, _) => 0,
            (_, Strategy::Ratio(_)) => (sum as f64 / weights as f64).round() as i64,
            _ => sum / weights,
        }
    }

    /// The score of a node for one resource; `None` if it does not matter.
    fn scored(&self, name: &str, used: i128, pod: &Pod, node: &Node) -> Option<i64> {
        let offered = node.allocatable.get(name);
        let other = name.contains('/');
        if offered == 0 || (other && pod.spec.requests.get(name) == 0) {
            return None;
        }
        let hundredths = |part: i128| (part.min(offered).max(0) * 100 / offered) as i64;
        match &self.settings.strategy {
            Strategy::Least => Some(hundredths(offered - used)),
            Strategy::Most => Some(hundredths(used)),
            Strategy::Ratio(points) => {
                let used = hundredths(used);
                let mut score = points.last()?.1;
                for pair in points.windows(2).rev() {
                    let ((from, low), (to, high)) = (pair[0], pair[1]);
                    if used <= to {
                        score = low + (high - low) * (used - from) / (to - from);
                    }
                }
                (score > 0).then_some(score)
            }
        }
    }

    fn balance(&self, pod: &Pod, node: &Node) -> i64 {
        let asked = &pod.spec.requests;
        if self.settings.balanced.iter().all(|name| asked.get(name) == 0) {
            return 0;
        }
        let score = |with: i128| {
            let mut parts = Vec::new();
            for name in &self.settings.balanced {
                let (offered, other) = (node.allocatable.get(name), name.contains('/'));
                if offered == 0 || (other && asked.get(name) == 0) {
                    continue;
                }
                let used: i128 = self.on(node).iter().map(|other| other.spec.requests.get(name)).sum();
                parts.push(((used + with * asked.get(name)) as f64 / offered as f64).min(1.0));
            }
            let deviation = match parts.as_slice() {
                [a, b] => ((a - b) / 2.0).abs(),
                [] | [_] => 0.0,
                parts => {
                    let count = parts.len() as f64;
                    let mean = parts.iter().sum::<f64>() / count;
                    (parts.iter().map(|part| (part - mean) * (part - mean)).sum::<f64>() / count).sqrt()
                }
            };
            ((1.0 - deviation) * 100.0) as i64
        };
        50 + (50 + score(1) - score(0)) / 2
    }

    fn images(&self, pod: &Pod, node: &Node) -> i64 {
        let size = |node: &Node, image: &String| {
            node.images.iter().find(|(name, _)| name == image).map(|(_, size)| *size)
        };
        let mut sum = 0;
        for image in &pod.spec.images {
            let nodes = self.nodes.iter().filter(|node| size(node, image).is_some()).count();
            let part = nodes as f64 / self.nodes.len() as f64;
            sum += size(node, image).map_or(0, |size| (size as f64 * part) as i64);
        }
        let (least, most) = (23 << 20, (1000 << 20) * pod.spec.images.len().max(1) as i64);
        100 * (sum.clamp(least, most) - least) / (most - least)
    }

    fn evenness(&self, pod: &Pod, nodes: &[&Node]) -> Vec<i64> {
        let own = !pod.spec.spread.is_empty() || self.settings.spreading.is_some();
        let constraints: Vec<SpreadConstraint> =
            self.constraints(pod).into_iter().filter(|held| !held.hard).collect();
        if constraints.is_empty() {
            return vec![0; nodes.len()];
        }
        let takes_part =
            |node: &Node| !own || constraints.iter().all(|held| node.labels.contains_key(&held.topology_key));
        let among: Vec<&Node> = nodes.iter().copied().filter(|node| takes_part(node)).collect();
        let score = |node: &Node| {
            let mut score = 0.0;
            for constraint in &constraints {
                let key = &constraint.topology_key;
                let Some(value) = node.labels.get(key) else { continue };
                let mut values: Vec<_> = among.iter().map(|node| node.labels.get(key)).collect();
                values.sort();
                values.dedup();
                let places = if key == HOST { among.len() } else { values.len() };
                let pods: i64 = if key == HOST {
                    self.like(constraint, pod, node)
                } else {
                    let there = self.nodes.iter().filter(|other| {
                        takes_part(other)
                            && other.labels.get(key) == Some(value)
                            && self.counts(constraint, pod, other)
                    });
                    there.map(|other| self.like(constraint, pod, other)).sum()
                };
                score += pods as f64 * ((places + 2) as f64).ln() + (constraint.max_skew - 1) as f64;
            }
            score.round() as i64
        };
        let scores: Vec<Option<i64>> =
            nodes.iter().map(|node| takes_part(node).then(|| score(node))).collect();
        let least = scores.iter().flatten().min().copied().unwrap_or(0);
        let most = scores.iter().flatten().max().copied().unwrap_or(0);
        let scaled = |score: Option<i64>| match score {
            None => 0,
            Some(_) if most == 0 => MAX_SCORE,
            Some(score) => MAX_SCORE * (most + least - score) / most,
        };
        scores.into_iter().map(scaled).collect()
    }
}

fn to_max(scores: &[i64], at: usize) -> i64 {
    match scores.iter().max() {
        Some(0) | None => 0,
        Some(max) => scores[at] * MAX_SCORE / max,
    }
}
