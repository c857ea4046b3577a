//! Answers: objects, lists and failures as HTTP responses, in the form that the client accepts.

use std::sync::Arc;

use api::connect::Body;
use api::schema::Schema;
use api::{List, Object, Response, Status, protobuf};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::body::{COMPRESS_BYTES_MIN, compress, full, text};
use super::lists::{self, Listing, Write};
use super::negotiate::{self, Accepted, Encoding, Form, JSON, Offer, YAML};
use super::pretty::Indent;
use super::query::Query;
use crate::words::{self, Kind};

/// The form that a request accepts, or 406.
pub(super) fn accepted(headers: &HeaderMap, query: &Query, offer: Offer) -> Result<Accepted, Status> {
    let accepted = negotiate::accepted(text(headers, header::ACCEPT), offer)
        .ok_or_else(|| negotiate::not_acceptable(offer.stream))?;
    let pretty = accepted.pretty || negotiate::pretty(query.get("pretty"), text(headers, header::USER_AGENT));
    Ok(Accepted { pretty, ..accepted })
}

/// The answer to a HEAD: what a GET has, but for the body. HTTP/2 takes one that is there for a protocol error. Where
/// there is no body already, another server has left it out and alone knows its length.
pub(super) fn without_body(response: http::Response<Body>) -> http::Response<Body> {
    let (mut head, body) = response.into_parts();
    if let Some(bytes) = http_body::Body::size_hint(&body).exact().filter(|bytes| *bytes > 0) {
        head.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| bytes.into());
    }
    http::Response::from_parts(head, full(Bytes::new()))
}

/// A failure as its Status object, in the encoding that the client accepts; if it accepts none, in JSON.
pub(super) fn failure(status: &Status, accept: &str) -> http::Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let json = status.to_json().to_string();
    let encoding = negotiate::accepted(accept, Offer { protobuf: true, stream: false, table: true })
        .map_or(Encoding::Json, |accepted| accepted.encoding);
    let (media, bytes) = encoded(encoding, json.clone().into()).unwrap_or((JSON, json.into()));
    let mut response = typed_response(code, media, bytes);
    if status.details.retry_after_seconds > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, status.details.retry_after_seconds.into());
    }
    if code == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// The JSON of an object in an encoding, with its media type.
pub(super) fn encoded(encoding: Encoding, json: Bytes) -> Result<(&'static str, Bytes), Status> {
    Ok(match encoding {
        Encoding::Json => (JSON, json),
        Encoding::Yaml => (YAML, to_yaml(&json)?),
        Encoding::Protobuf => (protobuf::MEDIA_TYPE, protobuf::object(Schema::builtin(), &json)?.into()),
    })
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
    pub(super) kind: &'a Arc<Kind>,
    /// The name in the request's path; empty where it has none.
    pub(super) name: &'a str,
    pub(super) accepted: Accepted,
    pub(super) gzip: bool,
    pub(super) query: &'a Query,
    /// The code of an answer with an object that nobody made.
    pub(super) found: StatusCode,
}

