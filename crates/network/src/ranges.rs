//! The cluster's address ranges: chosen once, such that they overlap no route of the host, and kept from then on.

use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Where ranges are looked for, in this order: private space that sites seldom use comes first.
const BLOCKS: &[&str] = &["10.0.0.0/8", "172.16.0.0/12", "100.64.0.0/10", "198.18.0.0/15", "192.168.0.0/16"];
/// The first candidates within 10.0.0.0/8: the second octet that pods try first; services take the next block.
const FIRST_OCTET: u8 = 42;
/// Prefix length of the pods of a whole cluster, of one node where its pods fit in there, of Services, and of load balancers.
const PODS: u8 = 16;
const NODE_PODS: u8 = 24;
const SERVICES: u8 = 16;
const BALANCERS: u8 = 27;
/// The address within the service range that DNS has, as in other distributions.
const DNS_HOST: u32 = 10;

/// The file that keeps them.
const FILE: &str = "ranges.json";

/// The ranges of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ranges {
    /// Addresses of pods, of all nodes together.
    pub pods: Ipv4Net,
    /// Addresses of Services.
    pub services: Ipv4Net,
    /// Addresses of load balancers: routed on the nodes only.
    pub balancers: Ipv4Net,
    /// Prefix length of the pods of one node.
    #[serde(default = "usual_prefix", skip_serializing_if = "is_usual_prefix")]
    pub node_prefix: u8,
}

fn usual_prefix() -> u8 {
    NODE_PODS
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's shape")]
fn is_usual_prefix(prefix: &u8) -> bool {
    *prefix == NODE_PODS
}

/// The prefix length of a node's range in which so many pods have addresses, and as many more those of pods that end or have
/// just ended, whose addresses rest: upstream's ratio of 110 pods to a /24.
fn prefix_for(pods: u32) -> u8 {
    let bits = pods.saturating_mul(2).saturating_add(2).max(1).ilog2() + 1;
    let prefix = 32_u32.saturating_sub(bits);
    u8::try_from(prefix).unwrap_or(NODE_PODS).clamp(PODS, NODE_PODS)
}

impl Ranges {
    /// The address of cluster DNS.
    pub fn dns(&self) -> Ipv4Addr {
        nth(self.services, DNS_HOST)
    }

    /// The address of the Service `default/kubernetes`.
    pub fn api_server(&self) -> Ipv4Addr {
        nth(self.services, 1)
    }

    /// The first of `taken` (default routes aside) that one of the ranges overlaps.
    pub fn overlapping(&self, taken: &[Ipv4Net]) -> Option<Ipv4Net> {
        let ranges = [self.pods, self.services, self.balancers];
        let hit = |net: &&Ipv4Net| net.prefix_len() > 0 && ranges.iter().any(|range| overlap(net, range));
        taken.iter().find(hit).copied()
    }

    /// The pods of the node with this number, if the range has room for it.
    pub fn node_pods(&self, node: u32) -> Option<Ipv4Net> {
        self.pods.subnets(self.node_prefix.max(self.pods.prefix_len())).ok()?.nth(node as usize)
    }
}

/// The address with this number in a network (0 is the network's own).
pub fn nth(network: Ipv4Net, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network.network()).saturating_add(number))
}

/// Chooses ranges that overlap none of `taken`: the destinations of the host's routes, default routes aside; each node's
/// with room for `node_pods`. `None` if the host's routes cover all private space.
pub fn choose(taken: &[Ipv4Net], node_pods: u32) -> Option<Ranges> {
    let mut taken: Vec<_> = taken.iter().copied().filter(|net| net.prefix_len() > 0).collect();
    let mut take = |prefix| {
        let found = first_free(&taken, prefix)?;
        taken.push(found);
        Some(found)
    };
    let node_prefix = prefix_for(node_pods);
    Some(Ranges { pods: take(PODS)?, services: take(SERVICES)?, balancers: take(BALANCERS)?, node_prefix })
}

