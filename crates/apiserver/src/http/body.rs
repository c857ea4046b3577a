//! Bodies: read within a limit, from JSON, YAML or protobuf; written plain or compressed.

use std::io::Write;

use api::connect::Body;
use api::{Reason, Status, protobuf};
use base::BoxError;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};

use super::negotiate::{JSON, YAML, media_type, unsupported};

/// The largest body that a request may have. Source: `MaxRequestBodyBytes`.
const REQUEST_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Answers from this size on are compressed where the client accepts it. Source: `defaultGzipThresholdBytes`.
pub(super) const COMPRESS_BYTES_MIN: usize = 128 * 1024;

/// A body of known bytes.
pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Reads a request's body and turns YAML and protobuf into JSON; with the first key that YAML repeats.
/// Only built-in kinds have a protobuf form.
pub(super) async fn read<B>(
    headers: &HeaderMap,
    body: B,
    builtin: bool,
) -> Result<(Bytes, Option<String>), Status>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    // Upstream unpacks no bodies either; a packed one could be of any size.
    let packed = text(headers, header::CONTENT_ENCODING);
    if !matches!(packed, "" | "identity") {
        let message =
            format!("the body of the request is encoded as {packed:?}; bodies are taken as they are");
        return Err(Status::new(Reason::UnsupportedMediaType, message));
    }
    let declared = text(headers, header::CONTENT_LENGTH).parse::<usize>();
    if declared.is_ok_and(|bytes| bytes > REQUEST_BYTES_MAX) {
        return Err(too_large());
    }
    let limited = Limited::new(body, REQUEST_BYTES_MAX);
    let bytes = limited.collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            too_large()
        } else {
            Status::bad_request(format!("the body of the request could not be read: {error}"))
        }
    })?;
    to_json(text(headers, header::CONTENT_TYPE), bytes.to_bytes(), builtin)
}

fn too_large() -> Status {
    let message = format!("Request entity too large: limit is {REQUEST_BYTES_MAX}");
    Status::new(Reason::RequestEntityTooLarge, message)
}

fn to_json(content_type: &str, bytes: Bytes, builtin: bool) -> Result<(Bytes, Option<String>), Status> {
    if bytes.is_empty() {
        return Ok((bytes, None));
    }
    let json = match media_type(content_type) {
        "application/yaml" | "application/apply-patch+yaml" if api::decode::is_plain_json(&bytes) => {
            Ok(bytes)
        }
        "application/yaml" | "application/apply-patch+yaml" => {
            let (json, repeated) = api::decode::yaml_to_json(&bytes)
                .map_err(|error| Status::bad_request(format!("error converting YAML to JSON: {error}")))?;
            return Ok((json.into(), repeated));
        }
        protobuf::MEDIA_TYPE if builtin => {
            let value = protobuf::decode(api::schema::Schema::builtin(), &bytes)?;
            serde_json::to_vec(&value).map(Bytes::from).map_err(|error| Status::internal(error.to_string()))
        }
        "" | JSON => Ok(bytes),
        other if other.ends_with("+json") => Ok(bytes),
        _ if builtin => Err(unsupported(&[JSON, YAML, protobuf::MEDIA_TYPE])),
        _ => Err(unsupported(&[JSON, YAML])),
    };
    json.map(|json| (json, None))
}

/// A header's text; empty where absent.
pub(super) fn text(headers: &HeaderMap, name: header::HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Whether the client takes gzip.
pub(super) fn takes_gzip(headers: &HeaderMap) -> bool {
    text(headers, header::ACCEPT_ENCODING)
        .split(',')
        .any(|coding| coding.split(';').next().unwrap_or_default().trim() == "gzip")
}

/// Compresses bytes if it is worth it.
pub(super) fn compress(bytes: Bytes, gzip: bool) -> (Bytes, bool) {
    if !gzip || bytes.len() <= COMPRESS_BYTES_MIN {
        return (bytes, false);
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    match encoder.write_all(&bytes).and_then(|()| encoder.finish()) {
        Ok(packed) => (packed.into(), true),
        // Writing to memory does not fail; plain bytes are right in any case.
        Err(_) => (bytes, false),
    }
}
