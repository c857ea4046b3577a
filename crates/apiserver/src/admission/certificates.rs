//! Certificate requests and trust bundles: who may approve, sign and attest for a signer, and what no client certificate
//! says. Source: `plugin/pkg/admission/certificates`.

use api::Status;
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::lifecycle::{forbidden, is};
use super::{Link, Operation, Review, World};
use crate::authn::names;
use crate::authz::Attributes;
use crate::{pki, tree};

const GROUP: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests";
const BUNDLES: &str = "clustertrustbundles";
const POD_REQUESTS: &str = "podcertificaterequests";
/// The signer of certificates by which clients prove who they are.
const CLIENTS: &str = "kubernetes.io/kube-apiserver-client";

/// Who approves or denies a request may do so for its signer.
#[derive(Debug, Default, Clone, Copy)]
pub struct CertificateApproval;

#[async_trait]
impl Link for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn about(&self) -> &'static [(&'static str, &'static str)] {
        &[(GROUP, REQUESTS)]
    }

    async fn validate(
        &self,
        review: &Review<'_>,
        _: Option<&Value>,
        world: &dyn World,
    ) -> Result<(), Status> {
        let Some(old) = review.old.filter(|_| is(review, GROUP, REQUESTS, "approval")) else { return Ok(()) };
        let signer = signer_of(old);
        if may(review, "approve", signer, world).await {
            return Ok(());
        }
        let why = format!("user not permitted to approve requests with signerName \"{signer}\"");
        Err(forbidden(review, &why))
    }
}

/// Who writes a certificate, or that there will be none, may sign for the request's signer.
#[derive(Debug, Default, Clone, Copy)]
pub struct CertificateSigning;

#[async_trait]
impl Link for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn about(&self) -> &'static [(&'static str, &'static str)] {
        &[(GROUP, REQUESTS), (GROUP, POD_REQUESTS)]
    }

    async fn validate(
        &self,
        review: &Review<'_>,
        object: Option<&Value>,
        world: &dyn World,
    ) -> Result<(), Status> {
        let (Some(new), Some(old)) = (object, review.old) else { return Ok(()) };
        let of_pod = is(review, GROUP, POD_REQUESTS, "status") && new.get("status") != old.get("status");
        let of_anybody = is(review, GROUP, REQUESTS, "status") && signs(new, old);
        if !of_pod && !of_anybody {
            return Ok(());
        }
        let signer = signer_of(old);
        if may(review, "sign", signer, world).await {
            return Ok(());
        }
        let why = match of_pod {
            true => {
                format!("User {:?} is not permitted to \"sign\" for signer {signer:?}", review.user.name)
            }
            false => format!("user not permitted to sign requests with signerName \"{signer}\""),
        };
        Err(forbidden(review, &why))
    }
}

/// Who writes what a signer is trusted by may attest for it.
#[derive(Debug, Default, Clone, Copy)]
pub struct ClusterTrustBundleAttest;

#[async_trait]
impl Link for ClusterTrustBundleAttest {
    fn name(&self) -> &'static str {
        "ClusterTrustBundleAttest"
    }

    fn about(&self) -> &'static [(&'static str, &'static str)] {
        &[(GROUP, BUNDLES)]
    }

    async fn validate(
        &self,
        review: &Review<'_>,
        object: Option<&Value>,
        world: &dyn World,
    ) -> Result<(), Status> {
        let Some(bundle) = object.filter(|_| is(review, GROUP, BUNDLES, "")) else { return Ok(()) };
        let signer = signer_of(bundle);
        let same = |old: &Value| ["metadata", "spec"].iter().all(|part| old.get(*part) == bundle.get(*part));
        if signer.is_empty() || review.old.is_some_and(same) || may(review, "attest", signer, world).await {
            return Ok(());
        }
        Err(forbidden(review, &format!("user not permitted to attest for signerName \"{signer}\"")))
    }
}

/// No certificate makes its holder an administrator whom no role can stop.
#[derive(Debug, Default, Clone, Copy)]
pub struct CertificateSubjectRestriction;

#[async_trait]
impl Link for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn about(&self) -> &'static [(&'static str, &'static str)] {
        &[(GROUP, REQUESTS)]
    }

    async fn validate(
        &self,
        review: &Review<'_>,
        object: Option<&Value>,
        _: &dyn World,
    ) -> Result<(), Status> {
        let creates = review.operation == Operation::Create && is(review, GROUP, REQUESTS, "");
        let Some(request) = object.filter(|request| creates && signer_of(request) == CLIENTS) else {
            return Ok(());
        };
        let groups = organizations(tree::text(request, &["spec", "request"]))
            .map_err(|why| forbidden(review, &format!("failed to parse CSR: {why}")))?;
        if !groups.iter().any(|group| group == names::MASTERS) {
            return Ok(());
        }
        let masters = names::MASTERS;
        Err(forbidden(review, &format!("use of {CLIENTS} signer with {masters} group is not allowed")))
    }
}

fn signer_of(object: &Value) -> &str {
    tree::text(object, &["spec", "signerName"])
}

/// Whether the writer may `verb` for a signer, or for all of the signer's domain.
async fn may(review: &Review<'_>, verb: &str, signer: &str, world: &dyn World) -> bool {
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    for name in [signer.to_owned(), format!("{domain}/*")] {
        let attributes = Attributes {
            user: review.user.clone(),
            verb: verb.into(),
            group: GROUP.into(),
            version: "*".into(),
            resource: "signers".into(),
            name,
            is_resource: true,
            ..Attributes::default()
        };
        if world.allows(&attributes).await {
            return true;
        }
    }
    false
}

/// Whether a status says something that only the signer may say: a certificate, or another condition. Pure.
fn signs(new: &Value, old: &Value) -> bool {
    ["certificate", "conditions"]
        .iter()
        .any(|field| tree::at(new, &["status", field]) != tree::at(old, &["status", field]))
}

/// The organizations that a request (base64 of PEM) names: the groups of the certificate's user.
fn organizations(request: &str) -> Result<Vec<String>, String> {
    let bytes = STANDARD.decode(request).map_err(|error| error.to_string())?;
    let der = pki::request_der(&bytes)?;
    let (_, request) = X509CertificationRequest::from_der(&der).map_err(|error| error.to_string())?;
    let subject = &request.certification_request_info.subject;
    Ok(subject.iter_organization().filter_map(|name| name.as_str().ok()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_writes_a_certificate_or_its_failure_signs() {
        let status = |status: Value| json!({ "status": status });
        let failed = status(json!({ "conditions": [{ "type": "Failed" }] }));
        let approved = status(json!({ "conditions": [{ "type": "Approved" }] }));
        assert!(signs(&status(json!({ "certificate": "x" })), &approved));
        assert!(signs(&failed, &approved));
        assert!(!signs(&failed, &failed) && !signs(&approved, &approved));
    }

    #[test]
    fn the_groups_of_a_request_are_read() {
        let identity = pki::Identity {
            user: "u".into(),
            groups: vec!["a".into(), names::MASTERS.into()],
            ..pki::Identity::default()
        };
        let request = pki::signing_request(&identity).unwrap().request_pem;
        let mut groups = organizations(&STANDARD.encode(request)).unwrap();
        groups.sort();
        assert_eq!(groups, ["a", names::MASTERS]);
        assert!(organizations("?").is_err());
        let other = STANDARD.encode("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        assert_eq!(organizations(&other).unwrap_err(), "PEM block type must be CERTIFICATE REQUEST");
    }
}
