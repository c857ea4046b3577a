//! Certificate signing requests (PKCS#10, RFC 2986): made by nodes, read and signed by the authority. What is signed is
//! made from what was read and from nothing else: an extension that nobody looked at never gets into a certificate.

use std::net::IpAddr;

use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DnType, DnValue, IsCa, KeyPair,
    PKCS_ECDSA_P256_SHA256, SanType,
};

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::error::X509Error;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use super::PkiError;
use super::issue::{Identity, distinguished_name};

/// A request with the key that it is about, which stays where it was made.
pub struct SigningRequest {
    /// The request, PEM.
    pub request_pem: String,
    /// The private key, PKCS#8 PEM.
    pub key_pem: String,
}

/// Makes a key (P-256) and a request for a certificate of `identity` (whose addresses and usages the signer decides).
pub fn signing_request(identity: &Identity) -> Result<SigningRequest, PkiError> {
    let failed = |error: rcgen::Error| PkiError::material("make a certificate signing request", error);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::new(identity.names.clone()).map_err(failed)?;
    params.distinguished_name = distinguished_name(identity);
    let request = params.serialize_request(&key).and_then(|request| request.pem()).map_err(failed)?;
    Ok(SigningRequest { request_pem: request, key_pem: key.serialize_pem() })
}

/// What a request asks for. Its signature has been checked: whoever made it holds the key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requested {
    /// Common name.
    pub user: String,
    /// Organizations.
    pub groups: Vec<String>,
    /// DNS names.
    pub names: Vec<String>,
    /// IP addresses.
    pub addresses: Vec<IpAddr>,
    /// It asks for something that no certificate of a node has: other names, an authority, other subject fields.
    pub more: bool,
}

pub(super) fn parse(request_pem: &str) -> Result<CertificateSigningRequestParams, PkiError> {
    CertificateSigningRequestParams::from_pem(request_pem)
        .map_err(|error| PkiError::material("read a certificate signing request", error))
}

/// Reads a request.
///
/// # Errors
/// If it is no PEM of a PKCS#10 request, its signature is not that of its key, or it has extensions that nobody knows.
pub fn read(request_pem: &str) -> Result<Requested, PkiError> {
    let params = parse(request_pem)?.params;
    let mut requested =
        Requested { more: !matches!(params.is_ca, IsCa::NoCa | IsCa::ExplicitNoCa), ..Requested::default() };
    for (kind, value) in params.distinguished_name.iter() {
        match (kind, text(value)) {
            (DnType::CommonName, Some(name)) if requested.user.is_empty() => requested.user = name,
            (DnType::OrganizationName, Some(group)) => requested.groups.push(group),
            _ => requested.more = true,
        }
    }
    for name in &params.subject_alt_names {
        match name {
            SanType::DnsName(name) => requested.names.push(ia5(name)),
            SanType::IpAddress(address) => requested.addresses.push(*address),
            _ => requested.more = true,
        }
    }
    Ok(requested)
}

/// The DER of the first block of a PEM, which has to be a request; else what is wrong, in upstream's words.
pub(crate) fn der(pem: &[u8]) -> Result<Vec<u8>, String> {
    const WRONG: &str = "PEM block type must be CERTIFICATE REQUEST";
    let (_, block) = x509_parser::pem::parse_x509_pem(pem).map_err(|_| WRONG.to_owned())?;
    if block.label == "CERTIFICATE REQUEST" { Ok(block.contents) } else { Err(WRONG.to_owned()) }
}

/// Whether a request (PEM) may be stored for whoever signs it: it can be read, and it is signed with the key that it names.
/// A signature of a kind that is not known here is its signer's business.
///
/// # Errors
/// What is wrong, in upstream's words where it has some. Source: `validateCSR` in `certificates/validation`.
pub fn check(pem: &[u8]) -> Result<(), String> {
    /// Shorter keys are not verified here.
    const RSA_BITS_MIN: usize = 2048;
    let der = der(pem)?;
    let (rest, request) = X509CertificationRequest::from_der(&der)
        .map_err(|error| format!("asn1: structure error: {error}"))?;
    if !rest.is_empty() {
        return Err("asn1: syntax error: trailing data".to_owned());
    }
    let failure = match request.certification_request_info.subject_pki.parsed() {
        Ok(PublicKey::RSA(key)) if key.key_size() < RSA_BITS_MIN => return Ok(()),
        Ok(PublicKey::RSA(_)) => "crypto/rsa: verification error",
        Ok(PublicKey::EC(_)) => "x509: ECDSA verification failure",
        _ => "x509: Ed25519 verification failure",
    };
    match request.verify_signature() {
        Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm) => Ok(()),
        Err(_) => Err(failure.to_owned()),
    }
}

fn ia5(text: &Ia5String) -> String {
    text.as_str().to_owned()
}

fn text(value: &DnValue) -> Option<String> {
    match value {
        DnValue::Utf8String(text) => Some(text.clone()),
        DnValue::PrintableString(text) => Some(text.as_str().to_owned()),
        DnValue::Ia5String(text) => Some(ia5(text)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_what_was_asked_and_its_signature_counts() {
        let identity = Identity {
            user: "system:node:n2".into(),
            groups: vec!["system:nodes".into()],
            names: vec!["n2".into()],
            ..Identity::default()
        };
        let request = signing_request(&identity).unwrap();
        let read_back = read(&request.request_pem).unwrap();
        assert_eq!(read_back.user, "system:node:n2");
        assert_eq!(read_back.groups, ["system:nodes"]);
        assert_eq!(read_back.names, ["n2"]);
        assert!(!read_back.more);
        assert!(read("nonsense").is_err());
        assert_eq!(check(request.request_pem.as_bytes()), Ok(()));
        let (head, tail) = request.request_pem.split_at(request.request_pem.len() / 2);
        let broken = format!("{}{tail}", &head[..head.len() - 1]);
        assert!(read(&broken).is_err());
    }

    #[test]
    fn what_is_no_request_or_signed_by_another_key_is_refused() {
        let block = "PEM block type must be CERTIFICATE REQUEST";
        assert_eq!(check(b"xxx").unwrap_err(), block);
        assert_eq!(
            check(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap_err(),
            block
        );
        let broken = check(b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n");
        assert!(broken.unwrap_err().starts_with("asn1: "));
        let request = signing_request(&Identity { user: "a".into(), ..Identity::default() }).unwrap();
        let mut der = der(request.request_pem.as_bytes()).unwrap();
        // The last byte is the signature's.
        *der.last_mut().unwrap() ^= 1;
        let forged = pem("CERTIFICATE REQUEST", &der);
        assert_eq!(check(forged.as_bytes()).unwrap_err(), "x509: ECDSA verification failure");
        der.push(0);
        let longer = pem("CERTIFICATE REQUEST", &der);
        assert_eq!(check(longer.as_bytes()).unwrap_err(), "asn1: syntax error: trailing data");
    }

    fn pem(label: &str, der: &[u8]) -> String {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }
}
