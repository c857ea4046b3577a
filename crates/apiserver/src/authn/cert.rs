//! Users from client certificates: the common name is the user, each organization a group. The certificate's digest
//! tells one credential of a user from another. Source: `CommonNameUserConversion` in
//! `apiserver/pkg/authentication/request/x509`.

use api::connect::User;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The user that a certificate (checked by TLS before) names; `None` if it names none.
pub fn user_of_certificate(der: &[u8]) -> Option<User> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    let name = cert.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = cert
        .subject()
        .iter_organization()
        .filter_map(|group| group.as_str().ok().map(str::to_owned))
        .collect();
    let digest: String = Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect();
    let extra = vec![(super::names::CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={digest}")])];
    (!name.is_empty()).then(|| super::authenticated(User { name, groups, extra, ..User::default() }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;

    use super::*;
    use crate::pki::{LEAF_LIFE, Pki};

    #[test]
    fn name_and_groups_come_from_the_subject() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), Arc::new(base::clock::SystemClock), vec![], []).unwrap();
        let lists: [&[&str]; 3] = [&[], &["system:masters"], &["developers", "example.com:testers"]];
        for groups in lists {
            let issued = pki.issue_client("jane", groups, LEAF_LIFE).unwrap();
            let der = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap();
            let user = user_of_certificate(&der).unwrap();
            assert_eq!(user.name, "jane");
            assert_eq!(user.groups, [groups, &["system:authenticated"]].concat());
            let (key, values) = &user.extra[0];
            assert_eq!(key, "authentication.kubernetes.io/credential-id");
            assert_eq!(values[0].len(), "X509SHA256=".len() + 64, "{values:?}");
        }
        assert!(pki.issue_client("jane", &["a", "b", "c"], LEAF_LIFE).is_err());
        assert!(user_of_certificate(b"nonsense").is_none());
    }
}
