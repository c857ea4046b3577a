//! The network of a sandbox: asked for by the engine's users, made by the network agent.

use std::net::IpAddr;

use async_trait::async_trait;
pub use base::published::{Protocol, PublishedPort};

use crate::EngineError;

/// What a sandbox got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxNetwork {
    /// Its addresses, the preferred family first.
    pub addresses: Vec<IpAddr>,
    /// The host's side of the pair of interfaces.
    pub host_interface: String,
}

/// Gives sandboxes their interfaces and addresses. Idempotent per sandbox id.
#[async_trait]
pub trait SandboxNetworks: Send + Sync + 'static {
    /// Connects the network namespace at `netns_path` and gives it an address. Repeating it for the same sandbox
    /// gives the same answer.
    async fn attach(&self, sandbox_id: &str, netns_path: &str) -> Result<SandboxNetwork, EngineError>;
    /// Publishes ports of a connected sandbox on the host, instead of those that it had (none: takes them back);
    /// gives them with the host's ports where a free one was asked for. All or none: an error names the port that
    /// somebody else has.
    async fn publish(
        &self,
        sandbox_id: &str,
        ports: &[PublishedPort],
    ) -> Result<Vec<PublishedPort>, EngineError>;
    /// The ports of a sandbox that are published.
    fn published(&self, sandbox_id: &str) -> Vec<PublishedPort>;
    /// Takes interface, address and ports back; nothing to do is fine.
    async fn detach(&self, sandbox_id: &str) -> Result<(), EngineError>;
}
