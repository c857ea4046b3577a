//! What a webhook's call that failed is said to have failed with: the sentences of upstream's clients, where one fits.
//! Source: `apimachinery/pkg/api/errors.NewGenericServerResponse`, Go's `net` and `crypto/tls`.

use std::error::Error;
use std::io;

use rustls::CertificateError;
use serde_json::Value;

use super::services::Unresolved;

/// The time is over.
pub(super) const DEADLINE: &str = "context deadline exceeded";
/// So much of an answer that is none is quoted.
const QUOTED_BYTES_MAX: usize = 2048;

/// Why a request was not answered; `dialed` is where it was sent.
pub(super) fn cause(error: &reqwest::Error, dialed: &str) -> String {
    if error.is_timeout() {
        return DEADLINE.to_owned();
    }
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(unresolved) = cause.downcast_ref::<Unresolved>() {
            return unresolved.to_string();
        }
        if let Some(known) = cause.downcast_ref::<io::Error>().and_then(|cause| of_connection(cause, dialed))
        {
            return known;
        }
        source = cause.source();
    }
    base::error::chain(error)
}

fn of_connection(error: &io::Error, dialed: &str) -> Option<String> {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        return Some(format!("dial tcp {dialed}: connect: connection refused"));
    }
    let inner = error.get_ref()?;
    if let Some(error) = inner.downcast_ref::<io::Error>() {
        return of_connection(error, dialed);
    }
    let tls = inner.downcast_ref::<rustls::Error>()?;
    let why = match tls {
        // An authority of the same name with another key is as unknown.
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "certificate signed by unknown authority".to_owned(),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "certificate has expired or is not yet valid".to_owned(),
        rustls::Error::InvalidCertificate(other) => other.to_string(),
        _ => return None,
    };
    Some(format!("tls: failed to verify certificate: x509: {why}"))
}

/// What an answer says whose code is no success.
pub(super) fn answered(code: u16, body: &[u8]) -> String {
    let status: Option<Value> = serde_json::from_slice(body).ok();
    let message = status.filter(|status| status["kind"] == "Status");
    if let Some(message) = message.as_ref().and_then(|status| status["message"].as_str()) {
        return message.to_owned();
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(QUOTED_BYTES_MAX)]);
    let text = if text.trim().is_empty() { "unknown" } else { text.trim() };
    let sentence = match code {
        400 => "the server rejected our request for an unknown reason",
        401 => "the server has asked for the client to provide credentials",
        403 | 415 => text,
        404 => "the server could not find the requested resource",
        405 => "the server does not allow this method on the requested resource",
        406 if text == "unknown" => {
            "the server was unable to respond with a content type that the client supports"
        }
        406 => text,
        409 => "the server reported a conflict",
        422 => "the server rejected our request due to an error in our request",
        429 => "the server has received too many requests and has asked us to try again later",
        503 => "the server is currently unable to handle the request",
        504 => {
            "the server was unable to return a response in the time allotted, but may still be processing the request"
        }
        500.. => {
            return format!("an error on the server ({text:?}) has prevented the request from succeeding");
        }
        _ => {
            return format!(
                "the server responded with the status code {code} but did not return more information"
            );
        }
    };
    sentence.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_none_is_told_as_upstreams_clients_tell_it() {
        let status = br#"{"kind":"Status","message":"go away"}"#;
        assert_eq!(answered(500, status), "go away");
        assert_eq!(answered(404, b"404 page not found"), "the server could not find the requested resource");
        assert_eq!(
            answered(500, b"no \"luck\"\n"),
            "an error on the server (\"no \\\"luck\\\"\") has prevented the request from succeeding"
        );
        assert_eq!(
            answered(502, b""),
            "an error on the server (\"unknown\") has prevented the request from succeeding"
        );
    }
}
