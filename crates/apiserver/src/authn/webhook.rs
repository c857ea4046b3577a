//! Tokens that a webhook knows: it is asked by TokenReview. Source: `apiserver/plugin/pkg/authenticator/token/webhook`.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use base::clock::SharedClock;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Identity, TokenAuthenticator, user_from_json};
use crate::expiring::Expiring;
use crate::remote::{FileError, Service};
use crate::tree;

/// How long an answer is believed. Source: upstream's `--authentication-token-webhook-cache-ttl`.
const BELIEVED: Duration = Duration::from_secs(120);
/// So many answers are kept at most.
const ANSWERS_MAX: usize = 4096;

/// What identifies a question: a digest, so that no token is kept.
type Question = [u8; 32];

/// The authenticator.
pub(super) struct TokenWebhook {
    service: Service,
    /// The API server's own audience.
    own: String,
    answers: Expiring<Question, Option<Identity>>,
}

impl TokenWebhook {
    /// A webhook that a file in kubeconfig format names.
    pub(super) fn new(config: &Path, own: &str, clock: SharedClock) -> Result<Self, FileError> {
        let service = Service::from_kubeconfig(config)?;
        Ok(Self { service, own: own.to_owned(), answers: Expiring::new(clock, ANSWERS_MAX) })
    }
}

#[async_trait]
impl TokenAuthenticator for TokenWebhook {
    async fn authenticate(&self, token: &str, audiences: &[String]) -> Result<Option<Identity>, String> {
        let question = question(token, audiences);
        if let Some(answer) = self.answers.get(&question) {
            return Ok(answer);
        }
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": { "creationTimestamp": null },
            "spec": { "token": token, "audiences": audiences },
        });
        let answer = self.service.ask(&review).await.map_err(|error| error.to_string())?;
        let identity = identity(&answer, audiences, &self.own)?;
        self.answers.put(question, identity.clone(), BELIEVED);
        Ok(identity)
    }
}

fn question(token: &str, audiences: &[String]) -> Question {
    let mut digest = Sha256::new();
    for part in std::iter::once(token).chain(audiences.iter().map(String::as_str)) {
        digest.update(part.len().to_le_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

/// What a webhook's answer says: who it is, nobody, or why it cannot tell. Pure.
fn identity(answer: &Value, audiences: &[String], own: &str) -> Result<Option<Identity>, String> {
    let status = tree::at(answer, &["status"]);
    if tree::at(status, &["authenticated"]).as_bool() != Some(true) {
        let error = tree::text(status, &["error"]);
        return if error.is_empty() { Ok(None) } else { Err(error.to_owned()) };
    }
    let user = user_from_json(tree::at(status, &["user"]));
    let said: Vec<String> = super::texts(tree::at(status, &["audiences"]));
    // A webhook that knows no audiences vouches for the API server's own only.
    let holds = |audience: &&String| if said.is_empty() { *audience == own } else { said.contains(audience) };
    let held: Vec<String> = audiences.iter().filter(holds).cloned().collect();
    if held.is_empty() || user.name.is_empty() {
        return Ok(None);
    }
    Ok(Some(Identity { user: super::foreign(user), audiences: held }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_who_it_is_and_for_whom() {
        let audiences = ["a".to_owned(), "b".to_owned()];
        let answer = |status: Value| identity(&json!({ "status": status }), &audiences, "a");
        let user = json!({ "username": "jane", "uid": "7", "groups": ["staff"], "extra": { "k": ["v"] } });
        let known = json!({ "authenticated": true, "user": user, "audiences": ["b", "c"] });
        let found = answer(known).unwrap().unwrap();
        assert_eq!((found.user.name.as_str(), found.user.uid.as_str()), ("jane", "7"));
        assert_eq!(found.user.groups, ["staff", "system:authenticated"]);
        assert_eq!(
            (found.user.extra, found.audiences),
            (vec![("k".into(), vec!["v".into()])], vec!["b".to_owned()])
        );
        let plain = answer(json!({ "authenticated": true, "user": user })).unwrap().unwrap();
        assert_eq!(plain.audiences, ["a"]);
        let others = json!({ "authenticated": true, "user": user, "audiences": ["c"] });
        assert_eq!(answer(others), Ok(None));
        assert_eq!(answer(json!({ "authenticated": false })), Ok(None));
        assert_eq!(answer(json!({ "error": "down" })), Err("down".to_owned()));
    }

    #[test]
    fn questions_differ_by_token_and_audiences() {
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let all = [
            ("t", list(&[])),
            ("t", list(&["a"])),
            ("ta", list(&[])),
            ("t", list(&["a", "b"])),
            ("t", list(&["ab"])),
        ];
        let digests: std::collections::HashSet<_> =
            all.iter().map(|(token, list)| question(token, list)).collect();
        assert_eq!(digests.len(), all.len());
    }
}
