//! Issuing certificates: the CA's own and its leaves. P-256 keys throughout.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};

use super::{CA_LIFE, PkiError, files};

/// Clocks of other machines may be slow: certificates are valid from a little before their making.
const BACKDATE: Duration = Duration::from_secs(300);

/// So many groups fit into a certificate: rcgen keeps one value for each spelling of an attribute's type.
pub const GROUPS_MAX: usize = 2;

/// `id-at-organizationName` (RFC 5280, appendix A).
const ORGANIZATION: [u64; 4] = [2, 5, 4, 10];

/// Who a certificate is for.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// Common name: the user.
    pub user: String,
    /// Organizations: the groups, at most [`GROUPS_MAX`].
    pub groups: Vec<String>,
    /// DNS names.
    pub names: Vec<String>,
    /// IP addresses.
    pub addresses: Vec<IpAddr>,
    /// May authenticate as a client.
    pub client: bool,
    /// May authenticate as a server.
    pub server: bool,
}

/// A certificate with its key.
#[derive(Clone)]
pub struct Issued {
    /// The certificate, PEM.
    pub cert_pem: String,
    /// Its private key, PKCS#8 PEM.
    pub key_pem: String,
    /// When it ends.
    pub not_after: Timestamp,
    /// When it should be replaced: two thirds into its life.
    pub renew_at: Timestamp,
}

/// What an authority is called: in its certificate, and its files.
#[derive(Clone, Copy)]
pub(super) struct CaName {
    common_name: &'static str,
    certificate: &'static str,
    key: &'static str,
}

/// The cluster's own authority.
pub(super) const CLUSTER: CaName = CaName { common_name: "skiff-ca", certificate: "ca.crt", key: "ca.key" };
/// The authority of those who may say on whose behalf they ask. Source: kubeadm's names of the files.
pub(super) const FRONT_PROXY: CaName = CaName {
    common_name: "skiff-front-proxy-ca",
    certificate: "front-proxy-ca.crt",
    key: "front-proxy-ca.key",
};

/// An authority's certificate and key.
pub(super) struct Ca {
    name: CaName,
    pub(super) cert_pem: String,
    key_pem: String,
    renew_at: Timestamp,
}

impl Ca {
    /// Reads the CA from `dir`, or makes it.
    pub(super) fn open(dir: &Path, name: CaName, now: Timestamp) -> Result<Self, PkiError> {
        let key_pem = files::read_or_make(&dir.join(name.key), new_key_pem)?;
        let cert_pem = files::read_or_make(&dir.join(name.certificate), || self_sign(name, &key_pem, now))?;
        let renew_at = renewal_of(&cert_pem)?;
        Ok(Self { name, cert_pem, key_pem, renew_at })
    }

    pub(super) fn renew_at(&self) -> Timestamp {
        self.renew_at
    }

    /// The same key and name with a new life, written to `dir`.
    pub(super) fn renewed(&self, dir: &Path, now: Timestamp) -> Result<Self, PkiError> {
        let cert_pem = self_sign(self.name, &self.key_pem, now)?;
        files::write(&dir.join(self.name.certificate), &cert_pem)?;
        let renew_at = renewal_of(&cert_pem)?;
        Ok(Self { name: self.name, cert_pem, key_pem: self.key_pem.clone(), renew_at })
    }

    /// Issues a leaf.
    pub(super) fn issue(
        &self,
        identity: &Identity,
        now: Timestamp,
        life: Duration,
    ) -> Result<Issued, PkiError> {
        let what = || format!("issue a certificate for {}", identity.user);
        let failed = |error: rcgen::Error| PkiError::material(what(), error);
        if identity.groups.len() > GROUPS_MAX {
            return Err(PkiError::material(what(), format!("it names more than {GROUPS_MAX} groups")));
        }
        let ca_key = KeyPair::from_pem(&self.key_pem).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_pem(&self.cert_pem, ca_key).map_err(failed)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let params = leaf_params(identity, now, life).map_err(failed)?;
        let cert = params.signed_by(&key, &issuer).map_err(failed)?;
        Ok(Issued {
            cert_pem: cert.pem(),
            key_pem: key.serialize_pem(),
            not_after: now.saturating_add(life).unwrap_or(Timestamp::MAX),
            renew_at: now.saturating_add(life * 2 / 3).unwrap_or(Timestamp::MAX),
        })
    }
}

