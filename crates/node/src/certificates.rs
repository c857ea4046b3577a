//! Certificates of pods: the node makes the key, asks for the certificate in the pod's name, waits for what its signer says,
//! and asks anew in time. Keys stay in the memory of this process and in the pod's volumes, and are never logged.
//! Source: KEP-4317, `pkg/kubelet/podcertificate`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use api::{Key, Object};
use base::backoff::Policy;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodCertificateProjection;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, RsaKeySize};
use reconcile::{EventType, kinds};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::deps::{Deps, blocking};
use crate::pod::PodView;

/// A request that nobody can find so long after it was made was deleted. Source: `assumeDeletedThreshold`.
const FOUND_WITHIN: Duration = Duration::from_secs(600);
/// What is to be done at a moment is done up to so much later, so that pods that came together do not ask together.
const JITTER_MAX: Duration = Duration::from_secs(300);
/// So long after its time a renewal is told of as missing. Source: `refreshOverdueDuration`.
const OVERDUE: Duration = Duration::from_secs(600);
/// A request that could not be made.
const RETRY: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(300) };
/// Longer chains the API server stores none.
const CHAIN_MAX: usize = 100 << 10;
/// Letters in a line of PEM. Source: RFC 7468.
const LINE: usize = 64;

/// What tells two projections of a pod apart.
pub(crate) type Source = String;

/// What a volume shows.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credential {
    // Secret: never logged.
    pub(crate) key: String,
    pub(crate) chain: String,
}

/// The certificates of one pod.
#[derive(Default)]
pub(crate) struct Certificates(BTreeMap<Source, Certificate>);

/// One certificate, and the request for the next.
#[derive(Default)]
struct Certificate {
    has: Option<Issued>,
    asks: Option<Asks>,
    /// What a signer has said for good.
    refused: Option<String>,
    failures: u32,
    /// When a request that could not be made is tried again.
    retry_at: Option<Timestamp>,
}

struct Issued {
    credential: Credential,
    renew_at: Timestamp,
    not_after: Timestamp,
    /// What was told of its age.
    told: Age,
}

/// A request that was made.
struct Asks {
    name: String,
    // Secret: never logged.
    key: String,
    /// When it is believed to be gone, if it cannot be found.
    abandon_at: Timestamp,
}

/// How late a renewal is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Age {
    #[default]
    Fresh,
    Overdue,
    Expired,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Waits,
    Denied { reason: String, message: String },
    Failed { reason: String, message: String },
    Issued { chain: String, renew_at: Timestamp, not_after: Timestamp },
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RequestView {
    status: RequestStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RequestStatus {
    conditions: Vec<Condition>,
    certificate_chain: String,
    begin_refresh_at: Option<Timestamp>,
    not_after: Option<Timestamp>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    reason: String,
    message: String,
}

fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.saturating_add(by).unwrap_or(Timestamp::MAX)
}

/// Some time that a name always has, of at most [`JITTER_MAX`].
fn jitter(name: &str) -> Duration {
    let bytes = Sha256::digest(name);
    let number = bytes.iter().take(4).fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    Duration::from_secs(number % JITTER_MAX.as_secs())
}

/// The projections of a pod, by what tells them apart.
fn projections(pod: &PodView) -> BTreeMap<Source, PodCertificateProjection> {
    let volumes = pod.spec.volumes.iter().flatten();
    let sources = volumes.filter_map(|volume| volume.projected.as_ref());
    let sources = sources.flat_map(|projected| projected.sources.iter().flatten());
    let certificates = sources.filter_map(|source| source.pod_certificate.clone());
    certificates.map(|projection| (source(&projection), projection)).collect()
}

/// What tells a projection from others.
pub(crate) fn source(projection: &PodCertificateProjection) -> Source {
    json!(projection).to_string()
}

/// A key of one of the kinds that the API knows, and a request for it that says nothing else. Blocks: some keys take long.
fn make_key(kind: &str) -> Result<(String, Vec<u8>), String> {
    let failed = |error: rcgen::Error| format!("while generating keypair: {error}");
    let key = match kind {
        "RSA3072" => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_3072),
        "RSA4096" => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_4096),
        "ECDSAP256" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        "ECDSAP384" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        "ECDSAP521" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512),
        "ED25519" => KeyPair::generate_for(&rcgen::PKCS_ED25519),
        _ => return Err(format!("while generating keypair: unknown key type {kind:?}")),
    };
    let key = key.map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(failed)?;
    Ok((key.serialize_pem(), request.der().to_vec()))
}

