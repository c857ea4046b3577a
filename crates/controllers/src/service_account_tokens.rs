//! Secrets of the type `kubernetes.io/service-account-token`: each gets the token of the account that it names, the
//! authority and the namespace, and goes with the account. Source: `k8s.io/kubernetes/pkg/controller/serviceaccount`,
//! `TokensController`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{DeleteOptions, Key, Object, ObjectMeta, PatchType, Reason};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::join;
use reconcile::ports::SecretTokens;
use reconcile::{Action, Change, Informer, Queue, Reconcile, Registration, kinds, run_workers};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::claim::{ignore_gone, ignore_missing};
use crate::context::{Ctx, decode, ready};

const NAME: &str = "serviceaccount-token-controller";
/// Source: `--concurrent-serviceaccount-token-syncs`.
const WORKERS: usize = 5;
const TYPE: &str = "kubernetes.io/service-account-token";
/// The account of a token, by name and uid. Source: `v1.ServiceAccountNameKey`, `v1.ServiceAccountUIDKey`.
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// The controller.
pub struct ServiceAccountTokens {
    ctx: Ctx,
    tokens: Arc<dyn SecretTokens>,
}

impl ServiceAccountTokens {
    /// A controller over these handles, for which `tokens` signs.
    pub fn new(ctx: &Ctx, tokens: Arc<dyn SecretTokens>) -> Self {
        Self { ctx: ctx.named(NAME), tokens }
    }
}

/// The fields of a Secret that count.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Secret {
    /// Metadata.
    pub(crate) metadata: ObjectMeta,
    /// Its type.
    pub(crate) r#type: String,
    data: BTreeMap<String, String>,
}

impl Secret {
    /// Reads a Secret that holds a token. Most are others, and some are large: a glance at the bytes tells.
    pub(crate) fn of_token(object: &Object) -> Option<Self> {
        let text = std::str::from_utf8(object.bytes()).ok().filter(|text| text.contains(TYPE))?;
        serde_json::from_str::<Self>(text).ok().filter(|secret| secret.r#type == TYPE)
    }

    /// The account that it names: its key, and its uid unless any will do.
    pub(crate) fn account(&self) -> Option<(Key, Option<&str>)> {
        let said = |name: &str| self.metadata.annotations.get(name).filter(|text| !text.is_empty());
        let key = Key::new(self.metadata.namespace.as_str(), said(ACCOUNT)?.as_str());
        Some((key, said(ACCOUNT_UID).map(String::as_str)))
    }
}

/// What has to be brought in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Subject {
    /// A Secret with a token.
    Token(Key),
    /// An account that may name a Secret that is gone.
    Reference { account: Key, secret: String },
    /// The tokens of an account that is gone, or another one now.
    Account(Key),
}

/// What a Secret lacks; nothing if it is as it should be. `token` signs one. Pure but for that. Source:
/// `generateTokenIfNeeded`.
fn lacking(
    secret: &Secret,
    root_ca_pem: &str,
    token: impl FnOnce() -> Result<String, BoxError>,
) -> Result<Option<Value>, BoxError> {
    let mut data = BTreeMap::new();
    let held = |name: &str| secret.data.get(name).map_or("", String::as_str);
    let ca = STANDARD.encode(root_ca_pem);
    if !ca.is_empty() && held("ca.crt") != ca {
        data.insert("ca.crt", ca);
    }
    if held("namespace").is_empty() {
        data.insert("namespace", STANDARD.encode(&secret.metadata.namespace));
    }
    if held("token").is_empty() {
        data.insert("token", STANDARD.encode(token()?));
    }
    Ok((!data.is_empty()).then(|| json!(data)))
}

/// The references of an account to others than a Secret; nothing if it has none to that.
fn without(account: &Value, secret: &str) -> Option<Vec<Value>> {
    let held = account["secrets"].as_array()?;
    let left: Vec<Value> = held.iter().filter(|one| one["name"] != secret).cloned().collect();
    (left.len() != held.len()).then_some(left)
}

struct Worker {
    ctx: Ctx,
    tokens: Arc<dyn SecretTokens>,
    secrets: Informer,
    accounts: Informer,
    /// Of Secrets, and of accounts.
    queues: [Queue<Subject>; 2],
}

