//! Watches over HTTP: one JSON event a line or one message after its length, flushed by batch; ends when the client goes or the server drains.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use api::connect::Body;
use api::schema::Schema;
use api::{Object, Status, WatchEvent, WatchEventKind, WatchStream, protobuf};
use base::BoxError;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use http::{HeaderValue, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::metrics::Watched;
use super::negotiate::{Accepted, Encoding, Form, JSON};
use super::query::Query;
use super::respond::Render;
use crate::cache::BATCH_MAX;
use crate::words::Kind;

/// So many bytes of encoded objects, and of the objects, are kept for other watchers.
const ENCODED_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Between two batches of events of one watch so much time passes at least, if something happens all the time.
const PAUSE: Duration = Duration::from_millis(4);
/// Of so many events at once, the next batch may come a pause later, and of twice as many two: the more there are, the less
/// each of them is missed.
const STEP: usize = 6;
/// So many pauses at most.
const PAUSES_MAX: u32 = 4;
/// Bytes of an event besides its object, at most.
const LINE_BYTES: usize = 32;

/// Objects as they were last encoded: what many watch is encoded once and not for each of them.
#[derive(Default)]
pub(crate) struct Encoded(Mutex<Recent>);

/// An object by its address, which is its own for as long as it is kept here, and the form.
type Key = (usize, Accepted);

#[derive(Default)]
struct Recent {
    forms: HashMap<Key, (Arc<Object>, Bytes)>,
    /// The oldest first.
    order: VecDeque<Key>,
    bytes: usize,
}

impl Encoded {
    /// An object in a form, encoded now if nobody has asked for that lately.
    fn object(
        &self,
        object: &Arc<Object>,
        form: Accepted,
        encode: impl FnOnce() -> Result<Bytes, Status>,
    ) -> Result<Bytes, Status> {
        let key = (Arc::as_ptr(object).addr(), form);
        if let Some((_, bytes)) = self.0.lock().forms.get(&key) {
            return Ok(bytes.clone());
        }
        let bytes = encode()?;
        self.0.lock().keep(key, object.clone(), bytes.clone());
        Ok(bytes)
    }
}

impl Recent {
    fn keep(&mut self, key: Key, object: Arc<Object>, bytes: Bytes) {
        self.bytes += object.bytes().len() + bytes.len();
        match self.forms.insert(key, (object, bytes)) {
            // Another watcher encoded it at the same time.
            Some(before) => self.forget(&before),
            None => self.order.push_back(key),
        }
        while self.bytes > ENCODED_BYTES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            if let Some(gone) = self.forms.remove(&oldest) {
                self.forget(&gone);
            }
        }
    }

    fn forget(&mut self, (object, bytes): &(Arc<Object>, Bytes)) {
        self.bytes -= object.bytes().len() + bytes.len();
    }
}

/// What the stream keeps of the request's rendering.
struct Rendering {
    kind: Arc<Kind>,
    accepted: Accepted,
    query: Query,
    columns_sent: bool,
    watched: Watched,
    encoded: Arc<Encoded>,
}