/// The certificates of a chain, and nothing that stands between them.
fn clean(chain: &str) -> String {
    let mut clean = String::new();
    for certificate in CertificateDer::pem_slice_iter(chain.as_bytes()).map_while(Result::ok) {
        clean.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = STANDARD.encode(&certificate);
        for line in text.as_bytes().chunks(LINE) {
            clean.push_str(&String::from_utf8_lossy(line));
            clean.push('\n');
        }
        clean.push_str("-----END CERTIFICATE-----\n");
    }
    clean
}

/// What became of a request. Pure.
fn outcome(request: &Object) -> Result<Outcome, String> {
    let RequestView { status } =
        request.decode().map_err(|error| format!("request not readable: {error}"))?;
    let of = |kind: &str| status.conditions.iter().find(|condition| condition.kind == kind);
    let words = |condition: &Condition| (condition.reason.clone(), condition.message.clone());
    if let Some((reason, message)) = of("Denied").map(words) {
        return Ok(Outcome::Denied { reason, message });
    }
    if let Some((reason, message)) = of("Failed").map(words) {
        return Ok(Outcome::Failed { reason, message });
    }
    if of("Issued").is_none() {
        return Ok(Outcome::Waits);
    }
    let (Some(renew_at), Some(not_after)) = (status.begin_refresh_at, status.not_after) else {
        return Err("the issued certificate has no time at which it is renewed".to_owned());
    };
    if status.certificate_chain.len() > CHAIN_MAX {
        return Err("the issued chain of certificates is too long".to_owned());
    }
    Ok(Outcome::Issued { chain: clean(&status.certificate_chain), renew_at, not_after })
}

impl Certificate {
    /// When something is to be done next.
    fn due(&self) -> Option<Timestamp> {
        let age = self.has.as_ref().and_then(|has| match has.told {
            Age::Fresh => Some(later(has.renew_at, OVERDUE).min(has.not_after)),
            Age::Overdue => Some(has.not_after),
            Age::Expired => None,
        });
        let renewal = match (&self.asks, &self.refused) {
            (Some(asks), _) => Some(asks.abandon_at),
            (None, Some(_)) => None,
            (None, None) => self.retry_at.or(self.has.as_ref().map(|has| has.renew_at)),
        };
        age.into_iter().chain(renewal).min()
    }

    /// Whether a request has to be made.
    fn wants(&self, now: Timestamp) -> bool {
        let missing = self.has.as_ref().is_none_or(|has| now >= has.renew_at);
        let may = self.retry_at.is_none_or(|at| now >= at);
        missing && may && self.asks.is_none() && self.refused.is_none()
    }

    /// Takes what became of the request; an event, where somebody is to hear of it.
    fn take(&mut self, place: &str, outcome: Outcome) -> Option<(&'static str, String)> {
        let (kind, words, reason, message) = match outcome {
            Outcome::Waits => return None,
            Outcome::Issued { chain, renew_at, not_after } => {
                if let Some(asks) = self.asks.take() {
                    let renew_at = later(renew_at, jitter(&asks.name));
                    let credential = Credential { key: asks.key, chain };
                    self.has = Some(Issued { credential, renew_at, not_after, told: Age::Fresh });
                }
                return None;
            }
            Outcome::Denied { reason, message } => ("Denied", "was denied", reason, message),
            Outcome::Failed { reason, message } => ("Failed", "failed", reason, message),
        };
        self.asks = None;
        let ended = if kind == "Denied" { "denied" } else { "failed" };
        self.refused = Some(format!(
            "PodCertificateRequest was permanently {ended}: reason={reason:?} message={message:?}"
        ));
        let told = format!("PodCertificateRequest {place} {words}, reason={reason:?}, message={message:?}");
        Some((kind, told))
    }

    /// The request is there, and was not answered: it is waited for, however long that takes.
    fn is_there(&mut self, now: Timestamp) {
        if let Some(asks) = &mut self.asks {
            asks.abandon_at = asks.abandon_at.max(later(now, FOUND_WITHIN));
        }
    }

    /// A request could not be made, or not be read: another one is made later.
    fn failed(&mut self, now: Timestamp) {
        self.asks = None;
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(later(now, RETRY.delay(self.failures.min(16))));
    }

    /// Notes how late the renewal is; an event, where that is told for the first time.
    fn ages(&mut self, now: Timestamp) -> Option<(&'static str, &'static str)> {
        let has = self.has.as_mut()?;
        let age = match now {
            _ if now >= has.not_after => Age::Expired,
            _ if now >= later(has.renew_at, OVERDUE) => Age::Overdue,
            _ => Age::Fresh,
        };
        if age <= has.told {
            return None;
        }
        has.told = age;
        match age {
            Age::Expired => Some(("CertificateExpired", "PodCertificate expired")),
            _ => Some(("CertificateOverdueForRefresh", "PodCertificate refresh overdue")),
        }
    }
}

