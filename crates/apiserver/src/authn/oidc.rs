//! ID tokens of OpenID Connect providers (JWTs). Source: `apiserver/plugin/pkg/authenticator/token/oidc`.

use std::time::Duration;

use async_trait::async_trait;
use base::clock::SharedClock;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;
use tokio::sync::Mutex;

use super::claims::Claims;
use super::config::{Issuer, Jwt};
use super::{Identity, TokenAuthenticator, foreign};
use crate::remote;
use crate::tree;

/// Signatures that are believed: by public keys only.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];
/// A key that is not known is asked for so often at most: whoever sends nonsense does not make us ask each time.
const ASKED_EVERY: Duration = Duration::from_secs(10);
/// Tolerated difference of clocks, in seconds.
const LEEWAY_SECONDS: u64 = 10;
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// One provider.
pub(crate) struct Provider {
    issuer: Issuer,
    claims: Claims,
    /// The API server's own audience.
    own: String,
    http: reqwest::Client,
    clock: SharedClock,
    keys: Mutex<Keys>,
}

#[derive(Default)]
struct Keys {
    set: Option<JwkSet>,
    asked: Option<Timestamp>,
}

impl Provider {
    /// A provider; nothing is asked of it yet.
    pub(crate) fn new(config: Jwt, own: &str, clock: SharedClock) -> Result<Self, String> {
        let authority = &config.issuer.certificate_authority;
        let authority = (!authority.is_empty()).then_some(authority.as_bytes());
        let http = remote::client(authority, Ok)?;
        let claims = Claims::new(&config).map_err(|(field, cause)| format!("{field}: {cause}"))?;
        Ok(Self { issuer: config.issuer, claims, own: own.to_owned(), http, clock, keys: Mutex::default() })
    }

    /// The key that signed, from what is known or from the provider.
    async fn key(&self, kid: Option<&str>) -> Result<DecodingKey, String> {
        let mut keys = self.keys.lock().await;
        if let Some(key) = keys.set.as_ref().and_then(|set| find(set, kid)) {
            return key;
        }
        let now = self.clock.now();
        let soon = |asked: Timestamp| {
            Duration::try_from(now.duration_since(asked)).is_ok_and(|ago| ago < ASKED_EVERY)
        };
        if !keys.asked.is_some_and(soon) {
            keys.asked = Some(now);
            keys.set = Some(self.fetch().await?);
        }
        let found = keys.set.as_ref().and_then(|set| find(set, kid));
        found.unwrap_or_else(|| Err("oidc: failed to verify id token signature".to_owned()))
    }

    async fn fetch(&self) -> Result<JwkSet, String> {
        let issuer = &self.issuer;
        let url = match issuer.discovery_url.as_str() {
            "" => format!("{}{DISCOVERY}", issuer.url.trim_end_matches('/')),
            url => url.to_owned(),
        };
        let found = self.get(&url).await?;
        let said = tree::text(&found, &["issuer"]);
        if said != issuer.url {
            return Err(format!(
                "oidc: issuer did not match the issuer returned by provider, expected {:?} got {said:?}",
                issuer.url
            ));
        }
        let keys = self.get(tree::text(&found, &["jwks_uri"])).await?;
        serde_json::from_value(keys).map_err(|error| format!("oidc: keys of {said}: {error}"))
    }

    async fn get(&self, url: &str) -> Result<Value, String> {
        let failed = |cause: String| format!("oidc: {url}: {cause}");
        let answer = self.http.get(url).send().await;
        let answer = answer.map_err(|error| failed(base::error::chain(&error)))?;
        remote::json(answer).await.map_err(failed)
    }
}

fn find(set: &JwkSet, kid: Option<&str>) -> Option<Result<DecodingKey, String>> {
    let jwk = match kid {
        Some(kid) => set.find(kid)?,
        // A provider with one key need not name it.
        None => set.keys.first().filter(|_| set.keys.len() == 1)?,
    };
    Some(DecodingKey::from_jwk(jwk).map_err(|error| format!("oidc: key: {error}")))
}

