//! Tokens in Secrets that were made for every account once, and that nobody has used for a year: first they hold no more,
//! and a year later they go. Since when the use of tokens is noted stands in a ConfigMap.
//! Source: `k8s.io/kubernetes/pkg/controller/serviceaccount`, `LegacySATokenCleaner`, and
//! `pkg/controlplane/controller/legacytokentracking`.

use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, Object, PatchType, Reason};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use reconcile::{Action, Informer, Queue, Reconcile, kinds};
use serde_json::{Value, json};

use crate::claim::{ignore_gone, ignore_missing};
use crate::context::{Ctx, decode, work};
use crate::service_account_tokens::Secret;

const NAME: &str = "legacy-serviceaccount-token-cleaner-controller";
/// A timer. Source: `syncInterval`.
const PAUSE: Duration = Duration::from_secs(86_400);
/// So many days a token may go unused. Source: `--legacy-service-account-token-clean-up-period`.
const UNUSED_DAYS: i64 = 365;
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
const SINCE: &str = "since";

fn tracking() -> Key {
    Key::new("kube-system", "kube-apiserver-legacy-service-account-token-tracking")
}

/// The controller.
pub struct LegacyTokens {
    ctx: Ctx,
}

impl LegacyTokens {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

struct Worker {
    ctx: Ctx,
    maps: Informer,
    secrets: Informer,
    accounts: Informer,
    pods: Informer,
}

#[async_trait]
impl Component for LegacyTokens {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker {
            ctx: self.ctx.clone(),
            maps: self.ctx.informers.get(kinds::CONFIG_MAPS),
            secrets: self.ctx.informers.get(kinds::SECRETS),
            accounts: self.ctx.informers.get(kinds::SERVICE_ACCOUNTS),
            pods: self.ctx.informers.get(kinds::PODS),
        });
        let queue: Queue<()> = self.ctx.queue("legacy_service_account_token_tracking");
        let keys = queue.clone();
        let _registration = worker.maps.on_change(move |change| {
            if change.key == tracking() {
                keys.add(());
            }
        });
        queue.add(());
        let caches = [&worker.maps, &worker.secrets, &worker.accounts, &worker.pods];
        work(&ctx, NAME, &caches, &queue, 1, &worker).await
    }
}

/// What becomes of a token.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Keep,
    /// It is marked, and holds no more.
    Invalidate,
    Remove,
}

fn today(now: Timestamp) -> Date {
    now.to_zoned(TimeZone::UTC).date()
}

/// The first day on which tokens may be judged by their use, and the day before which an unused one was used last.
fn horizon(tracked_since: Option<Date>, now: Timestamp) -> Option<Date> {
    let today = today(now);
    // On the first day only a part was noted.
    let judged = tracked_since?.checked_add((UNUSED_DAYS + 1).days()).ok()?;
    if judged > today {
        return None;
    }
    today.checked_sub(UNUSED_DAYS.days()).ok()
}

/// Decides by what a Secret says; whether it is one that was made for its account, and that no pod mounts, is asked of
/// `is_idle` last. Pure. Source: `evaluateSATokens`.
fn plan(secret: &Secret, horizon: Date, is_idle: impl FnOnce() -> bool) -> Plan {
    let meta = &secret.metadata;
    let is_new = meta.creation_timestamp.is_none_or(|made| today(made) >= horizon);
    if is_new || meta.is_terminating() {
        return Plan::Keep;
    }
    // One without a day was not used since days are noted; one whose day cannot be read stays.
    let is_used = |day: &String| day.parse::<Date>().map_or(true, |day| day >= horizon);
    if meta.labels.get(LAST_USED).is_some_and(is_used) {
        return Plan::Keep;
    }
    if !is_idle() {
        return Plan::Keep;
    }
    match meta.labels.get(INVALID_SINCE).and_then(|day| day.parse::<Date>().ok()) {
        None => Plan::Invalidate,
        Some(since) if since >= horizon => Plan::Keep,
        Some(_) => Plan::Remove,
    }
}

/// Whether a text stands anywhere in a tree: whoever names a Secret does so by its name.
fn mentions(tree: &Value, name: &str) -> bool {
    match tree {
        Value::String(text) => text == name,
        Value::Array(items) => items.iter().any(|item| mentions(item, name)),
        Value::Object(fields) => fields.values().any(|field| mentions(field, name)),
        _ => false,
    }
}

#[async_trait]
impl Reconcile<()> for Worker {
    async fn reconcile(&self, (): &()) -> Result<Action, BoxError> {
        let now = self.ctx.clock.now();
        let since = self.tracked_since(now).await?;
        if let Some(horizon) = horizon(since, now) {
            for object in self.secrets.list() {
                let Some(secret) = Secret::of_token(&object) else { continue };
                match plan(&secret, horizon, || self.is_idle(&secret)) {
                    Plan::Keep => {}
                    Plan::Invalidate => self.invalidate(&object, now).await?,
                    Plan::Remove => self.remove(&object).await?,
                }
            }
        }
        Ok(Action::After(PAUSE))
    }
}

