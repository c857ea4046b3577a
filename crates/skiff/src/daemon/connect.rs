//! The API server's ways to nodes' servers: in process to the node of this process, over HTTPS to all others.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};

use api::connect::{Body, NodeAddress, NodeConnector};
use api::{Reason, Status};
use apiserver::nodes::HttpsNodes;
use apiserver::pki::Pki;
use async_trait::async_trait;
use node::NodeServer;

/// This host, to itself.
pub(crate) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Reaches nodes. The API server is built before the node of this process and before the authority that certifies the
/// way to others, which are set once they are there.
#[derive(Default)]
pub(crate) struct Connector {
    local: OnceLock<(String, Arc<NodeServer>)>,
    others: OnceLock<HttpsNodes>,
}

impl Connector {
    /// The node of this process.
    pub(crate) fn set_local(&self, name: &str, server: Arc<NodeServer>) {
        // There is one node in a process, and it is built once.
        let _ = self.local.set((name.to_owned(), server));
    }

    /// The authority that certifies the API server to nodes, and nodes to it.
    pub(crate) fn set_authority(&self, pki: Arc<Pki>) {
        // There is one authority in a process, and it is opened once.
        let _ = self.others.set(HttpsNodes::new(pki));
    }
}

#[async_trait]
impl NodeConnector for Connector {
    async fn request(
        &self,
        node: &NodeAddress,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Status> {
        match (self.local.get(), self.others.get()) {
            (Some((name, server)), _) if *name == node.name => Ok(server.handle(request).await),
            (_, Some(others)) => others.request(node, request).await,
            _ => Err(Status::new(
                Reason::ServiceUnavailable,
                format!("node {} cannot be reached yet: this server is starting", node.name),
            )),
        }
    }
}
