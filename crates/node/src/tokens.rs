//! Tokens of ServiceAccounts, bound to the pod that uses them, renewed while it runs. Source: KEP-1205, TokenRequest.

use std::collections::HashMap;
use std::time::Duration;

use api::{Key, Status};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ServiceAccountTokenProjection;
use reconcile::kinds;
use serde::Deserialize;

use crate::certificates::Certificates;
use crate::deps::Deps;
use crate::pod::PodView;
use crate::sources::{TokenKey, token_key};

/// No token is used for longer without renewal.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// What is asked for to be used at once is good for so long, as upstream has it where nothing is said.
const ONCE_SECONDS: i64 = 3600;
/// A renewal that failed is tried again after this.
const RETRY: Duration = Duration::from_secs(30);

/// Volumes whose driver asks for it are published again after this. Source: upstream's `syncFrequency`.
const REPUBLISH: Duration = Duration::from_secs(60);

/// What one pod has to show who it is: tokens, and certificates.
#[derive(Default)]
pub(crate) struct Tokens {
    held: HashMap<TokenKey, Token>,
    /// When drivers of the pod's volumes are to be asked again.
    republish_at: Option<Timestamp>,
    pub(crate) certificates: Certificates,
}

struct Token {
    // Secret: never logged.
    text: Vec<u8>,
    expires_at: Timestamp,
    renew_at: Timestamp,
}

#[derive(Deserialize)]
struct Answer {
    status: AnswerStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnswerStatus {
    token: String,
    expiration_timestamp: Timestamp,
}

impl Tokens {
    /// When the next token or certificate has to be renewed, or volumes are to be published again.
    pub(crate) fn renew_at(&self) -> Option<Timestamp> {
        let certificate = self.certificates.due();
        self.held.values().map(|token| token.renew_at).chain(self.republish_at).chain(certificate).min()
    }

    /// Has volumes published again after a while, if a driver of the pod asks for that.
    pub(crate) fn republish(&mut self, asked: bool, now: Timestamp) {
        self.republish_at = asked.then(|| now.saturating_add(REPUBLISH).unwrap_or(Timestamp::MAX));
    }

    /// Gets every token that the projections need and that is missing or due. A renewal that fails while the old token
    /// is still good is no error. One that failed is due again after [`RETRY`], also where the old token has expired.
    pub(crate) async fn ensure(
        &mut self,
        deps: &Deps,
        pod: &PodView,
        projections: &[ServiceAccountTokenProjection],
    ) -> Result<HashMap<TokenKey, Vec<u8>>, Status> {
        for projection in projections {
            let key = token_key(projection);
            let now = deps.now();
            if self.held.get(&key).is_some_and(|token| now < token.renew_at) {
                continue;
            }
            match request(deps, pod, &key).await {
                Ok(token) => {
                    self.held.insert(key, token);
                }
                Err(status) => {
                    let Some(token) = self.held.get_mut(&key) else { return Err(status) };
                    token.renew_at = now.saturating_add(RETRY).unwrap_or(Timestamp::MAX);
                    if now >= token.expires_at {
                        return Err(status);
                    }
                    tracing::warn!(pod = %pod.key(), error = %status, "token not renewed, trying again");
                }
            }
        }
        Ok(self.held.iter().map(|(key, token)| (key.clone(), token.text.clone())).collect())
    }
}

/// A token for a driver of the pod's volumes, and when it expires.
pub(crate) async fn for_driver(
    deps: &Deps,
    pod: &PodView,
    audience: &str,
    seconds: i64,
) -> Result<(String, String), Status> {
    let token = request(deps, pod, &(audience.to_owned(), seconds)).await?;
    let text = String::from_utf8(token.text).map_err(|_| Status::internal("the token is no text"))?;
    Ok((text, reconcile::time::seconds(token.expires_at)))
}

/// A token that nobody renews, for one audience; secret.
pub(crate) async fn once(deps: &Deps, pod: &PodView, audience: &str) -> Result<String, Status> {
    let token = request(deps, pod, &(audience.to_owned(), ONCE_SECONDS)).await?;
    String::from_utf8(token.text).map_err(|_| Status::internal("the API server's answer holds no token"))
}

async fn request(deps: &Deps, pod: &PodView, key: &TokenKey) -> Result<Token, Status> {
    let account = pod.spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned());
    let (audience, seconds) = key;
    let audiences: Vec<&String> =
        Some(audience).filter(|audience| !audience.is_empty()).into_iter().collect();
    let body = serde_json::json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "metadata": { "name": account, "namespace": pod.metadata.namespace },
        "spec": {
            "audiences": audiences, "expirationSeconds": seconds,
            "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid,
            },
        },
    });
    let asked_at = deps.now();
    let service_account = Key::new(pod.metadata.namespace.clone(), account);
    let object = deps
        .client
        .create_subresource(&kinds::SERVICE_ACCOUNTS.gvr(), &service_account, "token", &body)
        .await?;
    // Never the decoder's own message: it may quote the token.
    let answer: Answer =
        object.decode().map_err(|_| Status::internal("the API server's answer holds no token"))?;
    let expires_at = answer.status.expiration_timestamp;
    let lifetime = Duration::try_from(expires_at.duration_since(asked_at)).unwrap_or_default();
    let renew_at = asked_at.saturating_add((lifetime * 4 / 5).min(MAX_AGE)).unwrap_or(expires_at);
    Ok(Token { text: answer.status.token.into_bytes(), expires_at, renew_at })
}
