//! Bootstrap tokens: Secrets in `kube-system` with which a machine asks for its first certificate.
//! Source: `plugin/pkg/auth/authenticator/token/bootstrap`.

use api::connect::User;
use api::{Object, Status};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Pipeline;
use crate::admission::World;
use crate::authn::{self, names};
use crate::tree;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";

/// The two parts of a token: six and sixteen characters of `a-z` and `0-9`.
pub(super) fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let simple = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && simple(id) && simple(secret)).then_some((id, secret))
}

impl Pipeline {
    /// The user of a bootstrap token that is known, not expired and meant for authentication.
    pub(super) async fn bootstrap_user(&self, id: &str, secret: &str) -> Result<Option<User>, Status> {
        let name = format!("bootstrap-token-{id}");
        let Some(object) = self.find("", "secrets", NAMESPACE, &name).await? else { return Ok(None) };
        let now = self.parts.clock.now();
        Ok(user(&object, id, secret, now))
    }
}

fn user(object: &Object, id: &str, secret: &str, now: Timestamp) -> Option<User> {
    let tree: Value = object.decode().ok()?;
    let field = |name: &str| {
        let bytes = STANDARD.decode(tree::text(&tree, &["data", name])).ok()?;
        String::from_utf8(bytes).ok()
    };
    let expired = match field("expiration") {
        None => false,
        Some(text) => text.parse::<Timestamp>().map_or(true, |until| until <= now),
    };
    let known = tree::text(&tree, &["type"]) == TYPE
        && !object.meta().is_terminating()
        && field("token-id").as_deref() == Some(id)
        // Digests are compared: how long that takes says nothing about the secret.
        && field("token-secret").is_some_and(|held| Sha256::digest(held) == Sha256::digest(secret))
        && field("usage-bootstrap-authentication").as_deref() == Some("true");
    if !known || expired {
        return None;
    }
    let mut groups = vec![names::BOOTSTRAPPERS.to_owned()];
    let more = field("auth-extra-groups").unwrap_or_default();
    // Other groups would be a way around everything.
    let prefix = format!("{}:", names::BOOTSTRAPPERS);
    groups.extend(more.split(',').filter(|group| group.starts_with(&prefix)).map(str::to_owned));
    let name = format!("{}{id}", names::BOOTSTRAP_PREFIX);
    Some(authn::authenticated(User { name, groups, ..User::default() }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(changes: &[(&str, &str)]) -> Object {
        let mut data = serde_json::Map::new();
        let fields = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
            ("auth-extra-groups", "system:bootstrappers:x,system:masters"),
            ("expiration", "2026-01-02T00:00:00Z"),
        ];
        for (name, value) in fields.iter().chain(changes) {
            data.insert((*name).to_owned(), STANDARD.encode(value).into());
        }
        let object = json!({
            "apiVersion": "v1", "kind": "Secret", "type": TYPE, "data": data,
            "metadata": { "name": "bootstrap-token-abcdef", "namespace": NAMESPACE, "uid": "1" },
        });
        Object::parse(serde_json::to_vec(&object).unwrap().into()).unwrap()
    }

    #[test]
    fn a_token_holds_until_it_expires_and_for_its_own_groups_only() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let (id, right) = parts("abcdef.0123456789abcdef").unwrap();
        let found = user(&secret(&[]), id, right, now).unwrap();
        assert_eq!(found.name, "system:bootstrap:abcdef");
        assert_eq!(found.groups, ["system:bootstrappers", "system:bootstrappers:x", "system:authenticated"]);
        assert!(user(&secret(&[]), id, "0123456789abcdeg", now).is_none());
        let later = "2026-01-03T00:00:00Z".parse().unwrap();
        assert!(user(&secret(&[]), id, right, later).is_none());
        assert!(user(&secret(&[("expiration", "soon")]), id, right, now).is_none());
        assert!(user(&secret(&[("usage-bootstrap-authentication", "false")]), id, right, now).is_none());
        for bad in ["abcdef", "abcdef.0123456789abcde", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcde/"]
        {
            assert!(parts(bad).is_none(), "{bad}");
        }
    }
}
