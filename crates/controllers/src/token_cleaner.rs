//! Removes bootstrap tokens whose time is over. Source: `k8s.io/kubernetes/pkg/controller/bootstrap`, token cleaner.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, Object};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use reconcile::{Action, Informer, Queue, Reconcile, kinds};
use serde::Deserialize;

use crate::claim::ignore_gone;
use crate::context::{Ctx, decode, work};

const NAME: &str = "token-cleaner-controller";
const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const EXPIRATION: &str = "expiration";

/// The controller.
pub struct TokenCleaner {
    ctx: Ctx,
}

impl TokenCleaner {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for TokenCleaner {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let secrets = self.ctx.informers.get(kinds::SECRETS);
        let queue: Queue<Key> = self.ctx.queue("token_cleaner");
        let listener = queue.clone();
        let _registration = secrets.on_change(move |change| {
            if change.key.namespace == NAMESPACE && change.new.is_some() {
                listener.add(change.key.clone());
            }
        });
        let worker = Arc::new(Worker { ctx: self.ctx.clone(), secrets });
        work(&ctx, NAME, &[&worker.secrets], &queue, 1, &worker).await
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Secret {
    r#type: String,
    data: BTreeMap<String, String>,
}

/// When a token ends; `None` if it is none, or lasts for ever. One whose end cannot be read is refused by the server and
/// has ended, as upstream has it.
fn ends_at(secret: &Secret) -> Option<Timestamp> {
    let encoded = secret.data.get(EXPIRATION).filter(|_| secret.r#type == TYPE)?;
    let text = STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match text.as_deref() {
        Some("") => None,
        text => Some(text.and_then(|text| text.parse().ok()).unwrap_or(Timestamp::MIN)),
    }
}

struct Worker {
    ctx: Ctx,
    secrets: Informer,
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object): Option<Arc<Object>> = self.secrets.get(key) else { return Ok(Action::Done) };
        let Some(end) = ends_at(&decode(&object)?) else { return Ok(Action::Done) };
        let left = Duration::try_from(end.duration_since(self.ctx.clock.now())).unwrap_or_default();
        if !left.is_zero() {
            return Ok(Action::After(left));
        }
        let options = DeleteOptions {
            precondition_uid: Some(object.meta().uid.clone()),
            precondition_resource_version: Some(object.revision().to_string()),
            ..DeleteOptions::default()
        };
        ignore_gone(self.ctx.client.delete(&kinds::SECRETS.gvr(), key, options).await)?;
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tokens_end_and_only_when_they_say_so() {
        let secret = |kind: &str, expiration: Option<&str>| Secret {
            r#type: kind.into(),
            data: expiration.map(|text| (EXPIRATION.to_owned(), STANDARD.encode(text))).into_iter().collect(),
        };
        let end: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(ends_at(&secret(TYPE, Some("2026-01-01T00:00:00Z"))), Some(end));
        assert_eq!(ends_at(&secret(TYPE, Some("soon"))), Some(Timestamp::MIN));
        assert_eq!(ends_at(&secret(TYPE, None)), None);
        assert_eq!(ends_at(&secret("Opaque", Some("2026-01-01T00:00:00Z"))), None);
    }
}
