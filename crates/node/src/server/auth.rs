//! Who may use the node's HTTPS server: the API server and admins by client certificate, others by what TokenReview and
//! SubjectAccessReview say of them. Answers are used again for a while, so that scrapes do not become as many reviews: as
//! long as upstream's defaults say, but for refused tokens, which are asked about again sooner. Sources: `pkg/kubelet/server/auth.go`, KEP-2862 (fine-grained rights), and the
//! defaults of `KubeletConfiguration`.

use std::collections::BTreeMap;
use std::time::Duration;

use api::{GroupVersionResource, Reason, Status};
use base::clock::SharedClock;
use client::Client;
use http::{HeaderMap, Method, header};
use rustls_pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::kept::Kept;
use super::route::Route;
use crate::pod::hash::of_parts;

/// Everything is allowed to them.
const MASTERS: &str = "system:masters";
/// Whoever has proved a name is one of them.
const AUTHENTICATED: &str = "system:authenticated";

/// `authentication.webhook.cacheTTL`.
pub(crate) const TOKEN_TTL: Duration = Duration::from_secs(120);
/// A token that was refused may become good: its ServiceAccount is made. Upstream keeps refusals as long as the others.
const REFUSED_TTL: Duration = Duration::from_secs(10);
/// `authorization.webhook.cacheAuthorizedTTL`.
pub(crate) const ALLOWED_TTL: Duration = Duration::from_secs(300);
/// `authorization.webhook.cacheUnauthorizedTTL`.
pub(crate) const DENIED_TTL: Duration = Duration::from_secs(30);
/// Answers of a kind that are kept; those about tokens that nobody vouches for have a place of their own, so that made-up
/// ones push no good one out.
const ANSWERS_MAX: usize = 1024;

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) groups: Vec<String>,
    pub(super) extra: BTreeMap<String, Vec<String>>,
}

/// The identity in a client certificate that the handshake has verified: common name and organizations.
pub(super) fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|entry| entry.as_str().ok().map(str::to_owned));
    let groups = groups.chain([AUTHENTICATED.to_owned()]).collect();
    Some(Identity { name, groups, ..Identity::default() })
}

#[derive(Deserialize)]
struct TokenReview {
    status: TokenStatus,
}

#[derive(Deserialize)]
struct TokenStatus {
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    user: TokenUser,
}

#[derive(Deserialize, Default)]
struct TokenUser {
    #[serde(default)]
    username: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct AccessReview {
    status: AccessStatus,
}

#[derive(Deserialize)]
struct AccessStatus {
    #[serde(default)]
    allowed: bool,
}

/// Whether an identity needs no review.
fn is_trusted(identity: &Identity, api_server: &str) -> bool {
    (!api_server.is_empty() && identity.name == api_server)
        || identity.groups.iter().any(|group| group == MASTERS)
}

/// The verb of the API that stands for a method. Source: upstream's `GetRequestAttributes`.
fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// Asks the API server who somebody is and what he may do.
pub(super) struct Guard {
    client: Client,
    clock: SharedClock,
    node: String,
    accepted: Kept<Identity>,
    refused: Kept<()>,
    decided: Kept<bool>,
}

impl Guard {
    pub(super) fn new(client: Client, clock: SharedClock, node: &str) -> Self {
        let (accepted, refused, decided) =
            (Kept::new(ANSWERS_MAX), Kept::new(ANSWERS_MAX), Kept::new(ANSWERS_MAX));
        Self { client, clock, node: node.to_owned(), accepted, refused, decided }
    }

