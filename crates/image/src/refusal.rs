//! Why a registry gave nothing, in words with a remedy. Source: OCI distribution specification, "Error Codes".

use std::time::Duration;

use http::StatusCode;
use oci_client::errors::{OciDistributionError, OciErrorCode};
use serde::Deserialize;

use crate::Error;
use crate::blobs::DOCUMENT_BYTES_MAX;
use crate::reference::Reference;

/// Of a refusal so many bytes are read, and so many letters told.
const REFUSAL_BYTES_MAX: usize = 16 * 1024;
const REFUSAL_LETTERS_MAX: usize = 256;
/// All of it has to come in this time.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no answer that can be used.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The registry answered with this, and said so.
    Status(StatusCode, String),
    /// It could not be asked, or broke off.
    Connection(reqwest::Error),
    /// A document is larger than one may be.
    TooLarge,
    /// So little comes that there would be no end.
    TooSlow,
    /// What it sent before its connection ended is less than it had promised.
    CutOff,
    /// What it says contradicts what it said before.
    Lie(String),
    /// This machine failed.
    Here(Error),
}

impl Refusal {
    /// Whether asking again may help.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Connection(_) | Self::TooSlow | Self::CutOff => true,
            Self::Status(status, _) => {
                status.is_server_error()
                    || matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
            }
            Self::TooLarge | Self::Lie(_) | Self::Here(_) => false,
        }
    }

    /// The error of whoever wanted `reference` from `registry`.
    pub(crate) fn told(self, reference: &Reference, registry: &str) -> Error {
        let name = reference.familiar();
        match self {
            Self::Status(StatusCode::NOT_FOUND, _) => absent(reference),
            Self::Status(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, said) => {
                denied(reference, registry, &said)
            }
            Self::Status(status, said) => {
                let said = if said.is_empty() { said } else { format!(" ({said})") };
                let text = format!("registry {registry} answered {status}{said} for {name}: try again");
                match status {
                    StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT => Error::Unavailable(text),
                    _ => Error::Unreachable(text),
                }
            }
            Self::Connection(error) => out_of_reach(reference, registry, &error),
            Self::TooLarge => Error::Invalid(format!(
                "a document of {name} is larger than the {DOCUMENT_BYTES_MAX} bytes that one may have"
            )),
            Self::TooSlow => {
                Error::Unreachable(format!("registry {registry} sends next to nothing of {name}: try again"))
            }
            Self::CutOff => {
                Error::Unreachable(format!("registry {registry} broke off in the midst of {name}: try again"))
            }
            Self::Lie(what) => Error::Invalid(format!("registry {registry} lies about {name}: {what}")),
            Self::Here(error) => error,
        }
    }
}

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

/// A registry's own words; none where it has none that can be read.
pub(crate) async fn said(response: reqwest::Response) -> String {
    said_within(response, REFUSAL_TIMEOUT).await
}

async fn said_within(mut response: reqwest::Response, limit: Duration) -> String {
    let mut bytes = Vec::new();
    let all = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            if bytes.len() + chunk.len() > REFUSAL_BYTES_MAX {
                return false;
            }
            bytes.extend_from_slice(&chunk);
        }
        true
    };
    // Who drips its words byte by byte has none.
    match tokio::time::timeout(limit, all).await {
        Ok(true) => words(&bytes),
        Ok(false) | Err(_) => String::new(),
    }
}

fn words(body: &[u8]) -> String {
    let errors = serde_json::from_slice::<Errors>(body).map(|told| told.errors).unwrap_or_default();
    let Some(ToldError { code, message }) = errors.into_iter().next() else { return String::new() };
    in_words(&code, &message)
}

/// An error's code and message, as far as they are fit to be shown.
fn in_words(code: &str, message: &str) -> String {
    let text = [code.to_lowercase().as_str(), message].join(": ");
    let text = text.trim_matches([':', ' ']);
    text.chars().filter(|letter| !letter.is_control()).take(REFUSAL_LETTERS_MAX).collect()
}

/// The failure of a push with its remedy.
pub(crate) fn push_failed(reference: &Reference, error: OciDistributionError) -> Error {
    use OciDistributionError as E;
    let registry = reference.domain.as_str();
    match &error {
        E::AuthenticationFailure(said) => denied(reference, registry, &in_words("", said)),
        E::UnauthorizedError { .. } => denied(reference, registry, ""),
        E::ImageManifestNotFoundError(_) | E::ServerError { code: 404, .. } => absent(reference),
        E::ServerError { code: 401 | 403, message, .. } => {
            denied(reference, registry, &in_words("", message))
        }
        E::RegistryError { envelope, .. } => {
            match envelope.errors.first().map(|error| (&error.code, error)) {
                Some((
                    OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown | OciErrorCode::NotFound,
                    _,
                )) => absent(reference),
                Some((OciErrorCode::Denied, told)) => {
                    denied(reference, registry, &in_words("denied", &told.message))
                }
                Some((OciErrorCode::Unauthorized, told)) => {
                    denied(reference, registry, &in_words("unauthorized", &told.message))
                }
                _ => Error::Unreachable(format!("{registry}: {error}")),
            }
        }
        E::DigestError(_) => Error::Invalid(format!("{}: {error}", reference.familiar())),
        _ => out_of_reach(reference, registry, &error),
    }
}

/// `said`: the registry's own words, if it had any.
fn denied(reference: &Reference, registry: &str, said: &str) -> Error {
    let name = reference.familiar();
    let said = if said.is_empty() { String::new() } else { format!(" ({said})") };
    Error::Denied(format!(
        "access to {name} denied by {registry}{said}: the repository does not exist or needs `docker login`"
    ))
}

fn absent(reference: &Reference) -> Error {
    Error::NotInRegistry(format!("manifest for {} not found: manifest unknown", reference.familiar()))
}

fn out_of_reach(reference: &Reference, registry: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    let text = format!(
        "registry {registry} cannot be reached for {}: {}",
        reference.familiar(),
        base::error::chain(error)
    );
    if is_refused(error) { Error::Unavailable(text) } else { Error::Unreachable(text) }
}

/// Whether nobody listens there.
fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_refusal_that_never_ends_has_no_words() {
        let said = async |words: &'static [u8], more: bool| {
            let end = if more {
                futures::stream::pending().left_stream()
            } else {
                futures::stream::empty().right_stream()
            };
            let body = futures::stream::iter([Ok::<_, std::io::Error>(words)]).chain(end);
            let response = http::Response::new(reqwest::Body::wrap_stream(body));
            said_within(response.into(), Duration::from_millis(if more { 50 } else { 60_000 })).await
        };
        let words = br#"{"errors":[{"code":"DENIED"}]}"#;
        assert_eq!((said(words, false).await, said(words, true).await), ("denied".to_owned(), String::new()));
    }

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
