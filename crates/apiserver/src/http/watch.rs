//! Watches over HTTP: one JSON event a line, flushed by batch; ends when the client goes or the server drains.

use api::connect::Body;
use api::{Status, WatchEvent, WatchEventKind, WatchStream};
use base::BoxError;
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderValue, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio_util::sync::CancellationToken;

use super::negotiate::{Accepted, Form};
use super::query::Query;
use super::respond::Render;
use crate::words::Kind;

/// What the stream keeps of the request's rendering.
struct Rendering {
    kind: Kind,
    accepted: Accepted,
    query: Query,
    columns_sent: bool,
}

/// Streams events.
pub(super) fn respond(
    stream: WatchStream,
    render: &Render<'_>,
    drain: CancellationToken,
) -> http::Response<Body> {
    let mut rendering = Rendering {
        kind: render.kind.clone(),
        accepted: render.accepted,
        query: render.query.clone(),
        columns_sent: false,
    };
    let frames = stream
        .map(move |batch| {
            let bytes = match batch {
                Ok(events) => rendering.batch(&events),
                Err(status) => error_line(&status),
            };
            Ok::<_, BoxError>(Frame::data(bytes))
        })
        .take_until(drain.cancelled_owned());
    let mut response = http::Response::new(StreamBody::new(frames).boxed_unsync());
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

impl Rendering {
    fn batch(&mut self, events: &[WatchEvent]) -> Bytes {
        let mut out = BytesMut::new();
        for event in events {
            match self.event(event) {
                Ok(object) => line(&mut out, word(event.kind), &object),
                Err(status) => out.put_slice(&error_line(&status)),
            }
        }
        out.freeze()
    }

    fn event(&mut self, event: &WatchEvent) -> Result<Bytes, Status> {
        if event.kind == WatchEventKind::Bookmark && self.accepted.form == Form::Plain {
            return Ok(event.object.bytes().clone());
        }
        let render = Render { kind: &self.kind, accepted: self.accepted, gzip: false, query: &self.query };
        let bytes = render.event(&event.object, !self.columns_sent)?;
        self.columns_sent = true;
        Ok(bytes)
    }
}

fn line(out: &mut BytesMut, kind: &str, object: &[u8]) {
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
}

fn error_line(status: &Status) -> Bytes {
    let mut out = BytesMut::new();
    line(&mut out, "ERROR", status.to_json().to_string().as_bytes());
    out.freeze()
}

fn word(kind: WatchEventKind) -> &'static str {
    match kind {
        WatchEventKind::Added => "ADDED",
        WatchEventKind::Modified => "MODIFIED",
        WatchEventKind::Deleted => "DELETED",
        WatchEventKind::Bookmark => "BOOKMARK",
    }
}
