//! Nodes where resources are used in like proportion are better. Source: `balanced_allocation.go`.

use crate::cluster::{Cluster, NodeState};
use crate::config::args::BalancedArgs;
use crate::framework::{MAX_SCORE, Plugin, Point, Rate};
use crate::plugins::fit::other_usage;
use crate::types::Pod;

/// How much better balanced a node is with the pod than without.
pub(super) struct Balanced {
    resources: Vec<String>,
}

impl Balanced {
    pub(super) fn new(args: &BalancedArgs) -> Self {
        Self { resources: args.resources.iter().map(|resource| resource.name.clone()).collect() }
    }
}

struct Balance<'a>(&'a Balanced, &'a Pod);

/// The used part, 0 to 1. Nearly every amount fits 64 bits, which convert many times faster.
#[allow(clippy::cast_precision_loss, reason = "upstream computes in doubles")]
fn part(used: i128, offered: i128) -> f64 {
    let float = |amount: i128| i64::try_from(amount).map_or(amount as f64, |amount| amount as f64);
    (float(used) / float(offered)).min(1.0)
}

/// 100 where all parts are equal, less the further they are apart.
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "between 0 and 100")]
fn evenness(deviation: f64) -> i64 {
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}

/// The standard deviation of more than two parts. Source: `balancedResourceScore`.
#[allow(clippy::cast_precision_loss, reason = "numbers of resources")]
fn deviation(parts: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = parts.clone().count() as f64;
    let mean = parts.clone().sum::<f64>() / count;
    (parts.map(|part| (part - mean) * (part - mean)).sum::<f64>() / count).sqrt()
}

impl Balance<'_> {
    /// How much is used of one resource, with the pod and without; `None` if it does not matter.
    fn parts(&self, name: &str, state: &NodeState) -> Option<(f64, f64)> {
        let asked = &self.1.spec.requests;
        let (offered, used) = (&state.node().allocatable, &state.requested);
        let (offers, uses, asks) = match name {
            "cpu" => (offered.cpu, used.cpu + asked.cpu, asked.cpu),
            "memory" => (offered.memory, used.memory + asked.memory, asked.memory),
            name => {
                let (offers, uses) = other_usage(name, asked, state);
                (offers, uses, asked.get(name))
            }
        };
        (offers != 0).then(|| (part(uses, offers), part(uses - asks, offers)))
    }
}

impl Rate for Balance<'_> {
    fn score(&self, state: &NodeState) -> i64 {
        let mut parts = self.0.resources.iter().filter_map(|name| self.parts(name, state));
        let (with, without) = match (parts.next(), parts.next(), parts.next()) {
            (Some(a), Some(b), None) => (((a.0 - b.0) / 2.0).abs(), ((a.1 - b.1) / 2.0).abs()),
            (Some(_), None, _) | (None, ..) => (0.0, 0.0),
            (Some(a), Some(b), Some(c)) => {
                let all: Vec<(f64, f64)> = [a, b, c].into_iter().chain(parts).collect();
                (deviation(all.iter().map(|part| part.0)), deviation(all.iter().map(|part| part.1)))
            }
        };
        MAX_SCORE / 2 + (MAX_SCORE / 2 + evenness(with) - evenness(without)) / 2
    }
}

impl Plugin for Balanced {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreScore, Point::Score]
    }

    fn rate<'a>(
        &'a self,
        pod: &'a Pod,
        _cluster: &'a Cluster,
        _nodes: &[&'a NodeState],
    ) -> Option<Box<dyn Rate + 'a>> {
        // A pod that asks for nothing changes nothing.
        let asks = self.resources.iter().any(|name| pod.spec.requests.get(name) != 0);
        asks.then(|| Box::new(Balance(self, pod)) as Box<dyn Rate>)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_are_apart_are_worse() {
        assert_eq!(evenness(deviation([0.5, 0.5, 0.5].into_iter())), 100);
        // The square root of (0.04 + 0 + 0.04) / 3.
        assert_eq!(evenness(deviation([0.2, 0.4, 0.6].into_iter())), 83);
        assert_eq!((part(1, 4), part(9, 4)), (0.25, 1.0));
        assert_eq!(part(i128::from(i64::MAX) * 2, i128::from(i64::MAX) * 4), 0.5);
    }
}