impl Certificates {
    /// When something is to be done next.
    pub(crate) fn due(&self) -> Option<Timestamp> {
        self.0.values().filter_map(Certificate::due).min()
    }

    /// Goes on with every certificate that the pod wants. The first that cannot be shown is the error; one that has been
    /// issued is shown until the next is, however old it is.
    pub(crate) async fn ensure(
        &mut self,
        deps: &Deps,
        pod: &PodView,
    ) -> Result<HashMap<Source, Credential>, String> {
        let wanted = projections(pod);
        self.0.retain(|source, _| wanted.contains_key(source));
        let mut error = None;
        for (source, projection) in &wanted {
            let certificate = self.0.entry(source.clone()).or_default();
            if let Err(why) = go_on(certificate, deps, pod, projection).await
                && certificate.has.is_none()
            {
                error.get_or_insert(why);
            }
        }
        if let Some(error) = error {
            return Err(error);
        }
        let has = self.0.iter().filter_map(|(source, certificate)| {
            Some((source.clone(), certificate.has.as_ref()?.credential.clone()))
        });
        Ok(has.collect())
    }
}

async fn go_on(
    certificate: &mut Certificate,
    deps: &Deps,
    pod: &PodView,
    projection: &PodCertificateProjection,
) -> Result<(), String> {
    let namespace = &pod.metadata.namespace;
    let now = deps.now();
    if let Some(asks) = &certificate.asks {
        let key = Key::new(&**namespace, &*asks.name);
        let place = key.to_string();
        match deps.watched.pod_certificate_request(&key) {
            Some(request) => match outcome(&request) {
                Ok(outcome) => {
                    if let Some((kind, told)) = certificate.take(&place, outcome) {
                        deps.event(pod, None, EventType::Warning, kind, told);
                    }
                    certificate.is_there(now);
                }
                // Another one may be answered better.
                Err(error) => {
                    certificate.failed(now);
                    return Err(error);
                }
            },
            None if now >= asks.abandon_at => certificate.asks = None,
            None => {}
        }
    }
    if let Some((reason, told)) = certificate.ages(now) {
        deps.event(pod, None, EventType::Warning, reason, told);
    }
    if certificate.wants(now) {
        match ask(deps, pod, projection).await {
            Ok(asks) => {
                certificate.asks = Some(asks);
                (certificate.failures, certificate.retry_at) = (0, None);
            }
            Err(error) => {
                certificate.failed(now);
                tracing::warn!(pod = %pod.key(), error, "no certificate asked for, trying again");
                return Err(error);
            }
        }
    }
    match (&certificate.refused, &certificate.asks, &certificate.has) {
        (Some(refused), _, _) => Err(refused.clone()),
        (None, Some(asks), None) => Err(format!(
            "PodCertificateRequest {namespace}/{} has not been issued yet by signer {:?}",
            asks.name, projection.signer_name
        )),
        (None, None, None) => Err("no PodCertificateRequest can be made at the moment".to_owned()),
        _ => Ok(()),
    }
}