#[async_trait]
impl Component for ServiceAccountTokens {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker {
            ctx: self.ctx.clone(),
            tokens: self.tokens.clone(),
            secrets: self.ctx.informers.get(kinds::SECRETS),
            accounts: self.ctx.informers.get(kinds::SERVICE_ACCOUNTS),
            queues: ["serviceaccount_tokens_secret", "serviceaccount_tokens_service"]
                .map(|name| self.ctx.queue(name)),
        });
        let _registrations = worker.listen();
        if !ready(&ctx, &[&worker.secrets, &worker.accounts]).await {
            return Ok(());
        }
        let mut renewals = self.ctx.root_ca_pem.clone();
        let renewed = worker.clone();
        ctx.spawn(async move {
            while renewals.changed().await.is_ok() {
                renewed.secrets.list().iter().for_each(|secret| renewed.look_at(secret));
            }
        });
        let work = |queue| run_workers(&ctx, NAME, queue, WORKERS, worker.clone());
        join(work(&worker.queues[0]), work(&worker.queues[1])).await;
        Ok(())
    }
}

impl Worker {
    fn listen(self: &Arc<Self>) -> [Registration; 2] {
        let weak = Arc::downgrade(self);
        let secrets = self.secrets.on_change(move |change| {
            if let Some(worker) = weak.upgrade() {
                worker.secret_changed(change);
            }
        });
        let accounts = self.queues[1].clone();
        let accounts = self.accounts.on_change(move |change| {
            let uid = |object: &Option<Arc<Object>>| object.as_ref().map(|held| held.meta().uid.clone());
            if change.old.is_some() && uid(&change.old) != uid(&change.new) {
                accounts.add(Subject::Account(change.key.clone()));
            }
        });
        [secrets, accounts]
    }

    fn look_at(&self, secret: &Object) {
        if Secret::of_token(secret).is_some() {
            self.queues[0].add(Subject::Token(secret.key()));
        }
    }

    fn secret_changed(&self, change: &Change) {
        if let Some(new) = &change.new {
            return self.look_at(new);
        }
        let gone = change.old.as_deref().and_then(Secret::of_token);
        if let Some((account, _)) = gone.as_ref().and_then(Secret::account) {
            self.queues[0].add(Subject::Reference { account, secret: change.key.name.clone() });
        }
    }

    /// The uid of an account that is there: the cache may not show it yet.
    async fn account_uid(&self, key: &Key, wanted: Option<&str>) -> Result<Option<String>, BoxError> {
        let is_wanted = |held: &Arc<Object>| wanted.is_none_or(|uid| held.meta().uid == uid);
        let held = match self.accounts.get(key).filter(is_wanted) {
            Some(held) => Some(held),
            None => ignore_missing(self.ctx.client.get(self.accounts.resource(), key).await)?,
        };
        Ok(held.filter(is_wanted).map(|held| held.meta().uid.clone()))
    }

    async fn fill(&self, key: &Key) -> Result<(), BoxError> {
        let Some(object) = self.secrets.get(key).filter(|held| !held.meta().is_terminating()) else {
            return Ok(());
        };
        let Some(secret) = Secret::of_token(&object) else { return Ok(()) };
        let Some((account, wanted)) = secret.account() else { return Ok(()) };
        let Some(uid) = self.account_uid(&account, wanted).await? else { return self.remove(&object).await };
        let sign = || self.tokens.sign(&key.namespace, (&account.name, &uid), &key.name);
        let ca = self.ctx.root_ca_pem.borrow().clone();
        let Some(data) = lacking(&secret, &ca, sign)? else { return Ok(()) };
        // Of the Secret that was looked at: another token may have come into it since.
        let patch = json!({
            "metadata": {
                "uid": secret.metadata.uid, "resourceVersion": secret.metadata.resource_version,
                "annotations": { ACCOUNT: account.name, ACCOUNT_UID: uid },
            },
            "data": data,
        });
        match self.ctx.client.patch(self.secrets.resource(), key, "", PatchType::Merge, &patch).await {
            Ok(written) => self.ctx.caught_up(&self.secrets, written.revision()).await,
            Err(status) if status.reason == Reason::NotFound => {}
            Err(status) if status.reason == Reason::Invalid => {
                tracing::warn!(secret = %key, error = %status, "cannot be given a token");
            }
            Err(status) => return Err(status.into()),
        }
        Ok(())
    }

