//! The network of a sandbox: asked for by the engine's users, made by the network agent.

use std::net::IpAddr;

use async_trait::async_trait;

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
    /// Takes interface and address back; nothing to do is fine.
    async fn detach(&self, sandbox_id: &str) -> Result<(), EngineError>;
}
