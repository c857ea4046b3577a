//! The API server's way to nodes' servers: in process for this node.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use api::connect::{Body, NodeAddress, NodeConnector};
use api::{Reason, Status};
use apiserver::pki::{HotResolver, Issued};
use async_trait::async_trait;
use node::NodeServer;

/// This host, to itself.
pub(crate) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Reaches the node of this process. The API server is built before the node, which is set once it is there.
#[derive(Default)]
pub(crate) struct Connector {
    local: OnceLock<(String, Arc<NodeServer>)>,
}

impl Connector {
    /// The node of this process.
    pub(crate) fn set_local(&self, name: &str, server: Arc<NodeServer>) {
        // There is one node in a process, and it is built once.
        let _ = self.local.set((name.to_owned(), server));
    }
}

#[async_trait]
impl NodeConnector for Connector {
    async fn request(
        &self,
        node: &NodeAddress,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Status> {
        match self.local.get() {
            Some((name, server)) if *name == node.name => Ok(server.handle(request).await),
            _ => Err(Status::new(
                Reason::ServiceUnavailable,
                format!("node {} at {} cannot be reached from here", node.name, node.address),
            )),
        }
    }
}

/// A certificate for a TLS server.
pub(crate) fn certificate(issued: &Issued) -> Result<Arc<HotResolver>> {
    Ok(Arc::new(HotResolver::new(issued).context("use the node's certificate")?))
}
