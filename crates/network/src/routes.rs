//! Routes to the pods of the other nodes, each through its node's address.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use api::{Key, Object};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context, OnFailure};
use ipnet::Ipv4Net;
use reconcile::kinds::NODES;
use reconcile::{Informer, Informers};
use sys::net::{Route, Target, or_missing};

use crate::host::Handles;
use crate::objects::Node;

/// Keeps the routes to other nodes. Their nodes have to be reachable without a router in between.
pub struct NodeRoutes {
    nodes: Informer,
    handles: Handles,
    node: String,
}

impl NodeRoutes {
    /// The routes of the node `node`.
    pub fn new(informers: &Informers, handles: Handles, node: &str) -> Self {
        Self { nodes: informers.get(NODES), handles, node: node.to_owned() }
    }

    /// Sets or removes the route of one node.
    fn follow(&self, held: &mut HashMap<Key, Route>, key: &Key, node: Option<&Object>) {
        let wanted = node.filter(|_| key.name != self.node).and_then(route);
        if held.get(key) == wanted.as_ref() {
            return;
        }
        let routing = &self.handles.routing;
        if let Some(old) = held.remove(key)
            && wanted.is_none_or(|wanted| wanted.destination != old.destination)
            && let Err(error) = or_missing(routing.delete_route(&old))
        {
            tracing::warn!(node = %key, %error, "the route to a node's pods stays behind");
        }
        let Some(wanted) = wanted else { return };
        match routing.replace_route(&wanted) {
            Ok(()) => {
                held.insert(key.clone(), wanted);
            }
            Err(error) => tracing::warn!(node = %key, %error, "no route to the node's pods"),
        }
    }
}

fn route(node: &Object) -> Option<Route> {
    let node: Node = node.decode().ok()?;
    let destination: Ipv4Net = node.spec.pod_cidr.as_deref()?.parse().ok()?;
    let internal = node.status.addresses.iter().filter(|address| address.kind == "InternalIP");
    let address: Ipv4Addr = internal.filter_map(|address| address.address.parse().ok()).next()?;
    Some(Route { destination, target: Target::Gateway(address, 0), source: None })
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
        let mut nodes = self.nodes.subscribe();
        let mut held = HashMap::new();
        tokio::select! {
            () = ctx.cancelled() => return Ok(()),
            () = self.nodes.synced() => {}
        }
        ctx.ready();
        loop {
            tokio::select! {
                () = ctx.cancelled() => return Ok(()),
                changes = nodes.changed() => {
                    for change in changes {
                        self.follow(&mut held, &change.key, change.new.as_deref());
                    }
                }
            }
        }
    }
}
