//! One place that is asked for an image: its client, and what it was told about who asks.
//! Sources: OCI distribution specification, "Pull"; the distribution project's "Token Authentication"; RFC 7235.

use std::time::Duration;

use http::StatusCode;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
};
use http::header::{RANGE, WWW_AUTHENTICATE};
use http_auth::ChallengeRef;
use http_auth::parser::ChallengeParser;
use parking_lot::Mutex;
use reqwest::{Certificate, Identity, Url};
use serde::Deserialize;

use crate::Error;
use crate::blobs::DOCUMENT_BYTES_MAX;
use crate::digest::Digest;
use crate::document;
use crate::hosts::{Can, Endpoint, is_loopback, own_host, read_named};
use crate::reference::Reference;
use crate::refusal::{Refusal, said};
use crate::registry::{CONNECT_TIMEOUT, Credentials, USER_AGENT};

const ACCEPTED: [&str; 4] =
    [document::MANIFEST, document::INDEX, document::DOCKER_MANIFEST, document::DOCKER_LIST];
/// A token is no larger.
const TOKEN_BYTES_MAX: usize = 256 * 1024;
/// A manifest or token that has not come after so long never will.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(300);

/// A place to ask, for one repository.
pub(crate) struct Source {
    base: String,
    repository: String,
    query: String,
    http: reqwest::Client,
    credentials: Option<Credentials>,
    /// What the place has asked for.
    authorization: Mutex<Option<HeaderValue>>,
    pub(crate) can: Can,
}

