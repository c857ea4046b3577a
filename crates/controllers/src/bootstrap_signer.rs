//! Signs ConfigMap `kube-public/cluster-info` with every bootstrap token that may sign: whoever has a token, and does not
//! trust the server yet, knows by it that the cluster is the right one.
//! Source: `k8s.io/kubernetes/pkg/controller/bootstrap`, `k8s.io/cluster-bootstrap/token/jws`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Key, Object};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use reconcile::{Action, Informer, Queue, Reconcile, kinds};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::claim::ignore_missing;
use crate::context::{Ctx, decode, work};

const NAME: &str = "bootstrap-signer-controller";
const TOKENS: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
/// Secrets of tokens are named after their token.
const TOKEN_PREFIX: &str = "bootstrap-token-";
const CONTENT: &str = "kubeconfig";
const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";

/// The controller.
pub struct BootstrapSigner {
    ctx: Ctx,
}

impl BootstrapSigner {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

fn signed_map() -> Key {
    Key::new("kube-public", "cluster-info")
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Secret {
    metadata: api::ObjectMeta,
    r#type: String,
    data: BTreeMap<String, String>,
}

/// A token that may sign: its id and its secret. Source: `validateSecretForSigning`.
fn signing_token(secret: &Secret, now: Timestamp) -> Option<(String, String)> {
    let text = |name: &str| {
        let bytes = STANDARD.decode(secret.data.get(name)?).ok()?;
        String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
    };
    let id = secret.metadata.name.strip_prefix(TOKEN_PREFIX).filter(|_| secret.r#type == TYPE)?;
    let whole = text("token-id")? == id && text("usage-bootstrap-signing")? == "true";
    let over = text("expiration").is_some_and(|end| end.parse::<Timestamp>().map_or(true, |end| end <= now));
    (whole && !over).then_some((id.to_owned(), text("token-secret")?))
}

/// A JWS of a content that is not part of it. Source: `jws.ComputeDetachedSignature`.
fn signature(content: &str, id: &str, secret: &str) -> Result<String, BoxError> {
    let header = URL_SAFE_NO_PAD.encode(json!({ "alg": "HS256", "kid": id }).to_string());
    let whole = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signed = crypto::sign(whole.as_bytes(), &key, Algorithm::HS256)?;
    Ok(format!("{header}..{signed}"))
}

/// The data of the ConfigMap with a signature for each of these tokens and no others; `None` if it has nothing to sign.
fn signed(
    data: &BTreeMap<String, Value>,
    tokens: &BTreeMap<String, String>,
) -> Result<Option<BTreeMap<String, Value>>, BoxError> {
    let Some(content) = data.get(CONTENT).and_then(Value::as_str) else { return Ok(None) };
    let mut signed: BTreeMap<String, Value> = data.clone();
    signed.retain(|name, _| !name.starts_with(SIGNATURE_PREFIX));
    for (id, secret) in tokens {
        signed.insert(format!("{SIGNATURE_PREFIX}{id}"), signature(content, id, secret)?.into());
    }
    Ok(Some(signed))
}

struct Worker {
    ctx: Ctx,
    maps: Informer,
    secrets: Informer,
}

#[async_trait]
impl Component for BootstrapSigner {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker {
            ctx: self.ctx.clone(),
            maps: self.ctx.informers.get(kinds::CONFIG_MAPS),
            secrets: self.ctx.informers.get(kinds::SECRETS),
        });
        let queue: Queue<()> = self.ctx.queue("bootstrap_signer_queue");
        let keys = queue.clone();
        let _maps = worker.maps.on_change(move |change| {
            if change.key == signed_map() && change.new.is_some() {
                keys.add(());
            }
        });
        let keys = queue.clone();
        let _secrets = worker.secrets.on_change(move |change| {
            if change.key.namespace == TOKENS && change.key.name.starts_with(TOKEN_PREFIX) {
                keys.add(());
            }
        });
        work(&ctx, NAME, &[&worker.maps, &worker.secrets], &queue, 1, &worker).await
    }
}

#[async_trait]
impl Reconcile<()> for Worker {
    async fn reconcile(&self, (): &()) -> Result<Action, BoxError> {
        let Some(object): Option<Arc<Object>> = self.maps.get(&signed_map()) else { return Ok(Action::Done) };
        let mut tree: Value = decode(&object)?;
        let data: BTreeMap<String, Value> = serde_json::from_value(tree["data"].clone()).unwrap_or_default();
        let now = self.ctx.clock.now();
        let mut tokens = BTreeMap::new();
        for secret in self.secrets.in_namespace(TOKENS) {
            // Most Secrets are none of a token, and one that nobody can read keeps no other token from signing.
            if secret.meta().name.starts_with(TOKEN_PREFIX) {
                tokens.extend(decode(&secret).ok().and_then(|secret| signing_token(&secret, now)));
            }
        }
        let Some(signed) = signed(&data, &tokens)?.filter(|signed| *signed != data) else {
            return Ok(Action::Done);
        };
        tree["data"] = json!(signed);
        ignore_missing(self.ctx.client.update(self.maps.resource(), &signed_map(), "", &tree).await)?;
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(more: &[(&str, &str)]) -> Secret {
        let fields =
            [("token-id", "foobar"), ("token-secret", "secret"), ("usage-bootstrap-signing", "true")];
        let data = fields.iter().chain(more).map(|(name, text)| ((*name).to_owned(), STANDARD.encode(text)));
        Secret {
            metadata: api::ObjectMeta { name: "bootstrap-token-foobar".into(), ..Default::default() },
            r#type: TYPE.into(),
            data: data.collect(),
        }
    }

    #[test]
    fn a_signature_is_a_jws_without_its_content() {
        // Computed by Python's hmac over the header and the content.
        let made = signature("hello", "foobar", "secret").unwrap();
        let (header, rest) = made.split_once("..").unwrap();
        assert_eq!(header, "eyJhbGciOiJIUzI1NiIsImtpZCI6ImZvb2JhciJ9");
        assert_eq!(rest, "rsiy8d5ZGYPfii9t1pC8Rt77RPMuHGqVw2IRICEEN1Q");
    }

    #[test]
    fn tokens_sign_as_long_as_they_may() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let signs = |secret: &Secret| signing_token(secret, now).is_some();
        assert!(signs(&secret(&[])));
        assert!(signs(&secret(&[("expiration", "2026-01-01T00:00:01Z")])));
        for more in [
            ("expiration", "2026-01-01T00:00:00Z"),
            ("expiration", "soon"),
            ("token-id", "other"),
            ("usage-bootstrap-signing", "no"),
        ] {
            assert!(!signs(&secret(&[more])), "{more:?}");
        }
    }

    #[test]
    fn signatures_of_tokens_that_are_gone_go() {
        let data = BTreeMap::from([
            (CONTENT.to_owned(), json!("x")),
            ("other".to_owned(), json!("y")),
            ("jws-kubeconfig-gone00".to_owned(), json!("z")),
        ]);
        let tokens = BTreeMap::from([("foobar".to_owned(), "secret".to_owned())]);
        let names: Vec<String> = signed(&data, &tokens).unwrap().unwrap().into_keys().collect();
        assert_eq!(names, ["jws-kubeconfig-foobar", "kubeconfig", "other"]);
        assert!(signed(&BTreeMap::new(), &tokens).unwrap().is_none());
    }
}
