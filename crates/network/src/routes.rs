//! Routes to the pods of the other nodes, each through its node's address.
//!
//! Level-triggered on both sides: what the Nodes say is compared with what the kernel has whenever either changes. The
//! kernel forgets routes without being asked (an address that goes takes those of its link along), and a route may be
//! left from a node that went while this agent was away.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use api::{Key, Object};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context, OnFailure};
use ipnet::Ipv4Net;
use reconcile::kinds::NODES;
use reconcile::{Informer, Informers};
use sys::net::{HostEvents, Route, Routing, Target, or_missing};

use crate::Error;
use crate::host::{Config, Handles};
use crate::objects::Node;

/// The kernel's news come in bursts; they are looked at once for so long.
const BURST: Duration = Duration::from_millis(200);

/// Keeps the routes to other nodes. Their nodes have to be reachable without a router in between.
pub struct NodeRoutes {
    nodes: Informer,
    handles: Handles,
    /// The range of the pods of all nodes together.
    pods: Ipv4Net,
    node_pods: Ipv4Net,
    node: String,
}

impl NodeRoutes {
    /// The routes of the node that `config` is of.
    pub fn new(informers: &Informers, handles: Handles, config: &Config) -> Self {
        Self {
            nodes: informers.get(NODES),
            handles,
            pods: config.ranges.pods,
            node_pods: config.node_pods,
            node: config.node.clone(),
        }
    }

    /// The way to a node's pods, where it is another one and has one.
    fn way(&self, node: &Object) -> Option<Way> {
        (node.meta().name != self.node).then(|| way(node)).flatten()
    }

    fn wanted(&self, ways: &Ways) -> BTreeMap<Ipv4Net, Ipv4Addr> {
        routable(ways.0.values().copied(), self.pods, self.node_pods)
    }

    /// Makes the kernel's routes those that are wanted. Whether they all are: one that cannot be set (its node is not
    /// reachable at present) is tried again with the next news.
    fn apply(&self, ways: &Ways) -> Result<bool, Error> {
        let routing = &*self.handles.routing;
        let wanted = self.wanted(ways);
        let plan = plan(&wanted, &present(routing, self.pods)?);
        for route in &plan.delete {
            or_missing(routing.delete_route(route))?;
        }
        let mut all_set = true;
        for route in &plan.set {
            if let Err(error) = routing.replace_route(route) {
                tracing::warn!(range = %route.destination, %error, "no route to a node's pods");
                all_set = false;
            }
        }
        Ok(all_set)
    }
}

/// The range of a node's pods, and the node's address.
type Way = (Ipv4Net, Ipv4Addr);

/// The ways to the pods of other nodes, by node. Each is read off its node when that changes: nodes change with every
/// status that they tell, many times a second where there are many, and their ways hardly ever.
#[derive(Debug, Default)]
struct Ways(BTreeMap<Key, Way>);

impl Ways {
    /// What is known of a node now. Whether that is another way than before.
    fn put(&mut self, node: Key, way: Option<Way>) -> bool {
        match way {
            Some(way) => self.0.insert(node, way) != Some(way),
            None => self.0.remove(&node).is_some(),
        }
    }
}

fn way(node: &Object) -> Option<Way> {
    let node: Node = node.decode().ok()?;
    let range: Ipv4Net = node.spec.pod_cidr.as_deref()?.parse().ok()?;
    let internal = node.status.addresses.iter().filter(|address| address.kind == "InternalIP");
    let address: Ipv4Addr = internal.filter_map(|address| address.address.parse().ok()).next()?;
    Some((range, address))
}

/// What may become a route: a part of the cluster's pods, not of this node's own. A Node is what its host says, so
/// whatever else it claims would send this host's traffic there.
fn routable(
    ways: impl Iterator<Item = Way>,
    pods: Ipv4Net,
    node_pods: Ipv4Net,
) -> BTreeMap<Ipv4Net, Ipv4Addr> {
    let overlaps = |range: &Ipv4Net| range.contains(&node_pods) || node_pods.contains(range);
    ways.filter(|(range, _)| pods.contains(range) && *range != pods && !overlaps(range)).collect()
}

/// The kernel's routes to nodes: those within the range of all pods that lead through a gateway.
fn present(routing: &dyn Routing, pods: Ipv4Net) -> Result<Vec<Route>, Error> {
    let to_node = |route: &Route| pods.contains(&route.destination) && gateway(route).is_some();
    Ok(routing.routes()?.into_iter().filter(to_node).collect())
}

fn gateway(route: &Route) -> Option<Ipv4Addr> {
    match route.target {
        Target::Gateway(address, _) => Some(address),
        _ => None,
    }
}

/// What has to change.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    set: Vec<Route>,
    delete: Vec<Route>,
}

