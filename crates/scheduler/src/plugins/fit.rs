//! Resources: whether a pod fits, and which node it leaves in the best shape.

use std::borrow::Cow;

use crate::cluster::{Cluster, NodeState};
use crate::config::args::{FitArgs, ResourceWeight};
use crate::devices::{Devices, IMPLICIT};
use crate::framework::{Check, Event, MAX_SCORE, Plugin, Point, PreFilter, Rate, Refusal};
use crate::resources::{Resources, is_extended};
use crate::types::{Node, Pod};

/// Requests fit into what a node offers and its pods leave.
pub(super) struct Fit {
    ignored: Vec<String>,
    ignored_groups: Vec<String>,
    strategy: Strategy,
    resources: Vec<ResourceWeight>,
}

/// Which nodes are better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Strategy {
    /// Those with more left.
    Least,
    /// Those with less left.
    Most,
    /// By how much is used.
    Ratio(Shape),
}

/// A function of how much is used, in hundredths: points, straight lines between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Shape(pub(crate) Vec<(i64, i64)>);

impl Shape {
    /// Source: `helper.BuildBrokenLinearFunction`.
    pub(super) fn at(&self, used: i64) -> i64 {
        let Some(next) = self.0.iter().position(|(utilization, _)| used <= *utilization) else {
            return self.0.last().map_or(0, |(_, score)| *score);
        };
        let (to, high) = self.0[next];
        match next.checked_sub(1).map(|before| self.0[before]) {
            None => high,
            Some((from, low)) => low + (high - low) * (used - from) / (to - from),
        }
    }
}

/// `part` of `whole`, in hundredths, rounded down; parts are at least nothing and at most the whole.
fn hundredths(part: i128, whole: i128) -> i64 {
    if whole <= 0 || part <= 0 {
        return 0;
    }
    if part >= whole {
        return MAX_SCORE;
    }
    match (i64::try_from(part).ok().and_then(|part| part.checked_mul(MAX_SCORE)), i64::try_from(whole)) {
        (Some(part), Ok(whole)) => part / whole,
        _ => i64::try_from(part.saturating_mul(MAX_SCORE.into()) / whole).unwrap_or(MAX_SCORE),
    }
}

impl Strategy {
    fn score(&self, used: i128, offered: i128) -> i64 {
        match self {
            Self::Least if used > offered => 0,
            Self::Least => hundredths(offered - used, offered),
            Self::Most => hundredths(used.min(offered), offered),
            Self::Ratio(shape) if used > offered => shape.at(MAX_SCORE),
            Self::Ratio(shape) => shape.at(hundredths(used, offered)),
        }
    }
}

impl Fit {
    pub(super) fn new(args: &FitArgs) -> Self {
        Self {
            ignored: args.ignored_resources.clone(),
            ignored_groups: args.ignored_resource_groups.clone(),
            strategy: args.strategy(),
            resources: args.scoring_strategy.resources.clone(),
        }
    }

    fn ignores(&self, name: &str) -> bool {
        let group = name.split('/').next().unwrap_or(name);
        is_extended(name)
            && (self.ignored.iter().any(|held| held == name)
                || self.ignored_groups.iter().any(|held| held == group))
    }
}

struct Fits<'a>(&'a Fit, &'a Resources, &'a Devices);

/// Whether a resource that a node does not offer is had there as devices: what of it is left is not looked at here.
/// Source: `shouldDelegateResourceToDRA`.
fn is_had_as_devices(name: &str, node: &Node, devices: &Devices) -> bool {
    node.allocatable.get(name) <= 0 && devices.class_for(name).is_some()
}

impl Check for Fits<'_> {
    fn refusal(&self, state: &NodeState) -> Option<Refusal> {
        let (asked, node) = (self.1, state.node());
        let (offered, used) = (&node.allocatable, &state.requested);
        let mut refusal = Refusal { resolvable: true, reasons: Vec::new() };
        if i128::try_from(state.pods.len()).unwrap_or(i128::MAX) >= node.pods_max {
            refusal.reasons.push(Cow::Borrowed("Too many pods"));
        }
        let mut lacks = |asked: i128, offered: i128, used: i128| {
            let lacks = asked > 0 && asked > offered - used;
            refusal.resolvable &= !lacks || asked <= offered;
            lacks
        };
        let cpu = lacks(asked.cpu, offered.cpu, used.cpu);
        let memory = lacks(asked.memory, offered.memory, used.memory);
        let storage = lacks(asked.ephemeral_storage, offered.ephemeral_storage, used.ephemeral_storage);
        let others: Vec<&str> = asked
            .scalars()
            .filter(|(name, _)| !self.0.ignores(name) && !is_had_as_devices(name, node, self.2))
            .filter(|(name, asked)| lacks(*asked, offered.get(name), used.get(name)))
            .map(|(name, _)| name)
            .collect();
        let fixed = [
            (cpu, "Insufficient cpu"),
            (memory, "Insufficient memory"),
            (storage, "Insufficient ephemeral-storage"),
        ];
        refusal.reasons.extend(fixed.into_iter().filter(|(lacks, _)| *lacks).map(|(_, says)| says.into()));
        refusal.reasons.extend(others.into_iter().map(|name| format!("Insufficient {name}").into()));
        (!refusal.reasons.is_empty()).then_some(refusal)
    }
}

struct Left<'a>(&'a Fit, &'a Pod);

