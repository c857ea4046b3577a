//! What a node asks for in the name of a pod, and what it gets: a request (PKCS#10) that says nothing but which key it is
//! about, and a chain of certificates. Source: KEP-4317, `ValidatePodCertificateRequestCreate`, `…StatusUpdate`.

use aws_lc_rs::signature::{ECDSA_P521_SHA512_ASN1, UnparsedPublicKey};
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, Pem};
use x509_parser::public_key::PublicKey;

/// Sizes of RSA keys, in bits.
const RSA_BITS: [usize; 2] = [3072, 4096];
/// Sizes of keys on the curves P-256, P-384 and P-521, in bits.
const EC_BITS: [usize; 3] = [256, 384, 521];
/// Object identifiers of `ecdsa-with-SHA512` and Ed25519. Source: RFC 5758, RFC 8410.
const ECDSA_SHA512: &str = "1.2.840.10045.4.3.4";
const ED25519: &str = "1.3.101.112";

/// The key (`SubjectPublicKeyInfo`, DER) of a request (DER) that was signed with it.
///
/// # Errors
/// What is wrong: no request, another kind of key than certificates of pods have, or another key's signature.
pub fn requested_key(der: &[u8]) -> Result<Vec<u8>, String> {
    let (rest, request) =
        X509CertificationRequest::from_der(der).map_err(|_| "must be a valid PKCS#10 request".to_owned())?;
    if !rest.is_empty() {
        return Err("must be a valid PKCS#10 request".to_owned());
    }
    let info = &request.certification_request_info;
    let key = &info.subject_pki;
    let parsed = key.parsed().map_err(|_| "must be a valid PKCS#10 request".to_owned())?;
    let on_p521 = match &parsed {
        PublicKey::RSA(rsa) if RSA_BITS.contains(&rsa.key_size()) => false,
        PublicKey::RSA(_) => return Err("RSA keys must have modulus size 3072 or 4096".to_owned()),
        PublicKey::EC(point) if EC_BITS.contains(&bits(point.key_size())) => bits(point.key_size()) == 521,
        PublicKey::EC(_) => {
            return Err("elliptic public keys must use curve P256, P384 or P521".to_owned());
        }
        _ if key.algorithm.algorithm.to_id_string() == ED25519 => false,
        _ => {
            return Err("unknown public key type; supported types are Ed25519, ECDSA, and RSA".to_owned());
        }
    };
    // That curve the library does not verify.
    let holds = match on_p521 && request.signature_algorithm.algorithm.to_id_string() == ECDSA_SHA512 {
        true => UnparsedPublicKey::new(&ECDSA_P521_SHA512_ASN1, &key.subject_public_key.data)
            .verify(info.raw, &request.signature_value.data)
            .is_ok(),
        false => request.verify_signature().is_ok(),
    };
    match holds {
        true => Ok(key.raw.to_vec()),
        false => Err("could not verify proof-of-possession signature".to_owned()),
    }
}

/// Sizes of points are told in whole bytes by some.
fn bits(size: usize) -> usize {
    if size == 528 { 521 } else { size }
}

/// The certificate that a chain begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The key that it is about (`SubjectPublicKeyInfo`, DER).
    pub key: Vec<u8>,
    /// From when it holds, in seconds since 1970.
    pub not_before: i64,
    /// Until when.
    pub not_after: i64,
    /// Its DNS names.
    pub names: Vec<String>,
}

/// Reads a chain (PEM).
///
/// # Errors
/// What is wrong, in upstream's words.
pub fn leaf(chain: &str) -> Result<Leaf, String> {
    let mut leaf = None;
    for block in Pem::iter_from_buffer(chain.as_bytes()) {
        // What stands behind the last block is nobody's.
        let Ok(block) = block else { break };
        if block.label != "CERTIFICATE" {
            return Err("issued certificate chain must consist entirely of CERTIFICATE PEM blocks".to_owned());
        }
        let read = X509Certificate::from_der(&block.contents);
        match (read, &leaf) {
            (Ok((_, certificate)), None) => leaf = Some(of(&certificate)),
            (Ok(_), Some(_)) => {}
            (Err(_), None) => return Err("leaf certificate does not parse as valid X.509".to_owned()),
            (Err(_), Some(_)) => {
                return Err("intermediate certificate does not parse as valid X.509".to_owned());
            }
        }
    }
    leaf.ok_or_else(|| "issued certificate chain must contain at least one certificate".to_owned())
}

fn of(certificate: &X509Certificate<'_>) -> Leaf {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.into_iter().flat_map(|names| names.value.general_names.iter());
    let names = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    Leaf {
        key: certificate.public_key().raw.to_vec(),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        names: names.collect(),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512,
        PKCS_ED25519, PublicKeyData as _,
    };

    use super::*;

    fn params() -> CertificateParams {
        CertificateParams::new(["web.example".to_owned()]).unwrap()
    }

    #[test]
    fn every_kind_of_key_has_to_be_shown() {
        for kind in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ECDSA_P521_SHA512, &PKCS_ED25519]
        {
            let key = KeyPair::generate_for(kind).unwrap();
            let request = params().serialize_request(&key).unwrap();
            assert_eq!(requested_key(request.der()), Ok(key.subject_public_key_info()), "{kind:?}");
            let mut forged = request.der().to_vec();
            let end = forged.len() - 4;
            forged[end] ^= 1;
            let refused = requested_key(&forged).unwrap_err();
            assert_eq!(refused, "could not verify proof-of-possession signature", "{kind:?}");
        }
        assert_eq!(requested_key(b"x").unwrap_err(), "must be a valid PKCS#10 request");
    }

    #[test]
    fn a_chain_is_read() {
        let key = KeyPair::generate().unwrap();
        let certificate = params().self_signed(&key).unwrap();
        let found = leaf(&(certificate.pem() + &certificate.pem())).unwrap();
        assert_eq!((found.key, found.names), (key.subject_public_key_info(), vec!["web.example".to_owned()]));
        for (chain, told) in [
            (String::new(), "issued certificate chain must contain at least one certificate"),
            (key.serialize_pem(), "issued certificate chain must consist entirely of CERTIFICATE PEM blocks"),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
                "leaf certificate does not parse as valid X.509",
            ),
        ] {
            assert_eq!(leaf(&chain).unwrap_err(), told);
        }
    }
}
