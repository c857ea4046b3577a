//! The TLS side: a certificate that is swapped while connections go on, and client certificates checked when offered.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::RwLock;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use super::{Issued, PkiError};

/// Serves the newest certificate to every handshake.
pub struct HotResolver {
    current: RwLock<(Arc<CertifiedKey>, Timestamp)>,
}

impl HotResolver {
    /// Starts with a certificate.
    pub fn new(issued: &Issued) -> Result<Self, PkiError> {
        Ok(Self { current: RwLock::new((certified(issued)?, issued.renew_at)) })
    }

    /// Serves another certificate from now on.
    pub fn swap(&self, issued: &Issued) -> Result<(), PkiError> {
        *self.current.write() = (certified(issued)?, issued.renew_at);
        Ok(())
    }

    /// When the certificate served should be replaced.
    pub fn renew_at(&self) -> Timestamp {
        self.current.read().1
    }
}

impl fmt::Debug for HotResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HotResolver").field("renew_at", &self.renew_at()).finish()
    }
}

impl ResolvesServerCert for HotResolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().0.clone())
    }
}

impl ResolvesClientCert for HotResolver {
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified(issued: &Issued) -> Result<Arc<CertifiedKey>, PkiError> {
    let failed = |cause: String| PkiError::material("load a certificate", cause);
    let chain = CertificateDer::pem_slice_iter(issued.cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| failed(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes())
        .map_err(|error| failed(error.to_string()))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map(Arc::new).map_err(|error| failed(error.to_string()))
}

/// A client's side: servers of the authority `ca_pem` are believed, and shown what `certificate` holds at the moment.
pub fn client_config(ca_pem: &str, certificate: Arc<HotResolver>) -> Result<rustls::ClientConfig, PkiError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| PkiError::material("set up TLS", error))?
        .with_root_certificates(roots(ca_pem)?)
        .with_client_cert_resolver(certificate);
    Ok(config)
}

pub(crate) fn roots(ca_pem: &str) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let cert = cert.map_err(|error| PkiError::material("set up TLS", error))?;
        roots.add(cert).map_err(|error| PkiError::material("set up TLS", error))?;
    }
    Ok(roots)
}

/// Tells the clients of one authority from those of others.
pub(super) struct ClientCheck {
    /// The authority's name, in DER.
    issuer: Vec<u8>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl ClientCheck {
    pub(super) fn new(ca_pem: &str) -> Result<Self, PkiError> {
        let failed = |cause: String| PkiError::material("read an authority's certificate", cause);
        let der =
            CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|error| failed(error.to_string()))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&der).map_err(|error| failed(error.to_string()))?;
        let issuer = parsed.subject().as_raw().to_vec();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca_pem)?), provider).build();
        Ok(Self { issuer, verifier: verifier.map_err(|error| failed(error.to_string()))? })
    }

    /// `None` if the certificates name another authority; else whether they are the authority's, under that name.
    pub(super) fn check(&self, chain: &[CertificateDer<'_>], common_name: &str) -> Option<bool> {
        let (leaf, others) = chain.split_first()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).ok()?;
        if parsed.issuer().as_raw() != self.issuer {
            return None;
        }
        let named = parsed
            .subject()
            .iter_common_name()
            .any(|name| name.as_str().is_ok_and(|name| name == common_name));
        let verified = self.verifier.verify_client_cert(leaf, others, UnixTime::now());
        Some(named && verified.is_ok())
    }
}

/// A server configuration with the resolver's certificate; clients may offer one of the authorities in `ca_pem`.
pub(super) fn server_config(
    ca_pem: &str,
    resolver: Arc<HotResolver>,
    alpn: &[&[u8]],
) -> Result<Arc<rustls::ServerConfig>, PkiError> {
    let failed = |cause: String| PkiError::material("set up TLS", cause);
    let roots = roots(ca_pem)?;
    let provider = Arc::new(serving_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.ignore_client_order = true;
    Ok(Arc::new(config))
}

/// The cryptography of the serving side, where the shortest sufficient key comes first, as Go's servers choose: AES with
/// 128 bits takes ten rounds of fourteen, and large answers are mostly encryption.
fn serving_provider() -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    let longer = |suite: CipherSuite| {
        !matches!(
            suite,
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    };
    provider.cipher_suites.sort_by_key(|suite| longer(suite.suite()));
    provider
}
