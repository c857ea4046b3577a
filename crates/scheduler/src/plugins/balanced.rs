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

/// The used part, 0 to 1.
#[allow(clippy::cast_precision_loss, reason = "upstream computes in doubles")]
fn part(used: i128, offered: i128) -> f64 {
    (used as f64 / offered as f64).min(1.0)
}

/// 100 where all parts are equal. Source: `balancedResourceScore`.
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "between 0 and 100")]
fn evenness(parts: &[f64]) -> i64 {
    let deviation = match parts {
        [] | [_] => 0.0,
        [a, b] => ((a - b) / 2.0).abs(),
        _ => {
            let count = parts.len() as f64;
            let mean = parts.iter().sum::<f64>() / count;
            (parts.iter().map(|part| (part - mean) * (part - mean)).sum::<f64>() / count).sqrt()
        }
    };
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}

impl Rate for Balance<'_> {
    fn score(&self, state: &NodeState) -> i64 {
        let asked = &self.1.spec.requests;
        let offered = &state.node().allocatable;
        let count = self.0.resources.len();
        let (mut with, mut without) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for name in &self.0.resources {
            let (offers, uses) = match name.as_str() {
                "cpu" => (offered.cpu, state.requested.cpu + asked.cpu),
                "memory" => (offered.memory, state.requested.memory + asked.memory),
                name => other_usage(name, asked, state),
            };
            if offers != 0 {
                with.push(part(uses, offers));
                without.push(part(uses - asked.get(name), offers));
            }
        }
        MAX_SCORE / 2 + (MAX_SCORE / 2 + evenness(&with) - evenness(&without)) / 2
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
