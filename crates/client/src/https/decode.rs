//! Answers from HTTP: objects, lists, watches and failures.

use api::wire::{self, failure};
use api::{Object, Reason, Response, Status, Verb, WatchEvent, WatchEventKind, WatchStream};
use bytes::{Buf, Bytes, BytesMut};
use futures::StreamExt;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::value::RawValue;

/// The longest event of a watch. Objects are at most a few megabytes; a longer line is no event.
const EVENT_MAX_BYTES: usize = 16 << 20;

/// A successful answer to anything but a watch.
pub(super) fn answer(verb: Verb, head: &http::response::Parts, body: Bytes) -> Result<Response, Status> {
    let warnings = warnings(head);
    match verb {
        Verb::List => wire::list(&body).map(Response::List).map_err(|error| garbled(&error)),
        Verb::Delete | Verb::DeleteCollection => deleted(body, warnings),
        _ => Ok(Response::Object {
            object: Object::parse(body).map_err(|error| garbled(&error))?.into(),
            created: head.status == http::StatusCode::CREATED,
            warnings,
        }),
    }
}

/// The texts of `Warning: 299 - "text"` headers. Source: RFC 7234, section 5.5.
fn warnings(head: &http::response::Parts) -> Vec<String> {
    let texts = head.headers.get_all(http::header::WARNING).iter().filter_map(|value| value.to_str().ok());
    texts
        .filter_map(|value| {
            let quoted = value.get(value.find('"')? + 1..value.rfind('"')?)?;
            Some(quoted.replace("\\\"", "\"").replace("\\\\", "\\"))
        })
        .collect()
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TypeHead {
    api_version: String,
    kind: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DeletedStatus {
    details: DeletedDetails,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DeletedDetails {
    uid: String,
}

/// A delete answers with the object while it is not done, then with a `Status` or, for some kinds, the object.
fn deleted(body: Bytes, warnings: Vec<String>) -> Result<Response, Status> {
    let head: TypeHead = serde_json::from_slice(&body).map_err(|error| garbled(&error))?;
    if head.kind == "Status" || head.kind.ends_with("List") {
        let status: DeletedStatus = serde_json::from_slice(&body).unwrap_or_default();
        return Ok(Response::Deleted { uid: status.details.uid, object: None, warnings });
    }
    let object = Object::parse(body).map_err(|error| garbled(&error))?.into();
    Ok(Response::Object { object, created: false, warnings })
}

fn garbled(error: &serde_json::Error) -> Status {
    Status::internal(format!("the API server's answer cannot be read: {error}"))
}

/// The events of a watch, batched by what arrived together.
pub(super) fn watch<B>(body: B) -> WatchStream
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display + Send,
{
    let state = (body, BytesMut::new(), false);
    futures::stream::unfold(state, |(mut body, mut buffer, ended)| async move {
        if ended {
            return None;
        }
        loop {
            let frame = match body.frame().await? {
                Ok(frame) => frame,
                Err(error) => {
                    let status = Status::new(Reason::ServiceUnavailable, format!("the watch broke: {error}"));
                    return Some((Err(status), (body, buffer, true)));
                }
            };
            let Ok(data) = frame.into_data() else { continue };
            buffer.extend_from_slice(&data);
            match take_events(&mut buffer) {
                Ok(events) if events.is_empty() => {}
                Ok(events) => return Some((Ok(events), (body, buffer, false))),
                Err(status) => return Some((Err(status), (body, buffer, true))),
            }
        }
    })
    .boxed()
}

/// Takes every complete line out of the buffer. Events before a failure are given up with it: whoever watches goes on
/// from the last revision that it has seen.
fn take_events(buffer: &mut BytesMut) -> Result<Vec<WatchEvent>, Status> {
    let Some(end) = buffer.iter().rposition(|byte| *byte == b'\n') else {
        if buffer.len() > EVENT_MAX_BYTES {
            return Err(Status::internal(format!("a watch event is longer than {EVENT_MAX_BYTES} bytes")));
        }
        return Ok(Vec::new());
    };
    let lines = buffer.copy_to_bytes(end + 1);
    let events = lines.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    events.map(|line| event(&lines, line)).collect()
}

#[derive(Deserialize)]
struct EventBody<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BookmarkHead {
    metadata: BookmarkMeta,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BookmarkMeta {
    annotations: std::collections::BTreeMap<String, String>,
}

fn event(lines: &Bytes, line: &[u8]) -> Result<WatchEvent, Status> {
    let body: EventBody<'_> = serde_json::from_slice(line).map_err(|error| garbled(&error))?;
    let text = body.object.get();
    let kind = match body.r#type {
        "ADDED" => WatchEventKind::Added,
        "MODIFIED" => WatchEventKind::Modified,
        "DELETED" => WatchEventKind::Deleted,
        "BOOKMARK" => WatchEventKind::Bookmark,
        _ => return Err(failure(500, text.as_bytes())),
    };
    let initial_events_end = kind == WatchEventKind::Bookmark
        && serde_json::from_str::<BookmarkHead>(text)
            .is_ok_and(|head| head.metadata.annotations.contains_key("k8s.io/initial-events-end"));
    // Objects outlive their batch by far: each keeps its own bytes alone.
    let bytes = Bytes::copy_from_slice(&lines.slice_ref(text.as_bytes()));
    let object = Object::parse(bytes).map_err(|error| garbled(&error))?.into();
    Ok(WatchEvent { kind, object, initial_events_end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_cut_at_lines_and_failures_end_them() {
        let mut buffer = BytesMut::from(
            &b"{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"a\",\"resourceVersion\":\"3\"}}}\n\
               {\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{\"resourceVersion\":\"9\",\
               \"annotations\":{\"k8s.io/initial-events-end\":\"true\"}}}}\n{\"type\":"[..],
        );
        let events = take_events(&mut buffer).unwrap();
        assert_eq!(events.len(), 2);
        assert_eq!(events[0].object.revision(), 3);
        assert!(events[1].initial_events_end);
        buffer.extend_from_slice(
            b"\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":410,\"reason\":\"Expired\",\"message\":\"old\"}}\n",
        );
        let status = take_events(&mut buffer).unwrap_err();
        assert_eq!((status.code, status.reason), (410, Reason::Expired));
    }
}