impl Worker {
    /// Since when the use of tokens is noted; written down where it is not.
    async fn tracked_since(&self, now: Timestamp) -> Result<Option<Date>, BoxError> {
        let (resource, key) = (self.maps.resource(), tracking());
        let map = kinds::CONFIG_MAPS;
        let data = json!({ SINCE: today(now).to_string() });
        let Some(held) = self.maps.get(&key) else {
            let body = json!({
                "apiVersion": map.api_version(), "kind": map.kind, "metadata": { "name": key.name }, "data": data,
            });
            return match self.ctx.client.create(resource, &key.namespace, &body).await {
                Ok(_) => Ok(None),
                // Its change brings this back.
                Err(status) if status.reason == Reason::AlreadyExists => Ok(None),
                Err(status) => Err(status.into()),
            };
        };
        let said = decode::<Value>(&held)?["data"][SINCE].as_str().and_then(|day| day.parse().ok());
        if said.is_none() {
            let meta = json!({ "resourceVersion": held.meta().resource_version });
            let patch = json!({ "metadata": meta, "data": data });
            ignore_missing(self.ctx.client.patch(resource, &key, "", PatchType::Merge, &patch).await)?;
        }
        Ok(said)
    }

    /// Whether a Secret is one that was made for its account, which names it, and no pod uses it.
    fn is_idle(&self, secret: &Secret) -> bool {
        let meta = &secret.metadata;
        let made_for = |object: Arc<Object>, uid: Option<&str>| {
            let references = decode::<Value>(&object).map(|account| account["secrets"].clone());
            let names_it = |held: &Value| {
                held.as_array().is_some_and(|all| all.iter().any(|one| one["name"] == *meta.name))
            };
            uid.is_none_or(|uid| object.meta().uid == uid) && references.is_ok_and(|held| names_it(&held))
        };
        let Some((key, uid)) = secret.account() else { return false };
        let uses =
            |pod: &Arc<Object>| decode::<Value>(pod).map_or(true, |pod| mentions(&pod["spec"], &meta.name));
        self.accounts.get(&key).is_some_and(|account| made_for(account, uid))
            && !self.pods.in_namespace(&meta.namespace).iter().any(uses)
    }

    async fn invalidate(&self, secret: &Object, now: Timestamp) -> Result<(), BoxError> {
        let (meta, key) = (secret.meta(), secret.key());
        tracing::info!(secret = %key, "a token that nobody has used for a year holds no more");
        let labels = json!({ INVALID_SINCE: today(now).to_string() });
        let seen = json!({ "uid": meta.uid, "resourceVersion": meta.resource_version, "labels": labels });
        let patch = json!({ "metadata": seen });
        let (resource, kind) = (self.secrets.resource(), PatchType::Merge);
        ignore_missing(self.ctx.client.patch(resource, &key, "", kind, &patch).await)?;
        Ok(())
    }

    async fn remove(&self, secret: &Object) -> Result<(), BoxError> {
        tracing::info!(secret = %secret.key(), "a token that has not held for a year goes");
        let options = DeleteOptions {
            precondition_resource_version: Some(secret.meta().resource_version.clone()),
            ..DeleteOptions::default()
        };
        ignore_gone(self.ctx.client.delete(self.secrets.resource(), &secret.key(), options).await)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(text: &str) -> Date {
        text.parse().unwrap()
    }

    #[test]
    fn tokens_are_judged_when_their_use_was_noted_for_a_year() {
        let now: Timestamp = "2027-01-02T10:00:00Z".parse().unwrap();
        assert_eq!(horizon(Some(date("2026-01-01")), now), Some(date("2026-01-02")));
        assert_eq!(horizon(Some(date("2026-01-02")), now), None);
        assert_eq!(horizon(None, now), None);
    }

    #[test]
    fn what_nobody_used_for_a_year_holds_no_more_and_goes_a_year_later() {
        let judged = |made: &str, labels: Value, idle: bool| {
            let secret: Secret = serde_json::from_value(json!({
                "metadata": { "name": "s", "creationTimestamp": format!("{made}T00:00:00Z"), "labels": labels },
            }))
            .unwrap();
            plan(&secret, date("2026-01-02"), || idle)
        };
        assert_eq!(judged("2025-01-01", json!({}), true), Plan::Invalidate);
        assert_eq!(judged("2025-01-01", json!({}), false), Plan::Keep);
        assert_eq!(judged("2026-01-02", json!({}), true), Plan::Keep);
        assert_eq!(judged("2025-01-01", json!({ LAST_USED: "2026-01-01" }), true), Plan::Invalidate);
        for recent in ["2026-01-02", "soon"] {
            assert_eq!(judged("2025-01-01", json!({ LAST_USED: recent }), true), Plan::Keep, "{recent}");
        }
        assert_eq!(judged("2025-01-01", json!({ INVALID_SINCE: "2026-06-01" }), true), Plan::Keep);
        assert_eq!(judged("2025-01-01", json!({ INVALID_SINCE: "2026-01-01" }), true), Plan::Remove);
    }

    #[test]
    fn a_pod_names_the_secrets_that_it_uses() {
        let spec =
            json!({ "volumes": [{ "secret": { "secretName": "s" } }], "containers": [{ "name": "c" }] });
        assert!(mentions(&spec, "s") && !mentions(&spec, "t"));
    }
}