/// Makes a key and a request for it.
async fn ask(deps: &Deps, pod: &PodView, projection: &PodCertificateProjection) -> Result<Asks, String> {
    let namespace = pod.metadata.namespace.as_str();
    let account = pod.spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned());
    let of_account = Key::new(namespace, &*account);
    let known = deps.client.get(&kinds::SERVICE_ACCOUNTS.gvr(), &of_account).await;
    let known = known.map_err(|status| format!("while fetching service account: {status}"))?;
    let node = deps.caches.nodes.get(&Key::new("", deps.config.node_name.clone()));
    let node = node.ok_or("while getting node object from local cache: there is none")?;
    let kind = projection.key_type.clone();
    let (key, stub) = blocking(move || make_key(&kind)).await.map_err(|error| error.to_string())??;
    let mut spec = json!({
        "signerName": projection.signer_name,
        "podName": pod.metadata.name, "podUID": pod.metadata.uid,
        "serviceAccountName": account, "serviceAccountUID": known.meta().uid,
        "nodeName": deps.config.node_name, "nodeUID": node.meta().uid,
        "stubPKCS10Request": STANDARD.encode(stub),
    });
    let more = [
        ("maxExpirationSeconds", json!(projection.max_expiration_seconds)),
        ("unverifiedUserAnnotations", json!(projection.user_annotations)),
    ];
    for (field, value) in more.into_iter().filter(|(_, value)| *value != Value::Null) {
        spec[field] = value;
    }
    let owner =
        json!({ "apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid });
    let request = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "PodCertificateRequest",
        "metadata": { "namespace": namespace, "generateName": "req-", "ownerReferences": [owner] },
        "spec": spec,
    });
    let made = deps.client.create(&kinds::POD_CERTIFICATE_REQUESTS.gvr(), namespace, &request).await;
    let made = made.map_err(|status| format!("while creating PodCertificateRequest: {status}"))?;
    let name = made.meta().name.clone();
    let abandon_at = later(later(deps.now(), FOUND_WITHIN), jitter(&name));
    Ok(Asks { name, key, abandon_at })
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(status: Value) -> Object {
        let whole = json!({ "apiVersion": "certificates.k8s.io/v1", "kind": "PodCertificateRequest",
            "metadata": { "name": "r", "namespace": "ns" }, "status": status });
        Object::parse(whole.to_string().into()).unwrap()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn asking() -> Certificate {
        let asks = Asks { name: "r".to_owned(), key: "KEY".to_owned(), abandon_at: at(600) };
        Certificate { asks: Some(asks), ..Certificate::default() }
    }

    #[test]
    fn every_kind_of_key_is_made_and_nothing_else_is_asked_for() {
        for kind in ["RSA3072", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"] {
            let (key, stub) = make_key(kind).unwrap();
            assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"), "{kind}");
            use x509_parser::prelude::FromDer as _;
            let (_, read) =
                x509_parser::certification_request::X509CertificationRequest::from_der(&stub).unwrap();
            assert_eq!(read.certification_request_info.subject.iter().count(), 0, "{kind}");
        }
        assert_eq!(make_key("DSA").unwrap_err(), "while generating keypair: unknown key type \"DSA\"");
    }

    #[test]
    fn what_became_of_a_request_is_read() {
        let told = |kind: &str| json!({ "conditions": [{ "type": kind, "reason": "R", "message": "m" }] });
        assert_eq!(outcome(&request(json!({}))), Ok(Outcome::Waits));
        let (reason, message) = ("R".to_owned(), "m".to_owned());
        assert_eq!(outcome(&request(told("Denied"))), Ok(Outcome::Denied { reason, message }));
        assert!(outcome(&request(told("Issued"))).is_err());
        let key = KeyPair::generate().unwrap();
        let pem = CertificateParams::default().self_signed(&key).unwrap().pem();
        let mut status = told("Issued");
        status["certificateChain"] = format!("words\n{pem}more\n{pem}").into();
        status["beginRefreshAt"] = at(0).to_string().into();
        status["notAfter"] = at(60).to_string().into();
        let Ok(Outcome::Issued { chain, renew_at, not_after }) = outcome(&request(status)) else { panic!() };
        assert_eq!((renew_at, not_after), (at(0), at(60)));
        let pem = pem.replace('\r', "");
        assert_eq!(chain, format!("{pem}{pem}"));
    }

    #[test]
    fn a_certificate_is_asked_for_again_in_its_time() {
        let mut certificate = asking();
        assert!(!certificate.wants(at(0)));
        assert_eq!(certificate.due(), Some(at(600)));
        // As long as it can be seen it is waited for, and nobody looks all the time.
        certificate.is_there(at(700));
        assert_eq!(certificate.due(), Some(at(1300)));
        certificate.failed(at(700));
        assert_eq!((certificate.due(), certificate.wants(at(700))), (Some(at(701)), false));
        assert!(certificate.wants(at(701)));
        let mut certificate = asking();
        let issued = Outcome::Issued { chain: "CHAIN".to_owned(), renew_at: at(1000), not_after: at(9000) };
        assert_eq!(certificate.take("ns/r", issued), None);
        let renew_at = later(at(1000), jitter("r"));
        assert!(renew_at < at(1300));
        assert_eq!(certificate.due(), Some(renew_at));
        assert!(!certificate.wants(at(999)) && certificate.wants(renew_at));
        assert_eq!(certificate.ages(renew_at), None);
        let overdue = later(renew_at, OVERDUE);
        assert_eq!(certificate.ages(overdue).unwrap().0, "CertificateOverdueForRefresh");
        assert_eq!(certificate.ages(overdue), None);
        assert_eq!(certificate.ages(at(9000)).unwrap().0, "CertificateExpired");
        assert_eq!(certificate.ages(at(9001)), None);
    }

    #[test]
    fn a_refusal_is_for_good() {
        let mut certificate = asking();
        let denied = Outcome::Denied { reason: "UnsupportedKeyType".to_owned(), message: "RSA".to_owned() };
        let (kind, told) = certificate.take("ns/r", denied).unwrap();
        assert_eq!(kind, "Denied");
        let words = "PodCertificateRequest ns/r was denied, reason=\"UnsupportedKeyType\", message=\"RSA\"";
        assert_eq!(told, words);
        let words =
            "PodCertificateRequest was permanently denied: reason=\"UnsupportedKeyType\" message=\"RSA\"";
        assert_eq!(certificate.refused.as_deref(), Some(words));
        assert!(!certificate.wants(at(1_000_000)) && certificate.due().is_none());
    }
}
