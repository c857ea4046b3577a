//! Finds a cluster's certificate authority by the hash of its public key, as kubeadm's
//! `--discovery-token-ca-cert-hash` does: the server shows the authority's certificate in its chain, and only the one
//! with that hash is believed. Nothing is sent before.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base::BoxError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What stands before the digits of a hash.
const PREFIX: &str = "sha256:";
const CONNECT: Duration = Duration::from_secs(10);

/// The SHA-256 hash of a certificate's public key (its SubjectPublicKeyInfo, DER).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The hash of the first certificate in a PEM text; `None` if there is none that can be read.
    pub fn of_pem(pem: &[u8]) -> Option<Self> {
        Self::of(&CertificateDer::from_pem_slice(pem).ok()?)
    }

    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        Some(Self(Sha256::digest(parsed.public_key().raw).into()))
    }

    /// Reads `sha256:` and 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(PREFIX)?;
        if digits.len() != 64 || !digits.is_ascii() {
            return None;
        }
        let mut hash = [0; 32];
        for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()?;
        }
        Some(Self(hash))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Connects to the API server at `host:port` and gives the certificate (PEM) of its authority, whose key has `hash` and
/// which has signed the server's certificate for this host.
///
/// # Errors
/// If nobody answers, or the server shows no authority with this hash, or one that did not sign its certificate.
pub async fn authority(host: &str, port: u16, hash: KeyHash) -> Result<String, BoxError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let pinned = Arc::new(Pinned { hash, provider: provider.clone(), found: Mutex::default() });
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(pinned.clone())
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned())?;
    let dial = async {
        let stream = TcpStream::connect((host, port)).await?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    };
    tokio::time::timeout(CONNECT, dial).await.map_err(|_| "no answer in time")??;
    let found = pinned.found.lock().take().ok_or("the server showed no certificate")?;
    Ok(pem(&found))
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let base64 = STANDARD.encode(certificate);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// Trusts the one authority whose key has the hash.
#[derive(Debug)]
struct Pinned {
    hash: KeyHash,
    provider: Arc<CryptoProvider>,
    found: Mutex<Option<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| KeyHash::of(certificate) == Some(self.hash))
            .ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?
            .clone()
            .into_owned();
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let verified = verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)?;
        *self.found.lock() = Some(authority);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls_pki_types::PrivateKeyDer;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// An authority's certificate, and a server's chain and key under it.
    fn cluster() -> (rcgen::Certificate, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&ca.pem(), ca_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf =
            CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().signed_by(&key, &issuer).unwrap();
        let chain = vec![leaf.der().clone(), ca.der().clone()];
        (ca, chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    /// Asks a server that shows `chain` for the authority with `hash`.
    async fn ask(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        hash: KeyHash,
    ) -> Result<String, BoxError> {
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = TlsAcceptor::from(Arc::new(config)).accept(stream).await;
        };
        tokio::join!(authority("127.0.0.1", port, hash), serve).0
    }

    #[tokio::test]
    async fn only_the_authority_with_the_hash_is_believed() {
        let (ca, chain, key) = cluster();
        let hash = KeyHash::of_pem(ca.pem().as_bytes()).unwrap();
        assert_eq!(KeyHash::parse(&hash.to_string()), Some(hash));
        let found = ask(chain.clone(), key.clone_key(), hash).await.unwrap();
        assert_eq!(KeyHash::of_pem(found.as_bytes()), Some(hash));

        let (other, other_chain, other_key) = cluster();
        let other_hash = KeyHash::of_pem(other.pem().as_bytes()).unwrap();
        assert!(ask(chain.clone(), key, other_hash).await.is_err());
        // The right authority shown beside a certificate that it did not sign.
        let mixed = vec![other_chain[0].clone(), chain[1].clone()];
        assert!(ask(mixed, other_key, hash).await.is_err());
    }

    #[test]
    fn hashes_are_read_strictly() {
        for bad in [
            "",
            "sha256:",
            "sha256:00",
            &format!("md5:{}", "0".repeat(64)),
            &format!("sha256:{}", "g".repeat(64)),
        ] {
            assert!(KeyHash::parse(bad).is_none(), "{bad}");
        }
    }
}
