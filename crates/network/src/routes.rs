//! Routes to the pods of the other nodes, each through its node's address.
//!
//! Level-triggered on both sides: what the Nodes say is compared with what the kernel has whenever either changes. The
//! kernel forgets routes without being asked (an address that goes takes those of its link along), and a route may be
//! left from a node that went while this agent was away.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use api::Object;
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context, OnFailure};
use ipnet::Ipv4Net;
use reconcile::kinds::NODES;
use reconcile::{Informer, Informers};
use sys::net::{HostEvents, Route, Routing, Target, or_missing};

use crate::Error;
use crate::host::Handles;
use crate::objects::Node;

/// The kernel's news come in bursts; they are looked at once for so long.
const BURST: Duration = Duration::from_millis(200);

/// Keeps the routes to other nodes. Their nodes have to be reachable without a router in between.
pub struct NodeRoutes {
    nodes: Informer,
    handles: Handles,
    pods: Ipv4Net,
    node: String,
}

impl NodeRoutes {
    /// The routes of the node `node`; `pods` is the range of the pods of all nodes together.
    pub fn new(informers: &Informers, handles: Handles, pods: Ipv4Net, node: &str) -> Self {
        Self { nodes: informers.get(NODES), handles, pods, node: node.to_owned() }
    }

    fn wanted(&self) -> BTreeMap<Ipv4Net, Ipv4Addr> {
        let others = self.nodes.list().into_iter().filter(|node| node.meta().name != self.node);
        others.filter_map(|node| way(&node)).collect()
    }

    /// Makes the kernel's routes those that are wanted. One that cannot be set (its node is not reachable at present) is
    /// tried again with the next news.
    fn apply(&self) -> Result<(), Error> {
        let routing = &*self.handles.routing;
        let wanted = self.wanted();
        let plan = plan(&wanted, &present(routing, self.pods)?);
        for route in &plan.delete {
            or_missing(routing.delete_route(route))?;
        }
        for route in &plan.set {
            if let Err(error) = routing.replace_route(route) {
                tracing::warn!(range = %route.destination, %error, "no route to a node's pods");
            }
        }
        Ok(())
    }
}

/// The range of a node's pods, and the node's address.
fn way(node: &Object) -> Option<(Ipv4Net, Ipv4Addr)> {
    let node: Node = node.decode().ok()?;
    let range: Ipv4Net = node.spec.pod_cidr.as_deref()?.parse().ok()?;
    let internal = node.status.addresses.iter().filter(|address| address.kind == "InternalIP");
    let address: Ipv4Addr = internal.filter_map(|address| address.address.parse().ok()).next()?;
    Some((range, address))
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
    let missing = wanted
        .iter()
        .filter(|(range, _)| !present.iter().filter(right).any(|route| route.destination == **range));
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
        loop {
            self.apply()?;
            ctx.ready();
            tokio::select! {
                () = ctx.cancelled() => return Ok(()),
                _ = nodes.changed() => {}
                changed = events.changed(), if !self.wanted().is_empty() => {
                    changed?;
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