impl Render<'_> {
    /// Renders everything but watches, without warnings.
    pub(super) async fn response(&self, response: Response) -> Result<http::Response<Body>, Status> {
        let (code, json) = match response {
            Response::Object { object, created, .. } => {
                return self.one(&object, if created { StatusCode::CREATED } else { self.found });
            }
            Response::Deleted { object: Some(object), .. } => return self.one(&object, StatusCode::OK),
            Response::List(list) if self.accepted.form != Form::Table => return self.list(list).await,
            Response::List(list) => (StatusCode::OK, self.table(&list)?),
            Response::Deleted { uid, .. } => (StatusCode::OK, self.deleted(&uid)),
            Response::Watch(_) => return Err(Status::internal("a watch is not rendered as one answer")),
        };
        let (media, bytes) = encoded(self.accepted.encoding, json)?;
        Ok(self.answer(code, media, bytes))
    }

    fn one(&self, object: &Object, code: StatusCode) -> Result<http::Response<Body>, Status> {
        if self.protobuf_metadata() {
            let bytes = protobuf::partial(Schema::builtin(), object.bytes())?;
            return Ok(self.answer(code, protobuf::MEDIA_TYPE, bytes.into()));
        }
        let (media, bytes) = encoded(self.accepted.encoding, self.object(object)?)?;
        Ok(self.answer(code, media, bytes))
    }

    fn answer(&self, code: StatusCode, media: &'static str, bytes: Bytes) -> http::Response<Body> {
        let bytes = if self.indents() { Indent::default().piece(&bytes).into() } else { bytes };
        let (bytes, packed) = compress(bytes, self.gzip);
        let mut answer = typed_response(code, media, bytes);
        if packed {
            mark_packed(&mut answer);
        }
        answer
    }

    fn indents(&self) -> bool {
        self.accepted.pretty && self.accepted.encoding == Encoding::Json
    }

    fn protobuf_metadata(&self) -> bool {
        self.accepted.form == Form::Metadata && self.accepted.encoding == Encoding::Protobuf
    }

    /// One object in the accepted form, as JSON.
    fn object(&self, object: &Object) -> Result<Bytes, Status> {
        match self.accepted.form {
            Form::Plain => Ok(object.bytes().clone()),
            Form::Metadata => {
                let mut out = Vec::new();
                words::write_metadata(object, self.accepted.meta_version, &mut out)?;
                Ok(out.into())
            }
            Form::Table => self.row(object, true),
        }
    }

    /// The object of a watch event: as [`Render::object`], a table's columns only the first time.
    pub(super) fn event(&self, object: &Object, columns: bool) -> Result<Bytes, Status> {
        match (self.accepted.form, self.accepted.encoding) {
            (Form::Table, _) => self.row(object, columns),
            (Form::Metadata, Encoding::Protobuf) => {
                protobuf::partial(Schema::builtin(), object.bytes()).map(Bytes::from)
            }
            (_, Encoding::Protobuf) => protobuf::object(Schema::builtin(), object.bytes()).map(Bytes::from),
            _ => self.object(object),
        }
    }

    /// The table of one object.
    fn row(&self, object: &Object, columns: bool) -> Result<Bytes, Status> {
        let metadata = json!({ "resourceVersion": object.meta().resource_version });
        self.table_of(&[object], columns, &metadata)
    }

    fn table_of(&self, objects: &[&Object], columns: bool, metadata: &Value) -> Result<Bytes, Status> {
        let head = (self.accepted.meta_version, metadata);
        words::table(self.kind, objects, self.include()?, columns, head).map(Bytes::from)
    }

    /// What a table's rows carry of their objects. Source: `ValidateTableOptions` of `meta/v1/validation`.
    fn include(&self) -> Result<words::Include, Status> {
        match self.query.get("includeObject") {
            Some("None") => Ok(words::Include::None),
            Some("Object") => Ok(words::Include::Object),
            None | Some("" | "Metadata") => Ok(words::Include::Metadata),
            Some(other) => Err(Status::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', \
                 'Object', 'None', or empty"
            ))),
        }
    }

    /// Refuses what a watch cannot be rendered with, before it begins.
    pub(super) fn check_watch(&self) -> Result<(), Status> {
        if self.accepted.form == Form::Table { self.include().map(drop) } else { Ok(()) }
    }

    fn table(&self, list: &List) -> Result<Bytes, Status> {
        let objects: Vec<&Object> = list.items.iter().map(AsRef::as_ref).collect();
        self.table_of(&objects, true, &list_metadata(list))
    }

    /// A list, item by item: no tree is built, and of a large one only what the client is taking is in memory.
    async fn list(&self, list: List) -> Result<http::Response<Body>, Status> {
        let metadata = list_metadata(&list).to_string();
        let api_version = self.kind.api_version();
        let (api_version, kind) = match self.accepted.form {
            Form::Metadata => (self.accepted.meta_version, "PartialObjectMetadataList"),
            _ => (api_version.as_str(), self.kind.list_kind.as_ref()),
        };
        let write = match (self.accepted.encoding, self.accepted.form) {
            (Encoding::Protobuf, Form::Metadata) => Write::ProtobufMetadata,
            (Encoding::Protobuf, _) => Write::Protobuf(self.kind.clone()),
            (_, Form::Metadata) => Write::Metadata(self.accepted.meta_version),
            _ => Write::Json,
        };
        let mut items = list.items;
        let mut held = None;
        let (head, tail) = if self.accepted.encoding == Encoding::Protobuf {
            let (measured, encoded) = lists::measured(&items, &write).await?;
            if encoded.is_some() {
                (held, items) = (encoded, Vec::new());
            }
            let head = write.items().head(api_version, kind, metadata.as_bytes(), measured)?;
            (head, protobuf::Items::tail())
        } else {
            let head = format!(
                "{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},\"items\":["
            );
            (head.into_bytes(), b"]}".to_vec())
        };
        let mut listing = Listing { head, held, items: items.into_iter(), write, tail };
        let yaml = self.accepted.encoding == Encoding::Yaml;
        let media = if self.accepted.encoding == Encoding::Protobuf { protobuf::MEDIA_TYPE } else { JSON };
        if let Some(whole) = listing.whole(if yaml { usize::MAX } else { COMPRESS_BYTES_MIN })? {
            let (media, bytes) = if yaml { (YAML, to_yaml(&whole)?) } else { (media, whole) };
            return Ok(self.answer(StatusCode::OK, media, bytes));
        }
        let mut answer = typed_response(StatusCode::OK, media, Bytes::new());
        *answer.body_mut() = listing.body(self.indents(), self.gzip);
        if self.gzip {
            mark_packed(&mut answer);
        }
        Ok(answer)
    }

    fn deleted(&self, uid: &str) -> Bytes {
        let mut details = json!({ "name": self.name, "kind": self.kind.plural, "uid": uid });
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

/// Says that a body is compressed.
pub(super) fn mark_packed(answer: &mut http::Response<Body>) {
    answer.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    answer.headers_mut().append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_a_length_only_where_it_is_known() {
        let length = |response: http::Response<Body>| {
            let response = without_body(response);
            assert_eq!(http_body::Body::size_hint(response.body()).exact(), Some(0));
            text(response.headers(), header::CONTENT_LENGTH).to_owned()
        };
        let of = |body: &'static str| http::Response::new(full(Bytes::from_static(body.as_bytes())));
        assert_eq!(length(of("12345")), "5");
        // As another server answers a HEAD that streams what a GET asks for, and as one that knows how much it is.
        assert_eq!(length(of("")), "");
        let mut told = of("");
        told.headers_mut().insert(header::CONTENT_LENGTH, 42.into());
        assert_eq!(length(told), "42");
    }
}