fn first_free(taken: &[Ipv4Net], prefix: u8) -> Option<Ipv4Net> {
    let free = |candidate: &Ipv4Net| !taken.iter().any(|net| overlap(net, candidate));
    let preferred = (FIRST_OCTET..=u8::MAX)
        .filter_map(|octet| Ipv4Net::new(Ipv4Addr::new(10, octet, 0, 0), prefix).ok())
        .find(free);
    preferred.or_else(|| {
        BLOCKS.iter().filter_map(|block| block.parse::<Ipv4Net>().ok()).find_map(|block| {
            // A free subnet starts where the block or something taken ends, so those are the only candidates.
            block.subnets(prefix).ok()?.find(free)
        })
    })
}

fn overlap(one: &Ipv4Net, other: &Ipv4Net) -> bool {
    one.contains(other) || other.contains(one)
}

/// The ranges kept in `dir`, or newly chosen ones with room for `node_pods` on each node, which are kept there.
pub fn load_or_choose(
    dir: &Path,
    node_pods: u32,
    taken: impl FnOnce() -> Result<Vec<Ipv4Net>, Error>,
) -> Result<Ranges, Error> {
    let path = dir.join(FILE);
    let what = || format!("keep the address ranges in {}", path.display());
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| Error::io(what(), error.into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let ranges = choose(&taken()?, node_pods).ok_or(Error::NoRange)?;
            keep(dir, &ranges)?;
            Ok(ranges)
        }
        Err(error) => Err(Error::io(what(), error)),
    }
}

/// Keeps ranges in `dir`.
pub fn keep(dir: &Path, ranges: &Ranges) -> Result<(), Error> {
    let path = dir.join(FILE);
    let failed = |error| Error::io(format!("keep the address ranges in {}", path.display()), error);
    let bytes = serde_json::to_vec_pretty(ranges).map_err(|error| failed(error.into()))?;
    std::fs::create_dir_all(dir).map_err(failed)?;
    // Everything else follows from this file, so it has to be whole and on disk.
    sys::files::write_durable(&path, &bytes).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> Vec<Ipv4Net> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn a_node_of_many_pods_has_a_larger_range() {
        assert_eq!(
            [0, 110, 127, 128, 250, 500, 600, 100_000].map(prefix_for),
            [24, 24, 23, 23, 23, 22, 21, 16]
        );
        let ranges = choose(&[], 500).unwrap();
        assert_eq!(ranges.node_pods(1).unwrap().to_string(), "10.42.4.0/22");
        let kept = serde_json::to_string(&ranges).unwrap();
        assert_eq!(serde_json::from_str::<Ranges>(&kept).unwrap(), ranges);
        let usual = serde_json::to_string(&choose(&[], 110).unwrap()).unwrap();
        assert!(!usual.contains("nodePrefix"), "read by earlier versions: {usual}");
    }

    #[test]
    fn an_empty_host_gets_the_usual_ranges() {
        let ranges = choose(&nets(&["0.0.0.0/0"]), 0).unwrap();
        assert_eq!(ranges.pods, "10.42.0.0/16".parse().unwrap());
        assert_eq!(ranges.services, "10.43.0.0/16".parse().unwrap());
        assert_eq!(ranges.balancers, "10.44.0.0/27".parse().unwrap());
        assert_eq!(ranges.dns().to_string(), "10.43.0.10");
        assert_eq!(ranges.api_server().to_string(), "10.43.0.1");
        assert_eq!(ranges.node_pods(1).unwrap().to_string(), "10.42.1.0/24");
        assert!(ranges.node_pods(256).is_none());
    }

    #[test]
    fn routes_of_the_host_are_avoided() {
        let taken = nets(&["10.42.7.0/24", "10.43.0.0/16", "10.45.0.0/20"]);
        let ranges = choose(&taken, 0).unwrap();
        for range in [ranges.pods, ranges.services, ranges.balancers] {
            assert!(!taken.iter().any(|net| overlap(net, &range)), "{range}");
        }
        let ranges = choose(&nets(&["10.0.0.0/8", "172.16.0.0/13"]), 0).unwrap();
        assert_eq!(ranges.pods, "172.24.0.0/16".parse().unwrap());
        let all = nets(BLOCKS);
        assert!(choose(&all, 0).is_none());
    }

    #[test]
    fn a_choice_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_choose(dir.path(), 0, || Ok(nets(&["10.42.0.0/16"]))).unwrap();
        let second = load_or_choose(dir.path(), 0, || Ok(Vec::new())).unwrap();
        assert_eq!(first, second);
    }
}
