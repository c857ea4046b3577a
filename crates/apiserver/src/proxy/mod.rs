//! Requests that leave through the API server: to pods, Services and nodes (their subresource `proxy`). What may be reached
//! and how requests and answers are changed on the way is decided by pure functions ([`locate`], [`rewrite`]); [`forward`]
//! carries them. Source: `apimachinery/pkg/util/proxy`, `pkg/registry/core/{pod,service,node}`.

mod forward;
mod html;
pub(crate) mod locate;
mod page;
pub(crate) mod rewrite;

use std::net::SocketAddr;

use async_trait::async_trait;
use tokio::net::TcpStream;

pub(crate) use forward::{AnyServer, Destination, Outbound, collected, exchange, insecure};
pub(crate) use page::linked;

/// Opens the API server's connections to addresses of the cluster.
#[async_trait]
pub trait Egress: Send + Sync + 'static {
    /// Opens a TCP connection.
    async fn connect(&self, address: SocketAddr) -> std::io::Result<TcpStream>;

    /// Where the connections of those who open them themselves go, webhooks' clients among them: to the address itself,
    /// unless something stands in its place.
    fn stands_at(&self, address: SocketAddr) -> SocketAddr {
        address
    }
}

/// Connects from where the API server runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Direct;

#[async_trait]
impl Egress for Direct {
    async fn connect(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        TcpStream::connect(address).await
    }
}