/// Streams events.
pub(super) fn respond(
    stream: WatchStream,
    render: &Render<'_>,
    watched: Watched,
    encoded: Arc<Encoded>,
    drain: CancellationToken,
) -> http::Response<Body> {
    let mut rendering = Rendering {
        kind: render.kind.clone(),
        accepted: render.accepted,
        query: render.query.clone(),
        columns_sent: false,
        watched,
        encoded,
    };
    let media = match render.accepted.encoding {
        Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => JSON,
    };
    let frames = paced(stream)
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

/// The stream with pauses: while much is written, events go out together, and with them the work of a record, a packet and
/// a wake-up. The first event after a quiet moment does not wait, nor does what has gathered already.
fn paced(stream: WatchStream) -> impl Stream<Item = Result<Vec<WatchEvent>, Status>> {
    stream::unfold((stream, None), |(mut stream, next)| async move {
        if let Some(next) = next {
            tokio::time::sleep_until(next).await;
        }
        let batch = stream.next().await?;
        let more = batch.as_ref().is_ok_and(|events| events.len() >= BATCH_MAX);
        let next = (!more).then(|| Instant::now() + pause(batch.as_ref().map_or(0, Vec::len)));
        Some((batch, (stream, next)))
    })
}

/// How long a watch pauses after so many events at once.
fn pause(events: usize) -> Duration {
    let pauses = u32::try_from(events / STEP).unwrap_or(PAUSES_MAX).saturating_add(1);
    PAUSE * pauses.min(PAUSES_MAX)
}

impl Rendering {
    fn batch(&mut self, events: &[WatchEvent]) -> Bytes {
        let size = |event: &WatchEvent| event.object.bytes().len() + LINE_BYTES;
        // What is not written as it is has another size, mostly a much smaller one.
        let size = if self.is_plain() { events.iter().map(size).sum() } else { 0 };
        let mut out = BytesMut::with_capacity(size);
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

    fn is_plain(&self) -> bool {
        self.accepted.form == Form::Plain && self.accepted.encoding == Encoding::Json
    }

    fn event(&mut self, event: &WatchEvent) -> Result<Bytes, Status> {
        let plain = self.is_plain();
        if event.kind == WatchEventKind::Bookmark && plain {
            return Ok(event.object.bytes().clone());
        }
        let (kind, accepted, columns) = (&self.kind, self.accepted, !self.columns_sent);
        let render =
            Render { kind, name: "", accepted, gzip: false, query: &self.query, found: StatusCode::OK };
        // Rows are for people, of whom few watch; bookmarks are each watcher's own, and so is what is converted.
        let shared = kind.custom.is_none() && kind.is_storage_version();
        if plain || !shared || accepted.form == Form::Table || event.kind == WatchEventKind::Bookmark {
            let rendered = render.event(&event.object, columns)?;
            self.columns_sent = true;
            return Ok(rendered);
        }
        self.encoded.object(&event.object, accepted, || render.event(&event.object, columns))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn object(size: usize) -> Arc<Object> {
        let json = serde_json::json!({ "metadata": { "name": "a" }, "data": { "k": "x".repeat(size) } });
        Arc::new(Object::parse(json.to_string().into()).unwrap())
    }

    #[test]
    fn the_more_is_written_the_longer_are_the_pauses() {
        let pauses = [0, 1, 3, 4, 8, 12, BATCH_MAX, usize::MAX].map(|events| pause(events).as_millis());
        assert_eq!(pauses, [4, 4, 4, 4, 8, 12, 16, 16]);
    }

    #[test]
    fn an_object_is_encoded_once_in_each_form() {
        let encoded = Encoded::default();
        let (one, other) = (object(1), object(1));
        let metadata = Accepted { form: Form::Metadata, ..Accepted::PLAIN };
        let text = |text: &'static str| Ok(Bytes::from_static(text.as_bytes()));
        let of = |object, form, said| encoded.object(object, form, || text(said)).unwrap();
        assert_eq!(of(&one, Accepted::PLAIN, "a"), "a");
        assert_eq!(of(&one, Accepted::PLAIN, "b"), "a");
        assert_eq!(of(&one, metadata, "c"), "c");
        assert_eq!(of(&other, Accepted::PLAIN, "d"), "d");
        let refused = encoded.object(&other, metadata, || Err(Status::internal("no")));
        assert!(refused.is_err());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let encoded = Encoded::default();
        for _ in 0..10 {
            let large = object(ENCODED_BYTES_MAX / 4);
            encoded.object(&large, Accepted::PLAIN, || Ok(Bytes::from_static(b"x"))).unwrap();
            let recent = encoded.0.lock();
            assert!(recent.bytes <= ENCODED_BYTES_MAX && recent.order.len() == recent.forms.len());
            assert!(recent.bytes > 0);
        }
    }
}