#[async_trait]
impl TokenAuthenticator for Provider {
    async fn authenticate(&self, token: &str, audiences: &[String]) -> Result<Option<Identity>, String> {
        // It vouches for the API server itself, whatever its own audiences are called.
        if !audiences.contains(&self.own) || issuer_of(token).as_deref() != Some(self.issuer.url.as_str()) {
            return Ok(None);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|error| format!("oidc: {error}"))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(format!("oidc: id token signed with unsupported algorithm {:?}", header.alg));
        }
        let key = self.key(header.kid.as_deref()).await?;
        let mut validation = Validation::new(header.alg);
        validation.set_audience(&self.issuer.audiences);
        validation.set_issuer(&[&self.issuer.url]);
        validation.set_required_spec_claims(&["exp", "aud", "iss"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY_SECONDS;
        let claims = jsonwebtoken::decode::<Value>(token, &key, &validation);
        let claims = claims.map_err(|error| format!("oidc: verify token: {error}"))?.claims;
        let user = foreign(self.claims.user(&claims)?);
        Ok(Some(Identity { user, audiences: vec![self.own.clone()] }))
    }
}

/// What a token that nobody checked yet says of its issuer.
fn issuer_of(token: &str) -> Option<String> {
    let mut parts = token.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    Some(tree::text(&claims, &["iss"]).to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;

    use base::clock::SystemClock;
    use base::lifecycle::Tasks;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use rcgen::KeyPair;
    use serde_json::json;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::authn::token::{Bound, Claims, Tokens};
    use crate::pki::Pki;

    fn config(issuer: Value) -> Jwt {
        let mappings = json!({ "username": { "claim": "sub", "prefix": "oidc:" } });
        serde_json::from_value(json!({ "issuer": issuer, "claimMappings": mappings })).unwrap()
    }

    #[test]
    fn a_token_of_another_issuer_is_not_ours_to_judge() {
        let token = |claims: Value| format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims.to_string()));
        assert_eq!(issuer_of(&token(json!({ "iss": "https://a" }))).as_deref(), Some("https://a"));
        for nonsense in ["", "a", "a.b.c", "..", "a.e30"] {
            assert!(issuer_of(nonsense).is_none_or(|issuer| issuer.is_empty()), "{nonsense}");
        }
    }

    /// A provider on a loopback port whose key signed `Tokens`, until `tasks` ends.
    async fn provider(dir: &std::path::Path, tasks: &Tasks) -> (Tokens, Jwt) {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let pki = Pki::open(dir, Arc::new(SystemClock), vec!["localhost".into()], [address]).unwrap();
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let tokens = Tokens::new(pki.service_account_key_pem(), &url).unwrap();
        let about = json!({ "issuer": url, "jwks_uri": format!("{url}/keys") });
        let (keys, acceptor) = (tokens.jwks(), TlsAcceptor::from(pki.server_config(&[b"http/1.1"]).unwrap()));
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let answer = |request: http::Request<hyper::body::Incoming>| {
                    let body =
                        if request.uri().path() == "/keys" { keys.to_string() } else { about.to_string() };
                    let body = http_body_util::Full::new(bytes::Bytes::from(body));
                    async move { Ok::<_, std::convert::Infallible>(http::Response::new(body)) }
                };
                let mut server = hyper::server::conn::http1::Builder::new();
                let server = server.keep_alive(false);
                let _ = server.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            }
        });
        let issuer = json!({ "url": url, "audiences": ["skiff"], "certificateAuthority": pki.ca_pem() });
        (tokens, config(issuer))
    }

    #[tokio::test]
    async fn a_token_is_believed_by_the_providers_key() {
        let (dir, tasks) = (tempfile::tempdir().unwrap(), Tasks::default());
        let (tokens, config) = provider(dir.path(), &tasks).await;
        let url = config.issuer.url.clone();
        let provider = Provider::new(config, "own", Arc::new(SystemClock)).unwrap();
        let now = Timestamp::now().as_second();
        let claims = |audience: &str, exp: i64| Claims {
            aud: vec![audience.into()],
            exp,
            iat: now,
            iss: url.clone(),
            jti: "1".into(),
            bound: Bound::default(),
            nbf: now,
            sub: "jane".into(),
        };
        let own = ["own".to_owned()];
        let good = tokens.sign(&claims("skiff", now + 600)).unwrap();
        let found = provider.authenticate(&good, &own).await.unwrap().unwrap();
        assert_eq!((found.user.name.as_str(), found.audiences), ("oidc:jane", own.to_vec()));
        assert_eq!(provider.authenticate(&good, &["other".to_owned()]).await, Ok(None));
        for bad in [claims("other", now + 600), claims("skiff", now - 600)] {
            assert!(provider.authenticate(&tokens.sign(&bad).unwrap(), &own).await.is_err());
        }
        let stranger = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem();
        let forged = Tokens::new(&stranger, &url).unwrap().sign(&claims("skiff", now + 600)).unwrap();
        assert!(provider.authenticate(&forged, &own).await.is_err());
        let elsewhere = Claims { iss: "https://else".into(), ..claims("skiff", now + 600) };
        assert_eq!(provider.authenticate(&tokens.sign(&elsewhere).unwrap(), &own).await, Ok(None));
    }
}