    /// Establishes who asks: by certificate, else by bearer token.
    pub(super) async fn authenticate(
        &self,
        certificate: Option<Identity>,
        headers: &HeaderMap,
    ) -> Result<Identity, Status> {
        if let Some(identity) = certificate {
            return Ok(identity);
        }
        let unauthorized = || Status::new(Reason::Unauthorized, "Unauthorized");
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = value.and_then(|value| value.strip_prefix("Bearer ")).ok_or_else(unauthorized)?;
        // Only what a token is told apart by stays in memory.
        let (key, now) = (of_parts([token.as_bytes()]), self.clock.now());
        if let Some(identity) = self.accepted.get(&key, now) {
            return Ok(identity);
        }
        if self.refused.get(&key, now).is_some() {
            return Err(unauthorized());
        }
        // What the API server could not say now is asked again.
        let user = self.review_token(token).await.ok_or_else(unauthorized)?;
        let Some(TokenUser { username, uid, groups, extra }) = user else {
            self.refused.put(key, (), now, REFUSED_TTL);
            return Err(unauthorized());
        };
        let identity = Identity { name: username, uid, groups, extra };
        self.accepted.put(key, identity.clone(), now, TOKEN_TTL);
        Ok(identity)
    }

    /// Whose token it is, if anybody's; `None` where the API server does not answer.
    async fn review_token(&self, token: &str) -> Option<Option<TokenUser>> {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "metadata": {}, "spec": { "token": token },
        });
        let gvr = GroupVersionResource::new("authentication.k8s.io", "v1", "tokenreviews");
        let answer: TokenReview = self.review(&gvr, &review).await?;
        Some(answer.status.authenticated.then_some(answer.status.user))
    }

    /// What the API server says to a review; where it says nothing of use, that is told to whoever reads the log: the
    /// client hears only that it is refused.
    async fn review<T: DeserializeOwned>(&self, gvr: &GroupVersionResource, review: &Value) -> Option<T> {
        let kind = &gvr.resource;
        let answer = self.client.create(gvr, "", review).await;
        let answer = answer.inspect_err(|error| tracing::warn!(kind, %error, "a review failed")).ok()?;
        answer.decode().inspect_err(|error| tracing::warn!(kind, %error, "a review is not readable")).ok()
    }

    /// Refuses who may not use the node's server in this way. Of the rights that a route can be used with, one is enough.
    pub(super) async fn authorize(
        &self,
        api_server: &str,
        identity: &Identity,
        method: &Method,
        route: &Route,
    ) -> Result<(), Status> {
        if is_trusted(identity, api_server) {
            return Ok(());
        }
        if *route == Route::ApiServer {
            // No right that can be given away covers this.
            return Err(Status::new(Reason::Forbidden, "only the API server says where it is"));
        }
        let (verb, subresources, name) = (verb(method), route.subresources(), &identity.name);
        for subresource in subresources {
            match self.allows(identity, verb, subresource).await {
                Some(true) => return Ok(()),
                Some(false) => {}
                None => {
                    let text = format!(
                        "Authorization error (user={name}, verb={verb}, resource=nodes, subresource={subresource})"
                    );
                    return Err(Status::internal(text));
                }
            }
        }
        let subresources = subresources.join(" ");
        let text =
            format!("Forbidden (user={name}, verb={verb}, resource=nodes, subresource(s)=[{subresources}])");
        Err(Status::new(Reason::Forbidden, text))
    }

    /// Whether somebody has a right on this node; `None` where the API server does not answer.
    async fn allows(&self, identity: &Identity, verb: &str, subresource: &str) -> Option<bool> {
        let who = serde_json::to_vec(identity).ok()?;
        let (key, now) = (of_parts([&*who, verb.as_bytes(), subresource.as_bytes()]), self.clock.now());
        if let Some(allowed) = self.decided.get(&key, now) {
            return Some(allowed);
        }
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
            "spec": {
                "user": identity.name, "uid": identity.uid, "groups": identity.groups, "extra": identity.extra,
                "resourceAttributes": {
                    "verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource,
                    "name": self.node,
                },
            },
        });
        let gvr = GroupVersionResource::new("authorization.k8s.io", "v1", "subjectaccessreviews");
        let answer: AccessReview = self.review(&gvr, &review).await?;
        let allowed = answer.status.allowed;
        self.decided.put(key, allowed, now, if allowed { ALLOWED_TTL } else { DENIED_TTL });
        Some(allowed)
    }
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