    async fn remove(&self, secret: &Object) -> Result<(), BoxError> {
        let uid = Some(secret.meta().uid.clone());
        let options = DeleteOptions { precondition_uid: uid, ..DeleteOptions::default() };
        ignore_gone(self.ctx.client.delete(self.secrets.resource(), &secret.key(), options).await)?;
        Ok(())
    }

    /// Takes a Secret that is gone out of its account's references. Source: `removeSecretReference`.
    async fn forget(&self, account: &Key, secret: &str) -> Result<(), BoxError> {
        let resource = self.accounts.resource();
        if self.secrets.get(&Key::new(account.namespace.as_str(), secret)).is_some() {
            return Ok(());
        }
        let names_it = |held: &Arc<Object>| {
            decode::<Value>(held).is_ok_and(|account| without(&account, secret).is_some())
        };
        if !self.accounts.get(account).as_ref().is_some_and(names_it) {
            return Ok(());
        }
        let Some(live) = ignore_missing(self.ctx.client.get(resource, account).await)? else { return Ok(()) };
        let Some(left) = without(&decode(&live)?, secret) else { return Ok(()) };
        let seen = json!({ "uid": live.meta().uid, "resourceVersion": live.meta().resource_version });
        let patch = json!({ "metadata": seen, "secrets": left });
        ignore_missing(self.ctx.client.patch(resource, account, "", PatchType::Merge, &patch).await)?;
        Ok(())
    }

    /// The Secrets of an account that is gone are looked at one by one: each asks who its account is.
    fn orphaned(&self, account: &Key) {
        for secret in self.secrets.in_namespace(&account.namespace) {
            let of_token = Secret::of_token(&secret);
            if of_token.as_ref().and_then(Secret::account).is_some_and(|(key, _)| key == *account) {
                self.queues[0].add(Subject::Token(secret.key()));
            }
        }
    }
}

#[async_trait]
impl Reconcile<Subject> for Worker {
    async fn reconcile(&self, subject: &Subject) -> Result<Action, BoxError> {
        match subject {
            Subject::Token(key) => self.fill(key).await?,
            Subject::Reference { account, secret } => self.forget(account, secret).await?,
            Subject::Account(key) => self.orphaned(key),
        }
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(kind: &str, annotations: Value, data: Value) -> Option<Secret> {
        let meta = json!({ "name": "s", "namespace": "ns", "annotations": annotations });
        let tree = json!({ "metadata": meta, "type": kind, "data": data });
        Secret::of_token(&Object::parse(tree.to_string().into()).unwrap())
    }

    #[test]
    fn a_secret_of_a_token_names_its_account() {
        let named = json!({ ACCOUNT: "robot" });
        let held = secret(TYPE, named.clone(), json!({})).unwrap();
        assert_eq!(held.account(), Some((Key::new("ns", "robot"), None)));
        let held = secret(TYPE, json!({ ACCOUNT: "robot", ACCOUNT_UID: "u" }), json!({})).unwrap();
        assert_eq!(held.account(), Some((Key::new("ns", "robot"), Some("u"))));
        assert!(secret(TYPE, json!({}), json!({})).unwrap().account().is_none());
        // Who only speaks of the type is none.
        assert!(secret("Opaque", json!({ "about": TYPE }), json!({})).is_none());
    }

    #[test]
    fn what_is_lacking_is_given_and_a_token_stays() {
        let given = |data: Value| {
            let secret = secret(TYPE, json!({ ACCOUNT: "robot" }), data).unwrap();
            lacking(&secret, "pem", || Ok("new".to_owned())).unwrap()
        };
        let text = |text: &str| STANDARD.encode(text);
        let all = json!({ "ca.crt": text("pem"), "namespace": text("ns"), "token": text("new") });
        assert_eq!(given(json!({})), Some(all.clone()));
        assert_eq!(given(all), None);
        let old =
            json!({ "ca.crt": text("old"), "namespace": text("ns"), "token": text("own"), "more": "eA==" });
        assert_eq!(given(old), Some(json!({ "ca.crt": text("pem") })));
    }

    #[test]
    fn references_to_others_stay() {
        let account = json!({ "secrets": [{ "name": "a" }, { "name": "b" }] });
        assert_eq!(without(&account, "a"), Some(vec![json!({ "name": "b" })]));
        assert_eq!((without(&account, "c"), without(&json!({}), "a")), (None, None));
    }
}
