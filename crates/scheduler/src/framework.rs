//! The points at which plugins take part, and one scheduling decision over them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::cache::{Cache, NodeState};
use crate::plugins;
use crate::types::{Node, Pod};

/// The best score of one plugin for one node.
pub const MAX_SCORE: i64 = 100;

/// A change in the cluster that may let a pod fit that did not.
#[derive(Debug, Clone)]
pub enum Event {
    /// A node came.
    NodeAdded(Arc<Node>),
    /// A node changed: before and after.
    NodeChanged(Arc<Node>, Arc<Node>),
    /// A pod left its node.
    PodLeft(Arc<Pod>),
}

/// One consideration in placing pods.
pub trait Plugin: Send + Sync {
    /// Upstream's name of it.
    fn name(&self) -> &'static str;
    /// Why the pod cannot go to a node, in upstream's words; empty if it can.
    fn filter(&self, _pod: &Pod, _node: &Node, _state: &NodeState) -> Vec<String> {
        Vec::new()
    }
    /// Whether its refusal would end if pods of the node made room.
    fn yields_to_preemption(&self, _pod: &Pod, _node: &Node) -> bool {
        false
    }
    /// How good a node is; scaled over all nodes by [`Plugin::normalize`]. `None`: no opinion.
    fn score(&self, _pod: &Pod, _node: &Node, _state: &NodeState) -> Option<i64> {
        None
    }
    /// Brings scores to 0 to [`MAX_SCORE`].
    fn normalize(&self, _scores: &mut [i64]) {}
    /// How much the score counts.
    fn weight(&self) -> i64 {
        1
    }
    /// Whether an event may change this plugin's refusal of a pod.
    fn may_help(&self, _pod: &Pod, _event: &Event) -> bool {
        true
    }
}

/// Where a pod goes, or why it goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// To this node.
    Node(String),
    /// Nowhere for now.
    Unschedulable {
        /// Upstream's message.
        message: String,
        /// The plugins that refused a node.
        rejected_by: HashSet<&'static str>,
    },
}

/// The plugins, in the order in which they are asked.
pub struct Framework {
    plugins: Vec<Box<dyn Plugin>>,
}

impl Default for Framework {
    fn default() -> Self {
        Self { plugins: plugins::all() }
    }
}

impl Framework {
    /// Decides for one pod. `turn` rotates the choice among nodes that are equally good.
    pub fn decide(&self, pod: &Pod, cache: &Cache, turn: usize) -> Decision {
        let mut nodes: Vec<_> = cache.nodes().collect();
        nodes.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        if nodes.is_empty() {
            return Decision::Unschedulable {
                message: "no nodes available to schedule pods".to_owned(),
                rejected_by: HashSet::new(),
            };
        }
        let total = nodes.len();
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        let mut preemption: BTreeMap<String, usize> = BTreeMap::new();
        let mut rejected_by = HashSet::new();
        nodes.retain(|(node, state)| {
            // The first plugin that refuses speaks for the node, as upstream's filters do.
            let refusal = self.plugins.iter().find_map(|plugin| {
                let refusal = plugin.filter(pod, node, state);
                (!refusal.is_empty()).then_some((plugin, refusal))
            });
            let Some((plugin, refusal)) = refusal else { return true };
            rejected_by.insert(plugin.name());
            let yields = plugin.yields_to_preemption(pod, node);
            *preemption.entry(no_preemption(pod, state, yields).to_owned()).or_insert(0) += 1;
            for reason in refusal {
                *reasons.entry(reason).or_insert(0) += 1;
            }
            false
        });
        match self.best(pod, &nodes, turn) {
            Some(name) => Decision::Node(name),
            None => {
                let preemption = if pod.never_preempts {
                    "not eligible due to preemptionPolicy=Never.".to_owned()
                } else {
                    fit_error(total, &preemption)
                };
                let message = format!("{} preemption: {preemption}", fit_error(total, &reasons));
                Decision::Unschedulable { message, rejected_by }
            }
        }
    }

    fn best(&self, pod: &Pod, nodes: &[(&Arc<Node>, &NodeState)], turn: usize) -> Option<String> {
        let mut totals = vec![0_i64; nodes.len()];
        for plugin in &self.plugins {
            let scores: Option<Vec<i64>> =
                nodes.iter().map(|(node, state)| plugin.score(pod, node, state)).collect();
            let Some(mut scores) = scores else { continue };
            plugin.normalize(&mut scores);
            for (total, score) in totals.iter_mut().zip(scores) {
                *total += score * plugin.weight();
            }
        }
        let best = *totals.iter().max()?;
        let equals: Vec<usize> = (0..nodes.len()).filter(|index| totals[*index] == best).collect();
        let chosen = *equals.get(turn % equals.len())?;
        Some(nodes[chosen].0.name.clone())
    }

    /// Whether an event may let a pod fit that `rejected_by` refused. No refusals at all (there was no node) means that
    /// anything may.
    pub fn may_help(&self, pod: &Pod, rejected_by: &HashSet<&'static str>, event: &Event) -> bool {
        rejected_by.is_empty()
            || self
                .plugins
                .iter()
                .filter(|plugin| rejected_by.contains(plugin.name()))
                .any(|plugin| plugin.may_help(pod, event))
    }
}

/// Why nobody makes room for the pod on a node that refused it. Upstream's words, but the last: Skiff evicts no running
/// pod for another yet.
fn no_preemption(pod: &Pod, state: &NodeState, yields: bool) -> &'static str {
    if !yields {
        "Preemption is not helpful for scheduling"
    } else if state.pods.values().all(|other| other.priority >= pod.priority) {
        "No preemption victims found for incoming pod"
    } else {
        "Preemption is not supported"
    }
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.` Source: `FitError.Error`.
fn fit_error(total: usize, reasons: &BTreeMap<String, usize>) -> String {
    let mut parts: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{total} nodes are available: {}.", parts.join(", "))
}

/// Scales scores so that the highest becomes [`MAX_SCORE`]; `reversed` turns them round.
pub fn normalize_to_max(scores: &mut [i64], reversed: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        *score = if max == 0 { 0 } else { score.saturating_mul(MAX_SCORE) / max };
        if reversed {
            *score = MAX_SCORE - *score;
        }
    }
}