fn plan(wanted: &BTreeMap<Ipv4Net, Ipv4Addr>, present: &[Route]) -> Plan {
    let right = |route: &&Route| wanted.get(&route.destination).copied() == gateway(route);
    let delete = present.iter().filter(|route| !wanted.contains_key(&route.destination)).copied();
    let there: HashSet<Ipv4Net> = present.iter().filter(right).map(|route| route.destination).collect();
    let missing = wanted.iter().filter(|(range, _)| !there.contains(range));
    let set = missing.map(|(range, address)| Route {
        destination: *range,
        target: Target::Gateway(*address, 0),
        source: None,
    });
    Plan { set: set.collect(), delete: delete.collect() }
}

/// Takes away every route to other nodes.
pub(crate) fn purge(routing: &dyn Routing, pods: Ipv4Net) -> Result<(), Error> {
    for route in present(routing, pods)? {
        or_missing(routing.delete_route(&route))?;
    }
    Ok(())
}

#[async_trait]
impl Component for NodeRoutes {
    fn name(&self) -> &'static str {
        "node-routes"
    }

    fn on_failure(&self) -> OnFailure {
        OnFailure::Restart
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let events = HostEvents::open()?;
        let mut nodes = self.nodes.subscribe();
        tokio::select! {
            () = ctx.cancelled() => return Ok(()),
            () = self.nodes.synced() => {}
        }
        let known = self.nodes.list();
        let known = known.iter().filter_map(|node| Some((node.key(), self.way(node)?)));
        let mut ways = Ways(known.collect());
        let (mut news, mut all_set) = (true, true);
        loop {
            if news || !all_set {
                all_set = self.apply(&ways)?;
            }
            ctx.ready();
            tokio::select! {
                () = ctx.cancelled() => return Ok(()),
                changes = nodes.changed() => {
                    news = false;
                    for change in changes {
                        let way = change.new.as_ref().and_then(|node| self.way(node));
                        news |= ways.put(change.key, way);
                    }
                }
                changed = events.changed(), if !self.wanted(&ways).is_empty() => {
                    changed?;
                    news = true;
                    tokio::select! {
                        () = ctx.cancelled() => return Ok(()),
                        () = tokio::time::sleep(BURST) => {}
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_node_takes_what_is_not_its_own() {
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        let by = Ipv4Addr::new(192, 0, 2, 1);
        let claims =
            ["0.0.0.0/0", "10.0.0.0/8", "10.42.0.0/16", "10.42.0.0/24", "10.42.0.0/25", "10.42.0.0/23"];
        let ways = claims.into_iter().chain(["192.0.2.0/24", "10.42.1.0/24"]).map(|range| (net(range), by));
        let found = routable(ways, net("10.42.0.0/16"), net("10.42.0.0/24"));
        assert_eq!(found, BTreeMap::from([(net("10.42.1.0/24"), by)]));
    }

    #[test]
    fn only_what_changes_a_way_is_news() {
        let (node, by) = (Key::new("", "b"), Ipv4Addr::new(192, 0, 2, 1));
        let way = |range: &str| Some((range.parse::<Ipv4Net>().unwrap(), by));
        let mut ways = Ways::default();
        assert!(!ways.put(node.clone(), None));
        assert!(ways.put(node.clone(), way("10.42.1.0/24")));
        // What a node tells every five minutes.
        assert!(!ways.put(node.clone(), way("10.42.1.0/24")));
        assert!(ways.put(node.clone(), way("10.42.2.0/24")));
        assert!(ways.put(node.clone(), None) && ways.0.is_empty());
    }

    #[test]
    fn routes_follow_the_nodes_and_heal() {
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        let at = |last: u8| Ipv4Addr::new(192, 0, 2, last);
        let route = |range: &str, last: u8| Route {
            destination: net(range),
            target: Target::Gateway(at(last), 0),
            source: None,
        };
        let wanted = BTreeMap::from([(net("10.42.1.0/24"), at(1)), (net("10.42.2.0/24"), at(2))]);
        // The kernel names the link, too.
        let held = Route { target: Target::Gateway(at(1), 7), ..route("10.42.1.0/24", 1) };
        let moved = route("10.42.2.0/24", 9);
        let gone = route("10.42.3.0/24", 3);
        let found = plan(&wanted, &[held, moved, gone]);
        assert_eq!(found, Plan { set: vec![route("10.42.2.0/24", 2)], delete: vec![gone] });
        let settled = [held, Route { target: Target::Gateway(at(2), 7), ..route("10.42.2.0/24", 2) }];
        assert_eq!(plan(&wanted, &settled), Plan::default());
        assert_eq!(plan(&wanted, &[]).set.len(), 2);
    }
}
