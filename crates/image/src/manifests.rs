//! Manifests from a registry, read up to the size that one may have: the client library reads whatever comes into
//! memory. Source: OCI distribution specification, "Pulling manifests".

use http::StatusCode;
use http::header::ACCEPT;
use serde::Deserialize;

use crate::Error;
use crate::blobs::DOCUMENT_BYTES_MAX;
use crate::document;
use crate::registry::{CONNECT_TIMEOUT, Credentials, READ_TIMEOUT, USER_AGENT};

const ACCEPTED: [&str; 4] =
    [document::MANIFEST, document::INDEX, document::DOCKER_MANIFEST, document::DOCKER_LIST];

/// What a registry was told about who asks.
#[derive(Clone)]
pub(crate) enum Identity {
    Nobody,
    User(Credentials),
    /// What an authorization server gave for one repository.
    Token(String),
}

/// Of a refusal so many bytes are read, and so many letters told.
const REFUSAL_BYTES_MAX: usize = 16 * 1024;
const REFUSAL_LETTERS_MAX: usize = 256;

#[derive(Deserialize)]
struct Errors {
    errors: Vec<ToldError>,
}

#[derive(Deserialize)]
struct ToldError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The registry's own words; none where it has none that can be read. Source: the specification's "Error Codes".
async fn said(mut response: reqwest::Response) -> String {
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        if bytes.len() + chunk.len() > REFUSAL_BYTES_MAX {
            return String::new();
        }
        bytes.extend_from_slice(&chunk);
    }
    words(&bytes)
}

fn words(body: &[u8]) -> String {
    let errors = serde_json::from_slice::<Errors>(body).map(|told| told.errors).unwrap_or_default();
    let Some(ToldError { code, message }) = errors.into_iter().next() else { return String::new() };
    in_words(&code, &message)
}

/// An error's code and message, as far as they are fit to be shown.
pub(crate) fn in_words(code: &str, message: &str) -> String {
    let text = [code.to_lowercase().as_str(), message].join(": ");
    let text = text.trim_matches([':', ' ']);
    text.chars().filter(|letter| !letter.is_control()).take(REFUSAL_LETTERS_MAX).collect()
}

/// Asks a registry for manifests.
pub(crate) struct Manifests {
    http: reqwest::Client,
    identity: Identity,
}

/// Why there is none.
pub(crate) enum Refusal {
    /// The registry answered with this, and said so.
    Status(StatusCode, String),
    /// It could not be asked, or broke off.
    Connection(reqwest::Error),
    TooLarge,
}

impl Manifests {
    pub(crate) fn new(identity: Identity) -> Result<Self, Error> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(USER_AGENT)
            .build();
        let http = http.map_err(|error| Error::Unreachable(format!("no client for registries: {error}")))?;
        Ok(Self { http, identity })
    }

    /// The document at `url`, as it came.
    pub(crate) async fn fetch(&self, url: &str) -> Result<Vec<u8>, Refusal> {
        let mut request = self.http.get(url);
        for kind in ACCEPTED {
            request = request.header(ACCEPT, kind);
        }
        let request = match &self.identity {
            Identity::Nobody => request,
            Identity::User(user) => request.basic_auth(&user.username, Some(&user.password)),
            Identity::Token(token) => request.bearer_auth(token),
        };
        let mut response = request.send().await.map_err(Refusal::Connection)?;
        if !response.status().is_success() {
            let status = response.status();
            return Err(Refusal::Status(status, said(response).await));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(Refusal::Connection)? {
            if (bytes.len() + chunk.len()) as u64 > DOCUMENT_BYTES_MAX {
                return Err(Refusal::TooLarge);
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_words_are_told_as_far_as_they_are_fit_to_be_shown() {
        let told = br#"{"errors":[{"code":"DENIED","message":"requested access\n is denied"},{"code":"X"}]}"#;
        assert_eq!(words(told), "denied: requested access is denied");
        assert_eq!(words(br#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"#), "toomanyrequests");
        assert_eq!((words(b"<html>"), words(br#"{"errors":[]}"#)), (String::new(), String::new()));
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(10_000));
        assert_eq!(words(long.as_bytes()).len(), REFUSAL_LETTERS_MAX);
    }
}
