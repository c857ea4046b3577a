//! Answers: objects, lists and failures as HTTP responses, in the form that the client accepts.

use api::connect::Body;
use api::{List, Object, Reason, Response, Status};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::body::{compress, full, text};
use super::negotiate::{self, Accepted, Encoding, Form};
use super::query::Query;
use crate::words::{self, Kind};

/// The form that a request accepts, or 406.
pub(super) fn accepted(headers: &HeaderMap) -> Result<Accepted, Status> {
    negotiate::accepted(text(headers, header::ACCEPT)).ok_or_else(|| {
        Status::new(
            Reason::NotAcceptable,
            "only the following media types are accepted: application/json, application/yaml",
        )
    })
}

/// A failure as its Status object.
pub(super) fn failure(status: &Status) -> http::Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_response(code, status.to_json().to_string());
    if status.details.retry_after_seconds > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, status.details.retry_after_seconds.into());
    }
    if code == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// A JSON answer.
pub(super) fn json_response(code: StatusCode, body: impl Into<Bytes>) -> http::Response<Body> {
    typed_response(code, "application/json", body)
}

/// An answer of some media type.
pub(super) fn typed_response(
    code: StatusCode,
    media: &'static str,
    body: impl Into<Bytes>,
) -> http::Response<Body> {
    let mut response = http::Response::new(full(body));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// How one request's answer is rendered.
pub(super) struct Render<'a> {
    pub(super) kind: &'a Kind,
    pub(super) accepted: Accepted,
    pub(super) gzip: bool,
    pub(super) query: &'a Query,
}

impl Render<'_> {
    /// Renders everything but watches.
    pub(super) fn response(&self, response: Response) -> Result<http::Response<Body>, Status> {
        let (code, bytes, warnings) = match response {
            Response::Object { object, created, warnings } => {
                let code = if created { StatusCode::CREATED } else { StatusCode::OK };
                (code, self.object(&object)?, warnings)
            }
            Response::List(list) => (StatusCode::OK, self.list(&list)?, Vec::new()),
            Response::Deleted { uid, warnings } => (StatusCode::OK, self.deleted(&uid), warnings),
            Response::Watch(_) => return Err(Status::internal("a watch is not rendered as one answer")),
        };
        let (bytes, media) = match self.accepted.encoding {
            Encoding::Json => (bytes, "application/json"),
            Encoding::Yaml => (to_yaml(&bytes)?, "application/yaml"),
        };
        let (bytes, packed) = compress(bytes, self.gzip);
        let mut answer = typed_response(code, media, bytes);
        if packed {
            answer.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        for warning in &warnings {
            if let Some(value) = warning_header(warning) {
                answer.headers_mut().append(header::WARNING, value);
            }
        }
        Ok(answer)
    }

    /// One object in the accepted form.
    pub(super) fn object(&self, object: &Object) -> Result<Bytes, Status> {
        match self.accepted.form {
            Form::Plain => Ok(object.bytes().clone()),
            Form::Metadata => Ok(Bytes::from(metadata_of(object)?.to_string())),
            Form::Table => {
                let table = words::table(self.kind, &[object], self.include(), true)?;
                Ok(Bytes::from(table.to_string()))
            }
        }
    }

    /// The rows of a watch event: a Table with one row, its columns only the first time.
    pub(super) fn event(&self, object: &Object, columns: bool) -> Result<Bytes, Status> {
        if self.accepted.form != Form::Table {
            return self.object(object);
        }
        words::table(self.kind, &[object], self.include(), columns)
            .map(|table| Bytes::from(table.to_string()))
    }

    fn include(&self) -> words::Include {
        match self.query.get("includeObject") {
            Some("None") => words::Include::None,
            Some("Object") => words::Include::Object,
            _ => words::Include::Metadata,
        }
    }

    fn list(&self, list: &List) -> Result<Bytes, Status> {
        let metadata = list_metadata(list);
        match self.accepted.form {
            Form::Table => {
                let objects: Vec<&Object> = list.items.iter().map(AsRef::as_ref).collect();
                let mut table = words::table(self.kind, &objects, self.include(), true)?;
                table["metadata"] = metadata;
                Ok(Bytes::from(table.to_string()))
            }
            Form::Metadata => {
                let items = list.items.iter().map(|item| metadata_of(item)).collect::<Result<Vec<_>, _>>()?;
                Ok(Bytes::from(
                    json!({
                        "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                        "metadata": metadata, "items": items,
                    })
                    .to_string(),
                ))
            }
            Form::Plain => Ok(self.concatenate(list, &metadata)),
        }
    }

    /// A list is its items' bytes one after the other: no tree is built.
    fn concatenate(&self, list: &List, metadata: &Value) -> Bytes {
        let size: usize = list.items.iter().map(|item| item.bytes().len() + 1).sum();
        let head = format!(
            "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
            self.kind.list_kind,
            self.kind.api_version()
        );
        let mut out = BytesMut::with_capacity(head.len() + size + 2);
        out.put_slice(head.as_bytes());
        for (index, item) in list.items.iter().enumerate() {
            if index > 0 {
                out.put_u8(b',');
            }
            out.put_slice(item.bytes());
        }
        out.put_slice(b"]}");
        out.freeze()
    }

    fn deleted(&self, uid: &str) -> Bytes {
        let mut details = json!({ "kind": self.kind.plural, "uid": uid });
        if !self.kind.group.is_empty() {
            details["group"] = self.kind.group.as_ref().into();
        }
        Bytes::from(
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
            })
            .to_string(),
        )
    }
}

fn list_metadata(list: &List) -> Value {
    let mut metadata = json!({ "resourceVersion": list.revision.to_string() });
    if !list.continue_token.is_empty() {
        metadata["continue"] = list.continue_token.clone().into();
    }
    if let Some(remaining) = list.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    metadata
}

/// An object's `PartialObjectMetadata`.
fn metadata_of(object: &Object) -> Result<Value, Status> {
    #[derive(serde::Deserialize)]
    struct Head {
        #[serde(default)]
        metadata: Value,
    }
    let head: Head = object.decode().map_err(|error| Status::internal(error.to_string()))?;
    Ok(json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": head.metadata }))
}

fn to_yaml(bytes: &[u8]) -> Result<Bytes, Status> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| Status::internal(error.to_string()))?;
    let text = serde_yaml_ng::to_string(&value).map_err(|error| Status::internal(error.to_string()))?;
    Ok(text.into())
}

/// RFC 7234's warning of code 299, without what a header cannot carry.
pub(super) fn warning_header(text: &str) -> Option<HeaderValue> {
    let quoted: String = text
        .chars()
        .filter(|char| !char.is_control())
        .flat_map(|char| match char {
            '"' | '\\' => vec!['\\', char],
            other => vec![other],
        })
        .collect();
    HeaderValue::from_str(&format!("299 - \"{quoted}\"")).ok()
}
