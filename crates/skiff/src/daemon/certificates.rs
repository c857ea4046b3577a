//! Certificates of nodes over the API: asked for by CertificateSigningRequests, renewed in the running process, and on
//! the other side the authority that signs them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use api::{Key, Object};
use apiserver::pki::{HotResolver, Identity, Issued, Pki, SigningRequest, read_request, signing_request};
use async_trait::async_trait;
use base::BoxError;
use base::clock::SharedClock;
use base::lifecycle::{Component, Context, OnFailure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use client::Client;
use reconcile::ports::{CertificateAuthority, CertificateSubject, CertificateUse};
use reconcile::{Informers, kinds};
use serde::Deserialize;
use serde_json::json;

use super::member_access::MemberAccess;
use crate::membership::{Certificate, Membership};

/// How long an answer is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// What a request is for: the signer and the usages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Purpose {
    signer: &'static str,
    usage: &'static str,
}

/// To authenticate as a node.
pub(crate) const CLIENT: Purpose =
    Purpose { signer: controllers::certificates::NODE_CLIENT, usage: "client auth" };
/// To serve as a node.
pub(crate) const SERVING: Purpose =
    Purpose { signer: controllers::certificates::NODE_SERVING, usage: "server auth" };

/// Makes a key, asks for a certificate and waits for the answer.
pub(crate) async fn obtain(
    client: &Client,
    informers: &Informers,
    identity: &Identity,
    purpose: Purpose,
) -> Result<Issued> {
    let SigningRequest { request_pem, key_pem } = signing_request(identity)?;
    let gvr = kinds::CERTIFICATE_SIGNING_REQUESTS.gvr();
    let request = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": { "generateName": "node-csr-" },
        "spec": {
            "request": STANDARD.encode(request_pem),
            "signerName": purpose.signer,
            "usages": ["digital signature", purpose.usage],
        },
    });
    let made = client.create(&gvr, "", &request).await?;
    let certificate = tokio::time::timeout(ANSWER_MAX, answer(informers, &made.key()))
        .await
        .map_err(|_| anyhow!("{} was not answered within {} s", made.key(), ANSWER_MAX.as_secs()))??;
    Ok(Issued::from_pem(certificate, key_pem)?)
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RequestView {
    status: StatusView,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StatusView {
    certificate: String,
    conditions: Vec<ConditionView>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ConditionView {
    r#type: String,
    message: String,
}

/// Follows a request until it is answered.
async fn answer(informers: &Informers, key: &Key) -> Result<String> {
    let informer = informers.object(kinds::CERTIFICATE_SIGNING_REQUESTS, key);
    let mut changes = informer.subscribe();
    loop {
        for object in changes.changed().await.into_iter().filter_map(|change| change.new) {
            if let Some(certificate) = certificate_of(&object)? {
                return Ok(certificate);
            }
        }
    }
}

/// The certificate of an answered request; `None` as long as there is no answer.
fn certificate_of(request: &Object) -> Result<Option<String>> {
    let view: RequestView = request.decode()?;
    let refusal = |kind: &str| view.status.conditions.iter().find(|condition| condition.r#type == kind);
    if let Some(refused) = refusal("Denied").or_else(|| refusal("Failed")) {
        bail!("the cluster refused: {}", refused.message);
    }
    if view.status.certificate.is_empty() {
        return Ok(None);
    }
    let pem = STANDARD.decode(&view.status.certificate).context("the certificate is not base64")?;
    Ok(Some(String::from_utf8(pem).context("the certificate is no PEM")?))
}

/// The certificates of a node that has joined: kept on disk, swapped in the process when they are renewed.
pub(crate) struct NodeCertificates {
    membership: Membership,
    /// Keeps what is renewed.
    access: Arc<MemberAccess>,
    client: Client,
    informers: Informers,
    clock: SharedClock,
    /// With which the node speaks to the API server.
    authenticating: Arc<HotResolver>,
    /// Which its server shows.
    serving: Arc<HotResolver>,
}

impl NodeCertificates {
    /// Takes the certificates from the membership, and asks for the serving one if there is none yet. `client` shows
    /// what `authenticating` holds.
    pub(crate) async fn open(
        (membership, access): (Membership, Arc<MemberAccess>),
        client: Client,
        informers: Informers,
        clock: SharedClock,
        authenticating: Arc<HotResolver>,
    ) -> Result<Self> {
        let serving = match membership.certificate(Certificate::Serving)? {
            Some(issued) => issued,
            None => {
                let issued = obtain(&client, &informers, &identity(&membership, SERVING), SERVING).await?;
                access.renewed(Certificate::Serving, &issued)?;
                issued
            }
        };
        let serving = Arc::new(HotResolver::new(&serving).context("use the node's certificate")?);
        Ok(Self { membership, access, client, informers, clock, authenticating, serving })
    }

    /// What the node's server shows.
    pub(crate) fn serving(&self) -> Arc<HotResolver> {
        self.serving.clone()
    }

    async fn renew_due(&self) -> Result<()> {
        let now = self.clock.now();
        for (which, purpose, resolver) in [
            (Certificate::Client, CLIENT, &self.authenticating),
            (Certificate::Serving, SERVING, &self.serving),
        ] {
            if resolver.renew_at() <= now {
                let identity = identity(&self.membership, purpose);
                let issued = obtain(&self.client, &self.informers, &identity, purpose).await?;
                self.access.renewed(which, &issued)?;
                resolver.swap(&issued)?;
            }
        }
        Ok(())
    }
}

/// Whom a node's certificate names: a serving one also as a DNS name, under which the API server connects.
fn identity(membership: &Membership, purpose: Purpose) -> Identity {
    let node = &membership.facts.node_name;
    let names = if purpose.signer == SERVING.signer { vec![node.clone()] } else { Vec::new() };
    Identity {
        user: format!("system:node:{node}"),
        groups: vec!["system:nodes".into()],
        names,
        ..Identity::default()
    }
}

#[async_trait]
impl Component for NodeCertificates {
    fn name(&self) -> &'static str {
        "node-certificates"
    }

    fn on_failure(&self) -> OnFailure {
        OnFailure::Restart
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        ctx.ready();
        loop {
            tokio::select! {
                () = ctx.cancelled() => return Ok(()),
                renewed = self.renew_due() => renewed?,
            }
            let next = self.authenticating.renew_at().min(self.serving.renew_at());
            tokio::select! {
                () = ctx.cancelled() => return Ok(()),
                () = self.clock.sleep_until(next) => {}
            }
        }
    }
}

/// The cluster's authority, as the controller that answers requests knows it.
pub(crate) struct Authority(pub(crate) Arc<Pki>);

impl CertificateAuthority for Authority {
    fn read(&self, request_pem: &str) -> Result<CertificateSubject, BoxError> {
        let asked = read_request(request_pem)?;
        let (user, groups, more) = (asked.user, asked.groups, asked.more);
        Ok(CertificateSubject { user, groups, names: asked.names, addresses: asked.addresses, more })
    }

    fn sign(
        &self,
        request_pem: &str,
        subject: &CertificateSubject,
        good_for: CertificateUse,
        life: Duration,
    ) -> Result<String, BoxError> {
        let addresses: Vec<IpAddr> = subject.addresses.clone();
        let identity = Identity {
            user: subject.user.clone(),
            groups: subject.groups.clone(),
            names: subject.names.clone(),
            addresses,
            client: good_for == CertificateUse::Client,
            server: good_for == CertificateUse::Server,
        };
        Ok(self.0.sign(request_pem, &identity, life)?)
    }
}
