//! How much of everything: small enough for a look by default, the sizes of the targets with `--full`.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;

/// Pods of 100 milli-CPU that a node takes.
pub(crate) const PODS_PER_NODE: usize = 80;
/// Pods of a group that keep apart from each other, or spread.
pub(crate) const GROUP: usize = 50;
/// Pods a second that are created at an even pace.
pub(crate) const PACE: u32 = 500;
/// What a node's Lease is renewed every.
pub(crate) const RENEWAL: Duration = Duration::from_secs(10);

/// `bench workloads` and its flags.
#[derive(Debug, Clone, Parser)]
#[command(name = "bench workloads")]
pub(crate) struct Flags {
    /// The sizes of the targets; without it, what takes a minute
    #[arg(long)]
    full: bool,
    /// Nodes of the small cluster
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Pods that are bound in one go
    #[arg(long, value_name = "N")]
    pods: Option<usize>,
    /// Nodes of the large cluster
    #[arg(long, value_name = "N")]
    many_nodes: Option<usize>,
    /// Pods that are on nodes of the large cluster already
    #[arg(long, value_name = "N")]
    held: Option<usize>,
    /// Replicas of the Deployments that are created, rolled and deleted
    #[arg(long, value_name = "N", value_delimiter = ',')]
    replicas: Option<Vec<usize>>,
    /// Scenarios, all without it
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Scenario>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scenario {
    /// Pods bound on the small cluster.
    Bound,
    /// The same, pods of a group keep apart.
    Apart,
    /// The same, pods of a group spread over zones.
    Spread,
    /// Creation to binding at an even pace.
    Paced,
    /// Pods that Deployments create.
    Created,
    /// A Deployment created, rolled and deleted, of several sizes.
    Rolled,
    /// All of it that concerns binding, with pods held on a large cluster; memory of these.
    Large,
    /// The large cluster doing nothing but renewing leases.
    Idle,
}

/// How much of everything.
#[derive(Debug, Clone)]
pub(crate) struct Sizes {
    pub(crate) nodes: usize,
    pub(crate) pods: usize,
    pub(crate) many_nodes: usize,
    pub(crate) held: usize,
    /// Sizes of Deployments, the smallest first.
    pub(crate) replicas: Vec<usize>,
    /// Deployments that create pods at once, and replicas of each.
    pub(crate) deployments: (usize, usize),
    /// Replicas of the one Deployment that creates as many by itself.
    pub(crate) one_deployment: usize,
    /// How long pods are created at an even pace.
    pub(crate) paced: Duration,
    /// How long an idle cluster is looked at.
    pub(crate) idle: Duration,
    only: Vec<Scenario>,
}

impl Sizes {
    /// As the flags say.
    pub(crate) fn new(flags: Flags) -> Result<Self> {
        let (small, full) = (Self::small(), Self::full());
        let base = if flags.full { full } else { small };
        let sizes = Self {
            nodes: flags.nodes.unwrap_or(base.nodes),
            pods: flags.pods.unwrap_or(base.pods),
            many_nodes: flags.many_nodes.unwrap_or(base.many_nodes),
            held: flags.held.unwrap_or(base.held),
            replicas: flags.replicas.unwrap_or(base.replicas),
            only: flags.only,
            ..base
        };
        let room = |nodes: usize| nodes * PODS_PER_NODE;
        // While it is rolled, a Deployment has a quarter more pods.
        let rolled = sizes.replicas.iter().max().copied().unwrap_or(0) * 5 / 4;
        let paced = PACE as usize * sizes.paced.as_secs() as usize;
        ensure!(sizes.nodes >= GROUP && sizes.many_nodes >= GROUP, "at least {GROUP} nodes");
        ensure!(sizes.pods.max(rolled).max(paced) <= room(sizes.nodes), "too few nodes for so many pods");
        ensure!(sizes.pods.max(paced) + sizes.held <= room(sizes.many_nodes), "too few nodes for those held");
        Ok(sizes)
    }

    /// Whether a scenario is wanted.
    pub(crate) fn wants(&self, scenario: Scenario) -> bool {
        self.only.is_empty() || self.only.contains(&scenario)
    }

    fn small() -> Self {
        Self {
            nodes: 100,
            pods: 1000,
            many_nodes: 500,
            held: 5000,
            replicas: vec![100, 200, 400],
            deployments: (10, 20),
            one_deployment: 400,
            paced: Duration::from_secs(4),
            idle: Duration::from_secs(10),
            only: Vec::new(),
        }
    }

    fn full() -> Self {
        Self {
            nodes: 200,
            pods: 5000,
            many_nodes: 5000,
            held: 150_000,
            replicas: vec![1250, 2500, 5000, 10_000],
            deployments: (50, 20),
            one_deployment: 4000,
            paced: Duration::from_secs(20),
            idle: Duration::from_secs(60),
            only: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(flags: &[&str]) -> Result<Sizes> {
        Sizes::new(Flags::try_parse_from(std::iter::once(&"bench").chain(flags))?)
    }

    #[test]
    fn both_sets_of_sizes_fit_on_their_nodes() {
        assert!(sizes(&[]).unwrap().wants(Scenario::Idle));
        let full = sizes(&["--full", "--pods", "7", "--only", "bound,large"]).unwrap();
        assert_eq!((full.nodes, full.pods, full.held), (200, 7, 150_000));
        assert!(full.wants(Scenario::Large) && !full.wants(Scenario::Idle));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(sizes(&["--nodes", "50", "--pods", "4001"]).is_err());
        assert!(sizes(&["--replicas", "7000"]).is_err());
        assert!(sizes(&["--many-nodes", "60"]).is_err());
    }
}
