//! Watches over HTTP: one JSON event a line or one message after its length, flushed by batch; ends when the client goes or the server drains.

use std::sync::Arc;

use api::connect::Body;
use api::schema::Schema;
use api::{Status, WatchEvent, WatchEventKind, WatchStream, protobuf};
use base::BoxError;
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderValue, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio_util::sync::CancellationToken;

use super::metrics::Watched;
use super::negotiate::{Accepted, Encoding, Form, JSON};
use super::query::Query;
use super::respond::Render;
use crate::words::Kind;

/// What the stream keeps of the request's rendering.
struct Rendering {
    kind: Arc<Kind>,
    accepted: Accepted,
    query: Query,
    columns_sent: bool,
    watched: Watched,
}

/// Streams events.
pub(super) fn respond(
    stream: WatchStream,
    render: &Render<'_>,
    watched: Watched,
    drain: CancellationToken,
) -> http::Response<Body> {
    let mut rendering = Rendering {
        kind: render.kind.clone(),
        accepted: render.accepted,
        query: render.query.clone(),
        columns_sent: false,
        watched,
    };
    let media = match render.accepted.encoding {
        Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => JSON,
    };
    let frames = stream
        .map(move |batch| {
            let bytes = match batch {
                Ok(events) => rendering.batch(&events),
                Err(status) => rendering.failure(&status),
            };
            Ok::<_, BoxError>(Frame::data(bytes))
        })
        .take_until(drain.cancelled_owned());
    let mut response = http::Response::new(StreamBody::new(frames).boxed_unsync());
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

impl Rendering {
    fn batch(&mut self, events: &[WatchEvent]) -> Bytes {
        let mut out = BytesMut::new();
        for event in events {
            match self.event(event) {
                Ok(object) => {
                    self.put(&mut out, word(event.kind), &object);
                    self.watched.sent(object.len());
                }
                Err(status) => out.put_slice(&self.failure(&status)),
            }
        }
        out.freeze()
    }

    fn event(&mut self, event: &WatchEvent) -> Result<Bytes, Status> {
        let plain = self.accepted.form == Form::Plain && self.accepted.encoding == Encoding::Json;
        if event.kind == WatchEventKind::Bookmark && plain {
            return Ok(event.object.bytes().clone());
        }
        let (kind, accepted) = (&self.kind, self.accepted);
        let render = Render { kind, name: "", accepted, gzip: false, query: &self.query };
        let bytes = render.event(&event.object, !self.columns_sent)?;
        self.columns_sent = true;
        Ok(bytes)
    }

    fn put(&self, out: &mut BytesMut, word: &str, object: &[u8]) {
        match self.accepted.encoding {
            Encoding::Protobuf => out.put_slice(&protobuf::event(word, object)),
            _ => line(out, word, object),
        }
    }

    fn failure(&self, status: &Status) -> Bytes {
        let json = status.to_json().to_string();
        let mut out = BytesMut::new();
        match self.accepted.encoding {
            Encoding::Protobuf => {
                let object = protobuf::object(Schema::builtin(), json.as_bytes()).unwrap_or_default();
                self.put(&mut out, "ERROR", &object);
            }
            _ => self.put(&mut out, "ERROR", json.as_bytes()),
        }
        out.freeze()
    }
}

fn line(out: &mut BytesMut, kind: &str, object: &[u8]) {
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
}

fn word(kind: WatchEventKind) -> &'static str {
    match kind {
        WatchEventKind::Added => "ADDED",
        WatchEventKind::Modified => "MODIFIED",
        WatchEventKind::Deleted => "DELETED",
        WatchEventKind::Bookmark => "BOOKMARK",
    }
}
