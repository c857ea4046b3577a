//! What is said of a pod that fits nowhere. Source: `framework.FitError`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use super::Refusal;
use crate::storage::types::Version;

/// What is taken from a pod so that it may fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freed {
    /// The devices of a claim.
    Devices(Box<Version>),
    /// A claim with what it has.
    Claim(Box<Version>),
}

/// A pod fits nowhere for now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refused {
    /// Upstream's message.
    pub message: String,
    /// The plugins that refused a node. None: there was no node, and any event may help.
    pub by: HashSet<&'static str>,
    /// The node on which room is made for it from now on; empty: none any more. `None`: as it was.
    pub nominated: Option<String>,
    /// What is taken away from the pod, which may help.
    pub frees: Option<Freed>,
}

/// How many nodes gave which reason.
#[derive(Debug, Default)]
pub(super) struct Reasons {
    counts: BTreeMap<Cow<'static, str>, usize>,
}

impl Reasons {
    /// One node's reasons.
    pub(super) fn node(&mut self, refusal: &Refusal) {
        self.nodes(refusal, 1);
    }

    /// So many nodes give these reasons.
    pub(super) fn nodes(&mut self, refusal: &Refusal, nodes: usize) {
        for reason in refusal.reasons.iter().filter(|_| nodes > 0) {
            match self.counts.get_mut(reason) {
                Some(count) => *count += nodes,
                None => drop(self.counts.insert(reason.clone(), nodes)),
            }
        }
    }

    /// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
    pub(super) fn message(&self, nodes: usize) -> String {
        let mut parts: Vec<String> =
            self.counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        parts.sort();
        let parts = if parts.is_empty() { String::new() } else { format!(" {}.", parts.join(", ")) };
        format!("0/{nodes} nodes are available:{parts}")
    }
}

/// The same when a plugin refused every node before any was looked at.
pub(super) fn refused_before(nodes: usize, refusal: &Refusal) -> String {
    format!("0/{nodes} nodes are available: {}.", refusal.reasons.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_and_sorted_as_texts() {
        let mut reasons = Reasons::default();
        for _ in 0..10 {
            reasons.node(&Refusal::resolvable("Too many pods"));
        }
        reasons.node(&Refusal {
            resolvable: true,
            reasons: vec!["Insufficient memory".into(), "Insufficient cpu".into()],
        });
        reasons.nodes(&Refusal::lasting("elsewhere"), 2);
        reasons.nodes(&Refusal::lasting("nowhere"), 0);
        // Upstream sorts the texts, numbers included.
        assert_eq!(
            reasons.message(13),
            "0/13 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 10 Too many pods, 2 elsewhere."
        );
        assert_eq!(Reasons::default().message(2), "0/2 nodes are available:");
    }
}