impl Ca {
    /// Issues a leaf for the key of a request. Of the request itself only the key is used.
    pub(super) fn sign(
        &self,
        request: CertificateSigningRequestParams,
        identity: &Identity,
        now: Timestamp,
        life: Duration,
    ) -> Result<String, PkiError> {
        let failed = |error: rcgen::Error| {
            PkiError::material(format!("sign a certificate for {}", identity.user), error)
        };
        let ca_key = KeyPair::from_pem(&self.key_pem).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_pem(&self.cert_pem, ca_key).map_err(failed)?;
        let params = leaf_params(identity, now, life).map_err(failed)?;
        let request = CertificateSigningRequestParams { params, ..request };
        request.signed_by(&issuer).map(|cert| cert.pem()).map_err(failed)
    }
}

/// A fresh P-256 key as PKCS#8 PEM.
pub(super) fn new_key_pem() -> Result<String, PkiError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map(|key| key.serialize_pem())
        .map_err(|error| PkiError::material("generate a key", error))
}

fn leaf_params(
    identity: &Identity,
    now: Timestamp,
    life: Duration,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(identity.names.clone())?;
    for address in &identity.addresses {
        params.subject_alt_names.push(SanType::IpAddress(*address));
    }
    set_life(&mut params, now, life);
    params.distinguished_name = distinguished_name(identity);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if identity.client {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    if identity.server {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    Ok(params)
}

/// The subject: common name and organizations.
pub(super) fn distinguished_name(identity: &Identity) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, identity.user.as_str());
    let spellings = [DnType::OrganizationName, DnType::CustomDnType(ORGANIZATION.to_vec())];
    for (spelling, group) in spellings.into_iter().zip(&identity.groups) {
        name.push(spelling, group.as_str());
    }
    name
}

fn self_sign(name: CaName, key_pem: &str, now: Timestamp) -> Result<String, PkiError> {
    let failed = |error: rcgen::Error| PkiError::material("make the CA's certificate", error);
    let key = KeyPair::from_pem(key_pem).map_err(failed)?;
    let mut params = CertificateParams::default();
    set_life(&mut params, now, CA_LIFE);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name.common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.self_signed(&key).map(|cert| cert.pem()).map_err(failed)
}

fn set_life(params: &mut CertificateParams, now: Timestamp, life: Duration) {
    let now = SystemTime::from(now);
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + life).into();
}

/// Two thirds into the life that a certificate states.
pub(super) fn renewal_of(cert_pem: &str) -> Result<Timestamp, PkiError> {
    let (from, to) = life_of(cert_pem)?;
    let failed = |cause: jiff::Error| PkiError::material("read a certificate's life", cause);
    Timestamp::from_second(from + (to - from) / 3 * 2).map_err(failed)
}

/// From when and until when a certificate says to be valid, in seconds since 1970.
fn life_of(cert_pem: &str) -> Result<(i64, i64), PkiError> {
    let failed = |cause: String| PkiError::material("read a certificate", cause);
    let (_, pem) =
        x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).map_err(|error| failed(error.to_string()))?;
    let cert = pem.parse_x509().map_err(|error| failed(error.to_string()))?;
    Ok((cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp()))
}

impl Issued {
    /// A certificate that was issued elsewhere or before, with its key.
    pub fn from_pem(cert_pem: String, key_pem: String) -> Result<Self, PkiError> {
        let failed = |cause: jiff::Error| PkiError::material("read a certificate's life", cause);
        let not_after = Timestamp::from_second(life_of(&cert_pem)?.1).map_err(failed)?;
        let renew_at = renewal_of(&cert_pem)?;
        Ok(Self { cert_pem, key_pem, not_after, renew_at })
    }
}
