//! The way to nodes over HTTPS: each request goes over a connection of its own to the node's server, authenticated both
//! ways. Upgraded connections (exec, attach, port-forward) are joined with the client's.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api::connect::{Body, NodeAddress, NodeConnector};
use api::{Reason, Status};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::Tasks;
use http::{HeaderValue, Request, Response, header};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::pki::Pki;
use crate::proxy::exchange;
use crate::tree;

/// The common name under which nodes know the API server. Source: upstream's certificate of the same name.
pub const CLIENT_NAME: &str = "kube-apiserver-kubelet-client";
/// How long a connection's client certificate lives: it is checked once, when the connection opens.
const CLIENT_LIFE: Duration = Duration::from_secs(3600);
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Where a node's server listens if its Node does not say.
const NODE_PORT: u64 = 10250;

/// Where a node's server is, by what its Node object says. Pure.
pub(crate) fn address_of(node: &Value, name: &str) -> Result<NodeAddress, Status> {
    let address = tree::items(node, &["status", "addresses"])
        .iter()
        .filter(|address| tree::text(address, &["type"]) == "InternalIP")
        .find_map(|address| tree::text(address, &["address"]).parse::<IpAddr>().ok())
        .ok_or_else(|| {
            Status::new(
                Reason::ServiceUnavailable,
                format!("node {name} has no InternalIP in its status: is its agent running?"),
            )
        })?;
    let port = tree::at(node, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"]);
    let port = port.as_u64().unwrap_or(NODE_PORT);
    let port = u16::try_from(port).map_err(|_| Status::internal(format!("node {name} has port {port}")))?;
    Ok(NodeAddress { name: name.to_owned(), address, port })
}

/// Reaches nodes over HTTPS.
pub struct HttpsNodes {
    pki: Arc<Pki>,
    connections: Tasks,
}

impl HttpsNodes {
    /// A connector whose client certificates `pki` issues, one for each connection: none ever has to be renewed.
    pub fn new(pki: Arc<Pki>) -> Self {
        Self { pki, connections: Tasks::default() }
    }

    async fn connect(&self, node: &NodeAddress) -> Result<TlsStream<TcpStream>, BoxError> {
        let connector = TlsConnector::from(Arc::new(self.tls()?));
        let address = SocketAddr::new(node.address, node.port);
        let open = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok::<_, BoxError>(connector.connect(ServerName::try_from(node.name.clone())?, stream).await?)
        };
        let stream = tokio::time::timeout(CONNECT_MAX, open).await.map_err(|_| "no answer in time")??;
        check_name(&stream, &node.name)?;
        Ok(stream)
    }

    fn tls(&self) -> Result<rustls::ClientConfig, BoxError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.pki.ca_pem().as_bytes()) {
            roots.add(certificate?)?;
        }
        let client = self.pki.issue_client(CLIENT_NAME, &[], CLIENT_LIFE)?;
        let chain = CertificateDer::pem_slice_iter(client.cert_pem.as_bytes()).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(client.key_pem.as_bytes())?;
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// A name alone proves too little: the API server's own certificate has names as well. It has to be this node's.
fn check_name(stream: &TlsStream<TcpStream>, node: &str) -> Result<(), BoxError> {
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificate = chain.first().ok_or("the node showed no certificate")?;
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)?;
    let wanted = format!("system:node:{node}");
    let named =
        parsed.subject().iter_common_name().any(|name| name.as_str().is_ok_and(|name| name == wanted));
    if named { Ok(()) } else { Err(format!("the certificate is not that of {wanted}").into()) }
}

#[async_trait]
impl NodeConnector for HttpsNodes {
    async fn request(
        &self,
        node: &NodeAddress,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let unreachable = |error: BoxError| {
            let cause = base::error::chain(&*error);
            let text = format!(
                "node {} cannot be reached at {}:{}: {cause}; is it running?",
                node.name, node.address, node.port
            );
            Status::new(Reason::ServiceUnavailable, text)
        };
        let stream = self.connect(node).await.map_err(unreachable)?;
        if let Ok(host) = HeaderValue::from_str(&node.name) {
            request.headers_mut().insert(header::HOST, host);
        }
        exchange(&self.connections, stream, request).await.map_err(|error| unreachable(error.into()))
    }
}