fn host_of(base: &str) -> &str {
    let rest = base.split_once("://").map_or(base, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

/// A manifest as it came.
pub(crate) struct Document {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    /// What the registry says that it is, without parameters; empty where it says nothing.
    pub(crate) media_type: String,
}

impl Source {
    /// Reads the certificates that the place wants. Blocks.
    pub(crate) fn open(
        endpoint: Endpoint,
        reference: &Reference,
        credentials: Option<Credentials>,
        silence: Duration,
    ) -> Result<Self, Error> {
        // Whoever stands in for a registry gets its credentials at most where nobody else can read them.
        let query = endpoint.mirror_of.as_ref().map_or_else(String::new, |of| format!("?ns={of}"));
        let host = host_of(&endpoint.base).to_owned();
        let shown = host == own_host(&reference.domain)
            || endpoint.base.starts_with("https://")
            || is_loopback(&host);
        Ok(Self {
            http: client(&endpoint, silence)?,
            base: endpoint.base,
            repository: reference.path.clone(),
            query,
            credentials: credentials.filter(|user| shown && !user.username.is_empty()),
            authorization: Mutex::new(None),
            can: endpoint.can,
        })
    }

    /// The place's host, as it is told to users.
    pub(crate) fn host(&self) -> &str {
        host_of(&self.base)
    }

    /// The manifest of a tag or digest.
    pub(crate) async fn manifest(&self, version: &str) -> Result<Document, Refusal> {
        let mut headers = HeaderMap::new();
        for kind in ACCEPTED {
            headers.append(ACCEPT, HeaderValue::from_static(kind));
        }
        let asked = async {
            let response = self.get(&format!("manifests/{version}"), headers).await?;
            let media_type = media_type(response.headers());
            let bytes = body(response, DOCUMENT_BYTES_MAX).await?;
            Ok(Document { digest: Digest::of(&bytes), bytes, media_type })
        };
        tokio::time::timeout(DOCUMENT_TIMEOUT, asked).await.unwrap_or(Err(Refusal::TooSlow))
    }

    /// The answer to a request for content, from a byte on.
    pub(crate) async fn blob(&self, digest: &Digest, from: u64) -> Result<reqwest::Response, Refusal> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if from > 0 {
            let range = HeaderValue::try_from(format!("bytes={from}-"));
            headers.insert(RANGE, range.map_err(|error| Refusal::Lie(error.to_string()))?);
        }
        self.get(&format!("blobs/{digest}"), headers).await
    }

    /// Asks; where the place wants to know who asks, once more with what it wants.
    async fn get(&self, path: &str, headers: HeaderMap) -> Result<reqwest::Response, Refusal> {
        let url = format!("{}/{}/{path}{}", self.base, self.repository, self.query);
        let request = || {
            let request = self.http.get(&url).headers(headers.clone());
            match self.authorization.lock().clone() {
                Some(authorization) => request.header(AUTHORIZATION, authorization),
                None => request,
            }
        };
        let mut response = request().send().await.map_err(Refusal::Connection)?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let Some(authorization) = self.authorize(response.headers()).await? else {
                return Err(Refusal::Status(StatusCode::UNAUTHORIZED, said(response).await));
            };
            *self.authorization.lock() = Some(authorization);
            response = request().send().await.map_err(Refusal::Connection)?;
        }
        match response.status() {
            status if status.is_success() => Ok(response),
            status => Err(Refusal::Status(status, said(response).await)),
        }
    }

    /// What to answer to a place that asks who is there; `None` where there is nothing to say.
    async fn authorize(&self, told: &HeaderMap) -> Result<Option<HeaderValue>, Refusal> {
        match challenge(told) {
            Some(Challenge::Bearer { realm, service, scope }) => {
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
                let asked = self.token(&realm, service.as_deref(), &scope);
                let token = tokio::time::timeout(DOCUMENT_TIMEOUT, asked).await;
                let token = token.unwrap_or(Err(Refusal::TooSlow))?;
                secret(format!("Bearer {token}")).map(Some)
            }
            Some(Challenge::Basic) => Ok(self.credentials.as_ref().and_then(basic)),
            None => Ok(None),
        }
    }

    async fn token(&self, realm: &str, service: Option<&str>, scope: &str) -> Result<String, Refusal> {
        let mut url: Url =
            realm.parse().map_err(|_| Refusal::Lie(format!("its realm {realm:?} is no URL")))?;
        // Whoever is asked with TLS does not get a password carried elsewhere in the clear.
        if self.base.starts_with("https:") && url.scheme() != "https" {
            return Err(Refusal::Lie(format!("it sends passwords on to {realm:?}, which has no TLS")));
        }
        url.query_pairs_mut().extend_pairs(service.map(|service| ("service", service)));
        // Several scopes stand in one string.
        url.query_pairs_mut().extend_pairs(scope.split(' ').map(|scope| ("scope", scope)));
        let mut request = self.http.get(url);
        if let Some(authorization) = self.credentials.as_ref().and_then(basic) {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = request.send().await.map_err(Refusal::Connection)?;
        if !response.status().is_success() {
            let status = response.status();
            return Err(Refusal::Status(status, said(response).await));
        }
        let bytes = body(response, TOKEN_BYTES_MAX as u64).await?;
        let told: Token = serde_json::from_slice(&bytes)
            .map_err(|_| Refusal::Lie(format!("what {realm} answers is no token")))?;
        let token = told.token.filter(|token| !token.is_empty()).or(told.access_token);
        token.ok_or_else(|| Refusal::Lie(format!("what {realm} answers has no token")))
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// How a place wants to be told who asks.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The first challenge that can be met; tokens before passwords.
fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let all: Vec<ChallengeRef<'_>> = texts.flat_map(ChallengeParser::new).filter_map(Result::ok).collect();
    let bearer = all.iter().filter(|one| one.scheme.eq_ignore_ascii_case("bearer")).find_map(|one| {
        let find = |name: &str| {
            let found = one.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        Some(Challenge::Bearer { realm: find("realm")?, service: find("service"), scope: find("scope") })
    });
    let basic = all.iter().any(|one| one.scheme.eq_ignore_ascii_case("basic"));
    bearer.or(basic.then_some(Challenge::Basic))
}

fn basic(user: &Credentials) -> Option<HeaderValue> {
    use base64::Engine as _;
    let text =
        base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", user.username, user.password));
    secret(format!("Basic {text}")).ok()
}

fn secret(text: String) -> Result<HeaderValue, Refusal> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| Refusal::Lie("its token has characters that no header may have".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// A document's bytes, at most so many.
async fn body(mut response: reqwest::Response, max: u64) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(Refusal::Connection)? {
        if (bytes.len() + chunk.len()) as u64 > max {
            return Err(Refusal::TooLarge);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn client(endpoint: &Endpoint, silence: Duration) -> Result<reqwest::Client, Error> {
    let mut builder = reqwest::Client::builder()
        .connect_timeout(endpoint.connect_timeout.unwrap_or(CONNECT_TIMEOUT))
        .read_timeout(silence)
        .user_agent(USER_AGENT)
        .default_headers(headers(endpoint)?);
    let mut authorities = Vec::new();
    for path in &endpoint.tls.authorities {
        let pem = read_named(path)?;
        let unusable = || Error::Invalid(format!("{} holds no certificate in PEM", path.display()));
        let found = Certificate::from_pem_bundle(pem.as_bytes()).map_err(|_| unusable())?;
        if found.is_empty() {
            return Err(unusable());
        }
        authorities.extend(found);
    }
    if !authorities.is_empty() {
        builder = builder.tls_certs_merge(authorities);
    }
    // A client shows one certificate: the first.
    if let Some((certificate, key)) = endpoint.tls.clients.first() {
        let mut pem = read_named(certificate)?;
        if let Some(key) = key {
            pem = format!("{pem}\n{}", read_named(key)?);
        }
        let identity = Identity::from_pem(pem.as_bytes()).map_err(|_| {
            let path = certificate.display();
            Error::Invalid(format!("{path} is no certificate with a key that can be shown"))
        })?;
        builder = builder.identity(identity);
    }
    if endpoint.tls.skip_verify == Some(true) {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    builder.build().map_err(|error| Error::Invalid(format!("no client for {}: {error}", endpoint.base)))
}

fn headers(endpoint: &Endpoint) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    for (name, value) in &endpoint.headers {
        let refused = || Error::Invalid(format!("header {name:?} for {} is none", endpoint.base));
        let key = HeaderName::try_from(name).map_err(|_| refused())?;
        let mut value = HeaderValue::try_from(value).map_err(|_| refused())?;
        value.set_sensitive(true);
        headers.append(key, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::Tls;

    #[test]
    fn credentials_are_for_the_registry_and_for_who_stands_in_for_it_unread() {
        let reference = Reference::parse("docker.io/library/a:1").unwrap();
        let shown = |base: &str| {
            let endpoint = Endpoint {
                base: base.to_owned(),
                can: Can::READ,
                tls: Tls::default(),
                headers: Vec::new(),
                connect_timeout: None,
                mirror_of: None,
            };
            let user = Credentials { username: "u".to_owned(), password: "p".to_owned() };
            let source = Source::open(endpoint, &reference, Some(user), Duration::from_secs(1));
            source.unwrap().credentials.is_some()
        };
        assert!(shown("https://registry-1.docker.io/v2") && shown("https://mirror.example/v2"));
        assert!(shown("http://127.0.0.1:5000/v2"));
        assert!(!shown("http://mirror.example/v2"));
    }

    #[test]
    fn the_challenge_that_can_be_met_is_taken() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(value));
            }
            challenge(&headers)
        };
        let bearer =
            r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a:pull""#;
        let wanted = Challenge::Bearer {
            realm: "https://auth.example/token".to_owned(),
            service: Some("r.example".to_owned()),
            scope: Some("repository:a:pull".to_owned()),
        };
        assert_eq!(of(&["Basic realm=\"x\"", bearer]), Some(wanted));
        assert_eq!(of(&["basic realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(of(&["Bearer service=\"x\""]), None);
        assert_eq!(of(&["Negotiate", "=,,\"x"]), None);
        assert_eq!(of(&[]), None);
    }
}
