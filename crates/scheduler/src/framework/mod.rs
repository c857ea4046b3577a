//! The points at which plugins take part, and one scheduling decision over them.

pub mod event;
pub mod profile;
pub mod verdict;

pub(crate) mod tally;

mod cycle;
mod preemption;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::cluster::{Cluster, NodeState};
use crate::devices;
use crate::storage::matching::Plan;
use crate::types::Pod;

pub use cycle::{Choice, Decision, Shortlist, Turn};
pub use event::Event;
pub use preemption::{Preemption, Room, Settings as PreemptionSettings, choose as choose_room};
pub use profile::Profile;
pub use verdict::{Freed, Refused};

/// The best score of one plugin for one node.
pub const MAX_SCORE: i64 = 100;

/// Why a pod cannot go to a node, or nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Whether it would end if pods made room.
    pub resolvable: bool,
    /// The reasons, in upstream's words.
    pub reasons: Vec<Cow<'static, str>>,
}

impl Refusal {
    /// A refusal that would end if pods made room. Upstream's `Unschedulable`.
    pub fn resolvable(reason: &'static str) -> Self {
        Self { resolvable: true, reasons: vec![Cow::Borrowed(reason)] }
    }

    /// A refusal that no pod's going would end. Upstream's `UnschedulableAndUnresolvable`.
    pub fn lasting(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { resolvable: false, reasons: vec![reason.into()] }
    }
}

/// What a plugin has to say of a pod before any node is looked at.
pub enum PreFilter<'a> {
    /// It has nothing to say about this pod.
    Skip,
    /// It looks at every node.
    Check(Box<dyn Check + 'a>),
    /// Only these nodes can be meant, and it looks at them.
    Only(BTreeSet<String>, Box<dyn Check + 'a>),
    /// No node will do.
    Refuse(Refusal),
}

impl PreFilter<'_> {
    /// How figures name it.
    fn status(&self) -> &'static str {
        match self {
            Self::Skip => tally::status::SKIP,
            Self::Check(_) | Self::Only(..) => tally::status::SUCCESS,
            Self::Refuse(refusal) => tally::refused(refusal),
        }
    }
}

/// A filter for one pod.
pub trait Check {
    /// Why the pod cannot go to a node; `None` if it can.
    fn refusal(&self, state: &NodeState) -> Option<Refusal>;
    /// What went wrong while a node was looked at, so that the pod is placed nowhere now.
    fn failure(&self) -> Option<String> {
        None
    }
    /// What is done for the pod if none of the nodes will do that were looked at.
    fn relief(&self) -> Option<Relief> {
        None
    }
    /// A pod is taken to be on a node, beside those that are.
    fn add(&mut self, _pod: &Pod, _state: &NodeState) {}
    /// A pod is taken not to be on its node.
    fn remove(&mut self, _pod: &Pod, _state: &NodeState) {}
}

/// How good nodes are for one pod.
pub trait Rate {
    /// How good a node is; scaled over all nodes by [`Rate::normalize`].
    fn score(&self, state: &NodeState) -> i64;
    /// Brings scores to 0 to [`MAX_SCORE`].
    fn normalize(&self, _scores: &mut [i64], _nodes: &[&NodeState]) {}
}

/// What has to be done for a pod before it is bound. It is taken already: others see it as done.
#[derive(Debug, Clone)]
pub enum Preparation {
    /// Its claims get volumes.
    Volumes(Plan),
    /// Its claims get devices.
    Devices(devices::bind::Plan),
}

/// What a plugin does for a pod that fits nowhere, beside having others go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relief {
    /// What is said of it; empty: nothing.
    pub said: &'static str,
    /// What is taken away so that the pod may fit.
    pub frees: Option<Freed>,
}

/// An extension point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Point {
    /// Whether a pod may wait to be tried at all.
    PreEnqueue,
    /// The order of pods.
    QueueSort,
    /// Before nodes are looked at.
    PreFilter,
    /// Whether a node will do.
    Filter,
    /// When none will.
    PostFilter,
    /// Before nodes are compared.
    PreScore,
    /// How good a node is.
    Score,
    /// When a pod is assumed to be somewhere.
    Reserve,
    /// Whether it may be bound now.
    Permit,
    /// Before it is bound.
    PreBind,
    /// Its binding.
    Bind,
    /// After its binding.
    PostBind,
}

impl Point {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::PreEnqueue,
        Self::QueueSort,
        Self::PreFilter,
        Self::Filter,
        Self::PostFilter,
        Self::PreScore,
        Self::Score,
        Self::Reserve,
        Self::Permit,
        Self::PreBind,
        Self::Bind,
        Self::PostBind,
    ];

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::PreEnqueue => "preEnqueue",
            Self::QueueSort => "queueSort",
            Self::PreFilter => "preFilter",
            Self::Filter => "filter",
            Self::PostFilter => "postFilter",
            Self::PreScore => "preScore",
            Self::Score => "score",
            Self::Reserve => "reserve",
            Self::Permit => "permit",
            Self::PreBind => "preBind",
            Self::Bind => "bind",
            Self::PostBind => "postBind",
        }
    }
}

/// One consideration in placing pods.
pub trait Plugin: Send + Sync {
    /// Upstream's name of it.
    fn name(&self) -> &'static str;
    /// Where it takes part.
    fn points(&self) -> &'static [Point];
    /// Why a pod may not be tried yet.
    fn gate(&self, _pod: &Pod, _cluster: &Cluster) -> Option<String> {
        None
    }
    /// Asks the cluster to count what this pod's filter and score will look up.
    fn prepare(&self, _pod: &Pod, _cluster: &mut Cluster) {}
    /// The filter for a pod.
    fn filter<'a>(&'a self, _pod: &'a Pod, _cluster: &'a Cluster) -> PreFilter<'a> {
        PreFilter::Skip
    }
    /// The score for a pod over the nodes that will do; `None`: no opinion.
    fn rate<'a>(
        &'a self,
        _pod: &'a Pod,
        _cluster: &'a Cluster,
        _nodes: &[&'a NodeState],
    ) -> Option<Box<dyn Rate + 'a>> {
        None
    }
    /// Takes what a pod needs beside room on the node that was chosen; `None`: nothing.
    fn reserve(&self, _pod: &Pod, _node: &str, _cluster: &mut Cluster) -> Option<Preparation> {
        None
    }
    /// Whether events of this kind may change this plugin's refusal of any pod. It is asked before [`Self::may_help`], once
    /// and not for each pod that waits.
    fn heeds(&self, _event: &Event) -> bool {
        true
    }
    /// Whether an event may change this plugin's refusal of a pod.
    fn may_help(&self, _pod: &Pod, _event: &Event) -> bool {
        true
    }
    /// The same where it depends on what else there is.
    fn may_help_in(&self, pod: &Pod, event: &Event, _cluster: &Cluster) -> bool {
        self.may_help(pod, event)
    }
    /// Whether it does something for some pods that fit nowhere, beside having others go.
    fn relieves(&self) -> bool {
        false
    }
    /// How it makes room for pods that fit nowhere.
    fn preemption(&self) -> Option<&PreemptionSettings> {
        None
    }
}

/// Scales scores so that the highest becomes [`MAX_SCORE`]; `reversed` turns them round.
/// Source: `helper.DefaultNormalizeScore`.
pub fn normalize_to_max(scores: &mut [i64], reversed: bool) {
    let max = scores.iter().copied().max().unwrap_or(0).max(0);
    for score in scores {
        *score = if max == 0 { 0 } else { score.saturating_mul(MAX_SCORE) / max };
        if reversed {
            *score = MAX_SCORE - *score;
        }
    }
}
