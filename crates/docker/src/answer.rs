//! Answers: JSON, streams, errors in Docker's form (`{"message": …}`).

use base::BoxError;
use bytes::Bytes;
use engine_api::{EngineError, ErrorKind};
use futures::{Stream, StreamExt};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;

/// The body of an answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// An answer, or the error that becomes one.
pub(crate) type Answer = Result<Response<Body>, Failure>;

/// An error answer.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    message: String,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    pub(crate) fn internal(what: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{what}: {}", base::error::chain(error)))
    }

    pub(crate) fn into_response(self) -> Response<Body> {
        json(self.status, &serde_json::json!({ "message": self.message }))
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let status = match error.kind {
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::Denied => StatusCode::FORBIDDEN,
            ErrorKind::Unreachable | ErrorKind::Unavailable | ErrorKind::Internal => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        };
        Self::new(status, error.message)
    }
}

/// A JSON document.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    // Plain data always serialises; an empty document would still be an answer.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    with_type(status, "application/json", full(bytes))
}

/// A JSON document, 200.
pub(crate) fn ok(value: &impl Serialize) -> Answer {
    Ok(json(StatusCode::OK, value))
}

/// A status alone.
pub(crate) fn status(status: StatusCode) -> Answer {
    let mut response = Response::new(full(Vec::new()));
    *response.status_mut() = status;
    Ok(response)
}

/// A body that comes bit by bit.
pub(crate) fn streamed<S, E>(content_type: &'static str, stream: S) -> Response<Body>
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: Into<BoxError>,
{
    let frames = stream.map(|chunk| chunk.map(Frame::data).map_err(Into::into));
    with_type(StatusCode::OK, content_type, BodyExt::boxed_unsync(StreamBody::new(frames)))
}

/// JSON documents, one after the other, as they come.
pub(crate) fn documents<S>(stream: S) -> Response<Body>
where
    S: Stream<Item = serde_json::Value> + Send + 'static,
{
    let lines = stream.map(|value| Ok::<_, BoxError>(Bytes::from(format!("{value}\r\n"))));
    streamed("application/json", lines)
}

pub(crate) fn full(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn with_type(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The message that ends a stream of progress with an error.
pub(crate) fn error_document(error: &EngineError) -> serde_json::Value {
    serde_json::json!({ "errorDetail": { "message": error.message }, "error": error.message })
}
