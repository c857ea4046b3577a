//! The ports at which agents meet without naming each other; `skiff` wires them.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use base::BoxError;
pub use base::published::{Protocol, PublishedPort};

/// The network agent's part in the life of a pod or container: interface and address.
#[async_trait]
pub trait SandboxNetworks: Send + Sync + 'static {
    /// Connects the network namespace at `netns_path`, idempotent per sandbox; gives its addresses.
    async fn attach(&self, sandbox_id: &str, netns_path: &str) -> Result<Vec<IpAddr>, BoxError>;
    /// Publishes ports of an attached sandbox on the host, instead of those that it had; gives them with the host's
    /// ports where a free one was asked for. All or none: an error names the port that somebody else has.
    async fn publish(
        &self,
        sandbox_id: &str,
        ports: &[PublishedPort],
    ) -> Result<Vec<PublishedPort>, BoxError>;
    /// Takes interface, address and ports back.
    async fn detach(&self, sandbox_id: &str) -> Result<(), BoxError>;
}

/// What the node needs to know before it signals a terminating pod.
#[async_trait]
pub trait Drain: Send + Sync + 'static {
    /// Whether any Service selects the pod (by its addresses in EndpointSlices).
    fn serves(&self, pod: &PodRef) -> bool;
    /// Returns when this node's data path sends the pod no new connection and those that came through Services have
    /// ended, or when `at_most` has passed.
    async fn released(&self, pod: &PodRef, at_most: Duration);
}

/// Facts about the cluster network that the node writes into pods.
pub trait ClusterDns: Send + Sync + 'static {
    /// Addresses for `nameserver` lines of `ClusterFirst` pods.
    fn nameservers(&self) -> Vec<IpAddr>;
    /// The cluster domain, `cluster.local`.
    fn domain(&self) -> String;
}

/// A pod as the ports name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// What a certificate signing request asks for, or what a certificate says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateSubject {
    /// The user (common name).
    pub user: String,
    /// The groups (organizations).
    pub groups: Vec<String>,
    /// DNS names.
    pub names: Vec<String>,
    /// IP addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether something else is asked for as well, which no certificate of this authority has.
    pub more: bool,
}

/// What a certificate is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateUse {
    /// To authenticate as a client.
    Client,
    /// To serve.
    Server,
}

/// Signs the tokens that lie in Secrets, for the controller that fills these.
pub trait SecretTokens: Send + Sync + 'static {
    /// A token of a service account (name and uid), which holds while a Secret of the same namespace holds it.
    fn sign(&self, namespace: &str, account: (&str, &str), secret: &str) -> Result<String, BoxError>;
}

/// The cluster's certificate authority, for the controller that answers CertificateSigningRequests.
pub trait CertificateAuthority: Send + Sync + 'static {
    /// Reads a request (PKCS#10, PEM) and checks that its maker holds the key.
    fn read(&self, request_pem: &str) -> Result<CertificateSubject, BoxError>;
    /// Issues a certificate for the request's key: of this subject, for this use, for this long. PEM.
    fn sign(
        &self,
        request_pem: &str,
        subject: &CertificateSubject,
        good_for: CertificateUse,
        life: Duration,
    ) -> Result<String, BoxError>;
}
