//! Service account tokens that lie in Secrets: they hold as long as Secret and account are there, and the Secret holds them.
//! Source: `k8s.io/kubernetes/pkg/serviceaccount/legacy.go`.

use std::future::ready;

use api::connect::User;
use api::{Call, GroupVersionResource, Object, PatchType, Request, Status, WriteOptions};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};

use super::Pipeline;
use crate::admission::{World, decoded};
use crate::authn;
use crate::authn::token::SecretClaims;
use crate::bootstrap::administrator;
use crate::tree;

/// On which day a token was used last. Source: `serviceaccount.LastUsedLabelKey`.
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
/// Since when a token holds no more, because nobody used it. Source: `serviceaccount.InvalidSinceLabelKey`.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Under which name the day is written.
const MANAGER: &str = "kube-apiserver";

impl Pipeline {
    /// The service account of a token that lies in a Secret. Source: `legacyValidator.Validate`.
    pub(super) async fn account_of_secret(&self, token: &str) -> Result<Option<User>, Status> {
        let Some(claims) = self.parts.tokens.verify_of_secret(token) else { return Ok(None) };
        let namespace = claims.namespace.as_str();
        let Some(secret) = self.find("", "secrets", namespace, &claims.secret).await? else {
            return Ok(None);
        };
        let account = self.find("", "serviceaccounts", namespace, &claims.account).await?;
        let Some(account) = account.filter(|account| is_of(&claims, account)) else { return Ok(None) };
        if !holds(&secret, &decoded(&secret)?, token) {
            return Ok(None);
        }
        self.note_use(&secret).await;
        Ok(Some(authn::service_account(namespace, &claims.account, &account.meta().uid)))
    }

    /// Notes the day on the Secret, once a day. Where that fails, who asks is let in all the same. (Tokens are looked at by
    /// requests, too, TokenReview: the types of both would hold each other.)
    fn note_use<'a>(&'a self, secret: &'a Object) -> BoxFuture<'a, ()> {
        let (meta, now) = (secret.meta(), self.parts.clock.now());
        if meta.labels.get(LAST_USED).is_some_and(|day| is_recent(day, now)) {
            return ready(()).boxed();
        }
        let patch = json!({ "metadata": { "uid": meta.uid, "labels": { LAST_USED: day(now) } } });
        let request = Request {
            resource: GroupVersionResource::new("", "v1", "secrets"),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            subresource: String::new(),
            call: Call::Patch {
                kind: PatchType::Merge,
                body: patch.to_string().into(),
                options: WriteOptions { field_manager: MANAGER.into(), ..WriteOptions::default() },
            },
        };
        let write = async move {
            if let Err(error) = self.call(&administrator(), request).await {
                tracing::debug!(secret = %secret.key(), %error, "the use of a token is not noted");
            }
        };
        write.boxed()
    }
}

/// Whether an account is the one that is meant, and stays.
fn is_of(claims: &SecretClaims, account: &Object) -> bool {
    account.meta().uid == claims.uid && !account.meta().is_terminating()
}

/// Whether a Secret holds this very token, and still vouches for it.
fn holds(secret: &Object, tree: &Value, token: &str) -> bool {
    let meta = secret.meta();
    let is_valid = meta.labels.get(INVALID_SINCE).is_none_or(String::is_empty);
    is_valid && !meta.is_terminating() && tree::text(tree, &["data", "token"]) == STANDARD.encode(token)
}

fn day(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).date().to_string()
}

/// Whether a day is today, or tomorrow by the clock of another server.
fn is_recent(noted: &str, now: Timestamp) -> bool {
    let today = now.to_zoned(TimeZone::UTC).date();
    noted == today.to_string() || today.checked_add(1.day()).is_ok_and(|next| noted == next.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_vouches_for_the_token_that_it_holds() {
        let secret = |labels: Value, gone: Option<&str>, held: &str| {
            let tree = json!({ "metadata": { "name": "s", "labels": labels, "deletionTimestamp": gone },
                "data": { "token": STANDARD.encode(held) } });
            let object = Object::parse(tree.to_string().into()).unwrap();
            holds(&object, &tree, "t")
        };
        assert!(secret(json!({}), None, "t") && secret(json!({ INVALID_SINCE: "" }), None, "t"));
        assert!(!secret(json!({}), None, "other") && !secret(json!({}), None, ""));
        assert!(!secret(json!({}), Some("2026-01-01T00:00:00Z"), "t"));
        assert!(!secret(json!({ INVALID_SINCE: "2026-01-01" }), None, "t"));
    }

    #[test]
    fn a_use_is_noted_once_a_day() {
        let now: Timestamp = "2026-12-31T23:59:00Z".parse().unwrap();
        assert_eq!(day(now), "2026-12-31");
        assert!(is_recent("2026-12-31", now) && is_recent("2027-01-01", now));
        assert!(!is_recent("2026-12-30", now) && !is_recent("soon", now));
    }
}