impl Rate for Left<'_> {
    fn score(&self, state: &NodeState) -> i64 {
        let (fit, spec) = (self.0, &self.1.spec);
        let offered = &state.node().allocatable;
        let (mut sum, mut weights) = (0_i64, 0_i64);
        for resource in &fit.resources {
            let (offers, uses) = match resource.name.as_str() {
                "cpu" => (offered.cpu, state.compared.0 + spec.compared.0),
                "memory" => (offered.memory, state.compared.1 + spec.compared.1),
                name => other_usage(name, &spec.requests, state),
            };
            if offers == 0 {
                continue;
            }
            let score = fit.strategy.score(uses, offers);
            // A ratio of 0 says that the resource does not matter.
            if matches!(fit.strategy, Strategy::Ratio(_)) && score <= 0 {
                continue;
            }
            sum += score * resource.weight;
            weights += resource.weight;
        }
        match (weights, &fit.strategy) {
            (0, _) => 0,
            (_, Strategy::Ratio(_)) => (2 * sum + weights) / (2 * weights),
            _ => sum / weights,
        }
    }
}

/// What a node offers and what is used with the pod on it, of a resource that is neither cpu nor memory. One that the pod
/// does not ask for does not matter: nothing is offered.
pub(super) fn other_usage(name: &str, asked: &Resources, state: &NodeState) -> (i128, i128) {
    let (offered, used) = (&state.node().allocatable, &state.requested);
    if name == "ephemeral-storage" {
        return (offered.ephemeral_storage, used.ephemeral_storage + asked.ephemeral_storage);
    }
    match (asked.get(name), offered.scalar(name)) {
        (0, _) | (_, None) => (0, 0),
        (asked, Some(offered)) => (offered, used.get(name) + asked),
    }
}

impl Plugin for Fit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score]
    }

    fn filter<'a>(&'a self, pod: &'a Pod, cluster: &'a Cluster) -> PreFilter<'a> {
        PreFilter::Check(Box::new(Fits(self, &pod.spec.requests, &cluster.devices)))
    }

    fn rate<'a>(
        &'a self,
        pod: &'a Pod,
        _cluster: &'a Cluster,
        _nodes: &[&'a NodeState],
    ) -> Option<Box<dyn Rate + 'a>> {
        Some(Box::new(Left(self, pod)))
    }

    fn heeds(&self, event: &Event) -> bool {
        use Event::{DeviceClass, NodeAdded, NodeChanged, OwnChanged, PodChanged, PodLeft};
        let of_pods = matches!(event, PodLeft(_) | PodChanged(..) | OwnChanged(..));
        of_pods || matches!(event, NodeAdded(_) | NodeChanged(..) | DeviceClass(..))
    }

    fn may_help_in(&self, pod: &Pod, event: &Event, cluster: &Cluster) -> bool {
        let (asked, devices) = (&pod.spec.requests, &cluster.devices);
        let elsewhere = |name: &str, node: &Node| is_had_as_devices(name, node, devices);
        let fits = |node: &Node| {
            let fits = |(name, asked)| asked <= node.allocatable.get(name) || elsewhere(name, node);
            let mut asked = asked.iter().filter(|(name, _)| !self.ignores(name));
            node.pods_max > 0 && asked.all(fits)
        };
        let less =
            |old: &Resources, new: &Resources| asked.iter().any(|(name, _)| new.get(name) < old.get(name));
        match event {
            Event::NodeAdded(node) => fits(node),
            Event::NodeChanged(old, new) => {
                let more = || less(&new.allocatable, &old.allocatable);
                let delegates = || asked.scalars().any(|(name, asked)| asked > 0 && elsewhere(name, new));
                new.pods_max > old.pods_max || (fits(new) && (more() || delegates()))
            }
            // It stands for something else that the pod asks for than before. Source: `isSchedulableAfterDeviceClassEvent`.
            Event::DeviceClass(old, new) => {
                let explicit = new.extended.as_deref();
                let renamed = old.as_ref().is_none_or(|old| old.extended.as_deref() != explicit);
                let implicit = format!("{IMPLICIT}{}", new.name);
                renamed
                    && (explicit.is_some_and(|name| asked.get(name) != 0)
                        || (old.is_none() && asked.get(&implicit) != 0))
            }
            Event::PodLeft(_) => true,
            Event::PodChanged(old, new) => less(&old.spec.requests, &new.spec.requests),
            Event::OwnChanged(old, new) => {
                old.spec.requests.iter().any(|(name, held)| new.spec.requests.get(name) < held)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_straight_lines_between_points() {
        let shape = Shape(vec![(10, 100), (50, 0), (90, 40)]);
        for (used, score) in [(0, 100), (10, 100), (30, 50), (50, 0), (70, 20), (90, 40), (100, 40)] {
            assert_eq!(shape.at(used), score, "{used}");
        }
    }

    #[test]
    fn strategies_score_as_upstreams() {
        let shape = Strategy::Ratio(Shape(vec![(0, 0), (100, 100)]));
        for (used, offered, least, most, ratio) in [
            (0, 1000, 100, 0, 0),
            (333, 1000, 66, 33, 33),
            (1000, 1000, 0, 100, 100),
            (1500, 1000, 0, 100, 100),
            (1, i128::from(i64::MAX) * 4, 99, 0, 0),
        ] {
            assert_eq!(Strategy::Least.score(used, offered), least);
            assert_eq!(Strategy::Most.score(used, offered), most);
            assert_eq!(shape.score(used, offered), ratio);
        }
    }
}
